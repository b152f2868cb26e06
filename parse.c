/* parse.c - the grammars of parse.h. */
#include "parse.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

bool text_is(struct text t, const char *s)
{
    return t.len == strlen(s) && memcmp(t.at, s, t.len) == 0;
}

static bool text_is_nocase(struct text t, const char *s)
{
    return t.len == strlen(s) && strncasecmp(t.at, s, t.len) == 0;
}

static struct text text_between(const char *from, const char *to)
{
    return (struct text){from, (size_t)(to - from)};
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* ---- the request ------------------------------------------------------------------------------------------- */

/* token characters, RFC 9110 section 5.6.2 */
static bool is_tchar(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_token(struct text t)
{
    for (size_t i = 0; i < t.len; i++)
        if (!is_tchar(t.at[i]))
            return false;
    return t.len > 0;
}

static bool is_visible(struct text t)
{
    for (size_t i = 0; i < t.len; i++)
        if (t.at[i] <= ' ' || t.at[i] > '~')
            return false;
    return t.len > 0;
}

/* Cuts the line at *pos, without its line end (CRLF or, RFC 9112 section 2.2, LF alone). False if it has no end yet. */
static bool cut_line(const char **pos, const char *end, struct text *line)
{
    const char *lf = memchr(*pos, '\n', (size_t)(end - *pos));
    if (!lf)
        return false;
    *line = text_between(*pos, lf > *pos && lf[-1] == '\r' ? lf - 1 : lf);
    *pos = lf + 1;
    return true;
}

/* The path of a request target in origin-form or absolute-form (RFC 9112 section 3.2), without the query. */
static bool target_path(struct text target, struct text method, struct text *path)
{
    const char *at = target.at, *end = target.at + target.len;
    size_t scheme = target.len > 7 && strncasecmp(at, "http://", 7) == 0   ? 7
                    : target.len > 8 && strncasecmp(at, "https://", 8) == 0 ? 8
                                                                            : 0;
    *path = target;
    if (scheme)
        for (at += scheme; at < end && *at != '/' && *at != '?'; at++)
            ;
    else if (*at != '/')
        return text_is(target, "*") || text_is(method, "CONNECT");
    const char *query = memchr(at, '?', (size_t)(end - at));
    *path = text_between(at, query ? query : end);
    if (path->len == 0)
        *path = (struct text){"/", 1};
    return true;
}

/* request-line = method SP request-target SP HTTP-version; 200, 400 or 505. */
static int parse_request_line(struct text line, struct request *req, bool *needs_host)
{
    const char *end = line.at + line.len;
    const char *sp1 = memchr(line.at, ' ', line.len);
    const char *sp2 = sp1 ? memchr(sp1 + 1, ' ', (size_t)(end - sp1 - 1)) : NULL;
    if (!sp2)
        return 400;
    struct text target = text_between(sp1 + 1, sp2), version = text_between(sp2 + 1, end);
    req->method = text_between(line.at, sp1);
    if (!is_token(req->method) || !is_visible(target))
        return 400;
    if (version.len != 8 || memcmp(version.at, "HTTP/", 5) != 0 || !is_digit(version.at[5]) || version.at[6] != '.' ||
        !is_digit(version.at[7]))
        return 400;
    if (version.at[5] != '1')
        return 505;
    *needs_host = version.at[7] != '0';
    return target_path(target, req->method, &req->path) ? 200 : 400;
}

/* A decimal number of seconds as Prometheus sends it, in milliseconds; -1 if it is none. A day is enough for anybody. */
static long parse_seconds(struct text t)
{
    long ms = 0, unit = 1000;
    bool point = false, digits = false;
    for (size_t i = 0; i < t.len; i++) {
        if (t.at[i] == '.' && !point) {
            point = true;
        } else if (!is_digit(t.at[i])) {
            return -1;
        } else if (point) {
            digits = true;
            unit /= 10;
            ms += (t.at[i] - '0') * unit;
        } else {
            digits = true;
            ms = ms * 10 + (t.at[i] - '0') * 1000L;
            if (ms > 86400000)
                ms = 86400000;
        }
    }
    return digits ? ms : -1;
}

/* field-line = field-name ":" OWS field-value OWS (RFC 9112 section 5); no folding, no blank before the colon. */
static bool parse_header(struct text line, struct request *req, unsigned *hosts)
{
    const char *colon = memchr(line.at, ':', line.len), *end = line.at + line.len;
    if (!colon || !is_token(text_between(line.at, colon)))
        return false;
    struct text name = text_between(line.at, colon);
    const char *at = colon + 1;
    while (at < end && (*at == ' ' || *at == '\t'))
        at++;
    while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    struct text value = text_between(at, end);
    for (size_t i = 0; i < value.len; i++)
        if (((unsigned char)value.at[i] < ' ' && value.at[i] != '\t') || value.at[i] == 0x7f)
            return false;
    if (text_is_nocase(name, "Host")) {
        for (size_t i = 0; i < value.len; i++)
            if (value.at[i] <= ' ' || value.at[i] > '~' || strchr("\"#,/<>?@\\^`{|}", value.at[i]))
                return false;
        ++*hosts;
    } else if (text_is_nocase(name, "X-Prometheus-Scrape-Timeout-Seconds")) {
        long ms = parse_seconds(value);
        if (ms >= 0 && (req->scrape_timeout_ms < 0 || ms < req->scrape_timeout_ms))
            req->scrape_timeout_ms = ms;
    }
    return true;
}

static int parse_headers(const char *pos, const char *end, struct request *req, bool needs_host)
{
    const char *start = pos;
    unsigned hosts = 0;
    for (unsigned lines = 0;; lines++) {
        struct text line;
        const char *before = pos;
        if (!cut_line(&pos, end, &line))
            return end - start > HEADERS_MAX + 1 ? 431 : 0;
        if (before - start > HEADERS_MAX)
            return 431;
        if (line.len == 0)
            return hosts > 1 || (needs_host && hosts == 0) ? 400 : 200;
        if (pos - start > HEADERS_MAX || lines == HEADER_LINES_MAX)
            return 431;
        if (!parse_header(line, req, &hosts))
            return 400;
    }
}

int request_parse(const char *buf, size_t len, struct request *req)
{
    const char *pos = buf, *end = buf + len;
    struct text line;
    bool needs_host = false;
    *req = (struct request){{buf, 0}, {buf, 0}, -1};
    while (pos < end && (*pos == '\r' || *pos == '\n')) /* empty lines before the request, RFC 9112 section 2.2 */
        pos++;
    if (pos < end && !is_tchar(*pos))
        return 400; /* a TLS handshake, say, would wait for our answer without ever ending its line */
    if (pos - buf > REQUEST_LINE_MAX)
        return 400;
    const char *start = pos;
    if (!cut_line(&pos, end, &line))
        return end - start > REQUEST_LINE_MAX + 1 ? 414 : 0;
    if (line.len > REQUEST_LINE_MAX)
        return 414;
    int status = parse_request_line(line, req, &needs_host);
    return status == 200 ? parse_headers(pos, end, req, needs_host) : status;
}

/* ---- the words of a rule ----------------------------------------------------------------------------------- */

/* A rule is a row of words parted by blanks. Of three kinds, by where a word stands:
 *   raw     after an option in raw_options: printed as it is, blanks and quotes included; it reaches to the next option
 *   quoted  begins with a double quote: to the next one; a backslash takes the next byte as it is; newlines may be inside
 *   bare    to the next blank
 * Only inside a quoted word is a newline not the end of the rule. */
struct words {
    const char *at, *end;
    bool raw;
};

enum word { WORD, WORD_LINE_END, WORD_NO_MORE, WORD_BAD };

static const char *const raw_options[] = {
    "-i", "-o", "-j", "-g", "--match-set", "--name", "--hashlimit-name", "--physdev-in", "--physdev-out",
    "--add-set", "--del-set", "--map-set", "--rateest", "--rateest1", "--rateest2", "--rateest-name", "--genre",
};

static bool is_raw_option(struct text word)
{
    if (word.len < 2 || word.at[0] != '-')
        return false;
    for (size_t i = 0; i < sizeof raw_options / sizeof *raw_options; i++)
        if (text_is(word, raw_options[i]))
            return true;
    return false;
}

/* Whether an option begins at p, which follows a blank: "-x", "--x" or "! -". */
static bool is_option(const char *p, const char *end)
{
    if (end - p >= 3 && p[0] == '!' && p[1] == ' ')
        p += 2;
    return end - p >= 2 && p[0] == '-' && p[1] != ' ' && !is_digit(p[1]);
}

static const char *raw_end(const char *p, const char *end)
{
    const char *last = p; /* behind the last byte that is not a blank */
    for (; p < end && *p != '\n'; p++) {
        if (*p != ' ')
            last = p + 1;
        else if (is_option(p + 1, end))
            break;
    }
    return last;
}

/* Past the closing quote of the quoted word at p, or NULL if it is not closed before end. */
static const char *quoted_end(const char *p, const char *end)
{
    for (p++; p < end; p++) {
        if (*p == '\\')
            p++;
        else if (*p == '"')
            return p + 1;
    }
    return NULL;
}

static enum word next_word(struct words *w, struct text *word)
{
    const char *p = w->at, *end = w->end, *to;
    while (p < end && *p == ' ')
        p++;
    w->at = p;
    if (p == end)
        return WORD_NO_MORE;
    if (*p == '\n')
        return WORD_LINE_END;
    if (w->raw) {
        to = raw_end(p, end);
    } else if (*p == '"') {
        to = quoted_end(p, end);
        if (!to)
            return WORD_NO_MORE;
        if (to < end && *to != ' ' && *to != '\n')
            return WORD_BAD;
    } else {
        for (to = p; to < end && *to != ' ' && *to != '\n'; to++)
            ;
    }
    *word = text_between(p, to);
    w->at = to;
    w->raw = !w->raw && is_raw_option(*word);
    return WORD;
}

/* ---- lines ------------------------------------------------------------------------------------------------- */

/* "[packets:bytes] -A CHAIN" at the beginning of a rule's line. A chain's name ends at a blank; it may hold any other byte. */
static bool rule_head(const char *p, const char *end, struct text *counters, struct text *chain)
{
    const char *close = memchr(p, ']', (size_t)(end - p));
    if (*p != '[' || !close || end - close < 6 || memcmp(close, "] -A ", 5) != 0)
        return false;
    const char *name = close + 5, *to = name;
    while (to < end && *to != ' ' && *to != '\n')
        to++;
    *counters = text_between(p, close + 1);
    *chain = text_between(name, to);
    return to > name;
}

enum { LINE_INCOMPLETE = -1, LINE_BAD = -2 };

/* The length of the line at p without its newline. */
static long line_length(const char *p, const char *end)
{
    const char *lf = memchr(p, '\n', (size_t)(end - p)), *stop = lf ? lf : end;
    struct text counters, chain, word;
    if (*p == '[' && memchr(p, '"', (size_t)(stop - p)) && rule_head(p, stop, &counters, &chain)) {
        struct words w = {chain.at + chain.len, end, false};
        enum word kind;
        while ((kind = next_word(&w, &word)) == WORD)
            ;
        if (kind == WORD_BAD)
            return LINE_BAD;
        lf = kind == WORD_LINE_END ? w.at : NULL;
    }
    return lf ? (long)(lf - p) : LINE_INCOMPLETE;
}

/* Digits at *p, a number below 2^64. */
static bool parse_u64(const char **p, const char *end, uint64_t *n)
{
    const char *start = *p;
    *n = 0;
    for (; *p < end && is_digit(**p); ++*p) {
        unsigned digit = (unsigned)(**p - '0');
        if (*n > (UINT64_MAX - digit) / 10)
            return false;
        *n = *n * 10 + digit;
    }
    return *p > start;
}

/* "[packets:bytes]" and nothing else. */
static bool parse_counters(struct text t, uint64_t *packets, uint64_t *bytes)
{
    const char *p = t.at, *end = t.at + t.len;
    return p < end && *p++ == '[' && parse_u64(&p, end, packets) && p < end && *p++ == ':' &&
           parse_u64(&p, end, bytes) && end - p == 1 && *p == ']';
}

/* ---- a rule ------------------------------------------------------------------------------------------------ */

/* Matches that only load: what they match is said by their own options, or by -p alone. (`-m socket`, `-m ah` of IPv6 and
 * others are conditions even without an option.) */
static bool only_loads(struct text match)
{
    static const char *const names[] = {"tcp", "udp", "udplite", "sctp", "dccp", "multiport", "icmp", "icmp6", "esp"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (text_is(match, names[i]))
            return true;
    return false;
}

/* Targets after which the packet does not come to the next rule of this chain; -g leaves it too. A jump to a user's chain
 * may return, and what is not listed here (LOG, MARK, CT, ...) continues. */
static bool is_terminal(struct text jump, struct text target)
{
    static const char *const names[] = {"ACCEPT",     "DROP",     "REJECT", "RETURN", "QUEUE",    "NFQUEUE", "SNAT", "DNAT",
                                        "MASQUERADE", "REDIRECT", "NETMAP", "TPROXY", "SYNPROXY", "TARPIT"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (text_is(target, names[i]))
            return true;
    return text_is(jump, "-g");
}

/* The options that the five labels can say, or NULL. */
static const struct side {
    const char *name;
    enum direction direction;
    bool port;
} *find_side(struct text option)
{
    static const struct side sides[] = {
        {"-s", DIRECTION_OUT, false},      {"-d", DIRECTION_IN, false},     {"--sport", DIRECTION_OUT, true},
        {"--sports", DIRECTION_OUT, true}, {"--dport", DIRECTION_IN, true}, {"--dports", DIRECTION_IN, true},
        {"-p", DIRECTION_NONE, false},
    };
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++)
        if (text_is(option, sides[i].name))
            return &sides[i];
    return NULL;
}

/* Puts what the option says into its field. False if it is there already, or if one side's address comes with the other
 * side's port: then the five labels cannot say it. */
static bool take_option(struct rule *rule, const struct side *side, struct value value)
{
    struct value *field = side->direction == DIRECTION_NONE ? &rule->protocol : side->port ? &rule->port : &rule->address;
    if (field->text.len > 0)
        return false;
    *field = value;
    if (side->direction == DIRECTION_NONE)
        return true;
    bool same_side = rule->direction == DIRECTION_NONE || rule->direction == side->direction;
    rule->direction = side->direction;
    return same_side;
}

/* Appends a comment, without its quotes and the backslashes in them. */
static void take_comment(struct ruleset *rs, struct rule *rule, struct text word)
{
    char *to = rs->comment + rule->comment.len;
    const char *p = word.at, *end = word.at + word.len;
    bool quoted = word.len >= 2 && *p == '"';
    if (rule->comment.len > 0) {
        *to++ = ';';
        *to++ = ' ';
    }
    for (p += quoted, end -= quoted; p < end; p++) {
        if (quoted && *p == '\\' && p + 1 < end)
            p++;
        *to++ = *p;
    }
    rule->comment = text_between(rs->comment, to);
}

/* The text of a rule as it is kept: words move down in the line's own place, one blank between them, and close the gaps
 * that comments leave. It never grows over what has not been read. */
struct kept {
    char *start, *end;
};

static struct text keep_word(struct kept *kept, struct text word)
{
    if (kept->end > kept->start)
        *kept->end++ = ' ';
    char *to = kept->end;
    memmove(to, word.at, word.len);
    kept->end += word.len;
    return text_between(to, kept->end);
}

/* From -j or -g to the end of the line: the target, its name in *name. Its own options match nothing. */
static void parse_target(struct words *w, struct kept *kept, struct rule *rule, struct text jump)
{
    struct text word, name = {"", 0};
    for (bool first = true; next_word(w, &word) == WORD; first = false) {
        word = keep_word(kept, word);
        if (first)
            name = word;
    }
    rule->target = text_between(jump.at, kept->end);
    rule->terminal = is_terminal(jump, name);
}

/* Reads the words of a rule, from behind the chain's name to the end of its line. They are rewritten in place. */
static void parse_rule(struct ruleset *rs, char *at, const char *end, struct rule *rule)
{
    struct words w = {at, end, false};
    struct kept kept = {at, at};
    struct text word, value;
    bool negated = false;
    rule->expressible = true;
    while (next_word(&w, &word) == WORD) {
        struct words ahead = w;
        bool is_match = text_is(word, "-m"), is_comment = text_is(word, "--comment");
        const struct side *side = find_side(word);
        bool has_value = (is_match || is_comment || side || w.raw) && next_word(&ahead, &value) == WORD;
        if (has_value && is_comment)
            take_comment(rs, rule, value);
        bool cut = has_value && (is_comment || (is_match && text_is(value, "comment")));
        bool jump = text_is(word, "-j") || text_is(word, "-g");
        if (has_value && !jump)
            w = ahead;
        if (cut)
            continue;
        if (jump && rule->match.len == 0)
            rule->match = text_between(kept.start, kept.end);
        word = keep_word(&kept, word);
        if (jump) {
            parse_target(&w, &kept, rule, word);
            break;
        }
        if (has_value)
            value = keep_word(&kept, value);
        bool bang = text_is(word, "!");
        if (has_value && side)
            rule->expressible = take_option(rule, side, (struct value){value, negated}) && rule->expressible;
        else if (!bang)
            rule->expressible = has_value && is_match && !negated && only_loads(value) && rule->expressible;
        negated = bang;
    }
    if (rule->target.len == 0)
        rule->match = text_between(kept.start, kept.end);
    if (rule->address.text.len + rule->port.text.len + rule->protocol.text.len == 0)
        rule->expressible = false;
}

/* ---- the ruleset ------------------------------------------------------------------------------------------- */

void ruleset_begin(struct ruleset *rs, const char *table, const char *const *chains, size_t nchains)
{
    rs->table = table;
    rs->chains = chains;
    rs->nchains = nchains;
    rs->nft = rs->opened = rs->committed = rs->ended = false;
    rs->missing = NULL;
    rs->where = OUTSIDE;
    rs->error[0] = rs->remark[0] = '\0';
    rs->start = rs->len = 0;
    memset(rs->found, 0, sizeof rs->found);
}

char *ruleset_room(struct ruleset *rs, size_t *room)
{
    if (rs->start > 0) {
        memmove(rs->buf, rs->buf + rs->start, rs->len - rs->start);
        rs->len -= rs->start;
        rs->start = 0;
    }
    *room = sizeof rs->buf - rs->len;
    return rs->buf + rs->len;
}

void ruleset_fed(struct ruleset *rs, size_t n)
{
    rs->len += n;
    rs->ended = n == 0;
}

static enum item fail(struct ruleset *rs, const char *what, struct text line)
{
    snprintf(rs->error, sizeof rs->error, "%s%.*s", what, line.len < 100 ? (int)line.len : 100, line.at);
    return ITEM_ERROR;
}

/* The index of a chain asked for, or nchains. */
static size_t find_chain(const struct ruleset *rs, struct text name)
{
    size_t i = 0;
    while (i < rs->nchains && !text_is(name, rs->chains[i]))
        i++;
    return i;
}

/* "# Generated by PROG vVERSION (nf_tables) on DATE", or a remark. Releases before 1.8.8 do not name the backend there,
 * but PROG may. */
static enum item comment_line(struct ruleset *rs, struct text line)
{
    static const char generated[] = "# Generated by ", completed[] = "# Completed on ";
    char head[120];
    snprintf(head, sizeof head, "%.*s", line.len < sizeof head ? (int)line.len : (int)sizeof head - 1, line.at);
    if (strncmp(head, generated, sizeof generated - 1) == 0)
        rs->nft = strstr(head, "(nf_tables)") || strstr(head, "nft");
    else if (strncmp(head, completed, sizeof completed - 1) != 0 && rs->where == OUTSIDE)
        snprintf(rs->remark, sizeof rs->remark, "%s", head);
    return ITEM_MORE;
}

static enum item table_line(struct ruleset *rs, struct text line)
{
    bool wanted = text_is((struct text){line.at + 1, line.len - 1}, rs->table);
    if (wanted && rs->opened)
        return fail(rs, "the table comes twice: ", line);
    rs->opened = rs->opened || wanted;
    rs->where = wanted ? INSIDE : ELSEWHERE;
    return ITEM_MORE;
}

/* ":CHAIN POLICY [packets:bytes]"; the policy of a chain of the user's is "-". */
static enum item chain_line(struct ruleset *rs, struct text line, struct rule *rule)
{
    const char *end = line.at + line.len, *blank = memchr(line.at, ' ', line.len);
    size_t chain = find_chain(rs, text_between(line.at + 1, blank ? blank : end));
    if (chain == rs->nchains)
        return ITEM_MORE;
    const char *second = blank ? memchr(blank + 1, ' ', (size_t)(end - blank - 1)) : NULL;
    if (!second || rs->found[chain])
        return fail(rs, second ? "the chain comes twice: " : "unexpected line: ", line);
    rs->found[chain] = true;
    struct text policy = text_between(blank + 1, second), counters = text_between(second + 1, end);
    if (text_is(policy, "-"))
        return ITEM_MORE;
    *rule = (struct rule){.chain = chain, .target = policy};
    if (!parse_counters(counters, &rule->packets, &rule->bytes))
        return fail(rs, "counters not understood: ", line);
    return ITEM_POLICY;
}

static enum item rule_line(struct ruleset *rs, struct text line, struct rule *rule)
{
    const char *end = line.at + line.len;
    struct text counters, name;
    if (!rule_head(line.at, end, &counters, &name))
        return fail(rs, "unexpected line: ", line);
    size_t chain = find_chain(rs, name);
    if (chain == rs->nchains)
        return ITEM_MORE;
    *rule = (struct rule){.chain = chain};
    if (!parse_counters(counters, &rule->packets, &rule->bytes))
        return fail(rs, "counters not understood: ", line);
    char *words = rs->buf + (name.at + name.len - rs->buf);
    parse_rule(rs, words, end, rule);
    return ITEM_RULE;
}

/* One line; ITEM_MORE says that there is nothing in it for the caller. */
static enum item take_line(struct ruleset *rs, struct text line, struct rule *rule)
{
    char first = line.len > 0 ? line.at[0] : '#';
    if (first == '#')
        return line.len > 0 ? comment_line(rs, line) : ITEM_MORE;
    if (first == '*' && rs->where == OUTSIDE)
        return table_line(rs, line);
    if (rs->where == OUTSIDE)
        return fail(rs, "unexpected line: ", line);
    if (text_is(line, "COMMIT")) {
        rs->committed = rs->committed || rs->where == INSIDE;
        rs->where = OUTSIDE;
        return ITEM_MORE;
    }
    if (first != ':' && first != '[')
        return fail(rs, "unexpected line: ", line);
    if (rs->where == ELSEWHERE)
        return ITEM_MORE;
    return first == ':' ? chain_line(rs, line, rule) : rule_line(rs, line, rule);
}

static enum item finish(struct ruleset *rs)
{
    if (!rs->opened && rs->remark[0] != '\0')
        return fail(rs, rs->remark, (struct text){"", 0});
    if (!rs->committed || rs->where != OUTSIDE)
        return fail(rs, rs->opened ? "the output ends before COMMIT" : "the output does not hold the table", (struct text){"", 0});
    for (size_t i = 0; i < rs->nchains; i++) {
        if (!rs->found[i]) {
            rs->missing = rs->chains[i];
            return fail(rs, "no chain ", (struct text){rs->chains[i], strlen(rs->chains[i])});
        }
    }
    return ITEM_END;
}

enum item ruleset_next(struct ruleset *rs, struct rule *rule)
{
    while (rs->start < rs->len) {
        char *at = rs->buf + rs->start;
        size_t left = rs->len - rs->start;
        long length = line_length(at, at + left);
        if (length == LINE_INCOMPLETE && !rs->ended && left < RULE_LINE_MAX)
            return ITEM_MORE;
        if (length == LINE_INCOMPLETE && rs->ended && (*at == '[' || *at == ':'))
            return fail(rs, "the output ends in the middle of a line: ", (struct text){at, left});
        struct text line = {at, length < 0 ? left : (size_t)length};
        if (length == LINE_BAD)
            return fail(rs, "quotes not understood: ", line);
        if (line.len >= RULE_LINE_MAX)
            return fail(rs, "a line without end: ", line);
        rs->start += line.len + 1 <= left ? line.len + 1 : left;
        enum item item = take_line(rs, line, rule);
        if (item != ITEM_MORE)
            return item;
    }
    return rs->ended ? finish(rs) : ITEM_MORE;
}
