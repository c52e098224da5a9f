/* metrics_file - see metrics_file.h.
 *
 * The file is read in order and only its whole lines; lines that are not JSON objects with a step are
 * skipped, since a crash may have cut one. The bounds hold the loop's other clients' waiting time down:
 * MAX_POINTS also keeps the reply below one message.
 */
#include "daemon/metrics_file.h"
#include "common/json.h"
#include "daemon/run_dir.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POINTS = 20000, MAX_READ_BYTES = 16 << 20, LATEST_BYTES = 64 << 10 };

struct reader {
    const cJSON *names;
    cJSON *series;
    int64_t n_points;
};

static bool is_wanted(const struct reader *r, const char *name)
{
    if (!r->names)
        return true;
    for (const cJSON *w = r->names->child; w; w = w->next)
        if (strcmp(name, w->valuestring) == 0)
            return true;
    return false;
}

static void add_point(struct reader *r, const char *name, int64_t step, double value)
{
    cJSON *s = json_find(r->series, name);

    if (!s)
        s = cJSON_AddArrayToObject(r->series, name);
    cJSON *point = cJSON_CreateArray();
    cJSON_AddItemToArray(point, cJSON_CreateNumber((double)step));
    cJSON_AddItemToArray(point, cJSON_CreateNumber(value));
    cJSON_AddItemToArray(s, point);
    r->n_points++;
}

static void add_line(struct reader *r, const cJSON *line, int64_t step)
{
    for (const cJSON *v = line->child; v; v = v->next)
        if (cJSON_IsNumber(v) && strcmp(v->string, "step") != 0 && strcmp(v->string, "epoch") != 0 &&
            is_wanted(r, v->string))
            add_point(r, v->string, step, v->valuedouble);
}

/* Returns the step from which to ask again, or -1 when everything was read. */
static int64_t read_lines(struct reader *r, FILE *f, int64_t since_step)
{
    char *text = NULL;
    size_t cap = 0;
    int64_t next = -1, n_bytes = 0, last_step = -1;

    for (ssize_t n; next < 0 && (n = getline(&text, &cap, f)) > 0;) {
        int64_t step;
        cJSON *line = text[n - 1] == '\n' ? json_parse(text, (size_t)n, NULL) : NULL;
        n_bytes += n;
        if (line && json_is_int(json_find(line, "step"), &step) && step >= since_step) {
            /* Stop between steps only: what is given of a step is all of it. */
            if (step > last_step && last_step >= 0 && (r->n_points >= MAX_POINTS || n_bytes > MAX_READ_BYTES))
                next = step;
            else
                add_line(r, line, step);
            last_step = step;
        }
        cJSON_Delete(line);
    }
    free(text);
    return next;
}

/* As a stream; NULL with errno ENOENT when there is none. */
static FILE *open_stream(const char *path, struct err *e)
{
    char *run_dir = strndup(path, (size_t)(strrchr(path, '/') - path));
    int fd = run_dir_open(run_dir, path, e), why = errno;

    free(run_dir);
    errno = why;
    return fd < 0 ? NULL : fdopen(fd, "r");
}

cJSON *metrics_file_read(const char *path, const cJSON *names, int64_t since_step, struct err *e)
{
    struct reader r = {.names = names};
    cJSON *out;

    errno = 0;
    FILE *f = open_stream(path, e);
    if (!f && errno != ENOENT)
        return NULL;
    out = cJSON_CreateObject();
    r.series = cJSON_AddObjectToObject(out, "series");
    if (!f)
        return out;
    int64_t next = read_lines(&r, f, since_step);
    if (next >= 0)
        cJSON_AddNumberToObject(out, "next_step", (double)next);
    fclose(f);
    return out;
}

/* A line of the file as rank 0 would have sent it. */
static cJSON *to_report(const cJSON *line)
{
    static const char *const head[] = {"step", "epoch", "kind"};
    cJSON *v = cJSON_CreateObject(), *values;

    for (size_t i = 0; i < sizeof head / sizeof *head; i++)
        if (json_find(line, head[i]))
            cJSON_AddItemToObject(v, head[i], cJSON_Duplicate(json_find(line, head[i]), true));
    values = cJSON_AddObjectToObject(v, "values");
    for (const cJSON *m = line->child; m; m = m->next)
        if (cJSON_IsNumber(m) && strcmp(m->string, "step") != 0 && strcmp(m->string, "epoch") != 0)
            cJSON_AddNumberToObject(values, m->string, m->valuedouble);
    return v;
}

cJSON *metrics_file_latest(const char *path)
{
    FILE *f = open_stream(path, NULL);
    char *text = NULL;
    size_t cap = 0;
    cJSON *out = NULL;

    if (!f)
        return NULL;
    if (fseek(f, -LATEST_BYTES, SEEK_END) < 0)
        rewind(f);
    for (ssize_t n; (n = getline(&text, &cap, f)) > 0;) {
        cJSON *line = json_parse(text, (size_t)n, NULL);
        const cJSON *kind = line ? json_find(line, "kind") : NULL;
        if (cJSON_IsString(kind)) {
            if (!out)
                out = cJSON_CreateObject();
            cJSON_DeleteItemFromObjectCaseSensitive(out, kind->valuestring);
            cJSON_AddItemToObject(out, kind->valuestring, to_report(line));
        }
        cJSON_Delete(line);
    }
    free(text);
    fclose(f);
    return out;
}
