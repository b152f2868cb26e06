/* parse.c - the grammars of parse.h. */
#include "parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define DIGITS "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

/* (Most that are of one length differ in the last byte.) */
static bool same(struct text a, struct text b) {
    return a.len == b.len && (a.len == 0 || (a.at[a.len - 1] == b.at[b.len - 1] &&
                                             memcmp(a.at, b.at, a.len) == 0));
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static struct text between(const char *from, const char *to) {
    return (struct text){from, (size_t)(to - from)};
}

/* ---- the request
 * ----------------------------------------------------------------------------------------
 */

static const char token_chars[] =
    "!#$%&'*+-.^_`|~" DIGITS LETTERS; /* RFC 9110 section 5.6.2 */
static const char host_chars[] =
    "!$&'()*+,;=:[]%-._~" DIGITS LETTERS; /* RFC 3986 sections 3.2.2, 3.2.3 */
static const char target_chars[] =
    "/?#@\"<>\\^`{|}!$&'()*+,;=:[]%-._~" DIGITS LETTERS; /* all that is visible */

static bool consists_of(struct text t, const char *set) {
    for (size_t i = 0; i < t.len; i++)
        if (t.at[i] == '\0' || !strchr(set, t.at[i]))
            return false;
    return true;
}

/* Cuts the line at *pos, without its line end (CRLF, or LF alone, RFC 9112 section 2.2).
 * False if it has no end yet. */
static bool cut_line(const char **pos, const char *end, struct text *line) {
    const char *lf = memchr(*pos, '\n', (size_t)(end - *pos));
    if (!lf)
        return false;
    *line = between(*pos, lf > *pos && lf[-1] == '\r' ? lf - 1 : lf);
    *pos = lf + 1;
    return true;
}

/* The path of a target in origin-form or absolute-form, RFC 9112 section 3.2. The forms
 * of OPTIONS and CONNECT pass. */
static bool find_path(struct text target, struct request *req) {
    const char *at = target.at, *end = at + target.len;
    size_t scheme = target.len >= 7 && strncasecmp(at, "http://", 7) == 0 ? 7 : 0;
    if (target.len >= 8 && strncasecmp(at, "https://", 8) == 0)
        scheme = 8;
    if (scheme)
        for (at += scheme; at < end && *at != '/' && *at != '?'; at++)
            ;
    else if (*at != '/')
        return text_is(target, "*") || text_is(req->method, "CONNECT");
    const char *query = memchr(at, '?', (size_t)(end - at));
    req->path = between(at, query ? query : end);
    if (req->path.len == 0)
        req->path = (struct text){"/", 1};
    return true;
}

/* request-line = method SP request-target SP HTTP-version (RFC 9112 section 3). */
static int parse_request_line(struct text line, struct request *req, bool *needs_host) {
    const char *end = line.at + line.len, *sp1 = memchr(line.at, ' ', line.len);
    const char *sp2 = sp1 ? memchr(sp1 + 1, ' ', (size_t)(end - sp1 - 1)) : NULL;
    if (!sp2 || sp2 == sp1 + 1)
        return 400;
    struct text target = between(sp1 + 1, sp2), version = between(sp2 + 1, end);
    req->method = between(line.at, sp1);
    if (!consists_of(req->method, token_chars) || !consists_of(target, target_chars) ||
        version.len < 6 || memcmp(version.at, "HTTP/", 5) != 0 ||
        !consists_of(between(version.at + 5, end), "." DIGITS))
        return 400;
    if (version.at[5] != '1' || (version.len > 6 && is_digit(version.at[6])))
        return 505;
    if (version.len != 8 || version.at[6] != '.' || version.at[7] == '.')
        return 400;
    *needs_host = version.at[7] != '0';
    return find_path(target, req) ? 200 : 400;
}

static struct text trim(struct text t) {
    const char *at = t.at, *end = at + t.len;
    while (at < end && (*at == ' ' || *at == '\t'))
        at++;
    while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    return between(at, end);
}

static bool is_word(struct text t, const char *word) {
    return t.len == strlen(word) && strncasecmp(t.at, word, t.len) == 0;
}

/* Cuts what stands before the next `separator` that is not in a quoted string; false
 * after the last. */
static bool cut_element(struct text *rest, char separator, struct text *element) {
    const char *at = rest->at, *end = at ? at + rest->len : NULL;
    if (!at)
        return false;
    for (bool quoted = false; at < end && (quoted || *at != separator); at++) {
        quoted = quoted != (*at == '"');
        at += quoted && *at == '\\' && end - at > 1;
    }
    *element = trim(between(rest->at, at));
    *rest = at < end ? between(at + 1, end) : (struct text){NULL, 0};
    return true;
}

/* A quality in thousandths, RFC 9110 section 12.4.2; -1 if it is none. */
static int parse_quality(struct text t) {
    int quality = 0, unit = 1000;
    if (t.len < 1 || t.len > 5 || (t.len > 1 && t.at[1] != '.'))
        return -1;
    for (size_t i = 0; i < t.len; i += i == 0 ? 2 : 1, unit /= 10) {
        if (!is_digit(t.at[i]))
            return -1;
        quality += (t.at[i] - '0') * unit;
    }
    return quality <= 1000 ? quality : -1;
}

/* One media range of Accept, as in `text/plain;version=0.0.4;q=0.5`, for one type that
 * can be sent. Other parameters (charset, escaping) say nothing that parts those types.
 */
static void weigh(struct text range, const char *all, const char *type,
                  const char *version, struct preference *preference) {
    struct text element, nothing = {"", 0}, name = nothing;
    int quality = 1000, precision = 0;
    cut_element(&range, ';', &name);
    precision = is_word(name, "*/*")  ? 1
                : is_word(name, all)  ? 2
                : is_word(name, type) ? 3
                                      : 0;
    while (cut_element(&range, ';', &element)) {
        const char *equals = memchr(element.at, '=', element.len);
        struct text key = equals ? between(element.at, equals) : nothing;
        struct text value =
            equals ? between(equals + 1, element.at + element.len) : nothing;
        if (value.len >= 2 && *value.at == '"')
            value = (struct text){value.at + 1, value.len - 2};
        if (is_word(key, "q"))
            quality = parse_quality(value);
        if (is_word(key, "version"))
            precision = precision == 3 && is_word(value, version) ? 4 : 0;
    }
    if (quality < 0 || precision == 0 || precision < preference->precision)
        return;
    if (precision > preference->precision || quality > preference->quality)
        *preference = (struct preference){precision, quality};
}

static void parse_accept(struct text value, struct request *req) {
    struct text range;
    while (cut_element(&value, ',', &range)) {
        weigh(range, "application/*", "application/openmetrics-text", "1.0.0",
              &req->openmetrics);
        weigh(range, "text/*", "text/plain", "0.0.4", &req->text);
    }
}

static void parse_scrape_timeout(struct text value, struct request *req) {
    if (value.len == 0 || !consists_of(value, "." DIGITS))
        return;
    char *stop;
    double seconds = strtod(value.at, &stop); /* it stops at the line end */
    long ms = seconds < 86400 ? (long)(seconds * 1000) : 86400000;
    if (stop == value.at + value.len &&
        (req->scrape_timeout_ms < 0 || ms < req->scrape_timeout_ms))
        req->scrape_timeout_ms = ms;
}

/* field-line = field-name ":" OWS field-value OWS (RFC 9112 section 5): no folding, no
 * blank before the colon. */
static bool parse_header(struct text line, struct request *req, unsigned *hosts) {
    const char *colon = memchr(line.at, ':', line.len);
    if (!colon || colon == line.at || !consists_of(between(line.at, colon), token_chars))
        return false;
    struct text name = between(line.at, colon),
                value = trim(between(colon + 1, line.at + line.len));
    for (size_t i = 0; i < value.len; i++)
        if (((unsigned char)value.at[i] < ' ' && value.at[i] != '\t') ||
            value.at[i] == 0x7f)
            return false;
    if (is_word(name, "Host")) {
        ++*hosts;
        return consists_of(value, host_chars);
    }
    if (is_word(name, "Accept"))
        parse_accept(value, req);
    if (is_word(name, "X-Prometheus-Scrape-Timeout-Seconds"))
        parse_scrape_timeout(value, req);
    return true;
}

static int parse_headers(const char *pos, const char *end, struct request *req,
                         bool needs_host) {
    const char *start = pos;
    unsigned hosts = 0;
    struct text line;
    for (unsigned lines = 0; cut_line(&pos, end, &line); lines++) {
        if (line.len == 0)
            return hosts > 1 || (needs_host && hosts == 0) ? 400 : 200;
        if (pos - start > HEADERS_MAX || lines == HEADER_LINES_MAX)
            return 431;
        if (!parse_header(line, req, &hosts))
            return 400;
    }
    return end - start > HEADERS_MAX + 1 ? 431 : 0;
}

int request_parse(const char *buf, size_t len, struct request *req) {
    const char *pos = buf, *end = buf + len;
    struct text line;
    bool needs_host = false;
    *req =
        (struct request){.method = {buf, 0}, .path = {buf, 0}, .scrape_timeout_ms = -1};
    while (pos < end &&
           (*pos == '\r' ||
            *pos == '\n')) /* empty lines before a request, RFC 9112 section 2.2 */
        pos++;
    if (pos - buf > REQUEST_LINE_MAX)
        return 414;
    if (pos < end && !consists_of((struct text){pos, 1}, token_chars))
        return 400; /* a TLS handshake, say, would wait for our answer without ever ending
                       its line */
    const char *start = pos;
    bool whole = cut_line(&pos, end, &line);
    if (whole ? line.len > REQUEST_LINE_MAX : end - start > REQUEST_LINE_MAX + 1)
        return 414;
    int status = whole ? parse_request_line(line, req, &needs_host) : 0;
    return status == 200 ? parse_headers(pos, end, req, needs_host) : status;
}

/* ---- the words of a rule
 * -------------------------------------------------------------------------------- */

/* A rule is a row of words parted by blanks. The value of an option that iptables prints
 * as a string begins with a double quote, if it is not bare, and reaches to the next one;
 * a backslash takes the next byte as it is, and newlines may be inside. Nowhere else does
 * a quote mean anything: names (interfaces, sets, chains, labels) are printed raw, may
 * begin with one, or look like an option. Only inside a quoted word is a newline not the
 * end of the rule. */
struct words {
    const char *at, *end;
    enum {
        ANY,
        NAME,
        STRING
    } next; /* what the next word is as the value of this one: a raw name, a string */
    int comment; /* how much of `-m comment` was just read, 0 to 2 words: only behind both
                    is `--comment` the option */
};

enum word {
    WORD,
    WORD_LINE_END,
    WORD_NO_MORE,
    WORD_BAD
};

static bool one_of(struct text word, const struct text *names) {
    while (names->len > 0 && !same(word, *names))
        names++;
    return names->len > 0;
}

/* clang-format off */
static const struct text string_options[] = {
    TEXT("--comment"), TEXT("--log-prefix"), TEXT("--nflog-prefix"), TEXT("--ulog-prefix"), TEXT("--string"), TEXT("--hex-string"),
    TEXT("--helper"), TEXT("--u32"), TEXT("--bytecode"), TEXT("--path"), TEXT("--led-trigger-id"), {NULL, 0}};

static const struct text short_names[] = {TEXT("-i"), TEXT("-o"), {NULL, 0}};

static const struct text long_names[] = {
    TEXT("--match-set"), TEXT("--name"), TEXT("--hashlimit-name"), TEXT("--physdev-in"),
    TEXT("--physdev-out"), TEXT("--genre"), TEXT("--nfacct-name"), TEXT("--rateest"), TEXT("--rateest1"), TEXT("--rateest2"),
    TEXT("--object-pinned"), {NULL, 0}};
/* clang-format on */

/* The options that the five labels can say. */
static const struct side {
    struct text name;
    enum direction direction;
    bool port;
} sides[] = {{TEXT("-p"), DIRECTION_NONE, false},
             {TEXT("-s"), DIRECTION_OUT, false},
             {TEXT("-d"), DIRECTION_IN, false},
             {TEXT("--sport"), DIRECTION_OUT, true},
             {TEXT("--sports"), DIRECTION_OUT, true},
             {TEXT("--dport"), DIRECTION_IN, true},
             {TEXT("--dports"), DIRECTION_IN, true}};

static const struct side *find_side(struct text option) {
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++)
        if (same(option, sides[i].name))
            return &sides[i];
    return NULL;
}

