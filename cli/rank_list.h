/* rank_list - the argument of --ranks where a command takes several: "1,2,4". */
#ifndef CLI_RANK_LIST_H
#define CLI_RANK_LIST_H

#include "common/err.h"

/* Numbers from 1 to `most` into v, at most `cap` of them. Returns how many, at least one; -1 with an error of
 * usage that has the text and what is accepted. */
int rank_list_parse(const char *text, int most, int *v, int cap, struct err *e);

#endif
