/* trainer - building a run and loading where it starts; see trainer.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/fault.h"
#include "common/fsutil.h"
#include "worker/data/sampler.h"
#include "worker/train/agree.h"
#include "worker/train/plans.h"
#include "worker/train/trainer_impl.h"
#include "worker/train/weights.h"

/* Of gradients that are summed together. The host sums them itself, so a bucket and its copies should stay in
 * its cache; a GPU's links want large ones. */
enum { HOST_BUCKET_BYTES = 2 << 20, DEVICE_BUCKET_BYTES = 8 << 20 };

int trainer_together(struct trainer *t, int rc, const struct err *e)
{
    t->together = rc < 0 && e->kind != ERR_PEER_LOST;
    return rc;
}

static int check_ranks(const struct trainer *t, struct err *e)
{
    int64_t batch = t->cfg.spec->train.batch_size, shards = t->cfg.spec->train.micro_shards;

    if (t->cfg.comm->size > batch)
        return err_set_kind(
            e, ERR_SPEC,
            "%d ranks for a mini-batch of %lld rows (/train/batch_size): at most %lld ranks are accepted",
            t->cfg.comm->size, (long long)batch, (long long)batch);
    if (shards && t->cfg.comm->size > shards)
        return err_set_kind(
            e, ERR_SPEC,
            "%d ranks for %lld micro-shards (/train/micro_shards): at most %lld ranks are accepted",
            t->cfg.comm->size, (long long)shards, (long long)shards);
    return 0;
}

/* Task, training graph, parameters. */
static int build_model(struct trainer *t, struct err *e)
{
    struct comm *comm = t->cfg.comm;
    struct task_env env = {t->cfg.spec, comm, t->cfg.device_comm, t->cfg.backend, t->params, t->cfg.log};
    struct row_split rows = {.rank = comm->rank,
                             .size = comm->size,
                             .total = t->cfg.spec->train.batch_size,
                             .n_shards = t->cfg.spec->train.micro_shards};

    int64_t from = clock_mono_ns();
    t->task = t->cfg.task->create(&env, e);
    t->data_ns = clock_mono_ns() - from;
    if (!t->task)
        return -1;
    for (int r = 0; r < comm->size; r++) {
        int64_t first;
        rows_of_rank_sharded(rows.total, rows.n_shards, r, comm->size, &first, &t->counts[r]);
        if (r == comm->rank)
            rows.first = first;
    }
    rows.counts = t->counts;
    rows.local = t->counts[comm->rank];
    t->graph = graph_create(t->params, &rows, true);
    if (t->task->ops->build(t->task, t->graph, &t->built, e) < 0)
        return err_wrap(e, "model");
    if (params_finalize(t->params, t->cfg.spec->seed, e) < 0 || t->task->ops->set_constants(t->task, e) < 0)
        return -1;
    return 0;
}

static int build_programs(struct trainer *t, struct err *e)
{
    struct program_cfg cfg = {.backend = t->cfg.backend,
                              .comm = t->cfg.device_comm,
                              .loss = t->built.loss,
                              .bucket_bytes = t->cfg.device_comm == t->cfg.comm ? HOST_BUCKET_BYTES
                                                                                : DEVICE_BUCKET_BYTES};

    int64_t from = clock_mono_ns();
    int rc = (t->program = program_compile(t->graph, &cfg, e)) ? t->task->ops->prepare_eval(t->task, e) : -1;
    t->compile_ns = clock_mono_ns() - from;
    return rc;
}

/* What is left once the programs are there. */
static int build_rest(struct trainer *t, struct err *e)
{
    if (!(t->optim = optim_create(t->cfg.spec, t->params, e)) ||
        !(t->scalars = t->cfg.backend->ops->mem_alloc(t->cfg.backend, sizeof *t->scalars, e)))
        return -1;
    t->steps_per_epoch = t->task->ops->steps_per_epoch(t->task);
    t->n_steps = t->cfg.spec->train.epochs * t->steps_per_epoch;
    t->end_step = t->cfg.max_steps && t->cfg.max_steps < t->n_steps ? t->cfg.max_steps : t->n_steps;
    schedule_init(&t->schedule, t->cfg.spec, t->steps_per_epoch);
    t->data_hash = t->task->ops->fingerprint(t->task);
    checkpoint_init(&t->checkpoint, t->cfg.run_dir, t->cfg.spec->checkpoint.keep);
    t->checkpoint.spec = t->cfg.resolved;
    t->checkpoint.data_hash = t->data_hash.s;
    t->checkpoint.world_size = t->cfg.comm->size;
    t->checkpoint.log = t->cfg.log;
    return 0;
}

