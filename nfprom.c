/* nfprom - shows the counters of an iptables chain to Prometheus, a process for a request.
 *
 * A super-server (systemd with Accept=yes, xinetd, inetd, s6, socat) starts nfprom with a
 * connection as standard input and output; -addr plays that part itself. nfprom reads one
 * HTTP request, runs `iptables-save -c -t TABLE` through popen(3), or `iptables -v -S CHAIN`
 * with -list, reads what it prints to the end, answers and exits.
 *
 *   GET or HEAD of  /metrics    the exposition, text format 0.0.4 or, if the Accept header
 *                               prefers it, OpenMetrics 1.0; 503 or 504 with the reason if
 *                               there is none
 *                   /status     the same counters as a page for people, 503 or 504 likewise;
 *                               ?by=NAME adds them up by a label, ?seconds=N (1 to 5) reads
 *                               twice and shows what was counted in between
 *                   /           a page with links; iptables is not run
 *                   /-/healthy  "ok"; iptables is not run
 *
 * It refuses: other methods (405) and paths (404), what is not HTTP/1.x (400, 505), a request
 * line over 8 KiB (414), headers over 16 KiB or 100 lines (431), a request that is not
 * complete at the deadline (408). What follows a request is read only to be thrown away.
 * There is one deadline (-timeout, 8 s) for the whole exchange. A 200 says that each family which
 * reports success was read to its COMMIT (a list has none), with status 0, the chain found
 * and every counter a number below 2^64; a chain without any rule is believed only when the
 * other command, where it may be run, has said the same, and one of nft when it has as many
 * rules as the kernel counts, or when the difference stays (read_believed). No byte of a request
 * gets into a command, and the process that reads it holds no right (see the collector).
 * Messages go to standard error or, if that is the client's connection, to syslog.
 *
 * Exit status: 0 answered, 1 nfprom or iptables failed, 2 wrong flags.
 *
 * The data flow one way:
 *
 *   collector: command -> output -> rules (parse.c) -> facts -> view -> sink
 *
 * In this file each part stands below what it needs: time, messages, flags, sink, facts,
 * commands, lock, kernel, collector, reading, views, HTTP.
 *
 * Facts are what was read, kept once, in the chain's order. A view (text format, OpenMetrics,
 * page) makes bytes of them, and knows no HTTP. A sink takes the bytes of any view: it counts
 * them, or sends them through one window. So an answer is never in memory as a whole: a view
 * is run twice, the first time to know its Content-Length. */
#define _GNU_SOURCE
#include "parse.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#error "make says -DVERSION=...: it stands in the Makefile"
#endif

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- limits, time ---------------------------------------------------------------- */

typedef long long usec; /* microseconds, and points of the monotonic clock in them */

enum {
    MS = 1000,
    SECOND = 1000 * MS,
    MINUTE = 60 * SECOND,

    /* time */
    SENDING_DIVISOR = 16,     /* the last 1/16 of the time is for sending */
    COLLECTOR_GRACE = SECOND, /* what a collector lives longer than nfprom waits for it */
    REAPING_TIME = SECOND,    /* what nfprom waits for its end */
    ALARM_INTERVAL = 20 * MS,
    FAMILY_DIVISOR = 4,       /* a family leaves 1/4 of the time to each that follows */
    SCRAPE_MARGIN_MS = 500,   /* of the scraper's timeout, kept for its own work */
    SCRAPE_TIME_MIN_MS = 100, /* what a scrape gets at least */
    DRAIN_TIME = 2 * SECOND,
    SECONDS_MAX = 5,             /* between the two reads of a page with rates */
    READS_TIME_MIN = SECOND / 2, /* which both of them get together, at least */
    /* in let_pieces_gather() */
    QUICK_PIECES = 128,  /* of a request, each read as soon as it is there */
    NAPS_DIVISOR = 1024, /* for others, so many naps fit into the whole time */

    /* bytes */
    OUTPUT_MAX = 1 << 30,    /* of iptables-save; a million rules are a tenth of it */
    FACTS_MAX = 256 << 20,   /* of each thing that grows; a power of two */
    DRAIN_MAX = 16 << 20,    /* read from a client after the answer */
    WINDOW_SIZE = 64 * 1024, /* through which an answer is sent */
    READ_SIZE = 16 * 1024,   /* read of iptables' output at a time */
    PIPE_SIZE = 64 * 1024,   /* what Linux gives */
    LARGE_PIPE_SIZE = 1 << 20,
    FIRST_SIZE = 64 * 1024, /* of what grows */
    PIECE_MAX = 1500,       /* of a formatted text */
    SAID_MAX = 1000, /* kept of what iptables-save says on standard error: the last */
    TROUBLE_MAX = 300,
    COMMAND_SHOWN_MAX = 1000, /* of a command in a reason */
    REASON_MAX = 3000,
    COMMAND_MAX = CHAINS_MAX * (4 * CHAIN_NAME_MAX + 60),
    NAMESPACE_MAX = 400,
    LINKS_MAX = 64,  /* to names from comments */
    HOST_MAX = 255,  /* of -addr */
    VISIBLE_MAX = 4, /* bytes that stand for one that is not UTF-8 */

    CONNECTIONS_MAX = 256, /* at once, with -addr */
    SOURCE_MAX = 8,        /* of them from one address */
    LISTENERS_MAX = 16,
    CAP_SETUID = 7, /* linux/capability.h, which not every libc's headers bring */
    CAP_NET_ADMIN = 12,
    CAPABILITY_VERSION_3 = 0x20080522,
    NOBODY = 65534 /* the user and the group without rights */
};

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

static usec earlier(usec a, usec b) {
    return a < b ? a : b;
}

/* ---- messages -------------------------------------------------------------------- */

enum {
    LOG_LINE_MAX = REASON_MAX + 200
}; /* below PIPE_BUF: a line is one write */

static bool log_to_syslog;

/* Sends to /dev/log without syslog(3), which blocks when nobody reads the log. */
static void send_to_syslog(const char *message) {
    char line[LOG_LINE_MAX + 100];
    struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = "/dev/log"};
    time_t t = time(NULL);
    struct tm tm;
    int len = snprintf(line, sizeof line, "<%d>", LOG_DAEMON | LOG_ERR);
    len += (int)strftime(line + len, sizeof line - (size_t)len, "%b %e %H:%M:%S ",
                         localtime_r(&t, &tm));
    len += snprintf(line + len, sizeof line - (size_t)len, "nfprom[%d]: %s",
                    (int)getpid(), message);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    (void)!sendto(fd, line, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL,
                  (struct sockaddr *)&to, sizeof to);
    close(fd);
}

/* In one write, since others may write there too. */
static void write_to_stderr(const char *message) {
    char line[LOG_LINE_MAX + 100];
    struct pollfd fd = {.fd = STDERR_FILENO, .events = POLLOUT};
    int len = snprintf(line, sizeof line, "nfprom: %s\n", message);
    if (poll(&fd, 1, 100) > 0)
        (void)!write(STDERR_FILENO, line, (size_t)len);
}

/* One line, whatever the text holds, and only where that does not block: a client waits,
 * and a log that nobody reads must not make a process stay. */
