// attend: softmax attention with a bias for each key, which closes softmax, Sinkhorn and ASAP alike.
//
//     out_i = sum_j P_ij v_j,    P = softmax_j((q_i . k_j scale + dual_j) / epsilon),    0 at padding
//
// Each row is kept relative to the maximum so far, and shrinks when a larger score comes (Milakov & Gimelshein 2018;
// FlashAttention, Dao et al. 2022). Rows sum to one in any precision. With `own`, the dual of the rows, the plan is not
// normalised but exp((q_i . k_j scale + own_i + dual_j) / epsilon): backward passes ask for its transpose times d_out.
// Where an entry of out is not finite, *found becomes `code`; every thread that writes it writes the same. A row whose
// scores are all -inf has no valid key, and is zero; or they overflowed, and 0 / 0 is NaN.
//
// attend<<<problems ceil(n / ROWS), THREADS>>> of q (problems, n, d), k (problems, m, d), v (problems, m, p), dual
// (problems, m) or null, own (problems, n) or null, masks (rows, n) and (rows, m) or null -> out (problems, n, p)

struct AttendShared {
    REAL Q[ROWS][D + 4], K[COLS][D + 4], V[COLS][P + 4], E[ROWS][COLS + 4], dual[COLS], row[ROWS][TX + 1];
};
static_assert(sizeof(AttendShared) == SHARED_ATTEND, "as build.py says");

extern "C" __global__ void __launch_bounds__(THREADS)
attend(const STORE* __restrict__ all_q, const STORE* __restrict__ all_k, const STORE* __restrict__ all_v,
       const REAL* __restrict__ dual, const REAL* __restrict__ own,
       const bool* __restrict__ q_mask, int q_every, int q_rows,
       const bool* __restrict__ k_mask, int k_every, int k_rows,
       STORE* __restrict__ out, int n, int m, int d, int p, REAL scale, REAL epsilon,
       int* __restrict__ found, int code) {
    AttendShared& s = *reinterpret_cast<AttendShared*>(shared);
    const int tiles = (n + ROWS - 1) / ROWS, problem = blockIdx.x / tiles, start = blockIdx.x % tiles * ROWS;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    const auto q = tokens_of(problem, all_q, n, d, q_mask, q_every, q_rows);
    const auto k = tokens_of(problem, all_k, m, d, k_mask, k_every, k_rows);
    const auto v = tokens_of(problem, all_v, m, p, k_mask, k_every, k_rows);
    if (dual) dual += size_t(problem) * m;

    load(s.Q, q, start, scale * LOG2E / epsilon);
    REAL top[M], sum[M], score[M][N];
    Four o[M][GROUPS_OF(P)];
#pragma unroll
    for (int i = 0; i < M; i++) {
        top[i] = -INF, sum[i] = 0;
#pragma unroll
        for (int g = 0; g < GROUPS_OF(P); g++) o[i][g] = Four{0, 0, 0, 0};
    }
    for (int first = 0; first < m; first += COLS) {
        __syncthreads();  // all have read the last tile
        load(s.K, k, first, REAL(1));
        load(s.V, v, first, REAL(1));
        load_dual(s.dual, dual, k, first, LOG2E / epsilon);
        __syncthreads();
        products(score, s.Q, s.K, ty, tx);
#pragma unroll
        for (int i = 0; i < M; i++) {
            REAL high = -INF;
#pragma unroll
            for (int j = 0; j < N; j++) {
                score[i][j] += s.dual[tx + TX * j];
                high = larger(high, score[i][j]);
            }
            s.row[ty + TY * i][tx] = high;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < M; i++) {
            REAL high = top[i], more = 0;
#pragma unroll
            for (int t = 0; t < TX; t++) high = larger(high, s.row[ty + TY * i][t]);
            const REAL base = base_of(high), shrink = exp2(top[i] - base);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const REAL e = exp2(score[i][j] - base);
                s.E[ty + TY * i][tx + TX * j] = e;
                more += e;
            }
            top[i] = high, sum[i] = sum[i] * shrink + more;
#pragma unroll
            for (int g = 0; g < GROUPS_OF(P); g++) o[i][g] = shrink * o[i][g];
        }
        __syncthreads();
        add_products(o, s.E, s.V, ty, tx);
    }
#pragma unroll
    for (int i = 0; i < M; i++) s.row[ty + TY * i][tx] = sum[i];
    __syncthreads();
    bool fine = true, some = true;  // whether there is a key: asked for only where that is in doubt
#pragma unroll
    for (int i = 0; i < M; i++) some = some && top[i] != -INF;
    some = some || k.any();
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = start + ty + TY * i;
        if (row >= n) break;
        REAL total = 0, share = 0;
        for (int t = 0; t < TX; t++) total += s.row[ty + TY * i][t];
        if (q.has(row) && some)
            share = own ? exp2(top[i] + own[size_t(problem) * n + row] * LOG2E / epsilon) : 1 / total;
        fine = store_row(out + (size_t(problem) * n + row) * p, o[i], share, p, tx) && fine;
    }
    if (!fine && found) *found = code;
}
