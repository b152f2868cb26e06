package Live;

# What the tests with real iptables have in common. `use Live;` starts the test
# again in a network namespace and a mount namespace of its own, with an empty
# /run, so that no rule, lock or packet of theirs is seen by the machine or by
# another test.
#
# What the test cannot do without is named with need(); what is missing is a
# skip, and a failure where the environment says CI=true. What it can do without
# is asked for with have(), and where only a part of it is missing, that part is
# left out with skip_or_fail(), in a SKIP block.

use strict;
use warnings;
use Cwd ();
use parent 'Exporter';
use File::Copy ();
use File::Temp ();
use FindBin ();
use IO::Socket::INET ();
use IO::Socket::IP ();
use IO::Socket::UNIX ();
use POSIX ();
use Socket;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
    $DIR $NFPROM $SOURCE $FAMILIES have need give_up skip_or_fail
    run must command start ended stop patiently slurp spew free_port wait_for_port
    ipt ipt_ok commands_of restore saved saved_rules flush_all
    send_udp send_tcp
    one_shot http_get exposition series_of promtool_says
    container_root in_container boot_again fact leave_container
);

use constant NAMESPACE => 'NFPROM_TEST_NAMESPACE';    # in the environment of the second start

my $OWNER = $$;
my %running;

our $SOURCE = Cwd::abs_path("$FindBin::Bin/..");
our ($DIR, $NFPROM);

# How each family is spoken to: its command, its l2proto, and addresses on lo
# that play this machine and a peer.
our $FAMILIES = {
    4 => { command => 'iptables',  l2proto => 'ipv4', any => '0.0.0.0/0', bits => 32,
           here => '203.0.113.140', peer => '198.51.100.7' },
    6 => { command => 'ip6tables', l2proto => 'ipv6', any => '::/0',      bits => 128,
           here => '2001:db8::140', peer => '2001:db8:1::7' },
};

# ---- getting there

sub have {
    my ($program) = @_;
    return (grep { -x "$_/$program" } split(/:/, $ENV{PATH}))[0];
}

sub give_up {
    my ($reason) = @_;
    if (($ENV{CI} || '') eq 'true') {
        fail("everything needed is there: $reason");
        done_testing();
        exit 1;
    }
    plan(skip_all => $reason);
}

sub skip_or_fail {
    my ($reason, $count) = @_;
    if (($ENV{CI} || '') eq 'true') {
        fail("everything needed is there: $reason");
        no warnings 'exiting';
        last SKIP;
    }
    skip($reason, $count || 1);
}

sub need {
    for my $program (@_) {
        give_up("$program is not installed") unless have($program);
    }
    return;
}

# The environment variable ends the recursion.
sub enter {
    $ENV{PATH} = "$ENV{PATH}:/usr/sbin:/sbin";
    give_up('needs root') if $> != 0;
    need(qw(unshare ip mount));
    if (!$ENV{+NAMESPACE}) {
        system('unshare', '-n', '-m', 'true') == 0 or give_up('no new namespaces here');
        local $ENV{+NAMESPACE} = 1;
        exec 'unshare', '-n', '-m', $^X, $0, @ARGV or die "unshare: $!";
    }
    delete $ENV{+NAMESPACE};
    must('ip', 'link', 'set', 'lo', 'up');
    for my $f (values %$FAMILIES) {
        must('ip', 'address', 'add', "$f->{$_}/$f->{bits}", 'dev', 'lo', $f->{bits} == 128 ? 'nodad' : ())
            for qw(here peer);
    }
    must(qw(mount -t tmpfs -o mode=755 none /run));
    return;
}

sub import {
    my ($class) = @_;
    $SIG{PIPE} = 'IGNORE';
    binmode Test::More->builder->$_, ':utf8' for qw(output failure_output todo_output);
    enter();

    # A copy, where any user may read and run it.
    $DIR = File::Temp::tempdir('nfprom-live-XXXXXX', TMPDIR => 1, CLEANUP => 1);
    chmod 0755, $DIR;
    my $binary = $ENV{NFPROM} || "$SOURCE/nfprom";
    BAIL_OUT("$binary is not there; run make, or set NFPROM") unless -x $binary;
    $NFPROM = "$DIR/nfprom";
    File::Copy::copy($binary, $NFPROM) or die "$binary: $!";
    chmod 0755, $NFPROM;

    $SIG{ALRM} = sub { BAIL_OUT("$0 takes too long") };
    alarm 1800; # only a hang takes so long
    $class->export_to_level(1, @_);
    return;
}

