#!/usr/bin/perl

# What README.md says from the chain to the graphs, done: its shell blocks make the chain in a namespace, nfprom shows what the
# README says, a real Prometheus runs with the README's configuration and systemd/nfprom.rules.yml while another namespace sends
# traffic, each query is compared with its single series and with the kernel, and each alert is seen to fire and not to fire.
# (What the rules add up is for t/87-volume.t.)
#
# NFPROM_README is another README.md than that of the tree.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::IP ();
use JSON::PP ();
use List::Util qw(max min sum0);
use Test::More;
use Time::HiRes qw(sleep time);
use Live;
use Prometheus;

need(qw(iptables ip6tables iptables-save iptables-restore ip6tables-save nsenter sh prometheus promtool));

my $README = $ENV{NFPROM_README} || "$SOURCE/README.md";

# ---- the blocks of the README: [section, language, text]

my @blocks;
{
    my ($section, $language, $text) = ('');
    for my $line (split /^/, slurp($README)) {
        if (defined $language) {
            if ($line eq "```\n") { push @blocks, [$section, $language, $text]; undef $language }
            else                  { $text .= $line }
        }
        elsif ($line =~ /^```(\w*)$/)   { ($language, $text) = ($1, '') }
        elsif ($line =~ /^## (.*)$/)    { $section = $1 }
    }
}

sub no_more {
    diag(@_);
    done_testing();
    exit 1;
}

# A configuration with README's blocks under the keys that it has already.
sub pasted {
    my ($text, $rules, $job) = @_;
    is($text =~ s/^(rule_files:.*\n)/$1$rules/m + $text =~ s/^(scrape_configs:.*\n)/$1$job/m, 2, 'the configuration has both keys');
    return $text;
}

sub blocks {
    my ($language, $section) = @_;
    return map { $_->[2] } grep { $_->[1] eq $language && (!$section || $_->[0] eq $section) } @blocks;
}

my @jobs       = grep { /\A  - job_name: nfprom$/m } blocks('yaml');
my ($job)      = grep { !/\.pem|file_sd_configs/ } @jobs;    # the certificates of the other are made in t/86-tls.t, and it with them
my ($list)     = grep { /^  - [\w.-]+\.yml$/m } blocks('yaml');
my ($examples) = grep { /^nfprom_packets_total/m } blocks('', 'A sample');
my ($listing)  = grep { /^\[.*\] -A prometheus /m } blocks('', 'A sample');
my ($page)     = grep { /^Comment or rule /m } blocks('', 'A sample');
my ($settings) = grep { /^ADDRESSES=/m } blocks('', 'Make the chain');
my ($rules_of) = grep { /^-A prometheus /m } blocks('', 'Make the chain');
my @queries;    # [question, query]
for my $block (blocks('promql', 'Questions and their queries')) { push @queries, [$1, $2] while $block =~ /^# (.*)\n([^#\n].*)$/mg }

ok($job, 'README has a job to scrape') or no_more();
ok($list, 'and a name to put under rule_files') or no_more();
is(1 + @jobs, scalar(blocks('yaml')), 'each of its yaml blocks is one or the other (that of a fleet is tried in t/94-fleet.t)');
my $config = pasted("rule_files:\nscrape_configs:\n", $list, $job);
my @first_queries = map { /\A(.+)\n\z/ } blocks('promql', 'Let Prometheus in');
is(2 * @queries, scalar(grep { /\S/ } map { split /\n/ } blocks('promql', 'Questions and their queries')), 'its promql blocks are questions, each with one line for answer');
ok($examples && $listing && $page, 'it shows a first scrape');
ok($settings && $rules_of, 'it makes a chain, and shows rules of it') or no_more();
is(scalar(@first_queries), 2, 'and has two first queries, a line each') or no_more();
unshift @queries, ['the first query: what comes in and goes out', $first_queries[0]], ['all other traffic', $first_queries[1]];

# ---- the scrape config and the rules, as promtool sees them

mkdir "$DIR/prometheus";
my ($rules_name) = $list =~ /^ *- ([\w.-]+)$/m;
ok($rules_name, 'the configuration names the file of the rules') or no_more();
is($rules_name, 'nfprom.rules.yml', 'as it is called here') or no_more();
my $rules = slurp("$SOURCE/systemd/$rules_name");
is($rules =~ s/^( +interval: )1m\b/${1}1s/mg, 1, 'it names one interval, which is a second here');
my $rules_file = spew("$DIR/prometheus/$rules_name", $rules);
my %configs = ('by itself' => $config);
my $debian = '/etc/prometheus/prometheus.yml';
$configs{'in that of the package'} = pasted(slurp($debian), $list, $job) if -e $debian;
for my $where (sort keys %configs) {
    my ($status, @said) = run('', qw(promtool check config), spew("$DIR/prometheus/checked.yml", $configs{$where}));
    is($status, 0, "promtool check config: $where") or diag(@said);
}
{
    my ($status, @said) = run('', qw(promtool check rules), $rules_file);
    is($status, 0, 'promtool check rules') or diag(@said);
}

# ---- two namespaces, this machine and its peer, joined by a pair of interfaces

my $HERE  = { 4 => $FAMILIES->{4}{here}, 6 => $FAMILIES->{6}{here} };
my $PEER  = { 4 => '192.0.2.2', 6 => '2001:db8:2::2' };
my @OTHER = map { "203.0.113.14$_" } 1 .. 4;    # more addresses of this machine, so that one is not among the first five
my $peer  = start("$DIR/peer.log", qw(unshare -n sleep infinity));
ok(patiently { my $ns = readlink "/proc/$peer/ns/net"; $ns && $ns ne readlink '/proc/self/ns/net' && slurp("/proc/$peer/comm") eq "sleep\n" },
    'a namespace for the peer') or no_more();
my @on_peer = (qw(nsenter --net --target), $peer);

must(qw(ip link add veth0 type veth peer name veth1 netns), $peer);
for (['veth0', 1, []], ['veth1', 2, \@on_peer]) {
    my ($device, $n, $there) = @$_;
    must(@$there, qw(ip link set lo up));
    must(@$there, qw(ip link set), $device, qw(addrgenmode none));    # fewer packets that nobody sent
    must(@$there, qw(ip address add), "192.0.2.$n/24", 'dev', $device);
    must(@$there, qw(ip address add), "2001:db8:2::$n/64", 'dev', $device, 'nodad');
    must(@$there, qw(ip link set), $device, 'up');
}
must(qw(ip address add), "$_/32", qw(dev lo)) for @OTHER;
must(@on_peer, qw(ip route add 203.0.113.0/24 via 192.0.2.1));
must(@on_peer, qw(ip -6 route add), "$HERE->{6}/128", qw(via 2001:db8:2::1));

# ---- the chain, by README's script with the lines that README shows, and an address of IPv6

{
    my $script = slurp("$SOURCE/systemd/chain");
    like($script, qr/^\Q$_\E$/m, "the script has README's line $_") for split /\n/, $settings;
    is($script =~ s/^(ADDRESSES='[^']*)/$1 $HERE->{6}/mr eq $script, '', 'and room for one more address');
    my ($status, @said) = run($script =~ s/^(ADDRESSES='[^']*)/$1 $HERE->{6}/mr, qw(sh -s));
    is(join('', $status, @said), '0', 'it makes the chain, and says nothing');
    my %made = map { $_ => 1 } split /\n/, must(qw(iptables -S prometheus));
    ok($made{$_}, "README: $_") for split /\n/, $rules_of;
}
is(kernel($_)->{'INPUT jumps'} . kernel($_)->{'OUTPUT jumps'}, 11, "IPv$_: both chains jump to it") for 4, 6;

# The counters of IPv4 or IPv6: {"direction address protocol port kind"}, {"last kind"}, {"CHAIN jumps"}.
sub kernel {
    my ($family) = @_;
    my %counted;
    for (split /\n/, must("$FAMILIES->{$family}{command}-save", qw(-c -t filter))) {
        my ($packets, $bytes, $chain, $rule) = /^\[(\d+):(\d+)\] -A (\S+)(.*)/ or next;
        $counted{"$chain jumps"}++ if $rule =~ /-j prometheus$/;
        next if $chain ne 'prometheus';
        my ($side, $address) = $rule =~ /-([sd]) (\S+)/;
        my ($protocol, $port) = ($rule =~ /-p (\w+)/, $rule =~ /--[sd]port (\d+)/);
        my $key = $side ? join ' ', $side eq 'd' ? 'in' : 'out', $address, $protocol, $port : 'last';
        next if exists $counted{"$key packets"};    # a duplicate
        @counted{"$key packets", "$key bytes"} = ($packets, $bytes);
    }
    return \%counted;
}

# The first scrape, with the counters that it shows; those that it does not show are those of `make run`.
{
    my %shown;
    for my $line (split /\n/, $examples) {
        my ($rule, $kind, $labels, $value) = $line =~ /^nfprom_(rule_)?(packets|bytes)_total\{(.*)\} (\d+)$/ or next;
        my ($address, $direction, $port) = map { $labels =~ /\b$_="(.*?)"/ } qw(address direction port);
        $shown{ $rule ? 'last' : "$direction $address tcp $port" }{$kind} = $value;
    }
    is(scalar(keys %shown), 3, 'the first scrape shows three rules');
    my %counters_of = map { /^(\[\d+:\d+\])( -A prometheus .*)/ ? ($2 => $1) : () } split /\n/, slurp("$FindBin::Bin/run");
    my @lines = split /\n/, must(qw(iptables-save -c -t filter));
    for (grep { /-A prometheus/ } @lines) {
        my ($rule) = /\](.*)/;
        ok($counters_of{$rule}, "make run has the rule$rule") or next;
        s/^\[.*?\]/$counters_of{$rule}/;
        my ($key) = /-([sd]) (\S+) .*--[sd]port (\d+)/ ? (($1 eq 'd' ? 'in' : 'out') . " $2 tcp $3") : 'last';
        my $counters = $shown{$key} || {};
        like($_, qr/^\[$counters->{packets}:/, '... with the packets that README shows') if $counters->{packets};
        like($_, qr/^\[\d+:$counters->{bytes}\]/, '... and the bytes') if $counters->{bytes};
    }
    my ($status, undef, $said) = run(join("\n", @lines, ''), qw(iptables-restore -c));
    is($status, 0, 'the chain with the counters of the first scrape') or diag($said);

    my ($printed, $out, $err) = run('', $NFPROM, '-print');
    is($printed, 0, 'nfprom -print') or diag($err);
    my %printed = map { $_ => 1 } split /\n/, $out;
    ok($printed{$_}, "README: $_") for grep { /\S/ } split /\n/, $examples;
    is(scalar(grep { /^nfprom_packets_total/ } keys %printed), 8, 'and there are eight rules with the five labels');

    # Every metric that there is, has a row in README; and every rule that it shows is what iptables prints.
    my @metrics = sort map { /^# TYPE (\S+)/ ? $1 : () } keys %printed;
    cmp_ok(scalar @metrics, '>=', 10, 'the metrics have types');
    is_deeply([grep { slurp($README) !~ /^\|.*`$_`/m } @metrics], [], 'README has a row for each of them');
    my %listed = map { $_ => 1 } split /\n/, must(qw(iptables-save -c -t filter));
    ok($listed{$_}, "README: $_") for split /\n/, $listing;

    # The page for people, row by row.
    my (undef, $html, undef) = run("GET /status HTTP/1.0\r\n\r\n", $NFPROM);
    my $squeezed = sub { return $_[0] =~ s/<[^>]*>/ /gr =~ s/\s+/ /gr =~ s/^ | $//gr };
    my @rows = map { $squeezed->($_) } split /(?=<(?:tr|caption)>)/, $html;
    for my $line (map { $squeezed->($_) } split /\n/, $page) {
        my $pattern = join '.*', map { quotemeta } split /…/, $line;
        is(scalar(grep { /\A$pattern\z/ } @rows), 1, "README: $line");
    }
}

# ---- more rules, of all the kinds that the queries and alerts are about

ipt_now(4, qw(-Z));
ipt_now(4, '-I', 'prometheus', @$_) for (
    (map { ['-d', $_, qw(-p udp --dport 53 -j RETURN)], ['-s', $_, qw(-p udp --sport 53 -j RETURN)] } @OTHER),
    ['-d', $HERE->{4}, qw(-p udp --dport 53 -j RETURN)],                                  # it comes second: a duplicate
    ['-d', $HERE->{4}, qw(-p udp --dport 53 -j RETURN -m comment --comment), 'names'],
    ['-s', $HERE->{4}, qw(-p udp --sport 53 -j RETURN -m comment --comment), 'names'],
    ['-d', $HERE->{4}, qw(-p udp --dport 9 -m comment --comment), 'and once more'],       # without a target
);
ipt_now(6, '-I', 'prometheus', @$_) for (
    ['-d', $HERE->{6}, qw(-p udp --dport 53 -j RETURN -m comment --comment), 'names'],
    ['-s', $HERE->{6}, qw(-p udp --sport 53 -j RETURN)],
);

sub ipt_now {
    my ($family, @options) = @_;
    must($FAMILIES->{$family}{command}, @options);
    return;
}

# ---- nfprom, and Prometheus with the configuration of the README, but for the place of nfprom and the interval

my %port;
$port{ free_port() } = 1 until keys %port == 2;
my ($nfprom_port, $prometheus_port) = keys %port;
my $INSTANCE = "203.0.113.140:$nfprom_port";    # by way of lo: not counted
my $running  = ($config =~ /^global:/m ? '' : "global: {scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 2s}\n")
    . $config =~ s/203\.0\.113\.140:9914/$INSTANCE/r;
like($running, qr/\Q$INSTANCE\E/, 'the scrape config asks this machine');
my @first = (run('', qw(chrt --rr 1 true)))[0] == 0 ? qw(chrt --rr 1) : ();    # a timeout of 2 s is short on a busy machine
my $nfprom = start("$DIR/nfprom.log", @first, $NFPROM, '-addr', ":$nfprom_port", '-ipv6');
ok(wait_for_port($nfprom_port), 'nfprom listens') or diag(slurp("$DIR/nfprom.log"));
my $prometheus = start("$DIR/prometheus.log", @first, 'prometheus', '--config.file=' . spew("$DIR/prometheus/prometheus.yml", $running),
    "--storage.tsdb.path=$DIR/data", "--web.listen-address=127.0.0.1:$prometheus_port");

sub query { return query_at($prometheus_port, @_) }

# Whether there were so many good scrapes since then.
sub scraped {
    my ($times, $since) = @_;
    return scalar query(sprintf 'sum_over_time(up[%dms]) >= %d', 1000 * (time - $since), $times);
}

ok(patiently(sub { ended($prometheus) || scraped(2, time - 600) }) && !ended($prometheus), 'Prometheus scrapes nfprom')
    or no_more(slurp("$DIR/prometheus.log"), slurp("$DIR/nfprom.log"));

# ---- traffic: in each turn so many packets from the peer to port 53 of each address, and larger ones back

my @flows = ([$HERE->{4}, 5, 100], [$HERE->{6}, 4, 300], map { [$OTHER[$_], 1 + $_ % 3, 50 + 100 * $_] } 0 .. $#OTHER);
my $sender = spew("$DIR/sender.pl", <<'SENDER');
use strict;
use warnings;
use IO::Socket::IP;
my ($go, @flows) = (1, map { [split /,/] } @ARGV);
$SIG{TERM} = sub { $go = 0 };
my %sink = map { $_ => IO::Socket::IP->new(Proto => 'udp', LocalHost => $_, LocalPort => 9999) || die "udp: $@" } '192.0.2.2', '2001:db8:2::2';
$| = 1;
while ($go) {
    for (@flows) {
        my ($to, $port, $count, $size) = @$_;
        if (!$size) { IO::Socket::IP->new(PeerHost => $to, PeerPort => $port); next }    # refused: a packet each way
        my $s = IO::Socket::IP->new(Proto => 'udp', PeerHost => $to, PeerPort => $port) or die "udp: $@";
        send $s, 'x' x $size, 0 for 1 .. $count;
    }
    print "turn\n";
    select undef, undef, undef, 0.05;
}
SENDER
my @to_peer = map { join ',', $_->[0], 53, @$_[1, 2] } @flows;
push @to_peer, "$HERE->{4},80,1,0", "$HERE->{6},80,1,0", "$HERE->{4},9,2,400", "$HERE->{4},7,3,200", "$HERE->{6},7,1,200";

# Somebody listens, so that no ICMP error is sent.
my %socket;
for my $address (map { $_->[0] } @flows) {
    $socket{"$address $_"} = IO::Socket::IP->new(Proto => 'udp', LocalHost => $address, LocalPort => $_) || die "udp: $@" for 53, 9, 7;
}
my $before = { map { $_ => kernel($_) } 4, 6 };
my $sending = start("$DIR/sent", @on_peer, $^X, $sender, @to_peer);
my ($start, $turns) = (time, 0);
until (time > $start + 6 && scraped(5, $start)) {
    for (@flows) {
        my ($from, $count, $size) = @$_;
        my $sink = Socket::pack_sockaddr_in(9999, Socket::inet_aton($PEER->{4}));
        $sink = Socket::pack_sockaddr_in6(9999, Socket::inet_pton(Socket::AF_INET6(), $PEER->{6})) if $from =~ /:/;
        send $socket{"$from 53"}, 'x' x (3 * $size), 0, $sink for 1 .. $count;
    }
    $turns++;
    sleep 0.05;
}
kill TERM => $sending;
ok(patiently { ended($sending) }, 'the peer ends');
stop($sending);
my $sent_turns = () = slurp("$DIR/sent") =~ /^turn$/mg;
cmp_ok($sent_turns, '>', 5, 'and has sent its packets') or diag(slurp("$DIR/sent"));

my $rest = time;
ok(patiently { scraped(2, $rest) }, 'two scrapes after the last packet');
my $after = { map { $_ => kernel($_) } 4, 6 };

# All that is asked from here on is about this moment, once what was scraped and recorded at it is stored.
my $T = sprintf '%.3f', time;
ok(patiently { query("max(timestamp(up)) > $T") && query("max(timestamp(instance_port_direction:nfprom_bytes:rate5m)) > $T") },
    'Prometheus has stored and recorded all of it');

# ---- what the kernel counted is what was sent, and the single series are what the kernel counted

my %grown;    # {"direction address protocol port kind"}
for my $family (4, 6) {
    $grown{$_} = $after->{$family}{$_} - $before->{$family}{$_} for grep { !/^(?:last|INPUT|OUTPUT) / } keys %{ $after->{$family} };
}
for (@flows) {
    my ($address, $count, $size) = @$_;
    my ($bits, $header) = $address =~ /:/ ? (128, 48) : (32, 28);
    my @sent = map { ($_->[0] * $count, $_->[0] * $count * ($_->[1] * $size + $header)) } [$sent_turns, 1], [$turns, 3];
    my @got = map { my $way = $_; map { $grown{"$way $address/$bits udp 53 $_"} } qw(packets bytes) } qw(in out);
    is("@got", "@sent", "$address: the rules counted the packets and bytes that were sent");
}
is($grown{"in $HERE->{4}/32 udp 9 packets"}, 2 * $sent_turns, 'so did the rule without a target');

my ($scrapes) = map { $_->{value}[1] } query('min(count_over_time(nfprom_bytes_total[5m]))', $T);
my %rate;     # {kind}: [labels, rate in 5 m, increase in 1 d]
for my $kind (qw(packets bytes)) {
    my ($per_second, $per_day) = map { +{ map { series_of(%{ $_->{metric} }) => $_ } query($_, $T) } }
        "rate(nfprom_${kind}_total[5m])", "increase(nfprom_${kind}_total[1d])";
    $rate{$kind} = [map { [$per_second->{$_}{metric}, $per_second->{$_}{value}[1], $per_day->{$_}{value}[1]] } sort keys %$per_second];
    my @wrong;
    for (@{ $rate{$kind} }) {
        my ($labels, $rate, $increase) = @$_;
        my $grown = delete $grown{"@$labels{qw(direction address l3proto port)} $kind"};
        # Both add what would have come between the ends of the samples and those of the window: at most 1.1 intervals at each.
        my ($least, $most) = defined $grown ? ($grown * (1 - 1e-9), $grown * (1 + 2.2 / ($scrapes - 1))) : (1, 0);
        push @wrong, [$labels, $rate, $increase, $grown] if grep { $_ < $least || $_ > $most } 300 * $rate, $increase;
    }
    is_deeply(\@wrong, [], "rate() and increase() of $kind are those of the kernel");
}
is_deeply(\%grown, {}, 'of all the rules with the five labels');

# ---- the queries

my @rule_bytes = query('rate(nfprom_rule_bytes_total[5m])', $T);
my %comments;    # {labels without the comment}: the comment
for (query('nfprom_rule_info', $T)) {
    my %labels  = %{ $_->{metric} };
    my $comment = delete $labels{comment};
    delete $labels{__name__};
    $comments{ series_of(%labels) } = $comment;
}

# Sums over the single series: {"the labels' values"}. $of: 1 the rate in 5 m, 2 the increase in a day.
sub sums {
    my ($kind, $of, @by) = @_;
    my %sum;
    $sum{"@{ $_->[0] }{@by}"} += $_->[$of] for @{ $rate{$kind} };
    return \%sum;
}

sub map_values(&$) {
    my ($code, $hash) = @_;
    return { map { my $key = $_; local $_ = $hash->{$key}; ($key => $code->($key)) } keys %$hash };
}

# How the answers are known: by a word of the question. The labels to tell them by, what they must be, what else they are.
my %ANSWERS = (
    'bits per second' => [[qw(port direction)], sub { map_values { 8 * $_ } sums('bytes', 1, qw(port direction)) },
        sub {
            my ($is) = @_;
            ok($is->{'53 out'} > $is->{'53 in'} && $is->{'53 in'} > $is->{'80 in'} && $is->{'80 in'} > 0, 'port 53 more than port 80, out more than in');
        }],
    'all other traffic' => [[], sub {
            return { '' => 8 * sum0(map { $_->{value}[1] } grep { $_->{metric}{rule} eq '-j RETURN' } @rule_bytes) };
        }, sub { my ($is) = @_; ok($is->{''} > 0, 'there is some') }],
    'five addresses' => [['address'], sub {
            my $all = map_values { 8 * $_ } sums('bytes', 1, 'address');
            my @first = (sort { $all->{$b} <=> $all->{$a} } keys %$all)[0 .. 4];
            return { map { $_ => $all->{$_} } @first };
        }, sub {
            my ($is) = @_;
            is((sort { $is->{$b} <=> $is->{$a} } keys %$is)[0], "$HERE->{6}/128", 'the one that was sent most is the first');
            ok(!exists $is->{"$OTHER[0]/32"}, 'the one that was sent least is not among them');
        }],
    'first query' => [['direction'], sub { map_values { 8 * $_ } sums('bytes', 1, 'direction') },
        sub { my ($is) = @_; is_near(sum0(values %$is), 8 * sum0(map { $_->[1] } @{ $rate{bytes} }), 'in and out make the whole') }],
    'What share has' => [['port'], sub { my $all = sum0(map { $_->[1] } @{ $rate{bytes} }); map_values { $_ / $all } sums('bytes', 1, 'port') },
        sub {
            my ($is) = @_;
            is_near(sum0(values %$is), 1, 'the shares make 1');
            ok(min(values %$is) >= 0 && max(values %$is) == $is->{53}, 'port 53 has the most');
        }],
    'whole chain' => [[], sub {
            my $last = sum0(map { $_->{value}[1] } grep { $_->{metric}{rule} eq '-j RETURN' } @rule_bytes);
            return { '' => $last / sum0((map { $_->{value}[1] } @rule_bytes), map { $_->[1] } @{ $rate{bytes} }) };
        }, sub { my ($is) = @_; ok($is->{''} > 0 && $is->{''} < 1, 'between 0 and 1') }],
    'packets per second' => [[qw(port direction)], sub { sums('packets', 1, qw(port direction)) }],
    'How many bytes' => [[qw(port direction)], sub { sums('bytes', 2, qw(port direction)) }],
    'by their comments' => [['comment'], sub {
            my %sum;
            for (@{ $rate{bytes} }) {
                my $comment = $comments{ series_of(%{ $_->[0] }) };
                $sum{$comment} += 8 * $_->[1] if defined $comment;
            }
            return \%sum;
        }, sub { my ($is) = @_; is(join(', ', sort keys %$is), 'and once more, names', 'of both families, each once') }],
);

sub near {
    my ($got, $want) = @_;
    return defined $got && $got =~ /^[-+.\de]+$/ && abs($got - $want) <= 1e-9 * abs($want);
}

sub is_near {
    my ($got, $want, $what) = @_;
    return ok(near($got, $want), $what) || diag("got $got, want $want");
}

my %asked;
for (@queries) {
    my ($question, $query) = @$_;
    my @known = grep { $question =~ /$_/ } sort keys %ANSWERS;
    is(scalar(@known), 1, "$question: the answer is known") or next;
    $asked{ $known[0] }++;
    my ($by, $want, $more) = @{ $ANSWERS{ $known[0] } };
    $want = $want->();
    my @result = query($query, $T);
    ok(scalar(@result), "$question: there is an answer") or diag($Prometheus::error || 'none') or next;
    my %is = map { ("@{ $_->{metric} }{@$by}" => $_->{value}[1]) } @result;
    is(scalar(keys %is), scalar(@result), "$question: one for each") or diag(JSON::PP::encode_json(\@result));
    my @wrong = grep { !defined $want->{$_} || !near($is{$_}, $want->{$_}) } keys %is;
    is_deeply([sort keys %is], [sort keys %$want], "$question: for all that there are");
    is_deeply([map { [$_, $is{$_}, $want->{$_}] } @wrong], [], "$question: the right one");
    is_deeply([grep { ($_->{metric}{instance} || '') ne $INSTANCE } @result], [], "$question: the instance is told") if $question !~ /comments/;
    $more->(\%is) if $more;
}
is_deeply([grep { !$asked{$_} } sort keys %ANSWERS], [], 'README asks all the questions');

# ---- the rules as Prometheus runs them

my (@running, %alert, %wanted);
patiently {
    @running = map { @{ $_->{rules} } } @{ (api($prometheus_port, 'rules') || {})->{groups} || [] };
    %alert   = map { $_->{type} eq 'alerting' ? ($_->{name} => $_) : () } @running;
    %wanted  = map { $_ => !/Unreachable|Nonterminal/ ? 'inactive' : $alert{$_}{duration} ? 'pending' : 'firing' } keys %alert;
    return !grep { $_->{health} ne 'ok' || $wanted{ $_->{name} } && $_->{state} ne $wanted{ $_->{name} } } @running;
};
is_deeply([grep { $_->{health} ne 'ok' } @running], [], 'all the rules are evaluated');
is($alert{$_}{state}, $wanted{$_}, "$_ is $wanted{$_} here") for sort keys %alert;
my @told = map { $_->{annotations}{summary} } @{ ($alert{NfpromUnreachableRule} || {})->{alerts} || [] };
is(scalar(@told), 1, 'one family has a rule that no packet reaches');
like($told[0] || '', qr/^\Q$INSTANCE\E, ipv4: .*: 1\. /, 'and the summary says how many');
my @complaints = grep { /level=(?:warn|error)/i } split /\n/, slurp("$DIR/prometheus.log");
is_deeply(\@complaints, [], 'no warning in the log of Prometheus');
is(slurp("$DIR/nfprom.log"), '', 'nothing in the log of nfprom');
stop($_) for $prometheus, $nfprom;

# ---- each alert: cases of [what, [series], time, [labels of what fires, value]...]. A sample each 2 minutes.
# HOLD stands for the alert's own `for`, in minutes.

sub samples {
    my ($name, $values, %labels) = @_;
    %labels = (instance => 'a:9914', job => 'nfprom', %labels);
    return { series => "$name\{" . join(',', map { qq($_="$labels{$_}") } sort keys %labels) . '}', values => $values };
}
sub bytes {
    my ($values, %labels) = @_;
    my %rule = (address => '192.0.2.1/32', direction => 'in', l2proto => 'ipv4', l3proto => 'tcp', port => 80);
    return samples('nfprom_bytes_total', $values, %rule, %labels);
}

my %a     = (instance => 'a:9914', job => 'nfprom');
my %ip    = (l2proto => 'ipv4');
my $DAYS  = 2 * 24 * 60;             # minutes
my $FLOW  = '0+6000x1440';           # for two days
my $LAST  = 6000 * 1440;
my $STOPS = "$FLOW $LAST+0x720";     # and then a day of nothing
my %stopped = (instance => 'a:9914', port => 80, direction => 'in');

my %CASES = (
    NfpromDown => [
        ['a target is down', [samples('up', '1 1 0+0x60')], '4+HOLD', [{%a}, 0]],
        ['not at once', [samples('up', '1 1 0+0x60')], '3+HOLD'],
        ['one of two', [samples('up', '0+0x60'), samples('up', '1+0x60', instance => 'b:9914')], 60, [{%a}, 0]],
        ['it is up', [samples('up', '1+0x60')], 60],
        ['it came back', [samples('up', '0 0 1+0x60')], 60],
        ['another job is down', [samples('up', '0+0x60', job => 'node')], 60],
    ],
    NfpromFamilyFailed => [
        ['one family', [samples('nfprom_scrape_success', '1 1 0+0x60', %ip), samples('nfprom_scrape_success', '1+0x60', l2proto => 'ipv6')],
            '4+HOLD', [{ %a, %ip }, 0]],
        ['not at once', [samples('nfprom_scrape_success', '1 1 0+0x60', %ip)], '3+HOLD'],
        ['both are read', [samples('nfprom_scrape_success', '1+0x60', %ip)], 60],
    ],
    NfpromAbsent => [
        ['there was never one', [samples('up', '1+0x60', job => 'node')], '0+HOLD', [{}, 1]],
        ['it is gone', [samples('nfprom_scrape_success', '1 1 stale', %ip)], '6+HOLD', [{}, 1]],
        ['not at once', [samples('nfprom_scrape_success', '1 1 stale', %ip)], '3+HOLD'],
        ['there is one', [samples('nfprom_scrape_success', '1+0x60', %ip)], 60],
        ['it failed, but is there', [samples('nfprom_scrape_success', '0+0x60', %ip)], 60],
        ['the only one is down, which has an alert', [samples('nfprom_scrape_success', '1 1 stale', %ip), samples('up', '1 1 0+0x60')], 60],
        ['it answers, but no metrics come', [samples('up', '1+0x60')], '0+HOLD', [{}, 1]],
    ],
    NfpromTrafficStopped => [
        ['it stopped', [bytes($STOPS)], "$DAYS+20+HOLD", [{%stopped}, 0]],
        ['12 hours ago', [bytes($STOPS)], $DAYS + 720, [{%stopped}, 0]],
        ['after a reboot nothing came', [bytes("$FLOW 0+0x720")], "$DAYS+20+HOLD", [{%stopped}, 0]],
        ['not at once', [bytes($STOPS)], "$DAYS+HOLD"],
        ['it goes on', [bytes('0+6000x2160')], $DAYS + 720],
        ['it goes on after a reboot', [bytes("$FLOW 0+6000x720")], "$DAYS+20+HOLD"],
        ['it goes on by another rule', [bytes($STOPS), bytes('0+6000x2160', address => '192.0.2.2/32')], $DAYS + 720],
        ['it paused for an hour the day before too', [bytes("0+6000x360 2160000+0x30 2160000+6000x1050 8460000+0x720")], $DAYS + 60],
        ['the rule is gone', [bytes("$FLOW stale")], $DAYS + 60],
        ['there was never any', [bytes('0+0x2160')], $DAYS + 720],
        ['it has come back', [bytes("$FLOW $LAST+0x60 $LAST+6000x600")], $DAYS + 240],
    ],
    NfpromNoReference => [
        ['nothing jumps there', [samples('nfprom_chain_references', '1 1 0+0x60', %ip)], '4+HOLD', [{ %a, %ip }, 0]],
        ['not at once', [samples('nfprom_chain_references', '1 1 0+0x60', %ip)], '3+HOLD'],
        ['one of two chains', [samples('nfprom_chain_references', '0+0x60', %ip, chain => 'x'), samples('nfprom_chain_references', '2+0x60', %ip, chain => 'y')], 60, [{ %a, %ip, chain => 'x' }, 0]],
        ['the jump is there', [samples('nfprom_chain_references', '1+0x60', %ip)], 60],
    ],
    NfpromNoRules => [
        ['of no kind', [map { samples('nfprom_rules', '0+0x60', kind => $_, %ip) } qw(exported other duplicate)], '4+HOLD', [{ %a, %ip }, 0]],
        ['the last one', [samples('nfprom_rules', '0+0x60', kind => 'exported', %ip), samples('nfprom_rules', '1+0x60', kind => 'other', %ip)], 60],
        ['a built-in chain has its policy', [samples('nfprom_rules', '0+0x60', kind => 'exported', %ip), samples('nfprom_policy_bytes_total', '0+5x60', policy => 'ACCEPT', %ip)], 60],
    ],
    NfpromUnreachableRule => [
        ['there are two', [samples('nfprom_unreachable_rules', '2+0x60', %ip)], '4+HOLD', [{ %a, %ip }, 2]],
        ['there is none', [samples('nfprom_unreachable_rules', '0+0x60', %ip)], 60],
        ['a duplicate is no fault: the first may let the packet go on', [samples('nfprom_rules', '2+0x60', kind => 'duplicate', %ip)], 60],
        ['they are gone', [samples('nfprom_unreachable_rules', '2+0x5 0+0x60', %ip)], 60],
    ],
    NfpromNonterminalRule => [
        ['there are three', [samples('nfprom_nonterminal_rules', '3+0x60', %ip)], '4+HOLD', [{ %a, %ip }, 3]],
        ['there is none', [samples('nfprom_nonterminal_rules', '0+0x60', %ip)], 60],
    ],
    NfpromLabelErrors => [
        ['there are four', [samples('nfprom_label_errors', '4+0x60', %ip)], '4+HOLD', [{ %a, %ip }, 4]],
        ['there is none', [samples('nfprom_label_errors', '0+0x60', %ip)], 60],
    ],
    # 1 TB; the sum begins with the second sample
    NfpromQuotaNear => [
        ['80 % are gone', [bytes('7000+10000000000x200')], 160, [{%a}, 0.8]],
        ['not quite', [bytes('7000+9999999999x200')], 160],
        ['all is gone', [bytes('7000+10000000000x200')], 200],
    ],
    NfpromQuotaReached => [
        ['all is gone', [bytes('7000+10000000000x200')], 200, [{%a}, 1]],
        ['and more', [bytes('7000+10000000000x200')], 220, [{%a}, 1.1]],
        ['not quite', [bytes('7000+9999999999x200')], 200],
        ['a new counter has a long history', [bytes('9000000000000+0x200')], 200],
    ],
);

# The annotations as Prometheus fills them in.
sub filled_in {
    my ($text, $labels, $value) = @_;
    $text =~ s/\{\{ *\$labels\.(\w+) *\}\}/defined $labels->{$1} ? $labels->{$1} : "(no label $1)"/ge;
    $text =~ s/\{\{ *\$value *\}\}/$value/g;
    $text =~ s/\{\{ *\$value \| humanizePercentage *\}\}/sprintf '%.4g%%', 100 * $value/ge;
    return $text;
}

is_deeply([sort keys %alert], [sort keys %CASES], 'the alerts of the file are the ones that are tested');
is_deeply([grep { slurp($README) !~ /`$_`/ } sort keys %alert], [], 'README names them all');
{
    my %after = map { /^\| (`Nfprom.*?) \|.*\| ([^|]*) \|$/ ? do { my $after = $2; map { $_ => $after } "$1" =~ /`(\w+)`/g } : () } split /\n/, slurp($README);
    is_deeply(\%after, { map { my $minutes = $alert{$_}{duration} / 60; $_ => $minutes ? "$minutes min" : 'at once' } keys %alert }, '... and says after how long each fires');
}
for my $name (grep { $alert{$_} } sort keys %CASES) {
    my ($rule, @tests) = ($alert{$name});
    my $hold = $rule->{duration} / 60;
    for (@{ $CASES{$name} }) {
        my ($what, $series, $time, @fires) = @$_;
        next if $what eq 'not at once' && !$hold;
        my $minutes = sum0(map { $_ eq 'HOLD' ? $hold : $_ } split /\+/, $time);
        my @wanted;
        for (@fires) {
            my ($labels, $value) = @$_;
            my %filled_in = map { $_ => filled_in($rule->{annotations}{$_}, $labels, $value) } keys %{ $rule->{annotations} };
            push @wanted, { exp_labels => { %$labels, %{ $rule->{labels} } }, exp_annotations => \%filled_in };
        }
        push @tests, {
            name => $what, interval => '2m', input_series => $series,
            alert_rule_test => [{ alertname => $name, eval_time => "${minutes}m", exp_alerts => \@wanted }],
        };
    }
    my %file = (rule_files => [$rules_file], evaluation_interval => ($name eq 'NfpromTrafficStopped' ? '5m' : '1m'), tests => \@tests);
    my ($status, @said) = run('', qw(promtool test rules), spew("$DIR/prometheus/$name.test.yml", JSON::PP::encode_json(\%file)));
    my @fires  = map { $_->{name} } grep { @{ $_->{alert_rule_test}[0]{exp_alerts} } } @tests;
    my @silent = map { $_->{name} } grep { !@{ $_->{alert_rule_test}[0]{exp_alerts} } } @tests;
    is($status, 0, "$name fires: " . join('; ', @fires)) or diag(@said);
    ok(@fires && @silent, "$name is silent: " . join('; ', @silent));
    like($rule->{annotations}{summary} || '', qr/\w.*[.?]$/, "$name: the summary says what to do");
}

done_testing();
