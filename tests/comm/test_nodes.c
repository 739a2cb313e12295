/* The file of nodes: what people have is read, and each mistake gets a sentence that names it. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "comm/nodes.h"
#include "comm/ring.h"

static const char whole[] =
    "{\"nodes\": {\n"
    "  \"starter\": {\"addr\": \"192.168.1.2\", \"communication\": {\"port\": 8088},\n"
    "    \"inference\": {\"port_in\": 5088, \"port_out\": 5089}, \"device\": \"cuda:0\"},\n"
    "  \"secondary\": [\n"
    "    {\"addr\": \"192.168.1.3\", \"communication\": {\"starter_addr\": \"192.168.1.2\", "
    "\"port\": 8089},\n"
    "     \"inference\": {\"port_in\": 5090, \"port_out\": 5091}, \"device\": \"cuda\", "
    "\"colour\": [1]},\n"
    "    {\"addr\": \"pi3.local\", \"communication\": {\"port\": 8089}, \"inference\": "
    "{\"port_in\": 5090}},\n"
    "    {\"addr\": \"fe80::1%eth0\", \"communication\": {\"port\": 65535}}\n"
    "  ] } }";

static sh_err parse(sh_nodes *n, const char *text)
{
    size_t len = strlen(text);
    char *copy = malloc(len ? len : 1); /* without a NUL: a sanitizer sees a read past the end */
    memcpy(copy, text, len);
    sh_err err = sh_nodes_parse(n, copy, len, "my.json");
    free(copy);
    return err;
}

static void test_whole(void **state)
{
    (void)state;
    sh_nodes n;
    if (parse(&n, whole)) fail_msg("%s", sh_err_message());
    assert_string_equal(n.starter.host, "192.168.1.2");
    assert_int_equal(n.starter.port, 8088);
    assert_int_equal(n.starter.port_in, 5088);
    assert_int_equal(n.n_secondary, 3);
    assert_string_equal(n.secondary[0].host, "192.168.1.3");
    assert_int_equal(n.secondary[0].port, 8089);
    assert_int_equal(n.secondary[0].port_in, 5090);
    assert_string_equal(n.secondary[1].host, "pi3.local");
    assert_string_equal(n.secondary[2].host, "fe80::1%eth0");
    assert_int_equal(n.secondary[2].port, 65535);
    assert_int_equal(n.secondary[2].port_in, 0);
    sh_nodes_free(&n);
    assert_null(n.secondary);
    sh_nodes_free(&n);
}

static void test_small(void **state)
{
    (void)state;
    sh_nodes n;
    assert_int_equal(parse(&n, "{\"nodes\":{\"starter\":{\"addr\":\"a\"},\"secondary\":[]}}"),
                     SH_OK);
    assert_int_equal(n.n_secondary, 0);
    assert_int_equal(n.starter.port, 0);
    assert_int_equal(n.starter.port_in, 0);
    sh_nodes_free(&n);
}

/* Every cut is refused, and so is every key taken away that is needed. */
static void test_cut(void **state)
{
    (void)state;
    sh_nodes n;
    char text[sizeof whole];
    for (size_t i = 0; i + 1 < sizeof whole; i++) {
        memcpy(text, whole, i);
        text[i] = '\0';
        assert_int_equal(parse(&n, text), SH_EFILE);
        assert_null(n.secondary);
    }
}