END {
    if ($$ == $OWNER) {
        local $?;
        stop($_) for keys %running;
    }
}

# ---- files and processes

sub slurp {
    my ($path) = @_;
    open my $f, '<:raw', $path or return '';
    local $/;
    my $all = <$f>;
    return defined $all ? $all : '';
}

sub spew {
    my ($path, $bytes) = @_;
    open my $f, '>:raw', $path or die "$path: $!";
    print $f $bytes;
    close $f or die "$path: $!";
    return $path;
}

# Runs a command to its end: (status, standard output, standard error).
sub run {
    my ($input, @command) = @_;
    my ($in, $out, $err) = map { scalar File::Temp::tempfile(UNLINK => 1) } 1 .. 3;
    print $in $input;
    seek $in, 0, 0;
    my $pid = fork;
    if (!$pid) {
        POSIX::dup2(fileno $in,  0);
        POSIX::dup2(fileno $out, 1);
        POSIX::dup2(fileno $err, 2);
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    my $status = $? & 127 ? 128 + ($? & 127) : $? >> 8;
    my @said = map { seek $_, 0, 0; local $/; my $all = <$_>; defined $all ? $all : '' } $out, $err;
    return ($status, @said);
}

sub must {
    my @command = @_;
    my ($status, $out, $err) = run('', @command);
    die "@command: status $status: $err" if $status != 0;
    return $out;
}

# Runs commands, each a string with blanks between its words; dies if one fails.
sub command { must(split ' ', $_) for @_; return }

# Starts a server in a process group of its own, what it says in a file; its pid.
sub start {
    my ($log, @command) = @_;
    my $pid = fork;
    if (!$pid) {
        setpgrp;
        open STDIN,  '<', '/dev/null';
        open STDOUT, '>>', $log;
        open STDERR, '>&', \*STDOUT;
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    $running{$pid} = 1;
    return $pid;
}

# Whether it ended by itself.
sub ended {
    my ($pid) = @_;
    return slurp("/proc/$pid/stat") =~ /\) Z /;
}

sub stop {
    my ($pid) = @_;
    delete $running{$pid} or return;
    kill KILL => -$pid, $pid;
    waitpid $pid, 0;
    return;
}

# Waits until the block says yes; false after ten minutes, or as many seconds as are given: only a hang takes so long.
sub patiently(&;$) {
    my ($true, $limit) = @_;
    my $end = time + ($limit || 600);
    while (time < $end) {
        my $result = $true->();
        return $result if $result;
        sleep 0.02;
    }
    return;
}

# One that a server can have without SO_REUSEADDR: no connection that was closed a minute ago has it, from any address.
sub free_port {
    my $s = IO::Socket::INET->new(LocalAddr => '0.0.0.0', Listen => 1) or die "listen: $!";
    return $s->sockport;
}

# Looks in the kernel's table of listeners; a trial connection would start a process.
sub wait_for_port {
    my ($port) = @_;
    my $hex = sprintf ':%04X [0:]+ 0A', $port;
    return patiently { (slurp('/proc/net/tcp') . slurp('/proc/net/tcp6')) =~ $hex };
}

# ---- iptables

# Options of iptables, for one family and variant; dies if it refuses.
sub ipt {
    my ($family, $variant, @options) = @_;
    return must("$FAMILIES->{$family}{command}-$variant", @options);
}

# The same where a refusal is an answer.
sub ipt_ok {
    my ($family, $variant, @options) = @_;
    my ($status) = run('', "$FAMILIES->{$family}{command}-$variant", @options);
    return $status == 0;
}

# A directory for PATH, in which iptables and its like are those of the variant.
sub commands_of {
    my ($variant) = @_;
    my $multi = "xtables-$variant-multi";
    mkdir "$DIR/$variant";
    for my $command (map { my $c = $_; map {"$c$_"} '', '-save', '-restore' } qw(iptables ip6tables)) {
        symlink have($multi) . "/$multi", "$DIR/$variant/$command" or die $!;
    }
    return "$DIR/$variant";
}

sub restore {
    my ($family, $variant, $ruleset) = @_;
    my ($status, $out, $err) = run($ruleset, "$FAMILIES->{$family}{command}-$variant-restore", '-c');
    die "restore: $err" if $status != 0;
    return;
}

sub saved {
    my ($family, $variant, $table) = @_;
    return must("$FAMILIES->{$family}{command}-$variant-save", '-c', '-t', $table || 'filter');
}

# The rules of a chain as [packets, bytes, text]. Comments with newlines that
# look like rules are not understood here; do not ask for them.
sub saved_rules {
    my ($family, $variant, $chain, $table) = @_;
    return map { /^\[(\d+):(\d+)\] -A \Q$chain\E(?: (.*?))? *$/ ? [$1, $2, defined $3 ? $3 : ''] : () }
        split /\n/, saved($family, $variant, $table);
}

sub flush_all {
    for my $family (keys %$FAMILIES) {
        for my $variant (qw(nft legacy)) {
            # Only tables that exist: asking legacy for a table creates it.
            my @tables = qw(filter mangle raw nat);
            @tables = grep { my $t = $_; grep { $_ eq "$t\n" } names($family) } @tables if $variant eq 'legacy';
            for my $table (@tables) {
                ipt($family, $variant, '-t', $table, @$_) for ['-F'], ['-X'];
            }
        }
    }
    return;
}

sub names {
    my ($family) = @_;
    return slurp('/proc/net/' . ($family == 6 ? 'ip6' : 'ip') . '_tables_names') =~ /^(.*\n)/mg;
}

# ---- packets

# Datagrams from one address and port to another; nobody has to listen.
sub send_udp {
    my ($from, $sport, $to, $dport, $count, $size) = @_;
    my $s = IO::Socket::IP->new(Proto => 'udp', LocalHost => $from, LocalPort => $sport || 0,
                                PeerHost => $to, PeerPort => $dport) or die "udp $from -> $to: $@";
    send $s, 'x' x ($size || 100), 0 for 1 .. $count;    # an ICMP error of the one before is no matter
    return;
}

# A connection that carries some bytes to a listener at $to and is closed.
sub send_tcp {
    my ($from, $to, $dport, $size) = @_;
    my $listener = IO::Socket::IP->new(LocalHost => $to, LocalPort => $dport, Listen => 5, ReuseAddr => 1)
        or die "listen on $to port $dport: $@";
    my $client = IO::Socket::IP->new(LocalHost => $from, PeerHost => $to, PeerPort => $dport)
        or die "connect $from -> $to port $dport: $@";
    my $server = $listener->accept;
    syswrite $client, 'x' x ($size || 1000);
    close $client;
    1 while sysread $server, my $bytes, 65536;
    close $server;
    return;
}

# ---- scraping

# All that comes from the server until it closes, taken apart.
sub answer {
    my ($wire) = @_;
    my ($head, $body) = split /\r\n\r\n/, $wire, 2;
    my ($line, @headers) = split /\r\n/, defined $head ? $head : '';
    my ($status) = ($line || '') =~ m{^HTTP/1\.1 (\d{3}) };
    return {
        wire => $wire, status => $status || 0, body => defined $body ? $body : '',
        headers => { map { /^([^:]+): *(.*)$/ ? (lc $1 => $2) : () } @headers },
    };
}

sub read_all {
    my ($socket) = @_;
    my $wire = '';
    1 while sysread $socket, $wire, 65536, length $wire;
    return $wire;
}

sub request {
    my ($socket, $path) = @_;
    syswrite $socket, 'GET ' . ($path || '/metrics') . " HTTP/1.1\r\nHost: test\r\n\r\n";
    return answer(read_all($socket));
}

# Asks a server. Without a connection: status 0.
sub http_get {
    my ($address, $port, $path) = @_;
    my $socket = IO::Socket::IP->new(PeerHost => $address, PeerPort => $port) or return answer('');
    return request($socket, $path);
}

# Plays the super-server for one connection: the command is nfprom with flags, or
# something in front of it. A local socket, since packets of the scrape itself
# would be counted. The answer has two more members, exit and said.
sub one_shot {
    my @command = @_;
    my $log = "$DIR/said";
    socketpair(my $client, my $connection, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
    my $pid = fork;
    if (!$pid) {
        open my $said, '>', $log;
        POSIX::dup2(fileno $connection, 0);
        POSIX::dup2(fileno $connection, 1);
        POSIX::dup2(fileno $said,       2);
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    close $connection;
    my $answer = request($client);
    close $client;
    waitpid $pid, 0;
    return { %$answer, exit => $? >> 8, said => slurp($log) };
}

# ---- the exposition

# {name}{"label=value,..." in the order of the names}: the value as printed.
# Dies on what the format does not allow, and on a series that comes twice.
sub exposition {
    my ($text) = @_;
    my %all;
    die "no newline at the end\n" unless $text =~ /\n\z/;
    for my $line (split /\n/, $text) {
        next if $line =~ /^# (?:HELP|TYPE) [a-z_]+ \S/;
        my ($name, $labels, $value) = $line =~ /^([a-zA-Z_]\w*)(?:\{((?:\w+="(?:[^"\\]|\\[\\"n])*",?)*)\})? (\S+)$/
            or die "not a sample: $line\n";
        my %label;
        while (($labels || '') =~ /(\w+)="((?:[^"\\]|\\.)*)"/g) {
            my ($key, $raw) = ($1, $2);
            die "label $key twice: $line\n" if exists $label{$key};
            $raw =~ s/\\(.)/$1 eq 'n' ? "\n" : $1/ge;
            $label{$key} = $raw;
        }
        my $key = series_of(%label);
        die "series twice: $line\n" if exists $all{$name}{$key};
        $all{$name}{$key} = $value;
    }
    return \%all;
}

