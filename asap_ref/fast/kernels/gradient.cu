// pull and gradient: Sinkhorn backwards, softmax being the case of no iteration. Nothing of size n x m is kept.
//
// Half step t of 2T + 1 (even: onto queries, odd: onto keys) leaves the plan H_t = exp((f_[t/2] + g_[(t+1)/2] + S) /
// epsilon), g_[0] = 0, whose rows sum to one (t even), or whose columns sum to the mass n'/m' (t odd). With df the
// gradient that reaches a query dual, and dg that of a key dual over the mass,
//
//     pull      dg = (dg - H^T df) / mass    or    df = -H dg                     from the last half step to the first
//     gradient  dS = P * (d_out v^T) / epsilon - sum_{t even} df_t H_t - sum_{t odd} H_t dg_t
//               dq = scale dS k    or    dk = scale dS^T q                            tiles of dS made and used up
//
// P = H_2T. Each H is formed again from duals, which are kept: memory is O((n + m) T), and no exponent can overflow.
// In both kernels n counts the tokens of a, the side that the result is of, and m those of b, queries or keys.
//
// pull<<<problems ceil(n / ROWS), THREADS>>> of a (problems, n, d), b (problems, m, d), own and begin (problems, n),
// dual and x (problems, m), masks (rows, n) and (rows, m); dual, begin and masks: or null -> out (problems, n)
// gradient<<<problems ceil(n / ROWS), THREADS>>> of a (problems, n, d), b (problems, m, d), x (problems, n, p),
// y (problems, m, p), own and d_own (T + 1, problems, n), dual and d_dual (T + 1, problems, m), masks -> out, as a

struct PullShared {
    REAL A[ROWS][D + 4], B[COLS][D + 4], dual[COLS], x[COLS], sum[ROWS][TX + 1];
    int counts[THREADS];
};
static_assert(sizeof(PullShared) == SHARED_PULL, "as build.py says");

// out_i = (begin_i - sum_j exp((a_i . b_j scale + own_i + dual_j) / epsilon) x_j) / mass, 0 at padding; begin: or null.
extern "C" __global__ void __launch_bounds__(THREADS)
pull(const STORE* __restrict__ all_a, const STORE* __restrict__ all_b, const REAL* __restrict__ own,
     const REAL* __restrict__ dual, const REAL* __restrict__ x, const REAL* __restrict__ begin,
     const bool* __restrict__ a_mask, int a_every, int a_rows, const bool* __restrict__ b_mask, int b_every, int b_rows,
     REAL* __restrict__ out, int n, int m, int d, int onto_keys, REAL scale, REAL epsilon) {
    PullShared& s = *reinterpret_cast<PullShared*>(shared);
    const int tiles = (n + ROWS - 1) / ROWS, problem = blockIdx.x / tiles, start = blockIdx.x % tiles * ROWS;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    const auto a = tokens_of(problem, all_a, n, d, a_mask, a_every, a_rows);
    const auto b = tokens_of(problem, all_b, m, d, b_mask, b_every, b_rows);
    own += size_t(problem) * n, x += size_t(problem) * m, out += size_t(problem) * n;
    if (dual) dual += size_t(problem) * m;
    if (begin) begin += size_t(problem) * n;

    load(s.A, a, start, scale * LOG2E / epsilon);
    REAL sum[M], mine[M], score[M][N];
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = start + ty + TY * i;
        sum[i] = 0, mine[i] = a.has(row) ? own[row] * LOG2E / epsilon : REAL(0);
    }
    for (int first = 0; first < m; first += COLS) {
        __syncthreads();  // all have read the last tile
        load(s.B, b, first, REAL(1));
        load_dual(s.dual, dual, b, first, LOG2E / epsilon);
        for (int j = threadIdx.x; j < COLS; j += THREADS) s.x[j] = b.has(first + j) ? x[first + j] : REAL(0);
        __syncthreads();
        products(score, s.A, s.B, ty, tx);
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++)
                sum[i] += exp2(score[i][j] + mine[i] + s.dual[tx + TX * j]) * s.x[tx + TX * j];
    }
#pragma unroll
    for (int i = 0; i < M; i++) s.sum[ty + TY * i][tx] = sum[i];
    __syncthreads();
    const int valid = onto_keys ? count_of(b, s.counts) : 0;
    const REAL over_mass = valid ? REAL(count_of(a, s.counts)) / valid : REAL(1);
    for (int i = threadIdx.x; i < ROWS && start + i < n; i += THREADS) {
        REAL total = 0;
        for (int t = 0; t < TX; t++) total += s.sum[i][t];
        out[start + i] = a.has(start + i) ? over_mass * ((begin ? begin[start + i] : REAL(0)) - total) : REAL(0);
    }
}

