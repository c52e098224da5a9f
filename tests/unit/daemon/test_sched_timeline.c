/* test_sched_timeline - the timeline against a list of holds that is searched in full: earliest fits,
 * capacity, places. */
#include "daemon/sched_timeline.h"
#include "tests/unit/daemon/test_sched_world.h"

enum { NODES = 6, HOLDS = 64, NOW = 1000 };

struct plain_hold {
    int32_t node, slots, gpus;
    int64_t from, to;
};

struct plain {
    struct sched_node nodes[NODES];
    size_t n_nodes;
    struct plain_hold holds[HOLDS];
    size_t n_holds;
};

static int32_t room_at(const struct plain *p, const struct gang *g, int32_t node, int64_t t)
{
    int32_t slots = p->nodes[node].slots, gpus = p->nodes[node].gpus;

    for (size_t i = 0; i < p->n_holds; i++)
        if (p->holds[i].node == node && p->holds[i].from <= t && t < p->holds[i].to) {
            slots -= p->holds[i].slots;
            gpus -= p->holds[i].gpus;
        }
    int32_t room = g->gpus_per_rank && gpus / g->gpus_per_rank < slots ? gpus / g->gpus_per_rank : slots;
    return room > 0 && p->nodes[node].usable ? room : 0;
}

static int32_t room_in(const struct plain *p, const struct gang *g, int32_t node, int64_t t)
{
    int64_t end = g->run_ms >= TIMELINE_FOREVER ? INT64_MAX : t + g->run_ms;
    int32_t least = room_at(p, g, node, t);

    for (size_t i = 0; i < p->n_holds; i++) {
        int64_t from = p->holds[i].from;
        if (p->holds[i].node == node && from > t && from < end && room_at(p, g, node, from) < least)
            least = room_at(p, g, node, from);
    }
    return least;
}

/* The most ranks that fit at t: by trying, from above. */
static int32_t capacity_at(const struct plain *p, const struct gang *g, int64_t t)
{
    for (int32_t ranks = g->ranks; ranks > 0; ranks--) {
        int32_t sum = 0, low = 0, high = 0;
        for (size_t n = 0; n < p->n_nodes; n++) {
            int32_t room = room_in(p, g, (int32_t)n, t);
            sum += room;
            low += g->nodes && room >= ranks / g->nodes;
            high += g->nodes && room > ranks / g->nodes;
        }
        if (g->nodes ? ranks >= g->nodes && low >= g->nodes && high >= ranks % g->nodes : sum >= ranks)
            return ranks;
    }
    return 0;
}

static int64_t fit(const struct plain *p, const struct gang *g, int64_t from)
{
    int64_t best = capacity_at(p, g, from) == g->ranks ? from : -1;

    for (size_t i = 0; i < p->n_holds; i++) {
        int64_t t = p->holds[i].to;
        if (t > from && (best < 0 || t < best) && capacity_at(p, g, t) == g->ranks)
            best = t;
    }
    return best;
}

static void hold(struct plain *p, struct timeline *tl, int32_t node, int32_t ranks, int32_t g, int64_t from,
                 int64_t to)
{
    assert_true(p->n_holds < HOLDS);
    p->holds[p->n_holds++] = (struct plain_hold){node, ranks, ranks * g, from, to};
    if (tl)
        timeline_hold(tl, &(struct sched_piece){node, ranks}, 1, g, from, to, (int32_t)p->n_holds, 1);
}

static struct gang random_gang(uint64_t *seed)
{
    struct gang g = {1 + (int32_t)w_random(seed, w_random(seed, 2) ? 3 : 14), (int32_t)w_random(seed, 3), 0,
                     w_random(seed, 8) ? 1 + (int64_t)w_random(seed, 300) : TIMELINE_FOREVER};

    if (!w_random(seed, 3))
        g.nodes = 1 + (int32_t)w_random(seed, g.ranks < 4 ? (uint32_t)g.ranks : 4);
    return g;
}

/* The place has room, is of the right form, and has no more nodes than it must. */
static void check_place(const struct plain *p, struct timeline *tl, const struct gang *g, int64_t t)
{
    struct sched_piece pieces[NODES];
    int32_t sum = 0, rooms[NODES], n_rooms = 0, fewest = 0, left = g->ranks;
    size_t n = timeline_place(tl, g, pieces);

    for (size_t i = 0; i < n; i++) {
        assert_true(pieces[i].ranks > 0 && pieces[i].ranks <= room_in(p, g, pieces[i].node, t));
        assert_true(i == 0 || pieces[i - 1].node < pieces[i].node);
        assert_true(!g->nodes || pieces[i].ranks - g->ranks / g->nodes <= 1);
        sum += pieces[i].ranks;
    }
    assert_int_equal(sum, g->ranks);
    assert_true(timeline_fits_at(tl, g, t, pieces, n));
    for (size_t k = 0; k < p->n_nodes; k++) {
        int32_t room = room_in(p, g, (int32_t)k, t), i = n_rooms++;
        for (; i > 0 && rooms[i - 1] < room; i--)
            rooms[i] = rooms[i - 1];
        rooms[i] = room;
    }
    for (; left > 0; fewest++)
        left -= rooms[fewest];
    assert_int_equal(n, g->nodes ? g->nodes : fewest);
}

