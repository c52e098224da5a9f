/* siphash - see siphash.h. */
#include "worker/comm/siphash.h"

enum { C_ROUNDS = 2, D_ROUNDS = 4 };

struct state {
    uint64_t v0, v1, v2, v3;
};

static uint64_t rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

static uint64_t load64(const uint8_t *p, size_t n)
{
    uint64_t x = 0;

    for (size_t i = 0; i < n; i++)
        x |= (uint64_t)p[i] << (8 * i);
    return x;
}

static void store64(uint8_t *p, uint64_t x)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(x >> (8 * i));
}

static void rounds(struct state *s, int n)
{
    while (n-- > 0) {
        s->v0 += s->v1;
        s->v2 += s->v3;
        s->v1 = rotate(s->v1, 13) ^ s->v0;
        s->v3 = rotate(s->v3, 16) ^ s->v2;
        s->v0 = rotate(s->v0, 32);
        s->v2 += s->v1;
        s->v0 += s->v3;
        s->v1 = rotate(s->v1, 17) ^ s->v2;
        s->v3 = rotate(s->v3, 21) ^ s->v0;
        s->v2 = rotate(s->v2, 32);
    }
}

static void absorb(struct state *s, uint64_t word)
{
    s->v3 ^= word;
    rounds(s, C_ROUNDS);
    s->v0 ^= word;
}

static uint64_t squeeze(struct state *s)
{
    rounds(s, D_ROUNDS);
    return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

void siphash128(const uint8_t key[SIPHASH_KEY_BYTES], const void *data, size_t n, uint8_t out[SIPHASH_BYTES])
{
    const uint64_t k0 = load64(key, 8), k1 = load64(key + 8, 8);
    struct state s = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d ^ 0xee, k0 ^ 0x6c7967656e657261,
                      k1 ^ 0x7465646279746573};
    const uint8_t *p = data;
    size_t whole = n / 8;

    for (size_t i = 0; i < whole; i++)
        absorb(&s, load64(p + 8 * i, 8));
    absorb(&s, load64(p + 8 * whole, n % 8) | (uint64_t)(n & 0xff) << 56);
    s.v2 ^= 0xee;
    store64(out, squeeze(&s));
    s.v1 ^= 0xdd;
    store64(out + 8, squeeze(&s));
}
