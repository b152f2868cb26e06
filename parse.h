/* parse.h - everything that nfprom understands of the bytes that come from outside.
 *
 * Two grammars: an HTTP/1.x request (RFC 9110, RFC 9112), and what `iptables-save -c` or
 * `iptables -v -S CHAIN` prints (iptables' xshared.c and the save functions of its
 * extensions). Pure functions: no I/O, no allocation, no globals, no exit. */
#ifndef NFPROM_PARSE_H
#define NFPROM_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A run of bytes inside a buffer of somebody else's: not terminated, never to be freed.
 */
struct text {
    const char *at;
    size_t len;
};

/* The text of a string literal. */
#define TEXT(literal)                                                                    \
    { (literal), sizeof(literal) - 1 }

/* Whether t holds exactly the bytes of the string s. (Inline: the length of a literal is
 * known where it is compiled.) */
static inline bool text_is(struct text t, const char *s) {
    return t.len == strlen(s) && memcmp(t.at, s, t.len) == 0;
}

/* ---- the request
 * -------------------------------------------------------------------------------------------
 */

enum {
    REQUEST_LINE_MAX = 8 * 1024, /* bytes without the line end; longer: 414 */
    HEADERS_MAX =
        16 * 1024, /* bytes of all header lines with their line ends; more: 431 */
    HEADER_LINES_MAX = 100, /* more: 431 */
    REQUEST_MAX =
        2 * REQUEST_LINE_MAX + HEADERS_MAX + 8 /* what a reader must be able to hold */
};

/* How much a client wants one media type: the quality in thousandths that the most
 * precise of its media ranges gives it (RFC 9110 section 12.5.1). Precision 0: none does,
 * and the quality is 0. */
struct preference {
    int precision, quality;
};

struct request {
    struct text method;
    struct text path; /* without query, scheme and authority; "*" and CONNECT's host as
                         they are */
    long scrape_timeout_ms; /* X-Prometheus-Scrape-Timeout-Seconds in milliseconds, -1
                               without a usable one */
    struct preference openmetrics,
        text; /* application/openmetrics-text version 1.0.0, text/plain version 0.0.4 */
};

/* Reads the request in the first len bytes of buf. Returns 0 if it is not complete yet
 * (call again with more; nothing is kept between calls), 200 if it is, or the status it
 * deserves at once: 400, 414, 431, 505 (RFC 9112 sections 2 to 5). What follows the blank
 * line is not looked at. The texts point into buf; they are set as far as the parser got.
 */
int request_parse(const char *buf, size_t len, struct request *req);

/* ---- the ruleset
 * -------------------------------------------------------------------------------------------
 */

enum {
    /* A legacy rule holds at most 64 KiB of matches; what prints longest is bpf's
     * bytecode, 8 bytes of it as 25. Nothing that iptables-save prints on one line comes
     * near 512 KiB. */
    RULE_LINE_MAX = 512 * 1024,
    READ_SIZE = 64 * 1024, /* least room that ruleset_room() gives */
    CHAINS_MAX = 64,
    CHAIN_NAME_MAX = 28 /* bytes, netfilter's XT_EXTENSION_MAXNAMELEN less the NUL */
};

enum direction {
    DIRECTION_NONE,
    DIRECTION_IN,
    DIRECTION_OUT
};

/* What one option of a rule says: the value as printed (len 0: the option is not there).
 */
struct value {
    struct text text;
    bool negated;
};

/* A rule of a wanted chain, or the policy of one. The texts point into the ruleset and
 * live until the next call on it. */
struct rule {
    size_t chain; /* index into the chains asked for */
    uint64_t packets, bytes;
    bool expressible; /* the five fields below say all that the rule matches */
    bool terminal;    /* the target ends the traversal of this chain for the packet */
    enum direction direction;
    struct value address, protocol, port;
    struct text match;   /* as printed, comments cut out, blanks squeezed; empty if it
                            matches all */
    struct text target;  /* from -j or -g on; empty if none; of a policy, its name */
    struct text comment; /* unquoted, several joined by "; " */
};

enum item {
    ITEM_MORE,   /* feed more */
    ITEM_RULE,   /* a rule is in *rule */
    ITEM_POLICY, /* a built-in chain: chain, packets, bytes and target are in *rule */
    ITEM_END,  /* read to the end: the table and its COMMIT, if a table is read, and every
                  chain were seen */
    ITEM_ERROR /* ruleset.error says why; nothing more will come */
};

/* The reader of one run of iptables. Bounded in size whatever the output holds; no
 * pointers to be freed. */
struct ruleset {
    const char *table; /* of the caller, as are the chains; both must outlive the reader.
                          NULL: lists of chains are read */
    const struct text *chains;
    size_t nchains;
    bool nft;            /* the header named the nf_tables backend */
    struct text missing; /* after ITEM_ERROR: the chain that was not found, else len 0 */
    char error[256];     /* after ITEM_ERROR: one line, may quote bytes of the output */
    char remark[160]; /* the last comment line before the table that is not the header */
    /* the rest is the reader's own */
    enum {
        OUTSIDE,
        INSIDE,
        ELSEWHERE
    } where;
    bool opened, ended;
    bool found[CHAINS_MAX];
    size_t start, len; /* the unread bytes: buf[start] to buf[len - 1] */
    char buf[RULE_LINE_MAX + READ_SIZE];
    char comment[RULE_LINE_MAX];
};

/* Makes *rs ready to report `chains` (1 to CHAINS_MAX names) out of `table` in the output
 * of iptables-save; or, with table NULL, out of what `iptables -v -S CHAIN` prints for
 * each of them, one after the other. */
void ruleset_begin(struct ruleset *rs, const char *table, const struct text *chains,
                   size_t nchains);

/* Where to put the next bytes of output, and in *room how many fit (READ_SIZE at least
 * after ITEM_MORE). */
char *ruleset_room(struct ruleset *rs, size_t *room);

/* Tells that n bytes were put there; 0 says that the output has ended. */
void ruleset_fed(struct ruleset *rs, size_t n);

/* The next thing of interest. Call until it returns ITEM_MORE, feed, and so on to
 * ITEM_END or ITEM_ERROR. Errors: a line that iptables does not print, a line over
 * RULE_LINE_MAX, an unclosed quote, a counter of a wanted chain that is not a number
 * below 2^64, a table or chain given twice; at the end a missing table, COMMIT or chain.
 */
enum item ruleset_next(struct ruleset *rs, struct rule *rule);

#endif
