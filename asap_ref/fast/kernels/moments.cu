// moments and form: means and covariances of the tokens, and the quadratic form of the query that follows from them.
//
//     mean = sum_i x_i / n',    Cov = sum_i (x_i - mean)(x_i - mean)^T / n'
//     G = a Cov(k) + A + R (F_k * Cw + F_q * Cu) R^T,    Cw = R^T Cov(k) R,  Cu = R^T Cov(q) R
//     h = mean(k) B + c + s Z R^T,                       s = [mean(q) R, diag Cw, diag Cu]
//
// The constants are those of quadratic_form.py, into which families of features fold; R is null if nothing is lifted.
// A tile of tokens is summed up to its count, mean and centred products, (1 + d + d d) numbers; tiles are joined
// by what their means differ in (Chan, Golub & LeVeque 1979), in order, so that results have the same bits each time.
//
// moments<<<problems (ceil(n / ROWS), if R is given, + ceil(m / ROWS)), THREADS>>> of q (problems, n, d),
// k (problems, m, d), masks (rows, n) and (rows, m) or null -> of_q, of_k: (problems, tiles, 1 + d + d d)
// form<<<problems, THREADS>>> of of_q, of_k, constants of each head: a (), A and B (d, d), c (d), R (d, r), F_k and F_q
// (r, r), Z (3r, r) -> G (problems, d, d), h (problems, d)

struct MomentsShared {
    REAL tokens[ROWS][D + 4], mean[D];
};
static_assert(sizeof(MomentsShared) == SHARED_MOMENTS, "as build.py says");

// Both sides in one launch, queries first; no queries where `of_q` is null.
extern "C" __global__ void __launch_bounds__(THREADS)
moments(const STORE* __restrict__ q, const STORE* __restrict__ k,
        const bool* __restrict__ q_mask, int q_every, int q_rows,
        const bool* __restrict__ k_mask, int k_every, int k_rows,
        REAL* __restrict__ of_q, REAL* __restrict__ of_k, int problems, int n, int m, int d) {
    MomentsShared& s = *reinterpret_cast<MomentsShared*>(shared);
    const int of_queries = of_q ? problems * ((n + ROWS - 1) / ROWS) : 0, block = blockIdx.x;
    const bool is_query = block < of_queries;
    const int count = is_query ? n : m, tiles = (count + ROWS - 1) / ROWS;
    const int place = is_query ? block : block - of_queries;
    const int problem = place / tiles, start = place % tiles * ROWS;
    const auto tokens = is_query ? tokens_of(problem, q, n, d, q_mask, q_every, q_rows)
                                 : tokens_of(problem, k, m, d, k_mask, k_every, k_rows);
    REAL* out = (is_query ? of_q : of_k) + (size_t(problem) * tiles + start / ROWS) * (1 + d + d * d);
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;

    load(s.tokens, tokens, start, REAL(1));
    __syncthreads();
    int valid = 0;
    for (int i = 0; i < ROWS; i++) valid += tokens.has(start + i);
    for (int c = threadIdx.x; c < D; c += THREADS) {
        REAL sum = 0;
        for (int i = 0; i < ROWS; i++) sum += s.tokens[i][c];
        s.mean[c] = valid ? sum / valid : REAL(0);
        if (c < d) out[1 + c] = s.mean[c];
    }
    if (threadIdx.x == 0) out[0] = valid;
    __syncthreads();
    for (int e = threadIdx.x; e < ROWS * D; e += THREADS)
        if (tokens.has(start + e / D)) s.tokens[e / D][e % D] -= s.mean[e % D];
    __syncthreads();
    for (int a = 4 * ty; a < D; a += 4 * TY)
        for (int b = 4 * tx; b < D; b += 4 * TX) {
            Four sum[4] = {};
            for (int i = 0; i < ROWS; i++) {
                const Four left = four(&s.tokens[i][a]), right = four(&s.tokens[i][b]);
                sum[0] += left.x * right, sum[1] += left.y * right, sum[2] += left.z * right, sum[3] += left.w * right;
            }
            for (int r = 0; r < 4; r++) {
                const REAL x[4] = {sum[r].x, sum[r].y, sum[r].z, sum[r].w};
                for (int c = 0; c < 4; c++)
                    if (a + r < d && b + c < d) out[1 + d + (a + r) * d + b + c] = x[c];
            }
        }
}

// mean (d) and Cov (d, d) from those of tiles. Needs a barrier before it is read.
__device__ void join(REAL* mean, REAL* cov, const REAL* parts, int tiles, int d) {
    const int step = 1 + d + d * d;
    REAL valid = 0;
    for (int tile = 0; tile < tiles; tile++) valid += parts[size_t(tile) * step];
    if (valid == 0) valid = 1;
    for (int a = threadIdx.x; a < d; a += THREADS) {
        REAL sum = 0;
        for (int tile = 0; tile < tiles; tile++) sum += parts[size_t(tile) * step] * parts[size_t(tile) * step + 1 + a];
        mean[a] = sum / valid;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < d * d; e += THREADS) {
        REAL sum = 0;
        for (int tile = 0; tile < tiles; tile++) {
            const REAL* part = parts + size_t(tile) * step;
            sum += part[1 + d + e] + part[0] * (part[1 + e / d] - mean[e / d]) * (part[1 + e % d] - mean[e % d]);
        }
        cov[e] = sum / valid;
    }
}

