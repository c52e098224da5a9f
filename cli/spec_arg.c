/* spec_arg - see spec_arg.h.
 *
 * Workers run elsewhere, in other directories, so no relative path leaves this program: a path written in the
 * spec file is taken from that file's directory, one given by --set from the current directory (where the
 * shell completed it). Order: read, paths of the file, --set, paths of --set, check.
 */
#include "cli/spec_arg.h"
#include "cli/output.h"
#include "common/buf.h"
#include "common/fsutil.h"
#include "common/json.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SPEC_MAX_BYTES = 1 << 20 };

/* The members that are paths on this machine. */
static const char *const path_keys[][2] = {{"data", "path"}, {"init", "weights"}};

static void make_absolute(cJSON *doc, const char *base)
{
    for (size_t i = 0; i < sizeof path_keys / sizeof *path_keys; i++) {
        cJSON *section = json_find(doc, path_keys[i][0]);
        cJSON *v = cJSON_IsObject(section) ? json_find(section, path_keys[i][1]) : NULL;
        if (!cJSON_IsString(v) || !*v->valuestring || *v->valuestring == '/')
            continue;
        char *full = fs_join(base, v->valuestring);
        cJSON_ReplaceItemInObjectCaseSensitive(section, path_keys[i][1], cJSON_CreateString(full));
        free(full);
    }
}

/* The same for the values that a sweep gives such a member. */
static void make_sweep_absolute(cJSON *doc, const char *base)
{
    cJSON *sweep = json_find(doc, "sweep");

    for (size_t i = 0; cJSON_IsObject(sweep) && i < sizeof path_keys / sizeof *path_keys; i++) {
        char *key = xasprintf("%s.%s", path_keys[i][0], path_keys[i][1]);
        cJSON *values = json_find(sweep, key);
        for (int k = 0; cJSON_IsArray(values) && k < cJSON_GetArraySize(values); k++) {
            const cJSON *v = cJSON_GetArrayItem(values, k);
            if (!cJSON_IsString(v) || !*v->valuestring || *v->valuestring == '/')
                continue;
            char *full = fs_join(base, v->valuestring);
            cJSON_ReplaceItemInArray(values, k, cJSON_CreateString(full));
            free(full);
        }
        free(key);
    }
}

/* Absolute directory of a file; malloc'ed. */
static char *directory_of(const char *path, struct err *e)
{
    char full[PATH_MAX];

    if (!realpath(path, full)) {
        err_set_errno(e, "%s", path);
        return NULL;
    }
    char *slash = strrchr(full, '/');
    slash[slash == full] = 0;
    return xstrdup(full);
}

static char *current_directory(struct err *e)
{
    char here[PATH_MAX];

    if (!getcwd(here, sizeof here)) {
        err_set_errno(e, "current directory");
        return NULL;
    }
    return xstrdup(here);
}

