/* test_tokens - making, finding, revoking and keeping tokens. */
#include "daemon/tokens.h"

#include "tests/unit/cm.h"
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/unit/daemon/tmp_state.h"

struct fixture {
    struct tmp_state tmp;
    char *path;
    struct tokens *tokens;
};

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);
    struct err e = ERR_INIT;

    tmp_state_make(&f->tmp);
    f->path = fs_join(f->tmp.dir, "tokens.json");
    f->tokens = tokens_open(f->path, NULL, &e);
    assert_non_null(f->tokens);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    tokens_close(f->tokens);
    tmp_state_remove(&f->tmp);
    free(f->path);
    free(f);
    return 0;
}

static int64_t make(struct fixture *f, const char *user, int64_t expires_ms, char secret[TOKEN_TEXT_BYTES])
{
    struct token as = {
        .uid = 1000, .role = ROLE_OPERATOR, .created_ms = 1, .expires_ms = expires_ms, .note = "a note"};
    struct err e = ERR_INIT;
    int64_t id;

    strcpy(as.user, user);
    strcpy(as.by, "root");
    assert_int_equal(tokens_create(f->tokens, &as, &id, secret, &e), 0);
    return id;
}

static void reopen(struct fixture *f)
{
    struct err e = ERR_INIT;

    tokens_close(f->tokens);
    f->tokens = tokens_open(f->path, NULL, &e);
    assert_non_null(f->tokens);
}

static char *file_text(const struct fixture *f)
{
    char *text;
    size_t len;

    assert_int_equal(fs_read_file(f->path, 1 << 20, &text, &len, NULL), 0);
    return text;
}

static void test_a_secret_is_found_and_no_other(void **state)
{
    struct fixture *f = *state;
    char one[TOKEN_TEXT_BYTES], two[TOKEN_TEXT_BYTES], wrong[TOKEN_TEXT_BYTES];

    int64_t a = make(f, "alice", 0, one), b = make(f, "bob", 0, two);
    assert_true(a == 1 && b == 2);
    assert_int_equal(strlen(one), TOKEN_TEXT_BYTES - 1);
    assert_string_not_equal(one, two);
    for (int again = 0; again < 2; again++) {
        const struct token *t = tokens_match(f->tokens, one, 0);
        assert_non_null(t);
        assert_string_equal(t->user, "alice");
        assert_int_equal(t->uid, 1000);
        assert_int_equal(t->role, ROLE_OPERATOR);
        assert_string_equal(t->note, "a note");
        assert_string_equal(t->by, "root");
        assert_string_equal(tokens_match(f->tokens, two, 0)->user, "bob");
        for (size_t i = 0; i < TOKEN_TEXT_BYTES - 1; i++) { /* one character off, anywhere */
            strcpy(wrong, one);
            wrong[i] = wrong[i] == '0' ? '1' : '0';
            assert_null(tokens_match(f->tokens, wrong, 0));
        }
        assert_null(tokens_match(f->tokens, "", 0));
        strcpy(wrong, one);
        wrong[TOKEN_TEXT_BYTES - 2] = 0;
        assert_null(tokens_match(f->tokens, wrong, 0));
        reopen(f);
    }
}

