/* program_impl - what compile.c builds and exec.c runs; private to the engine. */
#ifndef ENGINE_PROGRAM_IMPL_H
#define ENGINE_PROGRAM_IMPL_H

#include "worker/engine/plan.h"
#include "worker/engine/program.h"
#include "worker/engine/tree_sum.h"

/* One node, compiled. */
struct step {
    struct op_call call;
    const struct kernel *kernel; /* NULL: input or parameter, nothing to run */
    bool backward;               /* its gradient is needed and reaches the loss */
};

/* A range of the arena that dies at time t. */
struct death {
    int t;
    size_t offset, bytes;
};

enum instr_kind {
    INSTR_FORWARD,
    INSTR_BACKWARD,
    INSTR_ADD,
    INSTR_FROM_F32,
    INSTR_ALL_REDUCE,
    INSTR_REDUCE_SCATTER
};

/* One thing that a node does in micro-shards. */
struct instr {
    enum instr_kind kind;
    union {
        struct { /* FORWARD, BACKWARD: a kernel on one shard's rows, or on all rows of the rank */
            const struct kernel *kernel;
            struct op_call call;
        } run;
        struct { /* ADD: dst += src, n elements; FROM_F32: likewise, or dst = src, from f32 to dst's type */
            void *dst;
            const void *src;
            size_t n;
            enum dtype dtype; /* of dst */
            bool defines;     /* FROM_F32: dst = src */
        } add;
        struct { /* ALL_REDUCE: the sum of all roots (n elements each) → dst; REDUCE_SCATTER: own rows of it
                  */
            void **parts; /* this rank's roots */
            void *dst;
            int64_t n, width;
            enum dtype dtype;
        } sum;
    };
};

struct instr_list {
    struct instr *v;
    int n, cap;
};

/* What a program in micro-shards has beside `steps`; see compile_shards.c. */
struct sharded {
    struct arena arena; /* shard-shaped nodes, lists of roots */
    struct tree_sum *sum;
    int32_t first, end;     /* shards of this rank */
    struct row_split *rows; /* [end - first]: the rows of each shard, as kernels see them */
    struct {                /* nodes with the shapes of a shard; two sizes when S does not divide N */
        int64_t rows;       /* 0: not there */
        struct node **nodes;
        void **states; /* [n_nodes], from prepare() */
    } views[2];
    float *more_grads;                     /* (n_roots - 1, n_weights): root 0 lies in params->grads */
    void ***bucket_parts;                  /* [n_buckets][n_roots] */
    struct instr_list *forward, *backward; /* [n_nodes] */
    size_t temp_bytes, stage_bytes;
    void *stage; /* scratch of sums over ranks */
};

/* Called after each node's kernel, before anything of its dies; see inspect.c. */
struct watch {
    int (*after)(void *arg, const struct program *p, int i, bool backward, struct err *e); /* NULL: nobody */
    void *arg;
};

struct program {
    struct graph *graph;
    struct program_cfg cfg;
    struct step *steps; /* [graph->n_nodes] */
    struct step_ctx ctx;
    char *arena;
    size_t arena_bytes, unshared_bytes, scratch_bytes;
    void *loss_grad;         /* f64 (1); NULL when forward only */
    struct sharded *sharded; /* NULL: the default mode */
    struct bucket *buckets;
    struct comm_req *reqs; /* [n_buckets] */
    int n_buckets;
    struct death *deaths; /* sorted by t; for poisoning */
    int n_deaths;
    struct watch watch;
    int now;
    bool now_backward;
};

/* exec_shards.c */
int sharded_run(struct program *p, const struct instr_list *list, struct err *e);
int sharded_zero_grads(struct program *p, struct err *e); /* of the roots beside params->grads */
int sharded_sum_bucket(struct program *p, int b, struct err *e);
void sharded_destroy(struct program *p);

#endif
