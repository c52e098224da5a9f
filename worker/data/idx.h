/* idx - the IDX files of the MNIST family: images (N, H, W) of unsigned bytes and their labels.
 *
 * A directory holds four files: {train,t10k} x {images-idx3,labels-idx1}-ubyte. Each may be spelt with '.'
 * before "idx", and each may carry the suffix .gz; the first of the four spellings that exists is read.
 */
#ifndef DATA_IDX_H
#define DATA_IDX_H

#include <stdint.h>
#include "common/err.h"
#include "worker/data/dataset.h"

enum idx_part { IDX_TRAIN, IDX_TEST };
enum idx_kind { IDX_IMAGES, IDX_LABELS };

/* What one file holds. Labels have h = w = 1. */
struct idx_file {
    uint8_t *bytes; /* (n, h, w), malloc'ed: idx_file_free */
    int32_t n;
    int h, w;
};

/* Path of a file in dir, malloc'ed; NULL with a message that lists the names looked for. */
char *idx_find(const char *dir, enum idx_part part, enum idx_kind kind, struct err *e);

/* Reads one file, gzip or plain, and checks magic, type, dimensions, and that the file holds exactly the
 * bytes they announce: truncated and trailing data are errors that name the file, the bytes found and the
 * bytes expected. */
int idx_read(const char *path, enum idx_kind kind, struct idx_file *out, struct err *e);
void idx_file_free(struct idx_file *f);

/* Reads the four files of dir. The classes are 0 … the largest training label; a test label beyond is an
 * error, and so are counts or image sizes that do not agree. The caller frees *out with dataset_pair_free. */
int idx_open(const char *dir, struct dataset_pair *out, struct err *e);

#endif
