#!/usr/bin/perl

# The installed units under a real systemd, booted in a container over this
# machine's own root; what is written there goes to a tmpfs and is thrown away.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(systemd-nspawn systemd-analyze iptables-nft iptables-legacy bash make));

# ---- what runs in the container: each check leaves its facts in a file

# One client: `client FROM TO [SECONDS]` asks for the metrics and prints all that comes back. FROM is an address of this
# machine, SECONDS how long it tries to connect.
# `client limits` and `client burst` tell what became of many connections at once.
my $client = <<'CLIENT';
use strict;
use warnings;
use IO::Socket::IP;
use Time::HiRes qw(sleep time);
$SIG{PIPE} = 'IGNORE';

sub dial {
    my ($from, $to) = @_;
    return IO::Socket::IP->new(LocalHost => $from, PeerHost => $to, PeerPort => 9914, Timeout => $ARGV[2]);
}

sub request {
    my ($socket) = @_;
    syswrite $socket, "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n" if $socket;
    return $socket;
}

sub answer {
    my ($socket) = @_;
    return '(no connection)' unless $socket;
    my $wire = '';
    1 while sysread $socket, $wire, 65536, length $wire;
    return $wire;
}

# The first line of it, or what there is in its place.
sub outcome {
    my ($wire) = @_;
    return $wire =~ /\A(HTTP\S+ \d+)/ ? $1 : $wire eq '' ? 'closed unanswered' : $wire;
}

sub held {
    my ($wanted) = @_;
    my $count = '';
    for (my $end = time + 1800; time < $end && $count ne "$wanted\n"; sleep 0.1) {
        $count = `systemctl show --value -p NConnections nfprom.socket`;
    }
    print "held: $count";
}

my @silent;
sub hold {
    my ($count, $from) = @_;
    push @silent, map { dial($from, '127.0.0.1') } 1 .. $count;
}
sub ask { print "$_[0]: ", outcome(answer(request(dial($_[0], '127.0.0.1')))), "\n" }

if ($ARGV[0] eq 'limits') {
    hold(8, '127.0.0.1');
    held(8);
    ask('127.0.0.1');
    ask('127.0.0.2');
    held(8);
    hold(8, "127.0.0.$_") for 2 .. 32;
    held(256);
    ask('127.0.0.33');
    @silent = ();
    held(0);
    ask("127.0.0.$_") for 1, 2, 33;
} elsif ($ARGV[0] eq 'burst') {
    my @sockets = map { dial('127.0.0.' . ($_ % 6 + 1), '127.0.0.1') } 1 .. 300;
    request($_) for @sockets;
    print outcome(answer($_)), "\n" for @sockets;
} else {
    print answer(request(dial(@ARGV[0, 1])));
}
CLIENT

my $guest = <<'GUEST';
#!/bin/bash
. /srv/nfprom/functions
scrape() { perl client "${1:-127.0.0.1}" "${2:-127.0.0.1}" "${3:-30}"; }
flags() { echo "NFPROM_FLAGS=$*" > /etc/default/nfprom; }
units() { systemctl list-units --all --no-legend 'nfprom@*'; }
failed() { systemctl list-units --failed --no-legend 'nfprom*'; }
chain() { printf '*filter\n:prometheus - [0:0]\n[%s] -A prometheus -p tcp -m tcp --dport 22\nCOMMIT\n' "$2" | $1-restore -c; }
rights() { grep -H -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs)' "/proc/$1/status" | sed 's/.*status://'; }
files() { find /usr /etc /opt -not -type d -not -path /etc/default/nfprom -not -path '/etc/*-' -not -name .pwd.lock | sort; }

ip link set lo up
for a in 192.0.2.10/32 198.51.100.7/32; do ip address add $a dev lo; done
for a in 2001:db8::140/128 2001:db8:1::7/128; do ip address add $a dev lo nodad; done
journal > /dev/null