static void test_the_file_holds_no_secret_and_is_private(void **state)
{
    struct fixture *f = *state;
    char secret[TOKEN_TEXT_BYTES];
    struct stat st;

    make(f, "alice", 0, secret);
    char *text = file_text(f);
    assert_null(strstr(text, secret));
    assert_null(strstr(text, secret + 4));
    assert_non_null(strstr(text, "sha256"));
    free(text);
    assert_int_equal(stat(f->path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
}

static void test_expiry(void **state)
{
    struct fixture *f = *state;
    char secret[TOKEN_TEXT_BYTES];

    int64_t id = make(f, "alice", 5000, secret);
    assert_non_null(tokens_match(f->tokens, secret, 4999));
    assert_non_null(tokens_get(f->tokens, id, 4999));
    assert_null(tokens_match(f->tokens, secret, 5000));
    assert_null(tokens_get(f->tokens, id, 5000));
    assert_int_equal(tokens_at(f->tokens, 0)->id, id); /* it is still listed */
    assert_null(tokens_at(f->tokens, 1));
}

static void test_revoked_is_gone_and_its_id_too(void **state)
{
    struct fixture *f = *state;
    char one[TOKEN_TEXT_BYTES], two[TOKEN_TEXT_BYTES], three[TOKEN_TEXT_BYTES];
    struct err e = ERR_INIT;

    int64_t a = make(f, "alice", 0, one), b = make(f, "bob", 0, two);
    assert_int_equal(tokens_revoke(f->tokens, b, &e), 0);
    assert_null(tokens_match(f->tokens, two, 0));
    assert_non_null(tokens_match(f->tokens, one, 0));
    assert_int_equal(tokens_revoke(f->tokens, b, &e), -1);
    assert_int_equal(e.kind, ERR_USAGE);
    reopen(f);
    assert_null(tokens_match(f->tokens, two, 0));
    assert_true(make(f, "carol", 0, three) > b); /* never again the number of a revoked one */
    assert_int_equal(tokens_revoke(f->tokens, a, &e), 0);
    assert_null(tokens_match(f->tokens, one, 0));
    assert_non_null(tokens_match(f->tokens, three, 0));
}

static void test_what_cannot_be_written_has_not_happened(void **state)
{
    struct fixture *f = *state;
    char secret[TOKEN_TEXT_BYTES], other[TOKEN_TEXT_BYTES];
    struct token as = {.role = ROLE_USER, .created_ms = 1};
    struct err e = ERR_INIT;
    int64_t id = make(f, "alice", 0, secret), none;
    char *aside = xasprintf("%s.aside", f->tmp.dir);

    assert_int_equal(rename(f->tmp.dir, aside), 0);
    assert_int_equal(tokens_create(f->tokens, &as, &none, other, &e), -1);
    assert_null(tokens_at(f->tokens, 1));
    assert_int_equal(tokens_revoke(f->tokens, id, &e), -1);
    assert_int_not_equal(e.kind, ERR_USAGE);
    assert_non_null(tokens_match(f->tokens, secret, 0));
    assert_int_equal(rename(aside, f->tmp.dir), 0);
    free(aside);
}

static void test_last_use_is_kept_by_the_hour(void **state)
{
    struct fixture *f = *state;
    char secret[TOKEN_TEXT_BYTES];
    int64_t hour = 3600000, id = make(f, "alice", 0, secret);

    assert_int_equal(tokens_at(f->tokens, 0)->used_ms, 0);
    tokens_used(f->tokens, id, 5 * hour + 1234);
    assert_int_equal(tokens_at(f->tokens, 0)->used_ms, 5 * hour);
    tokens_tend(f->tokens);
    char *text = file_text(f);
    assert_non_null(strstr(text, "18000000"));
    free(text);
    tokens_used(f->tokens, id, 7 * hour);
    reopen(f); /* what was not written yet is written at the end */
    assert_int_equal(tokens_at(f->tokens, 0)->used_ms, 7 * hour);
}

static void write_file(const struct fixture *f, const char *text, mode_t mode)
{
    assert_int_equal(fs_atomic_replace_private(f->path, text, strlen(text), NULL), 0);
    assert_int_equal(chmod(f->path, mode), 0);
}

static void test_a_file_changed_by_others_is_read_again(void **state)
{
    struct fixture *f = *state;
    char one[TOKEN_TEXT_BYTES], two[TOKEN_TEXT_BYTES];

    make(f, "alice", 0, one);
    char *before = file_text(f);
    make(f, "bob", 0, two);
    write_file(f, before, 0600); /* bob was taken out by hand */
    tokens_tend(f->tokens);
    assert_non_null(tokens_match(f->tokens, one, 0));
    assert_null(tokens_match(f->tokens, two, 0));
    write_file(f, "{", 0600); /* a mistake changes nothing */
    tokens_tend(f->tokens);
    assert_non_null(tokens_match(f->tokens, one, 0));
    assert_int_equal(unlink(f->path), 0); /* no file is no token */
    tokens_tend(f->tokens);
    assert_null(tokens_match(f->tokens, one, 0));
    free(before);
}

static void test_bad_files(void **state)
{
    static const char good[] =
        "{\"version\":1,\"last_id\":3,\"tokens\":[{\"id\":3,\"sha256\":"
        "\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\",\"user\":\"u\",\"uid\":5,"
        "\"role\":\"user\",\"note\":\"\",\"by\":\"root\",\"created_ms\":1,\"expires_ms\":null,\"used_ms\":"
        "null}]}";
    static const struct {
        const char *from, *to, *says;
    } cases[] = {
        {"{\"version\":1", "{\"version\":2", "version"},
        {"\"role\":\"user\"", "\"role\":\"king\"", "king"},
        {"0011223344", "001122334x", "sha256"},
        {"\"uid\":5", "\"uid\":-5", "uid"},
        {"\"last_id\":3", "\"last_id\":2", "/tokens/0/id"},
        {"\"tokens\":[", "\"token\":[", "tokens"},
        {"\"created_ms\":1", "\"created_ms\":\"x\"", "created_ms"},
    };
    struct fixture *f = *state;
    struct err e = ERR_INIT;

    write_file(f, good, 0600);
    struct tokens *t = tokens_open(f->path, NULL, &e);
    assert_non_null(t);
    assert_int_equal(tokens_at(t, 0)->uid, 5);
    tokens_close(t);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *at = strstr(good, cases[i].from);
        char *bad = xasprintf("%.*s%s%s", (int)(at - good), good, cases[i].to, at + strlen(cases[i].from));
        write_file(f, bad, 0600);
        assert_null(tokens_open(f->path, NULL, &e));
        assert_non_null(strstr(e.msg, cases[i].says));
        assert_non_null(strstr(e.msg, f->path));
        free(bad);
    }
    write_file(f, good, 0640);
    assert_null(tokens_open(f->path, NULL, &e));
    assert_non_null(strstr(e.msg, "0640"));
    write_file(f, good, 0602);
    assert_null(tokens_open(f->path, NULL, &e));
    write_file(f, good, 0600);
    if (geteuid() == 0) {
        assert_int_equal(chown(f->path, 65534, 65534), 0);
        assert_null(tokens_open(f->path, NULL, &e));
        assert_non_null(strstr(e.msg, "65534"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_secret_is_found_and_no_other, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_file_holds_no_secret_and_is_private, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_expiry, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_revoked_is_gone_and_its_id_too, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_cannot_be_written_has_not_happened, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_last_use_is_kept_by_the_hour, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_file_changed_by_others_is_read_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_files, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
