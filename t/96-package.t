#!/usr/bin/perl

# The package that `make deb` builds: the same bytes wherever it is built, and then, under a real systemd in a container, what a user
# of Debian sees of it: installed, upgraded from 1.0.0, removed, purged, installed over what was installed by hand.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(systemd-nspawn dpkg-deb iptables-nft bash make ss));
umask 022;

# ---- building

my ($VERSION) = slurp("$SOURCE/Makefile") =~ /^VERSION = (\S+)$/m;
my $ARCH = must(qw(dpkg --print-architecture)) =~ s/\n//r;

# A copy of the tree, with its history if it has one.
sub tree {
    my ($name) = @_;
    must('mkdir', "$DIR/$name");
    must('cp', '-R', (map {"$SOURCE/$_"} qw(Makefile README.md nfprom.c parse.c parse.h systemd xinetd)), "$DIR/$name");
    must('cp', '-R', "$SOURCE/.git", "$DIR/$name/.git") if -d "$SOURCE/.git" && have('git');
    return "$DIR/$name";
}

# Without history a commit's time is given.
$ENV{SOURCE_DATE_EPOCH} = 1_700_000_000 unless -d "$SOURCE/.git" && have('git');

# Runs lines of shell in a tree, without what make gives to those that it starts.
sub in_tree {
    my ($tree, $script) = @_;
    return must(qw(env -u MAKEFLAGS -u MFLAGS -u CFLAGS -u LDFLAGS -u CPPFLAGS bash -euc), "cd '$tree'\n$script");
}

