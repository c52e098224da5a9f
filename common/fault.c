/* fault - see fault.h. */
#include "common/fault.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Finds "point:action[@n]" in the list; copies the action. */
static bool find_action(const char *list, const char *point, char *action, size_t size, int *nth)
{
    size_t n = strlen(point);

    for (const char *p = list; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
        if (strncmp(p, point, n) != 0 || p[n] != ':')
            continue;
        const char *a = p + n + 1;
        size_t len = strcspn(a, ",@");
        if (len >= size)
            return false;
        memcpy(action, a, len);
        action[len] = 0;
        *nth = a[len] == '@' ? atoi(a + len + 1) : 1;
        return true;
    }
    return false;
}

bool fault_hit(const char *point, int *count)
{
    const char *list = getenv("BATCHFORMER_FAULT");
    char action[16];
    int nth;

    if (!list || !find_action(list, point, action, sizeof action, &nth))
        return false;
    if (++*count != nth)
        return false;
    if (strcmp(action, "kill") == 0)
        kill(getpid(), SIGKILL);
    else if (strcmp(action, "stop") == 0)
        kill(getpid(), SIGSTOP);
    else if (strcmp(action, "exit") == 0)
        _exit(9);
    return strcmp(action, "error") == 0;
}
