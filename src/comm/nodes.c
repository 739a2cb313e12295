/* The file of nodes, and "HOST:PORT" strings: text to addresses, with a sentence for every mistake.
 */
#define _GNU_SOURCE
#include "comm/nodes.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "comm/ring.h"

enum { MAX_FILE_BYTES = 1 << 20 };

/* ---- addresses ---- */

/* Names, IPv4, and IPv6 with a zone. Also keeps signs away that mean something in ZeroMQ's
 * addresses. */
static bool is_host(const char *s, size_t n)
{
    static const char letters[] =
        "0123456789.abcdefABCDEFghijklmnopqrstuvwxyzGHIJKLMNOPQRSTUVWXYZ-_";
    const char *colon = memchr(s, ':', n), *zone = colon ? memchr(s, '%', n) : NULL;
    size_t n_plain = sizeof letters - 1;
    if (n == 0 || n >= sizeof((sh_node_addr *)0)->host) return false;
    if (colon && !memchr(colon + 1, ':', n - (size_t)(colon + 1 - s))) return false; /* a port */
    for (size_t i = 0; i < n; i++) {
        bool in_v6 = colon && (!zone || s + i < zone);
        if (memchr(letters, s[i], in_v6 ? 23 : n_plain)) continue; /* digits, point, a-f, A-F */
        if (!(in_v6 && s[i] == ':') && s + i != zone) return false;
    }
    return true;
}

static bool is_every_address(const char *host)
{
    return !strcmp(host, "0.0.0.0") || !strcmp(host, "::");
}

static bool parse_port(const char *s, int *port)
{
    size_t n = strspn(s, "0123456789");
    if (n == 0 || n > 5 || s[n]) return false;
    *port = atoi(s);
    return *port <= 65535;
}

sh_err sh_node_addr_parse(sh_node_addr *out, const char *text)
{
    sh_node_addr a = {0};
    const char *host = text, *colon = strrchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : 0;
    bool brackets = n >= 2 && text[0] == '[' && text[n - 1] == ']';
    if (brackets) {
        host++;
        n -= 2;
    }
    bool bad_host = n && (!is_host(host, n) || brackets != (memchr(host, ':', n) != NULL));
    if (!colon || bad_host || (brackets && !n) || !parse_port(colon + 1, &a.port))
        return sh_fail(SH_EARG,
                       "\"%.300s\" is not an address; write HOST:PORT (127.0.0.1:5000, [::1]:5000, "
                       "pi3.local:5000), or :5000 for every address of this machine",
                       text);
    memcpy(a.host, host, n);
    *out = a;
    return SH_OK;
}

void sh_node_addr_text(const sh_node_addr *a, char out[300])
{
    snprintf(out, 300, strchr(a->host, ':') ? "[%s]:%d" : "%s:%d", a->host, a->port);
}

/* ---- the file ---- */

/* Where in the file: "nodes.secondary[1]". */
typedef struct where {
    const char *file;
    char key[64];
} where;

__attribute__((format(printf, 2, 3))) static sh_err bad(const where *w, const char *fmt, ...)
{
    char text[700];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return sh_fail(SH_EFILE, "%s: %s%s", w->file, w->key, text);
}

static sh_err get_port(int *out, const json_t *object, const char *name, int lowest, const where *w,
                       const char *group)
{
    const json_t *v = json_object_get(object, name);
    if (!v) return bad(w, ".%s.%s is missing", group, name);
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < lowest || n > 65535)
        return bad(w, ".%s.%s must be a whole number from %d to 65535", group, name, lowest);
    *out = (int)n;
    return SH_OK;
}

/* A group of ports, NULL if it may be absent and is. */
static sh_err get_group(const json_t **out, const json_t *node, const char *name, bool needed,
                        const where *w)
{
    *out = json_object_get(node, name);
    if (!*out && needed) return bad(w, ".%s is missing", name);
    if (*out && !json_is_object(*out)) return bad(w, ".%s must be an object", name);
    return SH_OK;
}

