#!/usr/bin/perl

# Hosts with native nft rules: README's commands lay systemd/nfprom.nft beside rules as nftables.service, Docker and firewalld make
# them. Real nft, real iptables-save, and packets from another namespace, which the host's own named counters see as well.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(nft iptables-nft iptables-nft-save ip6tables-nft-save));
note(must(qw(iptables-nft -V)), must(qw(nft -v)));

# ---- what README says

my $README = slurp($ENV{NFPROM_README} || "$SOURCE/README.md");
my $TITLE  = 'Hosts with native nft rules';
my ($section) = $README =~ /^### \Q$TITLE\E\n(.*?)^###? /ms or BAIL_OUT("README.md has no section $TITLE");
my ($put, $load, $undo, @more) = $section =~ /^```sh\n(.*?)^```$/gms;
ok($undo && !@more, 'README has three blocks: the file, how it is loaded, how it goes') or BAIL_OUT('README.md');
my ($first_line) = $load =~ /\A(nft -f .*)$/m;
my ($look) = $section =~ /`\.\/(nfprom -print [^`]*)`/;
ok($look, '... how to look at it');
my ($insert) = $section =~ /`(nft 'insert rule .*')`/;
ok($first_line && $insert, '... the first line to run again, and a rule that is put in');

# In a copy of /etc, which is this test's own. A test: it says nothing.
mkdir "$DIR/etc";
must(qw(cp -a /etc/.), "$DIR/etc/");
must(qw(mount --bind), "$DIR/etc", '/etc');
must(qw(rm -rf /etc/nfprom /etc/default/nfprom));

sub says_nothing {
    my ($what, $commands) = @_;
    my ($status, $out, $err) = run('', 'sh', '-euc', "cd '$SOURCE'\n$commands");
    return is("$status$out$err", '0', $what);
}

# How nftables.service loads /etc/nftables.conf again.
my ($unit) = grep { -e $_ } map {"$_/lib/systemd/system/nftables.service"} '/usr', '';
my ($reload) = slurp($unit || '/dev/null') =~ /^ExecReload=(.*)$/m or BAIL_OUT('nftables.service has no ExecReload');

# ---- another machine

command('ip netns add world', 'ip link add wan type veth peer name eth0 netns world', 'ip link set wan up',
    'ip address add 192.0.2.1/24 dev wan', 'ip address add 2001:db8:2::1/64 dev wan nodad',
    'ip -n world link set lo up', 'ip -n world address add 192.0.2.7/24 dev eth0', 'ip -n world address add 2001:db8:2::7/64 dev eth0 nodad',
    'ip -n world link set eth0 up', 'ip -n world route add default via 192.0.2.1', 'ip -n world route add default via 2001:db8:2::1');

# A connection from there to a service here, with so many bytes; and some to a port where nobody is, a packet in each direction.
sub sends {
    my ($family, $port, $size) = @_;
    my $here = $FAMILIES->{$family}{here};
    my $listener = IO::Socket::IP->new(LocalHost => $here, LocalPort => $port, Listen => 5, ReuseAddr => 1) or die "listen: $@";
    my $client = start("$DIR/client.log", 'ip', 'netns', 'exec', 'world', $^X, '-MIO::Socket::IP', '-e',
        'my $s = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1]) or die $@; print $s "x" x $ARGV[2]; $s->flush; shutdown $s, 1; <$s>', $here, $port, $size);
    my $server = $listener->accept;
    1 while sysread $server, my $bytes, 65536;
    close $server;
    patiently { ended($client) };
    stop($client);
    return;
}

sub is_refused {
    my ($family, $port, $count) = @_;
    must('ip', 'netns', 'exec', 'world', $^X, '-MIO::Socket::IP', '-e',
        'for (1 .. $ARGV[2]) { IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1]) and die }', $FAMILIES->{$family}{here}, $port, $count);
    return;
}

# ---- the rules of others

# The administrator's: with sets, maps, a flow table where the kernel has such, and named counters that see what ours sees.
my $flowtable = "flowtable fast { hook ingress priority filter; devices = { wan }; }";
my ($no_flowtable) = run("table inet try { $flowtable }\n", qw(nft -c -f -));
note('this kernel has no flow tables') if $no_flowtable;
$flowtable = '' if $no_flowtable;
my @WATCHED = ([ssh => 22], [http => 80], [https => 443]);
my $counters = join '', map { my $name = $_->[0]; map {"\tcounter ${name}_$_ { }\n"} qw(in4 out4 in6 out6) } @WATCHED;
my ($watch_in, $watch_out) = map { my ($way, $port) = @$_; join '', map { my ($name, $n) = @$_; map {"\t\tmeta nfproto ipv$_ tcp $port $n counter name ${name}_$way$_\n"} 4, 6 } @WATCHED } [in => 'dport'], [out => 'sport'];
my $host = <<"END";
table inet filter {
$counters
	set open { type inet_service; elements = { 22, 25, 80, 443 }; }
	set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.128/25 }; }
	map states { type ct_state : verdict; elements = { invalid : drop, established : accept, related : accept }; }
	$flowtable
	chain watch_in { type filter hook prerouting priority mangle; policy accept;
		iif "lo" return
$watch_in
	}
	chain watch_out { type filter hook output priority mangle; policy accept;
		oif "lo" return
$watch_out
	}
	chain input { type filter hook input priority filter; policy drop;
		ct state vmap \@states
		iif "lo" accept
		ip saddr \@blocked counter drop
		meta l4proto ipv6-icmp accept
		tcp dport \@open ct state new accept
	}
	chain forward { type filter hook forward priority filter; policy drop; }
	chain output { type filter hook output priority filter; policy accept; }
}
END
spew('/etc/nftables.conf', "#!/usr/sbin/nft -f\n\nflush ruleset\n\n$host");

# What Docker's rules are like when nft prints them: in the tables of iptables, and in `ip raw` as well.
my $docker = <<'END';
table ip filter {
	chain DOCKER { iifname != "docker0" oifname "docker0" ip daddr 172.17.0.2 tcp dport 8080 counter accept; iifname != "docker0" oifname "docker0" counter drop; }
	chain DOCKER-USER { counter return; }
	chain FORWARD { type filter hook forward priority filter; policy accept;
		counter jump DOCKER-USER
		oifname "docker0" ct state related,established counter accept
		oifname "docker0" counter jump DOCKER
		iifname "docker0" oifname != "docker0" counter accept
	}
}
table ip nat {
	chain DOCKER { iifname != "docker0" tcp dport 8080 counter dnat to 172.17.0.2:8080; }
	chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; fib daddr type local counter jump DOCKER; }
	chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; oifname != "docker0" ip saddr 172.17.0.0/16 counter masquerade; }
}
table ip raw {
	chain PREROUTING { type filter hook prerouting priority raw; policy accept; iifname != "docker0" ip daddr 172.17.0.2 counter drop; }
}
END
my ($docker_raw) = $docker =~ /^(table ip raw .*)/ms;

# firewalld's: one table of family inet, with base chains just behind those of iptables.
my $firewalld = <<'END';
table inet firewalld {
	chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept; jump mangle_ZONES; }
	chain mangle_ZONES { iifname "wan" goto mangle_public; }
	chain mangle_public { return; }
	chain filter_PREROUTING { type filter hook prerouting priority filter + 10; policy accept; icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept; }
	chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		iifname "wan" goto filter_public
	}
	chain filter_public { tcp dport { 22, 25, 80, 443 } accept; meta l4proto { icmp, ipv6-icmp } accept; reject with icmpx admin-prohibited; }
}
END

# All rules with their counters, but for ours: each table, and each chain of `raw` that is not ours.
sub others {
    my $text = '';
    for my $table (map { /^table (.*)$/ ? $1 : () } split /\n/, must(qw(nft list tables))) {
        $text .= must(qw(nft list table), split ' ', $table) if $table !~ /^ip6? raw$/;
    }
    my ($status, $chain) = run('', qw(nft list chain ip raw PREROUTING));
    return $text . $chain;
}

sub ours { return join '', map { my $family = $_; map { must(qw(nft -s list chain), $family, 'raw', $_) } qw(nfprom-prerouting nfprom-output nfprom-in nfprom-out prometheus) } qw(ip ip6) }

# ---- what nfprom shows

my @FLAGS = qw(-table raw -ipv6);    # until README's command has written them

# Neighbours are looked for at any time, which is in the rest of IPv6.
sub of_services { my ($counted) = @_; return { map { ($_ => $counted->{$_}) } grep { !/rest/ } keys %$counted } }

sub scrape { return one_shot($NFPROM, '-variant', 'nft', @FLAGS, @_) }

# {"ipv4 ssh in"} = "packets:bytes", of a scrape; what has no label is the rest.
sub counted {
    my $e = exposition(scrape(@_)->{body});
    my %counted;
    for my $kind ('', 'rule_') {
        my ($packets, $bytes) = map { $e->{"nfprom_$kind${_}_total"} || {} } qw(packets bytes);
        for my $series (keys %$packets) {
            my %label = map { split /=/, $_, 2 } split /,/, $series;
            $counted{ join ' ', $label{l2proto}, $label{service} ? ($label{service}, $label{direction}) : 'rest' } = "$packets->{$series}:$bytes->{$series}";
        }
    }
    return \%counted;
}

# The same of the host's named counters.
sub seen_by_host {
    my %seen;
    my $text = must(qw(nft list counters table inet filter));
    $seen{"ipv$3 $1 $2"} = "$4:$5" while $text =~ /counter (\w+)_(in|out)([46]) \{\s+packets (\d+) bytes (\d+)/g;
    return \%seen;
}

sub begins_at_0 {
    my ($what) = @_;
    my $counted = of_services(counted());
    return is(join(' ', grep { $counted->{$_} ne '0:0' } sort keys %$counted), '', $what);
}

# Traffic of all services, and a test that all of it was counted by service, once.
sub counts_traffic {
    my ($what) = @_;
    must(qw(nft reset counters table inet filter));
    my $before = counted();
    for my $family (4, 6) {
        sends($family, 22, 5_000);
        sends($family, 80, 200_000);
        sends($family, 443, 50_000);
        is_refused($family, 25, 3);
    }
    must(qw(ip netns exec world), $^X, '-MIO::Socket::IP', '-e',
        'my $s = IO::Socket::IP->new(Proto => "udp", PeerHost => $ARGV[0], PeerPort => 4000) or die $@; $s->send("x" x 100) for 1, 2', $FAMILIES->{4}{here});
    send_tcp($FAMILIES->{4}{peer}, $FAMILIES->{4}{here}, 22, 3_000);    # over lo
    my ($after, $seen) = (counted(), seen_by_host());
    my %grown = map { my ($p, $b) = split /:/, $before->{$_} || '0:0'; my ($q, $c) = split /:/, $after->{$_}; ($_ => ($q - $p) . ':' . ($c - $b)) } keys %$after;
    is_deeply({ map { ($_ => $grown{$_}) } keys %$seen }, $seen, "$what: each service has what the host's own counters have seen");
    is(scalar(grep { /^[1-9]\d*:[1-9]\d*$/ } values %$seen), 12, '... three services, two directions, two families');
    is(join(' ', map { $grown{"ipv4 smtp $_"} } qw(in out)), '3:180 3:120', '... three connections that are refused are three packets each way');
    is(join(' ', map { $grown{"ipv6 smtp $_"} } qw(in out)), '3:240 3:180', '... of IPv6 as well');
    is($grown{'ipv4 rest'}, '2:256', '... what no rule names is in the last rule, though the host drops it');
    is_deeply(of_services(counted('-list')), of_services($after), '... -list says the same');
    return;
}

# ---- before

must(split ' ', $reload);
says_nothing("Docker's rules and firewalld's are loaded", "nft -f - <<'END'\n$docker$firewalld\nEND");
my $before = others();
for my $list ([], ['-list']) {
    my $answer = scrape(@$list);
    is($answer->{status}, 503, "a host with native rules alone has no such chain (@$list)");
    like($answer->{body}, qr/no chain prometheus\b.*without rules and a jump to it a chain counts nothing \(README, Make the chain, has both\)/, '... it needs rules and a jump');
    like($answer->{body}, qr/beside native nft rules: README, \Q$TITLE\E/, '... and the way is named that such hosts have');
}

# ---- the recipe

says_nothing('README: the file is put in its place', $put);
is(slurp('/etc/nfprom/nfprom.nft'), slurp("$SOURCE/systemd/nfprom.nft"), '... as it is');
says_nothing('README: it is loaded', $load);
is(others(), $before, '... all rules of others are as they were, with their counters');
@FLAGS = split ' ', (slurp('/etc/default/nfprom') =~ /^NFPROM_FLAGS=(.*)$/m)[0];
my $answer = scrape();
is($answer->{status}, 200, 'nfprom reads it');
my $e = exposition($answer->{body});
{
    my ($status, $out, $err) = run('', $NFPROM, split ' ', $look =~ s/^nfprom //r);
    is("$status$err", '0', 'README: nfprom -print shows it');
    is(scalar(() = $out =~ /^nfprom_packets_total\{.*service="ssh"/mg), 4, '... a service in both families, in both directions');
}
is_deeply($e->{nfprom_scrape_success}, { map { ("l2proto=$_" => 1) } qw(ipv4 ipv6) }, '... both families');
is_deeply($e->{nfprom_chain_references}, { map { ("l2proto=$_" => 2) } qw(ipv4 ipv6) }, '... two rules jump to the chain');
is(join(' ', map { $e->{$_}{'l2proto=ipv4'} } qw(nfprom_label_errors nfprom_nonterminal_rules nfprom_unreachable_rules)), '0 0 0', '... nothing is wrong with it');
is_deeply([sort keys %{ counted() }], [sort map { my $f = $_; "$f rest", map { my $s = $_; map {"$f $s $_"} qw(in out) } qw(ssh smtp http https) } qw(ipv4 ipv6)],
    '... each service by its name, in both directions');
begins_at_0('... and nothing is counted yet');
counts_traffic('real traffic');

# ---- again

my $rules = ours();
says_nothing('all of it again', $put . $load);
is(ours(), $rules, '... no rule is there twice');
is(scalar(() = slurp('/etc/nftables.conf') =~ /^include/mg), 1, '... nor is the line in nftables.conf');
begins_at_0('... the counters begin at 0');
counts_traffic('after that');
my $kept = of_services(counted());
says_nothing('README: a rule is put in', $insert);
is_deeply(of_services(counted()), { %$kept, 'ipv4 dns in' => '0:0' }, '... it is there, and the others keep their counters');

# ---- nftables.service

says_nothing('nftables.service loads its rules again', $reload);
is(ours(), $rules, '... flush ruleset, and the chain is there again');
begins_at_0('... with counters that begin at 0');
counts_traffic('after the reload');
says_nothing("Docker's rules and firewalld's come back", "nft -f - <<'END'\n$docker$firewalld\nEND");
counts_traffic('beside them');

my $file = slurp('/etc/nfprom/nfprom.nft');
spew('/etc/nfprom/nfprom.nft', $file . "a mistake\n");
my $loaded = must(qw(nft -s list ruleset));
my ($check) = $load =~ /^(nft -c .*)$/m;
isnt((run('', 'sh', '-c', $check || 'true'))[0], 0, 'README: nft -c finds a mistake in the file');
isnt((run('', split ' ', $reload))[0], 0, '... which a reload does, too');
is(must(qw(nft -s list ruleset)), $loaded, '... and leaves all rules as they are');
unlink '/etc/nfprom/nfprom.nft';
says_nothing('without the file the own rules are loaded', $reload);
like(must(qw(nft list tables)), qr/^table inet filter$/m, '... they are there');
says_nothing('the file is put in its place again', $put . $load);

# ---- iptables beside it

says_nothing("Docker's rules and firewalld's come back once more", "nft -f - <<'END'\n$docker$firewalld\nEND");
ipt(4, 'nft', qw(-t raw -A PREROUTING -d 172.18.0.2 ! -i br0 -j DROP));
ipt(4, 'nft', qw(-t raw -A OUTPUT -p udp --dport 53 -j ACCEPT));
counts_traffic('beside rules of iptables in the table raw');
sub of_iptables { return join '', saved(4, 'nft', 'raw') =~ /^(\[\d+:\d+\] -A (?:PREROUTING|OUTPUT) .*\n)/mg }
$before = of_iptables();
is(scalar(() = $before =~ /\n/g), 3, '... which are Docker\'s and two more');
says_nothing('README: the first line again', $first_line);
is(of_iptables(), $before, '... they are there, with their counters');

# ---- what is not read right, and named in README

# Puts it in (commands of nft for the table `ip raw`), and takes it away again; between the two the block looks.
sub with(&$) {
    my ($looks, $nft) = @_;
    must('nft', $nft =~ s/\bours\b/rule ip raw prometheus/gr);
    $looks->();
    must(qw(nft delete table ip raw));
    must(split ' ', $first_line);
    return;
}

# The series of the rule that has counted 7 packets, without what is the same for all; both ways.
sub seven {
    my ($list) = @_;
    my $e = exposition(scrape(@$list)->{body});
    my @found;
    for my $name (qw(nfprom_packets_total nfprom_rule_packets_total)) {
        push @found, grep { $e->{$name}{$_} eq '7' } keys %{ $e->{$name} || {} };
    }
    return join '; ', map { join ' ', grep { !/^(?:l2proto|dup)=|=$/ } split /,/ } @found;
}

my $count = 'counter packets 7 bytes 700';
for (
    ['a set of ports',                 "insert ours tcp dport { 8080, 8443 } $count return", 'l3proto=tcp', '{ 80, 443 }'],
    ['a named set of ports',           "add set ip raw web { type inet_service; elements = { 8080, 8443 }; }; insert ours tcp dport \@web $count return", 'l3proto=tcp', '@web'],
    ['a named set of addresses',       "add set ip raw web { type ipv4_addr; elements = { 192.0.2.9 }; }; insert ours ip daddr \@web $count return", 'rule=-j RETURN', '@web'],
    ['a verdict map',                  "insert ours $count tcp dport vmap { 8080 : return }", 'l3proto=tcp', 'vmap'],
) {
    my ($what, $nft, $shown, $named) = @$_;
    with { is(seven($_), $shown, "$what is not seen (@$_)") for [], ['-list'] } $nft;
    like($section, qr/^- Sets and maps .*\Q$named\E/m, '... and README says so');
}
with { cmp_ok(exposition(scrape()->{body})->{nfprom_unreachable_rules}{'l2proto=ipv4'}, '>', 0, '... one of addresses alone makes the rules behind it unreachable ones') }
    "add set ip raw web { type ipv4_addr; elements = { 192.0.2.9 }; }; insert ours ip daddr \@web $count return";

for (
    ['a named counter',                'add counter ip raw web; insert ours tcp dport 8080 counter name web return', 'counter name web'],
    ['the state of a connection',      "insert ours ct state new $count return", 'ct state'],
    ['a port of any protocol',         "insert ours ip daddr 203.0.113.140 th dport 53 $count return", 'th dport'],
) {
    my ($what, $nft, $named) = @$_;
    with {
        for my $list ([], ['-list']) {
            my $answer = one_shot($NFPROM, qw(-variant nft -table raw), @$list);
            is($answer->{status}, 503, "$what is refused (@$list)");
            like($answer->{body}, qr/native nft rules/, '... and the answer names native nft rules');
            my $both = scrape(@$list)->{body};
            like($both, qr/^nfprom_scrape_success\{l2proto="ipv4"\} 0\n/m, '... with two families this one fails');
            unlike($both, qr/^nfprom_(?:rule_)?(?:packets|bytes)_total\{.*l2proto="ipv4"/m, '... and has no counters');
        }
    } $nft;
    like($section, qr/^- .*`\Q$named\E`.*: nfprom answers 503/m, '... README says so');
}

# The status of an answer, and how often a name of ours is in it; for both ways, also where nfprom does not know that it is nft.
my @VARIANTS = (['-variant', 'nft'], must(qw(iptables -V)) =~ /nf_tables/ ? [] : ());
sub ways {
    my %said;
    for my $variant (@VARIANTS) {
        my @answers = map { one_shot($NFPROM, @$variant, qw(-table raw), @$_) } [], ['-list'];
        $said{ join ', ', map { "$_->{status} " . scalar(() = $_->{body} =~ /service="ssh"/g) } @answers } = 1;
    }
    return join ' or ', sort keys %said;
}
my $hook = '{ type filter hook prerouting priority raw; policy accept; }';
my $all = ways();
my $list_alone = $all =~ s/\A200 \d+/503 0/r;
like($all, qr/\A200 ([1-9]\d*), 200 \1\z/, 'both ways read ours');
for (
    ['the state of a connection', 'ct state new counter'],
    ['notrack',                   'udp dport 53 notrack'],
    ['a port of any protocol',    'ip daddr 192.0.2.9 th dport 53 counter'],
) {
    my ($what, $rule) = @$_;
    with { is(ways(), $list_alone, "$what in another chain: -list reads ours") } "add chain ip raw theirs; add rule ip raw theirs $rule";
    with { is(ways(), $list_alone, '... in PREROUTING') } "add chain ip raw PREROUTING $hook; add rule ip raw PREROUTING $rule";
    with { is(ways(), $all, '... in a base chain of another name it is no matter') } "add chain ip raw prerouting $hook; add rule ip raw prerouting $rule";
}
like($section, qr/^- .*Then the flag \[`-list`\]\(#flags\) still reads the chain `prometheus`\..* \(`prerouting`, not `PREROUTING`\) is not listed, and does no harm/m, '... README says so');
with { is_deeply([sort keys %{ counted() }], [sort keys %$kept, 'ipv4 rest', 'ipv6 rest'], 'sets, maps and counters of the table that no rule has are no matter') }
    'add counter ip raw web; add set ip raw ports { type inet_service; elements = { 80 }; }; add map ip raw ways { type inet_service : verdict; elements = { 80 : accept }; }';

my $long = 'nfprom(service=' . 'x' x (128 - length 'nfprom(service=)') . ')';
with { is(seven([]), "address=203.0.113.140/32 direction=in l3proto=tcp port=8080 service=" . 'x' x 112, 'a comment of 128 bytes is read') }
    qq(insert ours ip daddr 203.0.113.140 tcp dport 8080 $count return comment "$long");
isnt((run('', 'nft', qq(insert rule ip raw prometheus counter comment "x$long")))[0], 0, '... and nft takes no longer one');
with { is(seven([]), 'address=203.0.113.0/24 direction=in l3proto=udp port=8000:8080 service=range', 'a prefix and a range of ports are read') }
    qq(insert ours ip daddr 203.0.113.0/24 udp dport 8000-8080 $count return comment "nfprom(service=range)");
with { is(seven([]), 'rule=-i wan -p tcp -j RETURN service=wan', 'an interface and a protocol, too') }
    qq(insert ours iifname "wan" meta l4proto tcp $count return comment "nfprom(service=wan)");

# ---- and how all of it goes

must('nft', '-f', spew("$DIR/docker", $docker_raw));
$before = others();
for my $time ('', ', again') {
    says_nothing("README: all of it is taken away$time", $undo);
    is(others(), $before, '... and nothing of others');
    my $ruleset = must(qw(nft list ruleset));
    unlike($ruleset, qr/nfprom|prometheus/, '... no chain is left');
    like($ruleset, qr/chain PREROUTING \{\s+type filter hook prerouting/, '... but theirs');
    unlike(slurp('/etc/nftables.conf'), qr/nfprom/, '... nor a line in nftables.conf');
    ok(!-e '/etc/nfprom/nfprom.nft', '... nor the file');
    ok(!-e '/etc/default/nfprom', '... nor the flags');
}
says_nothing('the host loads its own rules as before', $reload);

must('nft', 'add table inet raw; add chain inet raw prometheus; add rule inet raw prometheus counter return');
for my $list ([], ['-list']) {
    my $answer = scrape(@$list);
    is($answer->{status}, 503, "a chain in a table of inet is no chain for iptables (@$list)");
    like($answer->{body}, qr/no chain prometheus.*README, \Q$TITLE\E/, '... and the answer says what is');
}
like($section, qr/^- .*table of `inet` is no chain for iptables: a 503/m, '... README says so');

done_testing();
