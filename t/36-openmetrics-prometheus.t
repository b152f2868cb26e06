#!/usr/bin/perl

# A real Prometheus asks for OpenMetrics, gets it, and stores what iptables counted, the same as from the text format. Between
# it and nfprom stands a relay that writes down what they say to each other.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::IP ();
use POSIX ();
use Test::More;
use Time::HiRes qw(time);
use Live;
use Prometheus;
require NF;    # for its reader of OpenMetrics

need(qw(iptables-nft ip6tables-nft iptables-nft-save iptables-nft-restore prometheus));

my $COMMENT = qq(a "b" \\ {x="y"} # EOF\n# EOF\n\t\r\x01\x7f\xc3\xa9);
my @targets = (
    { job => 'openmetrics', flags => [] },
    { job => 'list',        flags => ['-list'] },
    { job => 'text',        flags => [], text => 1 },    # the relay leaves the Accept header out
);
for my $target (@targets) {    # the ports of the relays are taken before those of the others are looked for
    $target->{relay} = IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => 0, Listen => 50) or die "relay: $@";
}
my %free;
$free{ free_port() } = 1 until keys %free > @targets;
my %port;
@port{ 'prometheus', map { $_->{job} } @targets } = keys %free;

# ---- the rules, and packets for those of IPv6, where counters cannot be set

restore(4, 'nft', join "\n", '*filter', ':prometheus - [0:0]', ':second - [0:0]',
    '[9007199254740991:4503599627370497] -A prometheus -d 203.0.113.140/32 -p tcp -m tcp --dport 22 -j RETURN',
    '[1:40] -A prometheus -s 203.0.113.140/32 -p tcp -m tcp --sport 22 -j RETURN',
    '[0:0] -A prometheus ! -s 192.0.2.0/24 -p udp -m multiport --dports 53,123', '[7:700] -A prometheus -p tcp -m tcp --dport 22 -i eth0 -j RETURN',
    '[8:800] -A prometheus -i "eth\\"1" -j RETURN', '[9:900] -A prometheus -i "eth\\"1" -j RETURN', '[10:1000] -A prometheus -j RETURN',
    '[11:1100] -A second -p tcp -m tcp --dport 22 -j RETURN', 'COMMIT', '');
ipt(4, 'nft', qw(-A second -p udp --dport 7 -c 12 1200 -m comment --comment), $COMMENT);
ipt(4, 'nft', qw(-A second -i eth9 -c 13 1300 -m comment --comment), $COMMENT);
ipt(6, 'nft', '-N', $_) for qw(prometheus second);
ipt(6, 'nft', qw(-A prometheus -p udp --dport), $_) for 5301, 5302;
ipt(6, 'nft', qw(-I INPUT -j prometheus));
my $f = $FAMILIES->{6};
my @listeners = map { IO::Socket::IP->new(Proto => 'udp', LocalHost => $f->{here}, LocalPort => $_) or die "udp: $@" } 5301, 5302;
send_udp($f->{peer}, 0, $f->{here}, 5301, 5, 100);
send_udp($f->{peer}, 0, $f->{here}, 5302, 3, 1000);

# ---- nfprom, the relays, and Prometheus

# What both sides said is in files JOB.NUMBER.request and JOB.NUMBER.answer, complete as soon as they are there.
sub relay {
    my ($job, $listener, $to, $without_accept) = @_;
    for (my $n = 1; my $client = $listener->accept; $n++) {
        my ($request, $answer) = ('', '');
        until ($request =~ /\r\n\r\n/) { sysread($client, $request, 65536, length $request) or last }
        my $sent = $without_accept ? $request =~ s/^Accept:.*\r\n//mir : $request;
        my $server = IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $to) or next;
        syswrite $server, $sent;
        1 while sysread $server, $answer, 65536, length $answer;
        for (['request', $request], ['answer', $answer]) {
            spew("$DIR/new.$job", $_->[1]);
            rename "$DIR/new.$job", "$DIR/$job.$n.$_->[0]";
        }
        for (my $done = 0; $done < length $answer;) { $done += syswrite($client, $answer, 65536, $done) || last }
    }
}

my @chains = map { ('-chain', $_) } qw(prometheus second);
my @relays;
my @servers = map { start("$DIR/$_->{job}.log", $NFPROM, '-addr', "127.0.0.1:$port{$_->{job}}", '-variant', 'nft', '-ipv6', @chains, @{ $_->{flags} }) } @targets;
for my $target (@targets) {
    my ($job, $parent) = ($target->{job}, $$);
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        $SIG{ALRM} = 'DEFAULT';
        alarm 1800;
        eval { relay($job, $target->{relay}, $port{$job}, $target->{text}) };
        POSIX::_exit(1);
    }
    push @relays, $pid;
}
END { kill KILL => @relays if @relays }
ok(wait_for_port($port{$_}), "$_ listens") for grep { $_ ne 'prometheus' } sort keys %port;

spew("$DIR/prometheus.yml", "global: {scrape_interval: 2s, scrape_timeout: 2s}\nscrape_configs:\n" . join '',
    map { "  - {job_name: $_->{job}, static_configs: [{targets: ['127.0.0.1:" . $_->{relay}->sockport . "']}]}\n" } @targets);
push @servers, start("$DIR/prometheus.log", 'prometheus', "--config.file=$DIR/prometheus.yml", "--storage.tsdb.path=$DIR/data",
    "--web.listen-address=127.0.0.1:$port{prometheus}", '--log.level=debug');

