/* safetensors - reader and writer of the file format of that name.
 *
 *   8 bytes   length H of the header, little-endian
 *   H bytes   JSON: {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …,
 *             "__metadata__": {"key": "value"}}, padded with spaces so that the data start at a multiple of 8
 *   data      the tensors, row-major, little-endian, one after the other without a gap
 *
 * Files come from anywhere, so opening one checks everything: the header fits in the file and the cap, each
 * shape times its element size is what the offsets span, the spans tile the data exactly (no overlap, no gap,
 * nothing left over). Data is read on demand. Messages name the file and the tensor.
 *
 * Writing: create → metadata/add … → begin → data, once for each added tensor in order → finish. The file
 * appears under its name only in finish, whole and flushed; destroying an unfinished writer leaves nothing
 * behind.
 */
#ifndef TRAIN_SAFETENSORS_H
#define TRAIN_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include "common/err.h"

enum safetensors_dtype { SAFETENSORS_F32, SAFETENSORS_F64, SAFETENSORS_I64, SAFETENSORS_I32 };

enum { SAFETENSORS_MAX_DIMS = 8, SAFETENSORS_MAX_HEADER_BYTES = 100 * 1000 * 1000 };

struct safetensors_entry {
    const char *name;
    enum safetensors_dtype dtype;
    int n_dims; /* 0: a scalar */
    int64_t dims[SAFETENSORS_MAX_DIMS];
    uint64_t offset, bytes; /* in the data part */
};

struct safetensors;

struct safetensors *safetensors_open(const char *path, struct err *e);
void safetensors_close(struct safetensors *f); /* NULL is legal */

const char *safetensors_path(const struct safetensors *f);
int safetensors_count(const struct safetensors *f);
const struct safetensors_entry *safetensors_at(const struct safetensors *f, int i); /* in order of offset */
const struct safetensors_entry *safetensors_find(const struct safetensors *f, const char *name);

/* Reads entry->bytes bytes. */
int safetensors_read(const struct safetensors *f, const struct safetensors_entry *entry, void *out,
                     struct err *e);

/* "F32" … */
const char *safetensors_dtype_name(enum safetensors_dtype t);
size_t safetensors_dtype_bytes(enum safetensors_dtype t);

/* "(64, 3, 7, 7)" */
const char *safetensors_shape_text(const struct safetensors_entry *entry, char out[192]);

struct safetensors_writer;

struct safetensors_writer *safetensors_writer_create(const char *path);
void safetensors_writer_metadata(struct safetensors_writer *w, const char *key, const char *value);
void safetensors_writer_add(struct safetensors_writer *w, const char *name, enum safetensors_dtype dtype,
                            int n_dims, const int64_t *dims);
int safetensors_writer_begin(struct safetensors_writer *w, struct err *e);
int safetensors_writer_data(struct safetensors_writer *w, const void *data, size_t bytes, struct err *e);
int safetensors_writer_finish(struct safetensors_writer *w, struct err *e);
void safetensors_writer_destroy(struct safetensors_writer *w); /* NULL is legal */

#endif
