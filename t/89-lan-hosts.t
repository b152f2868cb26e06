#!/usr/bin/perl

# The recipe for the hosts of a LAN, systemd/lan-hosts: five hosts in namespaces of their own behind a router, which is this test's
# namespace, and one host of the world behind that. Real iptables, both backends; real packets, counted one by one.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy promtool awk flock systemd-nspawn));

# ---- the network

# name => bridge, last part of the address in both families
my %HOSTS = (alice => [1, 5], bob => [1, 6], carol => [1, 77], dave => [2, 25], erin => [2, 200]);
my %ADDRESS = (world => { 4 => '203.0.113.7', 6 => '2001:db8:f::7' });
my %MAC;

command('ip netns add world', 'ip link add wan type veth peer name eth0 netns world', 'ip link set wan up');
command('ip address add 203.0.113.1/24 dev wan', 'ip address add 2001:db8:f::1/64 dev wan nodad');
for my $n (1, 2) {
    command("ip link add br$n type bridge forward_delay 0", "ip link set br$n up",
        "ip address add 192.168.$n.1/24 dev br$n", "ip address add 2001:db8:$n\::1/64 dev br$n nodad");
}
for my $name (sort keys %HOSTS) {
    my ($n, $last) = @{ $HOSTS{$name} };
    $ADDRESS{$name} = { 4 => "192.168.$n.$last", 6 => "2001:db8:$n\::$last" };
    $MAC{$name} = sprintf '02:00:00:00:%02x:%02x', $n, $last;
    command("ip netns add $name", "ip link add v-$name type veth peer name eth0 netns $name address $MAC{$name}",
        "ip link set v-$name master br$n up");
}
for my $name (keys %ADDRESS) {
    my ($four, $six) = map { my $a = $ADDRESS{$name}{$_}; $a =~ s/[^.:]+\z/1/r } 4, 6;
    command("ip -n $name link set lo up", "ip -n $name address add $ADDRESS{$name}{4}/24 dev eth0",
        "ip -n $name address add $ADDRESS{$name}{6}/64 dev eth0 nodad", "ip -n $name link set eth0 up");
    command("ip -n $name route add default via $four", "ip -n $name route add default via $six") if $name ne 'world';
}
# Where the module br_netfilter is loaded, FORWARD also sees what a bridge passes on by itself.
for my $switch (glob '/proc/sys/net/bridge/bridge-nf-call-ip*tables') { spew($switch, 0) }
command('ip -n world route add 2001:db8::/32 via 2001:db8:f::1');
spew("/proc/sys/net/$_", 1) for qw(ipv4/ip_forward ipv6/conf/all/forwarding);

