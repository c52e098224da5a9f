/* test_comm_tcp - the contract of comm.h (comm_contract.h) on comm_tcp, the order of its sums, and what the
 * other ranks say when one is gone, silent, gives up or does something else. */
#include "tests/mpi/fork_ranks.h"
#include "tests/mpi/comm_contract.h"
#include "worker/comm/comm_tcp.h"

#include <dirent.h>
#include <sys/time.h>

enum { PATIENT_MS = 120000, SHORT_MS = 300 };

static struct comm *join_with(const struct fork_rank *r, int timeout_ms)
{
    const struct comm_tcp_config cfg = {.dir = r->dir,
                                        .name = "test",
                                        .rank = r->rank,
                                        .size = r->size,
                                        .meet_ms = PATIENT_MS,
                                        .timeout_ms = timeout_ms};
    struct err e = ERR_INIT;
    struct comm *c = comm_tcp_create(&cfg, &e);

    if (!c)
        fail_msg("%s", e.msg);
    assert_int_equal(c->rank, r->rank);
    assert_int_equal(c->size, r->size);
    return c;
}

static struct comm *join(const struct fork_rank *r)
{
    return join_with(r, PATIENT_MS);
}

static void test_contract(void **state)
{
    struct comm *c = join(*state);
    struct err e = ERR_INIT;
    float x = 1;

    contract_check(c, &contract_host);
    contract_check(c, &contract_host);
    assert_int_equal(comm_all_reduce(c, &x, 1, DTYPE_BF16, &e), -1);
    assert_non_null(strstr(e.msg, "bf16"));
    comm_destroy(c);
}

/* ---- more than a frame, and the order of additions ---- */

enum { MANY = 200003 }; /* floats: three frames and a bit */

static float part_of(int rank, int64_t i)
{
    return 1.0f / (float)(3 + i % 97 + 13 * rank);
}

/* ((x0 + x1) + x2) + … */
static float sum_in_order(int size, int64_t i)
{
    volatile float sum = part_of(0, i);

    for (int r = 1; r < size; r++)
        sum = sum + part_of(r, i);
    return sum;
}

static void assert_sums(const float *x, int64_t first, int64_t n, int size)
{
    for (int64_t i = 0; i < n; i++)
        if (x[i] != sum_in_order(size, first + i))
            fail_msg("element %lld is %.9g, not %.9g", (long long)(first + i), (double)x[i],
                     (double)sum_in_order(size, first + i));
}

static void test_order_of_sums(void **state)
{
    const struct fork_rank *r = *state;
    struct comm *c = join(r);
    struct err e = ERR_INIT;
    float *x = malloc(MANY * sizeof *x), *local = malloc(MANY * sizeof *local);
    int64_t counts[FORK_MAX_RANKS] = {0}, first = 0;

    for (int64_t i = 0; i < MANY; i++)
        x[i] = part_of(r->rank, i);
    /* Rows of one float: the last rank has most of them, rank 1 none. */
    for (int i = 0; i < r->size; i++)
        counts[i] = i == 1 ? 0 : 1000 * (i + 1);
    counts[r->size - 1] = 0;
    counts[r->size - 1] = MANY - contract_first(counts, r->size);
    first = contract_first(counts, r->rank);
    if (comm_reduce_scatter(c, x, local, counts, 1, &e) < 0)
        fail_msg("%s", e.msg);
    assert_sums(local, first, counts[r->rank], r->size);
    if (comm_all_reduce(c, x, MANY, DTYPE_F32, &e) < 0)
        fail_msg("%s", e.msg);
    assert_sums(x, 0, MANY, r->size);
    comm_destroy(c);
    free(x);
    free(local);
}

static void check_large_all_to_all(struct comm *c)
{
    int64_t send_counts[FORK_MAX_RANKS], recv_counts[FORK_MAX_RANKS], n_send = 0, n_recv = 0, at = 0;
    struct err e = ERR_INIT;
    int32_t *send, *recv;

    for (int s = 0; s < c->size; s++) {
        n_send += send_counts[s] = 60000 + 1000 * c->rank + s;
        n_recv += recv_counts[s] = 60000 + 1000 * s + c->rank;
    }
    send = malloc((size_t)n_send * sizeof *send);
    recv = malloc((size_t)n_recv * sizeof *recv);
    for (int s = 0; s < c->size; s++)
        for (int64_t i = 0; i < send_counts[s]; i++)
            send[at++] = (int32_t)(i * 64 + c->rank * 8 + s);
    if (comm_all_to_all(c, send, send_counts, recv, recv_counts, sizeof *send, &e) < 0)
        fail_msg("%s", e.msg);
    at = 0;
    for (int s = 0; s < c->size; s++)
        for (int64_t i = 0; i < recv_counts[s]; i++, at++)
            if (recv[at] != (int32_t)(i * 64 + s * 8 + c->rank))
                fail_msg("unit %lld of rank %d is %d", (long long)i, s, recv[at]);
    free(send);
    free(recv);
}

