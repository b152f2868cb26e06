/* The promises of parse.h, as tables: what comes in, what is understood. Prints TAP; t/01-parse.t runs it. */
#include "../parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int tests, failures;

static void ok(bool good, const char *name, const char *got, const char *expected) {
    printf("%sok %d - %s\n", good ? "" : "not ", ++tests, name);
    if (!good) printf("#      got: %s\n# expected: %s\n", got, expected);
    failures += !good;
}

static void is(const char *got, const char *expected, const char *name) {
    ok(strcmp(got, expected) == 0, name, got, expected);
}

/* ---- requests: "STATUS METHOD PATH TIMEOUT" ---- */

static const struct {
    const char *name, *request, *expected;
} requests[] = {
    {"a plain GET", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "200 GET /metrics -1"},
    {"HTTP/1.0 needs no Host", "HEAD / HTTP/1.0\r\n\r\n", "200 HEAD / -1"},
    {"LF alone ends a line", "GET / HTTP/1.1\nHost: a\n\n", "200 GET / -1"},
    {"empty lines before the request", "\r\n\r\nGET / HTTP/1.0\r\n\r\n", "200 GET / -1"},
    {"the query is no part of the path", "GET /metrics?a=b?c HTTP/1.0\r\n\r\n", "200 GET /metrics -1"},
    {"absolute-form", "GET http://h:9914/metrics?x HTTP/1.1\r\nHost: h\r\n\r\n", "200 GET /metrics -1"},
    {"absolute-form without a path", "GET HTTPS://h HTTP/1.1\r\nHost: h\r\n\r\n", "200 GET / -1"},
    {"asterisk-form", "OPTIONS * HTTP/1.0\r\n\r\n", "200 OPTIONS  -1"},
    {"authority-form", "CONNECT a:1 HTTP/1.0\r\n\r\n", "200 CONNECT  -1"},
    {"HTTP/1.9 is HTTP/1", "GET / HTTP/1.9\r\nHost:\r\n\r\n", "200 GET / -1"},
    {"a timeout in milliseconds", "GET / HTTP/1.0\r\nx-prometheus-scrape-timeout-seconds:\t10.25 \r\n\r\n", "200 GET / 10250"},
    {"the shorter of two timeouts",
     "GET / HTTP/1.0\r\nX-Prometheus-Scrape-Timeout-Seconds: 3\r\nX-Prometheus-Scrape-Timeout-Seconds: 5\r\n\r\n",
     "200 GET / 3000"},
    {"a timeout beyond all bounds", "GET / HTTP/1.0\r\nX-Prometheus-Scrape-Timeout-Seconds: 99999999999999999999\r\n\r\n",
     "200 GET / 86400000"},
    {"a timeout that is no number", "GET / HTTP/1.0\r\nX-Prometheus-Scrape-Timeout-Seconds: -1e3\r\n\r\n", "200 GET / -1"},
    {"a timeout that begins like one", "GET / HTTP/1.0\r\nX-Prometheus-Scrape-Timeout-Seconds: 1.2.3\r\n\r\n", "200 GET / -1"},
    {"bytes behind the empty line", "GET / HTTP/1.0\r\n\r\nGET / HTTP/9.9\r\n\r\n", "200 GET / -1"},
    {"not complete: nothing", "", "0"},
    {"not complete: half a line", "GET /met", "0"},
    {"not complete: no empty line", "GET / HTTP/1.1\r\nHost: a\r\n", "0"},
    {"HTTP/1.1 without Host", "GET / HTTP/1.1\r\n\r\n", "400"},
    {"two Hosts", "GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n", "400"},
    {"a Host with a blank in it", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"},
    {"HTTP/0.9", "GET /\r\n", "400"},
    {"two blanks", "GET  / HTTP/1.1\r\n", "400"},
    {"a blank in the target", "GET /a b HTTP/1.1\r\n", "400"},
    {"a target without a slash", "GET metrics HTTP/1.1\r\n", "400"},
    {"a control byte in the target", "GET /\x01 HTTP/1.1\r\n", "400"},
    {"a bare CR in the line", "GET / HTTP/1.1\rx\n", "400"},
    {"lower case HTTP", "GET / http/1.1\r\n", "400"},
    {"a version of two digits", "GET / HTTP/1.10\r\n", "400"},
    {"a method that is no token", "G(T / HTTP/1.1\r\n", "400"},
    {"TLS", "\x16\x03\x01", "400"},
    {"a folded header", "GET / HTTP/1.0\r\nA: b\r\n c\r\n\r\n", "400"},
    {"a blank before the colon", "GET / HTTP/1.0\r\nA : b\r\n\r\n", "400"},
    {"a header without a colon", "GET / HTTP/1.0\r\nA\r\n\r\n", "400"},
    {"a header without a name", "GET / HTTP/1.0\r\n: b\r\n\r\n", "400"},
    {"a control byte in a header", "GET / HTTP/1.0\r\nA: \x02\r\n\r\n", "400"},
    {"HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
    {"HTTP/3", "GET / HTTP/3\r\n\r\n", "505"},
    {"HTTP/10.1", "GET / HTTP/10.1\r\n\r\n", "505"},
    {"HTTP/0.9 by its number", "GET / HTTP/0.9\r\n\r\n", "505"},
};

static void test_request(const char *name, const char *bytes, size_t len, const char *expected) {
    struct request req;
    char got[200], *copy = malloc(len + 1); /* of the exact size, for the sanitizers */
    memcpy(copy, bytes, len);
    int status = request_parse(copy, len, &req);
    snprintf(got, sizeof got, "%d", status);
    if (status == 200)
        snprintf(got, sizeof got, "%d %.*s %.*s %ld", status, (int)req.method.len, req.method.at, (int)req.path.len, req.path.at,
                 req.scrape_timeout_ms);
    is(got, expected, name);
    free(copy);
}

static void test_limits(void) {
    static char big[REQUEST_MAX + 2000];
    static const struct {
        const char *name;
        int target, lines, width, status; /* bytes of the target; header lines, and bytes of each with CRLF */
    } limits[] = {
        {"a request line of 8192 bytes", 8192 - 13, 0, 0, 200}, {"one of 8193", 8193 - 13, 0, 0, 414},
        {"100 header lines", 1, 100, 10, 200},                  {"101 header lines", 1, 101, 10, 431},
        {"16 KiB of headers", 1, 64, 256, 200},                 {"a line more", 1, 65, 256, 431},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        int n = snprintf(big, sizeof big, "GET /%0*d HTTP/1.0\r\n", limits[i].target - 1, 0);
        if (limits[i].target == 1) n = snprintf(big, sizeof big, "GET / HTTP/1.0\r\n");
        for (int k = 0; k < limits[i].lines; k++)
            n += snprintf(big + n, sizeof big - (size_t)n, "a: %0*d\r\n", limits[i].width - 5, 0);
        n += snprintf(big + n, sizeof big - (size_t)n, "\r\n");
        struct request req;
        char got[20], expected[20];
        snprintf(got, sizeof got, "%d", request_parse(big, (size_t)n, &req));
        snprintf(expected, sizeof expected, "%d", limits[i].status);
        is(got, expected, limits[i].name);
    }
    memset(big, 'a', sizeof big);
    test_request("a request line that does not end", big, REQUEST_LINE_MAX + 2, "414");
    memcpy(big, "GET / HTTP/1.0\r\n", 16);
    test_request("headers that do not end", big, 16 + HEADERS_MAX + 2, "431");
}

/* ---- rules: "kind packets:bytes address direction protocol port | match | target | comment" ---- */

#define SEED_RULE "-d 192.0.2.1/32 -p tcp -m tcp --dport 22"
static const struct {
    const char *name, *words, *expected; /* words: what stands behind "[1:2] -A prometheus" */
} rules[] = {
    {"the seed's rule", " " SEED_RULE " -j RETURN", "seed 192.0.2.1/32 in tcp 22 |" SEED_RULE "|-j RETURN||"},
    {"no target", " " SEED_RULE, "seed~ 192.0.2.1/32 in tcp 22 |" SEED_RULE "|||"},
    {"a blank at the end, two in a row", "  -d 192.0.2.1/32  -p tcp -m tcp --dport 22 ",
     "seed~ 192.0.2.1/32 in tcp 22 |" SEED_RULE "|||"},
    {"a source", " -s 2001:db8::/32 -j ACCEPT", "seed 2001:db8::/32 out - - |-s 2001:db8::/32|-j ACCEPT||"},
    {"negations", " ! -s 192.0.2.0/24 -p udp -m udp ! --sport 1:2", "seed~ !192.0.2.0/24 out udp !1:2 |! -s 192.0.2.0/24 -p udp -m udp ! --sport 1:2|||"},
    {"a negated protocol", " ! -p tcp", "seed~ - none !tcp - |! -p tcp|||"},
    {"a list of ports", " -p tcp -m multiport --dports 80,443", "seed~ - in tcp 80,443 |-p tcp -m multiport --dports 80,443|||"},
    {"everything", "", "rule~ ||||"},
    {"only a target", " -j DROP", "rule ||-j DROP||"},
    {"both sides", " -s 192.0.2.1/32 -d 192.0.2.2/32", "rule~ |-s 192.0.2.1/32 -d 192.0.2.2/32|||"},
    {"an address and the other side's port", " -s 192.0.2.1/32 -p tcp -m tcp --dport 1", "rule~ |-s 192.0.2.1/32 -p tcp -m tcp --dport 1|||"},
    {"two conditions on a port", " -p tcp -m tcp --dport 1 -m multiport --dports 1,2", "rule~ |-p tcp -m tcp --dport 1 -m multiport --dports 1,2|||"},
    {"either port", " -p tcp -m multiport --ports 1,2", "rule~ |-p tcp -m multiport --ports 1,2|||"},
    {"a fragment", " -s 192.0.2.1/32 -f", "rule~ |-s 192.0.2.1/32 -f|||"},
    {"an option without a value before the target", " -p tcp -m tcp --syn -j RETURN", "rule |-p tcp -m tcp --syn|-j RETURN||"},
    {"a match that needs no option", " -p tcp -m socket", "rule~ |-p tcp -m socket|||"},
    {"a jump may come back", " -p tcp -j other", "seed~ - none tcp - |-p tcp|-j other||"},
    {"goto does not", " -p tcp -g other", "seed - none tcp - |-p tcp|-g other||"},
    {"what a target's options say is no match", " -p tcp -j LOG --log-prefix \"-s 192.0.2.1 -j DROP\"",
     "seed~ - none tcp - |-p tcp|-j LOG --log-prefix \"-s 192.0.2.1 -j DROP\"||"},
    {"a comment goes its own way", " -p tcp -m comment --comment \"a \\\"b\\\" \\\\\" -j RETURN", "seed - none tcp - |-p tcp|-j RETURN|a \"b\" \\|"},
    {"two comments", " -m comment --comment a -p tcp -m comment --comment \"b c\"", "seed~ - none tcp - |-p tcp||a; b c|"},
    {"a comment like a rule", " -p tcp -m comment --comment \"x\n[9:9] -A prometheus -p udp\nCOMMIT\n*nat\"",
     "seed~ - none tcp - |-p tcp||x\n[9:9] -A prometheus -p udp\nCOMMIT\n*nat|"},
    {"a comment like an option", " -p tcp -m comment --comment -i -m comment --comment \"a\n\"", "seed~ - none tcp - |-p tcp||-i; a\n|"},
    {"an interface with a blank", " -i a b -p tcp", "rule~ |-i a b -p tcp|||"},
    {"an interface with a quote", " -i \"a -p tcp -m comment --comment \"x y\"", "rule~ |-i \"a -p tcp||x y|"},
    {"an interface with a quote after a blank", " -i a \"b -p tcp", "rule~ |-i a \"b -p tcp|||"},
    {"a set's name with a quote", " -m set --match-set \"x src -j RETURN", "rule |-m set --match-set \"x src|-j RETURN||"},
    {"a label with a blank and a quote", " -j IDLETIMER --timeout 5 --label a \"b", "rule~ ||-j IDLETIMER --timeout 5 --label a \"b||"},
    {"a label that is all quote", " -j TEE --gateway 192.0.2.1 --oif \"x", "rule~ ||-j TEE --gateway 192.0.2.1 --oif \"x||"},
    {"a label like a comment", " -j IDLETIMER --timeout 5 --label --comment \"", "rule~ ||-j IDLETIMER --timeout 5 --label --comment \"||"},
    {"a set's name like a comment", " -p tcp -m set --match-set a --comment \" src", "rule~ |-p tcp -m set --match-set a --comment \" src|||"},
    {"an empty comment before another", " -p tcp -m comment --comment \"\" -m comment --comment x", "seed~ - none tcp - |-p tcp||; x|"},
    {"an interface like a jump", " -i -j -p tcp -m comment --comment \"x y\" -j DROP", "rule |-i -j -p tcp|-j DROP|x y|"},
    {"a target with a quote", " -j \"x", "rule~ ||-j \"x||"},
};

static struct ruleset rs;
static const struct text chains[] = {TEXT("prometheus"), TEXT("a\"]b")};

/* Everything that is read of output, given in pieces of at most `step` bytes, as one string. */
static void read_all(const char *output, size_t len, size_t step, char *got, size_t size) {
    size_t at = 0, room, used = 0;
    struct rule r;
    ruleset_begin(&rs, "filter", chains, strstr(output, "a\"]b") ? 2 : 1);
    got[0] = '\0';
    for (;;) {
        enum item item = ruleset_next(&rs, &r);
        if (item == ITEM_MORE) {
            char *to = ruleset_room(&rs, &room);
            size_t n = len - at < step ? len - at : step;
            memcpy(to, output + at, n < room ? n : room);
            at += n < room ? n : room;
            ruleset_fed(&rs, n < room ? n : room);
            continue;
        }
        if (item == ITEM_END || item == ITEM_ERROR) {
            snprintf(got + used, size - used, "%s", item == ITEM_END ? "end" : rs.error);
            return;
        }
        static const char *const directions[] = {"none", "in", "out"};
        const struct value *v[] = {&r.address, &r.protocol, &r.port};
        char fields[3][100] = {"-", "-", "-"}, labels[400] = "";
        for (int i = 0; i < 3; i++)
            if (v[i]->text.len)
                snprintf(fields[i], sizeof fields[i], "%s%.*s", v[i]->negated ? "!" : "", (int)v[i]->text.len, v[i]->text.at);
        if (r.expressible)
            snprintf(labels, sizeof labels, "%s %s %s %s ", fields[0], directions[r.direction], fields[1], fields[2]);
        used += (size_t)snprintf(got + used, size - used, "%s%s %llu:%llu %s|%.*s|%.*s|%.*s| ",
                                 item == ITEM_POLICY ? "policy" : r.expressible ? "seed" : "rule",
                                 item == ITEM_RULE && !r.terminal ? "~" : "", (unsigned long long)r.packets,
                                 (unsigned long long)r.bytes, labels, (int)r.match.len, r.match.at, (int)r.target.len, r.target.at,
                                 (int)r.comment.len, r.comment.at);
        if (used >= size) return;
    }
}

static void test_rule(const char *name, const char *words, const char *expected) {
    char output[2000], got[2000], want[2000], whole[300];
    int len = snprintf(output, sizeof output, "# Generated by x\n*filter\n:prometheus - [0:0]\n[1:2] -A prometheus%s\n"
                                              "[3:4] -A prometheus -p udp\nCOMMIT\n", words);
    int kind = (int)strcspn(expected, " ");
    snprintf(want, sizeof want, "%.*s 1:2 %s seed~ 3:4 - none udp - |-p udp||| end", kind, expected, expected + kind + 1);
    read_all(output, (size_t)len, (size_t)len, got, sizeof got);
    is(got, want, name);
    for (size_t step = 1; step < 8; step++) {
        read_all(output, (size_t)len, step, got, sizeof got);
        if (strcmp(got, want) != 0) break;
    }
    snprintf(whole, sizeof whole, "... the same in pieces of 1 to 7 bytes: %s", name);
    is(got, want, whole);
}

/* ---- whole outputs ---- */

#define HEAD "# Generated by iptables-save v1.8.9 (nf_tables) on Mon\n*filter\n"
static const struct {
    const char *name, *output, *expected;
} outputs[] = {
    {"an empty chain", HEAD ":prometheus - [0:0]\nCOMMIT\n# Completed\n", "end"},
    {"2^64-1", HEAD ":prometheus - [0:0]\n[18446744073709551615:0] -A prometheus\nCOMMIT\n", "rule~ 18446744073709551615:0 |||| end"},
    {"2^64", HEAD ":prometheus - [0:0]\n[0:18446744073709551616] -A prometheus\nCOMMIT\n",
     "a counter of 2^64 or more: [0:18446744073709551616] -A prometheus"},
    {"2^64 in another chain", HEAD ":prometheus - [0:0]\n[0:18446744073709551616] -A x\nCOMMIT\n", "end"},
    {"other chains, whatever they hold",
     HEAD ":x - [0:0]\n:prometheus - [0:0]\n[1:1] -A x -m comment --comment \"\n[1:1] -A prometheus\n\"\n[1:1] -A prometheus2\nCOMMIT\n", "end"},
    {"a policy", "*filter\n:prometheus DROP [5:6]\nCOMMIT\n", "policy 5:6 ||DROP|| end"},
    {"a chain's name with a quote and a bracket", "*filter\n:a\"]b - [0:0]\n:prometheus - [0:0]\n[1:2] -A a\"]b -p tcp\nCOMMIT\n",
     "seed~ 1:2 - none tcp - |-p tcp||| end"},
    {"other tables", "*nat\n:prometheus - [0:0]\n[1:2] -A prometheus\nCOMMIT\n*filter\n:prometheus - [0:0]\nCOMMIT\n", "end"},
    {"no output", "", "the table was not printed"},
    {"the table is native", "# Table `filter' is incompatible, use 'nft' tool.\n", "# Table `filter' is incompatible, use 'nft' tool."},
    {"another table only", "*nat\nCOMMIT\n", "the table was not printed"},
    {"no COMMIT", HEAD ":prometheus - [0:0]\n", "the output ends before COMMIT"},
    {"no chain", HEAD "COMMIT\n", "no chain prometheus"},
    {"cut in a counter", HEAD ":prometheus - [0:0]\n[12", "the output ends inside a line: [12"},
    {"cut in a comment", HEAD ":prometheus - [0:0]\n[1:2] -A prometheus -m comment --comment \"x\nCOMMIT\n",
     "the output ends inside a line: [1:2] -A prometheus -m comment --comment \"x\nCOMMIT\n"},
    {"a quote closed in a word", HEAD "[1:2] -A x -m comment --comment \"a\"b\nCOMMIT\n", "quotes not understood: [1:2] -A x -m comment --comment \"a\"b\nCOMMIT\n"},
    {"no counters", HEAD ":prometheus - [0:0]\n-A prometheus\nCOMMIT\n", "unexpected line: -A prometheus"},
    {"a negative counter", HEAD ":prometheus - [0:0]\n[-1:2] -A prometheus\nCOMMIT\n", "rule not understood: [-1:2] -A prometheus"},
    {"a chain twice", HEAD ":prometheus - [0:0]\n:prometheus - [0:0]\nCOMMIT\n", "chain not understood: :prometheus - [0:0]"},
    {"a table twice", "*filter\n:prometheus - [0:0]\nCOMMIT\n*filter\nCOMMIT\n", "the table comes twice: *filter"},
    {"the tail of a raw name with a newline", HEAD ":prometheus - [0:0]\n[0:0] -A prometheus --match-set x\n[9:9] -A prometheus src\nCOMMIT\n",
     "rule~ 0:0 |--match-set x||| rule not understood: [9:9] -A prometheus src"},
    {"a policy without counters", "*filter\n:prometheus ACCEPT\nCOMMIT\n", "chain not understood: :prometheus ACCEPT"},
    {"garbage", "hello\n", "unexpected line: hello"},
};

int main(void) {
    char got[4000];
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
        test_request(requests[i].name, requests[i].request, strlen(requests[i].request), requests[i].expected);
    test_limits();
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) test_rule(rules[i].name, rules[i].words, rules[i].expected);
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        read_all(outputs[i].output, strlen(outputs[i].output), 4096, got, sizeof got);
        is(got, outputs[i].expected, outputs[i].name);
    }
    static char line[RULE_LINE_MAX + 1001];
    int n = snprintf(line, sizeof line, HEAD ":prometheus - [0:0]\n[1:2] -A prometheus ");
    memset(line + n, 'x', sizeof line - 1 - (size_t)n);
    read_all(line, sizeof line - 1, sizeof line, got, sizeof got);
    ok(strncmp(got, "a line without end: [1:2]", 25) == 0, "a line without end is an error, not memory", got, "a line without end");
    read_all(HEAD "COMMIT\n", strlen(HEAD "COMMIT\n"), 4096, got, sizeof got);
    is(rs.nft ? "nft" : "legacy", "nft", "the header names the backend");
    is(rs.missing.len ? rs.missing.at : "", "prometheus", "a missing chain is named");
    printf("1..%d\n", tests);
    return failures != 0;
}
