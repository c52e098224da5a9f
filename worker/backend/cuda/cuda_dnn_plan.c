/* cuda_dnn_plan - see cuda_dnn_plan.h. A plan is chosen so: mode A of the heuristics lists engines with
 * settings, most promising first; then the fallback mode, whose engines can do nearly everything. An engine
 * is passed over when its notes say that it does not keep to what was asked, when no plan can be made of it,
 * or when it wants more workspace than the limit. Of those that are left the one is taken that the table of
 * choices names, or the fastest of the first few, or the first (cuda_dnn.h).
 *
 * Descriptors hold on to each other by reference, as far as the documentation tells: all that a plan was made
 * from live as long as it does. */
#include "worker/backend/cuda/cuda_dnn_plan.h"
#include <stdio.h>
#include <string.h>
#include "worker/backend/cuda/cuda_util.h"
#include "worker/engine/tuning.h"

enum {
    MAX_CONFIGS = 64, /* of one mode; in fp32 the first dozens may all be TF32 */
    MAX_TIMED = 6,
    TIMED_RUNS = 5,
    MAX_KNOBS = 32,
};

typedef cudnnBackendDescriptor_t desc_t;

static int set(desc_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
               const void *v, struct err *e)
{
    cudnnStatus_t s = cudnnBackendSetAttribute(d, name, type, n, v);

    if (s != CUDNN_STATUS_SUCCESS)
        return err_set(e, "cuDNN: cudnnBackendSetAttribute(%d): %s", (int)name, cudnnGetErrorString(s));
    return 0;
}

/* A descriptor that the plan owns. */
static int desc_create(struct conv_plan *plan, cudnnBackendDescriptorType_t type, desc_t *d, struct err *e)
{
    ASSERT(plan->n_descs < CONV_DESCS);
    CUDNN_TRY(e, cudnnBackendCreateDescriptor(type, d));
    plan->descs[plan->n_descs++] = *d;
    return 0;
}

/* ------------------------------------------------------------------ the graph */

