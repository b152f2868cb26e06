/* nfprom - shows the counters of an iptables chain to Prometheus, one process for one
 * request.
 *
 * A super-server (systemd with Accept=yes, xinetd, inetd, s6, socat) starts nfprom with a
 * connection as standard input and output; -addr plays that part itself. nfprom reads one
 * HTTP request, runs `iptables-save -c -t TABLE` through popen(3), or `iptables -v -S
 * CHAIN` with -list, reads what it prints to the end, builds the whole answer in memory,
 * sends it and exits.
 *
 *   GET or HEAD of  /metrics    the exposition, text format 0.0.4 or, if the Accept
 * header prefers it, OpenMetrics 1.0; 503 or 504 with the reason if there is none /status
 * the same counters as a page for people, 503 or 504 likewise /           a page with
 * links; iptables is not run
 *                   /-/healthy  "ok"; iptables is not run
 *
 * It refuses: other methods (405) and paths (404), what is not HTTP/1.x (400, 505), a
 * request line over 8 KiB (414), headers over 16 KiB or 100 lines (431), a request that
 * is not complete at the deadline (408). What follows a request is not read but thrown
 * away. There is one deadline (-timeout, 8 s) for the whole exchange. A 200 says that
 * each family which reports success was read to its COMMIT (a list has none), with status
 * 0, the chain found and every counter a number below 2^64. No byte of a request gets
 * into a command. Messages go to standard error or, if that is the client's connection,
 * to syslog.
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
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "1.0.0"
#endif

typedef long long usec; /* microseconds, and points of the monotonic clock in them */

enum {
    MS = 1000,
    SECOND = 1000 * MS,
    SENDING_SHARE = 16, /* work ends at the deadline less 1/16 of it: the answer has to be
                           out in time */
    FAMILY_SHARE = 4,   /* 1/4 of that for IPv6, if IPv4 takes all it may */
    SCRAPE_MARGIN_MS = 500,   /* what the scraper needs of its own timeout for itself, */
    SCRAPE_TIME_MIN_MS = 100, /* however short that is */
    DRAIN_MAX = 16 << 20,     /* bytes read from a client after the answer */
    DRAIN_TIME = 2 * SECOND,
    OUTPUT_MAX = 1 << 30,  /* bytes of iptables-save; a million rules are a tenth of it */
    STORE_MAX = 256 << 20, /* bytes of labels kept of one family */
    RESPONSE_MAX = 1 << 30,
    HEAD_ROOM = 512, /* for the head of a response, in front of its body */
    PIECE_MAX = 1500,
    PAGE = 4096, /* no less than a page, to keep together what is touched together */
    FIRST_SIZE = 64 * 1024,
    READ_SIZE = 64 * 1024,
    HUGE_PAGE = 2 << 20,
    PIPE_SIZE = 64 * 1024, /* what Linux gives */
    LARGE_PIPE_SIZE = 1 << 20,
    SAID_MAX =
        1000, /* bytes kept of what iptables-save says on standard error: the last ones */
    REASON_MAX = 3000,
    NAMESPACE_MAX = 400,
    CONNECTIONS_MAX = 512, /* at once, with -addr */
    LISTENERS_MAX = 16,
    CAP_NET_ADMIN = 12 /* linux/capability.h, which not every libc's headers bring */
};

struct config {
    struct text chains[CHAINS_MAX];
    size_t nchains;
    const char *table, *namespace, *addr, *variant;
    bool ipv4, ipv6, list, print;
    usec timeout;
};

/* ---- time and messages
 * ---------------------------------------------------------------------------------- */

static usec now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * (usec)SECOND + ts.tv_nsec / 1000;
}

/* What poll(2) takes: milliseconds until then, rounded up, 0 if it is past. */
static int ms_until(usec then) {
    usec left = then - now();
    return left > 0 ? (int)((left + MS - 1) / MS) : 0;
}

static bool log_to_syslog;

/* One line, whatever the text holds, in one write, and only where that does not block: a
 * client waits, and a log that nobody reads must not make a process stay. That is why it
 * is not syslog(3). */
static void log_line(const char *format, ...) {
    char line[REASON_MAX + 200] = "nfprom: "; /* below PIPE_BUF */
    struct pollfd fd = {.fd = STDERR_FILENO, .events = POLLOUT};
    struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = "/dev/log"};
    size_t len = strlen(line);
    if (log_to_syslog) {
        time_t t = time(NULL);
        struct tm tm;
        len = (size_t)snprintf(line, sizeof line, "<%d>", LOG_DAEMON | LOG_ERR);
        len += strftime(line + len, sizeof line - len, "%b %e %H:%M:%S",
                        localtime_r(&t, &tm));
        len += (size_t)snprintf(line + len, sizeof line - len,
                                " nfprom[%d]: ", (int)getpid());
    }
    va_list args;
    va_start(args, format);
    vsnprintf(line + len, sizeof line - len - 1, format, args);
    va_end(args);
    for (char *p = line; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    len = strlen(line);
    if (log_to_syslog) {
        int log = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (log >= 0)
            (void)!sendto(log, line, len, MSG_DONTWAIT | MSG_NOSIGNAL,
                          (struct sockaddr *)&to, sizeof to);
        if (log >= 0)
            close(log);
    } else if (poll(&fd, 1, 100) > 0) {
        line[len++] = '\n';
        (void)!write(STDERR_FILENO, line, len);
    }
}

static bool same_file(int a, int b) {
    struct stat sa, sb;
    return fstat(a, &sa) == 0 && fstat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
           sa.st_ino == sb.st_ino;
}

/* xinetd and inetd, and systemd by default, make the client's connection standard error
 * too. */
static void choose_log(bool http) {
    log_to_syslog = http && !isatty(STDERR_FILENO) &&
                    (same_file(STDERR_FILENO, STDIN_FILENO) ||
                     same_file(STDERR_FILENO, STDOUT_FILENO));
}

/* ---- flags
 * ----------------------------------------------------------------------------------------------
 */

static const char usage[] =
    "Usage: nfprom [flags]             answer one HTTP request on standard input and output\n"
    "       nfprom -addr ADDR [flags]  listen, and answer each connection in a process of its own\n"
    "       nfprom -print [flags]      print the metrics; the default on a terminal\n"
    "What is read:\n"
    "  -chain NAME      chain to export, may be given more than once (default prometheus)\n"
    "  -table NAME      filter, mangle, raw, nat or security (default filter)\n"
    "  -ipv4, -ipv6     which families (default -ipv4=true -ipv6=false)\n"
    "  -variant V       nft or legacy (default: what iptables-save is on this system)\n"
    "  -list            the chain alone, with iptables -v -S, not the whole table\n"
    "How it is shown:\n"
    "  -namespace NAME  prefix of all metric names (default nfprom)\n"
    "  -timeout D       deadline of an exchange, as in 500ms, 8s, 1m30s (default 8s)\n"
    "  -addr ADDR       listen on name:port, ipv4:port, [ipv6]:port or :port\n"
    "  -print           no HTTP: print the metrics and exit\n"
    "  -version, -help  print that and exit\n"
    "Examples:\n"
    "  nfprom -print -chain INPUT -chain OUTPUT\n"
    "  nfprom -addr 127.0.0.1:9914 -ipv6\n";

/* What is wrong with the flags, empty if nothing. */
static char flag_error[400];

static bool wrong(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(flag_error, sizeof flag_error, format, args);
    va_end(args);
    return false;
}

static bool one_of(const char *s, const char *const *words) {
    while (*words && strcmp(s, *words) != 0)
        words++;
    return *words != NULL;
}

static bool set_bool(bool *field, const char *flag, const char *value) {
    static const char *const yes[] = {"1", "t", "T", "true", "TRUE", "True", NULL};
    static const char *const no[] = {"0", "f", "F", "false", "FALSE", "False", NULL};
    *field = !value || one_of(value, yes);
    return *field || one_of(value, no) ||
           wrong("-%s=%s: a boolean is true or false", flag, value);
}

/* Go's duration: numbers with units, as in 1m30s. */
static bool set_timeout(struct config *cfg, const char *value) {
    static const struct {
        const char *name;
        double us;
    } units[] = {{"ms", MS},
                 {"us", 1},
                 {"s", SECOND},
                 {"m", 60.0 * SECOND},
                 {"h", 3600.0 * SECOND}};
    const size_t n = sizeof units / sizeof *units;
    const char *p = value;
    double us = 0;
    bool ok = *value && value[strspn(value, "0123456789.hmsu")] == '\0';
    while (ok && *p) {
        char *unit;
        double number = strtod(p, &unit);
        size_t u = 0;
        while (u < n && strncmp(unit, units[u].name, strlen(units[u].name)) != 0)
            u++;
        ok = unit > p && u < n;
        us += ok ? number * units[u].us : 0;
        p = ok ? unit + strlen(units[u].name) : p;
    }
    if (!ok)
        return wrong(
            "-timeout %s: a duration is numbers with units, as in 500ms, 8s or 1m30s",
            value);
    if (us < 10 * MS || us > 3600.0 * SECOND)
        return wrong("-timeout %s: must be 10ms to 1h", value);
    cfg->timeout = (usec)us;
    return true;
}

static bool add_chain(struct config *cfg, const char *name) {
    size_t len = strlen(name), good = 0;
    while ((unsigned char)name[good] > ' ' && name[good] != 0x7f)
        good++;
    if (len == 0 || len > CHAIN_NAME_MAX || good < len || *name == '-' || *name == '!')
        return wrong(
            "-chain '%s': a chain's name has 1 to %d bytes, no blanks, no - or ! first",
            name, CHAIN_NAME_MAX);
    for (size_t i = 0; i < cfg->nchains; i++)
        if (text_is(cfg->chains[i], name))
            return wrong("-chain %s: named twice", name);
    if (cfg->nchains == CHAINS_MAX)
        return wrong("-chain %s: more than %d chains", name, CHAINS_MAX);
    cfg->chains[cfg->nchains++] = (struct text){name, len};
    return true;
}

/* The colon before the port in name:port, ipv4:port, [ipv6]:port or :port; NULL if it is
 * none of them. */
