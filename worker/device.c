/* device - see device.h. BF_WITH_CUDA is defined in builds that have the CUDA backend. */
#include "worker/device.h"

#include <stdlib.h>
#include <string.h>
#include "worker/backend/cpu/cpu.h"
#include "worker/train/host.h"
#ifdef BF_WITH_CUDA
#include "worker/backend/cuda/cuda.h"
#include "worker/comm/comm_nccl.h"
#endif

/* A rank that says nothing for so long is lost. Longer than anything one rank does alone between two
 * collectives (reading a data set, writing a checkpoint). */
enum { DEVICE_TIMEOUT_MS = 10 * 60 * 1000 };

#ifdef BF_WITH_CUDA

/* To look for a fault: recorded steps off. The bits are the same. */
static bool records_steps(void)
{
    const char *v = getenv("BATCHFORMER_CUDA_GRAPHS");

    return !v || strcmp(v, "0") != 0;
}

static struct backend *gpu_backend(const struct jobspec *spec, struct comm *comm, struct err *e)
{
    struct cuda_config cfg = {.allow_tf32 = spec->train.precision == PRECISION_TF32,
                              .deterministic = true,
                              .graphs = records_steps()};
    int n_here, n_gpus;

    if (host_local_rank(comm, &cfg.device, &n_here, e) < 0)
        return NULL;
    if ((n_gpus = cuda_device_count(e)) == 0)
        return NULL;
    if (n_here > n_gpus) {
        err_set(e, "%d ranks run on this host, and it has %d GPUs for them: one for each is needed", n_here,
                n_gpus);
        return NULL;
    }
    return cuda_backend_create(&cfg, e);
}

static struct comm *gpu_comm(struct comm *comm, struct backend *be, struct err *e)
{
    struct comm_nccl_config cfg = {.timeout_ms = DEVICE_TIMEOUT_MS};

    cuda_backend_streams(be, &cfg.compute_stream, &cfg.comm_stream);
    return comm_nccl_create(comm, &cfg, e);
}

static void probe_gpus(cJSON *doc)
{
    struct err e = ERR_INIT;
    int n = cuda_device_count(&e);
    cJSON *gpus = cJSON_AddArrayToObject(doc, "gpus");

    for (int i = 0; i < n; i++)
        cJSON_AddItemToArray(gpus, cuda_probe_device(i));
    if (n == 0)
        cJSON_AddStringToObject(doc, "gpus_trouble", e.msg);
    cuda_probe_versions(doc);
    cJSON_AddNumberToObject(doc, "nccl", comm_nccl_version());
}

#else

static struct backend *gpu_backend(const struct jobspec *spec, struct comm *comm, struct err *e)
{
    (void)comm;
    err_set_kind(
        e, ERR_SPEC,
        "/resources/gpus_per_rank: %d found, 0 is accepted: this build has no CUDA backend (configure with "
        "-DWITH_CUDA=ON where the CUDA toolkit, cuDNN and NCCL are installed)",
        spec->resources.gpus_per_rank);
    return NULL;
}

static struct comm *gpu_comm(struct comm *comm, struct backend *be, struct err *e)
{
    (void)be;
    (void)e;
    return comm;
}

static void probe_gpus(cJSON *doc)
{
    cJSON_AddArrayToObject(doc, "gpus");
    cJSON_AddStringToObject(doc, "gpus_trouble", "this build has no CUDA backend");
}

#endif

static struct backend *cpu_backend(const struct jobspec *spec, int n_threads, struct err *e)
{
    const struct cpu_config cfg = {.n_threads = n_threads, .winograd = spec->train.winograd};
    struct backend *be = cpu_backend_create(&cfg, e);

    if (!be || be->ops->bf16 || spec->train.precision != PRECISION_BF16)
        return be;
    err_set_kind(e, ERR_SPEC,
                 "/train/precision: \"bf16\" found, \"fp32\" is accepted on this host: bf16 needs a CPU with "
                 "AVX-512, and this one has %s",
                 cpu_isa());
    be->ops->destroy(be);
    return NULL;
}

struct backend *device_backend(const struct jobspec *spec, struct comm *comm, int n_threads, struct err *e)
{
    return spec->resources.gpus_per_rank > 0 ? gpu_backend(spec, comm, e) : cpu_backend(spec, n_threads, e);
}

struct comm *device_comm(struct comm *comm, struct backend *be, struct err *e)
{
    return strcmp(be->ops->name, "cpu") == 0 ? comm : gpu_comm(comm, be, e);
}

cJSON *device_probe(void)
{
    cJSON *doc = cJSON_CreateObject();

    cJSON_AddStringToObject(doc, "version", BF_VERSION);
    cJSON_AddNumberToObject(doc, "cores", host_cores());
    cJSON_AddNumberToObject(doc, "memory_bytes", (double)host_memory_bytes());
    probe_gpus(doc);
    return doc;
}
