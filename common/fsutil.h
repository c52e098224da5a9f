/* fsutil - files that are whole or absent, and the few path helpers that everyone needs. */
#ifndef COMMON_FSUTIL_H
#define COMMON_FSUTIL_H

#include <stdbool.h>
#include <stddef.h>
#include "common/buf.h"
#include "common/err.h"

/* Every message names the path. */

/* mkdir -p with mode 0777 & ~umask. */
int fs_mkdir_p(const char *path, struct err *e);

/* Reads a whole file of at most max_bytes; *out is malloc'ed and NUL-terminated, the caller frees it. */
int fs_read_file(const char *path, size_t max_bytes, char **out, size_t *len, struct err *e);

/* The same of an open file, from where it stands; `path` is for messages. Closes it. */
int fs_read_fd(int fd, const char *path, size_t max_bytes, char **out, size_t *len, struct err *e);

/* Writes path.tmp, fsyncs, renames over path, fsyncs the directory: a reader sees the old file or the new
 * one. */
int fs_atomic_replace(const char *path, const void *data, size_t n, struct err *e);

/* The same for a file that only its owner may read. */
int fs_atomic_replace_private(const char *path, const void *data, size_t n, struct err *e);

/* fsync of a directory, so that a rename or create in it survives a crash. */
int fs_fsync_dir(const char *dir, struct err *e);

/* write(2) until done. */
int fs_write_all(int fd, const void *data, size_t n, struct err *e);

/* rm -r, not following links; a path that does not exist is fine. */
int fs_remove_tree(const char *path, struct err *e);

/* cp -r of directories and regular files; `to` must not exist. On failure parts of it may be there. */
int fs_copy_tree(const char *from, const char *to, struct err *e);

bool fs_exists(const char *path);

/* "a/b", malloc'ed. */
char *fs_join(const char *a, const char *b);

/* The directory that holds `path`: "/a" of "/a/b", "/" of "/a", "." of "a"; malloc'ed. */
char *fs_parent(const char *path);

/* Directory of the running executable (for finding our other programs), malloc'ed. */
char *fs_self_dir(void);

#endif
