/* synth - synthetic labelled images for smoke tests and benches, made so that a small net can learn them.
 *
 * Image i has label i mod K. Its pixels are grey 128, plus a pattern of its class (a coarse grid of random
 * signs per channel), plus noise of its own. Everything is drawn by Philox from (seed, purpose, class or
 * image, pixel) in whole numbers: the same bytes on every machine and for every number of ranks. Train and
 * test share the patterns and differ in the noise.
 */
#ifndef DATA_SYNTH_H
#define DATA_SYNTH_H

#include <stdint.h>
#include "common/err.h"
#include "worker/data/dataset.h"

struct synth_config {
    int h, w, c;                             /* within dataset.h's limits */
    int classes;                             /* >= 2 */
    int64_t train_per_class, test_per_class; /* >= 1 */
    uint64_t seed;
};

/* Makes both parts. The caller frees *out with dataset_pair_free. */
int synth_open(const struct synth_config *cfg, struct dataset_pair *out, struct err *e);

#endif