# `answer FILE` answers each datagram to port 9000 with 20 bytes in which the sender's address stands. `ask ADDRESS COUNT` sends
# datagrams of 100 bytes, the next when the last one was answered, and prints the answers' text.
my $talk = spew("$DIR/talk", <<'TALK');
use strict;
use warnings;
use IO::Socket::IP;
my ($what, $where, $count) = @ARGV;
if ($what eq 'answer') {
    my $s = IO::Socket::IP->new(Proto => 'udp', LocalHost => '::', LocalPort => 9000, V6Only => 0) or die "answer: $@";
    open my $ready, '>', $where;
    close $ready;
    while (defined $s->recv(my $in, 2000)) { $s->send(substr($s->peerhost =~ s/^::ffff://r . ' ' x 20, 0, 20)) }
}
my $s = IO::Socket::IP->new(Proto => 'udp', PeerHost => $where, PeerPort => 9000) or die "ask: $@";
for (1 .. $count) {
    $s->send('x' x 100);
    defined $s->recv(my $in, 2000) or die "no answer: $!";
    print $in if $_ == 1;
}
TALK

for my $name (sort keys %ADDRESS) {
    start("$DIR/answer.log", 'ip', 'netns', 'exec', $name, $^X, $talk, 'answer', "$DIR/ready-$name");
    patiently { -e "$DIR/ready-$name" } 600 or BAIL_OUT("$name does not answer: " . slurp("$DIR/answer.log"));
}

# One asks another: so many datagrams there, and as many back. Returns the address that the other one saw.
sub asks {
    my ($from, $to, $count, $family) = @_;
    my $address = ref $ADDRESS{$to} ? $ADDRESS{$to}{ $family || 4 } : $to;
    return must('ip', 'netns', 'exec', $from, $^X, $talk, 'ask', $address, $count) =~ s/ +\z//r;
}

# What so many of them weigh: there and back.
sub there { my ($n, $family) = @_; return "$n:" . $n * (100 + 8 + (($family || 4) == 6 ? 40 : 20)) }
sub back  { my ($n, $family) = @_; return "$n:" . $n * ( 20 + 8 + (($family || 4) == 6 ? 40 : 20)) }
sub add   { my @sum = (0, 0); for (@_) { my @p = split /:/; $sum[$_] += $p[$_] for 0, 1 } return join ':', @sum }

# ---- the script

my $script = slurp("$SOURCE/systemd/lan-hosts");
$script =~ s{/etc/nfprom/hosts}{$DIR/hosts} or BAIL_OUT('the script has no list');
my $VARIANT;

# What a user may edit: the line of the list that begins so, and TREE.
sub edited {
    my ($text, %o) = @_;
    $text =~ s/^TREE=no$/TREE=$o{tree}/m or die 'TREE' if $o{tree};
    if ($o{list}) { $text =~ s/^\tcat .*\n//m; $text =~ s/^\t#($o{list}.*)/\t$1/m or die "no such line: $o{list}" }
    for my $path (sort keys %{ $o{paths} || {} }) { $text =~ s/\Q$path\E/$o{paths}{$path}/ or die $path }
    return $text;
}

my %COMMANDS = map { $_ => commands_of($_) } qw(nft legacy);

# Runs it: its status, and what it said.
sub lan_hosts {
    my ($text, @arguments) = @_;
    local $ENV{PATH} = "$COMMANDS{$VARIANT}:$ENV{PATH}";
    my ($status, $out, $err) = run('', 'sh', spew("$DIR/lan-hosts", $text), @arguments);
    return ($status, $out . $err);
}

sub runs_silently {
    my ($what, @arguments) = @_;
    my ($status, $said) = lan_hosts(@arguments);
    return is("$status$said", 0, "$VARIANT: $what");
}

sub hosts { spew("$DIR/hosts", join '', map {"$_\n"} @_); return }
sub lines { return map {"$ADDRESS{$_}{4} $_"} @_ }

# ---- what nfprom makes of it

# {"alice out" => "packets:bytes"}; `rest` is the rest, in all chains together.
sub counted {
    my ($family, @flags) = @_;
    my $answer = one_shot($NFPROM, '-variant', $VARIANT, $family == 6 ? ('-ipv4=false', '-ipv6') : (), @flags);
    my $e = exposition($answer->{body});
    my %counted;
    for my $kind ('', 'rule_') {
        my ($packets, $bytes) = map { $e->{"nfprom_$kind${_}_total"} || {} } qw(packets bytes);
        for my $series (sort keys %$packets) {
            my ($name)      = ",$series" =~ /,host=([^,]*)/;
            my ($direction) = ",$series" =~ /,direction=(\w+)/;
            my $row = defined $name ? $name . ' ' . ($direction || 'by MAC') : 'rest';
            fail("$row is counted twice") if $row ne 'rest' && exists $counted{$row};
            $counted{$row} = add($counted{$row} || '0:0', "$packets->{$series}:$bytes->{$series}");
        }
    }
    return \%counted;
}

# A test: these rows, and all others are 0:0; together they are what the jump has counted.
sub counts {
    my ($what, $family, $flags, %expected) = @_;
    my %counted = %{ counted($family, @$flags) };
    delete $counted{$_} for grep { $counted{$_} eq '0:0' && !exists $expected{$_} } keys %counted;
    is_deeply(\%counted, \%expected, "$VARIANT: $what") or diag(explain(\%counted));
    my ($jump, @more) = grep { $_->[2] eq '-j lan' } saved_rules($family, $VARIANT, 'FORWARD');
    is(add(values %counted), "$jump->[0]:$jump->[1]", '... which is all that was forwarded, once');
    return;
}

# All rules of all chains, with their counters, without the built-in chains' own, where other packets count.
sub rules { my ($family) = @_; return saved($family, $VARIANT) =~ s/^(?:#|:[A-Z]).*\n//mgr }

# README's line for a tree.
my ($tree_flags) = slurp("$SOURCE/README.md") =~ /NFPROM_FLAGS=(\$\(printf [^"]*lan-[^"]*\))"/
    or BAIL_OUT('README.md has no line with the chains of a tree');
my @TREE = split ' ', must('sh', '-c', "echo \"$tree_flags\"");
my @FLAT = qw(-chain lan);

SKIP: {
    skip_or_fail('shellcheck is not installed') if !have('shellcheck');
    is(join('', (run('', 'shellcheck', "$SOURCE/systemd/lan-hosts"))[1, 2]), '', 'shellcheck has nothing to say of the script');
}

for (qw(nft legacy)) {
    $VARIANT = $_;
    my $tree = edited($script, tree => 'yes');
    flush_all();
    ipt(4, $VARIANT, qw(-t nat -A POSTROUTING -o wan -j MASQUERADE));
    ipt(4, $VARIANT, qw(-t nat -A PREROUTING -i wan -p udp --dport 9000 -j DNAT --to), $ADDRESS{dave}{4});
    ipt($_, $VARIANT, qw(-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT)) for 4, 6;

    # ---- one chain
    hosts(lines(qw(alice bob carol dave)));
    runs_silently('the first run says nothing', $script);
    is((saved_rules(4, $VARIANT, 'FORWARD'))[0][2], '-j lan', '... and jumps to its chain before anything accepts');

    is(asks(qw(alice world 10)), '203.0.113.1', "$VARIANT: the world sees the router's address");
    is(asks('world', '203.0.113.1', 4), '203.0.113.7', '... and reaches a host through it');
    counts('through NAT, in both directions, the inside address counts', 4, \@FLAT,
        'alice out' => there(10), 'alice in' => back(10), 'dave in' => there(4), 'dave out' => back(4), rest => '0:0');
    asks(qw(alice dave 3));
    my %now = ('alice out' => add(there(10), there(3)), 'alice in' => back(10), 'dave in' => there(4), 'dave out' => add(back(4), back(3)), rest => '0:0');
    counts('a packet from one host to another counts for the sender', 4, \@FLAT, %now);
    asks(qw(erin carol 2));
    %now = (%now, 'carol in' => there(2), 'carol out' => back(2));
    counts('... or for the receiver if the sender is not in the list', 4, \@FLAT, %now);
    asks(qw(erin world 5));
    $now{rest} = add(there(5), back(5));
    counts('what is nobody\'s is in the last rule', 4, \@FLAT, %now);

    my $before = rules(4);
    runs_silently('run again', $script);
    is(rules(4), $before, '... it changes no rule and no counter');

    hosts(reverse lines(qw(alice carol dave erin)));
    runs_silently('run with a changed list', $script);
    counts('the others keep their counters', 4, \@FLAT, %now);
    my @rules = map { $_->[2] } saved_rules(4, $VARIANT, 'lan');
    is(scalar(grep {/bob/} @rules), 0, '... the gone one has no rule any more');
    is(scalar(grep {/erin/} @rules), 2, '... the new one has two');
    is(scalar @rules, 9, '... and that is all');
    asks(qw(erin carol 7));
    %now = (%now, 'erin out' => there(7), 'carol out' => add($now{'carol out'}, back(7)));
    counts('a new host that sends is before those that receive', 4, \@FLAT, %now);

    # ---- what others did to it
    $before = join "\n", map {"@$_"} saved_rules(4, $VARIANT, 'lan');
    ipt(4, $VARIANT, qw(-I FORWARD -i br1 -j ACCEPT));
    ipt(4, $VARIANT, qw(-A FORWARD -j lan)) for 1, 2;
    runs_silently('run after somebody put rules into FORWARD', $script);
    is(join(', ', map { $_->[2] =~ s/.*(?=-j)//r } saved_rules(4, $VARIANT, 'FORWARD')), '-j lan, -j ACCEPT, -j ACCEPT', '... one jump, and it is the first');
    ipt(4, $VARIANT, qw(-D FORWARD -j lan));
    ipt(4, $VARIANT, qw(-I lan), '-s', $ADDRESS{alice}{4}, qw(-j RETURN));
    ipt(4, $VARIANT, qw(-A lan), '-s', $ADDRESS{alice}{4}, qw(-m comment --comment nfprom(host=alice) -j RETURN));
    runs_silently('run without a jump, and with a strange rule and a second copy', $script);
    is(join("\n", map {"@$_"} saved_rules(4, $VARIANT, 'lan')), $before, '... all is as it was');
    like(rules(4), qr/^\[0:0\] -A FORWARD -j lan$/m, '... with a jump');
    $before = rules(4);
    unlink "$DIR/hosts";
    my ($status, $said) = lan_hosts($script);
    is($status, 1, "$VARIANT: without a list it fails");
    like($said, qr/nothing is changed/, '... says so');
    is(rules(4), $before, '... and leaves all as it is');

    # ---- one chain or a tree
    hosts(lines(qw(alice carol dave)));
    ($status, $said) = lan_hosts($tree);
    is($status, 1, "$VARIANT: it makes no tree of one chain");
    like($said, qr/lan-hosts remove/, '... and says what comes before');
    is(rules(4), $before, '... nothing is changed');
    runs_silently('remove', $script, 'remove');
    is(join('', map { rules($_) } 4, 6) =~ /^.*lan.*/m ? $& : '', '', '... takes away all that it made');
    like(rules(4), qr/-A FORWARD -i br1 -j ACCEPT/, '... and nothing else');
    runs_silently('... and again', $script, 'remove');

    ipt(4, $VARIANT, qw(-D FORWARD -i br1 -j ACCEPT));
    runs_silently('a tree', $tree);
    is(scalar @TREE, 32, '... of sixteen chains');
    asks(qw(alice world 10));
    asks('world', '203.0.113.1', 4);
    asks(qw(alice dave 3));
    asks(qw(erin carol 2));
    asks(qw(carol dave 1));
    %now = ('alice out' => add(there(10), there(3)), 'alice in' => back(10), 'dave in' => there(4), 'dave out' => add(back(4), back(3), back(1)),
        'carol in' => there(2), 'carol out' => add(back(2), there(1)), rest => '0:0');
    counts('in a tree it is the same', 4, \@TREE, %now);
    asks(qw(bob dave 6));
    %now = (%now, rest => there(6), 'dave out' => add($now{'dave out'}, back(6)));
    counts('but for who is not in the list, among the sixteen addresses of one who is', 4, \@TREE, %now);
    $before = rules(4);
    runs_silently('run again on a tree', $tree);
    is(rules(4), $before, '... it changes nothing');
    hosts(lines(qw(alice dave erin bob)));
    runs_silently('run with a changed list', $tree);
    asks(qw(erin dave 0));
    delete @now{ grep {/carol/} keys %now };
    my %counted = %{ counted(4, @TREE) };
    is_deeply({ map { ($_ => $counted{$_}) } grep { $counted{$_} ne '0:0' } keys %counted }, \%now, '... the others keep their counters, carol is gone');
    is(join(' ', map { $_->[2] } grep { $_->[2] =~ m{\.64/28} } saved_rules(4, $VARIANT, 'lan')), '', '... and so is the way to her chain');
    ($status, $said) = lan_hosts($script);
    is($status, 1, "$VARIANT: it makes no chain of a tree");

    # ---- one target
    ipt(4, $VARIANT, qw(-N prometheus));
    ipt(4, $VARIANT, qw(-A prometheus -p tcp --dport 22 -j RETURN));
    my $answer = one_shot($NFPROM, '-variant', $VARIANT, qw(-chain prometheus), @TREE);
    is($answer->{status}, 200, "$VARIANT: all hosts and the router's own chain are one target");
    is(promtool_says($answer->{body}), '', '... promtool has nothing to say');
    like($answer->{body}, qr/^nfprom_bytes_total\{address="192\.168\.2\.25\/32",chain="lan-1",direction="out",.*host="dave"\} [1-9]/m, '... with a label for each host');
    like($answer->{body}, qr/^nfprom_nonterminal_rules\S* 0$/m, '... and no packet goes on to a second rule');

    # ---- IPv6
    lan_hosts($tree, 'remove');
    hosts("2001:DB8:1:0::5 alice", "2001:db8:2::/64 lan2", "2001:db8:2::25 dave", "$MAC{carol} carol");
    for my $which ([$script, @FLAT], [$tree, @TREE]) {
        my ($text, @flags) = @$which;
        my $in = $text eq $script ? 'one chain' : 'a tree';
        runs_silently("IPv6, $in", $text);
        asks(qw(alice world 2 6));
        asks(qw(dave world 3 6));
        asks(qw(erin world 4 6));
        asks(qw(carol world 5 6));
        counts("IPv6, $in: by address, by prefix, and by MAC what a host sends", 6, \@flags, 'alice out' => there(2, 6), 'alice in' => back(2, 6),
            'dave out' => there(3, 6), 'dave in' => back(3, 6), 'lan2 out' => there(4, 6), 'lan2 in' => back(4, 6), 'carol by MAC' => there(5, 6), rest => back(5, 6));
        $before = rules(6);
        runs_silently('run again', $text);
        is(rules(6), $before, '... it changes nothing');
        lan_hosts($text, 'remove');
    }
}

# ---- strangers' names

$VARIANT = 'legacy';    # nft warns of legacy tables now
flush_all();
my $evil = "$DIR/evil";
for my $case (
    ['a semicolon',          "a;touch $evil"],
    ['a quote',              '"'],
    ['a quote and a rule',   'a"-jACCEPT"'],
    ['an apostrophe',        "a'b"],
    ['a command',            "\$(touch\${IFS}$evil)"],
    ['another',              "`touch\${IFS}$evil`"],
    ['a star',               '*'],
    ['a backslash',          'a\\nb'],
    ['a percent sign',       '%s%n'],
    ['a parenthesis',        'a)b'],
    ['an equals sign',       'a;host=b'],
    ['300 bytes',            'a' x 300],
    ['201 bytes',            'a' x 201],
    ['Latin-1',              "caf\xe9"],
    ['an escape',            "a\e[2Jb"],
    ['a carriage return',    "a\r"],
    ['nothing',              ''],
    ['a newline and a rule', "\nCOMMIT\n-A FORWARD -j ACCEPT"],
    ['a newline and ours',   "\nR -A lan -s 192.168.1.6/32"],
) {
    my ($what, $name) = @$case;
    hosts("192.168.1.5 $name", '192.168.1.6 bob');
    my ($status, $said) = lan_hosts($script);
    is($status, 0, "a name with $what is no error");
    my @rules = map { $_->[2] } saved_rules(4, 'legacy', 'lan');
    is(join(' ', sort map { /(-[sd] \S+)/ ? $1 : () } @rules), '-d 192.168.1.6/32 -s 192.168.1.6/32', '... it is left out, and the others are not');
    like($said, qr/\A(?:lan-hosts: left out, [ -~]{1,130}\n){1,3}\z/, '... which is said');
    is(join(' ', map { $_->[2] } saved_rules(4, 'legacy', 'FORWARD')), '-j lan', '... nothing else is in FORWARD');
}
ok(!-e $evil, 'nothing of a name was run');
hosts(map({"$_ x"} '192.168.1.256', '192.168.1', '127.0.0.1', '224.0.0.1', '0.0.0.0', '192.168.01.5', '-j', '192.168.1.0/24', 'fe80::1', 'ff02::1', '::1', '2001:db8::1::2', '2001:db8::/129', '1:2:3:4:5:6:7:8:9', '02:00:00:00:00'),
    '192.168.1.5 alice', '192.168.1.5 bob', '', '# 192.168.1.7 comment', '192.168.1.8 ' . 'a' x 200 . ' alias # comment', '192.168.1.5 alice');
my ($status, $said) = lan_hosts($script);
is(scalar(() = $said =~ /^lan-hosts: left out, no address of a host: /mg), 15, 'what is no address of a host is left out');
is(scalar(() = $said =~ /^lan-hosts: left out, the address has a name already: 192\.168\.1\.5 bob$/mg), 1, 'and a second name of an address');
is(join(' ', map { $_->[2] =~ /-s (\S+)/ } saved_rules(4, 'legacy', 'lan')), '192.168.1.5/32 192.168.1.8/32', 'a name has up to 200 bytes');
my $e = exposition(one_shot($NFPROM, '-variant', 'legacy', @FLAT)->{body});
is(scalar(grep { /host=a{200},/ } keys %{ $e->{nfprom_packets_total} }), 2, '... which nfprom shows');
is($e->{nfprom_label_errors}{'l2proto=ipv4'}, 0, '... without an error of a label');

# ---- where the list comes from

spew("$DIR/etc-hosts", "127.0.0.1\tlocalhost\n127.0.1.1\trouter\n192.168.1.5\talice alice.lan\n# the cat\n192.168.1.6\tbob\n::1\tlocalhost ip6-localhost\nff02::1\tip6-allnodes\n");
spew("$DIR/leases", "1700000000 02:00:00:00:01:05 192.168.1.5 alice 01:02:00:00:00:01:05\n1700000000 02:00:00:00:01:06 192.168.1.6 * *\nduid 00:01:00:01:2b\n");
asks(qw(alice dave 1));
for my $case (
    ['/etc/hosts',        'grep', { '/etc/hosts' => "$DIR/etc-hosts" },                          qr/\A\z/,                        'alice,bob'],
    ["dnsmasq's leases",  'awk',  { '/var/lib/misc/dnsmasq.leases' => "$DIR/leases" },           qr/\Alan-hosts: left out, [^\n]*192\.168\.1\.6 \*\n\z/, 'alice'],
    ['the neighbours',    'seen', { br0 => 'br1' },                                                            qr/\A\z/,                        qr/(?:\A|,)02-00-00-00-01-05(?:,|\z)/],
) {
    my ($what, $list, $paths, $says, $names) = @$case;
    my ($status, $said) = lan_hosts(edited($script, list => $list, paths => $paths));
    like("$said", $says, "the list from $what");
    my $there = join ',', sort map { $_->[2] =~ /-s .*host=(.*)\)/ } saved_rules(4, 'legacy', 'lan');
    ref $names ? like($there, $names, '... gives its hosts rules') : is($there, $names, '... gives its hosts rules');
}

my $before = rules(4);
($status, $said) = lan_hosts(edited($script, list => 'seen'));
is($status, 1, 'where the interface is not there, the list fails');
is(rules(4), $before, '... and all rules stay');

# ---- README's steps under a real systemd: the timer runs the script, at once and when the list has changed

my ($section) = slurp("$SOURCE/README.md") =~ /^## Each host of a LAN\n(.*?)^(?:###? |\*\*A chain or a tree)/ms or BAIL_OUT('README.md has no section for the hosts of a LAN');
my ($start_line) = slurp("$SOURCE/README.md") =~ /^make && make install && (systemctl .*enable .*nfprom\.socket)$/m;
my @steps = grep { !/^curl/ } $section =~ /^```sh\n(.*?)^```$/msg;
my $guest = <<'GUEST';
#!/bin/bash
. /srv/nfprom/functions
there() { iptables -S lan 2>&1 | grep -qF "$1"; }
scrape() { perl -MIO::Socket::IP -e '$s = IO::Socket::IP->new("127.0.0.1:9914"); print $s "GET /metrics HTTP/1.0\r\n\r\n"; print grep { /^nfprom_bytes_total.*host=/ } <$s>'; }
ip link set lo up
make -C source install > /dev/null 2>&1; bash -c "$(cat start-line)"
iptables -N prometheus; iptables -A prometheus -p tcp --dport 22
(cd source && bash -e ../steps) 2>&1 | out steps
scrape | out scrape
iptables -F FORWARD; iptables -F lan; iptables -X lan
echo '192.168.1.7 carol' >> /etc/nfprom/hosts
patiently there carol; scrape | out scrape-later
systemd-analyze verify lan-hosts.timer lan-hosts.service 2>&1 | out verify
echo 'nonsense' >> /etc/nfprom/hosts; systemctl start lan-hosts.service
journalctl --sync; journalctl -q -o cat --no-pager | grep lan-hosts | grep -v -e ^Started -e "$of_the_host" | out journal
systemctl disable --now lan-hosts.timer 2> /dev/null; /etc/nfprom/lan-hosts remove 2>&1 | out remove
iptables -S 2>&1 | grep lan | out left
GUEST
in_container(guest => $guest, steps => join('', @steps), 'start-line' => $start_line);
sub hosts_in { return join ' ', sort map { /address="([^"]+)".*direction="([^"]+)".*host="([^"]+)"/ ? "$3=$1-$2" : () } split /\n/, fact($_[0]) }
like(fact('steps'), qr/\ACreated symlink [^\n]+lan-hosts\.timer'?\.\n\z/, "README's steps say nothing, but that the timer is enabled");
my %named = (alice => 5, bob => 6, carol => 7);
sub both_of { return join ' ', map { my $name = $_; map {"$name=192.168.1.$named{$name}/32-$_"} qw(in out) } @_ }
is(hosts_in('scrape'), both_of(qw(alice bob)), '... and the hosts of the list have their series');
is(hosts_in('scrape-later'), both_of(qw(alice bob carol)), 'the timer brings what a firewall took away, and a new host');
is(fact('verify'), '', 'systemd-analyze verify has nothing to say of the units');
like(fact('journal'), qr/\A(?:lan-hosts: left out, [^\n]*nonsense[^\n]*\n)+\z/, 'in the journal stands what was left out, and nothing else');
is(fact('remove'), '', 'it can be taken away');
is(fact('left'), '', '... and nothing is left');
leave_container();

done_testing();