static const char *port_colon(const char *addr) {
    const char *colon = strrchr(addr, ':');
    if (!colon || colon - addr > 255 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1) || strlen(colon + 1) > 5 ||
        atol(colon + 1) < 1 || atol(colon + 1) > 65535)
        return NULL;
    return (*addr == '[' ? colon - addr > 2 && colon[-1] == ']'
                         : strchr(addr, ':') == colon)
               ? colon
               : NULL;
}

static bool set_value(struct config *cfg, const char *flag, const char *value) {
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    static const char *const tables[] = {"filter", "mangle",   "raw",
                                         "nat",    "security", NULL};
    static const char *const variants[] = {"nft", "legacy", NULL};
    switch (*flag) {
    case 'c':
        return add_chain(cfg, value);
    case 'n':
        cfg->namespace = value;
        return (*value && strlen(value) <= NAMESPACE_MAX &&
                (*value < '0' || *value > '9') &&
                value[strspn(value, letters)] == '\0') ||
               wrong(
                   "-namespace '%s': must be 1 to %d letters, digits and _, no digit first",
                   value, NAMESPACE_MAX);
    case 't':
        if (strcmp(flag, "timeout") == 0)
            return set_timeout(cfg, value);
        cfg->table = value;
        return one_of(value, tables) ||
               wrong("-table %s: must be filter, mangle, raw, nat or security", value);
    case 'v':
        cfg->variant = value;
        return one_of(value, variants) ||
               wrong("-variant %s: must be nft or legacy", value);
    default:
        cfg->addr = value;
        return port_colon(value) ||
               wrong("-addr %s: must be name:port, ipv4:port, [ipv6]:port or :port",
                     value);
    }
}

/* One flag of Go's style at argv[*i]; moves *i over a value of its own. */
static bool parse_flag(struct config *cfg, char **argv, int *i) {
    static const char *const valued[] = {"chain",   "table", "namespace", "timeout",
                                         "variant", "addr",  NULL};
    static const char *const booleans[] = {"ipv4",    "ipv6", "list", "print",
                                           "version", "help", "h",    NULL};
    char *flag = argv[*i];
    if (flag[0] != '-' || flag[1] == '\0')
        return wrong("%s: an argument that is no flag", flag);
    flag += flag[1] == '-' ? 2 : 1;
    char *value = strchr(flag, '=');
    if (value)
        *value++ = '\0';
    if (one_of(flag, booleans)) {
        bool asked = false, plain = *flag == 'h' || *flag == 'v';
        bool *field = *flag == 'l'     ? &cfg->list
                      : *flag == 'p'   ? &cfg->print
                      : flag[3] == '6' ? &cfg->ipv6
                                       : &cfg->ipv4;
        if (!set_bool(plain ? &asked : field, flag, value))
            return false;
        if (plain && asked)
            exit(dprintf(STDOUT_FILENO, "%s",
                         *flag == 'h' ? usage : "nfprom " VERSION "\n") < 0);
        return true;
    }
    if (!one_of(flag, valued))
        return wrong("-%s: no such flag", flag);
    if (!value)
        value = argv[++*i];
    return value ? set_value(cfg, flag, value) : wrong("-%s: needs a value", flag);
}

/* What is wrong is left in flag_error. */
static void parse_flags(struct config *cfg, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!parse_flag(cfg, argv, &i))
            return;
    if (cfg->nchains == 0)
        cfg->chains[cfg->nchains++] = (struct text)TEXT("prometheus");
    if (!cfg->ipv4 && !cfg->ipv6)
        wrong("-ipv4=false without -ipv6: no family to read");
    if (cfg->addr && cfg->print)
        wrong("-addr and -print: one or the other");
}

/* ---- buffers
 * --------------------------------------------------------------------------------------------
 */

/* Bytes that grow by doubling up to max; with max 0 data is somebody else's and stays as
 * large as it is. After a failure nothing is added and `failed` stays. */
struct buffer {
    char *data;
    size_t len, size, max;
    bool failed;
};

/* Fresh pages need no malloc, are zero, cost nothing until they are touched, and grow
 * without being copied. */
