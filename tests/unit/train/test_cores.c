/* test_cores - which cores a process may use, and its part of them. */
#include "tests/unit/cm.h"
#include "worker/train/cores.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"
#include "tests/unit/common/scratch.h"

static void write_file(void **state, const char *name, const char *text)
{
    char *path = scratch_path(state, name), *dir = fs_parent(path);
    struct err e = ERR_INIT;

    assert_int_equal(fs_mkdir_p(dir, &e), 0);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    free(dir);
    free(path);
}

/* The CPUs first, first + step, … below end. */
static struct cores range(int first, int end, int step)
{
    struct cores c = {{0}};

    for (int i = first; i < end; i += step)
        cores_add(&c, i);
    return c;
}

static void siblings_are_one_core(void **state)
{
    struct cores cpus = range(0, 8, 1), cores;
    char *sys = scratch_path(state, "sys"), name[64], text[32];

    for (int i = 0; i < 8; i++) { /* CPUs 0 and 4 are a core, 1 and 5, … */
        snprintf(name, sizeof name, "sys/cpu%d/topology/thread_siblings_list", i);
        snprintf(text, sizeof text, "%d,%d\n", i % 4, i % 4 + 4);
        write_file(state, name, text);
    }
    cores_of_cpus(sys, &cpus, &cores);
    assert_int_equal(cores_count(&cores), 4);
    cpus = range(5, 7, 1); /* second threads alone: cores 1 and 2 */
    cores_of_cpus(sys, &cpus, &cores);
    assert_int_equal(cores_count(&cores), 2);
    assert_true(cores_has(&cores, 1) && cores_has(&cores, 2));
    cpus = range(100, 103, 1); /* of which the system says nothing */
    cores_of_cpus(sys, &cpus, &cores);
    assert_int_equal(cores_count(&cores), 3);
    free(sys);
}

static void this_process_has_what_the_system_says(void **state)
{
    struct cores cpus;
    cpu_set_t set;

    (void)state;
    cores_allowed_cpus(&cpus);
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(cores_count(&cpus), CPU_COUNT(&set));
}

static void parts_are_fair(void **state)
{
    struct cores bound[] = {range(0, 2, 1), range(2, 4, 1)};
    struct cores shared[] = {range(0, 8, 1), range(0, 8, 1), range(0, 8, 1)};
    struct cores overlap[] = {range(0, 1, 1), range(0, 4, 1)};
    struct cores thirds[] = {range(0, 3, 1), range(0, 3, 1), range(0, 3, 1)};
    struct cores many[] = {range(0, 1, 1), range(0, 1, 1), range(0, 1, 1)};

    (void)state;
    assert_int_equal(cores_share(bound, 2, 0, 0), 2);
    assert_int_equal(cores_share(bound, 2, 1, 0), 2);
    assert_int_equal(cores_share(shared, 1, 0, 0), 8);
    assert_int_equal(cores_share(shared, 2, 1, 0), 4);
    assert_int_equal(cores_share(shared, 3, 2, 0), 2);
    assert_int_equal(cores_share(overlap, 2, 0, 0), 1); /* half a core */
    assert_int_equal(cores_share(overlap, 2, 1, 0), 3); /* three and a half */
    assert_int_equal(cores_share(thirds, 3, 0, 0), 1);
    assert_int_equal(cores_share(many, 3, 0, 0), 1);
}

static void a_quota_bounds_all_ranks_together(void **state)
{
    struct cores all[] = {range(0, 64, 1), range(0, 64, 1)};

    (void)state;
    assert_int_equal(cores_share(all, 1, 0, 3.5), 3);
    assert_int_equal(cores_share(all, 2, 0, 3.5), 1);
    assert_int_equal(cores_share(all, 2, 0, 200), 32);
    assert_int_equal(cores_share(all, 2, 0, 0.5), 1);
}

static double quota(void **state, const char *groups)
{
    char *proc = scratch_path(state, "cgroup"), *mount = scratch_path(state, "fs");

    write_file(state, "cgroup", groups);
    double q = cores_quota(proc, mount);
    free(proc);
    free(mount);
    return q;
}

static void the_smallest_quota_counts(void **state)
{
    write_file(state, "fs/cpu.max", "max 100000\n");
    write_file(state, "fs/a/cpu.max", "400000 100000\n");
    write_file(state, "fs/a/b/cpu.max", "max 100000\n");
    write_file(state, "fs/a/c/cpu.max", "250000 100000\n");
    assert_true(quota(state, "0::/\n") == 0);
    assert_true(quota(state, "0::/a/b\n") == 4);
    assert_true(quota(state, "0::/a/c\n") == 2.5);
    assert_true(quota(state, "0::/a/of/another/name/space\n") == 4);
    write_file(state, "fs/cpu,cpuacct/x/cpu.cfs_quota_us", "150000\n");
    write_file(state, "fs/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n");
    write_file(state, "fs/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    write_file(state, "fs/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    assert_true(quota(state, "9:cpuset:/x\n4:cpu,cpuacct:/x\n1:name=systemd:/x\n0::/\n") == 1.5);
    assert_true(quota(state, "4:cpu,cpuacct:/\n") == 0);
    assert_true(quota(state, "cpu\n\n::\n") == 0);
    assert_true(cores_quota("/nonexistent", "/nonexistent") == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(siblings_are_one_core, scratch_setup, scratch_teardown),
        cmocka_unit_test(this_process_has_what_the_system_says),
        cmocka_unit_test(parts_are_fair),
        cmocka_unit_test(a_quota_bounds_all_ranks_together),
        cmocka_unit_test_setup_teardown(the_smallest_quota_counts, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