sub series_of {
    my %label = @_;
    return join ',', map { "$_=$label{$_}" } sort keys %label;
}

# What promtool complains of; '' is praise.
sub promtool_says {
    my ($text) = @_;
    my ($status, $out, $err) = run($text, 'promtool', 'check', 'metrics');
    return $status == 0 ? $out . $err : "status $status: $out$err";
}

# ---- a real systemd

my $CONTAINER;    # where its root is mounted
my @FILTER;       # nspawn's option: which system calls it may do beside the usual ones
my $boots = 0;

# What its scripts have in common, there to be read in. `units` is theirs: the instances of nfprom that are not done.
my $FUNCTIONS = <<'FUNCTIONS';
cd /srv/nfprom || exit 1
out() { cat > "out/$1" 2>&1; }
# Until a command says yes; the limit, half an hour, is for a hang.
patiently() { local i; for i in $(seq 18000); do "$@" && return; sleep 0.1; done; return 1; }
none() { [ -z "$("$@")" ]; }
settled() { patiently none units; }
found() { pid=$(pgrep -o "$@"); }
waiting() { patiently found "$@"; }
# Until nfprom waits for the request, so that it has taken all the steps before that.
asking() { found -x nfprom && grep -q '^State:.S' "/proc/$pid/status"; }
# All that the journal has got of nfprom since it was asked last. Where the host keeps the number of processes with control groups
# of version 1, systemd 262 says at each start that it cannot read it.
if grep -qsw pids /sys/fs/cgroup/cgroup.controllers; then of_the_host='^$'; else of_the_host='Failed to read pids\.max for control group'; fi
journal() { journalctl --sync; journalctl -q --no-pager -o short --cursor-file=cursor | grep nfprom | grep -v "$of_the_host" | cut -d ' ' -f 5-; }
# What stands in for iptables-save or iptables-legacy-save.
fake() { printf '#!/bin/sh\n%s\n' "$2" > "/usr/local/sbin/$1"; chmod 755 "/usr/local/sbin/$1"; }
unfake() { rm -f /usr/local/sbin/ip*-save; }
FUNCTIONS

