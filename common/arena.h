/* arena - objects that are born one by one and die together (graph nodes, names, attributes). */
#ifndef COMMON_ARENA_H
#define COMMON_ARENA_H

#include <stddef.h>

struct arena_block;

struct arena {
    struct arena_block *head;
};

/* A zeroed struct arena is empty and ready. Memory is zeroed and aligned to 16 bytes. */
void *arena_alloc(struct arena *a, size_t n);
char *arena_strdup(struct arena *a, const char *s);
void arena_free(struct arena *a); /* frees everything; the arena may be used again */

#endif