static void log_line(const char *format, ...) {
    char message[LOG_LINE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    for (char *p = message; *p; p++) {
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    }
    if (log_to_syslog) {
        send_to_syslog(message);
    } else {
        write_to_stderr(message);
    }
}

static bool same_file(int a, int b) {
    struct stat sa, sb;
    if (fstat(a, &sa) != 0 || fstat(b, &sb) != 0)
        return false;
    return sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

/* xinetd and inetd, and systemd by default, make the client's connection standard error
 * too: nothing may be written there. */
static void choose_log(bool has_client) {
    bool is_client =
        same_file(STDERR_FILENO, STDIN_FILENO) || same_file(STDERR_FILENO, STDOUT_FILENO);
    log_to_syslog = has_client && is_client && !isatty(STDERR_FILENO);
}

/* ---- UTF-8 ----------------------------------------------------------------------- */

/* Length of the UTF-8 character that begins with this byte; 0: none does. */
static size_t utf8_length_by_first(unsigned char first) {
    if (first < 0x80)
        return 1;
    if (first < 0xc2)
        return 0; /* the middle of one, or overlong */
    if (first < 0xe0)
        return 2;
    if (first < 0xf0)
        return 3;
    return first < 0xf5 ? 4 : 0;
}

/* Length of the UTF-8 character at p, 0 if there is none (RFC 3629: no surrogates,
 * nothing overlong, up to U+10FFFF). */
static size_t utf8_length(const char *at, size_t left) {
    const unsigned char *p = (const unsigned char *)at;
    size_t n = utf8_length_by_first(*p);
    if (n > left)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    }
    if (*p == 0xe0 && p[1] < 0xa0)
        return 0; /* overlong */
    if (*p == 0xed && p[1] > 0x9f)
        return 0; /* a surrogate */
    if (*p == 0xf0 && p[1] < 0x90)
        return 0; /* overlong */
    if (*p == 0xf4 && p[1] > 0x8f)
        return 0; /* beyond U+10FFFF */
    return n;
}

/* Writes the four characters \xHH that stand for a byte which has no place in a text. */
static void write_hex(char to[VISIBLE_MAX], char byte) {
    static const char digits[] = "0123456789abcdef";
    to[0] = '\\';
    to[1] = 'x';
    to[2] = digits[(unsigned char)byte >> 4];
    to[3] = digits[byte & 15];
}

/* Whether a byte means something in one of the formats that are written, or is not ASCII.
 */
static bool is_special(char byte) {
#define BIT(c) (1u << ((c)&31))
    static const uint32_t bits[256 / 32] = {
        /* of byte c: bit c % 32 of word c / 32, which is for 32 bytes */
        ~0u, /* control characters */
        BIT('"') | BIT('&') | BIT('<') | BIT('>'),
        BIT('\\'),
        BIT(0x7f),
        ~0u, /* not ASCII */
        ~0u,
        ~0u,
        ~0u,
    };
    unsigned char c = (unsigned char)byte;
    return bits[c / 32] & BIT(c);
#undef BIT
}

/* Whether t has no byte that is special, as nearly all texts of rules: it is written as
 * it is. (Found once, when a rule is kept, since its texts are written several times.) */
static bool is_harmless(struct text t) {
    for (size_t i = 0; i < t.len; i++) {
        if (is_special(t.at[i]))
            return false;
    }
    return true;
}

/* Writes t as it is shown: a byte that is not UTF-8 becomes \xHH, and so does NUL, where
 * Prometheus would stop reading. `to` has VISIBLE_MAX * t.len bytes. Texts are made visible before
 * they are compared: two rules that are printed the same are found to be duplicates. */
static struct text make_visible(char *to, struct text t) {
    const char *end = t.at + t.len;
    struct text visible = {to, 0};
    for (const char *p = t.at; p < end;) {
        size_t n = *p == '\0' ? 0 : utf8_length(p, (size_t)(end - p));
        if (n > 0) {
            memcpy(to + visible.len, p, n);
            visible.len += n;
            p += n;
        } else {
            write_hex(to + visible.len, *p);
            visible.len += VISIBLE_MAX;
            p++;
        }
    }
    return visible;
}

/* ---- flags ----------------------------------------------------------------------- */

enum {
    IPV4,
    IPV6,
    FAMILIES
};

/* Where to listen. */
struct endpoint {
    struct text host; /* empty: all addresses */
    const char *port;
};

struct config {
    struct text chains[CHAINS_MAX]; /* their names as given */
    struct text shown_chains[CHAINS_MAX];
    char label_bytes[CHAINS_MAX][VISIBLE_MAX * CHAIN_NAME_MAX];
    size_t nchains;
    const char *table, *namespace;
    const char *variant; /* behind the name of the command: "", "-nft" or "-legacy" */
    const char *addr;    /* as given; "": no -addr */
    struct endpoint endpoint;
    bool families[FAMILIES];
    bool list, print;
    usec timeout;
};

/* What is wrong with the flags, empty if nothing. */
static char flag_error[400];

/* Notes what is wrong. Returns false, so that a setter can return it. */
static bool wrong(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(flag_error, sizeof flag_error, format, args);
    va_end(args);
    return false;
}

/* A flag. Without an argument it is a boolean, and may stand alone. */
struct flag {
    enum flag_group {
        WHAT_IS_READ,
        HOW_IT_IS_SHOWN,
        ABOUT
    } group;
    const char *name;
    const char *argument;
    const char *initial; /* the value that it has if it is not given */
    const char *meaning;
    bool (*set)(struct config *config, const struct flag *flag, const char *value);
    size_t offset; /* for set_bool: of its field in struct config */
};

/* The index of s in a list of words that ends with NULL; false if it is not there. */
static bool find_word(const char *s, const char *const *words, size_t *index) {
    for (*index = 0; words[*index]; ++*index) {
        if (strcmp(s, words[*index]) == 0)
            return true;
    }
    return false;
}

static bool parse_bool(const struct flag *flag, const char *value, bool *result) {
    static const char *const yes[] = {"1", "t", "T", "true", "TRUE", "True", NULL};
    static const char *const no[] = {"0", "f", "F", "false", "FALSE", "False", NULL};
    size_t index;
    *result = find_word(value, yes, &index);
    if (*result || find_word(value, no, &index))
        return true;
    return wrong("-%s=%s: a boolean is true or false", flag->name, value);
}

static bool set_bool(struct config *config, const struct flag *flag, const char *value) {
    return parse_bool(flag, value, (bool *)((char *)config + flag->offset));
}

/* A number with its unit at *p, which is moved behind it; in microseconds. False: it is
 * none. */
static bool parse_duration_part(const char **p, double *us) {
    static const struct unit {
        const char *name;
        double us;
    } units[] = {
        {"ms", MS},
        {"us", 1},
        {"s", SECOND},
        {"m", 60.0 * SECOND},
        {"h", 3600.0 * SECOND},
    };
    char *behind;
    double number = strtod(*p, &behind);
    if (behind == *p)
        return false;
    for (size_t i = 0; i < COUNT(units); i++) {
        size_t len = strlen(units[i].name);
        if (strncmp(behind, units[i].name, len) != 0)
            continue;
        *us = number * units[i].us;
        *p = behind + len;
        return true;
    }
    return false;
}

/* Go's duration: numbers with units, as in 1m30s. */
static bool set_timeout(struct config *config, const struct flag *flag,
                        const char *value) {
    double us = 0;
    const char *p = value;
    bool good = *value && value[strspn(value, "0123456789.hmsu")] == '\0';
    while (good && *p) {
        double part = 0;
        good = parse_duration_part(&p, &part);
        us += part;
    }
    if (!good) {
        return wrong("-%s %s: a duration is numbers with units, as in 500ms, 8s or 1m30s",
                     flag->name, value);
    }
    if (us < 10 * MS || us > 3600.0 * SECOND) {
        return wrong("-%s %s: must be 10ms to 1h", flag->name, value);
    }
    config->timeout = (usec)us;
    return true;
}

/* Visible bytes, and no first letter that iptables would take for an option. */
static bool is_chain_name(struct text name) {
    if (name.len == 0 || name.len > CHAIN_NAME_MAX)
        return false;
    if (*name.at == '-' || *name.at == '!')
        return false;
    for (size_t i = 0; i < name.len; i++) {
        if ((unsigned char)name.at[i] <= ' ' || name.at[i] == 0x7f)
            return false;
    }
    return true;
}

static bool add_chain(struct config *config, const struct flag *flag, const char *value) {
    struct text name = {value, strlen(value)};
    if (!is_chain_name(name)) {
        return wrong(
            "-%s '%s': a chain's name has 1 to %d bytes, no blanks, no - or ! first",
            flag->name, value, CHAIN_NAME_MAX);
    }
    if (config->nchains == CHAINS_MAX) {
        return wrong("-%s %s: more than %d chains", flag->name, value, CHAINS_MAX);
    }
    size_t i = config->nchains;
    struct text label = make_visible(config->label_bytes[i], name);
    for (size_t other = 0; other < i; other++) {
        if (same_text(config->shown_chains[other], label)) {
            return wrong("-%s %s: named twice", flag->name, value);
        }
    }
    config->chains[i] = name;
    config->shown_chains[i] = label;
    config->nchains++;
    return true;
}

static bool set_table(struct config *config, const struct flag *flag, const char *value) {
    static const char *const tables[] = {"filter", "mangle",   "raw",
                                         "nat",    "security", NULL};
    size_t index;
    config->table = value;
    return find_word(value, tables, &index) ||
           wrong("-%s %s: must be filter, mangle, raw, nat or security", flag->name,
                 value);
}

static bool set_variant(struct config *config, const struct flag *flag,
                        const char *value) {
    static const char *const variants[] = {"nft", "legacy", NULL};
    static const char *const suffixes[] = {"-nft", "-legacy"};
    size_t index;
    if (!find_word(value, variants, &index)) {
        return wrong("-%s %s: must be nft or legacy", flag->name, value);
    }
    config->variant = suffixes[index];
    return true;
}

static bool set_namespace(struct config *config, const struct flag *flag,
                          const char *value) {
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    size_t len = strlen(value);
    bool in_bounds = len >= 1 && len <= NAMESPACE_MAX;
    bool starts_with_digit = *value >= '0' && *value <= '9';
    config->namespace = value;
    if (in_bounds && !starts_with_digit && strspn(value, letters) == len)
        return true;
    return wrong("-%s '%s': must be 1 to %d letters, digits and _, no digit first",
                 flag->name, value, NAMESPACE_MAX);
}

static bool is_port(const char *s) {
    size_t len = strlen(s);
    if (len < 1 || len > strlen("65535") || strspn(s, "0123456789") != len)
        return false;
    return atol(s) >= 1 && atol(s) <= 65535;
}

/* name:port, ipv4:port, [ipv6]:port or :port, cut in two. False if it is none of them. */
static bool parse_endpoint(const char *addr, struct endpoint *endpoint) {
    const char *colon = strrchr(addr, ':');
    if (!colon || colon - addr > HOST_MAX || !is_port(colon + 1))
        return false;
    struct text host = {addr, (size_t)(colon - addr)};
    endpoint->port = colon + 1;
    endpoint->host = host;
    if (*addr != '[')
        return strchr(addr, ':') == colon; /* IPv6 wants its brackets */
    if (host.len <= strlen("[]") || colon[-1] != ']')
        return false;
    endpoint->host = (struct text){host.at + 1, host.len - strlen("[]")};
    return true;
}

static bool set_addr(struct config *config, const struct flag *flag, const char *value) {
    config->addr = value;
    return parse_endpoint(value, &config->endpoint) ||
           wrong("-%s %s: must be name:port, ipv4:port, [ipv6]:port or :port", flag->name,
                 value);
}

/* Below, since it prints the table. */
static bool print_usage(struct config *config, const struct flag *flag,
                        const char *value);

/* With 1 if what was printed could not be written. */
static _Noreturn void exit_when_printed(void) {
    exit(fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1);
}

static bool print_version(struct config *config, const struct flag *flag,
                          const char *value) {
    bool asked;
    (void)config;
    if (!parse_bool(flag, value, &asked))
        return false;
    if (asked) {
        printf("nfprom " VERSION "\n");
        exit_when_printed();
    }
    return true;
}

/* All flags, group by group. The usage text is made of this table. */
static const struct flag flags[] = {
    {WHAT_IS_READ, "chain", "NAME", "prometheus",
     "chain to export, may be given more than once", add_chain, 0},
    {WHAT_IS_READ, "table", "NAME", "filter", "filter, mangle, raw, nat or security",
     set_table, 0},
    {WHAT_IS_READ, "ipv4", "", "true", "read IPv4", set_bool,
     offsetof(struct config, families[IPV4])},
    {WHAT_IS_READ, "ipv6", "", "false", "read IPv6", set_bool,
     offsetof(struct config, families[IPV6])},
    {WHAT_IS_READ, "variant", "V", "",
     "nft or legacy (default: what iptables-save is on this system)", set_variant, 0},
    {WHAT_IS_READ, "list", "", "",
     "the chain alone, with iptables -v -S, not the whole table", set_bool,
     offsetof(struct config, list)},
    {HOW_IT_IS_SHOWN, "namespace", "NAME", "nfprom", "prefix of all metric names",
     set_namespace, 0},
    {HOW_IT_IS_SHOWN, "timeout", "D", "8s",
     "deadline of an exchange, as in 500ms, 8s, 1m30s", set_timeout, 0},
    {HOW_IT_IS_SHOWN, "addr", "ADDR", "",
     "listen on name:port, ipv4:port, [ipv6]:port or :port", set_addr, 0},
    {HOW_IT_IS_SHOWN, "print", "", "", "no HTTP: print the metrics and exit", set_bool,
     offsetof(struct config, print)},
    {ABOUT, "version", "", "", "print the version and exit", print_version, 0},
    {ABOUT, "help", "", "", "print this and exit", print_usage, 0},
    {ABOUT, "h", "", "", "the same", print_usage, 0},
};

static const char usage_head[] =
    "Usage: nfprom [flags]             answer one HTTP request on standard input and output\n"
    "       nfprom -addr ADDR [flags]  listen, and answer each connection in a process of its own\n"
    "       nfprom -print [flags]      print the metrics; the default on a terminal\n";

static const char usage_examples[] = "Examples:\n"
                                     "  nfprom -print -chain INPUT -chain OUTPUT\n"
                                     "  nfprom -addr 127.0.0.1:9914 -ipv6\n";

static void write_usage(void) {
    static const char *const titles[] = {
        [WHAT_IS_READ] = "What is read:\n",
        [HOW_IT_IS_SHOWN] = "How it is shown:\n",
        [ABOUT] = "About itself:\n",
    };
    printf("%s", usage_head);
    for (size_t i = 0; i < COUNT(flags); i++) {
        const struct flag *flag = &flags[i];
        bool begins_group = i == 0 || flag->group != flags[i - 1].group;
        if (begins_group)
            printf("%s", titles[flag->group]);
        char words[40];
        snprintf(words, sizeof words, "-%s %s", flag->name, flag->argument);
        printf("  %-16s %s", words, flag->meaning);
        if (*flag->initial)
            printf(" (default %s)", flag->initial);
        printf("\n");
    }
    printf("%s", usage_examples);
}

static bool print_usage(struct config *config, const struct flag *flag,
                        const char *value) {
    bool asked;
    (void)config;
    if (!parse_bool(flag, value, &asked))
        return false;
    if (asked) {
        write_usage();
        exit_when_printed();
    }
    return true;
}

static const struct flag *find_flag(const char *name) {
    for (size_t i = 0; i < COUNT(flags); i++) {
        if (strcmp(name, flags[i].name) == 0)
            return &flags[i];
    }
    return NULL;
}

/* One flag of Go's style at argv[*i]; moves *i over a value of its own. */
static bool parse_flag(struct config *config, char **argv, int *i) {
    char *name = argv[*i];
    if (name[0] != '-' || name[1] == '\0')
        return wrong("%s: an argument that is no flag", name);
    name += name[1] == '-' ? strlen("--") : strlen("-");
    char *value = strchr(name, '=');
    if (value)
        *value++ = '\0';
    const struct flag *flag = find_flag(name);
    if (!flag)
        return wrong("-%s: no such flag", name);
    bool takes_value = *flag->argument != '\0';
    if (!value)
        value = takes_value ? argv[++*i] : "true";
    if (!value)
        return wrong("-%s: needs a value", name);
    return flag->set(config, flag, value);
}

/* Gives the flags their initial values: those of one value before the flags are read, lists
 * (there is one, of chains) behind them, if they are empty then. */
static void set_initial(struct config *config, bool lists) {
    for (size_t i = 0; i < COUNT(flags); i++) {
        bool is_list = flags[i].set == add_chain;
        if (*flags[i].initial && is_list == lists)
            flags[i].set(config, &flags[i], flags[i].initial);
    }
}

/* Whether -variant asks for this one: "-nft" or "-legacy". */
static bool is_variant(const struct config *config, const char *suffix) {
    return strcmp(config->variant, suffix) == 0;
}

/* How many families are enabled, from one on. */
static int count_enabled(const struct config *config, size_t from) {
    int count = 0;
    for (size_t i = from; i < FAMILIES; i++) {
        if (config->families[i])
            count++;
    }
    return count;
}

/* What is wrong is left in flag_error. */
static void parse_flags(struct config *config, int argc, char **argv) {
    config->variant = config->addr = ""; /* as `flags` has no text for those two */
    set_initial(config, false);
    for (int i = 1; i < argc; i++) {
        if (!parse_flag(config, argv, &i))
            return;
    }
    if (config->nchains == 0)
        set_initial(config, true);
    if (count_enabled(config, 0) == 0)
        wrong("-ipv4=false without -ipv6: no family to read");
    if (*config->addr && config->print)
        wrong("-addr and -print: one or the other");
}

/* ---- the sink -------------------------------------------------------------------- */

/* All that is written goes through a sink: a window, and what to do with bytes for which
 * there is no room in it. */
struct sink {
    char *window;
    size_t size, used;
    uint64_t passed; /* bytes that were written and are not in the window */
    uint64_t sent;   /* of these, bytes that standard output has taken */
    void (*overflow)(struct sink *sink, const char *at, size_t len);
    void (*empty)(struct sink *sink); /* does something with what is in the window */
    usec deadline;                    /* of what is sent */
    enum outcome {
        SINK_GOOD,
        SINK_CLIENT_GONE,
        SINK_LATE, /* the client did not read it all until the deadline */
        SINK_FAILED
    } outcome;
};

static uint64_t written_to(const struct sink *sink) {
    return sink->passed + sink->used;
}

/* memcpy for what is short, as most is: in steps of eight bytes, the last step over some
 * bytes of the one before (19 bytes: 0 to 7, 8 to 15, 11 to 18). With a call of musl's memcpy
 * for each piece, own CPU of an answer of 100,000 rules is 1.34 times as much. */
static inline void copy(char *to, const char *at, size_t len) {
    if (len >= 8) {
        for (size_t i = 0; i < len - 8; i += 8)
            memcpy(to + i, at + i, 8);
        memcpy(to + len - 8, at + len - 8, 8);
        return;
    }
    while (len > 0) {
        len--;
        to[len] = at[len];
    }
}

static inline void put(struct sink *sink, const char *at, size_t len) {
    if (len > sink->size - sink->used) {
        sink->overflow(sink, at, len);
        return;
    }
    copy(sink->window + sink->used, at, len);
    sink->used += len;
}

static inline void put_text(struct sink *sink, struct text t) {
    put(sink, t.at, t.len);
}

/* As put(), with memcpy: most strings are literals, whose length is known where this is
 * compiled, so that the copy is a few moves. */
static inline void put_string(struct sink *sink, const char *s) {
    size_t len = strlen(s);
    if (len > sink->size - sink->used) {
        sink->overflow(sink, s, len);
        return;
    }
    memcpy(sink->window + sink->used, s, len);
    sink->used += len;
}

/* For what is short (PIECE_MAX at most; the rest is cut) and rare. */
static void put_format(struct sink *sink, const char *format, ...) {
    char piece[PIECE_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    if (n > 0)
        put(sink, piece, (size_t)n < sizeof piece ? (size_t)n : sizeof piece - 1);
}

enum {
    DIGITS_MAX = 20
};

/* Writes the digits of n up to `end`, and returns where they begin. */
static char *digits_of(char *end, uint64_t n) {
    do {
        *--end = (char)('0' + n % 10);
        n /= 10;
    } while (n > 0);
    return end;
}

static void put_number(struct sink *sink, uint64_t n) {
    char digits[DIGITS_MAX];
    char *end = digits + sizeof digits;
    char *start = digits_of(end, n);
    put(sink, start, (size_t)(end - start));
}

/* ---- a sink that counts: it has no window */

static void count_bytes(struct sink *sink, const char *at, size_t len) {
    (void)at;
    sink->passed += len;
}

static struct sink counting_sink(void) {
    static char no_window[1];
    return (struct sink){.window = no_window, .size = 0, .overflow = count_bytes};
}

/* ---- a short text in the caller's memory */

/* What does not fit is cut off. */
static void cut_off(struct sink *sink, const char *at, size_t len) {
    (void)len;
    size_t room = sink->size - sink->used;
    memcpy(sink->window + sink->used, at, room);
    sink->used = sink->size;
}

static struct sink begin_string(char *to, size_t size) {
    return (struct sink){.window = to, .size = size - 1, .overflow = cut_off};
}

static void end_string(struct sink *sink) {
    sink->window[sink->used] = '\0';
}

/* ---- a stream, through the window */

static void put_in_parts(struct sink *sink, const char *at, size_t len) {
    while (len > 0) {
        if (sink->used == sink->size)
            sink->empty(sink);
        size_t room = sink->size - sink->used;
        size_t part = len < room ? len : room;
        memcpy(sink->window + sink->used, at, part);
        sink->used += part;
        at += part;
        len -= part;
    }
}

static void forget_window(struct sink *sink) {
    sink->passed += sink->used;
    sink->used = 0;
}

/* What is written goes to standard output, as `empty` sends it. */
static struct sink begin_stream(void (*empty)(struct sink *sink), usec deadline) {
    static char window[WINDOW_SIZE];
    return (struct sink){.window = window,
                         .size = sizeof window,
                         .overflow = put_in_parts,
                         .empty = empty,
                         .deadline = deadline};
}

/* ---- memory that grows ----------------------------------------------------------- */

/* Bytes that grow by doubling, up to FACTS_MAX. */
struct bytes {
    char *at;
    size_t len, size;
};

/* Fresh pages need no malloc, are zero, cost nothing until they are touched, and grow
 * without being copied. NULL: there are none. */
static void *map_pages(void *old, size_t old_size, size_t size) {
    void *new = old ? mremap(old, old_size, size, MREMAP_MAYMOVE)
                    : mmap(NULL, size, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return new == MAP_FAILED ? NULL : new;
}

/* Makes room for n more bytes. False: there is none. */
static bool reserve(struct bytes *bytes, size_t n) {
    if (n <= bytes->size - bytes->len)
        return true;
    size_t size = bytes->size ? bytes->size : FIRST_SIZE;
    while (size - bytes->len < n)
        size *= 2;
    if (size > FACTS_MAX)
        return false;
    char *at = map_pages(bytes->at, bytes->size, size);
    if (!at)
        return false;
    bytes->at = at;
    bytes->size = size;
    return true;
}

static void release(struct bytes *bytes) {
    if (bytes->at)
        munmap(bytes->at, bytes->size);
    *bytes = (struct bytes){NULL, 0, 0};
}

/* ---- facts ----------------------------------------------------------------------- */

/* To which metric families a rule or a policy goes. */
enum pair {
    PAIR_LABELS,   /* packets_total and bytes_total: five labels express all of the rule
                      (address, direction, l2proto, l3proto, port) */
    PAIR_VERBATIM, /* rule_packets_total and rule_bytes_total: any other rule */
    PAIR_POLICY,
    PAIRS
};

/* Labels that no comment gives: those of the table of labels, and those that Prometheus gives a
 * meaning to. */
static const struct text reserved_names[] = {
    TEXT("address"), TEXT("chain"),    TEXT("comment"), TEXT("direction"),
    TEXT("dup"),     TEXT("instance"), TEXT("job"),     TEXT("kind"),
    TEXT("l2proto"), TEXT("l3proto"),  TEXT("le"),      TEXT("policy"),
    TEXT("port"),    TEXT("quantile"), TEXT("rule"),    TEXT("version"),
};
static const struct reserved reserved_labels = {reserved_names, COUNT(reserved_names)};

/* A rule or a policy as it is kept. Of the rule there is all that a view may show; not its words,
 * from and what else keep_rule() alone needs, which are as in rule_of_nothing. */
struct fact {
    enum pair pair;
    uint64_t nth;    /* 1: the first rule with this match; 2, 3, ...: a duplicate of it */
    size_t previous; /* of a duplicate: the record of the last such rule; or FREE */
    bool harmless;   /* no character of its texts means anything in any format */
    bool unreachable; /* no packet comes to it: a rule before has ended the traversal */
    bool closes; /* no later rule sees a packet that it matches, unless a rule between
                    rewrites it */
    struct rule rule;
};

enum tally_kind {
    EXPORTED,
    OTHER,
    DUPLICATE,
    TALLY_KINDS
};

/* How many there are in a chain. */
struct tally {
    unsigned long kinds[TALLY_KINDS]; /* of rules */
    unsigned long nonterminal;        /* exported rules that let the packet go on */
    unsigned long unreachable;        /* rules of any kind */
    unsigned long copies;             /* rules that stand there already, word for word */
    unsigned long refused_comments;   /* that begin like one with tags */
    unsigned long counted;            /* rules that have counted something */
    unsigned long policies;
    unsigned long idle_policies; /* that have counted nothing */
};

enum {
    JUMPS_MAX = 32,
    JUMPS_COMPARED = 512 /* with each other: the last so many */
};

/* Rules of one chain that lead to one of those that are wanted. */
struct jump {
    size_t to; /* index of that chain */
    unsigned long count;
    size_t from_len;
    char from[CHAIN_NAME_MAX];
};

/* How many rules of the table lead to each chain, and from where. A list does not tell. */
struct references {
    bool known;
    unsigned long counts[CHAINS_MAX];
    struct jump jumps[JUMPS_MAX]; /* the first so many */
    size_t njumps;
    /* Of the rules in chains that are not wanted: */
    size_t rules;
    bool has_copies; /* one stands there already, word for word */
    uint64_t words;  /* a hash of all of them */
};

enum {
    FREE = 0,
    RECORDS_START = 1 /* so that no record is at FREE */
};

/* Where a rule with a certain match is found again. */
struct slot {
    uint32_t hash;
    uint32_t record; /* the offset of the last record with this match; or FREE */
};

/* What was read of a family, in the chain's order. */
struct facts {
    struct bytes records;
    struct bytes targets; /* the texts of the targets */
    size_t target_offset; /* of the one that was kept last */
    size_t target_len;
    struct bytes visible; /* a rule whose bytes had to be made visible */
    struct slot *slots;   /* the index of matches: open addressing */
    size_t nslots, used_slots;
    size_t counts[PAIRS];
    bool has_tags; /* a rule has some */
    struct tally tallies[CHAINS_MAX];
    struct references references; /* of the last table; a list leaves them as they are */
    uint64_t jump_words[JUMPS_COMPARED]; /* hashes of the last rules among those */
    bool closed[CHAINS_MAX];      /* by a rule that ends the traversal for all packets */
    size_t rewritten[CHAINS_MAX]; /* record of the last rule that may rewrite packets */
};

/* A record begins with its size, of four bytes. Behind it are numbers, each in as many bytes
 * as it needs (seven bits in a byte, the lowest first, the eighth set if there are more), and
 * texts, each behind its length:
 *
 *   pair and bits, as one number; chain, packets, bytes
 *   of a duplicate: nth, previous
 *   of a policy:  its name
 *   of a rule:    match; place and length of its target among the targets
 *     with comment: that
 *     tagged:      tags, and the error of a comment that is refused
 *     expressible: direction and what is negated; then of address, protocol and port the
 *                  place in the match, and the length
 *
 * So a usual rule takes some 65 bytes. In a struct of fixed size with the texts behind it, it
 * takes 100, and the records of 10,000 rules are more than half as large as the answer. */
enum {
    PAIR_MASK = 3, /* enum pair */
    BIT_TERMINAL = 4,
    BIT_EXPRESSIBLE = 8,
    BIT_HAS_COMMENT = 16,
    BIT_HARMLESS = 32,
    BIT_CLOSES = 64,
    /* What few rules have: only those need a second byte for this number. */
    BIT_UNREACHABLE = 128,
    BIT_DUPLICATE = 256,
    BIT_TAGGED = 512, /* or should be */

    LABELS_DIRECTION_MASK = 3, /* two bits: enum direction */
    LABELS_NOT_ADDRESS = 4,
    LABELS_NOT_PROTOCOL = 8,
    LABELS_NOT_PORT = 16,

    NUMBER_MAX = 10, /* bytes of a number */
    NUMBERS_MAX = 20 /* numbers of a record */
};

typedef uint32_t record_size;

static inline char *write_number(char *to, uint64_t n) {
    while (n >= 0x80) {
        *to++ = (char)(n | 0x80);
        n >>= 7;
    }
    *to++ = (char)n;
    return to;
}

static uint64_t read_long_number(const char **at) {
    uint64_t n = 0;
    unsigned char byte;
    unsigned shift = 0;
    do {
        byte = (unsigned char)*(*at)++;
        n |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    return n;
}

/* Reads a number at *at, which is moved behind it. Most are of one byte. */
static inline uint64_t read_number(const char **at) {
    unsigned char byte = (unsigned char)**at;
    if (byte & 0x80)
        return read_long_number(at);
    ++*at;
    return byte;
}

static char *write_text(char *to, struct text t) {
    to = write_number(to, t.len);
    memcpy(to, t.at, t.len);
    return to + t.len;
}

static struct text read_text(const char **at) {
    size_t len = read_number(at);
    struct text t = {*at, len};
    *at += len;
    return t;
}

/* A text that is a part of another one. */
static char *write_place(char *to, struct text part, const char *whole) {
    size_t place = part.len > 0 ? (size_t)(part.at - whole) : 0;
    to = write_number(to, place);
    return write_number(to, part.len);
}

static struct text read_place(const char **at, const char *whole) {
    const char *place = whole + read_number(at);
    return (struct text){place, read_number(at)};
}

static char *write_labels(char *to, const struct rule *rule) {
    unsigned bits = rule->direction;
    if (rule->address.negated)
        bits |= LABELS_NOT_ADDRESS;
    if (rule->protocol.negated)
        bits |= LABELS_NOT_PROTOCOL;
    if (rule->port.negated)
        bits |= LABELS_NOT_PORT;
    to = write_number(to, bits);
    to = write_place(to, rule->address.text, rule->match.at);
    to = write_place(to, rule->protocol.text, rule->match.at);
    return write_place(to, rule->port.text, rule->match.at);
}

static void read_labels(const char **at, struct rule *rule) {
    uint64_t bits = read_number(at);
    rule->direction = (enum direction)(bits & LABELS_DIRECTION_MASK);
    rule->address.negated = bits & LABELS_NOT_ADDRESS;
    rule->protocol.negated = bits & LABELS_NOT_PROTOCOL;
    rule->port.negated = bits & LABELS_NOT_PORT;
    rule->address.text = read_place(at, rule->match.at);
    rule->protocol.text = read_place(at, rule->match.at);
    rule->port.text = read_place(at, rule->match.at);
}

static unsigned bits_of(const struct fact *fact) {
    unsigned bits = fact->pair;
    if (fact->rule.terminal)
        bits |= BIT_TERMINAL;
    if (fact->rule.expressible)
        bits |= BIT_EXPRESSIBLE;
    if (fact->rule.has_comment)
        bits |= BIT_HAS_COMMENT;
    if (fact->harmless)
        bits |= BIT_HARMLESS;
    if (fact->closes)
        bits |= BIT_CLOSES;
    if (fact->unreachable)
        bits |= BIT_UNREACHABLE;
    if (fact->nth > 1)
        bits |= BIT_DUPLICATE;
    if (fact->rule.tags.len > 0 || fact->rule.refused_comments > 0)
        bits |= BIT_TAGGED;
    return bits;
}

/* Appends a record. The target lies among the targets. False: there is no memory. */
static bool append_record(struct facts *facts, const struct fact *fact) {
    const struct rule *rule = &fact->rule;
    size_t texts =
        rule->policy.len + rule->match.len + rule->comment.len + rule->tags.len;
    unsigned bits = bits_of(fact);
    struct bytes *records = &facts->records;
    if (!reserve(records, sizeof(record_size) + (size_t)NUMBERS_MAX * NUMBER_MAX + texts))
        return false;
    char *start = records->at + records->len + sizeof(record_size);
    char *to = start;
    to = write_number(to, bits);
    to = write_number(to, rule->chain);
    to = write_number(to, rule->packets);
    to = write_number(to, rule->bytes);
    if (bits & BIT_DUPLICATE) {
        to = write_number(to, fact->nth);
        to = write_number(to, fact->previous);
    }
    if (fact->pair == PAIR_POLICY) {
        to = write_text(to, rule->policy);
    } else {
        to = write_text(to, rule->match);
        to = write_place(to, rule->target, facts->targets.at);
        if (bits & BIT_HAS_COMMENT)
            to = write_text(to, rule->comment);
        if (bits & BIT_TAGGED) {
            to = write_text(to, rule->tags);
            to = write_number(to, rule->tag_error);
        }
        if (rule->expressible)
            to = write_labels(to, rule);
    }
    record_size size = (record_size)(to - start);
    memcpy(start - sizeof size, &size, sizeof size);
    records->len += sizeof size + size;
    facts->counts[fact->pair]++;
    return true;
}

/* Reads the record at an offset among the records. */
static void read_record(const struct facts *facts, size_t offset, struct fact *fact) {
    const char *at = facts->records.at + offset + sizeof(record_size);
    struct rule *rule = &fact->rule;
    *rule = rule_of_nothing;
    uint64_t bits = read_number(&at);
    fact->pair = (enum pair)(bits & PAIR_MASK);
    rule->chain = read_number(&at);
    rule->terminal = bits & BIT_TERMINAL;
    rule->expressible = bits & BIT_EXPRESSIBLE;
    rule->has_comment = bits & BIT_HAS_COMMENT;
    fact->harmless = bits & BIT_HARMLESS;
    fact->unreachable = bits & BIT_UNREACHABLE;
    fact->closes = bits & BIT_CLOSES;
    rule->packets = read_number(&at);
    rule->bytes = read_number(&at);
    bool is_duplicate = bits & BIT_DUPLICATE;
    fact->nth = is_duplicate ? read_number(&at) : 1;
    fact->previous = is_duplicate ? read_number(&at) : FREE;
    if (fact->pair == PAIR_POLICY) {
        rule->policy = read_text(&at);
        return;
    }
    rule->match = read_text(&at);
    rule->target = read_place(&at, facts->targets.at);
    if (bits & BIT_HAS_COMMENT)
        rule->comment = read_text(&at);
    if (bits & BIT_TAGGED) {
        rule->tags = read_text(&at);
        rule->tag_error = (enum tag_error)read_number(&at);
    }
    if (rule->expressible)
        read_labels(&at, rule);
}

/* A walk over the facts, from begin_walk() on. */
struct walk {
    const struct facts *facts;
    size_t offset;
};

static struct walk begin_walk(const struct facts *facts) {
    return (struct walk){facts, RECORDS_START};
}

/* The pair of the next record: in the lowest bits of its first number. */
static enum pair peek_pair(const struct walk *walk) {
    char first = walk->facts->records.at[walk->offset + sizeof(record_size)];
    return (enum pair)(first & PAIR_MASK);
}

static bool at_end(const struct walk *walk) {
    return walk->offset >= walk->facts->records.len;
}

static void pass_record(struct walk *walk) {
    record_size size;
    memcpy(&size, walk->facts->records.at + walk->offset, sizeof size);
    walk->offset += sizeof size + size;
}

/* The next fact, whatever it is. False at the end. */
static bool next_fact(struct walk *walk, struct fact *fact) {
    if (at_end(walk))
        return false;
    read_record(walk->facts, walk->offset, fact);
    pass_record(walk);
    return true;
}

/* The next fact of a pair. False at the end. */
static bool next_of(struct walk *walk, enum pair pair, struct fact *fact) {
    while (!at_end(walk) && peek_pair(walk) != pair)
        pass_record(walk);
    return next_fact(walk, fact);
}

/* ---- the index of matches */

static uint64_t mix_text(uint64_t hash, struct text t) {
    uint64_t word;
    while (t.len >= sizeof word) {
        memcpy(&word, t.at, sizeof word);
        hash = mix(hash, word);
        t.at += sizeof word;
        t.len -= sizeof word;
    }
    word = t.len;
    for (size_t i = 0; i < t.len; i++)
        word = word << 8 | (unsigned char)t.at[i];
    return mix(hash, word);
}

/* Of all that is printed of a rule but its counters. */
static uint64_t hash_printed(const struct rule *rule) {
    uint64_t hash = mix_text(mix(0, rule->has_comment), rule->policy);
    hash = mix_text(mix_text(hash, rule->match), rule->target);
    return mix_text(mix_text(hash, rule->comment), rule->tags);
}

/* Rules with equal labels match the same, even if the texts of their matches differ: so the
 * labels are hashed, where they say all. (What is negated is left to same_match.) */
static uint32_t hash_match(const struct rule *rule) {
    uint64_t hash = mix(mix(0, rule->chain), rule->expressible);
    if (!rule->expressible)
        return (uint32_t)mix_text(hash, rule->match);
    hash = mix_text(hash, rule->address.text);
    hash = mix_text(hash, rule->protocol.text);
    hash = mix_text(hash, rule->port.text);
    return (uint32_t)mix(hash, rule->direction);
}

static bool same_value(struct value a, struct value b) {
    return a.negated == b.negated && same_text(a.text, b.text);
}

static bool same_match(const struct rule *a, const struct rule *b) {
    if (a->chain != b->chain || a->expressible != b->expressible)
        return false;
    if (!a->expressible)
        return same_text(a->match, b->match);
    return a->direction == b->direction && same_value(a->address, b->address) &&
           same_value(a->protocol, b->protocol) && same_value(a->port, b->port);
}

/* The slot at a position, which may go on from the last to the first. The number of slots is
 * a power of two, and one of them is always free: whoever looks for one finds it. */
static struct slot *slot_at(const struct facts *facts, size_t position) {
    return &facts->slots[position & (facts->nslots - 1)];
}

/* Whether a slot is that of the rules with this match. */
static bool holds(const struct facts *facts, const struct slot *slot,
                  const struct rule *rule, uint32_t hash) {
    if (slot->hash != hash)
        return false;
    struct fact fact;
    read_record(facts, slot->record, &fact);
    return same_match(rule, &fact.rule);
}

/* The slot of the rules with this match, or the free one where they belong. */
static struct slot *find_slot(const struct facts *facts, const struct rule *rule,
                              uint32_t hash) {
    size_t position = hash;
    struct slot *slot = slot_at(facts, position);
    while (slot->record != FREE && !holds(facts, slot, rule, hash)) {
        position++;
        slot = slot_at(facts, position);
    }
    return slot;
}

/* Puts a slot of the old index into the new one. */
static void move_slot(const struct facts *facts, struct slot old) {
    size_t position = old.hash;
    while (slot_at(facts, position)->record != FREE)
        position++;
    *slot_at(facts, position) = old;
}

/* Makes room for one more in the index. It doubles when four fifths of it are used: that takes
 * half of the memory that a bound of one half would, for a few more steps from slot to slot.
 * False: there is no memory. */
static bool reserve_slot(struct facts *facts) {
    enum {
        FIRST_SLOTS = 512
    };
    if (5 * (facts->used_slots + 1) <= 4 * facts->nslots)
        return true;
    struct slot *old = facts->slots;
    size_t nold = facts->nslots;
    size_t nslots = nold ? 2 * nold : FIRST_SLOTS;
    struct slot *slots = map_pages(NULL, 0, nslots * sizeof *slots);
    if (!slots)
        return false;
    facts->slots = slots;
    facts->nslots = nslots;
    for (size_t i = 0; i < nold; i++) {
        if (old[i].record != FREE)
            move_slot(facts, old[i]);
    }
    if (old)
        munmap(old, nold * sizeof *old);
    return true;
}

/* Frees the index: it is of no use any more when all is read. */
static void drop_index(struct facts *facts) {
    if (facts->slots)
        munmap(facts->slots, facts->nslots * sizeof *facts->slots);
    facts->slots = NULL;
    facts->nslots = facts->used_slots = 0;
}

/* ---- what is kept */

static bool begin_facts(struct facts *facts) {
    bool begun = reserve(&facts->records, RECORDS_START) && reserve(&facts->targets, 1) &&
                 reserve_slot(facts);
    if (begun)
        facts->records.len = RECORDS_START;
    return begun;
}

static void forget_facts(struct facts *facts) {
    drop_index(facts);
    release(&facts->records);
    release(&facts->targets);
    release(&facts->visible);
    facts->target_offset = facts->target_len = 0;
    facts->has_tags = false;
    memset(facts->counts, 0, sizeof facts->counts);
    memset(facts->tallies, 0, sizeof facts->tallies);
    memset(facts->closed, 0, sizeof facts->closed);
    memset(facts->rewritten, 0, sizeof facts->rewritten);
}

/* Where `part` stands when the whole match has been made visible at visible_match. It is
 * written there. (A character does not reach over a blank, so that the parts of a match can be
 * made visible one by one.) */
static struct text visible_part(struct text part, struct text match,
                                char *visible_match) {
    if (part.len == 0)
        return part;
    struct text before = {match.at, (size_t)(part.at - match.at)};
    struct text shown = make_visible(visible_match, before);
    return make_visible(visible_match + shown.len, part);
}

/* Makes a text visible at *to, which is moved behind it. */
static void show_text(char **to, struct text *text) {
    *text = make_visible(*to, *text);
    *to += text->len;
}

/* Makes the texts of a rule visible: a byte that is no character is shown as \xHH. False:
 * there is no memory. */
static bool show_rule(struct bytes *visible, struct rule *rule) {
    struct text match = rule->match;
    size_t all = match.len + rule->target.len + rule->comment.len + rule->tags.len +
                 rule->policy.len;
    visible->len = 0;
    if (!reserve(visible, VISIBLE_MAX * all))
        return false;
    char *to = visible->at;
    /* These three are written where the whole match is written next: the same bytes in the
     * same places. */
    rule->address.text = visible_part(rule->address.text, match, to);
    rule->protocol.text = visible_part(rule->protocol.text, match, to);
    rule->port.text = visible_part(rule->port.text, match, to);
    show_text(&to, &rule->match);
    show_text(&to, &rule->target);
    show_text(&to, &rule->comment);
    show_text(&to, &rule->tags);
    show_text(&to, &rule->policy);
    return true;
}

/* Puts the target among the targets. Most rules have the same as the rule before: it is
 * kept once. False: there is no memory. */
static bool keep_target(struct facts *facts, struct rule *rule) {
    struct bytes *targets = &facts->targets;
    size_t len = rule->target.len;
    struct text last = {targets->at + facts->target_offset, facts->target_len};
    if (!same_text(rule->target, last)) {
        if (!reserve(targets, len))
            return false;
        memcpy(targets->at + targets->len, rule->target.at, len);
        facts->target_offset = targets->len;
        facts->target_len = len;
        targets->len += len;
    }
    rule->target = (struct text){targets->at + facts->target_offset, len};
    return true;
}

static unsigned long count_rules(const struct tally *tally) {
    unsigned long rules = 0;
    for (enum tally_kind kind = 0; kind < TALLY_KINDS; kind++)
        rules += tally->kinds[kind];
    return rules;
}

static void tally_rule(struct tally *tally, const struct fact *fact) {
    enum tally_kind kind = OTHER;
    if (fact->nth > 1) {
        kind = DUPLICATE;
    } else if (fact->pair == PAIR_LABELS) {
        kind = EXPORTED;
    }
    tally->kinds[kind]++;
    if (kind == EXPORTED && !fact->rule.terminal)
        tally->nonterminal++;
    if (fact->unreachable)
        tally->unreachable++;
    if (fact->rule.packets > 0 || fact->rule.bytes > 0)
        tally->counted++;
    tally->refused_comments += fact->rule.refused_comments;
}

/* Finds out whether a packet can come to the rule. `before` is the last rule with the same
 * labels, if there is one. The same labels, written in other words, may match
 * other packets (fragments have no ports): so the texts must be the same, too. */
static void look_back(struct facts *facts, struct fact *fact, const struct fact *before) {
    const struct rule *rule = &fact->rule;
    bool is_behind = fact->previous > facts->rewritten[rule->chain] && before->closes &&
                     same_text(before->rule.match, rule->match);
    fact->unreachable = is_behind || facts->closed[rule->chain];
    if (is_behind)
        fact->closes = true;
    if (rule->terminal && rule->match.len == 0)
        facts->closed[rule->chain] = true;
    if (rule->rewrites && !fact->unreachable)
        facts->rewritten[rule->chain] = facts->records.len;
}

/* Whether two rules are one but for their counters. */
static bool same_rule(const struct rule *a, const struct rule *b) {
    bool same_words = same_text(a->match, b->match) && same_text(a->target, b->target);
    return same_words && same_text(a->comment, b->comment) && same_text(a->tags, b->tags);
}

/* Whether one of the last rules with its labels is the same rule. (There may be some: one for the
 * log, one for a mark, one that ends the traversal.) */
static bool is_copy(const struct facts *facts, const struct fact *fact) {
    enum {
        LOOKED_AT_MAX = 100
    };
    struct fact other = {.previous = fact->previous};
    for (int i = 0; i < LOOKED_AT_MAX && other.previous != FREE; i++) {
        read_record(facts, other.previous, &other);
        if (same_rule(&other.rule, &fact->rule))
            return true;
    }
    return false;
}

/* A rule goes to the pair of labels if these express it and it is the first to
 * match that, else to the verbatim pair. */
static bool keep_rule(struct facts *facts, struct fact *fact) {
    struct rule *rule = &fact->rule;
    struct fact before = {.closes = false};
    if (!reserve_slot(facts) || !keep_target(facts, rule))
        return false;
    uint32_t hash = hash_match(rule);
    struct slot *slot = find_slot(facts, rule, hash);
    if (slot->record == FREE) {
        facts->used_slots++;
    } else {
        read_record(facts, slot->record, &before);
        fact->nth = before.nth + 1;
        fact->previous = slot->record;
    }
    look_back(facts, fact, &before);
    bool expressed = rule->expressible && fact->nth == 1;
    fact->pair = expressed ? PAIR_LABELS : PAIR_VERBATIM;
    *slot = (struct slot){hash, (uint32_t)facts->records.len};
    struct tally *tally = &facts->tallies[rule->chain];
    tally_rule(tally, fact);
    if (is_copy(facts, fact))
        tally->copies++;
    if (rule->tags.len > 0)
        facts->has_tags = true;
    return append_record(facts, fact);
}

static bool keep_policy(struct facts *facts, struct fact *fact) {
    struct tally *tally = &facts->tallies[fact->rule.chain];
    fact->pair = PAIR_POLICY;
    tally->policies++;
    if (fact->rule.packets == 0 && fact->rule.bytes == 0)
        tally->idle_policies++;
    return append_record(facts, fact);
}

/* Counts a rule that leads to another chain. */
static void keep_reference(struct references *references, const struct rule *rule) {
    struct text from = rule->from;
    struct jump *jump = references->jumps;
    const struct jump *end = jump + references->njumps;
    references->counts[rule->referred]++;
    if (from.len > CHAIN_NAME_MAX)
        from.len = CHAIN_NAME_MAX; /* (nft's own names may be longer) */
    while (jump < end && (jump->to != rule->referred ||
                          !same_text((struct text){jump->from, jump->from_len}, from)))
        jump++;
    if (jump == end) {
        if (references->njumps == JUMPS_MAX)
            return;
        references->njumps++;
        *jump = (struct jump){.to = rule->referred, .from_len = from.len};
        memcpy(jump->from, from.at, from.len);
    }
    jump->count++;
}

/* Looks whether a rule of another chain stands there already, word for word. */
static void compare_jump(struct facts *facts, struct text words) {
    struct references *references = &facts->references;
    uint64_t hash = mix_text(0, words);
    for (size_t i = 0; i < references->rules && i < JUMPS_COMPARED; i++) {
        if (facts->jump_words[i] == hash)
            references->has_copies = true;
    }
    facts->jump_words[references->rules % JUMPS_COMPARED] = hash;
    references->rules++;
    references->words = mix(references->words, hash);
}

/* Keeps what the reader has found. False: there is no memory, or no room for so much. */
static bool keep(struct facts *facts, enum item item, const struct rule *rule) {
    if (rule->refers && facts->references.known)
        keep_reference(&facts->references, rule);
    if (item == ITEM_JUMP) {
        compare_jump(facts, rule->words);
        return true;
    }
    struct fact fact = {.nth = 1, .rule = *rule};
    bool match_is_harmless = is_harmless(rule->match);
    /* (Matches are compared as they are shown. Those of two rules with the name \xe9 and with the
     * byte 0xe9 are shown the same, so such a rule closes nothing.) */
    fact.closes = rule->terminal && rule->stable && match_is_harmless;
    fact.harmless = match_is_harmless && is_harmless(rule->target);
    if (!is_harmless(rule->comment) || !is_harmless(rule->policy))
        fact.harmless = false;
    if (!is_harmless(rule->tags))
        fact.harmless = false;
    if (!fact.harmless && !show_rule(&facts->visible, &fact.rule))
        return false;
    return item == ITEM_POLICY ? keep_policy(facts, &fact) : keep_rule(facts, &fact);
}

/* ---- the commands ---------------------------------------------------------------- */

static const struct family_kind {
    struct text label;         /* the value of l2proto */
    const char *name;          /* for people */
    const char *command;       /* that changes and lists its rules */
    const char *legacy_tables; /* the kernel's list of them, where it has any */
    uint8_t number;            /* netfilter's */
} family_kinds[FAMILIES] = {
    [IPV4] = {TEXT("ipv4"), "IPv4", "iptables", "/proc/net/ip_tables_names", AF_INET},
    [IPV6] = {TEXT("ipv6"), "IPv6", "ip6tables", "/proc/net/ip6_tables_names", AF_INET6},
};

/* The sets of capabilities of this process. */
struct capabilities {
    struct {
        uint32_t effective, permitted, inheritable;
    } words[2]; /* of 32 capabilities each */
};

struct capability_head {
    uint32_t version, pid;
};

static struct capability_head this_process(void) {
    return (struct capability_head){CAPABILITY_VERSION_3, 0};
}

static bool get_capabilities(struct capabilities *sets) {
    struct capability_head head = this_process();
    return syscall(SYS_capget, &head, sets) == 0;
}

static bool is_effective(const struct capabilities *sets, int capability) {
    return sets->words[0].effective >> capability & 1;
}

/* Whether a command that this process starts will have CAP_NET_ADMIN: root has, others if
 * it is ambient. */
static bool may_read(void) {
    struct capabilities sets;
    bool is_root = geteuid() == 0;
    if (!get_capabilities(&sets))
        return is_root;
    bool inherited =
        is_root || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_ADMIN, 0, 0) == 1;
    return is_effective(&sets, CAP_NET_ADMIN) && inherited;
}

/* For the shell: in single quotes, if they are needed, a name that may hold any byte but
 * blanks. */
static void put_word(struct sink *sink, struct text word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "0123456789-_.:+@%/,";
    size_t good = 0;
    while (good < word.len && strchr(plain, word.at[good]))
        good++;
    if (good == word.len) {
        put_text(sink, word);
        return;
    }
    put_string(sink, "'");
    for (size_t i = 0; i < word.len; i++) {
        if (word.at[i] == '\'') {
            put_string(sink, "'\\''");
        } else {
            put(sink, &word.at[i], 1);
        }
    }
    put_string(sink, "'");
}

/* What prints the counters. With -w iptables waits for the lock of the legacy tables.
 * (iptables-save takes no lock: read_safely takes it.) The last command takes the place of the
 * shell. */
static void put_command(struct sink *sink, const struct config *config,
                        const struct family_kind *kind, const char *sudo,
                        enum dialect dialect) {
    if (dialect == DIALECT_SAVE) {
        put_format(sink, "exec %s%s%s-save -c -t %s", sudo, kind->command,
                   config->variant, config->table);
        return;
    }
    for (size_t i = 0; i < config->nchains; i++) {
        bool is_last = i + 1 == config->nchains;
        if (is_last)
            put_string(sink, "exec ");
        put_format(sink, "%s%s%s -w -t %s -v -S ", sudo, kind->command, config->variant,
                   config->table);
        put_word(sink, config->chains[i]);
        if (!is_last)
            put_string(sink, " && ");
    }
}

/* ---- the lock of the legacy tables ------------------------------------------------ */

/* What the collector does about it while a command runs. */
enum lock_use {
    LOCK_UNUSED,
    LOCK_QUEUED, /* the command takes it itself; only one nfprom at a time lets it wait */
    LOCK_IF_FREE,
    LOCK_WAITED_FOR
};

enum lock_state {
    LOCK_CLOSED, /* it cannot be opened (it belongs to root), or was not to be taken */
    LOCK_BUSY,
    LOCK_HELD
};

/* The lock that changers of the legacy tables hold. So that many nfproms do not starve them,
 * only one at a time tries to get it: the others queue for another lock, that of the file
 * of their own program. */
struct lock {
    int fd;       /* -1: not opened */
    int queue;    /* the same */
    bool may_try; /* it is the first there, or there is no queue, or the wait is over */
    bool held;
};

enum {
    NAP_FIRST = 1, /* ms between two tries */
    NAP_IN_QUEUE = 4
};

static const char *lock_file(void) {
    const char *file = getenv("XTABLES_LOCKFILE");
    return file && *file ? file : "/run/xtables.lock";
}

static void join_queue(struct lock *lock) {
    lock->queue = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    lock->may_try = lock->queue < 0;
}

static void try_queue(struct lock *lock) {
    if (lock->may_try)
        return;
    bool is_taken = flock(lock->queue, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    lock->may_try = !is_taken; /* (some file systems know no such lock) */
}

/* A quarter of the time at most: anybody may hold up what stands at a file that anybody may
 * open. */
static void wait_in_queue(struct lock *lock, usec deadline) {
    usec until = now() + (deadline - now()) / 4;
    try_queue(lock);
    while (!lock->may_try && now() < until) {
        poll(NULL, 0, NAP_IN_QUEUE);
        try_queue(lock);
    }
    lock->may_try = true;
}

static void open_lock(struct lock *lock) {
    lock->fd =
        open(lock_file(), O_RDONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
    if (lock->fd >= 0)
        join_queue(lock);
}

/* A file system that knows no such lock is as good as a lock that cannot be opened. */
static void try_lock(struct lock *lock) {
    try_queue(lock);
    if (!lock->may_try)
        return;
    lock->held = flock(lock->fd, LOCK_EX | LOCK_NB) == 0;
    if (lock->held || errno == EWOULDBLOCK || errno == EINTR)
        return;
    close(lock->fd);
    lock->fd = -1;
}

/* (flock(2) knows no timeout. The collector's own alarm ends this: set_timer() in collect().) */
static void wait_for_lock(struct lock *lock, usec deadline) {
    wait_in_queue(lock, deadline);
    try_lock(lock);
    while (!lock->held && lock->fd >= 0) {
        poll(NULL, 0, NAP_FIRST);
        try_lock(lock);
    }
}

static struct lock take_lock(enum lock_use use, usec deadline) {
    struct lock lock = {.fd = -1, .queue = -1};
    if (use == LOCK_QUEUED) {
        join_queue(&lock);
        wait_in_queue(&lock, deadline);
    }
    if (use == LOCK_IF_FREE || use == LOCK_WAITED_FOR)
        open_lock(&lock);
    if (lock.fd >= 0)
        try_lock(&lock);
    if (lock.fd >= 0 && use == LOCK_WAITED_FOR && !lock.held)
        wait_for_lock(&lock, deadline);
    return lock;
}

static enum lock_state state_of(const struct lock *lock) {
    if (lock->fd < 0)
        return LOCK_CLOSED;
    return lock->held ? LOCK_HELD : LOCK_BUSY;
}

static void release_lock(const struct lock *lock) {
    if (lock->fd >= 0)
        close(lock->fd);
    if (lock->queue >= 0)
        close(lock->queue);
}

/* ---- what the kernel counts of a chain of nft --------------------------------------- */

/* While rules are loaded, or only checked, the kernel may leave some out of what it lists, or list
 * some twice, and iptables-save cannot tell. So the collector asks the kernel, too, on a netlink
 * socket: for the rules of a chain, once more (struct kernel_list says how a gap is seen),
 * and for a number that it keeps for each chain: its rules, and the jumps to it from anywhere.
 *
 * A list takes the kernel as long as that of iptables. So the first read asks for two, while
 * iptables gets going. If they are the same they are true, as long as the ruleset is of the same
 * generation when iptables has read: nothing was changed meanwhile. If something was, in this
 * chain or in another one, the next read lists the chain before and after, so that a change does
 * not make up for what was left out. */
enum {
    NETFILTER_SOCKET = 12, /* NETLINK_NETFILTER */
    NAME_SENT_MAX = 64,    /* bytes; names that may be asked for are shorter */
    LISTS_MAX = 10, /* of a chain, until one is not disturbed or there is no time */
    PIECE_SIZE = 32 * 1024,   /* bytes of a list at once, at most: as with iptables */
    FIRST_BEFORE = 20 * 1024, /* in its first piece, of the list before and that after */
    FIRST_AFTER = 8 * 1024
};

/* The attributes are the names of a table and a chain. */
struct question {
    struct netlink_head head;
    char attributes[2 * (sizeof(struct attribute) + NAME_SENT_MAX + ATTRIBUTE_ALIGNED)];
};

/* What the kernel says of a chain. */
struct count {
    uint64_t handles; /* a hash of its rules' */
    uint32_t rules;   /* or `unsteady`; 0: none, or it is not known */
    uint32_t uses;    /* the rules and the jumps to it; 0 as above */
};

/* Of each chain. In a first read both are made while iptables starts. In a repeated one `before` is
 * made before that, and `after` when it has read. */
struct counts {
    bool committed; /* meanwhile something was changed, in this chain or in another one */
    struct count before[CHAINS_MAX], after[CHAINS_MAX];
};

static const struct counts no_counts;

/* In place of a number of rules: the last list was disturbed, too. As no read has so many rules,
 * the chain is doubted. */
static const uint32_t unsteady = UINT32_MAX;

static struct question begin_question(uint16_t type, uint16_t more_flags,
                                      uint8_t family) {
    return (struct question){.head = {.len = sizeof(struct netlink_head),
                                      .type = type,
                                      .flags = FLAG_REQUEST | more_flags,
                                      .family = family}};
}

static void add_name(struct question *question, uint16_t type, struct text name) {
    char *to = (char *)question + question->head.len;
    size_t len = name.len < NAME_SENT_MAX ? name.len : NAME_SENT_MAX;
    struct attribute head = {(uint16_t)(sizeof head + len + 1), type};
    memcpy(to, &head, sizeof head);
    memcpy(to + sizeof head, name.at, len); /* behind it are zeros */
    question->head.len += (uint32_t)aligned(head.len);
}

static int open_kernel(void) {
    return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETFILTER_SOCKET);
}

/* The kernel has answered, or begun its list, before send() returns. */
static bool ask_kernel(int kernel, const struct question *question) {
    return send(kernel, question, question->head.len, 0) >= 0;
}

/* The messages of an answer, or some of a list's; none if there are none. Each call overwrites
 * those of the one before. */
static struct text hear_kernel(int kernel, size_t room) {
    static char bytes[PIECE_SIZE];
    ssize_t len = recv(kernel, bytes, room, MSG_DONTWAIT);
    return (struct text){bytes, len > 0 ? (size_t)len : 0};
}

/* 0: it is not known.
 *
 * When a change is committed, the kernel gives the number first, and only then takes the old rules
 * out of its lists. close() waits until that is over (since Linux 5.12), as it takes the lock of
 * all changes: so a list made after this call is not of the middle of a change. So this socket is
 * not kept. */
static uint32_t ask_generation(void) {
    struct question question = begin_question(TYPE_GET_GENERATION, 0, 0);
    int kernel = open_kernel();
    struct text answer = {"", 0};
    if (ask_kernel(kernel, &question))
        answer = hear_kernel(kernel, PIECE_SIZE);
    close(kernel);
    return kernel_generation(answer);
}

/* A chain, and the socket on which the kernel is asked for it.
 *
 * A list comes in pieces. Where one ends and another begins the kernel may lose rules. A gap is
 * seen, but not when all the rest is missing. But iptables loses rules behind the end of a piece
 * of its own. So ours end elsewhere: the first one is smaller, and all others are as large as
 * those of iptables. (A rule that does not fit into a piece would be the end of the list.)
 *
 * The kernel makes a piece as large as the largest buffer that recv() has had on that socket
 * before. So the answer to the question for the chain is received into a buffer of the size of
 * the first piece. */
struct asked {
    int kernel;
    uint8_t family;
    struct text table, chain;
    size_t first_piece;
    int until; /* a write end of a pipe: no other list is made when nobody reads there any more */
};

static bool ask_for_chain(const struct asked *asked, uint16_t type, uint16_t more_flags,
                          uint16_t chain_attribute) {
    struct question question = begin_question(type, more_flags, asked->family);
    add_name(&question, ATTRIBUTE_TABLE, asked->table);
    add_name(&question, chain_attribute, asked->chain);
    return ask_kernel(asked->kernel, &question);
}

static uint32_t count_uses(const struct asked *asked) {
    if (!ask_for_chain(asked, TYPE_GET_CHAIN, 0, ATTRIBUTE_CHAIN_NAME))
        return 0;
    return kernel_uses(hear_kernel(asked->kernel, asked->first_piece));
}

/* False: it is not known. */
static bool list_rules(const struct asked *asked, struct kernel_list *list) {
    kernel_list_begin(list, asked->table, asked->chain);
    if (!ask_for_chain(asked, TYPE_GET_RULE, FLAG_DUMP, ATTRIBUTE_RULE_CHAIN))
        return false;
    while (!list->ended) {
        struct text messages = hear_kernel(asked->kernel, PIECE_SIZE);
        if (messages.len == 0)
            return false;
        kernel_list_take(list, messages);
    }
    return !list->refused;
}

/* On a socket of its own, since a list leaves its size of pieces to the next one. */
static bool count_once(struct asked *asked, struct kernel_list *list, uint32_t *uses) {
    asked->kernel = open_kernel();
    *uses = count_uses(asked);
    bool known = list_rules(asked, list);
    close(asked->kernel);
    return known;
}

static bool has_time_to_list(const struct asked *asked) {
    struct pollfd fd = {.fd = asked->until};
    return poll(&fd, 1, 0) == 0;
}

/* Another list costs little beside another run of iptables. */
static struct count count_chain(struct asked asked) {
    struct kernel_list list = {.disturbed = false};
    uint32_t uses = 0;
    bool again = true;
    for (int lists = 0; lists < LISTS_MAX && again; lists++) {
        if (!count_once(&asked, &list, &uses))
            return (struct count){.uses = uses};
        /* Without a rule: the first one may have been too large for the first piece. */
        bool may_not_fit = list.rules == 0 && asked.first_piece < PIECE_SIZE;
        if (may_not_fit)
            asked.first_piece = PIECE_SIZE;
        again = may_not_fit || (list.disturbed && has_time_to_list(&asked));
    }
    uint32_t rules = list.disturbed ? unsteady : list.rules;
    return (struct count){list.handles, rules, uses};
}

static void count_chains(const struct config *config, uint8_t family, size_t first_piece,
                         int until, struct count counts[CHAINS_MAX]) {
    struct text table = {config->table, strlen(config->table)};
    for (size_t i = 0; i < config->nchains; i++) {
        struct asked asked = {-1, family, table, config->chains[i], first_piece, until};
        counts[i] = count_chain(asked);
    }
}

/* ---- the collector: it has the right, and reads no stranger's bytes ----------------- */

/* Who reads a stranger's bytes holds no right, and who holds a right reads no stranger's bytes.
 * So before the request is read each family gets a collector, a child that keeps the rights of
 * nfprom; nfprom then drops its own (drop_rights). On the channel between them the collector
 * takes nothing but words of one length, each of which says: run that command, hold the lock so,
 * and whether it is the first read. (What else it reads is what the kernel says of the chains.)
 * It answers with the read ends of two pipes, and when the command has ended with how, and with
 * what the kernel counts.
 *
 * The collector leads a process group of its own; in it popen's shell becomes iptables-save. When
 * the channel is closed the collector ends with its group: so a command that hangs is killed with
 * all that it started, also by a parent that is another user, and nothing is left behind one that
 * was killed itself. At its own deadline it ends in any case. */
struct collector {
    const struct config *config;
    const struct family_kind *kind;
    const char *sudo; /* in front of its commands */
    pid_t pid;        /* 0 or -1: there is none */
    int channel;      /* -1: it has ended, or could not be started */
    int error;        /* where there is no channel: errno, or COLLECTOR_GONE */
    usec deadline;    /* of the collector itself */
};

/* Lives until the next call. */
static const char *command_of(const struct collector *collector, enum dialect dialect) {
    static char command[COMMAND_MAX];
    struct sink sink = begin_string(command, sizeof command);
    put_command(&sink, collector->config, collector->kind, collector->sudo, dialect);
    end_string(&sink);
    return command;
}

/* From nfprom. */
struct order {
    uint32_t dialect;  /* enum dialect: which of the commands */
    uint32_t lock;     /* enum lock_use */
    uint32_t repeated; /* 1: it is not the first read for this answer */
};

/* To nfprom. The first comes with the pipes' ends, unless there is an error. */
struct start {
    int error;            /* errno, or 0 */
    enum lock_state lock; /* if there is no error */
};

struct end {
    long own;   /* resident memory in KiB, of the collector */
    long peak;  /* the same of any process of this command or one before, the most */
    int status; /* as a shell counts */
    uint32_t hides_legacy; /* 1: it is not to be seen which legacy tables there are */
    struct counts counts;  /* of the kernel */
};

enum {
    COLLECTOR_GONE = -1, /* in place of errno */
    CANNOT_RUN = 126,
    BY_SIGNAL = 128,       /* and its number */
    CHANNEL = STDIN_FILENO /* in the collector */
};

/* For the command: a PATH with the places of iptables-save, messages in one language. */
static bool set_environment(void) {
    const char *path = getenv("PATH");
    if (!path || *path == '\0')
        path = "/usr/bin:/bin";
    size_t size = strlen(path) + sizeof ":/usr/sbin:/sbin";
    char *longer = malloc(size);
    if (!longer)
        return false;
    snprintf(longer, size, "%s:/usr/sbin:/sbin", path);
    bool is_set = setenv("PATH", longer, 1) == 0;
    free(longer); /* setenv has made a copy */
    return is_set && setenv("LC_ALL", "C", 1) == 0;
}

/* As a shell counts: the exit status, or 128 and the signal. */
static int status_of(int wait_status) {
    if (WIFEXITED(wait_status))
        return WEXITSTATUS(wait_status);
    return BY_SIGNAL + WTERMSIG(wait_status);
}

static void kill_group(int signal) {
    (void)signal;
    kill(0, SIGKILL);
}

/* Something has come through the channel, or its other end is closed. */
static void on_channel(int signal) {
    int error = errno; /* NOLINT(bugprone-signal-handler): kept for who was interrupted */
    struct pollfd channel = {.fd = CHANNEL};
    if (poll(&channel, 1, 0) == 1 && (channel.revents & POLLHUP))
        kill_group(signal);
    errno = error; /* NOLINT(bugprone-signal-handler) */
}

/* Sends the start, with the read ends if both are there; or why that cannot be done. */
static void tell_start(const struct start *start, int out, int err) {
    union {
        struct cmsghdr head; /* for its alignment */
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {.bytes = {0}};
    const int ends[2] = {out, err};
    struct iovec data = {(void *)start, sizeof *start};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (start->error == 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof ends);
        memcpy(CMSG_DATA(head), ends, sizeof ends);
    }
    if (sendmsg(CHANNEL, &message, MSG_NOSIGNAL) >= 0)
        return;
    const struct start failed = {.error = errno};
    send(CHANNEL, &failed, sizeof failed, MSG_NOSIGNAL);
}

/* Whether the file can be read, or is not there. */
static bool can_see(const char *file) {
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT;
    close(fd);
    return true;
}

/* Only where the rules may be those of nft: the kernel would load nf_tables for the question. */
static bool may_be_nft(enum lock_use lock) {
    return lock == LOCK_UNUSED || lock == LOCK_IF_FREE;
}

/* A command that was started. */
struct command {
    struct order order;
    uint32_t generation; /* of the ruleset, before */
    FILE *pipe;          /* to its standard input; NULL: it could not be started */
    int error;           /* errno then */
    int out;             /* the read end of its output */
};

static void count_before(const struct collector *self, int until, struct counts *counts) {
    count_chains(self->config, self->kind->number, FIRST_BEFORE, until, counts->before);
}

static void count_after(const struct collector *self, int until, struct counts *counts) {
    count_chains(self->config, self->kind->number, FIRST_AFTER, until, counts->after);
}

/* When iptables has read all rules: it begins to write, or it has ended and nobody is left at the
 * other end of its standard input. (Or later, when nfprom was first to take what came. Then more
 * changes are noticed.) A list of several chains is of as many commands, one after the other, so
 * the end is waited for. */
static void await_reading(const struct collector *self, const struct command *command) {
    bool reads_once =
        command->order.dialect == DIALECT_SAVE || self->config->nchains == 1;
    struct pollfd fds[] = {{.fd = reads_once ? command->out : -1, .events = POLLIN},
                           {.fd = fileno(command->pipe)}};
    poll(fds, COUNT(fds), -1);
}

/* A repeated read was counted before the command was started, and is counted again. */
static void count_meanwhile(const struct collector *self, const struct command *command,
                            struct counts *counts) {
    bool repeated = command->order.repeated;
    int until = fileno(command->pipe);
    if (!repeated) {
        count_before(self, until, counts);
        count_after(self, until, counts);
    }
    await_reading(self, command);
    if (repeated)
        count_after(self, -1, counts);
    counts->committed = ask_generation() != command->generation;
}

/* Waits for the end of a command, and says how it ended. The read end of its output is closed as
 * soon as it is not needed: the command must not wait for who does not read. */
static void await_command(const struct collector *self, struct command *command,
                          struct end *end) {
    struct rusage own = {.ru_maxrss = 0};
    struct rusage children = {.ru_maxrss = 0};
    int status = -1;
    if (command->pipe) {
        end->hides_legacy = !can_see(self->kind->legacy_tables); /* while it gets going */
        if (may_be_nft(command->order.lock))
            count_meanwhile(self, command, &end->counts);
    }
    close(command->out);
    if (command->pipe) {
        status = pclose(command->pipe);
        command->error = errno;
    }
    if (status < 0)
        dprintf(STDERR_FILENO, "no shell: %s\n", strerror(command->error));
    else
        end->status = status_of(status);
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &children);
    end->own = own.ru_maxrss;
    end->peak = children.ru_maxrss;
}

/* Runs one command, with the lock as it was told: says that it has started, with the pipes' read
 * ends, and then how it ended. Between two commands the collector's standard streams are the
 * channel. False: they could not be put back. */
static bool obey(const struct collector *self, struct order order) {
    int out[2] = {-1, -1};
    int err[2] = {-1, -1};
    struct end end = {.status = CANNOT_RUN};
    struct lock lock = take_lock(order.lock, self->deadline);
    bool asks = may_be_nft(order.lock);
    uint32_t generation = asks ? ask_generation() : 0;
    if (asks && order.repeated)
        count_before(self, -1, &end.counts);
    bool piped = pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0 &&
                 dup2(out[1], STDOUT_FILENO) >= 0 && dup2(err[1], STDERR_FILENO) >= 0;
    struct start start = {piped ? 0 : errno, state_of(&lock)};
    FILE *pipe = piped ? popen(command_of(self, order.dialect), "we") : NULL;
    struct command command = {order, generation, pipe, errno, out[0]};
    tell_start(&start, out[0], err[0]);
    close(out[1]);
    close(err[0]);
    close(err[1]);
    if (piped) {
        await_command(self, &command, &end);
        send(CHANNEL, &end, sizeof end, MSG_NOSIGNAL);
    } else {
        close(out[0]);
    }
    release_lock(&lock);
    return dup2(CHANNEL, STDOUT_FILENO) >= 0 && dup2(CHANNEL, STDERR_FILENO) >= 0;
}

/* Takes an order. False: it is none, or there will be no more. */
static bool take_order(struct order *order) {
    ssize_t len = recv(CHANNEL, order, sizeof *order, MSG_TRUNC);
    return len == sizeof *order && order->dialect <= DIALECT_LIST &&
           order->lock <= LOCK_WAITED_FOR && order->repeated <= 1;
}

/* SIGALRM at that time, and again and again: one may come just before what it is to interrupt. */
static void set_timer(usec deadline) {
    usec left = deadline - now();
    if (left < 1)
        left = 1; /* (0 would be no timer) */
    struct itimerval timer = {.it_value = {left / SECOND, left % SECOND},
                              .it_interval = {0, ALARM_INTERVAL}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* Only the collector comes here. */
static _Noreturn void collect(const struct collector *self, int channel) {
    struct order order;
    if (setpgid(0, 0) != 0)
        _exit(CANNOT_RUN);     /* its group would be somebody else's */
    prctl(PR_SET_DUMPABLE, 0); /* the same user, too, may not trace it */
    signal(SIGPIPE, SIG_DFL);  /* for the command */
    signal(SIGXFSZ, SIG_DFL);
    signal(SIGTERM, kill_group);
    signal(SIGHUP, kill_group);
    signal(SIGALRM, kill_group);
    signal(SIGIO, on_channel);
    set_timer(self->deadline);
    /* Nobody but nfprom holds the client's connection. */
    bool ready = dup2(channel, STDIN_FILENO) >= 0 && dup2(channel, STDOUT_FILENO) >= 0 &&
                 dup2(channel, STDERR_FILENO) >= 0 &&
                 fcntl(CHANNEL, F_SETOWN, getpid()) == 0 &&
                 fcntl(CHANNEL, F_SETFL, O_ASYNC) == 0;
    close(channel);
    while (ready && take_order(&order))
        ready = obey(self, order);
    kill_group(0);
    _exit(0);
}

/* It keeps no channel of the collectors before it. */
static void start_collector(struct collector *collectors, size_t i) {
    struct collector *collector = &collectors[i];
    int channel[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) != 0) {
        collector->error = errno;
        return;
    }
    collector->pid = fork();
    if (collector->pid == 0) {
        for (size_t before = 0; before < i; before++)
            close(collectors[before].channel);
        close(channel[0]);
        collect(collector, channel[1]);
    }
    collector->error = collector->pid < 0 ? errno : COLLECTOR_GONE;
    close(channel[1]);
    if (collector->pid < 0)
        close(channel[0]);
    else
        collector->channel = channel[0];
}

/* Starts one for each family that is enabled. */
static void start_collectors(const struct config *config, struct collector *collectors,
                             usec deadline) {
    const char *sudo = may_read() ? "" : "sudo -n ";
    bool has_environment = set_environment();
    for (size_t i = 0; i < FAMILIES; i++) {
        struct collector *collector = &collectors[i];
        collector->config = config;
        collector->kind = &family_kinds[i];
        collector->sudo = sudo;
        collector->channel = -1;
        collector->error = errno;
        collector->deadline = deadline + COLLECTOR_GRACE;
        if (!config->families[i] || !has_environment)
            continue;
        start_collector(collectors, i);
    }
}

/* It ends by itself then, with its group. Somebody may have stopped it (SIGSTOP), so it is also
 * killed, which works if it is the same user. */
static void dismiss_collector(struct collector *collector) {
    if (collector->channel < 0)
        return;
    close(collector->channel);
    collector->channel = -1;
    if (kill(-collector->pid, SIGKILL) != 0)
        kill(collector->pid, SIGKILL); /* it has no group yet */
}

/* When all has been read. They are reaped at the end, while the client reads the answer. */
static void dismiss_collectors(struct collector *collectors) {
    for (size_t i = 0; i < FAMILIES; i++)
        dismiss_collector(&collectors[i]);
}

static void interrupt(int signal) {
    (void)signal;
}

/* Dismisses and reaps them. One that belongs to another user and was stopped is not waited for
 * longer than its time. */
static void end_collectors(struct collector *collectors) {
    struct sigaction action = {.sa_handler =
                                   interrupt}; /* (signal(3) would restart waitpid) */
    usec until = now() + REAPING_TIME;
    dismiss_collectors(collectors);
    sigaction(SIGALRM, &action, NULL);
    set_timer(until);
    for (size_t i = 0; i < FAMILIES; i++) {
        if (collectors[i].pid <= 0)
            continue;
        while (waitpid(collectors[i].pid, NULL, 0) < 0 && errno == EINTR && now() < until)
            ;
    }
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0, 0}}, NULL);
}

/* ---- rights ------------------------------------------------------------------------ */

/* Only root does, and any other user does not try: the unit's filter of system calls would end
 * it. False: it may change its user, and something else forbids it. (Root of some containers
 * may not, or has no user but itself there.) */
static bool become_nobody(void) {
    struct capabilities sets;
    uid_t real, effective, saved;
    if (!get_capabilities(&sets) || getresuid(&real, &effective, &saved) != 0)
        return false;
    if (real != 0 && effective != 0 && saved != 0)
        return true;
    bool may = is_effective(&sets, CAP_SETUID);
    (void)!setgroups(0, NULL);
    (void)!setresgid(NOBODY, NOBODY, NOBODY);
    bool has_become = setresuid(NOBODY, NOBODY, NOBODY) == 0;
    bool is_excused = !may || errno == EINVAL;
    return has_become || is_excused;
}

static bool has_capabilities(void) {
    struct capabilities sets = {.words = {{0, 0, 0}, {0, 0, 0}}};
    uint32_t all = 0;
    if (!get_capabilities(&sets))
        return true;
    for (size_t i = 0; i < COUNT(sets.words); i++) {
        all |=
            sets.words[i].effective | sets.words[i].permitted | sets.words[i].inheritable;
    }
    return all != 0;
}

/* Gives up all that nfprom was started with, for good, before it reads the first byte. False,
 * after a message: it could not. */
static bool drop_rights(void) {
    const struct capabilities none = {.words = {{0, 0, 0}, {0, 0, 0}}};
    struct capability_head head = this_process();
    int death_signal = 0;
    prctl(PR_GET_PDEATHSIG, &death_signal);
    int capability = 0;
    while (prctl(PR_CAPBSET_DROP, capability) ==
           0) /* to the last; it needs a right itself */
        capability++;
    bool is_another = become_nobody();
    /* (The ambient ones go with the permitted ones.) */
    syscall(SYS_capset, &head, &none);
    prctl(PR_SET_PDEATHSIG, death_signal); /* another user has lost it */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && is_another && !has_capabilities())
        return true;
    log_line("the rights cannot be dropped, so nothing is read: does a filter of system "
             "calls forbid capset(2), prctl(2) or setresuid(2)?");
    return false;
}

