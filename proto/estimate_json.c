/* estimate_json - an estimate as the document that spec.estimate answers and bfctl estimate --json prints. */
#include "common/json.h"
#include "proto/estimate.h"

struct member {
    const char *name;
    double value;
};

static void add_object(cJSON *doc, const char *name, const struct member *v, int n)
{
    cJSON *obj = cJSON_AddObjectToObject(doc, name);

    for (int i = 0; i < n; i++)
        json_add_double(obj, v[i].name, v[i].value);
}

#define ADD(doc, name, ...)                                                                                  \
    add_object(doc, name, (const struct member[]){__VA_ARGS__},                                              \
               (int)(sizeof((const struct member[]){__VA_ARGS__}) / sizeof(struct member)))

static void add_machine(cJSON *doc, const struct estimate_machine *m)
{
    cJSON *v = cJSON_AddObjectToObject(doc, "machine");

    cJSON_AddStringToObject(v, "name", m->name);
    cJSON_AddStringToObject(v, "description", m->description);
    cJSON_AddStringToObject(v, "figures", m->measured ? "measured" : "published");
}

static void add_input(cJSON *doc, const struct estimate *est)
{
    const struct paper_shape *in = &est->input;

    ADD(doc, "input", {"height", in->height}, {"width", in->width}, {"channels", in->channels},
        {"classes", in->classes});
    cJSON_AddBoolToObject(cJSON_GetObjectItemCaseSensitive(doc, "input"), "assumed", est->input_assumed);
}

static void add_work(cJSON *doc, const struct estimate *est)
{
    const double(*f)[PAPER_PASSES] = est->flops;
    double backbone = f[PAPER_BACKBONE][0] + f[PAPER_BACKBONE][1],
           module = f[PAPER_MODULE][0] + f[PAPER_MODULE][1];

    ADD(doc, "flops_per_step", {"backbone_forward", f[PAPER_BACKBONE][PAPER_FORWARD]},
        {"backbone_backward", f[PAPER_BACKBONE][PAPER_BACKWARD]},
        {"module_forward", f[PAPER_MODULE][PAPER_FORWARD]},
        {"module_backward", f[PAPER_MODULE][PAPER_BACKWARD]}, {"total", backbone + module});
    ADD(doc, "bytes_per_step", {"gather", est->bytes.gather}, {"reduce_scatter", est->bytes.scatter},
        {"gradients", est->bytes.gradients}, {"batch_norm", est->bytes.norm},
        {"total", est->bytes.gather + est->bytes.scatter + est->bytes.gradients + est->bytes.norm});
    ADD(doc, "memory_per_rank_bytes", {"weights", est->memory.weights}, {"gradients", est->memory.gradients},
        {"optimizer", est->memory.optimizer}, {"activations", est->memory.activations},
        {"gathered_rows", est->memory.gathered}, {"attention_tile", est->memory.tile},
        {"total",
         est->memory.weights + est->memory.gradients + est->memory.optimizer + est->memory.activations});
}

static void add_time(cJSON *doc, const struct estimate *est)
{
    ADD(doc, "step_s", {"forward", est->seconds.compute[PAPER_FORWARD]},
        {"backward", est->seconds.compute[PAPER_BACKWARD]}, {"module", est->seconds.module},
        {"update", est->seconds.update}, {"batch_norm", est->seconds.norm}, {"gather", est->seconds.gather},
        {"reduce_scatter", est->seconds.scatter}, {"gradients", est->seconds.gradients},
        {"gradients_exposed", est->seconds.gradients_exposed}, {"total", est->seconds.total});
    json_add_double(doc, "images_per_s", est->images_per_s);
    json_add_double(doc, "efficiency", est->efficiency);
}

static void add_gather(cJSON *doc, const struct estimate *est)
{
    if (!est->gather.exists) {
        cJSON_AddNullToObject(doc, "gather");
        return;
    }
    ADD(doc, "gather", {"kv_s", est->gather.kv_s}, {"features_s", est->gather.features_s},
        {"features_below_width", est->gather.cross_width});
    cJSON *v = cJSON_GetObjectItemCaseSensitive(doc, "gather");
    cJSON_AddStringToObject(v, "used", est->gather.features ? "features" : "kv");
    cJSON_AddStringToObject(v, "cheaper", est->gather.features_s < est->gather.kv_s ? "features" : "kv");
}

static void add_notes(cJSON *doc, const struct estimate *est)
{
    cJSON *notes = cJSON_AddArrayToObject(doc, "notes");

    if (!est->machine->measured)
        cJSON_AddItemToArray(notes, cJSON_CreateString("times rest on published figures of the machine and "
                                                       "assumptions; nothing of it was measured"));
    if (est->input_assumed)
        cJSON_AddItemToArray(notes, cJSON_CreateString("the spec does not say what the images are like: 28 x "
                                                       "28 x 1 and 10 classes assumed"));
    if (est->bitwise)
        cJSON_AddItemToArray(notes, cJSON_CreateString("estimated as determinism \"default\": micro-shards "
                                                       "take other memory and a few percent more time"));
}

cJSON *estimate_to_json(const struct estimate *est)
{
    cJSON *doc = cJSON_CreateObject();

    add_machine(doc, est->machine);
    cJSON_AddNumberToObject(doc, "ranks", est->ranks);
    cJSON_AddNumberToObject(doc, "batch_size", (double)est->total_rows);
    cJSON_AddNumberToObject(doc, "rows_per_rank", (double)est->rows);
    cJSON_AddStringToObject(doc, "precision", estimate_precision_name(est->precision));
    add_input(doc, est);
    cJSON_AddNumberToObject(doc, "parameters", est->parameters);
    cJSON_AddNumberToObject(doc, "module_parameters", est->module_parameters);
    add_work(doc, est);
    add_time(doc, est);
    add_gather(doc, est);
    add_notes(doc, est);
    return doc;
}