static void test_mistakes(void **state)
{
    (void)state;
#define NODE(addr, port) "{\"addr\":" addr ",\"communication\":{\"port\":" port "}}"
#define RING(starter, secondary)                                                                   \
    "{\"nodes\":{\"starter\":" starter ",\"secondary\":[" secondary "]}}"
#define A NODE("\"a\"", "1")
    const struct {
        const char *text, *says;
    } bad[] = {
        {"{\"nodes\":\n\n}", "line 3"},
        {"[]", "nodes is missing"},
        {NODE("\"a\"", "1"), "single node"},
        {"{\"nodes\":3}", "nodes must be an object"},
        {"{\"nodes\":{\"secondary\":[]}}", "nodes.starter is missing"},
        {"{\"nodes\":{\"starter\":" A "}}", "nodes.secondary is missing"},
        {"{\"nodes\":{\"starter\":" A ",\"secondary\":{}}}", "nodes.secondary must be a list"},
        {RING("7", ""), "nodes.starter must be an object"},
        {RING("{}", ""), "nodes.starter.addr is missing"},
        {RING("{\"addr\":7}", ""), "nodes.starter.addr must be"},
        {RING("{\"addr\":\"\"}", ""), "nodes.starter.addr must be"},
        {RING("{\"addr\":\"a:1\"}", ""), "nodes.starter.addr must be"},
        {RING("{\"addr\":\"a::g\"}", ""), "nodes.starter.addr must be"},
        {RING(A, "3"), "nodes.secondary[0] must be an object"},
        {RING("{\"addr\":\"a;b\"}", ""), "nodes.starter.addr must be"},
        {RING("{\"addr\":\"a/b\"}", ""), "nodes.starter.addr must be"},
        {RING("{\"addr\":\"0.0.0.0\"}", ""), "other nodes reach"},
        {RING("{\"addr\":\"a\",\"communication\":1}", ""), "nodes.starter.communication must be"},
        {RING(A, "{\"addr\":\"b\"}"), "nodes.secondary[0].communication is missing"},
        {RING(A, "{\"addr\":\"b\",\"communication\":{}}"),
         "secondary[0].communication.port is missing"},
        {RING(A, NODE("\"b\"", "0")), "nodes.secondary[0].communication.port must be"},
        {RING(A, NODE("\"b\"", "65536")), "communication.port must be"},
        {RING(A, NODE("\"b\"", "-1")), "communication.port must be"},
        {RING(A, NODE("\"b\"", "\"1\"")), "communication.port must be"},
        {RING(A, NODE("\"b\"", "1.5")), "communication.port must be"},
        {RING(A, NODE("\"b\"", "4294967297")), "communication.port must be"},
        {RING(A, NODE("\"b\"", "1") "," NODE("\"B\"", "1")), "port 1 of B is given twice"},
        {RING(A, NODE("\"a\"", "1")), "given twice"},
        {RING("{\"addr\":\"a\",\"inference\":{\"port_in\":9}}", NODE("\"a\"", "9")), "given twice"},
        {RING("{\"addr\":\"a\",\"inference\":{\"port_out\":9}}", ""),
         "inference.port_in is missing"},
        {RING("{\"addr\":\"a\",\"inference\":{\"port_in\":9,\"port_out\":65536}}", ""),
         "port_out must"},
        {"{\"nodes\":1,\"nodes\":2}", "line 1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        sh_nodes n;
        assert_int_equal(parse(&n, bad[i].text), SH_EFILE);
        if (!strstr(sh_err_message(), bad[i].says) || strncmp(sh_err_message(), "my.json: ", 9))
            fail_msg("%s: \"%s\"", bad[i].text, sh_err_message());
        assert_null(n.secondary);
    }
}

static void test_many(void **state)
{
    (void)state;
    static char text[8000];
    for (int n = SH_MAX_STAGE - 1; n <= SH_MAX_STAGE; n++) {
        int at = sprintf(text, "{\"nodes\":{\"starter\":" A ",\"secondary\":[");
        for (int i = 0; i < n; i++)
            at += sprintf(text + at, "%s{\"addr\":\"b%d\",\"communication\":{\"port\":5}}",
                          i ? "," : "", i);
        strcpy(text + at, "]}}");
        sh_nodes nodes;
        assert_int_equal(parse(&nodes, text), n < SH_MAX_STAGE ? SH_OK : SH_EFILE);
        assert_int_equal(nodes.n_secondary, n < SH_MAX_STAGE ? n : 0);
        sh_nodes_free(&nodes);
    }
}

static void test_file(void **state)
{
    (void)state;
    char path[] = "/tmp/shoal-nodes-XXXXXX";
    int fd = mkstemp(path);
    sh_nodes n;
    assert_true(fd >= 0 && write(fd, whole, sizeof whole - 1) == (ssize_t)sizeof whole - 1);
    close(fd);
    assert_int_equal(sh_nodes_read(&n, path), SH_OK);
    assert_int_equal(n.n_secondary, 3);
    sh_nodes_free(&n);
    unlink(path);
    assert_int_equal(sh_nodes_read(&n, path), SH_EFILE);
    assert_non_null(strstr(sh_err_message(), path));
}

static void test_addresses(void **state)
{
    (void)state;
    const struct {
        const char *text, *host;
        int port;
    } good[] = {{"127.0.0.1:5000", "127.0.0.1", 5000}, {"[::1]:5000", "::1", 5000},
                {"pi3.local:1", "pi3.local", 1},       {":5000", "", 5000},
                {"a_b-c:65535", "a_b-c", 65535},       {"[fe80::1%eth0]:0", "fe80::1%eth0", 0}};
    const char *bad[] = {"",      "x",         "127.0.0.1", "::1:5000", "[::1]",  "[]:5", "[a]:5",
                         "a:",    "a:65536",   "a:-1",      "a: 1",     "a:1 ",   "a:1x", "a b:1",
                         "a;b:1", "tcp://a:1", "a:000001",  "[::1:5",   "::1]:5", "*:5"};
    sh_node_addr a;
    char text[300];
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        if (sh_node_addr_parse(&a, good[i].text)) fail_msg("%s", sh_err_message());
        assert_string_equal(a.host, good[i].host);
        assert_int_equal(a.port, good[i].port);
        sh_node_addr_text(&a, text);
        assert_string_equal(text, good[i].text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (sh_node_addr_parse(&a, bad[i]) != SH_EARG) fail_msg("\"%s\" was taken", bad[i]);
        assert_non_null(strstr(sh_err_message(), "HOST:PORT"));
    }
    char longest[400]; /* a name of 255 bytes is the longest */
    for (int n = 255; n <= 256; n++) {
        memset(longest, 'a', (size_t)n);
        strcpy(longest + n, ":5");
        assert_int_equal(sh_node_addr_parse(&a, longest), n == 255 ? SH_OK : SH_EARG);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),     cmocka_unit_test(test_small), cmocka_unit_test(test_cut),
        cmocka_unit_test(test_mistakes),  cmocka_unit_test(test_many),  cmocka_unit_test(test_file),
        cmocka_unit_test(test_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