static void test_large(void **state)
{
    const struct fork_rank *r = *state;
    struct comm *c = join(r);
    struct err e = ERR_INIT;
    int32_t *all = malloc((size_t)r->size * MANY * sizeof *all), *own = malloc(MANY * sizeof *own);
    int64_t counts[FORK_MAX_RANKS];

    for (int i = 0; i < r->size; i++)
        counts[i] = i % 2 ? MANY : MANY - 77;
    for (int64_t i = 0; i < MANY; i++)
        own[i] = (int32_t)(i * 8 + r->rank);
    if (comm_all_gather(c, own, all, counts, sizeof *own, &e) < 0)
        fail_msg("%s", e.msg);
    for (int i = 0; i < r->size; i++)
        for (int64_t k = 0; k < counts[i]; k++)
            if (all[contract_first(counts, i) + k] != (int32_t)(k * 8 + i))
                fail_msg("row %lld of rank %d", (long long)k, i);
    for (int root = 0; root < r->size; root++) {
        for (int64_t i = 0; i < MANY; i++)
            own[i] = r->rank == root ? (int32_t)(i ^ root) : -1;
        if (comm_broadcast(c, own, MANY * sizeof *own, root, &e) < 0)
            fail_msg("%s", e.msg);
        for (int64_t i = 0; i < MANY; i++)
            assert_int_equal(own[i], (int32_t)(i ^ root));
    }
    check_large_all_to_all(c);
    comm_destroy(c);
    free(all);
    free(own);
}

/* ---- ranks that fail ---- */

/* "rank 2 on HOST" must be in it, and the code be this. */
static void assert_names(const struct err *e, int rank, int code)
{
    char host[64] = "", name[96];

    gethostname(host, sizeof host - 1);
    snprintf(name, sizeof name, "rank %d on %s", rank, host);
    if (e->kind != ERR_PEER_LOST || !strstr(e->msg, name))
        fail_msg("kind %d: '%s' does not name %s", (int)e->kind, e->msg, name);
    assert_int_equal(e->code, code);
}

/* The sum that one rank never makes; then the same again, for it stays broken. */
static struct err lost_sum(struct comm *c, size_t n)
{
    float *x = calloc(n, sizeof *x);
    struct err e = ERR_INIT, later = ERR_INIT;

    assert_int_equal(comm_all_reduce(c, x, n, DTYPE_F32, &e), -1);
    assert_int_equal(comm_barrier(c, &later), -1);
    assert_int_equal(later.kind, e.kind);
    assert_string_equal(later.msg, e.msg);
    free(x);
    return e;
}

static void check_killed(const struct fork_rank *r, size_t n)
{
    struct comm *c = join(r);
    struct err e = ERR_INIT;

    assert_int_equal(comm_barrier(c, &e), 0);
    if (r->rank == r->victim)
        raise(SIGKILL);
    e = lost_sum(c, n);
    assert_names(&e, r->victim, 0);
    if (r->rank == 0 || r->victim == 0)
        assert_non_null(strstr(e.msg, "is gone: "));
    assert_non_null(strstr(e.msg, "all-reduce: "));
    comm_destroy(c);
}

static void test_killed(void **state)
{
    check_killed(*state, 1);
}

static void test_killed_large(void **state)
{
    check_killed(*state, 1 << 20);
}

/* Rank 1 has given its part and dies while all wait for the last rank: that is seen while they wait. */
static void test_killed_waiting(void **state)
{
    const struct itimerval soon = {.it_value = {.tv_usec = 100000}};
    const struct fork_rank *r = *state;
    struct comm *c = join(r);
    struct err e = ERR_INIT;
    float x = 1;
    char byte;

    if (r->rank == 1) {
        setitimer(ITIMER_REAL, &soon, NULL); /* SIGALRM is its end */
        comm_all_reduce(c, &x, 1, DTYPE_F32, &e);
        fail_msg("rank 1 lives: %s", e.msg);
    }
    if (r->rank == r->size - 1) {
        assert_int_equal(read(r->told[0], &byte, 1), 1);
    } else {
        e = lost_sum(c, 1);
        assert_names(&e, 1, 0);
        if (r->rank == 0)
            assert_int_equal(write(r->told[1], "x", 1), 1);
    }
    comm_destroy(c);
}