# ---- installed and started by README.md's own line
files > before
make -C source install 2>&1 | out install
files > after; { diff before after; ls /etc/default/nfprom; } | out installed
bash -c "$(cat start-line)" 2>&1 | out start
systemctl is-active nfprom.socket | out active
systemctl is-enabled nfprom.socket | out enabled
journal | out journal-start
systemd-analyze verify nfprom.socket nfprom@x.service nfprom@.service 2>&1 | out verify
chain iptables-nft 18446744073709551615:31
scrape | out scrape
scrape ::1 ::1 | out scrape-over-ipv6
settled; journal | out journal-first
scrape > /dev/null; settled; journal | out journal-success
systemctl show nfprom@x.service -p User -p DynamicUser -p AmbientCapabilities -p CapabilityBoundingSet -p PrivateNetwork -p PrivateUsers | out show
systemd-analyze security --no-pager nfprom@x.service | tail -n 1 | out security

# ---- the flags, without a reload
ip6tables-nft -N prometheus
ip6tables-nft -A prometheus -d 2001:db8::140 -p udp --dport 9 -j RETURN
ip6tables-nft -A OUTPUT -j prometheus
perl -MIO::Socket::IP -e '$s = IO::Socket::IP->new(Proto => "udp", PeerHost => "2001:db8::140", PeerPort => 9); for (1 .. 5) { send $s, "x" x 100, 0 or redo }'
flags -chain prometheus -ipv6 -namespace acct; scrape | out flags
flags -ipv7; scrape | out flags-wrong
settled; journal | out flags-journal
failed | out flags-failed

# ---- the rights of a process, and of iptables-save
flags -timeout 30m
exec 4<>/dev/tcp/127.0.0.1/9914; patiently asking; rights $pid | out process; rights $(pgrep -n -x nfprom) | out collector
exec 4>&-; settled
fake iptables-save 'exec sleep 987'
scrape > /dev/null & waiting -f 'sleep 987'; rights $pid | out process-save
kill $pid; wait; unfake

# ---- what is said on standard error
flags; settled; journal > /dev/null
fake iptables-save 'echo "# Warning: from the fake" >&2; exec /usr/sbin/iptables-save "$@"'; scrape | out stderr-success
settled; journal | out stderr-success-journal
fake iptables-save 'echo "a reason from the fake" >&2; exit 3'; scrape | out stderr-failure
settled; journal | out stderr-failure-journal
unfake

# ---- many connections
flags -timeout 60m
perl client burst | out burst
systemctl is-active nfprom.socket | out burst-active
failed | out burst-failed
settled; units | out burst-units
scrape | out burst-scrape
perl client limits 2>&1 | out limits
settled; { failed; units; } | out limits-units
flags

# ---- failures
journal > /dev/null
iptables-nft -F; iptables-nft -X; scrape | out no-chain
settled; journal | out journal-failure
units | out failure-units
for i in 1 2 3; do
    for j in 1 2 3 4 5; do exec 5<>/dev/tcp/127.0.0.1/9914; exec 5>&-; done
    settled
done
settled; failed | out silent-failed
journal | out silent-journal

# ---- programs that hang
chain iptables-nft 31:415
flags -timeout 1s
hang() { fake iptables-save "$2"; scrape | out "$1"; settled; { pgrep -af 'sleep 987'; units; failed; } | out "$1-left"; journal | out "$1-journal"; unfake; }
hang hang 'sleep 987 & sleep 987'
hang hang-deaf 'trap "" TERM; sleep 987 & sleep 987; sleep 987'
hang hang-away 'setsid sleep 987 & sleep 987'
hang hang-deaf-away 'setsid sh -c "trap \"\" TERM; sleep 987; sleep 987" & sleep 987'
flags

# ---- who may ask: README.md's own lines
ask_all() { for a in 127.0.0.1 192.0.2.10 198.51.100.7 ::1 2001:db8:1::7; do echo "$a $(scrape $a $a 2 | head -c 12)"; done; }
ask_all | out list-without
(cd source && bash -c "$(cat ../open-line)") 2>&1 | out open-line
ask_all | out list
systemd-analyze verify nfprom.socket 2>&1 | out list-verify
bash -c "$(cat lists-line)" < /dev/null 2>&1 | out lists-line
systemctl show nfprom.socket -p IPAddressAllow -p IPAddressDeny | out list-show
systemd-run -q --wait --pipe -p IPAddressDeny=any perl "$PWD/client" 127.0.0.1 127.0.0.1 2 < /dev/null | out list-elsewhere
flags -timeout 30m
exec 4<>/dev/tcp/127.0.0.1/9914; waiting -x nfprom
systemctl restart nfprom.socket 2>&1 | out restart; journal > /dev/null
systemctl stop 'nfprom@*' 2>&1 | out stop; exec 4>&-
{ failed; units; journal; } | out stop-left
flags
systemctl is-active nfprom.socket | out restart-active
ask_all | out list-restarted
rm -r /etc/systemd/system/nfprom.socket.d
systemctl daemon-reload; systemctl restart nfprom.socket
ask_all | out list-gone