/* The quote that ends the string at p, NULL if there is none. */
static const char *string_end(const char *p, const char *end) {
    const char *quote = memchr(p, '"', (size_t)(end - p)), *slash;
    while (quote && (slash = memchr(p, '\\', (size_t)(quote - p)))) {
        p = slash + 2; /* at most one behind the quote */
        if (quote < p)
            quote = memchr(p, '"', (size_t)(end - p));
    }
    return quote;
}

static enum word next_word(struct words *w, struct text *word) {
    while (w->at < w->end && *w->at == ' ')
        w->at++;
    const char *p = w->at, *end = w->end, *to = p;
    if (p == end)
        return WORD_NO_MORE;
    if (*p == '\n')
        return WORD_LINE_END;
    if (w->next == STRING && *p == '"') {
        to = string_end(p + 1, end);
        if (!to)
            return WORD_NO_MORE;
        if (++to < end && *to != ' ' && *to != '\n')
            return WORD_BAD;
    } else {
        while (to < end && *to != ' ' && *to != '\n')
            to++;
    }
    *word = between(p, to);
    w->at = to;
    bool option =
        w->next == ANY && *p == '-' && (w->comment == 2 || !text_is(*word, "--comment"));
    if (!option || find_side(*word)) /* most words, most options */
        w->next = ANY;
    else if (word->len > 2)
        w->next = one_of(*word, string_options) ? STRING
                  : one_of(*word, long_names)   ? NAME
                                                : ANY;
    else
        w->next = one_of(*word, short_names) ? NAME : ANY;
    w->comment = text_is(*word, "-m")                           ? 1
                 : w->comment == 1 && text_is(*word, "comment") ? 2
                                                                : 0;
    return WORD;
}

