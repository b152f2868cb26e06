#!/usr/bin/perl

# A real Prometheus scrapes five nfproms for a minute or more, under xinetd and alone, while rules come and go and packets of
# both families flow. What it stored, and what it computes from it, is then compared with iptables.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::IP ();
use IO::Socket::UNIX ();
use JSON::PP ();
use List::Util qw(max);
use POSIX ();
use Socket qw(MSG_DONTWAIT SOCK_DGRAM);
use Test::More;
use Time::HiRes qw(sleep time);
use Live;
use Prometheus;

need(qw(iptables-nft iptables-legacy ip6tables-nft iptables-nft-restore iptables-legacy-restore ip6tables-nft-restore
        xinetd setpriv prometheus promtool));

# The chains that each target reads, and the number of their rules for UDP, which are there from beginning to end. Each chain
# for IPv4 has one for TCP too.
my @V4      = (4, 'nft', 'prometheus');
my @targets = (
    { job => 'xinetd', chains => [[@V4]],                              rules => 3 },
    { job => 'alone',  chains => [[@V4]],                              rules => 3,    flags => [] },
    { job => 'legacy', chains => [[4, 'legacy', 'prometheus']],        rules => 3,    flags => [qw(-variant legacy)] },
    { job => 'ipv6',   chains => [[@V4], [6, 'nft', 'prometheus']],    rules => 6,    flags => [qw(-ipv6)] },
    { job => 'big',    chains => [[4, 'nft', 'big', 'mangle']],        rules => 4999, flags => [qw(-table mangle -chain big)] },
);
my @jobs  = map { $_->{job} } @targets;
my @alone = grep { $_->{flags} } @targets;
my %port  = map { $_ => free_port() } @jobs, 'prometheus';

my @PORTS = (5301 .. 5303);
my @BIG   = (10001, 12500, 14999);    # of the 4999 ports of the chain big: first, middle, last
my @flows = ((map { [4, $_] } @PORTS, @BIG), (map { [6, $_] } @PORTS));
my $MOVED = 'l3proto="udp",port=~"53..|10001|12500|14999"';    # selects what has traffic
my $STAYS = 'l3proto="udp",port!~"77.."';                      # and this all the rules that are never edited

# ---- the rules: traffic is counted from 2^52 on, where Prometheus still stores every integer; one counter is above 2^53

my $tcp = '[18014398509481985:7] -A %s -p tcp -m tcp --dport 22';
my $udp   = '[4503599627370497:4503599627370499] -A %s -p udp -m udp --dport %d%s';
for my $variant (qw(nft legacy)) {
    my @rules = (sprintf($tcp, 'prometheus'), map { sprintf $udp, 'prometheus', $_, '' } @PORTS);
    restore(4, $variant, join "\n", '*filter', ':prometheus - [0:0]', ':other - [0:0]', @rules, 'COMMIT', '');
    ipt(4, $variant, qw(-I OUTPUT -d), $FAMILIES->{4}{here}, qw(-j prometheus));
}
restore_beside(4, 'nft', 'mangle', ':big - [0:0]', sprintf($tcp, 'big'), map { sprintf $udp, 'big', $_, ' -j RETURN' } $BIG[0] .. $BIG[-1]);
ipt(4, 'nft', qw(-t mangle -A OUTPUT -p udp --dport), "$BIG[0]:$BIG[-1]", qw(-j big));
restore_beside(6, 'nft', 'filter', ':prometheus - [0:0]', ':other - [0:0]', map { "-A prometheus -p udp -m udp --dport $_" } @PORTS);
ipt(6, 'nft', qw(-I OUTPUT -d), $FAMILIES->{6}{here}, qw(-j prometheus));

# Loads chains of a table and leaves its other chains as they are.
sub restore_beside {
    my ($family, $variant, $table, @lines) = @_;
    my ($status, undef, $said) = run(join("\n", "*$table", @lines, 'COMMIT', ''),
        "$FAMILIES->{$family}{command}-$variant-restore", '--noflush', '-c', '-w');
    die "restore: $said" if $status != 0;
    return;
}

# What iptables counted for the target's rules: {"ipv4 5301 packets"}, as it prints it.
sub counted {
    my ($target) = @_;
    my %counted;
    for (@{ $target->{chains} }) {
        my ($family, $variant, $chain, $table) = @$_;
        for my $rule (saved_rules($family, $variant, $chain, $table)) {
            next unless $rule->[2] =~ /^-p udp .*--dport (\d+)/ && $1 !~ /^77..$/;
            @counted{ map { "$FAMILIES->{$family}{l2proto} $1 $_" } qw(packets bytes) } = @$rule;
        }
    }
    return \%counted;
}