/* All of standard input; malloc'ed. */
static char *read_stdin(size_t *len, struct err *e)
{
    struct buf b;

    buf_init(&b, SPEC_MAX_BYTES);
    for (;;) {
        char chunk[8192];
        ssize_t n = read(STDIN_FILENO, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            err_set_errno(e, "standard input");
        else if (n > 0 && buf_append(&b, chunk, (size_t)n, e) == 0)
            continue;
        if (n != 0)
            break;
        *len = b.len;
        return b.data ? b.data : xstrdup("");
    }
    buf_free(&b);
    return NULL;
}

/* 0 with arg->doc, or with one finding at the root when the text is no JSON; -1 when it cannot be read. */
static int read_document(const char *path, struct spec_arg *arg, struct err *e)
{
    size_t len = 0;
    char *text = NULL;

    if (strcmp(path, "-") == 0)
        text = read_stdin(&len, e);
    else if (fs_read_file(path, SPEC_MAX_BYTES, &text, &len, e) < 0)
        text = NULL;
    if (!text)
        return -1;
    arg->doc = json_parse(text, len, e);
    free(text);
    if (!arg->doc) {
        arg->errs.v = xcalloc(1, sizeof *arg->errs.v);
        arg->errs.v[0] = (struct jobspec_error){xstrdup(""), xstrdup(e->msg)};
        arg->errs.n = 1;
    }
    return 0;
}

static int apply_sets(const struct cli *cli, cJSON *doc, struct err *e)
{
    for (size_t i = 0; i < cli->opts.set.n_items; i++)
        if (jobspec_set(doc, cli->opts.set.items[i], e) < 0)
            return -1;
    return 0;
}

/* Directory that the paths written in the spec count from; malloc'ed. */
static char *base_of(const char *path, struct err *e)
{
    return strcmp(path, "-") == 0 ? current_directory(e) : directory_of(path, e);
}

static int apply(const struct cli *cli, cJSON *doc, struct err *e)
{
    char *base = base_of(cli->operands[0], e), *here = base ? current_directory(e) : NULL;
    int rc = here ? 0 : -1;

    if (rc == 0) {
        make_absolute(doc, base);
        make_sweep_absolute(doc, base);
        rc = apply_sets(cli, doc, e);
    }
    if (rc == 0) {
        make_absolute(doc, here);
        make_sweep_absolute(doc, here);
    }
    free(base);
    free(here);
    return rc;
}

static int read_arg(const struct cli *cli, struct spec_arg *arg, struct err *e)
{
    *arg = (struct spec_arg){0};
    if (read_document(cli->operands[0], arg, e) < 0 || (arg->doc && apply(cli, arg->doc, e) < 0)) {
        e->kind = e->kind == ERR_USAGE ? ERR_USAGE : ERR_SPEC;
        return -1;
    }
    return 0;
}

int spec_arg_read(const struct cli *cli, struct spec_arg *arg, struct err *e)
{
    if (read_arg(cli, arg, e) < 0)
        return -1;
    if (arg->doc && jobspec_parse(arg->doc, &arg->spec, &arg->resolved, &arg->errs) == 0)
        arg->n_jobs = 1;
    return 0;
}

int spec_arg_read_jobs(const struct cli *cli, struct spec_arg *arg, struct err *e)
{
    struct jobspec_job *jobs;

    if (read_arg(cli, arg, e) < 0)
        return -1;
    int n = arg->doc ? jobspec_parse_jobs(arg->doc, &jobs, &arg->errs) : -1;
    if (n < 0)
        return 0;
    arg->n_jobs = n;
    arg->spec = jobs[0].spec;
    if (n == 1) {
        arg->resolved = jobs[0].resolved;
        jobs[0].resolved = NULL;
    } else {
        arg->resolved = cJSON_CreateArray();
        for (int i = 0; i < n; i++) {
            cJSON_AddItemToArray(arg->resolved, jobs[i].resolved);
            jobs[i].resolved = NULL;
        }
    }
    jobspec_jobs_free(jobs, n);
    return 0;
}

void spec_arg_free(struct spec_arg *arg)
{
    cJSON_Delete(arg->doc);
    cJSON_Delete(arg->resolved);
    jobspec_errors_free(&arg->errs);
    *arg = (struct spec_arg){0};
}

int spec_arg_report_json(const struct cli *cli, const cJSON *errors)
{
    const cJSON *item;
    int n = cJSON_GetArraySize(errors);

    if (cli->opts.json) {
        cJSON *doc = cJSON_CreateObject();
        cJSON_AddFalseToObject(doc, "valid");
        cJSON_AddItemToObject(doc, "errors", cJSON_Duplicate(errors, true));
        output_json(doc);
        cJSON_Delete(doc);
    }
    fprintf(stderr, "bfctl: the job spec is not valid (%d %s)\n", n, n == 1 ? "finding" : "findings");
    cJSON_ArrayForEach(item, errors)
    {
        char text[1024];
        const cJSON *pointer = json_find(item, "pointer"), *message = json_find(item, "message");
        output_text(text, sizeof text, cJSON_IsString(pointer) ? pointer->valuestring : "");
        fprintf(stderr, "  %s%s", text, *text ? ": " : "");
        output_text(text, sizeof text, cJSON_IsString(message) ? message->valuestring : "");
        fprintf(stderr, "%s\n", text);
    }
    return EXIT_USAGE;
}

bool spec_is_bitwise(const cJSON *spec)
{
    const cJSON *mode = json_find(json_find(spec, "train"), "determinism");

    return cJSON_IsString(mode) && strcmp(mode->valuestring, "bitwise") == 0;
}

bool spec_is_bf16(const cJSON *spec)
{
    const cJSON *precision = json_find(json_find(spec, "train"), "precision");

    return cJSON_IsString(precision) && strcmp(precision->valuestring, "bf16") == 0;
}

int spec_arg_report(const struct cli *cli, const struct spec_arg *arg)
{
    cJSON *errors = jobspec_errors_to_json(&arg->errs);
    int rc = spec_arg_report_json(cli, errors);

    cJSON_Delete(errors);
    return rc;
}
