// project and slices: Kantorovich potentials of the queries on every slice, times the weight of the slice.
//
//     x_li = theta_l . q_i,    y_lj = theta_l . k_j,    both +inf at padding, which a sort so moves to the end
//     phi_(i) = w_l sum_{i' <= i} (y_below + y_above) (x_(i') - x_(i'-1)),    in the order of x; put back; 0 at padding
//
// w holds the -1/2 of the mean of the two keys that are met; which these are is a matter of the counts alone (the
// staircase rule). Nothing is centred: the dual has a free constant. A token that is not finite on a slice is -inf
// there, so that it is first in the order, and phi becomes NaN.
//
// The sort is not stable, and need not be: between equal x the step is (...) * 0, so that each of them gets the same
// potential in any order; and of equal y only the value is read.
//
// project<<<problems (ceil(n / COLS) + ceil(m / COLS)), THREADS>>> of q (problems, n, d), k (problems, m, d), theta
// (heads or 1, d, L), masks (rows, n) and (rows, m) or null -> x (problems, L, n), y (problems, L, m)
// slices<<<problems L, half of `size`, 32 to 1024>>> of x, y, w (heads or 1, L) -> phi (problems, L, n)

struct ProjectShared {
    REAL slices[ROWS][D + 4], tokens[COLS][D + 4];
};
static_assert(sizeof(ProjectShared) == SHARED_PROJECT, "as build.py says");

// Both sides in one launch: the first blocks take the queries, the others the keys.
extern "C" __global__ void __launch_bounds__(THREADS)
project(const STORE* __restrict__ q, const STORE* __restrict__ k, const REAL* __restrict__ all_theta,
        const bool* __restrict__ q_mask, int q_every, int q_rows,
        const bool* __restrict__ k_mask, int k_every, int k_rows,
        REAL* __restrict__ x, REAL* __restrict__ y, int problems, int n, int m, int d, int L, int heads) {
    ProjectShared& s = *reinterpret_cast<ProjectShared*>(shared);
    const int of_queries = problems * ((n + COLS - 1) / COLS), block = blockIdx.x;
    const bool is_query = block < of_queries;
    const int count = is_query ? n : m, tiles = (count + COLS - 1) / COLS;
    const int place = is_query ? block : block - of_queries;
    const int problem = place / tiles, start = place % tiles * COLS;
    const auto tokens = is_query ? tokens_of(problem, q, n, d, q_mask, q_every, q_rows)
                                 : tokens_of(problem, k, m, d, k_mask, k_every, k_rows);
    const REAL* theta = all_theta + size_t(problem % heads) * d * L;  // (d, L)
    REAL* out = (is_query ? x : y) + size_t(problem) * L * count;     // (L, count)
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;

    load(s.tokens, tokens, start, REAL(1));
    for (int first = 0; first < L; first += ROWS) {
        __syncthreads();  // all have read the last slices
        for (int e = threadIdx.x; e < ROWS * D; e += THREADS) {
            const int l = first + e % ROWS, c = e / ROWS;
            s.slices[e % ROWS][c] = l < L && c < d ? theta[c * L + l] : REAL(0);
        }
        __syncthreads();
        REAL on_slice[M][N];
        products(on_slice, s.slices, s.tokens, ty, tx);
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++) {
                const int l = first + ty + TY * i, token = start + tx + TX * j;
                const REAL s = on_slice[i][j], value = s + s * 0;  // NaN where it is not finite
                if (l < L && token < count) out[size_t(l) * count + token] = tokens.has(token) ? value : INF;
            }
    }
}

__device__ REAL first_if_nan(REAL x) { return x == x ? x : -INF; }

struct Entry {
    REAL value;
    int index;
};

template <class T>
__device__ void exchange(T* x, int low, int high) {
    const T kept = x[low];
    x[low] = x[high], x[high] = kept;
}

// A block a slice. `size` is a power of two that n and m fit in; shared memory holds both samples, as they are sorted.
extern "C" __global__ void __launch_bounds__(1024)
slices(const REAL* __restrict__ all_x, const REAL* __restrict__ all_y, const REAL* __restrict__ w,
       REAL* __restrict__ phi, int n, int m, int L, int heads, int size) {
    const int threads = blockDim.x, t = threadIdx.x, problem = blockIdx.x / L, l = blockIdx.x % L;
    Entry* x = reinterpret_cast<Entry*>(shared);           // [size]
    REAL* y = reinterpret_cast<REAL*>(x + size);           // [size]
    REAL* total = y + size;                                // [threads]
    int* count = reinterpret_cast<int*>(total + threads);  // [2]: n' and m'
    all_x += size_t(blockIdx.x) * n, all_y += size_t(blockIdx.x) * m, phi += size_t(blockIdx.x) * n;

    for (int i = t; i < size; i += threads) {
        x[i] = Entry{i < n ? first_if_nan(all_x[i]) : INF, i};
        y[i] = i < m ? first_if_nan(all_y[i]) : INF;
    }
    if (t < 2) count[t] = 0;
    for (int span = 2; span <= size; span *= 2)  // bitonic sort (Batcher 1968)
        for (int gap = span / 2; gap > 0; gap /= 2) {
            __syncthreads();
            for (int pair = t; pair < size / 2; pair += threads) {
                const int low = 2 * pair - (pair & (gap - 1)), high = low + gap;
                const bool ascending = (low & span) == 0;
                if ((x[low].value > x[high].value) == ascending) exchange(x, low, high);
                if ((y[low] > y[high]) == ascending) exchange(y, low, high);
            }
        }
    __syncthreads();
    for (int i = t; i < size; i += threads) {  // the last token of each sample tells how many there are
        if (x[i].value < INF && (i + 1 == size || x[i + 1].value == INF)) count[0] = i + 1;
        if (y[i] < INF && (i + 1 == size || y[i + 1] == INF)) count[1] = i + 1;
    }
    __syncthreads();
    const int n_ = count[0], m_ = count[1], chunk = (size + threads - 1) / threads, first = t * chunk;
    const bool fine = x[0].value != -INF && y[0] != -INF;
    const REAL weight = fine ? w[problem % heads * L + l] : INF - INF;
    auto step = [&](int i) {  // from sorted query i - 1 to i: who is met before and after level i/n'
        if (i == 0 || i >= n_ || m_ == 0) return REAL(0);
        return weight * (y[(i * m_ - 1) / n_] + y[i * m_ / n_]) * (x[i].value - x[i - 1].value);
    };
    REAL sum = 0;
    for (int i = first; i < first + chunk && i < n_; i++) sum += step(i);
    total[t] = sum;
    for (int gap = 1; gap < threads; gap *= 2) {  // running sums over threads (Hillis & Steele 1986)
        __syncthreads();
        const REAL before = t >= gap ? total[t - gap] : REAL(0);
        __syncthreads();
        total[t] += before;
    }
    __syncthreads();
    REAL running = t > 0 ? total[t - 1] : REAL(0);
    for (int i = first; i < first + chunk && i < size; i++) {
        running += step(i);
        if (x[i].index < n) phi[x[i].index] = i < n_ ? running : REAL(0);
    }
}