sub query { return query_at($port{prometheus}, @_) }

my $up = patiently { @targets == query('sum_over_time(up[1h]) >= 5 and up == 1') };
ok($up, 'Prometheus finds all of them up, five times') or diag(slurp("$DIR/prometheus.log"));

# ---- what they said

for my $target (@targets) {
    my $job = $target->{job};
    my ($request, $answer) = map { slurp("$DIR/$job.2.$_") } qw(request answer);
    my ($accept) = $request =~ /^Accept: *(.*?)\r$/mi;
    like($accept, qr{^application/openmetrics-text; ?version=1\.0\.0\b}, "$job: Prometheus asks for OpenMetrics first");
    note($accept);
    my ($head, $body) = split /\r\n\r\n/, $answer, 2;
    my ($type, $length) = map { $head =~ /^$_: (.*?)\r?$/m } qw(Content-Type Content-Length);
    is($type, $target->{text} ? 'text/plain; version=0.0.4; charset=utf-8' : 'application/openmetrics-text; version=1.0.0; charset=utf-8', "$job: what it gets");
    is($length, length $body, "$job: all of it");
    my ($error, @series) = $target->{text} ? NF::parse_metrics($body) : NF::parse_openmetrics($body);
    is($error, '', "$job: in order");
    $target->{samples} = @series;
}

# ---- what is stored

sub stored {
    my ($job) = @_;
    my %stored;
    for (query(qq({job="$job",__name__=~"nfprom_.*",__name__!~".*duration.*"}))) {
        my %labels = %{ $_->{metric} };
        delete @labels{qw(job instance)};
        $stored{ series_of(%labels) } = $_->{value}[1];
    }
    return \%stored;
}

my %stored = map { $_->{job} => stored($_->{job}) } @targets;
for my $target (@targets) {
    my $job = $target->{job};
    my ($samples) = query(qq(scrape_samples_scraped{job="$job"}));
    is($samples->{value}[1], $target->{samples}, "$job: Prometheus took every sample");
    is(scalar(keys %{ $stored{$job} }), $target->{samples} - 2, "$job: and stored it");    # without the two durations
    my %known = %{ $stored{text} };
    delete @known{ grep {/nfprom_chain_references/} keys %known } if $job eq 'list';    # which does not see the rules that jump
    is_deeply($stored{$job}, \%known, "$job: the same series and values as from the text format") if !$target->{text};

    my @counted = map { my ($family, $chain) = @$_; map { "$chain $_->[0]:$_->[1]" } saved_pairs($family, $chain) }
        map { my $family = $_; map { [$family, $_] } qw(prometheus second) } 4, 6;
    my %bytes = map { $_->[1] =~ /bytes_total/ ? ($_->[0] => $stored{$job}{ $_->[1] }) : () } map { [s/_bytes_/_/r, $_] } keys %{ $stored{$job} };
    my @got = map {
        my ($chain) = /chain=(\w+)/;
        /packets_total/ ? "$chain $stored{$job}{$_}:" . ($bytes{ s/_packets_/_/r } // 'none') : ();
    } keys %{ $stored{$job} };
    is_deeply([sort @got], [sort @counted], "$job: what is stored is what iptables has, rule by rule");

    my ($info) = query(qq(nfprom_rule_info{job="$job",l2proto="ipv4",port="7"}));
    my $expected = $COMMENT;
    utf8::decode($expected);
    is($info->{metric}{comment}, $expected, "$job: a comment with all that is escaped, and an end in it");
    my ($verbatim) = query(qq(nfprom_rule_packets_total{job="$job",rule="-i eth9"}));
    is($verbatim->{metric}{comment}, $expected, "$job: also of a rule by its words");
    is($verbatim->{value}[1], 13, "$job: with its counter");
    is_deeply([map { $_->{value}[1] } query(qq(nfprom_packets_total{job="$job",l2proto="ipv6",port=~"530."}))], [5, 3], "$job: the packets that were sent");
}

# Rules with a newline in their comment go over two lines; only the counters and the chain are of interest.
sub saved_pairs {
    my ($family, $chain) = @_;
    return map { /^\[(\d+):(\d+)\] -A \Q$chain\E(?: |$)/ ? [$1, $2] : () } split /\n/, saved($family, 'nft');
}

# ---- its metadata

for my $target (@targets) {
    my $job = $target->{job};
    my %type = map { $_->{metric} => $_->{type} } @{ api($port{prometheus}, 'targets/metadata', match_target => qq({job="$job"})) || [] };
    my $total = $target->{text} ? '_total' : '';
    is(join(' ', map { $type{"nfprom_$_$total"} // 'none' } qw(packets bytes rule_packets rule_bytes)), 'counter counter counter counter',
        "$job: Prometheus knows the counters as such");
    is(join(' ', map { $type{"nfprom_$_"} // 'none' } qw(rule_info rules build_info scrape_success)), 'gauge gauge gauge gauge', "$job: and the gauges");
}

my @complaints = grep { /level=(?:warn|error)|Scrape failed|append failed|out-of-order|duplicate sample/i } split /\n/, slurp("$DIR/prometheus.log");
is_deeply(\@complaints, [], 'no warning in the log of Prometheus');
is(slurp("$DIR/$_->{job}.log"), '', "$_->{job}: nothing in the log of nfprom") for @targets;

stop($_) for @servers;
done_testing();
