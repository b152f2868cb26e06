/* What holds of parse.c whatever comes in. Six programs: t/fuzz-request, t/fuzz-ruleset, t/fuzz-list, t/fuzz-label and
 * t/fuzz-kernel are libFuzzer's (make fuzz; FUZZ names the function), t/fuzz replays a file: `t/fuzz request FILE` and so on. A broken promise
 * aborts. */
#define _GNU_SOURCE /* memmem */
#include "../parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define promise(condition, words)                                                                                          \
    do {                                                                                                                   \
        if (!(condition)) fprintf(stderr, "line %d: not so: %s\n", __LINE__, words), abort();                              \
    } while (0)

static bool is_in(struct text t, const char *from, size_t len) {
    return t.len == 0 || ((uintptr_t)t.at >= (uintptr_t)from && (uintptr_t)(t.at + t.len) <= (uintptr_t)(from + len));
}

static bool same(struct text a, struct text b) { return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0); }

/* A copy of exactly its size, so that a sanitizer sees a byte too many being read. */
static char *copy_of(const char *data, size_t len) {
    char *copy = malloc(len ? len : 1);
    promise(copy, "there is memory");
    if (len) memcpy(copy, data, len);
    return copy;
}

/* A small reader, so that many inputs a second can be read, and its limits are met. */
enum { LINE_MAX_HERE = 2048, ROOM = 512, OUTPUT_MAX = LINE_MAX_HERE + 2 * ROOM };

/* The limits are at thousands of bytes, where no mutation comes, and a corpus should be small: a byte 0x1c + n stands for
 * the byte before it another 16^(n + 1) times. */
static char *stretched(const uint8_t *data, size_t size, size_t max, size_t *len) {
    static char out[REQUEST_MAX + 4096];
    promise(max <= sizeof out, "stretched() has room");
    *len = 0;
    for (size_t i = 0; i < size; i++) {
        bool repeat = *len > 0 && data[i] >= 0x1c && data[i] < 0x20;
        size_t n = repeat ? (size_t)16 << 4 * (data[i] - 0x1c) : 1;
        if (n > max - *len) n = max - *len;
        memset(out + *len, repeat ? out[*len - 1] : data[i], n);
        *len += n;
    }
    return copy_of(out, *len);
}

/* ---- the request ----------------------------------------------------------------------------------------- */

static void check_preference(struct preference p) {
    promise(p.precision >= 0 && p.precision <= 4, "a precision is 0 to 4");
    promise(p.quality >= 0 && p.quality <= 1000, "a quality is 0 to 1000");
    promise(p.precision > 0 || p.quality == 0, "what nothing names has no quality");
}

/* What it says may be any bytes, but no more than there are. */
static void check_query(struct text query) {
    struct text value;
    char *to = copy_of(query.at, query.len);
    if (find_parameter(query, "by", to, &value)) {
        promise(is_in(value, to, query.len), "a value lies in the memory for it");
        promise(value.len + strlen("by") <= query.len, "a value is shorter than the query");
    }
    free(to);
}

static bool alike(struct preference a, struct preference b) { return a.precision == b.precision && a.quality == b.quality; }

static void check_request(const char *in, size_t len, int status, const struct request *req) {
    static const struct text root = TEXT("/");
    static const int statuses[] = {0, 200, 400, 414, 431, 505};
    bool known = false;
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) known |= status == statuses[i];
    promise(known, "the status is one that parse.h names");
    promise(is_in(req->method, in, len), "the method lies in the buffer");
    promise(is_in(req->path, in, len) || same(req->path, root), "the path lies in the buffer");
    promise(is_in(req->query, in, len), "the query lies in the buffer");
    promise(req->scrape_timeout_ms >= -1 && req->scrape_timeout_ms <= 86400000, "a timeout is a day at most");
    check_preference(req->openmetrics);
    check_preference(req->text);
    if (status != 200) return;
    promise(req->method.len > 0, "a request has a method");
    for (size_t i = 0; i < req->method.len; i++)
        promise(req->method.at[i] > ' ' && req->method.at[i] < 0x7f && !strchr("\"(),/:;<=>?@[\\]{}", req->method.at[i]),
                "the method is a token");
    promise(req->path.len > 0 || text_is(req->method, "CONNECT") || memmem(in, len, " * ", 3), "a request has a path");
    promise(req->path.len == 0 || req->path.at[0] == '/', "a path begins with a slash");
    for (size_t i = 0; i < req->path.len; i++)
        promise(req->path.at[i] > ' ' && req->path.at[i] < 0x7f && req->path.at[i] != '?',
                "a path is visible, without query");
    promise(memmem(in, len, "\n\n", 2) || memmem(in, len, "\n\r\n", 3), "a request ends with an empty line");
}

