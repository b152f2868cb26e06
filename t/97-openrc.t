#!/usr/bin/perl

# The service script under the real OpenRC, in a container without systemd: started as README.md says, it answers, is no root, comes
# back after a crash, and leaves nothing when it is stopped.
#
# OPENRC names a directory with Debian's packages openrc, librc1, libeinfo1 and insserv unpacked (.ci/run makes one): to install them changes
# how a machine boots. Where openrc is installed, that is taken.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(unshare chroot tar iptables-nft setpriv ss bash make));
give_up('no OpenRC: it is not installed, and OPENRC names no directory that has it') unless $ENV{OPENRC} || have('openrc-run');

my $guest = <<'GUEST';
#!/bin/bash
. /srv/nfprom/functions
mount -t proc proc /proc
mount -t tmpfs -o mode=755 none /run
mkdir -p /run/openrc /run/lock
rm -rf /etc/runlevels/*/* /etc/init.d/!(agetty|cgroups|rc|rcS|savecache)
mkdir -p /etc/runlevels/default
scrape() { { exec 5<> /dev/tcp/127.0.0.1/9914; } 2> /dev/null || { echo '(no connection)'; return; }; printf 'GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n' >&5; cat <&5; exec 5>&-; }
answers() { scrape | grep -q '^HTTP/1.1 200'; }
service() { rc-service nfprom "$@" 2>&1; echo "status $?"; }
left() { pgrep -x nfprom; pgrep -x supervise-daemo; ss -Hltn 'sport = :9914'; find /run -name '*nfprom*' -type f; }
set_flags() { echo "NFPROM_FLAGS=\"$1\"" > /etc/conf.d/nfprom; }
printf '*filter\n:prometheus - [0:0]\n[31:415] -A prometheus -p tcp -m tcp --dport 22\nCOMMIT\n' | iptables-nft-restore -c

make -s -C source UNITDIR= install-openrc 2>&1 | out install
ls -l /etc/init.d/nfprom /etc/conf.d/nfprom | cut -c 1-10 | out modes
touch /run/openrc/softlevel
openrc default 2>&1 | out openrc

# ---- what is wrong is said before anything is started
service checkconfig | out check
wrong() { set_flags "$2"; { service checkconfig; service start; } | out "wrong-$1"; left | out "wrong-$1-left"; }
cp /etc/conf.d/nfprom conf
wrong flag '-addr 127.0.0.1:9914 -ipv7'
wrong addr '-ipv6'
cp conf /etc/conf.d/nfprom; echo 'NFPROM_USER="nowhere"' >> /etc/conf.d/nfprom; service start | out wrong-user
cp conf /etc/conf.d/nfprom; mv /usr/local/sbin/nfprom there; service start | out wrong-program; mv there /usr/local/sbin/nfprom
left | out wrong-left

# ---- README.md's own line
bash -c "$(cat start-line)" 2>&1 | out start
patiently answers; scrape | out scrape
service status | out status
ss -Hltn 'sport = :9914' | awk '{ print $4 }' | out listens
grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs)' /proc/$(pgrep -o -x nfprom)/status | out process
rc-update show default 2>&1 | out runlevel

# ---- a failure is a line in the log
iptables-nft -F; iptables-nft -X
scrape | out failed
cat /var/log/nfprom.log | out failed-log
printf '*filter\n:prometheus - [0:0]\n[31:415] -A prometheus -p tcp -m tcp --dport 22\nCOMMIT\n' | iptables-nft-restore -c

# ---- a crash
pgrep -o -x nfprom | out crash-before
kill -KILL $(pgrep -o -x nfprom)
sleep 0.1; patiently answers; scrape | out crash
pgrep -o -x nfprom | out crash-after
service status | out crash-status

# ---- other flags, and away
set_flags '-addr 127.0.0.1:9914 -namespace acct'
service restart | out restart; patiently answers; scrape | out restarted
service stop | out stop
patiently none left; left | out left
service status | out stopped
scrape | out stopped-scrape
rc-update del nfprom default > /dev/null 2>&1
make -s -C source UNITDIR= uninstall; find /etc /usr /run /var/log -name '*nfprom*' -newer conf | out uninstalled
GUEST
$guest =~ s/^(rm -rf .*)$/shopt -s extglob\n$1/m;

my ($start_line) = slurp("$SOURCE/README.md") =~ /^make && make UNITDIR= install-openrc && (rc-update .*)$/m;
ok($start_line, 'README.md has a line that starts it under OpenRC') or BAIL_OUT('README.md');

my $root = container_root(guest => $guest, 'start-line' => $start_line);
must('bash', '-c', 'tar -C "$1" -c . | tar -C "$2" -x --keep-directory-symlink', 'bash', $ENV{OPENRC}, $root) if $ENV{OPENRC};
my ($status, $said, $err) = run('', 'unshare', '-m', '-p', '-f', '--kill-child', 'chroot', $root, '/bin/bash', '/srv/nfprom/guest');
spew("$root/srv/nfprom/log", $said . $err);
is($status, 0, 'the script runs to its end');

my $counter = qr/^nfprom_packets_total\{[^}]*port="22"\} 31$/m;
is(fact('install'), '',                       'make install-openrc has nothing to say');
is(fact('modes'), "-rw-r--r--\n-rwxr-xr-x\n", '... and puts the script and its flags in place');
is(fact('check'), "status 0\n",               'checkconfig is content with them');
for my $case (
    ['flag',    qr/NFPROM_FLAGS: .*-ipv7/,       'a wrong flag'],
    ['addr',    qr/NFPROM_FLAGS: -addr is missing/, 'flags without -addr'],
) {
    my ($name, $words, $promise) = @$case;
    my @said = fact("wrong-$name") =~ /$words/g;
    is(scalar @said, 2,                       "$promise: checkconfig says so, and start too");
    is(join(' ', fact("wrong-$name") =~ /^status (\d+)$/mg), '1 1', '... and fail');
    is(fact("wrong-$name-left"), '',          '... and start nothing');
}
like(fact('wrong-user'), qr/there is no user nowhere\n.*status 1\n/s,     'a user who is not there: start says so');
like(fact('wrong-program'), qr{/usr/local/sbin/nfprom is not there.*status 1\n}s, 'a program that is not there: start says so');
is(fact('wrong-left'), '',                    '... and nothing is started');

unlike(fact('start'), qr/ERROR|\* .*fail/i,   'README.md\'s line starts it');
like(fact('scrape'), $counter,                '... a scrape has the counters');
like(fact('status'), qr/started\nstatus 0\n/, '... its status is started');
is(fact('listens'), "127.0.0.1:9914\n",       '... it listens on loopback alone');
like(fact('runlevel'), qr/\bnfprom\b/,        '... and will at the next boot');
my %process = fact('process') =~ /^(\w+):[ \t]*(.*)$/mg;
unlike($process{Uid} // '0', qr/\b0\b/,       'it is not root');
unlike(($process{Gid} // '0') . ($process{Groups} // ''), qr/\b0\b/, '... nor in the group of root');
is(hex($process{$_} // 'ff'), 1 << 12,        "... its $_ is CAP_NET_ADMIN alone") for qw(CapPrm CapEff CapBnd CapAmb);
is($process{NoNewPrivs}, 1,                   '... it gains no new privileges');

like(fact('failed'), qr{\AHTTP/1\.1 503 },    'without the chain a scrape fails');
like(fact('failed-log'), qr/\A[^\n]*ipv4: [^\n]*prometheus[^\n]*\n\z/, '... and the log says why, in one line');
like(fact('crash'), $counter,                 'after a crash it answers again');
isnt(fact('crash-after'), fact('crash-before'), '... as another process');
like(fact('crash-status'), qr/started\nstatus 0\n/, '... its status is started');
like(fact('restarted'), qr/^acct_packets_total/m, 'other flags count from the next restart on');
like(fact('stop'), qr/status 0\n\z/,          'it can be stopped');
is(fact('left'), '',                          '... and nothing is left, no process, no listener, no file');
like(fact('stopped'), qr/stopped\nstatus 3\n/, '... its status is stopped');
is(fact('stopped-scrape'), "(no connection)\n", '... and nobody answers');
is(join('', grep { !m{^/var/log/nfprom\.log$} } split /^/, fact('uninstalled')), '', 'make uninstall leaves the log alone');
leave_container();

done_testing();
