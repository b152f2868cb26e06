#!/usr/bin/perl

# -addr: nfprom listens by itself, and answers each connection in a process of its own.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::IP;
use POSIX ();
use Socket;
use Test::More;
use Time::HiRes qw(sleep time);
use NF;

my $HOST = '127.0.0.1';

sub dial {
    my ($port, $host, $from) = @_;
    return IO::Socket::IP->new(PeerHost => $host || $HOST, PeerPort => $port, Type => SOCK_STREAM, $from ? (LocalHost => $from) : ());
}

# So many connections, eight from each of as many addresses as it takes.
sub crowd { my ($port, $count) = @_; return map { dial($port, $HOST, '127.0.1.' . (1 + int $_ / 8)) } 0 .. $count - 1 }

sub free_port {
    my ($host) = @_;
    my $s = IO::Socket::IP->new(LocalHost => $host || $HOST, LocalPort => 0, Listen => 1, Type => SOCK_STREAM) or return;
    return $s->sockport;
}

# Starts a listener; addr => with PORT where the port goes, try => the address to find it at.
# Returns {pid, port, err} when it takes connections.
sub listener {
    my (%o) = @_;
    my $try = $o{try} || $HOST;
    my $port = free_port($try) or die "no port to be had on $try";
    (my $addr = $o{addr} || "$HOST:PORT") =~ s/PORT/$port/;
    open my $err, '+>:raw', "$DIR/listener.err" or die;
    my $pid = spawn(%o, err => $err, flags => ['-addr', $addr, @{ $o{flags} || [] }]);
    my $up = patiently(sub { my $s = dial($port, $try) or return 0; close $s; 1 });
    diag("nothing listens at $addr: " . slurp("$DIR/listener.err")) unless $up;
    return { pid => $pid, port => $port, addr => $addr };
}

# A test: SIGTERM ends it with status 0, and nothing of it is left.
sub ends {
    my ($l, $promise, $signal) = @_;
    kill $signal || 'TERM', $l->{pid};
    is(reap($l->{pid}), 0, "$promise: " . ($signal || 'SIGTERM') . ' ends the listener with status 0');
    none_left("$promise: no process is left");
    is(slurp("$DIR/listener.err"), '', "$promise: it had nothing to say") unless $l->{talks};
}

sub ask {
    my ($l, $path, %o) = @_;
    my $sock = dial($l->{port}, $o{host}) or return { status => 0, raw => '', headers => {}, hung => 1 };
    return converse($sock, get($path || '/metrics'), %o);
}

# The children of a process: state letter of each.
sub children {
    my ($pid) = @_;
    my @states;
    for (glob '/proc/[0-9]*/stat') {
        my ($state, $parent) = slurp($_) =~ /\) (\S) (\d+) / or next;
        push @states, $state if $parent == $pid;
    }
    return @states;
}

# ---- where it listens

for (
    ['an IPv4 address', '127.0.0.1:PORT', '127.0.0.1'],
    ['an IPv6 address', '[::1]:PORT',     '::1'],
    ['a name',          'localhost:PORT', '127.0.0.1', '::1'],
    ['a port alone',    ':PORT',          '127.0.0.1'],
) {
    my ($what, $addr, @hosts) = @$_;
    SKIP: {
        my ($try) = grep { free_port($_) } @hosts;
        skip_or_fail("no $hosts[0] here", 5) unless $try;
        fake();
        if ($addr =~ /localhost/) {
            # it may be either; what the resolver says first
            my ($e, $first) = Socket::getaddrinfo('localhost', 80, { socktype => SOCK_STREAM });
            $try = '::1' if !$e && $first->{family} == AF_INET6 && free_port('::1');
        }
        my $l = listener(addr => $addr, try => $try);
        my $r = ask($l, '/metrics', host => $try);
        answers($r, 200, "$what ($l->{addr}): the metrics are there");
        is(value($r->{series} || [], 'nfprom_packets_total'), 101, "... $what: with their numbers");
        if ($addr =~ /^:/ && free_port('::1')) {
            answers(ask($l, '/-/healthy', host => '::1'), 200, '... a port alone: over IPv6 as well');
        }
        ends($l, $what);
    }
}
{
    my $taken = IO::Socket::IP->new(LocalHost => $HOST, LocalPort => 0, Listen => 1, Type => SOCK_STREAM) or die;
    my $addr = "$HOST:" . $taken->sockport;
    my $r = run(flags => ['-addr', $addr]);
    is($r->{exit}, 1, 'a port in use exits 1');
    like($r->{err}, qr/\Anfprom: [^\n]*\Q$addr\E[^\n]*in use/i, '... and says so, with the address');
    $r = run(flags => ['-addr', 'no-such-host.invalid:9914']);
    like($r->{exit}, qr/\A[12]\z/, 'a name that is not known does not start');
    like($r->{err}, qr/no-such-host\.invalid/, '... and says so, with the name');
    for my $port (1, 9914, 65535) {
        $r = run(flags => ['-addr', "192.0.2.1:$port"]);
        is($r->{exit}, 1, "an address of somebody else, and port $port, exits 1");
    }
    like($r->{err}, qr/192\.0\.2\.1/, '... and says so, with the address');
}