#ifdef FUZZ
enum { BEGINNINGS = 20 };
#else
enum { BEGINNINGS = 1000 };
#endif

/* A client may send in pieces as it likes: the first verdict on a beginning is the verdict on all that can follow. Tried are
 * all beginnings of a short input; of a long one those that lack little, and as many others. */
void request(const uint8_t *data, size_t size) {
    struct request req, first = {.scrape_timeout_ms = -1};
    size_t len;
    char *in = stretched(data, size, REQUEST_MAX + 4096, &len), *again = copy_of(in, len);
    size_t step = len / BEGINNINGS + 1;
    struct request fed; /* a piece at a time, from a beginning to the next */
    request_begin(&req);
    request_begin(&fed);
    int status = request_parse(&req, in, len), verdict = 0;
    check_request(in, len, status, &req);
    for (size_t n = 0; n <= len; n += len - n <= BEGINNINGS         ? 1
                                      : len - n - BEGINNINGS < step ? len - n - BEGINNINGS
                                                                    : step) {
        struct request part;
        char *part_at = again + len - n; /* where it ends, the memory does */
        memcpy(part_at, in, n);
        request_begin(&part);
        int now = request_parse(&part, part_at, n);
        if (verdict == 0) promise(request_parse(&fed, in, n) == now, "the same verdict, read on or from the start");
        check_request(part_at, n, now, &part);
        promise(verdict == 0 || now == verdict, "a verdict stands, whatever follows");
        promise(now != 0 || n < REQUEST_MAX, "there is a verdict on as much as a reader must hold");
        if (now == 200)
            promise(status == 200 && same(part.method, req.method) && same(part.path, req.path) && same(part.query, req.query), "whole or in parts");
        if (now == 200 && verdict == 0) first = part;
        if (now == 200 && verdict == 0)
            promise(same(fed.method, req.method) && same(fed.path, req.path) && alike(fed.text, part.text) &&
                        alike(fed.openmetrics, part.openmetrics) && fed.scrape_timeout_ms == part.scrape_timeout_ms,
                    "read on or from the start, it says the same");
        if (now == 200)
            promise(part.scrape_timeout_ms == first.scrape_timeout_ms && alike(part.openmetrics, first.openmetrics) &&
                        alike(part.text, first.text),
                    "nothing is read behind the empty line");
        verdict = now;
    }
    promise(verdict == status, "the same verdict on the whole and on its parts");
    if (status == 200) check_query(req.query);
    if (status == 200)
        promise(req.scrape_timeout_ms == first.scrape_timeout_ms && alike(req.openmetrics, first.openmetrics) &&
                    alike(req.text, first.text),
                "the headers say the same in the whole and in its parts");
    free(in);
    free(again);
}

/* ---- the ruleset, the list ------------------------------------------------------------------------------- */

static struct ruleset rs;
static char lines[LINE_MAX_HERE + ROOM], comment[LINE_MAX_HERE];
static const struct ruleset_memory memory = {LINE_MAX_HERE, ROOM, lines, comment};
static const struct text chains[] = {TEXT("prometheus"), TEXT("INPUT"), TEXT("a\"]b")};
static const struct text reserved_names[] = {TEXT("port"), TEXT("le")};
static const struct reserved reserved = {reserved_names, 2};

