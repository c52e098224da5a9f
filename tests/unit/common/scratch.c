/* scratch - see scratch.h. */
#include "scratch.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/fsutil.h"

int scratch_setup(void **state)
{
    char path[] = "/tmp/bf-train-XXXXXX";

    if (!mkdtemp(path))
        return -1;
    *state = xstrdup(path);
    return 0;
}

int scratch_teardown(void **state)
{
    int rc = fs_remove_tree(*state, NULL);

    free(*state);
    return rc;
}

char *scratch_path(void **state, const char *name)
{
    return fs_join(*state, name);
}

void scratch_write(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "w");

    ASSERT(f && fwrite(data, 1, n, f) == n && fclose(f) == 0);
}

char *scratch_read(const char *path)
{
    char *text;
    size_t len;

    ASSERT(fs_read_file(path, 1 << 24, &text, &len, NULL) == 0);
    return text;
}

void scratch_flip(const char *path, long offset)
{
    FILE *f = fopen(path, "r+");

    ASSERT(f && fseek(f, offset, offset < 0 ? SEEK_END : SEEK_SET) == 0);
    int c = fgetc(f);
    ASSERT(c != EOF && fseek(f, -1, SEEK_CUR) == 0 && fputc(c ^ 0x10, f) != EOF && fclose(f) == 0);
}

int scratch_count(const char *dir)
{
    DIR *d = opendir(dir);
    int n = 0;

    ASSERT(d);
    for (struct dirent *ent; (ent = readdir(d));)
        n += ent->d_name[0] != '.' || (ent->d_name[1] && ent->d_name[1] != '.');
    closedir(d);
    return n;
}
