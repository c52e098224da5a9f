/* comm_contract - what comm.h promises, checked on any implementation. Inputs are small whole numbers, so
 * sums are exact and compared exactly. Buffers are where the implementation wants them: a test says how to
 * make them (struct contract_memory).
 *
 * To be included after mpi_main.h or fork_ranks.h (cmocka).
 */
#ifndef TESTS_MPI_COMM_CONTRACT_H
#define TESTS_MPI_COMM_CONTRACT_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "worker/comm/comm.h"

enum { CONTRACT_MAX_RANKS = 8, CONTRACT_WIDTH = 5 };

struct contract_memory {
    void *(*alloc)(size_t bytes);
    void (*release)(void *p);
    void (*put)(void *buffer, const void *host, size_t bytes);
    /* After all that the communicator was asked for so far. */
    void (*get)(struct comm *c, void *host, const void *buffer, size_t bytes);
};

struct contract {
    struct comm *c;
    const struct contract_memory *mem;
};

/* ---- buffers ---- */

static inline void *contract_host_alloc(size_t bytes)
{
    return malloc(bytes + 1); /* of 0 bytes, too */
}

static inline void contract_host_release(void *p)
{
    free(p);
}

static inline void contract_host_put(void *buffer, const void *host, size_t bytes)
{
    memcpy(buffer, host, bytes);
}

static inline void contract_host_get(struct comm *c, void *host, const void *buffer, size_t bytes)
{
    (void)c;
    memcpy(host, buffer, bytes);
}

static const struct contract_memory contract_host = {contract_host_alloc, contract_host_release,
                                                     contract_host_put, contract_host_get};

/* A buffer with these bytes. */
static inline void *contract_new(const struct contract *t, const void *host, size_t bytes)
{
    void *p = t->mem->alloc(bytes);

    t->mem->put(p, host, bytes);
    return p;
}

/* What is in the buffer, which is released. */
static inline void contract_take(const struct contract *t, void *host, void *buffer, size_t bytes)
{
    t->mem->get(t->c, host, buffer, bytes);
    t->mem->release(buffer);
}

/* ---- rows ---- */

enum contract_rows { CONTRACT_UNEQUAL, CONTRACT_EQUAL, CONTRACT_NONE };

/* Rows of each rank: 3, 1, 0, 2, 3, 1, … or 2 on all or none; returns their sum. */
static inline int64_t contract_counts(int64_t *counts, int size, enum contract_rows kind)
{
    static const int64_t pattern[] = {3, 1, 0, 2};
    int64_t total = 0;

    for (int r = 0; r < size; r++)
        total += counts[r] = kind == CONTRACT_UNEQUAL ? pattern[r % 4] : kind == CONTRACT_EQUAL ? 2 : 0;
    return total;
}

static inline int64_t contract_first(const int64_t *counts, int rank)
{
    int64_t first = 0;

    for (int r = 0; r < rank; r++)
        first += counts[r];
    return first;
}

/* ---- checks ---- */

static inline void contract_all_gather(const struct contract *t, enum contract_rows kind)
{
    struct comm *c = t->c;
    int64_t counts[CONTRACT_MAX_RANKS], total = contract_counts(counts, c->size, kind);
    int64_t first = contract_first(counts, c->rank);
    int32_t local[3 * CONTRACT_WIDTH] = {0}, all[3 * CONTRACT_MAX_RANKS * CONTRACT_WIDTH];
    void *local_buffer, *all_buffer;
    struct err e = ERR_INIT;

    for (int64_t i = 0; i < counts[c->rank] * CONTRACT_WIDTH; i++)
        local[i] = (int32_t)(first * CONTRACT_WIDTH + i);
    memset(all, 0xff, sizeof all);
    local_buffer = contract_new(t, local, sizeof local);
    all_buffer = contract_new(t, all, sizeof all);
    if (comm_all_gather(c, local_buffer, all_buffer, counts, CONTRACT_WIDTH * sizeof *local, &e) < 0)
        fail_msg("%s", e.msg);
    contract_take(t, all, all_buffer, sizeof all);
    contract_take(t, local, local_buffer, sizeof local);
    for (int64_t i = 0; i < 3 * CONTRACT_MAX_RANKS * CONTRACT_WIDTH; i++)
        assert_int_equal(all[i], i < total * CONTRACT_WIDTH ? i : -1);
}

static inline void contract_reduce_scatter(const struct contract *t, enum contract_rows kind)
{
    struct comm *c = t->c;
    int64_t counts[CONTRACT_MAX_RANKS], total = contract_counts(counts, c->size, kind);
    int64_t first = contract_first(counts, c->rank);
    float all[3 * CONTRACT_MAX_RANKS * CONTRACT_WIDTH] = {0}, local[3 * CONTRACT_WIDTH];
    const int ranks = c->size * (c->size + 1) / 2; /* Σ(rank+1) */
    void *local_buffer, *all_buffer;
    struct err e = ERR_INIT;

    for (int64_t i = 0; i < total * CONTRACT_WIDTH; i++)
        all[i] = (float)(i * (c->rank + 1));
    for (int i = 0; i < 3 * CONTRACT_WIDTH; i++)
        local[i] = -1;
    local_buffer = contract_new(t, local, sizeof local);
    all_buffer = contract_new(t, all, sizeof all);
    if (comm_reduce_scatter(c, all_buffer, local_buffer, counts, CONTRACT_WIDTH, &e) < 0)
        fail_msg("%s", e.msg);
    contract_take(t, local, local_buffer, sizeof local);
    contract_take(t, all, all_buffer, sizeof all);
    for (int64_t i = 0; i < 3 * CONTRACT_WIDTH; i++)
        assert_float_equal(
            local[i],
            i < counts[c->rank] * CONTRACT_WIDTH ? (float)((first * CONTRACT_WIDTH + i) * ranks) : -1.0f, 0);
}

