/* step_dir - see step_dir.h. */
#include "common/step_dir.h"
#include "common/buf.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

char *step_dir_path(const char *checkpoints, int64_t step)
{
    return xasprintf("%s/step-%08lld", checkpoints, (long long)step);
}

int64_t step_dir_parse(const char *name)
{
    if (strncmp(name, "step-", 5) != 0 || !name[5] || name[5 + strspn(name + 5, "0123456789")])
        return -1;
    errno = 0;
    long long step = strtoll(name + 5, NULL, 10);
    return errno ? -1 : step;
}

int64_t step_dir_newest(const char *checkpoints)
{
    DIR *d = opendir(checkpoints);
    int64_t newest = -1;

    for (struct dirent *ent; d && (ent = readdir(d));) {
        int64_t step = step_dir_parse(ent->d_name);
        newest = step > newest ? step : newest;
    }
    if (d)
        closedir(d);
    return newest;
}
