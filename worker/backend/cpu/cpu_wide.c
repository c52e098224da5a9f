/* cpu_wide - operators whose kernels know f32 only, on bf16 activations: their inputs are made wide in
 * scratch, the kernel runs on those, and what it makes is rounded. These are the operators over features (n
 * rows of C channels), whose tensors are small beside those over pixels.
 *
 * A matrix product rounds its weights to bf16, too, so that it is one of bf16 by bf16, added up in f32. What
 * is f32 by type stays where it is: biases, gradients of parameters and of gathered rows.
 *
 * Scratch: [the kernel's | wide inputs | wide result | its gradient | wide gradients of inputs].
 */
#include <stdlib.h>
#include "worker/backend/cpu/cpu_dtype.h"

static const struct kernel kernels[OP_COUNT] = {
    [OP_LAYERNORM] = {cpu_layernorm_prepare, NULL, cpu_layernorm_forward, cpu_layernorm_backward},
    [OP_LINEAR] = {cpu_linear_prepare, NULL, cpu_linear_forward, cpu_linear_backward},
    [OP_ATTENTION] = {cpu_attention_prepare, NULL, cpu_attention_forward, cpu_attention_backward},
    [OP_SOFTMAX_XENT] = {cpu_softmax_xent_prepare, NULL, cpu_softmax_xent_forward, cpu_softmax_xent_backward},
};

/* Offsets in scratch; 0: the tensor is used as it is. */
struct wide {
    const struct kernel *kernel;
    void *state; /* the kernel's */
    size_t in[OP_MAX_INPUTS], din[OP_MAX_INPUTS], out, dout;
};

static bool is_weight(const struct node *n, int i)
{
    return n->op == OP_LINEAR && i == 1 && n->in[0]->dtype == DTYPE_BF16;
}

static size_t room(size_t *end, const struct node *n)
{
    const size_t at = *end;

    *end += align_up((size_t)shape_count(n->shape) * sizeof(float));
    return at;
}

/* Returns the bytes of scratch. */
static size_t lay_out(struct wide *w, const struct node *n, size_t kernel_bytes)
{
    size_t end = align_up(kernel_bytes + 1); /* no offset is 0 */

    for (int i = 0; i < n->n_inputs; i++) {
        if (n->in[i]->dtype == DTYPE_BF16 || is_weight(n, i))
            w->in[i] = room(&end, n->in[i]);
        if (n->in[i]->grad_dtype == DTYPE_BF16 && n->in[i]->needs_grad)
            w->din[i] = room(&end, n->in[i]);
    }
    if (n->dtype == DTYPE_BF16) {
        w->out = room(&end, n);
        w->dout = n->bwd_reads & READS_OUT ? room(&end, n) : w->out;
    }
    return end;
}

KERNEL_PREPARE(wide)
{
    struct wide *w = xcalloc(1, sizeof(*w));

    w->kernel = &kernels[n->op];
    if (w->kernel->prepare && w->kernel->prepare(be, n, p, e) < 0) {
        free(w);
        return -1;
    }
    w->state = p->state;
    p->state = w;
    if (n->in[0]->dtype == DTYPE_BF16)
        p->scratch_bytes = lay_out(w, n, p->scratch_bytes);
    return 0;
}

void cpu_wide_release(void *state)
{
    struct wide *w = state;

    if (w && w->kernel->release)
        w->kernel->release(w->state);
    free(w);
}

/* dst (n) = src as bf16 holds it. */
static void round_weights(float *dst, const float *src, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += VLEN) {
        const int w = (int)min_i64(VLEN, n - i);
        v16 v;
        v16h h;

        v16_load(&v, src + i, w);
        v16_to_bf16(&h, &v);
        v16_from_bf16(&v, &h);
        v16_store(dst + i, &v, w);
    }
}

/* The kernel's call. Inputs in `reads` are made wide. */
static struct op_call wide_call(const struct op_call *c, unsigned reads)
{
    const struct wide *w = c->state;
    const struct node *n = c->node;
    char *scratch = c->scratch;
    struct op_call call = *c;

    call.state = w->state;
    for (int i = 0; i < n->n_inputs; i++) {
        const int64_t count = shape_count(n->in[i]->shape);

        if (!w->in[i] || !(reads >> i & 1))
            continue;
        call.in[i] = scratch + w->in[i];
        if (is_weight(n, i))
            round_weights(call.in[i], c->in[i], count);
        else
            cpu_cast(call.in[i], DTYPE_F32, c->in[i], DTYPE_BF16, count, false);
    }
    return call;
}

KERNEL_FORWARD(wide)
{
    const struct wide *w = c->state;
    struct op_call call = wide_call(c, ~0u);

    if (w->out)
        call.out = (char *)c->scratch + w->out;
    if (w->kernel->forward(&call, e) < 0)
        return -1;
    if (w->out)
        cpu_cast(c->out, DTYPE_BF16, call.out, DTYPE_F32, shape_count(c->node->shape), false);
    return 0;
}

KERNEL_BACKWARD(wide)
{
    const struct wide *w = c->state;
    const struct node *n = c->node;
    char *scratch = c->scratch;
    const int64_t count = shape_count(n->shape);
    struct op_call call = wide_call(c, n->bwd_reads);

    if (w->dout) {
        call.dout = scratch + w->dout;
        cpu_cast(scratch + w->dout, DTYPE_F32, c->dout, DTYPE_BF16, count, false);
    }
    if (w->out && (n->bwd_reads & READS_OUT)) {
        call.out = scratch + w->out;
        cpu_cast(call.out, DTYPE_F32, c->out, DTYPE_BF16, count, false);
    }
    for (int i = 0; i < n->n_inputs; i++)
        if (c->din[i] && w->din[i]) {
            call.din[i] = scratch + w->din[i];
            call.acc &= ~(1u << i);
        }
    if (w->kernel->backward(&call, e) < 0)
        return -1;
    for (int i = 0; i < n->n_inputs; i++)
        if (c->din[i] && w->din[i])
            cpu_cast(c->din[i], DTYPE_BF16, call.din[i], DTYPE_F32, shape_count(n->in[i]->shape),
                     acc_bit(c, i));
    return 0;
}