static uint64_t mix_bytes(uint64_t hash, const void *bytes, size_t n) { /* FNV-1a */
    for (size_t i = 0; i < n; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3;
    return hash;
}

static uint64_t mix_text(uint64_t hash, struct text t) { return mix_bytes(mix_bytes(hash, t.at, t.len), &t.len, sizeof t.len); }

/* The next word, len 0 behind the last. (Quotes are no matter: no label says what an option with a string matches.) */
static struct text cut_word(struct text *t) {
    const char *blank = t->len ? memchr(t->at, ' ', t->len) : NULL;
    struct text word = {t->at, blank ? (size_t)(blank - t->at) : t->len};
    size_t used = word.len + (blank != NULL);
    *t = (struct text){t->len ? t->at + used : t->at, t->len - used};
    return word;
}

static bool is_one_of(struct text word, const char *list) { /* each with a blank on both sides */
    char wanted[20];
    int n = snprintf(wanted, sizeof wanted, " %.*s ", word.len < 17 ? (int)word.len : 17, word.at);
    return word.len > 0 && word.len < 17 && n == (int)word.len + 2 && strstr(list, wanted);
}

/* What the labels say of a match, read once more, in another way. False if they cannot say it. The texts must be the very
 * same bytes: `rule` is what parse.c has found. */
static bool labels_say(const struct rule *rule) {
    struct text rest = rule->match, word;
    const struct value *fields[] = {&rule->protocol, &rule->address, &rule->port};
    struct value seen[3] = {{{NULL, 0}, false}};
    enum direction direction = DIRECTION_NONE;
    bool negated = false;
    while ((word = cut_word(&rest)).len > 0) {
        if (text_is(word, "!")) {
            negated = true;
            continue;
        }
        struct text value = cut_word(&rest);
        bool out = is_one_of(word, " -s --sport --sports "), in = is_one_of(word, " -d --dport --dports ");
        if (value.len == 0) return false;
        if (text_is(word, "-m")) {
            if (negated || !is_one_of(value, " tcp udp udplite sctp dccp multiport icmp icmp6 esp ")) return false;
            continue;
        }
        if (!out && !in && !text_is(word, "-p")) return false;
        struct value *field = &seen[out || in ? 1 + (word.at[1] == '-') : 0];
        enum direction side = out ? DIRECTION_OUT : in ? DIRECTION_IN : direction;
        if (value.at[0] == '!' || text_is(value, "all")) return false;
        if (field->text.len > 0 || (direction != DIRECTION_NONE && side != direction)) return false;
        direction = side;
        *field = (struct value){value, negated};
        negated = false;
    }
    if (negated || seen[0].text.len + seen[1].text.len + seen[2].text.len == 0) return false;
    if (!rule->expressible) return true;
    for (int i = 0; i < 3; i++)
        promise(fields[i]->text.len == seen[i].text.len && fields[i]->negated == seen[i].negated &&
                    (seen[i].text.len == 0 || fields[i]->text.at == seen[i].text.at),
                "a field is the word behind its option");
    promise(rule->direction == direction, "the direction is that of the options");
    return true;
}

/* A newline is inside of quotes, so there is one on each side of it. (Which is more than that is seen in said_back.) */
static void check_lines(struct text t) {
    const char *quote = t.len ? memchr(t.at, '"', t.len) : NULL;
    for (size_t i = 0; i < t.len; i++)
        if (t.at[i] == '\n')
            promise(quote && quote < t.at + i && memchr(t.at + i, '"', t.len - i),
                    "a newline outside of quotes ends a rule");
}

static bool has_line(struct text in, const char *line, const char *follows) {
    size_t n = strlen(line);
    for (const char *p = in.at, *end = in.at + in.len; (p = memmem(p, (size_t)(end - p), line, n)); p++)
        if ((p == in.at || p[-1] == '\n') && (p + n == end || strchr(follows, p[n]))) return true;
    return false;
}

/* The counters as a list has them: blanks, -c, and a target or the end of the line behind. (Leading zeros are no matter.) */
static bool lists_counters(struct text in, const struct rule *rule) {
    char words[80];
    const char *end = in.at + in.len;
    int n = snprintf(words, sizeof words, "%llu ", (unsigned long long)rule->packets);
    for (const char *p = in.at, *q; (p = memmem(p, (size_t)(end - p), words, (size_t)n)); p++) {
        for (q = p; q > in.at && q[-1] == '0';) q--;
        if (q < in.at + 4 || memcmp(q - 4, " -c ", 4) != 0) continue;
        for (q = p + n; q + 1 < end && *q == '0' && q[1] >= '0' && q[1] <= '9';) q++;
        char bytes[40];
        int m = snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)rule->bytes);
        if (end - q < m || memcmp(q, bytes, (size_t)m) != 0) continue;
        const char *behind = q += m;
        while (q < end && *q == ' ') q++;
        if (q < end && (*q == '\n' || (q > behind && end - q > 2 && (!memcmp(q, "-j ", 3) || !memcmp(q, "-g ", 3)))))
            return true;
    }
    return false;
}

