#!/usr/bin/perl

# The volume of the day, the week and the month, as systemd/nfprom.rules.yml adds it up: `promtool test rules` over 70 days with
# resets and gaps, against an account of the packets; the change of month at the file's own interval, in another time zone; and
# a real Prometheus that is stopped and started, with real iptables, which answers the queries of README.md.
#
# NFPROM_README is another README.md than that of the tree.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use JSON::PP ();
use List::Util qw(max sum0);
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use Live;
use Prometheus;

need(qw(iptables-nft iptables-nft-save prometheus promtool));

my $RULES  = slurp("$SOURCE/systemd/nfprom.rules.yml");
my %LENGTH = map { $_ => 1 } qw(day week month);

# A copy of the file with some texts replaced, each of which stands there once.
sub copy {
    my ($name, %replace) = @_;
    my $text = $RULES;
    for (sort keys %replace) {
        my $count = $text =~ s/\Q$_\E/$replace{$_}/g;
        is($count, 1, "the file says $_ once") or BAIL_OUT('the file has changed');
    }
    return spew("$DIR/$name", $text);
}

# What a time of the epoch belongs to, by the calendar of the C library.
sub period_of {
    my ($length, $time) = @_;
    return POSIX::strftime({ day => '%F', week => '%G-%V', month => '%Y-%m' }->{$length}, gmtime $time);
}

# ---- what the file looks back on is there, by default for 15 days

my @ranges = $RULES =~ /\[(\w+)\](?: offset (\d+d))?/g;
my %days   = (d => 1, h => 1 / 24, m => 1 / 1440, s => 1 / 86400, ms => 1 / 86400000);
my @too_far = grep { defined && /^(\d+)(\w+)$/ && $1 * $days{$2} > 7 } @ranges;
ok(@ranges > 20, 'the file looks back');
is("@too_far", '', 'but never more than a week');

# ---- hosts as the simulation sees them: flows of packets, and the rules that count each

my %ALPHA  = (service => 'ssh', host => 'alpha');
my $ENDS   = 'nfprom_rule_bytes_total';
my %TCP_22 = (address => '192.0.2.1/32', l2proto => 'ipv4', l3proto => 'tcp', port => '22');

# [the instance, the labels (the name of the metric is __name__), the flows that it counts]
my @COUNTERS = (
    # a has duplicates, rules without a target, and traffic that no rule names: flow 3.
    ['a', { __name__ => 'nfprom_bytes_total', direction => 'in',  %TCP_22, %ALPHA }, 0],
    ['a', { __name__ => 'nfprom_bytes_total', direction => 'out', %TCP_22, %ALPHA }, 1],
    ['a', { __name__ => $ENDS, rule => '-i eth1', host => 'beta' }, 2],
    ['a', { __name__ => $ENDS, rule => '-j LOG --log-prefix "a -j RETURN b"' }, 2, 3],
    ['a', { __name__ => $ENDS, rule => '-i eth4 -j other', host => 'beta' }, 3],
    ['a', { __name__ => $ENDS, rule => '-i eth1 -j RETURN', dup => '2', host => 'beta' }, 2],
    ['a', { __name__ => $ENDS, rule => '-i eth2 -j REJECT --reject-with icmp-port-unreachable', service => 'junk' }, 4],
    ['a', { __name__ => $ENDS, rule => '-i eth3 -g other', service => 'junk' }, 5],
    ['a', { __name__ => $ENDS, rule => '-j RETURN', l2proto => 'ipv4' }, 3],
    # b reads its own chain and INPUT, where the packets come by, too. The last rule has no target.
    ['b', { __name__ => 'nfprom_bytes_total', direction => 'in', chain => 'prometheus', %TCP_22 }, 6],
    ['b', { __name__ => $ENDS, chain => 'prometheus', rule => '*' }, 7],
    ['b', { __name__ => 'nfprom_bytes_total', direction => 'in', chain => 'INPUT', %TCP_22 }, 6],
    ['b', { __name__ => $ENDS, chain => 'INPUT', rule => '-j ACCEPT' }, 7],
);
my %LINE = (a => [0 .. 5], b => [6, 7]);    # the flows of a line: each once

# What a counter's volume is recorded for.
sub volume_of {
    my ($instance, $labels) = @_;
    my %left = (instance => $instance, job => 'nfprom', %$labels);
    delete @left{qw(__name__ address l2proto l3proto port rule comment dup)};
    return series_of(%left);
}

