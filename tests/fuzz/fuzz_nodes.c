/* Fuzz target: any bytes as a file of nodes, and its first line as HOST:PORT. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "comm/nodes.h"
#include "comm/ring.h"

static void check_addr(const sh_node_addr *a)
{
    size_t n = strnlen(a->host, sizeof a->host);
    if (n == sizeof a->host || strpbrk(a->host, ";/ \n\"*")) abort();
    if (a->port < 0 || a->port > 65535 || a->port_in < 0 || a->port_in > 65535) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    sh_nodes nodes;
    sh_node_addr a;
    char line[400], text[300];
    size_t len = n < sizeof line ? n : sizeof line - 1;
    if (sh_nodes_parse(&nodes, (const char *)data, n, "fuzz") == SH_OK) {
        if (nodes.n_secondary < 0 || nodes.n_secondary >= SH_MAX_STAGE) abort();
        check_addr(&nodes.starter);
        for (int i = 0; i < nodes.n_secondary; i++) check_addr(&nodes.secondary[i]);
    }
    sh_nodes_free(&nodes);
    if (len) memcpy(line, data, len);
    line[len] = '\0';
    if (sh_node_addr_parse(&a, line) == SH_OK) {
        check_addr(&a);
        sh_node_addr_text(&a, text);
    }
    return 0;
}