static void check_item(struct text in, enum item item, const struct rule *rule) {
    char words[80];
    promise(rule->chain < rs.wanted.nchains, "the chain is one of those asked for");
    if (rs.wanted.dialect == DIALECT_SAVE) {
        snprintf(words, sizeof words, "%llu:", (unsigned long long)rule->packets);
        promise(memmem(in.at, in.len, words, strlen(words)), "the packets are printed so");
        snprintf(words, sizeof words, "%llu]%s%s", (unsigned long long)rule->bytes, item == ITEM_RULE ? " -A " : "",
                 item == ITEM_RULE ? chains[rule->chain].at : "");
        promise(memmem(in.at, in.len, words, strlen(words)), "the bytes are printed so");
    } else {
        promise(lists_counters(in, rule), "the counters are printed so");
        snprintf(words, sizeof words, "-%c %s", item == ITEM_RULE ? 'A' : 'P', chains[rule->chain].at);
        promise(has_line(in, words, " "), "the chain is printed so");
    }
    promise(is_in(rule->target, lines, rs.end), "the target lies in the buffer");
    promise(is_in(rule->match, lines, rs.end), "the match lies in the buffer");
    promise(is_in(rule->comment, comment, sizeof comment), "the comment lies in its place");
    promise(is_in(rule->tags, lines, rs.end), "the tags lie in the buffer");
    promise(rule->tags.len == 0 || rule->target.len == 0 || rule->tags.at >= rule->target.at + rule->target.len,
            "the tags lie behind the target");
    promise((rule->refused_comments > 0) == (rule->tag_error != TAGS_GOOD), "what is refused has an error");
    promise(rule->refused_comments == 0 || memmem(rule->comment.at, rule->comment.len, "nfprom(", 7),
            "what is refused is a comment");
    const struct text fields[] = {rule->address.text, rule->protocol.text, rule->port.text};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        promise(is_in(fields[i], rule->match.at, rule->match.len), "a field is a part of the match");
    if (item == ITEM_POLICY) {
        promise(rule->match.len + rule->target.len + rule->comment.len + rule->tags.len == 0 && !rule->expressible, "a policy matches nothing");
        promise(is_in(rule->policy, lines, rs.end), "the policy lies in the buffer");
        return;
    }
    struct text rest = rule->target, jump = cut_word(&rest);
    promise(rule->target.len == 0 || is_one_of(jump, " -j -g "), "a target begins with -j or -g");
    promise(!rule->terminal || rule->target.len > 0, "what ends the traversal is a target");
    promise(rule->match.len == 0 || rule->match.at[0] != ' ', "no blank before the match");
    promise(rule->match.len == 0 || rule->match.at[rule->match.len - 1] != ' ', "no blank behind the match");
    check_lines(rule->match);
    check_lines(rule->target);
    promise(labels_say(rule) == rule->expressible, "a rule is expressible if the labels say all of it");
}

static size_t len_of_last_line(struct text in) {
    const char *lf = in.len ? memrchr(in.at, '\n', in.len) : NULL;
    return lf ? (size_t)(in.at + in.len - lf - 1) : in.len;
}

static uint64_t random_below(uint64_t *state, uint64_t n) { /* xorshift */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state % n;
}

/* Reads the input, checks each item, and returns a hash of them all. seed 0: as much at a time as there is room for. What an
 * error quotes of its line depends on how much of it was there; all else must not. */
static uint64_t read_all(struct text in, enum dialect dialect, size_t nchains, uint64_t seed) {
    bool save = dialect == DIALECT_SAVE;
    uint64_t hash = 0xcbf29ce484222325;
    size_t at = 0, room, pieces = seed ? 2 + random_below(&seed, 30) : 1;
    struct rule rule;
    ruleset_begin(&rs, (struct wanted){dialect, "filter", chains, nchains, reserved}, memory);
    for (;;) {
        enum item item = ruleset_next(&rs, &rule);
        if (item == ITEM_MORE) {
            char *to = ruleset_room(&rs, &room);
            promise(room >= ROOM && is_in((struct text){to, room}, lines, sizeof lines), "there is room for more");
            size_t n = in.len - at;
            if (seed && n > 0) n = 1 + random_below(&seed, 2 * in.len / pieces + 1);
            n = n < in.len - at ? n : in.len - at;
            n = n < room ? n : room;
            memcpy(to, in.at + at, n);
            ruleset_fed(&rs, n);
            at += n;
            continue;
        }
        hash = mix_bytes(hash, &item, sizeof item);
        promise(item != ITEM_JUMP || (save && rule.refers), "a table alone has jumps");
        if (item == ITEM_JUMP || (item == ITEM_RULE && rule.refers)) {
            promise(rule.referred < nchains, "a jump leads to a chain that is wanted");
            promise(is_in(rule.from, lines, rs.end), "the chain it comes from lies in the buffer");
            hash = mix_bytes(mix_text(hash, rule.from), &rule.referred, sizeof rule.referred);
        }
        if (item == ITEM_JUMP) continue;
        if (item == ITEM_RULE || item == ITEM_POLICY) {
            check_item(in, item, &rule);
            const uint64_t numbers[] = {rule.chain,           rule.packets,          rule.bytes,
                                        rule.expressible,     rule.terminal,         rule.direction,
                                        rule.address.negated, rule.protocol.negated, rule.port.negated};
            const struct text texts[] = {rule.address.text, rule.protocol.text, rule.port.text,
                                         rule.match,        rule.target,        rule.comment,
                                         rule.policy,        rule.tags};
            hash = mix_bytes(hash, numbers, sizeof numbers);
            for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) hash = mix_text(hash, texts[i]);
            continue;
        }
        promise(memchr(rs.error, '\0', sizeof rs.error) && memchr(rs.remark, '\0', sizeof rs.remark), "words end");
        promise((item == ITEM_ERROR) == (rs.error[0] != '\0'), "an error has words, nothing else has");
        if (item == ITEM_END) {
            char head[40], policy[40];
            snprintf(head, sizeof head, "*filter");
            promise(!save || (has_line(in, head, "\n") && has_line(in, "COMMIT", "\n")),
                    "the end is behind the table and its COMMIT");
            for (size_t i = 0; i < nchains; i++) {
                snprintf(head, sizeof head, "%s%s", save ? ":" : "-N ", chains[i].at);
                snprintf(policy, sizeof policy, "-P %s", chains[i].at);
                promise(has_line(in, head, save ? " " : "\n") || (!save && has_line(in, policy, " ")),
                        "the end is behind every chain");
            }
            promise(save || len_of_last_line(in) == 0, "a list ends behind a line");
            promise(at == in.len, "the end is at the end");
        }
        return mix_bytes(mix_text(hash, rs.missing), &rs.nft, sizeof rs.nft);
    }
}

