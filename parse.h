/* parse.h - everything that nfprom understands of the bytes that come from outside.
 *
 * Three grammars: an HTTP/1.x request (RFC 9110, RFC 9112), what `iptables-save -c` or
 * `iptables -v -S CHAIN` prints (iptables' xshared.c and the save functions of its
 * extensions), and what the kernel says of a chain of nft (netlink(7)). No I/O, no
 * allocation, no global that can be written, no exit. */
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

/* Whether two texts hold the same bytes. (Inline: it is asked several times for a rule.
 * Texts of one length mostly differ in the last byte.) */
static inline bool same_text(struct text a, struct text b) {
    if (a.len != b.len)
        return false;
    if (a.len == 0)
        return true;
    return a.at[a.len - 1] == b.at[b.len - 1] && memcmp(a.at, b.at, a.len) == 0;
}

/* Whether t begins with the bytes of `start`. (Inline, and no memcmp: what is looked for is a
 * byte or three, and this is asked for each line.) */
static inline bool begins_with_text(struct text t, struct text start) {
    if (t.len < start.len)
        return false;
    for (size_t i = 0; i < start.len; i++) {
        if (t.at[i] != start.at[i])
            return false;
    }
    return true;
}

/* Takes one more word into a hash, which is 0 at first. */
static inline uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u; /* 2^64 over the golden ratio */
    return hash ^ hash >> 32;
}

/* ---- the request ----------------------------------------------------------------- */

enum {
    REQUEST_LINE_MAX = 8 * 1024, /* bytes without the line end; longer: 414 */
    HEADERS_MAX =
        16 * 1024, /* bytes of all header lines with their line ends; more: 431 */
    HEADER_LINES_MAX = 100, /* more: 431 */
    /* What a reader must be able to hold: empty lines, the request line, the headers, and
     * some line ends. */
    REQUEST_MAX = 2 * REQUEST_LINE_MAX + HEADERS_MAX + 8
};

/* How much a client wants one media type: the quality in thousandths that the most
 * precise of its media ranges gives it (RFC 9110 section 12.5.1). */
struct preference {
    enum precision {
        NOT_NAMED, /* no range is for this type, and the quality is 0 */
        ANY_TYPE,
        ANY_SUBTYPE,
        THIS_TYPE,
        THIS_VERSION
    } precision;
    int quality;
};

struct request {
    struct text method;
    /* Without query, scheme and authority; empty for "*" and for the host of CONNECT. */
    struct text path;
    struct text query; /* behind the first "?" of the target, as it came; empty if none */
    long scrape_timeout_ms; /* X-Prometheus-Scrape-Timeout-Seconds in milliseconds, -1
                               without a usable one */
    struct preference openmetrics; /* application/openmetrics-text version 1.0.0 */
    struct preference text;        /* text/plain version 0.0.4 */
    /* the rest is the parser's own */
    enum request_part {
        EMPTY_LINES, /* before the request */
        REQUEST_LINE,
        HEADER_LINES
    } part;            /* in which it is */
    size_t part_start; /* where that begins; three offsets in the buffer */
    size_t unread;     /* what stands before has been read */
    size_t searched;   /* no line end stands between `unread` and here */
    unsigned header_lines, hosts, lengths;
    bool needs_host;
    bool endless_body; /* its last transfer coding is not chunked */
};

/* Makes *req ready for a request of which nothing has come yet. */
void request_begin(struct request *req);

/* Reads on in a request whose first len bytes are in buf. Returns 0 if it is not complete
 * yet (call again with more behind them, in the same place; what was read is not read
 * again), 200 if it is, or the status it deserves at once: 400, 414, 431, 505 (RFC 9112
 * sections 2 to 6). What follows the blank line is not looked at. The texts point into
 * buf; they are set as far as the parser got. */
int request_parse(struct request *req, const char *buf, size_t len);

/* Finds the first parameter of that name in a query (NAME=VALUE, any more each behind a "&").
 * The value is written to `to`, which has query.len bytes: of each %HH the byte with that number,
 * NUL too; all else, and a "%" without two hexadecimal digits, as it stands (a "+" is a plus).
 * It may be empty, as that of a parameter without "=". Names are compared as they stand. False:
 * there is none. */
bool find_parameter(struct text query, const char *name, char *to, struct text *value);

/* One digit: 0 to 9. 0 also for anything else. */
int parse_seconds(struct text value);

