// What the kernels share: tokens of one problem, tiles of them in shared memory, and all products of two tiles.
//
// A block of threads makes a tile of scores, ROWS x COLS of them, and goes through the other side tile by tile. Thread
// (ty, tx) holds M x N scores: of rows ty, ty + TY, ... and columns tx, tx + TX, ... The n x m scores never exist.
//
// Fixed when compiled (build.py): REAL that is computed in, STORE that tokens are kept in, D and P, the dimensions of
// queries and of values rounded up to a multiple of 8, and the tile. EXACT says that nothing had to be rounded up.
//
// Exponents are kept over log 2: exp(s / epsilon) = exp2(s LOG2E / epsilon). exp2 of a float is one instruction of PTX,
// ex2.approx.f32. Denormals are kept (no --ftz), so that ptxas makes four of it: the card's own, a comparison, and two
// products that scale; with --ftz=true it would be one. exp2 of a double is a polynomial of some eighty instructions.
//
// An infinite dual is a NaN, so that it is reported in the end: -inf would be a token that nobody attends to.

#define M 4  // rows of scores that one thread holds
#define N 4  // and columns
#define TX (COLS / N)
#define TY (ROWS / M)
#define THREADS (TX * TY)
#define INF REAL(__int_as_float(0x7F800000))  // NVRTC knows no INFINITY
#define LOG2E REAL(1.4426950408889634)
#define LN2 REAL(0.6931471805599453)

#ifdef BFLOAT16
struct Bfloat16 {  // the upper half of a float
    unsigned short bits;
    Bfloat16() = default;
    __device__ explicit Bfloat16(float x) {
        const unsigned all = __float_as_uint(x);
        // to nearest, ties to even; NaN must not be rounded up to infinity
        bits = x == x ? (all + 0x7FFF + (all >> 16 & 1)) >> 16 : 0x7FFF;
    }
    __device__ explicit operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};
#endif

struct __align__(16) Four {
    REAL x, y, z, w;
};

extern __shared__ __align__(16) char shared[];

__device__ const Four& four(const REAL* x) { return *reinterpret_cast<const Four*>(x); }
__device__ Four operator*(REAL a, const Four& b) { return Four{a * b.x, a * b.y, a * b.z, a * b.w}; }
__device__ void operator+=(Four& a, const Four& b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }
__device__ REAL larger(REAL a, REAL b) { return b > a ? b : a; }
__device__ REAL base_of(REAL top) { return top == -INF ? REAL(0) : top; }  // what exponents are measured from
__device__ bool is_finite(REAL x) { return x - x == 0; }
__device__ REAL finite_or_nan(REAL x) { return is_finite(x) ? x : INF - INF; }

// The tokens of one problem: x (count, width), and which of them are valid. A null mask masks nothing.
template <class T>
struct Tokens {
    const T* x;
    const bool* mask;
    int count, width;
    __device__ bool has(int i) const { return i < count && (!mask || mask[i]); }
    __device__ bool any() const {
        int i = 0;
        while (mask && i < count && !mask[i]) i++;
        return i < count;
    }
};

// Of problem b: b / every % rows is the row of the mask, so that heads, or sequences, can share one.
template <class T>
__device__ Tokens<T> tokens_of(int b, const T* x, int count, int width, const bool* mask, int every, int rows) {
    return {x + size_t(b) * count * width, mask ? mask + size_t(b / every % rows) * count : mask, count, width};
}

// How many tokens are valid. All threads of a block call it; `sums` is [THREADS], and free again afterwards.
template <class T>
__device__ int count_of(const Tokens<T>& tokens, int* sums) {
    if (!tokens.mask) return tokens.count;
    int sum = 0;
    for (int i = threadIdx.x; i < tokens.count; i += THREADS) sum += tokens.mask[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int t = 0; t < THREADS; t++) sum += sums[t];
    __syncthreads();
    return sum;
}