static void *map(void *old, size_t old_size, size_t size) {
    void *new = old ? mremap(old, old_size, size, MREMAP_MAYMOVE)
                    : mmap(NULL, size, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return new == MAP_FAILED ? NULL : new;
}

static void grow(struct buffer *b, size_t n) {
    size_t size = b->size ? b->size : FIRST_SIZE;
    while (size - b->len < n && size <= b->max)
        size *= 2;
    char *data = size <= b->max && size > b->size ? map(b->data, b->size, size) : NULL;
    b->failed = !data;
    b->data = data ? data : b->data;
    b->size = data ? size : b->size;
}

/* memcpy for what is short, as most is: the start of some memcpys is slow. The last bytes
 * are copied over some of those before. */
static inline void copy(char *to, const char *at, size_t n) {
    if (n < 8) {
        /* cppcheck-suppress arrayIndexOutOfBoundsCond ; it takes any n for that of a
         * literal */
        for (; n > 0; n--)
            to[n - 1] = at[n - 1];
        return;
    }
    for (size_t i = 0; i < n - 8; i += 8)
        memcpy(to + i, at + i, 8);
    memcpy(to + n - 8, at + n - 8, 8);
}

static inline void put(struct buffer *b, const char *at, size_t n) {
    if (n > b->size - b->len && !b->failed)
        grow(b, n);
    if (b->failed || n == 0)
        return;
    copy(b->data + b->len, at, n);
    b->len += n;
}

/* Inline: the length of a literal is known where it is compiled. */
static inline void puts_to(struct buffer *b, const char *s) {
    put(b, s, strlen(s));
}

/* For what is short (PIECE_MAX at most; the rest is cut) and rare. */
static void putf(struct buffer *b, const char *format, ...) {
    va_list args;
    if (b->size - b->len < PIECE_MAX && b->max > 0 && !b->failed)
        grow(b, PIECE_MAX);
    size_t room = b->size - b->len;
    if (b->failed || room == 0)
        return;
    va_start(args, format);
    int n = vsnprintf(b->data + b->len, room, format, args);
    va_end(args);
    b->len += n < 0 ? 0 : (size_t)n < room ? (size_t)n : room - 1;
}

enum {
    DIGITS_MAX = 20
};

/* Writes the digits of n up to `end`, two at a time, and returns where they begin. */
static char *put_digits(char *end, uint64_t n) {
    static const char pairs[] =
        "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
        "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";
    for (; n >= 100; n /= 100)
        memcpy(end -= 2, pairs + n % 100 * 2, 2);
    *--end = pairs[n * 2 + 1];
    if (n >= 10)
        *--end = pairs[n * 2];
    return end;
}

/* What follows the labels of a sample. */
static void put_value(struct buffer *b, uint64_t n) {
    char text[2 + DIGITS_MAX + 1], *end = text + sizeof text, *p = end;
    *--p = '\n';
    p = put_digits(p, n);
    *--p = ' ';
    *--p = '}';
    put(b, p, (size_t)(end - p));
}

/* Length of the UTF-8 character at p (RFC 3629: no surrogates, nothing overlong, up to
 * U+10FFFF), 0 if there is none. */
static size_t utf8_length(const unsigned char *p, size_t left) {
    size_t n = *p < 0x80   ? 1
               : *p < 0xc2 ? 0
               : *p < 0xe0 ? 2
               : *p < 0xf0 ? 3
               : *p < 0xf5 ? 4
                           : 0;
    if (n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    bool bad = (*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) ||
               (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f);
    return bad ? 0 : n;
}

/* Whether a character of n bytes has no place in a page: HTML allows no C1 controls and
 * no noncharacters, and the overrides and isolates of bidirectional text would show a
 * rule as another. */
static bool unfit(const unsigned char *p, size_t n) {
    return (n == 2 && p[0] == 0xc2 && p[1] < 0xa0) ||
           (n == 3 && p[0] == 0xe2 &&
            ((p[1] == 0x80 && p[2] >= 0xaa && p[2] <= 0xae) ||
             (p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9))) ||
           (n == 3 && p[0] == 0xef &&
            ((p[1] == 0xb7 && p[2] >= 0x90 && p[2] <= 0xaf) ||
             (p[1] == 0xbf && p[2] >= 0xbe))) ||
           (n == 4 && (p[1] & 0xf) == 0xf && p[2] == 0xbf && p[3] >= 0xbe);
}

/* Text out of a ruleset as the value of a label, with the three escapes of the exposition
 * format, or as HTML. A byte that is not UTF-8 becomes the four characters \xHH (the
 * backslash escaped in its turn, in a label), and so do NUL, where Prometheus stops
 * reading, and in HTML the control characters and what else is unfit. */
static void put_escaped(struct buffer *b, struct text value, bool html) {
    static const char hex[] = "0123456789abcdef";
    const char *run = value.at, *p = run, *end = p + value.len;
    while (p < end) {
        unsigned char c = (unsigned char)*p;
        bool special = c == '"' || (html ? c == '<' || c == '>' || c == '&' : c == '\\');
        size_t n = c >= ' ' && c < 0x7f ? !special : 0;
        if (n == 0 && !special && c != '\n' && c != '\0' && (!html || c > 0x7f))
            n = utf8_length((const unsigned char *)p, (size_t)(end - p));
        if (html && n > 1 && unfit((const unsigned char *)p, n))
            n = 0;
        p += n;
        if (n > 0)
            continue;
        put(b, run, (size_t)(p - run));
        const char escape[] = {'\\', '\\', 'x', hex[c >> 4], hex[c & 15]},
                   pair[] = {'\\', c == '\n' ? 'n' : *p};
        if (special && html)
            puts_to(b, c == '"'   ? "&quot;"
                       : c == '<' ? "&lt;"
                       : c == '>' ? "&gt;"
                                  : "&amp;");
        else if (special || (c == '\n' && !html))
            put(b, pair, sizeof pair);
        else
            put(b, escape + html, sizeof escape - html);
        run = ++p;
    }
    put(b, run, (size_t)(end - run));
}

/* name="value", with what may stand before either. */
static inline void put_label(struct buffer *b, const char *name, const char *prefix,
                             struct text value) {
    puts_to(b, name);
    put(b, "=\"", 2);
    puts_to(b, prefix);
    put_escaped(b, value, false);
    put(b, "\"", 1);
}

/* ---- series
 * ---------------------------------------------------------------------------------------------
 */

enum kind {
    SEED,
    VERBATIM,
    POLICY,
    ROW
};
enum what {
    PACKETS,
    BYTES,
    INFO
};

struct series {
    uint64_t packets, bytes;
    uint32_t labels, len; /* where in the family's text; of a SEED, in its lines */
    uint32_t comment, comment_len; /* of a SEED: `,comment="..."`, in the text */
    uint32_t key_len; /* so many bytes of the labels say what the rule matches; of a ROW,
                         the number of its chain */
    uint32_t copies;  /* rules with this match so far; of the first of them only */
    uint32_t hash;    /* of the key */
    enum kind kind;
};

/* What is known of one family after its read. */
struct family {
    const char *l2proto, *name,
        *seed_labels; /* the last: what stands between direction and protocol */
    bool enabled, success, timed_out;
    bool page; /* every rule and policy becomes a ROW, with cells of HTML in place of
                  labels */
    usec duration;
    struct buffer lines; /* the samples of PACKETS of all SEEDs, as they are sent */
    struct buffer text,
        series;      /* the labels of others; struct series in the chain's order */
    uint64_t *index; /* open addressing: a key's hash << 32 | number of its first series +
                        1; 0: free */
    size_t slots;
    struct tally {
        unsigned long exported, other, duplicate, nonterminal;
    } tallies[CHAINS_MAX];
    struct total {
        uint64_t packets, bytes;
    } totals[3]; /* of the rules with a direction, and of all others; no more than 2^64 -
                    1 */
    char reason[REASON_MAX]; /* why there is no success */
};

static struct series *series_of(const struct family *f) {
    return (struct series *)(void *)f->series.data;
}

static const char *labels_of(const struct family *f, const struct series *s) {
    return (s->kind == SEED ? f->lines.data : f->text.data) + s->labels;
}

static size_t count_series(const struct family *f) {
    return f->series.len / sizeof(struct series);
}

/* Of a key, which is never shorter than 8 bytes. */
static uint32_t hash_of(const char *key, size_t len) {
    uint64_t h = len, word;
    for (size_t i = 0; i < len; i += sizeof word) {
        memcpy(&word, key + (i < len - sizeof word ? i : len - sizeof word), sizeof word);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    return (uint32_t)h;
}

/* The place in the index of the series with the key of *s, or the free one where it
 * belongs. */
static uint64_t *find_slot(const struct family *f, const struct series *s) {
    for (size_t h = s->hash;; h++) {
        uint64_t *slot = &f->index[h & (f->slots - 1)];
        const struct series *t =
            *slot >> 32 == s->hash && *slot ? &series_of(f)[(uint32_t)*slot - 1] : NULL;
        if (!*slot || (t && t->kind == s->kind && t->key_len == s->key_len &&
                       memcmp(labels_of(f, t), labels_of(f, s), s->key_len) == 0))
            return slot;
    }
}

/* Keeps the index at most half full. */
static bool grow_index(struct family *f) {
    if (2 * count_series(f) < f->slots)
        return true;
    if (f->index)
        munmap(f->index, f->slots * sizeof *f->index);
    f->slots = f->slots ? 4 * f->slots : PAGE / sizeof *f->index;
    f->index = map(NULL, 0, f->slots * sizeof *f->index);
    if (f->index && f->slots * sizeof *f->index >= HUGE_PAGE)
        madvise(f->index, f->slots * sizeof *f->index, MADV_HUGEPAGE);
    const struct series *all = series_of(f);
    for (size_t i = 0; f->index && i < count_series(f); i++)
        if (all[i].copies > 0)
            *find_slot(f, &all[i]) = (uint64_t)all[i].hash << 32 | (i + 1);
    if (!f->index)
        f->slots = 0;
    return f->index != NULL;
}

/* How many rules with the match of *s there are so far, *s included. */
static uint32_t count_copy(struct family *f, struct series *s) {
    bool failed = f->text.failed || f->lines.failed;
    if (!failed)
        s->hash = hash_of(labels_of(f, s), s->key_len);
    uint64_t *slot = failed ? NULL : find_slot(f, s);
    if (!slot || *slot == 0)
        s->copies = 1;
    if (slot && *slot == 0)
        *slot = (uint64_t)s->hash << 32 | (count_series(f) + 1);
    return s->copies ? 1 : ++series_of(f)[(uint32_t)*slot - 1].copies;
}

/* chain="NAME", where there are several. */
static void put_chain(struct buffer *b, const struct config *cfg, size_t chain) {
    if (cfg->nchains > 1) {
        put_label(b, "chain", "", cfg->chains[chain]);
        put(b, ",", 1);
    }
}

static void put_seed_labels(struct buffer *b, const struct config *cfg,
                            const struct family *f, const struct rule *rule) {
    static const char *const directions[] =
        {[DIRECTION_NONE] = "\"", [DIRECTION_IN] = "in\"", [DIRECTION_OUT] = "out\""};
    const struct value *protocol = &rule->protocol;
    puts_to(b, rule->address.negated ? "address=\"!" : "address=\"");
    put_escaped(b, rule->address.text, false);
    puts_to(b, "\",");
    put_chain(b, cfg, rule->chain);
    puts_to(b, "direction=\"");
    puts_to(b, directions[rule->direction]);
    puts_to(b, f->seed_labels);
    puts_to(b, protocol->negated ? "!" : "");
    put_escaped(b, protocol->text.len ? protocol->text : (struct text)TEXT("all"), false);
    puts_to(b, rule->port.negated ? "\",port=\"!" : "\",port=\"");
    put_escaped(b, rule->port.text, false);
    put(b, "\"", 1);
}

/* The labels l2proto and rule. The key ends with the match: rules that differ in their
 * target alone match the same. */
static void put_rule_labels(struct buffer *b, const struct config *cfg,
                            const struct family *f, const struct rule *rule,
                            struct series *s) {
    s->labels = (uint32_t)b->len;
    put_chain(b, cfg, rule->chain);
    puts_to(b, "l2proto=\"");
    puts_to(b, f->l2proto);
    puts_to(b, "\",rule=\"");
    put_escaped(b, rule->match, false);
    s->key_len = (uint32_t)b->len - s->labels;
    if (rule->match.len > 0 && rule->target.len > 0)
        put(b, " ", 1);
    put_escaped(b,
                rule->match.len + rule->target.len > 0 ? rule->target
                                                       : (struct text)TEXT("*"),
                false);
    put(b, "\"", 1);
}

static bool keep_series(struct family *f, const struct series *s) {
    put(&f->series, (const char *)s, sizeof *s);
    return !f->text.failed && !f->lines.failed && !f->series.failed;
}

/* A rule becomes a series: of the seed's pair if its five labels express it and it is the
 * first to match that, else of the verbatim pair. False: out of memory, or of the room
 * for it. */
static bool add_rule(const struct config *cfg, struct family *f,
                     const struct rule *rule) {
    struct buffer *text = &f->text, *lines = &f->lines;
    const size_t line = lines->len;
    struct series s = {.packets = rule->packets,
                       .bytes = rule->bytes,
                       .kind = rule->expressible ? SEED : VERBATIM};
    struct tally *tally = &f->tallies[rule->chain];
    if (!grow_index(f))
        return false;
    if (s.kind == SEED) {
        puts_to(lines, cfg->namespace);
        puts_to(lines, "_packets_total{");
        s.labels = (uint32_t)lines->len;
        put_seed_labels(lines, cfg, f, rule);
        s.key_len = s.len = (uint32_t)lines->len - s.labels;
    } else {
        put_rule_labels(text, cfg, f, rule, &s);
    }
    uint32_t copy = count_copy(f, &s);
    if (s.kind == SEED && copy == 1) {
        put_value(lines, rule->packets);
        s.comment = (uint32_t)text->len;
        if (rule->has_comment)
            put_label(text, ",comment", "", rule->comment);
        s.comment_len = (uint32_t)text->len - s.comment;
        tally->exported++;
        tally->nonterminal += !rule->terminal;
    } else {
        char dup[16] = "";
        if (copy > 1)
            snprintf(dup, sizeof dup, "%u", copy);
        if (s.kind == SEED)
            put_rule_labels(text, cfg, f, rule, &s);
        s.kind = VERBATIM;
        lines->len = line;
        put_label(text, ",comment", "", rule->comment);
        put_label(text, ",dup", dup, (struct text)TEXT(""));
        s.len = (uint32_t)text->len - s.labels;
        ++*(copy > 1 ? &tally->duplicate : &tally->other);
    }
    return keep_series(f, &s);
}

static bool add_policy(const struct config *cfg, struct family *f,
                       const struct rule *rule) {
    struct series s = {.packets = rule->packets,
                       .bytes = rule->bytes,
                       .labels = (uint32_t)f->text.len,
                       .kind = POLICY};
    put_chain(&f->text, cfg, rule->chain);
    putf(&f->text, "l2proto=\"%s\"", f->l2proto);
    put_label(&f->text, ",policy", "", rule->policy);
    s.len = (uint32_t)f->text.len - s.labels;
    return keep_series(f, &s);
}

static void add_up(uint64_t *sum, uint64_t n) {
    *sum = *sum > UINT64_MAX - n ? UINT64_MAX : *sum + n;
}

/* The same for the page: the cells up to the numbers. */
static bool add_row(struct family *f, const struct rule *rule, bool policy) {
    static const char *const directions[] = {"\u2013", "in", "out"};
    struct series s = {.packets = rule->packets,
                       .bytes = rule->bytes,
                       .labels = (uint32_t)f->text.len,
                       .kind = ROW,
                       .key_len = (uint32_t)rule->chain};
    struct buffer *b = &f->text;
    const struct value *cells[] = {&rule->address, &rule->protocol, &rule->port};
    const enum direction direction = rule->expressible ? rule->direction : DIRECTION_NONE;
    puts_to(b, "\n<tr><th scope=row>");
    put_escaped(b, rule->comment, true);
    puts_to(b, policy ? "policy <code>" : "<code>");
    put_escaped(b, rule->match, true);
    put_escaped(b, rule->policy, true);
    puts_to(b, rule->match.len > 0 && rule->target.len > 0 ? " " : "");
    put_escaped(b,
                policy || rule->match.len + rule->target.len > 0 ? rule->target
                                                                 : (struct text)TEXT("*"),
                true);
    puts_to(b, "</code>");
    for (int i = 0; i < 3; i++) {
        puts_to(b, cells[i]->negated && rule->expressible ? "<td>!" : "<td>");
        put_escaped(b,
                    rule->expressible && cells[i]->text.len ? cells[i]->text
                                                            : (struct text)TEXT("\u2013"),
                    true);
    }
    puts_to(b, "<td>");
    puts_to(b, directions[direction]);
    s.len = (uint32_t)b->len - s.labels;
    f->tallies[rule->chain].exported++;
    f->tallies[0].nonterminal += rule->expressible && !rule->terminal;
    add_up(&f->totals[direction].packets, rule->packets);
    add_up(&f->totals[direction].bytes, rule->bytes);
    return keep_series(f, &s);
}

static bool add_item(const struct config *cfg, struct family *f, const struct rule *rule,
                     bool policy) {
    return f->page  ? add_row(f, rule, policy)
           : policy ? add_policy(cfg, f, rule)
                    : add_rule(cfg, f, rule);
}

static void forget(struct family *f) {
    if (f->text.data)
        memset(f->tallies, 0, sizeof f->tallies);
    memset(f->totals, 0, sizeof f->totals);
    if (f->lines.data)
        munmap(f->lines.data, f->lines.size);
    if (f->text.data)
        munmap(f->text.data, f->text.size);
    if (f->series.data)
        munmap(f->series.data, f->series.size);
    if (f->index)
        munmap(f->index, f->slots * sizeof *f->index);
    f->index = NULL;
    f->slots = 0;
    f->lines = f->text = f->series = (struct buffer){.max = STORE_MAX};
}

/* ---- one run of iptables-save
 * --------------------------------------------------------------------------- */

/* The collector is a child of nfprom that leads a process group of its own; in it popen's
 * shell becomes iptables-save. So a command that hangs can be killed with all that it
 * started, and nobody but nfprom holds the client's connection. */
struct run {
    pid_t collector;
    int out, err; /* read ends: what the command prints, and what it complains of */
    int status;   /* as a shell counts: 128 + the signal */
    bool timed_out;
    size_t said_len;
    char said[SAID_MAX + 1];
};

static void end_group(int signal) {
    (void)signal;
    kill(0, SIGKILL);
}

/* For the command: a PATH with the places of iptables-save, messages in one language. */
static bool set_environment(void) {
    const char *path = getenv("PATH");
    size_t size = (path ? strlen(path) : 0) + 40;
    char *longer = malloc(size); /* as much of it as there is; the process ends soon */
    if (longer)
        snprintf(longer, size, "%s:/usr/sbin:/sbin",
                 path && *path ? path : "/usr/bin:/bin");
    return longer && setenv("PATH", longer, 1) == 0 && setenv("LC_ALL", "C", 1) == 0;
}

/* Only the collector comes here. The command's standard input is popen's pipe, which
 * pclose closes at once. */
static _Noreturn void collect(const char *command, pid_t parent, int out, int err) {
    setpgid(0, 0);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    signal(SIGTERM, end_group);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* nfprom killed: nothing may be left behind */
    if (getppid() != parent || dup2(err, STDIN_FILENO) < 0 ||
        dup2(out, STDOUT_FILENO) < 0 || dup2(err, STDERR_FILENO) < 0)
        _exit(126);
    FILE *pipe = set_environment() ? popen(command, "we") : NULL;
    int status = pipe ? pclose(pipe) : -1;
    if (status < 0)
        dprintf(STDERR_FILENO, "no shell: %s\n", strerror(errno));
    _exit(status < 0          ? 126
          : WIFEXITED(status) ? WEXITSTATUS(status)
                              : 128 + WTERMSIG(status));
}

static bool start(struct run *run, const char *command) {
    int out[2] = {-1, -1}, err[2] = {-1, -1};
    pid_t parent = getpid();
    *run = (struct run){.collector = -1};
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

/* Kills what is left of the group before its leader is reaped: until then nobody else can
 * have its number. */
static void end(struct run *run) {
    int status = 126 << 8; /* what cannot be known is no success */
    if (run->collector > 0) {
        kill(-run->collector, SIGKILL);
        while (waitpid(run->collector, &status, 0) < 0 && errno == EINTR)
            ;
    }
    run->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    close(run->out);
    close(run->err);
    while (run->said_len > 0 && run->said[run->said_len - 1] == '\n')
        run->said[--run->said_len] = '\0';
}

/* Keeps the end of what the command says. False at its end. */
static bool hear(struct run *run) {
    char piece[SAID_MAX];
    ssize_t n = read(run->err, piece, sizeof piece);
    if (n <= 0)
        return n < 0 && errno == EINTR;
    size_t keep =
        run->said_len < SAID_MAX - (size_t)n ? run->said_len : SAID_MAX - (size_t)n;
    memmove(run->said, run->said + run->said_len - keep, keep);
    memcpy(run->said + keep, piece, (size_t)n);
    run->said_len = keep + (size_t)n;
    return true;
}

/* Hands what the reader has to the family, as far as it goes. ITEM_MORE, ITEM_END or
 * ITEM_ERROR. */
static enum item take_items(const struct config *cfg, struct ruleset *rs,
                            struct family *f) {
    struct rule rule;
    enum item item;
    while ((item = ruleset_next(rs, &rule)) == ITEM_RULE || item == ITEM_POLICY) {
        if (!add_item(cfg, f, &rule, item == ITEM_POLICY)) {
            snprintf(rs->error, sizeof rs->error, "out of memory after %zu rules",
                     count_series(f));
            return ITEM_ERROR;
        }
    }
    return item;
}

/* Reads the run to its end, to an error, or to the deadline. */
static enum item read_run(const struct config *cfg, struct run *run, struct ruleset *rs,
                          struct family *f, usec deadline) {
    enum item item = ITEM_MORE;
    struct pollfd fds[2] = {{.fd = run->out, .events = POLLIN},
                            {.fd = run->err, .events = POLLIN}};
    for (long long total = 0; fds[0].fd >= 0 || fds[1].fd >= 0;) {
        int ready = poll(fds, 2, ms_until(deadline));
        run->timed_out = ready == 0 || now() >= deadline;
        if (run->timed_out)
            return ITEM_ERROR;
        if (ready > 0 && fds[1].revents && !hear(run))
            fds[1].fd = -1;
        if (ready < 0 || !fds[0].revents)
            continue;
        size_t room;
        char *to = ruleset_room(rs, &room);
        ssize_t n =
            read(run->out, to,
                 room < READ_SIZE ? room
                                  : READ_SIZE); /* more would only take more memory */
        if (n < 0)
            continue;
        ruleset_fed(rs, (size_t)n);
        item = take_items(cfg, rs, f);
        if (total <= PIPE_SIZE && total + n > PIPE_SIZE)
            fcntl(run->out, F_SETPIPE_SZ, LARGE_PIPE_SIZE); /* fewer waits */
        if (item == ITEM_MORE && (total += n) > OUTPUT_MAX) {
            snprintf(rs->error, sizeof rs->error,
                     "output without end: more than %d bytes", OUTPUT_MAX);
            item = ITEM_ERROR;
        }
        if (n == 0)
            fds[0].fd = -1;
        else if (item == ITEM_ERROR)
            return item;
    }
    return item;
}

/* ---- a family
 * -------------------------------------------------------------------------------------------
 */

/* Whether iptables-save, started by this process, will have CAP_NET_ADMIN: root has,
 * others if it is ambient. */
static bool may_read(void) {
    struct {
        uint32_t version, pid;
    } head = {0x20080522, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } sets[2] = {{0, 0, 0}, {0, 0, 0}};
    if (syscall(SYS_capget, &head, sets) != 0)
        return geteuid() == 0;
    return (sets[0].effective >> CAP_NET_ADMIN & 1) &&
           (geteuid() == 0 ||
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_ADMIN, 0, 0) == 1);
}

/* The command that changes and lists the family's rules; with "-save" behind it, the one
 * that prints its tables. */
static void name_tables(char *to, size_t size, const struct config *cfg,
                        const struct family *f) {
    snprintf(to, size, "%s%s%s",
             strcmp(f->l2proto, "ipv6") == 0 ? "ip6tables" : "iptables",
             cfg->variant ? "-" : "", cfg->variant ? cfg->variant : "");
}

/* For the shell: single quotes, if they are needed, around a name that may hold any byte
 * but blanks. */
static void put_word(struct buffer *b, struct text word) {
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:+@%/,";
    size_t good = 0;
    while (good < word.len && strchr(plain, word.at[good]))
        good++;
    const char *quote = good < word.len ? "'" : "";
    puts_to(b, quote);
    for (size_t i = 0; i < word.len; i++)
        word.at[i] == '\'' ? puts_to(b, "'\\''") : put(b, word.at + i, 1);
    puts_to(b, quote);
}

/* What prints the counters. -w waits for the lock of the legacy tables, which iptables,
 * other than iptables-save, takes itself. */
static void put_command(struct buffer *b, const struct config *cfg,
                        const struct family *f) {
    const char *sudo = may_read() ? "" : "sudo -n ";
    char tables[32];
    name_tables(tables, sizeof tables, cfg, f);
    if (!cfg->list)
        putf(b, "exec %s%s-save -c -t %s", sudo, tables, cfg->table);
    for (size_t i = 0; cfg->list && i < cfg->nchains; i++) {
        putf(b, "%s%s%s -w -t %s -v -S ", i + 1 < cfg->nchains ? "" : "exec ", sudo,
             tables, cfg->table);
        put_word(b, cfg->chains[i]);
        puts_to(b, i + 1 < cfg->nchains ? " && " : "");
    }
    put(b, "", 1);
}

/* How to make the chain and send packets through it. */
static void advise_chain(struct buffer *reason, const struct config *cfg,
                         const char *tables, const char *said, struct text missing) {
    putf(reason, "; make the chain with `%s -t %s -N ", tables, cfg->table);
    put_word(reason, missing);
    putf(reason, "` and send packets there: `%s -t %s -I %s ! -i lo -j ", tables,
         cfg->table, strcmp(cfg->table, "raw") == 0 ? "PREROUTING" : "INPUT");
    put_word(reason, missing);
    puts_to(reason, "`, and the same with `OUTPUT ! -o lo`");
    if (strstr(said, "is incompatible"))
        puts_to(
            reason,
            "; if it is there, it holds native nft rules, which iptables does not list");
    if (strstr(said, "legacy tables present"))
        puts_to(
            reason,
            "; there are legacy tables too, perhaps empty: if the chain is in one, use -variant legacy");
    else if (!cfg->variant)
        puts_to(reason,
                "; if it is in the other backend, use -variant nft or -variant legacy");
}

/* Why the run was no success, and what to do about it, into f->reason. */
static void explain(const struct config *cfg, struct family *f, const char *command,
                    const struct run *run, const struct ruleset *rs) {
    struct buffer reason = {.data = f->reason, .size = sizeof f->reason - 1};
    const char *cut = run->said_len > SAID_MAX - 2 ? strchr(run->said, '\n') : NULL,
               *said = cut ? cut + 1 : run->said;
    const size_t shown = strlen(command) < SAID_MAX
                             ? strlen(command)
                             : SAID_MAX; /* so that the rest has room */
    char tables[32];
    bool sudo = strncmp(command, "sudo", 4) == 0,
         denied = strstr(said, "ermi") || strstr(said, "must be root");
    bool missing = rs->missing.len > 0 && (run->status == 0 || strstr(said, "No chain") ||
                                           strstr(said, "is incompatible"));
    name_tables(tables, sizeof tables, cfg, f);
    memset(f->reason, 0, sizeof f->reason);
    putf(&reason, "`%.*s%s` ", (int)shown, command, command[shown] ? " ..." : "");
    if (run->timed_out)
        putf(&reason, "did not end in time%s (-timeout, or the scraper's own)",
             sudo ? "; what sudo started is root's and cannot be killed"
                  : " and was killed");
    else if (run->status != 0 && rs->ended && !missing)
        putf(&reason, "ended with status %d", run->status);
    else
        putf(&reason, "gave no counters: %s", rs->error);
    if (*said)
        putf(&reason, "; it said: %s", said);
    if (run->timed_out)
        return;
    if (missing) {
        advise_chain(&reason, cfg, tables, said, rs->missing);
    } else if (sudo) {
        puts_to(
            &reason,
            "; nfprom has no CAP_NET_ADMIN: give it that capability, ambient (systemd: "
            "AmbientCapabilities=CAP_NET_ADMIN; README, Others: setpriv), or a line in sudoers (README, Rights)");
        if (cfg->nchains == 1 && !strchr(command, '\''))
            putf(&reason, ": USER ALL=(root) NOPASSWD: /usr/sbin/%s",
                 command + strlen("sudo -n "));
    } else if (strstr(said, "lock file")) {
        puts_to(
            &reason,
            "; the legacy backend needs CAP_NET_ADMIN, CAP_NET_RAW and, with -list, CAP_DAC_READ_SEARCH for its lock");
    } else if (denied && run->status != 126) {
        puts_to(&reason,
                "; it needs CAP_NET_ADMIN, for the legacy backend CAP_NET_RAW too");
    } else if (run->status == 127) {
        puts_to(&reason, "; install iptables, or add its directory to PATH");
    }
}

/* One run from start to end. True: success, the family holds what was read. What can wait
 * is done while the command gets going: the wait is for it anyway, and a page written
 * before the fork would be copied after it. */
static char lines[RULE_LINE_MAX + READ_SIZE], comment[RULE_LINE_MAX];

static bool run_once(const struct config *cfg, struct family *f, struct ruleset *rs,
                     usec deadline) {
    static char line[CHAINS_MAX * (4 * CHAIN_NAME_MAX + 60)];
    struct buffer command = {.data = line, .size = sizeof line};
    struct run run;
    put_command(&command, cfg, f);
    bool started = start(&run, line);
    if (!started)
        snprintf(f->reason, sizeof f->reason, "cannot start a process: %s",
                 strerror(errno));
    forget(f);
    ruleset_begin(rs,
                  (struct wanted){cfg->list ? DIALECT_LIST : DIALECT_SAVE, cfg->table,
                                  cfg->chains, cfg->nchains},
                  (struct ruleset_memory){RULE_LINE_MAX, READ_SIZE, lines, comment});
    grow(&f->lines, 1);
    grow(&f->text, 1);
    grow(&f->series, 1);
    grow_index(f);
    enum item item = started ? read_run(cfg, &run, rs, f, deadline) : ITEM_ERROR;
    end(&run);
    if (item == ITEM_END && run.status == 0)
        return true;
    f->timed_out = run.timed_out;
    if (started)
        explain(cfg, f, line + (strncmp(line, "exec ", 5) == 0 ? 5 : 0), &run, rs);
    return false;
}

/* Reads a family. The legacy backend replaces its whole table at each change, and for a
 * moment all counters are 0: such a read counts only if it was done under the lock that
 * the changers hold. nft has no such moment, and which backend it was is known from its
 * output; so a lock that somebody else holds is waited for only if it matters. Where the
 * lock cannot be opened (it belongs to root) the read is done without. With -list,
 * iptables itself sees to all of that. */
static void read_family(const struct config *cfg, struct family *f, usec deadline) {
    static _Alignas(PAGE) struct ruleset
        rs; /* large, and memory is touched only as far as it is needed */
    usec started = now();
    const char *file = getenv("XTABLES_LOCKFILE");
    file = file && *file ? file : "/run/xtables.lock";
    int lock =
        cfg->list
            ? -1
            : open(file, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
    bool locked = lock >= 0 && flock(lock, LOCK_SH | LOCK_NB) == 0;
    f->success = run_once(cfg, f, &rs, deadline);
    if (lock >= 0 && !locked && rs.opened && !rs.nft && !f->timed_out) {
        while (!locked && now() < deadline) { /* flock(2) knows no timeout */
            locked = flock(lock, LOCK_SH | LOCK_NB) == 0;
            if (!locked)
                poll(NULL, 0, 2);
        }
        f->success = locked && run_once(cfg, f, &rs, deadline);
        if (!locked)
            snprintf(
                f->reason, sizeof f->reason,
                "another process holds the lock of the legacy tables, %s, all the time",
                file);
    }
    if (lock >= 0)
        close(lock);
    if (!f->success)
        forget(f);
    f->duration = now() - started;
}

/* ---- the exposition
 * -------------------------------------------------------------------------------------
 */

/* OpenMetrics 1.0 and the text format 0.0.4 differ in three things: in OpenMetrics a
 * metric family of counters is named without the `_total` of its samples, the end is
 * marked, and the media type is another. */
static void put_head(struct buffer *out, const struct config *cfg, const char *name,
                     const char *type, const char *help) {
    putf(out, "# HELP %s_%s %s\n# TYPE %s_%s %s\n", cfg->namespace, name, help,
         cfg->namespace, name, type);
}

/* All samples that series of one kind give to a metric; nothing where there are none. */
static void put_series(struct buffer *out, const struct config *cfg,
                       const struct family *families, bool openmetrics, const char *name,
                       const char *help, enum kind kind, enum what what) {
    char start[NAMESPACE_MAX + 40];
    const char *total = what == INFO ? "" : "_total";
    size_t start_len =
        (size_t)snprintf(start, sizeof start, "%s_%s%s{", cfg->namespace, name, total);
    bool headed = false;
    for (const struct family *f = families; f < families + 2; f++) {
        const struct series *s = series_of(f);
        for (size_t left = count_series(f); left > 0; left--, s++) {
            if (s->kind != kind || (what == INFO && s->comment_len == 0))
                continue;
            if (!headed) {
                char family[40];
                snprintf(family, sizeof family, "%s%s", name, openmetrics ? "" : total);
                put_head(out, cfg, family, what == INFO ? "gauge" : "counter", help);
            }
            headed = true;
            put(out, start, start_len);
            put(out, labels_of(f, s), s->len);
            if (what == INFO)
                put(out, f->text.data + s->comment, s->comment_len);
            put_value(out, what == INFO ? 1 : what == BYTES ? s->bytes : s->packets);
        }
    }
}

/* The samples of every chain of every family that succeeded; kind NULL: the nonterminal
 * rules. */
static void put_tallies(struct buffer *out, const struct config *cfg,
                        const struct family *families, const char *name,
                        const char *const *kinds) {
    for (const struct family *f = families; f < families + 2; f++) {
        for (size_t chain = 0; f->success && chain < cfg->nchains; chain++) {
            const struct tally *t = &f->tallies[chain];
            const unsigned long values[] = {t->exported, t->other, t->duplicate,
                                            t->nonterminal};
            for (size_t k = kinds ? 0 : 3; k < (kinds ? 3 : 4); k++) {
                putf(out, "%s_%s{", cfg->namespace, name);
                put_chain(out, cfg, chain);
                putf(out,
                     kinds ? "l2proto=\"%s\",kind=\"%s\"} %lu\n"
                           : "l2proto=\"%s\"%s} %lu\n",
                     f->l2proto, kinds ? kinds[k] : "", values[k]);
            }
        }
    }
}

/* Returns where the lines of the families belong: the samples that were made as the rules
 * came in, half of a large answer, and that are sent from where they are. */
static size_t put_exposition(struct buffer *out, const struct config *cfg,
                             const struct family *families, bool openmetrics) {
    static const char *const kinds[] = {"exported", "other", "duplicate"};
    static const struct {
        const char *name, *help;
        enum kind kind;
        enum what what;
    } all[] = {{"bytes", "Bytes of a rule that the labels express.", SEED, BYTES},
               {"rule_info", "Comment of a rule that the labels express.", SEED, INFO},
               {"rule_packets", "Packets of any other rule.", VERBATIM, PACKETS},
               {"rule_bytes", "Bytes of any other rule.", VERBATIM, BYTES},
               {"policy_packets", "Packets that a chain's policy got.", POLICY, PACKETS},
               {"policy_bytes", "Bytes that a chain's policy got.", POLICY, BYTES}};
    if (families[0].lines.len + families[1].lines.len > 0)
        put_head(out, cfg, openmetrics ? "packets" : "packets_total", "counter",
                 "Packets of a rule that the labels express.");
    const size_t here = out->len;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        put_series(out, cfg, families, openmetrics, all[i].name, all[i].help, all[i].kind,
                   all[i].what);
    put_head(out, cfg, "rules", "gauge",
             "Rules: exported by their labels, other, and duplicates of either.");
    put_tallies(out, cfg, families, "rules", kinds);
    put_head(out, cfg, "nonterminal_rules", "gauge",
             "Exported rules after which another may count the packet again.");
    put_tallies(out, cfg, families, "nonterminal_rules", NULL);
    put_head(out, cfg, "build_info", "gauge", "The nfprom that answers.");
    putf(out, "%s_build_info{version=\"" VERSION "\"} 1\n", cfg->namespace);
    put_head(out, cfg, "scrape_success", "gauge",
             "Whether the family was read to its end.");
    for (const struct family *f = families; f < families + 2; f++)
        if (f->enabled)
            putf(out, "%s_scrape_success{l2proto=\"%s\"} %d\n", cfg->namespace,
                 f->l2proto, f->success);
    put_head(out, cfg, "scrape_duration_seconds", "gauge",
             "How long the read of the family took.");
    for (const struct family *f = families; f < families + 2; f++)
        if (f->enabled)
            putf(out, "%s_scrape_duration_seconds{l2proto=\"%s\"} %lld.%06lld\n",
                 cfg->namespace, f->l2proto, f->duration / SECOND, f->duration % SECOND);
    if (openmetrics)
        puts_to(out, "# EOF\n");
    return here;
}

enum {
    PARTS = 4
};

/* An answer in parts: a buffer from its first byte `from` on, with the lines of the
 * families at `here`. */
static void part(struct iovec *parts, const struct buffer *out, size_t from, size_t here,
                 const struct family *families) {
    parts[0] = (struct iovec){out->data + from, here - from};
    parts[1] = (struct iovec){families[0].lines.data, families[0].lines.len};
    parts[2] = (struct iovec){families[1].lines.data, families[1].lines.len};
    parts[3] = (struct iovec){out->data + here, out->len - here};
}

/* Takes n bytes off the front of what is left. The part that comes next, NULL if there is
 * none. */
static struct iovec *take_sent(struct iovec *parts, ssize_t n) {
    struct iovec *next = NULL;
    for (size_t i = 0, left = n > 0 ? (size_t)n : 0; i < PARTS && !next; i++) {
        size_t here = left < parts[i].iov_len ? left : parts[i].iov_len;
        parts[i].iov_base = (char *)parts[i].iov_base + here;
        parts[i].iov_len -= here;
        left -= here;
        next = parts[i].iov_len > 0 ? &parts[i] : NULL;
    }
    return next;
}

/* Reads the enabled families (all zero before), and logs what fails: 200 if one
 * succeeded, else 504 if one was out of time, else 503. */
static int scrape(const struct config *cfg, struct family *families, bool page,
                  usec deadline) {
    int status = 503;
    families[0].page = families[1].page = page;
    families[0].l2proto = "ipv4", families[0].name = "IPv4",
    families[0].seed_labels = ",l2proto=\"ipv4\",l3proto=\"";
    families[1].l2proto = "ipv6", families[1].name = "IPv6",
    families[1].seed_labels = ",l2proto=\"ipv6\",l3proto=\"";
    families[0].enabled = cfg->ipv4;
    families[1].enabled = cfg->ipv6;
    for (struct family *f = families; f < families + 2; f++) {
        if (!f->enabled)
            continue;
        usec left =
            deadline - now(); /* a family that hangs leaves the other a share of it */
        read_family(cfg, f,
                    deadline - (f == families && cfg->ipv6 ? left / FAMILY_SHARE : 0));
        if (!f->success)
            log_line("%s: %s", f->l2proto, f->reason);
        status = f->success || status == 200 ? 200 : f->timed_out ? 504 : status;
    }
    return status;
}

/* ---- the page
 * --------------------------------------------------------------------------------------------
 */

/* clang-format off */
static const char page_head[] =
    "<!DOCTYPE html>\n<html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\n"
    "<title>nfprom</title>\n<style>\n"
    ":root{color-scheme:light dark;--line:#8886;--bar:#2f6fd0}\n"
    "body{font:1rem/1.45 system-ui,sans-serif;max-width:80rem;margin:0 auto;padding:1rem;overflow-wrap:anywhere}\n"
    "h1{font-size:1.4rem;margin:0}\n"
    "table{border-collapse:collapse;width:100%;overflow-wrap:normal;font-variant-numeric:tabular-nums}\n"
    "caption{text-align:left;padding-bottom:.5rem}\n"
    "th,td{text-align:left;vertical-align:baseline;padding:.25rem .5rem;border-bottom:1px solid var(--line)}\n"
    "thead th{position:sticky;top:0;background:Canvas;box-shadow:0 1px var(--line)}\n"
    "th[scope=row]{font-weight:normal}tbody th,tbody td:nth-child(2),tbody td:nth-child(4){overflow-wrap:anywhere}\n"
    "thead th:first-child{min-width:8rem}thead th:nth-child(2){min-width:9.5rem}thead th:nth-child(4){min-width:3.5rem}\n"
    "th[scope=rowgroup]{padding-top:1rem}\n"
    "code{display:block;font-size:.85em;opacity:.85}\n"
    "td:nth-last-child(-n+3):not(:last-child),thead th:nth-last-child(-n+3):not(:last-child){text-align:right;white-space:nowrap}\n"
    "td:last-child{min-width:6rem}\n"
    "i{display:block;height:.5rem;background:var(--bar)}\n"
    "@media(max-width:67rem){\n"
    "thead{position:absolute;left:-9999px}\n"
    "tr{display:grid;grid-template-columns:1fr 1fr;padding:.4rem 0;border-bottom:1px solid var(--line)}\n"
    "th,td{border:0;padding:.1rem .25rem}tbody th,tfoot th,td:last-child{grid-column:1/-1}\n"
    "td:nth-child(n):nth-last-child(n){text-align:left;white-space:normal;overflow-wrap:anywhere}\n"
    "td::before{opacity:.7}tbody td:nth-child(2)::before{content:'Address '}tbody td:nth-child(3)::before{content:'Protocol '}\n"
    "tbody td:nth-child(4)::before{content:'Port '}tbody td:nth-child(5)::before{content:'Direction '}\n"
    "td:nth-last-child(3)::before{content:'Packets '}td:nth-last-child(2)::before{content:'Bytes '}\n"
    "td:last-child::before{content:'Share '}}\n"
    "</style>\n<h1>nfprom</h1>\n";

static const char table_head[] =
    "<table><caption>What the rules have counted since they were made or set back. 1 KiB is 1,024 bytes, 1 MiB 1,024 KiB and so on; "
    "the share is that of all bytes in the table.</caption>\n"
    "<thead><tr><th scope=col>Comment or rule<th scope=col>Address<th scope=col>Protocol<th scope=col>Port<th scope=col>Direction"
    "<th scope=col>Packets<th scope=col>Bytes<th scope=col>Share</thead>\n";
/* clang-format on */

/* The cells of packets, bytes and share. */
static void put_numbers(struct buffer *b, uint64_t packets, uint64_t bytes, double all) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    char digits[DIGITS_MAX], *end = digits + sizeof digits;
    double size = (double)bytes, share = all > 0 ? 100 * size / all : 0;
    int unit = 0;
    puts_to(b, "<td>");
    for (const char *p = put_digits(end, packets); p < end; p++) {
        put(b, p, 1);
        if (end - p > 1 && (end - p) % 3 == 1)
            put(b, ",", 1);
    }
    for (; size >= 1023.95; unit++)
        size /= 1024;
    putf(b, "<td>%.*f %s<td>%.1f %%<i style=\"width:%.1f%%\"></i>", unit > 0, size,
         units[unit], share, share);
}

/* The rows of a chain. In the table of iptables-save the policies of all chains stand
 * before the rules of the first. */
static void put_group(struct buffer *b, const struct config *cfg, const struct family *f,
                      size_t chain, double all) {
    const struct series *s = series_of(f);
    if (f->tallies[chain].exported == 0)
        return;
    putf(b, "\n<tbody><tr><th colspan=8 scope=rowgroup>%s, chain ", f->name);
    put_escaped(b, cfg->chains[chain], true);
    for (size_t left = count_series(f); left > 0; left--, s++) {
        if (s->key_len != chain)
            continue;
        put(b, f->text.data + s->labels, s->len);
        put_numbers(b, s->packets, s->bytes, all);
    }
}

static void put_rows(struct buffer *b, const struct config *cfg,
                     const struct family *families) {
    static const char *const names[] =
        {[DIRECTION_NONE] = "Neither", [DIRECTION_IN] = "In", [DIRECTION_OUT] = "Out"};
    static const enum direction order[] = {DIRECTION_IN, DIRECTION_OUT, DIRECTION_NONE};
    struct total totals[3] = {{0, 0}, {0, 0}, {0, 0}};
    double all = 0;
    for (int i = 0; i < 6; i++) {
        const struct total *t = &families[i % 2].totals[i / 2];
        add_up(&totals[i / 2].packets, t->packets);
        add_up(&totals[i / 2].bytes, t->bytes);
    }
    for (const struct family *f = families; f < families + 2; f++)
        for (size_t i = 0; i < count_series(f); i++)
            all += (double)series_of(f)[i].bytes;
    puts_to(b, table_head);
    for (const struct family *f = families; f < families + 2; f++)
        for (size_t chain = 0; chain < cfg->nchains; chain++)
            put_group(b, cfg, f, chain, all);
    puts_to(b, "\n<tfoot><tr><th colspan=8 scope=rowgroup>Totals");
    for (int i = 0; i < 3; i++) {
        putf(b, "\n<tr><th scope=row colspan=5>%s", names[order[i]]);
        put_numbers(b, totals[order[i]].packets, totals[order[i]].bytes, all);
    }
    puts_to(b, "\n</table>\n");
}

static void put_empty(struct buffer *b, const struct config *cfg,
                      const struct family *f) {
    for (size_t chain = 0; chain < cfg->nchains; chain++) {
        if (f->tallies[chain].exported > 0)
            continue;
        puts_to(b, "<p>There is no rule in the chain ");
        put_escaped(b, cfg->chains[chain], true);
        putf(b, " of %s.\n", f->name);
    }
}

/* A sentence, which may have come in several lines. */
static void put_reason(struct buffer *b, const struct family *f) {
    putf(b, "<p role=alert><strong>%s could not be read:</strong>", f->name);
    for (const char *p = f->reason; *p; p += *p == '\n') {
        size_t len = strcspn(p, "\n");
        puts_to(b, " ");
        put_escaped(b, (struct text){p, len}, true);
        p += len;
    }
    puts_to(b, "\n");
}

static void put_page(struct buffer *b, const struct config *cfg,
                     const struct family *families) {
    char at[40];
    time_t t = time(NULL);
    struct tm tm;
    unsigned long nonterminal =
        families[0].tallies[0].nonterminal + families[1].tallies[0].nonterminal;
    strftime(at, sizeof at, "%Y-%m-%d %H:%M:%S", gmtime_r(&t, &tm));
    puts_to(b, page_head);
    for (const struct family *f = families; f < families + 2; f++) {
        if (f->success) {
            putf(b, "<p>%s read at <time>%s</time> UTC in %lld.%lld ms.\n", f->name, at,
                 f->duration / MS, f->duration / 100 % 10);
            put_empty(b, cfg, f);
        } else if (f->enabled) {
            put_reason(b, f);
        }
    }
    if (count_series(&families[0]) + count_series(&families[1]) > 0)
        put_rows(b, cfg, families);
    if (nonterminal > 0)
        putf(
            b,
            "<p>After %lu of these rules a packet goes on to the next one: a total may count it more than once.\n",
            nonterminal);
}

/* ---- HTTP
 * -----------------------------------------------------------------------------------------------
 */

static const char landing_page[] =
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>nfprom</title></head>\n<body><h1>nfprom</h1>\n"
    "<p>The packet and byte counters of an iptables chain, for Prometheus.</p>\n<ul>\n"
    "<li><a href=\"/metrics\">/metrics</a>: the counters, as Prometheus reads them</li>\n"
    "<li><a href=\"/status\">/status</a>: the same for people</li>\n"
    "<li><a href=\"/-/healthy\">/-/healthy</a>: whether nfprom is started at all</li>\n</ul>\n"
    "<p>nfprom " VERSION "</p></body></html>\n";

/* Every status that nfprom answers with; the text of those that need no other. */
static const struct status {
    int code;
    const char *phrase, *text;
} statuses[] = {
    {200, "OK", "ok\n"},
    {400, "Bad Request",
     "This is no HTTP/1 request: a request line, one Host header, an empty line. TLS is not spoken here.\n"},
    {404, "Not Found", "There is /metrics here, /status, /-/healthy and /.\n"},
    {405, "Method Not Allowed", "Only GET and HEAD are answered; ask for /metrics.\n"},
    {408, "Request Timeout",
     "The request was not complete in time; it ends with an empty line.\n"},
    {414, "URI Too Long", "The request line is longer than 8 KiB; ask for /metrics.\n"},
    {431, "Request Header Fields Too Large",
     "There are more than 16 KiB or 100 lines of headers; send fewer.\n"},
    {500, "Internal Server Error", ""},
    {503, "Service Unavailable", "There is no memory for the response.\n"},
    {504, "Gateway Timeout", ""},
    {505, "HTTP Version Not Supported", "HTTP/1.0 and HTTP/1.1 are spoken here.\n"},
};

static bool client_gone(void) {
    return errno == EPIPE || errno == ECONNRESET || errno == ETIMEDOUT ||
           errno == EHOSTUNREACH || errno == ENETUNREACH;
}

/* 0 if all is sent; -1 if the client went away, or does not read until the deadline:
 * there is nobody to tell; 1 if standard output cannot be written at all. */
static int send_all(struct iovec *parts, usec deadline) {
    struct pollfd fd = {.fd = STDOUT_FILENO, .events = POLLOUT};
    struct iovec *next;
    for (ssize_t n = 0; (next = take_sent(parts, n));) {
        if (n != 0 && (poll(&fd, 1, ms_until(deadline)) == 0 || now() >= deadline))
            return -1;
        struct msghdr message = {.msg_iov = next,
                                 .msg_iovlen = (size_t)(parts + PARTS - next)};
        n = sendmsg(STDOUT_FILENO, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == ENOTSOCK) { /* a pipe that poll calls writable takes so much
                                             without blocking */
            size_t len = next->iov_len < 4096 ? next->iov_len : 4096;
            n = poll(&fd, 1, ms_until(deadline)) > 0
                    ? write(STDOUT_FILENO, next->iov_base, len)
                    : (errno = EAGAIN, -1);
        }
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            bool gone = client_gone();
            if (!gone)
                log_line("cannot answer: %s", strerror(errno));
            return gone ? -1 : 1;
        }
    }
    return 0;
}

/* Half-closes, then reads what the client still sends: a close with unread input would
 * make TCP throw away the answer. */
static void drain(usec deadline) {
    static char waste[16 * 1024];
    struct pollfd fd = {.fd = STDIN_FILENO, .events = POLLIN};
    usec until = now() + DRAIN_TIME < deadline ? now() + DRAIN_TIME : deadline;
    if (shutdown(STDOUT_FILENO, SHUT_WR) != 0 && errno == ENOTSOCK)
        close(STDOUT_FILENO);
    ssize_t n = 1;
    for (long total = 0; n > 0 && total < DRAIN_MAX && poll(&fd, 1, ms_until(until)) > 0;
         total += n)
        n = read(STDIN_FILENO, waste, sizeof waste);
}

/* Sends an answer in one piece, its head put right in front of the first part, where
 * there is HEAD_ROOM. The exit status: 1 if it could not be written. */
static int answer(const struct status *status, const char *type, struct iovec *parts,
                  bool head_only, usec deadline) {
    char head[HEAD_ROOM], date[40];
    time_t t = time(NULL);
    struct tm tm;
    size_t len = 0;
    for (int i = 0; i < PARTS; i++)
        len += parts[i].iov_len;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&t, &tm));
    int n = snprintf(
        head, sizeof head,
        "HTTP/1.1 %d %s\r\nDate: %s\r\n%sContent-Type: %s; charset=utf-8\r\nContent-Length: %zu\r\n"
        "Connection: close\r\n\r\n",
        status->code, status->phrase, date,
        status->code == 405 ? "Allow: GET, HEAD\r\n" : "", type, len);
    parts[0].iov_base = memcpy((char *)parts[0].iov_base - n, head, (size_t)n);
    parts[0].iov_len = (size_t)n + (head_only ? 0 : parts[0].iov_len);
    for (int i = 1; i < PARTS; i++)
        parts[i].iov_len = head_only ? 0 : parts[i].iov_len;
    int sent = send_all(parts, deadline);
    if (sent == 0)
        drain(deadline);
    return sent > 0;
}

