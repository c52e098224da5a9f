/* cuemu - runs the blocks of a grid: one fiber a thread, barriers, warp operations. See cuemu.h. */
#include <cstdarg>
#include <cstdlib>
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>
#include <sys/mman.h>
#include "tests/sim/cuemu.h"
#include "tests/sim/kernel_shadow.h"
#include "tests/sim/sim.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

/* Saves the registers that a call must keep on the stack of *from, continues on the stack `to`. */
extern "C" void cuemu_switch(void **from, void *to);
__asm__(".text\n"
        ".globl cuemu_switch\n"
        ".hidden cuemu_switch\n"
        ".type cuemu_switch, @function\n"
        "cuemu_switch:\n"
        " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        " mov %rsp, (%rdi)\n"
        " mov %rsi, %rsp\n"
        " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
        " ret\n"
        ".size cuemu_switch, . - cuemu_switch\n");

namespace cuemu
{
namespace
{
enum { WARP = 32, MAX_THREADS = 1024, PAGE = 4096 };
/* The first page of each stack is never accessible. */
constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t DYNAMIC_BYTES = 256 << 10;

enum class State { RUN, AT_BARRIER, AT_WARP, DONE };

struct Thread {
    void *sp;
    State state;
    uint3 index;
    Barrier barrier;
    int barrier_line, predicate;
    Warp warp_op;
    unsigned mask;
    uint64_t given, seen; /* at the warp operation */
};

struct Machine {
    std::vector<Thread> threads;
    char *stacks = nullptr;
    char *dynamic_end = nullptr; /* a page that may not be touched begins here */
    size_t dynamic_bytes = 0;
    void *scheduler_sp = nullptr;
    std::function<void()> body;
    const char *kernel = nullptr;
    unsigned current = 0;
    int barrier_result = 0;
    unsigned long launches = 0;
    const void *asan_stack = nullptr;
    size_t asan_bytes = 0;
};
Machine m;

[[maybe_unused]] char *stack_of(unsigned t)
{
    return m.stacks + t * STACK_BYTES;
}

void *map(size_t bytes)
{
    void *p =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        die("no memory for stacks");
    return p;
}

void set_up()
{
    m.stacks = static_cast<char *>(map(MAX_THREADS * STACK_BYTES));
    for (unsigned t = 0; t < MAX_THREADS; t++)
        mprotect(m.stacks + t * STACK_BYTES, PAGE, PROT_NONE);
    cusim::on_stack_fault(
        [](uintptr_t a) { return a - reinterpret_cast<uintptr_t>(m.stacks) < MAX_THREADS * STACK_BYTES; });
    char *dynamic = static_cast<char *>(map(DYNAMIC_BYTES + PAGE));
    m.dynamic_end = dynamic + DYNAMIC_BYTES;
    mprotect(m.dynamic_end, PAGE, PROT_NONE);
}

/* AddressSanitizer wants to know which stack runs; a fiber that ends passes null for its own. */
void announce_leave([[maybe_unused]] void **fake, [[maybe_unused]] const void *to, [[maybe_unused]] size_t n)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake, to, n);
#endif
}