# ---- who comes from 1.0.0, whose socket listened on all addresses
unit=$(systemctl show --value -p FragmentPath nfprom.socket); cp $unit new-socket
sed -i -e '/^ListenStream=\[/d' -e 's/^ListenStream=.*/ListenStream=9914/' $unit; systemctl daemon-reload; systemctl restart nfprom.socket
ask_all | out upgrade-before
make -s -C source install 2>&1 | out upgrade
ask_all | out upgrade-installed
systemctl daemon-reload; systemctl restart nfprom.socket; ask_all | out upgrade-restarted
grep '^  sed ' out/upgrade | sed s/SERVER/192.0.2.10/ > upgrade-line; bash upgrade-line 2>&1 | out upgrade-line
ask_all | out upgrade-opened
cmp $unit new-socket 2>&1 | out upgrade-unit
rm -r /etc/systemd/system/nfprom.socket.d

# ---- without IPv6
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
systemctl daemon-reload; systemctl restart nfprom.socket 2>&1 | out without-ipv6-start
scrape | out without-ipv6
echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6
ip address add ::1/128 dev lo; for a in 2001:db8::140/128 2001:db8:1::7/128; do ip address add $a dev lo nodad; done
systemctl restart nfprom.socket

# ---- an upgrade while others scrape: none of them is lost
journal > /dev/null
(n=0; while [ ! -e installed-enough ]; do scrape 127.0.0.$((n % 9 + 1)) | head -n 1; n=$((n + 1)); sleep 0.05; done) | out meanwhile &
for i in $(seq 100); do make -s -C source install; systemctl daemon-reload; done 2>&1 | out meanwhile-install
touch installed-enough; wait
systemctl is-active nfprom.socket | out meanwhile-active
# (At a reload systemd asks for the peer of each connection, and complains if it is gone.)
settled; { journal | grep -v 'getpeername\(()\)\? failed'; failed; } | out meanwhile-journal
rm -f $(systemctl show --value -p FragmentPath nfprom@x.service); systemctl daemon-reload; scrape > /dev/null
make -s -C source install; bash -c "$(cat start-line)" 2>&1 | out mended-start
scrape | out mended
settled; systemctl reset-failed 2> /dev/null; journal > /dev/null

# ---- the drop-in with the sandbox that costs more
install -D -m 644 source/systemd/sandbox.conf /etc/systemd/system/nfprom@.service.d/sandbox.conf; systemctl daemon-reload
scrape | out sandbox
settled; journal | out sandbox-journal
systemd-analyze verify nfprom.socket nfprom@x.service nfprom@.service 2>&1 | out sandbox-verify
systemd-analyze security --no-pager nfprom@x.service | tail -n 1 | out sandbox-security
rm -r /etc/systemd/system/nfprom@.service.d

# ---- the legacy backend: README.md's own line
iptables-nft -F; iptables-nft -X; ip6tables-nft -F; ip6tables-nft -X
chain iptables-legacy 92:653
chain ip6tables-legacy 18446744073709551614:653
(cd source && bash -c "$(cat ../legacy-line)") 2>&1 | out legacy-line
settled; journal > /dev/null
flags -variant legacy -ipv6; scrape | out legacy
flags -variant legacy -ipv6 -list; scrape | out legacy-list; settled
settled; journal | out legacy-journal
systemd-analyze verify nfprom.socket nfprom@x.service nfprom@.service 2>&1 | out legacy-verify
systemd-analyze security --no-pager nfprom@x.service | tail -n 1 | out legacy-security
chain iptables-nft 31:415
iptables-nft-save -c -t filter 2>&1 > /dev/null | out legacy-warning
flags -variant nft; scrape | out legacy-nft
settled; journal | out legacy-nft-journal
install -m 644 source/systemd/sandbox.conf /etc/systemd/system/nfprom@.service.d/; systemctl daemon-reload
flags -variant legacy; scrape | out legacy-sandbox; settled
systemd-analyze security --no-pager nfprom@x.service | tail -n 1 | out legacy-sandbox-security
rm /etc/systemd/system/nfprom@.service.d/sandbox.conf; systemctl daemon-reload
flags -variant legacy -timeout 1s; exec 6>> /run/xtables.lock; flock 6; scrape | out legacy-lock; exec 6>&-; settled
flags -variant legacy -timeout 30m
exec 4<>/dev/tcp/127.0.0.1/9914; patiently asking; rights $pid | out legacy-process; rights $(pgrep -n -x nfprom) | out legacy-collector
exec 4>&-; settled
fake iptables-legacy-save 'exec sleep 987'
scrape > /dev/null & waiting -f 'sleep 987'; rights $pid | out legacy-process-save
kill $pid; wait; unfake