static const struct status *find_status(int code) {
    const struct status *status = statuses;
    while (status->code != code)
        status++;
    return status;
}

/* A short answer out of static memory, so that it can be given when there is none left.
 * text NULL: what the status says. */
static int answer_text(int code, const char *type, const char *text, bool head_only,
                       usec deadline) {
    static char data[HEAD_ROOM + 2 * REASON_MAX + 100];
    struct buffer body = {.data = data, .len = HEAD_ROOM, .size = sizeof data};
    puts_to(&body, text ? text : find_status(code)->text);
    struct iovec parts[PARTS] = {{data + HEAD_ROOM, body.len - HEAD_ROOM}};
    return answer(find_status(code), type, parts, head_only, deadline);
}

/* Reads a request into buf. Its status (request_parse), 408, 0 if there is nobody to
 * answer, -1 if input fails. */
static int read_request(char *buf, struct request *req, usec deadline) {
    for (size_t len = 0;;) {
        struct pollfd fd = {.fd = STDIN_FILENO, .events = POLLIN};
        int ready = poll(&fd, 1, ms_until(deadline));
        if (ready == 0 || now() >= deadline)
            return 408;
        ssize_t n = ready < 0 ? -1 : read(STDIN_FILENO, buf + len, REQUEST_MAX - len);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return client_gone() ? 0 : -1;
        len += (size_t)n;
        int status = len > 0 ? request_parse(buf, len, req) : 0;
        if (status != 0 || n == 0)
            return status == 0 && len > 0 ? 400 : status;
        if (len == REQUEST_MAX)
            return 431;
    }
}

