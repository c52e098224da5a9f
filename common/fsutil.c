/* fsutil - see fsutil.h. */
#include "common/fsutil.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *fs_join(const char *a, const char *b)
{
    return xasprintf("%s/%s", a, b);
}

char *fs_parent(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return xstrdup(".");
    return xasprintf("%.*s", slash == path ? 1 : (int)(slash - path), path);
}

bool fs_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int fs_mkdir_p(const char *path, struct err *e)
{
    char *p = xstrdup(path);
    int rc = 0;

    for (char *s = p + 1; rc == 0; s++) {
        if (*s != '/' && *s != 0)
            continue;
        char c = *s;
        *s = 0;
        if (mkdir(p, 0777) < 0 && errno != EEXIST)
            rc = err_set_errno(e, "creating directory %s", p);
        *s = c;
        if (!c)
            break;
    }
    struct stat st;
    if (rc == 0 && (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)))
        rc = err_set(e, "%s exists and is not a directory", path);
    free(p);
    return rc;
}

int fs_read_file(const char *path, size_t max_bytes, char **out, size_t *len, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    return fd < 0 ? err_set_errno(e, "%s", path) : fs_read_fd(fd, path, max_bytes, out, len, e);
}

int fs_read_fd(int fd, const char *path, size_t max_bytes, char **out, size_t *len, struct err *e)
{
    struct stat st;

    if (fstat(fd, &st) < 0 || S_ISDIR(st.st_mode)) {
        close(fd);
        return err_set(e, "%s is a directory, not a file", path);
    }
    struct buf b;
    buf_init(&b, max_bytes);
    for (;;) {
        size_t want = b.len + 65536 <= max_bytes ? 65536 : max_bytes - b.len + 1;
        char *p = xmalloc(want);
        ssize_t n = read(fd, p, want);
        int rc = n < 0 ? err_set_errno(e, "reading %s", path) : 0;
        if (n > 0 && buf_append(&b, p, (size_t)n, NULL) < 0)
            rc = err_set(e, "%s is larger than %zu bytes", path, max_bytes);
        free(p);
        if (rc < 0 || n <= 0) {
            close(fd);
            if (rc < 0) {
                buf_free(&b);
                return -1;
            }
            *out = b.data ? b.data : xcalloc(1, 1);
            *len = b.len;
            return 0;
        }
    }
}

int fs_write_all(int fd, const void *data, size_t n, struct err *e)
{
    const char *p = data;

    while (n) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return err_set_errno(e, "write");
        p += w;
        n -= (size_t)w;
    }
    return 0;
}

int fs_fsync_dir(const char *dir, struct err *e)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return err_set_errno(e, "%s", dir);
    int rc = fsync(fd) < 0 ? err_set_errno(e, "fsync of directory %s", dir) : 0;
    close(fd);
    return rc;
}

static int write_synced(const char *path, mode_t mode, const void *data, size_t n, struct err *e)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);

    if (fd < 0)
        return err_set_errno(e, "creating %s", path);
    int rc = fs_write_all(fd, data, n, e);
    if (rc < 0)
        err_wrap(e, "%s", path);
    else if (fsync(fd) < 0)
        rc = err_set_errno(e, "fsync of %s", path);
    if (close(fd) < 0 && rc == 0)
        rc = err_set_errno(e, "closing %s", path);
    return rc;
}

static int replace(const char *path, mode_t mode, const void *data, size_t n, struct err *e)
{
    char *tmp = xasprintf("%s.tmp.%ld", path, (long)getpid());
    int rc = write_synced(tmp, mode, data, n, e);

    if (rc == 0 && rename(tmp, path) < 0)
        rc = err_set_errno(e, "renaming %s to %s", tmp, path);
    if (rc < 0)
        unlink(tmp);
    free(tmp);
    if (rc < 0)
        return -1;
    char *dir = fs_parent(path);
    rc = fs_fsync_dir(dir, e);
    free(dir);
    return rc;
}

int fs_atomic_replace(const char *path, const void *data, size_t n, struct err *e)
{
    return replace(path, 0666, data, n, e);
}

int fs_atomic_replace_private(const char *path, const void *data, size_t n, struct err *e)
{
    return replace(path, 0600, data, n, e);
}

int fs_remove_tree(const char *path, struct err *e)
{
    struct stat st;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_set_errno(e, "%s", path);
    if (!S_ISDIR(st.st_mode))
        return unlink(path) < 0 ? err_set_errno(e, "removing %s", path) : 0;
    DIR *d = opendir(path);
    if (!d)
        return err_set_errno(e, "%s", path);
    int rc = 0;
    for (struct dirent *ent; rc == 0 && (ent = readdir(d));) {
        if (strcmp(ent->d_name, ".") == 0 || strcmp(ent->d_name, "..") == 0)
            continue;
        char *child = fs_join(path, ent->d_name);
        rc = fs_remove_tree(child, e);
        free(child);
    }
    closedir(d);
    if (rc == 0 && rmdir(path) < 0)
        rc = err_set_errno(e, "removing %s", path);
    return rc;
}

static int copy_bytes(int in, int out, const char *from, struct err *e)
{
    for (;;) {
        char chunk[65536];
        ssize_t n = read(in, chunk, sizeof chunk);
        if (n < 0)
            return err_set_errno(e, "reading %s", from);
        if (n == 0)
            return 0;
        if (fs_write_all(out, chunk, (size_t)n, e) < 0)
            return -1;
    }
}

static int copy_file(const char *from, const char *to, mode_t mode, struct err *e)
{
    int in = open(from, O_RDONLY | O_CLOEXEC), out, rc;

    if (in < 0)
        return err_set_errno(e, "%s", from);
    out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode & 0777);
    if (out < 0) {
        rc = err_set_errno(e, "%s", to);
    } else {
        rc = copy_bytes(in, out, from, e) < 0 ? err_wrap(e, "copying to %s", to) : 0;
        if (close(out) < 0 && rc == 0)
            rc = err_set_errno(e, "writing %s", to);
    }
    close(in);
    return rc;
}

int fs_copy_tree(const char *from, const char *to, struct err *e)
{
    struct stat st;

    if (lstat(from, &st) < 0)
        return err_set_errno(e, "%s", from);
    if (S_ISREG(st.st_mode))
        return copy_file(from, to, st.st_mode, e);
    if (!S_ISDIR(st.st_mode))
        return err_set(e, "%s is neither a file nor a directory: not copied", from);
    if (mkdir(to, 0777) < 0)
        return err_set_errno(e, "creating directory %s", to);
    DIR *d = opendir(from);
    if (!d)
        return err_set_errno(e, "%s", from);
    int rc = 0;
    for (struct dirent *ent; rc == 0 && (ent = readdir(d));) {
        if (strcmp(ent->d_name, ".") == 0 || strcmp(ent->d_name, "..") == 0)
            continue;
        char *a = fs_join(from, ent->d_name), *b = fs_join(to, ent->d_name);
        rc = fs_copy_tree(a, b, e);
        free(a);
        free(b);
    }
    closedir(d);
    return rc;
}

char *fs_self_dir(void)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);

    if (n <= 0)
        return xstrdup(".");
    path[n] = 0;
    char *slash = strrchr(path, '/');
    *slash = 0;
    return xstrdup(path);
}