/* ---- lines
 * ----------------------------------------------------------------------------------------------
 */

/* Two numbers at *p, each behind its byte of `marks`: "[packets:bytes" for "[:". Moves *p
 * behind them. A number of 2^64 or more makes *overflow true. */
static bool parse_counters(const char **p, const char *end, const char *marks,
                           struct rule *rule, bool *overflow) {
    const char *at = *p;
    *overflow = false;
    for (int i = 0; i < 2; i++) {
        if (at == end || *at++ != marks[i])
            return false;
        const char *digits = at;
        uint64_t n = 0;
        for (; at < end && is_digit(*at); at++) {
            unsigned digit = (unsigned)(*at - '0');
            *overflow = *overflow || n > (UINT64_MAX - digit) / 10;
            n = n * 10 + digit;
        }
        if (at == digits)
            return false;
        *(i == 0 ? &rule->packets : &rule->bytes) = n;
    }
    *p = at;
    return true;
}

static bool begins(const char *p, const char *end, const char *s) {
    return (size_t)(end - p) >= strlen(s) && memcmp(p, s, strlen(s)) == 0;
}

/* The beginning of a rule, "[packets:bytes] -A CHAIN", or in a list "-A CHAIN" alone. A
 * chain's name ends at a blank; any other byte may be in it. */
