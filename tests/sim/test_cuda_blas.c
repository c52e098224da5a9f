/* test_cuda_blas - matrix products of cuda_blas.h against plain loops in fp64. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include "tests/sim/device.h"
#include "worker/backend/cuda/cuda_blas.h"

struct blas {
    cudaStream_t stream;
    struct cuda_blas *b;
};

static struct blas blas_new(bool allow_tf32)
{
    struct err e = ERR_INIT;
    struct blas t;

    CUDA_OK(cudaStreamCreateWithFlags(&t.stream, cudaStreamNonBlocking));
    t.b = cuda_blas_create(t.stream, allow_tf32, &e);
    if (!t.b)
        fail_msg("%s", e.msg);
    return t;
}

static void blas_done(struct blas *t)
{
    cuda_blas_destroy(t->b);
    CUDA_OK(cudaStreamDestroy(t->stream));
}

/* Elements of a matrix as stored. */
static size_t span(int64_t rows, int64_t ld, int64_t batch, int64_t stride)
{
    return (size_t)(rows * ld + (batch > 1 ? (batch - 1) * stride : 0));
}

static double at(const float *v, char op, int64_t i, int64_t j, int64_t ld)
{
    return op == 'T' ? v[j * ld + i] : v[i * ld + j];
}

/* c and bias as the product leaves them; c holds what it holds before. */
static void reference(const struct cuda_gemm *g, const float *a, const float *b, double *c, double *bias)
{
    const int64_t batch = g->batch > 1 ? g->batch : 1;

    for (int64_t z = 0; z < batch; z++)
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j = 0; j < g->n; j++) {
                double *out = c + z * g->stride_c + i * g->ldc + j, sum = 0;

                for (int64_t k = 0; k < g->k; k++)
                    sum += at(a + z * g->stride_a, g->ta, i, k, g->lda) *
                           at(b + z * g->stride_b, g->tb, k, j, g->ldb);
                *out = (double)g->alpha * sum + (g->beta != 0 ? (double)g->beta * *out : 0);
                if (g->epilogue == CUDA_EPILOGUE_BIAS || g->epilogue == CUDA_EPILOGUE_BIAS_RELU)
                    *out += bias[j];
                if (g->epilogue == CUDA_EPILOGUE_BIAS_RELU && *out < 0)
                    *out = 0;
            }
    for (int64_t i = 0; g->epilogue == CUDA_EPILOGUE_BIAS_GRAD && i < g->m; i++) {
        bias[i] = 0;
        for (int64_t k = 0; k < g->k; k++)
            bias[i] += at(a, g->ta, i, k, g->lda);
    }
}

static void check_bias(const struct cuda_gemm *g, const void *device, const double *want, int64_t n)
{
    float *got = malloc((size_t)n * sizeof *got + 1);

    device_download(got, device, (size_t)n, g->c_type);
    numbers_check("bias", got, want, (size_t)n, tolerance_of(g->c_type));
    free(got);
}

/* g without pointers: makes operands, runs, compares. Between rows and matrices nothing may be written. */
static void check_gemm(struct blas *t, struct cuda_gemm g)
{
    const size_t na = span(g.ta == 'T' ? g.k : g.m, g.lda, g.batch, g.stride_a);
    const size_t nb = span(g.tb == 'T' ? g.n : g.k, g.ldb, g.batch, g.stride_b);
    const size_t nc = span(g.m, g.ldc, g.batch, g.stride_c);
    const int64_t n_bias = g.epilogue == CUDA_EPILOGUE_BIAS_GRAD ? g.m : g.n;
    float *a = numbers_new(na, 1), *b = numbers_new(nb, 2), *c = numbers_new(nc, 3);
    float *bias = numbers_new((size_t)n_bias, 4);
    double *want = malloc(nc * sizeof *want + 1), *want_bias = malloc((size_t)n_bias * sizeof *want_bias + 1);
    void *d_a = device_upload(a, na, g.ab_type), *d_b = device_upload(b, nb, g.ab_type);
    void *d_c = device_upload(c, nc, g.c_type), *d_bias = device_upload(bias, (size_t)n_bias, g.c_type);
    struct err e = ERR_INIT;

    for (size_t i = 0; i < nc; i++)
        want[i] = c[i];
    for (int64_t i = 0; i < n_bias; i++)
        want_bias[i] = bias[i];
    reference(&g, a, b, want, want_bias);
    g.a = d_a;
    g.b = d_b;
    g.c = d_c;
    g.bias = g.epilogue == CUDA_EPILOGUE_NONE ? NULL : d_bias;
    assert_true(cuda_gemm_possible(t->b, &g));
    if (cuda_gemm_run(t->b, &g, &e) < 0)
        fail_msg("%s", e.msg);
    device_download(c, d_c, nc, g.c_type);
    numbers_check("c", c, want, nc, tolerance_of(g.c_type));
    check_bias(&g, d_bias, want_bias, n_bias);
    void *device[] = {d_a, d_b, d_c, d_bias}, *host[] = {a, b, c, bias, want, want_bias};
    for (int i = 0; i < 4; i++)
        CUDA_OK(cudaFree(device[i]));
    for (int i = 0; i < 6; i++)
        free(host[i]);
}