/* ---- one run of iptables ----------------------------------------------------------- */

struct run {
    struct collector *collector;
    int out, err; /* read ends: what the command prints, and what it complains of */
    int error;    /* errno, or COLLECTOR_GONE: it did not start */
    enum lock_state lock;
    long long total; /* bytes read of what it prints */
    bool timed_out;
    struct end end;
    size_t said_len;
    bool said_cut;             /* its beginning is lost */
    char said[SAID_MAX + 1];   /* the end of what it complains of */
    char trouble[TROUBLE_MAX]; /* what is wrong with its output, as nfprom sees it */
};

/* Waits for what comes through the channel. False: nothing until the deadline. */
static bool await_word(const struct collector *collector, usec deadline) {
    struct pollfd channel = {.fd = collector->channel, .events = POLLIN};
    int ready;
    do {
        ready = poll(&channel, 1, ms_until(deadline));
    } while (ready < 0 && now() < deadline);
    return ready > 0;
}

static bool await(struct run *run, usec deadline) {
    run->timed_out = !await_word(run->collector, deadline);
    return !run->timed_out;
}

/* The error, 0 if the collector has got the order. */
static int send_order(const struct collector *collector, struct order order) {
    ssize_t sent;
    do {
        sent = send(collector->channel, &order, sizeof order, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return 0;
    return errno == EPIPE || errno == ECONNRESET ? COLLECTOR_GONE : errno;
}

/* Takes the two ends out of a message. */
static bool take_ends(struct run *run, struct msghdr *message) {
    int ends[2];
    const struct cmsghdr *head = CMSG_FIRSTHDR(message);
    if (!head || head->cmsg_len != CMSG_LEN(sizeof ends))
        return false;
    memcpy(ends, CMSG_DATA(head), sizeof ends);
    run->out = ends[0];
    run->err = ends[1];
    return true;
}

/* Waits until the command is started. False: it is not; run->timed_out, or else run->error, says
 * why. */
static bool await_start(struct run *run, usec deadline) {
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct start start;
    struct iovec data = {&start, sizeof start};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    if (!await(run, deadline))
        return false;
    run->error = COLLECTOR_GONE;
    ssize_t len = recvmsg(run->collector->channel, &message, MSG_CMSG_CLOEXEC);
    if (len != sizeof start)
        return false;
    run->error = start.error;
    run->lock = start.lock;
    if (run->error == 0 && !take_ends(run, &message))
        run->error = EMFILE;
    return run->error == 0;
}

/* Tells the collector to start a command. */
static struct run start_run(struct collector *collector, struct order order) {
    struct run run = {.collector = collector, .out = -1, .err = -1};
    bool is_there = collector->channel >= 0;
    run.error = is_there ? send_order(collector, order) : collector->error;
    return run;
}

/* Takes how the command ended; or ends it, with the collector: when it is out of time, or when
 * nobody wants what else it has to say. */
static void end_run(struct run *run, bool is_wanted, usec deadline) {
    close(run->out);
    close(run->err);
    while (run->said_len > 0 && run->said[run->said_len - 1] == '\n')
        run->said_len--;
    run->said[run->said_len] = '\0';
    bool is_awaited = is_wanted && !run->timed_out;
    if (is_awaited && await(run, deadline) &&
        recv(run->collector->channel, &run->end, sizeof run->end, 0) == sizeof run->end)
        return;
    dismiss_collector(run->collector);
    run->end = (struct end){.status = BY_SIGNAL + SIGKILL};
}

/* Keeps the end of what the command says. False at its end. */
static bool hear(struct run *run) {
    char piece[SAID_MAX];
    ssize_t n = read(run->err, piece, sizeof piece);
    if (n <= 0)
        return n < 0 && errno == EINTR;
    size_t room = SAID_MAX - (size_t)n;
    size_t kept = run->said_len < room ? run->said_len : room;
    if (kept < run->said_len)
        run->said_cut = true;
    memmove(run->said, run->said + run->said_len - kept, kept);
    memcpy(run->said + kept, piece, (size_t)n);
    run->said_len = kept + (size_t)n;
    return true;
}

/* Keeps what the reader can tell so far. ITEM_MORE, ITEM_END or ITEM_ERROR. */
static enum item take_items(struct run *run, struct ruleset *rs, struct facts *facts) {
    struct rule rule;
    unsigned long kept = 0;
    for (;;) {
        enum item item = ruleset_next(rs, &rule);
        if (item == ITEM_ERROR)
            snprintf(run->trouble, sizeof run->trouble, "%s", rs->error);
        if (item != ITEM_RULE && item != ITEM_POLICY && item != ITEM_JUMP)
            return item;
        if (!keep(facts, item, &rule))
            break;
    }
    for (enum pair pair = 0; pair < PAIRS; pair++)
        kept += facts->counts[pair];
    snprintf(run->trouble, sizeof run->trouble,
             "out of memory, or of the room for so much, after %lu rules", kept);
    return ITEM_ERROR;
}

/* Reads a piece of the output. ITEM_MORE: there was nothing to read after all. */
static enum item read_output(struct run *run, struct ruleset *rs, struct facts *facts) {
    size_t room;
    char *to = ruleset_room(rs, &room);
    ssize_t n = read(run->out, to, room < READ_SIZE ? room : READ_SIZE);
    if (n < 0)
        return ITEM_MORE;
    ruleset_fed(rs, (size_t)n);
    enum item item = take_items(run, rs, facts);
    bool was_small = run->total <= PIPE_SIZE;
    run->total += n;
    /* A large output comes through a large pipe: fewer waits. */
    if (was_small && run->total > PIPE_SIZE)
        fcntl(run->out, F_SETPIPE_SZ, LARGE_PIPE_SIZE);
    if (item == ITEM_MORE && run->total > OUTPUT_MAX) {
        snprintf(run->trouble, sizeof run->trouble,
                 "output without end: more than %d bytes", OUTPUT_MAX);
        return ITEM_ERROR;
    }
    return item;
}

/* Reads the run to its end, to an error, or to the deadline. True: it was read to its
 * end. */
static bool read_run(struct run *run, struct ruleset *rs, struct facts *facts,
                     usec deadline) {
    struct pollfd fds[] = {{.fd = run->out, .events = POLLIN},
                           {.fd = run->err, .events = POLLIN}};
    struct pollfd *out = &fds[0];
    struct pollfd *err = &fds[1];
    enum item item = ITEM_MORE;
    while (out->fd >= 0 || err->fd >= 0) {
        int ready = poll(fds, COUNT(fds), ms_until(deadline));
        run->timed_out = ready == 0 || now() >= deadline;
        if (run->timed_out)
            return false;
        if (ready < 0)
            continue;
        if (err->revents && !hear(run))
            err->fd = -1;
        if (!out->revents)
            continue;
        item = read_output(run, rs, facts);
        if (rs->ended) {
            out->fd = -1; /* the rest of what it complains of is waited for */
        } else if (item == ITEM_ERROR) {
            return false;
        }
    }
    return item == ITEM_END;
}

/* ---- a family -------------------------------------------------------------------- */

/* What is known of a family after its read. */
struct family {
    const struct family_kind *kind;
    struct collector *collector;
    bool enabled, success, timed_out;
    int reads; /* for this answer that were not believed */
    usec duration;
    usec read_until;            /* when the last read was over */
    usec lock_time;             /* of it, waiting for the lock of the legacy tables */
    enum lock_state lock_state; /* of the lock of the legacy tables, in the last run */
    bool may_be_zeroed;   /* legacy tables: for a moment in each change all is zero */
    struct counts counts; /* of the kernel, if they are those of this backend */
    bool knows_jumps;     /* to the chains: all of them */
    struct facts facts;
    char reason[REASON_MAX]; /* why there is no success */
};

/* All that was read, and all that a view can show. */
struct report {
    const struct config *config;
    struct family families[FAMILIES];
    time_t read_at;
    usec whole_time;   /* of the exchange, to its deadline */
    usec request_time; /* of it, until the request had come */
};

/* ---- why a run was no success, and what to do about it */

struct failure {
    const struct config *config;
    const struct family_kind *kind;
    const struct facts *facts;
    const struct run *run;
    const struct ruleset *rs;
    const char *command;
    const char *said; /* whole lines of what the command complained of */
};

static bool says(const struct failure *failure, const char *words) {
    return strstr(failure->said, words) != NULL;
}

static bool says_one_of(const struct failure *failure, const char *const *words,
                        size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (says(failure, words[i]))
            return true;
    }
    return false;
}

static bool lacks_chain(const struct failure *failure) {
    if (failure->rs->missing.len == 0)
        return false;
    return failure->run->end.status == 0 || says(failure, "No chain") ||
           says(failure, "is incompatible");
}

/* The chain that is missing is there. In a table of some hundred chains iptables-nft may lose one
 * while others are made or only checked. (And it never lists a base chain of native rules.) */
static bool has_lost_chain(const struct failure *failure) {
    const struct ruleset *rs = failure->rs;
    const struct count *counts = failure->run->end.counts.before;
    if (!rs->opened || !rs->nft)
        return false;
    for (size_t i = 0; i < failure->config->nchains; i++) {
        if (same_text(rs->missing, failure->config->chains[i]) && counts[i].uses != 0)
            return true;
    }
    return false;
}

/* The chain that is missing has the name of a built-in one, in letters of either case. */
static bool lacks_builtin_chain(const struct failure *failure) {
    static const char *const names[] = {"INPUT", "FORWARD", "OUTPUT", "PREROUTING",
                                        "POSTROUTING"};
    struct text missing = failure->rs->missing;
    bool is_builtin = false;
    for (size_t i = 0; i < COUNT(names); i++) {
        if (strlen(names[i]) == missing.len)
            is_builtin |= strncasecmp(names[i], missing.at, missing.len) == 0;
    }
    return is_builtin && lacks_chain(failure);
}

/* Whether iptables shows a built-in chain as it shows one that the kernel has not got: without
 * a rule, and the policy has counted nothing. */
static bool shows_nothing(const struct failure *failure) {
    for (size_t i = 0; i < failure->config->nchains; i++) {
        const struct tally *tally = &failure->facts->tallies[i];
        if (tally->idle_policies > 0 && count_rules(tally) == 0)
            return true;
    }
    return false;
}

static bool went_through_sudo(const struct failure *failure) {
    return strncmp(failure->command, "sudo", strlen("sudo")) == 0;
}

/* iptables-nft warns of legacy tables, unless it may not read which there are. */
static bool hides_legacy(const struct failure *failure) {
    if (says(failure, "legacy tables present"))
        return true;
    if (!failure->rs->nft || went_through_sudo(failure))
        return false;
    return failure->run->end.hides_legacy;
}

static bool shows_nothing_beside_legacy(const struct failure *failure) {
    return shows_nothing(failure) && hides_legacy(failure);
}

/* "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them." */
static bool shows_nothing_beside_native(const struct failure *failure) {
    return shows_nothing(failure) && strstr(failure->rs->remark, "base-chains");
}

/* What limits the memory of a command. Of the address space much is not resident. */
static const struct memory_limit {
    int resource;
    unsigned safe_share; /* who takes less than this part of it has met no limit */
    const char *name;
} memory_limits[] = {
    {RLIMIT_DATA, 2, "data (ulimit -d, LimitDATA=, rlimit_data)"},
    {RLIMIT_AS, 4, "address space (ulimit -v, LimitAS=, rlimit_as)"},
};

static rlim_t limit_of(const struct memory_limit *kind) {
    struct rlimit limit;
    return getrlimit(kind->resource, &limit) == 0 ? limit.rlim_cur : RLIM_INFINITY;
}

/* Limits that iptables could come near: a million rules take it less than a gigabyte. */
static bool has_limits(void) {
    const rlim_t ample = (rlim_t)1 << 31;
    for (size_t i = 0; i < COUNT(memory_limits); i++) {
        if (limit_of(&memory_limits[i]) < ample)
            return true;
    }
    return false;
}

/* Whether the command may have met a limit of memory. iptables-legacy loses the last rules of a
 * table then, and iptables-nft-save all of a chain, with status 0 and without a word. */
static bool comes_near_limit(const struct failure *failure) {
    enum {
        SLACK = 1024 /* KiB by which a fork may grow */
    };
    rlim_t peak = (rlim_t)failure->run->end.peak * 1024;
    if (failure->run->end.peak <= failure->run->end.own + SLACK)
        return false; /* the peak is that of the fork of nfprom, before it became the command */
    for (size_t i = 0; i < COUNT(memory_limits); i++) {
        rlim_t limit = limit_of(&memory_limits[i]);
        if (limit != RLIM_INFINITY && peak > limit / memory_limits[i].safe_share)
            return true;
    }
    return false;
}

static bool lacks_memory(const struct failure *failure) {
    static const char *const words[] = {
        "llocate memory",        "lloc memory",     "ut of memory",
        "emory allocation",      "emory exhausted", "No buffer space",
        "failed to map segment", "cannot map zero", "cannot allocate TLS",
    };
    return says_one_of(failure, words, COUNT(words)) || comes_near_limit(failure);
}

/* iptables has an extension for each match and target. It tells the path of one that is there
 * and that it cannot load; iptables-nft may go on without it, with status 0: "-p udp --dport 53"
 * is printed as "-p udp" then. */
static bool lacks_extension(const struct failure *failure) {
    static const char *const paths[] = {"/libxt_", "/libipt_", "/libip6t_"};
    return says_one_of(failure, paths, COUNT(paths));
}

/* A line that iptables does not print there begins like this. */
static bool has_unexpected_line(const struct failure *failure, const char *start) {
    static const char unexpected[] = "unexpected line: ";
    const char *error = failure->rs->error;
    size_t len = strlen(unexpected);
    return strncmp(error, unexpected, len) == 0 &&
           strncmp(error + len, start, strlen(start)) == 0;
}

/* "-A CHAIN ...", as iptables-save prints a rule without -c. */
static bool lacks_counters(const struct failure *failure) {
    return has_unexpected_line(failure, "-A ");
}

static bool has_other_words(const struct failure *failure) {
    return has_unexpected_line(failure, "");
}

static bool has_native_rules(const struct failure *failure) {
    return says(failure, "Parsing nftables rule failed") ||
           strstr(failure->rs->remark, "is incompatible");
}

static bool lacks_nft(const struct failure *failure) {
    return says(failure, "Could not fetch rule set generation id") ||
           says(failure, "Failed to initialize nft");
}

static bool lacks_legacy(const struct failure *failure) {
    return says(failure, "Table does not exist") ||
           says(failure, "ip_tables not found") || says(failure, "ip6_tables not found");
}

/* The sandbox of the shipped unit allows netlink alone. */
static bool lacks_socket(const struct failure *failure) {
    return says(failure, "Address family not supported by protocol");
}

static bool lacks_lock(const struct failure *failure) {
    return says(failure, "lock file");
}

static bool lacks_permission(const struct failure *failure) {
    bool denied = says(failure, "ermission denied") || says(failure, "not permitted") ||
                  says(failure, "must be root");
    return denied && failure->run->end.status != CANNOT_RUN;
}

static bool lacks_command(const struct failure *failure) {
    enum {
        NOT_FOUND = 127
    };
    return failure->run->end.status == NOT_FOUND;
}

/* Whether the command may not be run here, or says that it does not print this table, so that
 * another one has to do. */
static bool is_refused(const struct failure *failure) {
    bool sudo_refuses = went_through_sudo(failure) && says(failure, "sudo:");
    return sudo_refuses || has_native_rules(failure) || lacks_command(failure) ||
           lacks_lock(failure) || lacks_permission(failure);
}

/* "iptables-legacy -t TABLE" and so on. */
static void put_tables(struct sink *to, const struct failure *failure) {
    put_format(to, "%s%s -t %s", failure->kind->command, failure->config->variant,
               failure->config->table);
}

/* How to make the chain and send packets through it. */
static void put_chain_commands(struct sink *to, const struct failure *failure) {
    bool raw = strcmp(failure->config->table, "raw") == 0;
    put_tables(to, failure);
    put_string(to, " -N ");
    put_word(to, failure->rs->missing);
    put_string(to, "` and send packets there: `");
    put_tables(to, failure);
    put_format(to, " -I %s ! -i lo -j ", raw ? "PREROUTING" : "INPUT");
    put_word(to, failure->rs->missing);
    put_string(
        to, "`, and the same with `OUTPUT ! -o lo`; without rules and a jump to it a "
            "chain counts nothing (README, Make the chain, has both); beside native nft "
            "rules: README, Hosts with native nft rules");
    if (says(failure, "is incompatible") || strstr(failure->rs->remark, "incompatible"))
        put_string(to,
                   "; if it is there, it holds native nft rules or is a base chain of "
                   "nft, which iptables does not list");
    if (says(failure, "legacy tables present"))
        put_string(to, "; there are legacy tables too, perhaps empty: if the chain is in "
                       "one, use -variant legacy");
    else if (is_variant(failure->config, "-legacy"))
        put_string(to, "; if it is in nft, use -variant nft");
    else if (is_variant(failure->config, "-nft"))
        put_string(to, "; if it is in a legacy table, use -variant legacy");
    else
        put_string(to, "; if it is in the other backend, use -variant nft or "
                       "-variant legacy");
    if (memchr(failure->rs->missing.at, ',', failure->rs->missing.len))
        put_string(to, "; if several chains are meant, give -chain once for each");
}

/* The line for sudoers, if it is one command with plain words. */
static void put_sudoers_line(struct sink *to, const struct failure *failure) {
    const char *command = failure->command + strlen("sudo -n ");
    bool is_plain = failure->config->nchains == 1 && !strchr(command, '\'');
    if (is_plain)
        put_format(to, ": USER ALL=(root) NOPASSWD: /usr/sbin/%s", command);
}

static void put_no_details(struct sink *to, const struct failure *failure) {
    (void)to;
    (void)failure;
}

/* The limits of memory under which the command was run, if there are any. */
static void put_limits(struct sink *to) {
    for (size_t i = 0; i < COUNT(memory_limits); i++) {
        rlim_t limit = limit_of(&memory_limits[i]);
        if (limit != RLIM_INFINITY)
            put_format(to, "; there is a limit of %llu KiB for %s",
                       (unsigned long long)limit / 1024, memory_limits[i].name);
    }
}

static void put_memory_limits(struct sink *to, const struct failure *failure) {
    (void)failure;
    put_limits(to);
}

/* What to do. The first that fits is given; went_through_sudo fits whatever sudo ran, so what
 * is more precise stands before it. */
static const struct advice {
    bool (*fits)(const struct failure *failure);
    const char *text;
    void (*put_details)(struct sink *to, const struct failure *failure);
} advices[] = {
    {lacks_memory, "; it needs more memory", put_memory_limits},
    {lacks_extension,
     "; the user of this process must be able to read the files of iptables",
     put_no_details},
    {has_lost_chain,
     "; the kernel has it, but iptables did not list it: while other chains are made or checked "
     "it may leave some out, and it never lists a base chain of native nft rules (README, Hosts "
     "with native nft rules)",
     put_no_details},
    {lacks_builtin_chain,
     "; this is the name of a built-in chain, which are in capitals: of another -table, perhaps "
     "(PREROUTING is in raw, mangle and nat); for a base chain of native nft rules: README, "
     "Hosts with native nft rules",
     put_no_details},
    {lacks_chain,
     "; look at -chain and -table; if a script makes it (/etc/nfprom/chain, "
     "/etc/nfprom/lan-hosts), run that; else make the chain with `",
     put_chain_commands},
    {shows_nothing_beside_legacy,
     "; there are legacy tables: if the chain is in one of them, use -variant legacy",
     put_no_details},
    {shows_nothing_beside_native,
     "; native base chains of nft are in its place, which iptables does not list (README, "
     "What it cannot see)",
     put_no_details},
    {lacks_counters,
     "; the counters are missing: what stands in PATH as this command does not pass on -c",
     put_no_details},
    {has_other_words,
     "; something else writes to the standard output of that command (a banner, a wrapper), "
     "or changes its lines",
     put_no_details},
    {has_native_rules,
     "; the table holds native nft rules that iptables cannot express (README, What it cannot "
     "see)",
     put_no_details},
    {lacks_legacy,
     "; if this kernel has no legacy tables, use -variant nft, or load their module (RHEL: "
     "kernel-modules-extra)",
     put_no_details},
    {went_through_sudo,
     "; nfprom has no CAP_NET_ADMIN: give it that capability, ambient (systemd: "
     "AmbientCapabilities=CAP_NET_ADMIN; README, Other super-servers: setpriv), or a line in sudoers "
     "(README, Rights)",
     put_sudoers_line},
    {lacks_lock,
     "; the legacy backend needs CAP_NET_ADMIN, CAP_NET_RAW and, with -list, "
     "CAP_DAC_READ_SEARCH for its lock",
     put_no_details},
    {lacks_permission, "; it needs CAP_NET_ADMIN, for the legacy backend CAP_NET_RAW too",
     put_no_details},
    {lacks_nft, "; if this kernel has no nf_tables, use -variant legacy", put_no_details},
    {lacks_socket,
     "; the legacy backend needs more than the unit allows: the drop-in legacy.conf, which "
     "make install lays beside the documents (README, systemd)",
     put_no_details},
    {lacks_command, "; install iptables, or add its directory to PATH", put_no_details},
};

static void put_advice(struct sink *to, const struct failure *failure) {
    for (size_t i = 0; i < COUNT(advices); i++) {
        if (!advices[i].fits(failure))
            continue;
        put_string(to, advices[i].text);
        advices[i].put_details(to, failure);
        return;
    }
}

/* What happened, in a few words. */
static void put_event(struct sink *to, const struct failure *failure) {
    const struct run *run = failure->run;
    bool ended_badly = run->end.status != 0 && failure->rs->ended;
    if (run->timed_out) {
        bool sudo = went_through_sudo(failure);
        put_format(to, "did not end in time%s (-timeout, or the scraper's own)",
                   sudo ? "; what sudo started is root's and cannot be killed"
                        : " and was killed");
    } else if (ended_badly && !lacks_chain(failure)) {
        put_format(to, "ended with status %d", run->end.status);
    } else {
        put_format(to, "gave no counters: %s", run->trouble);
    }
}

/* Whole lines: if the beginning is lost, the first line may be half of one. */
static const char *whole_lines(const struct run *run) {
    const char *newline = run->said_cut ? strchr(run->said, '\n') : NULL;
    return newline ? newline + 1 : run->said;
}

/* Writes the reason into the family. */
static void explain(struct family *family, const struct failure *failure) {
    struct sink reason = begin_string(family->reason, sizeof family->reason);
    struct text command = {failure->command, strlen(failure->command)};
    bool is_long = command.len > COMMAND_SHOWN_MAX; /* the rest needs room too */
    if (is_long)
        command.len = COMMAND_SHOWN_MAX;
    put_string(&reason, "`");
    put_text(&reason, command);
    put_string(&reason, is_long ? " ...` " : "` ");
    put_event(&reason, failure);
    if (*failure->said != '\0')
        put_format(&reason, "; it said: %s", failure->said);
    if (!failure->run->timed_out)
        put_advice(&reason, failure);
    end_string(&reason);
}

/* ---- reading a family */

/* What came of a run. */
enum reading {
    READ_WHOLE,    /* the family holds what was read */
    READ_UNSTEADY, /* it may be understood the next time */
    READ_REFUSED,  /* the command may not be run, or is not there */
    READ_FAILED
};

/* What a run has come to; whole: it was read to its end. */
static enum reading judge_run(const struct failure *failure, struct run *run,
                              bool whole) {
    if (!whole || run->end.status != 0) {
        bool collector_lives = run->collector->channel >= 0;
        if (run->timed_out)
            return READ_FAILED;
        if (failure->rs->changed || has_lost_chain(failure))
            return READ_UNSTEADY;
        return collector_lives && is_refused(failure) ? READ_REFUSED : READ_FAILED;
    }
    if (comes_near_limit(failure)) {
        snprintf(
            run->trouble, sizeof run->trouble,
            "it took %ld KiB of memory and may have lost rules for lack of more, which "
            "it would not tell",
            run->end.peak);
        return READ_FAILED;
    }
    if (lacks_extension(failure)) {
        snprintf(run->trouble, sizeof run->trouble,
                 "rules may lack what an extension of iptables would print");
        return READ_FAILED;
    }
    bool is_elsewhere =
        shows_nothing_beside_legacy(failure) || shows_nothing_beside_native(failure);
    if (!is_elsewhere)
        return READ_WHOLE;
    snprintf(
        run->trouble, sizeof run->trouble,
        "a built-in chain without a rule has counted nothing, as one that is not there");
    return READ_UNSTEADY; /* (while rules are loaded, the remark about base chains comes for
                             no reason) */
}

/* Why nothing was started. */
static enum reading fail_to_start(struct family *family, const struct run *run,
                                  enum lock_use lock) {
    if (run->timed_out && lock == LOCK_WAITED_FOR) {
        snprintf(family->reason, sizeof family->reason,
                 "another process holds the lock of the legacy tables, %s, all the time",
                 lock_file());
    } else if (run->timed_out) {
        snprintf(family->reason, sizeof family->reason,
                 "there was no time to start a process%s",
                 family->reads > 0
                     ? " once more, or the rules changed all the time while the "
                       "kernel was asked for them before"
                     : "");
        family->timed_out = true;
    } else {
        snprintf(family->reason, sizeof family->reason, "cannot start a process: %s",
                 run->error == COLLECTOR_GONE ? "the collector has been killed"
                                              : strerror(run->error));
    }
    return READ_FAILED;
}

/* What came of a run that has ended. The family gets the reason if it is not good. */
static enum reading conclude(const struct config *config, struct family *family,
                             struct run *run, const struct ruleset *rs,
                             enum dialect dialect, bool whole) {
    const char *command = command_of(family->collector, dialect);
    /* put_command() may begin with it. */
    bool is_exec = strncmp(command, "exec ", strlen("exec ")) == 0;
    struct failure failure = {config,
                              family->kind,
                              &family->facts,
                              run,
                              rs,
                              command + (is_exec ? strlen("exec ") : 0),
                              whole_lines(run)};
    enum reading reading = judge_run(&failure, run, whole);
    if (reading != READ_WHOLE)
        explain(family, &failure);
    return reading;
}

/* Whether the jumps to the chains are all known: native base chains may jump, too. */
static bool knows_jumps(const struct family *family, const struct ruleset *rs) {
    return family->facts.references.known && !strstr(rs->remark, "base-chains");
}

/* One run from start to end. What can wait is done while the command gets going: the wait is for
 * it anyway. */
static enum reading run_once(const struct config *config, struct family *family,
                             struct ruleset *rs, enum dialect dialect, enum lock_use lock,
                             usec deadline) {
    static char lines[RULE_LINE_MAX + READ_SIZE];
    static char comment[RULE_LINE_MAX];
    usec asked = now();
    struct order order = {dialect, lock, family->reads > 0};
    struct run run = start_run(family->collector, order);
    forget_facts(&family->facts);
    if (dialect == DIALECT_SAVE)
        family->facts.references = (struct references){.known = !config->list};
    struct wanted wanted = {dialect, config->table, config->chains, config->nchains,
                            reserved_labels};
    struct ruleset_memory memory = {RULE_LINE_MAX, READ_SIZE, lines, comment};
    ruleset_begin(rs, wanted, memory);
    bool whole = false;
    bool ready = begin_facts(&family->facts);
    if (!ready)
        snprintf(run.trouble, sizeof run.trouble, "out of memory");
    bool started = run.error == 0 && await_start(&run, deadline);
    family->lock_state = run.lock;
    if (lock == LOCK_WAITED_FOR)
        family->lock_time += now() - asked;
    if (started && ready)
        whole = read_run(&run, rs, &family->facts, deadline);
    end_run(&run, rs->ended || rs->changed, deadline);
    drop_index(&family->facts);
    if (!started)
        return fail_to_start(family, &run, lock);
    family->timed_out = run.timed_out;
    enum reading reading = conclude(config, family, &run, rs, dialect, whole);
    /* A list does not say of which backend it is. */
    bool is_nft = dialect == DIALECT_LIST ? lock == LOCK_UNUSED : rs->nft;
    family->counts = is_nft ? run.end.counts : no_counts;
    if (dialect == DIALECT_SAVE) /* a list does not tell */
        family->knows_jumps = knows_jumps(family, rs);
    return reading;
}

/* ---- under the lock of the legacy tables */

/* Whether the rules may be in legacy tables. (Where the kernel has no list of them, there are
 * none.) */
static bool may_be_legacy(const struct config *config, const struct family *family) {
    if (*config->variant != '\0')
        return is_variant(config, "-legacy");
    return access(family->kind->legacy_tables, F_OK) == 0;
}

/* iptables -S takes the lock itself, and waits for it: many of them would hold up changes as
 * well. */
static enum reading read_list(const struct config *config, struct family *family,
                              struct ruleset *rs, usec deadline) {
    enum lock_use lock = may_be_legacy(config, family) ? LOCK_QUEUED : LOCK_UNUSED;
    family->may_be_zeroed = lock == LOCK_QUEUED;
    return run_once(config, family, rs, DIALECT_LIST, lock, deadline);
}

/* A table under the lock; or, if it is known only from the output that it is a legacy one, once
 * more under the lock. */
static enum reading read_table(const struct config *config, struct family *family,
                               struct ruleset *rs, usec deadline) {
    bool is_legacy = is_variant(config, "-legacy");
    enum lock_use lock = is_legacy ? LOCK_WAITED_FOR : LOCK_IF_FREE;
    enum reading reading = run_once(config, family, rs, DIALECT_SAVE, lock, deadline);
    bool was_busy = family->lock_state == LOCK_BUSY && !family->timed_out;
    bool may_repeat = reading == READ_WHOLE || reading == READ_UNSTEADY;
    bool is_zeroed = rs->opened && !rs->nft; /* perhaps */
    if (was_busy && may_repeat && is_zeroed)
        reading = run_once(config, family, rs, DIALECT_SAVE, LOCK_WAITED_FOR, deadline);
    family->may_be_zeroed = !rs->nft;
    return reading;
}

/* The legacy backend replaces its whole table at each change, and for a moment all counters
 * are 0: such a read counts only if it was done under the lock that the changers hold. nft has
 * no such moment, and which backend it was is known from its output; so, unless -variant says
 * that it is legacy, a lock that somebody else holds is waited for only if it matters. Where
 * the lock cannot be opened the read is done without. And it need not be the lock of who changes
 * the tables: that is a file, which a container has of its own. So zeros of legacy tables are
 * doubted in any case. */
static enum reading read_safely(const struct config *config, struct family *family,
                                struct ruleset *rs, enum dialect dialect, usec deadline) {
    family->may_be_zeroed = false;
    if (dialect == DIALECT_LIST)
        return read_list(config, family, rs, deadline);
    if (is_variant(config, "-nft"))
        return run_once(config, family, rs, dialect, LOCK_UNUSED, deadline);
    return read_table(config, family, rs, deadline);
}

/* ---- until it is believed */

static uint64_t has_no_rule(const struct family *family, size_t chain) {
    return count_rules(&family->facts.tallies[chain]) == 0;
}

static uint64_t has_only_zeros(const struct family *family, size_t chain) {
    const struct tally *tally = &family->facts.tallies[chain];
    unsigned long counters = count_rules(tally) + tally->policies;
    bool is_zero = tally->counted == 0 && tally->idle_policies == tally->policies;
    return family->may_be_zeroed && counters > 0 && is_zero;
}

/* A number, never 0, that two reads share if the rules of the chain and its policy are the same
 * but for their counters, in the same order. */
static uint64_t hash_chain(const struct family *family, size_t chain) {
    uint64_t hash = 0;
    struct walk walk = begin_walk(&family->facts);
    struct fact fact;
    while (next_fact(&walk, &fact)) {
        if (fact.rule.chain == chain)
            hash = mix(hash, hash_printed(&fact.rule));
    }
    return hash | 1;
}

/* The same, if the rules of others that jump to wanted chains are the same, too. */
static uint64_t fingerprint(const struct family *family, size_t chain) {
    return mix(family->facts.references.words, hash_chain(family, chain)) | 1;
}

/* As iptables-nft shows a built-in chain that it has not found. */
static uint64_t looks_like_none(const struct family *family, size_t chain) {
    const struct tally *tally = &family->facts.tallies[chain];
    bool is_idle = tally->idle_policies > 0 && count_rules(tally) == 0;
    return is_idle ? hash_chain(family, chain) : 0;
}

static uint64_t has_copies(const struct family *family, size_t chain) {
    const struct facts *facts = &family->facts;
    bool has_some = facts->tallies[chain].copies > 0 || facts->references.has_copies;
    return has_some ? fingerprint(family, chain) : 0;
}

/* Rules were added or taken away in the meantime, or one of two lists lacks some. Or perhaps they
 * were: something was changed, and both lists may have been made before that. */
static uint64_t has_changed(const struct family *family, size_t chain) {
    const struct count *before = &family->counts.before[chain];
    const struct count *after = &family->counts.after[chain];
    bool is_first = family->reads == 0;
    bool is_same = before->rules == after->rules && before->handles == after->handles;
    bool may_differ = is_first && family->counts.committed;
    return may_differ || !is_same ? fingerprint(family, chain) : 0;
}

/* Nothing was changed, and yet the two lists are not the same: one lacks rules, and so may what
 * iptables printed. */
static uint64_t lists_differ(const struct family *family, size_t chain) {
    return family->counts.committed ? 0 : has_changed(family, chain);
}

/* The kernel has more rules, or fewer. */
static uint64_t differs_from_rules(const struct family *family, size_t chain) {
    unsigned long is = count_rules(&family->facts.tallies[chain]);
    unsigned long rules = family->counts.before[chain].rules;
    bool differs = rules != 0 && rules != is;
    return differs ? fingerprint(family, chain) : 0;
}

/* The kernel's number counts rules that are only checked, too, until they are thrown away. So if
 * one of two numbers fits, that is enough. */
static uint64_t differs_from_uses(const struct family *family, size_t chain) {
    const struct facts *facts = &family->facts;
    unsigned long is =
        count_rules(&facts->tallies[chain]) + facts->references.counts[chain];
    unsigned long before = family->counts.before[chain].uses;
    unsigned long after = family->counts.after[chain].uses;
    bool is_known = family->knows_jumps && before != 0;
    bool fits = is == before || (after != 0 && is == after);
    bool differs = is_known && !fits;
    return differs ? fingerprint(family, chain) : 0;
}

/* A jump is missing, perhaps. The kernel's number does not count what a load deletes, even while
 * that is only checked: so it may fit nevertheless. */
static uint64_t has_no_jump(const struct family *family, size_t chain) {
    const struct facts *facts = &family->facts;
    if (!family->knows_jumps || family->counts.before[chain].uses == 0)
        return 0; /* legacy rules are not in the kernel's number */
    bool is_built_in = facts->tallies[chain].policies > 0;
    return !is_built_in && facts->references.counts[chain] == 0;
}

enum {
    FEW_READS = 3,   /* at most, and ... */
    MANY_READS = 20, /* ... where iptables often errs: for as long as there is time */
    IN_A_ROW = 6,
    A_MOMENT = 10, /* ms between two of them */
    /* If time for as many is left there is time to read again. A repeated read takes longer:
     * iptables waits for the list before it, and nfprom for the one behind it. */
    FIRST_READS_IN_HAND = 8,
    READS_IN_HAND = 4
};

/* What iptables was seen to print, with status 0, of chains that did not look like that. */
static const struct doubt {
    /* 0: there is nothing to doubt. 1: there is. Another number: there is, and the next read shows
     * the same only if its rules are the same (fingerprint()). */
    uint64_t (*measure)(const struct family *family, size_t chain);
    int reads; /* as many in a row, at most IN_A_ROW, must show the same to be believed */
    int most;  /* as many are made at least, if they are needed */
    bool wants_other; /* and by both commands in turn, where both may be run */
    bool may_stay; /* likely to be true: believed where there is no time to read again */
} doubts[] = {
    /* In a race with a change, and for lack of memory. */
    {has_no_rule, 2, FEW_READS, true, false},
    /* In a table of some hundred chains, while others are made or only checked. */
    {looks_like_none, 2, FEW_READS, true, false},
    /* In the middle of a change of legacy tables. Beside a loop of changes two reads in a row may
     * meet such a moment, so there are three. */
    {has_only_zeros, 3, 4, true, false},
    /* By nft, while rules of the same chain were only checked. */
    {has_copies, 3, MANY_READS, false, true},
    /* By nft, while rules of the chain were loaded or only checked. (Or iptables is a script that
     * shows another machine's rules.) */
    {differs_from_rules, IN_A_ROW, MANY_READS, false, false},
    /* The same of jumps to it. (Or a map of native rules jumps there.) */
    {differs_from_uses, 3, MANY_READS, false, true},
    {has_no_jump, 3, MANY_READS, false, true},
    /* So that a change does not make up for what was left out. */
    {has_changed, IN_A_ROW, MANY_READS, false, true},
    /* Without a change that proves a loss: so it is not believed for lack of time. */
    {lists_differ, IN_A_ROW, MANY_READS, false, false},
};

/* What was doubted of each chain. */
struct doubted {
    uint64_t measures[COUNT(doubts)][CHAINS_MAX]; /* in the last read */
    /* A bit for each chain: in the last read; the same in both of the last two; and so on. */
    uint64_t chains[COUNT(doubts)][IN_A_ROW];
};
_Static_assert(CHAINS_MAX <= 64, "a bit each");

static void note_doubts(struct doubted *doubted, const struct config *config,
                        const struct family *family) {
    for (size_t d = 0; d < COUNT(doubts); d++) {
        uint64_t *measures = doubted->measures[d];
        uint64_t *chains = doubted->chains[d];
        uint64_t applies = 0;
        uint64_t as_before = 0;
        for (size_t i = 0; i < config->nchains; i++) {
            uint64_t bit = (uint64_t)1 << i;
            uint64_t measure = doubts[d].measure(family, i);
            if (measure > 0)
                applies |= bit;
            if (measure == measures[i])
                as_before |= bit;
            measures[i] = measure;
        }
        for (int n = IN_A_ROW - 1; n > 0; n--)
            chains[n] = chains[n - 1] & applies & as_before;
        chains[0] = applies;
    }
}

/* Whether all that is doubted in the last read was shown by as many reads as it takes. */
static bool is_believed(const struct doubted *doubted, bool has_time) {
    for (size_t d = 0; d < COUNT(doubts); d++) {
        const uint64_t *chains = doubted->chains[d];
        bool matters = has_time || !doubts[d].may_stay;
        if (matters && chains[doubts[d].reads - 1] != chains[0])
            return false;
    }
    return true;
}

static bool is_for_other(const struct doubted *doubted) {
    for (size_t d = 0; d < COUNT(doubts); d++) {
        if (doubts[d].wants_other && doubted->chains[d][0] != 0)
            return true;
    }
    return false;
}

static int most_reads(const struct doubted *doubted) {
    int most = FEW_READS;
    for (size_t d = 0; d < COUNT(doubts); d++) {
        if (doubted->chains[d][0] != 0 && most < doubts[d].most)
            most = doubts[d].most;
    }
    return most;
}

/* Says in front of the reason why there was one more read, and behind it which limits there
 * are. */
static void explain_doubt(struct family *family) {
    static char reason[REASON_MAX];
    struct sink text = begin_string(reason, sizeof reason);
    put_string(
        &text,
        "a chain was printed without a rule, or with nothing but zeros, which iptables "
        "also does when it lacks memory, or in the middle of a change; it was not "
        "confirmed: ");
    put_string(&text, family->reason);
    if (!strstr(family->reason, "there is a limit"))
        put_limits(&text);
    end_string(&text);
    memcpy(family->reason, reason, sizeof family->reason);
}

static void tell_changes(struct family *family) {
    snprintf(
        family->reason, sizeof family->reason,
        "the ruleset changes while it is read: there was a chain without a rule, with "
        "nothing but zeros, with a rule twice, or with other rules than the kernel counts, "
        "and in %d reads it did not look the same often enough",
        family->reads + 1);
}

/* Reads until what was read can be believed. The facts are those of the last read. If it fails,
 * the reason is there. */
static bool read_believed(const struct config *config, struct family *family,
                          usec deadline) {
    static struct ruleset rs;
    enum dialect usual = config->list ? DIALECT_LIST : DIALECT_SAVE;
    enum dialect other = config->list ? DIALECT_SAVE : DIALECT_LIST;
    enum dialect dialect = usual;
    struct doubted doubted = {.chains = {{0}}};
    family->reads = 0;
    while (family->reads < most_reads(&doubted)) {
        usec started = now();
        enum reading reading = read_safely(config, family, &rs, dialect, deadline);
        if (reading == READ_WHOLE) {
            int in_hand = family->reads == 0 ? FIRST_READS_IN_HAND : READS_IN_HAND;
            bool has_time = now() + in_hand * (now() - started) < deadline;
            note_doubts(&doubted, config, family);
            /* A list of several chains is of as many moments. It confirms a table, which is then
             * read once more, and is the answer only to who has asked for a list. */
            bool is_answer =
                dialect == usual || dialect == DIALECT_SAVE || config->nchains == 1;
            if (is_answer && is_believed(&doubted, has_time))
                return true;
            bool to_other = dialect == usual && is_for_other(&doubted);
            dialect = to_other ? other : usual;
            tell_changes(family);
        } else if (reading == READ_REFUSED && dialect != usual && !has_limits()) {
            other = dialect = usual; /* which has to confirm itself */
            continue;                /* this was no read */
        } else if (reading != READ_UNSTEADY) {
            if (is_for_other(&doubted))
                explain_doubt(family);
            return false;
        }
        family->reads++;
        poll(NULL, 0, A_MOMENT);
    }
    return false;
}

static void read_family(const struct config *config, struct family *family,
                        usec deadline) {
    usec started = now();
    family->success = read_believed(config, family, deadline);
    if (!family->success)
        forget_facts(&family->facts);
    family->read_until = now();
    family->duration = family->read_until - started;
}

static bool has_failed(const struct family *family) {
    return family->enabled && !family->success;
}

/* Whether both families have failed for the same reason: but for the command's name. */
static bool fail_alike(const struct report *report) {
    const char *names[] = {family_kinds[IPV4].command, family_kinds[IPV6].command};
    size_t lengths[] = {strlen(names[IPV4]), strlen(names[IPV6])};
    const struct family *families = report->families;
    if (!has_failed(&families[IPV4]) || !has_failed(&families[IPV6]))
        return false;
    const char *a = families[IPV4].reason;
    const char *b = families[IPV6].reason;
    while (*a && *b) {
        bool at_name = strncmp(a, names[IPV4], lengths[IPV4]) == 0 &&
                       strncmp(b, names[IPV6], lengths[IPV6]) == 0;
        if (!at_name && *a != *b)
            return false;
        a += at_name ? lengths[IPV4] : 1;
        b += at_name ? lengths[IPV6] : 1;
    }
    return *a == *b;
}

/* In whose name the reason of a family is told. NULL: in none, since it did not fail, or since
 * it was told with the family before. */
static const char *failure_name(const struct report *report, size_t i) {
    if (!has_failed(&report->families[i]))
        return NULL;
    if (!fail_alike(report))
        return family_kinds[i].label.at;
    return i == IPV4 ? "ipv4, ipv6 (the same with ip6tables)" : NULL;
}

static void log_failures(const struct report *report) {
    for (size_t i = 0; i < FAMILIES; i++) {
        const char *name = failure_name(report, i);
        if (name)
            log_line("%s: %s", name, report->families[i].reason);
    }
}

/* What a process reads for its answer, and ends with. (A page that reads twice has one more.) */
static struct report process_report;

static void begin_report(struct report *report, const struct config *config,
                         struct collector *collectors) {
    report->config = config;
    for (size_t i = 0; i < FAMILIES; i++) {
        struct family *family = &report->families[i];
        family->kind = &family_kinds[i];
        family->collector = &collectors[i];
        family->enabled = config->families[i];
    }
}

/* Reads the enabled families. The status: 200 if one succeeded, else 504 if one was out of time
 * (but not for the lock of legacy tables), else 503. A family that hangs leaves the next a share
 * of the time; one that has failed is not read again. */
static int read_families(struct report *report, usec deadline) {
    bool success = false;
    bool timed_out = false;
    for (size_t i = 0; i < FAMILIES; i++) {
        struct family *family = &report->families[i];
        bool has_failed_before = !family->success && family->reason[0] != '\0';
        if (family->enabled && !has_failed_before) {
            usec share = (deadline - now()) / FAMILY_DIVISOR;
            usec for_others = share * count_enabled(report->config, i + 1);
            read_family(report->config, family, deadline - for_others);
        }
        success = success || family->success;
        timed_out = timed_out || family->timed_out;
    }
    report->read_at = time(NULL);
    if (success)
        return 200;
    return timed_out ? 504 : 503;
}

/* Reads them once, and logs what fails. The status is that of read_families(). */
static int scrape(const struct config *config, struct collector *collectors,
                  struct report *report, usec deadline) {
    begin_report(report, config, collectors);
    int status = read_families(report, deadline);
    dismiss_collectors(collectors);
    log_failures(report);
    return status;
}

/* ---- the exposition: the views of Prometheus --------------------------------------- */

/* OpenMetrics 1.0 and the text format 0.0.4 differ in three things: in OpenMetrics a
 * metric family of counters is named without the `_total` of its samples, the end is
 * marked, and the media type is another. */
enum format {
    FORMAT_TEXT,
    FORMAT_OPENMETRICS
};

/* The kinds of samples, one bit each: a label names those that have it. */
enum sample_kind {
    OF_LABELS = 1,
    OF_LABELS_COMMENT = 2, /* one for each rule of these with a comment */
    OF_VERBATIM = 4,
    OF_POLICY = 8,
    OF_TALLY = 16,      /* one for each chain and kind of rules */
    OF_CHAIN = 32,      /* one for each chain */
    OF_USER_CHAIN = 64, /* one for each that is not built in */
    OF_FAMILY = 128,    /* one for each enabled family, of one that failed too */
    OF_PROGRAM = 256
};

/* What a sample is about. */
struct sample {
    const struct config *config;
    const struct family *family; /* not OF_PROGRAM */
    size_t chain;            /* OF_CHAIN, OF_USER_CHAIN, OF_TALLY, and what has a fact */
    enum tally_kind kind;    /* OF_TALLY */
    const struct fact *fact; /* OF_LABELS, OF_LABELS_COMMENT, OF_VERBATIM, OF_POLICY */
    bool is_plain;           /* its values are written without escapes */
};

/* ---- labels */

/* The value of a label, with the three escapes of both formats. What is kept is UTF-8. */
static void put_escaped(struct sink *sink, struct text value) {
    const char *run = value.at;
    const char *end = value.at + value.len;
    for (const char *p = run; p < end; p++) {
        bool special = *p == '"' || *p == '\\' || *p == '\n';
        if (!special)
            continue;
        const char escape[] = {'\\', *p == '\n' ? 'n' : *p};
        put(sink, run, (size_t)(p - run));
        put(sink, escape, sizeof escape);
        run = p + 1;
    }
    put(sink, run, (size_t)(end - run));
}

/* What stands before the value of a label: `{NAME="` or, behind another one, whose value it
 * closes, `",NAME="`. */
static inline void put_opening(struct sink *sink, bool is_first, struct text name) {
    put_string(sink, is_first ? "{" : "\",");
    put_text(sink, name);
    put_string(sink, "=\"");
}

/* A text of a fact. */
static inline void put_kept(struct sink *sink, const struct fact *fact,
                            struct text value) {
    if (fact->harmless) {
        put_text(sink, value);
    } else {
        put_escaped(sink, value);
    }
}

static inline void put_value(struct sink *sink, const struct fact *fact,
                             struct value value) {
    if (value.negated)
        put_string(sink, "!");
    put_kept(sink, fact, value.text);
}

static void put_address(struct sink *sink, const struct sample *sample) {
    put_value(sink, sample->fact, sample->fact->rule.address);
}

static void put_chain(struct sink *sink, const struct sample *sample) {
    struct text name = sample->config->shown_chains[sample->chain];
    if (sample->is_plain) {
        put_text(sink, name);
    } else {
        put_escaped(sink, name);
    }
}

static void put_direction(struct sink *sink, const struct sample *sample) {
    static const struct text directions[] = {
        [DIRECTION_NONE] = TEXT(""),
        [DIRECTION_IN] = TEXT("in"),
        [DIRECTION_OUT] = TEXT("out"),
    };
    put_text(sink, directions[sample->fact->rule.direction]);
}

static void put_l2proto(struct sink *sink, const struct sample *sample) {
    put_text(sink, sample->family->kind->label);
}

static void put_l3proto(struct sink *sink, const struct sample *sample) {
    const struct value *protocol = &sample->fact->rule.protocol;
    if (protocol->text.len == 0) {
        put_string(sink, "all");
    } else {
        put_value(sink, sample->fact, *protocol);
    }
}

static void put_port(struct sink *sink, const struct sample *sample) {
    put_value(sink, sample->fact, sample->fact->rule.port);
}

/* The match and the target, `*` if there is neither. */
static void put_rule(struct sink *sink, const struct sample *sample) {
    const struct fact *fact = sample->fact;
    const struct rule *rule = &fact->rule;
    put_kept(sink, fact, rule->match);
    if (rule->match.len > 0 && rule->target.len > 0)
        put_string(sink, " ");
    put_kept(sink, fact, rule->target);
    if (rule->match.len + rule->target.len == 0)
        put_string(sink, "*");
}

static void put_comment(struct sink *sink, const struct sample *sample) {
    put_kept(sink, sample->fact, sample->fact->rule.comment);
}

static void put_dup(struct sink *sink, const struct sample *sample) {
    if (sample->fact->nth > 1)
        put_number(sink, sample->fact->nth);
}

static void put_policy(struct sink *sink, const struct sample *sample) {
    put_kept(sink, sample->fact, sample->fact->rule.policy);
}

static void put_kind(struct sink *sink, const struct sample *sample) {
    static const char *const kinds[] = {
        [EXPORTED] = "exported",
        [OTHER] = "other",
        [DUPLICATE] = "duplicate",
    };
    put_string(sink, kinds[sample->kind]);
}

static void put_version(struct sink *sink, const struct sample *sample) {
    (void)sample;
    put_string(sink, VERSION);
}

/* The labels from the comments of a rule, whole. */
static void put_tags(struct sink *sink, const struct sample *sample) {
    struct text rest = sample->fact->rule.tags;
    struct tag tag;
    while (next_tag(&rest, &tag)) {
        put_opening(sink, false, tag.name);
        put_kept(sink, sample->fact, tag.value);
    }
}

static bool always(const struct report *report) {
    (void)report;
    return true;
}

static bool with_several_chains(const struct report *report) {
    return report->config->nchains > 1;
}

static bool with_tags(const struct report *report) {
    for (size_t i = 0; i < FAMILIES; i++) {
        if (report->families[i].facts.has_tags)
            return true;
    }
    return false;
}

/* All labels, in the order in which they are written. */
static const struct label {
    const char *name;
    bool (*is_shown)(const struct report *report);
    unsigned samples; /* that have it: enum sample_kind */
    void (*put)(struct sink *sink, const struct sample *sample);
} labels[] = {
    {"address", always, OF_LABELS | OF_LABELS_COMMENT, put_address},
    {"chain", with_several_chains,
     OF_LABELS | OF_LABELS_COMMENT | OF_VERBATIM | OF_POLICY | OF_TALLY | OF_CHAIN |
         OF_USER_CHAIN,
     put_chain},
    {"direction", always, OF_LABELS | OF_LABELS_COMMENT, put_direction},
    {"l2proto", always,
     OF_LABELS | OF_LABELS_COMMENT | OF_VERBATIM | OF_POLICY | OF_TALLY | OF_CHAIN |
         OF_USER_CHAIN | OF_FAMILY,
     put_l2proto},
    {"l3proto", always, OF_LABELS | OF_LABELS_COMMENT, put_l3proto},
    {"port", always, OF_LABELS | OF_LABELS_COMMENT, put_port},
    {"rule", always, OF_VERBATIM, put_rule},
    {"comment", always, OF_VERBATIM | OF_LABELS_COMMENT, put_comment},
    {"dup", always, OF_VERBATIM, put_dup},
    {"policy", always, OF_POLICY, put_policy},
    {"kind", always, OF_TALLY, put_kind},
    {"version", always, OF_PROGRAM, put_version},
    {"those from comments", with_tags, OF_LABELS | OF_LABELS_COMMENT | OF_VERBATIM,
     put_tags},
};

/* Whether put() writes labels as a whole: as many as there are, with their names. */
static bool puts_names(const struct label *label) {
    return label->put == put_tags;
}

/* ---- metrics */

static void put_packets(struct sink *sink, const struct sample *sample) {
    put_number(sink, sample->fact->rule.packets);
}

static void put_bytes(struct sink *sink, const struct sample *sample) {
    put_number(sink, sample->fact->rule.bytes);
}

static void put_one(struct sink *sink, const struct sample *sample) {
    (void)sample;
    put_string(sink, "1");
}

static void put_rules(struct sink *sink, const struct sample *sample) {
    put_number(sink, sample->family->facts.tallies[sample->chain].kinds[sample->kind]);
}

static void put_nonterminal(struct sink *sink, const struct sample *sample) {
    put_number(sink, sample->family->facts.tallies[sample->chain].nonterminal);
}

static void put_unreachable(struct sink *sink, const struct sample *sample) {
    put_number(sink, sample->family->facts.tallies[sample->chain].unreachable);
}

/* Whether it is known which rules lead to the chain. Nothing can lead to a built-in one. */
static bool knows_references(const struct family *family, size_t chain) {
    return family->facts.references.known && family->facts.tallies[chain].policies == 0;
}

static void put_references(struct sink *sink, const struct sample *sample) {
    put_number(sink, sample->family->facts.references.counts[sample->chain]);
}

static void put_refused(struct sink *sink, const struct sample *sample) {
    put_number(sink, sample->family->facts.tallies[sample->chain].refused_comments);
}

static void put_success(struct sink *sink, const struct sample *sample) {
    put_string(sink, sample->family->success ? "1" : "0");
}

static void put_duration(struct sink *sink, const struct sample *sample) {
    usec duration = sample->family->duration;
    put_format(sink, "%lld.%06lld", duration / SECOND, duration % SECOND);
}

enum type {
    COUNTER,
    GAUGE
};

/* All metric families, in the order in which they are written. */
static const struct metric {
    const char *name; /* without the namespace and, of a counter, `_total` */
    enum type type;
    enum sample_kind kind; /* of its samples */
    void (*put)(struct sink *sink, const struct sample *sample);
    const char *help;
} metrics[] = {
    {"packets", COUNTER, OF_LABELS, put_packets,
     "Packets of a rule that the labels express."},
    {"bytes", COUNTER, OF_LABELS, put_bytes, "Bytes of a rule that the labels express."},
    {"rule_info", GAUGE, OF_LABELS_COMMENT, put_one,
     "Comment of a rule that the labels express."},
    {"rule_packets", COUNTER, OF_VERBATIM, put_packets, "Packets of any other rule."},
    {"rule_bytes", COUNTER, OF_VERBATIM, put_bytes, "Bytes of any other rule."},
    {"policy_packets", COUNTER, OF_POLICY, put_packets,
     "Packets that a chain's policy got."},
    {"policy_bytes", COUNTER, OF_POLICY, put_bytes, "Bytes that a chain's policy got."},
    {"rules", GAUGE, OF_TALLY, put_rules,
     "Rules: exported by their labels, other, and duplicates of either."},
    {"nonterminal_rules", GAUGE, OF_CHAIN, put_nonterminal,
     "Exported rules after which another may count the packet again."},
    {"unreachable_rules", GAUGE, OF_CHAIN, put_unreachable,
     "Rules behind one that ends the traversal and matches everything, or the same."},
    {"chain_references", GAUGE, OF_USER_CHAIN, put_references,
     "Rules of the table that jump or go to the chain; with 0 it counts nothing."},
    {"label_errors", GAUGE, OF_CHAIN, put_refused,
     "Comments that begin with nfprom( but give no labels: /status says why."},
    {"build_info", GAUGE, OF_PROGRAM, put_one, "The nfprom that answers."},
    {"scrape_success", GAUGE, OF_FAMILY, put_success,
     "Whether the family was read to its end."},
    {"scrape_duration_seconds", GAUGE, OF_FAMILY, put_duration,
     "How long the read of the family took."},
};

enum {
    METRIC_NAME_MAX = 60, /* of a metric in the table, and of a label */
    OPENING_MAX = METRIC_NAME_MAX + sizeof "\",=\""
};

/* A label of the metric that is being written, and what stands before its value. (Every metric
 * has a label.) */
struct opening {
    char bytes[OPENING_MAX];
    size_t len;
    const struct label *label;
};

/* The metric that is being written. */
struct exposition {
    struct sink *sink;
    const struct report *report;
    enum format format;
    const struct metric *metric;
    bool has_metadata;                          /* HELP and TYPE are written */
    char name[NAMESPACE_MAX + METRIC_NAME_MAX]; /* of its samples */
    size_t name_len;
    struct opening openings[COUNT(labels)];
    size_t nopenings;
};

static void add_opening(struct exposition *e, const struct label *label) {
    bool is_first = e->nopenings == 0;
    struct opening *opening = &e->openings[e->nopenings];
    struct sink text = begin_string(opening->bytes, sizeof opening->bytes);
    if (!puts_names(label))
        put_opening(&text, is_first, (struct text){label->name, strlen(label->name)});
    opening->len = text.used;
    opening->label = label;
    e->nopenings++;
}

/* Finds the labels of the metric's samples, and what stands before each value. */
static void begin_metric(struct exposition *e, const struct metric *metric) {
    const struct config *config = e->report->config;
    struct sink name = begin_string(e->name, sizeof e->name);
    put_string(&name, config->namespace);
    put_string(&name, "_");
    put_string(&name, metric->name);
    if (metric->type == COUNTER)
        put_string(&name, "_total");
    e->name_len = name.used;
    e->metric = metric;
    e->has_metadata = false;
    e->nopenings = 0;
    for (size_t i = 0; i < COUNT(labels); i++) {
        bool has_it = labels[i].samples & metric->kind;
        if (has_it && labels[i].is_shown(e->report))
            add_opening(e, &labels[i]);
    }
}

/* One of the lines HELP and TYPE. (A format would take longer: of nine rules, most of what is
 * written are these lines.) */
static void put_metadata_line(struct exposition *e, const char *keyword,
                              const char *text) {
    bool with_total = e->metric->type == COUNTER && e->format == FORMAT_TEXT;
    put_string(e->sink, keyword);
    put_string(e->sink, e->report->config->namespace);
    put_string(e->sink, "_");
    put_string(e->sink, e->metric->name);
    put_string(e->sink, with_total ? "_total " : " ");
    put_string(e->sink, text);
    put_string(e->sink, "\n");
}

/* Before the first sample. */
static void put_metadata(struct exposition *e) {
    put_metadata_line(e, "# HELP ", e->metric->help);
    put_metadata_line(e, "# TYPE ", e->metric->type == COUNTER ? "counter" : "gauge");
    e->has_metadata = true;
}

static void put_sample(struct exposition *e, const struct sample *sample) {
    if (!e->has_metadata)
        put_metadata(e);
    put(e->sink, e->name, e->name_len);
    for (size_t i = 0; i < e->nopenings; i++) {
        put(e->sink, e->openings[i].bytes, e->openings[i].len);
        e->openings[i].label->put(e->sink, sample);
    }
    put_string(e->sink, "\"} ");
    e->metric->put(e->sink, sample);
    put_string(e->sink, "\n");
}

/* A sample for each fact of a pair; with commented, for those with a comment alone. */
static void put_facts(struct exposition *e, struct sample *sample, enum pair pair,
                      bool commented) {
    struct fact fact;
    if (sample->family->facts.counts[pair] == 0)
        return;
    struct walk walk = begin_walk(&sample->family->facts);
    sample->fact = &fact;
    while (next_of(&walk, pair, &fact)) {
        sample->chain = fact.rule.chain;
        if (fact.rule.has_comment || !commented)
            put_sample(e, sample);
    }
}

/* A sample for each chain. */
static void put_chains(struct exposition *e, struct sample *sample) {
    for (size_t i = 0; i < sample->config->nchains; i++) {
        sample->chain = i;
        put_sample(e, sample);
    }
}

/* A sample for each chain that others can lead to, if it is known which do. */
static void put_user_chains(struct exposition *e, struct sample *sample) {
    for (size_t i = 0; i < sample->config->nchains; i++) {
        sample->chain = i;
        if (knows_references(sample->family, i))
            put_sample(e, sample);
    }
}

/* A sample for each chain and each kind of rules. */
static void put_tallies(struct exposition *e, struct sample *sample) {
    for (size_t i = 0; i < sample->config->nchains; i++) {
        sample->chain = i;
        for (enum tally_kind kind = 0; kind < TALLY_KINDS; kind++) {
            sample->kind = kind;
            put_sample(e, sample);
        }
    }
}

/* The metric's samples of one family. */
static void put_family(struct exposition *e, const struct family *family) {
    struct sample sample = {.config = e->report->config, .family = family};
    if (e->metric->kind == OF_FAMILY)
        put_sample(e, &sample);
    if (!family->success)
        return;
    switch (e->metric->kind) {
    case OF_LABELS:
        put_facts(e, &sample, PAIR_LABELS, false);
        break;
    case OF_LABELS_COMMENT:
        put_facts(e, &sample, PAIR_LABELS, true);
        break;
    case OF_VERBATIM:
        put_facts(e, &sample, PAIR_VERBATIM, false);
        break;
    case OF_POLICY:
        put_facts(e, &sample, PAIR_POLICY, false);
        break;
    case OF_TALLY:
        put_tallies(e, &sample);
        break;
    case OF_CHAIN:
        put_chains(e, &sample);
        break;
    case OF_USER_CHAIN:
        put_user_chains(e, &sample);
        break;
    case OF_FAMILY:
    case OF_PROGRAM:
        break; /* written above, and by put_exposition() */
    }
}

static void put_exposition(struct sink *sink, const struct report *report,
                           enum format format) {
    struct exposition e = {.sink = sink, .report = report, .format = format};
    for (size_t i = 0; i < COUNT(metrics); i++) {
        begin_metric(&e, &metrics[i]);
        if (metrics[i].kind == OF_PROGRAM) {
            put_sample(&e, &(struct sample){.config = report->config});
            continue;
        }
        for (size_t f = 0; f < FAMILIES; f++) {
            if (report->families[f].enabled)
                put_family(&e, &report->families[f]);
        }
    }
    if (format == FORMAT_OPENMETRICS)
        put_string(sink, "# EOF\n");
}

/* ---- the page: the view of people -------------------------------------------------- */

/* clang-format off */
static const char page_style[] =
    ":root{color-scheme:light dark;--line:#8886;--bar:#2f6fd0}\n"
    "body{font:1rem/1.45 system-ui,sans-serif;max-width:80rem;margin:0 auto;padding:1rem;overflow-wrap:anywhere}\n"
    "h1{font-size:1.4rem;margin:0}\n"
    "table{border-collapse:collapse;width:100%;overflow-wrap:normal;font-variant-numeric:tabular-nums}\n"
    "caption{text-align:left;font-weight:bold;padding:1rem 0 .5rem}\n"
    "th,td{text-align:left;vertical-align:baseline;padding:.25rem .5rem;border-bottom:1px solid var(--line)}\n"
    "thead th{position:sticky;top:0;background:Canvas;box-shadow:0 1px var(--line)}\n"
    "th[scope=row]{font-weight:normal}\n"
    "tbody th{overflow-wrap:anywhere}\n"
    "code{display:block;font-size:.85em;opacity:.85}\n"
    "small{display:block}\n"
    "svg{display:block;width:100%;height:.5rem;fill:var(--bar)}\n";

/* On a narrow screen a row is a block of its own: each cell says in words what it is. */
static const char page_style_narrow[] =
    "thead{position:absolute;left:-9999px}\n"
    "tr{display:grid;grid-template-columns:1fr 1fr;padding:.4rem 0;border-bottom:1px solid var(--line)}\n"
    "th,td{border:0;padding:.1rem .25rem}tbody th,tfoot th,td.share{grid-column:1/-1}\n"
    "td[class]{text-align:left;white-space:normal;overflow-wrap:anywhere}\n"
    "td::before{opacity:.7}\n";

static const char total_units[] =
    "<p>What the rules have counted since they were made or set back. 1 KiB is 1,024 bytes, "
    "1 MiB 1,024 KiB and so on; a share is that of all bytes in the totals below it.\n";

static const char group_units[] =
    "<p>What the rules have counted since they were made or set back, added up by a label. 1 KiB is "
    "1,024 bytes, 1 MiB 1,024 KiB and so on; a share is that of all bytes in its table.\n";

static const char rate_units[] =
    "<p>What the rules have counted in each second between two reads. 1 kbit is 1,000 bits, 1 Mbit "
    "1,000 kbit and so on; a share is that of all bits in its table.\n";
/* clang-format on */

#define NONE_SIGN "\u2013" /* in a cell where a rule has nothing to say */

/* Whether the UTF-8 character at p of n bytes has no place in a page: HTML allows no C1
 * controls and no noncharacters, and the overrides and isolates of bidirectional text
 * would show a rule as another. */
static bool is_unfit(const char *at, size_t n) {
    const unsigned char *p = (const unsigned char *)at;
    if (n == 2)
        return p[0] == 0xc2 && p[1] < 0xa0; /* U+0080 to U+009F */
    if (n == 4)
        return (p[1] & 0xf) == 0xf && p[2] == 0xbf && p[3] >= 0xbe; /* U+xFFFE, U+xFFFF */
    if (n != 3)
        return false;
    unsigned c = (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    bool is_override = c >= 0x202a && c <= 0x202e;
    bool is_isolate = c >= 0x2066 && c <= 0x2069;
    bool is_noncharacter = (c >= 0xfdd0 && c <= 0xfdef) || c >= 0xfffe;
    return is_override || is_isolate || is_noncharacter;
}

/* What stands in HTML for a character that means something there, NULL for any other. */
static const char *html_escape(char c) {
    switch (c) {
    case '"':
        return "&quot;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '&':
        return "&amp;";
    default:
        return NULL;
    }
}

/* Length of the character at p if it may stand in a page, 0 if it is shown as \xHH. */
static size_t fit_length(const char *p, size_t left) {
    bool is_control = (unsigned char)*p < ' ' || *p == 0x7f;
    if (is_control)
        return 0;
    size_t n = utf8_length(p, left);
    return is_unfit(p, n) ? 0 : n;
}

/* Any bytes, as text. */
static void put_html(struct sink *sink, struct text t) {
    const char *end = t.at + t.len;
    for (const char *p = t.at; p < end;) {
        const char *escape = html_escape(*p);
        size_t n = fit_length(p, (size_t)(end - p));
        char hex[VISIBLE_MAX];
        if (escape) {
            put_string(sink, escape);
        } else if (n > 0) {
            put(sink, p, n);
        } else {
            write_hex(hex, *p);
            put(sink, hex, sizeof hex);
        }
        p += n > 0 ? n : 1;
    }
}

/* A sum of counters of 64 bits, which may be larger than any of them: high * 2^64 + low. */
struct sum {
    uint64_t high, low;
};

static void add_up(struct sum *sum, uint64_t n) {
    sum->low += n;
    if (sum->low < n)
        sum->high++;
}

static double size_of(const struct sum *sum) {
    return (double)sum->high * 0x1p64 + (double)sum->low;
}

/* Divides by ten, and returns the rest: the last digit. As by hand, in digits of 32 bits. */
static unsigned cut_last_digit(struct sum *n) {
    uint64_t parts[] = {n->high >> 32, (uint32_t)n->high, n->low >> 32, (uint32_t)n->low};
    uint64_t rest = 0;
    for (size_t i = 0; i < COUNT(parts); i++) {
        uint64_t part = rest << 32 | parts[i];
        parts[i] = part / 10;
        rest = part % 10;
    }
    n->high = parts[0] << 32 | parts[1];
    n->low = parts[2] << 32 | parts[3];
    return (unsigned)rest;
}

/* A row of the table: a rule, a policy or a total. */
struct row {
    const struct fact *fact; /* not of a total */
    bool goes_on; /* what it has counted may be counted again, and has no share */
    struct sum packets, bytes;
    double all; /* bytes of all rows that have a share */
    usec over;  /* in how much time it was counted; 0: since the rules were made */
};

/* The comments, and what others of them give as labels. */
static void put_comments(struct sink *sink, const struct rule *rule) {
    struct text rest = rule->tags;
    struct tag tag;
    bool is_first = rule->comment.len == 0;
    put_html(sink, rule->comment);
    while (next_tag(&rest, &tag)) {
        if (!is_first)
            put_string(sink, "; ");
        put_html(sink, tag.name);
        put_string(sink, "=");
        put_html(sink, tag.value);
        is_first = false;
    }
    if (!is_first)
        put_string(sink, " "); /* what follows is apart also where no style is */
}

/* Why a comment gives no labels. */
static const char *const tag_errors[] = {
    [TAGS_NO_END] = "the comment does not end with ) (255 bytes of it are kept)",
    [TAG_NO_EQUALS] = "NAME=VALUE is missing",
    [TAG_BAD_NAME] =
        "a name is not made of a-z, A-Z, 0-9 and _, or begins with a digit or __",
    [TAG_RESERVED] = "a name has another meaning here or in Prometheus",
    [TAG_TWICE] = "the rule has a name twice",
    [TAG_NO_VALUE] = "a value is empty",
    [TAGS_TOO_MANY] = "the rule has more than 16 names",
};
_Static_assert(TAGS_MAX == 16, "a text says so");

/* The same text as put_rule() writes, or a policy. */
static void put_rule_cell(struct sink *sink, const struct row *row) {
    const struct rule *rule = &row->fact->rule;
    put_comments(sink, rule);
    if (row->fact->pair == PAIR_POLICY)
        put_string(sink, "policy ");
    put_string(sink, "<code>");
    put_html(sink, rule->policy);
    put_html(sink, rule->match);
    if (rule->match.len > 0 && rule->target.len > 0)
        put_string(sink, " ");
    put_html(sink, rule->target);
    if (rule->policy.len + rule->match.len + rule->target.len == 0)
        put_string(sink, "*");
    put_string(sink, "</code>");
    if (rule->tag_error != TAGS_GOOD)
        put_format(sink, " <small>no labels: %s</small>", tag_errors[rule->tag_error]);
    if (row->fact->unreachable)
        put_string(sink, " <small>unreachable</small>");
    if (row->goes_on)
        put_string(sink, " <small>goes on</small>");
}

static void put_value_cell(struct sink *sink, struct value value) {
    if (value.text.len == 0) {
        put_string(sink, NONE_SIGN);
        return;
    }
    if (value.negated)
        put_string(sink, "!");
    put_html(sink, value.text);
}

static void put_address_cell(struct sink *sink, const struct row *row) {
    put_value_cell(sink, row->fact->rule.address);
}

static void put_protocol_cell(struct sink *sink, const struct row *row) {
    put_value_cell(sink, row->fact->rule.protocol);
}

static void put_port_cell(struct sink *sink, const struct row *row) {
    put_value_cell(sink, row->fact->rule.port);
}

static void put_direction_cell(struct sink *sink, const struct row *row) {
    static const char *const directions[] = {
        [DIRECTION_NONE] = NONE_SIGN,
        [DIRECTION_IN] = "in",
        [DIRECTION_OUT] = "out",
    };
    put_string(sink, directions[row->fact->rule.direction]);
}

/* With a comma before each three digits. */
static void put_packets_cell(struct sink *sink, const struct row *row) {
    char digits[2 * DIGITS_MAX + 2 * DIGITS_MAX / 3];
    char *end = digits + sizeof digits;
    char *start = end;
    struct sum left = row->packets;
    for (int n = 0; n == 0 || left.high > 0 || left.low > 0; n++) {
        if (n > 0 && n % 3 == 0)
            *--start = ',';
        *--start = (char)('0' + cut_last_digit(&left));
    }
    put(sink, start, (size_t)(end - start));
}

static void put_bytes_cell(struct sink *sink, const struct row *row) {
    static const char *const units[] = {"B",   "KiB", "MiB", "GiB", "TiB",
                                        "PiB", "EiB", "ZiB", "YiB"};
    double size = size_of(&row->bytes);
    size_t unit = 0;
    while (size >= 1023.95 && unit + 1 < COUNT(units)) { /* it would be shown as 1024.0 */
        size /= 1024;
        unit++;
    }
    int decimals = unit > 0 ? 1 : 0;
    put_format(sink, "%.*f %s", decimals, size, units[unit]);
}

/* What is counted in a second, by the measured time. */
static double rate_of(const struct sum *sum, usec over) {
    return size_of(sum) * SECOND / (double)over;
}

static void put_count_cell(struct sink *sink, const struct row *row) {
    if (row->over == 0) {
        put_packets_cell(sink, row);
    } else {
        put_format(sink, "%.1f/s", rate_of(&row->packets, row->over));
    }
}

static void put_size_cell(struct sink *sink, const struct row *row) {
    static const char *const units[] = {"bit/s",  "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s",
                                        "Pbit/s", "Ebit/s", "Zbit/s", "Ybit/s"};
    if (row->over == 0) {
        put_bytes_cell(sink, row);
        return;
    }
    double rate = 8 * rate_of(&row->bytes, row->over);
    size_t unit = 0;
    while (rate >= 999.95 && unit + 1 < COUNT(units)) {
        rate /= 1000;
        unit++;
    }
    put_format(sink, "%.1f %s", rate, units[unit]);
}

static void put_share_cell(struct sink *sink, const struct row *row) {
    if (row->goes_on) {
        put_string(sink, NONE_SIGN);
        return;
    }
    double share = row->all > 0 ? 100 * size_of(&row->bytes) / row->all : 0;
    put_format(sink, "%.1f %%<svg><rect width=\"%.1f%%\" height=\"100%%\"></rect></svg>",
               share, share);
}

#define ALIGN_NUMBER "text-align:right;white-space:nowrap"
#define BREAK_ANYWHERE "overflow-wrap:anywhere"

/* The columns of the table, from the left. The first is the head of its row. The totals have
 * those of numbers, and a head over the others. A name is a class of the page, too. A new one comes
 * in front of the share, and changes the style, whose hash is in page_policy. With has_total
 * it is written for a total, too, which has no fact. */
static const struct column {
    const char *name, *heading;
    const char *head_style, *cell_style;
    bool has_total;
    void (*put)(struct sink *sink, const struct row *row);
} columns[] = {
    {"rule", "Comment or rule", "min-width:8rem", "", false, put_rule_cell},
    {"address", "Address", "min-width:9.5rem", BREAK_ANYWHERE, false, put_address_cell},
    {"protocol", "Protocol", "", "", false, put_protocol_cell},
    {"port", "Port", "min-width:3.5rem", BREAK_ANYWHERE, false, put_port_cell},
    {"direction", "Direction", "", "", false, put_direction_cell},
    {"packets", "Packets", ALIGN_NUMBER, ALIGN_NUMBER, true, put_packets_cell},
    {"bytes", "Bytes", ALIGN_NUMBER, ALIGN_NUMBER, true, put_bytes_cell},
    {"share", "Share", "min-width:6rem", "", true, put_share_cell},
};

static const struct column *const share_column = &columns[COUNT(columns) - 1];

/* What stands side by side where rules are added up: the same numbers of each direction. */
static const struct side {
    const char *name, *heading;
    enum direction direction;
    void (*put)(struct sink *sink, const struct row *row);
} sides[] = {
    {"in-bytes", "In", DIRECTION_IN, put_size_cell},
    {"in-packets", "Packets in", DIRECTION_IN, put_count_cell},
    {"out-bytes", "Out", DIRECTION_OUT, put_size_cell},
    {"out-packets", "Packets out", DIRECTION_OUT, put_count_cell},
    {"neither-bytes", "Neither", DIRECTION_NONE, put_size_cell},
    {"neither-packets", "Packets of neither", DIRECTION_NONE, put_count_cell},
};

static void put_cell(struct sink *sink, const struct column *column,
                     const struct row *row) {
    put_string(sink, "<td class=");
    put_string(sink, column->name);
    put_string(sink, ">");
    column->put(sink, row);
}

/* The text of the style element. */
static void put_style(struct sink *sink) {
    put_string(sink, "\n");
    put_string(sink, page_style);
    for (size_t i = 0; i < COUNT(columns); i++) {
        put_format(sink, "th.%s{%s}td.%s{%s}\n", columns[i].name, columns[i].head_style,
                   columns[i].name, columns[i].cell_style);
    }
    for (size_t i = 0; i < COUNT(sides); i++)
        put_format(sink, "th.%s,td.%s{" ALIGN_NUMBER "}\n", sides[i].name, sides[i].name);
    put_string(sink, "@media(max-width:67rem){\n");
    put_string(sink, page_style_narrow);
    for (size_t i = 0; i < COUNT(columns); i++) {
        put_format(sink, "td.%s::before{content:'%s '}\n", columns[i].name,
                   columns[i].heading);
    }
    for (size_t i = 0; i < COUNT(sides); i++) {
        put_format(sink, "td.%s::before{content:'%s '}\n", sides[i].name,
                   sides[i].heading);
    }
    put_string(sink, "}\n");
}

/* What put_style() writes, to a browser, which takes no other style, and nothing else that is not
 * text. When the style changes, t/37 says what its hash is. */
static const char page_policy[] =
    "default-src 'none'; "
    "style-src 'sha256-kgwN7DTUpjIWKFGt/CQ6BNNb1AK/ksBNV4ICG6OFkmo='; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static void put_page_head(struct sink *sink, const char *units) {
    put_string(sink, "<!DOCTYPE html>\n<html lang=en><meta charset=utf-8>"
                     "<meta name=viewport content=\"width=device-width\">\n"
                     "<title>nfprom</title>\n<style>");
    put_style(sink);
    put_string(sink, "</style>\n<h1>nfprom</h1>\n");
    put_string(sink, units);
}

static void put_caption(struct sink *sink, const struct report *report,
                        const struct family *family, size_t chain) {
    put_format(sink, "<table><caption>%s, chain ", family->kind->name);
    put_html(sink, report->config->shown_chains[chain]);
    put_string(sink, "</caption>\n<thead><tr>");
}

static void put_table_head(struct sink *sink, const struct report *report,
                           const struct family *family, size_t chain) {
    put_caption(sink, report, family, chain);
    for (size_t i = 0; i < COUNT(columns); i++) {
        put_format(sink, "<th scope=col class=%s>%s", columns[i].name,
                   columns[i].heading);
    }
    put_string(sink, "</thead>\n<tbody>");
}

static bool has_rows(const struct family *family, size_t chain) {
    const struct tally *tally = &family->facts.tallies[chain];
    return count_rules(tally) + tally->policies > 0;
}

/* What the rows of a chain come to. */
struct totals {
    struct total {
        struct sum packets, bytes;
    } directions[DIRECTION_OUT + 1]; /* of rules with a direction, and of all others */
    struct sum bytes;
    unsigned long added, without_share; /* rows */
};

/* Whether what a rule has counted may be counted again in the same chain: by the next rule, or
 * by the policy, to which a packet comes that leaves a built-in chain without a verdict. */
static bool goes_on(const struct fact *fact, const struct tally *tally) {
    static const struct text to_policy[] = {TEXT("-j RETURN"), TEXT("-g ")};
    struct text target = fact->rule.target;
    if (fact->pair == PAIR_POLICY)
        return false;
    if (!fact->rule.terminal)
        return true;
    for (size_t i = 0; i < COUNT(to_policy) && tally->policies > 0; i++) {
        if (begins_with_text(target, to_policy[i]))
            return true;
    }
    return false;
}

/* The facts of a chain. All are walked: those of one chain need not stand together, since
 * iptables-save prints the policies of all chains first. */
static bool next_of_chain(struct walk *walk, size_t chain, struct fact *fact) {
    while (next_fact(walk, fact)) {
        if (fact->rule.chain == chain)
            return true;
    }
    return false;
}

static struct totals total_of(const struct facts *facts, size_t chain) {
    struct totals totals = {.added = 0};
    struct fact fact;
    struct walk walk = begin_walk(facts);
    while (next_of_chain(&walk, chain, &fact)) {
        if (goes_on(&fact, &facts->tallies[chain])) {
            totals.without_share++;
            continue;
        }
        struct total *total = &totals.directions[fact.rule.direction];
        add_up(&total->packets, fact.rule.packets);
        add_up(&total->bytes, fact.rule.bytes);
        add_up(&totals.bytes, fact.rule.bytes);
        totals.added++;
    }
    return totals;
}

static void put_row(struct sink *sink, const struct row *row) {
    put_string(sink, "\n<tr><th scope=row>");
    columns[0].put(sink, row);
    for (size_t i = 1; i < COUNT(columns); i++)
        put_cell(sink, &columns[i], row);
}

static void put_rows(struct sink *sink, const struct facts *facts, size_t chain,
                     double all) {
    struct fact fact;
    struct walk walk = begin_walk(facts);
    while (next_of_chain(&walk, chain, &fact)) {
        put_row(sink, &(struct row){.fact = &fact,
                                    .goes_on = goes_on(&fact, &facts->tallies[chain]),
                                    .packets = {0, fact.rule.packets},
                                    .bytes = {0, fact.rule.bytes},
                                    .all = all});
    }
}

static void put_totals(struct sink *sink, const struct totals *totals) {
    static const struct {
        enum direction direction;
        const char *name;
    } rows[] = {{DIRECTION_IN, "In"},
                {DIRECTION_OUT, "Out"},
                {DIRECTION_NONE, "Neither"}};
    size_t without_total = 0;
    for (size_t i = 0; i < COUNT(columns); i++) {
        if (!columns[i].has_total)
            without_total++;
    }
    put_format(sink, "\n<tfoot><tr><th colspan=%zu scope=rowgroup>Totals",
               COUNT(columns));
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct total *total = &totals->directions[rows[i].direction];
        struct row row = {.packets = total->packets,
                          .bytes = total->bytes,
                          .all = size_of(&totals->bytes)};
        put_format(sink, "\n<tr><th scope=row colspan=%zu>%s", without_total,
                   rows[i].name);
        for (size_t c = 0; c < COUNT(columns); c++) {
            if (columns[c].has_total)
                put_cell(sink, &columns[c], &row);
        }
    }
}

