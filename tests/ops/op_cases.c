/* op_cases - each operator in several shapes and attributes; the tests of gradients, of the acc contract and
 * of threads all go through this table. Shapes are chosen for their edges: widths that are no multiple of 16,
 * one channel, more rows than a block or a chunk, windows that overlap and that do not reach the border.
 */
#include "tests/ops/op_run.h"

/* clang-format off */
#define S1(...) {1, {__VA_ARGS__}}
#define S2(...) {2, {__VA_ARGS__}}
#define S4(...) {4, {__VA_ARGS__}}

#define CONV(label, n, h, w, ci, co, k_, s_, p_, g_)                                                         \
    {.name = "conv2d " label, .op = OP_CONV2D, .attr.conv = {k_, s_, p_, g_}, .n_inputs = 2, .step = 0.1,    \
     .in = {{FILL_UNIT, S4(n, h, w, ci)}, {FILL_UNIT, S4(co, (ci) / (g_), k_, k_)}}}
#define POOL(label, n, h, w, c, k_, s_, p_)                                                                  \
    {.name = "maxpool " label, .op = OP_MAXPOOL, .attr.conv = {k_, s_, p_, 1}, .n_inputs = 1,                \
     .in = {{FILL_DISTINCT, S4(n, h, w, c)}}}
#define BN_INPUTS(C) {FILL_SUMS, S2(2, C)}, {FILL_ONE, S1(C)}, {FILL_SMALL, S1(C)}, {FILL_SMALL, S1(C)}, {FILL_ONE, S1(C)}
#define BN_APPLY(label, relu_, count_, C, ...)                                                               \
    {.name = "bn_apply " label, .op = OP_BN_APPLY, .attr.bn = {count_, 1e-5f, 0.1f, relu_}, .n_inputs = 6,   \
     .step = 1e-3, .in = {{FILL_APART, __VA_ARGS__}, BN_INPUTS(C)}}
#define BN_APPLY_RES(label, relu_, count_, C, ...)                                                           \
    {.name = "bn_apply " label, .op = OP_BN_APPLY, .attr.bn = {count_, 1e-5f, 0.1f, relu_}, .n_inputs = 7,   \
     .step = 1e-3, .in = {{FILL_APART, __VA_ARGS__}, BN_INPUTS(C), {FILL_SMALL, __VA_ARGS__}}}
#define LAYERNORM(label, m, c)                                                                               \
    {.name = "layernorm " label, .op = OP_LAYERNORM, .attr.layernorm = {1e-5f}, .n_inputs = 3,               \
     .in = {{FILL_UNIT, S2(m, c)}, {FILL_ONE, S1(c)}, {FILL_SMALL, S1(c)}}}
#define LINEAR(label, m, i, o)                                                                               \
    {.name = "linear " label, .op = OP_LINEAR, .n_inputs = 2, .step = 0.1,                                   \
     .in = {{FILL_UNIT, S2(m, i)}, {FILL_UNIT, S2(o, i)}}}
#define LINEAR_BIAS(label, m, i, o)                                                                          \
    {.name = "linear " label, .op = OP_LINEAR, .n_inputs = 3, .step = 0.1,                                   \
     .in = {{FILL_UNIT, S2(m, i)}, {FILL_UNIT, S2(o, i)}, {FILL_UNIT, S1(o)}}}
#define ATTENTION(label, n, N, C, heads_, p_, first_)                                                        \
    {.name = "attention " label, .op = OP_ATTENTION, .attr.attention = {heads_, p_, 77, 0}, .n_inputs = 2,   \
     .in = {{FILL_UNIT, S2(n, C)}, {FILL_UNIT, S2(N, 2 * (C))}}, .first = first_, .total = N}
#define ACT(label, kind_, ...)                                                                               \
    {.name = "act " label, .op = OP_ACT, .attr.act = {kind_}, .n_inputs = 1, .in = {{FILL_APART, __VA_ARGS__}}}
#define DROPOUT(label, p_, ...)                                                                              \
    {.name = "dropout " label, .op = OP_DROPOUT, .attr.dropout = {p_, 99}, .n_inputs = 1,                    \
     .in = {{FILL_UNIT, __VA_ARGS__}}}
