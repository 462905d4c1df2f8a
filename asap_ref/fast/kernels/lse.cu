// lse: half a Sinkhorn iteration, onto the tokens a from the dual of the tokens b.
//
//     out_i = epsilon log mass - epsilon log sum_j exp((a_i . b_j scale + dual_j) / epsilon),    0 at padding
//
// With a = q, b = k it is onto queries, mass 1, and with no dual softmax's normaliser. With a = k, b = q it is onto
// keys, mass n'/m'. Nothing that follows depends on that constant, but without it duals would drift, and cost digits.
// Every thread keeps a running maximum and sum over its own columns of each of its rows; they are joined at the end.
//
// lse<<<problems ceil(n / ROWS), THREADS>>> of a (problems, n, d), b (problems, m, d), dual (problems, m) or null,
// masks (rows, n) and (rows, m) or null -> out (problems, n).    n counts the tokens of a, m those of b.

struct LseShared {
    REAL A[ROWS][D + 4], B[COLS][D + 4], dual[COLS], top[ROWS][TX + 1], sum[ROWS][TX + 1];
    int counts[THREADS];
};
static_assert(sizeof(LseShared) == SHARED_LSE, "as build.py says");

extern "C" __global__ void __launch_bounds__(THREADS)
lse(const STORE* __restrict__ all_a, const STORE* __restrict__ all_b, const REAL* __restrict__ dual,
    const bool* __restrict__ a_mask, int a_every, int a_rows, const bool* __restrict__ b_mask, int b_every, int b_rows,
    REAL* __restrict__ out, int n, int m, int d, int onto_keys, REAL scale, REAL epsilon) {
    LseShared& s = *reinterpret_cast<LseShared*>(shared);
    const int tiles = (n + ROWS - 1) / ROWS, problem = blockIdx.x / tiles, start = blockIdx.x % tiles * ROWS;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    const auto a = tokens_of(problem, all_a, n, d, a_mask, a_every, a_rows);
    const auto b = tokens_of(problem, all_b, m, d, b_mask, b_every, b_rows);
    if (dual) dual += size_t(problem) * m;

    load(s.A, a, start, scale * LOG2E / epsilon);
    REAL top[M], sum[M], score[M][N];
#pragma unroll
    for (int i = 0; i < M; i++) top[i] = -INF, sum[i] = 0;
    for (int first = 0; first < m; first += COLS) {
        __syncthreads();  // all have read the last tile
        load(s.B, b, first, REAL(1));
        load_dual(s.dual, dual, b, first, LOG2E / epsilon);
        __syncthreads();
        products(score, s.A, s.B, ty, tx);
#pragma unroll
        for (int i = 0; i < M; i++) {
            REAL high = top[i], more = 0;
#pragma unroll
            for (int j = 0; j < N; j++) {
                score[i][j] += s.dual[tx + TX * j];
                high = larger(high, score[i][j]);
            }
            const REAL base = base_of(high);
#pragma unroll
            for (int j = 0; j < N; j++) more += exp2(score[i][j] - base);
            sum[i] = sum[i] * exp2(top[i] - base) + more;
            top[i] = high;
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) s.top[ty + TY * i][tx] = top[i], s.sum[ty + TY * i][tx] = sum[i];
    __syncthreads();
    const REAL log_mass = onto_keys ? log2(REAL(count_of(b, s.counts)) / count_of(a, s.counts)) : REAL(0);
    for (int i = threadIdx.x; i < ROWS && start + i < n; i += THREADS) {
        REAL high = -INF, total = 0;
        for (int t = 0; t < TX; t++) high = larger(high, s.top[i][t]);
        for (int t = 0; t < TX; t++) total += s.sum[i][t] * exp2(s.top[i][t] - base_of(high));
        const bool some = a.has(start + i) && (high != -INF || b.any());
        const REAL f = finite_or_nan(epsilon * LN2 * (log_mass - (high + log2(total))));
        out[size_t(problem) * n + start + i] = some ? f : REAL(0);
    }
}