/* A table for each chain: what one has counted, another may have counted before, so nothing is
 * added up over several. */
static void put_table(struct sink *sink, const struct report *report,
                      const struct family *family, size_t chain) {
    struct totals totals = total_of(&family->facts, chain);
    put_table_head(sink, report, family, chain);
    put_rows(sink, &family->facts, chain, size_of(&totals.bytes));
    if (totals.added > 0)
        put_totals(sink, &totals);
    put_string(sink, "\n</table>\n");
    if (totals.without_share == 0)
        return;
    put_format(
        sink,
        "<p>After %lu of these rules a packet goes on, and may be counted again: "
        "they have no share and are in no total. %s_nonterminal_rules counts the %lu "
        "of them that are in %s_packets_total.\n",
        totals.without_share, report->config->namespace,
        family->facts.tallies[chain].nonterminal, report->config->namespace);
}

static void put_chain_tables(struct sink *sink, const struct report *report,
                             const struct family *family) {
    for (size_t chain = 0; chain < report->config->nchains; chain++) {
        if (has_rows(family, chain))
            put_table(sink, report, family, chain);
    }
}

/* How a packet comes to the chain, if it does not, or perhaps more than once. */
static void put_reference_words(struct sink *sink, const struct report *report,
                                const struct family *family, size_t chain) {
    const struct facts *facts = &family->facts;
    struct text name = report->config->shown_chains[chain];
    if (knows_references(family, chain) && facts->references.counts[chain] == 0) {
        put_format(sink, "<p>No rule of %s jumps to the chain ", family->kind->name);
        put_html(sink, name);
        put_string(sink,
                   ", so it counts nothing: unless a native base chain of nft jumps "
                   "there, which iptables does not list.\n");
    }
    for (size_t i = 0; i < facts->references.njumps; i++) {
        const struct jump *jump = &facts->references.jumps[i];
        if (jump->to != chain || jump->count == 1)
            continue;
        put_string(sink, "<p>The chain ");
        put_html(sink, (struct text){jump->from, jump->from_len});
        put_format(sink, " of %s jumps %lu times to the chain ", family->kind->name,
                   jump->count);
        put_html(sink, name);
        put_string(sink, ", which may count a packet as often.\n");
    }
    if (facts->tallies[chain].unreachable > 0) {
        put_format(sink, "<p>Rules that no packet reaches, in the chain ");
        put_html(sink, name);
        put_format(sink, " of %s: %lu. They are marked.\n", family->kind->name,
                   facts->tallies[chain].unreachable);
    }
}

