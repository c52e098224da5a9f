/* verify - what bfctl verify compares: world sizes, kinds of comparison, tolerances; and how it is shown.
 *
 * The reference is the first world size. Three kinds of comparison:
 *   resumed       the reference that stopped before the last step and went on, with the reference that did
 *                 not: the same bits
 *   same weights  the last step, made by each world size from the reference's weights before it
 *   from start    all steps, made by each world size on its own
 */
#ifndef CLI_VERIFY_H
#define CLI_VERIFY_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include "cli/dump_compare.h"

enum verify_kind { VERIFY_RESUMED, VERIFY_SAME_WEIGHTS, VERIFY_FROM_START, VERIFY_KINDS };
enum verify_part { VERIFY_LOSS, VERIFY_GRADIENT, VERIFY_WEIGHTS, VERIFY_PARTS };

enum { VERIFY_MAX_WORLDS = 16 };

/* What one part of one kind may differ by. */
struct verify_limit {
    enum {
        VERIFY_NOT_COMPARED,
        VERIFY_NOT_JUDGED,
        VERIFY_AT_MOST,         /* the worst tensor */
        VERIFY_OVERALL_AT_MOST, /* all tensors as one */
        VERIFY_SAME_BITS,
    } rule;
    double at_most;
};

struct verify_limits {
    struct verify_limit v[VERIFY_KINDS][VERIFY_PARTS];
};

struct verify_comparison {
    bool made;
    struct dump_deviation part[VERIFY_PARTS]; /* of the loss, `where` is "step 7" */
};

struct verify_world {
    int n_ranks;
    struct verify_comparison kind[VERIFY_KINDS];
};

struct verify {
    const cJSON *spec; /* resolved */
    int64_t n_steps;
    bool bitwise; /* train.determinism */
    struct verify_limits limits;
    struct verify_world worlds[VERIFY_MAX_WORLDS]; /* the first is the reference */
    int n_worlds;
};

/* "same weights"; a number of ranks as "1 rank" or "2 ranks". */
const char *verify_kind_text(enum verify_kind k);
const char *verify_ranks_text(int n, char out[32]);

/* The limits of a job by its train.determinism and train.precision. from_start < 0: the defaults; else it
 * replaces those of loss and weights. */
void verify_limits(bool bitwise, bool bf16, double from_start, struct verify_limits *out);

/* Is everything that was compared within its limit? */
bool verify_within(const struct verify *v);

void verify_print(const struct verify *v);
void verify_print_json(const struct verify *v);

#endif