# A name that stands in /etc/hosts twice, or more often, with the same addresses.
SKIP: {
    need_root(11);
    skip_or_fail('no mount namespace here', 11) unless system('unshare', '-m', 'true') == 0;
    spew("$DIR/hosts", "127.0.0.1 localhost twice.test\n127.0.0.2 twice.test\n127.0.0.1 again twice.test\n127.0.0.2 twice.test\n127.0.0.3 twice.test\n");
    chmod 0644, "$DIR/hosts";
    my @with_hosts = ('unshare', '-m', 'sh', '-c', 'mount --bind "$0" /etc/hosts && exec "$@"', "$DIR/hosts");
    my $l = listener(addr => 'twice.test:PORT', wrap => \@with_hosts);
    answers(ask($l, '/-/healthy', host => $_), 200, "a name twice in /etc/hosts: it listens on $_") for '127.0.0.1', '127.0.0.2', '127.0.0.3';
    ends($l, 'a name twice in /etc/hosts');

    # One of its addresses is in use, and the next is not.
    my $taken = IO::Socket::IP->new(LocalHost => '127.0.0.2', LocalPort => 0, Listen => 1, Type => SOCK_STREAM) or die;
    my $r = run(flags => ['-addr', 'twice.test:' . $taken->sockport], wrap => \@with_hosts);
    like("$r->{exit} $r->{err}", qr/\A1 .*in use/s, 'a name with one address in use exits 1');

    spew("$DIR/hosts", join '', map {"127.0.1.$_ many.test\n"} 1 .. 20);
    $l = listener(addr => 'many.test:PORT', try => '127.0.1.1', wrap => \@with_hosts);
    is(scalar(grep { (ask($l, '/-/healthy', host => "127.0.1.$_")->{status} || 0) == 200 } 1 .. 20), 16, 'a name with twenty addresses: it listens on sixteen');
    ends($l, 'a name with twenty addresses');
}

# ---- one after the other

fake();
my $l = listener();
answers(ask($l, '/nowhere'), 404, 'a 404 as under a super-server');
answers(ask($l), 200, '... and the next is answered');
answers(converse(dial($l->{port}), "hello\r\n\r\n"), 400, '... and nonsense gets its 400');
for my $how ({ go_away => 0 }, { go_away => 0, reset => 1 }, { go_away => 10, reset => 1 }) {
    converse(dial($l->{port}), get('/metrics'), %$how);
}
answers(ask($l), 200, 'clients that go away do it no harm');
ok(patiently(sub { !children($l->{pid}) }), 'no process is kept once the connections are over')
    or diag('children: ' . join ' ', children($l->{pid}));
ends($l, 'after some requests');

# at once after the end, at the same address
{
    fake();
    $l = listener();
    ask($l) for 1 .. 3;
    kill TERM => $l->{pid};
    reap($l->{pid});
    my $pid = spawn(flags => ['-addr', $l->{addr}]);
    ok(patiently(sub { my $s = dial($l->{port}) or return 0; close $s; 1 }), 'it can be started again at once at the same address');
    kill TERM => $pid;
    is(reap($pid), 0, '... and ended again');
}

# ---- a hundred at the same time

