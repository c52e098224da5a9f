/* test_receipt - which steps have receipts; what the hashes cover and what they ignore; the chain of the
 * order; finding the rank that drifted; JSON both ways. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "common/json.h"
#include "fake_backend.h"
#include "worker/train/optim.h"
#include "worker/train/receipt.h"

static void fixed_steps(void **state)
{
    (void)state;
    assert_int_equal(receipts_period(1), 1);
    assert_int_equal(receipts_period(64), 1);
    assert_int_equal(receipts_period(65), 2);
    assert_int_equal(receipts_period(128), 2);
    assert_int_equal(receipts_period(129), 4);
    assert_int_equal(receipts_period(INT64_C(1) << 40), INT64_C(1) << 34);
    for (int64_t n = 1; n < 5000; n += 7) {
        int64_t p = receipts_period(n), count = 0;
        assert_true(n <= 64 * p && (p == 1 || n > 32 * p)); /* the smallest */
        for (int64_t s = 1; s <= n; s++) {
            assert_int_equal(receipts_due(s, n), s % p == 0 || s == n);
            count += receipts_due(s, n);
        }
        assert_true(count <= RECEIPTS_MAX && receipts_due(n, n));
    }
}

static struct receipt some(int64_t step)
{
    return (struct receipt){.step = step,
                            .loss = (double)step / 3,
                            .weights = hash_bytes(&step, sizeof step),
                            .buffers = hash_bytes("b", 1),
                            .optimizer = hash_bytes("o", 1)};
}

static void a_longer_run_keeps_what_it_would_have(void **state)
{
    struct receipts r;

    (void)state;
    receipts_init(&r, 0);
    for (int64_t s = 1; s <= 61; s++) { /* a run of 61 steps: all of them */
        struct receipt one = some(s);
        receipts_feed(&r, (uint64_t)s);
        receipts_add(&r, &one);
    }
    receipts_keep_due(&r, 61);
    assert_int_equal(r.n, 61);
    receipts_keep_due(&r, 200); /* every fourth; 61 was the last step and is no longer */
    assert_int_equal(r.n, 15);
    for (int i = 0; i < r.n; i++)
        assert_int_equal(r.v[i].step, 4 * (i + 1));
}

static void the_order_is_a_chain(void **state)
{
    struct receipts a, b, c;

    (void)state;
    receipts_init(&a, 0);
    receipts_init(&b, 0);
    receipts_init(&c, 3);
    assert_string_equal(a.order.s, b.order.s);
    assert_string_not_equal(a.order.s, c.order.s);
    receipts_feed(&a, 1);
    receipts_feed(&b, 2);
    assert_string_not_equal(a.order.s, b.order.s);
    struct hash_hex after_1 = a.order;
    receipts_feed(&a, 2);
    receipts_feed(&b, 1);
    assert_string_not_equal(a.order.s, b.order.s); /* the same steps in another order */
    receipts_init(&b, 0);
    receipts_feed(&b, 1);
    assert_string_equal(b.order.s, after_1.s);
    receipts_feed(&b, 2);
    assert_string_equal(a.order.s, b.order.s);
    receipts_feed(&a, 0); /* a step without rows is a step */
    assert_string_not_equal(a.order.s, b.order.s);
}

/* By hand: the name, a zero, the elements, in order of declaration; the flat buffer has them backwards. */
static struct hash_hex by_hand(const struct params *ps, enum param_kind kind, const float *flat)
{
    static char all[4096];
    size_t at = 0;

    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        size_t bytes = (size_t)shape_count(p->shape) * sizeof(float);
        if (p->kind != kind)
            continue;
        assert_true(at + strlen(p->name) + 1 + bytes <= sizeof all);
        memcpy(all + at, p->name, strlen(p->name) + 1);
        at += strlen(p->name) + 1;
        memcpy(all + at, flat ? flat + p->offset : p->value, bytes);
        at += bytes;
    }
    return hash_bytes(all, at);
}

