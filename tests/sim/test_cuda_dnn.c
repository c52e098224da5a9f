/* test_cuda_dnn - convolutions of cuda_dnn.h and weights of reorder.h against plain loops in fp64. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include "tests/sim/device.h"
#include "worker/backend/cuda/cuda_dnn.h"
#include "worker/backend/cuda/reorder.h"

enum { ALL_PASSES = (1 << N_CONV_PASSES) - 1 };

/* n, h, w, ci, ho, wo, co, groups, kernel, stride, pad */
static const struct conv_shape shapes[] = {
    {2, 5, 6, 3, 5, 6, 4, 1, 3, 1, 1},   {3, 8, 8, 8, 4, 4, 16, 1, 3, 2, 1},
    {2, 7, 7, 4, 7, 7, 8, 1, 1, 1, 0},   {2, 8, 6, 6, 4, 3, 4, 2, 1, 2, 0},
    {1, 9, 9, 8, 5, 5, 8, 4, 3, 2, 1},   {2, 6, 6, 4, 6, 6, 4, 4, 3, 1, 1},
    {1, 11, 12, 3, 6, 6, 5, 1, 7, 2, 3},
};

static size_t count_x(const struct conv_shape *s)
{
    return (size_t)(s->n * s->h * s->w * s->ci);
}
static size_t count_y(const struct conv_shape *s)
{
    return (size_t)(s->n * s->ho * s->wo * s->co);
}
static size_t count_w(const struct conv_shape *s)
{
    return (size_t)(s->co * (s->ci / s->groups) * s->kernel * s->kernel);
}

/* The three passes at once: y from x and w; dx from dy and w; dw from x and dy. w is (Co, Ci/groups, k, k).
 */
static void reference(const struct conv_shape *s, const float *x, const float *w, const float *dy, double *y,
                      double *dx, double *dw)
{
    const int64_t ig = s->ci / s->groups, og = s->co / s->groups, k = s->kernel;

    memset(y, 0, count_y(s) * sizeof *y);
    memset(dx, 0, count_x(s) * sizeof *dx);
    memset(dw, 0, count_w(s) * sizeof *dw);
    for (int64_t p = 0; p < s->n * s->ho * s->wo; p++) {
        const int64_t ox = p % s->wo, oy = p / s->wo % s->ho, n = p / (s->wo * s->ho);

        for (int64_t o = 0; o < s->co; o++)
            for (int64_t i = 0; i < ig; i++)
                for (int64_t t = 0; t < k * k; t++) {
                    const int64_t iy = oy * s->stride - s->pad + t / k, ix = ox * s->stride - s->pad + t % k;
                    const int64_t at_x = ((n * s->h + iy) * s->w + ix) * s->ci + o / og * ig + i;
                    const int64_t at_w = (o * ig + i) * k * k + t, at_y = p * s->co + o;

                    if (iy < 0 || ix < 0 || iy >= s->h || ix >= s->w)
                        continue;
                    y[at_y] += (double)x[at_x] * w[at_w];
                    dx[at_x] += (double)dy[at_y] * w[at_w];
                    dw[at_w] += (double)dy[at_y] * x[at_x];
                }
    }
}

/* A shape with everything on the device. */
struct fixture {
    const struct conv_shape *s;
    enum dtype dtype;
    float *x, *w, *dy, *got;
    double *y, *dx, *dw;
    void *d_x, *d_w, *d_dy, *d_y, *d_dx, *d_dw, *d_krsc, *d_grad;
};

static void setup(struct fixture *f, const struct conv_shape *s, enum dtype t, cudaStream_t stream)
{
    const size_t nx = count_x(s), ny = count_y(s), nw = count_w(s);

    f->s = s;
    f->dtype = t;
    f->x = numbers_new(nx, 1);
    f->w = numbers_new(nw, 2);
    f->dy = numbers_new(ny, 3);
    f->got = malloc((nx + ny + nw) * sizeof *f->got);
    f->y = malloc(ny * sizeof *f->y);
    f->dx = malloc(nx * sizeof *f->dx);
    f->dw = malloc(nw * sizeof *f->dw);
    reference(s, f->x, f->w, f->dy, f->y, f->dx, f->dw);
    f->d_x = device_upload(f->x, nx, t);
    f->d_dy = device_upload(f->dy, ny, t);
    f->d_w = device_upload(f->w, nw, DTYPE_F32);
    f->d_y = device_new(ny * dtype_bytes(t));
    f->d_dx = device_new(nx * dtype_bytes(t));
    f->d_krsc = device_new(nw * dtype_bytes(t));
    f->d_dw = device_new(nw * 4);
    f->d_grad = device_new(nw * 4);
    CUDA_OK(reorder_weights_to_krsc(f->d_w, f->d_krsc, t, s->co, s->ci / s->groups, s->kernel * s->kernel,
                                    stream));
}

