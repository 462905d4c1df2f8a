// dual: the predicted dual, up to a constant.
//
//     f_i = sum_l phi_li + q_i G q_i^T + h q_i^T,    0 at padding, as phi is, and a tile's q
//
// G (d, d) and h (d) are those of the problem; both null where slices are all there is; L is 0 where there are none.
//
// dual<<<problems ceil(n / ROWS), THREADS>>> of phi (problems, L, n), q (problems, n, d), G (problems, d, d),
// h (problems, d), mask (rows, n) or null -> f (problems, n)

struct DualShared {
    REAL Q[ROWS][D + 4], G[COLS][D + 4], sum[ROWS][TX + 1];
};
static_assert(sizeof(DualShared) == SHARED_DUAL, "as build.py says");

extern "C" __global__ void __launch_bounds__(THREADS)
dual(const REAL* __restrict__ phi, const STORE* __restrict__ all_q, const REAL* __restrict__ G,
     const REAL* __restrict__ h, const bool* __restrict__ mask, int every, int rows, REAL* __restrict__ f,
     int n, int d, int L) {
    DualShared& s = *reinterpret_cast<DualShared*>(shared);
    const int tiles = (n + ROWS - 1) / ROWS, problem = blockIdx.x / tiles, start = blockIdx.x % tiles * ROWS;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    const auto q = tokens_of(problem, all_q, n, d, mask, every, rows);
    phi += size_t(problem) * L * n;

    REAL sum[M], score[M][N];
#pragma unroll
    for (int i = 0; i < M; i++) sum[i] = 0;
    if (G) {
        h += size_t(problem) * d;
        load(s.Q, q, start, REAL(1));
        for (int first = 0; first < d; first += COLS) {
            __syncthreads();  // all have read the last rows
            load(s.G, tokens_of(problem, G, d, d, nullptr, 1, 1), first, REAL(1));
            __syncthreads();
            products(score, s.Q, s.G, ty, tx);
#pragma unroll
            for (int i = 0; i < M; i++)
#pragma unroll
                for (int j = 0; j < N; j++) {
                    const int c = first + tx + TX * j;
                    if (c < d) sum[i] += (score[i][j] + h[c]) * s.Q[ty + TY * i][c];
                }
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) s.sum[ty + TY * i][tx] = sum[i];
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS && start + i < n; i += THREADS) {
        REAL total = 0;
        for (int t = 0; t < TX; t++) total += s.sum[i][t];
        for (int l = 0; l < L; l++) total += phi[size_t(l) * n + start + i];
        f[size_t(problem) * n + start + i] = finite_or_nan(total);
    }
}
