#!/usr/bin/perl

# The chain stays: README.md's units beside real firewalls, each in a booted container of its own over this machine's root, with the
# firewall's own package. What is written there goes to a tmpfs and is thrown away; nothing is installed on this machine.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(systemd-nspawn systemd-analyze nsenter apt-get dpkg iptables-nft nft promtool));

# The package and what it needs, name => bytes, as apt brings it. It is asked outside of this test's namespace, where the network is.
# A mirror may fail for a moment.
sub package_files {
    my ($name) = @_;
    my $directory = "$DIR/$name";
    must(qw(mkdir -p), "$directory/partial");
    my @command = (qw(nsenter -n -m -t), getppid, qw(env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends --reinstall --download-only
        -o Acquire::Retries=3 -o), "Dir::Cache::archives=$directory", 'install', $name);
    for my $pause (10, 30, 0) {
        my ($status, $out, $err) = run('', @command);
        last if $status == 0;
        sleep $pause;
        give_up("apt-get has no $name (it needs the network, and `apt-get update`): $err") if !$pause;
    }
    return map { (m{([^/]+)\z})[0] => slurp($_) } glob "$directory/*.deb";
}

my %package = (ufw => 'ufw', 'netfilter-persistent' => 'iptables-persistent', firewalld => 'firewalld');
my %files_of = map { $_ => { package_files($package{$_}) } } sort keys %package;

# ---- what runs in the containers

my $common = <<'COMMON';
. /srv/nfprom/functions
export DEBIAN_FRONTEND=noninteractive
# iptables-persistent and ufw take each other's place.
packages() { apt-get -qq -y --no-install-recommends --reinstall install ./*.deb; }
quiet() { ! systemctl list-jobs --no-legend | grep -q nfprom-chain; }
recipe() { (cd source && bash -eu "../recipe-$1") 2>&1 | out "recipe-$1"; }

# The host and the namespace blue, joined.
network() {
    ip link set lo up
    ip netns add blue
    ip link add veth0 address 02:00:00:00:00:8c type veth peer name veth0 address 02:00:00:00:00:01 netns blue
    ip address add 203.0.113.140/24 dev veth0; ip address add 2001:db8::140/64 dev veth0 nodad; ip link set veth0 up
    ip -n blue address add 203.0.113.1/24 dev veth0; ip -n blue link set veth0 up
    ip -n blue neighbour replace 203.0.113.140 lladdr 02:00:00:00:00:8c dev veth0
}
# Five datagrams come to port 53.
packets() { ip netns exec blue bash -c 'for i in 1 2 3 4 5; do echo > /dev/udp/203.0.113.140/53; done'; }
# What nfprom sees once all is quiet, the rules, and what it sees after five more datagrams.
see() {
    patiently quiet
    for c in iptables ip6tables; do echo "*$c"; $c-save -t filter; done | out "$1-rules"
    { source/nfprom -print -ipv6; echo "# status $?"; } 2>&1 | out "$1"
    packets
    source/nfprom -print -ipv6 2>&1 | out "$1-later"
}
# `event NAME COMMAND` for what may happen.
event() { "${@:2}" 2>&1 | out "$1-said"; echo "${PIPESTATUS[0]}" | out "$1-status"; see "$1"; }
own_journal() { journalctl --sync; journalctl -q --no-pager -b -o cat -u nfprom-chain -u nfprom-chain-again | grep -v "$of_the_host"; }
made() {
    network
    recipe install
    sed -i "s/^ADDRESSES=.*/ADDRESSES='203.0.113.140 2001:db8::140'/; s/^SERVICES=.*/SERVICES='dns=udp\/53'/" /etc/nfprom/chain
    recipe run; recipe run
    recipe units; recipe units
    systemd-analyze verify nfprom-chain.service nfprom-chain-again.service 2>&1 | out verify
    see first
}
# The last part of a script: what the unit does, what is in the journal, and the next boot as `systemctl enable` has it.
ending() {
    event unit-reload systemctl reload nfprom-chain
    event unit-stop systemctl stop nfprom-chain
    event unit-stopped systemctl restart $firewall
    event unit-start systemctl start nfprom-chain
    own_journal | out journal
    wants=/etc/systemd/system/live-test.service.wants; mkdir -p $wants
    for unit in /etc/systemd/system/multi-user.target.wants/{$firewall,nfprom-chain}.service; do [ ! -e $unit ] || ln -s $unit $wants/; done
}
COMMON