static void teardown(struct fixture *f)
{
    void *device[] = {f->d_x, f->d_w, f->d_dy, f->d_y, f->d_dx, f->d_dw, f->d_krsc, f->d_grad};
    void *host[] = {f->x, f->w, f->dy, f->got, f->y, f->dx, f->dw};

    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        CUDA_OK(cudaFree(device[i]));
    for (size_t i = 0; i < sizeof host / sizeof *host; i++)
        free(host[i]);
}

static void run(struct fixture *f, struct cuda_conv *c, void *workspace, cudaStream_t stream)
{
    const struct conv_shape *s = f->s;
    struct err e = ERR_INIT;

    if (cuda_conv_forward(c, f->d_x, f->d_krsc, f->d_y, workspace, &e) < 0 ||
        cuda_conv_backward_data(c, f->d_dy, f->d_krsc, f->d_dx, workspace, &e) < 0 ||
        cuda_conv_backward_weights(c, f->d_x, f->d_dy, f->d_dw, workspace, &e) < 0)
        fail_msg("%s", e.msg);
    for (int add = 0; add < 2; add++) /* defined, then added to: twice the gradient */
        CUDA_OK(reorder_grad_from_krsc(f->d_dw, cuda_conv_grad_dtype(c), f->d_grad, add, s->co,
                                       s->ci / s->groups, s->kernel * s->kernel, stream));
}

static void check(struct fixture *f, enum dtype grad_dtype)
{
    const size_t nx = count_x(f->s), ny = count_y(f->s), nw = count_w(f->s);

    device_download(f->got, f->d_y, ny, f->dtype);
    numbers_check("y", f->got, f->y, ny, tolerance_of(f->dtype));
    device_download(f->got, f->d_dx, nx, f->dtype);
    numbers_check("dx", f->got, f->dx, nx, tolerance_of(f->dtype));
    device_download(f->got, f->d_grad, nw, DTYPE_F32);
    for (size_t i = 0; i < nw; i++)
        f->got[i] /= 2;
    numbers_check("dw", f->got, f->dw, nw, tolerance_of(grad_dtype));
}

static struct cuda_conv *get(struct cuda_dnn *d, const struct conv_shape *s,
                             const struct cuda_conv_options *o, unsigned passes)
{
    struct err e = ERR_INIT;
    struct cuda_conv *c = cuda_conv_get(d, s, o, passes, &e);

    if (!c)
        fail_msg("%s", e.msg);
    return c;
}

static struct cuda_dnn *dnn_new(cudaStream_t *stream)
{
    struct err e = ERR_INIT;
    struct cuda_dnn *d;

    CUDA_OK(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
    d = cuda_dnn_create(*stream, &e);
    if (!d)
        fail_msg("%s", e.msg);
    return d;
}

static void test_passes(void **state)
{
    (void)state;
    static const struct cuda_conv_options variants[] = {
        {.dtype = DTYPE_F32, .workspace_limit = 64 << 20},
        {.dtype = DTYPE_F32, .allow_tf32 = true, .workspace_limit = 64 << 20},
        {.dtype = DTYPE_F32, .deterministic = true, .workspace_limit = 64 << 20},
        {.dtype = DTYPE_BF16, .workspace_limit = 64 << 20},
        {.dtype = DTYPE_BF16, .deterministic = true, .f32_grad = true, .workspace_limit = 64 << 20},
    };
    cudaStream_t stream;
    struct cuda_dnn *d = dnn_new(&stream);

    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            struct cuda_conv *c = get(d, &shapes[i], &variants[v], ALL_PASSES);
            void *workspace = device_new(cuda_conv_workspace_bytes(c));
            struct fixture f;

            setup(&f, &shapes[i], variants[v].dtype, stream);
            run(&f, c, workspace, stream);
            check(&f, cuda_conv_grad_dtype(c));
            assert_non_null(strstr(cuda_conv_text(c), "backward_weights eng"));
            CUDA_OK(cudaFree(workspace));
            teardown(&f);
        }
    cuda_dnn_destroy(d);
    CUDA_OK(cudaStreamDestroy(stream));
}

/* One convolution a shape and options; passes come when they are asked for. */
static void test_cache(void **state)
{
    (void)state;
    const struct cuda_conv_options o = {.dtype = DTYPE_F32, .workspace_limit = 64 << 20};
    struct cuda_conv_options other = o;
    cudaStream_t stream;
    struct cuda_dnn *d = dnn_new(&stream);
    struct cuda_conv *c = get(d, &shapes[0], &o, 1u << CONV_FORWARD);

    assert_non_null(strstr(cuda_conv_text(c), "forward eng"));
    assert_null(strstr(cuda_conv_text(c), "backward"));
    assert_ptr_equal(get(d, &shapes[0], &o, 1u << CONV_BACKWARD_DATA), c);
    assert_non_null(strstr(cuda_conv_text(c), "forward eng"));
    assert_non_null(strstr(cuda_conv_text(c), "backward_data eng"));
    assert_ptr_not_equal(get(d, &shapes[1], &o, 1u << CONV_FORWARD), c);
    other.dtype = DTYPE_BF16;
    assert_ptr_not_equal(get(d, &shapes[0], &other, 1u << CONV_FORWARD), c);
    cuda_dnn_destroy(d);
    CUDA_OK(cudaStreamDestroy(stream));
}

