/* test_tls - both ends of a TLS channel in one process, no socket between them; certificates that openssl
 * makes for the test; what is refused. */
#include "proto/tls.h"

#include "tests/unit/cm.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/fsutil.h"

enum { OUT_BYTES = 8 << 20 };

static const char make_certificates[] =
    "set -e; exec >/dev/null 2>&1\n"
    "ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.pem "
    "-days 2 -subj /CN=$1; }\n"
    "leaf() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.csr "
    "-subj "
    "/CN=leaf; printf \"subjectAltName=$2\\n\" >$1.ext; openssl x509 -req -in $1.csr -CA ca.pem -CAkey "
    "ca.key "
    "-CAcreateserial -out $1.pem -days $3 -extfile $1.ext; }\n"
    "ca ca; ca other\n"
    "leaf good DNS:node.example,IP:192.0.2.7 2\n"
    "leaf old DNS:node.example -1\n"
    "openssl ec -in good.key -aes256 -passout pass:secret -out locked.key\n"
    "chmod 600 *.key\n";

static char *dir;

static char *in_dir(const char *name)
{
    return fs_join(dir, name);
}

static int set_up_all(void **state)
{
    char *script = xasprintf("cd %s\n%s", dir = mkdtemp(xstrdup("/tmp/bf-tls-XXXXXX")), make_certificates);
    int rc = system(script);

    (void)state;
    free(script);
    return rc;
}

static int tear_down_all(void **state)
{
    (void)state;
    fs_remove_tree(dir, NULL);
    free(dir);
    return 0;
}

/* --- two ends --- */

struct end {
    struct channel *ch;
    struct frame in;
    struct buf out, wire;
    int rc; /* of the last take */
    struct err e;
};

struct pair {
    struct end a, b; /* the coordinator's and the client's */
};

static void end_init(struct end *x, struct channel *ch)
{
    *x = (struct end){.ch = ch};
    frame_init(&x->in);
    buf_init(&x->out, OUT_BYTES);
    buf_init(&x->wire, OUT_BYTES);
}

static void end_free(struct end *x)
{
    channel_destroy(x->ch);
    frame_free(&x->in);
    buf_free(&x->out);
    buf_free(&x->wire);
}

static struct tls *server_of(const char *cert, const char *key, struct err *e)
{
    char *c = in_dir(cert), *k = in_dir(key);
    struct tls *t = tls_server_create(c, k, e);

    free(c);
    free(k);
    return t;
}

static struct tls *client_of(const char *ca)
{
    char *c = in_dir(ca);
    struct err e = ERR_INIT;
    struct tls *t = tls_client_create(c, &e);

    free(c);
    assert_non_null(t);
    return t;
}

static void pair_init(struct pair *p, const char *cert, const char *key, const char *ca, const char *host)
{
    struct err e = ERR_INIT;
    struct tls *s = server_of(cert, key, &e), *c = client_of(ca);

    assert_non_null(s);
    end_init(&p->a, tls_accept(s));
    end_init(&p->b, tls_connect(c, host, &e));
    assert_non_null(p->b.ch);
    tls_destroy(s); /* channels outlive it */
    tls_destroy(c);
}

static void pair_free(struct pair *p)
{
    end_free(&p->a);
    end_free(&p->b);
}

/* Carries what one has to say to the other, `piece` bytes at a time. True when there was something. */
static bool carry(struct end *from, struct end *to, size_t piece)
{
    if (!from->wire.len)
        channel_seal(from->ch, &from->out, &from->wire, &from->e);
    if (!from->wire.len)
        return false;
    for (size_t at = 0; at < from->wire.len && to->rc == 0; at += piece) {
        size_t n = from->wire.len - at < piece ? from->wire.len - at : piece;
        to->rc = channel_take(to->ch, from->wire.data + at, n, &to->in, &to->e);
    }
    buf_consume(&from->wire, from->wire.len);
    return true;
}

static void talk(struct pair *p, size_t piece)
{
    while (carry(&p->b, &p->a, piece) | carry(&p->a, &p->b, piece))
        continue;
}

static void expect_line(struct end *x, const char *want, size_t n)
{
    char *line;
    size_t len;

    assert_int_equal(frame_next(&x->in, &line, &len), FRAME_LINE);
    assert_int_equal(len, n);
    assert_memory_equal(line, want, n);
}

