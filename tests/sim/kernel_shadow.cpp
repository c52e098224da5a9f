/* kernel_shadow - what kernels do to memory, load by load and store by store.
 *
 * .cu files are compiled with -fsanitize=thread, by which g++ puts a call of __tsan_read4(address) and the
 * like before every access; the functions are defined here (libtsan is not linked). From them come:
 *
 * - Device memory: accesses outside of allocations; races between blocks of one launch; and, to two bytes,
 *   which ranges the launch reads and writes, for the order check between streams.
 * - Shared memory: races between threads of a block, that is, two accesses, one of them a store, in the same
 *   interval between barriers, by threads of different warps or of one warp without a __syncwarp that names
 *   all its lanes; loads of what nobody stored in this block; accesses beyond the dynamic shared memory.
 * - Host memory: any access but to pinned memory.
 *
 * Memory is looked at in units of 2 bytes; single bytes of shared memory are not checked for races. Shuffles
 * do not order memory, in CUDA as here.
 *
 * Misaligned addresses, of vector types above all, come from -fsanitize=alignment, whose report is here, too.
 */
#include <algorithm>
#include <cstring>
#include <link.h>
#include <sys/mman.h>
#include "tests/sim/cuemu.h"
#include "tests/sim/kernel_shadow.h"
#include "tests/sim/sim.h"