/* The sentences over the table about a family that was read. */
static void put_success_words(struct sink *sink, const struct report *report,
                              const struct family *family) {
    char at[sizeof "2026-11-27 12:34:56" + 20];
    struct tm tm;
    usec duration = family->duration;
    strftime(at, sizeof at, "%Y-%m-%d %H:%M:%S", gmtime_r(&report->read_at, &tm));
    put_format(sink, "<p>%s read at <time>%s</time> UTC in %lld.%lld ms.\n",
               family->kind->name, at, duration / MS, duration / 100 % 10);
    for (size_t chain = 0; chain < report->config->nchains; chain++) {
        if (has_rows(family, chain))
            continue;
        put_string(sink, "<p>There is no rule in the chain ");
        put_html(sink, report->config->shown_chains[chain]);
        put_format(sink, " of %s.\n", family->kind->name);
    }
    for (size_t chain = 0; chain < report->config->nchains; chain++)
        put_reference_words(sink, report, family, chain);
}

/* The sentence about one that was not. Its reason may have come in several lines. */
static void put_failure_words(struct sink *sink, const struct family *family) {
    put_format(sink, "<p role=alert><strong>%s could not be read:</strong>",
               family->kind->name);
    const char *p = family->reason;
    while (*p) {
        size_t len = strcspn(p, "\n");
        put_string(sink, " ");
        put_html(sink, (struct text){p, len});
        p += len;
        if (*p == '\n')
            p++;
    }
    put_string(sink, "\n");
}

