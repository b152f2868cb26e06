#!/usr/bin/perl

# nfprom under the real super-servers: xinetd with the file that is shipped, and
# one scrape under each other that is installed.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(iptables-nft iptables-legacy xinetd setpriv promtool));

my $series = series_of(address => '203.0.113.140/32', direction => 'in', l2proto => 'ipv4', l3proto => 'tcp', port => 22);

sub load_chain {
    restore(4, 'nft', "*filter\n:prometheus - [0:0]\n[31:415] -A prometheus -d 203.0.113.140/32 -p tcp -m tcp --dport 22\nCOMMIT\n");
    return;
}

sub packets {
    my ($answer) = @_;
    return $answer->{status} == 200 ? exposition($answer->{body})->{nfprom_packets_total}{$series} : $answer->{wire};
}

# Of every process that runs our copy of nfprom: pid and the fields of its status.
sub our_processes {
    my @found;
    for my $dir (glob '/proc/[0-9]*') {
        next unless (readlink "$dir/exe" || '') eq $NFPROM;
        push @found, { slurp("$dir/status") =~ /^(\w+):[ \t]*(.*)$/mg };
    }
    return @found;
}

# ---- xinetd: the shipped file, with another place of the program and another port

my $port = free_port();
my $conf = slurp("$SOURCE/xinetd/nfprom");
is($conf =~ s{/usr/local/sbin/nfprom}{$NFPROM}, 1, 'the shipped file names the installed program once');
is($conf =~ s{^(\s*port\s*=\s*)9914$}{$1$port}m, 1, 'and port 9914');
like($conf, qr/^\s*$_\s*=/m, "it sets $_") for qw(instances per_source cps only_from);
spew("$DIR/xinetd.conf", $conf);

load_chain();
my $xinetd = start("$DIR/xinetd.log", 'xinetd', '-dontfork', '-f', "$DIR/xinetd.conf", '-pidfile', "$DIR/xinetd.pid");
ok(wait_for_port($port), 'xinetd accepts the shipped file') or diag(slurp("$DIR/xinetd.log"));

my $answer = http_get('127.0.0.1', $port);
is(packets($answer), 31, 'xinetd: a scrape has the counters');
is(promtool_says($answer->{body}), '', 'xinetd: promtool has nothing to say');
is($answer->{headers}{'content-length'}, length $answer->{body}, 'xinetd: nothing comes after the answer');

ipt(4, 'legacy', '-N', 'old');
my ($status, $out, $warning) = run('', 'iptables-nft-save', '-c', '-t', 'filter');
like($warning, qr/# Warning: iptables-legacy tables present/, 'iptables-save warns now on standard error');
$answer = http_get('127.0.0.1', $port);
is(packets($answer), 31, 'xinetd: the scrape still has the counters');
like($answer->{wire}, qr{\AHTTP/1\.1 200 }, 'xinetd: the first byte is that of the status line');
unlike($answer->{wire}, qr/Warning/, 'xinetd: the warning does not reach the client');

ipt(4, 'nft', '-F', 'prometheus');
ipt(4, 'nft', '-X', 'prometheus');
$answer = http_get('127.0.0.1', $port);
is($answer->{status}, 503, 'xinetd: without the chain the scrape fails');
like($answer->{wire}, qr{\AHTTP/1\.1 503 }, 'xinetd: and the first byte is that of the status line again');
like($answer->{body}, qr/-N prometheus/, 'xinetd: the text says how to create the chain');
is($answer->{headers}{'content-length'}, length $answer->{body}, 'xinetd: no message for the log is sent to the client');
load_chain();

# A connection that says nothing keeps a process there to be looked at.
my $silent = IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port) or die "connect: $!";
my @processes;
patiently { @processes = our_processes() };
is(scalar @processes, 1, 'xinetd: one process for one connection');
my %process = %{ $processes[0] || {} };
unlike($process{Uid} || '0', qr/\b0\b/, 'xinetd: it is not root');
unlike($process{Gid} || '0', qr/\b0\b/, 'xinetd: nor in the group of root');
is($process{Groups} || '', '', 'xinetd: nor in another group');
for my $set (qw(CapPrm CapEff CapBnd CapAmb)) {
    is(hex($process{$set} || 0), 1 << 12, "xinetd: $set is CAP_NET_ADMIN alone");
}
is($process{NoNewPrivs}, 1, 'xinetd: it gains no new privileges');
is($process{SigIgn} && hex($process{SigIgn}) & 1 << 16, 0, 'xinetd: children are not ignored');
close $silent;
ok(patiently { !our_processes() }, 'xinetd: when the client goes away the process ends');

