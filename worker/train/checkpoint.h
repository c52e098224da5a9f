/* checkpoint - what a run needs to go on after it was stopped anywhere: complete on disk or absent.
 *
 *   DIR/step-00000200/manifest.json        step, epoch position, best metrics, receipts (receipt.h), spec,
 *                                            checksums of data and files
 *                      model.safetensors    weights and buffers (weights.h), module included
 *                      state.safetensors    what the optimiser keeps of every weight: momentum.NAME, …
 *                                             (optim.h)
 *
 * Manifests are of version 2. One of version 1 has no receipts: it is loaded, those of the steps before it
 * stay unknown, and the log says so.
 *
 * Nothing in it depends on the number of ranks: any world size goes on from it. Rank 0 alone writes and
 * reads.
 *
 * Saving: write into DIR/.tmp-…, each file flushed → manifest, with the checksum of each file and of itself →
 * rename the directory to its name → flush DIR → rename all but the newest `keep` to .tmp-… → remove those. A
 * crash at any point leaves every other checkpoint whole, and .tmp- directories that the next save removes.
 *
 * Loading: the newest first; one that is damaged (a file missing, of another size or checksum, or not
 * readable as what it should be) is named in the log and the one before is tried. A whole checkpoint that
 * belongs to another job (spec, data or tensors differ) is an error, never passed over.
 *
 * Fault points: "checkpoint.mid_write" in the middle of the second file, "checkpoint.before_rename",
 * "checkpoint.before_remove" when what is too old has lost its name.
 */
#ifndef TRAIN_CHECKPOINT_H
#define TRAIN_CHECKPOINT_H

#include <cjson/cJSON.h>
#include "common/hash.h"
#include "common/log.h"
#include "worker/train/optim.h"
#include "worker/train/receipt.h"

/* The best validation so far; epoch -1: none yet. */
struct checkpoint_best {
    int64_t epoch, step;
    double value;
};

/* The position of a run. */
struct checkpoint_state {
    int64_t step;          /* optimiser steps done */
    double epoch_loss_sum; /* of the steps done in the unfinished epoch */
    struct checkpoint_best best;
    struct receipts receipts;
};

struct checkpoint {
    char *dir;             /* RUN/checkpoints, owned */
    int64_t keep;          /* >= 1 */
    const cJSON *spec;     /* resolved; borrowed */
    const char *data_hash; /* task's fingerprint; borrowed */
    int world_size;        /* written for people, never read */
    const struct log *log;
    int fault_mid_write, fault_before_rename, fault_before_remove; /* pass counters of the fault points */
};

void checkpoint_init(struct checkpoint *c, const char *run_dir, int64_t keep);
void checkpoint_free(struct checkpoint *c);

int checkpoint_save(struct checkpoint *c, const struct checkpoint_state *st, const struct params *ps,
                    const struct optim_states *states, struct err *e);

/* 1: loaded into ps, the states and *st. 0: there is no checkpoint. -1: all are damaged, or one belongs to
 * another job; ps and the states may then hold parts of it. */
int checkpoint_load(struct checkpoint *c, struct checkpoint_state *st, struct params *ps,
                    const struct optim_states *states, struct err *e);

/* Steps of the checkpoints in DIR, whole or not, falling. Returns how many; *out is malloc'ed. */
int checkpoint_list(const struct checkpoint *c, int64_t **out);

/* "DIR/step-00000200", malloc'ed. */
char *checkpoint_path(const struct checkpoint *c, int64_t step);

/* Checksum of a manifest without its "checksum" member. */
struct hash_hex checkpoint_manifest_hash(const cJSON *manifest);

enum { CHECKPOINT_VERSION = 2 };

/* The files that the manifest lists, in order. */
enum { CHECKPOINT_N_FILES = 2 };
extern const char *const checkpoint_files[CHECKPOINT_N_FILES]; /* model, state */

#endif
