/* result - see result.h. Accuracies are fractions in the file and percent on the screen. */
#include "cli/result.h"
#include "cli/output.h"
#include "common/err.h"
#include "common/fsutil.h"
#include "common/json.h"

#include <stdlib.h>
#include <string.h>

enum { RESULT_MAX_BYTES = 64 << 20, LABEL = 14 };

cJSON *result_read(const char *run_dir)
{
    struct err e;
    char *path = fs_join(run_dir, "result.json");
    cJSON *v = fs_exists(path) ? json_read_file(path, RESULT_MAX_BYTES, &e) : NULL;

    free(path);
    return v;
}

static void line(FILE *out, const char *label, const char *text)
{
    char clean[1024];

    output_text(clean, sizeof clean, text);
    fprintf(out, "  %-*s %s\n", LABEL, label, clean);
}

/* Appends "name 71.2 %" to text; an accuracy of an empty group is null. */
static void append_accuracy(char *text, size_t cap, const cJSON *eval, const char *key, const char *name)
{
    const cJSON *v = json_find(eval, key);
    size_t n = strlen(text);

    if (cJSON_IsNumber(v))
        snprintf(text + n, cap - n, "%s%s %.2f %%", n ? "   " : "", name, v->valuedouble * 100);
    else if (cJSON_IsNull(v))
        snprintf(text + n, cap - n, "%s%s - (no class)", n ? "   " : "", name);
}

static void print_accuracy(FILE *out, const cJSON *result)
{
    const cJSON *eval = json_find(result, "eval"), *with = json_find(result, "batchformer");
    const cJSON *transductive = json_find(eval, "transductive"), *groups = json_find(eval, "groups");
    const cJSON *rule = cJSON_IsObject(groups) ? json_find(groups, "text") : NULL;
    char text[256] = "";

    if (cJSON_IsBool(with))
        line(out, "BatchFormer",
             !cJSON_IsTrue(with)          ? "without"
             : cJSON_IsTrue(transductive) ? "with, at evaluation too (transductive)"
                                          : "with, in training only");
    if (!cJSON_IsObject(eval))
        return;
    append_accuracy(text, sizeof text, eval, "top1", "top-1");
    if (*text)
        line(out, "test set", text);
    *text = 0;
    append_accuracy(text, sizeof text, eval, "many", "many");
    append_accuracy(text, sizeof text, eval, "medium", "medium");
    append_accuracy(text, sizeof text, eval, "few", "few");
    if (*text)
        line(out, "by class size", text);
    if (cJSON_IsString(rule))
        line(out, "groups", rule->valuestring);
}

static void print_best(FILE *out, const cJSON *result)
{
    const cJSON *best = json_find(result, "best");
    const cJSON *epoch = cJSON_IsObject(best) ? json_find(best, "epoch") : NULL;
    const cJSON *top1 = cJSON_IsObject(best) ? json_find(best, "val_top1") : NULL;
    char text[96];

    if (!cJSON_IsNumber(epoch) || !cJSON_IsNumber(top1))
        return;
    snprintf(text, sizeof text, "top-1 %.2f %% on the hold-out, after epoch %.0f", top1->valuedouble * 100,
             epoch->valuedouble);
    line(out, "best", text);
}

static void print_speed(FILE *out, const cJSON *result)
{
    const cJSON *rate = json_find(result, "images_per_s"), *size = json_find(result, "world_size");
    const cJSON *wall = json_find(result, "wall_s"), *timings = json_find(result, "timings");
    char text[96], number[32];

    if (!cJSON_IsNumber(wall) && cJSON_IsObject(timings))
        wall = json_find(timings, "total_s");

    if (cJSON_IsNumber(rate)) {
        output_rate(number, sizeof number, rate->valuedouble);
        line(out, "images/s", number);
    }
    if (cJSON_IsNumber(wall)) {
        output_duration(number, sizeof number, wall->valuedouble);
        line(out, "wall time", number);
    }
    if (cJSON_IsNumber(size)) {
        snprintf(text, sizeof text, "%.0f %s", size->valuedouble, size->valuedouble == 1 ? "rank" : "ranks");
        line(out, "world size", text);
    }
}

void result_print(FILE *out, const cJSON *result, const char *run_dir)
{
    if (cJSON_IsObject(result)) {
        print_accuracy(out, result);
        print_best(out, result);
        print_speed(out, result);
    }
    if (run_dir && *run_dir)
        line(out, "run", run_dir);
}