static bool rule_head(struct text line, bool list, struct rule *rule, bool *overflow,
                      struct text *chain) {
    const char *p = line.at, *end = p + line.len, *start = list ? "-A " : "] -A ";
    *overflow = false;
    if ((!list && !parse_counters(&p, end, "[:", rule, overflow)) ||
        !begins(p, end, start))
        return false;
    const char *name = p += strlen(start);
    while (p < end && *p != ' ' && *p != '\n')
        p++;
    *chain = between(name, p);
    return p > name;
}

enum {
    LINE_INCOMPLETE = -1,
    LINE_BAD = -2
};

/* The length of the line at p without its newline. */
static long line_length(const char *p, const char *end, bool list) {
    const char *lf = memchr(p, '\n', (size_t)(end - p)), *stop = lf ? lf : end;
    struct rule rule;
    bool overflow;
    struct text chain, word;
    if (*p == (list ? '-' : '[') && memchr(p, '"', (size_t)(stop - p)) &&
        rule_head(between(p, stop), list, &rule, &overflow, &chain)) {
        struct words w = {chain.at + chain.len, end, ANY, 0};
        enum word kind;
        while ((kind = next_word(&w, &word)) == WORD)
            ;
        if (kind == WORD_BAD)
            return LINE_BAD;
        lf = kind == WORD_LINE_END ? w.at : NULL;
    }
    return lf ? (long)(lf - p) : LINE_INCOMPLETE;
}