/* Rank r sends rank s r + s units of two words: what came from r says so. */
static inline void contract_all_to_all(const struct contract *t)
{
    enum { UNIT = 2, WORDS = 2 * CONTRACT_MAX_RANKS * CONTRACT_MAX_RANKS * UNIT };
    struct comm *c = t->c;
    int32_t send[WORDS] = {0}, recv[WORDS];
    int64_t send_counts[CONTRACT_MAX_RANKS], recv_counts[CONTRACT_MAX_RANKS], n = 0;
    void *send_buffer, *recv_buffer;
    struct err e = ERR_INIT;

    for (int s = 0; s < c->size; s++) {
        send_counts[s] = recv_counts[s] = c->rank + s;
        for (int64_t i = 0; i < send_counts[s] * UNIT; i++)
            send[n++] = (int32_t)(1000 * c->rank + 100 * s + i);
    }
    memset(recv, 0xff, sizeof recv);
    send_buffer = contract_new(t, send, sizeof send);
    recv_buffer = contract_new(t, recv, sizeof recv);
    if (comm_all_to_all(c, send_buffer, send_counts, recv_buffer, recv_counts, UNIT * sizeof *send, &e) < 0)
        fail_msg("%s", e.msg);
    contract_take(t, recv, recv_buffer, sizeof recv);
    contract_take(t, send, send_buffer, sizeof send);
    n = 0;
    for (int r = 0; r < c->size; r++)
        for (int64_t i = 0; i < recv_counts[r] * UNIT; i++)
            assert_int_equal(recv[n++], 1000 * r + 100 * c->rank + i);
}

static inline void contract_all_reduce(const struct contract *t)
{
    enum { N = 1000 };
    struct comm *c = t->c;
    float f[N];
    double d[3] = {c->rank + 1, 0.5, -1};
    int32_t k[2] = {c->rank, 7};
    const int pairs = c->size * (c->size - 1) / 2;
    void *f_buffer, *d_buffer, *k_buffer;
    struct comm_req r[2];
    struct err e = ERR_INIT;

    for (int i = 0; i < N; i++)
        f[i] = (float)(i + c->rank);
    f_buffer = contract_new(t, f, sizeof f);
    d_buffer = contract_new(t, d, sizeof d);
    k_buffer = contract_new(t, k, sizeof k);
    if (comm_all_reduce_start(c, f_buffer, N, DTYPE_F32, &r[0], &e) < 0 ||
        comm_all_reduce_start(c, d_buffer, 3, DTYPE_F64, &r[1], &e) < 0 ||
        comm_all_reduce(c, k_buffer, 2, DTYPE_I32, &e) < 0 || /* others are in flight */
        comm_wait(c, &r[0], &e) < 0 || comm_wait(c, &r[1], &e) < 0)
        fail_msg("%s", e.msg);
    contract_take(t, f, f_buffer, sizeof f);
    contract_take(t, d, d_buffer, sizeof d);
    contract_take(t, k, k_buffer, sizeof k);
    for (int i = 0; i < N; i++)
        assert_float_equal(f[i], (float)(i * c->size + pairs), 0);
    assert_float_equal(d[0], pairs + c->size, 0);
    assert_float_equal(d[1], 0.5 * c->size, 0);
    assert_int_equal(k[0], pairs);
    assert_int_equal(k[1], 7 * c->size);
}

/* Sums of numbers that round: whatever the order of the additions, all ranks hold the same bits. */
static inline void contract_same_bits(const struct contract *t)
{
    static const int sizes[] = {1, 7, 100, 5000, 300001};
    struct comm *c = t->c;
    struct err e = ERR_INIT;

    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const size_t n = (size_t)sizes[s], bytes = n * sizeof(float);
        float *x = malloc(bytes), *ref = malloc(bytes);
        void *buffer;

        for (size_t i = 0; i < n; i++)
            x[i] = 1.0f / (float)(3 + (int)i % 97 + 13 * c->rank);
        buffer = contract_new(t, x, bytes);
        if (comm_all_reduce(c, buffer, n, DTYPE_F32, &e) < 0)
            fail_msg("%s", e.msg);
        t->mem->get(c, x, buffer, bytes);
        if (comm_broadcast(c, buffer, bytes, 0, &e) < 0)
            fail_msg("%s", e.msg);
        contract_take(t, ref, buffer, bytes);
        assert_memory_equal(x, ref, bytes);
        free(x);
        free(ref);
    }
}

static inline void contract_broadcast(const struct contract *t)
{
    struct comm *c = t->c;
    struct err e = ERR_INIT;

    for (int root = 0; root < c->size; root++) {
        char text[32] = "";
        void *buffer;

        if (c->rank == root)
            strcpy(text, "from the root");
        buffer = contract_new(t, text, sizeof text);
        if (comm_broadcast(c, buffer, sizeof text, root, &e) < 0)
            fail_msg("%s", e.msg);
        contract_take(t, text, buffer, sizeof text);
        assert_string_equal(text, "from the root");
    }
    assert_int_equal(comm_barrier(c, &e), 0);
    assert_int_equal(comm_sync(c, "nothing", &e), 0);
}

/* All of it. */
static inline void contract_check(struct comm *c, const struct contract_memory *mem)
{
    const struct contract t = {c, mem};

    for (enum contract_rows kind = CONTRACT_UNEQUAL; kind <= CONTRACT_NONE; kind++) {
        contract_all_gather(&t, kind);
        contract_reduce_scatter(&t, kind);
    }
    contract_all_to_all(&t);
    contract_all_reduce(&t);
    contract_same_bits(&t);
    contract_broadcast(&t);
}

#endif
