/* cpu - the table of kernels, and memory, which is the host's own.
 *
 * A new operator is a row here and its functions in the file of its family: cpu_conv (pixels; cpu_wino
 * convolves), cpu_norm, cpu_layernorm, cpu_gemm, cpu_attention, cpu_elem, cpu_loss; cpu_flat has the
 * optimiser's sweeps and dn is the only file that knows oneDNN.
 */
#include "worker/backend/cpu/cpu.h"
#include <stdlib.h>
#include <string.h>
#include "worker/backend/cpu/cpu_internal.h"

static const struct kernel kernels[OP_COUNT] = {
    [OP_CONV2D] = {cpu_conv2d_prepare, cpu_conv2d_release, cpu_conv2d_forward, cpu_conv2d_backward},
    [OP_BN_STATS] = {cpu_bn_stats_prepare, NULL, cpu_bn_stats_forward, cpu_bn_stats_backward},
    [OP_BN_APPLY] = {cpu_bn_apply_prepare, NULL, cpu_bn_apply_forward, cpu_bn_apply_backward},
    [OP_BN_INFER] = {cpu_bn_infer_prepare, NULL, cpu_bn_infer_forward, NULL},
    [OP_LAYERNORM] = {cpu_layernorm_prepare, NULL, cpu_layernorm_forward, cpu_layernorm_backward},
    [OP_LINEAR] = {NULL, NULL, cpu_linear_forward, cpu_linear_backward},
    [OP_ATTENTION] = {cpu_attention_prepare, NULL, cpu_attention_forward, cpu_attention_backward},
    [OP_ACT] = {NULL, NULL, cpu_act_forward, cpu_act_backward},
    [OP_ADD] = {NULL, NULL, cpu_add_forward, cpu_add_backward},
    [OP_DROPOUT] = {NULL, NULL, cpu_dropout_forward, cpu_dropout_backward},
    [OP_MAXPOOL] = {cpu_maxpool_prepare, NULL, cpu_maxpool_forward, cpu_maxpool_backward},
    [OP_MEAN_SPATIAL] = {NULL, NULL, cpu_mean_spatial_forward, cpu_mean_spatial_backward},
    [OP_CONCAT_ROWS] = {NULL, NULL, cpu_concat_rows_forward, cpu_concat_rows_backward},
    [OP_SLICE_ROWS] = {NULL, NULL, cpu_slice_rows_forward, cpu_slice_rows_backward},
    [OP_SHORTCUT_PAD] = {NULL, NULL, cpu_shortcut_pad_forward, cpu_shortcut_pad_backward},
    [OP_SOFTMAX_XENT] = {cpu_softmax_xent_prepare, NULL, cpu_softmax_xent_forward, cpu_softmax_xent_backward},
};

static void *mem_alloc(struct backend *be, size_t bytes, struct err *e)
{
    size_t n = align_up(bytes ? bytes : 1);
    void *p;

    (void)be;
    p = n >= bytes ? aligned_alloc(TENSOR_ALIGN_BYTES, n) : NULL;
    if (!p)
        err_set(e, "cpu: out of memory: %zu bytes", bytes);
    return p;
}

static void mem_free(struct backend *be, void *p)
{
    (void)be;
    free(p);
}

static int copy(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e)
{
    (void)be;
    (void)e;
    if (bytes)
        memcpy(dst, src, bytes);
    return 0;
}

static int zero(struct backend *be, void *dst, size_t bytes, struct err *e)
{
    (void)be;
    (void)e;
    if (bytes)
        memset(dst, 0, bytes);
    return 0;
}

static int accumulate(struct backend *be, void *dst, const void *src, size_t n, enum dtype t, struct err *e)
{
    (void)be;
    (void)e;
    if (t == DTYPE_F32) {
        cpu_copy_or_add(dst, src, (int64_t)n, true);
    } else if (t == DTYPE_F64) {
        for (size_t i = 0; i < n; i++)
            ((double *)dst)[i] += ((const double *)src)[i];
    } else {
        for (size_t i = 0; i < n; i++)
            ((int32_t *)dst)[i] += ((const int32_t *)src)[i];
    }
    return 0;
}

/* All bits one: NaN in both float formats, -1 in integers. */
static void poison(struct backend *be, void *dst, size_t bytes)
{
    (void)be;
    if (bytes)
        memset(dst, 0xFF, bytes);
}

static void destroy(struct backend *be)
{
    struct cpu_backend *c = cpu_of(be);

    if (!c)
        return;
    dn_destroy(c->dn);
    free(c);
}

static const struct backend_ops ops = {
    .name = "cpu",
    .kernels = kernels,
    .flat = &cpu_flat_ops,
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .upload = copy, /* host and device are one */
    .download = copy,
    .zero = zero,
    .copy = copy,
    .accumulate = accumulate,
    .poison = poison,
    .destroy = destroy,
};

static int set_threads(int n_threads, struct err *e)
{
    if (n_threads < 1)
        return err_set(e, "cpu: %d threads; accepted: 1 or more", n_threads);
#ifdef _OPENMP
    omp_set_dynamic(0);
    omp_set_num_threads(n_threads);
#else
    if (n_threads > 1)
        return err_set(e, "cpu: %d threads; this build has no OpenMP and accepts 1 only", n_threads);
#endif
    return 0;
}

struct backend *cpu_backend_create(const struct cpu_config *cfg, struct err *e)
{
    struct cpu_backend *c;

    if (set_threads(cfg->n_threads, e) < 0)
        return NULL;
    c = xcalloc(1, sizeof(*c));
    c->base.ops = &ops;
    c->n_threads = cfg->n_threads;
    c->winograd = cfg->winograd;
    c->dn = dn_create(e);
    if (!c->dn) {
        free(c);
        return NULL;
    }
    return &c->base;
}
