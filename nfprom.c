/* nfprom - shows the counters of an iptables chain to Prometheus, one process for one request.
 *
 * A super-server (systemd with Accept=yes, xinetd, inetd, s6, socat) starts nfprom with a connection as standard input and
 * output; -addr plays that part itself. nfprom reads one HTTP request, runs `iptables-save -c -t TABLE` through popen(3),
 * reads what it prints to the end, builds the whole answer in memory, sends it and exits. Nothing stays behind.
 *
 *   GET or HEAD of  /metrics    the exposition, text format 0.0.4; 503 or 504 with the reason if there is none
 *                   /           a page with links; iptables is not run
 *                   /-/healthy  "ok"; iptables is not run
 *
 * It refuses: other methods (405) and paths (404), what is not HTTP/1.x (400, 505), a request line over 8 KiB (414), headers
 * over 16 KiB or 100 lines (431), a request that is not there at the deadline (408). A request has no body for nfprom.
 *
 * There is one deadline (-timeout, 8 s) for the whole exchange. A 200 says that each family which reports success was
 * read to its COMMIT, with status 0, the chain found and every counter a number below 2^64. No byte of a request gets into a
 * command. Messages go to standard error or, if that is the client's connection, to syslog.
 *
 * Exit status: 0 answered, 1 nfprom or iptables failed, 2 wrong flags. */
#define _GNU_SOURCE
#include "parse.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "1.0.0"
#endif

enum {
    MS = 1000, /* all times are microseconds of the monotonic clock */
    SECOND = 1000 * MS,
    TIMEOUT_MIN = 10 * MS,
    SENDING_SHARE = 16,           /* work ends at the deadline less 1/16 of it: the answer has to be out in time */
    SCRAPE_MARGIN_MS = 500,       /* what Prometheus needs of its own timeout */
    SCRAPE_DEADLINE_MIN_MS = 100, /* however short that is */
    DRAIN_MAX = 16 << 20,         /* bytes read from a client after the answer */
    DRAIN_TIME = 2 * SECOND,
    OUTPUT_MAX = 1 << 30,         /* bytes of iptables-save; a million rules are a tenth of it */
    STORE_MAX = 256 << 20,        /* bytes of labels kept of one family */
    RESPONSE_MAX = 1 << 30,
    HEAD_ROOM = 512,              /* for the head of a response, in front of its body */
    SAID_MAX = 1000,              /* bytes kept of what iptables-save says on standard error: the last ones */
    REASON_MAX = 3000,
    NAMESPACE_MAX = 100,
    CONNECTIONS_MAX = 128,        /* at once, with -addr */
    LISTENERS_MAX = 16
};
#define TIMEOUT_MAX (3600LL * SECOND)

struct config {
    const char *chains[CHAINS_MAX];
    size_t nchains;
    const char *table, *namespace, *addr, *variant;
    bool ipv4, ipv6, print;
    long long timeout;
};

/* ---- time and messages ------------------------------------------------------------------------------------- */

static long long now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * (long long)SECOND + ts.tv_nsec / 1000;
}

/* What poll(2) takes: milliseconds until then, rounded up, 0 if it is past. */
static int ms_until(long long then)
{
    long long left = then - now();
    return left > 0 ? (int)((left + MS - 1) / MS) : 0;
}

static bool log_to_syslog;