static sh_err get_node(sh_node_addr *a, const json_t *node, bool starter, const where *w)
{
    const json_t *addr = json_object_get(node, "addr"), *control, *data;
    int unused;
    if (!json_is_object(node)) return bad(w, " must be an object");
    if (!addr) return bad(w, ".addr is missing");
    const char *host = json_string_value(addr);
    if (!host || !is_host(host, strlen(host)))
        return bad(w, ".addr must be a host name or an IP address, without a port");
    if (is_every_address(host))
        return bad(w, ".addr is %s; write the address at which the other nodes reach this one",
                   host);
    snprintf(a->host, sizeof a->host, "%s", host);
    SH_TRY(get_group(&control, node, "communication", !starter, w));
    SH_TRY(get_group(&data, node, "inference", false, w));
    if (control) SH_TRY(get_port(&a->port, control, "port", starter ? 0 : 1, w, "communication"));
    if (data) SH_TRY(get_port(&a->port_in, data, "port_in", 0, w, "inference"));
    if (json_object_get(data, "port_out"))
        SH_TRY(get_port(&unused, data, "port_out", 0, w, "inference"));
    return SH_OK;
}

/* Two sockets cannot listen on one port. n is at most 64. */
static sh_err check_twice(const sh_nodes *n, const char *file)
{
    for (int i = 0; i < 2 * (n->n_secondary + 1); i++) {
        const sh_node_addr *a = i / 2 ? &n->secondary[i / 2 - 1] : &n->starter;
        int port = i % 2 ? a->port_in : a->port;
        for (int k = 0; port && k < i; k++) {
            const sh_node_addr *b = k / 2 ? &n->secondary[k / 2 - 1] : &n->starter;
            if (port == (k % 2 ? b->port_in : b->port) && !strcasecmp(a->host, b->host))
                return sh_fail(SH_EFILE,
                               "%s: port %d of %s is given twice; every node needs its own", file,
                               port, a->host);
        }
    }
    return SH_OK;
}

static sh_err get_nodes(sh_nodes *out, const json_t *root, const char *name)
{
    where w = {.file = name, .key = "nodes"};
    const json_t *nodes = json_object_get(root, "nodes");
    if (!nodes && json_object_get(root, "addr"))
        return bad(&w,
                   " is missing; this is the file of a single node, give that of the whole ring");
    if (!nodes) return bad(&w, " is missing");
    const json_t *starter = json_object_get(nodes, "starter");
    const json_t *secondary = json_object_get(nodes, "secondary");
    if (!json_is_object(nodes)) return bad(&w, " must be an object");
    if (!starter) return bad(&w, ".starter is missing");
    if (!secondary) return bad(&w, ".secondary is missing; write [] for none");
    if (!json_is_array(secondary)) return bad(&w, ".secondary must be a list");
    size_t n = json_array_size(secondary);
    if (n >= SH_MAX_STAGE)
        return bad(&w, ".secondary has %zu nodes, at most %d are possible", n, SH_MAX_STAGE - 1);
    snprintf(w.key, sizeof w.key, "nodes.starter");
    SH_TRY(get_node(&out->starter, starter, true, &w));
    SH_TRY(sh_alloc(&out->secondary, n, sizeof *out->secondary, "the nodes"));
    for (size_t i = 0; i < n; i++) {
        snprintf(w.key, sizeof w.key, "nodes.secondary[%zu]", i);
        SH_TRY(get_node(&out->secondary[i], json_array_get(secondary, i), false, &w));
        out->n_secondary++;
    }
    return check_twice(out, name);
}

sh_err sh_nodes_parse(sh_nodes *out, const char *text, size_t n, const char *name)
{
    json_error_t e;
    *out = (sh_nodes){0};
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!root)
        return sh_fail(SH_EFILE, "%s: line %d, column %d: %s", name, e.line, e.column, e.text);
    sh_err err = get_nodes(out, root, name);
    json_decref(root);
    if (err) sh_nodes_free(out);
    return err;
}

sh_err sh_nodes_read(sh_nodes *out, const char *path)
{
    char *text = NULL;
    size_t n;
    *out = (sh_nodes){0};
    SH_TRY(sh_file_read_text(&text, &n, path, MAX_FILE_BYTES));
    sh_err err = sh_nodes_parse(out, text, n, path);
    free(text);
    return err;
}

void sh_nodes_free(sh_nodes *n)
{
    free(n->secondary);
    *n = (sh_nodes){0};
}