/* ---- tags: what a comment calls its rule ------------------------------------------ */

/* iptables knows no names of services and hosts; a comment may give them to its rule:
 *
 *   comment  "nfprom(" TAG, any more each behind a ";", ")"   from its first byte to its last
 *   TAG      NAME "=" VALUE; blanks and tabs around both are cut
 *   NAME     [a-zA-Z_][a-zA-Z0-9_]*, not with "__" in front, no reserved one
 *   VALUE    any bytes but ";", at least one
 *
 * So a ")" may stand in a value, and a "=" too. The comments of a rule are read one by one, in
 * their order. All together may give TAGS_MAX tags and no name twice: the comment that goes
 * beyond that is refused, as a whole, and those before it count. */
enum {
    TAGS_MAX = 16
};

struct tag {
    struct text name, value;
};

/* Of a rule, in the order of its comments. */
struct tags {
    size_t count;
    struct tag list[TAGS_MAX];
};

/* Names that the caller keeps for itself. */
struct reserved {
    const struct text *names;
    size_t count;
};

/* What became of a comment. */
enum tag_error {
    TAGS_GOOD,
    TAGS_NONE,     /* it does not begin with "nfprom(": it is a plain comment */
    TAGS_NO_END,   /* the last byte is no ")": the kernel cuts comments at 255 bytes */
    TAG_NO_EQUALS, /* a tag has no "=", or is nothing at all */
    TAG_BAD_NAME,
    TAG_RESERVED,
    TAG_TWICE, /* the rule has a tag of that name, from this comment or one before it */
    TAG_NO_VALUE,
    TAGS_TOO_MANY
};

/* Reads one comment (any bytes, without the quotes of iptables), and adds its tags to those
 * of the comments before it. If it is refused, no tag is added; the error is that of the
 * first tag which has one. The texts of the tags point into the comment. */
enum tag_error read_tags(struct text comment, struct reserved reserved,
                         struct tags *tags);

/* Cuts what stands before the next separator, or all if there is none. (No memchr: it is a few
 * bytes, in which that takes twice as long.) */
static inline struct text cut_at(struct text *rest, char separator) {
    struct text cut = {rest->at, 0};
    while (cut.len < rest->len && rest->at[cut.len] != separator)
        cut.len++;
    size_t used = cut.len < rest->len ? cut.len + 1 : cut.len;
    rest->at += used;
    rest->len -= used;
    return cut;
}

/* Cuts the first tag off the tags of a rule (rule.tags, below). False if there is none left. */
static inline bool next_tag(struct text *rest, struct tag *tag) {
    if (rest->len == 0)
        return false;
    tag->name = cut_at(rest, '=');
    tag->value = cut_at(rest, ';');
    return true;
}

/* ---- the ruleset ----------------------------------------------------------------- */

enum {
    /* A legacy rule holds at most 64 KiB of matches. The longest print is that of bpf's
     * bytecode: 8 bytes become up to 25. No line comes near 512 KiB. */
    RULE_LINE_MAX = 512 * 1024,
    CHAINS_MAX = 64,
    CHAIN_NAME_MAX = 28 /* bytes, netfilter's XT_EXTENSION_MAXNAMELEN less the NUL */
};

enum dialect {
    DIALECT_SAVE, /* `iptables-save -c`: tables, with the counters in front of a rule */
    DIALECT_LIST  /* `iptables -v -S CHAIN`, once for each chain: counters before the
                     target */
};

/* What is looked for. The table, the chains and the reserved names are the caller's and must
 * outlive the reader. */
struct wanted {
    enum dialect dialect;
    const char *table; /* of DIALECT_SAVE: other tables are passed over */
    const struct text *chains;
    size_t nchains;           /* 1 to CHAINS_MAX */
    struct reserved reserved; /* which no tag may have */
};

/* What a reader works in: the caller's memory, in sizes that the caller chooses. */
struct ruleset_memory {
    size_t line_max; /* a line of that many bytes is an error */
    size_t room;     /* the least that ruleset_room() gives, 1 or more */
    char *lines;   /* line_max + room bytes: what was read, and rewritten in its place */
    char *comment; /* line_max bytes: the comments of a rule */
};

/* IN: the rule names a destination, address or port. OUT: it names a source. */
enum direction {
    DIRECTION_NONE,
    DIRECTION_IN,
    DIRECTION_OUT
};

