/* cut - n things cut into parts that tile [0, n) in order and differ by at most one: rows among ranks, rows
 * among micro-shards, micro-shards among ranks, elements among ranks. Everyone who cuts uses this rule, so
 * that two who cut the same thing agree.
 */
#ifndef COMMON_CUT_H
#define COMMON_CUT_H

#include <stdint.h>

/* First thing of part k of `parts`; k = parts gives n. n * parts must fit into 64 bits. */
static inline int64_t cut_first(int64_t n, int64_t parts, int64_t k)
{
    return n * k / parts;
}

#endif