# ---- and away, by README.md's own lines, with drop-ins of each kind
install -D -m 644 source/systemd/remote.conf /etc/systemd/system/nfprom.socket.d/remote.conf
install -D -m 644 source/systemd/textfile.conf /etc/systemd/system/nfprom@textfile.service.d/textfile.conf
systemctl daemon-reload; systemctl restart nfprom.socket
install -D -m 755 source/systemd/chain /etc/nfprom/chain
install -m 644 source/systemd/nfprom-chain.service source/systemd/nfprom-chain-again.service /etc/systemd/system
systemctl daemon-reload; systemctl enable --now nfprom-chain.service 2> /dev/null; iptables-save | grep -c prometheus | out chain-there
settled; journal > /dev/null
(cd source && bash -e ../away-lines) 2>&1 | out uninstall
settled
files > after; { diff before after; find /usr /etc /var/lib /run -iname '*nfprom*'; for c in iptables ip6tables; do $c-save | grep prometheus; done; } | out left
systemctl daemon-reload 2>&1 | out reload
# (That the socket was closed is what PID 1 says.)
{ journal | grep -v -e 'nfprom\.socket: Deactivated successfully' -e ': Closed nfprom\.socket'; systemctl list-unit-files --no-legend 'nfprom*'; } | out reload-journal
GUEST

# ---- what README.md says to do