# Simulates some days: a scrape and an evaluation each $step seconds.
#   scale       bytes of a flow in a step, at most
#   resets      {instance}: the steps in which its counters go back to 0, in the middle
#   missing     {instance}: a function of the step, whether there was no scrape
#   lives       {instance}: the first and the last step
#   shift       seconds that the clock of the file is before UTC
# Returns the input of promtool, and for each step the volumes that it must find: [step]{length}{series}, {"line length"}{series};
# and what the packets were, by the time of their coming: {instance}{length}{period}.
sub simulate {
    my ($step, $steps, %o) = @_;
    my (%counter, %seen, %volume, %truth, @values, @expected, %period);
    srand 70;
    for my $i (0 .. $steps) {
        my @flow  = map { int(rand($o{scale})) } 0 .. 7;
        my @later = map { int(rand($_)) } @flow;            # of it, what comes behind a reset
        my $now   = $i * $step + ($o{shift} || 0);
        my %is    = map { $_ => period_of($_, $now) } keys %LENGTH;
        my %lives = map { $_ => $i >= $o{lives}{$_}[0] && $i <= $o{lives}{$_}[1] } keys %LINE;
        my %reset = map { my $it = $_; ($_ => scalar grep { $_ == $i } @{ $o{resets}{$it} || [] }) } keys %LINE;

        # Packets are between two steps; those that nobody can know are not in the account: behind the last scrape before a reset,
        # and before the first scrape.
        for my $instance (grep { $lives{$_} && $i > $o{lives}{$_}[0] } keys %LINE) {
            my $bytes = sum0(map { $reset{$instance} ? $later[$_] : $flow[$_] } @{ $LINE{$instance} });
            $truth{$instance}{$_}{ period_of($_, $now - 1) } += $bytes for keys %LENGTH;
        }

        my (%added, %line_added);
        for my $c (0 .. $#COUNTERS) {
            my ($instance, $labels, @flows) = @{ $COUNTERS[$c] };
            if (!$lives{$instance}) { push @{ $values[$c] }, '_'; next }
            $counter{$c} //= 90_000_000_000_000;                # what it has counted before anybody looked
            $counter{$c} = 0 if $reset{$instance};
            $counter{$c} += sum0(map { $reset{$instance} ? $later[$_] : $flow[$_] } @flows);
            if ($o{missing}{$instance} && $o{missing}{$instance}->($i)) { push @{ $values[$c] }, 'stale'; next }
            push @{ $values[$c] }, $counter{$c};
            my $new = !defined $seen{$c} ? 0 : $counter{$c} >= $seen{$c} ? $counter{$c} - $seen{$c} : $counter{$c};
            $seen{$c} = $counter{$c};
            $added{ volume_of($instance, $labels) } += $new if !$labels->{dup};
            # The rules' targets say which flows they are the end of: here it is known.
            my $ends = $labels->{__name__} ne $ENDS || $labels->{rule} =~ /^\*|-g|RETURN$|ACCEPT$|REJECT/;
            $line_added{ series_of(instance => $instance, job => 'nfprom') } += $new if $ends && ($labels->{chain} || '') ne 'INPUT';
        }
        for my $kind ('', 'line ') {
            for my $length (keys %LENGTH) {
                my $old  = $volume{"$kind$length"} || {};
                my $goes = defined $period{$length} && $period{$length} eq $is{$length};
                my %new  = map { $old->{$_} > 0 ? ($_ => $goes ? $old->{$_} : 0) : () } keys %$old;
                my $more = $kind ? \%line_added : \%added;
                $new{$_} += $more->{$_} for keys %$more;
                $volume{"$kind$length"} = \%new;
                $expected[$i]{"$kind$length"} = \%new;
            }
        }
        %period = %is;
    }
    my @input;
    for my $c (0 .. $#COUNTERS) {
        my ($instance, $labels) = @{ $COUNTERS[$c] };
        my %labels = (instance => $instance, job => 'nfprom', %$labels);
        my $name   = delete $labels{__name__};
        push @input, { series => "$name\{" . join(',', map { "$_=" . quoted($labels{$_}) } sort keys %labels) . '}', values => join ' ', @{ $values[$c] } };
    }
    return (\@input, \@expected, \%truth);
}

