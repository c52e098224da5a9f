/* siphash - SipHash-2-4 with a result of 128 bits (Aumasson and Bernstein, "SipHash: a fast short-input PRF",
 * INDOCRYPT 2012; the longer result is that of the authors' reference).
 *
 * Who does not know the key can neither foretell the hash of a message nor find the key from hashes that it
 * has seen: with it a rank shows that it knows a secret without telling it (tcp_meet.c).
 */
#ifndef COMM_SIPHASH_H
#define COMM_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

enum { SIPHASH_KEY_BYTES = 16, SIPHASH_BYTES = 16 };

void siphash128(const uint8_t key[SIPHASH_KEY_BYTES], const void *data, size_t n, uint8_t out[SIPHASH_BYTES]);

#endif