/* ---- the page, added up by a label, and over some seconds */

/* What a query asks for, as the client wrote it. */
struct wish {
    bool has_label, has_seconds;
    struct text label, seconds;
};

/* By what the rules of a chain are added up. */
struct grouping {
    const struct label *label; /* NULL: by nothing, each rule is a row */
    struct text name;          /* of the label */
};

/* A row: rules of a chain with the same value of the label, or one rule, or a policy. What rules
 * have counted after which a packet goes on is a row of its own, since it may be there twice. */
struct rule_group {
    enum group_kind {
        GROUP_VALUE,
        GROUP_WITHOUT, /* rules that have no such label */
        GROUP_ALONE
    } kind;
    bool goes_on;
    bool has_no_rate;
    struct text value;
    size_t record; /* of the first of its rules */
    unsigned long rules, unreachable;
    unsigned long rules_of[DIRECTION_OUT + 1]; /* each direction */
    struct total directions[DIRECTION_OUT + 1];
    struct sum bytes; /* of all of them */
};

/* Why a rule has no rate. */
enum change_kind {
    CHANGE_CAME,
    CHANGE_WENT,
    CHANGE_SET_BACK,
    CHANGE_UNCLEAR
};

static const char *const change_words[] = {
    [CHANGE_CAME] = "was not there in the first read:",
    [CHANGE_WENT] = "was not there in the second read:",
    [CHANGE_SET_BACK] = "was set back between the two reads:",
    [CHANGE_UNCLEAR] =
        "is one of several alike, of which some came, went or were set back:",
};

