/* rank_list - see rank_list.h. */
#include "cli/rank_list.h"

#include <stdlib.h>

int rank_list_parse(const char *text, int most, int *v, int cap, struct err *e)
{
    int n = 0;

    for (const char *p = text;;) {
        char *end;
        long ranks = strtol(p, &end, 10);
        if (*p < '1' || *p > '9' || ranks > most || (*end && *end != ',') || n == cap)
            return err_set_kind(
                e, ERR_USAGE,
                "--ranks: '%s' found, at most %d world sizes are accepted: whole numbers from 1 to %d "
                "with commas between them",
                text, cap, most);
        v[n++] = (int)ranks;
        if (!*end)
            return n;
        p = end + 1;
    }
}