// Tokens `first` on, times `scale`, into a tile; zero at padding and past the ends, whatever stands there.
// Its rows lie W + 4 apart: eight threads reading four numbers each, a row apart, then meet all 32 banks once.
template <int HEIGHT, int PITCH, class T>
__device__ void load(REAL (&tile)[HEIGHT][PITCH], const Tokens<T>& from, int first, REAL scale) {
    constexpr int W = PITCH - 4;
#ifdef EXACT
    const int width = W;
#else
    const int width = from.width;
#endif
    for (int e = threadIdx.x; e < HEIGHT * W; e += THREADS) {
        const int i = e / W, c = e % W;
        const bool there = c < width && from.has(first + i);
        tile[i][c] = there ? scale * REAL(from.x[size_t(first + i) * width + c]) : REAL(0);
    }
}

// The dual of a tile of tokens, times `scale`; -inf where there is no token, 0 where there is no dual.
template <class T>
__device__ void load_dual(REAL* tile, const REAL* dual, const Tokens<T>& of, int first, REAL scale) {
    for (int j = threadIdx.x; j < COLS; j += THREADS)
        tile[j] = !of.has(first + j) ? -INF : dual ? scale * dual[first + j] : REAL(0);
}

// Products of rows ty, ty + TY, ... of A with rows tx, tx + TX, ... of B.
template <int PITCH>
__device__ void products(REAL (&s)[M][N], const REAL (*A)[PITCH], const REAL (*B)[PITCH], int ty, int tx) {
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < N; j++) s[i][j] = 0;
#pragma unroll 4
    for (int c = 0; c < PITCH - 4; c += 4) {
        Four a[M], b[N];
#pragma unroll
        for (int i = 0; i < M; i++) a[i] = four(&A[ty + TY * i][c]);
#pragma unroll
        for (int j = 0; j < N; j++) b[j] = four(&B[tx + TX * j][c]);
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++) {
                s[i][j] += a[i].x * b[j].x;
                s[i][j] += a[i].y * b[j].y;
                s[i][j] += a[i].z * b[j].z;
                s[i][j] += a[i].w * b[j].w;
            }
    }
}

// out += E X, E (ROWS, COLS) and X (COLS, W): of rows ty, ty + TY, ... the columns 4 tx to 4 tx + 3, and on, 4 TX apart.
#define GROUPS_OF(W) ((W + 4 * TX - 1) / (4 * TX))
template <int GROUPS, int PITCH>
__device__ void add_products(Four (&out)[M][GROUPS], const REAL (*E)[COLS + 4], const REAL (*X)[PITCH],
                             int ty, int tx) {
#pragma unroll 4
    for (int c = 0; c < COLS; c += 4) {
        Four e[M];
#pragma unroll
        for (int i = 0; i < M; i++) e[i] = four(&E[ty + TY * i][c]);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const int column = 4 * (tx + TX * g);
            if (column >= PITCH - 4) break;
            const Four x0 = four(&X[c][column]), x1 = four(&X[c + 1][column]);
            const Four x2 = four(&X[c + 2][column]), x3 = four(&X[c + 3][column]);
#pragma unroll
            for (int i = 0; i < M; i++) {
                out[i][g] += e[i].x * x0;
                out[i][g] += e[i].y * x1;
                out[i][g] += e[i].z * x2;
                out[i][g] += e[i].w * x3;
            }
        }
    }
}

// Writes what such a thread has of one row, times `share`; says whether all of it was finite.
template <int GROUPS>
__device__ bool store_row(STORE* to, const Four (&row)[GROUPS], REAL share, int width, int tx) {
    bool fine = true;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const REAL x[4] = {row[g].x, row[g].y, row[g].z, row[g].w};
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int c = 4 * (tx + TX * g) + r;
            if (c >= width) break;
            to[c] = STORE(share * x[r]);
            fine = fine && is_finite(REAL(to[c]));
        }
    }
    return fine;
}
