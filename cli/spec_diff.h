/* spec_diff - the keys by which two job specs differ. */
#ifndef CLI_SPEC_DIFF_H
#define CLI_SPEC_DIFF_H

#include <cjson/cJSON.h>
#include <stdbool.h>

struct spec_difference {
    char *pointer;      /* JSON Pointer, owned */
    const cJSON *a, *b; /* borrowed; NULL: not there */
    bool aside;         /* says where or under which name the job ran, not what it computes */
};

struct spec_diff {
    struct spec_difference *v;
    int n;
};

/* In the order of a's keys, then what only b has. Both documents must outlive the result. */
void spec_diff(const cJSON *a, const cJSON *b, struct spec_diff *out);
void spec_diff_free(struct spec_diff *d);

#endif
