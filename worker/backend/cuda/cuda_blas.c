/* cuda_blas - see cuda_blas.h. What was chosen for a shape is a struct gemm_plan: descriptors of operation
 * and matrices, and the algorithm. Plans are in a table hashed by their key.
 *
 * Names of cuBLASLt's operands are kept apart from ours: its left operand is our B, its right one our A.
 */
#include "worker/backend/cuda/cuda_blas.h"
#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/backend/cuda/cuda_util.h"

enum {
    WORKSPACE_BYTES = 32 << 20, /* what NVIDIA recommends for Hopper */
    TABLE_BITS = 8,
    MAX_ALGOS = 4,       /* to look at: the first that is fit for use is taken */
    BEST_ALIGNMENT = 16, /* bytes; better ones give no other algorithm */
};

/* All that the choice depends on; no padding, as it is compared as bytes. */
struct gemm_key {
    int64_t m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c;
    int32_t ta, tb, ab_type, c_type, epilogue, beta0;
    int32_t align_a, align_b, align_c, align_bias;
};

_Static_assert(sizeof(struct gemm_key) == 10 * 8 + 10 * 4, "no padding");

struct gemm_plan {
    struct gemm_key key;
    struct gemm_plan *next;
    bool possible;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t left, right, result;
    cublasLtMatmulAlgo_t algo;
};

struct cuda_blas {
    cublasLtHandle_t handle;
    cudaStream_t stream;
    void *workspace;
    bool allow_tf32;
    struct gemm_plan *table[1 << TABLE_BITS];
};

static int blas_init(struct cuda_blas *b, struct err *e)
{
    CUBLAS_TRY(e, cublasLtCreate(&b->handle));
    CUDA_TRY(e, cudaMalloc(&b->workspace, WORKSPACE_BYTES));
    return 0;
}

struct cuda_blas *cuda_blas_create(cudaStream_t stream, bool allow_tf32, struct err *e)
{
    struct cuda_blas *b = xcalloc(1, sizeof(*b));

    b->stream = stream;
    b->allow_tf32 = allow_tf32;
    if (blas_init(b, e) < 0) {
        cuda_blas_destroy(b);
        return NULL;
    }
    return b;
}

static void plan_destroy(struct gemm_plan *p)
{
    cublasLtMatrixLayout_t layouts[] = {p->left, p->right, p->result};

    for (int i = 0; i < 3; i++)
        if (layouts[i])
            cublasLtMatrixLayoutDestroy(layouts[i]);
    if (p->op)
        cublasLtMatmulDescDestroy(p->op);
    free(p);
}

void cuda_blas_destroy(struct cuda_blas *b)
{
    if (!b)
        return;
    for (int i = 0; i < 1 << TABLE_BITS; i++) {
        while (b->table[i]) {
            struct gemm_plan *p = b->table[i];

            b->table[i] = p->next;
            plan_destroy(p);
        }
    }
    if (b->workspace)
        cudaFree(b->workspace);
    if (b->handle)
        cublasLtDestroy(b->handle);
    free(b);
}

/* ------------------------------------------------------------------ planning */

/* The largest power of two, up to BEST_ALIGNMENT, that divides an address and a step in bytes. */
static int32_t alignment(const void *p, int64_t step_bytes)
{
    const uint64_t bits = (uint64_t)(uintptr_t)p | (uint64_t)step_bytes | BEST_ALIGNMENT;

    return (int32_t)(bits & ~(bits - 1));
}

static struct gemm_key key_of(const struct cuda_gemm *g)
{
    const int64_t ab = (int64_t)dtype_bytes(g->ab_type), c = (int64_t)dtype_bytes(g->c_type);
    const bool many = g->batch > 1;

    return (struct gemm_key){
        .m = g->m,
        .n = g->n,
        .k = g->k,
        .lda = g->lda,
        .ldb = g->ldb,
        .ldc = g->ldc,
        .batch = many ? g->batch : 1,
        .stride_a = many ? g->stride_a : 0,
        .stride_b = many ? g->stride_b : 0,
        .stride_c = many ? g->stride_c : 0,
        .ta = g->ta == 'T',
        .tb = g->tb == 'T',
        .ab_type = g->ab_type,
        .c_type = g->c_type,
        .epilogue = g->epilogue,
        .beta0 = g->beta == 0,
        .align_a = alignment(g->a, many ? g->stride_a * ab : 0),
        .align_b = alignment(g->b, many ? g->stride_b * ab : 0),
        .align_c = alignment(g->c, many ? g->stride_c * c : 0),
        .align_bias = alignment(g->bias, 0),
    };
}

static unsigned key_slot(const struct gemm_key *key)
{
    const unsigned char *p = (const unsigned char *)key;
    uint32_t h = 2166136261u; /* FNV-1a */

    for (size_t i = 0; i < sizeof(*key); i++)
        h = (h ^ p[i]) * 16777619u;
    return (h ^ h >> 16) & ((1 << TABLE_BITS) - 1);
}

