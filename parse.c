/* parse.c - the grammars of parse.h.
 *
 * From the top: the request; tags; the words of a rule; lines; a rule; the ruleset; what
 * the kernel says. */
#include "parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define DIGITS "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const struct text nothing = {"", 0};

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static struct text between(const char *from, const char *to) {
    return (struct text){from, (size_t)(to - from)};
}

static const char *end_of(struct text t) {
    return t.at + t.len;
}

static bool begins_with(struct text t, const char *s) {
    return begins_with_text(t, (struct text){s, strlen(s)});
}

/* ---- the request ----------------------------------------------------------------- */

/* What may stand in a method or a field's name: RFC 9110 section 5.6.2. */
static const char token_chars[] = "!#$%&'*+-.^_`|~" DIGITS LETTERS;
/* In a Host: RFC 3986 sections 3.2.2 and 3.2.3. */
static const char host_chars[] = "!$&'()*+,;=:[]%-._~" DIGITS LETTERS;
/* In a request-target: all that is visible. */
static const char target_chars[] = "/?#@\"<>\\^`{|}!$&'()*+,;=:[]%-._~" DIGITS LETTERS;

static bool consists_of(struct text t, const char *set) {
    for (size_t i = 0; i < t.len; i++) {
        if (t.at[i] == '\0' || !strchr(set, t.at[i]))
            return false;
    }
    return true;
}

/* Names of fields, media types and parameters are the same in upper and lower case. */
static bool same_ignoring_case(struct text t, const char *word) {
    return t.len == strlen(word) && strncasecmp(t.at, word, t.len) == 0;
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t';
}

static struct text trim(struct text t) {
    const char *at = t.at;
    const char *end = end_of(t);
    while (at < end && is_blank(*at))
        at++;
    while (end > at && is_blank(end[-1]))
        end--;
    return between(at, end);
}

/* How much of an absolute-form target is its scheme, 0 of one in another form. */
static size_t scheme_length(struct text target) {
    static const struct text schemes[] = {TEXT("http://"), TEXT("https://")};
    for (size_t i = 0; i < COUNT(schemes); i++) {
        size_t len = schemes[i].len;
        if (target.len >= len && strncasecmp(target.at, schemes[i].at, len) == 0)
            return len;
    }
    return 0;
}

/* Puts the path of a target in origin-form or absolute-form (RFC 9112 section 3.2) into
 * the request. The forms of OPTIONS and CONNECT pass without a path. The
 * target is not empty. */
static bool find_path(struct text target, struct request *req) {
    const char *at = target.at;
    const char *end = end_of(target);
    size_t scheme = scheme_length(target);
    if (scheme > 0) {
        at += scheme;
        const char *authority = at;
        while (at < end && *at != '/' && *at != '?')
            at++;
        if (at == authority || *authority == ':')
            return false; /* an empty host (RFC 9110 section 4.2) */
    } else if (*at != '/') {
        bool asks_server = text_is(target, "*") && text_is(req->method, "OPTIONS");
        return asks_server || text_is(req->method, "CONNECT");
    }
    const char *query = memchr(at, '?', (size_t)(end - at));
    req->path = between(at, query ? query : end);
    if (query)
        req->query = between(query + 1, end);
    if (req->path.len == 0)
        req->path = (struct text){"/", 1};
    return true;
}

/* HTTP-version = "HTTP/" DIGIT "." DIGIT (RFC 9112 section 2.3). 200 for HTTP/1.x, 505
 * for another version of HTTP, 400 for what is none. */
static int check_version(struct text version) {
    if (version.len < strlen("HTTP/x") || !begins_with(version, "HTTP/"))
        return 400;
    struct text number = between(version.at + strlen("HTTP/"), end_of(version));
    if (!consists_of(number, "." DIGITS) || !is_digit(number.at[0]))
        return 400;
    if (number.at[0] != '1')
        return 505;
    if (number.len > 1 && is_digit(number.at[1]))
        return 505;
    bool good = number.len == 3 && number.at[1] == '.' && is_digit(number.at[2]);
    return good ? 200 : 400;
}

/* request-line = method SP request-target SP HTTP-version (RFC 9112 section 3). */
static int parse_request_line(struct text line, struct request *req) {
    const char *end = end_of(line);
    const char *first_blank = memchr(line.at, ' ', line.len);
    if (!first_blank)
        return 400;
    const char *target_at = first_blank + 1;
    const char *second_blank = memchr(target_at, ' ', (size_t)(end - target_at));
    if (!second_blank || second_blank == target_at)
        return 400;

    struct text target = between(target_at, second_blank);
    struct text version = between(second_blank + 1, end);
    req->method = between(line.at, first_blank);
    if (!consists_of(req->method, token_chars))
        return 400;
    if (!consists_of(target, target_chars))
        return 400;
    int status = check_version(version);
    if (status != 200)
        return status;
    req->needs_host = !text_is(version, "HTTP/1.0");
    return find_path(target, req) ? 200 : 400;
}

/* Cuts what stands before the next `separator` that is not in a quoted string. *rest is what
 * follows: its `at` is NULL after the last element. False if nothing is left. */
static bool cut_element(struct text *rest, char separator, struct text *element) {
    if (!rest->at)
        return false;
    const char *at = rest->at;
    const char *end = end_of(*rest);
    bool quoted = false;
    while (at < end && (quoted || *at != separator)) {
        if (*at == '"')
            quoted = !quoted;
        if (quoted && *at == '\\' && end - at > 1)
            at++;
        at++;
    }
    *element = trim(between(rest->at, at));
    bool is_last = at == end;
    *rest = is_last ? (struct text){NULL, 0} : between(at + 1, end);
    return true;
}

/* qvalue in thousandths: 0 or 1, a point and up to three digits (RFC 9110
 * section 12.4.2). False if it is none. */
static bool parse_quality(struct text t, int *quality) {
    if (t.len < 1 || t.len > strlen("0.123"))
        return false;
    if (!is_digit(t.at[0]))
        return false;
    if (t.len > 1 && t.at[1] != '.')
        return false;
    *quality = 1000 * (t.at[0] - '0');
    int unit = 100;
    for (size_t i = 2; i < t.len; i++) {
        if (!is_digit(t.at[i]))
            return false;
        *quality += unit * (t.at[i] - '0');
        unit /= 10;
    }
    return *quality <= 1000;
}

/* parameter = name "=" value, the value a token or a quoted string; empty if it is none.
 */
static void parse_parameter(struct text element, struct text *name, struct text *value) {
    *name = *value = nothing;
    const char *equals = memchr(element.at, '=', element.len);
    if (!equals)
        return;
    *name = between(element.at, equals);
    *value = between(equals + 1, end_of(element));
    bool quoted = value->len >= 2 && value->at[0] == '"';
    if (quoted)
        *value = (struct text){value->at + 1, value->len - 2};
}

/* A media type that can be sent. */
struct media_type {
    const char *any_subtype, *name, *version;
};

/* How precisely the name of a range is for a type. */
static enum precision precision_of(struct text name, const struct media_type *type) {
    if (same_ignoring_case(name, "*/*"))
        return ANY_TYPE;
    if (same_ignoring_case(name, type->any_subtype))
        return ANY_SUBTYPE;
    if (same_ignoring_case(name, type->name))
        return THIS_TYPE;
    return NOT_NAMED;
}

/* Takes one media range of Accept, as in `text/plain;version=0.0.4;q=0.5`, into the
 * preference for a type. Other parameters (charset, escaping) do not tell apart the
 * types that can be sent. */
