/* jobspec_fields - the table of a job spec's fields: one row a key drives parsing, defaults, the resolved
 * document, error messages, the JSON Schema and the key list of docs/jobs.md (tests hold the last two to the
 * table).
 *
 * Private to jobspec*.c and their tests.
 */
#ifndef PROTO_JOBSPEC_FIELDS_H
#define PROTO_JOBSPEC_FIELDS_H

#include "proto/jobspec.h"

#include <stddef.h>

/* The JSON type, and the C type that it is kept in. */
enum field_type {
    FIELD_OBJECT, /* children are the rows whose pointer is one step longer */
    FIELD_LABEL,  /* string of letters, digits and . _ + = - ; char[cap] */
    FIELD_PATH,   /* string without control characters; char[cap] */
    FIELD_ENUM,   /* one of .choices; enum, as int */
    FIELD_WORD,   /* one of .choices; kept as char[cap] */
    FIELD_BOOL,   /* bool */
    FIELD_INT,    /* whole number in [min, max]; int */
    FIELD_INT64,  /* the same; int64_t */
    FIELD_UINT64, /* the same; uint64_t */
    FIELD_NUMBER, /* number between min and max; double */
    FIELD_NUMBERS, /* array of 1 … JOBSPEC_MAX_MILESTONES numbers between min and max; double[] and, after it,
                      int */
    FIELD_IDS,     /* array of at most JOBSPEC_MAX_AFTER different job ids; int64_t[] and, after it, int */
    FIELD_SWEEP,   /* {"dotted.key": [value, …], …}; taken apart by jobspec_expand(), refused elsewhere */
};

enum field_flags {
    FIELD_NULLABLE = 1,  /* null is accepted: numbers become .null_value, strings "", objects all zero */
    FIELD_MIN_OUT = 2,   /* min itself is not accepted */
    FIELD_MAX_OUT = 4,   /* max itself is not accepted */
    FIELD_FIXED = 8,     /* known, but this version accepts the default only */
    FIELD_NOT_KEPT = 16, /* has no member in struct jobspec */
};

struct field_choice {
    const char *name;
    int value; /* FIELD_LATER: known, refused in this version */
};

enum { FIELD_LATER = -1, FIELD_MAX_WHEN = 3 };

struct field {
    const char *pointer; /* "/data/long_tail/factor" */
    enum field_type type;
    size_t offset; /* in struct jobspec */
    unsigned flags;
    const char *def; /* the default as JSON text; NULL: required, unless derive is set */
    double min, max;
    double null_value;
    size_t cap_bytes;                   /* of the char array, NUL included */
    const struct field_choice *choices; /* ends with a NULL name */
    const char *when_key;               /* the key exists only where this sibling (an earlier row) has … */
    const char *when_values[FIELD_MAX_WHEN + 1];  /* … one of these values; ends with NULL */
    double (*derive)(const struct jobspec *spec); /* default that depends on earlier rows; 0 is false */
    const char *derive_text;                      /* how docs state it */
    const char *help;                             /* one sentence */
};

extern const struct field jobspec_fields[];
extern const int jobspec_n_fields;

/* The row's key: what follows the last '/'. */
const char *jobspec_field_key(const struct field *f);

/* True when f is a direct child of the object at pointer `parent` ("" is the root). */
bool jobspec_field_is_child(const struct field *f, const char *parent);

/* True when `value` of the key that decides lets f exist. */
bool jobspec_field_exists_with(const struct field *f, const char *value);

/* The values with which it exists, each in `quote`s: "adam", "adamw" or "lars". */
void jobspec_field_when(const struct field *f, char quote, char *out, size_t out_bytes);

/* "null or a whole number from 1 to 1024". */
void jobspec_field_accepted(const struct field *f, char *out, size_t out_bytes);

/* Adds a finding. */
void jobspec_errors_add(struct jobspec_errors *errs, const char *pointer, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The checks that involve more than one key; each runs only when the keys it reads have no finding of their
 * own. */
void jobspec_cross_check(const struct jobspec *spec, struct jobspec_errors *errs);

#endif
