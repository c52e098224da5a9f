/* listener - see listener.h. */
#include "daemon/listener.h"
#include "common/fsutil.h"
#include "proto/address.h"

#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 512 };

/* --- Unix --- */

static int fill_address(const char *path, struct sockaddr_un *sa, struct err *e)
{
    *sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof sa->sun_path)
        return err_set(e, "socket path %s has %zu bytes, at most %zu are possible", path, strlen(path),
                       sizeof sa->sun_path - 1);
    strcpy(sa->sun_path, path);
    return 0;
}

/* Removes a socket file that nobody answers on. */
static int clear_stale(const char *path, struct err *e)
{
    struct sockaddr_un sa;
    struct stat st;

    if (fill_address(path, &sa, e) < 0)
        return -1;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_set_errno(e, "%s", path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(e, "%s exists and is not a socket", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set_errno(e, "socket");
    int rc = connect(fd, (struct sockaddr *)&sa, sizeof sa), why = errno;
    close(fd);
    if (rc == 0 || why == EAGAIN)
        return err_set(e, "%s: another program answers there", path);
    if (why != ECONNREFUSED)
        return err_set(e, "%s: %s", path, strerror(why));
    return unlink(path) < 0 ? err_set_errno(e, "removing the stale socket %s", path) : 0;
}

/* The directory of a socket in a public place must be ours, or a stranger could put his socket in its place.
 */
static int check_parent(const char *path, bool in_public, struct err *e)
{
    char *dir = xstrdup(path), *slash = strrchr(dir, '/');
    struct stat st;
    int rc = 0;

    *slash = 0;
    if (*dir && !fs_exists(dir)) {
        rc = fs_mkdir_p(dir, e);
        if (rc == 0 && chmod(dir, 0700) < 0)
            rc = err_set_errno(e, "chmod of %s", dir);
    }
    if (rc == 0 && *dir && in_public &&
        (lstat(dir, &st) < 0 || !S_ISDIR(st.st_mode) || (st.st_uid != getuid() && st.st_uid != 0)))
        rc = err_set(e, "%s is not a directory of this user: choose another socket with --listen", dir);
    free(dir);
    return rc;
}

static int open_unix(struct listener *l, uv_loop_t *loop, const char *path, bool in_public, struct err *e)
{
    int rc;

    if (check_parent(path, in_public, e) < 0 || clear_stale(path, e) < 0)
        return -1;
    uv_pipe_init(loop, &l->socket.pipe, 0);
    l->open = true;
    if ((rc = uv_pipe_bind(&l->socket.pipe, path)) < 0)
        return err_set(e, "listening on %s: %s", path, uv_strerror(rc));
    /* Nobody can connect before listen(), so the mode is right from the first client on. */
    if (chmod(path, l->kind == CONN_GUEST ? 0666 : 0660) < 0)
        return err_set_errno(e, "chmod of %s", path);
    return 0;
}

/* --- TCP --- */

static int resolve(const struct address *a, struct addrinfo **list, struct err *e)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    int rc = getaddrinfo(a->host, a->port, &hints, list);

    if (rc)
        return err_set(e, "listening on tcp:%s:%s: %s", a->host, a->port,
                       rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc));
    return 0;
}

/* The first of the host's addresses that this machine has. */
static int open_tcp(struct listener *l, uv_loop_t *loop, const struct address *a, struct err *e)
{
    struct addrinfo *list;
    int rc = UV_EADDRNOTAVAIL;

    if (resolve(a, &list, e) < 0)
        return -1;
    uv_tcp_init(loop, &l->socket.tcp);
    l->open = true;
    for (const struct addrinfo *at = list; at && rc < 0; at = at->ai_next)
        rc = uv_tcp_bind(&l->socket.tcp, at->ai_addr, 0);
    freeaddrinfo(list);
    return rc < 0 ? err_set(e, "listening on tcp:%s:%s: %s", a->host, a->port, uv_strerror(rc)) : 0;
}

/* --- both --- */

int listener_open(struct listener *l, uv_loop_t *loop, const char *address, bool in_public,
                  uv_connection_cb on_connection, struct err *e)
{
    struct address a;
    int rc;

    if (address_parse(address, &a, e) < 0)
        return -1;
    rc = a.is_tcp ? open_tcp(l, loop, &a, e) : open_unix(l, loop, a.path, in_public, e);
    if (rc == 0 && (rc = uv_listen(&l->socket.stream, BACKLOG, on_connection)) < 0)
        err_set(e, "listening on %s: %s", address, uv_strerror(rc));
    return rc < 0 ? -1 : 0;
}

char *listener_address(const struct listener *l, const char *address)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } sa;
    char host[INET6_ADDRSTRLEN];
    int len = sizeof sa;

    if (l->kind != CONN_TCP || uv_tcp_getsockname(&l->socket.tcp, &sa.any, &len) < 0 ||
        uv_ip_name(&sa.any, host, sizeof host) < 0)
        return xstrdup(address);
    return address_tcp_text(host, ntohs(sa.any.sa_family == AF_INET6 ? sa.v6.sin6_port : sa.v4.sin_port));
}