static void weigh(struct text range, const struct media_type *type,
                  struct preference *preference) {
    struct text element = nothing;
    struct text name, value;
    int quality = 1000;
    bool valid = true;
    cut_element(&range, ';', &element);
    enum precision precision = precision_of(element, type);
    while (cut_element(&range, ';', &element)) {
        parse_parameter(element, &name, &value);
        if (same_ignoring_case(name, "q"))
            valid = parse_quality(value, &quality);
        if (same_ignoring_case(name, "version")) {
            bool ours =
                precision == THIS_TYPE && same_ignoring_case(value, type->version);
            precision = ours ? THIS_VERSION : NOT_NAMED;
        }
    }
    if (!valid || precision == NOT_NAMED)
        return;
    bool more_precise = precision > preference->precision;
    bool better = precision == preference->precision && quality > preference->quality;
    if (more_precise || better)
        *preference = (struct preference){precision, quality};
}

static void parse_accept(struct text value, struct request *req) {
    static const struct media_type openmetrics = {"application/*",
                                                  "application/openmetrics-text",
                                                  "1.0.0"};
    static const struct media_type text = {"text/*", "text/plain", "0.0.4"};
    struct text range;
    while (cut_element(&value, ',', &range)) {
        weigh(range, &openmetrics, &req->openmetrics);
        weigh(range, &text, &req->text);
    }
}

/* The shortest counts, if the field comes more than once. */
static void parse_scrape_timeout(struct text value, struct request *req) {
    enum {
        DAY = 24 * 60 * 60
    };
    if (value.len == 0 || !consists_of(value, "." DIGITS))
        return;
    char *stop;
    double seconds =
        strtod(value.at, &stop); /* it stops at the line end, or at a blank before it */
    if (stop != end_of(value))
        return;
    long ms = seconds < DAY ? (long)(seconds * 1000) : DAY * 1000L;
    bool is_first = req->scrape_timeout_ms < 0;
    if (is_first || ms < req->scrape_timeout_ms)
        req->scrape_timeout_ms = ms;
}

/* A body ends somewhere, though nobody reads it: RFC 9112 section 6.3. Empty elements of a list do
 * not count (RFC 9110 section 5.6.1). */
static void parse_transfer_encoding(struct text value, struct request *req) {
    struct text coding = nothing;
    struct text element;
    while (cut_element(&value, ',', &element)) {
        if (element.len > 0)
            coding = element;
    }
    req->endless_body = !same_ignoring_case(coding, "chunked");
}

static bool is_control(char c) {
    return ((unsigned char)c < ' ' && c != '\t') || c == 0x7f;
}

/* field-line = field-name ":" OWS field-value OWS (RFC 9112 section 5): no folding, no
 * blank before the colon. */
static bool parse_header(struct text line, struct request *req) {
    const char *colon = memchr(line.at, ':', line.len);
    if (!colon || colon == line.at)
        return false;
    struct text name = between(line.at, colon);
    struct text value = trim(between(colon + 1, end_of(line)));
    if (!consists_of(name, token_chars))
        return false;
    for (size_t i = 0; i < value.len; i++) {
        if (is_control(value.at[i]))
            return false;
    }
    if (same_ignoring_case(name, "Host")) {
        req->hosts++;
        return consists_of(value, host_chars);
    }
    if (same_ignoring_case(name, "Content-Length")) {
        req->lengths++;
        return req->lengths == 1 && value.len > 0 && consists_of(value, DIGITS);
    }
    if (same_ignoring_case(name, "Transfer-Encoding"))
        parse_transfer_encoding(value, req);
    if (same_ignoring_case(name, "Accept"))
        parse_accept(value, req);
    if (same_ignoring_case(name, "X-Prometheus-Scrape-Timeout-Seconds")) {
        parse_scrape_timeout(value, req);
    }
    return true;
}

/* Cuts the next line of the request, without its line end (CRLF, or LF alone, RFC 9112
 * section 2.2). What has been searched for a line end is not searched
 * again. False if it has none yet. */
static bool next_line(struct request *req, const char *buf, size_t len,
                      struct text *line) {
    const char *start = buf + req->unread;
    const char *from = buf + req->searched;
    const char *lf = memchr(from, '\n', len - req->searched);
    req->searched = len;
    if (!lf)
        return false;
    bool has_cr = lf > start && lf[-1] == '\r';
    *line = between(start, has_cr ? lf - 1 : lf);
    req->unread = req->searched = (size_t)(lf + 1 - buf);
    return true;
}

static void begin_part(struct request *req, enum request_part part) {
    req->part = part;
    req->part_start = req->unread;
}

/* Each of these reads its part of the request as far as it has come. 0: the part has not
 * ended, or, if the next part has begun, all is well. */

/* Empty lines before a request are passed over, RFC 9112 section 2.2. They may have as many
 * bytes as a request line. */
static int read_empty_lines(struct request *req, const char *buf, size_t len) {
    size_t at = req->unread;
    while (at < len && (buf[at] == '\r' || buf[at] == '\n'))
        at++;
    req->unread = req->searched = at;
    if (at > REQUEST_LINE_MAX)
        return 414;
    if (at == len)
        return 0;
    /* Who begins a TLS handshake, say, would wait for an answer and never end a line. */
    if (!consists_of((struct text){buf + at, 1}, token_chars))
        return 400;
    begin_part(req, REQUEST_LINE);
    return 0;
}

static int read_request_line(struct request *req, const char *buf, size_t len) {
    struct text line;
    /* (A line that has no end yet may have its CR.) */
    if (!next_line(req, buf, len, &line))
        return len - req->part_start > REQUEST_LINE_MAX + 1 ? 414 : 0;
    if (line.len > REQUEST_LINE_MAX)
        return 414;
    begin_part(req, HEADER_LINES);
    int status = parse_request_line(line, req);
    return status == 200 ? 0 : status;
}

static int read_header_lines(struct request *req, const char *buf, size_t len) {
    struct text line;
    while (next_line(req, buf, len, &line)) {
        if (line.len == 0) {
            bool has_host = req->hosts == 1 || (req->hosts == 0 && !req->needs_host);
            return has_host && !req->endless_body ? 200 : 400;
        }
        bool is_long = req->unread - req->part_start > HEADERS_MAX;
        if (is_long || req->header_lines == HEADER_LINES_MAX)
            return 431;
        if (!parse_header(line, req))
            return 400;
        req->header_lines++;
    }
    /* (What is there of the blank line may be its CR, which is no byte of a header.) */
    return len - req->part_start > HEADERS_MAX + 1 ? 431 : 0;
}

void request_begin(struct request *req) {
    *req = (struct request){.method = nothing,
                            .path = nothing,
                            .query = nothing,
                            .scrape_timeout_ms = -1};
}

int request_parse(struct request *req, const char *buf, size_t len) {
    static int (*const read_part[])(struct request *, const char *, size_t) = {
        [EMPTY_LINES] = read_empty_lines,
        [REQUEST_LINE] = read_request_line,
        [HEADER_LINES] = read_header_lines,
    };
    enum request_part part;
    int status;
    do {
        part = req->part;
        status = read_part[part](req, buf, len);
    } while (status == 0 && req->part != part);
    return status;
}

