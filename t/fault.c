/* fault - runs a command in which a system call fails.
 *
 *   fault [-f] CALL WHEN EFFECT COMMAND [ARGUMENT...]
 *
 *   CALL    one of the names in `calls` below: all system calls of that kind
 *   WHEN    3: the third of them alone; 3+: that and all later ones; counted from the start of the command
 *   EFFECT  EAGAIN and the like, the error that the call ends with, undone (but a close is done all the same);
 *           short, it is done, but for one byte (read, write, send);
 *           jump, it is done, but the time of day that it tells is a day later than the last time (clock)
 *   -f      count, and fail, in all that the command starts as well
 *
 * It ends when all that it follows has ended, as the command did. Into the file named by the variable FAULTS it writes one
 * byte for each call that failed. The command has no vDSO, so that to read a clock is a system call. Linux on x86-64. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SHORT = -1, JUMP = -2, DAY = 86400 };

static const struct {
    const char *name;
    long numbers[5]; /* filled up with zeros: read(2), which is the first of its own line */
} calls[] = {
    {"read", {SYS_read, SYS_readv}},
    {"write", {SYS_write, SYS_writev}},
    {"send", {SYS_sendto, SYS_sendmsg}},
    {"fork", {SYS_fork, SYS_vfork, SYS_clone, SYS_clone3}},
    {"exec", {SYS_execve, SYS_execveat}},
    {"pipe", {SYS_pipe, SYS_pipe2}},
    {"open", {SYS_open, SYS_openat}},
    {"dup", {SYS_dup, SYS_dup2, SYS_dup3}},
    {"memory", {SYS_brk, SYS_mmap, SYS_mremap}},
    {"poll", {SYS_poll, SYS_ppoll}},
    {"wait", {SYS_wait4, SYS_waitid}},
    {"close", {SYS_close}},
    {"accept", {SYS_accept, SYS_accept4}},
    {"clock", {SYS_clock_gettime, SYS_time}},
    {"lock", {SYS_flock}},
    {"group", {SYS_setpgid}},
    {"user", {SYS_setresuid}},
    {"capabilities", {SYS_capset}},
    {"prctl", {SYS_prctl}},
    {"socket", {SYS_socket}},
};

static const struct {
    const char *name;
    int number;
} effects[] = {
    {"short", SHORT},   {"jump", JUMP},     {"EACCES", EACCES}, {"EAGAIN", EAGAIN}, {"ECHILD", ECHILD},
    {"EINTR", EINTR},   {"EIO", EIO},       {"EMFILE", EMFILE}, {"ENFILE", ENFILE}, {"ENOBUFS", ENOBUFS},
    {"ENOENT", ENOENT}, {"ENOMEM", ENOMEM}, {"ENOSPC", ENOSPC}, {"EPERM", EPERM},   {"EPIPE", EPIPE},
    {"EDQUOT", EDQUOT}, {"ENOLCK", ENOLCK}, {"EBUSY", EBUSY},   {"E2BIG", E2BIG},   {"ECONNRESET", ECONNRESET},
    {"EAFNOSUPPORT", EAFNOSUPPORT},
};

static void die(const char *what) {
    perror(what);
    exit(125);
}

static long get(pid_t pid, unsigned long long at) { return ptrace(PTRACE_PEEKDATA, pid, at, 0); }
static void set(pid_t pid, unsigned long long at, long value) { ptrace(PTRACE_POKEDATA, pid, at, value); }
static void set_register(pid_t pid, size_t at, long value) { ptrace(PTRACE_POKEUSER, pid, at, value); }

/* After an exec the stack begins with argc, argv, NULL, environ, NULL and the auxiliary vector, which tells of the vDSO. */
static void hide_vdso(pid_t pid) {
    struct user_regs_struct regs;
    if (ptrace(PTRACE_GETREGS, pid, 0, &regs) != 0) return;
    unsigned long long at = regs.rsp + sizeof(long);
    for (int lists = 0; lists < 2; at += sizeof(long)) lists += get(pid, at) == 0;
    for (; get(pid, at) != AT_NULL; at += 2 * sizeof(long))
        if (get(pid, at) == AT_SYSINFO_EHDR) set(pid, at, AT_IGNORE);
}

/* The processes whose call does not reach the kernel, until it returns. (A return from a signal handler looks like one.) */
static char undone[1 << 22]; /* as many as Linux has */

