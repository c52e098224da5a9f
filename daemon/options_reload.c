/* options_reload - reading the config file again while jobs run: SIGHUP.
 *
 * All is read and checked aside before anything is taken over, so that a bad file changes nothing. What may
 * change is what every user of an option reads anew each time; the rest is told and waits for the next start.
 */
#include "daemon/options.h"

#include <stdio.h>
#include <string.h>

static const char *const live[] = {
    "data-root",
    "grace-ms",
    "grow-ms",
    "half-life-s",
    "kill-ms",
    "log-format",
    "log-level",
    "login-ms",
    "max-clients",
    "max-jobs",
    "max-spec-bytes",
    "max-user-jobs",
    "max-user-clients",
    "no-preempt",
    "no-resize",
    "retry-max-ms",
    "retry-ms",
    "stop-ms",
    "user-request-burst",
    "user-requests-per-s",
    "user-submit-burst",
    "user-submits-per-s",
    "yield-ms",
};

static bool is_live(const char *name)
{
    for (size_t i = 0; i < sizeof live / sizeof *live; i++)
        if (strcmp(live[i], name) == 0)
            return true;
    return false;
}

int options_reload(struct options *o, options_change_fn *fn, void *ctx, struct err *e)
{
    struct options fresh;
    char old[256], new[256];
    size_t n_rows;
    const struct conf_option *rows = options_rows(&n_rows);
    int rc = options_read(&fresh, o->argc, o->argv, e);

    for (size_t i = 0; rc == 0 && i < n_rows; i++) {
        bool applied = is_live(rows[i].name);
        if (conf_value_equal(&rows[i], o, &fresh))
            continue;
        conf_value_text(&rows[i], o, old, sizeof old);
        conf_value_text(&rows[i], &fresh, new, sizeof new);
        if (applied)
            conf_value_swap(&rows[i], o, &fresh);
        fn(ctx, rows[i].name, old, new, applied);
    }
    if (rc == 0) {
        o->level = fresh.level;
        o->format = fresh.format;
    }
    options_free(&fresh);
    return rc;
}