/* The value of a hexadecimal digit, -1 if it is none. */
static int hex_digit(char c) {
    if (is_digit(c))
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The byte that a percent escape at p stands for (RFC 3986 section 2.1), -1 if it is none. */
static int escaped_byte(const char *p, const char *end) {
    if (*p != '%' || end - p < 3)
        return -1;
    int high = hex_digit(p[1]);
    int low = hex_digit(p[2]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static struct text unescape(struct text t, char *to) {
    const char *end = end_of(t);
    struct text value = {to, 0};
    for (const char *p = t.at; p < end;) {
        int byte = escaped_byte(p, end);
        to[value.len] = byte < 0 ? *p : (char)byte;
        value.len++;
        p += byte < 0 ? 1 : 3;
    }
    return value;
}

bool find_parameter(struct text query, const char *name, char *to, struct text *value) {
    while (query.len > 0) {
        struct text rest = cut_at(&query, '&');
        struct text found = cut_at(&rest, '=');
        if (text_is(found, name)) {
            *value = unescape(rest, to);
            return true;
        }
    }
    return false;
}

int parse_seconds(struct text value) {
    return value.len == 1 && is_digit(value.at[0]) ? value.at[0] - '0' : 0;
}

/* ---- tags ------------------------------------------------------------------------ */

static const struct text tags_start = TEXT("nfprom(");

static bool is_name_char(char c) {
    char lower_case = (char)(c | 0x20);
    bool is_letter = lower_case >= 'a' && lower_case <= 'z';
    return is_letter || is_digit(c) || c == '_';
}

static bool is_tag_name(struct text name) {
    if (name.len == 0 || is_digit(*name.at) || begins_with(name, "__"))
        return false;
    for (size_t i = 0; i < name.len; i++) {
        if (!is_name_char(name.at[i]))
            return false;
    }
    return true;
}

static bool is_reserved(struct text name, struct reserved reserved) {
    for (size_t i = 0; i < reserved.count; i++) {
        if (same_text(name, reserved.names[i]))
            return true;
    }
    return false;
}

/* Adds the tag that is written so, perhaps with blanks around both of its parts. */
static enum tag_error add_tag(struct text written, struct reserved reserved,
                              struct tags *tags) {
    const char *equals = memchr(written.at, '=', written.len);
    if (!equals)
        return TAG_NO_EQUALS;
    struct tag tag = {trim(between(written.at, equals)),
                      trim(between(equals + 1, end_of(written)))};
    if (!is_tag_name(tag.name))
        return TAG_BAD_NAME;
    if (is_reserved(tag.name, reserved))
        return TAG_RESERVED;
    for (size_t i = 0; i < tags->count; i++) {
        if (same_text(tag.name, tags->list[i].name))
            return TAG_TWICE;
    }
    if (tag.value.len == 0)
        return TAG_NO_VALUE;
    if (tags->count == TAGS_MAX)
        return TAGS_TOO_MANY;
    tags->list[tags->count] = tag;
    tags->count++;
    return TAGS_GOOD;
}

enum tag_error read_tags(struct text comment, struct reserved reserved,
                         struct tags *tags) {
    if (!begins_with_text(comment, tags_start))
        return TAGS_NONE;
    const char *end = end_of(comment) - 1; /* the ")" */
    if (*end != ')')
        return TAGS_NO_END;
    size_t before = tags->count;
    struct text rest = between(comment.at + tags_start.len, end);
    struct text written;
    enum tag_error error;
    do {
        written = cut_at(&rest, ';');
        error = add_tag(written, reserved, tags);
    } while (error == TAGS_GOOD && end_of(written) < end);
    if (error != TAGS_GOOD)
        tags->count = before;
    return error;
}

/* Whether the name a stands before the name b, by their bytes. */
static bool is_before(struct text a, struct text b) {
    size_t len = a.len < b.len ? a.len : b.len;
    int order = memcmp(a.at, b.at, len);
    return order != 0 ? order < 0 : a.len < b.len;
}

/* There are few, and mostly in order: each is put in its place among those before it. */
static void sort_tags(struct tags *tags) {
    for (size_t i = 1; i < tags->count; i++) {
        struct tag tag = tags->list[i];
        size_t place = i;
        while (place > 0 && is_before(tag.name, tags->list[place - 1].name)) {
            tags->list[place] = tags->list[place - 1];
            place--;
        }
        tags->list[place] = tag;
    }
}

static char *append(char *to, struct text t) {
    memcpy(to, t.at, t.len);
    return to + t.len;
}

/* Writes the tags as next_tag() reads them. */
static struct text write_tags(char *to, struct tags *tags) {
    char *at = to;
    sort_tags(tags);
    for (size_t i = 0; i < tags->count; i++) {
        if (i > 0)
            *at++ = ';';
        at = append(at, tags->list[i].name);
        *at++ = '=';
        at = append(at, tags->list[i].value);
    }
    return between(to, at);
}

/* ---- the words of a rule --------------------------------------------------------- */

/* A rule is a row of words with blanks between them. The value of an option that iptables
 * prints as a string stands bare or in double quotes. In quotes a backslash takes the next
 * byte as it is, and a newline may stand there. Nowhere else does a quote mean anything: names
 * (interfaces, sets, chains, labels) are printed raw, may begin with one, or look like an
 * option. So a newline ends the rule, unless it is in a quoted string. */

enum form {
    FORM_WORD,  /* up to the next blank */
    FORM_STRING /* the same, or in double quotes */
};

enum meaning {
    CONDITION, /* that the five labels cannot say */
    UNSTABLE,  /* one that may turn while the packet is on its way through the chain */
    PROTOCOL,
    ADDRESS,
    PORT,
    MATCH_MODULE,
    COMMENT,
    TARGET
};

/* What iptables prints with a value that must be known: because the five labels can say
 * it, because it may hold blanks and newlines, or because it is a raw name that may look
 * like an option. Of all others it is enough that they are conditions. */
static const struct option {
    struct text name;
    enum meaning meaning;
    enum direction direction; /* the side that it is about */
    enum form form;           /* of its value */
} options[] = {
    /* what most rules are made of: the table is searched from here */
    {TEXT("-p"), PROTOCOL, DIRECTION_NONE, FORM_WORD},
    {TEXT("-d"), ADDRESS, DIRECTION_IN, FORM_WORD},
    {TEXT("-s"), ADDRESS, DIRECTION_OUT, FORM_WORD},
    {TEXT("-m"), MATCH_MODULE, DIRECTION_NONE, FORM_WORD},
    {TEXT("-j"), TARGET, DIRECTION_NONE, FORM_WORD},
    {TEXT("--dport"), PORT, DIRECTION_IN, FORM_WORD},
    {TEXT("--sport"), PORT, DIRECTION_OUT, FORM_WORD},
    {TEXT("--comment"), COMMENT, DIRECTION_NONE, FORM_STRING},
    {TEXT("--dports"), PORT, DIRECTION_IN, FORM_WORD},
    {TEXT("--sports"), PORT, DIRECTION_OUT, FORM_WORD},
    {TEXT("-g"), TARGET, DIRECTION_NONE, FORM_WORD},
    {TEXT("-i"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("-o"), CONDITION, DIRECTION_NONE, FORM_WORD},
    /* strings */
    {TEXT("--log-prefix"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--nflog-prefix"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--ulog-prefix"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--string"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--hex-string"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--helper"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--u32"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--bytecode"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--path"), CONDITION, DIRECTION_NONE, FORM_STRING},
    {TEXT("--led-trigger-id"), CONDITION, DIRECTION_NONE, FORM_STRING},
    /* raw names */
    {TEXT("--match-set"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--name"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--hashlimit-name"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--physdev-in"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--physdev-out"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--genre"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--nfacct-name"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--rateest"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--rateest1"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--rateest2"), CONDITION, DIRECTION_NONE, FORM_WORD},
    {TEXT("--object-pinned"), CONDITION, DIRECTION_NONE, FORM_WORD},
    /* what other packets of the connection, or the clock, may change at any moment */
    {TEXT("--ctstatus"), UNSTABLE, DIRECTION_NONE, FORM_WORD},
    {TEXT("--ctexpire"), UNSTABLE, DIRECTION_NONE, FORM_WORD},
};

/* NULL: the word is no option of the table. --comment is one behind `-m comment` alone. */
static const struct option *find_option(struct text word, bool in_comment_match) {
    for (size_t i = 0; i < COUNT(options); i++) {
        const struct option *option = &options[i];
        if (!same_text(word, option->name))
            continue;
        bool is_misplaced = option->meaning == COMMENT && !in_comment_match;
        return is_misplaced ? NULL : option;
    }
    return NULL;
}

/* Where the reading of words is. */
struct words {
    const char *at, *end;
    /* The option of the table that was read last: the next word is its value. NULL: the next
     * word may be an option. */
    const struct option *option;
    /* `-m comment` was just read. The next word may be --comment, which is an option only there. */
    bool in_comment_match;
};

enum word {
    WORD,
    WORD_LINE_END,
    WORD_NO_MORE, /* the text ends, perhaps inside of a quoted string */
    WORD_BAD
};

/* The quote that ends the string at p, NULL if there is none. */
static const char *string_end(const char *p, const char *end) {
    const char *quote = memchr(p, '"', (size_t)(end - p));
    while (quote) {
        const char *backslash = memchr(p, '\\', (size_t)(quote - p));
        if (!backslash)
            return quote;
        p = backslash + 2;
        /* If the backslash was for this quote, the next one is looked for. */
        if (quote < p)
            quote = memchr(p, '"', (size_t)(end - p));
    }
    return NULL;
}

/* The end of the word at p, which is the value of `option` if there is one. NULL if a
 * quoted string has no end. */
static const char *word_end(const char *p, const char *end, const struct option *option) {
    if (option && option->form == FORM_STRING && *p == '"') {
        const char *quote = string_end(p + 1, end);
        return quote ? quote + 1 : NULL;
    }
    while (p < end && *p != ' ' && *p != '\n')
        p++;
    return p;
}

/* Moves on over the word that was read. */
static void pass_word(struct words *w, struct text word) {
    const struct option *before = w->option;
    bool in_comment_match = w->in_comment_match;
    w->at = end_of(word);
    w->option = NULL;
    w->in_comment_match = false;
    if (before) {
        bool is_module = before->meaning == MATCH_MODULE;
        w->in_comment_match = is_module && text_is(word, "comment");
    } else if (*word.at == '-') {
        w->option = find_option(word, in_comment_match);
    }
}

static enum word next_word(struct words *w, struct text *word) {
    while (w->at < w->end && *w->at == ' ')
        w->at++;
    if (w->at == w->end)
        return WORD_NO_MORE;
    if (*w->at == '\n')
        return WORD_LINE_END;
    const char *stop = word_end(w->at, w->end, w->option);
    if (!stop)
        return WORD_NO_MORE;
    bool ends_well = stop == w->end || *stop == ' ' || *stop == '\n';
    if (!ends_well)
        return WORD_BAD; /* a quote closed in the middle of a word */
    *word = between(w->at, stop);
    pass_word(w, *word);
    return WORD;
}

/* ---- lines ----------------------------------------------------------------------- */

/* What came of the reading of a number, or of both counters. */
enum counters {
    COUNTERS_NONE,
    COUNTERS_GOOD,
    COUNTERS_TOO_LARGE,
    COUNTERS_LATER /* a rule of a list: they stand behind its match */
};

/* A number at *p, which is moved behind it. COUNTERS_TOO_LARGE: 2^64 or more. */
static enum counters parse_number(const char **p, const char *end, uint64_t *number) {
    enum {
        SAFE_DIGITS = 19
    }; /* so many digits are always below 2^64 */
    const char *at = *p;
    const char *safe_end = end - at > SAFE_DIGITS ? at + SAFE_DIGITS : end;
    uint64_t n = 0;
    while (at < safe_end && is_digit(*at)) {
        n = 10 * n + (uint64_t)(*at - '0');
        at++;
    }
    bool overflow = false;
    while (at < end && is_digit(*at)) {
        overflow |= __builtin_mul_overflow(n, 10, &n);
        overflow |= __builtin_add_overflow(n, (uint64_t)(*at - '0'), &n);
        at++;
    }
    if (at == *p)
        return COUNTERS_NONE;
    *p = at;
    *number = n;
    return overflow ? COUNTERS_TOO_LARGE : COUNTERS_GOOD;
}

/* Packets and bytes at *p, each after its mark: "[packets:bytes" for '[' and ':', and
 * " packets bytes" for two blanks. Moves *p behind them, if they are there. */
static enum counters parse_counters(const char **p, const char *end, const char marks[2],
                                    struct rule *rule) {
    const char *at = *p;
    uint64_t *numbers[] = {&rule->packets, &rule->bytes};
    enum counters result = COUNTERS_GOOD;
    for (int i = 0; i < 2; i++) {
        if (at == end || *at != marks[i])
            return COUNTERS_NONE;
        at++;
        enum counters one = parse_number(&at, end, numbers[i]);
        if (one == COUNTERS_NONE)
            return COUNTERS_NONE;
        if (one == COUNTERS_TOO_LARGE)
            result = COUNTERS_TOO_LARGE;
    }
    *p = at;
    return result;
}

/* The beginning of a rule, "[packets:bytes] -A CHAIN", or in a list "-A CHAIN" alone. A
 * chain's name ends at a blank; any other byte may be in it. COUNTERS_NONE: this
 * is no rule. COUNTERS_LATER: it is one of a list, whose counters stand before the target. */
static enum counters parse_rule_head(struct text line, enum dialect dialect,
                                     struct rule *rule, struct text *chain) {
    const char *p = line.at;
    const char *end = end_of(line);
    const char *command = "-A ";
    enum counters counters = COUNTERS_LATER;
    if (dialect == DIALECT_SAVE) {
        counters = parse_counters(&p, end, "[:", rule);
        command = "] -A ";
    }
    if (counters == COUNTERS_NONE || !begins_with(between(p, end), command)) {
        return COUNTERS_NONE;
    }
    const char *name = p + strlen(command);
    *chain = between(name, word_end(name, end, NULL));
    return chain->len > 0 ? counters : COUNTERS_NONE;
}

enum line_end {
    LINE_WHOLE,
    LINE_INCOMPLETE,
    LINE_BAD
};

/* Finds the end of a rule that may hold quoted newlines: behind its last word. */
static enum line_end find_rule_end(const char *words, const char *end,
                                   const char **line_end) {
    struct words w = {.at = words, .end = end};
    struct text word;
    enum word kind = WORD;
    while (kind == WORD)
        kind = next_word(&w, &word);
    *line_end = w.at;
    if (kind == WORD_BAD)
        return LINE_BAD;
    return kind == WORD_LINE_END ? LINE_WHOLE : LINE_INCOMPLETE;
}

/* Cuts the first line of what is unread, without its newline. A rule may have newlines in its
 * quotes. If the line has no end, *line is all there is. */
static enum line_end cut_line(struct text unread, enum dialect dialect,
                              struct text *line) {
    const char *end = end_of(unread);
    const char *newline = memchr(unread.at, '\n', unread.len);
    struct text first_line = between(unread.at, newline ? newline : end);
    bool may_be_rule = *unread.at == (dialect == DIALECT_SAVE ? '[' : '-');
    *line = unread;
    if (may_be_rule && memchr(first_line.at, '"', first_line.len)) {
        struct rule rule;
        struct text chain;
        const char *rule_end;
        if (parse_rule_head(first_line, dialect, &rule, &chain) != COUNTERS_NONE) {
            enum line_end result = find_rule_end(end_of(chain), end, &rule_end);
            if (result == LINE_WHOLE)
                *line = between(unread.at, rule_end);
            return result;
        }
    }
    if (!newline)
        return LINE_INCOMPLETE;
    *line = first_line;
    return LINE_WHOLE;
}

/* ---- a rule ---------------------------------------------------------------------- */

/* What a match does. What is not in the table may do anything to the packet: `-m socket
 * --restore-skmark` sets its mark, `-m cluster` its type. */
enum effect {
    LOADS, /* `-m NAME` alone is no condition and does nothing: only its options do. (`-m socket`,
               IPv6's `-m ah` and others are conditions even without an option) */
    LOOKS, /* looks at the packet, its marks, and what was set up before it came: as long as
               nobody rewrites it, the answer is the same each time */
    TURNS /* counts, draws lots, looks at the clock or at the connection */
};

static const struct match_module {
    struct text name;
    enum effect effect;
} match_modules[] = {
    {TEXT("tcp"), LOADS},       {TEXT("udp"), LOADS},       {TEXT("multiport"), LOADS},
    {TEXT("icmp"), LOADS},      {TEXT("icmp6"), LOADS},     {TEXT("sctp"), LOADS},
    {TEXT("dccp"), LOADS},      {TEXT("udplite"), LOADS},   {TEXT("esp"), LOADS},
    {TEXT("conntrack"), LOOKS}, {TEXT("state"), LOOKS},     {TEXT("mark"), LOOKS},
    {TEXT("addrtype"), LOOKS},  {TEXT("iprange"), LOOKS},   {TEXT("mac"), LOOKS},
    {TEXT("pkttype"), LOOKS},   {TEXT("physdev"), LOOKS},   {TEXT("length"), LOOKS},
    {TEXT("ttl"), LOOKS},       {TEXT("hl"), LOOKS},        {TEXT("tos"), LOOKS},
    {TEXT("dscp"), LOOKS},      {TEXT("ecn"), LOOKS},       {TEXT("tcpmss"), LOOKS},
    {TEXT("policy"), LOOKS},    {TEXT("ah"), LOOKS},        {TEXT("frag"), LOOKS},
    {TEXT("limit"), TURNS},     {TEXT("hashlimit"), TURNS}, {TEXT("recent"), TURNS},
    {TEXT("set"), TURNS},       {TEXT("statistic"), TURNS}, {TEXT("time"), TURNS},
    {TEXT("owner"), TURNS},     {TEXT("connlimit"), TURNS}, {TEXT("connbytes"), TURNS},
    {TEXT("connmark"), TURNS},  {TEXT("quota"), TURNS},     {TEXT("nfacct"), TURNS},
    {TEXT("string"), TURNS},    {TEXT("u32"), TURNS},       {TEXT("bpf"), TURNS},
    {TEXT("helper"), TURNS},    {TEXT("rpfilter"), TURNS},
};

/* NULL: it is none of them. */
static const struct match_module *find_module(struct text name) {
    for (size_t i = 0; i < COUNT(match_modules); i++) {
        if (same_text(name, match_modules[i].name))
            return &match_modules[i];
    }
    return NULL;
}

/* Targets behind which no rule of the chain sees a changed packet: they end the traversal, or let
 * the packet go on as it is. What is not listed lets it go on, perhaps as another one (MARK, CT,
 * SYNPROXY, ...), and so may a chain of the user, from which it may return. */
static const struct known_target {
    struct text name;
    bool ends;
} known_targets[] = {
    {TEXT("RETURN"), true},     {TEXT("ACCEPT"), true}, {TEXT("DROP"), true},
    {TEXT("REJECT"), true},     {TEXT("QUEUE"), true},  {TEXT("NFQUEUE"), true},
    {TEXT("SNAT"), true},       {TEXT("DNAT"), true},   {TEXT("NETMAP"), true},
    {TEXT("TPROXY"), true},     {TEXT("TARPIT"), true}, {TEXT("MASQUERADE"), true},
    {TEXT("REDIRECT"), true},   {TEXT("LOG"), false},   {TEXT("NFLOG"), false},
    {TEXT("ULOG"), false},      {TEXT("TRACE"), false}, {TEXT("AUDIT"), false},
    {TEXT("IDLETIMER"), false}, {TEXT("LED"), false},   {TEXT("RATEEST"), false},
};
_Static_assert(COUNT(known_targets) <= 32, "a bit each, in the ruleset's `shadowed`");

/* The index of a known target, COUNT(known_targets) if it is none. */
static size_t find_target(struct text name) {
    size_t i = 0;
    while (i < COUNT(known_targets) && !same_text(name, known_targets[i].name))
        i++;
    return i;
}

/* The reading of one rule. Its text is rewritten in its own place: it closes the gaps
 * that comments and double blanks leave, so it never grows over what has not been read.
 */
struct rule_reader {
    const struct ruleset *rs;
    struct words words;
    struct rule *rule;
    /* The memory for comments: those to be shown from its start on, then what is free, then
     * those that gave tags, up to its end. */
    char *shown_end;
    char *tagged_start;
    struct tags *tags;
    char *start, *end; /* what is kept of the match, then of the target */
    bool negated;      /* a `!` stands before the next option */
    bool says_all;     /* so far the five labels say it all */
    enum counters counters;
};

/* Keeps a word, one blank before it if it is not the first. Returns it where it now is.
 */
static struct text keep_word(struct rule_reader *r, struct text word) {
    if (r->end > r->start)
        *r->end++ = ' ';
    if (r->end != word.at)
        memmove(r->end, word.at, word.len);
    r->end += word.len;
    return (struct text){r->end - word.len, word.len};
}

/* Puts what an option says into its field. False if the five labels cannot say it: the
 * field is taken, or the option before was about the other side, or (iptables prints no such
 * thing) the value would look like one that is negated, or not there. */
static bool take_value(struct rule *rule, const struct option *option,
                       struct value value) {
    struct value *field = &rule->protocol;
    if (option->meaning == ADDRESS)
        field = &rule->address;
    if (option->meaning == PORT)
        field = &rule->port;
    bool misleads = *value.text.at == '!' || text_is(value.text, "all");
    if (field->text.len > 0 || misleads)
        return false;
    *field = value;
    if (option->direction == DIRECTION_NONE)
        return true;
    enum direction before = rule->direction;
    rule->direction = option->direction;
    return before == DIRECTION_NONE || before == option->direction;
}

/* Takes an option of the table with its value into the rule. False if the five labels cannot
 * say it, alone or together with those before it. */
static bool take_option(struct rule_reader *r, const struct option *option,
                        struct text value) {
    const struct match_module *module;
    switch (option->meaning) {
    case PROTOCOL:
    case ADDRESS:
    case PORT:
        return take_value(r->rule, option, (struct value){value, r->negated});
    case MATCH_MODULE:
        module = find_module(value);
        if (!module)
            r->rule->rewrites = true;
        if (!module || module->effect == TURNS)
            r->rule->stable = false;
        return !r->negated && module && module->effect == LOADS;
    case UNSTABLE:
        r->rule->stable = false;
        return false;
    default:
        return false;
    }
}

/* Copies a comment, without its quotes and the backslashes in them. Returns its end. */
static char *unquote(char *to, struct text word) {
    const char *p = word.at;
    const char *end = end_of(word);
    bool quoted = word.len >= 2 && *p == '"';
    if (quoted) {
        p++;
        end--;
    }
    /* Each turn copies up to the next backslash. What follows a backslash stands for itself,
     * even if it is one. */
    while (p < end) {
        if (quoted && *p == '\\')
            p++;
        const char *backslash =
            quoted ? memchr(p + 1, '\\', (size_t)(end - p - 1)) : NULL;
        const char *stop = backslash ? backslash : end;
        memcpy(to, p, (size_t)(stop - p));
        to += stop - p;
        p = stop;
    }
    return to;
}

/* Takes the tags of a comment. They point into it, so it goes to the end of the memory, where
 * no comment behind it comes: all comments of a line are shorter than the line. False: it gives
 * none, and is back in its place. */
static bool take_tags(struct rule_reader *r, char *comment, size_t len) {
    struct rule *rule = r->rule;
    char *moved = r->tagged_start - len;
    memmove(moved, comment, len);
    enum tag_error error =
        read_tags(between(moved, r->tagged_start), r->rs->wanted.reserved, r->tags);
    if (error == TAGS_GOOD) {
        r->tagged_start = moved;
        return true;
    }
    memmove(comment, moved, len);
    if (rule->refused_comments == 0)
        rule->tag_error = error;
    rule->refused_comments++;
    return false;
}

/* Takes the tags of a comment or, if it gives none, appends it to those before it. */
static void take_comment(struct rule_reader *r, struct text word) {
    struct rule *rule = r->rule;
    char *at = r->shown_end;
    if (rule->has_comment) {
        *at++ = ';';
        *at++ = ' ';
    }
    char *end = unquote(at, word);
    if (begins_with_text(between(at, end), tags_start) &&
        take_tags(r, at, (size_t)(end - at)))
        return;
    r->shown_end = end;
    rule->has_comment = true;
    rule->comment = between(r->rs->memory.comment, end);
}

/* Reads " packets bytes" behind a -c of a list. They stand before the target or at the
 * end, a blank behind them or not. False if these are others. */
static bool take_counters(struct words *w, struct rule *rule, enum counters *counters) {
    const char *p = w->at;
    enum counters found = parse_counters(&p, w->end, "  ", rule);
    if (found == COUNTERS_NONE)
        return false;
    const char *behind = p;
    while (p < w->end && *p == ' ')
        p++;
    struct text rest = between(p, w->end);
    bool is_target = begins_with(rest, "-j ") || begins_with(rest, "-g ");
    bool before_target = p > behind && is_target;
    if (rest.len > 0 && !before_target)
        return false;
    w->at = p;
    *counters = found;
    return true;
}

/* Whether a chain of the user has the name of this known target. */
static bool is_shadowed(const struct ruleset *rs, size_t known) {
    return (rs->shadowed >> known) & 1;
}

/* What becomes of the packet behind the target. -g leads to a user's chain, from which it does
 * not come back to this one. */
static void judge_target(struct rule_reader *r, struct text jump, struct text name) {
    size_t known = find_target(name);
    bool is_chain = known == COUNT(known_targets) || is_shadowed(r->rs, known);
    r->rule->terminal = text_is(jump, "-g") || (!is_chain && known_targets[known].ends);
    if (!r->rule->terminal && is_chain)
        r->rule->rewrites = true;
}

/* From -j or -g to the end of the line. The target's own options match nothing. In a list the
 * counters stand before the target. If there are counters among its options too, as in
 * `-c 5 60 -j SET --add-set x -c 1 2 src`, one of both is a part of a name, and nobody can tell
 * which: the rule is refused. */
static void read_target(struct rule_reader *r, struct text jump) {
    struct text word;
    struct text name = nothing;
    struct rule other;
    enum counters ignored;
    bool in_list = r->rs->wanted.dialect == DIALECT_LIST;
    r->rule->match = between(r->start, r->end);
    jump = keep_word(r, jump);
    while (next_word(&r->words, &word) == WORD) {
        struct words ahead = r->words;
        if (in_list && text_is(word, "-c") && take_counters(&ahead, &other, &ignored)) {
            r->counters = COUNTERS_NONE;
        }
        word = keep_word(r, word);
        if (name.len == 0)
            name = word;
    }
    r->rule->target = between(jump.at, r->end);
    judge_target(r, jump, name);
}

/* A word of the match, and the value behind it if it is an option of the table. */
static void read_match(struct rule_reader *r, struct text word) {
    struct text value;
    const struct option *option = r->words.option;
    if (option && next_word(&r->words, &value) != WORD)
        option = NULL; /* without a value */
    if (option && option->meaning == COMMENT) {
        take_comment(r, value);
        return;
    }
    bool is_comment_module = r->words.in_comment_match; /* the value was "comment" */
    if (option && is_comment_module)
        return; /* `-m comment` is no condition */
    word = keep_word(r, word);
    bool bang = text_is(word, "!");
    if (option)
        value = keep_word(r, value);
    bool is_said = bang || (option && take_option(r, option, value));
    if (!is_said)
        r->says_all = false;
    r->negated = bang;
}

/* Whether the labels say all is known behind the last word. */
static void judge(struct rule_reader *r) {
    struct rule *rule = r->rule;
    size_t said = rule->address.text.len + rule->port.text.len + rule->protocol.text.len;
    rule->expressible = r->says_all && !r->negated && said > 0;
    if (rule->expressible)
        return;
    rule->address = rule->protocol = rule->port = (struct value){nothing, false};
    rule->direction = DIRECTION_NONE;
}

/* Reads the words of a rule, from `start` behind the chain's name to the end of its line.
 */
static enum counters parse_rule(const struct ruleset *rs, char *start, const char *end,
                                struct rule *rule) {
    bool in_list = rs->wanted.dialect == DIALECT_LIST;
    if (start < end)
        start++; /* the blank */
    struct tags tags;
    struct rule_reader r = {
        .rs = rs,
        .words = {.at = start, .end = end},
        .rule = rule,
        .shown_end = rs->memory.comment,
        .tagged_start = rs->memory.comment + rs->memory.line_max,
        .tags = &tags,
        .start = start,
        .end = start,
        .says_all = true,
        .counters = in_list ? COUNTERS_NONE : COUNTERS_GOOD,
    };
    struct text word;
    bool has_target = false;
    rule->stable = true;
    tags.count = 0; /* (the list is large, and most rules have none) */
    while (next_word(&r.words, &word) == WORD) {
        const struct option *option = r.words.option;
        if (option && option->meaning == TARGET) {
            has_target = true;
            read_target(&r, word);
            break;
        }
        bool is_counters =
            in_list && text_is(word, "-c") && take_counters(&r.words, rule, &r.counters);
        if (!is_counters)
            read_match(&r, word);
    }
    if (!has_target)
        rule->match = between(r.start, r.end);
    judge(&r);
    /* In the gap that their comments left: they are shorter than those. */
    if (tags.count > 0)
        rule->tags = write_tags(r.end, &tags);
    return r.counters;
}

/* ---- the ruleset ----------------------------------------------------------------- */

void ruleset_begin(struct ruleset *rs, struct wanted wanted,
                   struct ruleset_memory memory) {
    *rs = (struct ruleset){
        .wanted = wanted,
        .memory = memory,
        .missing = nothing,
        .place = wanted.dialect == DIALECT_SAVE ? OUTSIDE : INSIDE,
    };
}

char *ruleset_room(struct ruleset *rs, size_t *room) {
    char *lines = rs->memory.lines;
    memmove(lines, lines + rs->start, rs->end - rs->start);
    rs->end -= rs->start;
    rs->start = 0;
    *room = rs->memory.line_max + rs->memory.room - rs->end;
    return lines + rs->end;
}

void ruleset_fed(struct ruleset *rs, size_t n) {
    rs->end += n;
    rs->ended = n == 0;
}

/* Ends the reading. The line is quoted, as far as there is room. */
static enum item fail(struct ruleset *rs, const char *what, struct text line) {
    enum {
        QUOTED_MAX = 100
    };
    int len = line.len < QUOTED_MAX ? (int)line.len : QUOTED_MAX;
    snprintf(rs->error, sizeof rs->error, "%s%.*s", what, len, line.at);
    return ITEM_ERROR;
}

/* What can only come once has come before. */
static enum item fail_changed(struct ruleset *rs, struct text line) {
    rs->changed = true;
    return fail(rs, "the ruleset changed while it was read, or there are two of: ", line);
}

/* The index of a wanted chain. False if it is another one. */
static bool find_chain(const struct ruleset *rs, struct text name, size_t *chain) {
    for (size_t i = 0; i < rs->wanted.nchains; i++) {
        if (same_text(name, rs->wanted.chains[i])) {
            *chain = i;
            return true;
        }
    }
    return false;
}

const struct rule rule_of_nothing = {
    .from = TEXT(""),
    .words = TEXT(""),
    .policy = TEXT(""),
    .match = TEXT(""),
    .target = TEXT(""),
    .comment = TEXT(""),
    .tags = TEXT(""),
    .address = {.text = TEXT("")},
    .protocol = {.text = TEXT("")},
    .port = {.text = TEXT("")},
};

/* "# Generated by PROG vVERSION (nf_tables) on DATE", or a remark. Releases before 1.8.8
 * do not name the backend there, but PROG may. */
static enum item take_comment_line(struct ruleset *rs, struct text line) {
    char head[sizeof rs->remark];
    snprintf(head, sizeof head, "%.*s", (int)line.len, line.at);
    if (begins_with(line, "# Generated by ")) {
        rs->nft = strstr(head, "nft") || strstr(head, "(nf_tables)");
    } else if (!rs->opened && line.len > 0) {
        memcpy(rs->remark, head, sizeof head);
    }
    return ITEM_MORE;
}

/* "*TABLE" */
static enum item take_table(struct ruleset *rs, struct text line, struct rule *rule) {
    (void)rule;
    struct text name = between(line.at + 1, end_of(line));
    rs->place = ELSEWHERE;
    if (!text_is(name, rs->wanted.table))
        return ITEM_MORE;
    if (rs->opened)
        return fail_changed(rs, line);
    rs->opened = true;
    rs->place = INSIDE;
    return ITEM_MORE;
}

/* "COMMIT", the end of a table. */
static enum item take_commit(struct ruleset *rs, struct text line, struct rule *rule) {
    (void)rule;
    if (!text_is(line, "COMMIT"))
        return fail(rs, "unexpected line: ", line);
    rs->place = OUTSIDE;
    return ITEM_MORE;
}

/* What stands in another table. */
static enum item pass_over(struct ruleset *rs, struct text line, struct rule *rule) {
    (void)rs;
    (void)line;
    (void)rule;
    return ITEM_MORE;
}

/* A wanted chain begins. */
static enum item open_chain(struct ruleset *rs, struct text line, size_t chain) {
    if (rs->found[chain])
        return fail_changed(rs, line);
    rs->found[chain] = true;
    rs->opened = true;
    return ITEM_MORE;
}

/* How a dialect prints the counters of a policy: what stands before them, the marks of
 * both, what stands behind them. */
static const struct policy_form {
    const char *before, *marks, *behind;
} policy_forms[] = {
    [DIALECT_SAVE] = {" ", "[:", "]"},
    [DIALECT_LIST] = {" -c", "  ", ""},
};

/* "CHAIN POLICY" with its counters. False if it is not that. */
static bool parse_policy(struct text t, enum dialect dialect, struct rule *rule) {
    const struct policy_form *form = &policy_forms[dialect];
    const char *end = end_of(t);
    const char *blank = memchr(t.at, ' ', t.len);
    if (!blank)
        return false;
    const char *name = blank + 1;
    const char *p = memchr(name, ' ', (size_t)(end - name));
    if (!p || !begins_with(between(p, end), form->before))
        return false;
    rule->policy = between(name, p);
    p += strlen(form->before);
    enum counters counters = parse_counters(&p, end, form->marks, rule);
    return counters == COUNTERS_GOOD && text_is(between(p, end), form->behind);
}

/* A user's chain may have the name of a known target; -j means the chain then. */
static void note_shadow(struct ruleset *rs, struct text name) {
    size_t known = find_target(name);
    if (known < COUNT(known_targets))
        rs->shadowed |= 1u << known;
}

/* ":CHAIN POLICY [packets:bytes]"; the policy of a user's chain is "-". */
static enum item take_saved_chain(struct ruleset *rs, struct text line,
                                  struct rule *rule) {
    struct text rest = between(line.at + 1, end_of(line));
    struct text name = between(rest.at, word_end(rest.at, end_of(rest), NULL));
    *rule = rule_of_nothing;
    note_shadow(rs, name);
    if (!find_chain(rs, name, &rule->chain))
        return ITEM_MORE;
    if (!parse_policy(rest, DIALECT_SAVE, rule)) {
        return fail(rs, "chain not understood: ", line);
    }
    if (open_chain(rs, line, rule->chain) == ITEM_ERROR)
        return ITEM_ERROR;
    return text_is(rule->policy, "-") ? ITEM_MORE : ITEM_POLICY;
}

/* In a list, "-N CHAIN": a user's chain. */
static enum item take_user_chain(struct ruleset *rs, struct text line,
                                 struct rule *rule) {
    (void)rule;
    struct text name = between(line.at + strlen("-N "), end_of(line));
    size_t chain;
    if (name.len == 0)
        return fail(rs, "unexpected line: ", line);
    if (!find_chain(rs, name, &chain))
        return fail(rs, "chain not understood: ", line);
    note_shadow(rs, name);
    return open_chain(rs, line, chain);
}

/* In a list, "-P CHAIN POLICY -c packets bytes": a built-in chain. */
static enum item take_builtin_chain(struct ruleset *rs, struct text line,
                                    struct rule *rule) {
    struct text rest = between(line.at + strlen("-P "), end_of(line));
    struct text name = between(rest.at, word_end(rest.at, end_of(rest), NULL));
    *rule = rule_of_nothing;
    bool found = find_chain(rs, name, &rule->chain);
    if (!found || !parse_policy(rest, DIALECT_LIST, rule)) {
        return fail(rs, "chain not understood: ", line);
    }
    return open_chain(rs, line, rule->chain) == ITEM_ERROR ? ITEM_ERROR : ITEM_POLICY;
}

/* Whether a rule goes on after its chain as iptables prints one: with nothing, an option
 * or a `!`. If not, it is the tail of a raw name with a newline in it, say. */
static bool begins_like_a_rule(struct text chain, const char *end) {
    struct words w = {.at = end_of(chain), .end = end};
    struct text first;
    if (next_word(&w, &first) != WORD)
        return true;
    return *first.at == '-' || *first.at == '!';
}

/* Whether a rule jumps (-j) or goes (-g) to that chain, as `iptables -L` counts references. Nothing
 * stands behind such a target, so the end of the line tells. */
static bool ends_in(struct text line, struct text chain) {
    static const size_t jump_len = sizeof " -j " - 1;
    if (line.len < chain.len + jump_len)
        return false;
    const char *name = end_of(line) - chain.len;
    if (name[chain.len - 1] != chain.at[chain.len - 1]) /* of most other rules */
        return false;
    struct text jump = between(name - jump_len, name);
    return same_text(between(name, end_of(line)), chain) &&
           (text_is(jump, " -j ") || text_is(jump, " -g "));
}

static void find_reference(const struct ruleset *rs, struct text line,
                           struct rule *rule) {
    for (size_t i = 0; i < rs->wanted.nchains && !rule->refers; i++) {
        rule->refers = ends_in(line, rs->wanted.chains[i]);
        rule->referred = i;
    }
}

/* "[packets:bytes] -A CHAIN ...", or in a list "-A CHAIN ... -c packets bytes ...". */
static enum item take_rule(struct ruleset *rs, struct text line, struct rule *rule) {
    enum dialect dialect = rs->wanted.dialect;
    struct text name;
    const char *end = end_of(line);
    *rule = rule_of_nothing;
    enum counters counters = parse_rule_head(line, dialect, rule, &name);
    if (counters == COUNTERS_NONE)
        return fail(rs, "rule not understood: ", line);
    bool ours = find_chain(rs, name, &rule->chain);
    if (dialect == DIALECT_SAVE)
        find_reference(rs, line, rule);
    rule->from = name;
    if (!ours && dialect == DIALECT_SAVE) {
        rule->words = between(name.at, end);
        return rule->refers ? ITEM_JUMP : ITEM_MORE;
    }
    if (!ours || !begins_like_a_rule(name, end)) {
        return fail(rs, "rule not understood: ", line);
    }
    if (counters == COUNTERS_TOO_LARGE) {
        return fail(rs, "a counter of 2^64 or more: ", line);
    }
    /* end_of(name), but so that it can be written: the rule is rewritten in its place. */
    char *words = rs->memory.lines + (end_of(name) - rs->memory.lines);
    counters = parse_rule(rs, words, end, rule);
    /* (The line is rewritten now: the match is what can be quoted.) */
    if (counters == COUNTERS_NONE) {
        return fail(rs, "counters not understood: ", rule->match);
    }
    if (counters == COUNTERS_TOO_LARGE) {
        return fail(rs, "a counter of 2^64 or more: ", rule->match);
    }
    return ITEM_RULE;
}

/* What iptables prints, by the beginning of a line and where it may stand. Comment lines
 * and empty ones may stand anywhere. Each function returns ITEM_MORE if there is nothing
 * in the line for the caller. */
static const struct line_kind {
    enum dialect dialect;
    unsigned places; /* enum place: one or more of them */
    struct text start;
    enum item (*take)(struct ruleset *rs, struct text line, struct rule *rule);
} line_kinds[] = {
    {DIALECT_SAVE, INSIDE, TEXT("["), take_rule},
    {DIALECT_SAVE, INSIDE, TEXT(":"), take_saved_chain},
    {DIALECT_SAVE, OUTSIDE, TEXT("*"), take_table},
    {DIALECT_SAVE, ELSEWHERE, TEXT("["), pass_over},
    {DIALECT_SAVE, ELSEWHERE, TEXT(":"), pass_over},
    {DIALECT_SAVE, INSIDE | ELSEWHERE, TEXT("COMMIT"), take_commit},
    {DIALECT_LIST, INSIDE, TEXT("-A "), take_rule},
    {DIALECT_LIST, INSIDE, TEXT("-N "), take_user_chain},
    {DIALECT_LIST, INSIDE, TEXT("-P "), take_builtin_chain},
};

static enum item take_line(struct ruleset *rs, struct text line, struct rule *rule) {
    if (line.len == 0 || *line.at == '#')
        return take_comment_line(rs, line);
    for (size_t i = 0; i < COUNT(line_kinds); i++) {
        const struct line_kind *kind = &line_kinds[i];
        bool here = kind->dialect == rs->wanted.dialect && kind->places & rs->place;
        if (here && begins_with_text(line, kind->start))
            return kind->take(rs, line, rule);
    }
    return fail(rs, "unexpected line: ", line);
}

/* The output has ended: was it whole? */
static enum item finish(struct ruleset *rs) {
    bool save = rs->wanted.dialect == DIALECT_SAVE;
    /* "# Table `filter' is incompatible, use 'nft' tool." and the like. */
    if (!rs->opened && rs->remark[0] != '\0')
        return fail(rs, rs->remark, nothing);
    if (!rs->opened && save)
        return fail(rs, "the table was not printed", nothing);
    if (save && rs->place != OUTSIDE) {
        return fail(rs, "the output ends before COMMIT", nothing);
    }
    for (size_t i = 0; i < rs->wanted.nchains; i++) {
        if (rs->found[i])
            continue;
        rs->missing = rs->wanted.chains[i];
        return fail(rs, "no chain ", rs->missing);
    }
    return ITEM_END;
}

/* Whether a line without its newline may be the last of an output. In a table a rule or a
 * chain may not; of other lines COMMIT tells whether the rest was there. A list has no COMMIT:
 * no line of it may. */
static bool may_lack_newline(const struct ruleset *rs, struct text line) {
    return rs->wanted.dialect == DIALECT_SAVE && *line.at != '[' && *line.at != ':';
}

enum item ruleset_next(struct ruleset *rs, struct rule *rule) {
    while (rs->start < rs->end) {
        struct text unread = {rs->memory.lines + rs->start, rs->end - rs->start};
        struct text line;
        enum line_end line_end = cut_line(unread, rs->wanted.dialect, &line);
        bool may_grow = !rs->ended && line.len < rs->memory.line_max;
        if (line_end == LINE_INCOMPLETE && may_grow)
            return ITEM_MORE;
        if (line.len >= rs->memory.line_max)
            return fail(rs, "a line without end: ", line);
        if (line_end == LINE_BAD)
            return fail(rs, "quotes not understood: ", line);
        if (line_end == LINE_INCOMPLETE && !may_lack_newline(rs, line)) {
            return fail(rs, "the output ends inside a line: ", line);
        }
        rs->start += line.len;
        if (line_end == LINE_WHOLE)
            rs->start++; /* the newline */
        enum item item = take_line(rs, line, rule);
        if (item != ITEM_MORE)
            return item;
    }
    return rs->ended ? finish(rs) : ITEM_MORE;
}

/* ---- what the kernel says of a chain of nft ---------------------------------------- */

/* Cuts off the first of the messages. False: there is none, or not all of it. */
static bool cut_message(struct text *from, struct text *message,
                        struct netlink_head *head) {
    if (from->len < sizeof *head)
        return false;
    memcpy(head, from->at, sizeof *head);
    if (head->len < sizeof *head || head->len > from->len)
        return false;
    *message = (struct text){from->at, head->len};
    size_t size = aligned(head->len);
    size = size < from->len ? size : from->len;
    *from = (struct text){from->at + size, from->len - size};
    return true;
}

/* The value of an attribute; nothing if the message has none of that type. */
static struct text find_attribute(struct text message, uint16_t type) {
    struct attribute head;
    for (size_t at = sizeof(struct netlink_head); at + sizeof head <= message.len;
         at += aligned(head.len)) {
        memcpy(&head, message.at + at, sizeof head);
        if (head.len < sizeof head || head.len > message.len - at)
            break;
        if (head.type == type)
            return (struct text){message.at + at + sizeof head, head.len - sizeof head};
    }
    return nothing;
}

/* Copies nothing if the message has none of that type and size. */
static void copy_attribute(struct text message, uint16_t type, void *to, size_t size) {
    struct text value = find_attribute(message, type);
    if (value.len == size)
        memcpy(to, value.at, size);
}

/* A name in a message ends with a NUL. */
static bool has_name(struct text message, uint16_t type, struct text name) {
    struct text value = find_attribute(message, type);
    return value.len == name.len + 1 && memcmp(value.at, name.at, name.len) == 0;
}

void kernel_list_begin(struct kernel_list *list, struct text table, struct text chain) {
    *list = (struct kernel_list){.table = table, .chain = chain};
}

static void note_listed(struct kernel_list *list, struct text message) {
    uint64_t before = 0; /* as with the first rule, which has none before it */
    if (!has_name(message, ATTRIBUTE_TABLE, list->table) ||
        !has_name(message, ATTRIBUTE_RULE_CHAIN, list->chain))
        return;
    copy_attribute(message, ATTRIBUTE_RULE_POSITION, &before, sizeof before);
    if (before != list->last)
        list->disturbed = true;
    copy_attribute(message, ATTRIBUTE_RULE_HANDLE, &list->last, sizeof list->last);
    list->handles = mix(list->handles, list->last);
    list->rules++;
}

void kernel_list_take(struct kernel_list *list, struct text messages) {
    struct text message;
    struct netlink_head head;
    while (!list->ended && cut_message(&messages, &message, &head)) {
        list->refused = head.type == TYPE_ERROR;
        list->ended = head.type == TYPE_DONE || list->refused;
        if (head.type == TYPE_NEW_RULE)
            note_listed(list, message);
        if (head.flags & FLAG_INTERRUPTED)
            list->disturbed = true;
    }
}

/* The highest byte comes first. 0: the answer is another one, or has no such number. */
static uint32_t find_number(struct text answer, uint16_t type, uint16_t attribute) {
    struct text message;
    struct netlink_head head;
    unsigned char bytes[4] = {0};
    if (cut_message(&answer, &message, &head) && head.type == type)
        copy_attribute(message, attribute, bytes, sizeof bytes);
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
           bytes[3];
}

uint32_t kernel_uses(struct text answer) {
    return find_number(answer, TYPE_NEW_CHAIN, ATTRIBUTE_CHAIN_USE);
}

uint32_t kernel_generation(struct text answer) {
    return find_number(answer, TYPE_NEW_GENERATION, ATTRIBUTE_GENERATION_ID);
}
