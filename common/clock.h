/* clock - monotonic time for durations, wall time for people. */
#ifndef COMMON_CLOCK_H
#define COMMON_CLOCK_H

#include <stdint.h>

/* Nanoseconds since an arbitrary start; never runs backwards. */
int64_t clock_mono_ns(void);

/* Milliseconds since the Unix epoch. */
int64_t clock_wall_ms(void);

/* "2026-01-31T09:30:00.123Z" (24 characters and a NUL). */
void clock_iso(int64_t wall_ms, char out[32]);

#endif