static void one_world(uint64_t *seed, size_t *fits)
{
    struct plain p = {.n_nodes = 1 + w_random(seed, NODES)};
    struct timeline *tl;

    for (size_t n = 0; n < p.n_nodes; n++)
        p.nodes[n] = (struct sched_node){"n", "down", (int32_t)w_random(seed, 8), (int32_t)w_random(seed, 6),
                                         w_random(seed, 8) > 0};
    tl = timeline_create(p.nodes, p.n_nodes, NOW);
    for (uint32_t i = w_random(seed, 12); i > 0;
         i--) { /* may hold more than there is, as after a change of nodes */
        int32_t node = (int32_t)w_random(seed, (uint32_t)p.n_nodes), ranks = 1 + (int32_t)w_random(seed, 3);
        int64_t end = w_random(seed, 6) ? NOW + 1 + (int64_t)w_random(seed, 400) : TIMELINE_FAR;
        timeline_add_running(tl, node, ranks, ranks * (int32_t)(i % 2), end, 0);
        hold(&p, NULL, node, ranks, (int32_t)(i % 2), NOW, end);
    }
    for (int i = 0; i < 12; i++) {
        struct gang g = random_gang(seed);
        int64_t from = w_random(seed, 4) ? NOW : NOW + (int64_t)w_random(seed, 300),
                t = timeline_fit(tl, &g, from, false);
        assert_int_equal(t, fit(&p, &g, from));
        if (t >= 0)
            check_place(&p, tl, &g, t);
        assert_int_equal(timeline_fit(tl, &g, from, true), t == from ? t : -1);
        assert_int_equal(timeline_capacity(tl, &g), capacity_at(&p, &g, NOW));
        if (t < 0 || !w_random(seed, 4))
            continue;
        struct sched_piece pieces[NODES];
        timeline_fit(tl, &g, t, true);
        size_t n = timeline_place(tl, &g, pieces);
        int64_t to = g.run_ms < TIMELINE_FOREVER ? t + g.run_ms : t < TIMELINE_FAR ? TIMELINE_FAR : t + 10;
        for (size_t k = 0; k < n && p.n_holds < HOLDS; k++)
            hold(&p, tl, pieces[k].node, pieces[k].ranks, g.gpus_per_rank, t, to);
        (*fits)++;
    }
    timeline_destroy(tl);
}

static void test_against_a_list(void **state)
{
    uint64_t seed = 3;
    size_t fits = 0;

    (void)state;
    for (int run = 0; run < 6000; run++)
        one_world(&seed, &fits);
    assert_true(fits > 20000);
}

static void test_holds_can_be_given_back(void **state)
{
    struct sched_node node = {"n", "", 4, 4, true};
    struct timeline *tl = timeline_create(&node, 1, NOW);
    struct gang g = {4, 1, 0, 10};
    struct sched_piece one = {0, 3};

    (void)state;
    timeline_hold(tl, &one, 1, 1, NOW, NOW + 100, 1, 1);
    timeline_tally(tl, &g);
    assert_false(timeline_tally_fits(tl, &g));
    timeline_hold(tl, &one, 1, 1, NOW, NOW + 100, 1, -1);
    timeline_retally(tl, &g, 0);
    assert_true(timeline_tally_fits(tl, &g));
    assert_int_equal(timeline_capacity(tl, &g), 4);
    timeline_destroy(tl);
}

static void test_closed_nodes(void **state)
{
    struct sched_node nodes[] = {{"a", "", 4, 4, true}, {"b", "", 4, 0, true}};
    struct timeline *tl = timeline_create(nodes, 2, NOW);
    struct gang known = {1, 1, 0, 10}, unknown = {1, 1, 0, TIMELINE_FOREVER},
                plain = {1, 0, 0, TIMELINE_FOREVER};
    struct sched_piece place;

    (void)state;
    timeline_close(tl, 1);
    assert_int_equal(timeline_fit(tl, &known, NOW, false), NOW);
    assert_int_equal(timeline_fit(tl, &unknown, NOW, false), TIMELINE_FAR);
    assert_int_equal(timeline_fit(tl, &plain, NOW, false), NOW);
    assert_int_equal(timeline_place(tl, &plain, &place), 1);
    assert_int_equal(place.node, 1);
    timeline_close(tl, 0);
    assert_int_equal(timeline_fit(tl, &plain, NOW, false), TIMELINE_FAR);
    timeline_destroy(tl);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_a_list),
        cmocka_unit_test(test_holds_can_be_given_back),
        cmocka_unit_test(test_closed_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
