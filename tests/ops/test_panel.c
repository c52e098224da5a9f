/* test_panel - the packed product: every edge of its tiles against fp64, and bits that depend on a row and a
 * column only.
 */
#include "tests/ops/op_run.h"
#include "worker/backend/cpu/cpu_panel.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { GUARD = 64 };

struct operands {
    int64_t m, n, k;
    bool a_turned, b_turned; /* stored transposed */
    float *a, *b, *bias, *a_packed, *b_packed;
};

static float *floats(size_t n)
{
    float *p = aligned_alloc(TENSOR_ALIGN_BYTES, align_up((n + GUARD) * sizeof(*p)));

    CHECK(p, "out of memory");
    for (size_t i = 0; i < n + GUARD; i++)
        p[i] = NAN;
    return p;
}

static float *random_floats(size_t n, uint32_t stream)
{
    float *p = floats(n);

    for (size_t i = 0; i < n; i++)
        p[i] = (float)op_uniform(1, stream, (int64_t)i);
    return p;
}

static struct operands make(int64_t m, int64_t n, int64_t k, bool a_turned, bool b_turned)
{
    struct operands o = {m, n, k, a_turned, b_turned, NULL, NULL, NULL, NULL, NULL};

    o.a = random_floats((size_t)(m * k), 1);
    o.b = random_floats((size_t)(k * n), 2);
    o.bias = random_floats((size_t)n, 3);
    o.a_packed = floats(panel_lhs_floats(m, k));
    o.b_packed = floats(panel_rhs_floats(k, n));
    panel_pack_lhs(o.a, a_turned ? 1 : k, a_turned ? m : 1, m, k, 0.5f, o.a_packed);
    panel_pack_rhs(o.b, b_turned ? 1 : n, b_turned ? k : 1, k, n, 4.0f, o.b_packed);
    return o;
}

static void release(struct operands *o)
{
    free(o->a);
    free(o->b);
    free(o->bias);
    free(o->a_packed);
    free(o->b_packed);
}

static double exact(const struct operands *o, int64_t i, int64_t j)
{
    double sum = 0;

    for (int64_t p = 0; p < o->k; p++)
        sum += (double)o->a[o->a_turned ? p * o->m + i : i * o->k + p] *
               (double)o->b[o->b_turned ? j * o->k + p : p * o->n + j];
    return 2 * sum;
}

/* Every element of c within the borders, and nothing beyond them. */
static void check_product(const struct operands *o, const float *c, int64_t ldc, double was, bool bias)
{
    for (int64_t i = 0; i < o->m; i++)
        for (int64_t j = 0; j < ldc; j++) {
            if (j >= o->n) {
                CHECK(isnan(c[i * ldc + j]), "%lld×%lld×%lld: written beyond column %lld", (long long)o->m,
                      (long long)o->n, (long long)o->k, (long long)j);
                continue;
            }
            double want = exact(o, i, j) + was + (bias ? (double)o->bias[j] : 0);
            CHECK(fabs((double)c[i * ldc + j] - want) < 1e-4, "%lld×%lld×%lld at %lld, %lld: %g, not %g",
                  (long long)o->m, (long long)o->n, (long long)o->k, (long long)i, (long long)j,
                  (double)c[i * ldc + j], want);
        }
    for (int64_t g = 0; g < GUARD; g++)
        CHECK(isnan(c[o->m * ldc + g]), "written behind the last row");
}

static void check_shape(int64_t m, int64_t n, int64_t k, bool a_turned, bool b_turned)
{
    struct operands o = make(m, n, k, a_turned, b_turned);
    const struct panel_lhs lhs = panel_lhs_packed(o.a_packed, k);
    const int64_t ldc = n + 3;
    float *c = floats((size_t)(m * ldc));

    panel_product(m, n, k, &lhs, o.b_packed, c, ldc, NULL, false);
    check_product(&o, c, ldc, 0, false);
    panel_product(m, n, k, &lhs, o.b_packed, c, ldc, o.bias, false);
    check_product(&o, c, ldc, 0, true);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            c[i * ldc + j] = 3;
    panel_product(m, n, k, &lhs, o.b_packed, c, ldc, NULL, true);
    check_product(&o, c, ldc, 3, false);
    free(c);
    release(&o);
}

static void test_shapes(void **state)
{
    const int64_t rows[] = {1, 7, 8, 9, 17, 40}, cols[] = {1, 15, 16, 17, 31, 32, 33, 49, 64, 80};
    const int64_t depths[] = {0, 1, 5, 16, 31, 256, 257, 530};

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        for (size_t j = 0; j < sizeof(cols) / sizeof(*cols); j++)
            for (size_t p = 0; p < sizeof(depths) / sizeof(*depths); p++)
                for (int turned = 0; turned < 4; turned++)
                    check_shape(rows[i], cols[j], depths[p], turned & 1, turned & 2);
}

/* The left operand read where it lies gives the bits of the packed one. */
static void test_plain_lhs(void **state)
{
    (void)state;
    for (int turned = 0; turned < 2; turned++) {
        struct operands o = make(40, 49, 300, turned, false);
        const struct panel_lhs packed = panel_lhs_packed(o.a_packed, o.k);
        float *c = floats(40 * 49), *d = floats(40 * 49);

        for (int64_t i = 0; i < o.m * o.k; i++)
            o.a[i] *= 0.5f;
        const struct panel_lhs plain = turned ? panel_lhs_plain(o.a, 1, o.m) : panel_lhs_plain(o.a, o.k, 1);
        panel_product(o.m, o.n, o.k, &packed, o.b_packed, c, o.n, NULL, false);
        panel_product(o.m, o.n, o.k, &plain, o.b_packed, d, o.n, NULL, false);
        assert_memory_equal(c, d, 40 * 49 * sizeof(*c));
        free(c);
        free(d);
        release(&o);
    }
}

/* An element has the same bits in every product that has its row and its column. */
static void test_bits_of_an_element(void **state)
{
    struct operands o = make(41, 77, 600, false, true);
    const struct panel_lhs lhs = panel_lhs_packed(o.a_packed, o.k);
    float *whole = floats(41 * 77), *c = floats(41 * 77), *pa = floats(panel_lhs_floats(41, 600)),
          *pb = floats(panel_rhs_floats(600, 77));

    (void)state;
    panel_product(o.m, o.n, o.k, &lhs, o.b_packed, whole, 77, NULL, false);
    for (int64_t first = 0; first < 41; first += 5)
        for (int64_t col = 0; col < 77; col += 11) {
            const int64_t m = 41 - first, n = 77 - col;
            const struct panel_lhs part = panel_lhs_packed(pa, o.k);

            panel_pack_lhs(o.a + first * o.k, o.k, 1, m, o.k, 0.5f, pa);
            panel_pack_rhs(o.b + col * o.k, 1, o.k, o.k, n, 4.0f, pb);
            panel_product(m, n, o.k, &part, pb, c, n, NULL, false);
            for (int64_t i = 0; i < m; i++)
                assert_memory_equal(c + i * n, whole + (first + i) * 77 + col, (size_t)n * sizeof(*c));
        }
    free(whole);
    free(c);
    free(pa);
    free(pb);
    release(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_plain_lhs),
        cmocka_unit_test(test_bits_of_an_element),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
