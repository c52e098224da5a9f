/* run_dir - what the coordinator reads and writes in <state-dir>/runs/<id>/.
 *
 * Under root the directory of another user's job is that user's, who may put anything there. So whatever is
 * done inside it is done with its owner's rights (as_user.h), links in the place of files are not followed,
 * and what is read must be a file, not a pipe that would keep us waiting.
 */
#ifndef DAEMON_RUN_DIR_H
#define DAEMON_RUN_DIR_H

#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"

/* All paths are malloc'ed. */
char *run_dir_path(const char *state_dir, int64_t id);
char *run_dir_log(const char *run_dir, int64_t rank); /* rank < 0: the launcher's */

/* The job id that an entry of <state-dir>/runs stands for; 0 when it is none. */
int64_t run_dir_id(const char *name);

/* The largest job id that has a directory in <state-dir>/runs; 0 when there is none. */
int64_t run_dir_max_id(const char *state_dir);

/* What an attempt is started with. */
struct run_dir_attempt {
    int64_t job, attempt, n_ranks;
    int64_t uid; /* whose it is; counts under root only */
};

/* Makes the directory with log/ and writes job.json, the resolved spec; idempotent. Removes the result.json
 * of an attempt before: from now on it speaks of the attempt that begins. Adds a line to the launcher's log
 * that says where the attempt begins. Under root the directory has mode 0700 and belongs to the user, and for
 * another user's job the directories above it are made so that he can pass through them. */
int run_dir_prepare(const char *run_dir, const char *spec, const struct run_dir_attempt *at, struct err *e);

/* Opens a file in the run directory for reading, by its whole path. -1 when there is none, or it is no file.
 */
int run_dir_open(const char *run_dir, const char *path, struct err *e);

/* Opens the launcher's log for appending; makes it when there is none. */
int run_dir_open_log(const char *run_dir, struct err *e);

/* Has a worker left anything there? Then the next one goes on with it. */
bool run_dir_has_run(const char *run_dir);

/* Step of the newest checkpoint, -1 when there is none. Checkpoints appear by rename, so one that is there is
 * whole. */
int64_t run_dir_checkpoint_step(const char *run_dir);

/* Removes result.json, if there is one. */
int run_dir_forget_result(const char *run_dir, struct err *e);

/* Reads result.json's status and reason; -1 when there is none that can be read. */
struct run_result {
    char status[16];
    char reason[512];
    bool peer_lost; /* the worker's status 4, for those who did not see its end */
};
int run_dir_result(const char *run_dir, struct run_result *out);

/* The end of what the launcher's log says about the latest attempt, malloc'ed, "" when there is nothing. */
char *run_dir_launcher_tail(const char *run_dir);

#endif
