/* tls - see tls.h.
 *
 * A channel is an SSL object between two memory BIOs: `in` holds what came from the socket, `out` what is to
 * leave. Neither blocks, so OpenSSL never waits; it asks for more input and the owner of the socket brings
 * it. `out` is emptied at every seal and `in` at every take, but for a record that has not come whole.
 */
#include "proto/tls.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK_BYTES = 16384 }; /* as much as a record holds */

struct tls {
    SSL_CTX *ctx;
    char *ca; /* client: where trust comes from, for messages */
};

struct tls_channel {
    struct channel base; /* must be first */
    SSL *ssl;
    BIO *in, *out; /* owned by ssl */
    char *host;    /* client: whom it wants to reach; NULL: the coordinator's end */
    char *ca;
    bool open, failed;
};

/* "PREFIX: what OpenSSL says"; empties its queue of errors. */
static int fail(struct err *e, const char *prefix)
{
    unsigned long code = ERR_peek_last_error();
    const char *reason = code ? ERR_reason_error_string(code) : NULL;

    err_set(e, "%s: %s", prefix, reason ? reason : "TLS error");
    ERR_clear_error();
    return -1;
}

/* --- channels --- */

/* Why the handshake or a later record failed. */
static int fail_channel(struct tls_channel *c, struct err *e)
{
    long verdict = SSL_get_verify_result(c->ssl);

    c->failed = true;
    if (c->host && verdict != X509_V_OK && !c->open) {
        ERR_clear_error();
        return err_set_kind(e, ERR_UNREACHABLE, "the certificate of %s is not accepted: %s (trusted: %s)",
                            c->host, X509_verify_cert_error_string(verdict),
                            c->ca ? c->ca : "the system's certificates");
    }
    return fail(e, c->open ? "TLS" : "TLS handshake");
}

/* 0 when it goes on or is over, -1. */
static int shake_hands(struct tls_channel *c, struct err *e)
{
    int rc = SSL_do_handshake(c->ssl);

    if (rc == 1) {
        c->open = true;
        return 0;
    }
    return SSL_get_error(c->ssl, rc) == SSL_ERROR_WANT_READ ? 0 : fail_channel(c, e);
}

