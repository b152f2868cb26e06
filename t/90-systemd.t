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

my $guest = <<'GUEST';
#!/bin/bash
cd /srv/nfprom || exit 1
out() { cat > "out/$1" 2>&1; }
scrape() { timeout 20 bash -c 'exec 3<>/dev/tcp/127.0.0.1/9914; printf "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n" >&3; cat <&3'; }
journal() { sleep 0.3; journalctl --sync; journalctl -q --no-pager -o cat -u 'nfprom@*' 2> /dev/null; }
settled() { for i in $(seq 200); do systemctl list-units --all --no-legend 'nfprom@*' | grep -q . || return; sleep 0.1; done; }
chain() { printf '*filter\n:prometheus - [0:0]\n[%s] -A prometheus -p tcp -m tcp --dport 22\nCOMMIT\n' "$2" | iptables-$1-restore -c; }

find /usr /etc /var/lib | sort > before
make -C source install 2>&1 | out install
find /usr /etc /var/lib | sort > after; diff before after | grep '^>' | out installed
systemctl daemon-reload
systemctl start nfprom.socket; systemctl is-active nfprom.socket | out active
chain nft 18446744073709551615:31
scrape | out scrape
settled; journal | out journal-success
systemctl show nfprom@x.service -p User -p DynamicUser -p AmbientCapabilities -p CapabilityBoundingSet -p PrivateNetwork -p PrivateUsers | out show
systemd-analyze security --no-pager nfprom@x.service | tail -n 1 | out security

exec 4<>/dev/tcp/127.0.0.1/9914; sleep 0.5
grep -H -E '^(Uid|CapEff|CapPrm|CapBnd|CapAmb|NoNewPrivs)' /proc/$(pgrep -x nfprom | head -n 1)/status | sed 's/.*status://' | out process
exec 4>&-

for i in $(seq 300); do scrape > /dev/null 2>&1 & done; wait
systemctl is-active nfprom.socket | out burst-active
systemctl list-units --failed --no-legend 'nfprom*' | out burst-failed
settled; systemctl list-units --all --no-legend 'nfprom@*' | out burst-units
scrape | out burst-scrape

settled; journal | wc -l > out/lines-before
iptables-nft -F; iptables-nft -X; scrape | out no-chain
settled; journal | tail -n +$(($(cat out/lines-before) + 1)) | out journal-failure
systemctl list-units --all --no-legend 'nfprom@*' | out failure-units
for i in $(seq 20); do exec 5<>/dev/tcp/127.0.0.1/9914; exec 5>&-; done
settled; systemctl list-units --failed --no-legend 'nfprom*' | out silent-failed

chain nft 31:415
mkdir -p /etc/systemd/system/nfprom@.service.d /opt/hanging
printf '#!/bin/sh\nsleep 987 & sleep 987\n' > /opt/hanging/iptables-save; chmod 755 /opt/hanging/iptables-save
printf '[Service]\nEnvironment=PATH=/opt/hanging:/usr/bin:/bin NFPROM_FLAGS=\n' > /etc/systemd/system/nfprom@.service.d/hang.conf
echo 'NFPROM_FLAGS=-timeout 1s' > /etc/default/nfprom
systemctl daemon-reload; scrape | out hang
settled; pgrep -f 'sleep 987' | out hang-left
rm /etc/systemd/system/nfprom@.service.d/hang.conf

iptables-nft -F; iptables-nft -X
chain legacy 92:653
install -D -m 644 source/systemd/legacy.conf /etc/systemd/system/nfprom@.service.d/legacy.conf
echo 'NFPROM_FLAGS=-variant legacy' > /etc/default/nfprom
systemctl daemon-reload; scrape | out legacy
settled; systemctl stop nfprom.socket
systemd-analyze security --no-pager nfprom@x.service | tail -n 1 | out legacy-security

rm -r /etc/systemd/system/nfprom@.service.d /opt/hanging
make -C source uninstall 2>&1 | out uninstall
find /usr /etc /var/lib -iname '*nfprom*' -not -path '*/systemd/timers/*' | out left
GUEST

# ---- the container