/* A string as iptables-save prints it, xtables_save_string in libxtables. */
static char *put_string(char *to, struct text s) {
    bool bare = s.len > 0;
    for (size_t i = 0; i < s.len; i++)
        bare &= (s.at[i] >= '0' && s.at[i] <= '9') || (s.at[i] >= 'A' && s.at[i] <= 'Z') ||
                (s.at[i] >= 'a' && s.at[i] <= 'z') || s.at[i] == '_' || s.at[i] == '-';
    if (!bare) *to++ = '"';
    for (size_t i = 0; i < s.len; i++) {
        if (!bare && (s.at[i] == '"' || s.at[i] == '\\' || s.at[i] == '\'')) *to++ = '\\';
        *to++ = s.at[i];
    }
    if (!bare) *to++ = '"';
    return to;
}

static char *put(char *to, const char *words) { return stpcpy(to, words); }

static void feed(enum dialect dialect, const char *out, const char *end) {
    size_t room, len = (size_t)(end - out);
    ruleset_begin(&rs, (struct wanted){dialect, "filter", chains, 1, reserved}, memory);
    memcpy(ruleset_room(&rs, &room), out, len);
    ruleset_fed(&rs, len);
}

/* Whoever may set a comment sets nothing else: the input as a comment and as a string to look for, in a rule that is printed
 * as iptables prints it. What is understood must be the input, and the rules on both sides of it. */
static void said_back(enum dialect dialect, const uint8_t *data, size_t size) {
    static char out[4096], wanted[1024], quoted[1024];
    bool save = dialect == DIALECT_SAVE;
    struct text said = {(const char *)data, strnlen((const char *)data, size < 255 ? size : 255)};
    struct text quote = {quoted, (size_t)(put_string(quoted, said) - quoted)};
    for (int as_comment = 0; as_comment < 2; as_comment++) {
        char *end = put(out, save ? "*filter\n:prometheus - [0:0]\n[1:2] -A prometheus -p tcp"
                                   : "-N prometheus\n-A prometheus -p tcp");
        end = put(end, as_comment ? " -m comment --comment " : " -m string --string ");
        end = mempcpy(end, quote.at, quote.len);
        end = put(end, save ? " -m comment --comment \"x y\" -j LOG --log-prefix "
                             : " -m comment --comment \"x y\" -c 1 2 -j LOG --log-prefix ");
        end = mempcpy(end, quote.at, quote.len);
        end = put(end, save ? "\n[3:4] -A prometheus -p udp\nCOMMIT\n" : "\n-A prometheus -p udp -c 3 4\n");
        struct rule rule;
        feed(dialect, out, end);
        promise(ruleset_next(&rs, &rule) == ITEM_RULE && rule.packets == 1 && rule.bytes == 2, "the rule is read");
        end = put(wanted, "-p tcp");
        if (!as_comment) end = mempcpy(put(end, " -m string --string "), quote.at, quote.len);
        promise(same(rule.match, (struct text){wanted, (size_t)(end - wanted)}), "the match is what was printed");
        end = mempcpy(put(wanted, "-j LOG --log-prefix "), quote.at, quote.len);
        promise(same(rule.target, (struct text){wanted, (size_t)(end - wanted)}), "the target is what was printed");
        promise(rule.expressible == as_comment && !rule.terminal, "what follows is not touched");
        bool is_comment = as_comment && rule.tags.len == 0;
        end = is_comment ? mempcpy(wanted, said.at, said.len) : wanted;
        end = put(end, is_comment ? "; x y" : "x y");
        promise(same(rule.comment, (struct text){wanted, (size_t)(end - wanted)}), "the comment is what was set");
        promise(ruleset_next(&rs, &rule) == ITEM_RULE && rule.packets == 3 && rule.bytes == 4 &&
                    text_is(rule.match, "-p udp"),
                "so is the next");
        promise(ruleset_next(&rs, &rule) == ITEM_MORE, "there is no other rule");
        ruleset_fed(&rs, 0);
        promise(ruleset_next(&rs, &rule) == ITEM_END, "the end is read");
    }
}