/* One line, whatever the text holds. */
static void log_line(const char *format, ...)
{
    char line[REASON_MAX + 200];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    for (char *p = line; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    if (log_to_syslog)
        syslog(LOG_ERR, "%s", line);
    else
        dprintf(STDERR_FILENO, "nfprom: %s\n", line);
}

static bool same_file(int a, int b)
{
    struct stat sa, sb;
    return fstat(a, &sa) == 0 && fstat(b, &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

/* xinetd and inetd, and systemd by default, make the client's connection standard error too. */
static void choose_log(bool http)
{
    log_to_syslog = http && !isatty(STDERR_FILENO) &&
                    (same_file(STDERR_FILENO, STDIN_FILENO) || same_file(STDERR_FILENO, STDOUT_FILENO));
    if (log_to_syslog)
        openlog("nfprom", LOG_PID, LOG_DAEMON);
}

/* ---- flags ------------------------------------------------------------------------------------------------- */

static const char usage[] =
    "Usage: nfprom [flags], with a connection as standard input and output\n"
    "       nfprom -addr :9914 [flags]\n"
    "       nfprom -print [flags]\n"
    "  -chain NAME      chain to export, may be given more than once (default prometheus)\n"
    "  -table NAME      filter, mangle, raw, nat or security (default filter)\n"
    "  -ipv4, -ipv6     which families to read (default -ipv4=true -ipv6=false)\n"
    "  -namespace NAME  prefix of all metric names (default nfprom)\n"
    "  -variant V       nft or legacy (default: what iptables-save is on this system)\n"
    "  -timeout D       deadline of an exchange, as in 500ms, 8s, 1m30s (default 8s)\n"
    "  -addr ADDR       listen on name:port, ipv4:port, [ipv6]:port or :port\n"
    "  -print           print the metrics to standard output; no HTTP\n"
    "  -version, -help  print and exit\n";

/* What is wrong with the flags, empty if nothing. */
static char flag_error[400];

static bool wrong(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(flag_error, sizeof flag_error, format, args);
    va_end(args);
    return false;
}

static bool one_of(const char *s, const char *const *words)
{
    while (*words && strcmp(s, *words) != 0)
        words++;
    return *words != NULL;
}

static bool set_bool(bool *field, const char *flag, const char *value)
{
    static const char *const yes[] = {"1", "t", "T", "true", "TRUE", "True", NULL};
    static const char *const no[] = {"0", "f", "F", "false", "FALSE", "False", NULL};
    *field = !value || one_of(value, yes);
    return *field || one_of(value, no) || wrong("-%s=%s: a boolean is true or false", flag, value);
}

/* Go's duration: numbers with units, as in 1m30s. */
static bool set_timeout(struct config *cfg, const char *value)
{
    static const struct {
        const char *name;
        long long us;
    } units[] = {{"ms", MS}, {"us", 1}, {"s", SECOND}, {"m", 60LL * SECOND}, {"h", 3600LL * SECOND}};
    const char *p = value;
    long long sum = 0;
    do {
        long long whole = 0, part = 0, scale = 1;
        const char *digits = p;
        for (; *p >= '0' && *p <= '9'; p++)
            whole = whole < 10 * TIMEOUT_MAX ? whole * 10 + (*p - '0') : whole;
        for (p += *p == '.'; *p >= '0' && *p <= '9'; p++)
            if (scale < SECOND)
                part = part * 10 + (*p - '0'), scale *= 10;
        size_t u = 0;
        while (u < sizeof units / sizeof *units && strncmp(p, units[u].name, strlen(units[u].name)) != 0)
            u++;
        if (p == digits || u == sizeof units / sizeof *units)
            return wrong("-timeout %s: a duration has a number and a unit, as in 500ms, 8s or 1m30s", value);
        if (whole > TIMEOUT_MAX / units[u].us)
            whole = TIMEOUT_MAX / units[u].us + 1;
        sum += whole * units[u].us + part * units[u].us / scale;
        p += strlen(units[u].name);
    } while (*p && sum <= TIMEOUT_MAX);
    cfg->timeout = sum;
    return (sum >= TIMEOUT_MIN && sum <= TIMEOUT_MAX) || wrong("-timeout %s: not between 10ms and 1h", value);
}

static bool add_chain(struct config *cfg, const char *name)
{
    size_t len = strlen(name);
    if (len == 0 || len > CHAIN_NAME_MAX || *name == '-' || *name == '!')
        return wrong("-chain '%s': a chain's name has 1 to %d bytes and does not begin with - or !", name, CHAIN_NAME_MAX);
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == 0x7f)
            return wrong("-chain '%s': a chain's name has no blanks", name);
    for (size_t i = 0; i < cfg->nchains; i++)
        if (strcmp(cfg->chains[i], name) == 0)
            return wrong("-chain %s: named twice", name);
    if (cfg->nchains == CHAINS_MAX)
        return wrong("-chain %s: more than %d chains", name, CHAINS_MAX);
    cfg->chains[cfg->nchains++] = name;
    return true;
}

static bool set_namespace(struct config *cfg, const char *value)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    cfg->namespace = value;
    return (*value && strlen(value) <= NAMESPACE_MAX && (*value < '0' || *value > '9') && value[strspn(value, letters)] == '\0') ||
           wrong("-namespace '%s': 1 to %d letters, digits and _, no digit first", value, NAMESPACE_MAX);
}

/* name:port, ipv4:port, [ipv6]:port or :port. Returns the colon before the port, or NULL. */
static const char *addr_colon(const char *addr)
{
    const char *colon = strrchr(addr, ':');
    if (!colon || strlen(colon + 1) == 0 || strlen(colon + 1) > 5 || colon[1 + strspn(colon + 1, "0123456789")] != '\0')
        return NULL;
    long port = atol(colon + 1);
    bool brackets = *addr == '[';
    if (port < 1 || port > 65535 || colon - addr > 255 || (brackets ? colon[-1] != ']' : strchr(addr, ':') != colon))
        return NULL;
    return colon;
}

static bool set_value(struct config *cfg, const char *flag, const char *value)
{
    static const char *const tables[] = {"filter", "mangle", "raw", "nat", "security", NULL};
    static const char *const variants[] = {"nft", "legacy", NULL};
    if (strcmp(flag, "chain") == 0)
        return add_chain(cfg, value);
    if (strcmp(flag, "namespace") == 0)
        return set_namespace(cfg, value);
    if (strcmp(flag, "timeout") == 0)
        return set_timeout(cfg, value);
    if (strcmp(flag, "table") == 0) {
        cfg->table = value;
        return one_of(value, tables) || wrong("-table %s: must be filter, mangle, raw, nat or security", value);
    }
    if (strcmp(flag, "variant") == 0) {
        cfg->variant = value;
        return one_of(value, variants) || wrong("-variant %s: must be nft or legacy", value);
    }
    cfg->addr = value;
    return addr_colon(value) || wrong("-addr %s: must be name:port, ipv4:port, [ipv6]:port or :port, port 1 to 65535", value);
}

static void print_and_exit(const char *text)
{
    bool ok = fputs(text, stdout) >= 0 && fflush(stdout) == 0;
    exit(ok ? 0 : 1);
}

/* One flag of Go's style at argv[*i]; moves *i over a value of its own. */
static bool parse_flag(struct config *cfg, char **argv, int *i)
{
    static const char *const valued[] = {"chain", "table", "namespace", "timeout", "variant", "addr", NULL};
    char *flag = argv[*i];
    if (flag[0] != '-' || flag[1] == '\0')
        return wrong("%s: an argument that is no flag", flag);
    flag += flag[1] == '-' ? 2 : 1;
    char *value = strchr(flag, '=');
    if (value)
        *value++ = '\0';
    if (strcmp(flag, "ipv4") == 0)
        return set_bool(&cfg->ipv4, flag, value);
    if (strcmp(flag, "ipv6") == 0)
        return set_bool(&cfg->ipv6, flag, value);
    if (strcmp(flag, "print") == 0)
        return set_bool(&cfg->print, flag, value);
    bool asked = true, version = strcmp(flag, "version") == 0;
    if (version || strcmp(flag, "help") == 0 || strcmp(flag, "h") == 0) {
        if (set_bool(&asked, flag, value) && asked)
            print_and_exit(version ? "nfprom " VERSION "\n" : usage);
        return flag_error[0] == '\0';
    }
    if (!one_of(flag, valued))
        return wrong("-%s: no such flag", flag);
    if (!value && !(value = argv[*i + 1]))
        return wrong("-%s: needs a value", flag);
    if (value == argv[*i + 1])
        ++*i;
    return set_value(cfg, flag, value);
}

/* What is wrong is left in flag_error. */
static void parse_flags(struct config *cfg, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!parse_flag(cfg, argv, &i))
            return;
    if (cfg->nchains == 0)
        cfg->chains[cfg->nchains++] = "prometheus";
    if (!cfg->ipv4 && !cfg->ipv6)
        wrong("-ipv4=false without -ipv6: no family to read");
    else if (cfg->addr && cfg->print)
        wrong("-addr and -print: one or the other");
}

/* ---- buffers ----------------------------------------------------------------------------------------------- */

/* Bytes that grow by doubling up to max. After a failure (memory, max) nothing is added and `failed` stays. */
struct buffer {
    char *data;
    size_t len, size, max;
    bool failed;
};

static char *buffer_room(struct buffer *b, size_t n)
{
    if (b->failed)
        return NULL;
    if (n > b->size - b->len) {
        size_t size = b->size ? b->size : 4096;
        while (size - b->len < n && size <= b->max)
            size *= 2;
        char *data = size - b->len >= n && size <= b->max ? realloc(b->data, size) : NULL;
        if (!data) {
            b->failed = true;
            return NULL;
        }
        b->data = data;
        b->size = size;
    }
    return b->data + b->len;
}

static void put(struct buffer *b, const char *at, size_t n)
{
    char *to = buffer_room(b, n);
    if (to) {
        memcpy(to, at, n);
        b->len += n;
    }
}

static void puts_to(struct buffer *b, const char *s)
{
    put(b, s, strlen(s));
}

static void put_u64(struct buffer *b, uint64_t n)
{
    char digits[20], *p = digits + sizeof digits;
    do
        *--p = (char)('0' + n % 10);
    while ((n /= 10) > 0);
    put(b, p, (size_t)(digits + sizeof digits - p));
}

