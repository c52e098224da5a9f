/* test_plan - placement: nothing alive at the same time overlaps, everything else may, and the plan is
 * deterministic. */
#include "tests/unit/cm.h"
#include "common/philox.h"
#include "worker/engine/plan.h"
#include "worker/engine/tensor.h"

#include <stdbool.h>
#include <string.h>

static bool clash(const struct plan_item *a, const struct plan_item *b)
{
    bool same_time = a->birth <= b->death && b->birth <= a->death;
    bool same_bytes = a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;

    return same_time && same_bytes;
}

static void check_placed(const struct plan_item *v, size_t n, size_t total)
{
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(v[i].offset % TENSOR_ALIGN_BYTES, 0);
        assert_true(v[i].offset + v[i].bytes <= total);
        for (size_t j = 0; j < i; j++)
            assert_false(clash(&v[i], &v[j]));
    }
}

static void test_chain_reuses(void **state)
{
    (void)state;
    struct plan_item v[] = {{1000, 0, 1, 0}, {1000, 1, 2, 0}, {1000, 2, 3, 0}, {1000, 3, 4, 0}};
    size_t total = plan_place(v, 4);

    check_placed(v, 4, total);
    assert_int_equal(total, 2 * align_up(1000));
    assert_int_equal(total, plan_lower_bound(v, 4));
}

static void test_random(void **state)
{
    (void)state;
    enum { N = 200 };
    struct plan_item v[N], w[N];

    for (uint32_t seed = 0; seed < 20; seed++) {
        for (uint32_t i = 0; i < N; i++) {
            struct philox_block b = philox(philox_make_key(seed, 1), i, 0, 0, 0);
            int birth = (int)philox_below(b.v[0], 300);
            v[i] = (struct plan_item){1 + philox_below(b.v[1], 5000), birth,
                                      birth + (int)philox_below(b.v[2], 60), 0};
        }
        memcpy(w, v, sizeof v);
        size_t total = plan_place(v, N);
        check_placed(v, N, total);
        assert_true(total >= plan_lower_bound(v, N));
        assert_int_equal(plan_place(w, N), total);
        assert_memory_equal(v, w, sizeof v);
    }
}

/* The shape of a training step: values live to their backward, gradients only briefly. */
static void test_forward_backward(void **state)
{
    (void)state;
    enum { N = 50 };
    struct plan_item v[2 * N];

    for (int i = 0; i < N; i++) {
        v[2 * i] = (struct plan_item){4096, i, 2 * N - 1 - i, 0};
        v[2 * i + 1] = (struct plan_item){4096, 2 * N - 2 - i, 2 * N - 1 - i, 0};
    }
    size_t total = plan_place(v, 2 * N);
    check_placed(v, 2 * N, total);
    assert_int_equal(total, plan_lower_bound(v, 2 * N));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chain_reuses),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_forward_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
