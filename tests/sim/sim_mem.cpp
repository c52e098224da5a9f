/* sim_mem - device memory, which the host cannot touch, and pinned host memory.
 *
 * A block of device memory ends at a page that stays inaccessible (a large one near one), is filled with NaN
 * when it is allocated, and its addresses are never used again when it is freed. Between the simulated
 * operations device memory is inaccessible to the process itself: a host that follows a device pointer stops
 * at that instruction.
 */
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <csignal>
#include <unistd.h>
#include <sys/mman.h>
#include "tests/sim/sim.h"

namespace cusim
{
namespace
{
constexpr size_t PAGE = 4096, HUGE_PAGE = 2 << 20, ALIGN = 256;

struct Memory {
    uintptr_t base = 0, next = 0;
    std::map<uintptr_t, Block> device, pinned, freed;
    size_t used = 0;
    long n_malloc = 0;
    int running = 0;
    int key = -1; /* protection key of device memory; -1: the CPU has none, pages are protected one by one */
    struct sigaction old_segv;
};

/* Never destroyed: streams may be drained from other destructors. */
Memory &mem()
{
    static Memory &m = *new Memory;
    return m;
}

/* Blocks from this size on lie on huge pages, so that opening and closing them is cheap. */
constexpr size_t LARGE = 1 << 20;

/* First and end byte of the pages that a block has for itself. */
void pages_of(const Block &b, uintptr_t &first, uintptr_t &end)
{
    size_t size = b.bytes >= LARGE ? HUGE_PAGE : PAGE;

    first = b.begin / size * size;
    end = (b.end() + size - 1) / size * size;
}

void protect(const Block &b, int prot)
{
    uintptr_t first, end;

    pages_of(b, first, end);
    if (mprotect(reinterpret_cast<void *>(first), end - first, prot))
        die("mprotect failed");
}

/* Opens or closes device memory to this thread. With a key that is one instruction; without, a walk over all
 * pages. */
void set_open(bool open)
{
    if (mem().key >= 0)
        pkey_set(mem().key, open ? 0 : PKEY_DISABLE_ACCESS);
    else
        for (auto &b : mem().device)
            protect(b.second, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

const Block *find(const std::map<uintptr_t, Block> &in, uintptr_t a)
{
    auto it = in.upper_bound(a);
    if (it == in.begin())
        return nullptr;
    --it;
    return a < it->second.end() ? &it->second : nullptr;
}

void say(const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (write(STDERR_FILENO, text, n < int(sizeof text) ? size_t(n) : sizeof text - 1) < 0)
        _exit(99);
}

bool (*is_stack_guard)(uintptr_t);

/* A page fault: in device memory it is a bug of the program under test, and gets a sentence. */
void on_segv(int sig, siginfo_t *info, void *context)
{
    uintptr_t a = reinterpret_cast<uintptr_t>(info->si_addr);

    if (a - mem().base < DEVICE_SPACE) {
        const Block *b = device_find(a), *f = find(mem().freed, a);
        if (mem().running)
            say("cusim: an operation touches %s device memory at %p\n", f ? "freed" : "unallocated",
                info->si_addr);
        else if (b)
            say("cusim: host code touches device memory: byte %zu of the %zu at %p\n", size_t(a - b->begin),
                b->bytes, reinterpret_cast<void *>(b->begin));
        else
            say("cusim: host code touches %s device memory at %p\n", f ? "freed" : "unallocated",
                info->si_addr);
        abort();
    }
    if (is_stack_guard && is_stack_guard(a)) {
        say("cusim: the stack of a thread is full: a kernel has large local arrays, or recurses\n");
        abort();
    }
    sigaction(SIGSEGV, &mem().old_segv, nullptr);
    if (mem().old_segv.sa_flags & SA_SIGINFO && mem().old_segv.sa_sigaction)
        mem().old_segv.sa_sigaction(sig, info, context);
    /* else: the instruction is tried again, and the default action kills. */
}

void set_up()
{
    Memory &m = mem();

    if (m.base)
        return;
    void *p = mmap(nullptr, DEVICE_SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        die("cannot reserve addresses for device memory");
    m.base = m.next = reinterpret_cast<uintptr_t>(p);
    if (settings().protect)
        m.key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    /* A stack of its own, for faults on a fiber's. */
    stack_t alt = {};
    alt.ss_size = 64 << 10;
    alt.ss_sp = mmap(nullptr, alt.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&alt, nullptr);
    struct sigaction sa = {};
    sa.sa_sigaction = on_segv;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &sa, &m.old_segv);
}

std::recursive_mutex &mutex()
{
    static std::recursive_mutex &mu = *new std::recursive_mutex;
    return mu;
}

long env_long(const char *name, long otherwise)
{
    std::string v = rank_setting(name);
    return v.empty() ? otherwise : atol(v.c_str());
}
} // namespace

void die(const char *fmt, ...)
{
    va_list ap;

    fputs("cusim: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    fflush(stderr);
    abort();
}

std::string rank_setting(const char *name)
{
    const char *v = getenv(name), *rank = getenv("OMPI_COMM_WORLD_RANK");
    std::string all = v ? v : "";

    for (int r = rank ? atoi(rank) : 0; r > 0 && all.find('/') != std::string::npos; r--)
        all.erase(0, all.find('/') + 1);
    return all.substr(0, all.find('/'));
}

const Settings &settings()
{
    static const Settings s = [] {
        const char *off = getenv("CUSIM_CHECKS") ? getenv("CUSIM_CHECKS") : "";
        Settings r = {};
        r.eager = env_long("CUSIM_EAGER", 0) != 0;
        r.random = getenv("CUSIM_SEED") != nullptr;
        r.seed = unsigned(env_long("CUSIM_SEED", 0));
        r.check_order = !strstr(off, "-order");
        r.check_races = !strstr(off, "-races");
        r.protect = !strstr(off, "-protect");
        r.check_pageable = !strstr(off, "-pageable");
        r.timeout_s = double(env_long("CUSIM_TIMEOUT", 120));
        r.devices = int(env_long("CUSIM_DEVICES", 8));
        r.memory_bytes = size_t(env_long("CUSIM_MEMORY_MB", 8192)) << 20;
        r.fail_malloc = env_long("CUSIM_FAIL_MALLOC", 0);
        r.fail_sync = env_long("CUSIM_FAIL_SYNC", 0);
        return r;
    }();
    return s;
}

Lock::Lock()
{
    mutex().lock();
}

Lock::~Lock()
{
    mutex().unlock();
}

void lock_yield()
{
    mutex().unlock();
    usleep(100);
    mutex().lock();
}

void on_stack_fault(bool (*is_guard)(uintptr_t))
{
    is_stack_guard = is_guard;
}

uintptr_t device_base()
{
    set_up();
    return mem().base;
}

bool in_device_space(const void *p)
{
    return reinterpret_cast<uintptr_t>(p) - device_base() < DEVICE_SPACE;
}

static void give_key(const Block &b)
{
    uintptr_t first, end;

    pages_of(b, first, end);
    if (pkey_mprotect(reinterpret_cast<void *>(first), end - first, PROT_READ | PROT_WRITE, mem().key))
        die("pkey_mprotect failed");
}

cudaError_t device_alloc(void **p, size_t bytes)
{
    Memory &m = mem();
    bool large = bytes >= LARGE;
    size_t page = large ? HUGE_PAGE : PAGE, room = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    size_t pages = (room + page - 1) / page * page;

    set_up();
    *p = nullptr;
    if (!bytes)
        return cudaSuccess;
    if (++m.n_malloc == settings().fail_malloc || m.used + bytes > settings().memory_bytes ||
        m.next + pages + 2 * HUGE_PAGE > m.base + DEVICE_SPACE)
        return cudaErrorMemoryAllocation;
    m.next = (m.next + page - 1) / page * page;
    Block b = {large ? m.next : m.next + pages - room, bytes};
    if (large)
        madvise(reinterpret_cast<void *>(b.begin), pages, MADV_HUGEPAGE);
    m.next += pages + PAGE;
    protect(b, PROT_READ | PROT_WRITE);
    memset(reinterpret_cast<void *>(b.begin), 0xff, b.bytes);
    if (m.key >= 0)
        give_key(b);
    else if (!m.running && settings().protect)
        protect(b, PROT_NONE);
    m.device[b.begin] = b;
    m.used += bytes;
    *p = reinterpret_cast<void *>(b.begin);
    return cudaSuccess;
}

void device_free(void *p, const char *caller)
{
    Memory &m = mem();
    uintptr_t a = reinterpret_cast<uintptr_t>(p);
    auto it = m.device.find(a);

    if (it == m.device.end()) {
        if (m.freed.count(a))
            die("%s of %p: freed twice", caller, p);
        die("%s of %p, which is not the start of a block of device memory", caller, p);
    }
    Block b = it->second;
    m.device.erase(it);
    m.freed[a] = b;
    m.used -= b.bytes;
    order_forget(b.begin, b.end());
    protect(b, PROT_READ | PROT_WRITE);
    uintptr_t first, end;
    pages_of(b, first, end);
    madvise(reinterpret_cast<void *>(first), end - first, MADV_DONTNEED);
    protect(b, PROT_NONE);
}

void host_alloc(void **p, size_t bytes)
{
    if (posix_memalign(p, PAGE, bytes ? (bytes + PAGE - 1) / PAGE * PAGE : PAGE))
        die("no host memory");
    memset(*p, 0xff, bytes);
    host_register(*p, bytes);
}

void host_free(void *p)
{
    host_unregister(p);
    free(p);
}

void host_register(void *p, size_t bytes)
{
    uintptr_t a = reinterpret_cast<uintptr_t>(p);
    if (pinned_find(a))
        die("cudaHostRegister of %p, which is pinned already", p);
    mem().pinned[a] = {a, bytes ? bytes : 1};
}

void host_unregister(void *p)
{
    auto it = mem().pinned.find(reinterpret_cast<uintptr_t>(p));
    if (it == mem().pinned.end())
        die("%p is not the start of pinned memory, or it was freed twice", p);
    order_forget(it->second.begin, it->second.end());
    mem().pinned.erase(it);
}

const Block *device_find(uintptr_t a)
{
    return find(mem().device, a);
}

const Block *pinned_find(uintptr_t a)
{
    return find(mem().pinned, a);
}

size_t device_bytes_used()
{
    return mem().used;
}

void require_device(const char *what, const void *p, size_t bytes)
{
    uintptr_t a = reinterpret_cast<uintptr_t>(p);
    const Block *b = device_find(a);

    if (!bytes)
        return;
    if (!b)
        die("%s: %p is not device memory%s", what, p, find(mem().freed, a) ? " (it was freed)" : "");
    if (bytes > b->end() - a)
        die("%s: %zu bytes at byte %zu of a block of %zu bytes of device memory: out of bounds", what, bytes,
            size_t(a - b->begin), b->bytes);
}

void require_pinned(const char *what, const void *p, size_t bytes)
{
    uintptr_t a = reinterpret_cast<uintptr_t>(p);
    const Block *b = pinned_find(a);

    if (in_device_space(p))
        die("%s: %p is device memory where host memory was announced", what, p);
    if (!bytes || !settings().check_pageable)
        return;
    if (!b)
        die("%s: the host memory at %p is not pinned", what, p);
    if (bytes > b->end() - a)
        die("%s: %zu bytes at byte %zu of a block of %zu bytes of pinned memory: out of bounds", what, bytes,
            size_t(a - b->begin), b->bytes);
}

Running::Running()
{
    if (mem().running++ == 0 && settings().protect)
        set_open(true);
}

Running::~Running()
{
    if (--mem().running == 0 && settings().protect)
        set_open(false);
}
} // namespace cusim
