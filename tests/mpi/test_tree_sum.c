/* test_tree_sum - sums over the micro-shards of all ranks have the bits of one rank's tree, whichever way
 * they travel. Values round at every addition, so an order of its own would show.
 */
#include "tests/mpi/mpi_main.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/engine/tree_sum.h"

#include <stdlib.h>
#include <string.h>

/* What shard k contributes to element i. */
static double leaf(int32_t k, int64_t i)
{
    return 1.0 / (double)(3 + (i * 31 + k * 17) % 101) - 0.01;
}

static float add_f32(float a, float b)
{
    return a + b;
}

/* The tree by its definition: node (level, idx) of element i. */
static double node_value(int32_t n_shards, int level, int32_t idx, int64_t i, enum dtype t)
{
    if (level == 0)
        return t == DTYPE_F32 ? (float)leaf(idx, i) : leaf(idx, i);
    int32_t right = 2 * idx + 1;
    double a = node_value(n_shards, level - 1, 2 * idx, i, t);
    if ((int64_t)right << (level - 1) >= n_shards)
        return a;
    double b = node_value(n_shards, level - 1, right, i, t);
    return t == DTYPE_F32 ? add_f32((float)a, (float)b) : a + b;
}

static double expected(int32_t n_shards, int64_t i, enum dtype t)
{
    int level = 0;

    while ((1 << level) < n_shards)
        level++;
    return node_value(n_shards, level, 0, i, t);
}

static void put(char *at, int64_t i, double v, enum dtype t)
{
    if (t == DTYPE_F32)
        ((float *)at)[i] = (float)v;
    else
        ((double *)at)[i] = v;
}

static double get(const char *at, int64_t i, enum dtype t)
{
    return t == DTYPE_F32 ? (double)((const float *)at)[i] : ((const double *)at)[i];
}

struct fixture {
    struct comm *comm;
    struct backend *be;
    struct tree_sum *t;
    char *parts[SHARDS_MAX_ROOTS], *out, *stage;
};

/* This rank's roots, n elements each. */
static struct fixture make(int32_t n_shards, int64_t n, enum dtype t, size_t out_bytes)
{
    struct err e = ERR_INIT;
    struct fixture f = {.comm = comm_mpi_create(TEST_TIMEOUT_MS, &e),
                        .be = cpu_backend_create(&(struct cpu_config){.n_threads = 1, .winograd = true}, &e)};
    struct tree_node roots[SHARDS_MAX_ROOTS];
    int32_t first, end;

    f.t = tree_sum_create(f.comm, f.be, n_shards);
    shards_of_rank(n_shards, f.comm->rank, f.comm->size, &first, &end);
    assert_int_equal(shards_roots(n_shards, first, end, roots), f.t->n_roots);
    for (int r = 0; r < f.t->n_roots; r++) {
        f.parts[r] = malloc((size_t)n * dtype_bytes(t) + 1);
        for (int64_t i = 0; i < n; i++)
            put(f.parts[r], i, node_value(n_shards, roots[r].level, roots[r].idx, i, t), t);
    }
    f.out = malloc(out_bytes + 1);
    return f;
}

static void done(struct fixture *f)
{
    for (int r = 0; r < f->t->n_roots; r++)
        free(f->parts[r]);
    free(f->out);
    free(f->stage);
    tree_sum_destroy(f->t);
    f->be->ops->destroy(f->be);
    comm_destroy(f->comm);
}

static void check_all_reduce(int32_t n_shards, int64_t n, enum dtype t, bool in_place)
{
    struct err e = ERR_INIT;
    struct fixture f = make(n_shards, n, t, (size_t)n * dtype_bytes(t));
    char *out = in_place ? f.parts[0] : f.out;

    f.stage = malloc(tree_all_reduce_stage_bytes(f.t, n, t) + 1);
    assert_int_equal(tree_all_reduce(f.t, (void *const *)f.parts, out, n, t, f.stage, &e), 0);
    for (int64_t i = 0; i < n; i++)
        if (get(out, i, t) != expected(n_shards, i, t))
            fail_msg("%d shards, element %lld of %lld: %.17g, %.17g is right", n_shards, (long long)i,
                     (long long)n, get(out, i, t), expected(n_shards, i, t));
    done(&f);
}

static int world_size(void)
{
    int size;

    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

/* Lengths on both sides of the border between gathering whole and adding up slices; fewer elements than
 * ranks. */
static void test_all_reduce(void **state)
{
    (void)state;
    static const int32_t shards[] = {4, 5, 7, 16, 23};
    static const int64_t lengths[] = {1, 3, 1000, 40001};

    for (size_t s = 0; s < sizeof shards / sizeof *shards; s++)
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
            check_all_reduce(shards[s], lengths[k], DTYPE_F32, k % 2);
            check_all_reduce(shards[s], lengths[k], DTYPE_F64, !(k % 2));
        }
}

/* Rows as unequal as they come. */
static void test_reduce_scatter(void **state)
{
    (void)state;
    enum { WIDTH = 6, MAX_RANKS = 8 };
    static const int64_t pattern[] = {5, 1, 0, 2};
    int64_t counts[MAX_RANKS], total = 0, first = 0;
    struct err e = ERR_INIT;

    for (int r = 0; r < world_size(); r++)
        total += counts[r] = pattern[r % 4];
    struct fixture f = make(7, total * WIDTH, DTYPE_F32, 5 * WIDTH * sizeof(float));
    for (int r = 0; r < f.comm->rank; r++)
        first += counts[r];
    f.stage = malloc(tree_reduce_scatter_stage_bytes(f.t, counts, WIDTH) + 1);
    assert_int_equal(
        tree_reduce_scatter(f.t, (void *const *)f.parts, (float *)f.out, counts, WIDTH, f.stage, &e), 0);
    for (int64_t i = 0; i < counts[f.comm->rank] * WIDTH; i++)
        assert_true(get(f.out, i, DTYPE_F32) == expected(7, first * WIDTH + i, DTYPE_F32));
    done(&f);
}

/* The test above would not notice an order of its own if no addition rounded. */
static void test_order_shows(void **state)
{
    (void)state;
    int differ = 0;

    for (int64_t i = 0; i < 100; i++) {
        float sum = 0;
        for (int32_t k = 0; k < 16; k++)
            sum += (float)leaf(k, i);
        differ += sum != (float)expected(16, i, DTYPE_F32);
    }
    assert_true(differ > 10);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_all_reduce),
    cmocka_unit_test(test_reduce_scatter),
    cmocka_unit_test(test_order_shows),
};

MPI_TEST_MAIN(tests)