namespace
{
enum { UNIT = 2, CHUNK_BYTES = 4096, CHUNK_UNITS = CHUNK_BYTES / UNIT, WARP = 32, MAX_WARPS = 32 };
enum : uint32_t { MANY = 0xfffffffe, ATOMIC = 0xffffffff };
enum : uint16_t { NOBODY = 0xffff, ALL_WARPS = 0xfffe, ONE_WARP = 0x8000 };

/* Which block (its number + 1) wrote and read a unit of device memory in this launch. */
struct Chunk {
    uint32_t writer[CHUNK_UNITS], reader[CHUNK_UNITS];
};

/* Of a unit of shared memory, valid for the block `serial`. A reader may be a thread, several threads of one
 * warp (ONE_WARP | warp), or of several. */
struct Shared {
    uint32_t serial, write_barrier, read_barrier;
    uint16_t write_sync, read_sync, writer, reader;
};

struct Area {
    uintptr_t begin = 0;
    size_t bytes = 0;
    bool has(uintptr_t a) const { return a - begin < bytes; }
};

struct Shadow {
    bool active = false, races = true;
    shadow_launch launch = {};
    uintptr_t base = 0;
    Chunk **chunks = nullptr; /* by (address - base) / CHUNK_BYTES */
    std::vector<size_t> touched;
    std::vector<Chunk *> spare;
    const cusim::Block *block = nullptr; /* of the last access */
    Area stacks, dynamic, statics, arguments, image;
    std::vector<Shared> shared_dynamic, shared_static;
    uint32_t serial = 0, me = 0, barrier = 0;
    uint16_t thread = 0, sync[MAX_WARPS] = {};
    std::vector<cusim::Range> ranges;
};

/* Never destroyed; first used long after it is made. */
Shadow &the_shadow = *new Shadow;

inline Shadow &sh()
{
    return the_shadow;
}

Chunk *chunk_at(Shadow &s, size_t index)
{
    Chunk *&c = s.chunks[index];
    if (c)
        return c;
    if (s.spare.empty()) {
        c = new Chunk;
    } else {
        c = s.spare.back();
        s.spare.pop_back();
    }
    memset(c, 0, sizeof *c);
    s.touched.push_back(index);
    return c;
}

size_t offset_in_block(const Shadow &s, uintptr_t a)
{
    return a - s.block->begin;
}

[[noreturn]] void race_in_device(const Shadow &s, uintptr_t a, const char *what, uint32_t other)
{
    if (other == MANY || other == ATOMIC)
        cuemu::die("race: %s byte %zu of a block of %zu of device memory, which %s", what,
                   offset_in_block(s, a), s.block->bytes,
                   other == MANY ? "other blocks read" : "blocks change by atomic operations");
    cuemu::die("race: %s byte %zu of a block of %zu of device memory, which block number %u uses, too", what,
               offset_in_block(s, a), s.block->bytes, other - 1);
}

enum Kind { READ, WRITE, ATOMIC_RMW };

void device_access(Shadow &s, uintptr_t a, size_t n, Kind kind)
{
    if (!s.block || a - s.block->begin >= s.block->bytes)
        s.block = cusim::device_find(a);
    if (!s.block || a + n > s.block->end())
        cuemu::die("thread %u %s %zu bytes out of bounds of device memory, %zu bytes behind a block's start",
                   s.thread, kind == READ ? "loads" : "stores", n,
                   s.block ? offset_in_block(s, a) : size_t(0));
    for (uintptr_t u = a / UNIT, end = (a + n - 1) / UNIT; u <= end; u++) {
        size_t off = u * UNIT - s.base;
        Chunk *c = chunk_at(s, off / CHUNK_BYTES);
        uint32_t &w = c->writer[off % CHUNK_BYTES / UNIT], &r = c->reader[off % CHUNK_BYTES / UNIT];
        bool both_atomic = kind == ATOMIC_RMW && w == ATOMIC;
        if (s.races && w && w != s.me && !both_atomic)
            race_in_device(s, u * UNIT, kind == READ ? "a load from" : "a store to", w);
        if (kind == READ) {
            r = !r || r == s.me ? s.me : uint32_t(MANY);
            continue;
        }
        if (s.races && r && r != s.me && !both_atomic)
            race_in_device(s, u * UNIT, "a store to", r);
        w = kind == WRITE ? s.me : uint32_t(ATOMIC);
    }
}

/* Whether what `thread` did at (barrier, sync) comes before what the running thread does. */
bool in_past(const Shadow &s, unsigned thread, uint32_t barrier, uint16_t sync)
{
    if (thread == s.thread || barrier < s.barrier)
        return true;
    unsigned warp = s.thread / WARP;
    return thread / WARP == warp && sync < s.sync[warp];
}

bool readers_in_past(const Shadow &s, const Shared &u)
{
    unsigned warp = s.thread / WARP;

    if (u.reader == NOBODY || u.read_barrier < s.barrier)
        return true;
    if (u.reader == ALL_WARPS)
        return false;
    if (u.reader & ONE_WARP)
        return (u.reader & ~unsigned(ONE_WARP)) == warp && u.read_sync < s.sync[warp];
    return in_past(s, u.reader, u.read_barrier, u.read_sync);
}

void note_reader(const Shadow &s, Shared &u)
{
    uint16_t warp = s.thread / WARP;

    if (readers_in_past(s, u))
        u.reader = s.thread;
    else if (u.reader == ALL_WARPS)
        ;
    else if ((u.reader & ONE_WARP ? u.reader & ~unsigned(ONE_WARP) : u.reader / WARP) == warp)
        u.reader = uint16_t(ONE_WARP | warp);
    else
        u.reader = ALL_WARPS;
    u.read_barrier = s.barrier;
    u.read_sync = s.sync[warp];
}

void shared_access(Shadow &s, std::vector<Shared> &units, uintptr_t offset, size_t n, Kind kind)
{
    bool check = s.races && n > 1;

    for (uintptr_t i = offset / UNIT; i <= (offset + n - 1) / UNIT; i++) {
        Shared &u = units[i];
        if (u.serial != s.serial)
            u = {s.serial, 0, 0, 0, 0, NOBODY, NOBODY};
        bool was_written = u.writer != NOBODY;
        if (kind != WRITE && !was_written && n > 1)
            cuemu::die("thread %u loads shared memory that nobody has stored to", s.thread);
        if (check && was_written && kind != ATOMIC_RMW &&
            !in_past(s, u.writer, u.write_barrier, u.write_sync))
            cuemu::die("race: thread %u %s shared memory that thread %u stores to, with no barrier between",
                       s.thread, kind == READ ? "loads" : "stores to", u.writer);
        if (kind == READ) {
            note_reader(s, u);
            continue;
        }
        if (check && !readers_in_past(s, u))
            cuemu::die(
                "race: thread %u stores to shared memory that other threads load, with no barrier between",
                s.thread);
        u.writer = s.thread;
        u.write_barrier = s.barrier;
        u.write_sync = s.sync[s.thread / WARP];
    }
}

/* The part of the program's thread-local storage that belongs to the module with the kernels. */
int find_module(dl_phdr_info *info, size_t, void *arg)
{
    Shadow &s = *static_cast<Shadow *>(arg);
    uintptr_t self = reinterpret_cast<uintptr_t>(&find_module);
    Area image, tls;

    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto &ph = info->dlpi_phdr[i];
        uintptr_t begin = info->dlpi_addr + ph.p_vaddr;
        if (ph.p_type == PT_TLS && info->dlpi_tls_data)
            tls = {reinterpret_cast<uintptr_t>(info->dlpi_tls_data), ph.p_memsz};
        if (ph.p_type != PT_LOAD)
            continue;
        uintptr_t end = std::max(begin + ph.p_memsz, image.begin + image.bytes);
        image.begin = image.bytes ? std::min(image.begin, begin) : begin;
        image.bytes = end - image.begin;
    }
    if (!image.has(self))
        return 0;
    s.image = image;
    s.statics = tls;
    return 1;
}