fake(run => "sleep 1\ncat \$OUT");
$l = listener(flags => ['-timeout', '60m']);
{
    my @socks = crowd($l->{port}, 100);
    is(scalar(grep {defined} @socks), 100, 'a hundred connections at the same time are taken');
    syswrite $_, get('/metrics') for grep {defined} @socks;
    my $good = 0;
    my @bad;
    for my $s (grep {defined} @socks) {
        my $r = converse($s, '');
        if ($r->{status} == 200 && length $r->{body} == $r->{headers}{'content-length'} && $r->{body} =~ /^nfprom_packets_total\{.*\} 101$/m) { $good++ }
        else { push @bad, "$r->{status} " . substr $r->{raw}, 0, 60 }
    }
    is($good, 100, '... and each is answered whole') or diag join "\n", @bad;
    ok(patiently(sub { !children($l->{pid}) }), '... and no zombie is left')
        or diag('children: ' . join ' ', children($l->{pid}));
}
fake();
answers(ask($l), 200, '... and the next is answered');
ends($l, 'after a hundred at once');

# ---- those who say nothing

$l = listener(flags => ['-timeout', '60m']);
{
    my $outcome = sub { my $s = dial($l->{port}, @_) or return 'no connection'; return converse($s, get('/metrics'))->{status} || 'closed' };
    my @silent = map { dial($l->{port}, $HOST, '127.0.0.2') } 1 .. 8;
    ok(patiently(sub { children($l->{pid}) == 8 }), 'eight silent connections from one address are taken');
    is($outcome->($HOST, '127.0.0.2'), 'closed', '... a ninth is closed at once');
    is($outcome->($HOST, '127.0.0.3'), 200, '... and another address is answered without waiting');
    my $told = () = slurp("$DIR/listener.err") =~ /\n/g;
    my @turns = map { ($outcome->($HOST, '127.0.0.2'), $outcome->($HOST, '127.0.0.3')) } 1 .. 12;
    is("@turns", join(' ', ('closed', 200) x 12), '... again and again, in turns');
    cmp_ok(scalar(() = slurp("$DIR/listener.err") =~ /\n/g) - $told, '<=', 6, '... which is no line for each');
    push @silent, crowd($l->{port}, 248);
    ok(patiently(sub { children($l->{pid}) == 256 }), '256 silent connections from 32 addresses are taken');
    is($outcome->($HOST, '127.0.0.3'), 'closed', '... one more is closed at once');
    close $_ for splice @silent, 0, 8;
    ok(patiently(sub { $outcome->($HOST, '127.0.0.2') eq 200 }), '... and when some are gone others have their places');
    $l->{talks} = 1;
    ends($l, 'with many silent connections');
    like(slurp("$DIR/listener.err"), qr/\A(?:nfprom: -addr: a connection is closed: 256 are the most at once, 8 from one address\n)+\z/, '... and lines in the log, not one for each');
}
SKIP: {
    # Of IPv6 a host has a whole network.
    need_root(4);
    skip_or_fail('no network namespace here', 4) unless system('unshare', '-n', 'true') == 0;
    my $script = spew("$DIR/ipv6.pl", <<'PERL');
use strict; use warnings; use IO::Socket::IP; use Time::HiRes 'sleep';
my ($program) = @ARGV;
system 'ip link set lo up; for a in 2001:db8:1::1 2001:db8:1::2 2001:db8:1::9 2001:db8:2::1 2001:db8:1:1::1; do ip address add $a/128 dev lo nodad; done';
my $pid = fork // die; exec $program, '-addr', '[::]:9914', '-timeout', '60m' if !$pid;
sub dial { return IO::Socket::IP->new(PeerHost => '2001:db8:1::9', PeerPort => 9914, LocalHost => $_[0]) }
sub ask { my $s = dial(@_) or return 'none'; syswrite $s, "GET /-/healthy HTTP/1.0

"; sysread $s, my $line, 15 or return 'closed'; return $line }
sub children { return split ' ', do { open my $f, '<', "/proc/$pid/task/$pid/children"; <$f> // '' } }
for (1 .. 6000) { last if dial('2001:db8:2::1'); sleep 0.1 }
for (1 .. 6000) { last if !children(); sleep 0.1 }
my @silent = map { dial('2001:db8:1::' . (1 + $_ % 2)) } 1 .. 8;
for (1 .. 6000) { last if children() == 8; sleep 0.1 }
print join('|', map { ask($_) } '2001:db8:1::1', '2001:db8:1::9', '2001:db8:2::1', '2001:db8:1:1::1'), "
";
kill TERM => $pid; waitpid $pid, 0;
PERL
    is(`unshare -n '$^X' '$script' '$NFPROM' 2>/dev/null`, "closed|closed|HTTP/1.1 200 OK|HTTP/1.1 200 OK
", 'IPv6: eight connections from a /64; another /64 is answered, also the next one');
}

# ---- SIGTERM in the middle

for my $signal ('TERM', 'INT') {
    fake(run => "trap '' TERM INT HUP\nsleep 86399 &\nsleep 86399");
    $l = listener(flags => ['-timeout', '60m']);
    my $sock = dial($l->{port});
    syswrite $sock, get('/metrics');
    patiently(sub { grep { slurp("/proc/$_/cmdline") =~ /86399/ } left_over() });
    ends($l, 'in the middle of a scrape that hangs', $signal);
}
fake(sleep => 86399);
$l = listener(flags => ['-timeout', '1s']);
$l->{talks} = 1;
answers(ask($l, '/metrics'), 504, 'a scrape that hangs gets its 504');
like(slurp("$DIR/listener.err"), qr/\Anfprom: ipv4: [^\n]+\n\z/, '... and a line in the log of the listener');
ok(patiently(sub { !children($l->{pid}) }), '... and leaves no process') or diag('children: ' . join ' ', children($l->{pid}));
fake();
answers(ask($l), 200, '... and the next is answered');
ends($l, 'after a hang');
{
    fake(sleep => 86399);
    $l = listener(flags => ['-timeout', '8s']);
    my $sock = dial($l->{port});
    syswrite $sock, get('/metrics');
    patiently(sub { grep { slurp("/proc/$_/cmdline") =~ /86399/ } left_over() });
    my ($inode) = map { (split)[9] } grep { /^ *\d+: \w+:@{[sprintf '%04X', $l->{port}]} \w+:0000 0A / } split /\n/, slurp('/proc/net/tcp');
    my %holds;
    for my $pid ($l->{pid}, left_over()) { $holds{$pid} = 1 if grep { (readlink || '') eq "socket:[$inode]" } glob "/proc/$pid/fd/*" }
    is(join(' ', keys %holds), $l->{pid}, 'only the listener holds its socket: a new one can listen at once');
    kill KILL => $l->{pid};
    is(reap($l->{pid}), 'signal 9', 'the listener is killed');
    none_left('... and what it has begun ends at its deadline at the latest');
}

# ---- little to live on

{
    fake();
    $l = listener(wrap => [shell_limit('-n 24')], flags => ['-timeout', '3s']);
    $l->{talks} = 1;
    my @silent = grep {defined} map { dial($l->{port}) } 1 .. 60;
    close $_ for @silent;
    my $r;
    ok(patiently(sub { ($r = ask($l, '/metrics'))->{status} == 200 }), 'few file descriptors: it lives through sixty connections');
    answers($r, 200, '... and answers') if $r;
    ends($l, 'few file descriptors');
}
SKIP: {
    need_root(4);
    fake();
    # listener, connection, collector, shell, what it starts: enough for one or two
    my %how = unprivileged(54321);
    $l = listener(%how, wrap => [@{ $how{wrap} }, shell_limit('-u 10')], flags => ['-timeout', '3s']);
    $l->{talks} = 1;
    my @many = grep {defined} map { dial($l->{port}) } 1 .. 40;
    syswrite $_, get('/metrics') for @many;
    my %seen;
    $seen{ converse($_, '')->{status} }++ for @many;
    is(join(' ', grep { !/^(?:0|200|503|504)$/ } keys %seen), '', 'few processes: nothing but good answers, 503, 504 or none')
        or diag join ' ', %seen;
    my $r;
    ok(patiently(sub { ($r = ask($l, '/metrics'))->{status} == 200 }), '... it lives through forty connections');
    answers($r, 200, '... and answers again') if $r;
    ends($l, 'few processes');
}

none_left('no process is left of all this');
done_testing;