static void test_lines_pass_both_ways(void **state)
{
    static const size_t pieces[] = {1, 7, 1000, OUT_BYTES};
    static const char *const hosts[] = {"node.example", "192.0.2.7"};
    struct pair p;

    (void)state;
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        pair_init(&p, "good.pem", "good.key", "ca.pem", hosts[i % 2]);
        assert_false(channel_is_open(p.a.ch));
        buf_append_str(&p.a.out, "said before the handshake was over\n", NULL);
        talk(&p, pieces[i]);
        assert_true(channel_is_open(p.a.ch) && channel_is_open(p.b.ch));
        expect_line(&p.b, "said before the handshake was over", 34);
        buf_append_str(&p.b.out, "a question\n", NULL);
        talk(&p, pieces[i]);
        expect_line(&p.a, "a question", 10);
        assert_int_equal(p.a.out.len + p.b.out.len, 0);
        pair_free(&p);
    }
}

static void test_as_much_as_there_may_be(void **state)
{
    size_t n = FRAME_MAX_BYTES;
    char *text = xmalloc(n + 1), *line;
    size_t len;
    struct pair p;

    (void)state;
    for (size_t i = 0; i < n; i++)
        text[i] = (char)('a' + i * 7 % 26);
    text[n] = '\n';
    pair_init(&p, "good.pem", "good.key", "ca.pem", "node.example");
    talk(&p, 4096);
    for (int i = 0; i < 3; i++)
        buf_append(&p.a.out, text, n + 1, NULL);
    talk(&p, 65536);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(frame_next(&p.b.in, &line, &len), FRAME_LINE);
        assert_int_equal(len, n);
        assert_memory_equal(line, text, n);
    }
    pair_free(&p);
    free(text);
}

static void test_the_end_is_told(void **state)
{
    struct pair p;

    (void)state;
    pair_init(&p, "good.pem", "good.key", "ca.pem", "node.example");
    talk(&p, OUT_BYTES);
    buf_append_str(&p.a.out, "the last word\n", NULL);
    assert_int_equal(channel_seal(p.a.ch, &p.a.out, &p.a.wire, &p.a.e), 0);
    channel_finish(p.a.ch, &p.a.wire);
    carry(&p.a, &p.b, OUT_BYTES);
    assert_int_equal(p.b.rc, 1);
    expect_line(&p.b, "the last word", 13);
    pair_free(&p);
}

/* --- whom the client does not trust --- */

