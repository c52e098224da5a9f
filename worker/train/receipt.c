/* receipt - see receipt.h. */
#include "worker/train/receipt.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/json.h"
#include "worker/train/optim.h"

void receipts_init(struct receipts *r, int64_t from)
{
    char text[64];

    /* An order that begins later must never look like one that begins at step 0. */
    int n = snprintf(text, sizeof text, "order from step %" PRId64, from);
    *r = (struct receipts){.from = from, .order = hash_bytes(text, (size_t)n)};
}

int64_t receipts_period(int64_t n_steps)
{
    int64_t p = 1;

    while (n_steps > RECEIPTS_REGULAR * p)
        p *= 2;
    return p;
}

bool receipts_due(int64_t step, int64_t n_steps)
{
    return step == n_steps || step % receipts_period(n_steps) == 0;
}

void receipts_keep_due(struct receipts *r, int64_t n_steps)
{
    int n = 0;

    for (int i = 0; i < r->n; i++)
        if (receipts_due(r->v[i].step, n_steps))
            r->v[n++] = r->v[i];
    r->n = n;
}

/* As text, so that the hash knows no byte order. */
void receipts_feed(struct receipts *r, uint64_t digest)
{
    char text[sizeof r->order.s + 17];
    int n = snprintf(text, sizeof text, "%s%016" PRIx64, r->order.s, digest);

    r->order = hash_bytes(text, (size_t)n);
}

void receipts_add(struct receipts *r, const struct receipt *one)
{
    ASSERT(r->n < RECEIPTS_MAX && (r->n == 0 || r->v[r->n - 1].step < one->step));
    r->v[r->n] = *one;
    r->v[r->n++].order = r->order;
}

static size_t param_bytes(const struct param *p)
{
    return (size_t)shape_count(p->shape) * sizeof(float);
}

/* Tensors of a kind; `flat` (a device buffer of the layout of ps->weights, or NULL) takes the place of the
 * parameters' own values. */
static int add_tensors(struct hash_stream *h, const struct params *ps, enum param_kind kind,
                       const float *flat, float *host, struct err *e)
{
    struct backend *be = ps->backend;

    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        if (p->kind != kind)
            continue;
        if (be->ops->download(be, host, flat ? flat + p->offset : p->value, param_bytes(p), e) < 0)
            return -1;
        hash_stream_add(h, p->name, strlen(p->name) + 1);
        hash_stream_add(h, host, param_bytes(p));
    }
    return 0;
}

/* flats: n of them. */
static int hash_all(const struct params *ps, enum param_kind kind, const float *const *flats, int n,
                    struct hash_hex *out, struct err *e)
{
    size_t most = sizeof(float);
    int rc = 0;

    for (int i = 0; i < ps->n; i++)
        if (param_bytes(ps->v[i]) > most)
            most = param_bytes(ps->v[i]);
    float *host = malloc(most);
    if (!host)
        return err_set(e, "receipt: no memory for a tensor of %zu bytes", most);
    struct hash_stream *h = hash_stream_create();
    for (int k = 0; k < n && rc == 0; k++)
        rc = add_tensors(h, ps, kind, flats[k], host, e);
    *out = hash_stream_end(h);
    free(host);
    return rc < 0 ? err_wrap(e, "receipt") : 0;
}

int receipt_hash(const struct params *ps, enum param_kind kind, struct hash_hex *out, struct err *e)
{
    const float *own = NULL;

    return hash_all(ps, kind, &own, 1, out, e);
}

int receipt_hash_states(const struct params *ps, const struct optim_states *states, struct hash_hex *out,
                        struct err *e)
{
    const float *flats[OPTIM_MAX_STATES];

    for (int k = 0; k < states->n; k++)
        flats[k] = states->v[k].values;
    return hash_all(ps, PARAM_WEIGHT, flats, states->n, out, e);
}

static int count_like(const struct hash_hex *all, int size, int rank)
{
    int n = 0;

    for (int r = 0; r < size; r++)
        n += strcmp(all[r].s, all[rank].s) == 0;
    return n;
}

struct receipt_odd receipt_find_odd(const struct hash_hex *all, int size)
{
    struct receipt_odd odd = {-1, 0};

    for (int r = 1; r < size; r++)
        if (count_like(all, size, r) > count_like(all, size, odd.than))
            odd.than = r;
    for (int r = size - 1; r >= 0; r--)
        if (strcmp(all[r].s, all[odd.than].s) != 0)
            odd.rank = r;
    if (odd.rank < 0)
        odd.than = -1;
    return odd;
}

cJSON *receipts_to_json(const struct receipts *r)
{
    cJSON *list = cJSON_CreateArray();

    for (int i = 0; i < r->n; i++) {
        const struct receipt *one = &r->v[i];
        cJSON *v = cJSON_CreateObject();
        char loss[32];
        snprintf(loss, sizeof loss, "%.17g", one->loss);
        cJSON_AddNumberToObject(v, "step", (double)one->step);
        cJSON_AddStringToObject(v, "order", one->order.s);
        cJSON_AddStringToObject(v, "loss", loss);
        cJSON_AddStringToObject(v, "weights", one->weights.s);
        cJSON_AddStringToObject(v, "buffers", one->buffers.s);
        cJSON_AddStringToObject(v, "optimizer", one->optimizer.s);
        cJSON_AddItemToArray(list, v);
    }
    return list;
}

static int get_hash(const cJSON *obj, const char *at, const char *key, struct hash_hex *out, struct err *e)
{
    const char *text;

    if (json_get_str(obj, at, key, &text, e) < 0)
        return -1;
    if (!hash_is_hex(text))
        return err_set(e, "%s/%s: \"%.40s\" found, 32 hex digits are accepted", at, key, text);
    snprintf(out->s, sizeof out->s, "%s", text);
    return 0;
}

static int read_one(struct receipt *one, const cJSON *v, const char *at, int64_t after, struct err *e)
{
    const char *loss;
    char *end;

    if (json_get_int(v, at, "step", after + 1, INT64_C(1) << 53, &one->step, e) < 0 ||
        json_get_str(v, at, "loss", &loss, e) < 0)
        return -1;
    one->loss = strtod(loss, &end);
    if (end == loss || *end)
        return err_set(e, "%s/loss: \"%.40s\" found, a number in a string is accepted", at, loss);
    if (get_hash(v, at, "order", &one->order, e) < 0 || get_hash(v, at, "weights", &one->weights, e) < 0 ||
        get_hash(v, at, "buffers", &one->buffers, e) < 0)
        return -1;
    return get_hash(v, at, "optimizer", &one->optimizer, e);
}

int receipts_from_json(struct receipts *r, const cJSON *manifest, struct err *e)
{
    const cJSON *list = json_find(manifest, "receipts"), *v;

    *r = (struct receipts){0};
    if (get_hash(manifest, "", "order", &r->order, e) < 0 ||
        json_get_int(manifest, "", "order_from", 0, INT64_C(1) << 53, &r->from, e) < 0)
        return -1;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) > RECEIPTS_MAX)
        return err_set(e, "/receipts: an array of at most %d receipts is accepted", RECEIPTS_MAX);
    cJSON_ArrayForEach(v, list)
    {
        char at[32];
        snprintf(at, sizeof at, "/receipts/%d", r->n);
        if (read_one(&r->v[r->n], v, at, r->n ? r->v[r->n - 1].step : 0, e) < 0)
            return -1;
        r->n++;
    }
    return 0;
}
