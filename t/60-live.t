#!/usr/bin/perl

# nfprom against real iptables, both backends and both families, with real packets.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy promtool setpriv nft));

my @BOTH = map { my $v = $_; map { [$v, $_] } 4, 6 } qw(nft legacy);

sub flags {
    my ($variant, $family, @more) = @_;
    return ($NFPROM, '-variant', $variant, $family == 6 ? ('-ipv4=false', '-ipv6') : (), @more);
}

# All pairs "packets:bytes" of the exposition's rules, sorted; the same series must be in both halves.
sub pairs {
    my ($e) = @_;
    my @pairs;
    for my $kind ('', 'rule_') {
        my ($p, $b) = map { $e->{"nfprom_$kind${_}_total"} || {} } qw(packets bytes);
        push @pairs, map { "$p->{$_}:" . (defined $b->{$_} ? $b->{$_} : 'none') } keys %$p;
        push @pairs, map { "none:$b->{$_}" } grep { !exists $p->{$_} } keys %$b;
    }
    return [sort @pairs];
}

sub saved_pairs {
    my (@of) = @_;
    return [sort map { "$_->[0]:$_->[1]" } saved_rules(@of)];
}

# A test: with -list nfprom shows the same but for the time it took. The ruleset and its counters must be the same before and
# after; several chains come in the order of the flags, not of the table.
sub listed {
    my ($what, $variant, $family, @more) = @_;
    my ($table) = map { $more[$_] eq '-table' ? $more[ $_ + 1 ] : () } 0 .. $#more;
    my @said;
    my $quiet = patiently {
        my $before = saved($family, $variant, $table) =~ s/^#.*//mgr;
        @said = map { join ' ', run('', flags($variant, $family, '-print', @more, @$_)) } [], ['-list'];
        $before eq saved($family, $variant, $table) =~ s/^#.*//mgr;
    };
    s/^nfprom_scrape_duration_seconds\K.*//mg for @said;
    s/^(?:# \w+ )?nfprom_chain_references.*\n//mg for @said;    # a list does not see the rules that jump
    @said = map { join "\n", sort split /\n/, $_ } @said if 1 < grep { $_ eq '-chain' } @more;
    ok($quiet && $said[0] eq $said[1], "$what: the same with -list") or diag("without: $said[0]\nwith -list: $said[1]");
    like($said[1], qr/^nfprom_scrape_success\S* 1$/m, "$what: -list, a success");
    return;
}

sub seed_series {
    my ($f, $address, $direction, $protocol, $port) = @_;
    return series_of(address => $address, direction => $direction, l2proto => $f->{l2proto},
                     l3proto => $protocol, port => $port);
}

# ---- packets that really went

for (@BOTH) {
    my ($variant, $family) = @$_;
    my $f = $FAMILIES->{$family};
    my $here = "$f->{here}/$f->{bits}";
    my $name = "$variant, $f->{l2proto}";

    ipt($family, $variant, '-N', 'prometheus');
    ipt($family, $variant, '-I', $_, '-j', 'prometheus') for qw(INPUT OUTPUT);
    my @rules = (
        ['-d', 'tcp', '--dport', 22, 'in'],  ['-s', 'tcp', '--sport', 22, 'out'],
        ['-d', 'tcp', '--dport', 80, 'in'],  ['-s', 'tcp', '--sport', 80, 'out'],
        ['-d', 'udp', '--dport', 53, 'in'],  ['-s', 'udp', '--sport', 53, 'out'],
    );
    ipt($family, $variant, '-A', 'prometheus', $_->[0], $here, '-p', $_->[1], $_->[2], $_->[3], '-j', 'RETURN') for @rules;
    ipt($family, $variant, '-A', 'prometheus', '-j', 'RETURN');

    send_tcp($f->{peer}, $f->{here}, 22, 5000);
    send_tcp($f->{peer}, $f->{here}, 80, 100);
    send_udp($f->{peer}, 4000, $f->{here}, 53, 7, 300);
    send_udp($f->{here}, 53, $f->{peer}, 4001, 3, 40);
    send_udp($f->{peer}, 4002, $f->{here}, 9999, 2);

    my ($answer, @rules_saved);
    patiently {    # until no late packet has come between the two reads
        my $before = saved($family, $variant) =~ s/^#.*//mgr;
        $answer = one_shot(flags($variant, $family));
        @rules_saved = saved_rules($family, $variant, 'prometheus');
        $before eq saved($family, $variant) =~ s/^#.*//mgr;
    };
    is($answer->{status}, 200, "$name: the chain is there, so the scrape succeeds");
    is($answer->{said}, '', "$name: a success says nothing in the log");
    my $e = exposition($answer->{body});
    for my $i (0 .. $#rules) {
        my ($side, $protocol, $option, $port, $direction) = @{ $rules[$i] };
        my $series = seed_series($f, $here, $direction, $protocol, $port);
        my ($packets, $bytes) = @{ $rules_saved[$i] };
        cmp_ok($packets, '>', 0, "$name: packets came by $protocol $option $port");
        is($e->{nfprom_packets_total}{$series}, $packets, "$name: its packets as iptables-save shows them");
        is($e->{nfprom_bytes_total}{$series},   $bytes,   "$name: its bytes too");
    }
    my $rest = series_of(l2proto => $f->{l2proto}, rule => '-j RETURN', comment => '', dup => '');
    is($e->{nfprom_rule_packets_total}{$rest}, $rules_saved[-1][0], "$name: the catch-all is a series of its own");
    is_deeply(pairs($e), saved_pairs($family, $variant, 'prometheus'), "$name: every rule once, nothing else");
    is($e->{nfprom_scrape_success}{"l2proto=$f->{l2proto}"}, 1, "$name: scrape_success is 1");
    is($e->{nfprom_rules}{"kind=exported,l2proto=$f->{l2proto}"}, 6, "$name: six rules are told by their labels");
    my ($references) = ipt($family, $variant, qw(-n -L prometheus)) =~ /^Chain prometheus \((\d+) references\)/;
    is($e->{nfprom_chain_references}{"l2proto=$f->{l2proto}"}, $references // 'none', "$name: references as iptables -L counts them");
    is($e->{nfprom_nonterminal_rules}{"l2proto=$f->{l2proto}"}, 0, "$name: RETURN ends the chain for a packet");
    is(promtool_says($answer->{body}), '', "$name: promtool has nothing to say");

    my ($status, $printed) = run('', flags($variant, $family, '-print'));
    my $print = exposition($printed);
    delete $_->{nfprom_scrape_duration_seconds} for $print, $e;
    is($status, 0, "$name: -print exits with 0");
    is_deeply($print, $e, "$name: -print prints what HTTP answers");
    listed($name, $variant, $family);
    listed("$name, -chain INPUT", $variant, $family, qw(-chain INPUT));
    listed("$name, three chains", $variant, $family, map { ('-chain', $_) } qw(prometheus OUTPUT INPUT));

    # A built-in chain: the policy's counters stand in its head.
    my $head;
    patiently {
        my $before = saved($family, $variant) =~ s/^#.*//mgr;
        $answer = one_shot(flags($variant, $family, '-chain', 'INPUT'));
        ($head) = saved($family, $variant) =~ /^(:INPUT ACCEPT \[.*\])/m;
        $before eq saved($family, $variant) =~ s/^#.*//mgr;
    };
    $e = exposition($answer->{body});
    my $policy = series_of(l2proto => $f->{l2proto}, policy => 'ACCEPT');
    my ($p, $b) = map { $e->{"nfprom_policy_${_}_total"}{$policy} } qw(packets bytes);
    is(":INPUT ACCEPT [$p:$b]", $head, "$name: -chain INPUT has the counters of the policy");
    cmp_ok($p, '>', 0, "$name: which are not zero here") if $variant eq 'legacy';    # nft 1.8.9 does not count there
    is($e->{nfprom_rules}{"kind=other,l2proto=$f->{l2proto}"}, 1, "$name: and the chain's own rule");
    flush_all();
}

# ---- counters digit for digit

my @numbers = qw(0 1 9007199254740993 9223372036854775808 18446744073709551614 18446744073709551615);
for (@BOTH) {
    my ($variant, $family) = @$_;
    my $port = 100;
    restore($family, $variant, join '', "*filter\n:prometheus - [0:0]\n",
        (map { $port++; "[$_:$numbers[-1 - ($port - 101)]] -A prometheus -p tcp -m tcp --dport $port\n" } @numbers), "COMMIT\n");
    if (!grep { $_->[0] } saved_rules($family, $variant, 'prometheus')) {    # ip6tables-nft-restore 1.8.9
        note("$variant, IPv$family: restore leaves zeros here");
        flush_all();
        next;
    }
    my $e = exposition(one_shot(flags($variant, $family))->{body});
    for my $i (0 .. $#numbers) {
        my $series = seed_series($FAMILIES->{$family}, '', 'in', 'tcp', 101 + $i);
        is(join(':', map { $e->{"nfprom_${_}_total"}{$series} } qw(packets bytes)), "$numbers[$i]:$numbers[-1 - $i]",
            "$variant, IPv$family: [$numbers[$i]:$numbers[-1 - $i]] digit for digit");
    }
    listed("$variant, IPv$family, counters to 2^64-1", $variant, $family);
    flush_all();
}

# ---- the chain of the example in the first version's documentation

my $example = <<'RULES';
*filter
:prometheus - [0:0]
[242699:16223817] -A prometheus -d 203.0.113.140/32 -p tcp -m tcp --dport 22 -j RETURN
[338274:61386878] -A prometheus -s 203.0.113.140/32 -p tcp -m tcp --sport 22 -j RETURN
[277000:138000000] -A prometheus -d 203.0.113.140/32 -p tcp -m tcp --dport 25 -j RETURN
[243000:24000000] -A prometheus -s 203.0.113.140/32 -p tcp -m tcp --sport 25 -j RETURN
[225000:18000000] -A prometheus -d 203.0.113.140/32 -p tcp -m tcp --dport 80 -j RETURN
[212000:393000000] -A prometheus -s 203.0.113.140/32 -p tcp -m tcp --sport 80 -j RETURN
[15729:2660000] -A prometheus -d 203.0.113.140/32 -p tcp -m tcp --dport 443 -j RETURN
[14380:18000000] -A prometheus -s 203.0.113.140/32 -p tcp -m tcp --sport 443 -j RETURN
[39000000:40000000000] -A prometheus -j RETURN
COMMIT
RULES
for my $variant (qw(nft legacy)) {
    restore(4, $variant, $example);
    my $body = one_shot(flags($variant, 4))->{body};
    for my $line (
        'nfprom_packets_total{address="203.0.113.140/32",direction="in",l2proto="ipv4",l3proto="tcp",port="22"} 242699',
        'nfprom_packets_total{address="203.0.113.140/32",direction="out",l2proto="ipv4",l3proto="tcp",port="22"} 338274',
        'nfprom_bytes_total{address="203.0.113.140/32",direction="in",l2proto="ipv4",l3proto="tcp",port="22"} 16223817',
        'nfprom_bytes_total{address="203.0.113.140/32",direction="out",l2proto="ipv4",l3proto="tcp",port="22"} 61386878',
    ) {
        like($body, qr/^\Q$line\E$/m, "$variant: dashboards made for the first version still find $line");
    }
    listed("$variant, the example", $variant, 4);
    flush_all();
}

# ---- every shape of rule that iptables takes

# Options, a word with blanks in braces; the labels where the five of them say all
# (address direction l3proto port, '-' is empty); the family if only one has it.
my @shapes = (
    ['! -d 192.0.2.1 -p tcp',                          '!192.0.2.1/32 in tcp -', 4],
    ['-s 192.0.2.0/24',                                '192.0.2.0/24 out all -', 4],
    ['-d 10.0.0.1/255.0.255.0',                        '10.0.0.0/255.0.255.0 in all -', 4],
    ['-s 2001:db8:5::/48 -p tcp --sport 443',          '2001:db8:5::/48 out tcp 443', 6],
    ['! -s 2001:db8:6::1',                             '!2001:db8:6::1/128 out all -', 6],
    ['! -p tcp',                                       '- - !tcp -'],
    ['-p tcp ! --dport 22',                            '- in tcp !22'],
    ['-p tcp --sport 1024:',                           '- out tcp 1024:65535'],
    ['-p tcp -m multiport --dports 80,443,8000:8010',  '- in tcp 80,443,8000:8010'],
    ['-p udp -m multiport ! --sports 53,123',          '- out udp !53,123'],
    ['-p sctp --dport 5060',                           '- in sctp 5060'],
    ['-p udplite',                                     undef],
    ['-p 99',                                          '- - 99 -'],
    ['-p tcp --dport 7001 -j LOG --log-prefix {--dport 9 -s 10.0.0.9 }', '- in tcp 7001'],
    ['-p tcp --dport 7002 -g other',                   '- in tcp 7002'],
    ['-p tcp --dport 7003 -j REJECT --reject-with tcp-reset', '- in tcp 7003'],
    ['-p tcp --dport 7004 -m comment --comment {plain}', '- in tcp 7004'],
    ["-p tcp --dport 7005 -m comment --comment {two\n[1:1] -A prometheus -p tcp -m tcp --dport 6666\nCOMMIT\n*nat}", '- in tcp 7005'],
    [q(-p tcp --dport 7006 -m comment --comment {a "quoted" 'text' \ with -j DROP --dport 6667}), '- in tcp 7006'],
    ["-p tcp --dport 7007 -m comment --comment caf\xe9", '- in tcp 7007'],
    ['-p tcp --dport 7008 -m comment --comment one -m comment --comment two', '- in tcp 7008'],
    ['-p tcp --dport 7004 -m comment --comment {the same again}'],
    ['-p tcp --dport 7004 -j ACCEPT'],
    ['-m multiport -p tcp --ports 1,2'],
    ['-p tcp --sport 1 --dport 2'],
    ['-s 192.0.2.1 -d 192.0.2.2', undef, 4],
    ['-s 192.0.2.1 -p tcp --dport 2', undef, 4],
    ['-p tcp --syn'],
    ['-p tcp --tcp-flags SYN,ACK ACK --dport 3'],
    ['-p icmp --icmp-type 8', undef, 4], ['-p icmp --icmp-type 3/4', undef, 4], ['-p ipv6-icmp --icmpv6-type 128', undef, 6],
    ['-f', undef, 4], ['! -f', undef, 4], ['-m frag --fragfirst', undef, 6],
    ['-i {a b}'], ['-o !x'], ['-i eth+ -o lo'], ['! -i lo'],
    ['-m conntrack --ctstate NEW,ESTABLISHED'], ['-m state --state RELATED'],
    ['-m limit --limit 5/sec --limit-burst 7'],
    ['-m hashlimit --hashlimit-above 5/sec --hashlimit-mode srcip --hashlimit-name {a b}'],
    ['-m recent --set --name {c d}'],
    ['-m mac --mac-source 00:00:5e:00:53:01'], ['-m mark ! --mark 0x1/0xff'], ['-m addrtype --dst-type LOCAL'],
    ['-m length --length 100:200'], ['-m pkttype --pkt-type unicast'], ['-m dscp --dscp 1'],
    [q(-m string --algo bm --string {-A prometheus "x" \\})], ['-m quota --quota 1000'],
    ['-m time --timestart 01:00 --timestop 02:00'], ['-m u32 --u32 0=1'],
    ['-m statistic --mode nth --every 2 --packet 0'], ['-m iprange --src-range 192.0.2.1-192.0.2.9', undef, 4],
    ['-m set --match-set nfpromtest4 src', undef, 4], ['-m set ! --match-set nfpromtest6 dst', undef, 6],
    ['-p esp -m esp --espspi 3'], ['-p tcp --dport 7009 -m tcp --tcp-option 5'],
    ['-p tcp --dport 7010 -m tcp ! --sport 9'],
    ['-j other'], [''], ['-j RETURN'],
);

if (have('ipset')) {
    run('', qw(ipset create nfpromtest4 hash:ip));
    run('', qw(ipset create nfpromtest6 hash:ip family inet6));
}

for (@BOTH) {
    my ($variant, $family) = @$_;
    my $f = $FAMILIES->{$family};
    my $name = "$variant, $f->{l2proto}";
    ipt($family, $variant, '-N', $_) for qw(prometheus other);
    my ($taken, @refused, @labels) = (0);
    for my $shape (@shapes) {
        my ($words, $labels, $only) = @$shape;
        next if $only && $only != $family;
        my @options = map { /^\{(.*)\}$/s ? $1 : $_ } $words =~ /\{.*?\}|\S+/gs;
        my $id = $taken + 1;
        if (ipt_ok($family, $variant, '-A', 'prometheus', '-c', $id, $id * 1000, @options)) {
            $taken++;
            push @labels, [$id, $labels] if $labels;
        } else {
            push @refused, "@options";
        }
    }
    note("$name: this iptables and kernel do not take: $_") for @refused;
    cmp_ok($taken, '>', 45, "$name: most shapes of rules are taken by this kernel");

    my $answer = one_shot(flags($variant, $family));
    is($answer->{status}, 200, "$name: all of them together are read") or diag($answer->{body});
    my $e = eval { exposition($answer->{body}) } || {};
    is($@, '', "$name: and are a valid exposition without a series twice");
    my $zeros = !(saved_rules($family, $variant, 'prometheus'))[0][0];    # where counters cannot be set
    is_deeply(pairs($e), [sort map { $zeros ? '0:0' : "$_:" . $_ * 1000 } 1 .. $taken], "$name: each rule in exactly one series");
    my $kinds = 0;
    $kinds += $e->{nfprom_rules}{"kind=$_,l2proto=$f->{l2proto}"} for qw(exported other duplicate);
    is($kinds, $taken, "$name: nfprom_rules adds up to the rules of the chain");
    for (@labels) {
        my ($id, $labels) = @$_;
        my $series = seed_series($f, map { $_ eq '-' ? '' : $_ } split ' ', $labels);
        is($e->{nfprom_packets_total}{$series}, $zeros ? 0 : $id, "$name: $labels stands in the five labels");
    }
    is(scalar(grep { /port=666[67]/ } map { keys %{ $e->{$_} } } grep { !/rule_info/ } keys %$e), 0,
        "$name: no comment makes a series");
    my %info = map { /comment=(.*),direction=.*port=(70\d\d)/s ? ($2 => $1) : () } keys %{ $e->{nfprom_rule_info} };
    is($info{7004}, 'plain',       "$name: a comment is found in rule_info");
    is($info{7007}, 'caf\\xe9',    "$name: a Latin-1 byte is shown as text");
    is($info{7008}, 'one; two',    "$name: two comments are joined");
    is($info{7006}, q{a "quoted" 'text' \\ with -j DROP --dport 6667}, "$name: quotes come back as they were given");
    like($info{7005} || '', qr/^two\n\[1:1\] -A .*\nCOMMIT\n\*nat$/, "$name: newlines in a comment too");
    my @again = grep { /rule=-p tcp -m tcp --dport 7004/ } keys %{ $e->{nfprom_rule_packets_total} };
    is_deeply([sort map { /dup=(\d+)/ } @again], [2, 3], "$name: a rule that repeats a match is told by dup");
    listed("$name, every shape of rule", $variant, $family);
    is(promtool_says($answer->{body}), '', "$name: promtool has nothing to say");
    flush_all();
}

# ---- labels from comments

my $CUT = 'nfprom(a=' . '0' x 246;
for (@BOTH) {
    my ($variant, $family) = @$_;
    my $f = $FAMILIES->{$family};
    my $name = "$variant, $f->{l2proto}, labels from comments";
    my $add = sub { ipt($family, $variant, '-A', 'prometheus', map { ref $_ ? ('-m', 'comment', '--comment', $$_) : $_ } @_) };
    ipt($family, $variant, '-N', 'prometheus');
    $add->(qw(-p tcp --dport 22), \'nfprom(service=ssh;host=alpha)', qw(-j RETURN));
    $add->(qw(-p tcp --dport 22), \'nfprom(host=beta)', qw(-j RETURN));
    $add->(qw(-p tcp --dport 23), \'nfprom( b = say "it\'s \\ )" )', \'mine', \"nfprom(a=caf\xe9\n[9:9] -A prometheus -p udp\nCOMMIT\n)", qw(-j RETURN));
    $add->(qw(-p tcp --dport 24), \"${CUT}000)", qw(-j RETURN));    # which does not fit
    $add->(qw(-p tcp --dport 25), \(substr($CUT, 0, 254) . ')'), qw(-j RETURN));
    $add->(qw(-p tcp --dport 26), \'nfprom(port=26)', qw(-j RETURN));
    $add->(\'nfprom(service=rest)', qw(-j RETURN));

    my $e = exposition(one_shot(flags($variant, $family))->{body});
    my $seed = sub { my ($port, @more) = @_; return series_of(address => '', direction => 'in', l2proto => $f->{l2proto}, l3proto => 'tcp', port => $port, @more) };
    my $verbatim = sub { my ($rule, %more) = @_; return series_of(l2proto => $f->{l2proto}, rule => $rule, comment => '', dup => '', %more) };
    is_deeply([sort keys %{ $e->{nfprom_bytes_total} }], [sort $seed->(22, host => 'alpha', service => 'ssh'),
        $seed->(23, a => "caf\\xe9\n[9:9] -A prometheus -p udp\nCOMMIT\n", b => q{say "it's \\ )"}), $seed->(24), $seed->(25, a => '0' x 245), $seed->(26)],
        "$name: of the five labels");
    is_deeply([sort keys %{ $e->{nfprom_rule_bytes_total} }], [sort $verbatim->('-p tcp -m tcp --dport 22 -j RETURN', dup => 2, host => 'beta'), $verbatim->('-j RETURN', service => 'rest')],
        "$name: a duplicate, and the last rule");
    is_deeply([map { /comment=(.*?),direction/s } sort keys %{ $e->{nfprom_rule_info} }], ['mine', $CUT, 'nfprom(port=26)'], "$name: the other comments, one of them cut");
    is($e->{nfprom_label_errors}{"l2proto=$f->{l2proto}"}, 2, "$name: two that give none");
    listed($name, $variant, $family);
    is(promtool_says(one_shot(flags($variant, $family))->{body}), '', "$name: promtool has nothing to say");
    flush_all();
}

# What README says, to the letter.
{
    my ($section) = slurp("$SOURCE/README.md") =~ /^## Names from comments\n(.*?)^## /ms;
    my ($script)  = $section =~ /^```sh\n(.*?)^```$/ms;
    my ($line)    = $section =~ /^(nfprom_bytes_total\{.*\}) \d+$/m;
    my ($names)   = $section =~ /a meaning already: `(.*?)`/;
    my ($undo)    = $section =~ /^The undo is the same with `(.*?)`/m;
    my $chain = slurp("$SOURCE/systemd/chain");
    my $rules = sub { return join "\n", map { $_->[2] } saved_rules(4, 'nft', 'prometheus') };
    must('sh', '-c', $chain);
    my $made = $rules->();
    must('sh', '-ec', $script);
    my $once = $rules->();
    is(substr($once, -length $made), $made, 'README: names from comments: they stand before those of the script for the chain');
    must('sh', '-ec', $script);
    is($rules->(), $once, 'README: names from comments, once more: no rule is made twice');
    must('sh', '-c', $chain);
    is($rules->(), $once, 'README: ... and the script for the chain leaves them');
    must(qw(iptables -F prometheus));
    must('sh', '-c', "$chain$script") for 1, 2;
    is($rules->(), $once, 'README: ... at the end of which they may stand');
    my $body = one_shot($NFPROM)->{body};
    like($body, qr/^\Q$line\E 0$/m, 'README: the names of a service');
    my @series = sort map { /service=(\w+),team=office/ } keys %{ exposition($body)->{nfprom_packets_total} };
    is("@series", 'imaps imaps ldap ldap mysql mysql postgresql postgresql', 'README: and those of the others');
    is(exposition($body)->{$_}{'l2proto=ipv4'}, 0, "README: none of them: $_") for qw(nfprom_unreachable_rules nfprom_nonterminal_rules nfprom_label_errors);
    must(qw(iptables -A prometheus -p udp -m comment --comment), "nfprom($_=x)") for split / /, $names;
    is(exposition(one_shot($NFPROM)->{body})->{nfprom_label_errors}{'l2proto=ipv4'}, 16, 'README: the names that have a meaning already');
    must('sh', '-ec', $script =~ s/^( +)iptables -w -C .*/$1$undo/mr);
    is(join("\n", grep { !/-p udp / } split /\n/, $rules->()), $made, 'README: the undo takes them away, and no other');
    flush_all();
}

# ---- other tables, two chains, two families

for my $variant (qw(nft legacy)) {
    for my $table (qw(mangle raw nat)) {
        next unless ipt_ok(4, $variant, '-t', $table, '-N', 'prometheus');
        ipt(4, $variant, '-t', $table, qw(-A prometheus -p tcp --dport 22 -c 5 6));
        my $e = exposition(one_shot(flags($variant, 4, '-table', $table))->{body});
        is_deeply(pairs($e), ['5:6'], "$variant: -table $table reads that table");
        listed("$variant, -table $table", $variant, 4, '-table', $table);
    }
    ipt(4, $variant, '-N', $_) for qw(prometheus second);
    ipt(4, $variant, '-A', $_, qw(-p tcp --dport 22 -c 7 8)) for qw(prometheus second);
    my $e = exposition(one_shot(flags($variant, 4, qw(-chain prometheus -chain second)))->{body});
    my @chains = map { /chain=(\w+)/ } sort keys %{ $e->{nfprom_packets_total} };
    is_deeply(\@chains, [qw(prometheus second)], "$variant: two chains are told apart by a label");
    is_deeply(pairs($e), ['7:8', '7:8'], "$variant: the same match in two chains is no duplicate");
    listed("$variant, two chains", $variant, 4, qw(-chain second -chain prometheus));

    for my $list ([], ['-list']) {
        my $answer = one_shot(flags($variant, 4, '-ipv6', @$list));
        $e = exposition($answer->{body});
        is_deeply($e->{nfprom_scrape_success}, { 'l2proto=ipv4' => 1, 'l2proto=ipv6' => 0 },
            "$variant @$list: a chain for IPv4 alone gives half a scrape");
        like($answer->{said}, qr/^nfprom: ipv6: [^\n]+\n\z/, "$variant @$list: and one line in the log about the other half");
        is($answer->{exit}, 0, "$variant @$list: which is no failure of the process");
    }
    ipt(6, $variant, '-N', 'prometheus');
    ipt(6, $variant, qw(-A prometheus -p udp));
    listed("$variant, two families", $variant, 4, '-ipv6');
    flush_all();

    # Names that a shell would take for more than a name.
    my @names = ("a'b", '$(touch>x)', 'a;b', '*', '"', '`id>x`', 'a&b', '#a', '\\', "caf\xe9", "'" x 28);
    ipt(4, $variant, '-N', $_) for @names;
    ipt(4, $variant, '-A', $names[$_], '-p', 'tcp', '-c', $_ + 1, 2 * $_) for 0 .. $#names;
    listed("$variant, a chain $_", $variant, 4, '-chain', $_) for @names;
    listed("$variant, chains with odd names", $variant, 4, map { ('-chain', $_) } @names);
    is_deeply(pairs(exposition(one_shot(flags($variant, 4, '-list', '-chain', 'a;b'))->{body})), ['3:4'], "$variant: and it is the right one");
    ok(!-e 'x', "$variant: and nothing is run");
    flush_all();
}

# ---- what fails, and what it says

for (@BOTH) {
    my ($variant, $family) = @$_;
    for my $list ([], ['-list']) {
        my $answer = one_shot(flags($variant, $family, @$list));
        my $name   = join ' ', "$variant, IPv$family", @$list;
        is($answer->{status}, 503, "$name: no chain, no success");
        like($answer->{body}, qr/\b$FAMILIES->{$family}{command}-$variant .*-N prometheus/, "$name: the text says how to create it");
        is($answer->{exit}, 1, "$name: and the process fails");
        is(() = $answer->{said} =~ /\n/g, 1, "$name: with one line in the log");
    }
}

ipt(4, 'legacy', '-N', 'prometheus');
my $answer;
for my $list ([], ['-list']) {
    $answer = one_shot($NFPROM, '-variant', 'nft', @$list);
    is($answer->{status}, 503, "a chain of the other backend is not found @$list");
    like($answer->{body}, qr/-variant legacy/, "and the text names the other backend @$list");
}
ipt(4, 'nft', '-N', 'prometheus');
for my $list ([], ['-list']) {
    $answer = one_shot($NFPROM, '-variant', 'nft', @$list);
    is($answer->{status}, 200, "legacy tables beside nft ones do not disturb @$list");
    unlike($answer->{wire}, qr/Warning/, "and the warning about them stays out of the answer @$list");
}
flush_all();

ipt(4, 'nft', '-N', 'prometheus');
must(qw(nft add chain ip filter native));
must(qw(nft add rule ip filter native numgen inc mod 2 0));
$answer = one_shot($NFPROM, '-variant', 'nft');
if (saved(4, 'nft') =~ /incompatible/) {
    is($answer->{status}, 503, 'a native nft rule that hides the table is no success');
    like($answer->{body}, qr/Table `filter' is incompatible, use 'nft' tool/, 'and iptables-save is quoted');
} else {
    fail("the native rule makes the table 'incompatible'");
}
is_deeply(exposition(one_shot($NFPROM, '-variant', 'nft', '-list')->{body})->{nfprom_scrape_success}, { 'l2proto=ipv4' => 1 },
    'with -list a native rule in another chain does not matter');
$answer = one_shot($NFPROM, '-variant', 'nft', '-list', '-chain', 'native');
is($answer->{status}, 503, 'a chain with native rules is no success');
like($answer->{body}, qr/chain `native' in table `filter' is incompatible.*native nft rules/, 'and the text says why');
must(qw(nft flush ruleset));

# ---- rights

my @nobody = qw(setpriv --reuid 65534 --regid 65534 --clear-groups);
my @ambient = (@nobody, qw(--inh-caps +net_admin --ambient-caps +net_admin));
ipt(4, 'nft', qw(-N prometheus));
ipt(4, 'nft', qw(-A prometheus -p tcp --dport 22 -c 11 12));
$answer = one_shot(@nobody, $NFPROM, '-variant', 'nft');
is($answer->{status}, 503, 'nobody without a capability or sudo reads nothing');
like($answer->{body}, qr/CAP_NET_ADMIN/, 'and is told which capability is missing');
like($answer->{body}, qr/sudo/, 'or that sudo would do');
$answer = one_shot(@ambient, $NFPROM, '-variant', 'nft');
is($answer->{status}, 200, 'nobody with CAP_NET_ADMIN reads the nft tables');
is_deeply(pairs(exposition($answer->{body})), ['11:12'], 'and sees the counters');
$answer = one_shot(@ambient, $NFPROM, '-variant', 'nft', '-list');
is_deeply(pairs(exposition($answer->{body})), ['11:12'], 'with -list too');
$answer = one_shot(@nobody, $NFPROM, '-variant', 'nft', '-list');
is($answer->{status}, 503, 'without it -list reads nothing');
like($answer->{body}, qr{CAP_NET_ADMIN.*sudoers[^:]*: .* /usr/sbin/iptables-nft -w -t filter -v -S prometheus$}m, 'and the text has the command for sudoers');
flush_all();

ipt(4, 'legacy', qw(-N prometheus));
ipt(4, 'legacy', qw(-A prometheus -p tcp --dport 22 -c 13 14));
$answer = one_shot(@ambient, $NFPROM, '-variant', 'legacy');
is($answer->{status}, 503, 'the legacy tables need more than CAP_NET_ADMIN');
like($answer->{body}, qr/CAP_NET_RAW/, 'and the text says what');
$answer = one_shot(@nobody, '--inh-caps', '+net_admin,+net_raw', '--ambient-caps', '+net_admin,+net_raw', $NFPROM, '-variant', 'legacy');
is($answer->{status}, 200, 'with CAP_NET_RAW too they are read');
is_deeply(pairs(exposition($answer->{body})), ['13:14'], 'and the counters seen');
spew('/run/xtables.lock', '');
chmod 0600, '/run/xtables.lock';
my @raw = (@nobody, '--inh-caps', '+net_admin,+net_raw', '--ambient-caps', '+net_admin,+net_raw');
$answer = one_shot(@raw, $NFPROM, '-variant', 'legacy', '-list');
is($answer->{status}, 503, 'with -list the lock must be opened');
like($answer->{body}, qr{can't open lock file.*CAP_}, 'and the text says so');
s/net_raw/net_raw,+dac_read_search/ for @raw;
$answer = one_shot(@raw, $NFPROM, '-variant', 'legacy', '-list');
is($answer->{status}, 200, 'with CAP_DAC_READ_SEARCH it is') or diag($answer->{body});
is_deeply(pairs(exposition($answer->{body})), ['13:14'], 'and the counters seen');
flush_all();

# ---- another process edits the legacy table all the time

restore(4, 'legacy', "*filter\n:prometheus - [0:0]\n:edited - [0:0]\n[4711:815] -A prometheus -p tcp -m tcp --dport 22\nCOMMIT\n");
my $editor = start('/dev/null', 'sh', '-c', 'while :; do iptables-legacy -w -A edited -j RETURN; iptables-legacy -w -F edited; done');
for my $list ([], ['-list']) {
    my %seen;
    for (1 .. 200) {
        my $answer = one_shot($NFPROM, '-variant', 'legacy', @$list);
        $seen{ $answer->{status} == 200 ? join(' ', @{ pairs(exposition($answer->{body})) }) : $answer->{body} }++;
    }
    is_deeply(\%seen, { '4711:815' => 200 }, "of 200 reads while another process edits the legacy table none shows a zero @$list");
}
stop($editor);

# ---- make run, with which README begins

SKIP: {
    skip_or_fail("no $SOURCE/nfprom", 1) if !-x "$SOURCE/nfprom";
    delete local @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES)};
    mkdir(local $ENV{TMPDIR} = "$DIR/of-make-run");
    my $port = free_port();
    my $left = sub { return grep { slurp($_) =~ /\0TMPDIR=\Q$ENV{TMPDIR}\E\0/ && slurp(s/environ\z/stat/r) !~ /\) Z / } glob '/proc/[0-9]*/environ' };
    for my $how (['INT', -1, 'Ctrl-C'], ['HUP', -1, 'a terminal that goes away'], ['TERM', -1, 'SIGTERM to all'], ['TERM', 1, 'SIGTERM to make alone']) {
        my ($signal, $group, $what) = @$how;
        my $log = spew("$DIR/make-run.log", '');
        local @SIG{qw(INT HUP)} = ('DEFAULT') x 2;    # they may be ignored by who runs this
        my $make = start($log, qw(make -s -o nfprom -C), $SOURCE, 'run', "PORT=$port");
        patiently { slurp($log) =~ /^nfprom answers at .* Ctrl-C ends it and leaves nothing behind\.$/m || ended($make) };
        my $scrape = http_get('127.0.0.1', $port, '/metrics');
        is($scrape->{status}, 200, "make run, and $what: before that it answers") or diag(slurp($log));
        my $samples = eval { exposition($scrape->{body}) } || {};
        cmp_ok($samples->{nfprom_bytes_total}{'address=203.0.113.140/32,direction=in,l2proto=ipv4,l3proto=tcp,port=80,service=http'} // 0, '>=', 18114056, '... with the history of the chain');
        kill $signal => $group * $make;
        patiently { ended($make) && !$left->() };
        is(join(' ', $left->(), glob "$ENV{TMPDIR}/*"), '', '... and nothing is left of it');
        stop($make);
    }
}

my $holder = start('/dev/null', 'flock', '/run/xtables.lock', 'sleep', 'infinity');
patiently { (run('', qw(flock -n /run/xtables.lock true)))[0] != 0 };
$answer = one_shot($NFPROM, qw(-variant legacy -timeout 1s));
is($answer->{status}, 503, 'a lock that nobody lets go is no success');
like($answer->{body}, qr/xtables\.lock/, 'and the text names its file');
$answer = one_shot($NFPROM, qw(-variant legacy -list -timeout 1s));
is($answer->{status}, 504, 'with -list it is iptables that waits for the lock, until it is killed');
stop($holder);

done_testing();
