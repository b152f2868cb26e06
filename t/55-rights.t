#!/usr/bin/perl

# Who reads a stranger's bytes holds no right, and who holds a right reads no stranger's bytes: however nfprom is started, and also
# when a stranger has taken over the process that reads his request (taken-over.c).

use strict;
use warnings;
no warnings qw(portable qw);    # sets of capabilities have 64 bits, and setpriv has commas
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Fcntl qw(:flock);
use IO::Socket::IP;
use Live;
use POSIX ();
use Socket;
use Time::HiRes qw(sleep);

need(qw(iptables-nft iptables-legacy nft setpriv sudo cc));

my $NET_ADMIN = 1 << 12;
my @AS_USER = (qw(setpriv --reuid=daemon --regid=daemon --clear-groups --inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin));

restore(4, 'nft', "*filter\n:prometheus - [0:0]\n[7:77] -A prometheus -d 192.0.2.1/32 -p tcp -m tcp --dport 22 -j RETURN\nCOMMIT\n");
restore(6, 'nft', "*filter\n:prometheus - [0:0]\n-A prometheus -d 2001:db8::1/128 -j RETURN\nCOMMIT\n");

# An iptables-save that goes on until it is killed.
mkdir "$DIR/slow";
mkdir "$DIR/marks";
chmod 01777, "$DIR/marks";
for my $command (qw(iptables-save iptables-legacy-save)) {
    spew("$DIR/slow/$command", "#!/bin/sh\n: > '$DIR/marks/reading'\nexec sleep 86399\n");
    chmod 0755, "$DIR/slow/$command";
}

# ---- what a process holds

# Of these, those that run: what has lost its parent may be a zombie for a while.
sub running { return grep { slurp("/proc/$_/stat") =~ /\) [^Z]/ } @_ }

sub children { my ($pid) = @_; return split ' ', slurp("/proc/$pid/task/$pid/children") }

sub status {
    my ($pid) = @_;
    return map { /^(\w+):\s*(.*?)\s*$/ ? ($1 => $2) : () } split /\n/, slurp("/proc/$pid/status");
}

# A test: the process holds nothing. Of the set that bounds what it may get only root may take something.
sub holds_nothing {
    my ($pid, $promise, $was_root) = @_;
    my %is = status($pid);
    my %holds = map { $_ => $is{$_} } grep { !defined $is{$_} || $is{$_} !~ /\A0+\z/ } qw(CapInh CapPrm CapEff CapAmb), $was_root ? 'CapBnd' : ();
    is_deeply(\%holds, {}, "$promise: no capability");
    is($is{NoNewPrivs}, 1, '... nor any to come');
    is("$is{Uid} $is{Gid} $is{Groups}", "65534\t65534\t65534\t65534 65534\t65534\t65534\t65534 ", '... and nobody\'s user, group and groups') if $was_root;
    return;
}

# A test: so many collectors are there, and each of them could read the rules.
sub collectors_hold {
    my ($pid, $count, $promise) = @_;
    my @right = map { my %is = status($_); hex($is{CapEff} || 0) & $NET_ADMIN ? 'can' : 'cannot' } children($pid);
    is("@right", join(' ', ('can') x $count), "... $promise");
    return;
}

# ---- in each mode