static cudaDataType_t data_type(int32_t t)
{
    return t == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* Our (rows, cols) row-major is cuBLASLt's (cols, rows). */
static int layout_create(cublasLtMatrixLayout_t *l, int32_t type, int64_t rows, int64_t cols, int64_t ld,
                         const struct gemm_key *key, int64_t stride, struct err *e)
{
    const int32_t batch = (int32_t)key->batch;

    CUBLAS_TRY(e, cublasLtMatrixLayoutCreate(l, data_type(type), (uint64_t)cols, (uint64_t)rows, ld));
    if (key->batch == 1)
        return 0;
    CUBLAS_TRY(e, cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                                   sizeof(batch)));
    CUBLAS_TRY(e, cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                   sizeof(stride)));
    return 0;
}

static cublasLtEpilogue_t epilogue(int32_t ours)
{
    switch (ours) {
    case CUDA_EPILOGUE_BIAS:
        return CUBLASLT_EPILOGUE_BIAS;
    case CUDA_EPILOGUE_BIAS_RELU:
        return CUBLASLT_EPILOGUE_RELU_BIAS;
    case CUDA_EPILOGUE_BIAS_GRAD: /* our A is the right operand, "B" */
        return CUBLASLT_EPILOGUE_BGRADB;
    default:
        return CUBLASLT_EPILOGUE_DEFAULT;
    }
}

static int set_bias(const struct gemm_plan *p, const void *bias, struct err *e)
{
    if (p->key.epilogue != CUDA_EPILOGUE_NONE)
        CUBLAS_TRY(e, cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                                     sizeof(bias)));
    return 0;
}

static int descs_create(struct cuda_blas *b, struct gemm_plan *p, const void *bias, struct err *e)
{
    const struct gemm_key *k = &p->key;
    const cublasComputeType_t compute =
        k->ab_type == DTYPE_F32 && b->allow_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const cublasOperation_t left = k->tb ? CUBLAS_OP_T : CUBLAS_OP_N,
                            right = k->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epi = epilogue(k->epilogue);

    CUBLAS_TRY(e, cublasLtMatmulDescCreate(&p->op, compute, CUDA_R_32F));
    CUBLAS_TRY(e, cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof(left)));
    CUBLAS_TRY(e, cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof(right)));
    CUBLAS_TRY(e, cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epi, sizeof(epi)));
    if (set_bias(p, bias, e) < 0 ||
        layout_create(&p->left, k->ab_type, k->tb ? k->n : k->k, k->tb ? k->k : k->n, k->ldb, k, k->stride_b,
                      e) < 0 ||
        layout_create(&p->right, k->ab_type, k->ta ? k->k : k->m, k->ta ? k->m : k->k, k->lda, k, k->stride_a,
                      e) < 0 ||
        layout_create(&p->result, k->c_type, k->m, k->n, k->ldc, k, k->stride_c, e) < 0)
        return -1;
    return 0;
}

static int set_preferences(cublasLtMatmulPreference_t pref, const struct gemm_key *k, struct err *e)
{
    /* Split sums are kept in fp32 in the workspace and added by a pass of its own, in order. */
    const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint64_t bytes = WORKSPACE_BYTES;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t value;
    } words[] = {
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)k->align_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)k->align_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)k->align_c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)k->align_c},
    };

    CUBLAS_TRY(e, cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                                       sizeof(bytes)));
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        CUBLAS_TRY(e, cublasLtMatmulPreferenceSetAttribute(pref, words[i].name, &words[i].value,
                                                           sizeof(words[i].value)));
    return 0;
}

/* Sets p->algo and p->possible. */
static int algo_choose(struct cuda_blas *b, struct gemm_plan *p, struct err *e)
{
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t found[MAX_ALGOS];
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    int n = 0, rc;

    CUBLAS_TRY(e, cublasLtMatmulPreferenceCreate(&pref));
    rc = set_preferences(pref, &p->key, e);
    if (rc == 0)
        s = cublasLtMatmulAlgoGetHeuristic(b->handle, p->op, p->left, p->right, p->result, p->result, pref,
                                           MAX_ALGOS, found, &n);
    cublasLtMatmulPreferenceDestroy(pref);
    if (rc < 0)
        return -1;
    if (s != CUBLAS_STATUS_SUCCESS && s != CUBLAS_STATUS_NOT_SUPPORTED)
        CUBLAS_TRY(e, s);
    for (int i = 0; s == CUBLAS_STATUS_SUCCESS && i < n && !p->possible; i++) {
        p->possible = found[i].state == CUBLAS_STATUS_SUCCESS;
        p->algo = found[i].algo;
    }
    return 0;
}

/* The plan for a product's shape, from the table, or made now; also where no algorithm exists. */
static struct gemm_plan *plan_get(struct cuda_blas *b, const struct cuda_gemm *g, struct err *e)
{
    const struct gemm_key key = key_of(g);
    struct gemm_plan **slot = &b->table[key_slot(&key)], *p = *slot;

    while (p && memcmp(&p->key, &key, sizeof(key)))
        p = p->next;
    if (p)
        return p;
    p = xcalloc(1, sizeof(*p));
    p->key = key;
    if (descs_create(b, p, g->bias, e) < 0 || algo_choose(b, p, e) < 0) {
        plan_destroy(p);
        return NULL;
    }
    p->next = *slot;
    *slot = p;
    return p;
}