/* Length of the UTF-8 character at p (RFC 3629: no surrogates, nothing overlong, up to U+10FFFF), 0 if there is none. */
static size_t utf8_length(const unsigned char *p, size_t left)
{
    size_t n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 : *p >= 0xe0 && *p < 0xf0 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0;
    if (n == 0 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

/* The value of a label: the three escapes of the exposition format; a byte that is not UTF-8 (or NUL, at which
 * Prometheus stops reading) as the four characters \xHH, the backslash escaped in its turn. */
static void put_label_value(struct buffer *b, struct text t)
{
    const char *run = t.at, *p = t.at, *end = t.at + t.len;
    while (p < end) {
        unsigned char c = (unsigned char)*p;
        size_t n = c >= ' ' && c < 0x80 && c != '"' && c != '\\' ? 1 : 0;
        if (n == 0 && c != '"' && c != '\\' && c != '\n' && c != '\0')
            n = utf8_length((const unsigned char *)p, (size_t)(end - p));
        if (n > 0) {
            p += n;
            continue;
        }
        char hex[8];
        put(b, run, (size_t)(p - run));
        if (c == '\n')
            puts_to(b, "\\n");
        else if (c == '"' || c == '\\')
            put(b, (char[]){'\\', *p}, 2);
        else
            put(b, hex, (size_t)snprintf(hex, sizeof hex, "\\\\x%02x", c));
        run = ++p;
    }
    put(b, run, (size_t)(end - run));
}

/* name="value" with what stands before it: a comma, a negation. */
static void put_label(struct buffer *b, const char *name, const char *prefix, struct text value)
{
    puts_to(b, name);
    put(b, "=\"", 2);
    puts_to(b, prefix);
    put_label_value(b, value);
    put(b, "\"", 1);
}

/* ---- series ------------------------------------------------------------------------------------------------ */

enum kind { SEED, VERBATIM, POLICY };

struct series {
    uint64_t packets, bytes;
    size_t labels;              /* offset into the family's text */
    uint32_t len, comment_len;  /* of the labels; of `,comment="..."` behind them (SEED) */
    uint32_t key_len;           /* so many bytes of the labels say what the rule matches */
    uint32_t copies;            /* rules with this match so far; of the first of them only */
    unsigned char kind, chain;
};

struct tally {
    uint64_t exported, other, duplicate, nonterminal;
};

/* What is known of one family after its read. */
struct family {
    const char *l2proto;
    bool enabled, success, timed_out;
    long long duration;           /* microseconds */
    char reason[REASON_MAX];      /* why there is no success */
    struct buffer text, series;   /* the labels; struct series in the chain's order */
    uint32_t *index;              /* open addressing: number of a first series + 1, by the hash of its key; 0: free */
    size_t slots;
    struct tally tallies[CHAINS_MAX];
};

static struct series *series_of(const struct family *f)
{
    return (struct series *)(void *)f->series.data;
}

static size_t count_series(const struct family *f)
{
    return f->series.len / sizeof(struct series);
}

static uint64_t hash(const char *p, size_t n)
{
    uint64_t h = n, word;
    for (; n > 0; p += sizeof word < n ? sizeof word : n, n -= sizeof word < n ? sizeof word : n) {
        word = 0;
        memcpy(&word, p, sizeof word < n ? sizeof word : n);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    return h;
}

/* The place in the index of the series with this key, or the free one where it belongs. */
static uint32_t *find_slot(const struct family *f, const char *key, size_t len)
{
    for (size_t i = hash(key, len);; i++) {
        uint32_t *slot = &f->index[i & (f->slots - 1)];
        const struct series *s = *slot ? &series_of(f)[*slot - 1] : NULL;
        if (!s || (s->key_len == len && memcmp(f->text.data + s->labels, key, len) == 0))
            return slot;
    }
}

/* Keeps the index at most half full. */
static bool grow_index(struct family *f)
{
    if (2 * count_series(f) < f->slots)
        return true;
    free(f->index);
    f->slots = f->slots ? 2 * f->slots : 64;
    f->index = calloc(f->slots, sizeof *f->index);
    if (!f->index)
        return false;
    const struct series *all = series_of(f);
    for (size_t i = 0; i < count_series(f); i++)
        if (all[i].copies > 0)
            *find_slot(f, f->text.data + all[i].labels, all[i].key_len) = (uint32_t)i + 1;
    return true;
}

static void put_chain_label(struct buffer *b, const struct config *cfg, size_t chain, const char *after)
{
    if (cfg->nchains > 1) {
        put_label(b, "chain", "", (struct text){cfg->chains[chain], strlen(cfg->chains[chain])});
        puts_to(b, after);
    }
}

static void put_seed_labels(struct buffer *b, const struct config *cfg, const struct family *f, const struct rule *rule)
{
    static const char *const directions[] = {[DIRECTION_NONE] = "", [DIRECTION_IN] = "in", [DIRECTION_OUT] = "out"};
    struct text all = {"all", 3};
    put_label(b, "address", rule->address.negated ? "!" : "", rule->address.text);
    puts_to(b, ",");
    put_chain_label(b, cfg, rule->chain, ",");
    puts_to(b, "direction=\"");
    puts_to(b, directions[rule->direction]);
    puts_to(b, "\",l2proto=\"");
    puts_to(b, f->l2proto);
    put_label(b, "\",l3proto", rule->protocol.negated ? "!" : "", rule->protocol.text.len ? rule->protocol.text : all);
    put_label(b, ",port", rule->port.negated ? "!" : "", rule->port.text);
}

/* The labels of the verbatim pair as far as rule="..., its closing quote not written. The key ends with the match: rules that
 * differ in their target alone match the same. */
static void put_rule_labels(struct buffer *b, const struct config *cfg, const struct family *f, const struct rule *rule,
                            struct series *s)
{
    put_chain_label(b, cfg, rule->chain, ",");
    puts_to(b, "l2proto=\"");
    puts_to(b, f->l2proto);
    puts_to(b, "\",rule=\"");
    put_label_value(b, rule->match);
    s->key_len = (uint32_t)(b->len - s->labels);
    if (rule->match.len > 0 && rule->target.len > 0)
        puts_to(b, " ");
    put_label_value(b, rule->target);
    if (rule->match.len + rule->target.len == 0)
        puts_to(b, "*");
}

/* How many rules with the match of *s there are, *s included. */
static uint32_t count_copy(struct family *f, struct series *s)
{
    if (f->text.failed)
        return 1;
    uint32_t *slot = find_slot(f, f->text.data + s->labels, s->key_len);
    if (*slot)
        return ++series_of(f)[*slot - 1].copies;
    *slot = (uint32_t)count_series(f) + 1;
    return s->copies = 1;
}

/* A rule becomes a series: of the seed's pair if its five labels express it and it is the first to match that, of the
 * verbatim pair otherwise. False: out of memory or room. */
static bool add_rule(const struct config *cfg, struct family *f, const struct rule *rule)
{
    struct series s = {rule->packets, rule->bytes, f->text.len, 0, 0, 0, 0, SEED, (unsigned char)rule->chain};
    struct tally *tally = &f->tallies[rule->chain];
    uint32_t copy = 0;
    if (!grow_index(f))
        return false;
    if (rule->expressible) {
        put_seed_labels(&f->text, cfg, f, rule);
        s.key_len = s.len = (uint32_t)(f->text.len - s.labels);
        copy = count_copy(f, &s);
    }
    if (copy == 1) {
        if (rule->comment.len > 0)
            put_label(&f->text, ",comment", "", rule->comment);
        s.comment_len = (uint32_t)(f->text.len - s.labels) - s.len;
        tally->exported++;
        tally->nonterminal += !rule->terminal;
    } else {
        char dup[24] = "";
        s.kind = VERBATIM;
        f->text.len = s.labels;
        put_rule_labels(&f->text, cfg, f, rule, &s);
        if (copy == 0)
            copy = count_copy(f, &s);
        if (copy > 1)
            snprintf(dup, sizeof dup, "%u", copy);
        put_label(&f->text, "\",comment", "", rule->comment);
        put_label(&f->text, ",dup", dup, (struct text){"", 0});
        s.len = (uint32_t)(f->text.len - s.labels);
        ++*(copy > 1 ? &tally->duplicate : &tally->other);
    }
    put(&f->series, (const char *)&s, sizeof s);
    return !f->text.failed && !f->series.failed;
}

static bool add_policy(const struct config *cfg, struct family *f, const struct rule *rule)
{
    struct series s = {rule->packets, rule->bytes, f->text.len, 0, 0, 0, 0, POLICY, (unsigned char)rule->chain};
    put_chain_label(&f->text, cfg, rule->chain, ",");
    puts_to(&f->text, "l2proto=\"");
    puts_to(&f->text, f->l2proto);
    put_label(&f->text, "\",policy", "", rule->target);
    s.len = (uint32_t)(f->text.len - s.labels);
    put(&f->series, (const char *)&s, sizeof s);
    return !f->text.failed && !f->series.failed;
}

static void forget(struct family *f)
{
    free(f->text.data);
    free(f->series.data);
    free(f->index);
    f->index = NULL;
    f->slots = 0;
    f->text = (struct buffer){.max = STORE_MAX};
    f->series = (struct buffer){.max = STORE_MAX};
    memset(f->tallies, 0, sizeof f->tallies);
}

/* ---- one run of iptables-save ------------------------------------------------------------------------------ */

/* The collector: a child of nfprom that leads a process group of its own, in which popen's shell becomes iptables-save. So a
 * command that hangs can be killed with all that it started, and the client's socket, which the collector does not have,
 * ends when nfprom says so. */
struct run {
    pid_t collector;
    int out, err;          /* read ends: what the command prints, and what it complains of */
    int status;            /* exit status as a shell counts: 128 + the signal */
    bool timed_out;
    size_t said_len;
    char said[SAID_MAX + 1];
};

static void end_group(int signal)
{
    (void)signal;
    kill(0, SIGKILL);
}

/* Only the collector comes here. The command's standard input is popen's pipe, closed at once by pclose. */
static _Noreturn void collect(const char *command, pid_t parent, int out, int err)
{
    setpgid(0, 0);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGTERM, end_group);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* nfprom killed: nothing may be left behind */
    if (getppid() != parent || dup2(err, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 || dup2(err, STDERR_FILENO) < 0)
        _exit(126);
    FILE *pipe = popen(command, "we");
    int status = pipe ? pclose(pipe) : -1;
    if (status < 0) {
        dprintf(STDERR_FILENO, "cannot run the shell: %s\n", strerror(errno));
        _exit(126);
    }
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static bool start(struct run *run, const char *command)
{
    int out[2] = {-1, -1}, err[2] = {-1, -1};
    pid_t parent = getpid();
    *run = (struct run){.out = -1, .err = -1, .collector = -1};
    if (pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0)
        run->collector = fork();
    if (run->collector == 0)
        collect(command, parent, out[1], err[1]);
    int error = errno;
    if (run->collector > 0)
        setpgid(run->collector, run->collector); /* whoever comes first */
    close(out[1]);
    close(err[1]);
    run->out = out[0];
    run->err = err[0];
    errno = error;
    return run->collector > 0;
}

/* Kills what is left of the group before its leader is reaped: until then nobody else can have its number. */
static void finish(struct run *run)
{
    int status = 0;
    if (run->collector > 0) {
        kill(-run->collector, SIGKILL);
        while (waitpid(run->collector, &status, 0) < 0 && errno == EINTR)
            ;
        run->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    close(run->out);
    close(run->err);
}

/* Keeps the end of what the command says. False at its end. */
static bool hear(struct run *run)
{
    char piece[SAID_MAX];
    ssize_t n = read(run->err, piece, sizeof piece);
    if (n <= 0)
        return n < 0 && errno == EINTR;
    size_t keep = run->said_len + (size_t)n > SAID_MAX ? SAID_MAX - (size_t)n : run->said_len;
    memmove(run->said, run->said + run->said_len - keep, keep);
    memcpy(run->said + keep, piece, (size_t)n);
    run->said_len = keep + (size_t)n;
    run->said[run->said_len] = '\0';
    return true;
}

/* Hands what the reader has to the family, to the end of what was fed. ITEM_MORE, ITEM_END or ITEM_ERROR. */
static enum item take_items(const struct config *cfg, struct ruleset *rs, struct family *f)
{
    struct rule rule;
    for (;;) {
        enum item item = ruleset_next(rs, &rule);
        if (item != ITEM_RULE && item != ITEM_POLICY)
            return item;
        if (!(item == ITEM_RULE ? add_rule(cfg, f, &rule) : add_policy(cfg, f, &rule))) {
            snprintf(rs->error, sizeof rs->error, "out of memory after %zu rules", count_series(f));
            return ITEM_ERROR;
        }
    }
}

/* Reads the run to its end, a reader's error or the deadline. */
static enum item read_run(const struct config *cfg, struct run *run, struct ruleset *rs, struct family *f, long long deadline)
{
    enum item item = ITEM_MORE;
    struct pollfd fds[2] = {{.fd = run->out, .events = POLLIN}, {.fd = run->err, .events = POLLIN}};
    long long total = 0;
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        int ready = poll(fds, 2, ms_until(deadline));
        if (ready == 0 || now() >= deadline) {
            run->timed_out = true;
            return ITEM_ERROR;
        }
        if (ready > 0 && fds[1].revents && !hear(run))
            fds[1].fd = -1;
        if (ready < 0 || !fds[0].revents)
            continue;
        size_t room;
        char *to = ruleset_room(rs, &room);
        ssize_t n = read(run->out, to, room);
        if (n < 0)
            continue;
        total += n;
        ruleset_fed(rs, (size_t)n);
        item = take_items(cfg, rs, f);
        if (item == ITEM_MORE && total > OUTPUT_MAX)
            snprintf(rs->error, sizeof rs->error, "output without end: more than %d bytes", OUTPUT_MAX);
        if (n > 0 && (item == ITEM_ERROR || total > OUTPUT_MAX))
            return ITEM_ERROR;
        if (n == 0)
            fds[0].fd = -1;
    }
    return item;
}

/* ---- a family ---------------------------------------------------------------------------------------------- */

enum { CAP_NET_ADMIN = 12 }; /* linux/capability.h, which not every libc's headers bring */

/* Whether iptables-save, started by this process, will have CAP_NET_ADMIN: root has, others if it is ambient. */
static bool may_read(void)
{
    struct {
        uint32_t version;
        int pid;
    } head = {0x20080522, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } sets[2] = {{0, 0, 0}, {0, 0, 0}};
    if (syscall(SYS_capget, &head, sets) != 0)
        return geteuid() == 0;
    return (sets[0].effective >> CAP_NET_ADMIN & 1) &&
           (geteuid() == 0 || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_ADMIN, 0, 0) == 1);
}

struct command {
    char run[120];      /* for the shell */
    const char *save;   /* the same without "exec " */
    char iptables[24];  /* the command that changes the same rules */
    bool sudo;
};

static struct command command_of(const struct config *cfg, const struct family *f)
{
    struct command c = {.sudo = !may_read()};
    const char *ip = strcmp(f->l2proto, "ipv6") == 0 ? "ip6tables" : "iptables";
    const char *dash = cfg->variant ? "-" : "", *variant = cfg->variant ? cfg->variant : "";
    snprintf(c.iptables, sizeof c.iptables, "%s%s%s", ip, dash, variant);
    snprintf(c.run, sizeof c.run, "exec %s%s-save -c -t %s", c.sudo ? "sudo -n " : "", c.iptables, cfg->table);
    return c;
}

/* The last lines of what was said, as one. */
static void flatten(char *s)
{
    size_t len = strlen(s);
    while (len > 0 && (s[len - 1] == '\n' || s[len - 1] == ' '))
        s[--len] = '\0';
    for (; *s; s++)
        if (*s == '\n')
            *s = ';';
}

static bool says(const struct run *run, const char *what)
{
    return strstr(run->said, what) != NULL;
}

/* What the reader of a reason should do about it; empty if we do not know. */
static void put_advice(char *to, size_t size, const struct config *cfg, const struct command *c, const struct run *run,
                       const struct ruleset *rs)
{
    bool denied = says(run, "ermission denied") || says(run, "must be root") || says(run, "not permitted");
    const char *save = c->run + strlen("exec ") + (c->sudo ? strlen("sudo -n ") : 0);
    if (rs->missing) {
        snprintf(to, size, "; make it with: %s -t %s -N %s, and send packets to it with: %s -t %s -I INPUT -j %s (README, The chain)%s",
                 c->iptables, cfg->table, rs->missing, c->iptables, cfg->table, rs->missing,
                 !says(run, "legacy tables present") ? ""
                                                     : "; there are rules of the legacy backend too: if it is there, use -variant legacy");
    } else if (c->sudo) {
        snprintf(to, size, "; nfprom has no CAP_NET_ADMIN: give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN),"
                           " or a line in sudoers: USER ALL=(root) NOPASSWD: /usr/sbin/%s", save);
    } else if (denied) {
        snprintf(to, size, "; it needs CAP_NET_ADMIN, and the legacy backend CAP_NET_RAW too (README, Rights)");
    } else if (run->status == 127) {
        snprintf(to, size, "; install iptables, or add its place to PATH");
    }
}

/* Puts the reason why the run was no success into f->reason. */
static void explain(const struct config *cfg, struct family *f, const struct command *c, struct run *run,
                    const struct ruleset *rs, enum item item, bool ended)
{
    char advice[500] = "";
    const char *save = c->run + strlen("exec ");
    flatten(run->said);
    if (run->timed_out) {
        snprintf(f->reason, sizeof f->reason, "`%s` did not end in time and was killed (-timeout, or the scraper's own); %s", save,
                 run->said);
        f->timed_out = true;
        return;
    }
    put_advice(advice, sizeof advice, cfg, c, run, rs);
    if (ended && run->status != 0)
        snprintf(f->reason, sizeof f->reason, "`%s` ended with status %d: %s%s", save, run->status, run->said, advice);
    else
        snprintf(f->reason, sizeof f->reason, "`%s`: %s%s%s%s", save, item == ITEM_ERROR ? rs->error : "no end", advice,
                 run->said_len ? "; it said: " : "", run->said);
}

/* One run from start to end. True: success, the family holds what was read. */
static bool run_once(const struct config *cfg, struct family *f, struct ruleset *rs, long long deadline)
{
    struct command c = command_of(cfg, f);
    struct run run;
    forget(f);
    ruleset_begin(rs, cfg->table, cfg->chains, cfg->nchains);
    if (!start(&run, c.run)) {
        snprintf(f->reason, sizeof f->reason, "cannot start a process: %s", strerror(errno));
        finish(&run);
        return false;
    }
    enum item item = read_run(cfg, &run, rs, f, deadline);
    bool ended = rs->ended;
    finish(&run);
    if (item == ITEM_END && run.status == 0 && !run.timed_out)
        return true;
    explain(cfg, f, &c, &run, rs, item, ended);
    return false;
}

static const char *lock_name(void)
{
    const char *name = getenv("XTABLES_LOCKFILE");
    return name && *name ? name : "/run/xtables.lock";
}

/* Waits for the shared lock; flock(2) has no timeout, so it is asked for again and again. */
static bool wait_for_lock(int lock, long long deadline)
{
    while (flock(lock, LOCK_SH | LOCK_NB) != 0) {
        if (now() >= deadline)
            return false;
        poll(NULL, 0, 2);
    }
    return true;
}

/* Reads a family. The legacy backend replaces its whole table at each change, and for a moment all counters are 0: such a read
 * counts only if it was done under the lock that the changers hold. nft has no such moment, and which backend it was is
 * known from its output; so a lock that somebody else holds is waited for only if it matters. Where the lock cannot be
 * opened (it belongs to root) the read is done without. */
static void read_family(const struct config *cfg, struct family *f, long long deadline)
{
    static struct ruleset rs; /* large, and no memory is touched that is not needed */
    long long started = now();
    int lock = open(lock_name(), O_RDONLY | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
    bool locked = lock >= 0 && flock(lock, LOCK_SH | LOCK_NB) == 0;
    f->success = run_once(cfg, f, &rs, deadline);
    if (lock >= 0 && !locked && !rs.nft && !f->timed_out) {
        if (wait_for_lock(lock, deadline)) {
            f->success = run_once(cfg, f, &rs, deadline);
        } else {
            f->success = false;
            snprintf(f->reason, sizeof f->reason, "another process holds the lock of the legacy tables, %s, all the time", lock_name());
        }
    }
    if (lock >= 0)
        close(lock);
    if (!f->success)
        forget(f);
    f->duration = now() - started;
}

/* ---- the exposition ---------------------------------------------------------------------------------------- */

struct metric {
    const char *name, *type, *help;
};

/* HELP and TYPE, once, before the first sample. */
static void put_head(struct buffer *out, const struct config *cfg, const struct metric *m, bool *done)
{
    if (*done)
        return;
    *done = true;
    const char *parts[] = {"# HELP ", cfg->namespace, "_", m->name, " ", m->help, "\n# TYPE ", cfg->namespace, "_", m->name, " ",
                           m->type, "\n"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        puts_to(out, parts[i]);
}

/* All samples of a metric that series of this kind give. `what`: p packets, b bytes, i the comment as information. */
static void put_series(struct buffer *out, const struct config *cfg, const struct family *families, const struct metric *m,
                       enum kind kind, char what)
{
    char name[NAMESPACE_MAX + 40];
    bool headed = false;
    int n = snprintf(name, sizeof name, "%s_%s{", cfg->namespace, m->name);
    for (const struct family *f = families; f < families + 2; f++) {
        const struct series *s = series_of(f);
        for (size_t left = count_series(f); left > 0; left--, s++) {
            if (s->kind != kind || (what == 'i' && s->comment_len == 0))
                continue;
            put_head(out, cfg, m, &headed);
            put(out, name, (size_t)n);
            put(out, f->text.data + s->labels, s->len + (what == 'i' ? s->comment_len : 0));
            put(out, "} ", 2);
            put_u64(out, what == 'i' ? 1 : what == 'p' ? s->packets : s->bytes);
            put(out, "\n", 1);
        }
    }
}

/* The beginning of a sample about a family: name{[chain="...",]l2proto="...". */
static void put_sample(struct buffer *out, const struct config *cfg, const struct metric *m, const struct family *f, int chain)
{
    const char *parts[] = {cfg->namespace, "_", m->name, "{"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        puts_to(out, parts[i]);
    if (chain >= 0)
        put_chain_label(out, cfg, (size_t)chain, ",");
    put_label(out, "l2proto", "", (struct text){f->l2proto, strlen(f->l2proto)});
}

static void put_tallies(struct buffer *out, const struct config *cfg, const struct family *families)
{
    static const struct metric rules = {"rules", "gauge", "Rules of the chain: exported by their labels, other (verbatim), duplicate."};
    static const struct metric nonterminal = {"nonterminal_rules", "gauge",
                                              "Exported rules after which a packet may be counted by a later rule too."};
    for (int second = 0; second < 2; second++) {
        const struct metric *m = second ? &nonterminal : &rules;
        bool headed = false;
        for (const struct family *f = families; f < families + 2; f++) {
            for (size_t chain = 0; f->success && chain < cfg->nchains; chain++) {
                const struct tally *t = &f->tallies[chain];
                const char *const kinds[] = {",kind=\"exported\"} ", ",kind=\"other\"} ", ",kind=\"duplicate\"} ", "} "};
                const uint64_t values[] = {t->exported, t->other, t->duplicate, t->nonterminal};
                put_head(out, cfg, m, &headed);
                for (int k = second ? 3 : 0; k < (second ? 4 : 3); k++) {
                    put_sample(out, cfg, m, f, (int)chain);
                    puts_to(out, kinds[k]);
                    put_u64(out, values[k]);
                    puts_to(out, "\n");
                }
            }
        }
    }
}

static void put_self(struct buffer *out, const struct config *cfg, const struct family *families)
{
    static const struct metric build = {"build_info", "gauge", "The nfprom that answers."};
    static const struct metric success = {"scrape_success", "gauge", "Whether the family was read to its end."};
    static const struct metric duration = {"scrape_duration_seconds", "gauge", "How long the read of the family took."};
    bool headed[3] = {false, false, false};
    put_head(out, cfg, &build, &headed[0]);
    puts_to(out, cfg->namespace);
    puts_to(out, "_build_info{version=\"" VERSION "\"} 1\n");
    for (const struct family *f = families; f < families + 2; f++) {
        if (f->enabled) {
            put_head(out, cfg, &success, &headed[1]);
            put_sample(out, cfg, &success, f, -1);
            puts_to(out, f->success ? "} 1\n" : "} 0\n");
        }
    }
    for (const struct family *f = families; f < families + 2; f++) {
        if (f->enabled) {
            char value[40];
            snprintf(value, sizeof value, "} %lld.%06lld\n", f->duration / SECOND, f->duration % SECOND);
            put_head(out, cfg, &duration, &headed[2]);
            put_sample(out, cfg, &duration, f, -1);
            puts_to(out, value);
        }
    }
}

static void put_exposition(struct buffer *out, const struct config *cfg, const struct family *families)
{
    static const struct {
        struct metric metric;
        enum kind kind;
        char what;
    } all[] = {
        {{"packets_total", "counter", "Packets counted by a rule that the labels express."}, SEED, 'p'},
        {{"bytes_total", "counter", "Bytes counted by a rule that the labels express."}, SEED, 'b'},
        {{"rule_info", "gauge", "The comment of a rule that the labels express."}, SEED, 'i'},
        {{"rule_packets_total", "counter", "Packets counted by any other rule."}, VERBATIM, 'p'},
        {{"rule_bytes_total", "counter", "Bytes counted by any other rule."}, VERBATIM, 'b'},
        {{"policy_packets_total", "counter", "Packets that came to the policy of a built-in chain."}, POLICY, 'p'},
        {{"policy_bytes_total", "counter", "Bytes that came to the policy of a built-in chain."}, POLICY, 'b'},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        put_series(out, cfg, families, &all[i].metric, all[i].kind, all[i].what);
    put_tallies(out, cfg, families);
    put_self(out, cfg, families);
}

enum outcome { SCRAPED, FAILED, TIMED_OUT };

/* Reads the enabled families and logs what fails. SCRAPED if one of them succeeded. */
static enum outcome scrape(const struct config *cfg, struct family *families, long long deadline)
{
    enum outcome outcome = FAILED;
    families[0] = (struct family){.l2proto = "ipv4", .enabled = cfg->ipv4};
    families[1] = (struct family){.l2proto = "ipv6", .enabled = cfg->ipv6};
    for (struct family *f = families; f < families + 2; f++) {
        if (!f->enabled)
            continue;
        read_family(cfg, f, deadline);
        if (f->success)
            outcome = SCRAPED;
        else
            log_line("%s: %s", f->l2proto, f->reason);
        if (f->timed_out && outcome == FAILED)
            outcome = TIMED_OUT;
    }
    return outcome;
}

/* ---- HTTP -------------------------------------------------------------------------------------------------- */

struct answer {
    int status;
    const char *type;     /* NULL: plain text */
    struct buffer *body;  /* HEAD_ROOM bytes and then the body */
    bool head;            /* the request was HEAD */
};

static const char *reason_phrase(int status)
{
    static const struct {
        int status;
        const char *phrase;
    } phrases[] = {
        {200, "OK"}, {400, "Bad Request"}, {404, "Not Found"}, {405, "Method Not Allowed"}, {408, "Request Timeout"},
        {414, "URI Too Long"}, {431, "Request Header Fields Too Large"}, {500, "Internal Server Error"},
        {503, "Service Unavailable"}, {504, "Gateway Timeout"}, {505, "HTTP Version Not Supported"},
    };
    size_t i = 0;
    while (phrases[i].status != status)
        i++;
    return phrases[i].phrase;
}

/* The whole answer in one piece: the head is put right in front of the body. Returns where it starts. */
static const char *build_answer(const struct answer *a, size_t *len)
{
    char head[HEAD_ROOM], date[40];
    time_t t = time(NULL);
    struct tm tm;
    size_t body = a->body->len - HEAD_ROOM;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&t, &tm));
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%sConnection: close\r\n\r\n",
                     a->status, reason_phrase(a->status), date, a->type ? a->type : "text/plain; charset=utf-8", body,
                     a->status == 405 ? "Allow: GET, HEAD\r\n" : "");
    char *start = a->body->data + HEAD_ROOM - n;
    memcpy(start, head, (size_t)n);
    *len = (size_t)n + (a->head ? 0 : body);
    return start;
}

/* False if the client went away or does not read until the deadline: nothing can be told it any more. */
static bool send_all(const char *p, size_t len, long long deadline)
{
    while (len > 0) {
        ssize_t n = send(STDOUT_FILENO, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == ENOTSOCK) /* a pipe that poll calls writable takes PIPE_BUF bytes without blocking */
            n = write(STDOUT_FILENO, p, len < 4096 ? len : 4096);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
        struct pollfd fd = {.fd = STDOUT_FILENO, .events = POLLOUT};
        if (len > 0 && poll(&fd, 1, ms_until(deadline)) == 0)
            return false;
    }
    return true;
}

/* Half-closes, then reads what the client still sends: a close with unread input would make TCP throw away the answer. */
static void drain(long long deadline)
{
    static char waste[16 * 1024];
    struct pollfd fd = {.fd = STDIN_FILENO, .events = POLLIN};
    long long until = now() + DRAIN_TIME < deadline ? now() + DRAIN_TIME : deadline;
    if (shutdown(STDOUT_FILENO, SHUT_WR) != 0 && errno == ENOTSOCK)
        close(STDOUT_FILENO);
    for (long total = 0; total < DRAIN_MAX && poll(&fd, 1, ms_until(until)) > 0;) {
        ssize_t n = read(STDIN_FILENO, waste, sizeof waste);
        if (n <= 0)
            return;
        total += n;
    }
}

/* Sends, half-closes, drains. Nothing is said on the connection after it. */
static void answer(const struct answer *a, long long deadline)
{
    size_t len;
    const char *start = build_answer(a, &len);
    if (send_all(start, len, deadline))
        drain(deadline);
}

/* A short answer out of static memory, so that it can be given when there is none left. */
static void answer_text(int status, bool head, long long deadline, const char *format, ...)
{
    static char data[HEAD_ROOM + 2 * REASON_MAX + 200];
    struct buffer body = {.data = data, .len = HEAD_ROOM, .size = sizeof data};
    va_list args;
    va_start(args, format);
    vsnprintf(data + HEAD_ROOM, sizeof data - HEAD_ROOM, format, args);
    va_end(args);
    body.len += strlen(data + HEAD_ROOM);
    struct answer a = {status, NULL, &body, head};
    if (status == 200 && data[HEAD_ROOM] == '<')
        a.type = "text/html; charset=utf-8";
    answer(&a, deadline);
}

/* Reads a request into buf. Its status (request_parse), 408, 0 if there is nobody to answer, -1 if input fails. */
static int read_request(char *buf, struct request *req, long long deadline)
{
    size_t len = 0;
    for (;;) {
        struct pollfd fd = {.fd = STDIN_FILENO, .events = POLLIN};
        int ready = poll(&fd, 1, ms_until(deadline));
        if (ready == 0 || now() >= deadline)
            return 408;
        ssize_t n = ready < 0 ? -1 : read(STDIN_FILENO, buf + len, REQUEST_MAX - len);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return errno == EBADF || errno == EISDIR ? -1 : 0;
        len += (size_t)n;
        int status = len > 0 ? request_parse(buf, len, req) : 0;
        if (status != 0)
            return status;
        if (n == 0)
            return len > 0 ? 400 : 0;
        if (len == REQUEST_MAX)
            return 431;
    }
}

static const char *advice_for(int status)
{
    switch (status) {
    case 408: return "The request was not complete in time; it ends with an empty line.\n";
    case 414: return "The request line is longer than 8 KiB; ask for /metrics.\n";
    case 431: return "More than 16 KiB or 100 lines of headers; send fewer.\n";
    case 505: return "Only HTTP/1.0 and HTTP/1.1 are spoken here.\n";
    default: return "This is no HTTP/1 request: a request line, one Host header, an empty line. (TLS is not spoken here.)\n";
    }
}

static int answer_metrics(const struct config *cfg, const struct request *req, bool head, long long started)
{
    static struct family families[2];
    long long deadline = started + cfg->timeout;
    if (req->scrape_timeout_ms >= 0) {
        long ms = req->scrape_timeout_ms - SCRAPE_MARGIN_MS;
        long long wanted = started + (long long)(ms > SCRAPE_DEADLINE_MIN_MS ? ms : SCRAPE_DEADLINE_MIN_MS) * MS;
        deadline = wanted < deadline ? wanted : deadline;
    }
    enum outcome outcome = scrape(cfg, families, deadline - (deadline - started) / SENDING_SHARE);
    if (outcome == SCRAPED) {
        struct buffer body = {.max = RESPONSE_MAX};
        if (buffer_room(&body, HEAD_ROOM))
            body.len = HEAD_ROOM;
        put_exposition(&body, cfg, families);
        if (!body.failed) {
            struct answer a = {200, "text/plain; version=0.0.4; charset=utf-8", &body, head};
            answer(&a, deadline);
            return 0;
        }
        log_line("out of memory for the response");
        answer_text(503, head, deadline, "out of memory for the response\n");
        return 1;
    }
    const struct family *v4 = &families[0], *v6 = &families[1];
    answer_text(outcome == TIMED_OUT ? 504 : 503, head, deadline, "%s%s%s%s%s%s", v4->enabled ? "ipv4: " : "", v4->reason,
                v4->enabled ? "\n" : "", v6->enabled ? "ipv6: " : "", v6->reason, v6->enabled ? "\n" : "");
    return 1;
}

static const char landing_page[] =
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>nfprom</title></head>\n<body><h1>nfprom</h1>\n"
    "<p>The packet and byte counters of an iptables chain, for Prometheus.</p>\n<ul>\n"
    "<li><a href=\"/metrics\">/metrics</a>: the counters, as Prometheus reads them</li>\n"
    "<li><a href=\"/-/healthy\">/-/healthy</a>: whether nfprom is started at all</li>\n</ul>\n"
    "<p>nfprom " VERSION "</p></body></html>\n";

/* One exchange on standard input and output. Returns the exit status. */
static int serve(const struct config *cfg)
{
    static char buf[REQUEST_MAX];
    struct request req;
    long long started = now(), deadline = started + cfg->timeout;
    int status = read_request(buf, &req, deadline - cfg->timeout / SENDING_SHARE);
    if (status < 0)
        log_line("standard input cannot be read: %s", strerror(errno));
    if (status <= 0)
        return status < 0;
    bool head = status == 200 && text_is(req.method, "HEAD");
    if (flag_error[0] != '\0') {
        answer_text(500, head, deadline, "nfprom is started with a wrong flag: %s\n", flag_error);
        return 2;
    }
    if (status != 200)
        answer_text(status, false, deadline, "%s", advice_for(status));
    else if (!head && !text_is(req.method, "GET"))
        answer_text(405, false, deadline, "Only GET and HEAD are answered; ask for /metrics.\n");
    else if (text_is(req.path, "/metrics"))
        return answer_metrics(cfg, &req, head, started);
    else if (text_is(req.path, "/"))
        answer_text(200, head, deadline, "%s", landing_page);
    else if (text_is(req.path, "/-/healthy"))
        answer_text(200, head, deadline, "ok\n");
    else
        answer_text(404, head, deadline, "There is /metrics, /-/healthy and / here.\n");
    return 0;
}

/* ---- -print ------------------------------------------------------------------------------------------------ */

static int print_exposition(const struct config *cfg)
{
    static struct family families[2];
    struct buffer out = {.max = RESPONSE_MAX};
    if (scrape(cfg, families, now() + cfg->timeout) != SCRAPED)
        return 1;
    put_exposition(&out, cfg, families);
    if (out.failed) {
        log_line("out of memory for the exposition");
        return 1;
    }
    for (size_t done = 0; done < out.len;) {
        ssize_t n = write(STDOUT_FILENO, out.data + done, out.len - done);
        if (n < 0 && errno != EINTR) {
            log_line("standard output: %s", strerror(errno));
            return 1;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* ---- -addr ------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t stopped;

static void on_stop(int signal)
{
    (void)signal;
    stopped = 1;
}

static void on_child(int signal)
{
    (void)signal; /* only ends the wait in ppoll */
}

/* Listens on one address; the socket, -1 if this machine does not have that kind of address, -2 if it failed. */
static int listen_on(const struct addrinfo *ai)
{
    int on = 1, fd = socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, ai->ai_protocol);
    if (fd < 0)
        return errno == EAFNOSUPPORT ? -1 : -2;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (ai->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return error == EADDRNOTAVAIL ? -1 : -2;
}

/* Listens on all addresses of ADDR. The number of listeners, 0 after a message. */
static size_t listen_all(const char *addr, struct pollfd *listeners)
{
    char host[260];
    const char *colon = addr_colon(addr);
    bool brackets = *addr == '[';
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *list;
    snprintf(host, sizeof host, "%.*s", (int)(colon - addr) - 2 * brackets, addr + brackets);
    int error = getaddrinfo(*host ? host : NULL, colon + 1, &hints, &list);
    if (error) {
        log_line("-addr %s: %s", addr, gai_strerror(error));
        return 0;
    }
    size_t n = 0;
    int fd = -1;
    for (const struct addrinfo *ai = list; ai && n < LISTENERS_MAX && fd != -2; ai = ai->ai_next)
        if ((fd = listen_on(ai)) >= 0)
            listeners[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
    freeaddrinfo(list);
    if (n == 0 || fd == -2) {
        log_line("-addr %s: cannot listen: %s", addr, strerror(errno));
        return 0;
    }
    return n;
}

static size_t reap(size_t children)
{
    while (children > 0 && waitpid(-1, NULL, WNOHANG) > 0)
        children--;
    return children;
}

/* In the child of a connection: everything is as a super-server would have left it. */
static int serve_connection(const struct config *cfg, int fd, const sigset_t *mask, pid_t parent)
{
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, mask, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent || dup2(fd, STDIN_FILENO) < 0 || dup2(fd, STDOUT_FILENO) < 0)
        return 1;
    return serve(cfg);
}

/* Says so instead of a silent close; the request is not read, the listener waits for nobody. */
static void turn_away(int fd)
{
    static const char busy[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 34\r\n"
                               "Connection: close\r\n\r\nnfprom cannot start a process now\n";
    (void)!send(fd, busy, sizeof busy - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
}

/* Takes one connection. False where this cannot go on just now: the reason is logged, the caller waits a moment. */
static bool take_connection(const struct config *cfg, int listener, const sigset_t *mask, size_t *children)
{
    pid_t parent = getpid();
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        bool shortage = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
        if (shortage)
            log_line("-addr: a connection waits: %s", strerror(errno));
        return !shortage;
    }
    pid_t child = fork();
    if (child == 0)
        _exit(serve_connection(cfg, fd, mask, parent));
    if (child < 0) {
        log_line("-addr: a connection is turned away, no process for it: %s", strerror(errno));
        turn_away(fd);
    } else {
        ++*children;
    }
    close(fd);
    return child > 0;
}

/* Until SIGTERM or SIGINT. Then those that are being answered get a second; the kernel ends the rest with us. */
static int listen_and_serve(const struct config *cfg)
{
    struct pollfd listeners[LISTENERS_MAX];
    size_t n = listen_all(cfg->addr, listeners), children = 0;
    sigset_t blocked, mask;
    sigemptyset(&mask);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    signal(SIGTERM, on_stop);
    signal(SIGINT, on_stop);
    signal(SIGCHLD, on_child);
    if (n == 0)
        return 1;
    while (!stopped) {
        bool room = children < CONNECTIONS_MAX, short_of = false;
        if (ppoll(listeners, room ? n : 0, NULL, &mask) > 0)
            for (size_t i = 0; i < n; i++)
                if (listeners[i].revents && !take_connection(cfg, listeners[i].fd, &mask, &children))
                    short_of = true;
        children = reap(children);
        if (short_of && !stopped)
            ppoll(NULL, 0, &(struct timespec){.tv_nsec = 100L * 1000 * 1000}, &mask);
    }
    for (size_t i = 0; i < n; i++)
        close(listeners[i].fd);
    for (long long until = now() + SECOND; (children = reap(children)) > 0 && now() < until;)
        ppoll(NULL, 0, &(struct timespec){.tv_nsec = 50L * 1000 * 1000}, &mask);
    return 0;
}

/* ---- main -------------------------------------------------------------------------------------------------- */

/* A closed standard stream would become the number of the next file opened. What is put there cannot be used by mistake:
 * reading fails on input, writing on output. */
static void fill_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
            (void)!socket(AF_UNIX, SOCK_STREAM, 0);
}

static void set_environment(void)
{
    const char *path = getenv("PATH");
    char *longer = malloc((path ? strlen(path) : 0) + 32);
    if (longer) {
        sprintf(longer, "%s:/usr/sbin:/sbin", path && *path ? path : "/usr/bin:/bin");
        setenv("PATH", longer, 1);
    }
    free(longer);
    setenv("LC_ALL", "C", 1);
}

/* What was inherited is somebody else's choice: systemd ignores SIGPIPE, some parents ignore SIGCHLD. */
static void set_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
}

static bool stdin_is_socket(void)
{
    struct stat st;
    return fstat(STDIN_FILENO, &st) == 0 && S_ISSOCK(st.st_mode);
}

int main(int argc, char **argv)
{
    struct config cfg = {.table = "filter", .namespace = "nfprom", .ipv4 = true, .timeout = 8LL * SECOND};
    fill_standard_streams();
    set_signals();
    parse_flags(&cfg, argc, argv);
    bool http = !cfg.addr && !cfg.print && !isatty(STDIN_FILENO);
    choose_log(http);
    if (flag_error[0] != '\0') {
        log_line("%s", flag_error);
        if (!log_to_syslog)
            dprintf(STDERR_FILENO, "%s", usage);
        return stdin_is_socket() ? (serve(&cfg), 2) : 2;
    }
    set_environment();
    if (http)
        return serve(&cfg);
    return cfg.addr ? listen_and_serve(&cfg) : print_exposition(&cfg);
}