/* ---- a rule
 * ---------------------------------------------------------------------------------------------
 */

/* Matches that only load: what they match is said by their own options, or by -p alone.
 * (`-m socket`, IPv6's `-m ah` and others are conditions even without an option.) */
static const struct text loaders[] = {TEXT("tcp"),  TEXT("udp"),   TEXT("udplite"),
                                      TEXT("sctp"), TEXT("dccp"),  TEXT("multiport"),
                                      TEXT("icmp"), TEXT("icmp6"), TEXT("esp"),
                                      {NULL, 0}};

/* Targets after which a packet does not come to the next rule of the chain; -g leaves it
 * too. A jump to a user's chain may return, and what is not listed (LOG, MARK, CT, ...)
 * continues. */
static const struct text terminal_targets[] = {TEXT("ACCEPT"),     TEXT("DROP"),
                                               TEXT("REJECT"),     TEXT("RETURN"),
                                               TEXT("QUEUE"),      TEXT("NFQUEUE"),
                                               TEXT("SNAT"),       TEXT("DNAT"),
                                               TEXT("MASQUERADE"), TEXT("REDIRECT"),
                                               TEXT("NETMAP"),     TEXT("TPROXY"),
                                               TEXT("SYNPROXY"),   TEXT("TARPIT"),
                                               {NULL, 0}};

/* Puts an option into its field. False if it is there already, or if it names the other
 * side than the one before. */
static bool take_option(struct rule *rule, const struct side *side, struct value value) {
    bool is_protocol = side->direction == DIRECTION_NONE;
    struct value *field = is_protocol  ? &rule->protocol
                          : side->port ? &rule->port
                                       : &rule->address;
    if (field->text.len > 0 || (!is_protocol && rule->direction != DIRECTION_NONE &&
                                rule->direction != side->direction))
        return false;
    *field = value;
    if (!is_protocol)
        rule->direction = side->direction;
    return true;
}

/* Appends a comment, without its quotes and the backslashes in them. */
static void take_comment(struct ruleset *rs, struct rule *rule, struct text word) {
    char *to = rs->comment + rule->comment.len;
    const char *p = word.at, *end = p + word.len;
    bool quoted = word.len >= 2 && *p == '"';
    for (const char *joint = rule->comment.at ? "; " : ""; *joint; joint++)
        *to++ = *joint;
    for (p += quoted, end -= quoted; p < end;) {
        p += quoted && *p == '\\'; /* what is behind it stands for itself */
        const char *slash = quoted ? memchr(p + 1, '\\', (size_t)(end - p - 1)) : NULL,
                   *stop = slash ? slash : end;
        memcpy(to, p, (size_t)(stop - p));
        to += stop - p;
        p = stop;
    }
    rule->comment = between(rs->comment, to);
}