/* A rule says the same in a list as in a table: the input as the words of a rule, the counters once in front, once before the
 * target. Where the words hold a -c, a list need not be understood (a raw name may look like counters), but never otherwise
 * than the table. */
static void both_say(const uint8_t *data, size_t size) {
    static char out[4096], kept[4][4096];
    struct rule rule, listed;
    const char *words = (const char *)data;
    size_t len = strnlen(words, size < 1000 ? size : 1000);
    char *end = put(mempcpy(put(out, "*filter\n:prometheus - [0:0]\n[1:2] -A prometheus "), words, len), "\nCOMMIT\n");
    feed(DIALECT_SAVE, out, end);
    if (ruleset_next(&rs, &rule) != ITEM_RULE || rs.end - rs.start != strlen("COMMIT\n")) return; /* not one rule */
    const char *match = rule.match.at;
    struct text *texts[] = {&rule.match, &rule.target, &rule.comment, &rule.tags};
    for (int i = 0; i < 4; i++)
        if (texts[i]->len) texts[i]->at = memcpy(kept[i], texts[i]->at, texts[i]->len);
    size_t before = len - rule.target.len;
    if (rule.target.len > len || (rule.target.len && memcmp(words + before, rule.target.at, rule.target.len) != 0))
        return; /* blanks */
    const char *last = rule.match.len ? memrchr(rule.match.at, ' ', rule.match.len) : NULL;
    last = last ? last + 1 : rule.match.at;
    if (rule.target.len == 2) return;                                   /* -j, and nothing behind it */
    if (rule.target.len == 0 && rule.match.len && *last == '-') return; /* an option that may want what is behind it */
    end = put(mempcpy(put(out, "-N prometheus\n-A prometheus "), words, before),
              before == 0 || words[before - 1] == ' ' ? "" : " ");
    end = put(end, rule.target.len ? "-c 1 2 " : "-c 1 2");
    end = put(mempcpy(end, words + before, rule.target.len), "\n");
    feed(DIALECT_LIST, out, end);
    if (ruleset_next(&rs, &listed) != ITEM_RULE) {
        promise(memmem(words, len, "-c", 2), "a rule that is understood in a table is understood in a list");
        return;
    }
    promise(rs.start == rs.end, "it is all of the line");
    promise(listed.packets == 1 && listed.bytes == 2, "the counters are those of the rule");
    promise(same(listed.match, rule.match) && same(listed.target, rule.target) && same(listed.comment, rule.comment) &&
                same(listed.tags, rule.tags),
            "the texts are the same");
    const struct value *fields[] = {&rule.address, &rule.protocol, &rule.port},
                       *others[] = {&listed.address, &listed.protocol, &listed.port};
    for (int i = 0; i < 3; i++)
        promise(fields[i]->text.len == others[i]->text.len && fields[i]->negated == others[i]->negated &&
                    (fields[i]->text.len == 0 || fields[i]->text.at - match == others[i]->text.at - listed.match.at),
                "the fields are the same");
    promise(listed.direction == rule.direction, "the direction is the same");
    promise(listed.expressible == rule.expressible && listed.terminal == rule.terminal, "and what follows from them");
}

/* Nor does a raw name count: the input as the words of a rule, none a string, the counters before its last -j. */
static void counts(const uint8_t *data, size_t size) {
    static char out[4096];
    struct rule rule;
    const char *words = (const char *)data, *jump = NULL;
    size_t len = strnlen(words, size < 1000 ? size : 1000);
    if (memchr(words, '"', len) || memchr(words, '\n', len)) return;
    for (const char *p = words; (p = memmem(p, len - (size_t)(p - words), " -j ", 4)); p++) jump = p;
    size_t before = jump ? (size_t)(jump - words) : len;
    char *end = put(mempcpy(put(out, "-N prometheus\n-A prometheus "), words, before), " -c 1 2");
    end = put(mempcpy(end, words + before, len - before), "\n");
    feed(DIALECT_LIST, out, end);
    promise(ruleset_next(&rs, &rule) != ITEM_RULE || (rule.packets == 1 && rule.bytes == 2),
            "the counters are those of the rule");
}