/* ------------------------------------------------------------------ running */

static void check_product(const struct cuda_gemm *g)
{
    ASSERT((g->ta == 'N' || g->ta == 'T') && (g->tb == 'N' || g->tb == 'T'));
    ASSERT(g->m >= 0 && g->n >= 0 && g->k >= 0 && g->batch >= 0 && g->batch <= INT32_MAX);
    ASSERT(g->ab_type == DTYPE_F32 || g->ab_type == DTYPE_BF16);
    ASSERT(g->c_type == DTYPE_F32 || (g->c_type == DTYPE_BF16 && g->ab_type == DTYPE_BF16));
    ASSERT((g->epilogue == CUDA_EPILOGUE_NONE) == !g->bias);
}

/* k = 0: an empty sum. Rows that follow each other are cleared at once. */
static int gemm_empty(struct cuda_blas *b, const struct cuda_gemm *g, struct err *e)
{
    const size_t size = dtype_bytes(g->c_type), row = (size_t)g->n * size;
    const int64_t batch = g->batch > 1 ? g->batch : 1, step = g->ldc == g->n ? g->m : 1;

    if (g->epilogue == CUDA_EPILOGUE_BIAS || g->epilogue == CUDA_EPILOGUE_BIAS_RELU ||
        (g->beta != 0 && g->beta != 1))
        return err_set(e, "cuda: a product over no elements with a bias, or scaled");
    if (g->epilogue == CUDA_EPILOGUE_BIAS_GRAD)
        CUDA_TRY(e, cudaMemsetAsync(g->bias, 0, (size_t)g->m * size, b->stream));
    for (int64_t z = 0; g->beta == 0 && z < batch; z++)
        for (int64_t i = 0; i < g->m; i += step)
            CUDA_TRY(e, cudaMemsetAsync((char *)g->c + (size_t)(z * g->stride_c + i * g->ldc) * size, 0,
                                        row * (size_t)step, b->stream));
    return 0;
}

static int fail_impossible(const struct cuda_gemm *g, struct err *e)
{
    return err_set(e, "cuBLASLt has no algorithm for %s (%lld, %lld)·(%lld, %lld) to %s, epilogue %d",
                   dtype_name(g->ab_type), (long long)g->m, (long long)g->k, (long long)g->k, (long long)g->n,
                   dtype_name(g->c_type), (int)g->epilogue);
}

int cuda_gemm_run(struct cuda_blas *b, const struct cuda_gemm *g, struct err *e)
{
    const struct gemm_plan *p;

    check_product(g);
    if (g->m == 0 || g->n == 0)
        return 0;
    if (g->k == 0)
        return gemm_empty(b, g, e);
    p = plan_get(b, g, e);
    if (!p)
        return -1;
    if (!p->possible)
        return fail_impossible(g, e);
    if (set_bias(p, g->bias, e) < 0)
        return -1;
    CUBLAS_TRY(e, cublasLtMatmul(b->handle, p->op, &g->alpha, g->b, p->left, g->a, p->right, &g->beta, g->c,
                                 p->result, g->c, p->result, &p->algo, b->workspace, WORKSPACE_BYTES,
                                 b->stream));
    return 0;
}

bool cuda_gemm_possible(struct cuda_blas *b, const struct cuda_gemm *g)
{
    const struct gemm_plan *p;

    check_product(g);
    if (g->m == 0 || g->n == 0 || g->k == 0)
        return true;
    p = plan_get(b, g, NULL);
    return p && p->possible;
}

/* ------------------------------------------------------------------ text */

static int algo_word(const cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t name)
{
    int32_t v = -1;
    size_t n;

    if (cublasLtMatmulAlgoConfigGetAttribute(algo, name, &v, sizeof(v), &n) != CUBLAS_STATUS_SUCCESS)
        return -1;
    return v;
}

void cuda_blas_text(const struct cuda_blas *b, char *out, size_t size)
{
    size_t at = 0;

    if (size)
        out[0] = 0;
    for (int i = 0; i < 1 << TABLE_BITS; i++) {
        for (const struct gemm_plan *p = b->table[i]; p && at < size; p = p->next) {
            const struct gemm_key *k = &p->key;

            if (p->possible)
                at += (size_t)snprintf(
                    out + at, size - at,
                    "%c%c %lld×%lld×%lld ×%lld %s→%s epilogue %d: algo %d tile %d split %d\n",
                    k->ta ? 'T' : 'N', k->tb ? 'T' : 'N', (long long)k->m, (long long)k->n, (long long)k->k,
                    (long long)k->batch, dtype_name(k->ab_type), dtype_name(k->c_type), (int)k->epilogue,
                    algo_word(&p->algo, CUBLASLT_ALGO_CONFIG_ID),
                    algo_word(&p->algo, CUBLASLT_ALGO_CONFIG_TILE_ID),
                    algo_word(&p->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM));
        }
    }
}