sub quoted { my ($text) = @_; return '"' . $text =~ s/(["\\])/\\$1/gr . '"' }

# A question to promtool: what it must find at a step.
sub asks {
    my ($expected, $i, $step) = @_;
    my @tests;
    for my $which (sort keys %{ $expected->[$i] }) {
        my ($kind, $length) = $which =~ /^(line )?(\w+)/;
        my $name = 'nfprom:' . ($kind ? 'line_bytes' : 'bytes') . ":$length";
        my $all  = $expected->[$i]{$which};
        push @tests, {
            expr => $name, eval_time => $i * $step . 's',
            exp_samples => [map { my $s = $_; { labels => "$name\{" . join(',', map { /(.*?)=(.*)/; "$1=" . quoted($2) } split /,/, $s) . '}', value => $all->{$s} } } sort keys %$all],
        };
    }
    return @tests;
}

sub promtool_agrees {
    my ($what, $rules, $step, $input, %tests) = @_;
    my %file = (rule_files => [$rules], evaluation_interval => "${step}s", tests => [{ interval => "${step}s", input_series => $input, %tests }]);
    local $ENV{GOGC} = 800;    # it has little to collect
    my ($status, @said) = run('', qw(promtool test rules), spew("$DIR/volume.test.yml", JSON::PP::encode_json(\%file)));
    ok($status == 0, $what) or diag(substr join('', @said), 0, 4000);
    return;
}

# ---- 70 days from Thursday, the first of January 1970, on

{
    my ($step, $days) = (1800, 70);
    my ($per_day, $steps) = (48, 48 * $days);
    my %o = (
        scale   => 300_000_000,
        lives   => { a => [0, $steps], b => [10 * $per_day + 7, 40 * $per_day] },    # b comes with a history, and goes for good
        resets  => { a => [350, 750, 751, 1150, 31 * $per_day + 1, 1700, 2500, 3000], b => [600, 1666] },
        missing => {
            # one in each two days, one with a reset; five hours; two days and a half
            a => sub { my ($i) = @_; return $i % 97 == 50 || $i == 750 || ($i >= 1000 && $i < 1010) || ($i >= 2000 && $i < 2120) },
            b => sub { my ($i) = @_; return $i % 49 == 25 },
        },
    );
    my ($input, $expected, $truth) = simulate($step, $steps, %o);

    # The first moments of each month and of some days and weeks, the last ones, and all kinds between.
    my %at = map { $_ => 1 } 0, 1, 2, 50, 51, 351, 751, 752, 1005, 1010, 1011, 2050, 2119, 2120, 2121, $steps, map { 1 + int(rand($steps)) } 1 .. 60;
    for my $begin (31 * $per_day, 59 * $per_day, 4 * $per_day, 11 * $per_day, 40 * $per_day, 41 * $per_day, 45 * $per_day) { $at{ $begin + $_ } = 1 for -1 .. 2 }
    my @at = sort { $a <=> $b } keys %at;

    # The alerts: the month's share of the quota, 1 TB.
    my ($near, $all) = map { my $bytes = $_; (grep { $expected->[$_]{'line month'}{'instance=a,job=nfprom'} >= $bytes } 0 .. $steps)[0] } 0.8e12, 1e12;
    ok($all && $all < 31 * $per_day, 'a month carries more than the quota');
    my @alerts;
    for ([$near - 1], [$near, 'NfpromQuotaNear'], [$all - 1, 'NfpromQuotaNear'], [$all, 'NfpromQuotaReached'], [31 * $per_day - 1, 'NfpromQuotaReached'], [31 * $per_day]) {
        my ($i, $fires) = @$_;
        for my $name (qw(NfpromQuotaNear NfpromQuotaReached)) {
            my ($summary) = $RULES =~ /alert: \Q$name\E,.*\n +summary: "(.*)"/;
            my $share = sprintf '%.4g%%', 100 * $expected->[$i]{'line month'}{'instance=a,job=nfprom'} / 1e12;
            $summary =~ s/\{\{ \$labels\.instance \}\}/a/;
            $summary =~ s/\{\{ \$value \| humanizePercentage \}\}/$share/;
            push @alerts, { alertname => $name, eval_time => $i * $step . 's', exp_alerts =>
                [($fires || '') eq $name ? { exp_labels => { instance => 'a', job => 'nfprom' }, exp_annotations => { summary => $summary } } : ()] };
        }
    }
    promtool_agrees("70 days with resets and gaps: the volumes at @{[scalar @at]} moments, and the alerts of the quota", "$SOURCE/systemd/nfprom.rules.yml", $step, $input,
        promql_expr_test => [map { asks($expected, $_, $step) } @at], alert_rule_test => \@alerts);

    # What promtool has confirmed, at the end of each period, is what the packets were.
    for my $length (sort keys %LENGTH) {
        my (%last, @far);
        $last{ period_of($length, $_ * $step) } = $_ for 0 .. $steps;
        for my $instance (sort keys %LINE) {
            my ($counted, $n) = (0, 0);
            my $sent = sum0(values %{ $truth->{$instance}{$length} });
            for my $period (sort keys %last) {
                my $got = $expected->[$last{$period}]{"line $length"}{"instance=$instance,job=nfprom"} or next;
                my $was = $truth->{$instance}{$length}{$period} // 0;
                $counted += $got;
                $n++;
                push @far, [$instance, $period, $got, $was] if $length eq 'month' && abs($got - $was) > 0.005 * $was;
            }
            ok($n && abs($counted - $sent) <= 0.005 * $sent, "$instance: the sum of all its $n ${length}s is within 0.5 % of what the packets were")
                or diag("$counted, not $sent");
        }
        is_deeply(\@far, [], 'and so is each month') if $length eq 'month';
    }
}

# ---- the change of month each minute, as the file has it, and in a zone: 30 days and 21 hours before UTC

{
    my ($interval) = $RULES =~ /^ +interval: (\d+)m\b/m;
    is($interval, 1, 'the file names its interval: a minute');
    my ($step, $shift) = (60, (30 * 24 + 21) * 3600);
    my $rules = copy('shifted.rules.yml', 'time() + 0' => "time() + $shift");
    my $steps = 6 * 60;
    my ($input, $expected, $truth) = simulate($step, $steps, scale => 1_000_000, shift => $shift, lives => { map { $_ => [0, $steps] } keys %LINE },
        resets => { a => [100, 183] }, missing => { a => sub { my ($i) = @_; return $i > 190 && $i < 206 } });
    promtool_agrees('the change of month in another zone, with a reset and without a quarter of an hour', $rules, $step, $input,
        promql_expr_test => [map { asks($expected, $_, $step) } 0 .. 2, 99 .. 102, 178 .. 184, 190, 195, 205, 206, 207, $steps]);
    my ($january, $february) = map { $expected->[$_]{'line month'}{'instance=a,job=nfprom'} } 179, $steps;
    my ($was_january, $was_february) = map { $truth->{a}{month}{"1970-$_"} } '01', '02';
    is($january + $february, $was_january + $was_february, 'no packet is lost between two months');
    my $later = $was_january - $january;
    ok($later >= 0 && $later <= 1_000_000 * @{ $LINE{a} }, 'those of one minute, which are read at midnight, belong to the next');
}

# ---- the queries of README.md: [question, query]

my $readme = slurp($ENV{NFPROM_README} || "$SOURCE/README.md");
my ($section) = $readme =~ /^## The month's volume\n(.*?)(?=^## )/ms;
my ($block)   = ($section || '') =~ /^```promql\n(.*?)^```$/ms;
my @queries;
push @queries, [$1, $2] while ($block || '') =~ /^# (.*)\n([^#\n].*)$/mg;
is(2 * @queries, scalar(() = ($block || '') =~ /\n/g), 'README has questions, each with a line for answer');
{
    my %recorded = map { $_ => 1 } $RULES =~ /record: "?(nfprom:\w+:\w+)/g;
    my @foreign  = grep { !$recorded{$_} } map { $_->[1] =~ /\bnfprom[\w:]*/g } @queries;
    is("@foreign", '', 'they ask for what the file records');
    my ($share) = map { $_->[1] } grep { $_->[0] =~ /share of the quota/ } @queries;
    my @alerts  = $RULES =~ /alert: NfpromQuota\w+, expr: "(.*?) >= /g;
    is("@alerts", join(' ', ($share // 'none') x 2), 'the share of the quota is what the alerts look at');
    like($section, qr/`vector\(1e12\)`/, 'README says where the quota stands');
    is(scalar(() = $RULES =~ /vector\(1e12\)/g), 1, 'there it stands');

    # A router: its chain and that of the LAN count the same packets.
    my ($edit) = $section =~ m{`sed -i '([^']+)' /etc/prometheus/nfprom\.rules\.yml`};
    my (undef, $text) = run('', 'sed', $edit // '', "$SOURCE/systemd/nfprom.rules.yml");
    my $edited = spew("$DIR/lan.rules.yml", $text);
    my @series = map { { series => "$ENDS\{instance=\"a\",job=\"nfprom\",chain=\"$_\",rule=\"-j RETURN\"}", values => '0+1000x10' } } qw(prometheus lan lan-7);
    promtool_agrees('what README says of two chains that see the same packets: they are in the line once', $edited, 60, \@series,
        promql_expr_test => [{ expr => 'nfprom:line_bytes:month', eval_time => '10m', exp_samples => [{ labels => 'nfprom:line_bytes:month{instance="a",job="nfprom"}', value => 10_000 }] }]);
}

# ---- a real Prometheus, that is not there all the time; each second in place of each minute, and at noon, so that no day ends

my %port;
$port{ free_port() } = 1 until keys %port == 2;
my ($nfprom_port, $prometheus_port) = keys %port;
my $noon  = 43200 - time % 86400;
my $rules = copy('real.rules.yml', 'interval: 1m' => 'interval: 1s', 'time() + 0' => "time() + $noon", 'vector(1e12)' => 'vector(1e5)');
my ($here, $peer) = @{ $FAMILIES->{4} }{qw(here peer)};

# Packets of others' (a peer's port 53 is a duplicate's, 9 nobody's), counted on their way out. One rule lets all go on.
my $DNS = 'nfprom(service=dns;host=alpha)';
ipt(4, 'nft', @$_) for (
    [qw(-N prometheus)],
    [qw(-A prometheus -p udp -m length --length 0:65535)],
    ['-A', 'prometheus', '-d', $here, qw(-p udp --dport 53 -m comment --comment), $DNS, qw(-j RETURN)],
    ['-A', 'prometheus', '-d', $here, qw(-p udp --dport 53 -m comment --comment), $DNS, qw(-j RETURN)],
    ['-A', 'prometheus', '-s', $here, qw(-p udp --sport 53 -m comment --comment), $DNS, qw(-j RETURN)],
    [qw(-A prometheus -j RETURN)],
    [qw(-I OUTPUT -p udp -j prometheus)],
);
my @listeners = map { IO::Socket::IP->new(Proto => 'udp', LocalHost => $_->[0], LocalPort => $_->[1]) or die "udp: $@" } [$here, 53], [$here, 9], [$peer, 7];
my %sent = map { $_ => 0 } qw(in out rest);

sub traffic {
    my ($count) = @_;
    for (['in', $peer, 0, $here, 53, $count, 100], ['rest', $peer, 0, $here, 9, 2 * $count, 200]) {
        my ($way, @packets) = @$_;
        send_udp(@packets);
        $sent{$way} += $packets[4] * ($packets[5] + 28);
    }
    # From the port where somebody listens.
    send $listeners[0], 'x' x 300, 0, Socket::pack_sockaddr_in(7, Socket::inet_aton($peer)) for 1 .. $count;
    $sent{out} += $count * 328;
    return;
}

# What the kernel counted for the three rules that end the chain.
sub kernel { return sum0(map { $_->[2] =~ /RETURN/ ? $_->[1] : () } saved_rules(4, 'nft', 'prometheus')) }

# They go before all else where that is allowed: a timeout of 1 s is short on a busy machine.
my @first = (run('', qw(chrt --rr 1 true)))[0] == 0 ? qw(chrt --rr 1) : ();
spew("$DIR/prometheus.yml", <<"YAML");
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [$rules]
scrape_configs:
  - {job_name: nfprom, static_configs: [{targets: ["127.0.0.1:$nfprom_port"]}]}
YAML
sub start_nfprom {
    my $pid = start("$DIR/nfprom.log", @first, $NFPROM, '-addr', "127.0.0.1:$nfprom_port", qw(-variant nft));
    ok(wait_for_port($nfprom_port), 'nfprom listens') or diag(slurp("$DIR/nfprom.log"));
    return $pid;
}
sub start_prometheus {
    return start("$DIR/prometheus.log", @first, 'prometheus', "--config.file=$DIR/prometheus.yml", "--storage.tsdb.path=$DIR/data",
        "--web.listen-address=127.0.0.1:$prometheus_port");
}

sub query { return query_at($prometheus_port, @_) }
sub value_of { my ($expression) = @_; return (map { $_->{value}[1] } query($expression))[0] }

# Waits until the sum of the month is what was sent.
sub is_counted {
    my ($what) = @_;
    my $want = sum0(values %sent);
    my $is   = sub { my $value = value_of('nfprom:line_bytes:month'); return defined $value && $value >= $want };
    patiently { $is->() } 60;
    my $rests = time;
    patiently { (value_of("sum_over_time(up[@{[int(1 + time - $rests)]}s])") || 0) >= 3 } 60;    # more scrapes bring no more
    return is(value_of('nfprom:line_bytes:month'), $want, "$what: the sum is what was sent");
}

# One stops and the other does not notice.
sub end_gently {
    my ($pid) = @_;
    kill TERM => $pid;
    ok(patiently(sub { slurp("/proc/$pid/stat") =~ /\) Z / }, 60), 'Prometheus ends');
    stop($pid);
    return;
}

traffic(7);    # before anybody looks
%sent = map { $_ => 0 } keys %sent;
my $before     = kernel();
my $nfprom     = start_nfprom();
my $prometheus = start_prometheus();
ok(patiently(sub { defined value_of('nfprom:line_bytes:month') }, 60), 'Prometheus adds up') or diag(slurp("$DIR/prometheus.log"));
is(value_of('nfprom:line_bytes:month'), 0, 'what was counted before is not in it');

traffic(20);
is_counted('with traffic that no rule names');
is(kernel() - $before, sum0(values %sent), 'and what the kernel counted');
my $double = value_of('sum(nfprom:bytes:month)');
is($double, 2 * sum0(values %sent), 'a rule without a target counts it all again, which is not in the line');

end_gently($prometheus);
traffic(30);
sleep 3;
traffic(10);
$prometheus = start_prometheus();
traffic(10);
is_counted('Prometheus was stopped and started');

stop($prometheus);    # killed
traffic(5);
$prometheus = start_prometheus();
is_counted('Prometheus was killed');

ipt(4, 'nft', qw(-Z prometheus));
traffic(3);
is_counted('the counters went back to 0');

stop($nfprom);
ok(patiently(sub { (value_of('up') // 1) == 0 }, 60), 'nfprom is gone');
traffic(15);
$nfprom = start_nfprom();
is_counted('nfprom was gone for a while');

# ---- README's queries, by a word of the question: {labels' values}

my $total  = sum0(values %sent);
my %ANSWERS = (
    'each line carried'  => [[], { '' => $total }],
    'share of the quota' => [[], { '' => $total / 1e5 }],
    'came in today'      => [['direction'], { in => $sent{in}, out => $sent{out}, '' => $total + $sent{rest} }],    # all again, and what no rule names
    'Which services'     => [['service'], { dns => $sent{in} + $sent{out} }],
    'Which hosts'        => [[qw(host direction)], { 'alpha in' => $sent{in}, 'alpha out' => $sent{out} }],
);
for (@queries) {
    my ($question, $query) = @$_;
    my ($known) = grep { $question =~ /$_/ } sort keys %ANSWERS;
    ok($known, "$question: the answer is known") or next;
    my ($by, $want) = @{ delete $ANSWERS{$known} };
    my @result = query($query);
    is_deeply({ map { (join(' ', map { defined ? $_ : '' } @{ $_->{metric} }{@$by}) => $_->{value}[1] + 0) } @result }, $want, "$question: the right one") or diag($Prometheus::error);
    is_deeply([grep { $_->{metric}{instance} ne "127.0.0.1:$nfprom_port" } @result], [], 'of this instance');
}
is_deeply([sort keys %ANSWERS], [], 'README asks all of them');
is_deeply([map { $_->{metric}{alertname} } query('ALERTS{alertname=~"NfpromQuota.*"}')], [$total >= 1e5 ? 'NfpromQuotaReached' : $total >= 8e4 ? 'NfpromQuotaNear' : ()], 'and the alert of the quota is what it must be');

# (It was ended, and once killed: the next one finds its lock.)
my @complaints = grep { /level=(?:warn|error)/i && !/Received SIGTERM|signal=terminated|lockfile from a previous execution/ } split /\n/, slurp("$DIR/prometheus.log");
is_deeply(\@complaints, [], 'no warning in the log of Prometheus');
is(slurp("$DIR/nfprom.log"), '', 'nothing in the log of nfprom');
stop($_) for $prometheus, $nfprom;
done_testing();