my $readme = slurp("$SOURCE/README.md");
my ($start_line) = $readme =~ /^make && make install && (systemctl .*enable .*nfprom\.socket)$/m;
my ($legacy_line) = $readme =~ /^(install .*legacy\.conf .*)$/m;
my ($open_line) = $readme =~ /^(sed .*remote\.conf .*)$/m;
my $away_lines = join '', $readme =~ /^(systemctl disable --now nfprom\.socket && .*\n)/m, $readme =~ /^(rm -rf .*\.service\.d .*\n)/m,
    $readme =~ /^(systemctl disable --now nfprom-chain\.service\n(?:[^`\n].*\n)*)```/m;
like($away_lines, qr/^rm -f .*rmdir/m, 'README.md takes the chain away, too');
my ($lists_line) = $readme =~ /^(systemd-run .*IPAddressDeny=any .*)$/m;
ok($start_line, 'README.md has a line that starts the socket unit') or BAIL_OUT('README.md');
ok($legacy_line, 'and one that installs the drop-in for the legacy backend') or BAIL_OUT('README.md');
ok($open_line, 'and one that lets a server on another host ask') or BAIL_OUT('README.md');
ok($away_lines, 'and one that takes all away') or BAIL_OUT('README.md');
ok($lists_line, 'and one that tells whether lists of addresses work here') or BAIL_OUT('README.md');

in_container(guest => $guest, client => $client, 'open-line' => $open_line =~ s/SERVER/192.0.2.10/r, 'lists-line' => $lists_line, 'start-line' => $start_line, 'away-lines' => $away_lines, 'legacy-line' => $legacy_line);
sub answered { return Live::answer(fact($_[0])) }

# The counter of a series that names this much of its labels.
sub packets {
    my ($name, %labels) = @_;
    my $answer = answered($name);
    %labels = (address => '', direction => 'in', l2proto => 'ipv4', l3proto => 'tcp', port => 22, %labels);
    my $namespace = delete $labels{namespace} || 'nfprom';
    return $answer->{status} == 200 ? exposition($answer->{body})->{"${namespace}_packets_total"}{series_of(%labels)} : $answer->{wire};
}

# Nothing before the status line, nothing after the end that Content-Length names.
sub is_clean {
    my ($name, $status) = @_;
    my $answer = answered($name);
    like($answer->{wire}, qr{\AHTTP/1\.1 $status }, "$name: the first byte is that of the status line, $status");
    is($answer->{headers}{'content-length'}, length $answer->{body}, "$name: it ends where Content-Length says");
    return;
}

sub mask_of {
    my $mask = 0;
    $mask |= 1 << { DAC_READ_SEARCH => 2, NET_ADMIN => 12, NET_RAW => 13 }->{$_} for @_;
    return $mask;
}

# Who reads the request: it holds nothing, and can get nothing.
sub holds_nothing {
    my ($name, @bounding) = @_;
    my %process = fact($name) =~ /^(\w+):[ \t]*(.*)$/mg;
    unlike($process{Uid} || '0', qr/\b0\b/, "$name: it is not root");
    is(join(' ', map { hex(defined $process{$_} ? $process{$_} : 'ff') } qw(CapInh CapPrm CapEff CapAmb)), '0 0 0 0', "$name: it holds no capability");
    is(hex($process{CapBnd} || 0), mask_of(@bounding), "$name: the set that bounds it is @bounding alone");
    is($process{NoNewPrivs}, 1, "$name: it gains no new privileges");
    return;
}

sub is_unprivileged {
    my ($name, @capabilities) = @_;
    my $mask = mask_of(@capabilities);
    my %process = fact($name) =~ /^(\w+):[ \t]*(.*)$/mg;
    unlike($process{Uid} || '0', qr/\b0\b/, "$name: it is not root");
    unlike($process{Gid} || '0', qr/\b0\b/, "$name: nor in the group of root");
    unlike($process{Groups} || '', qr/\b0\b/, "$name: by no way");
    is(hex($process{$_} || 0), $mask, "$name: its $_ is @capabilities alone") for qw(CapPrm CapEff CapBnd CapAmb);
    is(hex(defined $process{CapInh} ? $process{CapInh} : 'ff') & ~$mask, 0, "$name: it inherits no other");
    is($process{NoNewPrivs}, 1, "$name: it gains no new privileges");
    return;
}

sub exposure { return fact($_[0]) =~ /: ([0-9.]+)/ ? $1 : 10 }

# ---- what came out

like(fact('installed'), qr{/sbin/nfprom$}m,          'make install brings the program');
like(fact('installed'), qr{/nfprom\.socket$}m,       'and its socket unit');
like(fact('installed'), qr{/nfprom\@\.service$}m,    'and its service unit');
like(fact('installed'), qr{^/etc/default/nfprom$}m,  'and the file for the flags');
is(fact('active'), "active\n",                       'the socket unit starts');
is(fact('enabled'), "enabled\n",                     'and will at the next boot');
unlike(fact('journal-start'), qr/\A.+\n.+/,          'of which there is one line in the journal at most');
is(fact('verify'), '',                               'systemd-analyze verify has nothing to say');
is(packets('scrape'), '18446744073709551615',        'a scrape over port 9914 has the counters');
is(packets('scrape-over-ipv6'), '18446744073709551615', 'over IPv6 too');
is_clean('scrape', 200);
unlike(fact('journal-first'), qr/^(?!systemd\[1\]: Created slice )./m, 'the first leaves nothing in the journal but the slice');
is(fact('journal-success'), '',                      'a success leaves nothing there');

my %show = fact('show') =~ /^(\w+)=(.*)$/mg;
is("$show{User} $show{DynamicUser}", 'nfprom no',    'the unit has a user of its own');
is($show{AmbientCapabilities},   'cap_net_admin',    'the unit gives CAP_NET_ADMIN alone');
is($show{CapabilityBoundingSet}, 'cap_net_admin',    'and allows no other capability');
is($show{PrivateNetwork}, 'no',                      'the ruleset it sees is that of the host');
is($show{PrivateUsers}, 'no',                        'and its capability is the host\'s');
cmp_ok(exposure('security'), '<=', 3.5,              'systemd-analyze security: the exposure is 3.5 at most');
holds_nothing('process', 'NET_ADMIN');
is_unprivileged('collector', 'NET_ADMIN');
is_unprivileged('process-save', 'NET_ADMIN');

is(packets('flags', namespace => 'acct'), '18446744073709551615', 'flags of /etc/default/nfprom count from the next scrape on');
is(packets('flags', namespace => 'acct', address => '2001:db8::140/128', l2proto => 'ipv6', l3proto => 'udp', port => 9), 5,
    'and the counters of IPv6 are there');
is(answered('flags-wrong')->{status}, 500,           'a wrong flag is a 500');
is_clean('flags-wrong', 500);
like(fact('flags-journal'), qr/\A[^\n]*-ipv7[^\n]*\n\z/, 'and one line in the journal names it');
is(fact('flags-failed'), '',                         'no unit has failed for it');

is(packets('stderr-success'), '18446744073709551615', 'what iptables-save says on standard error spoils no scrape');
is_clean('stderr-success', 200);
unlike(answered('stderr-success')->{wire}, qr/Warning/, 'nor does the client see it');
is(fact('stderr-success-journal'), '',               'nor the journal');
is_clean('stderr-failure', 503);
like(answered('stderr-failure')->{body}, qr/a reason from the fake/, 'when iptables-save fails, its words are in the answer');
like(fact('stderr-failure-journal'), qr/\A[^\n]*ipv4: [^\n]*status 3[^\n]*\n\z/, 'and one line is in the journal');

my %burst;
$burst{$_}++ for split /\n/, fact('burst');
cmp_ok($burst{'HTTP/1.1 200'} || 0, '>=', 16,        'of 300 connections at once many are answered');
is(($burst{'HTTP/1.1 200'} || 0) + ($burst{'closed unanswered'} || 0), 300, 'and the others closed') or diag(explain(\%burst));
is(fact('burst-active'), "active\n",                 'after 300 connections at once the socket still listens');
is(fact('burst-failed'), '',                         'and no unit has failed');
is(fact('burst-units'), '',                          'and no instance is left');
is(packets('burst-scrape'), '18446744073709551615',  'and the next scrape is answered');

is(fact('limits'), <<'LIMITS', '8 connections from one address, 256 in all; what is above is closed, others are answered');
held: 8
127.0.0.1: closed unanswered
127.0.0.2: HTTP/1.1 200
held: 8
held: 256
127.0.0.33: closed unanswered
held: 0
127.0.0.1: HTTP/1.1 200
127.0.0.2: HTTP/1.1 200
127.0.0.33: HTTP/1.1 200
LIMITS
is(fact('limits-units'), '',                         'and no unit has failed or is left');

is(answered('no-chain')->{status}, 503,              'without the chain the scrape fails');
is_clean('no-chain', 503);
like(fact('journal-failure'), qr/\A[^\n]*ipv4: [^\n]*prometheus[^\n]*\n\z/, 'and one line in the journal says why');
is(fact('failure-units'), '',                        'the instance that failed is forgotten');
is(fact('silent-failed'), '',                        'connections that say nothing make no failed unit');
is(fact('silent-journal'), '',                       'and no line in the journal');

my %hangs = (
    'hang'           => 'an iptables-save that hangs',
    'hang-deaf'      => 'one that does not heed SIGTERM',
    'hang-away'      => 'one that left something in another session',
    'hang-deaf-away' => 'one that left something there that does not heed SIGTERM',
);
for my $name (sort keys %hangs) {
    is(answered($name)->{status}, 504,               "$hangs{$name} is a 504");
    is(fact("$name-left"), '',                       'and nothing of it is left');
    like(fact("$name-journal"), qr/\A[^\n]*ipv4: [^\n]*in time[^\n]*\n\z/, 'but one line in the journal');
}

my $everybody = join '', map { "$_ HTTP/1.1 200\n" } qw(127.0.0.1 192.0.2.10 198.51.100.7 ::1 2001:db8:1::7);
my $some  = $everybody =~ s/^(198.*|2001\S*) HTTP.*/$1 (no connecti/gmr;
my $local = $some =~ s/^(192\S*) HTTP.*/$1 (no connecti/gmr;
is(fact('list-without'), $local,                     'as shipped this host alone may ask');
is(fact('open-line'), '',                            'README.md\'s line lets another ask, and says nothing');
is(fact('list-verify'), '',                          'nor does systemd-analyze verify');
like(fact('list-show'), qr/^IPAddressDeny=.*0\.0\.0\.0\/0/m, 'with the list of README.md the unit denies all');
like(fact('list-show'), qr/^IPAddressAllow=.*\b192\.0\.2\.10\/32/m, 'but those that are named');
SKIP: {
    # systemd says nothing of it in a container: another unit, which may speak to nobody, shows whether lists work here.
    is(fact('lists-line') eq "ok\n", fact('list-elsewhere') =~ /^HTTP/, "README.md's line tells whether lists work here");
    skip_or_fail('no BPF for control groups here', 2) if fact('list-elsewhere') =~ /^HTTP/;
    is(fact('list'), $some,                          'these are answered, others get no connection');
    is(fact('list-restarted'), $some,                'after a restart of the socket too');
}
is(fact('restart'), '',                              'the restart, while there is a connection, says nothing');
is(fact('restart-active'), "active\n",               'and the socket listens again');
is(fact('stop') . fact('stop-left'), '',             'an instance that is stopped says nothing, has not failed, and is gone');
is(fact('list-gone'), $local,                        'without it this host alone may ask again');

is(fact('upgrade-before'), $everybody,               'with the socket of 1.0.0 everybody could ask');
like(fact('upgrade'), qr/loopback alone/,            'make install over it says what changes');
is(fact('upgrade-installed'), $everybody,            'nothing is dark before a restart');
is(fact('upgrade-restarted'), $local,                'then this host alone may ask');
is(fact('upgrade-line'), '',                         'the line that it printed says nothing');
like(fact('upgrade-opened'), qr/^192\.0\.2\.10 HTTP/m, 'and lets the server ask');
is(fact('upgrade-unit'), '',                         'the unit is as from the first');
is(fact('without-ipv6-start'), '',                   'a host without IPv6 starts the socket all the same');
is(packets('without-ipv6'), 31,                      'and is answered');
my %meanwhile;
$meanwhile{ s/\r//r }++ for split /\n/, fact('meanwhile');
is(join('|', keys %meanwhile), 'HTTP/1.1 200 OK',    'while make install runs a hundred times no scrape is lost');
cmp_ok($meanwhile{'HTTP/1.1 200 OK'} || 0, '>', 50,  'of many');
is(fact('meanwhile-install'), '',                    'nor has make install anything to say');
is(fact('meanwhile-active'), "active\n",             'and the socket still listens');
is(fact('meanwhile-journal'), '',                    'without a line in the journal, or a failed unit');
is(fact('mended-start'), '',                         'a unit file that was removed is mended by README.md\'s line');
is(packets('mended'), 31,                            'and the next scrape is answered');

is(packets('sandbox'), 31,                           'with sandbox.conf a scrape has the counters too');
is(fact('sandbox-journal'), '',                      'and leaves nothing in the journal');
is(fact('sandbox-verify'), '',                       'systemd-analyze verify has nothing to say of it');
cmp_ok(exposure('sandbox-security'), '<=', 2.1,      'systemd-analyze security: the exposure with it is 2.1 at most');

note('exposure: ', fact('security'), 'with the drop-ins: ', fact('sandbox-security'), fact('legacy-security'));
is(fact('legacy-line'), '',                          'the drop-in is installed by the line of README.md');
is(packets('legacy'), 92,                            'with the drop-in the legacy tables are read');
is(packets('legacy', l2proto => 'ipv6'), '18446744073709551614', 'those of IPv6 too');
is_clean('legacy', 200);
is(packets('legacy-list'), 92,                       'with -list too, where iptables takes the lock itself');
is(packets('legacy-list', l2proto => 'ipv6'), '18446744073709551614', 'and those of IPv6');
is(fact('legacy-journal'), '',                       'and nothing is in the journal');
is(fact('legacy-verify'), '',                        'systemd-analyze verify has nothing to say of the drop-in');
cmp_ok(exposure('legacy-security'), '<=', 3.8,       'systemd-analyze security: the exposure with the drop-in is 3.8 at most');
cmp_ok(exposure('legacy-sandbox-security'), '<=', 3.0, '... and with sandbox.conf on top 3.0');
like(fact('legacy-warning'), qr/# Warning: iptables-legacy tables present/, 'with both backends in use, iptables-save warns');
is(packets('legacy-nft'), 31,                        'the scrape has the counters');
is_clean('legacy-nft', 200);
unlike(answered('legacy-nft')->{wire}, qr/Warning/,  'without the warning');
is(fact('legacy-nft-journal'), '',                   'which is not in the journal either');
like(answered('legacy-lock')->{wire}, qr{\AHTTP/1\.1 503 .*holds the lock}s, 'with the drop-in the lock of the legacy backend is heeded');
holds_nothing('legacy-process', qw(NET_ADMIN NET_RAW DAC_READ_SEARCH));
is_unprivileged('legacy-collector', qw(NET_ADMIN NET_RAW DAC_READ_SEARCH));
is_unprivileged('legacy-process-save', qw(NET_ADMIN NET_RAW DAC_READ_SEARCH));
is(packets('legacy-sandbox'), 92,                    'with sandbox.conf on top, too, the scrape has the counters');

cmp_ok(fact('chain-there'), '>', 2,                  'before the end the script has made its chain');
is(fact('left'), '',                                 'the three steps leave no file, and no chain');
is(fact('reload'), '',                               'after it systemctl daemon-reload has nothing to say');
is(fact('reload-journal'), '',                       'nor the journal, and there is no unit');
leave_container();

# ---- where systemd may load no program into the kernel: its lists of addresses do nothing, and nobody says so

my $without_lists = <<'GUEST';
#!/bin/bash
. /srv/nfprom/functions
unshare -n sleep infinity & other=$!
differs() { [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; }
patiently differs
ip link set lo up
ip link add here type veth peer name there netns $other
ip address add 203.0.113.140/24 dev here; ip link set here up
for a in 203.0.113.10 203.0.113.7; do nsenter -t $other -n ip address add $a/24 dev there; done
nsenter -t $other -n ip link set there up
make -C source install > /dev/null 2>&1; bash -c "$(cat start-line)"
iptables-nft -N prometheus; iptables-nft -A prometheus -p tcp -m tcp --dport 22
ask() { for a in 203.0.113.10 203.0.113.7; do echo "$a $(nsenter -t $other -n perl client $a 203.0.113.140 30 | head -c 12)"; done; }
(cd source && bash -c "$(cat ../open-line)") 2>&1 | out open-line
ask | out listed
systemd-run -q --wait true < /dev/null 2>&1 | out run
bash -c "$(cat lists-line)" < /dev/null 2>&1 | out lists-line
bash -c "$(cat firewall-line)" 2>&1 | out firewall-line
ask | out firewalled
perl client 127.0.0.1 127.0.0.1 30 | head -c 12 | out here
kill $other
GUEST
my ($firewall_line) = $readme =~ /`(iptables -I INPUT [^`]* --dport 9914 ! -s SERVER -j REJECT)`/;
ok($firewall_line, 'README.md has a line for the firewall');
in_container(-bpf => 0, guest => $without_lists, client => $client, 'lists-line' => $lists_line, 'start-line' => $start_line,
    map { $_->[0] => $_->[1] =~ s/SERVER/203.0.113.10/r } ['open-line', $open_line], ['firewall-line', $firewall_line]);
is(fact('open-line'), '',                            'without BPF: the line that lets a server ask says nothing');
is(fact('listed'), "203.0.113.10 HTTP/1.1 200\n203.0.113.7 HTTP/1.1 200\n", '... but everybody may ask');
SKIP: {
    # (Without dbus systemd-run of 262 finds no systemd.)
    skip_or_fail('systemd-run: ' . fact('run'), 1) if fact('run') ne '';
    is(fact('lists-line'), "ok\n",                   '... and README.md\'s line tells so');
}
is(fact('firewall-line'), '',                        '... the line for the firewall says nothing');
is(fact('firewalled'), "203.0.113.10 HTTP/1.1 200\n203.0.113.7 (no connecti\n", '... then only the server may ask');
is(fact('here'), 'HTTP/1.1 200',                     '... and this host');
leave_container();

done_testing();
