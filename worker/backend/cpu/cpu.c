/* cpu - the table of kernels, and memory, which is the host's own.
 *
 * A new operator is a row here and its functions in the file of its family: cpu_conv (pixels; cpu_wino
 * convolves), cpu_norm, cpu_layernorm, cpu_gemm, cpu_attention, cpu_elem, cpu_loss. Kernels that know f32
 * only get bf16 activations through cpu_wide. cpu_flat has the optimiser's sweeps, and dn is the only file
 * that knows oneDNN.
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
    [OP_LAYERNORM] = {cpu_wide_prepare, cpu_wide_release, cpu_wide_forward, cpu_wide_backward},
    [OP_LINEAR] = {cpu_wide_prepare, cpu_wide_release, cpu_wide_forward, cpu_wide_backward},
    [OP_ATTENTION] = {cpu_wide_prepare, cpu_wide_release, cpu_wide_forward, cpu_wide_backward},
    [OP_CAST] = {NULL, NULL, cpu_cast_forward, cpu_cast_backward},
    [OP_ACT] = {NULL, NULL, cpu_act_forward, cpu_act_backward},
    [OP_ADD] = {NULL, NULL, cpu_add_forward, cpu_add_backward},
    [OP_DROPOUT] = {NULL, NULL, cpu_dropout_forward, cpu_dropout_backward},
    [OP_MAXPOOL] = {cpu_maxpool_prepare, NULL, cpu_maxpool_forward, cpu_maxpool_backward},
    [OP_MEAN_SPATIAL] = {NULL, NULL, cpu_mean_spatial_forward, cpu_mean_spatial_backward},
    [OP_CONCAT_ROWS] = {NULL, NULL, cpu_concat_rows_forward, cpu_concat_rows_backward},
    [OP_SLICE_ROWS] = {NULL, NULL, cpu_slice_rows_forward, cpu_slice_rows_backward},
    [OP_SHORTCUT_PAD] = {NULL, NULL, cpu_shortcut_pad_forward, cpu_shortcut_pad_backward},
    [OP_SOFTMAX_XENT] = {cpu_wide_prepare, cpu_wide_release, cpu_wide_forward, cpu_wide_backward},
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
    if (t == DTYPE_F32 || t == DTYPE_BF16) {
        cpu_write_or_add(dst, src, (int64_t)n, t, true);
    } else if (t == DTYPE_F64) {
        for (size_t i = 0; i < n; i++)
            ((double *)dst)[i] += ((const double *)src)[i];
    } else {
        for (size_t i = 0; i < n; i++)
            ((int32_t *)dst)[i] += ((const int32_t *)src)[i];
    }
    return 0;
}

static int from_f32(struct backend *be, void *dst, enum dtype t, const float *src, size_t n, bool add,
                    struct err *e)
{
    (void)be;
    (void)e;
    cpu_cast(dst, t, src, DTYPE_F32, (int64_t)n, add);
    return 0;
}

/* All bits one: NaN in all float formats, -1 in integers. */
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
    .from_f32 = from_f32,
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
    c->ops = ops;
    c->base.ops = &c->ops;
    c->n_threads = cfg->n_threads;
    c->winograd = cfg->winograd;
    c->dn = dn_create(e);
    if (!c->dn) {
        free(c);
        return NULL;
    }
    c->ops.bf16 = dn_has_bf16(c->dn);
    return &c->base;
}

const char *cpu_isa(void)
{
    return dn_isa();
}