static cudnnDataType_t data_type(enum dtype t)
{
    return t == DTYPE_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* dims as cuDNN names them (N,C,H,W), in memory (N,H,W,C). */
static int tensor_create(struct conv_plan *plan, int64_t id, const int64_t dims[4], enum dtype t, desc_t *d,
                         struct err *e)
{
    const int64_t strides[4] = {dims[1] * dims[2] * dims[3], 1, dims[3] * dims[1], dims[1]};
    const int64_t alignment = CONV_ALIGNMENT;
    const cudnnDataType_t type = data_type(t);

    if (desc_create(plan, CUDNN_BACKEND_TENSOR_DESCRIPTOR, d, e) < 0 ||
        set(*d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, e) < 0 ||
        set(*d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims, e) < 0 ||
        set(*d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides, e) < 0 ||
        set(*d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id, e) < 0 ||
        set(*d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment, e) < 0)
        return -1;
    CUDNN_TRY(e, cudnnBackendFinalize(*d));
    return 0;
}

static int convolution_create(struct conv_plan *plan, const struct conv_shape *s, desc_t *d, struct err *e)
{
    const int64_t n_dims = 2, pad[2] = {s->pad, s->pad}, stride[2] = {s->stride, s->stride}, dil[2] = {1, 1};
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;

    if (desc_create(plan, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, d, e) < 0 ||
        set(*d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &n_dims, e) < 0 ||
        set(*d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, e) < 0 ||
        set(*d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode, e) < 0 ||
        set(*d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad, e) < 0 ||
        set(*d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad, e) < 0 ||
        set(*d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride, e) < 0 ||
        set(*d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dil, e) < 0)
        return -1;
    CUDNN_TRY(e, cudnnBackendFinalize(*d));
    return 0;
}

/* How a pass is spelled. */
static const struct {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t x, w, y, conv, alpha, beta;
} operations[N_CONV_PASSES] = {
    [CONV_FORWARD] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    [CONV_BACKWARD_DATA] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    [CONV_BACKWARD_WEIGHTS] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
};

static int operation_create(struct conv_plan *plan, const struct conv_problem *p, desc_t *op, struct err *e)
{
    const struct conv_shape *s = &p->shape;
    const int64_t x[4] = {s->n, s->ci, s->h, s->w}, y[4] = {s->n, s->co, s->ho, s->wo};
    const int64_t w[4] = {s->co, s->ci / s->groups, s->kernel, s->kernel};
    const float one = 1, zero = 0;
    desc_t tx, tw, ty, conv;

    if (tensor_create(plan, CONV_X, x, p->options.dtype, &tx, e) < 0 ||
        tensor_create(plan, CONV_W, w, p->w_dtype, &tw, e) < 0 ||
        tensor_create(plan, CONV_Y, y, p->options.dtype, &ty, e) < 0 ||
        convolution_create(plan, s, &conv, e) < 0 || desc_create(plan, operations[p->pass].type, op, e) < 0 ||
        set(*op, operations[p->pass].x, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &tx, e) < 0 ||
        set(*op, operations[p->pass].w, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &tw, e) < 0 ||
        set(*op, operations[p->pass].y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &ty, e) < 0 ||
        set(*op, operations[p->pass].conv, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &conv, e) < 0 ||
        set(*op, operations[p->pass].alpha, CUDNN_TYPE_FLOAT, 1, &one, e) < 0 ||
        set(*op, operations[p->pass].beta, CUDNN_TYPE_FLOAT, 1, &zero, e) < 0)
        return -1;
    CUDNN_TRY(e, cudnnBackendFinalize(*op));
    return 0;
}

static int graph_create(cudnnHandle_t handle, struct conv_plan *plan, const struct conv_problem *p,
                        desc_t *graph, struct err *e)
{
    desc_t op;

    if (operation_create(plan, p, &op, e) < 0 ||
        desc_create(plan, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, graph, e) < 0 ||
        set(*graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle, e) < 0 ||
        set(*graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &op, e) < 0)
        return -1;
    CUDNN_TRY(e, cudnnBackendFinalize(*graph));
    return 0;
}

/* ------------------------------------------------------------------ engines */

/* An engine with settings, and the plan made of it. */
struct candidate {
    desc_t config, plan;
    size_t workspace_bytes;
};

static void candidate_destroy(struct candidate *c)
{
    if (c->plan)
        cudnnBackendDestroyDescriptor(c->plan);
    if (c->config)
        cudnnBackendDestroyDescriptor(c->config);
    *c = (struct candidate){0};
}

/* The engine of a configuration; the caller destroys it. */
static desc_t engine_of(desc_t config)
{
    desc_t engine = NULL;
    int64_t n = 0;

    if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) != CUDNN_STATUS_SUCCESS)
        return NULL;
    if (cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n,
                                 &engine) == CUDNN_STATUS_SUCCESS)
        return engine;
    cudnnBackendDestroyDescriptor(engine);
    return NULL;
}

static bool note_allowed(cudnnBackendNumericalNote_t note, const struct cuda_conv_options *o)
{
    switch (note) {
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
        return !o->deterministic;
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE: /* on fp32 operands: TF32 */
        return o->dtype != DTYPE_F32 || o->allow_tf32;
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
        return false; /* sums are fp32 */
    default:
        return true;
    }
}

/* An engine that does not tell about itself is not trusted. */
static bool config_allowed(desc_t config, const struct cuda_conv_options *o)
{
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    desc_t engine = engine_of(config);
    int64_t n = 0;
    bool ok;

    if (!engine)
        return false;
    ok = cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                  CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n, notes) == CUDNN_STATUS_SUCCESS;
    for (int64_t i = 0; ok && i < n; i++)
        ok = note_allowed(notes[i], o);
    cudnnBackendDestroyDescriptor(engine);
    return ok;
}

/* False when cuDNN makes no plan of the configuration, or one that wants too much workspace. */
static bool candidate_plan(cudnnHandle_t handle, struct candidate *c, size_t workspace_limit)
{
    int64_t bytes = 0, n;

    if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &c->plan) !=
        CUDNN_STATUS_SUCCESS)
        return false;
    /* Asked for by early versions 9, deprecated by late ones, which know it from the graph. */
    (void)set(c->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle, NULL);
    if (set(c->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c->config,
            NULL) < 0 ||
        cudnnBackendFinalize(c->plan) != CUDNN_STATUS_SUCCESS ||
        cudnnBackendGetAttribute(c->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n,
                                 &bytes) != CUDNN_STATUS_SUCCESS)
        return false;
    c->workspace_bytes = (size_t)bytes;
    return c->workspace_bytes <= workspace_limit;
}

