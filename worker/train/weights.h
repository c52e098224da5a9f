/* weights - a model's named tensors to and from safetensors files.
 *
 * Tensors have the names and layouts of the usual state_dict (torchvision's for ResNets), so files go both
 * ways between us and PyTorch. Batch norm's num_batches_tracked (int64 scalars) is written for PyTorch's
 * sake, one next to every running_mean, and ignored on reading. PARAM_CONST values are never saved.
 *
 * Everything here runs on one rank; whoever loads then broadcasts.
 */
#ifndef TRAIN_WEIGHTS_H
#define TRAIN_WEIGHTS_H

#include "common/log.h"
#include "worker/engine/backend.h"
#include "common/safetensors.h"

struct optim_states; /* optim.h */

/* Called before tensor i of n is written, for fault points; a return of -1 stops the writing. */
struct weights_hook {
    int (*before)(void *arg, int i, int n, struct err *e);
    void *arg;
};

/* Writes weights and buffers whose names do not start with `skip_prefix` (NULL: all). `step` goes into
 * num_batches_tracked. `hook` may be NULL. */
int weights_save(const char *path, const struct params *ps, const char *skip_prefix, int64_t step,
                 const struct weights_hook *hook, struct err *e);

/* Writes a tensor STATE.NAME for each state and every PARAM_WEIGHT. */
int weights_save_states(const char *path, const struct params *ps, const struct optim_states *states,
                        const struct weights_hook *hook, struct err *e);

/* A checkpoint's file: every weight and buffer must be there with its shape, and nothing else. */
int weights_load(const struct safetensors *f, struct params *ps, struct err *e);
int weights_load_states(const struct safetensors *f, const struct params *ps,
                        const struct optim_states *states, struct err *e);

/* A file of someone's (init.weights). The classifier's tensors ("CLASSIFIER.weight", ".bias") may be absent,
 * and so may all tensors under `train_only`: they keep their initialisation and the log says so. A tensor of
 * another shape, any other tensor that is missing, and tensors that the model does not know are errors that
 * name it. */
int weights_load_init(const char *path, struct params *ps, const char *classifier, const char *train_only,
                      const struct log *log, struct err *e);

/* Elements of all PARAM_WEIGHT tensors. */
int64_t weights_count(const struct params *ps);

#endif
