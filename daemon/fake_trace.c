/* fake_trace - see fake_trace.h. */
#include "daemon/fake_trace.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "common/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_BYTES = 1 << 20 };

/* A line that is written in part, on a full disk, is taken back. */
static int append(const char *run_dir, const char *line, struct err *e)
{
    char *path = fs_join(run_dir, "fake.log");
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666), rc = 0;
    ssize_t len = (ssize_t)strlen(line), n = fd < 0 ? -1 : write(fd, line, (size_t)len);

    if (n < 0)
        rc = err_set_errno(e, "%s", path);
    else if (n < len)
        rc = ftruncate(fd, lseek(fd, 0, SEEK_END) - n) < 0
                 ? err_set_errno(e, "%s", path)
                 : err_set_kind(e, ERR_NO_SPACE, "%s: %s", path, strerror(ENOSPC));
    if (fd >= 0)
        close(fd);
    free(path);
    return rc;
}

int fake_trace_start(const char *run_dir, int64_t attempt, const char *token, struct err *e)
{
    char line[160];

    snprintf(line, sizeof line, "start %lld %s %lld\n", (long long)attempt, token,
             (long long)clock_wall_ms());
    return append(run_dir, line, e);
}

int fake_trace_end(const char *run_dir, int64_t attempt, const char *how, struct err *e)
{
    char line[160];

    snprintf(line, sizeof line, "end %lld %s %lld\n", (long long)attempt, how, (long long)clock_wall_ms());
    return append(run_dir, line, e);
}

void fake_trace_read(const char *run_dir, struct fake_trace *out)
{
    char *path = fs_join(run_dir, "fake.log"), *text = NULL, word[JOB_TOKEN_BYTES];
    long long attempt, ms;
    size_t len;

    *out = (struct fake_trace){0};
    if (fs_read_file(path, MAX_BYTES, &text, &len, NULL) == 0)
        for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
            *end = 0;
            if (sscanf(line, "start %lld %64s %lld", &attempt, word, &ms) == 3) {
                *out = (struct fake_trace){.started = true, .attempt = attempt, .start_ms = ms};
                memcpy(out->token, word, sizeof out->token);
            } else if (sscanf(line, "end %lld %64s", &attempt, word) == 2 && attempt == out->attempt) {
                out->ended = true;
            }
        }
    free(text);
    free(path);
}

int fake_trace_result(const char *run_dir, const char *status, const char *reason, struct err *e)
{
    char *path = fs_join(run_dir, "result.json");
    cJSON *v = cJSON_CreateObject();

    cJSON_AddStringToObject(v, "status", status);
    cJSON_AddStringToObject(v, "reason", reason);
    char *text = json_text(v);
    int rc = fs_atomic_replace(path, text, strlen(text), e);
    free(text);
    cJSON_Delete(v);
    free(path);
    return rc;
}
