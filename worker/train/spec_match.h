/* spec_match - may a run with this spec go on from a checkpoint of that spec?
 *
 * Everything that shapes the function being trained must be equal: model, module, data, loss, optimiser, seed
 * and global batch size. What may differ is a short list of JSON Pointers in spec_match.c: how long, how
 * often, where and with which resources. Both documents are resolved specs, with every default written out;
 * a key that an older version did not have counts as null.
 */
#ifndef TRAIN_SPEC_MATCH_H
#define TRAIN_SPEC_MATCH_H

#include <cjson/cJSON.h>
#include "common/err.h"

/* 0, or -1 (kind ERR_SPEC) with the first field that differs and both its values. */
int spec_match(const cJSON *saved, const cJSON *now, struct err *e);

#endif
