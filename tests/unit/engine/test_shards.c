/* test_shards - the tree over micro-shards: one and the same for every cut into ranks. The proof is symbolic:
 * values are texts, and a sum writes down how it was bracketed. */
#include "tests/unit/cm.h"
#include "worker/engine/shards.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/err.h"

enum { MAX_SLOTS = SHARDS_MAX_ROOTS + 1 };

/* The text in slot n-2 becomes "(a b)". */
static void merge(char **slots, int n)
{
    char *sum = xasprintf("(%s %s)", slots[n - 2], slots[n - 1]);

    free(slots[n - 2]);
    free(slots[n - 1]);
    slots[n - 2] = sum;
}

static void push(struct tree_stack *t, char **slots, struct tree_node v, char *text)
{
    int n = t->n;

    slots[n++] = text;
    for (int merges = tree_push(t, v); merges > 0; merges--)
        merge(slots, n--);
    assert_int_equal(n, t->n);
}

/* Every rank sums its shards; the roots of all ranks are summed after that. */
static char *bracketing(int32_t n_shards, int size)
{
    struct tree_stack all = tree_stack_make(n_shards);
    char *total[MAX_SLOTS];

    for (int r = 0; r < size; r++) {
        struct tree_stack own = tree_stack_make(n_shards);
        struct tree_node roots[SHARDS_MAX_ROOTS];
        char *slots[MAX_SLOTS];
        int32_t first, end;
        int most = 0;

        shards_of_rank(n_shards, r, size, &first, &end);
        for (int32_t k = first; k < end; k++) {
            most = own.n + 1 > most ? own.n + 1 : most;
            push(&own, slots, tree_leaf(k), xasprintf("%d", k));
        }
        assert_int_equal(most, shards_slots(n_shards, first, end));
        assert_int_equal(own.n, shards_roots(n_shards, first, end, roots));
        for (int i = 0; i < own.n; i++)
            push(&all, total, roots[i], slots[i]);
    }
    assert_int_equal(all.n, 1);
    return total[0];
}

static void test_one_tree_for_every_cut(void **state)
{
    (void)state;
    for (int32_t n_shards = 1; n_shards <= 33; n_shards++) {
        char *alone = bracketing(n_shards, 1);
        for (int size = 2; size <= n_shards; size++) {
            char *many = bracketing(n_shards, size);
            assert_string_equal(alone, many);
            free(many);
        }
        free(alone);
    }
}

static void test_the_tree_is_balanced(void **state)
{
    (void)state;
    char *eight = bracketing(8, 3), *five = bracketing(5, 2), *one = bracketing(1, 1);

    assert_string_equal(eight, "(((0 1) (2 3)) ((4 5) (6 7)))");
    assert_string_equal(five, "(((0 1) (2 3)) 4)");
    assert_string_equal(one, "0");
    free(eight);
    free(five);
    free(one);
}

static void test_ranks_tile_the_shards(void **state)
{
    (void)state;
    for (int size = 1; size <= 20; size++) {
        int32_t at = 0;
        for (int r = 0; r < size; r++) {
            int32_t first, end;
            shards_of_rank(16, r, size, &first, &end);
            assert_int_equal(first, at);
            assert_true(end - first == 16 / size || end - first == 16 / size + 1);
            at = end;
        }
        assert_int_equal(at, 16);
    }
}

/* A power of two of ranks that divides the shards leaves one root each: nothing extra crosses the network. */
static void test_whole_subtrees_have_one_root(void **state)
{
    (void)state;
    struct tree_node roots[SHARDS_MAX_ROOTS];

    for (int size = 1; size <= 16; size *= 2)
        for (int r = 0; r < size; r++) {
            int32_t first, end;
            shards_of_rank(16, r, size, &first, &end);
            assert_int_equal(shards_roots(16, first, end, roots), 1);
        }
    assert_int_equal(shards_slots(16, 0, 16), 5); /* log2 16 + 1 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_tree_for_every_cut),
        cmocka_unit_test(test_the_tree_is_balanced),
        cmocka_unit_test(test_ranks_tile_the_shards),
        cmocka_unit_test(test_whole_subtrees_have_one_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