static int take(struct channel *ch, const char *raw, size_t n, struct frame *in, struct err *e)
{
    struct tls_channel *c = (struct tls_channel *)ch;
    char chunk[CHUNK_BYTES];
    int rc;

    if (c->failed)
        return err_set(e, "TLS: the connection has failed already");
    ERR_clear_error();
    if (n > 0 && BIO_write(c->in, raw, (int)n) != (int)n)
        return fail_channel(c, e);
    if (!c->open && shake_hands(c, e) < 0)
        return -1;
    if (!c->open)
        return 0;
    while ((rc = SSL_read(c->ssl, chunk, sizeof chunk)) > 0)
        frame_push(in, chunk, (size_t)rc);
    switch (SSL_get_error(c->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        return 0;
    case SSL_ERROR_ZERO_RETURN:
        return 1;
    default:
        return fail_channel(c, e);
    }
}

static int drain(struct tls_channel *c, struct buf *raw, struct err *e)
{
    int n;

    while ((n = (int)BIO_pending(c->out)) > 0) {
        char *room = buf_reserve(raw, (size_t)n, e);
        if (!room)
            return -1;
        n = BIO_read(c->out, room, n);
        buf_commit(raw, n > 0 ? (size_t)n : 0);
    }
    return 0;
}

static int seal(struct channel *ch, struct buf *plain, struct buf *raw, struct err *e)
{
    struct tls_channel *c = (struct tls_channel *)ch;
    size_t done;

    ERR_clear_error();
    if (c->open && !c->failed && plain->len) {
        if (SSL_write_ex(c->ssl, plain->data, plain->len, &done) != 1 || done != plain->len)
            return fail_channel(c, e);
        buf_consume(plain, plain->len);
    }
    return drain(c, raw, e);
}

static bool is_open(const struct channel *ch)
{
    return ((const struct tls_channel *)ch)->open;
}

static void finish(struct channel *ch, struct buf *raw)
{
    struct tls_channel *c = (struct tls_channel *)ch;

    if (c->open && !c->failed)
        SSL_shutdown(c->ssl);
    ERR_clear_error();
    drain(c, raw, NULL);
}

static void destroy(struct channel *ch)
{
    struct tls_channel *c = (struct tls_channel *)ch;

    SSL_free(c->ssl);
    free(c->host);
    free(c->ca);
    free(c);
}

static const struct channel_ops ops = {take, seal, is_open, finish, destroy};

/* OpenSSL fails here for want of memory only. */
static struct tls_channel *channel_create(struct tls *t)
{
    struct tls_channel *c = xcalloc(1, sizeof *c);

    c->base.ops = &ops;
    c->ssl = SSL_new(t->ctx);
    c->in = BIO_new(BIO_s_mem());
    c->out = BIO_new(BIO_s_mem());
    ASSERT(c->ssl && c->in && c->out);
    SSL_set_bio(c->ssl, c->in, c->out);
    return c;
}

struct channel *tls_accept(struct tls *t)
{
    struct tls_channel *c = channel_create(t);

    SSL_set_accept_state(c->ssl);
    return &c->base;
}

/* A number is looked for among the certificate's addresses, a name among its names. */
static int expect_host(SSL *ssl, const char *host)
{
    X509_VERIFY_PARAM *param = SSL_get0_param(ssl);

    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (X509_VERIFY_PARAM_set1_ip_asc(param, host) == 1)
        return 1;
    ERR_clear_error();
    return SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
}

struct channel *tls_connect(struct tls *t, const char *host, struct err *e)
{
    struct tls_channel *c = channel_create(t);

    c->host = xstrdup(host);
    c->ca = t->ca ? xstrdup(t->ca) : NULL;
    SSL_set_connect_state(c->ssl);
    if (!expect_host(c->ssl, host)) {
        fail(e, host);
    } else if (shake_hands(c, e) == 0) {
        return &c->base;
    }
    destroy(&c->base);
    return NULL;
}

/* --- settings --- */

static SSL_CTX *context_create(const SSL_METHOD *method, struct err *e)
{
    SSL_CTX *ctx = SSL_CTX_new(method);

    if (!ctx || SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20") != 1) {
        fail(e, "TLS");
        SSL_CTX_free(ctx);
        return NULL;
    }
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    return ctx;
}

/* Would somebody else who reads the file be able to play the coordinator? */
static int check_key_mode(int fd, const char *path, struct err *e)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return err_set_errno(e, "%s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(e, "%s is not a file", path);
    unsigned open_to = st.st_mode & (st.st_uid == 0 ? 0037 : 0077);
    if (open_to)
        return err_set(e, "the private key %s has mode %04o, others may read it: chmod 600 is accepted", path,
                       (unsigned)(st.st_mode & 07777));
    if (st.st_uid != 0 && st.st_uid != geteuid())
        return err_set(e, "the private key %s belongs to user %lu, who is neither root nor ours", path,
                       (unsigned long)st.st_uid);
    return 0;
}

/* There is nobody whom to ask for one. */
static int no_passphrase(char *text, int size, int writing, void *ctx)
{
    (void)text;
    (void)size;
    (void)writing;
    (void)ctx;
    return -1;
}

static EVP_PKEY *read_key(const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    EVP_PKEY *key = NULL;

    if (fd < 0) {
        err_set_errno(e, "%s", path);
        return NULL;
    }
    if (check_key_mode(fd, path, e) == 0) {
        BIO *in = BIO_new_fd(fd, BIO_NOCLOSE);
        key = in ? PEM_read_bio_PrivateKey(in, NULL, no_passphrase, NULL) : NULL;
        if (!key)
            fail(e, path);
        BIO_free(in);
    }
    close(fd);
    return key;
}

static int use_files(SSL_CTX *ctx, const char *cert, const char *key_path, struct err *e)
{
    EVP_PKEY *key;
    int rc;

    if (access(cert, R_OK) < 0)
        return err_set_errno(e, "%s", cert);
    if (SSL_CTX_use_certificate_chain_file(ctx, cert) != 1)
        return fail(e, cert);
    key = read_key(key_path, e);
    if (!key)
        return -1;
    rc = SSL_CTX_use_PrivateKey(ctx, key) == 1 && SSL_CTX_check_private_key(ctx) == 1 ? 0 : -1;
    if (rc < 0)
        err_set(e, "the private key %s does not fit the certificate %s", key_path, cert);
    ERR_clear_error();
    EVP_PKEY_free(key);
    return rc;
}

struct tls *tls_server_create(const char *cert, const char *key, struct err *e)
{
    SSL_CTX *ctx;
    struct tls *t;

    ERR_clear_error();
    ctx = context_create(TLS_server_method(), e);
    if (!ctx)
        return NULL;
    SSL_CTX_set_num_tickets(ctx, 0);
    if (use_files(ctx, cert, key, e) < 0) {
        SSL_CTX_free(ctx);
        return NULL;
    }
    t = xcalloc(1, sizeof *t);
    t->ctx = ctx;
    return t;
}

struct tls *tls_client_create(const char *ca, struct err *e)
{
    SSL_CTX *ctx;
    struct tls *t;

    ERR_clear_error();
    ctx = context_create(TLS_client_method(), e);
    if (!ctx)
        return NULL;
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    int loaded = ca ? SSL_CTX_load_verify_file(ctx, ca) : SSL_CTX_set_default_verify_paths(ctx);
    if (loaded != 1) {
        fail(e, ca ? ca : "the system's certificates");
        SSL_CTX_free(ctx);
        return NULL;
    }
    t = xcalloc(1, sizeof *t);
    t->ctx = ctx;
    t->ca = ca ? xstrdup(ca) : NULL;
    return t;
}

void tls_destroy(struct tls *t)
{
    if (!t)
        return;
    SSL_CTX_free(t->ctx);
    free(t->ca);
    free(t);
}

void tls_sha256(const void *data, size_t n, unsigned char out[TLS_SHA256_BYTES])
{
    int rc = EVP_Digest(data, n, out, NULL, EVP_sha256(), NULL);

    ASSERT(rc == 1);
}
