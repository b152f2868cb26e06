#!/usr/bin/perl

# README.md, A fleet: one Prometheus in the centre with its targets in files, and a site behind NAT whose agent sends to it. The
# commands and files are README's. Three nfproms in namespaces, real rules, packets that are counted one by one, and each query
# of README is compared with the single series and with what was sent.
#
# NFPROM_README is another README.md than that of the tree.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use List::Util qw(max sum0);
use Test::More;
use Time::HiRes qw(sleep time);
use Live;
use Prometheus;

need(qw(iptables-nft iptables-nft-restore iptables-save prometheus promtool));

# ---- what README says

my $README = slurp($ENV{NFPROM_README} || "$SOURCE/README.md");
my ($section) = $README =~ /^## A fleet\n(.*?)(?=^## )/ms;
my %blocks;
push @{ $blocks{$1} }, $2 while ($section || '') =~ /^```(\w*)\n(.*?)^```$/msg;
my ($targets, $receiver, $agent_host) = @{ $blocks{sh}     || [] };
my ($config)                          = @{ $blocks{yaml}   || [] };
my ($promql)                          = @{ $blocks{promql} || [] };
is(join(' ', map { scalar @{ $blocks{$_} || [] } } qw(sh yaml promql)), '3 1 1', 'README has the recipes') or BAIL_OUT('no recipes');
my @queries;    # [question, query]
push @queries, [$1, $2] while $promql =~ /^# (.*)\n([^#\n].*)$/mg;
is(2 * @queries, scalar(() = $promql =~ /\n/g), 'its queries are questions, each with a line for answer');

# ---- the network: the centre is this test's namespace. The site's hosts are behind the NAT of gw, where the agent runs.

my $CENTRE = '203.0.113.10';
my %HOSTS  = (alpha => '203.0.113.140', beta => '192.168.1.5', gamma => '192.168.1.6');
my %SITE   = (alpha => 'paris', beta => 'berlin', gamma => 'berlin');
my %INSTANCE = (alpha => '203.0.113.140:9914', beta => 'berlin/192.168.1.5:9914', gamma => 'berlin/192.168.1.6:9914');

sub inside  { my ($name, @command) = @_; return $name eq 'centre' ? @command : (qw(ip netns exec), $name, @command) }

command('ip address del 203.0.113.140/32 dev lo', 'ip link add br0 type bridge forward_delay 0', "ip address add $CENTRE/24 dev br0", 'ip link set br0 up');
command('ip netns add gw', 'ip -n gw link set lo up', 'ip -n gw link add br0 type bridge forward_delay 0', 'ip -n gw address add 192.168.1.1/24 dev br0', 'ip -n gw link set br0 up');
for my $name (sort keys %HOSTS) {
    my @switch = $SITE{$name} eq 'paris' ? () : qw(-n gw);
    command("ip netns add $name", "ip -n $name link set lo up", "ip -n $name link add eth0 type veth peer name v-$name");
    must(qw(ip -n), $name, 'link', 'set', "v-$name", 'netns', @switch ? '/run/netns/gw' : $$);
    must('ip', @switch, 'link', 'set', "v-$name", 'master', 'br0', 'up');
    command("ip -n $name address add $HOSTS{$name}/24 dev eth0", "ip -n $name link set eth0 up");
    command("ip -n $name route add default via 192.168.1.1") if @switch;
}
command('ip link add v-gw type veth peer name eth0 netns gw', 'ip link set v-gw master br0 up', 'ip -n gw address add 203.0.113.20/24 dev eth0', 'ip -n gw link set eth0 up');
command('ip netns exec gw sysctl -qw net.ipv4.ip_forward=1', 'ip netns exec gw iptables-nft -t nat -A POSTROUTING -o eth0 -j MASQUERADE');
for my $switch (glob '/proc/sys/net/bridge/bridge-nf-call-ip*tables') { spew($switch, 0) }

# ---- the rules: only what the test itself sends passes them, and no scrape. In the site they have a label that the targets have, too.