/* Rank 0 compiles, and measures engines, while the others wait; they then take its choices. */
static int build_on_rank0(struct trainer *t, int rc, struct err *e)
{
    struct comm *comm = t->cfg.comm;

    if (agree_outcome(comm, rc, e) < 0)
        return -1;
    rc = t->rank0 ? build_programs(t, e) : 0;
    if (agree_outcome(comm, rc, e) < 0)
        return -1;
    return plans_share(t->cfg.backend->tuning, comm, e);
}

/* Each rank by itself, but for the choice of engines. Collective. */
static int build(struct trainer *t, struct err *e)
{
    bool rank0_first = t->cfg.backend->tuning;
    int rc = check_ranks(t, e) < 0 || build_model(t, e) < 0 ? -1 : 0;

    if (rank0_first && build_on_rank0(t, rc, e) < 0)
        return -1;
    if (rc == 0 && !(rank0_first && t->rank0))
        rc = build_programs(t, e);
    if (rc == 0)
        rc = build_rest(t, e);
    return agree_outcome(t->cfg.comm, rc, e);
}

/* Rank 0: 1 when a checkpoint was loaded, 0 when the run starts from its initialisation, -1. */
static int load_start(struct trainer *t, struct err *e)
{
    const struct task_ops *ops = t->task->ops;
    const char *init = t->cfg.spec->init.weights;
    int rc = t->cfg.resume ? checkpoint_load(&t->checkpoint, &t->at, t->params, &t->optim->states, e) : 0;

    if (rc != 0)
        return rc;
    t->at = (struct checkpoint_state){.best.epoch = -1, .best.step = -1};
    receipts_init(&t->at.receipts, 0);
    if (*init &&
        weights_load_init(init, t->params, ops->classifier(t->task), ops->train_only, t->cfg.log, e) < 0)
        return -1;
    return optim_begin(t->optim, e);
}

static int broadcast_states(struct trainer *t, struct err *e)
{
    const struct optim_states *s = &t->optim->states;

    for (int i = 0; i < s->n; i++)
        if (comm_broadcast(t->cfg.device_comm, s->v[i].values, t->params->n_weights * sizeof(float), 0, e) <
            0)
            return -1;
    return 0;
}

static int broadcast_start(struct trainer *t, int *loaded, struct err *e)
{
    struct comm *comm = t->cfg.comm, *device = t->cfg.device_comm;
    struct params *ps = t->params;
    struct {
        struct checkpoint_state at;
        int loaded;
    } start = {t->at, *loaded};

    if (comm_broadcast(comm, &start, sizeof start, 0, e) < 0 ||
        comm_broadcast(device, ps->weights, ps->n_weights * sizeof(float), 0, e) < 0 ||
        comm_broadcast(device, ps->buffers, ps->n_buffers * sizeof(float), 0, e) < 0 ||
        broadcast_states(t, e) < 0 || comm_sync(device, "the broadcast of the start", e) < 0)
        return -1;
    t->at = start.at;
    *loaded = start.loaded;
    return 0;
}

/* What the position rules out. The same on every rank. */
static int check_position(const struct trainer *t, struct err *e)
{
    if (t->at.step > t->n_steps)
        return err_set_kind(
            e, ERR_SPEC,
            "the checkpoint is of step %lld, this job ends at step %lld (%lld epochs of %lld steps)",
            (long long)t->at.step, (long long)t->n_steps, (long long)t->cfg.spec->train.epochs,
            (long long)t->steps_per_epoch);
    if (t->dump.step && (t->dump.step <= t->at.step || t->dump.step > t->end_step))
        return err_set_kind(e, ERR_USAGE, "--dump-step: step %lld found, this run makes steps %lld to %lld",
                            (long long)t->dump.step, (long long)t->at.step + 1, (long long)t->end_step);
    return 0;
}

