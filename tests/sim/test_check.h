/* test_check - CHECK for the simulator's test programs, and memory that is pinned or on the device. */
#ifndef TESTS_SIM_TEST_CHECK_H
#define TESTS_SIM_TEST_CHECK_H

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>
#include <sys/wait.h>
#include <unistd.h>
#include <cuda_runtime_api.h>

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond);                               \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

/* Runs f in a child process: ctest counts an abort as a failure whatever was printed before. */
inline int in_child(const std::function<int()> &f)
{
    int status = 0;
    pid_t child = fork();

    if (child == 0)
        _exit(f());
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 2;
    if (WIFSIGNALED(status))
        printf("ended by signal %d\n", WTERMSIG(status));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

inline void *device_bytes(size_t bytes)
{
    void *p = nullptr;
    CHECK(cudaMalloc(&p, bytes) == cudaSuccess);
    return p;
}

/* On the device, with these values. */
template <class T> T *to_device(const std::vector<T> &v)
{
    T *p = static_cast<T *>(device_bytes(v.size() * sizeof(T)));
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
    return p;
}

template <class T> std::vector<T> to_host(const T *p, size_t n)
{
    std::vector<T> v(n);
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return v;
}

/* Small multiples of 1/8: sums and products are exact, in bf16, too. */
inline float small_value(size_t i)
{
    return float(int(i * 2654435761u >> 7) % 9 - 4) / 8;
}

#endif