my ($machine, $root) = ("$DIR/machine", "$DIR/machine/root");
mkdir $machine;
must(qw(mount -t tmpfs -o mode=755 none), $machine);
mkdir "$machine/$_" for qw(upper scratch root);
must('mount', '-t', 'overlay', '-o', "lowerdir=/,upperdir=$machine/upper,workdir=$machine/scratch", 'overlay', $root);
must('mkdir', '-p', "$root/srv/nfprom/out", "$root/srv/nfprom/source");
must('sh', '-c', 'cd "$1" && cp -r Makefile README.md *.c *.h systemd xinetd "$2"', 'sh', $SOURCE, "$root/srv/nfprom/source");
must('cp', $NFPROM, "$root/srv/nfprom/source/nfprom");
must('touch', "$root/srv/nfprom/source/nfprom");
spew("$root/srv/nfprom/guest", $guest);
chmod 0755, "$root/srv/nfprom/guest";
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
TimeoutStartSec=200
UNIT
my $container = start("$DIR/console", 'systemd-nspawn', '-q', '-D', $root, '-b', '--private-network',
    '--capability=CAP_NET_ADMIN,CAP_NET_RAW', '--register=no', '--keep-unit', '--console=read-only', 'systemd.unit=live-test.service');
my $done = patiently { -e "$root/srv/nfprom/done" } 220;
ok($done, 'a real systemd boots in a container and runs the checks to their end')
    or diag(slurp("$DIR/console"), slurp("$root/srv/nfprom/log"));
stop($container);

sub fact { return slurp("$root/srv/nfprom/out/$_[0]") }
sub answered { return Live::answer(fact($_[0])) }

sub packets {
    my $answer = answered($_[0]);
    return $answer->{status} == 200
        ? exposition($answer->{body})->{nfprom_packets_total}{series_of(address => '', direction => 'in', l2proto => 'ipv4', l3proto => 'tcp', port => 22)}
        : $answer->{wire};
}

# ---- what came out

like(fact('installed'), qr{/sbin/nfprom$}m,          'make install brings the program');
like(fact('installed'), qr{/nfprom\.socket$}m,       'and its socket unit');
like(fact('installed'), qr{/nfprom\@\.service$}m,    'and its service unit');
is(fact('active'), "active\n",                       'the socket unit starts');
is(packets('scrape'), '18446744073709551615',        'a scrape over port 9914 has the counters');
is(fact('journal-success'), '',                      'a success leaves nothing in the journal');

my %show = fact('show') =~ /^(\w+)=(.*)$/mg;
ok(($show{DynamicUser} || '') eq 'yes' || ($show{User} || '') !~ /^(?:root)?$/, 'the unit has a user that is not root');
is($show{AmbientCapabilities},   'cap_net_admin',    'the unit gives CAP_NET_ADMIN alone');
is($show{CapabilityBoundingSet}, 'cap_net_admin',    'and allows no other capability');
is($show{PrivateNetwork}, 'no',                      'the ruleset it sees is that of the host');
my ($exposure) = fact('security') =~ /: ([0-9.]+)/;
cmp_ok(defined $exposure ? $exposure : 10, '<=', 2.0, 'systemd-analyze security: the exposure is 2.0 at most');

my %process = fact('process') =~ /^(\w+):\s*(.*)$/mg;
unlike($process{Uid} || '0', qr/\b0\b/,              'the process is not root');
is(hex($process{$_} || 0), 1 << 12,                  "its $_ is CAP_NET_ADMIN alone") for qw(CapPrm CapEff CapBnd CapAmb);
is($process{NoNewPrivs}, 1,                          'it gains no new privileges');

is(fact('burst-active'), "active\n",                 'after 300 connections at once the socket still listens');
is(fact('burst-failed'), '',                         'and no unit has failed');
is(fact('burst-units'), '',                          'and no instance is left');
is(packets('burst-scrape'), '18446744073709551615',  'and the next scrape is answered');

is(answered('no-chain')->{status}, 503,              'without the chain the scrape fails');
like(fact('journal-failure'), qr/\A[^\n]*ipv4: [^\n]*prometheus[^\n]*\n\z/, 'and one line in the journal says why');
is(fact('failure-units'), '',                        'the instance that failed is forgotten');
is(fact('silent-failed'), '',                        'connections that say nothing make no failed unit');

is(answered('hang')->{status}, 504,                  'an iptables-save that hangs is a 504');
is(fact('hang-left'), '',                            'and nothing of it is left');
note('exposure: ', fact('security'), 'with the drop-in: ', fact('legacy-security'));
is(packets('legacy'), 92,                            'with the drop-in the legacy tables are read');
is(fact('left'), '',                                 'make uninstall leaves no file');
diag("in the container: ", slurp("$root/srv/nfprom/log")) if !Test::More->builder->is_passing;
must('umount', $root);
must('umount', $machine);

done_testing();