/* Moves a word that stays down to *end, one blank before it: the rule's text closes, in
 * its own place, the gaps that comments and double blanks leave, and never grows over
 * what has not been read. Returns the word where it now is. */
static struct text keep(const char *start, char **end, struct text word) {
    if (*end > start)
        *(*end)++ = ' ';
    if (*end != word.at)
        memmove(*end, word.at, word.len);
    *end += word.len;
    return (struct text){*end - word.len, word.len};
}

/* "-c packets bytes", before the target of a rule in a list or at its end, a blank behind
 * it or not; w is behind -c. */
static bool take_counters(struct words *w, struct rule *rule, bool *overflow) {
    const char *p = w->at, *end;
    if (!parse_counters(&p, w->end, "  ", rule, overflow))
        return false;
    for (end = p; p < w->end && *p == ' '; p++)
        ;
    if (p < w->end &&
        (p == end || (!begins(p, w->end, "-j ") && !begins(p, w->end, "-g "))))
        return false;
    w->at = p;
    return true;
}

/* From -j or -g to the end of the line. The target's own options match nothing. False if
 * there are counters among them, as a list has them: those before the target are then a
 * part of a raw name, or these are. */
static bool parse_target(struct words *w, char *start, char *end, struct text jump,
                         struct rule *rule) {
    struct text word, name = {"", 0};
    struct rule other;
    bool overflow, single = true;
    rule->match = between(start, end);
    const char *target = (jump = keep(start, &end, jump)).at;
    for (bool first = true; next_word(w, &word) == WORD; first = false) {
        struct words ahead = *w;
        single =
            single && !(text_is(word, "-c") && take_counters(&ahead, &other, &overflow));
        word = keep(start, &end, word);
        name = first ? word : name;
    }
    rule->target = between(target, end);
    rule->terminal = text_is(jump, "-g") || one_of(name, terminal_targets);
    return single;
}

/* Reads the words of a rule, from behind the chain's name to the end of its line. They
 * are rewritten in place. In a list the counters are among them, once: false if they are
 * not. */
static bool parse_rule(struct ruleset *rs, char *start, const char *line_end,
                       struct rule *rule, bool *overflow) {
    start += start < line_end; /* the blank */
    struct words w = {start, line_end, ANY, 0};
    struct text word, value;
    char *end = start;
    bool negated = false, says_all = true, counted = rs->table;
    while (next_word(&w, &word) == WORD) {
        if (!rs->table && text_is(word, "-c") && take_counters(&w, rule, overflow)) {
            counted = true;
            continue;
        }
        if (text_is(word, "-j") || text_is(word, "-g")) {
            bool single = parse_target(&w, start, end, word, rule);
            counted = rs->table || (counted && single);
            break;
        }
        bool match = text_is(word, "-m"),
             comment = w.next == STRING && text_is(word, "--comment");
        const struct side *side = find_side(word);
        bool paired = (match || side || w.next != ANY) && next_word(&w, &value) == WORD;
        if (paired && comment)
            take_comment(rs, rule, value);
        if (paired && (comment || (match && text_is(value, "comment"))))
            continue;
        bool bang = text_is(keep(start, &end, word), "!");
        if (paired)
            value = keep(start, &end, value);
        says_all =
            says_all && (bang ||
                         (paired && side &&
                          take_option(rule, side, (struct value){value, negated})) ||
                         (paired && match && !negated && one_of(value, loaders)));
        negated = bang;
    }
    if (rule->target.len == 0)
        rule->match = between(start, end);
    rule->expressible =
        says_all && !negated &&
        rule->address.text.len + rule->port.text.len + rule->protocol.text.len > 0;
    return counted;
}

/* ---- the ruleset
 * ----------------------------------------------------------------------------------------
 */