my @SERVICES = qw(ssh=22 smtp=25 dns=53 http=80 ntp=123 imap=143 https=443 rsync=873 mysql=3306 xmpp=5222);
sub rules {
    my ($address, $names, $gre, @services) = @_;
    my @rules = ('*filter', ':prometheus - [0:0]', map {"[0:0] -A $_ -j prometheus"} 'INPUT -p udp', 'OUTPUT -p udp', 'INPUT -p gre');
    for (@services) {
        my ($service, $port) = split /=/;
        my $protocol = $service eq 'dns' ? 'udp' : 'tcp';
        my $comment  = qq{-m comment --comment "nfprom(service=$service;$names)"};
        push @rules, "[123456789:12345678901] -A prometheus $_ $comment -j RETURN"
            for "-d $address -p $protocol --dport $port", "-s $address -p $protocol --sport $port";
    }
    push @rules, "[0:0] -A prometheus -d $address -p gre -j RETURN" if $gre;
    return join "\n", @rules, '[0:0] -A prometheus -j RETURN', 'COMMIT', '';
}
my %RULES = (
    alpha => rules($HOSTS{alpha}, 'host=alpha',  0, @SERVICES),
    beta  => rules($HOSTS{beta},  'site=cellar', 1, 'dns=53'),
    gamma => rules($HOSTS{gamma}, 'host=gamma',  1, 'dns=53'),
);
for my $name (sort keys %RULES) {
    my ($status, @said) = run($RULES{$name}, inside($name, qw(iptables-nft-restore -c)));
    is($status, 0, "$name has its rules") or BAIL_OUT(join '', @said);
}

