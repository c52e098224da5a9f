/* tensor - see tensor.h. */
#include "worker/engine/tensor.h"

#include <stdio.h>

const char *shape_text(struct shape s, char out[96])
{
    int n = snprintf(out, 96, "(");

    for (int i = 0; i < s.n_dims; i++)
        n += snprintf(out + n, 96 - (size_t)n, "%s%lld", i ? ", " : "", (long long)s.dims[i]);
    snprintf(out + n, 96 - (size_t)n, ")");
    return out;
}

const char *dtype_name(enum dtype t)
{
    static const char *const names[] = {"f32", "f64", "i32", "bf16"};

    return names[t];
}