/* The deadline of a scrape, which the scraper may have shortened. */
static usec shorten(const struct config *cfg, const struct request *req, usec started) {
    usec deadline = started + cfg->timeout, wanted = deadline;
    if (req->scrape_timeout_ms >= 0) {
        long ms = req->scrape_timeout_ms - SCRAPE_MARGIN_MS;
        wanted = started + (usec)(ms > SCRAPE_TIME_MIN_MS ? ms : SCRAPE_TIME_MIN_MS) * MS;
    }
    return wanted < deadline ? wanted : deadline;
}

/* Why there is no exposition. */
static int answer_reasons(const struct family *families, int status, bool head_only,
                          usec deadline) {
    static char text[2 * REASON_MAX + 40];
    struct buffer b = {.data = text, .size = sizeof text - 1};
    for (const struct family *f = families; f < families + 2; f++)
        if (f->enabled)
            puts_to(&b, f->l2proto), puts_to(&b, ": "), puts_to(&b, f->reason),
                puts_to(&b, "\n");
    answer_text(status, "text/plain", text, head_only, deadline);
    return 1;
}

/* /metrics and, as a page, /status. */
static int answer_scrape(const struct config *cfg, const struct request *req, bool page,
                         bool head_only, usec started) {
    static struct family families[2]; /* static: the process ends with them */
    static struct buffer body = {.max = RESPONSE_MAX};
    static const char room[HEAD_ROOM];
    usec deadline = shorten(cfg, req, started);
    int status =
        scrape(cfg, families, page, deadline - (deadline - started) / SENDING_SHARE);
    bool openmetrics = req->openmetrics.quality > req->text.quality;
    const char *type = page          ? "text/html"
                       : openmetrics ? "application/openmetrics-text; version=1.0.0"
                                     : "text/plain; version=0.0.4";
    if (status != 200 && !page)
        return answer_reasons(families, status, head_only, deadline);
    size_t here = HEAD_ROOM;
    put(&body, room, sizeof room);
    if (page)
        put_page(&body, cfg, families);
    else
        here = put_exposition(&body, cfg, families, openmetrics);
    if (body.data && !body.failed) {
        struct iovec parts[PARTS];
        part(parts, &body, HEAD_ROOM, here, families);
        return answer(find_status(status), type, parts, head_only, deadline) ||
               status != 200;
    }
    log_line("no memory for the response");
    answer_text(503, "text/plain", NULL, head_only, deadline);
    return 1;
}

