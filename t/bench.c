/* What t/bench measures with: runs commands in turn, round after round, and prints what each run took. As `t/bench-run`:
 *
 *   t/bench-run [-p MS] ROUNDS COMMAND [-- COMMAND]...
 *
 * with a pause of MS before each run, and as commands (each may begin with NAME=VALUE words for its environment):
 *
 *   pipe PROGRAM ARGUMENT...  its output read to the end through a pipe, the process reaped
 *   http PROGRAM ARGUMENT...  the same on a local socket, after a request for /metrics
 *   own  PROGRAM ARGUMENT...  http, and before the connection is closed the kernel's record of that process alone
 *   tcp PORT                  a request for /metrics to 127.0.0.1
 *   parse CHAIN FILE          FILE through the reader of rulesets, in this process
 *
 * What asks (http, own, tcp) takes options, before PROGRAM or PORT:
 *
 *   -g PATH    asks for PATH
 *   -h HEADER  sends this line too, as in 'Accept: text/plain'
 *   -w MS      reads nothing for so long (http, own). The socket takes a few KiB meanwhile. It is an error if the program
 *              does not sleep then with the rest of its answer, since that is what is to be measured.
 *
 * A line for each run: number of the command, then in microseconds wall time to the end of the process, wall time to the end of
 * its answer, own CPU time (own, parse) and CPU time of the process and its children (pipe, http, own), the own peak memory in
 * KiB (own), bytes read. A run that fails ends it all.
 *
 * Under a name that ends in -save it plays the iptables-save that costs least: the file BENCH_FILE to standard output, in writes of
 * BENCH_CHUNK bytes. Under the name `shape` it is what nfprom is without all that it does: it reads a request, forks once, runs its
 * argument there through popen, and copies what that prints to the client. */
#define _GNU_SOURCE
#include "../parse.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

struct taken {
    double wall, answered, own, all; /* microseconds */
    long peak;             /* KiB */
    size_t bytes;
};

/* What is asked for, and when the answer is read. */
struct asking {
    const char *path, *header; /* header: a line without its end, may be empty */
    long wait;                 /* milliseconds */
};

static _Noreturn void fail(const char *what) {
    perror(what);
    exit(1);
}

static double clock_us(clockid_t id) {
    struct timespec ts;
    clock_gettime(id, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static double tv_us(struct timeval tv) { return (double)tv.tv_sec * 1e6 + (double)tv.tv_usec; }

static void rest(long ms) { nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL); }

static char *map_file(const char *path, size_t *size) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) fail(path);
    *size = (size_t)st.st_size;
    char *at = mmap(NULL, *size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (at == MAP_FAILED) fail(path);
    close(fd);
    return at;
}

/* ---- a process, and what it answers ---------------------------------------------------------------------- */

static pid_t spawn(char **argv, int fd, bool input) {
    pid_t pid;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    if (input) posix_spawn_file_actions_adddup2(&actions, fd, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, fd, STDOUT_FILENO);
    errno = posix_spawnp(&pid, *argv, &actions, NULL, argv, environ);
    if (errno != 0) fail(*argv);
    posix_spawn_file_actions_destroy(&actions);
    close(fd);
    return pid;
}

static void reap(pid_t pid, const char *name, struct taken *t) {
    int status;
    struct rusage usage;
    if (wait4(pid, &status, 0, &usage) != pid) fail("wait4");
    t->all = tv_us(usage.ru_utime) + tv_us(usage.ru_stime);
    if (status == 0) return;
    fprintf(stderr, "%s: wait status %d\n", name, status);
    exit(1);
}

static char bytes[1 << 20];

/* To the end of the stream. What is read first stays in `bytes`. */
static size_t read_all(int fd) {
    size_t all = 0;
    for (ssize_t n; (n = read(fd, all < 4096 ? bytes + all : bytes + 4096, sizeof bytes - 4096)) != 0; all += (size_t)n)
        if (n < 0) fail("read");
    return all;
}

static void ask(int fd, const struct asking *a) {
    char request[1000];
    const char *end_of_header = *a->header ? "\r\n" : "";
    int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: bench\r\n%s%s\r\n",
                     a->path, a->header, end_of_header);
    if (n >= (int)sizeof request) {
        fprintf(stderr, "a request that is too long\n");
        exit(2);
    }
    if (write(fd, request, (size_t)n) != n) fail("write");
}

