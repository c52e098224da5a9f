/* user_env - see user_env.h. What is not on the list stays with root: its secrets, its HOME, LD_PRELOAD. */
#include "daemon/user_env.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_OF_USER = 4 };

/* Those that end in '_' are beginnings of names. */
static const char *const known[] = {
    "PATH",      "LANG", "LANGUAGE", "LC_", "TZ",    "LD_LIBRARY_PATH", "OMP_",    "GOMP_",
    "OMPI_MCA_", "UCX_", "NCCL_",    "FI_", "CUDA_", "DNNL_",           "ONEDNN_", "BATCHFORMER_CUDA_GRAPHS",
};

/* What an mpirun says to its own ranks: passed on, the new one would take itself for one of them. */
static const char *const never[] = {"OMPI_MCA_orte_", "OMPI_MCA_ess", "OMPI_MCA_pmix"};

static bool begins(const char *var, const char *with)
{
    return strncmp(var, with, strlen(with)) == 0;
}

static bool is_known(const char *var)
{
    bool found = false;

    for (size_t i = 0; i < sizeof known / sizeof *known && !found; i++) {
        size_t n = strlen(known[i]);
        found = begins(var, known[i]) && (known[i][n - 1] == '_' || var[n] == '=');
    }
    for (size_t i = 0; i < sizeof never / sizeof *never && found; i++)
        found = !begins(var, never[i]);
    return found;
}

static bool is_set_by(const char *var, const char *const *list, size_t n)
{
    size_t len = strcspn(var, "=");

    for (size_t i = 0; i < n; i++)
        if (strncmp(var, list[i], len + 1) == 0)
            return true;
    return false;
}

char **user_env(const struct identity *who, const char *const *ours, size_t n_ours)
{
    size_t n_env = 0, n = 0;

    while (environ[n_env])
        n_env++;
    char **env = xcalloc(n_env + N_OF_USER + n_ours + 1, sizeof *env);
    for (size_t i = 0; i < n_env; i++)
        if (is_known(environ[i]) && !is_set_by(environ[i], ours, n_ours))
            env[n++] = xstrdup(environ[i]);
    env[n++] = xasprintf("HOME=%s", who->home);
    env[n++] = xasprintf("USER=%s", who->name);
    env[n++] = xasprintf("LOGNAME=%s", who->name);
    env[n++] = xstrdup("SHELL=/bin/sh");
    for (size_t i = 0; i < n_ours; i++)
        env[n++] = xstrdup(ours[i]);
    return env;
}
