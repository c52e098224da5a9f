/* scratch - a directory of its own for each test, and small file helpers. */
#ifndef TEST_SCRATCH_H
#define TEST_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

/* cmocka setup and teardown: *state is the path of a fresh directory. */
int scratch_setup(void **state);
int scratch_teardown(void **state);

/* "DIR/NAME" with the directory of *state; malloc'ed. */
char *scratch_path(void **state, const char *name);

void scratch_write(const char *path, const void *data, size_t n);

/* The file's text, malloc'ed. */
char *scratch_read(const char *path);

/* Flips one bit of the byte at `offset` (from the end when negative). */
void scratch_flip(const char *path, long offset);

/* Entries of a directory. */
int scratch_count(const char *dir);

#endif