static void read_output(enum dialect dialect, const uint8_t *data, size_t size) {
    size_t len, nchains = 1;
    char *copy = stretched(data, size, OUTPUT_MAX, &len);
    struct text in = {copy, len};
    while (nchains < sizeof chains / sizeof *chains && memmem(copy, len, chains[nchains].at, chains[nchains].len))
        nchains++;
    uint64_t whole = read_all(in, dialect, nchains, 0), seed = mix_bytes(1, data, size) | 1;
    promise(read_all(in, dialect, nchains, seed) == whole, "whole or in parts");
    free(copy);
    said_back(dialect, data, size);
}

void ruleset(const uint8_t *data, size_t size) { read_output(DIALECT_SAVE, data, size); }

void list(const uint8_t *data, size_t size) {
    read_output(DIALECT_LIST, data, size);
    both_say(data, size);
    counts(data, size);
}

/* ---- the tags of comments ---- */

enum { COMMENTS_MAX = 12, COMMENT_BYTES = 700 };

/* What the comments of a rule say, read once more by the functions of libc. */
struct model {
    size_t count;
    struct {
        char name[COMMENT_BYTES], value[COMMENT_BYTES];
    } list[TAGS_MAX];
};

static char *trimmed(char *s) {
    s += strspn(s, " \t");
    for (size_t n = strlen(s); n > 0 && strchr(" \t", s[n - 1]); n--) s[n - 1] = '\0';
    return s;
}

static enum tag_error model_pair(char *pair, struct model *model) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_", digits[] = "0123456789";
    char all[sizeof letters + sizeof digits], *equals = strchr(pair, '=');
    if (!equals) return TAG_NO_EQUALS;
    *equals = '\0';
    char *name = trimmed(pair), *value = trimmed(equals + 1);
    if (!*name || !strchr(letters, *name) || strstr(name, "__") == name) return TAG_BAD_NAME;
    if (name[strspn(name, strcat(strcpy(all, letters), digits))]) return TAG_BAD_NAME;
    if (strcmp(name, "port") == 0 || strcmp(name, "le") == 0) return TAG_RESERVED;
    for (size_t i = 0; i < model->count; i++)
        if (strcmp(model->list[i].name, name) == 0) return TAG_TWICE;
    if (!*value) return TAG_NO_VALUE;
    if (model->count == TAGS_MAX) return TAGS_TOO_MANY;
    strcpy(model->list[model->count].name, name);
    strcpy(model->list[model->count++].value, value);
    return TAGS_GOOD;
}

static enum tag_error model_comment(const char *bytes, struct model *model) {
    char copy[COMMENT_BYTES + 1], *rest = strcpy(copy, bytes), *pair;
    size_t before = model->count, len = strlen(copy);
    if (strstr(copy, "nfprom(") != copy) return TAGS_NONE;
    if (copy[len - 1] != ')') return TAGS_NO_END;
    copy[len - 1] = '\0';
    rest += strlen("nfprom(");
    enum tag_error error = TAGS_GOOD;
    while (error == TAGS_GOOD && (pair = strsep(&rest, ";"))) error = model_pair(pair, model);
    if (error != TAGS_GOOD) model->count = before;
    return error;
}

static int compare_names(const void *a, const void *b) { return strcmp(a, b); }

static void check_tags(const struct tags *tags, const struct model *model, struct text in) {
    promise(tags->count == model->count && tags->count <= TAGS_MAX, "there are as many tags as the comments give");
    for (size_t i = 0; i < tags->count; i++) {
        promise(text_is(tags->list[i].name, model->list[i].name), "the names are those of the comments");
        promise(text_is(tags->list[i].value, model->list[i].value), "so are the values");
        promise(is_in(tags->list[i].name, in.at, in.len) && is_in(tags->list[i].value, in.at, in.len), "they lie in the comments");
    }
}

/* What a rule with these comments is found to say. */
static void check_tagged(const struct rule *rule, struct model *model, const char *plain, unsigned refused, enum tag_error error) {
    struct text rest = rule->tags;
    struct tag tag;
    size_t n = 0, len = 0;
    qsort(model->list, model->count, sizeof *model->list, compare_names);
    while (next_tag(&rest, &tag)) {
        promise(n < model->count && text_is(tag.name, model->list[n].name) && text_is(tag.value, model->list[n].value),
                "the tags of a rule are those of its comments, sorted");
        len += tag.name.len + tag.value.len + 2;
        n++;
    }
    promise(n == model->count && rule->tags.len + (n > 0) == len, "all of them, and nothing between");
    promise(text_is(rule->comment, plain), "all other comments are the comment");
    promise(rule->refused_comments == refused && rule->tag_error == error, "what is refused is counted");
}