# Who prints protocol 47 how depends on the release: here one host of the site does it in the one way, and one in the other.
my %PRINTS = (alpha => 's/^//', beta => 's/ -p 47 / -p gre /', gamma => 's/ -p gre / -p 47 /');
my $save   = have('iptables-nft-save') . '/iptables-nft-save';
my %nfprom;
sub start_nfprom {
    my ($name) = @_;
    mkdir "$DIR/$name";
    spew("$DIR/$name/iptables-save", qq{#!/bin/sh\nall=\$($save "\$@") || exit\nprintf '%s\\n' "\$all" | sed '$PRINTS{$name}'\n});
    chmod 0755, "$DIR/$name/iptables-save";
    $nfprom{$name} = start("$DIR/$name.log", inside($name, 'env', "PATH=$DIR/$name:$ENV{PATH}", $NFPROM, '-addr', "$HOSTS{$name}:9914"));
    return;
}
start_nfprom($_) for sort keys %HOSTS;

# ---- the packets: {host}{what} has the bytes

my %sent;
my $send = spew("$DIR/send", <<'SEND');
use strict;
use warnings;
use Socket;
my ($protocol, $from, $sport, $to, $dport, $count, $size) = @ARGV;
socket(my $s, PF_INET, $protocol == 17 ? SOCK_DGRAM : SOCK_RAW, $protocol) or die "socket: $!";
bind($s, pack_sockaddr_in($sport, inet_aton($from))) or die "bind: $!";
for (1 .. $count) { send($s, 'x' x $size, 0, pack_sockaddr_in($dport, inet_aton($to))) or redo }    # an ICMP error of the one before is no matter
SEND
sub packets {
    my ($name, $what, $n) = @_;
    my ($peer, $peer_address) = $SITE{$name} eq 'paris' ? ('centre', $CENTRE) : ('gw', '192.168.1.1');
    my @there = ($peer_address, 0, $HOSTS{$name});
    my %ways  = (
        in   => [$peer, 17, @there, 53,   $n, 100],
        out  => [$name, 17, $HOSTS{$name}, 53, $peer_address, 9, $n, 300],
        rest => [$peer, 17, @there, 9999, $n, 200],
        gre  => [$peer, 47, @there, 0,    $n, 400],
    );
    my ($from, @packets) = @{ $ways{$what} };
    must(inside($from, $^X, $send, @packets));
    $sent{$name}{$what} += $n * ($packets[-1] + ($what eq 'gre' ? 20 : 28));
    return;
}
sub traffic {
    my ($n) = @_;
    my $i = 0;
    for my $name (sort keys %HOSTS) { packets($name, $_, $n + $i++) for qw(in out rest), $name eq 'alpha' ? () : 'gre' }
    return;
}
sub total { my ($name) = @_; return sum0(values %{ $sent{$name} }) }

# ---- README's commands, on a host with an /etc of its own; apt-get and systemctl only take down what they are to do

mkdir "$DIR/bin";
for (qw(apt-get systemctl)) { spew("$DIR/bin/$_", qq{#!/bin/sh\necho "$_ \$*" >> "\$CALLS"\n}); chmod 0755, "$DIR/bin/$_" }
my $own_etc = 'mount --bind "$0/prometheus" /etc/prometheus && mount --bind "$0/default" /etc/default && exec "$@"';
sub on_host {
    my ($name, @command) = @_;
    my $etc = "$DIR/etc-$name";
    must('mkdir', '-p', "$etc/prometheus", "$etc/default") if !-e $etc;
    return (inside($name, qw(unshare -m sh -c), $own_etc, $etc, @command));
}
sub follow {
    my ($name, $text, $calls) = @_;
    local $ENV{CALLS} = "$DIR/calls";
    local $ENV{PATH}  = "$DIR/bin:$ENV{PATH}";
    unlink $ENV{CALLS};
    my ($status, @said) = run('', on_host($name, qw(sh -euc), $text));
    is(join('', $status, @said), '0', "$name: the commands have nothing to say");
    return is(slurp($ENV{CALLS}), $calls, "$name: and start what they should");
}
sub change {
    my ($path, %replace) = @_;
    my $text = slurp($path);
    for (sort keys %replace) { is($text =~ s/\Q$_\E/$replace{$_}/g, 1, "it says $_ once, which is $replace{$_} here") }
    return spew($path, $text);
}

follow('centre', $targets, '');
follow('centre', $receiver, "systemctl restart prometheus\n");
follow('gw', $agent_host =~ s/CENTRE/$CENTRE/r, "apt-get install -y prometheus\nsystemctl restart prometheus\n");

# ---- both at work, each second in place of each minute; and at noon, so that no day ends

my $noon = 43200 - time % 86400;
spew("$DIR/etc-centre/prometheus/nfprom.rules.yml", slurp("$SOURCE/systemd/nfprom.rules.yml"));
change("$DIR/etc-centre/prometheus/nfprom.rules.yml", 'interval: 1m' => 'interval: 1s', 'time() + 0' => "time() + $noon");
spew("$DIR/etc-centre/prometheus/prometheus.yml", "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [nfprom.rules.yml]\nscrape_configs:\n$config");
my $agent_yml = "$DIR/etc-gw/prometheus/prometheus-agent.yml";
for (['centre', 'prometheus.yml'], ['gw', '--agent', 'prometheus-agent.yml']) {
    my ($name, @file) = @$_;
    $file[-1] = "/etc/prometheus/$file[-1]";
    my ($status, @said) = run('', on_host($name, qw(promtool check config), @file));
    is($status, 0, "promtool has nothing to say of the file of $name") or diag(@said);
}
change($agent_yml, 'scrape_interval: 1m' => 'scrape_interval: 1s');

# As the unit of Debian starts it.
my @first = (run('', qw(chrt --rr 1 true)))[0] == 0 ? qw(chrt --rr 1) : ();
my %prometheus;
sub start_prometheus {
    my ($name, @more) = @_;
    my $store = $name eq 'centre' ? '--storage.tsdb.path' : '--storage.agent.path';
    $prometheus{$name} = start("$DIR/prometheus-$name.log", @first,
        on_host($name, 'sh', '-c', '. /etc/default/prometheus; exec prometheus $ARGS "$@"', 'sh', "$store=$DIR/data-$name", @more));
    return;
}
sub end_gently {
    my ($name) = @_;
    my $pid = delete $prometheus{$name};
    kill TERM => -$pid;
    ok(patiently(sub { ended($pid) }), "the Prometheus of $name ends");
    stop($pid);
    return;
}

sub query { return query_at(9090, @_) }

# {"value of label, value of label"}: the value
sub by {
    my ($labels, @result) = @_;
    return { map { my $r = $_; (join(' ', map { $r->{metric}{$_} // '' } @$labels) => $r->{value}[1] + 0) } @result };
}
sub value_of { my ($expression, @at) = @_; return (map { $_->{value}[1] } query($expression, @at))[0] }

# Waits for the answer.
sub answers {
    my ($expression, $by, $want, $what) = @_;
    my $is;
    patiently { $is = by($by, query($expression)); series_of(%$is) eq series_of(%$want) };
    return is_deeply($is, $want, $what) || diag($Prometheus::error, map { ("\n$_: ", slurp("$DIR/prometheus-$_.log") =~ s/.*(.{2000})\z/$1/sr) } qw(centre gw));
}

start_prometheus('centre');
start_prometheus('gw');
my $lines = 'nfprom:line_bytes:month{job="nfprom"}';
sub lines { return { map { ($INSTANCE{$_} => total($_)) } keys %HOSTS } }
answers($lines, ['instance'], lines(), 'the centre has the three hosts, with their sites');
traffic(7);
answers($lines, ['instance'], lines(), 'and the line of each carries what was sent');
answers('up', ['instance'], { (map { ($_ => 1) } values %INSTANCE), map { ("203.0.113.$_:9914" => 0) } 141, 150 },
    'two of the hosts in the file are not there, and so they are down');
is_deeply([sort map { join ' ', @{ $_->{metric} }{qw(site role instance)} } query('up')], [
    'berlin web berlin/192.168.1.5:9914', 'berlin web berlin/192.168.1.6:9914', 'paris mail 203.0.113.150:9914',
    'paris web 203.0.113.140:9914',       'paris web 203.0.113.141:9914'], 'each host has the labels of its file');
ok((run('', inside('centre', qw(ping -c 1 -W 1 192.168.1.5))))[0] != 0, 'the centre itself cannot reach the site') if have('ping');

# ---- a label from a comment with the name of a target's

answers('count by (site, direction) (nfprom_bytes_total{exported_site="cellar"})', [qw(site direction)], { 'berlin in' => 1, 'berlin out' => 1 }, 'it becomes exported_site');
is(scalar(query('{site="cellar"}')), 0,                                'and the site stays what it is');
answers('count by (host) (nfprom_bytes_total{host!=""})', ['host'], { alpha => 20, gamma => 2 }, 'other labels keep their names');

# ---- what comes while one of them is away

end_gently('centre');
traffic(11);
sleep 2;    # some scrapes that cannot be sent
traffic(3);
start_prometheus('centre');
answers($lines, ['instance'], lines(), 'the centre was away: the sums are right again');
stop(delete $prometheus{gw});    # killed
traffic(5);
start_prometheus('gw');
answers($lines, ['instance'], lines(), 'the agent was killed: so they are');

# ---- README's queries; those of rates against the single series, at one moment that the samples of the site have passed

my $moment = time;
ok(patiently(sub { (value_of('min(timestamp(up{job="nfprom"}))') || 0) > $moment }), 'all samples of that moment have come');
my %RATES = (
    'each service carry'     => [[qw(service direction)],   sub { $_[0]{service} }],
    'of each site and role'  => [[qw(site role direction)], sub { 1 }],
    'GRE tunnels'            => [['site'],                  sub { ($_[0]{l3proto} || '') =~ /^(?:gre|47)$/ }],
);
my %SUMS = (
    'each service carried'   => [['service'], { dns => sum0(map { @{ $sent{$_} }{qw(in out)} } keys %HOSTS), map { s/=.*//r => 0 } grep { !/dns/ } @SERVICES }],
    'lines of each site'     => [['site'],    { paris => total('alpha'), berlin => total('beta') + total('gamma') }],
    'nothing now'            => [['site'],    {}],
);
my ($silent) = map { $_->[1] } grep { $_->[0] =~ /nothing now/ } @queries;
for (@queries) {
    my ($question, $query) = @$_;
    my ($rate) = grep { $question =~ /$_/ } sort keys %RATES;
    my ($sum)  = grep { $question =~ /$_/ } sort keys %SUMS;
    ok(!!$rate + !!$sum == 1, "$question: the answer is known") or next;
    my $is = by(($rate ? $RATES{$rate} : $SUMS{$sum})->[0], query($query, $moment));
    if ($sum) { is_deeply($is, $SUMS{$sum}[1], "$question: the right one") or diag($Prometheus::error); delete $SUMS{$sum}; next }
    my ($labels, $counts) = @{ delete $RATES{$rate} };
    my %want;
    for my $single (query('rate(nfprom_bytes_total[5m])', $moment)) {
        my $metric = $single->{metric};
        $want{ join ' ', map { $metric->{$_} // '' } @$labels } += 8 * $single->{value}[1] if $counts->($metric);
    }
    is_deeply([sort keys %$is], [sort keys %want], "$question: the right rows");
    ok(%want && (grep { $_ > 0 } values %want), "$question: there is traffic");
    my @wrong = grep { abs($is->{$_} - $want{$_}) > 1e-9 * $want{$_} } keys %want;
    is("@wrong", '', "$question: the sums of the single series");
}
is_deeply([sort(keys %RATES), sort(keys %SUMS)], [], 'README asks all of them');
answers('count by (l3proto) (nfprom_bytes_total{l3proto=~"gre|47"})', ['l3proto'], { gre => 1, 47 => 1 }, 'one host prints gre, and one 47');
answers('sum by (service) (nfprom_packets_total{service="dns"})', ['service'],
    { dns => sum0(map { my $name = $_; map { $_->[2] =~ /service=dns/ ? $_->[0] : () } kernel_rules($name) } keys %HOSTS) }, 'the sum over all hosts is what the kernels counted');

sub kernel_rules {
    my ($name) = @_;
    return map { /^\[(\d+):(\d+)\] -A prometheus (.*)$/ ? [$1, $2, $3] : () } split /\n/, must(inside($name, $save, qw(-c -t filter)));
}

# ---- what README says of a thousand hosts, by one that has 20 rules with two labels

{
    my ($table) = $section =~ /^\*\*A thousand hosts\*\*.*\n\n((?:\|.*\n)+)/m;
    my %row = map { /^\| (.+?) \| (.*?) ?\| (.*?) ?\|$/ ? ($1 => [map { s/,//r } $2, $3]) : () } split /\n/, $table // '';
    my ($samples, $kilobytes, $series) = map { $row{$_}[0] } 'samples in a scrape', 'kB in a scrape', 'series';
    my ($megabytes, $scraped, $recorded, $all) = map { $row{$_}[1] } 'MB a second', 'samples a second, scraped', 'samples a second, by the rules file', 'series';
    my @figures = grep { defined && /^[\d.]+\z/ } $samples, $kilobytes, $series, $megabytes, $scraped, $recorded, $all;
    is(scalar(@figures), 7, 'README has the figures of a thousand hosts') or diag("@figures");
    my $body = http_get($HOSTS{alpha}, 9914)->{body};
    is(scalar(grep { /host=.*service=/ } $body =~ /^nfprom_bytes_total.*/mg), 20, 'a host with 20 rules with two labels');
    is(scalar(() = $body =~ /^[^#\n]/mg), $samples, 'a scrape has as many samples as README says');
    ok(abs(length($body) / 1000 - $kilobytes) <= 0.05 * $kilobytes, "and is as long, within 5 %: $kilobytes kB") or diag(length $body);
    answers(qq{count({instance="$INSTANCE{alpha}",__name__!~"ALERTS.*"})}, [], { '' => $series }, 'and with the rules of the centre it is as many series');
    is($all, 1000 * $series, 'a thousand of them');
    my $own = value_of(qq{count({instance="$INSTANCE{alpha}",__name__=~"up|scrape_.*"})}, $moment);
    is($scraped,  sprintf('%.0f', 1000 * ($samples + $own) / 60), 'and the samples a second that are scraped');
    is($recorded, sprintf('%.0f', 1000 * ($series - $samples - $own) / 60), 'and those by the rules file');
    is($megabytes, sprintf('%.2f', $kilobytes / 60), 'and megabytes a second');
}

# ---- external_labels in place of labels of the targets; and labels that are not sent

{
    my ($drop) = $section =~ /`(write_relabel_configs: [^`]*)` under its `remote_write`/;
    ok($drop, 'README says how not to send what has a label');
    my $yml = slurp($agent_yml);
    is($yml =~ s/job_name: nfprom/job_name: variant/
        + $yml =~ s/file_sd_configs: .*/static_configs: [{targets: ["192.168.1.5:9914", "192.168.1.6:9914"]}]/
        + $yml =~ s/^global:\n/global:\n  external_labels: {site: berlin}\n/m
        + $yml =~ s/^( +)- (url: .*)\n/$1- $2\n$1  $drop\n/m, 4, 'an agent like that');
    spew("$DIR/variant.yml", $yml);
    my $variant = start("$DIR/variant.log", on_host('gw', 'sh', '-c', '. /etc/default/prometheus; exec prometheus ${ARGS%%/*}$0 "$@"',
        "$DIR/variant.yml", "--storage.agent.path=$DIR/data-variant", '--web.listen-address=127.0.0.1:9091'));
    answers('count by (instance, site, exported_site, host) ({job="variant",__name__=~"up|nfprom_packets_total"})', [qw(instance site exported_site host)],
        { '/192.168.1.5:9914 cellar  ' => 2, map { ("/192.168.1.$_:9914 berlin  " => 2) } 5, 6 },
        'the label from the comment is in the place of the site, and what has the label host is not there') or diag(slurp("$DIR/variant.log"));
    stop($variant);
}

# ---- a host of the site that is down, a file that is changed, an agent that is gone

stop(delete $nfprom{gamma});
answers('up{site="berlin",job="nfprom"}', ['instance'], { $INSTANCE{beta} => 1, $INSTANCE{gamma} => 0 }, 'a host of the site is down, and the centre sees it');
answers('count by (instance) (ALERTS{alertname="NfpromDown",site="berlin"})', ['instance'], { $INSTANCE{gamma} => 1 }, 'NfpromDown knows it');
change("$DIR/etc-centre/prometheus/nfprom/paris.yml", ', "203.0.113.141:9914"' => '');
answers('up{site="paris"}', ['instance'], { $INSTANCE{alpha} => 1, '203.0.113.150:9914' => 0 }, 'a target is taken out of the file, and it is gone');

end_gently('gw');
my $last = value_of('max(timestamp(up{site="berlin",job="nfprom"}))');
end_gently('centre');
start_prometheus('centre', '--query.lookback-delta=5s');    # in place of five minutes
my ($is, $n);
is($silent =~ s/\boffset 1h\b/offset OFFSET/, 1, 'the query looks back an hour; here less');
patiently { $n = int(2 + time - $last); $is = by(['site'], query($silent =~ s/OFFSET/${n}s/r)); $n > 7 && join(' ', %$is) eq 'berlin 1' };
is_deeply($is, { berlin => 1 }, 'the agent is gone: the query names the site');
is(scalar(query('ALERTS{site="berlin"}')), 0, 'and no alert does');

# (A second is short on a busy machine.)
is(join('', grep { !/did not end in time|there was no time to start a process/ } slurp("$DIR/$_.log") =~ /^(.*\n)/mg), '', "nothing in the log of nfprom, $_") for sort keys %HOSTS;
stop($_) for values %prometheus, values %nfprom;
done_testing();
