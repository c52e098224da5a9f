/* test_access - roles of users of this machine, by name, number and group. */
#include "daemon/access.h"

#include "tests/unit/cm.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "daemon/identity.h"

static enum role role_of(const struct access *a, int64_t uid, int64_t gid, gid_t group)
{
    struct access_peer peer = {.uid = uid, .gid = gid, .groups = &group, .n_groups = 1};

    return access_role(a, &peer);
}

static struct conf_list list(char **items, size_t n)
{
    return (struct conf_list){items, n};
}

static void test_root_and_we_are_administrators_others_users(void **state)
{
    struct options o = {0};
    struct err e = ERR_INIT;
    struct access *a = access_create(&o, &e);

    (void)state;
    assert_int_equal(role_of(a, 0, 0, 0), ROLE_ADMIN);
    assert_int_equal(role_of(a, getuid(), 5, 5), ROLE_ADMIN);
    assert_int_equal(role_of(a, (int64_t)getuid() + 1, 0, 0), ROLE_USER); /* root's group makes nobody root */
    access_destroy(a);
}

static void test_lists(void **state)
{
    char *viewers[] = {"30001", "@40001"}, *operators[] = {"nobody", "@40002"},
         *admins[] = {"30003", "@nogroup"};
    struct options o = {.viewers = list(viewers, 2),
                        .operators = list(operators, 2),
                        .admins = list(admins, 2)};
    struct err e = ERR_INIT;
    struct access *a = access_create(&o, &e);

    (void)state;
    assert_non_null(a);
    assert_int_equal(role_of(a, 30000, 1, 1), ROLE_USER);
    assert_int_equal(role_of(a, 30001, 1, 1), ROLE_VIEWER); /* less than without the list, and it sees all */
    assert_int_equal(role_of(a, 65534, 1, 1), ROLE_OPERATOR);
    assert_int_equal(role_of(a, 30003, 1, 1), ROLE_ADMIN);
    assert_int_equal(role_of(a, 30000, 40001, 1), ROLE_VIEWER); /* by the first group */
    assert_int_equal(role_of(a, 30000, 1, 40002), ROLE_OPERATOR);
    assert_int_equal(role_of(a, 30001, 1, 40002), ROLE_OPERATOR); /* the highest */
    assert_int_equal(role_of(a, 30000, 1, 65534), ROLE_ADMIN);
    assert_int_equal(role_of(a, 40001, 1, 1), ROLE_USER); /* a group's number is no user's */
    access_destroy(a);
}

static void test_names_that_nobody_has(void **state)
{
    static const struct {
        char *text;
        const char *says;
    } bad[] = {{"no-such-user", "--operators: 'no-such-user' found, the name or number of a user"},
               {"@no-such-group", "--operators: 'no-such-group' found, the name or number of a group"},
               {"", "a user"},
               {"@", "a group"},
               {"-1", "a user"},
               {"99999999999999999999", "a user"},
               {"12x", "a user"}};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *items[] = {bad[i].text};
        struct options o = {.operators = list(items, 1)};
        struct err e = ERR_INIT;
        assert_null(access_create(&o, &e));
        assert_int_equal(e.kind, ERR_USAGE);
        assert_non_null(strstr(e.msg, bad[i].says));
    }
}

static void test_what_roles_may(void **state)
{
    static const struct {
        enum role role;
        bool sees, touches;
    } table[] = {{ROLE_ANY, false, false},
                 {ROLE_VIEWER, true, false},
                 {ROLE_USER, false, false},
                 {ROLE_OPERATOR, true, true},
                 {ROLE_ADMIN, true, true}};
    enum role r;
    struct err e = ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(role_sees_all(table[i].role), table[i].sees);
        assert_int_equal(role_touches_all(table[i].role), table[i].touches);
        if (table[i].role == ROLE_ANY)
            continue;
        assert_int_equal(role_parse(role_name(table[i].role), &r, &e), 0);
        assert_int_equal(r, table[i].role);
    }
    assert_int_equal(role_parse("worker", &r, &e), -1); /* nobody is made one */
    assert_int_equal(role_parse("none", &r, &e), -1);
    assert_int_equal(role_parse("", &r, &e), -1);
}

static void test_users(void **state)
{
    struct err e = ERR_INIT;
    struct identity who;
    char name[64];

    (void)state;
    assert_int_equal(identity_load(0, &who, &e), 0);
    assert_string_equal(who.name, "root");
    assert_int_equal(who.gid, 0);
    assert_true(who.n_groups >= 1);
    identity_free(&who);
    assert_int_equal(identity_load(4000000000, &who, &e), -1);
    identity_name(0, name, sizeof name);
    assert_string_equal(name, "root");
    identity_name(4000000000, name, sizeof name);
    assert_string_equal(name, "4000000000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_root_and_we_are_administrators_others_users),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_names_that_nobody_has),
        cmocka_unit_test(test_what_roles_may),
        cmocka_unit_test(test_users),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