int main(int argc, char **argv) {
    int follow = argc > 1 && strcmp(argv[1], "-f") == 0, faults = -1, status, last = 0;
    size_t c = 0, e = 0;
    char *end, nothing;
    argv += follow;
    if (argc - follow < 5) return fputs("usage: fault [-f] CALL WHEN EFFECT COMMAND [ARGUMENT...]\n", stderr), 125;
    while (c < sizeof calls / sizeof *calls && strcmp(calls[c].name, argv[1]) != 0) c++;
    while (e < sizeof effects / sizeof *effects && strcmp(effects[e].name, argv[3]) != 0) e++;
    long when = strtol(argv[2], &end, 10), seen = 0, jumps = 0;
    if (c == sizeof calls / sizeof *calls || e == sizeof effects / sizeof *effects || when < 1)
        return fputs("fault: no such call or effect\n", stderr), 125;
    int later = *end == '+', effect = effects[e].number;
    if (getenv("FAULTS")) faults = open(getenv("FAULTS"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    int go[2];
    if (pipe2(go, O_CLOEXEC) != 0) die("pipe");
    pid_t command = fork();
    if (command < 0) die("fork");
    if (command == 0) {
        close(go[1]);
        if (read(go[0], &nothing, 1) == 0) execvp(argv[4], argv + 4); /* as soon as it is seized */
        die(argv[4]);
    }
    long options = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC |
                   (follow ? PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE : 0);
    if (ptrace(PTRACE_SEIZE, command, 0, options) != 0) die("ptrace");
    close(go[0]);
    close(go[1]);
    for (int fd = 0; fd < 3; fd++) /* they are the command's; here they would keep pipes and connections open */
        close(fd);
    ptrace(PTRACE_INTERRUPT, command, 0, 0);

    int started = 0;
    unsigned long long piece = 0;
    long piece_len = 0;
    for (pid_t pid; (pid = waitpid(-1, &status, __WALL)) > 0;) {
        if (pid == command && !WIFSTOPPED(status)) last = status;
        if (!WIFSTOPPED(status)) continue;
        int event = status >> 16, sig = WSTOPSIG(status);
        if (event == PTRACE_EVENT_EXEC) {
            hide_vdso(pid);
            started = 1;
        }
        if (event == PTRACE_EVENT_STOP && sig != SIGTRAP) { /* stopped as by kill -STOP, and stays so */
            ptrace(PTRACE_LISTEN, pid, 0, 0);
            continue;
        }
        if (event == 0 && sig == (SIGTRAP | 0x80)) {
            struct __ptrace_syscall_info info = {0};
            struct user_regs_struct regs = {0};
            ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info);
            ptrace(PTRACE_GETREGS, pid, 0, &regs);
            int chosen = 0, closing = regs.orig_rax == SYS_close;
            int at = closing ? PTRACE_SYSCALL_INFO_EXIT : PTRACE_SYSCALL_INFO_ENTRY;
            for (size_t i = 0; i < 5; i++)
                chosen |= (long)regs.orig_rax == calls[c].numbers[i] && (i == 0 || calls[c].numbers[i] != 0);
            if (info.op == at && started && chosen && (++seen == when || (later && seen > when))) {
                if (faults >= 0) (void)!write(faults, ".", 1);
                if (effect == SHORT && regs.orig_rax == SYS_sendmsg) { /* the first of its pieces, until it returns */
                    piece = (unsigned long long)get(pid, regs.rsi + offsetof(struct msghdr, msg_iov)) + offsetof(struct iovec, iov_len);
                    piece_len = get(pid, piece);
                    set(pid, regs.rsi + offsetof(struct msghdr, msg_iovlen), 1);
                    set(pid, piece, 1);
                } else if (effect == SHORT && regs.rdx > 1)
                    set_register(pid, offsetof(struct user, regs.rdx), 1);
                else if (closing)
                    set_register(pid, offsetof(struct user, regs.rax), -effect);
                else if (effect > 0) {
                    set_register(pid, offsetof(struct user, regs.orig_rax), -1);
                    undone[pid] = 1;
                }
            } else if (info.op == PTRACE_SYSCALL_INFO_EXIT && piece != 0) {
                set(pid, piece, piece_len);
                piece = 0;
            } else if (info.op == PTRACE_SYSCALL_INFO_EXIT && undone[pid]) {
                set_register(pid, offsetof(struct user, regs.rax), -effect);
                undone[pid] = 0;
            } else if (info.op == PTRACE_SYSCALL_INFO_EXIT && effect == JUMP && chosen) {
                if (regs.orig_rax == SYS_time)
                    set_register(pid, offsetof(struct user, regs.rax), (long)regs.rax + ++jumps * DAY);
                else if (regs.rdi == CLOCK_REALTIME || regs.rdi == CLOCK_REALTIME_COARSE)
                    set(pid, regs.rsi, get(pid, regs.rsi) + ++jumps * DAY);
            }
            sig = 0;
        }
        ptrace(PTRACE_SYSCALL, pid, 0, event ? 0 : sig);
    }
    if (WIFSIGNALED(last)) {
        signal(WTERMSIG(last), SIG_DFL);
        raise(WTERMSIG(last));
    }
    return WIFEXITED(last) ? WEXITSTATUS(last) : 125;
}
