/* json - cJSON with our limits: exact length, nothing after the value, nesting capped, case-sensitive
 * getters.
 *
 * Getters take `at`, the JSON Pointer of `obj`, and name "at/key" in their message together with the value
 * found and what is accepted.
 */
#ifndef COMMON_JSON_H
#define COMMON_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/buf.h"
#include "common/err.h"

enum { JSON_MAX_DEPTH = 64 };

/* Parses exactly len bytes of UTF-8: one value, white space around it. Errors name line and column. The
 * caller cJSON_Deletes the result. Duplicate keys in an object are errors (cJSON would keep both). */
cJSON *json_parse(const char *text, size_t len, struct err *e);

/* Reads and parses a file of at most max_bytes. */
cJSON *json_read_file(const char *path, size_t max_bytes, struct err *e);

/* Appends the compact text. -1 when the buffer is full: it is then as before. */
int json_print(const cJSON *v, struct buf *b, struct err *e);

/* Compact / indented text, malloc'ed. */
char *json_text(const cJSON *v);
char *json_text_pretty(const cJSON *v);

/* A short rendering of v for messages: at most 60 characters. */
void json_brief(const cJSON *v, char out[64]);

/* Required members. Return 0 and set *out, or -1. Strings are borrowed from obj. Integers are whole numbers
 * within
 * +-2^53 and within [min, max]. */
int json_get_str(const cJSON *obj, const char *at, const char *key, const char **out, struct err *e);
int json_get_int(const cJSON *obj, const char *at, const char *key, int64_t min, int64_t max, int64_t *out,
                 struct err *e);
int json_get_num(const cJSON *obj, const char *at, const char *key, double *out, struct err *e);
int json_get_bool(const cJSON *obj, const char *at, const char *key, bool *out, struct err *e);
cJSON *json_get_obj(const cJSON *obj, const char *at, const char *key, struct err *e);

/* Case-sensitive lookup; NULL when absent. JSON null counts as present. */
cJSON *json_find(const cJSON *obj, const char *key);

/* True when v is a whole number that a double holds exactly. */
bool json_is_int(const cJSON *v, int64_t *out);

/* Adds a number so that reading it back gives the same bits (cJSON's own printing may lose the last one);
 * null when v is not finite. */
void json_add_double(cJSON *obj, const char *key, double v);

#endif