// out_ij = sum_c left(i, c) right(c, j). Needs a barrier before it is read.
template <class Left, class Right>
__device__ void multiply(REAL* out, int rows, int columns, int inner, Left left, Right right) {
    for (int e = threadIdx.x; e < rows * columns; e += THREADS) {
        REAL sum = 0;
        for (int c = 0; c < inner; c++) sum += left(e / columns, c) * right(c, e % columns);
        out[e] = sum;
    }
}

// A block a problem. What comes between is kept in `work`, 2 d (1 + d) + 3 d r + 2 r r + 4 r numbers a problem.
extern "C" __global__ void __launch_bounds__(THREADS)
form(const REAL* __restrict__ of_q, const REAL* __restrict__ of_k, const REAL* __restrict__ all_a,
     const REAL* __restrict__ all_A, const REAL* __restrict__ all_B, const REAL* __restrict__ all_c,
     const REAL* __restrict__ all_R, const REAL* __restrict__ all_F_k, const REAL* __restrict__ all_F_q,
     const REAL* __restrict__ all_Z, REAL* all_work, REAL* __restrict__ G, REAL* __restrict__ h,
     int n, int m, int d, int r, int heads) {
    const int problem = blockIdx.x, head = problem % heads, t = threadIdx.x;
    const int tiles_q = (n + ROWS - 1) / ROWS, tiles_k = (m + ROWS - 1) / ROWS, step = 1 + d + d * d;
    const REAL *A = all_A + size_t(head) * d * d, *B = all_B + size_t(head) * d * d, *c = all_c + size_t(head) * d;
    const REAL *R = all_R + size_t(head) * d * r, *Z = all_Z + size_t(head) * 3 * r * r;
    const REAL *F_k = all_F_k + size_t(head) * r * r, *F_q = all_F_q + size_t(head) * r * r;
    REAL* mean_k = all_work + size_t(problem) * (2 * d * (1 + d) + 3 * d * r + 2 * r * r + 4 * r);
    REAL *mean_q = mean_k + d, *cov_k = mean_q + d, *cov_q = cov_k + d * d;
    REAL *kR = cov_q + d * d, *qR = kR + d * r, *RF = qR + d * r;            // (d, r)
    REAL *Cw = RF + d * r, *Cu = Cw + r * r, *s = Cu + r * r, *sZ = s + 3 * r;  // (r, r), (r, r), (3r), (r)
    G += size_t(problem) * d * d, h += size_t(problem) * d;

    join(mean_k, cov_k, of_k + size_t(problem) * tiles_k * step, tiles_k, d);
    if (all_R) {
        join(mean_q, cov_q, of_q + size_t(problem) * tiles_q * step, tiles_q, d);
        __syncthreads();
        auto basis = [=](int a, int b) { return R[a * r + b]; };
        multiply(kR, d, r, d, [=](int a, int b) { return cov_k[a * d + b]; }, basis);
        multiply(qR, d, r, d, [=](int a, int b) { return cov_q[a * d + b]; }, basis);
        __syncthreads();
        auto across = [=](int a, int b) { return R[b * r + a]; };
        multiply(Cw, r, r, d, across, [=](int a, int b) { return kR[a * r + b]; });
        multiply(Cu, r, r, d, across, [=](int a, int b) { return qR[a * r + b]; });
        multiply(s, 1, r, d, [=](int, int b) { return mean_q[b]; }, basis);
        __syncthreads();
        for (int b = t; b < r; b += THREADS) s[r + b] = Cw[b * r + b], s[2 * r + b] = Cu[b * r + b];
        __syncthreads();
        auto F = [=](int a, int b) { return F_k[a * r + b] * Cw[a * r + b] + F_q[a * r + b] * Cu[a * r + b]; };
        multiply(RF, d, r, r, basis, F);
        multiply(sZ, 1, r, 3 * r, [=](int, int b) { return s[b]; }, [=](int a, int b) { return Z[a * r + b]; });
    }
    __syncthreads();
    for (int e = t; e < d * d; e += THREADS) {
        REAL sum = all_a[head] * cov_k[e] + A[e];
        if (all_R)
            for (int b = 0; b < r; b++) sum += RF[e / d * r + b] * R[e % d * r + b];
        G[e] = sum;
    }
    for (int e = t; e < d; e += THREADS) {
        REAL sum = c[e];
        for (int b = 0; b < d; b++) sum += mean_k[b] * B[b * d + e];
        if (all_R)
            for (int b = 0; b < r; b++) sum += sZ[b] * R[e * r + b];
        h[e] = sum;
    }
}
