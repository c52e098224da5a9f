/* tokens - what lets people in from other machines: a secret each, kept as its hash in
 * <state-dir>/tokens.json.
 *
 * A token is 256 bits from the system's generator. It is shown once, when it is made; the file holds its
 * SHA-256. A slow hash, as passwords need one, would protect nothing here: nobody can try 2^256 secrets
 * however fast the hash is, and a slow one would let strangers spend our time. Secrets are compared in a time
 * that depends on neither.
 *
 * The file is the truth: it is replaced as a whole before a change counts, and read again when somebody else
 * has changed it.
 */
#ifndef DAEMON_TOKENS_H
#define DAEMON_TOKENS_H

#include <stddef.h>
#include <stdint.h>
#include "common/log.h"
#include "daemon/access.h"
#include "daemon/job.h"

enum {
    TOKENS_MAX = 10000,
    TOKEN_HASH_BYTES = 32,
    TOKEN_TEXT_BYTES = 69, /* "bft_", 64 hex digits and a NUL */
    TOKEN_MAX_NOTE = 200
};

struct token {
    int64_t id; /* from 1, never used again */
    unsigned char hash[TOKEN_HASH_BYTES];
    char user[JOB_MAX_USER]; /* whose jobs its holder submits and sees */
    int64_t uid;
    enum role role;
    char note[TOKEN_MAX_NOTE + 1];
    char by[JOB_MAX_USER];          /* who made it */
    int64_t created_ms, expires_ms; /* Unix epoch; expires: 0 = never */
    int64_t used_ms;                /* last login, cut to the hour; 0 = none */
};

struct tokens;

/* Reads the file; none is no token. Borrows the log. */
struct tokens *tokens_open(const char *path, const struct log *log, struct err *e);

/* Writes what is not written yet. NULL is legal. */
void tokens_close(struct tokens *t);

/* The token with this secret; NULL when there is none or it has expired at now_ms. Borrowed until the next
 * change. */
const struct token *tokens_match(const struct tokens *t, const char *secret, int64_t now_ms);

/* NULL when there is none of that id, or it has expired. */
const struct token *tokens_get(const struct tokens *t, int64_t id, int64_t now_ms);

/* The i-th token, expired ones included; NULL when there are no more. */
const struct token *tokens_at(const struct tokens *t, size_t i);

/* Adds a token with the user, uid, role, note, by, created_ms and expires_ms of `as`. On disk when it
 * returns: *id and the secret. */
int tokens_create(struct tokens *t, const struct token *as, int64_t *id, char secret[TOKEN_TEXT_BYTES],
                  struct err *e);

/* On disk when it returns. -1 with the id unknown when e->kind is ERR_USAGE. */
int tokens_revoke(struct tokens *t, int64_t id, struct err *e);

/* A login at now_ms. */
void tokens_used(struct tokens *t, int64_t id, int64_t now_ms);

/* To be called now and then: writes noted uses, reads the file when it is another one. */
void tokens_tend(struct tokens *t);

#endif