void announce_arrive([[maybe_unused]] void *fake, [[maybe_unused]] bool learn)
{
#if defined(__SANITIZE_ADDRESS__)
    if (learn)
        __sanitizer_finish_switch_fiber(fake, &m.asan_stack, &m.asan_bytes);
    else
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void to_scheduler(bool last)
{
    void *fake = nullptr;
    Thread &t = m.threads[m.current];

    announce_leave(last ? nullptr : &fake, m.asan_stack, m.asan_bytes);
    cuemu_switch(&t.sp, m.scheduler_sp);
    announce_arrive(fake, true);
}

void fiber_main()
{
    announce_arrive(nullptr, true);
    m.body();
    m.threads[m.current].state = State::DONE;
    to_scheduler(true);
    __builtin_trap();
}

void resume(unsigned t)
{
    void *fake = nullptr;

    m.current = t;
    now.thread = m.threads[t].index;
    now.lane = t % WARP;
    shadow_thread(t);
    announce_leave(&fake, stack_of(t), STACK_BYTES);
    cuemu_switch(&m.scheduler_sp, m.threads[t].sp);
    announce_arrive(fake, false);
}

void start_fiber(unsigned t)
{
    Thread &f = m.threads[t];
    dim3 d = now.block_dim;
    void **sp = reinterpret_cast<void **>(stack_of(t) + STACK_BYTES);

    f = Thread();
    f.index = make_uint3(t % d.x, t / d.x % d.y, t / d.x / d.y);
    f.state = State::RUN;
    *--sp = nullptr; /* where a return address would be, so that the stack is aligned as after a call */
    *--sp = reinterpret_cast<void *>(fiber_main);
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    f.sp = sp;
}

/* The lanes of the warp that begins at thread `first`, as a mask. */
unsigned lanes_of(unsigned first)
{
    size_t n = std::min<size_t>(WARP, m.threads.size() - first);
    return n == WARP ? 0xffffffffu : (1u << n) - 1;
}

const char *name_of(Warp w)
{
    static const char *const names[] = {"shuffle", "__syncwarp", "ballot", "all", "any"};
    return names[int(w)];
}

/* Whether the operation that lane l waits at can go on; dies when it never can. */
bool warp_complete(unsigned first, unsigned l)
{
    const Thread &t = m.threads[first + l];

    if (t.mask & ~lanes_of(first))
        die("%s with mask %08x names lanes that the block does not have", name_of(t.warp_op), t.mask);
    for (unsigned o = 0; o < WARP; o++) {
        if (!(t.mask >> o & 1))
            continue;
        const Thread &other = m.threads[first + o];
        if (other.state == State::DONE)
            die("%s with mask %08x names lane %u, which has exited", name_of(t.warp_op), t.mask, o);
        if (other.state != State::AT_WARP)
            return false;
        if (other.mask != t.mask || other.warp_op != t.warp_op)
            die("lane %u is at a %s with mask %08x, lane %u of that mask at a %s with mask %08x", l,
                name_of(t.warp_op), t.mask, o, name_of(other.warp_op), other.mask);
    }
    return true;
}

/* Lets go the lanes of one warp whose operation is complete. */
bool release_warp(unsigned first)
{
    bool released = false;

    for (unsigned l = 0; l < WARP && first + l < m.threads.size(); l++) {
        if (m.threads[first + l].state != State::AT_WARP || !warp_complete(first, l))
            continue;
        unsigned mask = m.threads[first + l].mask;
        if (m.threads[first + l].warp_op == Warp::SYNC)
            shadow_warp_sync(first, mask);
        for (unsigned o = 0; o < WARP; o++)
            if (mask >> o & 1) {
                m.threads[first + o].seen = m.threads[first + o].given;
                m.threads[first + o].state = State::RUN;
            }
        released = true;
    }
    return released;
}

/* Runs every thread of the block until it waits at a barrier or is done, warp by warp. */
void run_warps(const std::vector<unsigned> &order)
{
    for (size_t i = 0, end; i < order.size(); i = end) {
        /* `order` keeps the threads of a warp together. */
        unsigned first = order[i] / WARP * WARP;
        for (end = i; end < order.size() && order[end] / WARP * WARP == first;)
            end++;
        do {
            for (size_t k = i; k < end; k++)
                if (m.threads[order[k]].state == State::RUN)
                    resume(order[k]);
        } while (release_warp(first));
    }
}

/* After run_warps: true when the block is done, false when a barrier let all threads go. */
bool settle_barrier()
{
    unsigned waiting = 0, done = 0, count = 0;
    const Thread *first = nullptr;

    for (const Thread &t : m.threads) {
        if (t.state == State::AT_WARP)
            die("deadlock: a %s with mask %08x that not all its lanes reach", name_of(t.warp_op), t.mask);
        done += t.state == State::DONE;
        if (t.state != State::AT_BARRIER)
            continue;
        first = first ? first : &t;
        waiting++;
        count += t.predicate != 0;
        if (t.barrier_line != first->barrier_line || t.barrier != first->barrier)
            die("threads wait at different barriers, in lines %d and %d", first->barrier_line,
                t.barrier_line);
    }
    if (!waiting)
        return true;
    if (done)
        die("divergent barrier in line %d: %u threads wait, %u have exited", first->barrier_line, waiting,
            done);
    m.barrier_result = first->barrier == Barrier::AND ? count == waiting : int(count);
    shadow_barrier();
    for (Thread &t : m.threads)
        t.state = State::RUN;
    return false;
}

/* Forward, backward or random, by launch and block; the threads of a warp stay together. */
std::vector<unsigned> thread_order(unsigned n, unsigned long which)
{
    std::vector<unsigned> order(n);
    unsigned n_warps = (n + WARP - 1) / WARP;

    std::iota(order.begin(), order.end(), 0u);
    if (which % 3 == 1)
        std::reverse(order.begin(), order.end());
    if (which % 3 < 2)
        return order;
    std::mt19937 rng(static_cast<unsigned>(which));
    std::vector<unsigned> warps(n_warps);
    std::iota(warps.begin(), warps.end(), 0u);
    std::shuffle(warps.begin(), warps.end(), rng);
    order.clear();
    for (unsigned w : warps) {
        size_t begin = order.size();
        for (unsigned t = w * WARP; t < std::min(n, (w + 1) * WARP); t++)
            order.push_back(t);
        std::shuffle(order.begin() + static_cast<long>(begin), order.end(), rng);
    }
    return order;
}

void run_block(const std::vector<unsigned> &order)
{
    memset(static_cast<void *>(m.dynamic_end - m.dynamic_bytes), 0xff, m.dynamic_bytes);
    shadow_block(now.block.x + now.grid_dim.x * (now.block.y + now.grid_dim.y * now.block.z));
    for (unsigned t = 0; t < m.threads.size(); t++)
        start_fiber(t);
    do
        run_warps(order);
    while (!settle_barrier());
}
} // namespace