struct change {
    enum change_kind kind;
    const struct facts *facts;
    size_t record;
};

/* The rows of a chain. */
struct group_table {
    const struct family *family;
    size_t chain;
    struct rule_group *groups;
    size_t count;
    struct change *changes;
    size_t nchanges;
    struct sum bytes;            /* of the rows that have a share */
    unsigned long without_share; /* rules in rows that have none */
    usec over;
};

/* A rule in one of two reads. */
struct sighting {
    uint64_t hash;
    const struct facts *facts;
    size_t record;
    struct rule_group *group; /* where it is counted; NULL: it is of the first read */
};

/* What the page shows, and the memory for it. */
struct page {
    struct wish wish;
    const struct report *report;
    const struct report *before; /* the first of two reads; NULL: there was one */
    bool unknown_label, bad_seconds, no_time, no_memory;
    struct grouping grouping;
    struct text names[LINKS_MAX]; /* from comments */
    size_t nnames;
    struct rule_group *groups; /* of all tables, one behind the other */
    struct change *changes;
    struct sighting *sightings; /* of one chain at a time */
    struct group_table tables[FAMILIES * CHAINS_MAX];
    size_t ntables;
};

/* Whether each rule of a table has the same value of the label. */
static bool is_of_chain(const struct label *label) {
    return label->samples & OF_CHAIN;
}

/* Whether rules can be added up by a label of the table of labels. */
static bool can_group(const struct report *report, const struct label *label) {
    return (label->samples & (OF_LABELS | OF_LABELS_COMMENT)) && label->is_shown(report);
}

static bool is_known(const struct page *page, struct text name) {
    for (size_t i = 0; i < page->nnames; i++) {
        if (same_text(page->names[i], name))
            return true;
    }
    return false;
}

/* Notes the names that the comments of a family give, the first LINKS_MAX. True: `wanted` is one
 * of all. */
static bool find_names(struct page *page, const struct facts *facts, struct text wanted) {
    struct fact fact;
    struct tag tag;
    bool found = false;
    struct walk walk = begin_walk(facts);
    while (facts->has_tags && next_fact(&walk, &fact)) {
        struct text rest = fact.rule.tags;
        while (next_tag(&rest, &tag)) {
            found = found || same_text(tag.name, wanted);
            if (page->nnames < LINKS_MAX && !is_known(page, tag.name))
                page->names[page->nnames++] = tag.name;
        }
    }
    return found;
}

/* Finds the label that the query names. */
static void choose_label(struct page *page) {
    struct text name = page->wish.label;
    bool is_from_comments = false;
    for (size_t f = 0; f < FAMILIES; f++) {
        if (find_names(page, &page->report->families[f].facts, name))
            is_from_comments = true;
    }
    if (!page->wish.has_label)
        return;
    for (size_t i = 0; i < COUNT(labels); i++) {
        const struct label *label = &labels[i];
        bool is_it = puts_names(label) ? is_from_comments : text_is(name, label->name);
        if (is_it && can_group(page->report, label))
            page->grouping = (struct grouping){label, name};
    }
    page->unknown_label = !page->grouping.label;
}

/* The kinds of samples that could show a rule: all that its match says, for a duplicate too. */
static unsigned kinds_of(const struct fact *fact) {
    unsigned kinds = fact->pair == PAIR_VERBATIM ? OF_VERBATIM : 0;
    return fact->rule.expressible ? kinds | OF_LABELS | OF_LABELS_COMMENT : kinds;
}

/* The value of the label, nothing if the rule has none. */
static void put_group_value(struct sink *sink, const struct grouping *grouping,
                            const struct sample *sample) {
    const struct label *label = grouping->label;
    struct text rest = sample->fact->rule.tags;
    struct tag tag;
    if (!puts_names(label)) {
        if (label->samples & kinds_of(sample->fact))
            label->put(sink, sample);
        return;
    }
    while (next_tag(&rest, &tag)) {
        if (same_text(tag.name, grouping->name))
            put_text(sink, tag.value);
    }
}

/* A row of one rule. Its value is appended to `values`. */
static struct rule_group group_of(struct sink *values, const struct page *page,
                                  const struct family *family, const struct fact *fact) {
    const struct rule *rule = &fact->rule;
    struct rule_group group = {.kind = GROUP_ALONE, .rules = 1};
    struct total total = {{0, rule->packets}, {0, rule->bytes}};
    group.goes_on = goes_on(fact, &family->facts.tallies[rule->chain]);
    group.unreachable = fact->unreachable ? 1 : 0;
    group.rules_of[rule->direction] = 1;
    group.directions[rule->direction] = total;
    if (!page->grouping.label || fact->pair == PAIR_POLICY)
        return group;
    struct fact plain = *fact;
    plain.harmless = true; /* nothing is escaped */
    struct sample sample = {.config = page->report->config,
                            .family = family,
                            .chain = rule->chain,
                            .fact = &plain,
                            .is_plain = true};
    size_t start = values->used;
    put_group_value(values, &page->grouping, &sample);
    group.value = (struct text){values->window + start, values->used - start};
    group.kind = group.value.len > 0 ? GROUP_VALUE : GROUP_WITHOUT;
    return group;
}

/* Appends a row for each rule of the chain to the table. */
static void add_groups(struct sink *values, const struct page *page,
                       struct group_table *table) {
    const struct facts *facts = &table->family->facts;
    struct walk walk = begin_walk(facts);
    struct fact fact;
    for (; !at_end(&walk); pass_record(&walk)) {
        read_record(facts, walk.offset, &fact);
        if (fact.rule.chain != table->chain)
            continue;
        struct rule_group group = group_of(values, page, table->family, &fact);
        group.record = walk.offset;
        table->groups[table->count++] = group;
    }
}

/* ---- in an order: with qsort(3), in n log n steps */

static int compare_numbers(uint64_t a, uint64_t b) {
    if (a == b)
        return 0;
    return a < b ? -1 : 1;
}

static int compare_texts(struct text a, struct text b) {
    int order = memcmp(a.at, b.at, a.len < b.len ? a.len : b.len);
    return order != 0 ? order : compare_numbers(a.len, b.len);
}

static int compare_sums(const struct sum *a, const struct sum *b) {
    int order = compare_numbers(a->high, b->high);
    return order != 0 ? order : compare_numbers(a->low, b->low);
}

/* Rows that belong together stand together, in the chain's order. */
static int compare_values(const void *one, const void *other) {
    const struct rule_group *a = one;
    const struct rule_group *b = other;
    int order = compare_numbers(a->kind, b->kind);
    if (order == 0)
        order = compare_numbers(a->goes_on, b->goes_on);
    if (order == 0 && a->kind == GROUP_VALUE)
        order = compare_texts(a->value, b->value);
    return order != 0 ? order : compare_numbers(a->record, b->record);
}

/* The largest is the first. */
static int compare_sizes(const void *one, const void *other) {
    const struct rule_group *a = one;
    const struct rule_group *b = other;
    int order = compare_sums(&b->bytes, &a->bytes);
    return order != 0 ? order : compare_numbers(a->record, b->record);
}

static bool belong_together(const struct rule_group *a, const struct rule_group *b) {
    if (a->kind == GROUP_ALONE || a->kind != b->kind || a->goes_on != b->goes_on)
        return false;
    return a->kind == GROUP_WITHOUT || same_text(a->value, b->value);
}

static void add_sum(struct sum *sum, const struct sum *more) {
    add_up(sum, more->low);
    sum->high += more->high;
}

static void add_group(struct rule_group *group, const struct rule_group *more) {
    group->rules += more->rules;
    group->unreachable += more->unreachable;
    for (enum direction d = DIRECTION_NONE; d <= DIRECTION_OUT; d++) {
        group->rules_of[d] += more->rules_of[d];
        add_sum(&group->directions[d].packets, &more->directions[d].packets);
        add_sum(&group->directions[d].bytes, &more->directions[d].bytes);
    }
}

/* Adds up the rows that belong together, and puts the largest first. */
static void merge_groups(struct group_table *table) {
    struct rule_group *groups = table->groups;
    size_t count = 0;
    qsort(groups, table->count, sizeof *groups, compare_values);
    for (size_t i = 0; i < table->count; i++) {
        if (groups[i].has_no_rate)
            continue;
        if (count > 0 && belong_together(&groups[count - 1], &groups[i])) {
            add_group(&groups[count - 1], &groups[i]);
        } else {
            groups[count++] = groups[i];
        }
    }
    table->count = count;
    for (size_t i = 0; i < count; i++) {
        for (enum direction d = DIRECTION_NONE; d <= DIRECTION_OUT; d++)
            add_sum(&groups[i].bytes, &groups[i].directions[d].bytes);
        if (groups[i].goes_on) {
            table->without_share += groups[i].rules;
        } else {
            add_sum(&table->bytes, &groups[i].bytes);
        }
    }
    qsort(groups, count, sizeof *groups, compare_sizes);
}

/* ---- what was counted between two reads: a rule is the same in both if it is printed the same */

static int compare_printed(const struct sighting *a, const struct sighting *b) {
    struct fact one, other;
    read_record(a->facts, a->record, &one);
    read_record(b->facts, b->record, &other);
    int order = compare_texts(one.rule.policy, other.rule.policy);
    if (order == 0)
        order = compare_texts(one.rule.match, other.rule.match);
    if (order == 0)
        order = compare_texts(one.rule.target, other.rule.target);
    if (order == 0)
        order = compare_texts(one.rule.comment, other.rule.comment);
    if (order == 0)
        order = compare_texts(one.rule.tags, other.rule.tags);
    return order != 0 ? order
                      : compare_numbers(one.rule.has_comment, other.rule.has_comment);
}

static int compare_rules(const struct sighting *a, const struct sighting *b) {
    int order = compare_numbers(a->hash, b->hash);
    return order != 0 ? order : compare_printed(a, b);
}

/* Those of a rule stand together: of the first read, then of the second. */
static int compare_sightings(const void *one, const void *other) {
    const struct sighting *a = one;
    const struct sighting *b = other;
    int order = compare_rules(a, b);
    if (order == 0)
        order = compare_numbers(a->group != NULL, b->group != NULL);
    return order != 0 ? order : compare_numbers(a->record, b->record);
}

static int compare_changes(const void *one, const void *other) {
    const struct change *a = one;
    const struct change *b = other;
    int order = compare_numbers(a->kind, b->kind);
    return order != 0 ? order : compare_numbers(a->record, b->record);
}

/* Appends the rules of a chain in one read. Their rows are in the same order, if there are any.
 * Returns how many there are then. */
static size_t add_sightings(struct sighting *sightings, size_t count,
                            const struct facts *facts, size_t chain,
                            struct rule_group *groups) {
    struct walk walk = begin_walk(facts);
    struct fact fact;
    for (; !at_end(&walk); pass_record(&walk)) {
        read_record(facts, walk.offset, &fact);
        if (fact.rule.chain != chain)
            continue;
        sightings[count++] = (struct sighting){hash_printed(&fact.rule), facts,
                                               walk.offset, groups ? groups++ : NULL};
    }
    return count;
}

static void note_change(struct group_table *table, const struct sighting *sighting,
                        enum change_kind kind) {
    table->changes[table->nchanges++] =
        (struct change){kind, sighting->facts, sighting->record};
    if (sighting->group)
        sighting->group->has_no_rate = true;
}

/* Whether a rule has less in the second read than in the first. */
static bool fell(const struct sighting *first, const struct sighting *second) {
    struct fact before, after;
    read_record(first->facts, first->record, &before);
    read_record(second->facts, second->record, &after);
    return after.rule.packets < before.rule.packets ||
           after.rule.bytes < before.rule.bytes;
}

/* Takes what a rule had counted at the first read from its row, which has what it had at the
 * second. */
static void subtract(const struct sighting *first, const struct sighting *second) {
    struct fact before, after;
    read_record(first->facts, first->record, &before);
    read_record(second->facts, second->record, &after);
    struct total *total = &second->group->directions[after.rule.direction];
    total->packets.low -= before.rule.packets;
    total->bytes.low -= before.rule.bytes;
}

/* Whether one rule can be told from the other: there are as many as before, and none has less,
 * which might be another one. */
static bool can_be_told(const struct sighting *sightings, size_t nfirst, size_t nsecond) {
    if (nfirst != nsecond)
        return false;
    for (size_t i = 0; i < nfirst; i++) {
        if (fell(&sightings[i], &sightings[nfirst + i]))
            return false;
    }
    return true;
}

/* Rules that are printed the same: `nfirst` of them in the first read, and in the second read
 * those behind them. */
static void compare_reads(struct group_table *table, const struct sighting *sightings,
                          size_t nfirst, size_t count) {
    size_t nsecond = count - nfirst;
    if (can_be_told(sightings, nfirst, nsecond)) {
        for (size_t i = 0; i < nfirst; i++)
            subtract(&sightings[i], &sightings[nfirst + i]);
        return;
    }
    enum change_kind kind = CHANGE_UNCLEAR;
    if (nfirst == 0)
        kind = CHANGE_CAME;
    else if (nsecond == 0)
        kind = CHANGE_WENT;
    else if (count == 2)
        kind = CHANGE_SET_BACK;
    for (size_t i = nsecond == 0 ? 0 : nfirst; i < count; i++)
        note_change(table, &sightings[i], kind);
}

static void find_rates(const struct page *page, struct group_table *table,
                       const struct family *before) {
    struct sighting *sightings = page->sightings;
    size_t count = add_sightings(sightings, 0, &before->facts, table->chain, NULL);
    count = add_sightings(sightings, count, &table->family->facts, table->chain,
                          table->groups);
    qsort(sightings, count, sizeof *sightings, compare_sightings);
    for (size_t start = 0; start < count;) {
        size_t end = start;
        size_t first = 0;
        while (end < count && compare_rules(&sightings[start], &sightings[end]) == 0) {
            if (!sightings[end].group)
                first++;
            end++;
        }
        compare_reads(table, &sightings[start], first, end - start);
        start = end;
    }
    qsort(table->changes, table->nchanges, sizeof *table->changes, compare_changes);
    table->over = table->family->read_until - before->read_until;
}

/* ---- all tables */

static size_t count_facts(const struct report *report) {
    size_t count = 0;
    for (size_t f = 0; report && f < FAMILIES; f++) {
        for (enum pair pair = 0; pair < PAIRS; pair++)
            count += report->families[f].facts.counts[pair];
    }
    return count;
}

/* How many bytes the values of all rules have. */
static uint64_t measure_values(const struct page *page) {
    struct sink sink = counting_sink();
    for (size_t f = 0; f < FAMILIES; f++) {
        const struct family *family = &page->report->families[f];
        struct walk walk = begin_walk(&family->facts);
        struct fact fact;
        while (family->success && next_fact(&walk, &fact))
            group_of(&sink, page, family, &fact);
    }
    return written_to(&sink);
}

/* NULL: there is no memory, or no room for so much. */
static void *map_array(uint64_t count, size_t size) {
    if (count > FACTS_MAX / size)
        return NULL;
    return map_pages(NULL, 0, (count + 1) * size);
}

static void fill_table(struct page *page, struct sink *values, size_t f, size_t chain) {
    const struct family *family = &page->report->families[f];
    struct group_table *table = &page->tables[page->ntables++];
    *table = (struct group_table){
        .family = family,
        .chain = chain,
        .groups = page->groups,
        .changes = page->changes,
    };
    add_groups(values, page, table);
    page->groups += table->count;
    if (page->before) {
        find_rates(page, table, &page->before->families[f]);
        page->changes += table->nchanges;
    }
    merge_groups(table);
}

/* Adds up what the page is to show, if it is to show that. False: there is no memory. */
static bool fill_page(struct page *page) {
    if (!page->grouping.label && !page->before)
        return true;
    size_t count = count_facts(page->report);
    size_t both = count + count_facts(page->before);
    uint64_t size = measure_values(page) + 1;
    char *memory = map_array(size, 1);
    page->groups = map_array(count, sizeof *page->groups);
    page->changes = map_array(both, sizeof *page->changes);
    page->sightings = map_array(both, sizeof *page->sightings);
    page->no_memory = !memory || !page->groups || !page->changes || !page->sightings;
    if (page->no_memory)
        return false;
    struct sink values = begin_string(memory, size);
    for (size_t f = 0; f < FAMILIES; f++) {
        for (size_t chain = 0; chain < page->report->config->nchains; chain++) {
            if (page->report->families[f].success)
                fill_table(page, &values, f, chain);
        }
    }
    return true;
}

/* ---- writing it */

static void put_group_cell(struct sink *sink, const struct page *page,
                           const struct rule_group *group, const struct row *row) {
    if (group->kind == GROUP_ALONE) {
        put_rule_cell(sink, row);
        return;
    }
    if (group->kind == GROUP_WITHOUT) {
        put_string(sink, "<em>no ");
        put_html(sink, page->grouping.name);
        put_string(sink, "</em>");
    }
    put_html(sink, group->value);
    if (group->unreachable > 0)
        put_format(sink, " <small>unreachable: %lu of %lu rules</small>",
                   group->unreachable, group->rules);
    if (group->goes_on)
        put_string(sink, " <small>goes on</small>");
}

static void put_side(struct sink *sink, const struct side *side,
                     const struct rule_group *group, usec over) {
    const struct total *total = &group->directions[side->direction];
    struct row row = {.packets = total->packets, .bytes = total->bytes, .over = over};
    put_format(sink, "<td class=%s>", side->name);
    if (group->rules_of[side->direction] > 0) {
        side->put(sink, &row);
    } else {
        put_string(sink, NONE_SIGN);
    }
}

static void put_group(struct sink *sink, const struct page *page,
                      const struct group_table *table, const struct rule_group *group) {
    struct fact fact;
    struct row row = {.fact = &fact,
                      .goes_on = group->goes_on,
                      .bytes = group->bytes,
                      .all = size_of(&table->bytes)};
    read_record(&table->family->facts, group->record, &fact);
    put_string(sink, "\n<tr><th scope=row>");
    put_group_cell(sink, page, group, &row);
    for (size_t i = 0; i < COUNT(sides); i++)
        put_side(sink, &sides[i], group, table->over);
    put_cell(sink, share_column, &row);
}

static void put_group_head(struct sink *sink, const struct page *page,
                           const struct group_table *table) {
    put_caption(sink, page->report, table->family, table->chain);
    put_format(sink, "<th scope=col class=%s>", columns[0].name);
    if (page->grouping.label) {
        put_html(sink, page->grouping.name);
    } else {
        put_string(sink, columns[0].heading);
    }
    for (size_t i = 0; i < COUNT(sides); i++)
        put_format(sink, "<th scope=col class=%s>%s", sides[i].name, sides[i].heading);
    put_format(sink, "<th scope=col class=%s>%s</thead>\n<tbody>", share_column->name,
               share_column->heading);
}

static void put_change(struct sink *sink, const struct change *change) {
    struct fact fact;
    struct row row = {.fact = &fact};
    read_record(change->facts, change->record, &fact);
    put_format(sink, "\n<li>%s ", change_words[change->kind]);
    put_rule_cell(sink, &row);
}

static void put_group_table(struct sink *sink, const struct page *page,
                            const struct group_table *table) {
    if (table->count > 0) {
        put_group_head(sink, page, table);
        for (size_t i = 0; i < table->count; i++)
            put_group(sink, page, table, &table->groups[i]);
        put_string(sink, "\n</table>\n");
    }
    if (table->without_share > 0)
        put_format(sink,
                   "<p>After %lu of these rules a packet goes on, and may be counted "
                   "again: they are in rows of their own, which have no share.\n",
                   table->without_share);
    if (table->nchanges == 0)
        return;
    put_format(sink, "<p>%s, chain ", table->family->kind->name);
    put_html(sink, page->report->config->shown_chains[table->chain]);
    put_string(sink, ", without a rate and in no row:\n<ul>");
    for (size_t i = 0; i < table->nchanges; i++)
        put_change(sink, &table->changes[i]);
    put_string(sink, "\n</ul>\n");
}

/* Why the page is not quite what was asked for. */
static void put_complaints(struct sink *sink, const struct page *page) {
    if (page->unknown_label) {
        put_string(sink, "<p role=alert>There is no label \u201c");
        put_html(sink, page->wish.label);
        put_string(sink, "\u201d to add up by.\n");
    }
    if (page->bad_seconds) {
        put_format(sink, "<p role=alert>seconds= is a number from 1 to %d, not \u201c",
                   SECONDS_MAX);
        put_html(sink, page->wish.seconds);
        put_string(sink, "\u201d: this is what was read once.\n");
    }
    if (page->no_time)
        put_string(sink, "<p role=alert>So many seconds do not fit into the time for an "
                         "answer (-timeout): this is what was read once.\n");
    if (page->no_memory)
        put_string(sink, "<p role=alert>There is no memory to add up so many rules.\n");
}

static void put_link(struct sink *sink, struct text name, const char *more) {
    put_string(sink, ", <a href=\"?by=");
    put_html(sink, name);
    put_string(sink, more);
    put_string(sink, "\">");
    put_html(sink, name);
    put_string(sink, "</a>");
}

/* Behind the link to each rule those to each label that tells the rules of a table apart. */
static void put_links(struct sink *sink, const struct page *page, const char *more) {
    for (size_t i = 0; i < COUNT(labels); i++) {
        const struct label *label = &labels[i];
        bool is_fit = can_group(page->report, label) && !is_of_chain(label);
        if (is_fit && !puts_names(label))
            put_link(sink, (struct text){label->name, strlen(label->name)}, more);
    }
    for (size_t i = 0; i < page->nnames; i++)
        put_link(sink, page->names[i], more);
    put_string(sink, ".\n");
}

static void put_all_links(struct sink *sink, const struct page *page) {
    put_string(sink, "<p>Counted so far: <a href=\"?\">each rule</a>");
    put_links(sink, page, "");
    put_string(sink, "<p>Now, over 2 seconds: <a href=\"?seconds=2\">each rule</a>");
    put_links(sink, page, "&amp;seconds=2");
}

/* The sentences over the tables. */
static void put_words(struct sink *sink, const struct page *page) {
    for (size_t f = 0; f < FAMILIES; f++) {
        const struct family *family = &page->report->families[f];
        if (family->success) {
            put_success_words(sink, page->report, family);
        } else if (family->enabled) {
            put_failure_words(sink, family);
        }
        if (family->success && page->before) {
            usec over = family->read_until - page->before->families[f].read_until;
            put_format(sink, "<p>%s: the two reads were %lld.%03lld s apart.\n",
                       family->kind->name, over / SECOND, over / MS % 1000);
        }
    }
    put_complaints(sink, page);
    if (count_facts(page->report) > 0)
        put_all_links(sink, page);
}

static void put_page(struct sink *sink, const struct page *page) {
    const char *units = page->grouping.label ? group_units : total_units;
    put_page_head(sink, page->before ? rate_units : units);
    put_words(sink, page);
    for (size_t i = 0; i < page->ntables; i++)
        put_group_table(sink, page, &page->tables[i]);
    bool is_added_up = page->grouping.label || page->before;
    for (size_t f = 0; !is_added_up && f < FAMILIES; f++) {
        if (page->report->families[f].success)
            put_chain_tables(sink, page->report, &page->report->families[f]);
    }
}

/* ---- HTTP -------------------------------------------------------------------------- */

/* An exchange with a client on standard input and output. */
struct exchange {
    const struct config *config;
    struct collector *collectors;
    struct request request;
    usec started, deadline;
    time_t date; /* of the answer; the clock is asked once */
    bool head_only;
};

/* What an answer says: a media type, and a view that writes it. It is written twice, and
 * has to be the same each time. A page also has a Content-Security-Policy. */
struct body {
    const char *type;
    void (*put)(struct sink *sink, const void *of);
    const void *of;
    const char *policy; /* NULL: none */
};

static void put_plain_text(struct sink *sink, const void *text) {
    put_string(sink, text);
}

/* Every status that nfprom answers with. The text is the body where it is always the same,
 * else empty. */
static const struct status {
    int code;
    const char *phrase;
    const char *text;
} statuses[] = {
    {200, "OK", "ok\n"},
    {400, "Bad Request",
     "This is no HTTP/1 request: a request line, one Host header, at most one length of a "
     "body, an empty line. TLS is not spoken here.\n"},
    {404, "Not Found", ""}, /* says which paths there are */
    {405, "Method Not Allowed", "Only GET and HEAD are answered; ask for /metrics.\n"},
    {408, "Request Timeout",
     "The request was not complete in time; it ends with an empty line.\n"},
    {414, "URI Too Long", "The request line is longer than 8 KiB; ask for /metrics.\n"},
    {431, "Request Header Fields Too Large",
     "There are more than 16 KiB or 100 lines of headers; send fewer.\n"},
    {500, "Internal Server Error", ""}, /* these three say why */
    {503, "Service Unavailable", ""},
    {504, "Gateway Timeout", ""},
    {505, "HTTP Version Not Supported", "HTTP/1.0 and HTTP/1.1 are spoken here.\n"},
};
_Static_assert(REQUEST_LINE_MAX == 8 * 1024, "414 says so");
_Static_assert(HEADERS_MAX == 16 * 1024, "431 says so");
_Static_assert(HEADER_LINES_MAX == 100, "431 says so");

static const struct status *find_status(int code) {
    const struct status *status = statuses;
    while (status->code != code)
        status++;
    return status;
}

/* ---- sending */

static bool client_gone(int error) {
    switch (error) {
    case EPIPE:
    case ECONNRESET:
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return true;
    default:
        return false;
    }
}

/* Sends as much as standard output takes without blocking. Returns as send(2) does. */
static ssize_t send_some(const char *at, size_t len, usec deadline) {
    enum {
        PIPE_PIECE = 4096
    }; /* a pipe that poll(2) calls writable takes so much */
    struct pollfd fd = {.fd = STDOUT_FILENO, .events = POLLOUT};
    ssize_t n = send(STDOUT_FILENO, at, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0 || errno != ENOTSOCK)
        return n;
    if (poll(&fd, 1, ms_until(deadline)) <= 0) {
        errno = EAGAIN;
        return -1;
    }
    return write(STDOUT_FILENO, at, len < PIPE_PIECE ? len : PIPE_PIECE);
}

/* Sends what is in the window. When the client is gone, or does not read until the
 * deadline, all else is forgotten. */
static void send_window(struct sink *sink) {
    struct pollfd fd = {.fd = STDOUT_FILENO, .events = POLLOUT};
    size_t sent = 0;
    while (sent < sink->used && sink->outcome == SINK_GOOD) {
        ssize_t n = send_some(sink->window + sent, sink->used - sent, sink->deadline);
        if (n >= 0) {
            sent += (size_t)n;
            continue;
        }
        if (errno == EAGAIN || errno == EINTR) {
            bool late =
                poll(&fd, 1, ms_until(sink->deadline)) == 0 || now() >= sink->deadline;
            if (late)
                sink->outcome = SINK_LATE;
        } else if (client_gone(errno)) {
            sink->outcome = SINK_CLIENT_GONE;
        } else {
            log_line("cannot answer: %s", strerror(errno));
            sink->outcome = SINK_FAILED;
        }
    }
    sink->sent += sent;
    forget_window(sink);
}

/* The address of the client, in words; empty if it has none. */
static void name_client(char to[INET6_ADDRSTRLEN]) {
    struct sockaddr_storage peer = {.ss_family = AF_UNSPEC};
    const struct sockaddr_in *in = (const struct sockaddr_in *)&peer;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&peer;
    socklen_t size = sizeof peer;
    if (getpeername(STDOUT_FILENO, (struct sockaddr *)&peer, &size) != 0)
        return;
    if (peer.ss_family == AF_INET)
        inet_ntop(AF_INET, &in->sin_addr, to, INET6_ADDRSTRLEN);
    if (peer.ss_family == AF_INET6)
        inet_ntop(AF_INET6, &in6->sin6_addr, to, INET6_ADDRSTRLEN);
}

/* An answer was cut, and the log says why. (One that closes early knows.) */
static void log_slow_client(const struct sink *sink) {
    char client[INET6_ADDRSTRLEN] = "";
    name_client(client);
    log_line("the client%s%s did not read in time: it got %llu of %llu bytes",
             *client ? " " : "", client, (unsigned long long)sink->sent,
             (unsigned long long)written_to(sink));
}

/* Half-closes, then reads what the client still sends: a close with unread input would
 * make TCP throw away the answer. */