/* What one option of a rule says: the value as printed. */
struct value {
    struct text text; /* empty: the option is not there */
    bool negated;
};

/* A rule of a wanted chain, or the policy of one. The texts point into the reader's
 * memory and live until the next call on it. */
struct rule {
    size_t chain; /* index into the chains asked for */
    uint64_t packets, bytes;
    struct text from;   /* ITEM_RULE, ITEM_JUMP: the name of the chain the rule is in */
    bool refers;        /* in a table: the rule jumps or goes to a wanted chain */
    size_t referred;    /* ... to this one */
    struct text words;  /* ITEM_JUMP: all behind -A; nothing below is set then */
    struct text policy; /* ITEM_POLICY: its name; nothing below is set then */
    struct text
        match; /* as printed, comments cut out, blanks squeezed; empty: matches all */
    struct text target;  /* from -j or -g on; empty if none */
    bool has_comment;    /* one that gives no tags; one that is empty is a comment too */
    struct text comment; /* unquoted, several joined by "; " */
    struct text tags;    /* NAME=VALUE;NAME=VALUE, sorted by the bytes of the names */
    unsigned refused_comments; /* begin with "nfprom(", and are among the comments */
    enum tag_error tag_error;  /* of the first of them, TAGS_GOOD without one */
    /* These three tell whether a packet can come to a later rule that matches the same. */
    bool terminal;    /* the target ends the traversal of this chain for the packet */
    bool rewrites;    /* a rule behind it may see another packet, or other marks on it */
    bool stable;      /* a packet that is not rewritten matches each time, or never */
    bool expressible; /* direction and the three values say all that the rule matches */
    /* Set only if it is expressible. The values are places inside the match. */
    enum direction direction;
    struct value address, protocol, port;
};

/* All texts are empty, all else is 0. */
extern const struct rule rule_of_nothing;

enum item {
    ITEM_MORE,   /* feed more */
    ITEM_RULE,   /* a rule is in *rule */
    ITEM_POLICY, /* a built-in chain: its policy and counters are in *rule */
    ITEM_JUMP,   /* in a table, a rule of another chain jumps or goes to a wanted one */
    ITEM_END,    /* read to the end: every chain was seen, and a table's COMMIT */
    ITEM_ERROR   /* ruleset.error says why; nothing more will come */
};

/* The reader of one run of iptables. It holds no pointers to be freed. */
struct ruleset {
    struct wanted wanted;
    struct ruleset_memory memory;
    bool opened;         /* the table, or a chain of a list, was seen */
    bool ended;          /* the output has ended */
    bool nft;            /* the line "# Generated by ..." named the nf_tables backend */
    bool changed;        /* after ITEM_ERROR: the ruleset changed while it was printed */
    struct text missing; /* after ITEM_ERROR: the chain that was not found, else empty */
    char error[256];     /* after ITEM_ERROR: one line, may quote bytes of the output */
    char remark[160];    /* the last other comment line before the table */
    /* the rest is the reader's own */
    enum place {      /* (a bit each, so that some can be named together) */
        OUTSIDE = 1,  /* of every table */
        INSIDE = 2,   /* the wanted table; in a list always */
        ELSEWHERE = 4 /* another table */
    } place;
    bool found[CHAINS_MAX];
    /* Known targets (parse.c) whose name a user's chain has: a bit each. */
    unsigned shadowed;
    size_t start, end; /* of the unread bytes in memory.lines */
};

/* Makes *rs ready to report what is wanted, in the memory given. */
void ruleset_begin(struct ruleset *rs, struct wanted wanted,
                   struct ruleset_memory memory);

/* Where to put the next bytes of output, and in *room how many fit. */
char *ruleset_room(struct ruleset *rs, size_t *room);

/* Tells that n bytes were put there; 0 says that the output has ended. */
void ruleset_fed(struct ruleset *rs, size_t n);

/* The next thing of interest. Call until it returns ITEM_MORE, feed, and so on to
 * ITEM_END or ITEM_ERROR. Errors: a line that iptables does not print, a line of line_max
 * bytes, an unclosed quote, a counter of a wanted chain that is not a number below 2^64,
 * a table or chain given twice; at the end a missing table, COMMIT or chain. */
enum item ruleset_next(struct ruleset *rs, struct rule *rule);