/* One exchange on standard input and output. Returns the exit status. */
static int serve(const struct config *cfg) {
    static char buf[REQUEST_MAX];
    struct request req;
    usec started = now(), deadline = started + cfg->timeout;
    int status = read_request(buf, &req, deadline - cfg->timeout / SENDING_SHARE);
    if (status < 0)
        log_line("standard input cannot be read: %s", strerror(errno));
    if (status <= 0)
        return status < 0;
    bool head_only = status == 200 && text_is(req.method, "HEAD");
    if (flag_error[0] != '\0') {
        char text[sizeof flag_error + 50];
        snprintf(text, sizeof text, "nfprom is started with a wrong flag: %s\n",
                 flag_error);
        answer_text(500, "text/plain", text, head_only, deadline);
        return 2;
    }
    if (status == 200 && !head_only && !text_is(req.method, "GET"))
        status = 405;
    bool people = status == 200 && text_is(req.path, "/status");
    if (people || (status == 200 && text_is(req.path, "/metrics")))
        return answer_scrape(cfg, &req, people, head_only, started);
    bool page = status == 200 && text_is(req.path, "/");
    if (status == 200 && !page && !text_is(req.path, "/-/healthy"))
        status = 404;
    return answer_text(status, page ? "text/html" : "text/plain",
                       page ? landing_page : NULL, head_only, deadline);
}

