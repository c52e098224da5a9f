/* kernel_shadow - what kernels do to memory, load by load and store by store: see kernel_shadow.cpp. Called
 * by cuemu.cpp, which runs one thread at a time. */
#ifndef TESTS_SIM_KERNEL_SHADOW_H
#define TESTS_SIM_KERNEL_SHADOW_H

#include <cstddef>

/* The launch that begins: its name, threads a block, where its dynamic shared memory and all stacks lie. */
struct shadow_launch {
    const char *name;
    unsigned n_threads;
    const char *dynamic;
    size_t dynamic_bytes;
    const char *stacks;
    size_t stacks_bytes;
};

void shadow_begin(const shadow_launch &launch);
/* Where the arguments of the launch are kept: kernels may read there. */
void shadow_arguments(const void *p, size_t bytes);
void shadow_end();
void shadow_block(unsigned block);
void shadow_thread(unsigned thread); /* runs from here on */
void shadow_barrier();
void shadow_warp_sync(unsigned first_thread, unsigned mask);
void shadow_atomic(const void *p, size_t bytes);

#endif