/* ---- what the kernel says of a chain of nft ---------------------------------------- */

/* Its messages: a head, then attributes, each a head and a value. The numbers and the layout are
 * those of <linux/netlink.h>, <linux/netfilter/nfnetlink.h> and
 * <linux/netfilter/nf_tables.h>, which not every libc has beside it. */
enum {
    NFTABLES = 10, /* NFNL_SUBSYS_NFTABLES: the upper byte of its messages' types */
    TYPE_NEW_CHAIN = NFTABLES << 8 | 3, /* NFT_MSG_* */
    TYPE_GET_CHAIN = NFTABLES << 8 | 4,
    TYPE_NEW_RULE = NFTABLES << 8 | 6,
    TYPE_GET_RULE = NFTABLES << 8 | 7,
    TYPE_NEW_GENERATION = NFTABLES << 8 | 15,
    TYPE_GET_GENERATION = NFTABLES << 8 | 16,
    TYPE_ERROR = 2, /* NLMSG_ERROR */
    TYPE_DONE = 3,  /* NLMSG_DONE: the end of a list */

    FLAG_REQUEST = 0x1,      /* NLM_F_* */
    FLAG_INTERRUPTED = 0x10, /* DUMP_INTR: the ruleset has changed since the list began */
    FLAG_DUMP = 0x300,       /* a list is wanted */

    ATTRIBUTE_TABLE = 1, /* NFTA_CHAIN_TABLE, NFTA_RULE_TABLE: the name */
    ATTRIBUTE_CHAIN_NAME = 3,
    ATTRIBUTE_CHAIN_USE = 6,
    ATTRIBUTE_RULE_CHAIN = 2, /* the name */
    ATTRIBUTE_RULE_HANDLE = 3,
    ATTRIBUTE_RULE_POSITION = 6, /* the handle of the rule before it */
    ATTRIBUTE_GENERATION_ID = 1,

    ATTRIBUTE_ALIGNED = 4 /* NLA_ALIGNTO */
};

/* nlmsghdr, and behind it nfgenmsg. (At the end of a list the error number of that stands in place
 * of nfgenmsg. It is as long.) */
struct netlink_head {
    uint32_t len; /* of the message */
    uint16_t type, flags;
    uint32_t sequence, port;
    uint8_t family, version;
    uint16_t resource;
};

struct attribute {
    uint16_t len, type; /* len: with this head, but without what aligns the next one */
};

/* The bytes that a message or an attribute takes up, if others follow. */
static inline size_t aligned(size_t len) {
    return (len + ATTRIBUTE_ALIGNED - 1) / ATTRIBUTE_ALIGNED * ATTRIBUTE_ALIGNED;
}

/* The rules of a chain, as the kernel lists them: each with its handle, a number that no other
 * rule of the table has, and that of the rule before it. So it is seen where rules are missing or
 * are there twice, but not if they are missing at the end. */
struct kernel_list {
    struct text table, chain; /* whose rules are listed: the caller's */
    bool ended;               /* nothing more will come */
    bool refused;             /* there is no right to see it, or no nf_tables. (Of a chain
                                 that is not there the list is empty.) */
    /* Rules may be missing or be there twice: a rule is not behind the one that it names, or
     * something in any table has changed since the list began. */
    bool disturbed;
    uint32_t rules;
    uint64_t handles; /* a hash of theirs, in their order */
    uint64_t last;    /* handle, 0 at first */
};

/* Makes *list ready for the list of that chain. */
void kernel_list_begin(struct kernel_list *list, struct text table, struct text chain);

/* Takes the messages that came at once, as the answer to NFT_MSG_GETRULE with NLM_F_DUMP. Rules
 * of other chains are passed over (old kernels list them, too), and so is what is no message. */
void kernel_list_take(struct kernel_list *list, struct text messages);

/* Of the answer to NFT_MSG_GETCHAIN: how many rules the chain has and how many jumps to it there
 * are, together. 0: it does not say. */
uint32_t kernel_uses(struct text answer);

/* Of the answer to NFT_MSG_GETGEN: the number of the ruleset as it is, of all tables together. Each
 * change makes it another one, as soon as its rules count; for a moment after that the kernel is
 * still taking the old ones out of its lists, so a list made then may lack rules. Rules that are
 * only checked, or refused, do not change it. 0: it does not say. */
uint32_t kernel_generation(struct text answer);

#endif
