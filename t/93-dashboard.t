#!/usr/bin/perl

# systemd/nfprom-dashboard.json: it has the structure that Grafana documents for a dashboard, README's queries are its queries, and
# each of its queries, with the variables put in as Grafana does, has the right answer from a real Prometheus, which has read two
# nfproms with real iptables and traffic.
#
# NFPROM_README is another README.md than that of the tree, NFPROM_DASHBOARD another dashboard.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use JSON::PP ();
use List::Util qw(max min sum0);
use Test::More;
use Time::HiRes qw(sleep time);
use Live;
use Prometheus;

need(qw(iptables-nft ip6tables-nft iptables-nft-save ip6tables-nft-save prometheus promtool sed));

my $README    = slurp($ENV{NFPROM_README} || "$SOURCE/README.md");
my $RULES     = slurp("$SOURCE/systemd/nfprom.rules.yml");
my $TEXT      = slurp($ENV{NFPROM_DASHBOARD} || "$SOURCE/systemd/nfprom-dashboard.json");
my $JSON      = JSON::PP->new->ascii->canonical->indent->indent_length(2)->space_after;
my $DASHBOARD = eval { $JSON->decode($TEXT) };
ok($DASHBOARD, 'the dashboard is JSON') or BAIL_OUT($@);
my @PANELS  = grep { $_->{type} ne 'row' } @{ $DASHBOARD->{panels} };
my @TARGETS = map { my $panel = $_; map { [$panel, $_] } @{ $panel->{targets} } } @PANELS;

sub name_of { my ($panel, $target) = @{ $_[0] }; return "$panel->{title} $target->{refId}" }

# All values of a structure that are text, with the path to each.
sub texts {
    my ($value, @path) = @_;
    return map { texts($value->{$_}, @path, $_) } sort keys %$value if ref $value eq 'HASH';
    return map { texts($value->[$_], @path, $_) } 0 .. $#$value if ref $value eq 'ARRAY';
    return defined $value && !ref $value ? [join('.', @path), $value] : ();
}

sub none_of {
    my ($what, @wrong) = @_;
    return is(join("\n", @wrong), '', $what);
}

# ---- the structure

my %UNITS  = map { $_ => 1 } qw(bps pps decbytes percentunit s none);
my %COLORS = map { $_ => 1 } qw(blue green orange red);
my %TYPES  = (timeseries => ['legend', 'tooltip'], stat => ['reduceOptions'], bargauge => ['reduceOptions'], table => ['showHeader']);
my $TEXT_IS_TEXT = { matcher => { id => 'byType', options => 'string' }, properties => [{ id => 'unit', value => 'string' }, { id => 'noValue', value => '-' }] };
my $SOURCE_OF_DATA = { type => 'prometheus', uid => '${datasource}' };

