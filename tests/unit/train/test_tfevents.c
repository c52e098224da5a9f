/* test_tfevents - CRC-32C known answers (RFC 3720, B.4, and the usual check value), and a file taken apart by
 * hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"
#include "scratch.h"
#include "worker/train/tfevents.h"

static void crc_known_answers(void **state)
{
    uint8_t zeros[32] = {0}, ones[32], rising[32];

    (void)state;
    memset(ones, 0xFF, sizeof ones);
    for (int i = 0; i < 32; i++)
        rising[i] = (uint8_t)i;
    assert_int_equal(tfevents_crc32c("123456789", 9), 0xE3069283u);
    assert_int_equal(tfevents_crc32c(zeros, 32), 0x8A9136AAu);
    assert_int_equal(tfevents_crc32c(ones, 32), 0x62A8AB43u);
    assert_int_equal(tfevents_crc32c(rising, 32), 0x46DD794Eu);
    assert_int_equal(tfevents_mask(0), 0xA282EAD8u);
    assert_int_equal(tfevents_mask(0x8000u), 0xA282EAD9u);
}

static char *only_file(const char *dir)
{
    DIR *d = opendir(dir);
    char *path = NULL;

    for (struct dirent *ent; (ent = readdir(d));)
        if (strncmp(ent->d_name, "events.out.tfevents.", 20) == 0)
            path = fs_join(dir, ent->d_name);
    closedir(d);
    return path;
}

/* Checks both checksums of the record at *at and returns its data. */
static const uint8_t *take_record(const uint8_t **at, uint64_t *len)
{
    uint32_t crc;

    memcpy(len, *at, 8);
    memcpy(&crc, *at + 8, 4);
    assert_int_equal(crc, tfevents_mask(tfevents_crc32c(*at, 8)));
    const uint8_t *data = *at + 12;
    memcpy(&crc, data + *len, 4);
    assert_int_equal(crc, tfevents_mask(tfevents_crc32c(data, *len)));
    *at = data + *len + 4;
    return data;
}

static void file_reads_back(void **state)
{
    struct tfevents t;
    struct err e = ERR_INIT;
    uint64_t len;
    float value = 0.5f;

    assert_int_equal(tfevents_open(&t, *state, 301, &e), 0);
    assert_int_equal(tfevents_scalar(&t, 300, "a/b", 0.5, &e), 0);
    tfevents_close(&t);
    char *path = only_file(*state), *text;
    size_t size;
    assert_non_null(path);
    assert_int_equal(fs_read_file(path, 1 << 20, &text, &size, &e), 0);
    const uint8_t *at = (const uint8_t *)text, *r;

    r = take_record(&at, &len); /* 09 wall_time(8) 10 step=0 1a 0d "brain.Event:2" */
    assert_int_equal(len, 9 + 2 + 2 + 13);
    assert_memory_equal(r + 13, "brain.Event:2", 13);
    r = take_record(&at, &len); /* … 10 step=301 (ad 02) 3a 02 08 01 */
    assert_int_equal(len, 9 + 3 + 4);
    assert_memory_equal(r + 9, "\x10\xad\x02\x3a\x02\x08\x01", 7);
    r = take_record(&at, &len); /* … 10 step=300 (ac 02) 2a 0c 0a 0a 0a 03 a/b 15 float */
    assert_int_equal(len, 9 + 3 + 2 + 12);
    assert_memory_equal(r + 9,
                        "\x10\xac\x02\x2a\x0c\x0a\x0a\x0a\x03"
                        "a/b\x15",
                        13);
    assert_memory_equal(r + 22, &value, 4);
    assert_ptr_equal(at, text + size);
    free(text);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc_known_answers),
        cmocka_unit_test_setup_teardown(file_reads_back, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