void access(uintptr_t a, size_t n, Kind kind)
{
    Shadow &s = sh();

    if (!s.active || s.image.has(a) || s.stacks.has(a))
        return;
    if (a - s.base < cusim::DEVICE_SPACE)
        device_access(s, a, n, kind);
    else if (s.statics.has(a))
        shared_access(s, s.shared_static, a - s.statics.begin, n, kind);
    else if (s.dynamic.has(a) && a + n <= s.dynamic.begin + s.dynamic.bytes)
        shared_access(s, s.shared_dynamic, a - s.dynamic.begin, n, kind);
    else if (!s.arguments.has(a) && !cusim::pinned_find(a))
        cuemu::die("thread %u touches %p, which is neither device nor pinned memory nor the kernel's own "
                   "(its dynamic shared memory has %zu bytes and begins at %p)",
                   s.thread, reinterpret_cast<void *>(a), s.dynamic.bytes, s.launch.dynamic);
}

/* Runs of units that were written (read) by anyone. */
void collect(Shadow &s, bool write)
{
    uintptr_t begin = 0, end = 0;

    for (size_t index : s.touched) {
        const uint32_t *who = write ? s.chunks[index]->writer : s.chunks[index]->reader;
        uintptr_t at = s.base + index * CHUNK_BYTES;
        for (unsigned i = 0; i < CHUNK_UNITS; i++, at += UNIT) {
            if (!who[i])
                continue;
            if (at != end) {
                if (end)
                    s.ranges.push_back({begin, end, write});
                begin = at;
            }
            end = at + UNIT;
        }
    }
    if (end)
        s.ranges.push_back({begin, end, write});
}
} // namespace

void shadow_begin(const shadow_launch &launch)
{
    Shadow &s = sh();

    if (!s.chunks) {
        size_t bytes = cusim::DEVICE_SPACE / CHUNK_BYTES * sizeof(Chunk *);
        void *p =
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            cuemu::die("no memory for the shadow of device memory");
        s.chunks = static_cast<Chunk **>(p);
        s.base = cusim::device_base();
        s.races = cusim::settings().check_races;
    }
    dl_iterate_phdr(find_module, &s);
    s.launch = launch;
    s.stacks = {reinterpret_cast<uintptr_t>(launch.stacks), launch.stacks_bytes};
    s.dynamic = {reinterpret_cast<uintptr_t>(launch.dynamic), launch.dynamic_bytes};
    s.shared_static.resize(s.statics.bytes / UNIT + 8);
    s.shared_dynamic.resize(std::max(s.shared_dynamic.size(), launch.dynamic_bytes / UNIT + 8));
    s.ranges.clear();
    s.arguments = Area();
    s.block = nullptr;
    s.active = true;
}