# A root over this machine's own: what is written there goes to a tmpfs and is thrown away. The files (name => bytes) are put into
# /srv/nfprom, the source with the binary that is tested beside them; `guest` is a script that reads `functions` and leaves what it
# sees in out/.
sub container_root {
    my (%files) = @_;
    my ($machine, $root) = ("$DIR/machine", "$DIR/machine/root");
    mkdir $machine;
    must(qw(mount -t tmpfs -o mode=755 none), $machine);
    mkdir "$machine/$_" for qw(upper scratch root);
    must('mount', '-t', 'overlay', '-o', "lowerdir=/,upperdir=$machine/upper,workdir=$machine/scratch", 'overlay', $root);
    $CONTAINER = $root;
    must('mkdir', '-p', "$root/srv/nfprom/out", "$root/srv/nfprom/source");
    must('sh', '-c', 'cd "$1" && cp -r Makefile README.md *.c *.h systemd xinetd "$2"', 'sh', $SOURCE, "$root/srv/nfprom/source");
    must('cp', $NFPROM, "$root/srv/nfprom/source/nfprom");
    must('touch', "$root/srv/nfprom/source/nfprom");
    %files = (functions => $FUNCTIONS, %files);
    spew("$root/srv/nfprom/$_", $files{$_}) for keys %files;
    chmod 0755, "$root/srv/nfprom/guest";
    return $root;
}