/* More sets of pointers than a plan remembers, and an old one again. */
static void test_pointers(void **state)
{
    (void)state;
    enum { N = 40 };
    const struct cuda_conv_options o = {.dtype = DTYPE_F32, .workspace_limit = 64 << 20};
    const struct conv_shape *s = &shapes[2];
    const size_t ny = count_y(s);
    cudaStream_t stream;
    struct cuda_dnn *d = dnn_new(&stream);
    struct cuda_conv *c = get(d, s, &o, 1u << CONV_FORWARD);
    void *workspace = device_new(cuda_conv_workspace_bytes(c)), *y[N];
    struct err e = ERR_INIT;
    struct fixture f;

    setup(&f, s, DTYPE_F32, stream);
    for (int i = 0; i < N; i++)
        y[i] = device_new(ny * sizeof(float));
    for (int i = 0; i <= N; i++)
        assert_int_equal(cuda_conv_forward(c, f.d_x, f.d_krsc, y[i % N], workspace, &e), 0);
    for (int i = 0; i < N; i++) {
        device_download(f.got, y[i], ny, DTYPE_F32);
        numbers_check("y", f.got, f.y, ny, tolerance_of(DTYPE_F32));
        CUDA_OK(cudaFree(y[i]));
    }
    CUDA_OK(cudaFree(workspace));
    teardown(&f);
    cuda_dnn_destroy(d);
    CUDA_OK(cudaStreamDestroy(stream));
}

/* Run once as it is, then captured, then replayed on other values. */
static void test_capture(void **state)
{
    (void)state;
    const struct cuda_conv_options o = {.dtype = DTYPE_F32, .workspace_limit = 64 << 20};
    const struct conv_shape *s = &shapes[1];
    cudaStream_t stream;
    struct cuda_dnn *d = dnn_new(&stream);
    struct cuda_conv *c = get(d, s, &o, ALL_PASSES);
    void *workspace = device_new(cuda_conv_workspace_bytes(c));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    struct fixture f;

    setup(&f, s, DTYPE_F32, stream);
    run(&f, c, workspace, stream);
    check(&f, DTYPE_F32);
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    run(&f, c, workspace, stream);
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    for (size_t i = 0; i < count_x(s); i++)
        f.x[i] = -f.x[i] / 2;
    reference(s, f.x, f.w, f.dy, f.y, f.dx, f.dw);
    CUDA_OK(cudaDeviceSynchronize());
    device_write(f.d_x, f.x, count_x(s) * sizeof *f.x);
    CUDA_OK(cudaGraphLaunch(exec, stream));
    check(&f, DTYPE_F32);
    CUDA_OK(cudaGraphExecDestroy(exec));
    CUDA_OK(cudaGraphDestroy(graph));
    CUDA_OK(cudaFree(workspace));
    teardown(&f);
    cuda_dnn_destroy(d);
    CUDA_OK(cudaStreamDestroy(stream));
}

/* The same bits each time, where that is asked for. */
static void test_deterministic(void **state)
{
    (void)state;
    const struct cuda_conv_options o = {.dtype = DTYPE_F32,
                                        .deterministic = true,
                                        .workspace_limit = 64 << 20};
    const struct conv_shape s = {16, 9, 9, 8, 9, 9, 8, 1, 3, 1, 1};
    const size_t nx = count_x(&s), ny = count_y(&s), nw = count_w(&s);
    cudaStream_t stream;
    struct cuda_dnn *d = dnn_new(&stream);
    struct cuda_conv *c = get(d, &s, &o, 1u << CONV_BACKWARD_WEIGHTS);
    void *workspace = device_new(cuda_conv_workspace_bytes(c));
    float *v = numbers_new(nx + ny, 5), *first = malloc(nw * sizeof *first),
          *again = malloc(nw * sizeof *again);
    struct err e = ERR_INIT;

    for (size_t i = 0; i < nx + ny; i++)
        v[i] = v[i] * 0.3f + 0.1f; /* sums round */
    void *x = device_upload(v, nx, DTYPE_F32), *dy = device_upload(v + nx, ny, DTYPE_F32);
    void *dw = device_new(nw * sizeof(float));
    assert_int_equal(cuda_conv_backward_weights(c, x, dy, dw, workspace, &e), 0);
    device_download(first, dw, nw, DTYPE_F32);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(cuda_conv_backward_weights(c, x, dy, dw, workspace, &e), 0);
        device_download(again, dw, nw, DTYPE_F32);
        assert_memory_equal(first, again, nw * sizeof *first);
    }
    void *device[] = {x, dy, dw, workspace};
    for (int i = 0; i < 4; i++)
        CUDA_OK(cudaFree(device[i]));
    free(v);
    free(first);
    free(again);
    cuda_dnn_destroy(d);
    CUDA_OK(cudaStreamDestroy(stream));
}