/* ---- -print
 * ---------------------------------------------------------------------------------------------
 */

static int print_exposition(const struct config *cfg) {
    static struct family families[2];
    static struct buffer out = {.max = RESPONSE_MAX};
    if (scrape(cfg, families, false, now() + cfg->timeout) != 200)
        return 1;
    size_t here = put_exposition(&out, cfg, families, false);
    struct iovec parts[PARTS];
    part(parts, &out, 0, here, families);
    ssize_t n = 0;
    for (struct iovec *next; !out.failed && (next = take_sent(parts, n));) {
        n = write(STDOUT_FILENO, next->iov_base, next->iov_len);
        if (n < 0 && errno == EAGAIN)
            n = poll(&(struct pollfd){.fd = STDOUT_FILENO, .events = POLLOUT}, 1, -1) > 0
                    ? 0
                    : -1;
        if (n < 0 && errno != EINTR)
            break;
    }
    bool ok = !out.failed && n >= 0 &&
              close(STDOUT_FILENO) == 0; /* some file systems tell only then */
    if (!ok)
        log_line("cannot print: %s", out.failed ? "no memory" : strerror(errno));
    return !ok;
}

/* ---- -addr
 * ----------------------------------------------------------------------------------------------
 */

static volatile sig_atomic_t stopped;

