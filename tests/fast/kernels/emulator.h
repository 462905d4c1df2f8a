// Run CUDA C++ on the CPU, to test it where there is no GPU. The CUDA text follows this file, then EMULATED(kernel)
// for each of its kernels.
//
// Each thread of a block is a fiber; __syncthreads() hands over to the next one. Stricter than a GPU: before a block
// runs, its shared memory is all NaN; all threads of a block must meet at the same barrier; what is written past the
// shared memory asked for is found; and the threads run from barrier to barrier in an order that the caller chooses, so
// that a race shows in the result. With -DTHREADS they are threads, and ThreadSanitizer sees races themselves.
// Not here: warp shuffles and votes, atomics, textures, more than one dimension of blocks or threads.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
using std::exp2, std::log2;
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

struct Index {
    unsigned x = 0;
};
static thread_local Index threadIdx, blockIdx, blockDim;
constexpr size_t MOST = 227 * 1024, MARGIN = 256;  // what a block may have on an H100, and beyond it, watched

#ifdef THREADS
#include <condition_variable>
#include <mutex>
#include <thread>
#define __shared__
alignas(16) char shared[MOST + MARGIN];
#define __syncthreads() meet()

// Where the threads of a block meet. Two places in turn: at one alone, who is late to leave would be ordered behind who
// has already come to the next barrier, and ThreadSanitizer would take that for the order they have to have. (It does
// not see what std::barrier promises.)
struct Place {
    std::mutex mutex;
    std::condition_variable changed;
    int waiting = 0, round = 0;
};
static Place places[2];
static int expected;
static thread_local int turn = 0;

static void meet() {
    Place& here = places[turn ^= 1];
    std::unique_lock lock(here.mutex);
    if (++here.waiting == expected) {
        here.waiting = 0, here.round++;
        here.changed.notify_all();
    } else {
        here.changed.wait(lock, [&here, mine = here.round] { return here.round != mine; });
    }
}

static int launch(const std::function<void()>& kernel, int blocks, int threads, int, int) {
    expected = threads;
    std::vector<std::thread> block;
    for (int t = 0; t < threads; t++)
        block.emplace_back([&, t] {
            threadIdx.x = t, blockDim.x = threads;
            for (int b = 0; b < blocks; b++) {
                blockIdx.x = b;
                kernel();
                meet();
            }
        });
    for (auto& thread : block) thread.join();
    return 0;
}
#else
#include <setjmp.h>
#include <ucontext.h>
#define __shared__ thread_local
alignas(16) thread_local char shared[MOST + MARGIN];
#define __syncthreads() wait_at(__LINE__)

struct Fiber {
    std::vector<char> stack = std::vector<char>(1 << 16);
    jmp_buf at;
    int line = 0;  // of the barrier it waits at; 0 when it is done
};
static thread_local std::vector<Fiber> fibers;
static thread_local Fiber* running;
static thread_local jmp_buf scheduler;
static thread_local const std::function<void()>* body;

__attribute__((noinline)) static void wait_at(int line) {
    running->line = line;
    if (!_setjmp(running->at)) _longjmp(scheduler, 1);
}

static void live() {  // a fiber's life: wait for its turn, run one block, and so on
    for (;;) {
        wait_at(0);
        (*body)();
    }
}

__attribute__((noinline)) static void resume(Fiber& fiber) {
    running = &fiber;
    if (!_setjmp(scheduler)) _longjmp(fiber.at, 1);
}

static void bring_to_life(Fiber& fiber) {
    static thread_local ucontext_t here, there;
    getcontext(&there);
    there.uc_stack.ss_sp = fiber.stack.data(), there.uc_stack.ss_size = fiber.stack.size(), there.uc_link = nullptr;
    makecontext(&there, live, 0);
    running = &fiber;
    if (!_setjmp(scheduler)) swapcontext(&here, &there);
}

// 0, or the line of a barrier that not all threads reach, or -1 if more shared memory is written than was asked for.
static int launch(const std::function<void()>& kernel, int blocks, int threads, int bytes, int order) {
    body = &kernel, blockDim.x = threads;
    fibers.resize(std::max(fibers.size(), size_t(threads)));  // anew each time: a fault may have left one half-way
    std::vector<int> turns(threads);
    for (int t = 0; t < threads; t++) turns[t] = order == 1 ? threads - 1 - t : t, bring_to_life(fibers[t]);
    std::mt19937 random(order);
    for (int b = 0; b < blocks; b++) {
        blockIdx.x = b;
        memset(shared, 0xFF, sizeof shared);
        do {
            if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
            for (int t : turns) threadIdx.x = t, resume(fibers[t]);
            for (int t = 1; t < threads; t++)
                if (fibers[t].line != fibers[0].line) return std::max(fibers[t].line, fibers[0].line);
        } while (fibers[0].line);
        for (size_t i = bytes; i < sizeof shared; i++)
            if (shared[i] != char(0xFF)) return -1;
    }
    return 0;
}
#endif

// A call with the arguments as CUDA takes them: `count` pointers to values of these `sizes`; -2 if the kernel has others.
template <class... A, size_t... I>
int call(void (*kernel)(A...), std::index_sequence<I...>, void** args, const int* sizes, int count, int blocks,
         int threads, int bytes, int order) {
    if (count != sizeof...(A) || ((sizes[I] != sizeof(A)) || ...)) return -2;
    return launch([&] { kernel(*static_cast<A*>(args[I])...); }, blocks, threads, bytes, order);
}

template <class... A, class... Rest>
int call(void (*kernel)(A...), Rest... rest) {
    return call(kernel, std::index_sequence_for<A...>{}, rest...);
}

#define EMULATED(kernel)                                                                                          \
    extern "C" int emulate_##kernel(void** args, const int* sizes, int count, int blocks, int threads, int bytes, \
                                    int order) {                                                                  \
        return call(kernel, args, sizes, count, blocks, threads, bytes, order);                                   \
    }