# Boots a systemd in such a root, and runs `guest` there. With -bpf => 0 systemd may load no programs into the kernel, as in many
# containers. A test: it came to its end.
sub in_container {
    my (%files) = @_;
    @FILTER = delete $files{-bpf} // 1 ? '--system-call-filter=bpf' : ();
    my $root = container_root(%files);
    spew("$root/etc/systemd/system/live-test.service", <<'UNIT');
[Unit]
DefaultDependencies=no
Requires=basic.target
After=basic.target systemd-journald.service
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/bash -c '/srv/nfprom/guest > /srv/nfprom/log 2>&1; echo done > /srv/nfprom/done'
TimeoutStartSec=infinity
UNIT

    # Nobody else starts a unit so often. And a sanitizer looks for leaks with ptrace(2), which the units do not allow: it would never end.
    must('mkdir', '-p', "$root/etc/systemd/system.conf.d");
    spew("$root/etc/systemd/system.conf.d/live-test.conf", "[Manager]\nDefaultStartLimitIntervalSec=0\nDefaultEnvironment=ASAN_OPTIONS=detect_leaks=0\n");

    return boot();
}

# The same container once more, as after a reboot: with what was written there, and without its rules. A test, like the first.
sub boot_again {
    my ($guest) = @_;
    unlink "$CONTAINER/srv/nfprom/done";
    spew("$CONTAINER/srv/nfprom/guest", $guest);
    return boot();
}

sub boot {
    my $root = $CONTAINER;

    # systemd 262 does not boot beside control groups of version 1. Lists of addresses are programs in the kernel: they need version 2
    # as well, and the system call bpf.
    my $groups = '/sys/fs/cgroup';
    if (!-e "$groups/cgroup.procs") {
        must(qw(umount -R -l), $groups);
        must(qw(mount -t cgroup2 none), $groups);
    }

    # A control group of its own, so that two such containers do not take each other's away.
    my $group     = "$groups/nfprom-test-$$";
    my $enter     = 'mkdir "$0" && echo $$ > "$0/cgroup.procs" && exec "$@"';
    my $machine   = 'nfprom-test-' . ++$boots;    # systemd 257 keeps a mount point for each name
    my $container = start("$DIR/console", 'sh', '-c', $enter, $group, 'systemd-nspawn', '-q', '-D', $root, '-b', "--machine=$machine", '--private-network',
        '--capability=CAP_NET_ADMIN,CAP_NET_RAW', @FILTER, '--register=no', '--keep-unit', '--console=read-only',
        'systemd.unit=live-test.service');
    my $done;
    patiently { $done = -e "$root/srv/nfprom/done" or ended($container) } 1700;
    ok($done, 'a real systemd boots in a container and runs the script to its end')
        or diag(slurp("$DIR/console"), slurp("$root/srv/nfprom/log"));
    stop($container);
    patiently { run('', 'find', $group, '-depth', '-type', 'd', '-exec', 'rmdir', '{}', ';'); !-e $group };
    return $done;
}

sub fact { return slurp("$CONTAINER/srv/nfprom/out/$_[0]") }

sub leave_container {
    diag("in the container: ", slurp("$CONTAINER/srv/nfprom/log")) if !Test::More->builder->is_passing;
    must('umount', $_) for $CONTAINER, "$DIR/machine";
    return;
}

1;