#define XENT(label, m, k, n_in)                                                                              \
    {.name = "softmax_xent " label, .op = OP_SOFTMAX_XENT, .attr.xent = {2.0 * (m)}, .n_inputs = n_in,       \
     .in = {{FILL_UNIT, S2(m, k)}, {FILL_TARGETS, S1(m)}, {FILL_UNIT, S1(k)}}}

const struct op_case op_cases[] = {
    CONV("3x3", 2, 9, 7, 16, 32, 3, 1, 1, 1),
    CONV("3x3 stride 2", 3, 8, 8, 16, 16, 3, 2, 1, 1),
    CONV("3x3 stride 2, odd pixels", 2, 7, 9, 8, 24, 3, 2, 1, 1),
    CONV("3x3, 32 to 16", 3, 8, 12, 32, 16, 3, 1, 1, 1),
    CONV("3x3, 48 to 48", 1, 7, 7, 48, 48, 3, 1, 1, 1),
    CONV("3x3, 144 to 144", 1, 4, 4, 144, 144, 3, 1, 1, 1),
    CONV("3x3, 512 to 272", 1, 6, 6, 512, 272, 3, 1, 1, 1),
    CONV("stem, 3 channels", 2, 10, 10, 3, 16, 3, 1, 1, 1),
    CONV("stem, 1 channel", 2, 10, 10, 1, 16, 3, 1, 1, 1),
    CONV("7x7 stride 2, 3 channels", 1, 18, 18, 3, 32, 7, 2, 3, 1),
    CONV("1x1", 2, 5, 5, 24, 40, 1, 1, 0, 1),
    CONV("1x1, a long sum", 9, 16, 16, 16, 8, 1, 1, 0, 1),
    CONV("1x1 stride 2", 2, 8, 8, 32, 64, 1, 2, 0, 1),
    CONV("1x1 stride 2, odd channels", 2, 7, 7, 5, 7, 1, 2, 0, 1),
    CONV("groups of 4", 2, 6, 6, 32, 32, 3, 1, 1, 8),
    CONV("groups, uneven", 2, 6, 6, 12, 20, 3, 2, 1, 2),
    CONV("depthwise", 2, 6, 6, 16, 16, 3, 1, 1, 16),
    CONV("5x5 without padding", 2, 8, 8, 10, 10, 5, 1, 0, 1),
    POOL("3x3 stride 2", 2, 9, 9, 20, 3, 2, 1),
    POOL("2x2", 3, 6, 4, 70, 2, 2, 0),
    POOL("overlapping 3x3", 1, 5, 6, 16, 3, 1, 1),
    {.name = "mean_spatial", .op = OP_MEAN_SPATIAL, .n_inputs = 1, .in = {{FILL_UNIT, S4(3, 5, 4, 21)}}},
    {.name = "shortcut_pad stride 2", .op = OP_SHORTCUT_PAD, .attr.shortcut = {2, 32}, .n_inputs = 1,
     .in = {{FILL_UNIT, S4(2, 6, 6, 16)}}},
    {.name = "shortcut_pad odd pixels, odd channels", .op = OP_SHORTCUT_PAD, .attr.shortcut = {2, 10}, .n_inputs = 1,
     .in = {{FILL_UNIT, S4(2, 5, 7, 3)}}},
    {.name = "shortcut_pad stride 1", .op = OP_SHORTCUT_PAD, .attr.shortcut = {1, 7}, .n_inputs = 1,
     .in = {{FILL_UNIT, S4(2, 3, 3, 7)}}},
    {.name = "bn_stats", .op = OP_BN_STATS, .n_inputs = 1, .in = {{FILL_UNIT, S4(3, 6, 6, 32)}}},
    {.name = "bn_stats many rows", .op = OP_BN_STATS, .n_inputs = 1, .in = {{FILL_UNIT, S4(9, 31, 17, 5)}}},
    {.name = "bn_stats of features", .op = OP_BN_STATS, .n_inputs = 1, .in = {{FILL_UNIT, S2(7, 19)}}},
    {.name = "bn_stats wide", .op = OP_BN_STATS, .n_inputs = 1, .in = {{FILL_UNIT, S4(3, 5, 5, 83)}}},
    BN_APPLY("wide", false, 150, 83, S4(3, 5, 5, 83)),
    BN_APPLY_RES("wide, residual, relu", true, 75, 150, S4(3, 5, 5, 150)),
    BN_APPLY("plain", false, 108, 32, S4(3, 6, 6, 32)),
    BN_APPLY("relu", true, 216, 19, S4(3, 6, 6, 19)),
    BN_APPLY("many rows, relu", true, 9000, 16, S4(9, 31, 17, 16)),
    BN_APPLY("features", false, 14, 5, S2(7, 5)),
    BN_APPLY_RES("residual", false, 108, 16, S4(3, 6, 6, 16)),
    BN_APPLY_RES("residual, relu", true, 108, 40, S4(3, 6, 6, 40)),
    LAYERNORM("narrow", 9, 16),
    LAYERNORM("odd", 70, 37),
    LAYERNORM("many rows", 2100, 8),
    LINEAR("without bias", 5, 7, 3),
    LINEAR_BIAS("small", 9, 20, 10),
    LINEAR_BIAS("several blocks", 300, 33, 270),
    LINEAR_BIAS("one row", 1, 40, 17),
    LINEAR_BIAS("one output", 37, 9, 1),
    LINEAR("several depths", 70, 600, 9),
    LINEAR_BIAS("several slabs", 19, 20, 2070),
    ATTENTION("1 head", 5, 9, 8, 1, 0, 2),
    ATTENTION("4 heads", 37, 37, 16, 4, 0, 0),
    ATTENTION("dropout", 21, 50, 24, 3, 0.3f, 13),
    ATTENTION("several tiles", 300, 610, 8, 2, 0.5f, 100),
    ATTENTION("several groups and chunks", 600, 1030, 5, 1, 0.5f, 401),
    ATTENTION("1 row", 1, 7, 8, 2, 0.5f, 3),
    ATTENTION("1 row, 2 keys", 1, 2, 6, 2, 0, 0),
    ATTENTION("2 keys", 40, 2, 6, 3, 0.4f, 0),
    ATTENTION("8 heads of 1", 5, 270, 8, 8, 0.2f, 17),
    ATTENTION("8 heads of 17", 33, 65, 136, 8, 0.5f, 30),
    ATTENTION("deep head", 9, 20, 300, 1, 0.3f, 5),
    ATTENTION("everything dropped", 5, 9, 8, 2, 1, 2),
    ACT("relu", ACT_RELU, S4(2, 3, 3, 17)),
    ACT("gelu", ACT_GELU, S2(9, 33)),
    {.name = "add", .op = OP_ADD, .n_inputs = 2, .in = {{FILL_UNIT, S2(90, 61)}, {FILL_UNIT, S2(90, 61)}}},
    DROPOUT("half", 0.5f, S2(11, 37)),
    DROPOUT("pixels", 0.1f, S4(3, 5, 5, 7)),
    DROPOUT("everything", 1.0f, S2(3, 5)),
    DROPOUT("nothing", 0.0f, S2(3, 5)),
    {.name = "concat_rows", .op = OP_CONCAT_ROWS, .n_inputs = 3,
     .in = {{FILL_UNIT, S2(4, 7)}, {FILL_UNIT, S2(1, 7)}, {FILL_UNIT, S2(6, 7)}}},
    {.name = "slice_rows middle", .op = OP_SLICE_ROWS, .attr.slice = {2, 5}, .n_inputs = 1,
     .in = {{FILL_UNIT, S4(9, 2, 2, 3)}}},
    {.name = "slice_rows all", .op = OP_SLICE_ROWS, .attr.slice = {0, 4}, .n_inputs = 1, .in = {{FILL_UNIT, S2(4, 6)}}},
    {.name = "slice_rows none", .op = OP_SLICE_ROWS, .attr.slice = {3, 3}, .n_inputs = 1,
     .in = {{FILL_UNIT, S2(4, 6)}}},
    XENT("10 classes", 33, 10, 2),
    XENT("with offset", 8, 100, 3),
};
/* clang-format on */

const size_t n_op_cases = sizeof(op_cases) / sizeof(op_cases[0]);
