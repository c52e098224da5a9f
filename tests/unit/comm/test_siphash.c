/* test_siphash - the 128-bit SipHash-2-4 of 0, 1, 2, … under the key 00 01 … 0f, against OpenSSL's
 * (openssl mac -macopt hexkey:000102…0f -macopt size:16 SIPHASH). */
#include "tests/unit/cm.h"
#include "worker/comm/siphash.h"

#include <stdio.h>
#include <string.h>

static void test_values(void **state)
{
    static const struct {
        size_t n;
        const char *hex;
    } rows[] = {
        {0, "A3817F04BA25A8E66DF67214C7550293"},  {1, "DA87C1D86B99AF44347659119B22FC45"},
        {7, "A1F1EBBED8DBC153C0B84AA61FF08239"},  {8, "3B62A9BA6258F5610F83E264F31497B4"},
        {15, "5493E99933B0A8117E08EC0F97CFC3D9"}, {63, "5150D1772F50834A503E069A973FBD7C"},
    };
    uint8_t key[SIPHASH_KEY_BYTES], data[64], out[SIPHASH_BYTES];
    char hex[2 * SIPHASH_BYTES + 1];

    (void)state;
    for (int i = 0; i < SIPHASH_KEY_BYTES; i++)
        key[i] = (uint8_t)i;
    for (int i = 0; i < 64; i++)
        data[i] = (uint8_t)i;
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        siphash128(key, data, rows[k].n, out);
        for (int i = 0; i < SIPHASH_BYTES; i++)
            snprintf(hex + 2 * i, 3, "%02X", out[i]);
        assert_string_equal(hex, rows[k].hex);
    }
}

/* Each bit of the key and of the message counts. */
static void test_every_bit(void **state)
{
    uint8_t key[SIPHASH_KEY_BYTES] = {7}, data[21] = {9}, first[SIPHASH_BYTES], out[SIPHASH_BYTES];

    (void)state;
    siphash128(key, data, sizeof data, first);
    for (size_t bit = 0; bit < 8 * (sizeof key + sizeof data); bit++) {
        uint8_t *at = bit < 8 * sizeof key ? &key[bit / 8] : &data[bit / 8 - sizeof key];

        *at ^= (uint8_t)(1 << bit % 8);
        siphash128(key, data, sizeof data, out);
        assert_memory_not_equal(out, first, sizeof out);
        *at ^= (uint8_t)(1 << bit % 8);
    }
    siphash128(key, data, sizeof data, out);
    assert_memory_equal(out, first, sizeof out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_every_bit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
