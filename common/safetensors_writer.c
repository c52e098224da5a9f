/* safetensors_writer - the writer; see safetensors.h. */
#include "common/safetensors.h"

#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/fsutil.h"
#include "common/json.h"

struct safetensors_writer {
    char *path, *tmp;
    int fd; /* -1 before begin */
    cJSON *header, *metadata;
    size_t *bytes; /* of each added tensor */
    int n, next;   /* tensors added, tensors written */
    uint64_t data_bytes;
    bool finished;
};

struct safetensors_writer *safetensors_writer_create(const char *path)
{
    struct safetensors_writer *w = xcalloc(1, sizeof *w);

    w->path = xstrdup(path);
    w->tmp = xasprintf("%s.tmp.%ld", path, (long)getpid());
    w->fd = -1;
    w->header = cJSON_CreateObject();
    w->metadata = cJSON_AddObjectToObject(w->header, "__metadata__");
    cJSON_AddStringToObject(w->metadata, "format",
                            "pt"); /* tensors are laid out as PyTorch's state_dict has them */
    return w;
}

void safetensors_writer_metadata(struct safetensors_writer *w, const char *key, const char *value)
{
    cJSON_AddStringToObject(w->metadata, key, value);
}

void safetensors_writer_add(struct safetensors_writer *w, const char *name, enum safetensors_dtype dtype,
                            int n_dims, const int64_t *dims)
{
    ASSERT(w->fd < 0 && n_dims <= SAFETENSORS_MAX_DIMS && !json_find(w->header, name));
    cJSON *t = cJSON_AddObjectToObject(w->header, name);
    cJSON_AddStringToObject(t, "dtype", safetensors_dtype_name(dtype));
    cJSON *shape = cJSON_AddArrayToObject(t, "shape");
    size_t bytes = safetensors_dtype_bytes(dtype);
    for (int i = 0; i < n_dims; i++) {
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)dims[i]));
        bytes *= (size_t)dims[i];
    }
    cJSON *offs = cJSON_AddArrayToObject(t, "data_offsets");
    cJSON_AddItemToArray(offs, cJSON_CreateNumber((double)w->data_bytes));
    w->data_bytes += bytes;
    cJSON_AddItemToArray(offs, cJSON_CreateNumber((double)w->data_bytes));
    w->bytes = xrealloc(w->bytes, (size_t)(w->n + 1) * sizeof *w->bytes);
    w->bytes[w->n++] = bytes;
}

int safetensors_writer_begin(struct safetensors_writer *w, struct err *e)
{
    ASSERT(w->fd < 0);
    w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0)
        return err_set_errno(e, "creating %s", w->tmp);
    char *text = json_text(w->header);
    size_t len = strlen(text), padded = (len + 7) & ~(size_t)7;
    text = xrealloc(text, padded + 1);
    memset(text + len, ' ', padded - len);
    uint64_t le = htole64(padded);
    int rc = fs_write_all(w->fd, &le, sizeof le, e);
    if (rc == 0)
        rc = fs_write_all(w->fd, text, padded, e);
    free(text);
    return rc < 0 ? err_wrap(e, "%s", w->path) : 0;
}

int safetensors_writer_data(struct safetensors_writer *w, const void *data, size_t bytes, struct err *e)
{
    ASSERT(w->fd >= 0 && w->next < w->n && bytes == w->bytes[w->next]);
    w->next++;
    return fs_write_all(w->fd, data, bytes, e) < 0 ? err_wrap(e, "%s", w->path) : 0;
}

static char *dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return !slash          ? xstrdup(".")
           : slash == path ? xstrdup("/")
                           : xasprintf("%.*s", (int)(slash - path), path);
}

int safetensors_writer_finish(struct safetensors_writer *w, struct err *e)
{
    ASSERT(w->fd >= 0 && w->next == w->n);
    if (fsync(w->fd) < 0)
        return err_set_errno(e, "fsync of %s", w->tmp);
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) < 0)
        return err_set_errno(e, "closing %s", w->tmp);
    if (rename(w->tmp, w->path) < 0)
        return err_set_errno(e, "renaming %s to %s", w->tmp, w->path);
    w->finished = true;
    char *dir = dir_of(w->path);
    int rc = fs_fsync_dir(dir, e);
    free(dir);
    return rc;
}

void safetensors_writer_destroy(struct safetensors_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (!w->finished)
        unlink(w->tmp);
    cJSON_Delete(w->header);
    free(w->bytes);
    free(w->path);
    free(w->tmp);
    free(w);
}
