/* tcp_proof - see tcp_proof.h. */
#include "worker/comm/tcp_proof.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

void tcp_prove(const uint8_t secret[TCP_SECRET_BYTES], enum tcp_role role, const struct tcp_challenge *c,
               const struct tcp_answer *a, uint8_t proof[TCP_PROOF_BYTES])
{
    struct {
        struct tcp_challenge challenge;
        struct tcp_answer answer;
        int32_t role;
    } all;

    _Static_assert(sizeof all == sizeof *c + sizeof *a + 4 && sizeof *a == 124, "no holes");
    memset(&all, 0, sizeof all);
    all.challenge = *c;
    all.answer = *a;
    memset(all.answer.proof, 0, sizeof all.answer.proof);
    all.role = (int32_t)role;
    unsigned n = 0;
    ASSERT(HMAC(EVP_sha256(), secret, TCP_SECRET_BYTES, (const unsigned char *)&all, sizeof all, proof, &n) &&
           n == TCP_PROOF_BYTES);
}

bool tcp_same_proof(const uint8_t a[TCP_PROOF_BYTES], const uint8_t b[TCP_PROOF_BYTES])
{
    return CRYPTO_memcmp(a, b, TCP_PROOF_BYTES) == 0;
}

int tcp_draw(uint8_t *out, size_t n, struct err *e)
{
    return getrandom(out, n, 0) == (ssize_t)n ? 0 : err_set_errno(e, "getrandom");
}

void tcp_tune(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},    {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 60},
        {IPPROTO_TCP, TCP_KEEPINTVL, 10}, {IPPROTO_TCP, TCP_KEEPCNT, 6},
    };

    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof options[i].value);
}