is($JSON->encode($DASHBOARD), $TEXT, 'it is written in one way: two blanks, the keys sorted');
{
    my %is = map { $_ => $DASHBOARD->{$_} } qw(schemaVersion uid title refresh editable);
    is_deeply(\%is, { schemaVersion => 38, uid => 'nfprom', title => 'nfprom', refresh => '1m', editable => JSON::PP::true() }, 'its head: the schema of Grafana 10.0');
    ok(!exists $DASHBOARD->{$_}, "there is no $_, so it is imported and provisioned as it is") for qw(id __inputs __elements);
    is_deeply([sort keys %{ $DASHBOARD->{time} }], [qw(from to)], 'it shows a time');
    my @rows = map { $_->{title} } grep { $_->{type} eq 'row' } @{ $DASHBOARD->{panels} };
    is("@rows", 'Now Volume Health', 'its rows');
}
{
    my (%id, %title, %taken, @wrong);
    for my $panel (@{ $DASHBOARD->{panels} }) {
        my ($title, $at) = @$panel{qw(title gridPos)};
        push @wrong, "$title: its id" if ($panel->{id} // '') !~ /^[1-9]\d*$/ || $id{ $panel->{id} }++;
        push @wrong, "$title: twice"  if $title{$title}++;
        push @wrong, "$title: its place" if join(' ', sort keys %$at) ne 'h w x y' || grep { !/^\d+$/ } values %$at;
        push @wrong, "$title: outside"   if $at->{w} < 1 || $at->{h} < 1 || $at->{x} + $at->{w} > 24;
        for my $x ($at->{x} .. $at->{x} + $at->{w} - 1) {
            for my $y ($at->{y} .. $at->{y} + $at->{h} - 1) { push @wrong, "$title: over $taken{$x, $y}" if $taken{ $x, $y }; $taken{ $x, $y } ||= $title }
        }
        push @wrong, "$title: a row is open, and has its panels behind it" if $panel->{type} eq 'row' && ($panel->{collapsed} || @{ $panel->{panels} });
    }
    my $end = max(map { /$;(\d+)$/ } keys %taken);
    for my $y (0 .. $end) { push @wrong, map { "nothing at $_, $y" } grep { !$taken{ $_, $y } } 0 .. 23 }
    none_of('each panel has an id, a title and a place of its own, and no place is empty', @wrong);
}
{
    my @wrong;
    for my $panel (@PANELS) {
        my ($title, $type, $defaults) = ($panel->{title}, $panel->{type}, $panel->{fieldConfig}{defaults});
        push @wrong, "$title: type $type" if !$TYPES{$type};
        push @wrong, "$title: no option $_" for grep { !defined $panel->{options}{$_} } @{ $TYPES{$type} || [] };
        push @wrong, "$title: data source" if $JSON->encode($panel->{datasource}) ne $JSON->encode($SOURCE_OF_DATA);
        push @wrong, "$title: the description" if ($panel->{description} // '') !~ /^[A-Z].*\.$/;
        push @wrong, "$title: unit" if !$UNITS{ $defaults->{unit} // '' };
        push @wrong, "$title: no targets" if !@{ $panel->{targets} || [] };
        my @properties = map { @{ $_->{properties} } } @{ $panel->{fieldConfig}{overrides} };
        for my $thresholds ($defaults->{thresholds}, map { $_->{value} } grep { $_->{id} eq 'thresholds' } @properties) {
            my ($first, @more) = @{ $thresholds->{steps} };
            push @wrong, "$title: the first threshold" if defined $first->{value};
            push @wrong, "$title: thresholds rise"     if join(' ', map { $_->{value} } @more) ne join ' ', sort { $a <=> $b } map { $_->{value} } @more;
            push @wrong, "$title: colours"             if $thresholds->{mode} ne 'absolute' || grep { !$COLORS{ $_->{color} } } $first, @more;
        }
        my %ref;
        for my $target (@{ $panel->{targets} }) {
            my $ref = $target->{refId} // '';
            push @wrong, "$title: refId $ref" if $ref !~ /^[A-Z]$/ || $ref{$ref}++;
            push @wrong, "$title $ref: no query" if ($target->{expr} // '') !~ /\S/;
            push @wrong, "$title $ref: data source" if $JSON->encode($target->{datasource} || {}) ne $JSON->encode($SOURCE_OF_DATA);
            push @wrong, "$title $ref: either at one moment or over time" if !$target->{range} == !$target->{instant};
            push @wrong, "$title $ref: a table is of one moment" if $type eq 'table' && !($target->{instant} && $target->{format} eq 'table');
            push @wrong, "$title $ref: lines are over time" if $type eq 'timeseries' && !$target->{range};
            push @wrong, "$title $ref: no legend" if $type =~ /timeseries|bargauge/ && ($target->{legendFormat} // '') !~ /^(?:.*\{\{\w+\}\}|quota$)/;
            push @wrong, "$title $ref: [\$__rate_interval] without the least step" if $target->{expr} =~ /rate_interval/ && ($target->{interval} // '') ne '1m';
        }
        # What overrides name is there.
        my %columns = map { %{ $_->{options}{renameByName} || {} } } @{ $panel->{transformations} || [] };
        for my $override (@{ $panel->{fieldConfig}{overrides} }) {
            my ($by, $it) = @{ $override->{matcher} }{qw(id options)};
            my %is_there = (
                byName   => sub { return scalar grep { $_ eq $it } values %columns },
                byFrameRefID => sub { return $ref{$it} },
                byType   => sub { return $it eq 'string' },
                byRegexp => sub { return 1 },
            );
            push @wrong, "$title: $by $it" if !$is_there{$by} || !$is_there{$by}->();
        }
        # Or Grafana shows port 1001 as "1.00 kB", and what the panel says without data in each empty cell.
        push @wrong, "$title: text is not left as it is" if $type eq 'table' && $JSON->encode($panel->{fieldConfig}{overrides}[0] || {}) ne $JSON->encode($TEXT_IS_TEXT);
        for my $column (map { grep { s/^Value #// } sort keys %{ $_->{options}{renameByName} } } grep { $_->{id} eq 'organize' } @{ $panel->{transformations} || [] }) {
            push @wrong, "$title: a column of no query: $column" if !delete $ref{$column};
        }
        push @wrong, "$title: a query without a name for its column: $_" for $type eq 'table' && @{ $panel->{targets} } > 1 ? sort keys %ref : ();
    }
    none_of('each panel is a core panel, and has a description, a data source, a unit, thresholds that rise, and targets', @wrong);
}

# The variables, and their use.
my %VARIABLE = map { $_->{name} => $_ } @{ $DASHBOARD->{templating}{list} };
my %BUILT_IN = map { $_ => 1 } qw(__rate_interval __range);
is(join(' ', map { $_->{name} } @{ $DASHBOARD->{templating}{list} }), 'datasource job instance', 'the variables, in the order of their use');
is_deeply([@{ $VARIABLE{datasource} }{qw(type query)}], [qw(datasource prometheus)], 'one is the data source: a Prometheus');
for my $name (qw(job instance)) {
    my $v = $VARIABLE{$name};
    is_deeply([@$v{qw(type multi includeAll refresh)}], ['query', JSON::PP::true(), JSON::PP::true(), 2], "$name: some or all of what Prometheus has at that time");
    is_deeply($v->{datasource}, $SOURCE_OF_DATA, "$name: asked at the data source");
    is_deeply($v->{current}{value}, ['$__all'], "$name: all at first");
}
{
    my (%used, @wrong);
    for (texts($DASHBOARD)) {
        my ($path, $text) = @$_;
        next if $path =~ /^templating\.list\.\d+\.current/ || $path =~ /\.matcher\.options$/;
        while ($text =~ /\$(?:\{(\w+)[^}]*\}|(\w+))/g) {
            my $name = $1 // $2;
            next if $name eq '__field';
            $used{$name} = 1;
            push @wrong, "$path: $name" if !$VARIABLE{$name} && !$BUILT_IN{$name};
        }
    }
    none_of('each variable that is used is there', @wrong);
    none_of('and each that is there is used', grep { !$used{$_} } sort keys %VARIABLE);
    # What has no instance: the quota. Alerts have no job, where they are about sums.
    my @anywhere = map { name_of($_) } grep { $_->[1]{expr} !~ /job=~"\$job",instance=~"\$instance"/ } @TARGETS;
    is(join(', ', @anywhere), 'The month so far B, Alerts A', 'all queries are about the chosen jobs and instances, but those of the quota and the alerts');
    my @selectors;
    for (@TARGETS) {
        my $query = $_->[1]{expr} =~ s/job=~"\$job",instance=~"\$instance"/CHOSEN/gr =~ s/"[^"]*"//gr;
        push @selectors, name_of($_) . ": $1" while $query =~ /((?<!\w)(?:up\b|nfprom(?!:quota:|_rule_info)[\w:]*+)(?!\{)|\{(?![^}]*CHOSEN)[^}]*\})/g;
    }
    @selectors = grep { !/^Alerts/ } @selectors;
    none_of('in all of their parts', @selectors);
}

# ---- README's queries: what it shows as the answer to a question, and what it says to be what each service or host carries

my %SECTION;
{
    my $title = '';
    for (split /^/, $README) { if (/^## (.*)$/) { $title = $1 } else { $SECTION{$title} .= $_ } }
}
my @README_QUERIES = map { /^[^#\n].*$/mg } map { $SECTION{$_} =~ /^```promql\n(.*?)^```$/msg } 'Let Prometheus in', 'Questions and their queries', "The month's volume";
push @README_QUERIES, map { $SECTION{$_} =~ /`(sum by \([^`]*\) \(rate[^`]*)`/g } 'Names from comments', 'Each host of a LAN';
cmp_ok(scalar(@README_QUERIES), '>=', 15, 'README shows queries');

# A query of the dashboard as README writes it: of all jobs and instances, with a time in place of Grafana's variable.
sub as_in_readme {
    my ($query) = @_;
    $query =~ s/,?job=~"\$job",instance=~"\$instance"//g;
    $query =~ s/\{\}//g;
    $query =~ s/\[\$__rate_interval\]/[5m]/g;
    $query =~ s/\[\$__range\]/[1d]/g;
    return $query;
}
{
    my %there = map { as_in_readme($_->[1]{expr}) => 1 } @TARGETS;
    ok($there{$_}, "README's query is there: $_") for @README_QUERIES;
    like($SECTION{'Dashboard and rules'} // '', qr/`\Q$_\E`/, "README says what is $_") for '[5m]', '[$__rate_interval]';
}

# ---- two nfproms, each with a chain, one of them without a family; a target that is not there

my ($here, $peer) = @{ $FAMILIES->{4} }{qw(here peer)};
my @more = map { "203.0.113.14$_" } 1 .. 5;
must(qw(ip address add), "$_/32", qw(dev lo)) for @more;

my $DNS = 'nfprom(service=dns;host=alpha)';
my @prometheus = (
    (map { ["-d $_ -p udp --dport 53", $DNS, 'RETURN'], ["-s $_ -p udp --sport 53", $DNS, 'RETURN'] } $here, @more),
    ["-d $here -p udp --dport 53", 'nfprom(service=dns;host=beta)', 'RETURN'],    # a duplicate
    ["-d $here -p udp --dport 123", 'clock', 'RETURN'],
    ["-s $here -p udp --sport 123", 'clock', 'RETURN'],
    ["-p udp --dport 123", '', 'RETURN'],
    ["-p icmp", '', 'RETURN'],                                                     # it has no direction
    ["-d $here -p udp --dport 9", 'nfprom(service)', ''],                          # no label, no target
    ['', '', 'RETURN'],
    ["-d $here -p udp --dport 7", '', 'RETURN'],                                   # no packet reaches it, nor the duplicate
);
my @lan = ((map { ["-d $peer -p udp --dport " . (1000 + $_), "nfprom(service=s$_;host=h$_)", 'RETURN'] } 1 .. 11),
    ["-s $peer -p udp --sport 1007", 'nfprom(service=s7;host=h7)', 'RETURN'], ['', '', 'RETURN']);
sub chain {
    my ($family, $chain, @rules) = @_;
    ipt($family, 'nft', '-N', $chain);
    for (@rules) {
        my ($match, $comment, $target) = @$_;
        ipt($family, 'nft', '-A', $chain, split(' ', $match), $comment ? (qw(-m comment --comment), $comment) : (), $target ? ('-j', $target) : ());
    }
    return;
}
chain(4, 'prometheus', @prometheus);
chain(4, 'lan', @lan);
chain(6, 'prometheus', ['-d 2001:db8::140 -p udp --dport 53', 'nfprom(service=dns)', 'RETURN']);    # nothing jumps to it
ipt(4, 'nft', qw(-I OUTPUT -p udp -j), $_) for qw(lan prometheus);
my %udp = map { $_->[0] . ' ' . $_->[1] => IO::Socket::IP->new(Proto => 'udp', LocalHost => $_->[0], LocalPort => $_->[1]) || die "udp: $@" }
    (map { [$_, 53] } $here, @more), [$here, 123], [$here, 9], [$peer, 77], map { [$peer, 1000 + $_] } 1 .. 11;

# Somebody listens everywhere, so that no ICMP error is sent.
sub traffic {
    my $sink = Socket::pack_sockaddr_in(77, Socket::inet_aton($peer));
    my $n = 0;
    for my $address ($here, @more) {
        $n++;
        send_udp($peer, 0, $address, 53, 2, 50 * $n);
        send $udp{"$address 53"}, 'x' x (90 * $n), 0, $sink for 1 .. 3;
    }
    send_udp($peer, 0, $here, 123, 1, 48);
    send $udp{"$here 123"}, 'x' x 48, 0, $sink;
    send_udp($peer, 0, $here, 9, 4, 333);
    send_udp($here, 0, $peer, 1000 + $_, 1, 1000 - 20 * $_) for 1 .. 11;
    send $udp{"$peer 1007"}, 'x' x 700, 0, Socket::pack_sockaddr_in(9, Socket::inet_aton($here));
    return;
}

# {"chain rule's number"}: [packets, bytes]
sub kernel { return { map { my $chain = $_; my $n = 0; map { $n++; ("$chain $n" => [@$_[0, 1]]) } saved_rules(4, 'nft', $chain) } qw(prometheus lan) } }

my %port;
$port{ free_port() } = 1 until keys %port == 4;
my ($prometheus_port, @nfprom_ports) = sort keys %port;
my ($HERE, $LAN, $GONE) = map { "127.0.0.1:$_" } @nfprom_ports;
my $noon = 43200 - time % 86400;    # so that no day ends
my $rules = $RULES;
my $changes = $rules =~ s/interval: 1m\b/interval: 1s/g;
$changes += $rules =~ s/time\(\) \+ 0/time() + $noon/g;
$changes += $rules =~ s/vector\(1e12\)/vector(1e9)/g;
is($changes, 3, 'the rules, with seconds and a smaller quota');
spew("$DIR/nfprom.rules.yml", $rules);
spew("$DIR/prometheus.yml", <<"YAML");
global: {scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 1s}
rule_files: [$DIR/nfprom.rules.yml]
scrape_configs:
  - {job_name: nfprom, static_configs: [{targets: ["$HERE", "$GONE"]}]}
  - {job_name: branch, static_configs: [{targets: ["$LAN"]}]}
  - {job_name: other, static_configs: [{targets: ["127.0.0.1:$prometheus_port"]}]}
YAML

# They go before all else where that is allowed: a timeout of 2 s is short on a busy machine.
my @first = (run('', qw(chrt --rr 1 true)))[0] == 0 ? qw(chrt --rr 1) : ();
my @nfprom = (start("$DIR/nfprom.log", @first, $NFPROM, '-addr', $HERE, qw(-variant nft -ipv6)),
    start("$DIR/lan.log", @first, $NFPROM, '-addr', $LAN, qw(-variant nft -ipv6 -chain lan)));
ok(wait_for_port($_), 'nfprom listens') for @nfprom_ports[0, 1];
my $prometheus = start("$DIR/prometheus.log", @first, 'prometheus', "--config.file=$DIR/prometheus.yml", "--storage.tsdb.path=$DIR/data",
    "--web.listen-address=127.0.0.1:$prometheus_port");

sub query { return query_at($prometheus_port, @_) }

# Waits for so many good scrapes of both, and for recordings, from now on.
sub scraped {
    my ($times) = @_;
    my $since = time;
    return patiently {
        my $seconds = int(time - $since);
        $seconds > 0 && query(qq(min(sum_over_time(up{instance=~"$HERE|$LAN"}[${seconds}s])) >= $times))
            && query(sprintf 'min(timestamp(nfprom:line_bytes:month)) > %.3f', $since + 1);
    };
}

ok(scraped(2), 'Prometheus scrapes both and adds up') or diag(map { slurp("$DIR/$_.log") } qw(prometheus nfprom lan)) or BAIL_OUT('no Prometheus');
my $before = kernel();
for (1 .. 6) { traffic(); scraped(1) }
ok(scraped(2), 'two scrapes after the last packet');
my $after = kernel();
my $T = sprintf '%.3f', time;
ok(patiently { query("min(timestamp(up)) > $T") && query("min(timestamp(nfprom:line_bytes:month)) > $T") }, 'Prometheus has stored and recorded all of it');

# ---- what Prometheus has of it: single series, which are what the kernel counted

# Grafana: $__rate_interval is four times the least step (1m), or more if the time shown is long; $__range is that time.
my ($RATE, $SECONDS) = ('15m', 900);
my $RANGE = '1800s';
my %SINGLE = (
    bytes => "rate(nfprom_bytes_total[$RATE])", packets => "rate(nfprom_packets_total[$RATE])", others => "rate(nfprom_rule_bytes_total[$RATE])",
    line => "rate(nfprom:line_bytes:month[$RATE])", increase => "increase(nfprom_bytes_total[$RANGE])", scraped => 'timestamp(nfprom_scrape_success)',
    map { $_ => $_ } qw(nfprom_rule_info up nfprom_scrape_success nfprom_scrape_duration_seconds nfprom_rules nfprom_nonterminal_rules nfprom_unreachable_rules
        nfprom_label_errors nfprom_chain_references ALERTS), map { ("nfprom:bytes:$_", "nfprom:line_bytes:$_") } qw(day week month),
);
my %series = map { $_ => [map { { %{ $_->{metric} }, VALUE => $_->{value}[1] } } query($SINGLE{$_}, $T)] } keys %SINGLE;
{
    my (%grown, %sum);
    for (sort { (split ' ', $a)[1] <=> (split ' ', $b)[1] } keys %$after) {
        my ($chain, $n) = split;
        my $rule = ($chain eq 'lan' ? \@lan : \@prometheus)->[$n - 1];
        my $grown = $after->{$_}[1] - $before->{$_}[1];
        $sum{$chain} += $grown if $rule->[2] || $rule->[0] =~ /dport 9$/;    # it ends the chain, or cannot be told from one that does
        my ($side, $address, $port) = $rule->[0] =~ /^-([sd]) (\S+) .*port (\d+)$/ or next;
        my $key = join ' ', $chain eq 'lan' ? $LAN : $HERE, $side eq 'd' ? 'in' : 'out', $address, $port;
        $grown{$key} = $grown if !exists $grown{$key};    # or it is a duplicate
    }
    my ($scrapes) = map { $_->{value}[1] } query("min(count_over_time(nfprom_bytes_total[$RATE]))", $T);
    my @wrong;
    for (grep { $_->{l2proto} eq 'ipv4' && $_->{address} } @{ $series{bytes} }) {
        my $grown = delete $grown{"$_->{instance} $_->{direction} @{[$_->{address} =~ s{/32}{}r]} $_->{port}"} // -1;
        # rate() adds what would have come between the ends of the samples and those of the window: at most 1.1 intervals at each.
        push @wrong, join ' ', %$_, $grown if $SECONDS * $_->{VALUE} < $grown * (1 - 1e-9) || $SECONDS * $_->{VALUE} > $grown * (1 + 2.2 / ($scrapes - 1));
    }
    none_of('the rates are what the kernel counted', @wrong);
    none_of('for all the rules', sort keys %grown);
    my %month = map { $_->{instance} => $_->{VALUE} } @{ $series{'nfprom:line_bytes:month'} };
    is_deeply(\%month, { $HERE => $sum{prometheus}, $LAN => $sum{lan} }, "so is the month's volume of each line");
    my %line = map { $_->{instance} => $SECONDS * $_->{VALUE} } @{ $series{line} };
    ok($line{$_} >= $month{$_} * (1 - 1e-9) && $line{$_} <= $month{$_} * (1 + 2.2 / ($scrapes - 1)), "and its rate: $_") or diag("$line{$_}, $month{$_}") for $HERE, $LAN;
    ok(@{ $series{$_} } > 0, "$SINGLE{$_}: there is something") for sort keys %series;
}

# ---- the variables: what Grafana would offer, and put in

sub offered {
    my ($name, %chosen) = @_;
    my ($match, $label) = $VARIABLE{$name}{query}{query} =~ /^label_values\((.*), (\w+)\)$/ or return;
    return sort @{ api($prometheus_port, "label/$label/values", 'match[]' => interpolate($match, %chosen)) || [] };
}

# As Grafana's data source does it: each chosen value escaped, several as (A|B). All are all that it offers, if the variable has no
# value of its own for that.
sub chosen {
    my ($name, @values) = @_;
    if (!@values) {
        return $VARIABLE{$name}{allValue} if defined $VARIABLE{$name}{allValue};
        @values = offered($name);
    }
    s/([\\\$^*{}\[\]'+?.()|])/\\\\$1/g for @values;
    return @values == 1 ? $values[0] : '(' . join('|', @values) . ')';
}
sub interpolate {
    my ($text, %chosen) = @_;
    $text =~ s/\$__rate_interval/$RATE/g;
    $text =~ s/\$__range/$RANGE/g;
    $text =~ s/\$(job|instance)\b/$chosen{$1}/g;
    return $text;
}
is(join(' ', offered('job')), 'branch nfprom', 'the jobs that have an nfprom');
is(join(' ', offered('instance', job => chosen('job'))), join(' ', sort $HERE, $LAN), 'their instances');
is(join(' ', offered('instance', job => chosen('job', 'nfprom'))), $HERE, 'the instances of one job');

# ---- the answers: [labels by which to tell them, {their values: what it must be}], out of the single series of what is chosen

my $of;    # whether a series is chosen
sub single { return grep { $of->($_) } @{ $series{ $_[0] } } }

# Sums of the chosen single series that fulfil the condition.
sub sums {
    my ($of, $by, $factor, $condition) = @_;
    my %sum;
    for (single($of)) {
        next if $condition && !$condition->($_);
        $sum{ key($_, @$by) } += $factor * $_->{VALUE};
    }
    return [$by, \%sum];
}
sub key { my ($labels, @by) = @_; return join ' ', map { $labels->{$_} // '' } @by }
sub top {
    my ($n, $answer) = @_;
    my ($by, $sum) = @$answer;
    my @keys = sort { $sum->{$b} <=> $sum->{$a} } keys %$sum;
    return [$by, { map { $_ => $sum->{$_} } splice @keys, 0, $n }];
}
sub has { my ($label, $value) = @_; return sub { defined $value ? ($_[0]{$label} // '') eq $value : length($_[0]{$label} // '') } }
sub shares {
    my ($part, $whole) = @_;    # the labels of the whole are the first of the part's
    return [$part->[0], { map { my ($of) = split ' ', $_; $_ => $part->[1]{$_} / $whole->[1]{$of} } keys %{ $part->[1] } }];
}
sub least {
    my ($name, @by) = @_;
    my %min;
    for (single($name)) { my $key = key($_, @by); $min{$key} = min($_->{VALUE}, $min{$key} // $_->{VALUE}) }
    return [\@by, \%min];
}
sub count_of { my ($name, $is) = @_; my @all = single($name); return [[], @all ? { '' => scalar grep { $_->{VALUE} == $is } @all } : {}] }
sub near {
    my ($got, $want) = @_;
    return $got =~ /^[-+.\de]+$/ && abs($got - $want) <= 1e-9 * abs($want) + 1e-9;
}
sub rule_of { my %labels = %{ $_[0] }; delete @labels{qw(__name__ comment VALUE)}; return series_of(%labels) }
sub ages { my $sums = sums('scraped', [qw(job instance l2proto)], 1); $_ = $T - $_ for values %{ $sums->[1] }; return $sums }

my @PORT = qw(instance port direction);
my @FAMILY = qw(job instance l2proto);
my @LINE = qw(instance);
my %ANSWERS = (
    'In A'         => sub { sums('bytes', [], 8, has('direction', 'in')) },
    'Out A'        => sub { sums('bytes', [], 8, has('direction', 'out')) },
    'Whole line A' => sub { sums('line', [], 8) },
    'Packets A'    => sub { sums('packets', [], 1) },
    'Only in the last rule A' => sub {
        my ($last, $bytes, $others) = (sums('others', ['instance'], 1, has('rule', '-j RETURN')), sums('bytes', ['instance'], 1), sums('others', ['instance'], 1));
        $bytes->[1]{$_} += $others->[1]{$_} for keys %{ $others->[1] };
        return shares($last, $bytes);
    },
    'In and out A'      => sub { sums('bytes', [qw(instance direction)], 8) },
    'In and out B'      => sub { sums('others', ['instance'], 8, has('rule', '-j RETURN')) },
    'Packets by port A' => sub { sums('packets', \@PORT, 1) },
    'Services A'        => sub { sums('bytes', [qw(service direction)], 8) },
    'Hosts A'           => sub { sums('bytes', [qw(host direction)], 8, has('host')) },
    'Ports A'           => sub { sums('bytes', \@PORT, 8) },
    'Comments A'        => sub {
        my %comment = map { rule_of($_) => $_->{comment} } single('nfprom_rule_info');
        my %sum;
        for (single('bytes')) { $sum{"$_->{instance} " . $comment{ rule_of($_) }} += 8 * $_->{VALUE} if defined $comment{ rule_of($_) } }
        return [[qw(instance comment)], \%sum];
    },
    'Top services A'    => sub { top(10, sums('bytes', ['service'], 8, has('service'))) },
    'Top hosts A'       => sub { top(10, sums('bytes', ['host'], 8, has('host'))) },
    'Top addresses A'   => sub { top(5, sums('bytes', [qw(instance address)], 8)) },
    'Share of each port A' => sub { shares(sums('bytes', [qw(instance port)], 1), sums('bytes', ['instance'], 1)) },
    'Today A'      => sub { sums('nfprom:line_bytes:day', [], 1) },
    'This week A'  => sub { sums('nfprom:line_bytes:week', [], 1) },
    'This month A' => sub { sums('nfprom:line_bytes:month', [], 1) },
    'Month against the quota A' => sub { sums('nfprom:line_bytes:month', ['instance'], 1e-9) },
    'The month so far A'        => sub { sums('nfprom:line_bytes:month', ['instance'], 1) },
    'The month so far B'        => sub { [[], { '' => 1e9 }] },
    'Lines A' => sub { sums('nfprom:line_bytes:day', \@LINE, 1) },
    'Lines B' => sub { sums('nfprom:line_bytes:week', \@LINE, 1) },
    'Lines C' => sub { sums('nfprom:line_bytes:month', \@LINE, 1) },
    'Lines D' => sub { sums('nfprom:line_bytes:month', \@LINE, 1e-9) },
    'Today, in and out A'       => sub { sums('nfprom:bytes:day', [qw(instance direction)], 1) },
    'Top services this week A'  => sub { top(10, sums('nfprom:bytes:week', [qw(instance service)], 1, has('service'))) },
    'Top hosts this month A'    => sub { top(10, sums('nfprom:bytes:month', [qw(instance host direction)], 1, has('host'))) },
    'Ports in the time shown A' => sub { sums('increase', \@PORT, 1) },
    'Targets down A'          => sub { count_of('up', 0) },
    'Families not read A'     => sub { count_of('nfprom_scrape_success', 0) },
    'Last scrape A'           => sub { [[], { '' => max(values %{ ages()->[1] }) }] },
    'Chains without a jump A' => sub { count_of('nfprom_chain_references', 0) },
    'Unreachable rules A'     => sub { sums('nfprom_unreachable_rules', [], 1) },
    'Rules that count twice A' => sub { sums('nfprom_nonterminal_rules', [], 1) },
    'Duplicates A'            => sub { sums('nfprom_rules', [], 1, has('kind', 'duplicate')) },
    'Label errors A'          => sub { sums('nfprom_label_errors', [], 1) },
    'Instances A' => sub { least('nfprom_scrape_success', @FAMILY) },
    'Instances B' => sub { ages() },
    'Instances C' => sub { sums('nfprom_scrape_duration_seconds', \@FAMILY, 1) },
    'Instances D' => sub { sums('nfprom_rules', \@FAMILY, 1) },
    'Instances E' => sub { sums('nfprom_rules', \@FAMILY, 1, has('kind', 'duplicate')) },
    'Instances F' => sub { least('nfprom_chain_references', @FAMILY) },
    'Instances G' => sub { sums('nfprom_unreachable_rules', \@FAMILY, 1) },
    'Instances H' => sub { sums('nfprom_nonterminal_rules', \@FAMILY, 1) },
    'Instances I' => sub { sums('nfprom_label_errors', \@FAMILY, 1) },
    'Duration of a read A' => sub { sums('nfprom_scrape_duration_seconds', [qw(instance l2proto)], 1) },
    'Alerts A' => sub { sums('ALERTS', [qw(alertname instance l2proto)], 1, has('alertstate', 'firing')) },
);
is_deeply([sort map { name_of($_) } @TARGETS], [sort keys %ANSWERS], 'what all queries must answer is known');

# What the answers are, in figures that stand here.
my %KNOWN = (
    all => { 'Targets down A' => 1, 'Families not read A' => 1, 'Chains without a jump A' => 1, 'Unreachable rules A' => 2, 'Rules that count twice A' => 1,
        'Duplicates A' => 1, 'Label errors A' => 1 },
    here => { 'Targets down A' => 0, 'Families not read A' => 0, 'Chains without a jump A' => 1, 'Duplicates A' => 1 },
    lan  => { 'Targets down A' => 0, 'Families not read A' => 1, 'Chains without a jump A' => 0, 'Duplicates A' => 0, 'Label errors A' => 0 },
);
my %COUNT = ('Top services A' => 10, 'Top hosts A' => 10, 'Top addresses A' => 5, 'Top services this week A' => 10, 'Top hosts this month A' => 10);    # for all

for my $choice (['all', [], []], ['here', ['nfprom'], [$HERE]], ['lan', ['branch'], [$LAN]], ['both', [qw(nfprom branch)], [$HERE, $LAN]]) {
    my ($name, $jobs, $instances) = @$choice;
    my %chosen = (job => chosen('job', @$jobs), instance => chosen('instance', @$instances));
    my %job = map { $_ => 1 } @$jobs ? @$jobs : qw(nfprom branch);
    my %instance = map { $_ => 1 } @$instances ? @$instances : ($HERE, $LAN, $GONE);
    $of = sub { my ($s) = @_; return $instance{ $s->{instance} } && ($job{ $s->{job} // '' } || ($s->{alertname} // '') ne '' ) };
    for (@TARGETS) {
        my ($panel, $target) = @$_;
        my $what  = name_of($_);
        my $query = interpolate($target->{expr}, %chosen);
        my ($by, $want) = @{ $ANSWERS{$what}->() };
        my @result = query($query, $T);
        my @wrong  = ();
        my %got;
        for (@result) {
            my $key = key($_->{metric}, @$by);
            push @wrong, "$key twice" if exists $got{$key};
            $got{$key} = $_->{value}[1];
        }
        push @wrong, map { "$_: not there" } grep { !exists $got{$_} } sort keys %$want;
        push @wrong, map { "$_: not wanted" } grep { !exists $want->{$_} } sort keys %got;
        push @wrong, map { "$_: $got{$_}, not $want->{$_}" } grep { exists $got{$_} && !near($got{$_}, $want->{$_}) } sort keys %$want;
        push @wrong, 'there is no answer' if !@result && $name =~ /all|both/;
        push @wrong, "$got{''}, not $KNOWN{$name}{$what}" if defined $KNOWN{$name}{$what} && ($got{''} // '') ne $KNOWN{$name}{$what};
        push @wrong, @result . " answers, not $COUNT{$what}" if $name eq 'all' && $COUNT{$what} && @result != $COUNT{$what};
        push @wrong, 'a variable is left' if $query =~ /\$/;

        # Each legend names one series.
        if (my $legend = $target->{legendFormat}) {
            my %names;
            $names{ $legend =~ s/\{\{(\w+)\}\}/$_->{metric}{$1} \/\/ ''/ger }++ for @result;
            push @wrong, map { "legend twice: $_" } grep { $names{$_} > 1 } sort keys %names;
            for my $label (@result ? $legend =~ /\{\{(\w+)\}\}/g : ()) {
                push @wrong, "legend: nothing has the label $label" if !grep { defined $_->{metric}{$label} } @result;
            }
        }

        # Over time, the last is the same.
        if ($target->{range}) {
            my $lines = api($prometheus_port, 'query_range', query => $query, start => $T - 120, end => $T, step => 60) || {};
            my %last  = map { key($_->{metric}, @$by) => $_->{values}[-1][1] } @{ $lines->{result} || [] };
            push @wrong, 'over time it is another' if grep { ($last{$_} // '') ne $got{$_} } keys %got;
        }
        is(join("\n", @wrong), '', "$name: $what") or diag($query, "\n", $Prometheus::error);
    }
}

# An hour later, with nothing since: the last scrape is not forgotten.
{
    my ($query) = map { interpolate($_->[1]{expr}, job => chosen('job'), instance => chosen('instance')) } grep { name_of($_) eq 'Last scrape A' } @TARGETS;
    my ($age) = map { $_->{value}[1] } query($query, time + 3600);
    ok(defined $age && $age > 3590 && $age < 3700, 'an hour later the last scrape is an hour old') or diag($age // 'nothing');
}

# ---- all that it asks for is there; with another -namespace after README's line

sub asked_for {
    my ($text, $prefix) = @_;
    my %names;
    for my $query (map { $_->{expr} } map { @{ $_->{targets} || [] } } @{ $JSON->decode($text)->{panels} }) {
        $query =~ s/"[^"]*"//g;
        $names{$1} = 1 while $query =~ /\b((?:nfprom|\Q$prefix\E)[\w:]*|up|ALERTS)\b/g;
    }
    return \%names;
}
sub given {
    my ($rules, @flags) = @_;
    my %names = map { $_ => 1 } qw(up ALERTS), $rules =~ /record: "?([\w:]+)/g;
    $names{$_} = 1 for must($NFPROM, qw(-print -variant nft -ipv6), @flags) =~ /^(\w+)[{ ]/mg;
    return \%names;
}
{
    my ($asked, $given) = (asked_for($TEXT, 'nfprom'), given($RULES));
    none_of('it asks for what nfprom and the rules give', grep { !$given->{$_} } sort keys %$asked);
    my ($command) = ($SECTION{'Dashboard and rules'} // '') =~ /^```sh\n(sed .*?)^```$/ms;
    my ($namespace) = ($SECTION{'Dashboard and rules'} // '') =~ /-namespace`, here `(\w+)`/;
    ok($command && $namespace, 'README has a command for another -namespace');
    mkdir "$DIR/edge";
    spew("$DIR/edge/nfprom-dashboard.json", $TEXT);
    spew("$DIR/edge/nfprom.rules.yml", $RULES);
    my ($status, @said) = run("cd $DIR/edge\n" . ($command // 'false'), qw(sh -e));
    is(join('', $status, @said), '0', 'it runs');
    my ($text, $changed) = map { slurp("$DIR/edge/$_") } qw(nfprom-dashboard.json nfprom.rules.yml);
    ($asked, $given) = (asked_for($text, "${namespace}_"), given($changed, '-namespace', $namespace));
    none_of('then it asks for what that nfprom and those rules give', grep { !$given->{$_} } sort keys %$asked);
    ok(!grep({ /^nfprom_/ } sort keys %$asked), "and for nothing of nfprom's own name");
    my ($checked, @words) = run('', qw(promtool check rules), "$DIR/edge/nfprom.rules.yml");
    is($checked, 0, 'promtool check rules') or diag(@words);
}

my @complaints = grep { /level=(?:warn|error)/i } split /\n/, slurp("$DIR/prometheus.log");
is_deeply(\@complaints, [], 'no warning in the log of Prometheus');
is(slurp("$DIR/nfprom.log"), '', 'nothing in the log of the nfprom that reads all');
stop($_) for $prometheus, @nfprom;
done_testing();