Builtins now;

void die(const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "cuemu: kernel %s, block (%u,%u,%u): ", m.kernel ? m.kernel : "?", now.block.x,
            now.block.y, now.block.z);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    abort();
}

void *dynamic_shared()
{
    return m.dynamic_end - m.dynamic_bytes;
}

int barrier(Barrier kind, int line, int predicate)
{
    Thread &t = m.threads[m.current];

    t.state = State::AT_BARRIER;
    t.barrier = kind;
    t.barrier_line = line;
    t.predicate = predicate;
    to_scheduler(false);
    return m.barrier_result;
}

void warp_meet(Warp kind, unsigned mask, uint64_t bits)
{
    Thread &t = m.threads[m.current];

    if (!(mask >> now.lane & 1))
        die("lane %u calls a %s whose mask %08x does not name it", now.lane, name_of(kind), mask);
    t.state = State::AT_WARP;
    t.warp_op = kind;
    t.mask = mask;
    t.given = bits;
    to_scheduler(false);
}

uint64_t warp_value(unsigned mask, unsigned lane)
{
    if (!(mask >> (lane & 31) & 1))
        die("lane %u takes a value from lane %u, which the mask %08x does not name", now.lane, lane, mask);
    return m.threads[m.current / WARP * WARP + (lane & 31)].seen;
}

unsigned warp_vote(Warp kind, unsigned mask, int predicate)
{
    unsigned first = m.current / WARP * WARP, votes = 0;

    warp_meet(kind, mask, predicate != 0);
    for (unsigned l = 0; l < WARP; l++)
        if (mask >> l & 1)
            votes |= unsigned(m.threads[first + l].seen) << l;
    return votes;
}

template <class T, class F> static T atomic_op(T *p, F f)
{
    shadow_atomic(p, sizeof *p);
    T old = *p;
    *p = f(old);
    return old;
}

int atomic_add_i32(int *p, int v)
{
    return atomic_op(p, [v](int o) { return int(unsigned(o) + unsigned(v)); });
}
unsigned atomic_add_u32(unsigned *p, unsigned v)
{
    return atomic_op(p, [v](unsigned o) { return o + v; });
}
unsigned long long atomic_add_u64(unsigned long long *p, unsigned long long v)
{
    return atomic_op(p, [v](unsigned long long o) { return o + v; });
}
int atomic_max_i32(int *p, int v)
{
    return atomic_op(p, [v](int o) { return std::max(o, v); });
}
unsigned atomic_or_u32(unsigned *p, unsigned v)
{
    return atomic_op(p, [v](unsigned o) { return o | v; });
}

void run_grid(const char *name, dim3 grid, dim3 block, size_t smem_bytes, const std::function<void()> &body)
{
    unsigned n = block.x * block.y * block.z;

    if (!m.stacks)
        set_up();
    m.kernel = name;
    m.body = body;
    m.dynamic_bytes = (smem_bytes + 15) & ~size_t(15);
    if (!n || n > MAX_THREADS || m.dynamic_bytes > DYNAMIC_BYTES)
        die("a block of %u threads with %zu bytes of dynamic shared memory", n, smem_bytes);
    m.threads.resize(n);
    now.block_dim = block;
    now.grid_dim = grid;
    std::vector<unsigned> order = thread_order(n, m.launches++);
    shadow_begin(
        {name, n, m.dynamic_end - m.dynamic_bytes, m.dynamic_bytes, m.stacks, MAX_THREADS * STACK_BYTES});
    size_t n_blocks = size_t(grid.x) * grid.y * grid.z;
    for (size_t i = 0; i < n_blocks; i++) {
        size_t at = m.launches % 2 ? i : n_blocks - 1 - i;
        now.block =
            make_uint3(unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y));
        run_block(order);
    }
    shadow_end();
    m.kernel = nullptr;
}

} // namespace cuemu