void shadow_arguments(const void *p, size_t bytes)
{
    sh().arguments = {reinterpret_cast<uintptr_t>(p), bytes};
}

void shadow_end()
{
    Shadow &s = sh();

    s.active = false;
    std::sort(s.touched.begin(), s.touched.end());
    collect(s, false);
    collect(s, true);
    for (size_t index : s.touched) {
        s.spare.push_back(s.chunks[index]);
        s.chunks[index] = nullptr;
    }
    s.touched.clear();
}

void shadow_block(unsigned block)
{
    Shadow &s = sh();

    s.me = block + 1;
    s.serial++;
    s.barrier = 1;
    memset(s.sync, 0, sizeof s.sync);
}

void shadow_thread(unsigned thread)
{
    sh().thread = uint16_t(thread);
}

void shadow_barrier()
{
    sh().barrier++;
}

void shadow_warp_sync(unsigned first_thread, unsigned mask)
{
    Shadow &s = sh();
    unsigned n = std::min<unsigned>(WARP, s.launch.n_threads - first_thread);

    if (mask == (n == WARP ? 0xffffffffu : (1u << n) - 1) && s.sync[first_thread / WARP] < 0xffff)
        s.sync[first_thread / WARP]++;
}

void shadow_atomic(const void *p, size_t bytes)
{
    access(reinterpret_cast<uintptr_t>(p), bytes, ATOMIC_RMW);
}

std::vector<cusim::Range> cusim::shadow_ranges()
{
    return std::move(sh().ranges);
}

#ifdef BF_SIM_WATCH
static inline void aligned(uintptr_t a, size_t n)
{
    if (a % n && sh().active && a - sh().base < cusim::DEVICE_SPACE)
        cuemu::die("misaligned address: %zu bytes at %p", n, reinterpret_cast<void *>(a));
}

#define READ_WRITE(n)                                                                                        \
    void __tsan_read##n(void *p)                                                                             \
    {                                                                                                        \
        aligned(uintptr_t(p), n);                                                                            \
        access(uintptr_t(p), n, READ);                                                                       \
    }                                                                                                        \
    void __tsan_write##n(void *p)                                                                            \
    {                                                                                                        \
        aligned(uintptr_t(p), n);                                                                            \
        access(uintptr_t(p), n, WRITE);                                                                      \
    }                                                                                                        \
    void __tsan_unaligned_read##n(void *p)                                                                   \
    {                                                                                                        \
        access(uintptr_t(p), n, READ);                                                                       \
    }                                                                                                        \
    void __tsan_unaligned_write##n(void *p)                                                                  \
    {                                                                                                        \
        access(uintptr_t(p), n, WRITE);                                                                      \
    }

/* What g++ calls. Their prototypes are the compiler's business. */
#pragma GCC diagnostic ignored "-Wmissing-declarations"
extern "C" {
READ_WRITE(1)
READ_WRITE(2)
READ_WRITE(4)
READ_WRITE(8)
READ_WRITE(16)
void __tsan_read_range(void *p, size_t n)
{
    access(uintptr_t(p), n, READ);
}
void __tsan_write_range(void *p, size_t n)
{
    access(uintptr_t(p), n, WRITE);
}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
/* The first member of what g++ passes: where in the source. */
struct UbsanPlace {
    const char *file;
    uint32_t line, column;
};
void __ubsan_handle_type_mismatch_v1_abort(UbsanPlace *at, void *p)
{
    cuemu::die("misaligned address %p, or NULL, in %s:%u", p, at->file, at->line);
}
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
#endif