# Starts the command with a connection: (pid, this end of it).
sub connected {
    my @command = @_;
    socketpair(my $client, my $connection, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
    my $pid = fork;
    if (!$pid) {
        open my $said, '>', "$DIR/said";
        POSIX::dup2(fileno $connection, 0);
        POSIX::dup2(fileno $connection, 1);
        POSIX::dup2(fileno $said,       2);
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    return ($pid, $client);
}

# A test in three steps: half of a request, the rest of it, and the end. reader finds the process that reads.
sub exchange_holds_nothing {
    my ($mode, $client, $reader, $families, $was_root) = @_;
    unlink "$DIR/marks/reading";
    syswrite $client, "GET /metrics HTTP/1.1\r\n";
    my $pid = patiently { my $pid = $reader->(); my %is = $pid ? status($pid) : (); ($is{NoNewPrivs} || 0) == 1 && $pid } 600;
    ok($pid, "$mode: half of a request is there") or return;
    holds_nothing($pid, "$mode, half of a request is there", $was_root);
    collectors_hold($pid, $families, 'a collector for each family');
    syswrite $client, "Host: x\r\n\r\n";
    ok((patiently { -e "$DIR/marks/reading" } 600), '... then iptables-save goes on and on');
    holds_nothing($pid, "$mode, iptables-save is read", $was_root);
    return $pid;
}

my @MODES = (
    ['root',                                         1, [qw(setpriv --groups=4,20)]],    # (more than it may have here)
    ['a user with CAP_NET_ADMIN, as under xinetd',   0, \@AS_USER],
);
{
    local $ENV{PATH} = "$DIR/slow:$ENV{PATH}";
    for my $mode (@MODES) {
        my ($name, $was_root, $wrap) = @$mode;
        for my $families (1, 2) {
            my ($pid, $client) = connected(@$wrap, $NFPROM, '-timeout', '1000s', $families > 1 ? '-ipv6' : ());
            exchange_holds_nothing("$name, $families", $client, sub {$pid}, $families, $was_root);
            my @left = map { ($_, children($_)) } children($pid);
            cmp_ok(@left, '>', $families, '... a collector runs it');
            kill KILL => $pid;
            waitpid $pid, 0;
            ok((patiently { !running(@left) } 600), '... and all of it ends when nfprom is killed');
        }

        my $port = free_port();
        my $server = start("$DIR/log", @$wrap, $NFPROM, '-timeout', '1000s', '-addr', "127.0.0.1:$port");
        ok(wait_for_port($port), "$name, -addr") or diag(slurp("$DIR/log"));
        my $client = IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port) or die "connect: $@";
        my $pid = exchange_holds_nothing("$name, -addr", $client, sub { (children($server))[0] }, 1, $was_root);
        my @left = map { ($_, children($_)) } $pid, children($pid);
        kill KILL => $server;
        ok((patiently { !running(@left) } 600), '... and all of it ends when the listener is killed');
        stop($server);

        unlink "$DIR/marks/reading";
        my $printer = start("$DIR/log", @$wrap, $NFPROM, '-timeout', '1000s', '-print');
        ok((patiently { -e "$DIR/marks/reading" } 600), "$name, -print: iptables-save goes on and on");
        holds_nothing($printer, "$name, -print", $was_root);
        collectors_hold($printer, 1, 'a collector');
        stop($printer);
    }

    # somebody stops a collector, with its command (SIGSTOP)
    for my $mode (@MODES) {
        my ($name, $was_root, $wrap) = @$mode;
        unlink "$DIR/marks/reading";
        my ($pid, $client) = connected(@$wrap, $NFPROM, '-timeout', '2s');
        syswrite $client, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        ok((patiently { -e "$DIR/marks/reading" } 600), "$name: iptables-save goes on and on");
        my @stopped = map { ($_, children($_)) } children($pid);
        kill STOP => @stopped;
        like(read_to_end($client), qr{\AHTTP/1\.1 504 }, '... and with its collector is stopped: the answer comes all the same');
        close $client;
        waitpid $pid, 0;
        is($?, 256, '... and nfprom ends');
        if ($was_root) {
            kill KILL => @stopped;    # nobody may not
        }
        ok((patiently { !running(@stopped) } 600), $was_root ? '... the rest ends when it is killed' : '... and all of it ends');
    }

    # ... before the request is there: nothing is started
    for my $mode (@MODES) {
        my ($name, $was_root, $wrap) = @$mode;
        my ($pid, $client) = connected(@$wrap, $NFPROM, '-timeout', '2s');
        syswrite $client, "GET /metrics HTTP/1.1\r\n";
        my @stopped;
        ok((patiently { @stopped = children($pid) } 600), "$name: a collector waits for the request");
        kill STOP => @stopped;
        syswrite $client, "Host: x\r\n\r\n";
        like(read_to_end($client), qr{\AHTTP/1\.1 504 .*^ipv4: there was no time to start a process$}ms, '... and is stopped: the answer says so');
        close $client;
        waitpid $pid, 0;
        kill KILL => @stopped;
    }

    # somebody kills a collector before the request is there
    for my $mode (map { my $m = $_; map { [@$m, $_] } 'nft', 'legacy' } @MODES) {
        my ($name, $was_root, $wrap, $variant) = @$mode;
        my ($pid, $client) = connected(@$wrap, $NFPROM, '-variant', $variant);
        syswrite $client, "GET /metrics HTTP/1.1\r\n";
        my @killed;
        ok((patiently { @killed = children($pid) } 600), "$name, $variant: a collector waits for the request");
        kill KILL => @killed;
        ok((patiently { !running(@killed) } 600), '... and is killed');
        syswrite $client, "Host: x\r\n\r\n";
        like(read_to_end($client), qr{\AHTTP/1\.1 503 .*^ipv4: cannot start a process: the collector has been killed$}ms, '... which the answer says');
        close $client;
        waitpid $pid, 0;
    }

    # the request is 404, or for what does not need iptables: no collector is left, and nothing was run
    for my $path ('/-/healthy', '/', '/nothing') {
        unlink "$DIR/marks/reading";
        my ($pid, $client) = connected($NFPROM);
        syswrite $client, "GET $path HTTP/1.1\r\n";
        my @collectors;
        ok((patiently { @collectors = children($pid) } 600), "$path: a collector waits");
        syswrite $client, "Host: x\r\n\r\n";
        sysread $client, my $bytes, 65536;
        like($bytes, qr{\AHTTP/1\.1 (?:200|404) }, '... there is an answer');
        close $client;
        waitpid $pid, 0;
        ok(!-e "/proc/$collectors[0]", '... and no collector when nfprom has ended') if @collectors;
    }

    # a client that does not read holds up the answer, and no collector
    mkdir "$DIR/many";
    spew("$DIR/many/iptables-save", "#!/bin/sh\ncat '$DIR/many/rules'\n");
    spew("$DIR/many/rules", join "\n", '# Generated by iptables-save v1.8.9 (nf_tables)', '*filter', ':prometheus - [0:0]', (map { "[1:1] -A prometheus -s 10.0.0.0/8 -p $_ -j RETURN" } 1 .. 9) x 2000, "COMMIT\n");
    chmod 0755, "$DIR/many/iptables-save";
    for my $path ('/metrics', '/status') {
        local $ENV{PATH} = "$DIR/many:$ENV{PATH}";
        my ($pid, $client) = connected($NFPROM, '-timeout', '1000s');
        syswrite $client, "GET $path HTTP/1.1\r\n";
        my @collectors;
        ok((patiently { @collectors = children($pid) } 600), "$path: a collector waits");
        syswrite $client, "Host: x\r\n\r\n";
        ok((patiently { !running(@collectors) } 600) && running($pid), '... and is gone while the client does not read the answer');
        close $client;
        waitpid $pid, 0;
    }
}
is(one_shot($NFPROM)->{status}, 200, 'as root the rules are read');
is(one_shot(@AS_USER, $NFPROM)->{status}, 200, '... and as that user');
{
    # (a filter of system calls, as the unit's, may end who tries to change it)
    my ($pid, $client) = connected((map { s/\+net_admin/+net_admin,+setuid,+setgid/r } @AS_USER), $NFPROM);
    syswrite $client, "GET /metrics HTTP/1.1\r\n";
    my %is;
    patiently { %is = status($pid); $is{NoNewPrivs} == 1 } 600;
    is("$is{Uid} $is{CapPrm}", "1\t1\t1\t1 0000000000000000", 'a user who may change his user stays who he is');
    close $client;
    waitpid $pid, 0;
}
SKIP: {
    my @alone = qw(unshare --user --map-root-user --net);
    skip_or_fail('no user namespaces here', 1) unless system("@alone true 2>/dev/null") == 0;
    spew("$DIR/rules", "*filter\n:prometheus - [0:0]\n-A prometheus -p tcp -j RETURN\nCOMMIT\n");
    is(one_shot(@alone, 'sh', '-c', 'iptables-nft-restore <"$0" && exec "$1"', "$DIR/rules", $NFPROM)->{status}, 200, '... and as root of a namespace that has no other user');
}

# ---- taken over

my $taken = "$DIR/taken-over";
is((run('', 'cc', '-std=c11', '-O1', '-DVERSION="x"', '-o', $taken, "$SOURCE/t/taken-over.c", "$SOURCE/parse.c"))[0], 0, 'an nfprom that does what a request says') or do { done_testing(); exit 1 };
chmod 0755, $taken;
spew("$DIR/secret", 'secret');
chmod 0600, "$DIR/secret";

# What comes back, without the head.
sub attack {
    my ($path, @command) = @_;
    my ($pid, $client) = connected(@command);
    syswrite $client, "GET $path HTTP/1.1\r\n\r\n";
    my $got = read_to_end($client);
    close $client;
    waitpid $pid, 0;
    return $got;
}

sub read_to_end {
    my ($client) = @_;
    my $all = '';
    1 while sysread $client, $all, 65536, length $all;
    return $all;
}

my %NEVER = map { $_->[0] => [@$_[1 .. 2]] } (
    # attack                                            what it says                                    promise
    ['/run?iptables-nft+-A+prometheus+-j+ACCEPT',       qr/Permission denied|not permitted/,            'changes no rule by iptables'],
    ['/run?iptables-legacy+-A+INPUT+-j+ACCEPT',         qr/Permission denied|not permitted/,            '... of iptables-legacy'],
    ['/run?nft+flush+ruleset',                          qr/not permitted/,                              '... by nft'],
    ['/netlink',                                        qr/^error: Operation not permitted$/m,          '... through netlink'],
    ['/run?sudo+-n+true',                               qr/no new privileges/,                          'gets no other user by sudo'],
    ["/run?cat+$DIR/secret",                            qr/Permission denied/,                          "reads no file of root's"],
    ['/trace',                                          qr/^ptrace: -1: Operation not permitted$/m,     'does not trace the collector'],
);
sub rules { return saved(4, 'nft') =~ s/^#.*\n//mgr }

my $before = rules();
for my $mode (@MODES) {
    my ($name, $was_root, $wrap) = @$mode;
    my @command = (@$wrap, $taken);
    like(attack('/run?id+-u', @command), $was_root ? qr/\A65534\n/ : qr/\A1\n/, "$name, taken over: it does run what the request says");
    for my $path (sort keys %NEVER) {
        my ($says, $promise) = @{ $NEVER{$path} };
        like(attack($path, @command), $says, "... it $promise");
    }
    is(rules(), $before, '... the rules are as before');

    my %words = (
        'no byte'               => ['',                 qr/^answered: (?:ended|other)$/m],
        'a byte'                => ['00',               qr/^answered: ended$/m],
        'a byte too few'        => ['00' x 11,          qr/^answered: ended$/m],
        'a byte too many'       => ['00' x 13,          qr/^answered: ended$/m],
        'very many'             => ['00' x 4000,        qr/^answered: ended$/m],
        'no such command'       => ['02' . '00' x 11,    qr/^answered: ended$/m],
        'a very large one'      => ['ffffffff' . '00' x 8, qr/^answered: ended$/m],
        'no such use of a lock' => ['00000000' . '04000000' . '00000000', qr/^answered: ended$/m],
        'neither first nor not' => ['00' x 8 . '02000000', qr/^answered: ended$/m],
        'a good word'           => ['00' x 12,          qr/^answered: started$/m],
    );
    for my $what (sort keys %words) {
        my ($hex, $expected) = @{ $words{$what} };
        my $got = attack("/word?$hex", @command);
        like($got, $expected, "... $what, and a descriptor: its answer");
        like($got, qr/^in the pipe: 0$/m, '... the descriptor is not kept') unless $what eq 'no byte';
    }
}
like(attack('/signal?19', $taken), qr/^kill: -1: Operation not permitted$/m, 'root, taken over: it cannot even signal the collector');

# The lock of the legacy tables is let go at the collector's own deadline, whatever its parent does.
{
    local $ENV{PATH} = "$DIR/slow:$ENV{PATH}";
    unlink "$DIR/marks/reading";
    my ($pid, $client) = connected($taken, '-variant', 'legacy', '-timeout', '1s');
    syswrite $client, "GET /lock HTTP/1.1\r\n\r\n";
    ok((patiently { -e "$DIR/marks/reading" } 600), 'taken over: it lets the command run under the lock');
    my @group = map { ($_, children($_)) } children($pid);
    open my $lock, '<', '/run/xtables.lock' or die "/run/xtables.lock: $!";
    flock $lock, LOCK_EX;
    pass('... and the lock is free again');
    ok((patiently { !running(@group) } 600), '... the collector and its command have ended');
    ok(-e "/proc/$pid", '... while that process is still there');
    kill KILL => $pid;
    waitpid $pid, 0;
}

done_testing();