struct GradientShared {
    REAL A[ROWS][D + 4], B[COLS][D + 4], X[ROWS][P + 4], Y[COLS][P + 4], E[ROWS][COLS + 4];
};
static_assert(sizeof(GradientShared) == SHARED_GRADIENT, "as build.py says");

// out_i = scale sum_j dS_ij b_j, of queries a with x = d_out and y = v, or of keys a with x = v and y = d_out.
// own and dual hold the duals of both sides, one set of problems after another; d_own and d_dual their gradients.
extern "C" __global__ void __launch_bounds__(THREADS)
gradient(const STORE* __restrict__ all_a, const STORE* __restrict__ all_b, const STORE* __restrict__ all_x,
         const STORE* __restrict__ all_y, const REAL* __restrict__ own, const REAL* __restrict__ dual,
         const REAL* __restrict__ d_own, const REAL* __restrict__ d_dual,
         const bool* __restrict__ a_mask, int a_every, int a_rows,
         const bool* __restrict__ b_mask, int b_every, int b_rows,
         STORE* __restrict__ out, int problems, int n, int m, int d, int p, int half_steps, int of_queries,
         REAL scale, REAL epsilon, int* __restrict__ found, int code) {
    GradientShared& s = *reinterpret_cast<GradientShared*>(shared);
    const int tiles = (n + ROWS - 1) / ROWS, problem = blockIdx.x / tiles, start = blockIdx.x % tiles * ROWS;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    const auto a = tokens_of(problem, all_a, n, d, a_mask, a_every, a_rows);
    const auto b = tokens_of(problem, all_b, m, d, b_mask, b_every, b_rows);
    const auto x = tokens_of(problem, all_x, n, p, a_mask, a_every, a_rows);
    const auto y = tokens_of(problem, all_y, m, p, b_mask, b_every, b_rows);

    load(s.A, a, start, scale * LOG2E / epsilon);
    load(s.X, x, start, 1 / epsilon);
    REAL score[M][N], dP[M][N];
    Four o[M][GROUPS_OF(D)];
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int g = 0; g < GROUPS_OF(D); g++) o[i][g] = Four{0, 0, 0, 0};
    for (int first = 0; first < m; first += COLS) {
        __syncthreads();  // all have read the last tile
        load(s.B, b, first, REAL(1));
        load(s.Y, y, first, REAL(1));
        __syncthreads();
        products(score, s.A, s.B, ty, tx);
        products(dP, s.X, s.Y, ty, tx);
        REAL dS[M][N] = {};
        for (int t = half_steps - 1; t >= 0; t--) {
            const int queries = t / 2, keys = (t + 1) / 2;  // which of its duals each side has
            const size_t of_own = size_t(of_queries ? queries : keys) * problems + problem;
            const size_t of_dual = size_t(of_queries ? keys : queries) * problems + problem;
            const bool by_row = (t % 2 == 0) == (of_queries != 0);  // whether the side of a was updated
            REAL f[M], g[N], df[M], dg[N];
#pragma unroll
            for (int i = 0; i < M; i++) {
                const int row = start + ty + TY * i;
                const bool there = a.has(row);
                f[i] = there ? own[of_own * n + row] * LOG2E / epsilon : -INF;
                df[i] = there && by_row ? d_own[of_own * n + row] : REAL(0);
            }
#pragma unroll
            for (int j = 0; j < N; j++) {
                const int column = first + tx + TX * j;
                const bool there = b.has(column);
                g[j] = there ? dual[of_dual * m + column] * LOG2E / epsilon : -INF;
                dg[j] = there && !by_row ? d_dual[of_dual * m + column] : REAL(0);
            }
#pragma unroll
            for (int i = 0; i < M; i++)
#pragma unroll
                for (int j = 0; j < N; j++) {
                    const REAL H = exp2(score[i][j] + (f[i] + g[j]));
                    dS[i][j] += H * ((t == half_steps - 1 ? dP[i][j] : REAL(0)) - (df[i] + dg[j]));
                }
        }
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++) s.E[ty + TY * i][tx + TX * j] = dS[i][j];
        __syncthreads();
        add_products(o, s.E, s.B, ty, tx);
    }
    bool fine = true;
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = start + ty + TY * i;
        if (row >= n) break;
        fine = store_row(out + (size_t(problem) * n + row) * d, o[i], scale, d, tx) && fine;
    }
    if (!fine && found) *found = code;
}