sub field { my ($deb, $name) = @_; return must('dpkg-deb', '-f', $deb, $name) =~ s/\n//r }
sub content { my ($deb, $path) = @_; return must('bash', '-c', 'dpkg-deb --fsys-tarfile "$1" | tar -xO "./$2"', 'bash', $deb, $path) }

my $one = tree('one');
in_tree($one, 'make -s deb');
my $deb = "$one/nfprom_${VERSION}_$ARCH.deb";
ok(-e $deb, 'make deb writes nfprom_VERSION_ARCH.deb') or BAIL_OUT('make deb');
ok(!-e "$one/.deb", '... and nothing besides');

my $other = tree('an other place');
must('find', $other, '-path', '*/.git', '-prune', '-o', '-exec', 'touch', '-d', '2001-09-09', '{}', '+') if -d "$other/.git";
in_tree($other, 'umask 077; export TZ=Asia/Kathmandu LC_ALL=C.UTF-8 PREFIX=/elsewhere DESTDIR=/elsewhere SBINDIR=/elsewhere; make -s clean; make -s -j2 deb');
ok(slurp($deb) eq slurp("$other/nfprom_${VERSION}_$ARCH.deb"), '... the same bytes elsewhere, at another time, with other settings');

is(field($deb, 'Version'), $VERSION,       'its version');
is(field($deb, 'Architecture'), $ARCH,     'its architecture');
is(field($deb, 'Depends'), 'iptables',     'all it depends on');
is(must('dpkg-deb', '-I', $deb, 'conffiles'), "/etc/default/nfprom\n", 'its conffile');
unlike(must('dpkg-deb', '-c', $deb), qr{^(?!\S+ root/root )}m, 'all of it belongs to root');
unlike(join('', map { must('dpkg-deb', '-I', $deb, $_) } qw(control preinst postinst prerm postrm)), qr/@[A-Z]+@/, 'no gap is left in its control files');
must('bash', '-c', 'dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/share/doc/nfprom/changelog.gz | gzip -d > "$2"', 'bash', $deb, "$DIR/changelog");
my $newest = -d "$one/.git" ? in_tree($one, 'git log --no-merges -1 --format=%s') =~ s/\n//r : "Version $VERSION";
like(slurp("$DIR/changelog") =~ s/\n +/ /gr, qr/\Anfprom \(\Q$VERSION\E\) unstable; urgency=medium\n? *\* \Q$newest\E/, 'its changelog begins with the last commit');
unlike(slurp("$DIR/changelog"), qr/^(?! -- ).{81}/m, '... in lines of 80 columns');
like(content($deb, 'usr/share/doc/nfprom/copyright'), qr/no licence/, 'its copyright file says that there is no licence');

# The tree of 1.0.0, or what is like it where there is no history.
must('mkdir', "$DIR/old");
if (run('', 'bash', '-c', 'git --git-dir="$1/.git" archive 6133bdf 2> /dev/null | tar -x -C "$2" && test -e "$2/Makefile"', 'bash', $one, "$DIR/old") != 0) {
    must('cp', '-R', (map {"$SOURCE/$_"} qw(Makefile README.md nfprom.c parse.c parse.h systemd xinetd)), "$DIR/old");
    in_tree("$DIR/old", q(sed -i 's/^VERSION = .*/VERSION = 1.0.0/' Makefile; sed -i -e '/^ListenStream=\[/d' -e 's/^ListenStream=.*/ListenStream=9914/' systemd/nfprom.socket));
    note('no history of git: 1.0.0 is made up');
}
in_tree("$DIR/old", qq(
make -s nfprom
make -s install DESTDIR=root PREFIX=/usr
install -D -m 644 '$SOURCE/systemd/nfprom.8' root/usr/share/man/man8/nfprom.8
'$SOURCE/systemd/deb/pack' root 1.0.0 $ARCH
make -s install DESTDIR=by-hand
tar -C by-hand -cf by-hand.tar .
));

# ---- what runs in the container: each check leaves its facts in a file

my $guest = <<'GUEST';
#!/bin/bash
. /srv/nfprom/functions
# Whatever keeps packages of a container from doing what they do elsewhere.
rm -f /usr/sbin/policy-rc.d $(grep -lE 'path-exclude|force-conf' /etc/dpkg/dpkg.cfg.d/* /etc/dpkg/dpkg.cfg 2> /dev/null)
export DEBIAN_FRONTEND=noninteractive
units() { systemctl list-units --all --no-legend 'nfprom@*'; }
request() { printf 'GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n'; }
scrape() { { exec 5<> /dev/tcp/$1/9914; } 2> /dev/null || { echo '(no connection)'; return; }; request >&5; cat <&5; exec 5>&-; }
says() { scrape 127.0.0.1 | tr -d '\r' | grep -E '^HTTP|^nfprom_build_info|^nfprom_packets_total'; }
asked() { for a in 127.0.0.1 192.0.2.10; do echo "$a $(scrape $a | head -n 1 | tr -d '\r')"; done; }
state() { echo "$(systemctl is-active nfprom.socket) $(systemctl is-enabled nfprom.socket 2>&1 | tail -n 1)"; }
start() { systemctl show -p InvocationID -p ActiveEnterTimestampMonotonic nfprom.socket; }
files() { find /usr /etc /opt /var/lib/systemd -not -type d -not -path '/etc/*-' -not -name .pwd.lock | sort; find /var/lib/dpkg /var/lib/systemd -iname '*nfprom*' | sort; }

ip link set lo up
ip address add 192.0.2.10/32 dev lo
printf '*filter\n:prometheus - [0:0]\n[31:415] -A prometheus -p tcp -m tcp --dport 22\nCOMMIT\n' | iptables-nft-restore -c
journal > /dev/null

# ---- by README.md's own line, and purged
files > before
(cd debs && bash -c "$(cat ../install-line)") > log-apt 2>&1; echo "status $?" | out install
state | out install-state
says | out install-says
asked | out install-asked
getent passwd nfprom | out user
settled; journal | out install-journal
systemd-analyze verify nfprom.socket nfprom@x.service 2>&1 | out verify
dpkg --verify nfprom 2>&1 | out dpkg-verify
dpkg --audit 2>&1 | out audit
exec 4<>/dev/tcp/127.0.0.1/9914; patiently asking; grep -E '^(Uid|CapPrm)' /proc/$(pgrep -n -x nfprom)/status | out rights; exec 4>&-; settled
dpkg --purge nfprom 2>&1 | out purge
state | out purge-state
files > after; diff before after | out purge-left

# ---- an upgrade from 1.0.0, with a connection that was made before
dpkg -i debs/nfprom_1.0.0_*.deb 2>&1 | out old
says | out old-says
asked | out old-asked
echo 'NFPROM_FLAGS=-timeout 30m' > /etc/default/nfprom
exec 4<>/dev/tcp/127.0.0.1/9914; waiting -x nfprom
dpkg --force-confold -i debs/nfprom_$VERSION_*.deb 2>&1 | out upgrade
request >&4; head -n 1 <&4 | tr -d '\r' | out upgrade-held; exec 4>&-
cat /etc/default/nfprom | out upgrade-conffile
says | out upgrade-says
asked | out upgrade-asked
grep '^  sed ' out/upgrade | sed s/SERVER/192.0.2.10/ > open-line; bash open-line 2>&1 | out open-line
asked | out opened
rm -r /etc/systemd/system/nfprom.socket.d; systemctl daemon-reload; systemctl restart nfprom.socket

# ---- the same once more, while others scrape; and as the administrator wants it
start > start-before
(while [ ! -e upgraded ]; do scrape 127.0.0.1 | head -n 1; sleep 0.05; done) | out meanwhile &
for i in 1 2 3; do dpkg -i debs/nfprom_$VERSION_*.deb; done 2>&1 | out again
touch upgraded; wait
start | diff start-before - | out again-start
systemctl disable --now nfprom.socket 2> /dev/null
dpkg -i debs/nfprom_$VERSION_*.deb > /dev/null 2>&1; state | out disabled
systemctl enable --now nfprom.socket 2> /dev/null; state | out enabled

# ---- removed, and installed anew; then purged
dpkg -r nfprom 2>&1 | out remove
{ state; asked; } | out remove-state
cat /etc/default/nfprom | out remove-conffile
dpkg -i debs/nfprom_$VERSION_*.deb > /dev/null 2>&1; { state; says; } | out anew
settled; journal > /dev/null
dpkg -P nfprom 2>&1 | out purge-again
files > after; diff before after | out purge-again-left
getent passwd nfprom | out purge-user
{ systemctl list-units --all --no-legend 'nfprom*'; systemctl list-unit-files --no-legend 'nfprom*'; } | out purge-units
settled; journal | grep -vE '(Closed|Stopping|Listening on) nfprom.socket|nfprom.socket: Deactivated' | out purge-journal

# ---- a 1.0.0 that was installed by hand, upgraded by hand: README.md's own line
tar -C / -xf by-hand.tar; systemctl daemon-reload; systemctl enable --now nfprom.socket 2> /dev/null
make -s -C source install > /dev/null 2>&1; bash -c "$(cat upgrade-line)" 2>&1 | out upgrade-line
{ says; asked; } | out upgraded
systemctl disable --now nfprom.socket 2> /dev/null; settled; make -s -C source uninstall; systemctl daemon-reload

# ---- over a 1.0.0 that was installed by hand
tar -C / -xf by-hand.tar; systemctl daemon-reload; systemctl enable --now nfprom.socket 2> /dev/null
asked | out by-hand-asked
dpkg --force-confold -i debs/nfprom_$VERSION_*.deb 2>&1 | out by-hand
{ says; asked; } | out by-hand-says
grep '^  rm ' out/by-hand > by-hand-line; bash by-hand-line 2>&1 | out by-hand-line
{ says; asked; state; } | out by-hand-gone
find /usr/local -iname '*nfprom*' | out by-hand-left
readlink /etc/systemd/system/sockets.target.wants/nfprom.socket | out by-hand-link
dpkg -i debs/nfprom_$VERSION_*.deb 2>&1 | out by-hand-again
dpkg -P nfprom > /dev/null 2>&1; files > after; diff before after | out by-hand-purged

# ---- where another server has the port already
exec 6< <(exec perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:9914", Listen => 1, ReuseAddr => 1) or die; $| = 1; print "up\n"; sleep')
read -r _ <&6
dpkg -i debs/nfprom_$VERSION_*.deb 2>&1 | out taken
dpkg-query -W -f '${Status}' nfprom | out taken-status
GUEST

my $readme = slurp("$SOURCE/README.md");
my ($install_line) = $readme =~ /^apt-get .*make deb && (apt-get install .*nfprom_.*\.deb)$/m;
ok($install_line, 'README.md has a line that builds and installs the package') or BAIL_OUT('README.md');

my ($upgrade_line) = $readme =~ /^make && make install && (systemctl daemon-reload && systemctl restart nfprom\.socket)$/m;
ok($upgrade_line, '... and one that upgrades 1.0.0 by hand') or BAIL_OUT('README.md');

# In a directory of its own, where README.md's line finds the new one alone.
my ($new_name) = $deb =~ m{([^/]+)\z};
$guest =~ s/\$VERSION/$VERSION/g;
$guest =~ s{^ip link}{mkdir debs; mv $new_name debs\nip link}m;
$guest =~ s{^(# ---- an upgrade)}{mv nfprom_1.0.0_$ARCH.deb debs\n$1}m;
in_container(guest => $guest, 'install-line' => $install_line, 'upgrade-line' => $upgrade_line, $new_name => slurp($deb), "nfprom_1.0.0_$ARCH.deb" => slurp("$DIR/old/nfprom_1.0.0_$ARCH.deb"),
    'by-hand.tar' => slurp("$DIR/old/by-hand.tar"));

# ---- what came out

my ($everybody, $local) = map {"127.0.0.1 HTTP/1.1 200 OK\n192.0.2.10 $_\n"} 'HTTP/1.1 200 OK', '(no connection)';
my $counter = qr/^nfprom_packets_total\{[^}]*port="22"\} 31$/m;

# The scrape has the counters, and is of this version.
sub says {
    my ($name, $version, $promise) = @_;
    like(fact($name), $counter, $promise);
    return like(fact($name), qr/^nfprom_build_info\{version="\Q$version\E"\} 1$/m, "... and it is $version that answers");
}

is(fact('install'), "status 0\n",           "README.md's line installs the package");
is(fact('install-state'), "active enabled\n", '... its socket is started and enabled');
says('install-says', $VERSION,              '... a scrape has the counters');
is(fact('install-asked'), $local,           '... this host alone may ask');
like(fact('user'), qr/\Anfprom:x:\d+:\d+:[^:]*:[^:]*:\S*nologin\n\z/, '... the user is there');
unlike(fact('rights'), qr/^Uid:.*\b0\b/m,   '... and nfprom is not root');
is(fact('verify'), '',                      '... systemd-analyze verify has nothing to say of the units');
is(fact('dpkg-verify') . fact('audit'), '', '... nor dpkg of the files');
unlike(fact('install-journal'), qr/^nfprom.*(?:fail|error)/mi, '... nor the journal');
is(fact('purge-state') =~ s/ .*//r, "inactive\n", 'dpkg --purge stops it');
is(fact('purge-left'), '',                  '... and leaves no file');

says('old-says', '1.0.0',                   '1.0.0 as a package answers');
is(fact('old-asked'), $everybody,           '... everybody');
like(fact('upgrade'), qr/listened on all addresses\..*loopback alone/s, 'the upgrade says what changes');
is(fact('upgrade-held'), "HTTP/1.1 200 OK\n", '... who had a connection before is answered');
is(fact('upgrade-conffile'), "NFPROM_FLAGS=-timeout 30m\n", '... the changed conffile is kept');
says('upgrade-says', $VERSION,              '... the next scrape has the counters');
is(fact('upgrade-asked'), $local,           '... this host alone may ask');
is(fact('open-line'), '',                   'the line that was printed says nothing');
is(fact('opened'), $everybody,              '... and lets the other ask');

unlike(fact('again'), qr/listened|by hand/, 'the same version again says nothing of changes');
is(fact('again-start'), '',                 '... and restarts nothing');
my %meanwhile;
$meanwhile{ s/\r//r }++ for split /\n/, fact('meanwhile');
is(join('|', keys %meanwhile), 'HTTP/1.1 200 OK', '... no scrape meanwhile is lost');
cmp_ok($meanwhile{'HTTP/1.1 200 OK'} || 0, '>', 3, '... of some');
is(fact('disabled'), "inactive disabled\n", 'who has disabled the socket finds it so after an upgrade');
is(fact('enabled'), "active enabled\n",     '... and can enable it');
is(fact('remove-state') =~ s/ .*?$//mr, "inactive\n127.0.0.1 (no connection)\n192.0.2.10 (no connection)\n", 'dpkg -r stops it');
is(fact('remove-conffile'), "NFPROM_FLAGS=-timeout 30m\n", '... and keeps the conffile');
like(fact('anew'), qr/\Aactive enabled\nHTTP/, 'installed anew, it answers');
is(fact('purge-again-left') . fact('purge-units'), '', 'dpkg -P leaves no file and no unit');
like(fact('purge-user'), qr/\Anfprom:/,     '... but the user');
is(fact('purge-journal'), '',               '... and nothing in the journal');

is(fact('upgrade-line'), '',                'README.md\'s line for an upgrade by hand says nothing');
says('upgraded', $VERSION,                  '... and then the new one answers');
is(fact('upgraded') =~ s/\A.*^(127\.)/$1/msr, $local, '... this host alone');
is(fact('by-hand-asked'), $everybody,       'a 1.0.0 that was installed by hand answers everybody');
like(fact('by-hand'), qr{installed by hand, in /usr/local\. It goes on answering}, 'the package over it says that this goes on');
like(fact('by-hand'), qr/listened on all addresses\..*loopback alone/s, '... and what changes when it is gone');
is(fact('by-hand-says') =~ s/\A.*^(127\.)/$1/msr, $everybody, '... so it is');
like(fact('by-hand-says'), qr/version="1\.0\.0"/, '... with the old one');
is(fact('by-hand-line') =~ s/^(?:Removed|Created symlink) .*\n//gmr, '', 'the line that was printed says nothing but which links it makes');
says('by-hand-gone', $VERSION,              '... then the package answers');
like(fact('by-hand-gone'), qr/^\Q$local\Eactive enabled$/m, '... this host alone');
is(fact('by-hand-left'), '',                '... and nothing is left of the other');
like(fact('by-hand-link'), qr{\A(?:/usr)?/lib/systemd/system/nfprom\.socket\n\z}, '... the link is that of the package');
unlike(fact('by-hand-again'), qr/by hand|listened/, '... which has nothing more to say');
is(fact('by-hand-purged'), '',              '... and is purged without a rest');

like(fact('taken'), qr/nfprom\.socket does not start\. .*9914/, 'where another server has the port, the package says so');
is(fact('taken-status'), 'install ok installed', '... and is installed all the same');
leave_container();

done_testing();