static struct hash_hex state_hash(const struct params *ps, enum param_kind kind, const float *flat)
{
    const struct optim_states one = {1, {{"momentum", (float *)flat}}};
    struct hash_hex h;
    struct err e = ERR_INIT;

    if ((flat ? receipt_hash_states(ps, &one, &h, &e) : receipt_hash(ps, kind, &h, &e)) < 0)
        fail_msg("%s", e.msg);
    return h;
}

static void hashes_cover_every_bit_and_no_padding(void **state)
{
    struct params *ps = fake_params(1, 3), *same = fake_params(1, 3), *other = fake_params(2, 3);
    float *momentum = calloc(ps->n_weights, sizeof *momentum);

    (void)state;
    for (size_t i = 0; i < ps->n_weights; i++)
        momentum[i] = (float)i;
    struct hash_hex w = state_hash(ps, PARAM_WEIGHT, NULL), b = state_hash(ps, PARAM_BUFFER, NULL);
    struct hash_hex m = state_hash(ps, PARAM_WEIGHT, momentum);
    assert_string_equal(w.s, by_hand(ps, PARAM_WEIGHT, NULL).s);
    assert_string_equal(b.s, by_hand(ps, PARAM_BUFFER, NULL).s);
    assert_string_equal(m.s, by_hand(ps, PARAM_WEIGHT, momentum).s);
    assert_string_equal(w.s, state_hash(same, PARAM_WEIGHT, NULL).s);
    assert_string_not_equal(w.s, state_hash(other, PARAM_WEIGHT, NULL).s);
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        int64_t n = shape_count(p->shape);
        uint32_t *last = (uint32_t *)(p->value + n - 1);
        *last ^= 1;
        assert_int_equal(strcmp(w.s, state_hash(ps, PARAM_WEIGHT, NULL).s) != 0, p->kind == PARAM_WEIGHT);
        assert_int_equal(strcmp(b.s, state_hash(ps, PARAM_BUFFER, NULL).s) != 0, p->kind == PARAM_BUFFER);
        assert_string_equal(m.s, state_hash(ps, PARAM_WEIGHT, momentum).s);
        *last ^= 1;
        if (p->kind == PARAM_WEIGHT && n % 16) { /* what lies between tensors does not count */
            p->value[n] = 1;
            assert_string_equal(w.s, state_hash(ps, PARAM_WEIGHT, NULL).s);
            p->value[n] = 0;
        }
    }
    free(momentum);
    params_destroy(ps);
    params_destroy(same);
    params_destroy(other);
}

static void every_state_counts(void **state)
{
    struct params *ps = fake_params(1, 3);
    float *x[3];
    struct hash_hex both, other;
    struct err e = ERR_INIT;

    (void)state;
    for (int k = 0; k < 3; k++) {
        x[k] = calloc(ps->n_weights, sizeof **x);
        for (size_t i = 0; i < ps->n_weights; i++)
            x[k][i] = (float)(k * 1000) + (float)i;
    }
    struct optim_states states = {2, {{"exp_avg", x[0]}, {"exp_avg_sq", x[1]}, {"ema", x[2]}}};
    assert_int_equal(receipt_hash_states(ps, &states, &both, &e), 0);
    assert_string_not_equal(both.s, state_hash(ps, PARAM_WEIGHT, x[0]).s);
    for (int k = 0; k < 3; k++) {
        x[k][params_find(ps, "layer.weight")->offset] += 1;
        assert_int_equal(receipt_hash_states(ps, &states, &other, &e), 0);
        assert_int_equal(strcmp(both.s, other.s) != 0, k < states.n);
        x[k][params_find(ps, "layer.weight")->offset] -= 1;
    }
    states.n = 3;
    assert_int_equal(receipt_hash_states(ps, &states, &other, &e), 0);
    assert_string_not_equal(both.s, other.s);
    for (int k = 0; k < 3; k++)
        free(x[k]);
    params_destroy(ps);
}