/* The configurations that one mode of the heuristics lists; their number. A mode that knows none may fail. */
static int configs_list(desc_t graph, cudnnBackendHeurMode_t mode, desc_t configs[MAX_CONFIGS])
{
    desc_t heur = NULL;
    int64_t n = 0;
    int made = 0;

    if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heur) != CUDNN_STATUS_SUCCESS)
        return 0;
    while (made < MAX_CONFIGS && cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                                              &configs[made]) == CUDNN_STATUS_SUCCESS)
        made++;
    if (set(heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph, NULL) <
            0 ||
        set(heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode, NULL) < 0 ||
        cudnnBackendFinalize(heur) != CUDNN_STATUS_SUCCESS ||
        cudnnBackendGetAttribute(heur, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, made, &n,
                                 configs) != CUDNN_STATUS_SUCCESS)
        n = 0;
    if (n > made)
        n = made;
    while (made > n)
        cudnnBackendDestroyDescriptor(configs[--made]);
    cudnnBackendDestroyDescriptor(heur);
    return (int)n;
}

/* "eng37_k2=5_k13=1", cuDNN's own way to name a choice. */
static void config_text(desc_t config, char *out, size_t size)
{
    desc_t engine = engine_of(config), knobs[MAX_KNOBS];
    int64_t index = -1, n = 0;
    int made = 0;
    size_t at;

    if (engine) {
        cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n, &index);
        cudnnBackendDestroyDescriptor(engine);
    }
    at = (size_t)snprintf(out, size, "eng%lld", (long long)index);
    while (made < MAX_KNOBS && cudnnBackendCreateDescriptor(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR,
                                                            &knobs[made]) == CUDNN_STATUS_SUCCESS)
        made++;
    if (cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                 made, &n, knobs) != CUDNN_STATUS_SUCCESS)
        n = 0;
    for (int i = 0; i < made; i++) {
        cudnnBackendKnobType_t type;
        int64_t value, one;

        if (i < n && at < size &&
            cudnnBackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1,
                                     &one, &type) == CUDNN_STATUS_SUCCESS &&
            cudnnBackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &one,
                                     &value) == CUDNN_STATUS_SUCCESS)
            at += (size_t)snprintf(out + at, size - at, "_k%d=%lld", (int)type, (long long)value);
        cudnnBackendDestroyDescriptor(knobs[i]);
    }
}

/* Whether the configuration is called so; every one is called NULL. Names are compared before a plan is made,
 * which may take long. */
static bool config_is(desc_t config, const char *name)
{
    char text[CONV_TEXT_MAX];

    if (!name)
        return true;
    config_text(config, text, sizeof(text));
    return strcmp(text, name) == 0;
}

/* Up to max candidates of one mode, of that name where one is given; their number. */
static int candidates_list(cudnnHandle_t handle, desc_t graph, cudnnBackendHeurMode_t mode,
                           const struct cuda_conv_options *o, const char *name, struct candidate *out,
                           int max)
{
    desc_t configs[MAX_CONFIGS];
    const int n_configs = configs_list(graph, mode, configs);
    int n = 0;

    for (int i = 0; i < n_configs; i++) {
        struct candidate c = {.config = configs[i]};

        if (n < max && config_is(c.config, name) && config_allowed(c.config, o) &&
            candidate_plan(handle, &c, o->workspace_limit))
            out[n++] = c;
        else
            candidate_destroy(&c);
    }
    return n;
}

/* ------------------------------------------------------------------ running */

static int pack_create(desc_t *pack, void *const ptr[N_CONV_PTRS], struct err *e)
{
    static const int64_t ids[3] = {CONV_X, CONV_W, CONV_Y};

    CUDNN_TRY(e, cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, pack));
    if (set(*pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, ids, e) < 0 ||
        set(*pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, ptr, e) < 0 ||
        set(*pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &ptr[CONV_WORKSPACE], e) < 0)
        return -1;
    CUDNN_TRY(e, cudnnBackendFinalize(*pack));
    return 0;
}

