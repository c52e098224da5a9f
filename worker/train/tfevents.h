/* tfevents - scalars for TensorBoard: a TFRecord file of Event messages, written by hand.
 *
 *   record   uint64 length, uint32 masked crc32c of it, data, uint32 masked crc32c of the data; little-endian
 *   Event    1: wall_time (double), 2: step (int64), 3: file_version | 5: Summary | 7: SessionLog
 *   Summary  1: Value {1: tag, 2: simple_value (float)}
 *
 * A resumed run opens a new file that begins with SessionLog START at its first step: TensorBoard then
 * forgets what an older file says about later steps.
 */
#ifndef TRAIN_TFEVENTS_H
#define TRAIN_TFEVENTS_H

#include <stddef.h>
#include <stdint.h>
#include "common/err.h"

struct tfevents {
    int fd;
    char *path;
};

/* Creates DIR (if need be) and a new file in it. first_step: the step the run begins with. */
int tfevents_open(struct tfevents *t, const char *dir, int64_t first_step, struct err *e);
int tfevents_scalar(struct tfevents *t, int64_t step, const char *tag, double value, struct err *e);
void tfevents_close(struct tfevents *t);

/* CRC-32C (Castagnoli) and TFRecord's masking of it. */
uint32_t tfevents_crc32c(const void *data, size_t n);
uint32_t tfevents_mask(uint32_t crc);

#endif
