/* What a stranger could do who has taken over the process that reads his request: nfprom, but for its request_parse(), which
 * does what the path of the request says, answers with what came of it, and ends:
 *
 *   /run?COMMAND     runs COMMAND, in which + is a blank
 *   /netlink         deletes all nft tables, through a netlink socket of its own
 *   /trace           attaches to the collector as a debugger
 *   /signal?N        sends the collector the signal
 *   /word?HEX        sends the collector these bytes, and with them a pipe to write into: what comes of it
 *   /lock            lets the collector start its command under the legacy lock, and sleeps for ever
 *
 * For t/55-rights.t only. */
#define _GNU_SOURCE
#include "../parse.h"

#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/ptrace.h>
#include <unistd.h>

static pid_t collector_pid;

static pid_t remember_fork(void) {
    pid_t pid = fork();
    if (pid > 0)
        collector_pid = pid;
    return pid;
}

static int obey_request(struct request *request, const char *buf, size_t len);

#define fork() remember_fork()
#define request_parse obey_request
#include "../nfprom.c"

/* nfprom's end of the channel: the one socket of its kind. */
static int find_channel(void) {
    for (int fd = 3; fd < 100; fd++) {
        int type = 0;
        socklen_t size = sizeof type;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET)
            return fd;
    }
    return -1;
}

static void say(const char *what, long n) {
    printf("%s: %ld: %s\n", what, n, n < 0 ? strerror(errno) : "done");
}

static void attack_netlink(void) {
    struct {
        struct nlmsghdr head;
        struct nfgenmsg gen;
    } messages[3] = {
        {{sizeof *messages, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 1, 0}, {AF_UNSPEC, 0, htons(NFNL_SUBSYS_NFTABLES)}},
        {{sizeof *messages, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE, NLM_F_REQUEST | NLM_F_ACK, 2, 0}, {AF_UNSPEC, 0, 0}},
        {{sizeof *messages, NFNL_MSG_BATCH_END, NLM_F_REQUEST, 3, 0}, {AF_UNSPEC, 0, htons(NFNL_SUBSYS_NFTABLES)}},
    };
    union {
        struct nlmsghdr head;
        char bytes[4096];
    } reply = {.bytes = {0}};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
    say("sent", send(fd, messages, sizeof messages, 0));
    say("received", recv(fd, &reply, sizeof reply, 0));
    struct nlmsgerr *error = NLMSG_DATA(&reply.head);
    printf("error: %s\n", strerror(-error->error));
}

static void attack_signal(int number) {
    say("kill", kill(collector_pid, number));
}

/* A word, and a descriptor that it is not asked for. */
static void attack_word(const char *hex) {
    char bytes[8192];
    size_t len = 0;
    unsigned byte;
    for (; len < sizeof bytes && sscanf(hex, "%2x", &byte) == 1; hex += 2)
        bytes[len++] = (char)byte;
    int gift[2];
    if (pipe2(gift, O_CLOEXEC | O_NONBLOCK) != 0)
        return;
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec data = {bytes, len};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(&control.head), &gift[1], sizeof(int));
    int channel = find_channel();
    say("sent", sendmsg(channel, &message, MSG_NOSIGNAL));
    close(gift[1]);
    struct start start;
    ssize_t got = recv(channel, &start, sizeof start, 0);
    printf("answered: %s\n", got == sizeof start ? "started" : got == 0 ? "ended" : "other");
    char nothing;
    printf("in the pipe: %zd\n", read(gift[0], &nothing, 1));
}

static void attack_lock(void) {
    struct order word = {DIALECT_SAVE, LOCK_WAITED_FOR};
    say("sent", send(find_channel(), &word, sizeof word, 0));
    fflush(stdout);
    for (;;)
        pause();
}

static void attack(char *path) {
    char *argument = strchr(path, '?');
    if (argument)
        *argument++ = '\0';
    else
        argument = path + strlen(path);
    for (char *c = argument; *c; c++)
        if (*c == '+')
            *c = ' ';
    if (strcmp(path, "/run") == 0)
        printf("status %d\n", system(argument));
    else if (strcmp(path, "/netlink") == 0)
        attack_netlink();
    else if (strcmp(path, "/trace") == 0)
        say("ptrace", ptrace(PTRACE_SEIZE, collector_pid, 0, 0));
    else if (strcmp(path, "/signal") == 0)
        attack_signal(atoi(argument));
    else if (strcmp(path, "/word") == 0)
        attack_word(argument);
    else if (strcmp(path, "/lock") == 0)
        attack_lock();
}

static int obey_request(struct request *request, const char *buf, size_t len) {
    static char path[16 * 1024];
    (void)request;
    char *at = strncmp(buf, "GET ", 4) == 0 ? memccpy(path, buf + 4, ' ', len - 4) : NULL;
    if (!at)
        return 0; /* there is more of it */
    at[-1] = '\0';
    dup2(STDOUT_FILENO, STDERR_FILENO);
    setvbuf(stdout, NULL, _IONBF, 0);
    attack(path);
    _exit(0);
}
