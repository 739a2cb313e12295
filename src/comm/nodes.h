/* Who is on the ring: the JSON file of nodes, and "HOST:PORT" strings. */
#ifndef SH_COMM_NODES_H
#define SH_COMM_NODES_H

#include <stddef.h>

#include "base/err.h"

typedef struct sh_node_addr {
    char host[256]; /* name, IPv4, or IPv6 without brackets */
    int port;       /* control: what `shoal worker --listen` binds; 0 = any */
    int port_in;    /* where the node takes activations in; 0 = any */
} sh_node_addr;

typedef struct sh_nodes {
    sh_node_addr starter;
    sh_node_addr *secondary; /* n_secondary, in ring order */
    int n_secondary;
} sh_nodes;

/** Reads the JSON that MDI-LLM uses: nodes.starter and nodes.secondary[], each with addr,
 *  communication.port, inference.port_in and port_out. SH_EFILE names the file, the line of a
 * syntax error, or the key that is missing or wrong. Free with sh_nodes_free. */
sh_err sh_nodes_read(sh_nodes *out, const char *path);
/** The same from memory: n bytes, called `name` in messages. */
sh_err sh_nodes_parse(sh_nodes *out, const char *text, size_t n, const char *name);
void sh_nodes_free(sh_nodes *n);

/** "127.0.0.1:5000", "[::1]:5000", "pi3.local:5000", ":5000" (every address). SH_EARG says how it
 * is written. */
sh_err sh_node_addr_parse(sh_node_addr *out, const char *text);
/** "host:port", with brackets where needed. */
void sh_node_addr_text(const sh_node_addr *a, char out[300]);

#endif
