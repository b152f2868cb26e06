#!/usr/bin/perl

# A real Prometheus scrapes nfprom, under xinetd and alone, while rules come and
# go and packets flow. What it stored is then compared with iptables.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use HTTP::Tiny;
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep time);
use Live;

need(qw(iptables-nft iptables-legacy xinetd setpriv prometheus promtool));

my %port = map { $_ => free_port() } qw(xinetd alone legacy prometheus);

for my $variant (qw(nft legacy)) {
    restore(4, $variant, "*filter\n:prometheus - [0:0]\n:other - [0:0]\n[18014398509481985:7] -A prometheus -p tcp -m tcp --dport 22\nCOMMIT\n");
    ipt(4, $variant, qw(-I OUTPUT -d), $FAMILIES->{4}{here}, qw(-j prometheus));
    ipt(4, $variant, qw(-A prometheus -d), $FAMILIES->{4}{here}, qw(-p udp --dport), 5300 + $_) for 1 .. 3;
}

# ---- the three servers, and Prometheus

my $conf = slurp("$SOURCE/xinetd/nfprom");
$conf =~ s{/usr/local/sbin/nfprom}{$NFPROM};
$conf =~ s{^(\s*port\s*=\s*)9914$}{$1$port{xinetd}}m;
spew("$DIR/xinetd.conf", $conf);
my @servers = (
    start("$DIR/xinetd.log", 'xinetd', '-dontfork', '-f', "$DIR/xinetd.conf", '-pidfile', "$DIR/xinetd.pid"),
    start("$DIR/alone.log",  $NFPROM, '-addr', "127.0.0.1:$port{alone}"),
    start("$DIR/legacy.log", $NFPROM, '-addr', "127.0.0.1:$port{legacy}", '-variant', 'legacy'),
);
ok(wait_for_port($port{$_}), "$_ listens") or diag(slurp("$DIR/$_.log")) for qw(xinetd alone legacy);
is(promtool_says(http_get('127.0.0.1', $port{$_})->{body}), '', "$_: promtool has nothing to say") for qw(xinetd alone legacy);

spew("$DIR/prometheus.yml", "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n" . join '',
    map { "  - {job_name: $_, static_configs: [{targets: ['127.0.0.1:$port{$_}']}]}\n" } qw(xinetd alone legacy));
push @servers, start("$DIR/prometheus.log", 'prometheus', "--config.file=$DIR/prometheus.yml", "--storage.tsdb.path=$DIR/data",
    "--web.listen-address=127.0.0.1:$port{prometheus}", '--log.level=debug');

# The results of an instant query.
sub query {
    my ($expression) = @_;
    my $escaped = $expression =~ s/([^A-Za-z0-9_])/sprintf '%%%02X', ord $1/ger;
    my $answer = HTTP::Tiny->new(timeout => 10)->get("http://127.0.0.1:$port{prometheus}/api/v1/query?query=$escaped");
    my $result = eval { JSON::PP::decode_json($answer->{content}) } || {};
    return @{ $result->{data}{result} || [] };
}

ok(patiently { 3 == query('up == 1') }, 'Prometheus finds all three up') or diag(slurp("$DIR/prometheus.log"));

# ---- ten seconds of traffic and of rules that come and go

my $end = time + 10;
for (my $i = 0; time < $end; $i++) {
    send_udp($FAMILIES->{4}{peer}, 0, $FAMILIES->{4}{here}, 5301 + $i % 3, 5);
    for my $variant (qw(nft legacy)) {
        ipt(4, $variant, qw(-w -A prometheus -p udp --dport 7777));
        ipt(4, $variant, qw(-w -D prometheus -p udp --dport 7777));
        ipt(4, $variant, qw(-w -A other -j RETURN));
    }
    sleep 0.02;
}

# ---- what is stored

for my $job (qw(xinetd alone legacy)) {
    my $variant = $job eq 'legacy' ? 'legacy' : 'nft';
    my @rules = saved_rules(4, $variant, 'prometheus');
    my %expected = map { $_->[2] =~ /--dport (53\d\d)/ ? ($1 => $_->[0]) : () } @rules;
    my %stored;
    ok(patiently {
        %stored = map { $_->{metric}{port} => $_->{value}[1] } query(qq(nfprom_packets_total{job="$job",port=~"53.."}));
        "@stored{5301 .. 5303}" eq "@expected{5301 .. 5303}";
    }, "$job: what Prometheus stored is what the kernel counted")
        or diag("stored @stored{5301 .. 5303}, counted @expected{5301 .. 5303}");
    cmp_ok($expected{5301}, '>', 0, "$job: and that is not nothing");
    my ($up) = query(qq(min_over_time(up{job="$job"}[1m])));
    is($up->{value}[1], 1, "$job: up was 1 at every scrape");
    my ($scrapes) = query(qq(count_over_time(up{job="$job"}[1m])));
    cmp_ok($scrapes->{value}[1], '>=', 8, "$job: of which there were enough");
    is(scalar(() = query(qq(resets(nfprom_packets_total{job="$job",port!="7777"}[1m]) > 0))), 0, "$job: no counter went back");
    is(scalar(() = query(qq(nfprom_scrape_success{job="$job"} != 1))), 0, "$job: every family was read");
    my ($large) = query(qq(nfprom_packets_total{job="$job",port="22"}));
    is($large->{value}[1], '18014398509481984', "$job: a counter above 2^53 is as near as Prometheus can store");
}

my @complaints = grep { /level=(?:warn|error)|Scrape failed|append failed|out-of-order|duplicate sample/i } split /\n/, slurp("$DIR/prometheus.log");
is_deeply(\@complaints, [], 'no warning in the log of Prometheus');
is(slurp("$DIR/$_.log"), '', "$_: nothing in the log of nfprom") for qw(alone legacy);

stop($_) for @servers;
done_testing();
