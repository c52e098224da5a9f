/* estimate_machine - the machines that estimate.h knows, one row each. docs/scaling.md says where each figure
 * comes from.
 */
#include "proto/estimate.h"

#include <stdio.h>
#include <string.h>

const struct estimate_machine estimate_machines[] = {
    {
        .name = "cpu-core",
        .description = "one core of an AMD EPYC a rank, all ranks on one host, Open MPI in shared memory",
        .measured = true,
        .flops_per_s = {[PAPER_CONV] = {220e9, 0, 385e9}, [PAPER_GEMM] = {265e9, 0, 265e9}},
        .memory_bytes_per_s = 21e9,
        .op_s = 10e-6,
        .latency_s = {0.2e-6, 0.2e-6},
        .bytes_per_s = {2.5e9, 2.5e9},
        .overlaps = false,
    },
    {
        .name = "h100-nvlink",
        .description = "H100 SXM, all ranks in one NVLink domain (hosts have 8; more is a bound from above)",
        .gpu = true,
        .flops_per_s = {[PAPER_CONV] = {33.5e12, 247e12, 494e12}, [PAPER_GEMM] = {33.5e12, 247e12, 494e12}},
        .memory_bytes_per_s = 2.85e12,
        .op_s = 3e-6,
        .latency_s = {1.5e-6, 1.5e-6},
        .bytes_per_s = {370e9, 370e9},
        .overlaps = true,
    },
    {
        .name = "h100-400g",
        .description = "H100 SXM, 8 a host in NVLink, a 400 Gbit/s adapter for each between hosts",
        .gpu = true,
        .ranks_per_host = 8,
        .flops_per_s = {[PAPER_CONV] = {33.5e12, 247e12, 494e12}, [PAPER_GEMM] = {33.5e12, 247e12, 494e12}},
        .memory_bytes_per_s = 2.85e12,
        .op_s = 3e-6,
        .latency_s = {1.5e-6, 8e-6},
        .bytes_per_s = {370e9, 350e9},
        .overlaps = true,
    },
    {0},
};

const struct estimate_machine *estimate_machine_find(const char *name, const struct jobspec *spec,
                                                     struct err *e)
{
    char names[128] = "";

    if (!name)
        name = spec->resources.gpus_per_rank ? "h100-400g" : "cpu-core";
    for (const struct estimate_machine *m = estimate_machines; m->name; m++) {
        if (strcmp(m->name, name) == 0)
            return m;
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", m->name);
    }
    err_set_kind(e, ERR_USAGE, "machine \"%.40s\" found, one of %s is accepted", name, names);
    return NULL;
}
