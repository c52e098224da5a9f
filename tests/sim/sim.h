/* sim - what the doubles of the CUDA runtime, cuBLAS, cuDNN and NCCL share: memory, operations on streams,
 * and the check of their order. The user's side are the libraries' own headers.
 *
 * One mutex guards everything, so only one operation runs at a time, on whichever thread waits for it.
 *
 * Settings, from the environment:
 *   CUSIM_EAGER=1        operations run as soon as they may (by default only when something waits for them)
 *   CUSIM_SEED=n         what runs next is drawn at random among all that may
 *   CUSIM_CHECKS=list    what to leave out, by a minus: -order, -races, -protect, -pageable
 *   CUSIM_TIMEOUT=s      an operation that waits longer for other ranks ends the process (120)
 *   CUSIM_DEVICES=n, CUSIM_MEMORY_MB=n         what the machine has (8, 8192)
 *   CUSIM_FAIL_MALLOC=n, CUSIM_FAIL_SYNC=n     the n-th cudaMalloc, n-th wait fails (from 1)
 *   CUSIM_NAME=text      what the devices are called ("simulated device")
 *   CUSIM_ENGINE_MS=a,b,c,d,e   what a convolution by each of cuDNN's engines takes (cudnn_sim.cpp)
 * Numbers, names and times may have a part for each rank, with "/" between them; ranks without one have the
 * last.
 *
 * Time is made up: an operation takes what its double says, or 0.01 ms, so what is measured by events is the
 * same each time.
 */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include <cuda_runtime_api.h>

namespace cusim
{
[[noreturn]] void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

struct Settings {
    bool eager, random, check_order, check_races, protect, check_pageable;
    unsigned seed;
    double timeout_s;
    int devices;
    size_t memory_bytes;
    long fail_malloc, fail_sync;
};
const Settings &settings();
/* This rank's part of the variable, as it is now; "" where it is not set. */
std::string rank_setting(const char *name);

/* Every entry point holds one; they nest. */
struct Lock {
    Lock();
    ~Lock();
    Lock(const Lock &) = delete;
    Lock &operator=(const Lock &) = delete;
};
/* Lets other threads in for a moment when this one waits for other processes. */
void lock_yield();

/* ---- memory: sim_mem.cpp ---- */

struct Block {
    uintptr_t begin;
    size_t bytes;
    uintptr_t end() const { return begin + bytes; }
};

/* All device memory of the process lies in one range of addresses that is reserved once. */
constexpr size_t DEVICE_SPACE = size_t(1) << 38;
uintptr_t device_base();
/* Whether a fault at an address means that a fiber's stack is full. */
void on_stack_fault(bool (*is_guard)(uintptr_t));

cudaError_t device_alloc(void **p, size_t bytes);
void device_free(void *p, const char *caller);
void host_alloc(void **p, size_t bytes);
void host_free(void *p);
void host_register(void *p, size_t bytes);
void host_unregister(void *p);
/* The block that holds the address, or NULL. */
const Block *device_find(uintptr_t a);
const Block *pinned_find(uintptr_t a);
size_t device_bytes_used();
/* Die unless all of [p, p + bytes) lies in one block of device memory (pinned memory). */
void require_device(const char *what, const void *p, size_t bytes);
void require_pinned(const char *what, const void *p, size_t bytes);
bool in_device_space(const void *p);

/* The device may touch its memory while one of these lives; the host never may. */
struct Running {
    Running();
    ~Running();
    Running(const Running &) = delete;
    Running &operator=(const Running &) = delete;
};

/* ---- order: order_check.cpp ---- */

struct Range {
    uintptr_t begin, end;
    bool write;
};

/* How far each actor (0 the host, then the streams) is known to have come. */
using Clock = std::vector<uint32_t>;
void clock_join(Clock &into, const Clock &from);
uint32_t clock_of(const Clock &c, unsigned actor);

/* The operation `name` is the `clock[actor]`-th of its actor: whatever touched these bytes before must be in
 * its past. Dies with both names. */
void order_check(const std::string &name, unsigned actor, const Clock &clock,
                 const std::vector<Range> &ranges);
void order_forget(uintptr_t begin, uintptr_t end);

/* ---- operations: sim_stream.cpp ---- */

struct Op {
    std::string name;
    std::vector<Range> ranges;   /* what it touches; a kernel's are found as it runs */
    std::function<bool()> ready; /* whether it may begin here; null: yes */
    std::function<void()> run;   /* begins it */
    std::function<bool()> poll;  /* whether it is done; null: it is done when run() returns */
    /* Called each time that it is put on a queue, also by the launch of a graph: sets the functions above. */
    std::function<void(Op &)> bind;
    bool is_kernel = false;
    double ms = 0.01;

    Op &reads(const void *p, size_t bytes);
    Op &writes(const void *p, size_t bytes);
};

void stream_push(cudaStream_t s, Op op);
/* Whether work put on s now would be captured. */
bool stream_captures(cudaStream_t s);
/* The caller may not be used while this thread captures. */
void forbid_in_capture(const char *caller);
/* Runs what can run without waiting; returns whether anything did. */
bool progress_all();
cudaError_t set_error(cudaError_t e);

/* Of the last kernel that ran (kernel_shadow.cpp). */
std::vector<Range> shadow_ranges();
} // namespace cusim

#endif