static void test_certificates_that_are_not_accepted(void **state)
{
    static const struct {
        const char *cert, *key, *ca, *host, *says;
    } bad[] = {
        {"good.pem", "good.key", "other.pem", "node.example", "unable to get local issuer certificate"},
        {"good.pem", "good.key", "ca.pem", "nodes.example", "hostname mismatch"},
        {"good.pem", "good.key", "ca.pem", "example", "hostname mismatch"},
        {"good.pem", "good.key", "ca.pem", "192.0.2.8", "IP address mismatch"},
        {"other.pem", "other.key", "ca.pem", "node.example", "self-signed"},
        {"old.pem", "old.key", "ca.pem", "node.example", "has expired"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pair p;
        pair_init(&p, bad[i].cert, bad[i].key, bad[i].ca, bad[i].host);
        buf_append_str(&p.b.out, "my token\n", NULL);
        talk(&p, OUT_BYTES);
        assert_int_equal(p.b.rc, -1);
        assert_int_equal(p.b.e.kind, ERR_UNREACHABLE);
        assert_non_null(strstr(p.b.e.msg, bad[i].says));
        assert_non_null(strstr(p.b.e.msg, bad[i].host));
        assert_int_equal(p.a.rc, -1);     /* it is told */
        assert_int_equal(p.b.out.len, 9); /* and the token has not left */
        assert_int_equal(p.a.in.in.len, 0);
        pair_free(&p);
    }
}

/* --- what is not TLS, or not what was sent --- */

static void test_noise_for_a_hello(void **state)
{
    static const char *const noise[] = {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"job.list\"}\n",
                                        "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff\xff\xff\xff",
                                        "\x80\x2e\x01"};
    struct err e = ERR_INIT;
    struct tls *s = server_of("good.pem", "good.key", &e);
    char random_bytes[4096];

    (void)state;
    srand(11);
    for (size_t i = 0; i < 400; i++) {
        struct end x;
        end_init(&x, tls_accept(s));
        size_t n = i < 4 ? strlen(noise[i]) : (size_t)rand() % sizeof random_bytes;
        for (size_t k = 0; k < n; k++)
            random_bytes[k] = i < 4 ? noise[i][k] : (char)rand();
        if (i % 2)
            random_bytes[0] = 0x16; /* as far as the parser goes */
        x.rc = channel_take(x.ch, random_bytes, n, &x.in, &x.e);
        if (i < 2)
            assert_int_equal(x.rc, -1);
        assert_false(channel_is_open(x.ch));
        if (x.rc < 0) { /* it stays so, whatever comes */
            assert_int_equal(channel_take(x.ch, random_bytes, n, &x.in, &x.e), -1);
            assert_true(x.e.msg[0]);
        }
        channel_seal(x.ch, &x.out, &x.wire, NULL);
        assert_int_equal(x.in.in.len, 0);
        end_free(&x);
    }
    tls_destroy(s);
}

static void test_a_changed_bit_is_noticed(void **state)
{
    (void)state;
    for (size_t i = 0; i < 40; i++) {
        struct pair p;
        pair_init(&p, "good.pem", "good.key", "ca.pem", "node.example");
        talk(&p, OUT_BYTES);
        buf_append_str(&p.b.out, "cancel job 7, please\n", NULL);
        channel_seal(p.b.ch, &p.b.out, &p.b.wire, NULL);
        size_t at = 5 + i % (p.b.wire.len - 5); /* behind the record's header */
        p.b.wire.data[at] ^= 0x20;
        carry(&p.b, &p.a, OUT_BYTES);
        assert_int_equal(p.a.rc, -1);
        assert_int_equal(p.a.in.in.len, 0);
        pair_free(&p);
    }
}

/* --- files --- */

static void test_keys_that_others_may_read(void **state)
{
    static const mode_t bad[] = {0644, 0604, 0601, 0660, 0620, 0666}, good[] = {0600, 0400};
    char *key = in_dir("good.key");
    struct err e = ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        chmod(key, bad[i]);
        assert_null(server_of("good.pem", "good.key", &e));
        assert_non_null(strstr(e.msg, "others may read it"));
        assert_non_null(strstr(e.msg, key));
    }
    chmod(key, 0640); /* root's key may be for a group, as /etc/ssl/private has it */
    struct tls *t = server_of("good.pem", "good.key", &e);
    assert_int_equal(t != NULL, geteuid() == 0);
    tls_destroy(t);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        chmod(key, good[i]);
        t = server_of("good.pem", "good.key", &e);
        assert_non_null(t);
        tls_destroy(t);
    }
    if (geteuid() == 0) {
        assert_int_equal(chown(key, 65534, 65534), 0);
        assert_null(server_of("good.pem", "good.key", &e));
        assert_non_null(strstr(e.msg, "65534"));
        assert_int_equal(chown(key, 0, 0), 0);
    }
    chmod(key, 0600);
    free(key);
}

static void test_files_that_are_none(void **state)
{
    static const struct {
        const char *cert, *key, *says;
    } bad[] = {
        {"nosuch.pem", "good.key", "nosuch.pem: No such file"},
        {"good.pem", "nosuch.key", "nosuch.key: No such file"},
        {"good.ext", "good.key", "good.ext"},
        {"good.pem", "ca.key", "does not fit"},
        {"good.pem", "good.pem", "good.pem"},
        {"good.pem", "locked.key", "locked.key"},
        {"good.pem", ".", "is not a file"},
    };
    char *pem = in_dir("good.pem"), *none = in_dir("nosuch.pem"), *text = in_dir("good.ext");
    struct err e = ERR_INIT;

    (void)state;
    chmod(pem, 0600);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_null(server_of(bad[i].cert, bad[i].key, &e));
        assert_non_null(strstr(e.msg, bad[i].says));
    }
    assert_null(tls_client_create(none, &e));
    assert_non_null(strstr(e.msg, none));
    assert_null(tls_client_create(text, &e));
    free(pem);
    free(none);
    free(text);
}

static void test_sha256(void **state)
{
    static const unsigned char want[] = {0xba, 0x78, 0x16, 0xbf,
                                         0x8f, 0x01, 0xcf, 0xea}; /* FIPS 180-4, "abc" */
    unsigned char out[TLS_SHA256_BYTES];

    (void)state;
    tls_sha256("abc", 3, out);
    assert_memory_equal(out, want, sizeof want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_pass_both_ways),
        cmocka_unit_test(test_as_much_as_there_may_be),
        cmocka_unit_test(test_the_end_is_told),
        cmocka_unit_test(test_certificates_that_are_not_accepted),
        cmocka_unit_test(test_noise_for_a_hello),
        cmocka_unit_test(test_a_changed_bit_is_noticed),
        cmocka_unit_test(test_keys_that_others_may_read),
        cmocka_unit_test(test_files_that_are_none),
        cmocka_unit_test(test_sha256),
    };

    return cmocka_run_group_tests(tests, set_up_all, tear_down_all);
}
