/* device - see device.h. What is of GPUs comes from the module of gpu.h, which is loaded when it is asked
 * for.
 */
#include "worker/device.h"

#include <stdlib.h>
#include <string.h>
#include "worker/backend/cpu/cpu.h"
#include "worker/gpu.h"
#include "worker/train/host.h"

/* A rank that says nothing for so long is lost. Longer than anything one rank does alone between two
 * collectives (reading a data set, writing a checkpoint). */
enum { DEVICE_TIMEOUT_MS = 10 * 60 * 1000 };

/* To look for a fault: recorded steps off. The bits are the same. */
static bool records_steps(void)
{
    const char *v = getenv("BATCHFORMER_CUDA_GRAPHS");

    return !v || strcmp(v, "0") != 0;
}

static struct backend *gpu_backend(const struct jobspec *spec, struct comm *comm, struct err *e)
{
    struct gpu_config cfg = {.allow_tf32 = spec->train.precision == PRECISION_TF32,
                             .graphs = records_steps()};
    const struct gpu_module *gpu;
    int n_here, n_gpus;

    /* Before the module: every rank must come to this exchange. */
    if (host_local_rank(comm, &cfg.device, &n_here, e) < 0)
        return NULL;
    if (!(gpu = gpu_module_open(e))) {
        if (e->kind == ERR_SPEC)
            err_wrap(e, "/resources/gpus_per_rank: %d found, 0 is accepted", spec->resources.gpus_per_rank);
        return NULL;
    }
    if ((n_gpus = gpu->device_count(e)) == 0)
        return NULL;
    if (n_here > n_gpus) {
        err_set(e, "%d ranks run on this host, and it has %d GPUs for them: one for each is needed", n_here,
                n_gpus);
        return NULL;
    }
    return gpu->backend_create(&cfg, e);
}

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
    const struct gpu_module *gpu;

    if (strcmp(be->ops->name, "cpu") == 0)
        return comm;
    gpu = gpu_module_open(e);
    return gpu ? gpu->comm_create(comm, be, DEVICE_TIMEOUT_MS, e) : NULL;
}

static void probe_gpus(cJSON *doc)
{
    struct err e = ERR_INIT;
    const struct gpu_module *gpu = gpu_module_open(&e);

    if (gpu) {
        gpu->probe(doc);
        return;
    }
    cJSON_AddArrayToObject(doc, "gpus");
    cJSON_AddStringToObject(doc, "gpus_trouble", e.msg);
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