/* The pack with these pointers. A finalized one cannot be changed, so the oldest makes room for a new one. */
static int pack_get(struct conv_plan *plan, void *const ptr[N_CONV_PTRS], desc_t *out, struct err *e)
{
    struct conv_pack *p;
    desc_t desc = NULL;

    for (int i = 0; i < CONV_PACKS; i++) {
        if (plan->packs[i].desc && !memcmp(plan->packs[i].ptr, ptr, sizeof(plan->packs[i].ptr))) {
            *out = plan->packs[i].desc;
            return 0;
        }
    }
    if (pack_create(&desc, ptr, e) < 0) {
        if (desc)
            cudnnBackendDestroyDescriptor(desc);
        return -1;
    }
    p = &plan->packs[plan->next_pack];
    plan->next_pack = (plan->next_pack + 1) % CONV_PACKS;
    if (p->desc)
        cudnnBackendDestroyDescriptor(p->desc);
    memcpy(p->ptr, ptr, sizeof(p->ptr));
    p->desc = *out = desc;
    return 0;
}

int conv_plan_run(cudnnHandle_t handle, struct conv_plan *plan, void *const ptr[N_CONV_PTRS], struct err *e)
{
    desc_t pack;

    if (pack_get(plan, ptr, &pack, e) < 0)
        return -1;
    CUDNN_TRY(e, cudnnBackendExecute(handle, plan->plan, pack));
    return 0;
}

/* ------------------------------------------------------------------ choosing */

struct stopwatch {
    cudnnHandle_t handle;
    cudaStream_t stream;
    cudaEvent_t start, stop;
    void *memory;
    desc_t pack;
};

/* Memory for all tensors and the largest workspace, zeroed: the values do not matter, but NaNs might. */
static int stopwatch_init(struct stopwatch *w, const struct conv_problem *p, size_t workspace_bytes,
                          struct err *e)
{
    const struct conv_shape *s = &p->shape;
    const size_t size = dtype_bytes(p->options.dtype);
    const size_t x = align_up((size_t)(s->n * s->h * s->w * s->ci) * size);
    const size_t y = align_up((size_t)(s->n * s->ho * s->wo * s->co) * size);
    const int64_t n_weights = s->co * s->kernel * s->kernel * (s->ci / s->groups);
    const size_t weights = align_up((size_t)n_weights * dtype_bytes(p->w_dtype));
    void *ptr[N_CONV_PTRS];

    CUDA_TRY(e, cudaEventCreate(&w->start));
    CUDA_TRY(e, cudaEventCreate(&w->stop));
    /* The workspace first: it wants the alignment of an allocation. */
    CUDA_TRY(e, cudaMalloc(&w->memory, align_up(workspace_bytes) + x + weights + y));
    CUDA_TRY(e, cudaMemsetAsync(w->memory, 0, align_up(workspace_bytes) + x + weights + y, w->stream));
    ptr[CONV_WORKSPACE] = w->memory;
    ptr[CONV_X] = (char *)w->memory + align_up(workspace_bytes);
    ptr[CONV_W] = (char *)ptr[CONV_X] + x;
    ptr[CONV_Y] = (char *)ptr[CONV_W] + weights;
    return pack_create(&w->pack, ptr, e);
}

static void stopwatch_done(struct stopwatch *w)
{
    if (w->pack)
        cudnnBackendDestroyDescriptor(w->pack);
    if (w->memory)
        cudaFree(w->memory);
    if (w->start)
        cudaEventDestroy(w->start);
    if (w->stop)
        cudaEventDestroy(w->stop);
}

/* Of TIMED_RUNS runs after a first one; negative when the plan does not run. */
static float candidate_ms(struct stopwatch *w, const struct candidate *c)
{
    float ms = -1;

    if (cudnnBackendExecute(w->handle, c->plan, w->pack) != CUDNN_STATUS_SUCCESS ||
        cudaEventRecord(w->start, w->stream) != cudaSuccess)
        return -1;
    for (int i = 0; i < TIMED_RUNS; i++)
        if (cudnnBackendExecute(w->handle, c->plan, w->pack) != CUDNN_STATUS_SUCCESS)
            return -1;
    if (cudaEventRecord(w->stop, w->stream) != cudaSuccess || cudaEventSynchronize(w->stop) != cudaSuccess ||
        cudaEventElapsedTime(&ms, w->start, w->stop) != cudaSuccess)
        return -1;
    return ms;
}

/* The index of the fastest; the first, with a warning, when there is no memory to measure, or none of them
 * runs. */
