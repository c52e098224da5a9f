/* tuning - which of several ways to compute the same thing is taken: a table from problem to choice.
 *
 * A library has several engines for one problem, and only a clock tells which is the fastest. Engines round
 * differently, and two measurements may end differently; so a choice is written down with the run that made
 * it (train/plans.h), and a run that goes on takes what it took before.
 *
 * A key names library, version, device and problem: what is found under it means the same as when it was put
 * there. "cudnn 91900 NVIDIA H100 80GB HBM3 (256, 56, 56, 64) 3x3/1 pad 1 to 64 groups 1 bf16 forward". A
 * choice is the library's own name of an engine, "eng37_k2=5_k13=1". Backends make both and are the only ones
 * to read them; struct backend has the table.
 *
 * Ranks. One rank measures, the others look up what it found: each rank by itself might find another engine.
 * Where the number of ranks does not divide the mini-batch, slices differ by one row; so every rank names a
 * problem with the rows that rank 0 has of it (tuning_rows()), and the keys of all ranks are the same. Rows
 * are not left out of the key, because the fastest engine for 256 rows need not be that for 32: a run that
 * goes on with another number of ranks measures for the rows that it then has.
 *
 * A backend that chooses: tuning_lookup(); without an entry, and where tuning_measures(), measure; without
 * either, the library's own first choice. Then tuning_record() what was taken, whatever the way.
 */
#ifndef ENGINE_TUNING_H
#define ENGINE_TUNING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/err.h"
#include "common/log.h"

struct tuning;

/* An empty table. measures: what is not in it may be measured, on this rank. log: where backends tell what
 * they could not do as the table says; borrowed, may be NULL. */
struct tuning *tuning_create(bool measures, const struct log *log);
void tuning_destroy(struct tuning *t); /* NULL is legal */

bool tuning_measures(const struct tuning *t);
const struct log *tuning_log(const struct tuning *t);

/* The choice under the key, valid until the entry changes; NULL: there is none. */
const char *tuning_lookup(const struct tuning *t, const char *key);

/* Sets the choice under the key. Both are not empty; copied. */
void tuning_put(struct tuning *t, const char *key, const char *choice);

/* Tells what was taken, and counts it. On the rank that measures, it is then what the table says. */
void tuning_record(struct tuning *t, const char *key, const char *choice);

/* What tuning_record() was told since the table was made. */
struct tuning_counts {
    int found;  /* taken as the table said */
    int chosen; /* new in the table, or other than it said: only where tuning_measures() */
    int missed; /* another than the table says, or not in it: only elsewhere */
};

struct tuning_counts tuning_counts(const struct tuning *t);
int tuning_size(const struct tuning *t);

/* Rows of the mini-batch on this rank (>= 0) and on rank 0, of the program that is being compiled. */
void tuning_set_rows(struct tuning *t, int64_t local, int64_t rank0);

/* n as rank 0 has it: n is a number of rows of this rank, or a multiple of it. What is neither, is as it is.
 */
int64_t tuning_rows(const struct tuning *t, int64_t n);

/* As JSON: {"version": 1, "plans": {KEY: CHOICE, …}}. The text is malloc'ed. What is read takes the place of
 * all entries; what cannot be read leaves the table as it was. Messages of the file name its path. */
char *tuning_text(const struct tuning *t);
int tuning_parse(struct tuning *t, const char *text, size_t len, struct err *e);
int tuning_load(struct tuning *t, const char *path, struct err *e);
int tuning_save(const struct tuning *t, const char *path, struct err *e); /* whole or not at all */

#endif
