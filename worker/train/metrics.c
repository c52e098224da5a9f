/* metrics - see metrics.h. */
#include "worker/train/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/fsutil.h"
#include "common/json.h"

static bool is_kept(const char *line, size_t len, int64_t keep_step)
{
    if (len == 0 || line[len - 1] != '\n')
        return false;
    cJSON *v = json_parse(line, len, NULL);
    int64_t step;
    const cJSON *s = v ? json_find(v, "step") : NULL, *split = v ? json_find(v, "split") : NULL;
    bool kept = s && json_is_int(s, &step) && step <= keep_step &&
                !(cJSON_IsString(split) && strcmp(split->valuestring, "test") == 0);
    cJSON_Delete(v);
    return kept;
}

static int copy_kept(FILE *in, FILE *out, int64_t keep_step)
{
    char *line = NULL;
    size_t cap = 0;
    int rc = 0;

    for (ssize_t n; rc == 0 && (n = getline(&line, &cap, in)) >= 0;)
        if (is_kept(line, (size_t)n, keep_step) && fwrite(line, 1, (size_t)n, out) != (size_t)n)
            rc = -1;
    free(line);
    return rc == 0 && !ferror(in) && fflush(out) == 0 && fsync(fileno(out)) == 0 ? 0 : -1;
}

static int cut(const char *path, int64_t keep_step, struct err *e)
{
    FILE *in = fopen(path, "re");

    if (!in)
        return errno == ENOENT ? 0 : err_set_errno(e, "%s", path);
    char *tmp = xasprintf("%s.tmp.%ld", path, (long)getpid());
    FILE *out = fopen(tmp, "we");
    int rc = out && copy_kept(in, out, keep_step) == 0 ? 0 : err_set_errno(e, "%s", tmp);
    if (out && fclose(out) != 0 && rc == 0)
        rc = err_set_errno(e, "%s", tmp);
    if (rc == 0 && rename(tmp, path) < 0)
        rc = err_set_errno(e, "renaming %s to %s", tmp, path);
    if (rc < 0)
        unlink(tmp);
    free(tmp);
    fclose(in);
    return rc;
}

int metrics_open(struct metrics *m, const char *path, int64_t keep_step, struct err *e)
{
    *m = (struct metrics){.fd = -1};
    if (cut(path, keep_step, e) < 0)
        return -1;
    m->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (m->fd < 0)
        return err_set_errno(e, "%s", path);
    m->path = xstrdup(path);
    return 0;
}

int metrics_write(struct metrics *m, const cJSON *line, struct err *e)
{
    char *text = json_text(line);
    size_t n = strlen(text);

    text[n] = '\n'; /* in place of the NUL: one write, one line */
    int rc = fs_write_all(m->fd, text, n + 1, e);
    free(text);
    return rc < 0 ? err_wrap(e, "%s", m->path) : 0;
}

int metrics_sync(struct metrics *m, struct err *e)
{
    return fdatasync(m->fd) < 0 ? err_set_errno(e, "%s", m->path) : 0;
}

void metrics_close(struct metrics *m)
{
    if (m->fd >= 0 && m->path)
        close(m->fd);
    free(m->path);
    *m = (struct metrics){.fd = -1};
}