my $booted = <<'GUEST';
#!/bin/bash
. /srv/nfprom/common
network; see boot
own_journal | out boot-journal
bash -eu recipe-undo 2>&1 | grep -v ^Removed | out recipe-undo
{ for c in iptables ip6tables; do $c-save; done | grep prometheus; ls /etc/systemd/system /etc/systemd/system/*.wants | grep nfprom; } | out undone
GUEST

my %guest = (
    ufw => <<'GUEST',
#!/bin/bash
. /srv/nfprom/common; firewall=ufw
packages
ufw --force enable; ufw allow 22/tcp
made
event restart systemctl restart ufw
systemctl stop ufw; event start systemctl start ufw
event reload ufw reload
sed -i s/MANAGE_BUILTINS=.*/MANAGE_BUILTINS=yes/ /etc/default/ufw
event builtins ufw reload
event builtins-again systemctl reload nfprom-chain
recipe hook; recipe hook
grep -c nfprom /etc/ufw/after.init | out hook-lines
event hook-reload ufw reload
ufw disable; event hook-enable ufw --force enable
mv /etc/nfprom/chain /etc/nfprom/away; ufw reload 2>&1 | out hook-without; mv /etc/nfprom/away /etc/nfprom/chain; event hook-back ufw reload
bash recipe-unhook; grep -c nfprom /etc/ufw/after.init | out unhooked
ending
GUEST
    'netfilter-persistent' => <<'GUEST',
#!/bin/bash
. /srv/nfprom/common; firewall=netfilter-persistent
packages
for n in 4 6; do printf '*filter\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A INPUT -p tcp --dport 25 -j DROP\nCOMMIT\n' > /etc/iptables/rules.v$n; done
systemctl restart netfilter-persistent
made
event restart systemctl restart netfilter-persistent
systemctl stop netfilter-persistent; event start systemctl start netfilter-persistent
event by-hand netfilter-persistent reload
event instead bash -eu recipe-netfilter-persistent
cp /etc/iptables/* .; netfilter-persistent save; event saved systemctl restart netfilter-persistent
event saved-by-hand netfilter-persistent reload
cp rules.v4 rules.v6 /etc/iptables/
ending
GUEST
    nftables => <<'GUEST',
#!/bin/bash
. /srv/nfprom/common; firewall=nftables
cat > /etc/nftables.conf << 'RULES'
flush ruleset
table inet filter {
    chain input { type filter hook input priority filter; ct state established accept; tcp dport 25 drop; }
}
RULES
systemctl enable --now nftables
made
event restart systemctl restart nftables
event reload systemctl reload nftables
# One that takes its time is waited for.
printf '[Service]\nExecReload=\nExecReload=sleep 2\nExecReload=nft -f /etc/nftables.conf\n' | install -D -m 644 /dev/stdin /etc/systemd/system/nftables.service.d/slow.conf
systemctl daemon-reload; event reload-slow systemctl reload nftables
rm -r /etc/systemd/system/nftables.service.d; systemctl daemon-reload
systemctl stop nftables; see stop; event unstopped bash -eu recipe-systemctl
event start systemctl start nftables
event by-hand nft -f /etc/nftables.conf
event instead bash -eu recipe-nft
# A script of one's own.
event jumps-gone bash -c 'for c in iptables ip6tables; do $c -F INPUT; $c -F OUTPUT; done'
event jumps-back bash -eu recipe-own
event flushed bash -c 'for c in iptables ip6tables; do $c -F; done'
event unflushed bash -eu recipe-own
ending
GUEST
    firewalld => <<'GUEST',
#!/bin/bash
. /srv/nfprom/common; firewall=firewalld
packages; systemctl restart dbus.service # which knows the user polkitd then
systemctl enable --now firewalld
made
event restart systemctl restart firewalld
event reload systemctl reload firewalld
systemctl stop firewalld; event start systemctl start firewalld
firewall-cmd --reload
event instead bash -eu recipe-firewall-cmd
systemctl stop firewalld; event without systemctl reload nfprom-chain; systemctl start firewalld; see with
ending
GUEST
);

# ---- what README.md says to do

my ($section) = slurp($ENV{NFPROM_README} || "$SOURCE/README.md") =~ /^## Make the chain\n(.*?)^## /ms;
my %recipe;
my %known_by = (install => qr{ systemd/chain /etc/nfprom/chain$}m, run => qr{\A/etc/nfprom/chain$}, units => qr/^install .*nfprom-chain\.service/, hook => qr/after\.init/);
for my $name (keys %known_by) { ($recipe{$name}) = grep { $_ =~ $known_by{$name} } $section =~ /^```sh\n(.*?)^```$/msg }
($recipe{undo})   = $section =~ /The undo, which takes the chain away: `(.*?)`/;
($recipe{unhook}) = $section =~ /^The undo: `(.*?)`/m;
for ($section =~ /^(\| (?:`|a script).*)$/mg) {
    my (undef, $by_hand, undef, $instead) = split / *\| */;
    my ($name) = $by_hand =~ /^`([a-z-]+) /;
    $recipe{ defined $name ? $name : 'own' } = $instead =~ s/.*?`(.*?)`.*/$1\n/sr if $instead =~ /`/;
}
is_deeply([sort keys %recipe], [sort qw(install run units hook undo unhook firewall-cmd nft netfilter-persistent systemctl own)], 'README.md has all that is tried here') or BAIL_OUT('README.md');
like($recipe{hook}, qr{/etc/ufw/after\.init}, 'and the hook of ufw');

