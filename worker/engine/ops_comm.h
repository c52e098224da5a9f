/* ops_comm - kernels of the operators that are collectives: the same for every backend, since a communicator
 * works on its backend's pointers. */
#ifndef ENGINE_OPS_COMM_H
#define ENGINE_OPS_COMM_H

#include "worker/engine/backend.h"

/* NULL when op is not a collective. */
const struct kernel *comm_kernel(enum op op);

#endif
