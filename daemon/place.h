/* place - where the ranks of an attempt are: pieces of nodes, in the order of ranks.
 *
 * As text, in the journal and on the launcher's way: "a:2,b:1" is two ranks on node a and one on b;
 * "a:2@0+3,b:1@1" also says which GPUs of the node they have. Names of nodes are host names: letters, digits,
 * '.', '_' and '-'.
 */
#ifndef DAEMON_PLACE_H
#define DAEMON_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/err.h"

enum { PLACE_MAX_GPUS = 64, PLACE_MAX_NAME = 256 }; /* of a node */

struct place_piece {
    char *node;
    int64_t ranks;
    uint64_t gpus; /* bit i: GPU i of the node */
};

struct place {
    struct place_piece *v;
    int64_t n;
};

bool place_is_name(const char *name);

/* Adds a piece. */
void place_add(struct place *p, const char *node, int64_t ranks, uint64_t gpus);

/* *p is empty before. -1 leaves it empty. */
int place_parse(struct place *p, const char *text, struct err *e);

/* malloc'ed. */
char *place_text(const struct place *p);

/* "node1", "node1 and node2", "node1, node2 and 5 more": for sentences. */
void place_brief(const struct place *p, char *out, size_t size);

int64_t place_ranks(const struct place *p);

/* Is all of it on one node, this one? */
bool place_is_on(const struct place *p, const char *node);

void place_free(struct place *p);

/* "0,3" for bits 0 and 3, as CUDA_VISIBLE_DEVICES has it; malloc'ed. */
char *place_gpu_list(uint64_t gpus, char separator);

#endif
