/* tmp_state - a directory for one test, removed at its end. */
#ifndef TESTS_UNIT_DAEMON_TMP_STATE_H
#define TESTS_UNIT_DAEMON_TMP_STATE_H

#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"

struct tmp_state {
    char dir[64];
    char *db;
};

static inline void tmp_state_make(struct tmp_state *t)
{
    strcpy(t->dir, "/tmp/bf-daemon-XXXXXX");
    assert_non_null(mkdtemp(t->dir));
    t->db = fs_join(t->dir, "state.db");
}

static inline void tmp_state_remove(struct tmp_state *t)
{
    free(t->db);
    fs_remove_tree(t->dir, NULL);
}

#endif