void ruleset_begin(struct ruleset *rs, const char *table, const struct text *chains,
                   size_t nchains) {
    rs->table = table;
    rs->chains = chains;
    rs->nchains = nchains;
    rs->nft = rs->opened = rs->ended = false;
    rs->missing.len = 0;
    rs->where = table ? OUTSIDE : INSIDE;
    rs->error[0] = rs->remark[0] = '\0';
    rs->start = rs->len = 0;
    memset(rs->found, 0, sizeof rs->found);
}

char *ruleset_room(struct ruleset *rs, size_t *room) {
    memmove(rs->buf, rs->buf + rs->start, rs->len - rs->start);
    rs->len -= rs->start;
    rs->start = 0;
    *room = sizeof rs->buf - rs->len;
    return rs->buf + rs->len;
}

void ruleset_fed(struct ruleset *rs, size_t n) {
    rs->len += n;
    rs->ended = n == 0;
}

static enum item fail(struct ruleset *rs, const char *what, struct text line) {
    snprintf(rs->error, sizeof rs->error, "%s%.*s", what,
             line.len < 100 ? (int)line.len : 100, line.at);
    return ITEM_ERROR;
}

/* The index of a chain asked for, or nchains. */
static size_t find_chain(const struct ruleset *rs, struct text name) {
    size_t i = 0;
    while (i < rs->nchains && !same(name, rs->chains[i]))
        i++;
    return i;
}

/* "# Generated by PROG vVERSION (nf_tables) on DATE", or a remark. Releases before 1.8.8
 * do not name the backend there, but PROG may. */
static enum item comment_line(struct ruleset *rs, struct text line) {
    char head[sizeof rs->remark];
    snprintf(head, sizeof head, "%.*s",
             line.len < sizeof head ? (int)line.len : (int)sizeof head - 1, line.at);
    if (strncmp(head, "# Generated by ", 15) == 0)
        rs->nft = strstr(head, "(nf_tables)") || strstr(head, "nft");
    else if (!rs->opened && head[0] != '\0')
        memcpy(rs->remark, head, sizeof head);
    return ITEM_MORE;
}

static enum item table_line(struct ruleset *rs, struct text line) {
    bool wanted = text_is(between(line.at + 1, line.at + line.len), rs->table);
    if (wanted && rs->opened)
        return fail(rs, "the table comes twice: ", line);
    rs->opened = rs->opened || wanted;
    rs->where = wanted ? INSIDE : ELSEWHERE;
    return ITEM_MORE;
}

/* ":CHAIN POLICY [packets:bytes]", the policy of a user's chain being "-"; in a list "-P
 * CHAIN POLICY -c packets bytes", or
 * "-N CHAIN" for a user's. */
static enum item chain_line(struct ruleset *rs, struct text line, struct rule *rule) {
    bool list = !rs->table, overflow = false;
    const char *end = line.at + line.len, *at = line.at + (list ? 3 : 1),
               *blank = memchr(at, ' ', (size_t)(end - at));
    size_t chain = find_chain(rs, between(at, blank ? blank : end));
    if (chain == rs->nchains && !list)
        return ITEM_MORE;
    *rule = (struct rule){.chain = chain, .target = TEXT("-")};
    const char *p = blank ? memchr(blank + 1, ' ', (size_t)(end - blank - 1)) : NULL,
               *mark = list ? " -c" : " ";
    bool user = list && line.at[1] == 'N', good = user && !blank;
    if (p && !user && begins(p, end, mark)) {
        rule->target = between(blank + 1, p);
        p += strlen(mark);
        good = parse_counters(&p, end, list ? "  " : "[:", rule, &overflow) &&
               text_is(between(p, end), list ? "" : "]");
    }
    if (!good || overflow || chain == rs->nchains || rs->found[chain])
        return fail(rs, "chain not understood: ", line);
    rs->found[chain] = rs->opened = true;
    return text_is(rule->target, "-") ? ITEM_MORE : ITEM_POLICY;
}