static void drain(usec deadline) {
    static char waste[16 * 1024];
    struct pollfd fd = {.fd = STDIN_FILENO, .events = POLLIN};
    usec until = earlier(now() + DRAIN_TIME, deadline);
    if (shutdown(STDOUT_FILENO, SHUT_WR) != 0 && errno == ENOTSOCK)
        close(STDOUT_FILENO);
    long total = 0;
    while (total < DRAIN_MAX && poll(&fd, 1, ms_until(until)) > 0) {
        ssize_t n = read(STDIN_FILENO, waste, sizeof waste);
        if (n <= 0)
            return;
        total += n;
    }
}

/* ---- answering */

static void put_head(struct sink *sink, const struct exchange *exchange,
                     const struct status *status, const struct body *body,
                     uint64_t length) {
    char date[sizeof "Thu, 01 Jan 1970 00:00:00 GMT" + 20];
    struct tm tm;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT",
             gmtime_r(&exchange->date, &tm));
    put_format(sink, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status->code, status->phrase,
               date);
    if (status->code == 405)
        put_string(sink, "Allow: GET, HEAD\r\n");
    put_format(sink, "Content-Type: %s; charset=utf-8\r\nContent-Length: %llu\r\n",
               body->type, (unsigned long long)length);
    if (body->policy)
        put_format(sink, "Content-Security-Policy: %s\r\n", body->policy);
    put_string(sink, "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
                     "Connection: close\r\n\r\n");
}

/* Sends an answer. The body is written to be counted, and then to be sent. The exit
 * status: 1 if it could not be written. */
static int answer(const struct exchange *exchange, int code, struct body body) {
    struct sink count = counting_sink();
    body.put(&count, body.of);
    uint64_t length = written_to(&count);

    struct sink sink = begin_stream(send_window, exchange->deadline);
    put_head(&sink, exchange, find_status(code), &body, length);
    if (!exchange->head_only) {
        uint64_t head = written_to(&sink);
        body.put(&sink, body.of);
        uint64_t sent = written_to(&sink) - head;
        if (sent != length) {
            log_line("an answer of %llu bytes was announced with %llu",
                     (unsigned long long)sent, (unsigned long long)length);
            return 1;
        }
    }
    send_window(&sink);
    if (sink.outcome == SINK_GOOD)
        drain(exchange->deadline);
    if (sink.outcome == SINK_LATE)
        log_slow_client(&sink);
    return sink.outcome == SINK_FAILED ? 1 : 0;
}

/* The answer that a status is by itself, or a text. */
static int answer_text(const struct exchange *exchange, int code, const char *text) {
    return answer(exchange, code,
                  (struct body){"text/plain", put_plain_text, text, NULL});
}

static int answer_status(const struct exchange *exchange, int code) {
    return answer_text(exchange, code, find_status(code)->text);
}

/* ---- the paths */

static int answer_landing(const struct exchange *exchange);
static int answer_metrics(const struct exchange *exchange);
static int answer_page(const struct exchange *exchange);
static int answer_healthy(const struct exchange *exchange);

/* All paths. Each function sends its answer and returns the exit status. */
static const struct route {
    const char *path;
    int (*answer)(const struct exchange *exchange);
    const char *about; /* for the page with links */
} routes[] = {
    {"/metrics", answer_metrics, "the counters, as Prometheus reads them"},
    {"/status", answer_page, "the same for people"},
    {"/-/healthy", answer_healthy, "whether nfprom is started at all"},
    {"/", answer_landing, "this page"},
};

static void put_landing_page(struct sink *sink, const void *of) {
    (void)of;
    put_string(
        sink,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<title>nfprom</title></head>\n<body><h1>nfprom</h1>\n"
        "<p>The packet and byte counters of an iptables chain, for Prometheus.</p>\n"
        "<ul>\n");
    for (size_t i = 0; i < COUNT(routes); i++) {
        bool is_this = routes[i].answer == answer_landing;
        if (is_this)
            continue;
        put_format(sink, "<li><a href=\"%s\">%s</a>: %s</li>\n", routes[i].path,
                   routes[i].path, routes[i].about);
    }
    put_string(sink, "</ul>\n<p>nfprom " VERSION "</p></body></html>\n");
}

static int answer_landing(const struct exchange *exchange) {
    return answer(exchange, 200,
                  (struct body){"text/html", put_landing_page, NULL, page_policy});
}

static int answer_healthy(const struct exchange *exchange) {
    return answer_status(exchange, 200);
}

/* "There is /metrics here, /status, /-/healthy and /." */
static void put_paths(struct sink *sink, const void *of) {
    (void)of;
    put_format(sink, "There is %s here", routes[0].path);
    for (size_t i = 1; i < COUNT(routes); i++) {
        bool is_last = i + 1 == COUNT(routes);
        put_format(sink, "%s%s", is_last ? " and " : ", ", routes[i].path);
    }
    put_string(sink, ".\n");
}

static int answer_not_found(const struct exchange *exchange) {
    return answer(exchange, 404, (struct body){"text/plain", put_paths, NULL, NULL});
}

static void put_text_format(struct sink *sink, const void *report) {
    put_exposition(sink, report, FORMAT_TEXT);
}

static void put_openmetrics(struct sink *sink, const void *report) {
    put_exposition(sink, report, FORMAT_OPENMETRICS);
}

static void put_status_page(struct sink *sink, const void *page) {
    put_page(sink, page);
}

static void put_seconds(struct sink *sink, usec time) {
    put_format(sink, "%lld.%03lld s", time / SECOND, time / MS % 1000);
}

/* With -list iptables waits for the lock itself. */
static void put_lock_time(struct sink *sink, const struct config *config,
                          const struct family *family) {
    if (!config->list) {
        put_string(sink, ", of these waiting for the lock ");
        put_seconds(sink, family->lock_time);
    } else if (family->may_be_zeroed) {
        put_string(sink, ", in which iptables may have waited for the lock");
    }
}

/* If time was short, where it went. */
static void put_times(struct sink *sink, const struct report *report) {
    const struct family *families = report->families;
    if (!families[IPV4].timed_out && !families[IPV6].timed_out)
        return;
    put_string(sink, "Of ");
    put_seconds(sink, report->whole_time);
    put_string(sink, " the request took ");
    put_seconds(sink, report->request_time);
    for (size_t i = 0; i < FAMILIES; i++) {
        if (!families[i].enabled)
            continue;
        put_format(sink, ", %s ", families[i].kind->label.at);
        put_seconds(sink, families[i].duration);
        put_lock_time(sink, report->config, &families[i]);
    }
    put_string(sink, ".\n");
}

/* Why there is no exposition. */
static void put_reasons(struct sink *sink, const void *of) {
    static char visible[VISIBLE_MAX * REASON_MAX]; /* iptables may say any bytes */
    const struct report *report = of;
    for (size_t i = 0; i < FAMILIES; i++) {
        const char *name = failure_name(report, i);
        if (!name)
            continue;
        put_string(sink, name);
        put_string(sink, ": ");
        const char *reason = report->families[i].reason;
        put_text(sink, make_visible(visible, (struct text){reason, strlen(reason)}));
        put_string(sink, "\n");
    }
    put_times(sink, report);
}

/* The deadline of a scrape, which the scraper may have shortened. */
static usec scrape_deadline(const struct exchange *exchange) {
    long wanted = exchange->request.scrape_timeout_ms;
    if (wanted < 0)
        return exchange->deadline;
    long ms = wanted - SCRAPE_MARGIN_MS;
    if (ms < SCRAPE_TIME_MIN_MS)
        ms = SCRAPE_TIME_MIN_MS;
    return earlier(exchange->deadline, exchange->started + (usec)ms * MS);
}

/* Lets the exchange end at the deadline of a scrape. Returns that of the reading. */
static usec begin_scrape(struct exchange *exchange, struct report *report) {
    exchange->deadline = scrape_deadline(exchange);
    usec whole_time = exchange->deadline - exchange->started;
    report->whole_time = whole_time;
    report->request_time = now() - exchange->started;
    return exchange->deadline - whole_time / SENDING_DIVISOR;
}

/* Reads the families and answers with a view of them: `body`, or `failed` if none could
 * be read. The exit status is 1 then. */
static int answer_scrape(const struct exchange *exchange, struct body body,
                         struct body failed) {
    struct report *report = &process_report;
    struct exchange shorter = *exchange;
    usec deadline = begin_scrape(&shorter, report);
    int status = scrape(exchange->config, exchange->collectors, report, deadline);
    bool success = status == 200;
    body.of = failed.of = report;
    int result = answer(&shorter, status, success ? body : failed);
    return success ? result : 1;
}

/* (answer_scrape() says of what: the report.) */
static const struct body reasons = {"text/plain", put_reasons, NULL, NULL};

static int answer_metrics(const struct exchange *exchange) {
    static const struct body text = {"text/plain; version=0.0.4", put_text_format, NULL,
                                     NULL};
    static const struct body openmetrics = {"application/openmetrics-text; version=1.0.0",
                                            put_openmetrics, NULL, NULL};
    const struct request *request = &exchange->request;
    bool prefers_openmetrics = request->openmetrics.quality > request->text.quality;
    return answer_scrape(exchange, prefers_openmetrics ? openmetrics : text, reasons);
}

enum {
    NOBODY_WAITS = -1
};

/* What the query of a page asks for, decoded into memory that stays. */
static struct wish read_wish(struct text query) {
    static char label[REQUEST_LINE_MAX];
    static char seconds[REQUEST_LINE_MAX];
    struct wish wish = {.has_label = false};
    wish.has_label = find_parameter(query, "by", label, &wish.label);
    wish.has_seconds = find_parameter(query, "seconds", seconds, &wish.seconds);
    return wish;
}

/* For how many seconds the page waits between two reads, 0 for one read. It notes why it is none
 * though there should be two. */
static int choose_seconds(struct page *page, usec deadline) {
    const struct wish *wish = &page->wish;
    if (!wish->has_seconds)
        return 0;
    int seconds = parse_seconds(wish->seconds);
    _Static_assert(SECONDS_MAX <= 9, "parse_seconds() knows one digit");
    page->bad_seconds = seconds < 1 || seconds > SECONDS_MAX;
    if (page->bad_seconds)
        return 0;
    usec left = deadline - now() - seconds * (usec)SECOND;
    page->no_time = left < READS_TIME_MIN;
    return page->no_time ? 0 : seconds;
}

/* Waits until then, without CPU time. False: the client is gone. (One that closes a TCP
 * connection looks like one that only has nothing more to ask: that is not seen here.) */
static bool wait_with_client(usec then) {
    struct pollfd client = {.fd = STDOUT_FILENO, .events = 0};
    int ready;
    do {
        ready = poll(&client, 1, ms_until(then));
    } while (ready < 0 && errno == EINTR);
    return ready <= 0;
}

/* Reads a second time, so long after the first. A family that has failed stays so. The status,
 * or NOBODY_WAITS. */
static int read_again(const struct exchange *exchange, struct page *page, int seconds,
                      usec deadline) {
    static struct report report;
    const struct report *before = page->report;
    if (!wait_with_client(now() + seconds * (usec)SECOND))
        return NOBODY_WAITS;
    begin_report(&report, exchange->config, exchange->collectors);
    for (size_t i = 0; i < FAMILIES; i++) {
        if (has_failed(&before->families[i]))
            report.families[i] = before->families[i];
    }
    page->before = before;
    page->report = &report;
    return read_families(&report, deadline);
}

/* Reads what the page is to show, once or twice. The status, or NOBODY_WAITS. */
static int read_page(const struct exchange *exchange, struct page *page,
                     struct report *report, usec deadline) {
    int seconds = choose_seconds(page, deadline);
    usec half = (deadline - now() - seconds * (usec)SECOND) / 2;
    usec first_deadline = seconds > 0 ? now() + half : deadline;
    begin_report(report, exchange->config, exchange->collectors);
    page->report = report;
    int status = read_families(report, first_deadline);
    if (status != 200)
        return status;
    choose_label(page);
    if (seconds == 0 || page->unknown_label)
        return status;
    return read_again(exchange, page, seconds, deadline);
}

/* The page says itself what could not be read. */
static int answer_page(const struct exchange *exchange) {
    static struct page page; /* the process ends with it */
    struct report *report = &process_report;
    struct exchange shorter = *exchange;
    usec deadline = begin_scrape(&shorter, report);
    page.wish = read_wish(exchange->request.query);
    int status = read_page(exchange, &page, report, deadline);
    dismiss_collectors(exchange->collectors);
    if (status == NOBODY_WAITS)
        return 0;
    log_failures(page.report);
    if (status == 200 && !fill_page(&page)) {
        log_line("there is no memory to add up the rules");
        status = 503;
    }
    struct body body = {"text/html", put_status_page, &page, page_policy};
    int result = answer(&shorter, status, body);
    return status == 200 ? result : 1;
}

/* ---- one exchange */

enum {
    NOBODY_ASKS = -1,
    INPUT_FAILED = -2
};

/* A client that sends its request in very many pieces waits a moment for each, while more of
 * them come: a piece costs the same whatever its size, and all of them would cost a lot of CPU. */
static void let_pieces_gather(unsigned pieces, usec whole_time, usec deadline) {
    if (pieces >= QUICK_PIECES)
        poll(NULL, 0, ms_until(earlier(deadline, now() + whole_time / NAPS_DIVISOR)));
}

/* Reads a request into buf. Its status (request_parse), 408, or one of the two above. */
static int read_request(char *buf, struct request *request, usec deadline) {
    size_t len = 0;
    usec whole_time = deadline - now();
    request_begin(request);
    for (unsigned pieces = 0; len < REQUEST_MAX; pieces++) {
        let_pieces_gather(pieces, whole_time, deadline);
        struct pollfd fd = {.fd = STDIN_FILENO, .events = POLLIN};
        int ready = poll(&fd, 1, ms_until(deadline));
        if (ready == 0 || now() >= deadline)
            return 408;
        ssize_t n = ready < 0 ? -1 : read(STDIN_FILENO, buf + len, REQUEST_MAX - len);
        if (n < 0) {
            if (errno == EINTR || errno == EAGAIN)
                continue;
            return client_gone(errno) ? NOBODY_ASKS : INPUT_FAILED;
        }
        len += (size_t)n;
        if (len == 0)
            return NOBODY_ASKS;
        int status = request_parse(request, buf, len);
        if (status != 0)
            return status;
        if (n == 0)
            return 400; /* it ends before it is complete */
    }
    return 431;
}

static int answer_wrong_flags(const struct exchange *exchange) {
    char text[sizeof flag_error + 50];
    snprintf(text, sizeof text, "nfprom is started with a wrong flag: %s\n", flag_error);
    answer_text(exchange, 500, text);
    return 2;
}

static int answer_request(const struct exchange *exchange) {
    const struct request *request = &exchange->request;
    if (!exchange->head_only && !text_is(request->method, "GET")) {
        return answer_status(exchange, 405);
    }
    for (size_t i = 0; i < COUNT(routes); i++) {
        if (text_is(request->path, routes[i].path))
            return routes[i].answer(exchange);
    }
    return answer_not_found(exchange);
}

/* One exchange, before it is known what is asked for. Returns the exit status. */
static int exchange_with_client(struct exchange *exchange) {
    static char buf[REQUEST_MAX];
    usec whole_time = exchange->deadline - exchange->started;
    usec reading_ends = exchange->deadline - whole_time / SENDING_DIVISOR;
    int status = read_request(buf, &exchange->request, reading_ends);
    if (status == NOBODY_ASKS)
        return 0;
    if (status == INPUT_FAILED) {
        log_line("standard input cannot be read: %s", strerror(errno));
        return 1;
    }
    exchange->date = time(NULL);
    exchange->head_only = text_is(exchange->request.method, "HEAD");
    if (flag_error[0] != '\0')
        return answer_wrong_flags(exchange);
    return status == 200 ? answer_request(exchange) : answer_status(exchange, status);
}

/* One exchange on standard input and output. Returns the exit status. */
static int serve(const struct config *config) {
    struct collector collectors[FAMILIES] = {{.pid = 0}};
    usec started = now();
    struct exchange exchange = {.config = config,
                                .collectors = collectors,
                                .started = started,
                                .deadline = started + config->timeout};
    start_collectors(config, collectors, exchange.deadline);
    int status = drop_rights() ? exchange_with_client(&exchange) : 1;
    end_collectors(collectors);
    return status;
}

/* ---- -print ------------------------------------------------------------------------ */

/* Writes what is in the window, however long it takes. */
static void write_window(struct sink *sink) {
    struct pollfd fd = {.fd = STDOUT_FILENO, .events = POLLOUT};
    size_t done = 0;
    while (done < sink->used && sink->outcome == SINK_GOOD) {
        ssize_t n = write(STDOUT_FILENO, sink->window + done, sink->used - done);
        if (n >= 0) {
            done += (size_t)n;
        } else if (errno == EAGAIN) {
            poll(&fd, 1, -1); /* somebody made it a stream that does not block */
        } else if (errno != EINTR) {
            sink->outcome = SINK_FAILED;
        }
    }
    forget_window(sink);
}

static int print_exposition(const struct config *config) {
    struct report *report = &process_report;
    struct collector collectors[FAMILIES] = {{.pid = 0}};
    usec deadline = now() + config->timeout; /* of the reading */
    struct sink sink = begin_stream(write_window, deadline);
    start_collectors(config, collectors, deadline);
    bool success = drop_rights() && scrape(config, collectors, report, deadline) == 200;
    end_collectors(collectors);
    if (!success)
        return 1;
    put_exposition(&sink, report, FORMAT_TEXT);
    write_window(&sink);
    bool good = sink.outcome == SINK_GOOD;
    if (good)
        good = close(STDOUT_FILENO) == 0; /* some file systems tell only then */
    if (!good)
        log_line("cannot print: %s", strerror(errno));
    return good ? 0 : 1;
}

/* ---- -addr ------------------------------------------------------------------------- */

static volatile sig_atomic_t stopped;

static void on_signal(int signal) {
    /* SIGCHLD only ends the wait in ppoll. */
    if (signal != SIGCHLD)
        stopped = 1;
}

enum listening {
    LISTENS,
    NO_SUCH_ADDRESS, /* this machine does not have that kind of address */
    CANNOT_LISTEN
};

static enum listening listen_on(const struct addrinfo *ai, struct pollfd *listener) {
    int on = 1;
    int type = ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK;
    int fd = socket(ai->ai_family, type, ai->ai_protocol);
    if (fd < 0)
        return errno == EAFNOSUPPORT ? NO_SUCH_ADDRESS : CANNOT_LISTEN;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (ai->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) {
        *listener = (struct pollfd){.fd = fd, .events = POLLIN};
        return LISTENS;
    }
    int error = errno;
    close(fd);
    errno = error;
    return error == EADDRNOTAVAIL ? NO_SUCH_ADDRESS : CANNOT_LISTEN;
}

/* Whether an address stands in the list before: a name may be in /etc/hosts twice. */
static bool came_before(const struct addrinfo *list, const struct addrinfo *ai) {
    const struct addrinfo *other = list;
    while (other != ai && (other->ai_addrlen != ai->ai_addrlen ||
                           memcmp(other->ai_addr, ai->ai_addr, ai->ai_addrlen) != 0))
        other = other->ai_next;
    return other != ai;
}

/* Listens on all addresses of ADDR. The number of listeners, 0 after a message. */
static size_t listen_all(const struct config *config, struct pollfd *listeners) {
    const struct endpoint *endpoint = &config->endpoint;
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    char host[HOST_MAX + 1];
    enum listening listening = NO_SUCH_ADDRESS;
    size_t n = 0;
    snprintf(host, sizeof host, "%.*s", (int)endpoint->host.len, endpoint->host.at);
    int error = getaddrinfo(*host ? host : NULL, endpoint->port, &hints, &list);
    if (error) {
        log_line(
            "-addr %s: the name does not resolve: %s; it must be name:port, ipv4:port, "
            "[ipv6]:port or :port",
            config->addr, gai_strerror(error));
        return 0;
    }
    for (const struct addrinfo *ai = list; ai && n < LISTENERS_MAX; ai = ai->ai_next) {
        if (came_before(list, ai))
            continue;
        listening = listen_on(ai, &listeners[n]);
        if (listening == CANNOT_LISTEN)
            break;
        if (listening == LISTENS)
            n++;
    }
    if (n == 0 || listening == CANNOT_LISTEN) {
        log_line("-addr %s: cannot listen: %s", config->addr, strerror(errno));
        return 0;
    }
    freeaddrinfo(list);
    return n;
}

/* Where a connection comes from: an IPv4 address or, since one host has all of it, the /64 of an
 * IPv6 address. */
struct source {
    sa_family_t family;
    unsigned char network[8];
};

static struct source source_of(const struct sockaddr_storage *peer) {
    struct source source = {.family = peer->ss_family};
    const struct sockaddr_in *in = (const struct sockaddr_in *)peer;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)peer;
    if (peer->ss_family == AF_INET)
        memcpy(source.network, &in->sin_addr, sizeof in->sin_addr);
    if (peer->ss_family == AF_INET6)
        memcpy(source.network, &in6->sin6_addr, sizeof source.network);
    return source;
}

/* The connections that are being answered, each by a process of its own. */
struct children {
    unsigned n;
    struct child {
        pid_t pid;
        struct source source;
    } all[CONNECTIONS_MAX];
};

/* All that listens and answers. */
struct server {
    const struct config *config;
    struct pollfd listeners[LISTENERS_MAX];
    size_t nlisteners;
    sigset_t mask; /* while it waits: no signal is blocked */
    struct children children;
};

static void close_listeners(const struct server *server) {
    for (size_t i = 0; i < server->nlisteners; i++)
        close(server->listeners[i].fd);
}

/* In the child of a connection: everything is as a super-server would have left it. */
static _Noreturn void serve_connection(const struct server *server, int fd,
                                       pid_t parent) {
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, &server->mask, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    if (dup2(fd, STDIN_FILENO) < 0 || dup2(fd, STDOUT_FILENO) < 0)
        _exit(1);
    close(fd);
    close_listeners(server); /* who starts a new server finds the address free */
    _exit(serve(server->config));
}

/* Whether one more would be too many. */
static bool is_crowded(const struct children *children, const struct source *source) {
    unsigned same = 0;
    for (unsigned i = 0; i < children->n; i++) {
        const struct source *other = &children->all[i].source;
        bool is_same =
            other->family == source->family &&
            memcmp(other->network, source->network, sizeof other->network) == 0;
        same += is_same;
    }
    return children->n == CONNECTIONS_MAX || same >= SOURCE_MAX;
}

/* Takes back what has ended; to the first process of a container come the orphans of
 * others too. */
static void reap(struct children *children) {
    for (;;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid <= 0)
            return;
        for (unsigned i = 0; i < children->n; i++) {
            if (children->all[i].pid == pid)
                children->all[i] = children->all[--children->n];
        }
    }
}

/* Whether there is no descriptor, or no memory, for a connection that waits. */
static bool is_shortage(int error) {
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/* Tells of a shortage once, not at each try. "": it is over. */
static void tell_shortage(const char *what) {
    static bool told;
    if (*what && !told)
        log_line("-addr: a connection %s: %s", what, strerror(errno));
    told = *what != '\0';
}

/* The same of connections that are too many; once a minute, since strangers may come as often as
 * they like. */
static void tell_crowd(void) {
    static usec next;
    usec time = now();
    if (time < next)
        return;
    next = time + MINUTE;
    log_line(
        "-addr: a connection is closed: %d are the most at once, %d from one address",
        CONNECTIONS_MAX, SOURCE_MAX);
}

/* Takes a connection, if there is one; closes one that is too many. False in a shortage: the
 * caller waits a moment. */
static bool take_connection(struct server *server, int listener) {
    struct children *children = &server->children;
    pid_t parent = getpid();
    struct sockaddr_storage peer = {.ss_family = AF_UNSPEC};
    socklen_t size = sizeof peer;
    int fd = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_CLOEXEC);
    if (fd < 0) {
        if (!is_shortage(errno))
            return true; /* it is gone again */
        tell_shortage("has to wait");
        return false;
    }
    struct source source = source_of(&peer);
    reap(children);
    bool is_crowd = is_crowded(children, &source);
    if (is_crowd) {
        tell_crowd();
        close(fd);
        return true;
    }
    pid_t child = fork();
    if (child == 0)
        serve_connection(server, fd, parent);
    tell_shortage(child < 0 ? "is lost, no process for it" : "");
    close(fd);
    if (child > 0)
        children->all[children->n++] = (struct child){child, source};
    return child > 0;
}

/* Blocks them everywhere but in ppoll, which gets the empty mask. */
static void block_signals(sigset_t *mask) {
    static const int signals[] = {SIGTERM, SIGINT, SIGCHLD};
    sigset_t ours;
    sigemptyset(mask);
    sigemptyset(&ours);
    for (size_t i = 0; i < COUNT(signals); i++) {
        sigaddset(&ours, signals[i]);
        signal(signals[i], on_signal);
    }
    sigprocmask(SIG_BLOCK, &ours, NULL);
}

/* Waits for connections and takes them. */
static void take_connections(struct server *server) {
    struct timespec moment = {.tv_nsec = 50L * 1000 * 1000};
    bool shortage = false;
    int ready = ppoll(server->listeners, server->nlisteners, NULL, &server->mask);
    for (size_t i = 0; i < server->nlisteners && ready > 0; i++) {
        if (!take_connection(server, server->listeners[i].fd))
            shortage = true; /* (EAGAIN, where no connection waits, is none) */
    }
    if (shortage)
        ppoll(NULL, 0, &moment, &server->mask);
    reap(&server->children);
}

/* Until SIGTERM or SIGINT. Then those that are being answered get a second; the rest ends
 * with this process. */
static int listen_and_serve(const struct config *config) {
    static struct server server;
    struct timespec moment = {.tv_nsec = 50L * 1000 * 1000};
    server.config = config;
    server.nlisteners = listen_all(config, server.listeners);
    if (server.nlisteners == 0)
        return 1;
    block_signals(&server.mask);
    while (!stopped)
        take_connections(&server);
    close_listeners(&server);
    usec until = now() + SECOND;
    reap(&server.children);
    while (server.children.n > 0 && now() < until) {
        ppoll(NULL, 0, &moment, &server.mask);
        reap(&server.children);
    }
    return 0;
}

/* ---- main -------------------------------------------------------------------------- */

/* A closed standard stream would become the number of the next file opened. What is put
 * there cannot be used by mistake: input cannot be read, output not written. */
static void fill_standard_streams(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0)
            continue;
        int mode = fd == STDIN_FILENO ? O_WRONLY : O_RDONLY;
        if (open("/dev/null", mode) < 0)
            (void)!socket(AF_UNIX, SOCK_STREAM, 0);
    }
}

/* What was inherited is somebody else's choice: systemd ignores SIGPIPE, some parents
 * ignore SIGCHLD, or have set an alarm. */
static void set_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    alarm(0);
}

/* Whether standard input is a socket that waits for connections. */
static bool is_listening(void) {
    int listens = 0;
    socklen_t size = sizeof listens;
    return getsockopt(STDIN_FILENO, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 &&
           listens;
}

/* Somebody has to be told: the log, and the client or who reads standard error. */
static int refuse_flags(const struct config *config) {
    struct stat st;
    bool has_client =
        fstat(STDIN_FILENO, &st) == 0 && S_ISSOCK(st.st_mode) && !is_listening();
    choose_log(has_client);
    log_line("%s", flag_error);
    if (has_client)
        serve(config);
    else
        log_line("nfprom -help lists the flags");
    return 2;
}

/* Whether standard input can be no connection and asks nothing: /dev/null, or a file that is
 * empty or at its end. So it is for cron, say. */
static bool nobody_asks(void) {
    struct stat in, null;
    bool was_closed = (fcntl(STDIN_FILENO, F_GETFL) & O_ACCMODE) == O_WRONLY;
    if (was_closed || fstat(STDIN_FILENO, &in) != 0)
        return false; /* it was closed: fill_standard_streams() */
    if (S_ISREG(in.st_mode))
        return lseek(STDIN_FILENO, 0, SEEK_CUR) >= in.st_size;
    return S_ISCHR(in.st_mode) && stat("/dev/null", &null) == 0 &&
           in.st_rdev == null.st_rdev;
}

int main(int argc, char **argv) {
    static struct config config;
    fill_standard_streams();
    set_signals();
    parse_flags(&config, argc, argv);
    if (flag_error[0] != '\0')
        return refuse_flags(&config);
    bool listens = *config.addr != '\0';
    bool prints = config.print || (!listens && isatty(STDIN_FILENO));
    if (!listens && !prints && is_listening()) {
        wrong("standard input is a socket that listens: its unit needs Accept=yes");
        return refuse_flags(&config);
    }
    if (!listens && !prints && nobody_asks()) {
        wrong("standard input is no connection: -print is missing, or -addr");
        return refuse_flags(&config);
    }
    choose_log(!listens && !prints);
    if (listens)
        return listen_and_serve(&config);
    return prints ? print_exposition(&config) : serve(&config);
}