# ---- what came out

sub samples {
    my ($name) = @_;
    my $e = eval { exposition(fact($name) =~ s/^# status \d+\n//mr) };
    return $e || {};
}
sub datagrams {
    my ($name) = @_;
    return samples($name)->{nfprom_packets_total}{ series_of(address => '203.0.113.140/32', direction => 'in', l2proto => 'ipv4', l3proto => 'udp', port => 53, service => 'dns') };
}
sub references { return join ' ', map { my $r = samples($_[0])->{nfprom_chain_references}{"l2proto=$_"}; defined $r ? $r : 'none' } qw(ipv4 ipv6) }

my $FIREWALL;

# Tests: the chain is there in both families, each jump once and in its place; it has counted so many, and counts on.
sub is_there {
    my ($name, $counted, $what) = @_;
    is(references($name), '2 2', "$FIREWALL: $what: two jumps to the chain, in both families") or diag(fact($name), fact("$name-said"));
    my @first = fact("$name-rules") =~ /^\*ip6?tables\n(?:(?!-A INPUT ).*\n)*-A INPUT (.*)\n/mg;
    is_deeply(\@first, [('! -i lo -j prometheus') x 2], "$FIREWALL: $what: that of INPUT is its first rule");
    my $now = datagrams($name);
    is($now, $counted, "$FIREWALL: $what: its counters " . ($counted ? 'are kept' : 'begin anew')) if defined $counted;
    is(datagrams("$name-later"), $now + 5, "$FIREWALL: $what: it counts") if defined $now;
    ok(defined $now, "$FIREWALL: $what: it has its rules");
    return;
}

sub is_gone {
    my ($name, $what) = @_;
    like(fact($name), qr/no chain prometheus.*^# status 1$/ms, "$FIREWALL: $what: the chain is gone, and nfprom says so");
    return;
}

# Tests: an alert that fires in each family (or for the whole) after the second of these states, and not after the others.
sub alert_fires {
    my ($alert, $count, $series, @states) = @_;
    my $input  = join '', map { "      - {series: '$_', values: '@{ [map {\"${_}x14\"} @{ $series->{$_} }] }'}\n" } sort keys %$series;
    my $tests  = join '', map {
        my ($at, $samples) = @$_;
        "      - {expr: 'count(ALERTS{alertname=\"$alert\",alertstate=\"firing\"})', eval_time: ${at}m, exp_samples: [$samples]}\n"
    } [14, ''], [29, "{value: $count}"], [44, ''];
    spew("$DIR/alerts.yml", "rule_files: [$SOURCE/systemd/nfprom.rules.yml]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n$input    promql_expr_test:\n$tests");
    my ($status, $out, $err) = run('', qw(promtool test rules), "$DIR/alerts.yml");
    is($status, 0, "$FIREWALL: $alert fires then, and is over when the chain is back") or diag($out, $err);
    return;
}

# What Prometheus has of these three states: whether there was an answer, and the references.
sub states {
    my @names = @_;
    my %series = ('up{instance="a",job="nfprom"}' => [map { fact($_) =~ /^# status 0$/m ? 1 : 0 } @names]);
    for my $family (qw(ipv4 ipv6)) {
        my @values = map { my $r = samples($_)->{nfprom_chain_references}{"l2proto=$family"}; defined $r ? $r : '_' } @names;
        $series{qq(nfprom_chain_references{instance="a",job="nfprom",l2proto="$family"})} = \@values;
    }
    return \%series;
}

my %check = (
    ufw => sub {
        is_there('restart', 5, 'restart by systemd');
        is_there('start', 10, 'stop and start');
        is_there('reload', 15, 'ufw reload');
        is_gone('builtins', 'ufw reload with MANAGE_BUILTINS=yes');
        is_there('builtins-again', 0, 'the unit reloaded');
        alert_fires('NfpromDown', 1, states(qw(reload builtins builtins-again)));
        is(fact('recipe-hook'), '', 'ufw: the lines for the hook have nothing to say');
        is(fact('hook-lines'), "1\n", 'ufw: and leave one line in it, however often');
        is_there('hook-reload', 0, 'ufw reload with the hook');
        is_there('hook-enable', 0, 'ufw enable with the hook');
        like(fact('hook-without'), qr/^Firewall reloaded$/m, 'ufw: where the script fails, the firewall is loaded all the same');
        is_there('hook-back', 0, 'once it is there again');
        is(fact('unhooked'), "0\n", 'ufw: the undo of the hook leaves nothing of it');
    },
    'netfilter-persistent' => sub {
        is_there('restart', 0, 'restart by systemd');
        is_there('start', 0, 'stop and start');
        is_gone('by-hand', 'netfilter-persistent reload');
        is_there('instead', 0, 'what README.md has instead');
        is_there('saved', 0, 'restart with the chain among the saved rules');
        is_there('saved-by-hand', 0, 'netfilter-persistent reload with it');
    },
    nftables => sub {
        is_there('restart', 0, 'restart by systemd');
        is_there('reload', 0, 'reload by systemd');
        is_there('reload-slow', 0, 'reload by systemd, which takes its time');
        is_gone('stop', 'stop');
        is_there('unstopped', 0, 'the unit reloaded while nftables is stopped');
        is_there('start', 0, 'and start');
        is_gone('by-hand', 'nft -f by hand');
        is_there('instead', 0, 'what README.md has instead');
        is(references('jumps-gone'), '0 0', 'a script that flushes INPUT and OUTPUT: nothing jumps to the chain');
        is_there('jumps-back', 5, 'the line at its end');
        alert_fires('NfpromNoReference', 2, states(qw(instead jumps-gone jumps-back)));
        is(samples('flushed')->{nfprom_rules}{ series_of(l2proto => 'ipv4', kind => 'exported') }, 0, 'a script that flushes all: no rule is in the chain');
        is_there('unflushed', 0, 'the line at its end');
        alert_fires('NfpromNoReference', 2, states(qw(jumps-back flushed unflushed)));
    },
    firewalld => sub {
        is_there('restart', undef, 'restart by systemd');
        is_there('reload', undef, 'reload by systemd');
        is_there('start', undef, 'stop and start');
        is_there('instead', undef, 'what README.md has instead of firewall-cmd --reload');
        is_there('without', undef, 'the unit reloaded without firewalld');
        is_there('with', undef, 'and firewalld started again');
    },
);

# One alone: prove t/92-chain.t :: ufw
for my $firewall (@ARGV ? @ARGV : ('ufw', 'netfilter-persistent', 'nftables', 'firewalld')) {
    $FIREWALL = $firewall;
    in_container(guest => $guest{$firewall}, common => $common, (map { ("recipe-$_" => $recipe{$_}) } keys %recipe), %{ $files_of{$firewall} || {} });
    is(fact('recipe-install') . fact('recipe-run'), '', "$firewall: the script has nothing to say");
    unlike(fact('recipe-units'), qr/^(?!Created symlink |Unit .* non-existent unit )./m, "$firewall: nor has systemctl, but for what it links");
    is(fact('verify'), '', "$firewall: systemd-analyze verify has nothing to say of the units");
    is_there('first', 0, 'made');
    $check{$firewall}->();
    is(fact("$_-status"), "0\n", "$firewall: status 0 of $_") for map { m{out/([\w-]+)-status\z} ? $1 : () } glob "$DIR/machine/root/srv/nfprom/out/*-status";
    is_there('unit-reload', undef, 'the unit reloaded');
    is_gone('unit-stop', 'the unit stopped');
    is_gone('unit-stopped', 'the firewall restarted then');
    is_there('unit-start', 0, 'the unit started');
    is(fact('journal'), '', "$firewall: the journal has no line of the unit");

    boot_again($booted);
    is_there('boot', 0, 'after a boot');
    is(fact('boot-journal'), '', "$firewall: nor has it after a boot");
    is(fact('recipe-undo') . fact('undone'), '', "$firewall: the undo leaves nothing");
    leave_container();
}

done_testing();