static int fastest(cudnnHandle_t handle, cudaStream_t stream, const struct conv_problem *p,
                   const struct candidate *c, int n)
{
    struct stopwatch w = {.handle = handle, .stream = stream};
    struct err why = ERR_INIT;
    size_t workspace_bytes = 0;
    float best_ms = -1;
    int best = 0, ready;

    for (int i = 0; i < n; i++)
        if (c[i].workspace_bytes > workspace_bytes)
            workspace_bytes = c[i].workspace_bytes;
    ready = stopwatch_init(&w, p, workspace_bytes, &why) == 0;
    for (int i = 0; ready && i < n; i++) {
        const float ms = candidate_ms(&w, &c[i]);

        if (ms >= 0 && (best_ms < 0 || ms < best_ms)) {
            best_ms = ms;
            best = i;
        }
    }
    stopwatch_done(&w);
    if (best_ms < 0)
        log_warn(tuning_log(p->options.tuning), "%s could not be measured, cuDNN's first engine is taken: %s",
                 p->key, ready ? "none of the engines runs" : why.msg);
    return best;
}

/* Of both modes: those of the fallback mode only where mode A has none. */
static int candidates_find(cudnnHandle_t handle, desc_t graph, const struct conv_problem *p, const char *name,
                           struct candidate *out, int max)
{
    const int n = candidates_list(handle, graph, CUDNN_HEUR_MODE_A, &p->options, name, out, max);

    return n > 0 || p->no_fallback
               ? n
               : candidates_list(handle, graph, CUDNN_HEUR_MODE_FALLBACK, &p->options, name, out, max);
}

/* What is to be chosen from: what the table names; without an entry the first few, where they may be
 * measured; else the first. */
static int candidates_get(cudnnHandle_t handle, desc_t graph, const struct conv_problem *p,
                          struct candidate out[MAX_TIMED])
{
    const struct tuning *t = p->options.tuning;
    const char *name = t ? tuning_lookup(t, p->key) : NULL;
    const int n = name ? candidates_find(handle, graph, p, name, out, 1) : 0;

    if (n > 0)
        return n;
    if (name)
        log_warn(tuning_log(t), "cuDNN does not offer %s for %s: its first engine is taken", name, p->key);
    return candidates_find(handle, graph, p, NULL, out, t && !name && tuning_measures(t) ? MAX_TIMED : 1);
}

int conv_plan_create(cudnnHandle_t handle, cudaStream_t stream, const struct conv_problem *p,
                     struct conv_plan *plan, struct err *e)
{
    struct candidate c[MAX_TIMED];
    desc_t graph;
    int n, best;

    if (graph_create(handle, plan, p, &graph, e) < 0)
        return -1;
    n = candidates_get(handle, graph, p, c);
    if (n == 0)
        return err_set(e, "cuDNN has no engine for it within %zu MiB of workspace%s%s",
                       p->options.workspace_limit >> 20, p->options.deterministic ? ", deterministic" : "",
                       p->options.dtype == DTYPE_F32 && !p->options.allow_tf32 ? ", without TF32" : "");
    best = n > 1 ? fastest(handle, stream, p, c, n) : 0;
    plan->plan = c[best].plan;
    plan->workspace_bytes = c[best].workspace_bytes;
    config_text(c[best].config, plan->text, sizeof(plan->text));
    if (p->options.tuning)
        tuning_record(p->options.tuning, p->key, plan->text);
    ASSERT(plan->n_descs < CONV_DESCS);
    plan->descs[plan->n_descs++] = c[best].config;
    c[best] = (struct candidate){0};
    for (int i = 0; i < n; i++)
        candidate_destroy(&c[i]);
    (void)cudaGetLastError(); /* of what was tried in vain; else the next launch would be told of it */
    return 0;
}

void conv_plan_destroy(struct conv_plan *plan)
{
    for (int i = 0; i < CONV_PACKS; i++)
        if (plan->packs[i].desc)
            cudnnBackendDestroyDescriptor(plan->packs[i].desc);
    if (plan->plan)
        cudnnBackendDestroyDescriptor(plan->plan);
    while (plan->n_descs > 0)
        cudnnBackendDestroyDescriptor(plan->descs[--plan->n_descs]);
    *plan = (struct conv_plan){0};
}