/* Collective. */
static int find_start(struct trainer *t, struct err *e)
{
    int loaded = t->rank0 ? load_start(t, e) : 0;

    if (agree_outcome_rank0(t->cfg.comm, loaded < 0 ? -1 : 0, e) < 0 || broadcast_start(t, &loaded, e) < 0 ||
        check_position(t, e) < 0)
        return -1;
    receipts_keep_due(&t->at.receipts, t->n_steps);
    t->agreed_step = t->at.step;
    heartbeat_at_step(t->cfg.heart, t->at.step);
    if (loaded) {
        t->checkpoint_step = t->at.step;
        log_info(t->cfg.log, "going on from the checkpoint of step %lld", (long long)t->at.step);
    } else if (t->cfg.resume) {
        log_info(t->cfg.log, "no checkpoint to go on from: starting at step 0");
    }
    int rc = t->rank0 ? recorder_open(&t->recorder, t->cfg.run_dir, t->at.step, t->cfg.report, e) : 0;
    t->recording = t->rank0;
    return agree_outcome_rank0(t->cfg.comm, rc, e);
}

static void log_plan(const struct trainer *t)
{
    double mib = 1024.0 * 1024.0;

    log_info(
        t->cfg.log,
        "%lld parameters; %lld steps an epoch, %lld in all; %lld of %lld rows of a mini-batch on this rank; "
        "activations take %.1f MiB (%.1f without sharing), %.1f of them scratch of kernels",
        (long long)weights_count(t->params), (long long)t->steps_per_epoch, (long long)t->n_steps,
        (long long)t->graph->rows.local, (long long)t->graph->rows.total,
        (double)program_arena_bytes(t->program) / mib, (double)program_unshared_bytes(t->program) / mib,
        (double)program_scratch_bytes(t->program) / mib);
}

struct trainer *trainer_create(const struct trainer_cfg *cfg, struct err *e)
{
    struct trainer *t = xcalloc(1, sizeof *t);

    t->cfg = *cfg;
    t->rank0 = cfg->comm->rank == 0;
    t->dump = cfg->dump;
    t->phase = "start";
    t->has_faults = fault_any();
    t->loss = t->lr = t->images_per_s = NAN;
    t->checkpoint_step = t->validated_step = -1;
    t->params = params_create(cfg->backend);
    t->counts = xcalloc((size_t)cfg->comm->size, sizeof *t->counts);
    if (build(t, e) < 0 || find_start(t, e) < 0) {
        trainer_destroy(t);
        return NULL;
    }
    log_plan(t);
    trainer_progress(t, "start");
    return t;
}

static double seconds(int64_t ns)
{
    return (double)ns / 1e9;
}

void trainer_result(const struct trainer *t, struct result *r)
{
    r->data_hash = t->data_hash.s;
    r->parameters = weights_count(t->params);
    r->steps = t->at.step;
    r->n_steps = t->n_steps;
    r->epochs = trainer_epoch(t);
    r->n_epochs = t->cfg.spec->train.epochs;
    r->loss = t->loss;
    r->images_per_s = t->whole.ns ? (double)t->whole.images / seconds(t->whole.ns) : NAN;
    r->best = t->at.best;
    r->primary = t->task->ops->primary;
    r->validation = t->validation;
    r->eval = t->test;
    r->receipts = &t->at.receipts;
    r->timings.start_s = t->first_step_ns ? seconds(t->first_step_ns - t->cfg.start_ns) : NAN;
    r->timings.comm_s = seconds(t->cfg.comm_ns - t->cfg.start_ns);
    r->timings.data_s = seconds(t->data_ns);
    r->timings.compile_s = seconds(t->compile_ns);
    r->timings.first_step_s = t->first_step_end_ns ? seconds(t->first_step_end_ns - t->first_step_ns) : NAN;
    r->timings.train_s = seconds(t->whole.ns);
    r->timings.eval_s = seconds(t->eval_ns);
    r->timings.checkpoint_s = seconds(t->checkpoint_ns);
    r->timings.data_wait_s = seconds(t->whole.data_wait_ns);
    r->timings.comm_wait_s = comm_wait_ns(t->cfg.device_comm) < 0 ? NAN : seconds(t->whole.comm_wait_ns);
}

void trainer_destroy(struct trainer *t)
{
    if (!t)
        return;
    if (t->recording)
        recorder_close(&t->recorder);
    dump_free(&t->dump);
    cJSON_Delete(t->validation);
    cJSON_Delete(t->test);
    checkpoint_free(&t->checkpoint);
    if (t->cfg.backend->ops->replay_free)
        t->cfg.backend->ops->replay_free(t->cfg.backend, t->replay);
    t->cfg.backend->ops->mem_free(t->cfg.backend, t->scalars);
    optim_destroy(t->optim);
    program_destroy(t->program);
    graph_destroy(t->graph);
    task_destroy(t->task);
    params_destroy(t->params);
    free(t->counts);
    free(t);
}