static struct cuda_gemm gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, enum dtype ab, enum dtype c)
{
    return (struct cuda_gemm){.ta = ta,
                              .tb = tb,
                              .m = m,
                              .n = n,
                              .k = k,
                              .alpha = 1,
                              .ab_type = ab,
                              .c_type = c,
                              .lda = ta == 'T' ? m : k,
                              .ldb = tb == 'T' ? k : n,
                              .ldc = n};
}

static const struct {
    enum dtype ab, c;
} types[] = {{DTYPE_F32, DTYPE_F32}, {DTYPE_BF16, DTYPE_F32}, {DTYPE_BF16, DTYPE_BF16}};

enum { N_TYPES = 3 };

static void test_products(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1}, {4, 8, 16}, {5, 7, 3}, {64, 32, 48}, {33, 1, 65}};
    struct blas t = blas_new(false);

    for (int i = 0; i < 5; i++)
        for (int y = 0; y < N_TYPES; y++)
            for (int ops = 0; ops < 4; ops++) {
                struct cuda_gemm g = gemm(ops & 1 ? 'T' : 'N', ops & 2 ? 'T' : 'N', sizes[i][0], sizes[i][1],
                                          sizes[i][2], types[y].ab, types[y].c);

                check_gemm(&t, g);
                g.alpha = 0.5f;
                g.beta = 1;
                g.lda += 3;
                g.ldb += 1;
                g.ldc += 2;
                check_gemm(&t, g);
            }
    blas_done(&t);
}

static void test_tf32(void **state)
{
    (void)state;
    struct blas t = blas_new(true);

    check_gemm(&t, gemm('N', 'T', 16, 24, 8, DTYPE_F32, DTYPE_F32)); /* the numbers have few bits */
    blas_done(&t);
}

/* The shapes of a linear layer (M rows, I inputs, O outputs): y = x·wᵀ + b, dw = dyᵀ·x with db. */
static void test_epilogues(void **state)
{
    (void)state;
    enum { M = 12, I = 20, O = 16 };
    struct blas t = blas_new(false);

    for (int y = 0; y < N_TYPES; y++) {
        struct cuda_gemm g = gemm('N', 'T', M, O, I, types[y].ab, types[y].c);

        g.epilogue = CUDA_EPILOGUE_BIAS;
        check_gemm(&t, g);
        g.epilogue = CUDA_EPILOGUE_BIAS_RELU;
        check_gemm(&t, g);
        g = gemm('T', 'N', O, I, M, types[y].ab, types[y].c);
        g.epilogue = CUDA_EPILOGUE_BIAS_GRAD;
        check_gemm(&t, g);
    }
    blas_done(&t);
}

/* Heads of attention: n queries, N keys, width C = h·d; matrices of a head are columns of (n,C) and (N,2C).
 */
