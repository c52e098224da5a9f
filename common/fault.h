/* fault - named points where a test can make this process fail.
 *
 * BATCHFORMER_FAULT="checkpoint.before_rename:kill,store.commit:error@3" makes the named point act; "@n"
 * waits for the n-th time that the point is passed in this process (default 1). Actions: "kill" (SIGKILL to
 * itself), "exit" (_exit(9)), "stop" (SIGSTOP), "loop" (never comes back, and takes a core), "nap" (100 ms,
 * from that time on each time), "error" (fault_hit returns true and the caller fails as if the call behind it
 * had failed). Unset, as in production, a point costs one getenv at coarse places only; the one in a step is
 * passed only when fault_any() was true at the start.
 */
#ifndef COMMON_FAULT_H
#define COMMON_FAULT_H

#include <stdbool.h>

/* True when the caller must fail now. *count is the point's pass counter, owned by the caller's context. */
bool fault_hit(const char *point, int *count);

/* Is any fault asked for? */
bool fault_any(void);

#endif
