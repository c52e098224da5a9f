/* connect - see connect.h. */
#include "cli/connect.h"
#include "cli/cli.h"
#include "common/fsutil.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_TOKEN_BYTES = 4096 };

/* The file's only word, malloc'ed. What others may read is a secret no longer, so it is refused. */
static char *read_token_file(const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    char text[MAX_TOKEN_BYTES + 1];
    struct stat st;
    ssize_t n = -1;

    if (fd < 0) {
        err_set_errno(e, "$BATCHFORMER_TOKEN_FILE: %s", path);
        return NULL;
    }
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        err_set_kind(e, ERR_USAGE, "$BATCHFORMER_TOKEN_FILE: %s is not a file", path);
    else if (st.st_mode & 0077)
        err_set_kind(e, ERR_USAGE,
                     "$BATCHFORMER_TOKEN_FILE: %s has mode %04o, others may read it: chmod 600 is accepted",
                     path, (unsigned)(st.st_mode & 07777));
    else if ((n = read(fd, text, sizeof text)) < 0)
        err_set_errno(e, "$BATCHFORMER_TOKEN_FILE: %s", path);
    close(fd);
    if (n < 0)
        return NULL;
    text[n < MAX_TOKEN_BYTES ? n : MAX_TOKEN_BYTES] = 0;
    text[strcspn(text, " \t\r\n")] = 0;
    if (*text)
        return xstrdup(text);
    err_set_kind(e, ERR_USAGE, "$BATCHFORMER_TOKEN_FILE: there is no token in %s", path);
    return NULL;
}

static char *find_token(const char *address, struct err *e)
{
    const char *token = getenv("BATCHFORMER_TOKEN"), *path = getenv("BATCHFORMER_TOKEN_FILE");

    if (token && *token)
        return xstrdup(token);
    if (path && *path)
        return read_token_file(path, e);
    err_set_kind(e, ERR_USAGE,
                 "%s needs a token: put it into a file with mode 600 that $BATCHFORMER_TOKEN_FILE names, or "
                 "into $BATCHFORMER_TOKEN (bfctl token create makes one)",
                 address);
    return NULL;
}

static int login(struct client *c, const char *token, struct err *e)
{
    cJSON *params = cJSON_CreateObject();

    cJSON_AddStringToObject(params, "token", token);
    cJSON *result = client_call(c, "auth.login", params, CLI_CALL_MS, NULL, e);
    cJSON_Delete(result);
    return result ? 0 : -1;
}

struct client *connect_to(const char *address, const char *ca, struct err *e)
{
    bool is_tcp = strncmp(address, "tcp:", 4) == 0;
    char *token = is_tcp ? find_token(address, e) : NULL;

    if (is_tcp && !token)
        return NULL;
    struct client *c = ca ? client_connect_trusting(address, ca, e) : client_connect(address, e);
    if (c && is_tcp && login(c, token, e) < 0) {
        client_close(c);
        c = NULL;
    }
    free(token);
    return c;
}