static void check_odd(const char *letters, int rank, int than)
{
    struct hash_hex all[8];
    int n = (int)strlen(letters);

    for (int i = 0; i < n; i++)
        all[i] = hash_bytes(&letters[i], 1);
    struct receipt_odd odd = receipt_find_odd(all, n);
    assert_int_equal(odd.rank, rank);
    assert_int_equal(odd.than, than);
}

static void most_ranks_are_right(void **state)
{
    (void)state;
    check_odd("a", -1, -1);
    check_odd("aaaa", -1, -1);
    check_odd("aaba", 2, 0);
    check_odd("baaa", 0, 1); /* rank 0 is no better than others */
    check_odd("ab", 1, 0);
    check_odd("aabb", 2, 0);
    check_odd("abcb", 0, 1);
}

static void json_both_ways(void **state)
{
    struct receipts r, back;
    struct err e = ERR_INIT;

    (void)state;
    receipts_init(&r, 0);
    for (int64_t s = 1; s <= RECEIPTS_MAX; s++) {
        struct receipt one = some(s);
        receipts_feed(&r, (uint64_t)s);
        receipts_add(&r, &one);
    }
    cJSON *m = cJSON_CreateObject();
    cJSON_AddStringToObject(m, "order", r.order.s);
    cJSON_AddNumberToObject(m, "order_from", 0);
    cJSON_AddItemToObject(m, "receipts", receipts_to_json(&r));
    char *text = json_text(m);
    cJSON *read = json_parse(text, strlen(text), &e);
    if (receipts_from_json(&back, read, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(back.n, r.n);
    for (int i = 0; i < r.n; i++) {
        assert_int_equal(back.v[i].step, r.v[i].step);
        assert_true(back.v[i].loss == r.v[i].loss);
        assert_string_equal(back.v[i].order.s, r.v[i].order.s);
        assert_string_equal(back.v[i].weights.s, r.v[i].weights.s);
        assert_string_equal(back.v[i].buffers.s, r.v[i].buffers.s);
        assert_string_equal(back.v[i].optimizer.s, r.v[i].optimizer.s);
    }
    assert_string_equal(back.order.s, r.order.s);
    assert_string_equal(json_find(json_find(m, "receipts")->child, "loss")->valuestring,
                        "0.33333333333333331");
    cJSON_ReplaceItemInObject(json_find(m, "receipts")->child, "weights", cJSON_CreateString("A"));
    assert_int_equal(receipts_from_json(&back, m, &e), -1);
    assert_string_equal(e.msg, "/receipts/0/weights: \"A\" found, 32 hex digits are accepted");
    cJSON_AddItemToArray(json_find(m, "receipts"), cJSON_CreateObject());
    assert_int_equal(receipts_from_json(&back, m, &e), -1);
    assert_non_null(strstr(e.msg, "at most 65"));
    free(text);
    cJSON_Delete(m);
    cJSON_Delete(read);
}

static void pieces_hash_as_the_whole(void **state)
{
    char data[1000];

    (void)state;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * 7);
    for (size_t piece = 1; piece <= sizeof data; piece = piece * 3 + 1) {
        struct hash_stream *h = hash_stream_create();
        for (size_t at = 0; at < sizeof data; at += piece)
            hash_stream_add(h, data + at, sizeof data - at < piece ? sizeof data - at : piece);
        hash_stream_add(h, NULL, 0);
        assert_string_equal(hash_stream_end(h).s, hash_bytes(data, sizeof data).s);
    }
    assert_true(hash_is_hex(hash_bytes("", 0).s));
    assert_false(hash_is_hex(""));
    assert_false(hash_is_hex("0123456789ABCDEF0123456789abcdef"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fixed_steps),          cmocka_unit_test(a_longer_run_keeps_what_it_would_have),
        cmocka_unit_test(the_order_is_a_chain), cmocka_unit_test(hashes_cover_every_bit_and_no_padding),
        cmocka_unit_test(every_state_counts),   cmocka_unit_test(most_ranks_are_right),
        cmocka_unit_test(json_both_ways),       cmocka_unit_test(pieces_hash_as_the_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