static void on_signal(int signal) {
    stopped = stopped || signal != SIGCHLD; /* that one only ends the wait in ppoll */
}

/* Listens on one address: the socket; -1 if this machine does not have that kind of
 * address, -2 if it failed. */
static int listen_on(const struct addrinfo *ai) {
    int on = 1, fd = socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                            ai->ai_protocol);
    if (fd < 0)
        return errno == EAFNOSUPPORT ? -1 : -2;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (ai->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    return errno == EADDRNOTAVAIL ? -1 : -2;
}

/* Listens on all addresses of ADDR. The number of listeners, 0 after a message. */
static size_t listen_all(const char *addr, struct pollfd *listeners) {
    char host[260];
    const char *colon = port_colon(addr);
    bool brackets = *addr == '[';
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM},
                    *list = NULL;
    snprintf(host, sizeof host, "%.*s", (int)(colon - addr) - 2 * brackets,
             addr + brackets);
    int fd = -1, error = getaddrinfo(*host ? host : NULL, colon + 1, &hints, &list);
    size_t n = 0;
    for (const struct addrinfo *ai = list; ai && n < LISTENERS_MAX && fd != -2;
         ai = ai->ai_next)
        if ((fd = listen_on(ai)) >= 0)
            listeners[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
    if (error || n == 0 || fd == -2) {
        log_line("-addr %s: cannot listen: %s", addr,
                 error ? gai_strerror(error) : strerror(errno));
        return 0;
    }
    freeaddrinfo(list);
    return n;
}

/* In the child of a connection: everything is as a super-server would have left it. */
static _Noreturn void serve_connection(const struct config *cfg, int fd,
                                       const sigset_t *mask, pid_t parent) {
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, mask, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent || dup2(fd, STDIN_FILENO) < 0 || dup2(fd, STDOUT_FILENO) < 0)
        _exit(1);
    close(fd);
    _exit(serve(cfg));
}

struct children {
    unsigned n;
    pid_t pids[CONNECTIONS_MAX];
};

/* Takes a connection, if there is one. False in a shortage: the caller waits a moment. */
static bool take_connection(const struct config *cfg, int listener, const sigset_t *mask,
                            struct children *children) {
    pid_t parent = getpid(), child = -1;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 && errno != EMFILE && errno != ENFILE && errno != ENOBUFS &&
        errno != ENOMEM)
        return true; /* it is gone again */
    if (fd >= 0)
        child = fork();
    if (child == 0)
        serve_connection(cfg, fd, mask, parent);
    static bool told; /* once for a shortage, not for each try */
    if (child < 0 && !told)
        log_line("-addr: a connection %s: %s",
                 fd < 0 ? "has to wait" : "is lost, no process for it", strerror(errno));
    told = child < 0;
    if (fd >= 0)
        close(fd);
    if (child > 0)
        children->pids[children->n++] = child;
    return child > 0;
}

/* Takes back what has ended; to the first process of a container come the orphans of
 * others too. */
static void reap(struct children *children) {
    for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
        for (unsigned i = 0; i < children->n; i++)
            if (children->pids[i] == pid)
                children->pids[i] = children->pids[--children->n];
}

/* Until SIGTERM or SIGINT. Then those that are being answered get a second; the rest ends
 * with this process. */
static int listen_and_serve(const struct config *cfg) {
    struct pollfd listeners[LISTENERS_MAX];
    struct timespec moment = {.tv_nsec = 50L * 1000 * 1000};
    size_t n = listen_all(cfg->addr, listeners);
    struct children children = {.n = 0};
    sigset_t mask, ours;
    sigemptyset(&mask);
    sigemptyset(&ours);
    static const int signals[] = {SIGTERM, SIGINT, SIGCHLD};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        sigaddset(&ours, signals[i]);
        signal(signals[i], on_signal);
    }
    sigprocmask(SIG_BLOCK, &ours, NULL); /* they arrive in ppoll only */
    while (n > 0 && !stopped) {
        bool shortage = false;
        int ready = ppoll(listeners, children.n < CONNECTIONS_MAX ? n : 0, NULL, &mask);
        for (size_t i = 0; i < n && ready > 0 && children.n < CONNECTIONS_MAX; i++)
            if (listeners[i].revents &&
                !take_connection(cfg, listeners[i].fd, &mask, &children))
                shortage = true;
        if (shortage)
            ppoll(NULL, 0, &moment, &mask);
        reap(&children);
    }
    for (size_t i = 0; i < n; i++)
        close(listeners[i].fd);
    for (usec until = now() + SECOND; reap(&children), children.n > 0 && now() < until;)
        ppoll(NULL, 0, &moment, &mask);
    return n == 0;
}

/* ---- main
 * -----------------------------------------------------------------------------------------------
 */

/* A closed standard stream would become the number of the next file opened. What is put
 * there cannot be used by mistake: input cannot be read, output not written. */
static void fill_standard_streams(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
            (void)!socket(AF_UNIX, SOCK_STREAM, 0);
}

/* What was inherited is somebody else's choice: systemd ignores SIGPIPE, some parents
 * ignore SIGCHLD. */
static void set_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

int main(int argc, char **argv) {
    struct config cfg = {.table = "filter",
                         .namespace = "nfprom",
                         .ipv4 = true,
                         .timeout = 8LL * SECOND};
    struct stat st;
    fill_standard_streams();
    set_signals();
    parse_flags(&cfg, argc, argv);
    bool http = !cfg.addr && !cfg.print && !isatty(STDIN_FILENO);
    bool refuse = flag_error[0] != '\0',
         client = refuse && fstat(STDIN_FILENO, &st) == 0 && S_ISSOCK(st.st_mode);
    choose_log(refuse ? client : http);
    if (refuse) {
        log_line("%s", flag_error);
        if (!client)
            dprintf(STDERR_FILENO, "%s", usage);
        if (client)
            serve(&cfg);
        return 2;
    }
    if (http)
        return serve(&cfg);
    return cfg.addr ? listen_and_serve(&cfg) : print_exposition(&cfg);
}