my %answers;
$answers{ packets(http_get('127.0.0.1', $port)) }++ for 1 .. 100;
is_deeply(\%answers, { 31 => 100 }, 'xinetd: a hundred scrapes in a row are answered');

# iptables-save sees legacy tables, and warns, only as root.
my $root_port = free_port();
my $as_root = $conf =~ s{^\s*server\s*=.*}{server = $NFPROM}mr =~ s{^\s*server_args.*}{}mr =~ s{^(\s*port\s*=).*}{$1 $root_port}mr;
my $root_xinetd = start("$DIR/xinetd.log", 'xinetd', '-dontfork', '-f', spew("$DIR/root.conf", $as_root), '-pidfile', "$DIR/root.pid");
ok(wait_for_port($root_port), 'xinetd as root: listens');
$answer = http_get('127.0.0.1', $root_port);
is(packets($answer), 31, 'xinetd as root: the scrape has the counters');
like($answer->{wire}, qr{\AHTTP/1\.1 200 }, 'xinetd as root: the first byte is that of the status line');
unlike($answer->{wire}, qr/Warning/, 'xinetd as root: the warning of iptables-save does not reach the client');
stop($root_xinetd);

my $refused = http_get('203.0.113.140', $port);
is($refused->{wire}, '', 'xinetd: who is not in only_from gets nothing') if $conf =~ /only_from\s*=\s*127\.0\.0\.1\s*$/m;
stop($xinetd);
flush_all();

# ---- the others, one scrape each

load_chain();
spew("$DIR/inetd.conf", '');
my %others = (
    socat     => sub { ('socat', "TCP-LISTEN:$_[0],bind=127.0.0.1,reuseaddr,fork", "EXEC:$NFPROM") },
    tcpserver => sub { ('tcpserver', '-q', '-R', '-H', '-l0', '127.0.0.1', $_[0], $NFPROM) },
    's6-tcpserver' => sub { ('s6-tcpserver', '127.0.0.1', $_[0], $NFPROM) },
    'busybox' => sub { ('busybox', 'nc', '-ll', '-p', $_[0], '-e', $NFPROM) },
    inetd     => sub {
        spew("$DIR/inetd.conf", "127.0.0.1:$_[0] stream tcp nowait root $NFPROM nfprom\n");
        return ('inetd', '-i', "$DIR/inetd.conf");
    },
);
for my $program (sort keys %others) {
    SKIP: {
        skip("$program is not installed", 3) unless have($program);
        my $port = free_port();
        my $pid = start("$DIR/$program.log", $others{$program}->($port));
        ok(wait_for_port($port), "$program listens") or diag(slurp("$DIR/$program.log"));
        my $answer = http_get('127.0.0.1', $port);
        is(packets($answer), 31, "$program: a scrape has the counters");
        is($answer->{headers}{'content-length'}, length $answer->{body}, "$program: and ends where it says");
        stop($pid);
    }
}

SKIP: {
    skip('s6-ipcserver is not installed', 2) unless have('s6-ipcserver');
    my $path = "$DIR/socket";
    my $pid = start("$DIR/s6.log", 's6-ipcserver', $path, $NFPROM);
    ok(patiently { -S $path && IO::Socket::UNIX->new(Peer => $path) }, 's6-ipcserver listens') or diag(slurp("$DIR/s6.log"));
    my $answer = Live::request(IO::Socket::UNIX->new(Peer => $path));
    is(packets($answer), 31, 's6-ipcserver: a scrape over a local socket has the counters');
    stop($pid);
}

done_testing();