/* Where rank 0 is not the victim it alone is impatient: what the others say they have from it. */
static void test_stopped(void **state)
{
    const struct fork_rank *r = *state;
    struct comm *c = join_with(r, r->rank == 0 || r->victim == 0 ? SHORT_MS : PATIENT_MS);
    struct err e = ERR_INIT;

    if (r->rank == r->victim)
        raise(SIGSTOP);
    e = lost_sum(c, 1);
    assert_names(&e, r->victim, 0);
    assert_non_null(
        strstr(e.msg, r->victim == 0 ? "waited 0 s for rank 0 on " : "all-reduce: rank 0 waited 0 s for "));
    comm_destroy(c);
}

static void test_abort(void **state)
{
    const struct fork_rank *r = *state;
    struct comm *c = join(r);
    struct err e;

    if (r->rank == r->size - 1) {
        comm_abort(c, 3);
    } else {
        e = lost_sum(c, 1);
        assert_names(&e, r->size - 1, 3);
        assert_non_null(strstr(e.msg, "gave up with status 3"));
    }
    comm_destroy(c);
}

static void test_abort_rank0(void **state)
{
    const struct fork_rank *r = *state;
    struct comm *c = join(r);
    struct err e;

    if (r->rank == 0) {
        comm_abort(c, 1);
    } else {
        e = lost_sum(c, 1 << 20);
        assert_names(&e, 0, 1);
    }
    comm_destroy(c);
}

/* The last rank is in another call than the others. */
static void test_other_call(void **state)
{
    const struct fork_rank *r = *state;
    struct comm *c = join(r);
    struct err e = ERR_INIT;
    char text[128];

    if (r->rank == r->size - 1)
        assert_int_equal(comm_barrier(c, &e), -1);
    else
        e = lost_sum(c, 1);
    snprintf(text, sizeof text, "rank %d on ", r->size - 1);
    assert_non_null(strstr(e.msg, "the ranks do not make the same calls"));
    assert_non_null(strstr(e.msg, text));
    assert_non_null(strstr(e.msg, "barrier of 0 bytes as its call 1 where all-reduce of 4 bytes"));
    comm_destroy(c);
}

static void test_other_counts(void **state)
{
    const struct fork_rank *r = *state;
    struct comm *c = join(r);
    struct err e = ERR_INIT;
    int64_t send_counts[FORK_MAX_RANKS] = {0}, recv_counts[FORK_MAX_RANKS] = {0};
    int32_t x[4] = {0}, y[4];

    send_counts[0] = r->rank == 1 ? 2 : 0;
    recv_counts[1] = r->rank == 0 ? 1 : 0;
    if (comm_all_to_all(c, x, send_counts, y, recv_counts, sizeof *x, &e) == 0)
        comm_barrier(c, &e); /* a rank that only sends learns of it in its next call */
    assert_non_null(strstr(e.msg, "rank 1 sends 2 units to rank 0, which expects 1"));
    comm_destroy(c);
}

/* A rank that has ended in order is missed by the others. */
static void test_left_early(void **state)
{
    const struct fork_rank *r = *state;
    struct comm *c = join(r);
    struct err e;

    if (r->rank != r->size - 1) {
        e = lost_sum(c, 1);
        assert_names(&e, r->size - 1, 0);
        assert_non_null(strstr(e.msg, "ended the run in order"));
    }
    comm_destroy(c);
}

static const struct fork_scenario scenarios[] = {
    {"contract", test_contract, 1, FORK_NOBODY},
    {"order of sums", test_order_of_sums, 1, FORK_NOBODY},
    {"large", test_large, 1, FORK_NOBODY},
    {"killed", test_killed, 2, FORK_LAST},
    {"rank 0 killed", test_killed, 2, FORK_RANK0},
    {"killed, large", test_killed_large, 2, FORK_LAST},
    {"rank 0 killed, large", test_killed_large, 2, FORK_RANK0},
    {"killed while others wait", test_killed_waiting, 3, FORK_RANK1},
    {"stopped", test_stopped, 2, FORK_LAST},
    {"rank 0 stopped", test_stopped, 2, FORK_RANK0},
    {"abort", test_abort, 2, FORK_NOBODY},
    {"rank 0 aborts", test_abort_rank0, 2, FORK_NOBODY},
    {"another call", test_other_call, 2, FORK_NOBODY},
    {"other counts", test_other_counts, 2, FORK_NOBODY},
    {"left early", test_left_early, 2, FORK_NOBODY},
};

FORK_TEST_MAIN(scenarios)