#ifdef BF_SIM
/* The first that is allowed. Of the simulator's engines 0 comes first but is not deterministic, then TF32
 * comes, 2, and then 1; they want 1 MiB, 64 KiB and 4 KiB of workspace. */
static void test_choice(void **state)
{
    (void)state;
    static const struct {
        struct cuda_conv_options o;
        const char *text;
    } cases[] = {
        {{.dtype = DTYPE_F32, .workspace_limit = 64 << 20}, "forward eng0_k"},
        {{.dtype = DTYPE_F32, .deterministic = true, .workspace_limit = 64 << 20}, "forward eng1_k"},
        {{.dtype = DTYPE_F32, .deterministic = true, .allow_tf32 = true, .workspace_limit = 64 << 20},
         "forward eng2_k"},
        {{.dtype = DTYPE_BF16, .deterministic = true, .workspace_limit = 64 << 20}, "forward eng1_k"},
        {{.dtype = DTYPE_BF16, .workspace_limit = 4096}, "forward eng1_k"},
        {{.dtype = DTYPE_F32, .allow_tf32 = true, .workspace_limit = 64 << 10}, "forward eng2_k"},
    };
    cudaStream_t stream;
    struct cuda_dnn *d = dnn_new(&stream);

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cuda_conv *c = get(d, &shapes[0], &cases[i].o, 1u << CONV_FORWARD);

        if (strncmp(cuda_conv_text(c), cases[i].text, strlen(cases[i].text)))
            fail_msg("case %zu: %s", i, cuda_conv_text(c));
    }
    cuda_dnn_destroy(d);
    CUDA_OK(cudaStreamDestroy(stream));
}
#endif

/* What is not possible is an error that tells the shape. */
static void test_refused(void **state)
{
    (void)state;
    const struct cuda_conv_options o = {.dtype = DTYPE_F32, .workspace_limit = 64 << 20};
    const struct cuda_conv_options tight = {.dtype = DTYPE_F32, .deterministic = true};
    struct conv_shape wrong = shapes[0];
    cudaStream_t stream;
    struct cuda_dnn *d = dnn_new(&stream);
    struct err e = ERR_INIT;

    wrong.ho++; /* not what kernel, stride and padding make of h */
    assert_null(cuda_conv_get(d, &wrong, &o, 1u << CONV_FORWARD, &e));
    assert_non_null(
        strstr(e.msg, "convolution of (2, 5, 6, 3) to 4 channels, kernel 3, stride 1, f32 forward"));
    assert_non_null(strstr(e.msg, "cuDNN"));
#ifdef BF_SIM
    assert_null(cuda_conv_get(d, &shapes[0], &tight, 1u << CONV_FORWARD, &e));
    assert_non_null(
        strstr(e.msg, "cuDNN has no engine for it within 0 MiB of workspace, deterministic, without"));
#endif
    (void)tight;
    cuda_dnn_destroy(d);
    CUDA_OK(cudaStreamDestroy(stream));
}

static void test_reorder_sizes(void **state)
{
    (void)state;
    float *none = device_new(1);

    assert_int_equal(reorder_weights_to_krsc(none, none, DTYPE_F32, 0, 3, 9, 0), cudaSuccess);
    assert_int_equal(reorder_weights_to_krsc(none, none, DTYPE_F64, 1, 1, 1, 0), cudaErrorInvalidValue);
    assert_int_equal(reorder_weights_to_krsc(none, none, DTYPE_F32, (int64_t)1 << 40, 1 << 20, 9, 0),
                     cudaErrorInvalidValue);
    assert_int_equal(reorder_grad_from_krsc(none, DTYPE_BF16, none, 0, 3, -1, 9, 0), cudaErrorInvalidValue);
    CUDA_OK(cudaFree(none));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_passes),  cmocka_unit_test(test_cache),         cmocka_unit_test(test_pointers),
        cmocka_unit_test(test_capture), cmocka_unit_test(test_deterministic),
#ifdef BF_SIM
        cmocka_unit_test(test_choice),
#endif
        cmocka_unit_test(test_refused), cmocka_unit_test(test_reorder_sizes),
    };

    return device_missing() ? EXIT_SKIPPED : cmocka_run_group_tests(tests, NULL, NULL);
}
