/* mpirun - see mpirun.h. */
#include "common/mpirun.h"
#include "common/err.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CHANGES = 32 };

char *mpirun_find(void)
{
    const char *path = getenv("PATH");

    for (const char *p = path ? path : "/usr/bin:/bin"; *p;) {
        size_t n = strcspn(p, ":");
        char *full = xasprintf("%.*s/mpirun", (int)n, p);
        if (n && access(full, X_OK) == 0)
            return full;
        free(full);
        p += n + (p[n] == ':');
    }
    return NULL;
}

static bool is_foreign(const char *var)
{
    static const char *const prefixes[] = {"OMPI_COMM_", "OMPI_UNIVERSE_", "OMPI_FILE_",   "ORTE_", "PMIX_",
                                           "PMI_",       "OMPI_MCA_orte_", "OMPI_MCA_ess", "SLURM_"};

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(var, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

static bool same_name(const char *var, const char *change)
{
    size_t n = strcspn(change, "=");

    return strncmp(var, change, n) == 0 && var[n] == '=';
}

const char *mpirun_spin_count(void)
{
    const char *set = getenv(MPIRUN_SPIN_NAME);

    return set ? set : "1000";
}

char **mpirun_env(const char *const *changes, size_t n_changes)
{
    const char *all[MAX_CHANGES];
    size_t n_all = 0, n_env = 0, n = 0;

    ASSERT(n_changes + 3 <= MAX_CHANGES);
    for (; n_all < n_changes; n_all++)
        all[n_all] = changes[n_all];
    char *spin = xasprintf("%s=%s", MPIRUN_SPIN_NAME, mpirun_spin_count());
    all[n_all++] = spin;
    if (getuid() == 0) {
        all[n_all++] = "OMPI_ALLOW_RUN_AS_ROOT=1";
        all[n_all++] = "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1";
    }
    while (environ[n_env])
        n_env++;
    char **env = xcalloc(n_env + n_all + 1, sizeof *env);
    for (size_t i = 0; i < n_env; i++) {
        bool changed = is_foreign(environ[i]);
        for (size_t k = 0; k < n_all && !changed; k++)
            changed = same_name(environ[i], all[k]);
        if (!changed)
            env[n++] = xstrdup(environ[i]);
    }
    for (size_t k = 0; k < n_all; k++)
        if (strchr(all[k], '='))
            env[n++] = xstrdup(all[k]);
    free(spin);
    return env;
}

void mpirun_free(char **list)
{
    for (char **p = list; p && *p; p++)
        free(*p);
    free(list);
}
