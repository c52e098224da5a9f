/* test_optim_golden - the trainer's optimiser on the CPU backend against torch.optim in fp64, and LARS
 * against its formula (tests/golden/make_optim.py): weights, all that is kept of them, and their moving
 * average, after six steps of a changing rate with a module of its own rate and decay. Within 1e-5 of each
 * tensor's norm.
 */
#include "tests/ops/golden.h"
#include "tests/ops/op_run.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/train/optim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const double TOLERANCE = 1e-5;

static const double rates[] = {0.02, 0.04, 0.04, 0.03, 0.01, 0.002};
enum { STEPS = sizeof rates / sizeof *rates };

/* A row a case of the file. */
static const struct optim_case {
    const char *name;
    double max_grad_norm;
    enum jobspec_optim kind;
    double momentum;
    bool nesterov;
    double beta1, beta2, eps, trust_coefficient;
} cases[] = {
    {"sgd", 0, OPTIM_SGD, 0.9, true, 0, 0, 0, 0},
    {"adam", 0, OPTIM_ADAM, 0, false, 0.8, 0.95, 1e-6, 0},
    {"adamw", 0, OPTIM_ADAMW, 0, false, 0.8, 0.95, 1e-6, 0},
    {"adamw_clip", 1.5, OPTIM_ADAMW, 0, false, 0.9, 0.999, 1e-8, 0},
    {"lars", 0, OPTIM_LARS, 0.9, false, 0, 0, 1e-8, 0.02},
    {"lars_clip", 1.5, OPTIM_LARS, 0.5, true, 0, 0, 1e-3, 0.5},
};

struct fixture {
    struct backend *be;
    struct golden g;
};

static const struct golden_tensor *find(const struct golden *g, const char *name, const char *key)
{
    const struct golden_tensor *t = golden_find(g, name, key);

    CHECK(t, "%s.%s is not in the file", name, key);
    return t;
}

/* The parameters of the file, at their start. */
static struct params *make_params(const struct fixture *fx)
{
    static const char prefix[] = "start.";
    struct params *ps = params_create(fx->be);
    struct err e = ERR_INIT;

    for (int i = 0; i < fx->g.n; i++) {
        const struct golden_tensor *t = &fx->g.v[i];
        if (strncmp(t->name, prefix, strlen(prefix)) != 0)
            continue;
        struct param *p = params_declare(ps, t->name + strlen(prefix), PARAM_WEIGHT, t->shape,
                                         (struct init){INIT_CONST, 0}, &e);
        CHECK(p, "%s", e.msg);
        bool module = strncmp(p->name, "batchformer.", 12) == 0;
        p->lr_scale = module ? 0.5 : 1;
        p->weight_decay = module ? 0 : -1;
    }
    CHECK(ps->n == 6 && params_finalize(ps, 1, &e) == 0, "%d parameters; %s", ps->n, e.msg);
    for (int i = 0; i < ps->n; i++)
        assert_int_equal(params_set(ps, ps->v[i], find(&fx->g, "start", ps->v[i]->name)->data, &e), 0);
    return ps;
}

static void step(const struct fixture *fx, struct optim *o, const struct optim_case *k, int n)
{
    struct step_scalars s = {.lr = rates[n - 1], .update = n, .max_grad_norm = k->max_grad_norm};
    const struct params *ps = o->params;
    struct err e = ERR_INIT;
    char name[16];

    snprintf(name, sizeof name, "grad%d", n);
    for (int i = 0; i < ps->n; i++) {
        const struct golden_tensor *t = find(&fx->g, name, ps->v[i]->name);
        memcpy(ps->v[i]->grad, t->data, (size_t)shape_count(t->shape) * sizeof(float));
    }
    CHECK(optim_measure(o, NULL, &s, &e) == 0 && optim_step(o, &s, &e) == 0, "%s", e.msg);
}

static void compare(const struct fixture *fx, const char *name, const struct param *p, const float *got)
{
    const struct golden_tensor *want = find(&fx->g, name, p->name);
    double d = op_distance(got, want->data, DTYPE_F32, shape_count(p->shape));

    CHECK(d < TOLERANCE, "%s.%s is off by %.2g of its norm", name, p->name, d);
}

static void check_case(const struct fixture *fx, const struct optim_case *k)
{
    const struct jobspec spec = {.optim = {.kind = k->kind,
                                           .weight_decay = 0.05,
                                           .momentum = k->momentum,
                                           .nesterov = k->nesterov,
                                           .beta1 = k->beta1,
                                           .beta2 = k->beta2,
                                           .eps = k->eps,
                                           .trust_coefficient = k->trust_coefficient,
                                           .ema = 0.75}};
    struct params *ps = make_params(fx);
    struct err e = ERR_INIT;
    struct optim *o = optim_create(&spec, ps, &e);

    CHECK(o, "%s", e.msg);
    assert_int_equal(optim_begin(o, &e), 0);
    for (int n = 1; n <= STEPS; n++)
        step(fx, o, k, n);
    for (int i = 0; i < ps->n; i++) {
        compare(fx, k->name, ps->v[i], ps->v[i]->value);
        for (int s = 0; s < o->states.n; s++) {
            char *name = xasprintf("%s.%s", k->name, o->states.v[s].name);
            compare(fx, name, ps->v[i], o->states.v[s].values + ps->v[i]->offset);
            free(name);
        }
    }
    assert_int_equal(o->states.n, k->kind == OPTIM_ADAM || k->kind == OPTIM_ADAMW ? 3 : 2);
    optim_destroy(o);
    params_destroy(ps);
}

static void test_optimisers(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_case(*state, &cases[i]);
}

static int setup(void **state)
{
    struct fixture *fx = xcalloc(1, sizeof *fx);
    struct err e = ERR_INIT;

    *state = fx;
    fx->be = cpu_backend_create(&(struct cpu_config){.n_threads = 1}, &e);
    if (fx->be && golden_read(&fx->g, TEST_DATA_DIR "/optim.bin", &e) == 0)
        return 0;
    fprintf(stderr, "%s\n", e.msg);
    return -1;
}

static int teardown(void **state)
{
    struct fixture *fx = *state;

    golden_free(&fx->g);
    fx->be->ops->destroy(fx->be);
    free(fx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimisers),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
