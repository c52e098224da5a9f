/* connect - a connection to the coordinator that the command line names, logged in where that is needed. */
#ifndef CLI_CONNECT_H
#define CLI_CONNECT_H

#include "common/err.h"
#include "proto/client.h"

/* Connects to `address`, trusting the certificates in the file `ca` (NULL: $BATCHFORMER_CA, else the
 * system's). Over TCP it logs in: with the token in $BATCHFORMER_TOKEN, else with the one in the file that
 * $BATCHFORMER_TOKEN_FILE names, which nobody else may read. */
struct client *connect_to(const char *address, const char *ca, struct err *e);

#endif