# ---- the servers, and Prometheus

# xinetd in a /dev of its own, where syslog is a socket of ours: there goes what nfprom has to say under it.
my $syslog = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => "$DIR/syslog") or die "syslog: $!";
chmod 0666, "$DIR/syslog";
my @syslog;
sub read_syslog {
    while (defined $syslog->recv(my $line, 8192, MSG_DONTWAIT)) { push @syslog, $line if $line =~ /nfprom(?:\[\d+\])?:/ }
    return;
}
my $own_dev = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && ln -s $DIR/syslog /dev/log || exit 125; exec \"\$@\"";

my $conf = slurp("$SOURCE/xinetd/nfprom");
$conf =~ s{/usr/local/sbin/nfprom}{$NFPROM};
$conf =~ s{^(\s*port\s*=\s*)9914$}{$1$port{xinetd}}m;
spew("$DIR/xinetd.conf", $conf);
# They go before all else where that is allowed: on a busy machine a scrape must end within its timeout all the same.
my @first   = (run('', qw(chrt --rr 1 true)))[0] == 0 ? qw(chrt --rr 1) : ();
my @servers = (
    start("$DIR/xinetd.log", @first, qw(unshare -m sh -c), $own_dev, 'sh', 'xinetd', '-dontfork', '-f', "$DIR/xinetd.conf", '-pidfile', "$DIR/xinetd.pid"),
    map { start("$DIR/$_->{job}.log", @first, $NFPROM, '-addr', "127.0.0.1:$port{$_->{job}}", @{ $_->{flags} }) } @alone,
);
ok(wait_for_port($port{$_}), "$_ listens") or diag(slurp("$DIR/$_.log")) for @jobs;
my %samples;
for my $job (@jobs) {
    my $body = http_get('127.0.0.1', $port{$job})->{body};
    # (With thousands of samples promtool takes minutes, from 2.53 on.)
    my $n = 0;
    my $some = join '', grep { /^#/ || $job ne 'big' || $n++ % 100 == 0 } $body =~ /^(.*\n)/mg;
    is(promtool_says($some), '', "$job: promtool has nothing to say");
    $samples{$job} = () = $body =~ /^[^#]/mg;
}

spew("$DIR/prometheus.yml", "global: {scrape_interval: 2s, scrape_timeout: 2s}\nscrape_configs:\n" . join '',
    map { "  - {job_name: $_, static_configs: [{targets: ['127.0.0.1:$port{$_}']}]}\n" } @jobs);
push @servers, start("$DIR/prometheus.log", @first, 'prometheus', "--config.file=$DIR/prometheus.yml", "--storage.tsdb.path=$DIR/data",
    "--web.listen-address=127.0.0.1:$port{prometheus}", '--log.level=debug');

# The results of an instant query, for now or for a time in milliseconds.
sub query {
    my ($expression, $at) = @_;
    return query_at($port{prometheus}, $expression, $at ? $at / 1000 : ());
}

# The same with METRIC for packets, then for bytes: {"ipv4 5301 packets"}, the value or the list of [time, value].
sub counters {
    my ($at, $expression) = @_;
    my %result;
    for my $kind (qw(packets bytes)) {
        my $of_kind = $expression =~ s/METRIC/nfprom_${kind}_total/r;
        $result{"$_->{metric}{l2proto} $_->{metric}{port} $kind"} = $_->{values} || $_->{value}[1] for query($of_kind, $at);
    }
    return \%result;
}

sub now { return int(1000 * time) }

# Whether each target has been scraped so often since then.
sub scraped {
    my ($times, $since) = @_;
    return @jobs == query(sprintf 'count_over_time(up[%dms]) >= %d', now() - $since, $times);
}

ok(patiently { @jobs == query('up == 1') }, 'Prometheus finds all of them up') or diag(slurp("$DIR/prometheus.log"));

# ---- traffic, and rules that come and go, with a rest before and after

my $begin  = now();
my %before = map { $_->{job} => counted($_) } @targets;
ok(patiently { scraped(2, $begin) }, 'two scrapes before the first packet');

# Somebody listens, so that no ICMP error is in the way of the next datagram. The sender keeps the account.
my @listeners = map { IO::Socket::IP->new(Proto => 'udp', LocalHost => $FAMILIES->{$_->[0]}{here}, LocalPort => $_->[1]) or die "udp: $@" } @flows;
my $parent = $$;
my $sender = fork // die "fork: $!";
if (!$sender) {
    my (%sent, $enough);
    local $SIG{TERM} = sub { $enough = 1 };
    for (my $i = 0; !$enough && getppid == $parent; $i++) {
        my ($family, $dport) = @{ $flows[$i % @flows] };
        my ($count, $size)   = (1 + $i % 4, 100 + $i % 997);
        send_udp($FAMILIES->{$family}{peer}, 0, $FAMILIES->{$family}{here}, $dport, $count, $size);
        $sent{"$FAMILIES->{$family}{l2proto} $dport packets"} += $count;
        $sent{"$FAMILIES->{$family}{l2proto} $dport bytes"}   += $count * ($size + ($family == 6 ? 48 : 28));
        sleep 0.02;
    }
    spew("$DIR/sent", JSON::PP::encode_json(\%sent));
    POSIX::_exit(0);
}

# The shapes that the chain has in turn, each until everybody has seen it, and what else is edited meanwhile. One backend after the
# other, with pauses: iptables-nft-save starts again at each change, and where one follows the other at once it does not get
# through thousands of rules.
my @edited = ([4, 'nft'], [4, 'legacy'], [6, 'nft']);
my @shapes = (
    [[qw(-A prometheus -p udp --dport 7778)]],
    [[qw(-I prometheus 1 -p tcp --dport 7779)]],
    [[qw(-R prometheus 1 -p tcp --dport 7780)]],
    [[qw(-D prometheus -p udp --dport 7778)], [qw(-D prometheus 1)]],
);
my $read_begin = time;
counted($targets[-1]);
my $pause  = max(0.12, 2 * (time - $read_begin));
my $rounds = 0;
for my $shape ((@shapes) x 4) {
    for my $edit (@$shape) { ipt(@$_, '-w', @$edit) for @edited }
    my $since = now();
    until (scraped(1, $since)) {
        for (@edited) {
            my ($family, $variant) = @$_;
            ipt($family, $variant, qw(-w -A prometheus -p udp --dport 7777));
            ipt($family, $variant, qw(-w -D prometheus -p udp --dport 7777));
            sleep $pause;
            restore_beside($family, $variant, 'filter', ':other - [0:0]', ('-A other -j RETURN') x (1 + $rounds++ % 5));
            ipt($family, $variant, qw(-w -A other -j RETURN));
            read_syslog();
            sleep $pause;
        }
    }
}
kill TERM => $sender;
waitpid $sender, 0;
my $sent = JSON::PP::decode_json(slurp("$DIR/sent"));

my $last_packet = now();
ok(patiently { scraped(2, $last_packet) }, 'two scrapes after the last packet');
my $end    = now();
my $window = $end - $begin;

# ---- what is stored

sub is_between {
    my ($value, $least, $most, $what) = @_;
    my $ok = defined $value && $value >= $least && $value <= $most;
    diag(sprintf '%s: %s is not from %s to %s', $what, $value // 'nothing', $least, $most) if !$ok;
    return $ok;
}

for my $target (@targets) {
    my $job    = $target->{job};
    my $now    = counted($target);
    my $before = $before{$job};

    # What was sent is what was counted is what was stored, all as integers.
    my %grown  = map { $now->{$_} == $before->{$_} ? () : ($_ => $now->{$_} - $before->{$_}) } keys %$now;
    my %wanted = map { $_ => $sent->{$_} } grep { exists $now->{$_} } keys %$sent;
    is(scalar(keys %$now), 2 * $target->{rules}, "$job: iptables shows all the rules");
    is_deeply(\%grown, \%wanted, "$job: iptables counted the packets and bytes that were sent");
    cmp_ok((sort { $a <=> $b } values %grown)[0], '>', 100, "$job: and each rule some of them");
    my $stored = counters($end, "METRIC{job=\"$job\",$STAYS}");
    is_deeply($stored, $now, "$job: what Prometheus stored is what the kernel counted, digit for digit");

    # Each scrape.
    my ($up) = query(qq(min_over_time(up{job="$job"}[${window}ms])), $end);
    is($up->{value}[1], 1, "$job: up was 1 at every scrape");
    my ($scrapes) = map { $_->{value}[1] } query(qq(count_over_time(up{job="$job"}[${window}ms])), $end);
    cmp_ok($scrapes, '>=', 16, "$job: of which there was one for each shape of the chain");
    is_deeply([map { $_->{value}[1] } query(qq(min_over_time(nfprom_scrape_success{job="$job"}[${window}ms])), $end)], [(1) x @{ $target->{chains} }],
        "$job: every family was read each time");
    for my $kind (qw(packets bytes)) {
        is(scalar(() = query(qq(resets(nfprom_${kind}_total{job="$job"}[${window}ms]) > 0), $end)), 0, "$job: none of the counters of $kind went back");
        my ($always) = query(qq(count(count_over_time(nfprom_${kind}_total{job="$job",port!~"77.."}[${window}ms]) == $scrapes)), $end);
        is($always->{value}[1], $target->{rules} + 1, "$job: each scrape had the $kind of every rule that stays");
    }
    my ($large) = query(qq(nfprom_packets_total{job="$job",port="22"}), $end);
    is($large->{value}[1], '18014398509481984', "$job: a counter above 2^53 is as near as Prometheus can store");

    # increase() takes the last sample in its window less the first, and adds what would have come in the time between the edges
    # of the window and them, or a part of it. Here the counters rest at both ends: it must not be less than the difference, nor
    # more than that times window / (last - first). Where the window begins 1 ms before a sample (newer Prometheuses leave a
    # sample at the very beginning out) and ends at one, only the share of a millisecond is added.
    my $raw = counters($end, "METRIC{job=\"$job\",$MOVED}[${window}ms]");
    is_deeply([sort keys %$raw], [sort keys %grown], "$job: there are samples of all that moved");
    my %differs = map { $raw->{$_}[-1][1] - $raw->{$_}[0][1] == $grown{$_} ? () : ($_ => $raw->{$_}) } keys %$raw;
    is_deeply(\%differs, {}, "$job: the last sample less the first is what iptables counted between them");
    next if !%$raw;
    my ($first, $last) = map { sprintf '%.0f', 1000 * $_->[0] } @{ (values %$raw)[0] }[0, -1];
    my $sampled = $last - $first;
    for (['from a sample to a sample', $last, $sampled + 1], ['over the whole time', $end, $window]) {
        my ($what, $at, $range) = @$_;
        my $increase = counters($at, "increase(METRIC{job=\"$job\",$MOVED}[${range}ms])");
        my $good = grep { is_between($increase->{$_}, $grown{$_} * (1 - 1e-9), $grown{$_} * $range / $sampled * (1 + 1e-9), "$_ $what") } keys %grown;
        is($good, scalar(keys %grown), "$job: increase() $what is what iptables counted");
    }

    # The rules that came and went are there in some scrapes and not in others.
    next if $job eq 'big';
    for my $edited (7778 .. 7780) {
        my @seen = map { $_->{value}[1] } query(qq(count_over_time(nfprom_packets_total{job="$job",port="$edited"}[${window}ms])), $end);
        is(scalar(grep { $_ > 0 && $_ < $scrapes } @seen), scalar(@{ $target->{chains} }), "$job: a rule for port $edited came and went")
            or diag("seen @seen times in $scrapes scrapes");
    }
}

my ($count) = query('count(nfprom_packets_total{job="big"})', $end);
is($count->{value}[1], 5000, 'big: 5000 series of packets');
my ($kinds) = query(qq(min_over_time(nfprom_rules{job="big",kind="exported"}[${window}ms])), $end);
is($kinds->{value}[1], 5000, 'big: nfprom said at each scrape that it exported 5000 rules');
cmp_ok($samples{big}, '>', 10_000, 'big: a scrape is over 10000 samples');
for my $function (qw(min_over_time max_over_time)) {
    my ($scraped) = query(qq($function(scrape_samples_scraped{job="big"}[${window}ms])), $end);
    is($scraped->{value}[1], $samples{big}, "big: and Prometheus took all of them each time ($function)");
}

my @complaints = grep { /level=(?:warn|error)|Scrape failed|append failed|out-of-order|duplicate sample/i } split /\n/, slurp("$DIR/prometheus.log");
is_deeply(\@complaints, [], 'no warning in the log of Prometheus');
is(slurp("$DIR/$_.log"), '', "$_: nothing in the log of nfprom") for map { $_->{job} } @alone;
read_syslog();
is_deeply(\@syslog, [], 'xinetd: nothing from nfprom in syslog');

stop($_) for @servers;
done_testing();