static size_t read_answer(int fd) {
    static const char good[] = "HTTP/1.1 200 ";
    size_t n = read_all(fd);
    if (n > sizeof good && memcmp(bytes, good, sizeof good - 1) == 0) return n;
    fprintf(stderr, "no answer with status 200: %.*s\n", (int)(n < 1000 ? n : 1000), bytes);
    exit(1);
}

static const char *read_proc(pid_t pid, const char *name) {
    static char text[8192];
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0) fail(path);
    close(fd);
    text[n] = '\0';
    return text;
}

static bool is_asleep(const char *status) { return strstr(status, "State:\tS") != NULL; }

/* So that nearly all of an answer has to stay in the program while nobody reads. The kernel doubles it. */
static void make_small(int fd) {
    int size = 4096;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) != 0) fail("SO_SNDBUF");
}

static size_t held_by_socket(int fd) {
    int n;
    if (ioctl(fd, FIONREAD, &n) != 0) fail("FIONREAD");
    return (size_t)n;
}

/* Leaves the program alone with its answer. What of it is in the socket at the end. */
static size_t leave_waiting(int fd, pid_t pid, long ms) {
    rest(ms);
    size_t held = held_by_socket(fd);
    if (held > 0 && is_asleep(read_proc(pid, "status"))) return held;
    fprintf(stderr, "-w: after %ld ms it does not wait for its client\n", ms);
    exit(1);
}

/* nfprom has said all and closed its side, and sleeps until we close ours: only then the kernel's count of its time is
 * complete. schedstat counts nanoseconds, of this process without its children. */
static void look_at(pid_t pid, struct taken *t) {
    const char *status, *peak;
    while (!is_asleep(status = read_proc(pid, "status"))) {
        if (strstr(status, "State:\tZ")) fail("own: it did not wait for its client to close");
        rest(1);
    }
    peak = strstr(status, "VmHWM:");
    t->peak = peak ? atol(peak + strlen("VmHWM:")) : 0;
    t->own = strtod(read_proc(pid, "schedstat"), NULL) / 1e3;
}

static void run_pipe(char **argv, struct taken *t) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) fail("pipe");
    pid_t pid = spawn(argv, fds[1], false);
    t->bytes = read_all(fds[0]);
    close(fds[0]);
    reap(pid, *argv, t);
}

static void run_http(char **argv, const struct asking *a, struct taken *t, bool look) {
    int fds[2];
    size_t held = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) fail("socketpair");
    if (a->wait > 0) make_small(fds[1]);
    pid_t pid = spawn(argv, fds[1], true);
    ask(fds[0], a);
    if (a->wait > 0) held = leave_waiting(fds[0], pid, a->wait);
    t->bytes = read_answer(fds[0]);
    if (held == t->bytes) {
        fprintf(stderr, "-w: the socket took the whole answer, %zu bytes\n", held);
        exit(1);
    }
    t->answered = clock_us(CLOCK_MONOTONIC) - t->wall;
    if (look) look_at(pid, t);
    close(fds[0]);
    reap(pid, *argv, t);
}

static void run_tcp(const char *port, const struct asking *a, struct taken *t) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0) fail(port);
    ask(fd, a);
    t->bytes = read_answer(fd);
    close(fd);
}

/* ---- the reader of rulesets by itself -------------------------------------------------------------------- */

static void run_parse(const char *name, const char *path, struct taken *t) {
    enum { ROOM = 64 * 1024 };
    static struct ruleset rs;
    static char lines[RULE_LINE_MAX + ROOM], comment[RULE_LINE_MAX];
    struct rule rule;
    struct text chain = {name, strlen(name)};
    struct wanted wanted = {DIALECT_SAVE, "filter", &chain, 1, {NULL, 0}};
    enum item item = ITEM_MORE;
    char *at = map_file(path, &t->bytes);
    double started = clock_us(CLOCK_PROCESS_CPUTIME_ID);
    ruleset_begin(&rs, wanted, (struct ruleset_memory){RULE_LINE_MAX, ROOM, lines, comment});
    for (size_t done = 0, n = 1, room; item == ITEM_MORE; done += n) {
        char *to = ruleset_room(&rs, &room);
        n = t->bytes - done < room ? t->bytes - done : room;
        memcpy(to, at + done, n);
        ruleset_fed(&rs, n);
        while ((item = ruleset_next(&rs, &rule)) == ITEM_RULE || item == ITEM_POLICY)
            ;
    }
    t->own = clock_us(CLOCK_PROCESS_CPUTIME_ID) - started;
    munmap(at, t->bytes);
    if (item == ITEM_END) return;
    fprintf(stderr, "%s: %s\n", path, rs.error);
    exit(1);
}