/* The input is the comments of a rule, with a NUL between two. */
void label(const uint8_t *data, size_t size) {
    static char plain[COMMENT_BYTES + 2 * COMMENTS_MAX], out[4096];
    static struct model model;
    struct tags tags = {.count = 0};
    size_t len = size < COMMENT_BYTES ? size : COMMENT_BYTES;
    char *in = copy_of((const char *)data, len), *comments[COMMENTS_MAX];
    struct text all = {in, len};
    size_t n = 0;
    unsigned refused = 0;
    enum tag_error first = TAGS_GOOD;
    bool has_comment = false;
    model.count = 0;
    plain[0] = '\0';
    for (size_t at = 0; at < len && n < COMMENTS_MAX; n++) {
        struct text one = {in + at, strnlen(in + at, len - at)};
        char *copy = comments[n] = strndup(one.at, one.len);
        enum tag_error error = read_tags(one, reserved, &tags);
        promise(error == model_comment(copy, &model), "what becomes of a comment");
        check_tags(&tags, &model, all);
        at += one.len + 1;
        if (error == TAGS_GOOD) continue;
        if (has_comment) strcat(plain, "; ");
        strcat(plain, copy);
        has_comment = true;
        if (error == TAGS_NONE) continue;
        if (refused++ == 0) first = error;
    }
    for (int in_list = 0; in_list < 2; in_list++) {
        char *end = put(out, in_list ? "-N prometheus\n-A prometheus" : "*filter\n:prometheus - [0:0]\n[1:2] -A prometheus");
        for (size_t i = 0; i < n; i++) {
            if (i == n / 2) end = put(end, " -p tcp");
            end = put_string(put(end, " -m comment --comment "), (struct text){comments[i], strlen(comments[i])});
        }
        end = put(end, in_list ? " -c 1 2 -j DROP\n" : " -j DROP\n");
        struct rule rule;
        feed(in_list ? DIALECT_LIST : DIALECT_SAVE, out, end);
        promise(ruleset_next(&rs, &rule) == ITEM_RULE && rule.packets == 1 && rule.bytes == 2, "the rule is read");
        check_tagged(&rule, &model, plain, refused, first);
        promise(rule.has_comment == has_comment, "a comment without tags is one");
        promise(text_is(rule.match, n > 0 ? "-p tcp" : "") && text_is(rule.target, "-j DROP"), "the rule is what it is");
    }
    for (size_t i = 0; i < n; i++) free(comments[i]);
    free(in);
}

/* ---- what the kernel says ---------------------------------------------------------------------------------- */

/* That nothing is read that has not come is for the sanitizer to see. */
static void kernel(const uint8_t *data, size_t size) {
    struct text in = {copy_of((const char *)data, size), size};
    struct kernel_list list;
    kernel_list_begin(&list, (struct text)TEXT("filter"), (struct text)TEXT("prometheus"));
    kernel_list_take(&list, in);
    promise(list.rules <= size / sizeof(struct netlink_head), "a rule takes a message");
    promise(list.ended || !list.refused, "a refusal is the end");
    struct kernel_list more = list;
    kernel_list_take(&more, in);
    promise(!list.ended || (more.rules == list.rules && more.disturbed == list.disturbed && more.handles == list.handles),
            "nothing comes behind the end");
    bool says = kernel_uses(in) != 0 || kernel_generation(in) != 0;
    promise(size > sizeof(struct netlink_head) || !says, "a head alone has no number");
    free((void *)in.at);
}

#ifdef FUZZ
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    FUZZ(data, size);
    return 0;
}
#else
static const struct {
    const char *name;
    void (*check)(const uint8_t *data, size_t size);
} kinds[] = {{"request", request}, {"ruleset", ruleset}, {"list", list}, {"label", label}, {"kernel", kernel}};

int main(int argc, char **argv) {
    static uint8_t data[1024 * 1024];
    if (argc < 3) return fprintf(stderr, "usage: t/fuzz request|ruleset|list|label|kernel FILE...\n"), 2;
    for (int i = 2; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) return perror(argv[i]), 2;
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
            if (strcmp(argv[1], kinds[k].name) == 0) kinds[k].check(data, size);
    }
    return 0;
}
#endif
