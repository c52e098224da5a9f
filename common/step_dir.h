/* step_dir - how a checkpoint's directory is called: checkpoints/step-00000123, of the step after which it
 * was written. The worker writes them; the daemon and the client look for the newest. */
#ifndef COMMON_STEP_DIR_H
#define COMMON_STEP_DIR_H

#include <stdint.h>

/* CHECKPOINTS/step-00000123, malloc'ed. */
char *step_dir_path(const char *checkpoints, int64_t step);

/* The step of a directory entry's name; -1 for every other name. */
int64_t step_dir_parse(const char *name);

/* The highest step that has a directory there; -1 when there is none, or no such folder. */
int64_t step_dir_newest(const char *checkpoints);

#endif