static void test_heads(void **state)
{
    (void)state;
    enum { n = 6, N = 10, h = 4, d = 8, C = h * d };
    struct blas t = blas_new(false);

    for (int y = 0; y < 2; y++) {
        struct cuda_gemm s = gemm('N', 'T', n, N, d, types[y].ab, DTYPE_F32), o, dk;

        s.alpha = 0.25f; /* S = Q·Kᵀ/√d, (h,n,N) */
        s.batch = h;
        s.lda = C;
        s.ldb = 2 * C;
        s.stride_a = s.stride_b = d;
        s.stride_c = n * N;
        check_gemm(&t, s);
        o = gemm('N', 'N', n, d, N, types[y].ab, types[y].ab); /* O = P·V */
        o.batch = h;
        o.ldb = 2 * C;
        o.ldc = C;
        o.stride_a = n * N;
        o.stride_b = o.stride_c = d;
        check_gemm(&t, o);
        dk = gemm('T', 'N', N, d, n, types[y].ab, DTYPE_F32); /* dK += dSᵀ·Q */
        dk.beta = 1;
        dk.batch = h;
        dk.ldb = C;
        dk.ldc = 2 * C;
        dk.stride_a = n * N;
        dk.stride_b = dk.stride_c = d;
        check_gemm(&t, dk);
    }
    blas_done(&t);
}

static void test_empty(void **state)
{
    (void)state;
    struct blas t = blas_new(false);
    struct cuda_gemm g = gemm('N', 'N', 0, 4, 3, DTYPE_F32, DTYPE_F32);
    struct err e = ERR_INIT;

    assert_int_equal(cuda_gemm_run(t.b, &g, &e), 0); /* touches nothing */
    g = gemm('T', 'N', 4, 3, 0, DTYPE_F32, DTYPE_F32);
    g.ldc = 5;
    check_gemm(&t, g); /* zeros */
    g.beta = 1;
    check_gemm(&t, g); /* as it was */
    g.beta = 0;
    g.epilogue = CUDA_EPILOGUE_BIAS_GRAD;
    check_gemm(&t, g);
    blas_done(&t);
}

static void test_capture_and_text(void **state)
{
    (void)state;
    enum { M = 4, N = 4, K = 8 };
    struct blas t = blas_new(false);
    struct cuda_gemm g = gemm('N', 'N', M, N, K, DTYPE_F32, DTYPE_F32);
    float *a = numbers_new(M * K, 1), *b = numbers_new(K * N, 2), got[M * N] = {0};
    double want[M * N];
    char text[1000], small[10];
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    void *d_a, *d_b, *d_c;
    struct err e = ERR_INIT;

    g.a = d_a = device_upload(a, M * K, DTYPE_F32);
    g.b = d_b = device_upload(b, K * N, DTYPE_F32);
    g.c = d_c = device_upload(got, M * N, DTYPE_F32);
    assert_int_equal(cuda_gemm_run(t.b, &g, &e), 0);
    CUDA_OK(cudaStreamBeginCapture(t.stream, cudaStreamCaptureModeThreadLocal));
    assert_int_equal(cuda_gemm_run(t.b, &g, &e), 0);
    CUDA_OK(cudaStreamEndCapture(t.stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < M * K; i++)
        a[i] = -a[i] / 2;
    CUDA_OK(cudaDeviceSynchronize());
    device_write(d_a, a, M * K * sizeof *a);
    CUDA_OK(cudaGraphLaunch(exec, t.stream));
    reference(&g, a, b, want, NULL);
    device_download(got, d_c, M * N, DTYPE_F32);
    numbers_check("c", got, want, M * N, tolerance_of(DTYPE_F32));
    cuda_blas_text(t.b, text, sizeof text);
    assert_non_null(strstr(text, "NN 4×4×8 ×1 f32→f32"));
    cuda_blas_text(t.b, small, sizeof small); /* does not fit */
    assert_int_equal(strlen(small), sizeof small - 1);
    CUDA_OK(cudaGraphExecDestroy(exec));
    CUDA_OK(cudaGraphDestroy(graph));
    CUDA_OK(cudaFree(d_a));
    CUDA_OK(cudaFree(d_b));
    CUDA_OK(cudaFree(d_c));
    free(a);
    free(b);
    blas_done(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),  cmocka_unit_test(test_tf32),
        cmocka_unit_test(test_epilogues), cmocka_unit_test(test_heads),
        cmocka_unit_test(test_empty),     cmocka_unit_test(test_capture_and_text),
    };

    return device_missing() ? EXIT_SKIPPED : cmocka_run_group_tests(tests, NULL, NULL);
}
