/* gpu_load - finds and loads the GPU module; see gpu.h. */
#include "worker/gpu.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"

static const char *reason(void)
{
    const char *text = dlerror();

    return text ? text : "no reason given";
}

/* Libraries that it needs are looked for as the system's loader does it, and where it was linked. */
static const struct gpu_module *load(const char *path, struct err *e)
{
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const struct gpu_module *m = object ? dlsym(object, GPU_MODULE_SYMBOL) : NULL;

    if (!object)
        err_set(e,
                "the GPU module %s cannot be loaded: %s; the CUDA runtime, cuBLAS, cuDNN and NCCL of the "
                "versions that it was built with must be installed (LD_LIBRARY_PATH may say where)",
                path, reason());
    else if (!m)
        err_set(e, "%s is not batchformer's GPU module: %s", path, reason());
    else if (strcmp(m->version, BF_VERSION) != 0)
        err_set(e, "the GPU module %s is of version %s, this worker of %s: install both from one build", path,
                m->version, BF_VERSION);
    else
        return m;
    if (object)
        dlclose(object);
    return NULL;
}

const struct gpu_module *gpu_module_open(struct err *e)
{
    char *dir = fs_self_dir(), *beside = fs_join(dir, GPU_MODULE_FILE);
    char *lib = fs_join(dir, "../lib/batchformer/" GPU_MODULE_FILE);
    const struct gpu_module *m = NULL;

    if (fs_exists(beside))
        m = load(beside, e);
    else if (fs_exists(lib))
        m = load(lib, e);
    else
        err_set_kind(e, ERR_SPEC,
                     "this installation has no GPU module: neither %s nor %s is there; it is built with "
                     "-DWITH_CUDA=ON where the CUDA toolkit, cuDNN and NCCL are installed",
                     beside, lib);
    free(lib);
    free(beside);
    free(dir);
    return m;
}
