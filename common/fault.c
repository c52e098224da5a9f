/* fault - see fault.h. */
#include "common/fault.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NAP_US = 100000 };

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
    bool naps = strcmp(action, "nap") == 0;
    if (++*count < nth || (*count > nth && !naps))
        return false;
    if (strcmp(action, "kill") == 0)
        kill(getpid(), SIGKILL);
    else if (strcmp(action, "stop") == 0)
        kill(getpid(), SIGSTOP);
    else if (strcmp(action, "exit") == 0)
        _exit(9);
    else if (naps)
        usleep(NAP_US);
    else if (strcmp(action, "loop") == 0)
        for (volatile int turning = 1; turning;)
            continue;
    return strcmp(action, "error") == 0;
}

bool fault_any(void)
{
    return getenv("BATCHFORMER_FAULT") != NULL;
}