/* ---- main ------------------------------------------------------------------------------------------------ */

static int play_save(void) {
    const char *path = getenv("BENCH_FILE"), *chunk = getenv("BENCH_CHUNK");
    size_t size, most = (size_t)atol(chunk ? chunk : "4096");
    const char *at = map_file(path ? path : "", &size);
    for (ssize_t n = 0; size > 0; at += n, size -= (size_t)n)
        if ((n = write(STDOUT_FILENO, at, size < most ? size : most)) <= 0) return 1;
    return 0;
}

/* Copies until there is no more. */
static void copy_all(int from, int to) {
    ssize_t n;
    while ((n = read(from, bytes, sizeof bytes)) > 0)
        if (write(to, bytes, (size_t)n) != n) fail("write");
}

static int play_shape(const char *command) {
    static const char head[] = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    int fds[2], status;
    if (read(STDIN_FILENO, bytes, sizeof bytes) <= 0 || pipe2(fds, O_CLOEXEC) != 0) fail("shape");
    pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid == 0) {
        dup2(fds[1], STDOUT_FILENO);
        FILE *pipe = popen(command, "we");
        _exit(!pipe || pclose(pipe) != 0);
    }
    close(fds[1]);
    if (write(STDOUT_FILENO, head, sizeof head - 1) < 0) fail("write");
    copy_all(fds[0], STDOUT_FILENO);
    shutdown(STDOUT_FILENO, SHUT_WR);
    if (waitpid(pid, &status, 0) != pid) fail("waitpid");
    while (read(STDIN_FILENO, bytes, sizeof bytes) > 0)
        ;
    return status == 0 ? 0 : 1;
}

static bool ends_in(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* The options of what asks; the words behind them. */
static char **take_options(char **argv, struct asking *a) {
    for (; *argv && **argv == '-' && argv[1]; argv += 2) {
        if (strcmp(*argv, "-g") == 0)
            a->path = argv[1];
        else if (strcmp(*argv, "-h") == 0)
            a->header = argv[1];
        else if (strcmp(*argv, "-w") == 0)
            a->wait = atol(argv[1]);
        else
            break;
    }
    return argv;
}

/* One command, argv up to its NULL. */
static struct taken run(char **argv) {
    struct taken t = {.bytes = 0};
    struct asking a = {.path = "/metrics", .header = ""};
    for (; *argv && strchr(*argv, '='); argv++) putenv(*argv);
    const char *kind = *argv && argv[1] ? *argv++ : "";
    argv = take_options(argv, &a);
    if (!*argv) kind = "";
    const double started = t.wall = clock_us(CLOCK_MONOTONIC);
    if (strcmp(kind, "pipe") == 0)
        run_pipe(argv, &t);
    else if (strcmp(kind, "http") == 0 || strcmp(kind, "own") == 0)
        run_http(argv, &a, &t, *kind == 'o');
    else if (strcmp(kind, "tcp") == 0)
        run_tcp(*argv, &a, &t);
    else if (strcmp(kind, "parse") == 0 && argv[1])
        run_parse(argv[0], argv[1], &t);
    else
        fprintf(stderr, "%s: no such command\n", kind), exit(2);
    t.wall = clock_us(CLOCK_MONOTONIC) - started;
    return t;
}

int main(int argc, char **argv) {
    if (ends_in(*argv, "-save")) return play_save();
    if (ends_in(*argv, "/shape") && argc == 2) return play_shape(argv[1]);
    long gap = 0;
    if (argc > 3 && strcmp(argv[1], "-p") == 0) gap = atol(argv[2]), argc -= 2, argv += 2;
    if (argc < 3) return fprintf(stderr, "usage: t/bench-run [-p MS] ROUNDS COMMAND [-- COMMAND]...\n"), 2;
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], "--") == 0) argv[i] = NULL;
    for (long rounds = atol(argv[1]); rounds > 0; rounds--) {
        for (int i = 2, number = 0; i < argc; i++, number++) {
            if (gap > 0) rest(gap);
            struct taken t = run(argv + i);
            printf("%d %.1f %.1f %.1f %.0f %ld %zu\n", number, t.wall, t.answered, t.own, t.all, t.peak, t.bytes);
            while (i < argc && argv[i]) i++;
        }
    }
    return 0;
}
