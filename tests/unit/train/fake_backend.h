/* fake_backend - a backend that has memory, some flat sweeps (SGD and the moving average of the optimisers')
 * and no kernels: enough for parameters, optimiser and checkpoints. */
#ifndef TEST_FAKE_BACKEND_H
#define TEST_FAKE_BACKEND_H

#include "worker/engine/backend.h"

extern struct backend fake_backend;

/* Parameters "layer.weight" (4,3), "layer.bias" (4), "bn.weight" (5), buffers "bn.running_mean" (5) and
 * "bn.running_var" (5), constant "prior" (4), "batchformer.w" (2,2), "fc.weight" (classes,5), "fc.bias"
 * (classes); finalised with the seed. */
struct params *fake_params(uint64_t seed, int classes);

#endif
