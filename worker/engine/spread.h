/* spread - how a node's value lies on the ranks, which decides how it is computed in micro-shards.
 *
 *   SHARED    the same on every rank: parameters, what was made of them alone, what was all-reduced
 *   ROWS      this rank's rows of the mini-batch, `streams` times one behind the other ([X; Z]: 2)
 *   ALL       all N rows on every rank: what was gathered
 *   PARTIAL   a sum over rows of which every rank has its shards' part: statistics, the loss
 *
 * Gradients mirror values: of ROWS they are rows, of SHARED and ALL they are PARTIAL (every shard that uses
 * the value contributes), of PARTIAL they are shared.
 */
#ifndef ENGINE_SPREAD_H
#define ENGINE_SPREAD_H

#include "worker/engine/graph.h"

enum spread_kind { SPREAD_SHARED, SPREAD_ROWS, SPREAD_ALL, SPREAD_PARTIAL };

struct spread {
    enum spread_kind kind;
    int streams; /* ROWS */
};

/* Finds the spread of every node (array of g->n_nodes). Fails, naming the node, where the graph does
 * something that the bitwise mode cannot do: statistics of one rank alone, an operator over gathered rows. */
int spread_find(const struct graph *g, struct spread *out, struct err *e);

/* Whether the node works on this rank's rows (of one of its inputs). */
bool spread_over_rows(const struct node *n, const struct spread *spread);

#endif