static enum item rule_line(struct ruleset *rs, struct text line, struct rule *rule) {
    struct text name, first;
    struct words w = {NULL, line.at + line.len, ANY, 0};
    bool list = !rs->table, overflow;
    *rule = (struct rule){.chain = rs->nchains};
    bool good = rule_head(line, list, rule, &overflow, &name);
    if (good)
        rule->chain = find_chain(rs, name);
    if (good && rule->chain == rs->nchains && !list)
        return ITEM_MORE;
    if (good)
        w.at = name.at + name.len;
    const char *words = w.at;
    if (!good || rule->chain == rs->nchains ||
        (next_word(&w, &first) == WORD && *first.at != '-' && *first.at != '!'))
        return fail(rs, "rule not understood: ",
                    line); /* the tail of a raw name with a newline, say */
    if (overflow)
        return fail(rs, "a counter of 2^64 or more: ", line);
    if (!parse_rule(rs, rs->buf + (words - rs->buf), line.at + line.len, rule, &overflow))
        return fail(rs, "counters not understood: ", rule->match);
    return overflow ? fail(rs, "a counter of 2^64 or more: ", rule->match) : ITEM_RULE;
}

/* One line; ITEM_MORE says that there is nothing in it for the caller. */
static enum item take_line(struct ruleset *rs, struct text line, struct rule *rule) {
    const char first = *(line.len > 0 ? line.at : "#");
    if (first == '#')
        return comment_line(rs, line);
    if (!rs->table) {
        const char second =
            first == '-' && line.len > 3 && line.at[2] == ' ' ? line.at[1] : ' ';
        return second == 'A'                    ? rule_line(rs, line, rule)
               : second == 'N' || second == 'P' ? chain_line(rs, line, rule)
                                                : fail(rs, "unexpected line: ", line);
    }
    if (rs->where == OUTSIDE)
        return first == '*' ? table_line(rs, line) : fail(rs, "unexpected line: ", line);
    if (text_is(line, "COMMIT")) {
        rs->where = OUTSIDE;
    } else if (first != ':' && first != '[') {
        return fail(rs, "unexpected line: ", line);
    } else if (rs->where == INSIDE) {
        return first == ':' ? chain_line(rs, line, rule) : rule_line(rs, line, rule);
    }
    return ITEM_MORE;
}

static enum item finish(struct ruleset *rs) {
    struct text nothing = {"", 0};
    if (!rs->opened && rs->remark[0] != '\0')
        return fail(rs, rs->remark, nothing);
    if (!rs->opened && rs->table)
        return fail(rs, "the table was not printed", nothing);
    if (rs->table && rs->where != OUTSIDE)
        return fail(rs, "the output ends before COMMIT", nothing);
    for (size_t i = 0; i < rs->nchains && rs->missing.len == 0; i++)
        if (!rs->found[i])
            rs->missing = rs->chains[i];
    return rs->missing.len > 0 ? fail(rs, "no chain ", rs->missing) : ITEM_END;
}

enum item ruleset_next(struct ruleset *rs, struct rule *rule) {
    while (rs->start < rs->len) {
        char *at = rs->buf + rs->start;
        size_t left = rs->len - rs->start;
        long length = line_length(at, at + left, !rs->table);
        if (length == LINE_INCOMPLETE && !rs->ended && left < RULE_LINE_MAX)
            return ITEM_MORE;
        struct text line = {at, length < 0 ? left : (size_t)length};
        if (line.len >= RULE_LINE_MAX)
            return fail(rs, "a line without end: ", line);
        if (length == LINE_BAD ||
            (length < 0 && (!rs->table || *at == '[' || *at == ':')))
            return fail(rs,
                        length == LINE_BAD ? "quotes not understood: "
                                           : "the output ends inside a line: ",
                        line);
        rs->start += length < 0 ? left : line.len + 1;
        enum item item = take_line(rs, line, rule);
        if (item != ITEM_MORE)
            return item;
    }
    return rs->ended ? finish(rs) : ITEM_MORE;
}
