#!/usr/bin/perl

# From rules to series: what iptables-save prints on the left, what Prometheus gets on the right. With -list, where iptables
# prints the same in its own words, Prometheus gets the same.

use strict;
use warnings;
use Encode ();
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use NF;

# A rule that the five labels express is written here as   ADDRESS DIRECTION L3PROTO PORT   with - for an empty
# label; one of the verbatim pair as   rule <...> comment <...> dup <...>   the last two where they
# are not empty. Behind that stand the labels from comments, as   NAME <...>   The order is that of the rules.

sub written {
    my ($s) = @_;
    my %l = %{ $s->{labels} };
    my $l2 = $l{l2proto} eq 'ipv4' ? '' : "$l{l2proto}: ";
    if ($s->{name} =~ /rule_packets_total$/) {
        my @more = grep { !/^(?:l2proto|rule|comment|dup)$/ } sort keys %l;
        return join ' ', "${l2}rule <$l{rule}>", map({ $l{$_} ne '' ? "$_ <$l{$_}>" : () } qw(comment dup)), map {"$_ <$l{$_}>"} @more;
    }
    my @more = grep { !/^(?:address|direction|l2proto|l3proto|port)$/ } sort keys %l;
    return 'labels ' . join ',', sort keys %l if keys(%l) - @more != 5;
    return $l2 . join ' ', map({ $l{$_} eq '' ? '-' : $l{$_} } qw(address direction l3proto port)), map {"$_ <$l{$_}>"} @more;
}

# All of an exposition but how long it took, and what a list does not know.
sub timeless { my ($text) = @_; return $text =~ s/^(?:# (?:HELP|TYPE) )?nfprom_chain_references.*\n//mgr =~ s/^nfprom_scrape_duration_seconds\K.*//mgr }

# A test: with -list nfprom prints what it printed without; several chains in the order of the flags, not of the table.
sub listed {
    my ($promise, $r, @flags) = @_;
    my $list = print_mode('-list', @flags);
    my ($got, $expected) = map { "exit $_->{exit} $_->{err}\n" . timeless($_->{out}) } $list, $r;
    ($got, $expected) = map { join "\n", sort split /\n/, $_ } $got, $expected if 1 < grep {/^--?chain/} @flags;
    ok($got eq $expected, "... $promise: the same with -list") and return;
    my ($i) = grep { substr($got, $_, 1) ne substr($expected, $_, 1) } 0 .. length $expected;
    diag(map { '  ' . substr($_, $i < 200 ? 0 : $i - 200, 600) . "\n" } "got: $got", "expected: $expected");
}

# The exposition of what iptables-save prints; a test by itself if it is not in order. A test that -list makes the same of it.
sub exposition {
    my ($promise, @flags) = @_;
    my $r = print_mode(@flags);
    listed($promise, $r, @flags);
    my ($error, @series) = $r->{exit} eq '0' ? parse_metrics($r->{out}) : ("exit $r->{exit}: $r->{err}");
    $error ||= "standard error: $r->{err}" if $r->{err} ne '';
    if ($error) { fail($promise); diag($error) }
    return $error ? () : \@series;
}

# A test: these rules of the chain give these series, one each, with the counters of the rule.
sub maps {
    my ($promise, $rules, $expected) = @_;
    my @rules    = ref $rules    ? @$rules    : $rules;
    my @expected = ref $expected ? @$expected : $expected;
    fake(out => filter_table(@rules));
    my $series = exposition($promise) or return;
    my @got;
    for my $s (grep { $_->{name} =~ /^nfprom_(?:rule_)?packets_total$/ } @$series) {
        (my $bytes = $s->{name}) =~ s/packets_total$/bytes_total/;
        my $value = value($series, $bytes, %{ $s->{labels} });
        my $n = $s->{value} - 100;
        $got[ $n - 1 ] = written($s) . ($value eq 6400 + $n ? '' : " with $value bytes, expected " . (6400 + $n));
    }
    $_ = defined $_ ? $_ : 'nothing' for @got;
    is(join("\n", @got), join("\n", @expected), $promise);
    my $all = 0;
    $all += $_->{value} for series($series, 'nfprom_rules');
    is($all, scalar @rules, "... $promise: nfprom_rules counts each") if $all != @rules;
    return $series;
}

sub table { while (my ($promise, $rules, $expected) = splice @_, 0, 3) { maps($promise, $rules, $expected) } }

# ---- the example in the description of the first nfprom

{
    my @rules = map { /(\S+) (.*)/; "[$1] -A prometheus $2 -j RETURN" } (
        '242699:16223817 -d 203.0.113.140/32 -p tcp -m tcp --dport 22',
        '338274:61386878 -s 203.0.113.140/32 -p tcp -m tcp --sport 22',
        '277012:138000000 -d 203.0.113.140/32 -p tcp -m tcp --dport 25',
        '243001:24000000 -s 203.0.113.140/32 -p tcp -m tcp --sport 25',
        '225001:18000000 -d 203.0.113.140/32 -p tcp -m tcp --dport 80',
        '212001:393000000 -s 203.0.113.140/32 -p tcp -m tcp --sport 80',
        '15729:2660000 -d 203.0.113.140/32 -p tcp -m tcp --dport 443',
        '14380:18000000 -s 203.0.113.140/32 -p tcp -m tcp --sport 443',
    );
    fake(out => save(@rules, '[39000000:40000000000] -A prometheus -j RETURN'));
    my $r   = print_mode();
    my $out = $r->{out};
    listed('the first nfprom\'s example', $r);
    for my $line (
        'nfprom_packets_total{address="203.0.113.140/32",direction="in",l2proto="ipv4",l3proto="tcp",port="22"} 242699',
        'nfprom_bytes_total{address="203.0.113.140/32",direction="in",l2proto="ipv4",l3proto="tcp",port="22"} 16223817',
        'nfprom_packets_total{address="203.0.113.140/32",direction="out",l2proto="ipv4",l3proto="tcp",port="22"} 338274',
        'nfprom_bytes_total{address="203.0.113.140/32",direction="out",l2proto="ipv4",l3proto="tcp",port="22"} 61386878',
        'nfprom_packets_total{address="203.0.113.140/32",direction="out",l2proto="ipv4",l3proto="tcp",port="443"} 14380',
    ) {
        like($out, qr/^\Q$line\E$/m, "the first nfprom's example, to the letter: $line");
    }
    my ($error, @series) = parse_metrics($out);
    is($error, '', 'the first nfprom\'s example: an exposition in order');
    is(value(\@series, 'nfprom_rule_packets_total', rule => '-j RETURN'), '39000000', '... with the catch-all by its own words');
    is(join(' ', map { $_->{value} } series(\@series, 'nfprom_packets_total')),
        '242699 338274 277012 243001 225001 212001 15729 14380', '... in the order of the chain');
    is(join(' ', map { value(\@series, 'nfprom_rules', kind => $_) } qw(exported other duplicate)), '8 1 0',
        '... eight rules by their labels, one by its words');
}

# ---- what the five labels express

table(
    # promise                           rule                                                        series
    'destination address'            => '-d 192.0.2.1/32 -j RETURN'                              => '192.0.2.1/32 in all -',
    'source address'                 => '-s 192.0.2.1/32 -j RETURN'                              => '192.0.2.1/32 out all -',
    'a net'                          => '-s 10.0.0.0/8 -j RETURN'                                => '10.0.0.0/8 out all -',
    'a dotted mask'                  => '-s 10.0.3.0/255.0.255.0 -j RETURN'                      => '10.0.3.0/255.0.255.0 out all -',
    'protocol alone'                 => '-p tcp -j RETURN'                                       => '- - tcp -',
    'protocol and its match'         => '-p udp -m udp -j RETURN'                                => '- - udp -',
    'protocol by number'             => '-p 47 -j RETURN'                                        => '- - 47 -',
    'icmp of any type'               => '-d 192.0.2.1/32 -p icmp -m icmp -j RETURN'              => '192.0.2.1/32 in icmp -',
    'icmp without a match'           => '-p icmp -j RETURN'                                      => '- - icmp -',
    'destination port'               => '-p tcp -m tcp --dport 22 -j RETURN'                     => '- in tcp 22',
    'source port'                    => '-p udp -m udp --sport 53 -j RETURN'                     => '- out udp 53',
    'ports of sctp'                  => '-p sctp -m sctp --dport 3868 -j RETURN'                 => '- in sctp 3868',
    'ports of dccp'                  => '-p dccp -m dccp --sport 5001 -j RETURN'                 => '- out dccp 5001',
    'ports of udplite'               => '-p udplite -m udplite --dport 7 -j RETURN'              => '- in udplite 7',
    'a range of ports'               => '-p tcp -m tcp --sport 1024:65535 -j RETURN'             => '- out tcp 1024:65535',
    'port 0'                         => '-p tcp -m tcp --dport 0 -j RETURN'                      => '- in tcp 0',
    'multiport destinations'         => '-p tcp -m multiport --dports 80,443 -j RETURN'          => '- in tcp 80,443',
    'multiport sources'              => '-p udp -m multiport --sports 53,67:68 -j RETURN'        => '- out udp 53,67:68',
    'address and multiport'          => '-s 192.0.2.1/32 -p tcp -m multiport --sports 80 -j RETURN' => '192.0.2.1/32 out tcp 80',
    'address and port'               => '-d 192.0.2.1/32 -p tcp -m tcp --dport 22 -j RETURN'     => '192.0.2.1/32 in tcp 22',
    'a match loaded twice'           => '-p tcp -m tcp -m tcp --dport 22 -j RETURN'              => '- in tcp 22',
    'not this source'                => '! -s 10.0.0.0/8 -j RETURN'                              => '!10.0.0.0/8 out all -',
    'not this destination'           => '! -d 10.0.0.0/8 -j RETURN'                              => '!10.0.0.0/8 in all -',
    'not this protocol'              => '! -p tcp -j RETURN'                                     => '- - !tcp -',
    'not this port'                  => '-p tcp -m tcp ! --dport 22 -j RETURN'                   => '- in tcp !22',
    'not this range of ports'        => '-p tcp -m tcp ! --sport 1:1023 -j RETURN'               => '- out tcp !1:1023',
    'not these ports'                => '-p tcp -m multiport ! --dports 80,443 -j RETURN'        => '- in tcp !80,443',
    'all of it negated'              => '! -d 10.0.0.0/8 -p udp -m udp ! --dport 53 -j RETURN'   => '!10.0.0.0/8 in udp !53',
    'without a target'               => '-d 192.0.2.1/32'                                        => '192.0.2.1/32 in all -',
    'without a target, blank at the end' => '-d 192.0.2.1/32 -p tcp -m tcp --dport 22 '          => '192.0.2.1/32 in tcp 22',
    'two blanks in a row'            => '-d 192.0.2.1/32  -p tcp -m tcp  --dport 22  -j RETURN'  => '192.0.2.1/32 in tcp 22',
    'a goto'                         => '-s 192.0.2.1/32 -g elsewhere'                           => '192.0.2.1/32 out all -',
    'a jump to a chain'              => '-s 192.0.2.1/32 -j elsewhere'                           => '192.0.2.1/32 out all -',
    'the options of a target'        => '-p tcp -m tcp --dport 22 -j REJECT --reject-with tcp-reset' => '- in tcp 22',
    'a target that speaks of ports'  => '-d 192.0.2.1/32 -p tcp -j DNAT --to-destination 10.0.0.1:80' => '192.0.2.1/32 in tcp -',
    'a log prefix like a rule'       => '-d 192.0.2.1/32 -j LOG --log-prefix "-s 1.2.3.4 -j DROP"' => '192.0.2.1/32 in all -',
    'a log prefix with a quote'      => '-d 192.0.2.1/32 -j LOG --log-prefix "a \" -s 1.2.3.4/32 "'  => '192.0.2.1/32 in all -',
    'a log prefix of two lines'      => qq(-d 192.0.2.1/32 -j LOG --log-prefix "a\nCOMMIT\n[9:9] -A prometheus -s 6.6.6.6/32")
                                                                                                 => '192.0.2.1/32 in all -',
    'a target with a quote in front' => ['-d 192.0.2.1/32 -j "x', '-d 192.0.2.2/32 -j "x']       => ['192.0.2.1/32 in all -', '192.0.2.2/32 in all -'],
    'a goto with a quote in front'   => ['-d 192.0.2.1/32 -g "x', '-d 192.0.2.2/32 -j x"']       => ['192.0.2.1/32 in all -', '192.0.2.2/32 in all -'],
    'every label at every value'     => [map {"-d 192.0.2.$_/32 -p tcp -m tcp --dport $_ -j RETURN"} 1 .. 50]
                                                                                                 => [map {"192.0.2.$_/32 in tcp $_"} 1 .. 50],
);

# ---- what they do not express: by the words of the rule

for my $rule (
    '-j RETURN', '-g elsewhere', '-j LOG --log-prefix "all of it: "',
    '-s 10.0.0.0/8 -d 192.0.2.1/32 -j RETURN',
    '! -s 10.0.0.0/8 ! -d 10.0.0.0/8 -j RETURN',
    '-p tcp -m tcp --sport 80 --dport 80 -j RETURN',
    '-s 192.0.2.1/32 -p tcp -m tcp --dport 22 -j RETURN',
    '-d 192.0.2.1/32 -p tcp -m tcp --sport 22 -j RETURN',
    '-d 192.0.2.1/32 -p tcp -m multiport --sports 22,23 -j RETURN',
    '-p tcp -m multiport --ports 80,443 -j RETURN',
    '-p tcp -m multiport --sports 80 -m multiport --dports 80 -j RETURN',
    '-p tcp -m multiport --dports 80,443 -m multiport --dports 443,8080 -j RETURN',
    '-p tcp -m tcp --dport 80:90 -m tcp --dport 85:95 -j RETURN',
    '-d 192.0.2.1/32 -i eth0 -j RETURN', '-i eth+ -j RETURN', '-o eth0 -p tcp -j RETURN', '! -i lo -j RETURN',
    '-i eth0 -o eth1 -j RETURN', '-f -j RETURN', '-s 192.0.2.1/32 ! -f -j RETURN',
    '-p icmp -m icmp --icmp-type 8 -j RETURN', '-p icmp -m icmp ! --icmp-type 8/0 -j RETURN',
    '-d 192.0.2.1/32 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN',
    '-p tcp -m tcp --dport 22 --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN', '-p tcp -m tcp --tcp-option 7 -j RETURN',
    '-p sctp -m sctp --dport 80 --chunk-types any INIT -j RETURN', '-p dccp -m dccp --dccp-types REQUEST -j RETURN',
    '-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN', '-p tcp -m conntrack ! --ctstate NEW -m tcp --dport 22 -j RETURN',
    '-s 192.0.2.1/32 -m state --state NEW -j RETURN', '-m set --match-set users src -j RETURN',
    '-p tcp -m set ! --match-set users src,dst -m tcp --dport 22 -j RETURN', '-d 192.0.2.1/32 -m limit --limit 5/sec -j RETURN',
    '-m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name x -j RETURN',
    '-m mark --mark 0x1/0xff -j RETURN', '-m owner --uid-owner 1000 -j RETURN', '-m mac --mac-source 00:11:22:33:44:55 -j RETURN',
    '-m iprange --src-range 10.0.0.1-10.0.0.9 -j RETURN', '-m addrtype --dst-type LOCAL -j RETURN',
    '-m string --string "GET / HTTP" --algo bm -j RETURN', '-m string --string "-d 1.2.3.4/32 -j DROP" --algo kmp -j RETURN',
    '-p esp -m esp --espspi 500 -j RETURN', '-m length --length 0:100 -j RETURN', '-d 192.0.2.1/32 -m socket -j RETURN',
    '-m u32 --u32 "0x0>>0x16&0x3c=0x1" -j RETURN', '-d 192.0.2.1/32 -m notyetknown -j RETURN',
    '-d 192.0.2.1/32 -m tcp --new-option 7 -j RETURN', '-m recent --rcheck --seconds 60 --name a b --mask 255.255.255.255 --rsource -j DROP',
    '-i a b -j RETURN', '-i !x -j RETURN', '-i "x -j RETURN', '! -i "x" -j RETURN', '-o \\ -j RETURN', '-i a"b -j RETURN',
    '-m set --match-set "x src -j RETURN', '-m set --match-set x" dst -p tcp -j RETURN', '-m recent --update --name "x --rsource -j RETURN',
    '-m hashlimit --hashlimit-above 1/sec --hashlimit-name "x -j RETURN', '-i eth0 -j "x', "-i 'x -j RETURN",
) {
    # the rule behind it tells whether the end of the first was found
    maps("by its words: $rule", [$rule, '-d 192.0.2.77/32 -j RETURN'], ["rule <$rule>", '192.0.2.77/32 in all -']);
}
table(
    'neither match nor target'       => ''                                                       => 'rule <*>',
    'neither, and a blank'           => ' '                                                      => 'rule <*>',
    'a comment alone'                => '-m comment --comment "all of it"'                       => 'rule <*> comment <all of it>',
    'a comment and a target'         => '-m comment --comment rest -j RETURN'                    => 'rule <-j RETURN> comment <rest>',
    'the comment is cut out'         => '-i eth0 -m comment --comment "x y" -p tcp -j RETURN'    => 'rule <-i eth0 -p tcp -j RETURN> comment <x y>',
    # What is kept of a match with quotes ends in front of the length of the comment, which may be the number of a character with an escape.
    (map { my $c = 'x' x ord; ('quotes, and a comment of ' . length($c) . ' bytes' => qq(-m string --string "a b" --algo bm -m comment --comment $c -j RETURN) => qq(rule <-m string --string "a b" --algo bm -j RETURN> comment <$c>)) } "\n", '"', '\\'),
    'a blank at the end'             => '-i eth0 '                                               => 'rule <-i eth0>',
    'two blanks in a row'            => '-i eth0  -p tcp  -j RETURN'                             => 'rule <-i eth0 -p tcp -j RETURN>',
    'blanks inside quotes stay'      => '-m string --string "a  b" --algo bm -j RETURN'          => 'rule <-m string --string "a  b" --algo bm -j RETURN>',
    'an interface in Latin-1'        => "-i caf\xe9 -j RETURN"                                   => 'rule <-i caf\xe9 -j RETURN>',
    'an interface in UTF-8'          => "-i caf\xc3\xa9 -j RETURN"                               => "rule <-i caf\xe9 -j RETURN>",
    'an interface with a NUL'        => "-i a\0b -j RETURN"                                      => 'rule <-i a\x00b -j RETURN>',
    'a line break in a string'       => qq(-m string --string "a\n[9:9] -A prometheus -j DROP\nCOMMIT\n" --algo bm -j RETURN)
        => qq(rule <-m string --string "a\n[9:9] -A prometheus -j DROP\nCOMMIT\n" --algo bm -j RETURN>),
    'two that differ in a byte that is no UTF-8' => ["-i x\xe9 -j RETURN", "-i x\xe8 -j RETURN"]
        => ['rule <-i x\xe9 -j RETURN>', 'rule <-i x\xe8 -j RETURN>'],
);

# ---- comments

sub commented {
    my ($text) = @_;
    return "-s 192.0.2.1/32 -p tcp -m comment --comment $text -m tcp --sport 22 -j RETURN";
}

for (
    # what                          as iptables-save prints it                      as Prometheus gets it
    ['a word',                      'ssh',                                          'ssh'],
    ['several words',               '"ssh for all of us"',                          'ssh for all of us'],
    ['a word like an option',       '-d',                                           '-d'],
    ['a word like a target',        '-j',                                           '-j'],
    ['a word like a goto',          '-g',                                           '-g'],
    ['a word like a match',         '-m',                                           '-m'],
    ['a word like an interface',    '-i',                                           '-i'],
    ['a word like a set',           '--match-set',                                  '--match-set'],
    ['a word like a port',          '--dport',                                      '--dport'],
    ['a word like a protocol',      '-p',                                           '-p'],
    ['a word like the option itself', '--comment',                                  '--comment'],
    ['a lone !',                    '"!"',                                          '!'],
    ['escaped quotes',              '"say \"ssh\""',                                'say "ssh"'],
    ['single quotes',               '"don\\\'t"',                                   'don\'t'],
    ['a backslash',                 '"a\\\\b"',                                     'a\\b'],
    ['a backslash at the end',      '"a\\\\"',                                      'a\\'],
    ['a quote at the end',          '"a\\""',                                       'a"'],
    ['a backslash and an n',        '"a\\\\nb"',                                    'a\\nb'],
    ['braces and the like',         '"{a=\"b\"} 1 # x"',                            '{a="b"} 1 # x'],
    ['a tab',                       qq("a\tb"),                                     "a\tb"],
    ['a carriage return',           qq("a\rb"),                                     "a\rb"],
    ['blanks around',               '"  a  "',                                      '  a  '],
    ['a match',                     '"-d 6.6.6.6/32 -j DROP"',                      '-d 6.6.6.6/32 -j DROP'],
    ['a line break',                qq("a\nb"),                                     "a\nb"],
    ['a rule on a new line',        qq("a\n[5:5] -A prometheus -s 6.6.6.6/32 -j RETURN\n"), "a\n[5:5] -A prometheus -s 6.6.6.6/32 -j RETURN\n"],
    ['a COMMIT on a new line',      qq("a\nCOMMIT\n# Completed\n"),                 "a\nCOMMIT\n# Completed\n"],
    ['a table on a new line',       qq("a\n*nat\n:prometheus - [0:0]\n"),           "a\n*nat\n:prometheus - [0:0]\n"],
    ['quote, line break, rule',     qq("\\"\n[5:5] -A prometheus -s 6.6.6.6/32 -j RETURN\nCOMMIT\n"), qq("\n[5:5] -A prometheus -s 6.6.6.6/32 -j RETURN\nCOMMIT\n)],
    ['UTF-8',                       qq("Gr\xc3\xbc\xc3\x9fe \xe2\x82\xac \xf0\x9f\x90\xab"), "Gr\x{fc}\x{df}e \x{20ac} \x{1f42b}"],
    ['Latin-1',                     qq("Andr\xe9"),                                 'Andr\xe9'],
    ['UTF-8 cut at its end',        '"' . 'x' x 254 . qq(\xc3"),                    'x' x 254 . '\xc3'],
    ['UTF-8 of three cut at its end', '"' . 'x' x 253 . qq(\xe2\x82"),              'x' x 253 . '\xe2\x82'],
    ['UTF-8, the first and the last of each length', qq("\xc2\xa1 \xdf\xbf \xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xf0\x90\x80\x80 \xf4\x8f\xbf\xbd"),
        "\x{a1} \x{7ff} \x{800} \x{d7ff} \x{e000} \x{10000} \x{10fffd}"],
    ['UTF-8 longer than need be',   qq("\xc0\xaf \xe0\x80\xaf"),                    '\xc0\xaf \xe0\x80\xaf'],
    ['UTF-8 of a surrogate',        qq("\xed\xa0\x80"),                             '\xed\xa0\x80'],
    ['UTF-8 beyond Unicode',        qq("\xf4\x90\x80\x80 \xf5\x80\x80\x80 \xf8\x88\x80\x80\x80"), '\xf4\x90\x80\x80 \xf5\x80\x80\x80 \xf8\x88\x80\x80\x80'],
    ['Latin-1 before a quote',      qq("\xe9\\" x"),                                '\xe9" x'],
    ['a NUL',                       qq("a\0b"),                                     'a\x00b'],
    ['bytes 1 to 8',                qq("\x01\x02\x03\x04\x05\x06\x07\x08"),         "\x01\x02\x03\x04\x05\x06\x07\x08"],
) {
    my ($what, $printed, $expected) = @$_;
    my $series = maps("a comment with $what leaves the rule what it is",
        [commented($printed), '-d 192.0.2.77/32 -j RETURN'], ['192.0.2.1/32 out tcp 22', '192.0.2.77/32 in all -']) or next;
    my @info = series($series, 'nfprom_rule_info');
    is(@info == 1 ? $info[0]{labels}{comment} : @info . ' series', $expected, "... and $what comes through");
}
for my $rule (
    '-m comment --comment x -s 192.0.2.1/32 -p tcp -m tcp --sport 22 -j RETURN',
    '-s 192.0.2.1/32 -p tcp -m tcp --sport 22 -m comment --comment x -j RETURN',
    '-s 192.0.2.1/32 -p tcp -m tcp -m comment --comment x --sport 22 -j RETURN',
    '-s 192.0.2.1/32 -p tcp -m tcp --sport 22 -m comment --comment "x"',
    '-s 192.0.2.1/32 -p tcp -m tcp --sport 22 -m comment --comment "x" ',
) {
    my $series = maps("a comment in any place: $rule", $rule, '192.0.2.1/32 out tcp 22') or next;
    my ($info) = series($series, 'nfprom_rule_info');
    is($info && $info->{line},
        'nfprom_rule_info{address="192.0.2.1/32",direction="out",l2proto="ipv4",l3proto="tcp",port="22",comment="x"} 1',
        '... goes into rule_info');
}
{
    my $series = maps('several comments', '-m comment --comment one -s 192.0.2.1/32 -m comment --comment "two 2" -j RETURN', '192.0.2.1/32 out all -');
    is((series($series, 'nfprom_rule_info'))[0]{labels}{comment}, 'one; two 2', '... are joined in their order') if $series;
    maps('several comments of a verbatim rule', '-m comment --comment one -i eth0 -m comment --comment "two 2" -j RETURN',
        'rule <-i eth0 -j RETURN> comment <one; two 2>');
    $series = maps('an empty comment is no harm', '-s 192.0.2.1/32 -m comment --comment "" -p tcp -j RETURN', '192.0.2.1/32 out tcp -');
    $series = maps('a rule without a comment', '-s 192.0.2.1/32 -j RETURN', '192.0.2.1/32 out all -');
    is(scalar series($series, 'nfprom_rule_info'), 0, '... has no rule_info') if $series;
}

# ---- duplicates

table(
    'the same rule three times'      => [('-s 192.0.2.1/32 -j RETURN') x 3]
        => ['192.0.2.1/32 out all -', map {"rule <-s 192.0.2.1/32 -j RETURN> dup <$_>"} 2, 3],
    'the same match, another target' => ['-s 192.0.2.1/32', '-s 192.0.2.1/32 -j DROP']
        => ['192.0.2.1/32 out all -', 'rule <-s 192.0.2.1/32 -j DROP> dup <2>'],
    'the same match, another comment' => ['-s 192.0.2.1/32 -m comment --comment a -j RETURN', '-s 192.0.2.1/32 -m comment --comment b -j RETURN']
        => ['192.0.2.1/32 out all -', 'rule <-s 192.0.2.1/32 -j RETURN> comment <b> dup <2>'],
    'the same match, goto and jump'  => ['-p tcp -g x', '-p tcp -j x']
        => ['- - tcp -', 'rule <-p tcp -j x> dup <2>'],
    'the same labels, written otherwise' => ['-p tcp -m tcp --dport 22 -j RETURN', '-p tcp -m multiport --dports 22 -j RETURN']
        => ['- in tcp 22', 'rule <-p tcp -m multiport --dports 22 -j RETURN> dup <2>'],
    'duplicates far apart'           => ['-s 192.0.2.1/32 -j A', '-s 192.0.2.2/32 -j B', '-s 192.0.2.1/32 -j C']
        => ['192.0.2.1/32 out all -', '192.0.2.2/32 out all -', 'rule <-s 192.0.2.1/32 -j C> dup <2>'],
    'the same verbatim rule three times' => [('-i eth0 -j RETURN') x 3]
        => ['rule <-i eth0 -j RETURN>', map {"rule <-i eth0 -j RETURN> dup <$_>"} 2, 3],
    'verbatim rules with another target' => ['-i eth0', '-i eth0 -j DROP', '-i eth0 -j DROP']
        => ['rule <-i eth0>', 'rule <-i eth0 -j DROP> dup <2>', 'rule <-i eth0 -j DROP> dup <3>'],
    'verbatim rules with another comment' => ['-i eth0 -m comment --comment a', '-m comment --comment b -i eth0']
        => ['rule <-i eth0> comment <a>', 'rule <-i eth0> comment <b> dup <2>'],
    'two that catch all'             => ['-j LOG', '-j RETURN', '']
        => ['rule <-j LOG>', 'rule <-j RETURN> dup <2>', 'rule <*> dup <3>'],
    'a different address is none'    => ['-s 192.0.2.1/32 -j A', '! -s 192.0.2.1/32 -j A', '-d 192.0.2.1/32 -j A']
        => ['192.0.2.1/32 out all -', '!192.0.2.1/32 out all -', '192.0.2.1/32 in all -'],
    'a different interface is none'  => ['-i eth0 -j A', '-o eth0 -j A', '! -i eth0 -j A']
        => ['rule <-i eth0 -j A>', 'rule <-o eth0 -j A>', 'rule <! -i eth0 -j A>'],
    'the same in other blanks'       => ['-i eth0 -p tcp -j A', '-i eth0  -p tcp  -j A ']
        => ['rule <-i eth0 -p tcp -j A>', 'rule <-i eth0 -p tcp -j A> dup <2>'],
);
# What labels express and what only words do are never the same, whatever the names are (/etc/protocols may hold odd ones).
for (
    # by its labels             these                   by its words            shown as
    ['-p -f',                   '- - -f -',             '-f',                   '-f'],
    ['-s -f',                   '-f out all -',         '-f',                   '-f'],
    ['-d -f',                   '-f in all -',          '-f',                   '-f'],
    ['! -s x',                  '!x out all -',         '!x',                   '!x'],
    ['-s -f -p -i --sport x',   '-f out -i x',          '-f-ix',                '-f-ix'],
    ['-s -s -p x --sport -f',   '-s out x -f',          '-s x -f',              '-s x -f'],
    ['-s -s -p x --sport -f',   '-s out x -f',          "-s\0x\0-f",            '-s\x00x\x00-f'],
) {
    my ($seed, $labels, $words, $shown) = @$_;
    maps("labels like words, $seed and $shown", ["$seed -j A", "$words -j A", "$seed -j B", "$words -j B"],
        [$labels, "rule <$shown -j A>", "rule <$seed -j B> dup <2>", "rule <$shown -j B> dup <2>"]);
    maps("words like labels, $shown and $seed", ["$words -j A", "$seed -j A", "$words -j B", "$seed -j B"],
        ["rule <$shown -j A>", $labels, "rule <$shown -j B> dup <2>", "rule <$seed -j B> dup <2>"]);
}
{
    # a byte, and the four characters that it is shown as, are written the same: they are the same
    maps('a byte that is no UTF-8, and what it is shown as', ["-i x\xe9 -j A", '-i x\xe9 -j B', "-i x\xe9 -j C"],
        ['rule <-i x\xe9 -j A>', 'rule <-i x\xe9 -j B> dup <2>', 'rule <-i x\xe9 -j C> dup <3>']);
    maps('an address in such bytes, and its labels', ["-s \xe9 -p \xff --sport \0 -j A", '-s \xe9 -p \xff --sport \x00 -j B'],
        ['\xe9 out \xff \x00', 'rule <-s \xe9 -p \xff --sport \x00 -j B> dup <2>']);
}

# ---- labels from comments

# A rule with these comments, as they are printed in their quotes.
sub tagged { my ($rule, @comments) = @_; return join ' ', $rule, map {qq(-m comment --comment "$_")} @comments }

table(
    'labels from a comment'          => [tagged('-s 192.0.2.1/32', 'nfprom(service=ssh;host=alpha)')]
        => ['192.0.2.1/32 out all - host <alpha> service <ssh>'],
    '... of a rule by its words'     => [tagged('-i eth0', 'nfprom(service=ssh;host=alpha)') . ' -j RETURN']
        => ['rule <-i eth0 -j RETURN> host <alpha> service <ssh>'],
    '... of the last rule'           => [tagged('', 'nfprom(service=rest)') . ' -j RETURN'] => ['rule <-j RETURN> service <rest>'],
    '... of some rules'              => ['-s 192.0.2.1/32', tagged('-s 192.0.2.2/32', 'nfprom(a=1)'), tagged('-s 192.0.2.3/32', 'nfprom(b=1)'), '-i eth0']
        => ['192.0.2.1/32 out all -', '192.0.2.2/32 out all - a <1>', '192.0.2.3/32 out all - b <1>', 'rule <-i eth0>'],
    '... beside other comments'      => [tagged('-i eth0', 'one', 'nfprom(a=1)', 'two')] => ['rule <-i eth0> comment <one; two> a <1>'],
    '... of several comments'        => [tagged('-i eth0', 'nfprom(b=2)', 'nfprom(a=1)')] => ['rule <-i eth0> a <1> b <2>'],
    '... without the blanks around them' => [tagged('-i eth0', " nfprom(a=1)"), tagged('-o eth0', "nfprom(  a \t= 1 2  ; b =3)")]
        => ['rule <-i eth0> comment < nfprom(a=1)>', 'rule <-o eth0> a <1 2> b <3>'],
    'values with all that is escaped' => [tagged('-i eth0', 'nfprom(a=\\"x\\" \\\\ \\\'y\\\';b=)))'), tagged('-p tcp', "nfprom(a=x\ny)")]
        => [q{rule <-i eth0> a <"x" \ 'y'> b <))>}, "- - tcp - a <x\ny>"],
    'values in UTF-8 and in Latin-1' => [tagged('-i eth0', "nfprom(a=caf\xc3\xa9;b=caf\xe9;c=a\0b)"), tagged("-i x\xe9 -p \xff", "nfprom(a=1)")]
        => ["rule <-i eth0> a <caf\xe9> b <caf\\xe9> c <a\\x00b>", 'rule <-i x\xe9 -p \xff> a <1>'],
    'a value like a rule'            => [tagged('-i eth0', "nfprom(a=x\n[9:9] -A prometheus -p tcp\nCOMMIT\n*nat)"), '-i eth1']
        => ["rule <-i eth0> a <x\n[9:9] -A prometheus -p tcp\nCOMMIT\n*nat>", 'rule <-i eth1>'],
    'a duplicate is what matches the same' => [tagged('-p tcp', 'nfprom(a=1)') . ' -j A', tagged('-p tcp', 'nfprom(a=2)') . ' -j B', '-p tcp -j C', tagged('-i eth0', 'nfprom(a=3)'), tagged('-i eth0', 'nfprom(a=3)')]
        => ['- - tcp - a <1>', 'rule <-p tcp -j B> dup <2> a <2>', 'rule <-p tcp -j C> dup <3>', 'rule <-i eth0> a <3>', 'rule <-i eth0> dup <2> a <3>'],
    '... but not from a string of the target' => ['-p tcp -j LOG --log-prefix "nfprom(a=1)"'] => ['- - tcp -'],
);
{
    my $series = maps('labels behind the others, sorted', [tagged('-s 192.0.2.1/32', 'nfprom(zone=lan;Host=x;_a=\\"y\\")', 'mine'), tagged('-i eth0', 'nfprom(zone=lan;Host=x)')],
        ['192.0.2.1/32 out all - Host <x> _a <"y"> zone <lan>', 'rule <-i eth0> Host <x> zone <lan>']);
    my ($packets, $info, $rule) = map { ((series($series || [], "nfprom_$_"))[0] || {})->{line} } qw(packets_total rule_info rule_packets_total);
    my $five = 'address="192.0.2.1/32",direction="out",l2proto="ipv4",l3proto="all",port=""';
    is($packets, qq(nfprom_packets_total{$five,Host="x",_a="\\"y\\"",zone="lan"} 101), '... of the five labels, to the letter');
    is($info, qq(nfprom_rule_info{$five,comment="mine",Host="x",_a="\\"y\\"",zone="lan"} 1), '... of rule_info, so that it can still be joined');
    is($rule, 'nfprom_rule_packets_total{l2proto="ipv4",rule="-i eth0",comment="",dup="",Host="x",zone="lan"} 102', '... of a rule by its words');
    is(value($series || [], 'nfprom_label_errors', l2proto => 'ipv4'), 0, '... and no error');

    $series = maps('a rule with labels and no other comment', [tagged('-s 192.0.2.1/32', 'nfprom(a=1)')], ['192.0.2.1/32 out all - a <1>']);
    is(scalar series($series || [], 'nfprom_rule_info'), 0, '... has no rule_info');

    my $sixteen = join ';', map {"l$_=$_"} 1 .. 16;
    my ($seventeen, $long) = ("$sixteen;l17=17", join ' ', map {"l$_ <$_>"} sort map {"$_"} 1 .. 16);
    maps('16 labels', [tagged('-i eth0', "nfprom($sixteen)")], ["rule <-i eth0> $long"]);
    maps('17 labels in two comments: the later one gives none', [tagged('-i eth0', "nfprom($sixteen)", 'nfprom(a=1)')], ["rule <-i eth0> comment <nfprom(a=1)> $long"]);
    for my $comment (
        'nfprom(', 'nfprom()', 'nfprom(a)', 'nfprom(a=)', 'nfprom(a= )', 'nfprom(=1)', 'nfprom(1a=1)', 'nfprom(__x=1)', 'nfprom(a-b=1)', 'nfprom(a=1;)', 'nfprom(a=1;b)',
        'nfprom(a=1) ', 'nfprom(a=1;b=cut off', 'nfprom(a=1;a=2)', "nfprom($seventeen)", "nfprom(caf\xc3\xa9=1)",
        map {"nfprom(a=1;$_=x)"} qw(address chain comment direction dup instance job kind l2proto l3proto le policy port quantile rule version),
    ) {
        my $shown = Encode::decode('UTF-8', my $copy = $comment);
        $series = maps("no labels from $comment", [tagged('-i eth0', $comment), tagged('-p tcp', $comment)], ["rule <-i eth0> comment <$shown>", '- - tcp -']);
        is((series($series || [], 'nfprom_rule_info'))[0]{labels}{comment}, $shown, '... it is a comment as any other');
        is(value($series || [], 'nfprom_label_errors', l2proto => 'ipv4'), 2, '... and counts as an error');
    }
    $series = maps('some comments that give labels and some that do not', [tagged('-i eth0', 'nfprom(a=1)', 'nfprom(a=2;b=2)', 'nfprom(c=3)', 'nfprom(')], ['rule <-i eth0> comment <nfprom(a=2;b=2); nfprom(> a <1> c <3>']);
    is(value($series || [], 'nfprom_label_errors'), 2, '... each that does not counts');

    fake(out => save({ chains => [':INPUT DROP [1:1]', ':prometheus - [0:0]'] }, '[1:1] -A INPUT ' . tagged('-p tcp', 'nfprom(a=1)'), '[2:2] -A INPUT ' . tagged('-p udp', 'nfprom(', 'nfprom('), '[3:3] -A prometheus -p tcp'));
    fake6(out => save('[4:4] -A prometheus ' . tagged('-p tcp', 'nfprom()'), '[5:5] -A INPUT ' . tagged('-p tcp', 'nfprom()')));
    $series = exposition('labels in two chains and two families', qw(-ipv6 -chain prometheus -chain INPUT));
    is(join(' ', map { my ($l2, $chain) = @$_; value($series || [], 'nfprom_label_errors', l2proto => $l2, chain => $chain) } map { my $l2 = $_; map { [$l2, $_] } qw(prometheus INPUT) } qw(ipv4 ipv6)),
        '0 2 1 1', '... the errors of each');
    is(join(' ', map {"$_->{labels}{chain} " . ($_->{labels}{a} // '-')} series($series || [], 'nfprom_packets_total', l2proto => 'ipv4')), 'INPUT 1 INPUT - prometheus -',
        '... a label is that of its own rule');
    is(scalar(grep { exists $_->{labels}{a} } grep { $_->{name} !~ /^nfprom_(?:bytes|packets)_total$/ } @{ $series || [] }), 0, '... and of no other series');
    my (undef, @other) = parse_metrics(print_mode(qw(-namespace other -chain INPUT))->{out});
    is(join(' ', map { "$_->{name} " . ($_->{labels}{a} // '-') } grep { $_->{name} =~ /packets/ } @other), 'other_packets_total 1 other_packets_total - other_policy_packets_total -',
        '... the word in a comment is nfprom whatever the namespace');
    fake();
    fake6(out => save('[4:4] -A prometheus ' . tagged('-p tcp', 'nfprom(a=1)')));
    $series = exposition('labels in IPv6 alone', qw(-ipv6));
    is(join(' ', map { $_->{labels}{l2proto} . ($_->{labels}{a} // '-') } series($series || [], 'nfprom_bytes_total')), 'ipv4- ipv61', '... are there');
    fake6();
}

# ---- the counters about the rules

{
    my $series = maps('rules of all kinds',
        ['-s 192.0.2.1/32 -j RETURN', '-p tcp', '-i eth0 -j RETURN', '-p tcp -j DROP', '-i eth0', '-i eth1', '-j RETURN', '-p tcp'],
        ['192.0.2.1/32 out all -', '- - tcp -', 'rule <-i eth0 -j RETURN>', 'rule <-p tcp -j DROP> dup <2>',
         'rule <-i eth0> dup <2>', 'rule <-i eth1>', 'rule <-j RETURN>', 'rule <-p tcp> dup <3>']);
    is(join(' ', map { value($series, 'nfprom_rules', l2proto => 'ipv4', kind => $_) } qw(exported other duplicate)), '2 3 3',
        'nfprom_rules counts each kind') if $series;

    $series = maps('an empty chain is a success', [], []);
    is(join(' ', map { value($series, 'nfprom_rules', kind => $_) } qw(exported other duplicate)), '0 0 0',
        '... with no rules of any kind') if $series;
}
for (
    [0, 'a verdict ends the traversal', map {"-j $_"} qw(ACCEPT DROP RETURN QUEUE NFQUEUE SNAT DNAT MASQUERADE REDIRECT NETMAP TPROXY TARPIT),
        'REJECT --reject-with icmp-port-unreachable'],
    [0, 'a goto does as well', '-g elsewhere'],
    [1, 'no target lets the packet go on', ''],
    [1, 'a jump does', '-j elsewhere'],
    [1, 'LOG does', '-j LOG --log-prefix ACCEPT'],
    [1, 'MARK does', '-j MARK --set-xmark 0x1/0xffffffff'],
    [1, 'a chain that is named almost like a verdict does', '-j ACCEPTED'],
) {
    my ($expected, $promise, @targets) = @$_;
    for my $target (@targets) {
        fake(out => filter_table("-s 192.0.2.1/32 $target"));
        my $series = exposition("$promise: $target") or next;
        is(value($series, 'nfprom_nonterminal_rules', l2proto => 'ipv4'), $expected, "nonterminal rules: $promise ($target)");
    }
}

# ---- rules that no packet reaches

# The number of them, and whose turn it is: each rule is written with a "!" behind it if it is unreachable.
for (
    ['the same match behind a verdict', '-p tcp -j RETURN', '-p tcp -j DROP!'],
    ['... whatever its own target', '-i eth0 -j DROP', '-i eth0 -j LOG!', '-i eth0!'],
    ['a jump between may rewrite', '-p tcp -j RETURN', '-p udp -j A', '-p tcp -j RETURN', '-p tcp!'],
    ['... nothing between rewrites', '-p tcp -j RETURN', '-p udp -j LOG', '-p udp', '-p icmp -j DROP', '-p tcp!', '-p tcp -j RETURN!'],
    ['a packet that goes on comes to the same match again', '-p tcp -j LOG', '-p tcp -j DROP', '-p tcp -j ACCEPT!'],
    ['... a jump may return', '-p tcp -j A', '-p tcp -j DROP'],
    ['... a goto does not', '-p tcp -g A', '-p tcp -j DROP!'],
    ['what comes back rewritten may match', '-m mark --mark 0x1 -j RETURN', '-j MARK --set-xmark 0x1/0xffffffff', '-m mark --mark 0x1 -j DROP', '-m mark --mark 0x1!'],
    ['... but not each: one that counts leaves the packet alone', '-p tcp -j RETURN', '-m limit --limit 1/sec -j LOG', '-m set --match-set a src', '-p tcp!'],
    ['what no packet reaches rewrites none', '-p tcp -j RETURN', '-p tcp -j MARK --set-xmark 0x1/0xffffffff!', '-p tcp!'],
    ['a match may rewrite as well', '-m mark --mark 0x9 -j RETURN', '-p udp -m socket --restore-skmark', '-m mark --mark 0x9 -j RETURN', '-m mark --mark 0x9!'],
    ['... also one whose rule ends the traversal', '-m pkttype --pkt-type unicast -j RETURN', '-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 1 -j DROP', '-m pkttype --pkt-type unicast -j RETURN'],
    ['all behind a verdict for everything', '-j RETURN', '-p tcp!', '-m limit --limit 1/sec!', '-j MARK --set-xmark 0x1/0xffffffff!', '-j DROP!'],
    ['... a comment is no condition', '-m comment --comment all -j RETURN', '-p tcp!'],
    ['... nothing behind what lets everything go on', '-j LOG', '-p tcp', ''],
    ['the same words that turn out otherwise', '-m limit --limit 1/sec -j RETURN', '-m limit --limit 1/sec -j RETURN'],
    ['... in a match of two', '-p tcp -m statistic --mode nth --every 2 --packet 0 -j DROP', '-p tcp -m statistic --mode nth --every 2 --packet 0 -j DROP'],
    ['the same labels in other words match fragments too', '-p udp -m udp -j RETURN', '-p udp -j RETURN'],
    ['a port among others is not the same', '-p tcp -m tcp --dport 1:9 -j RETURN', '-p tcp -m tcp --dport 5 -j RETURN'],
    ['two names that are shown the same', "-i x\xe9 -j RETURN", '-i x\xe9 -j RETURN', "-i x\xe9 -j RETURN"],
    ['a comment that has to be escaped is no matter', '-p tcp -m comment --comment "<a>" -j RETURN', '-p tcp -m comment --comment "\"" -j RETURN!'],
) {
    my ($promise, @rules) = @$_;
    my $expected = grep {/!\z/} @rules;
    fake(out => filter_table(map {s/!\z//r} @rules));
    my $series = exposition("unreachable rules: $promise") or next;
    is(value($series, 'nfprom_unreachable_rules', l2proto => 'ipv4'), $expected, "unreachable rules: $promise");
    my @shown = map { /unreachable/ ? 1 : 0 } serve(get('/status'))->{body} =~ m{<th scope=row>(.*?)<td}sg;
    is("@shown", join(' ', map { /!\z/ ? 1 : 0 } @rules), "... the page marks just these: $promise");
}
{
    fake(out => save({ chains => [':INPUT ACCEPT [1:1]', ':TARPIT - [0:0]', ':prometheus - [0:0]'] },
        map {"[1:1] -A prometheus $_"} '-p tcp -j TARPIT', '-p tcp -j RETURN', '-p tcp'));
    my ($error, @series) = parse_metrics(print_mode()->{out});
    is(value(\@series, 'nfprom_unreachable_rules'), 1, 'unreachable rules: a chain of the user that is called TARPIT may return');
    fake(out => save({ chains => [':a - [0:0]', ':b - [0:0]'] }, '[1:1] -A a -p tcp -j RETURN', '[1:1] -A b -p tcp -j RETURN', '[1:1] -A a -j DROP', '[1:1] -A b -p tcp'));
    ($error, @series) = parse_metrics(print_mode(qw(-chain a -chain b))->{out});
    is(join(' ', map { value(\@series, 'nfprom_unreachable_rules', chain => $_) } qw(a b)), '0 1', '... each chain is closed by its own rules');
}

# ---- numbers

for my $n ('0', '1', '9007199254740993', '9223372036854775807', '9223372036854775808', '18446744073709551615') {
    fake(out => save("[$n:7] -A prometheus -s 192.0.2.1/32", "[7:$n] -A prometheus -i eth0"));
    my $series = exposition("a counter of $n") or next;
    is(value($series, 'nfprom_packets_total'), $n, "packets: $n, digit for digit");
    is(value($series, 'nfprom_rule_bytes_total'), $n, "bytes: $n, digit for digit");
}
for my $counters ('18446744073709551616:1', '1:18446744073709551616', '99999999999999999999999:1', '-1:1', '1:', ':1', '1', '', 'a:b', '0x1:1', '1:1:1', '1.5:2', '1e3:1') {
    fake(out => save("[1:1] -A prometheus -s 192.0.2.1/32", "[$counters] -A prometheus -i eth0"));
    my $r = print_mode();
    is("$r->{exit}|$r->{out}", '1|', "counters that are none fail, nothing is shown in their place: [$counters]");
    $r = print_mode('-list');
    is("$r->{exit}|$r->{out}", '1|', "... [$counters]: with -list, too");
}
fake(out => save('-A prometheus -s 192.0.2.1/32'), list => "-N prometheus\n-A prometheus -s 192.0.2.1/32\n");
is(print_mode(@$_)->{exit}, 1, "a rule without counters fails (@$_)") for [], ['-list'];

# ---- chains

for my $name ('"', '"x', 'x"', "'x", 'a]', '[0:0]', 'COMMIT', '#a', '*filter', ':x', '\\', 'x\\', 'a:b', "\xff", "caf\xc3\xa9", '$(id)', 'x' x 28, 'prom', 'N', 'NAME', 'P') {
    fake(out => save({ chains => [":INPUT ACCEPT [1:1]", ":$name - [0:0]", ":prometheus - [0:0]", ':other - [0:0]'] },
        "[1:10] -A prometheus -s 192.0.2.1/32 -j $name", "[2:20] -A $name -s 192.0.2.2/32 -j RETURN",
        "[3:30] -A other -j $name", "[4:40] -A $name -i eth0 -g $name"));
    my $series = exposition("a chain that is named $name", '-chain', $name);
    is(join(' ', map {"$_->{labels}{rule}$_->{labels}{address}=$_->{value}"} map { $_->{labels}{rule} //= ''; $_->{labels}{address} //= ''; $_ }
                 grep { $_->{name} =~ /packets_total/ } @$series),
        "192.0.2.2/32=2 -i eth0 -g " . ($name eq "\xff" ? '\xff' : $name eq "caf\xc3\xa9" ? "caf\xe9" : $name) . '=4',
        "a chain that is named $name can be exported") if $series;
    $series = exposition("beside a chain that is named $name");
    is(join(' ', map {"$_->{labels}{address}=$_->{value}"} series($series, 'nfprom_packets_total')), '192.0.2.1/32=1',
        "... and does no harm to another") if $series;
}
{
    my $hostile = qq(-m comment --comment "\n[5:5] -A prometheus -s 6.6.6.6/32 -j RETURN\nCOMMIT\n*nat\n:prometheus - [0:0]\n");
    fake(out => save('[1:1] -A INPUT -j prometheus', "[2:2] -A INPUT $hostile -j ACCEPT", '[3:3] -A INPUT -i "x -j ACCEPT',
        '[4:4] -A prometheus -s 192.0.2.1/32', '[5:5] -A prometheus2 -s 192.0.2.2/32', '[6:6] -A prom -s 192.0.2.2/32',
        "[7:7] -A OUTPUT $hostile -m comment --comment \"\\\"\n\\\\\"", '[8:8] -A OUTPUT -m set --match-set "x src -j LOG --log-prefix "a\" b "',
        '[9:9] -A prometheus -s 192.0.2.3/32', '[99999999999999999999:1] -A OUTPUT -j ACCEPT'));
    my $series = exposition('rules of other chains are ignored');
    is(join(' ', map {"$_->{labels}{address}=$_->{value}"} series($series, 'nfprom_packets_total')), '192.0.2.1/32=4 192.0.2.3/32=9',
        'rules of other chains are ignored, with quotes, line breaks and rules inside comments') if $series;
    is(scalar series($series, 'nfprom_rule_packets_total'), 0, '... altogether') if $series;
}
{
    fake(out => save({ chains => [':INPUT DROP [18446744073709551615:3]', ':OUTPUT ACCEPT [4:5]', ':prometheus - [0:0]'] },
        '[7:70] -A INPUT -s 192.0.2.1/32 -j ACCEPT', '[8:80] -A prometheus -s 192.0.2.1/32', '[9:90] -A OUTPUT -i eth0'));
    my $series = exposition('a built-in chain', '-chain', 'INPUT');
    if ($series) {
        is(value($series, 'nfprom_policy_packets_total', l2proto => 'ipv4', policy => 'DROP'), '18446744073709551615', 'the policy of a built-in chain: packets');
        is(value($series, 'nfprom_policy_bytes_total', l2proto => 'ipv4', policy => 'DROP'), 3, 'the policy of a built-in chain: bytes');
        is(scalar series($series, 'nfprom_policy_packets_total'), 1, '... of this chain alone');
        is(value($series, 'nfprom_packets_total'), 7, '... along with its rules');
    }
    $series = exposition('a chain of one\'s own');
    is(scalar series($series, 'nfprom_policy_packets_total'), 0, 'a chain of one\'s own has no policy') if $series;

    my @three = ('-chain', 'prometheus', '-chain=INPUT', '--chain', 'OUTPUT');
    my $r     = print_mode(@three);
    my $out   = $r->{out};
    listed('three chains', $r, @three);
    my $error;
    ($error, @$series) = parse_metrics($out);
    is($error, '', 'three chains: the same match in each is no duplicate');
    like($out, qr/^nfprom_packets_total\{address="192\.0\.2\.1\/32",chain="INPUT",direction="out",l2proto="ipv4",l3proto="all",port=""\} 7$/m,
        'of several chains each series has the label chain');
    is(value($series, 'nfprom_packets_total', chain => 'prometheus'), 8, '... the second chain too');
    is(value($series, 'nfprom_rule_bytes_total', chain => 'OUTPUT', rule => '-i eth0'), 90, '... a rule by its words too');
    is(value($series, 'nfprom_policy_packets_total', chain => 'OUTPUT', policy => 'ACCEPT'), 4, '... a policy too');
    is(value($series, 'nfprom_rules', chain => 'OUTPUT', kind => 'other'), 1, '... and nfprom_rules');
    is(value($series, 'nfprom_nonterminal_rules', chain => 'prometheus'), 1, '... and nfprom_nonterminal_rules');
    is((series($series, 'nfprom_scrape_success'))[0]{line}, 'nfprom_scrape_success{l2proto="ipv4"} 1', 'the scrape is one for all chains');
    fake(out => save({ chains => [':"x - [0:0]', ":y\xff - [0:0]"] }, '[1:1] -A "x -p tcp', "[2:2] -A y\xff -p tcp"));
    $series = exposition('chains with odd names side by side', '-chain', '"x', '-chain', "y\xff");
    is(join(' ', map {"$_->{labels}{chain}=$_->{value}"} series($series, 'nfprom_packets_total')), '"x=1 y\xff=2',
        'the label chain is escaped like any other') if $series;
}

for my $name ('x', 'prometheu') {
    fake(out => save());
    my $r = print_mode('-chain', $name);
    is("$r->{exit}|$r->{out}", '1|', "a chain that is not there fails: $name");
    like($r->{err}, qr/no chain \Q$name\E;/, '... and is named');
}

# ---- two families

{
    fake(out => filter_table('-s 192.0.2.1/32 -j RETURN', '-i eth0 -j RETURN', '-p 47'));
    fake6(out => filter_table({ program => 'ip6tables-save v1.8.9 (nf_tables)' },
        '-s 2001:db8::/32 -j RETURN', '-i eth0 -j RETURN', '-d ::/0 -p ipv6-icmp', '-p ipv6-icmp -m icmp6 --icmpv6-type 128',
        '-d 2001:db8::1/128 -p tcp -m tcp --dport 22', '-m frag --fragid 0:4294967295 -j DROP'));
    my $series = exposition('IPv4 and IPv6 together', '-ipv6');
    if ($series) {
        is(join("\n", map { written($_) } series($series, 'nfprom_packets_total')),
            join("\n", '192.0.2.1/32 out all -', '- - 47 -', 'ipv6: 2001:db8::/32 out all -', 'ipv6: ::/0 in ipv6-icmp -', 'ipv6: 2001:db8::1/128 in tcp 22'),
            'IPv4 and IPv6 together: IPv4 first, each in the order of its chain');
        is(join("\n", map { written($_) } series($series, 'nfprom_rule_packets_total')),
            join("\n", 'rule <-i eth0 -j RETURN>', 'ipv6: rule <-i eth0 -j RETURN>', 'ipv6: rule <-p ipv6-icmp -m icmp6 --icmpv6-type 128>',
                'ipv6: rule <-m frag --fragid 0:4294967295 -j DROP>'),
            '... and the same match in both is no duplicate');
        is(value($series, 'nfprom_scrape_success', l2proto => $_), 1, "... $_: a success") for qw(ipv4 ipv6);
        is(value($series, 'nfprom_rules', l2proto => 'ipv6', kind => 'exported'), 3, '... nfprom_rules of each');
    }
    $series = exposition('IPv6 alone', '-ipv4=false', '-ipv6');
    is(join(' ', map { $_->{labels}{l2proto} } grep { exists $_->{labels}{l2proto} } @$series) =~ /ipv4/, '', 'IPv6 alone: not a word of IPv4') if $series;
}

# ---- about itself, and the form of it all

{
    fake(out => filter_table('-s 192.0.2.1/32 -m comment --comment "x" -j RETURN', '-i eth0', '-i eth0'));
    my $r   = print_mode('-chain', 'prometheus', '-chain', 'INPUT');
    my $out = $r->{out};
    listed('the form of it', $r, '-chain', 'prometheus', '-chain', 'INPUT');
    my ($error, @series) = parse_metrics($out);
    is($error, '', 'families in one piece, HELP and TYPE before each');
    my ($info) = series(\@series, 'nfprom_build_info');
    is($info && join(' ', $info->{value}, keys %{ $info->{labels} }), '1 version', 'nfprom_build_info has a version and is 1');
    my ($duration) = series(\@series, 'nfprom_scrape_duration_seconds', l2proto => 'ipv4');
    ok($duration && $duration->{value} > 0 && $duration->{value} < 60, 'the duration is in seconds');
    is(join(' ', map {/^# TYPE (\S+_total) (?!counter$)/m ? $1 : ()} split /\n/, $out), '', 'what is called total is a counter');
    is(join(' ', map {/^# TYPE (\S+(?<!_total)) (?!gauge$)/m ? $1 : ()} split /\n/, $out), '', '... and the rest are gauges');
    is(scalar(grep { $_->{name} !~ /^nfprom_/ } @series), 0, 'all names begin with nfprom_');
    ($error, @series) = parse_metrics(print_mode('-namespace', 'my_fw')->{out});
    is($error, '', 'another namespace is in order');
    is(scalar(grep { $_->{name} !~ /^my_fw_/ } @series), 0, '... and all names begin with it');
    ok(scalar(series(\@series, "my_fw_$_")), "... my_fw_$_ is there")
        for qw(packets_total bytes_total rule_info rule_packets_total rule_bytes_total build_info scrape_success
               scrape_duration_seconds rules nonterminal_rules label_errors chain_references);
    for my $namespace ('x', 'x' x 400) {
        ($error, @series) = parse_metrics(print_mode('-namespace', $namespace)->{out});
        is(join('', $error, grep { !/\A${namespace}_[a-z]/ } map { $_->{name} } @series), '', 'a namespace of ' . length($namespace) . ' letters');
    }
}
# ---- which rules lead to a chain

sub references {
    my ($promise, $expected, $rules, @flags) = @_;
    fake(out => save({ chains => [':INPUT ACCEPT [1:1]', ':prometheus - [0:0]', ':other - [0:0]'] }, map {"[1:2] -A $_"} @$rules));
    my ($error, @series) = parse_metrics(print_mode(@flags)->{out});
    is($error || join(' ', map { join '', map {"$_ "} $_->{labels}{chain} // (), $_->{value} } series(\@series, 'nfprom_chain_references')) =~ s/ +/ /gr =~ s/ \z//r, $expected, $promise);
}
references('a chain that nothing leads to', 0, ['prometheus -p tcp', 'INPUT -p tcp']);
references('jumps (-j) and one that goes there (-g)', 3, ['INPUT -p tcp -j prometheus', 'INPUT -j prometheus', 'other ! -i lo -g prometheus', 'prometheus -p tcp']);
references('what only ends like it', 0, ['INPUT -j xprometheus', 'INPUT -m comment --comment "-j prometheus"', 'INPUT -j other -m comment --comment prometheus', 'INPUT -j LOG --log-prefix "x -j prometheus"', 'INPUT --to-chain prometheus']);
references('several chains, one of which leads to another', 'prometheus 2 other 1', ['INPUT -j prometheus', 'other -p tcp -j prometheus', 'prometheus -p tcp -j other'], qw(-chain prometheus -chain other));
references('none of a built-in chain', 'prometheus 1', ['INPUT -j prometheus'], qw(-chain INPUT -chain prometheus));

SKIP: {
    my ($promtool) = grep {-x} map {"$_/promtool"} split /:/, $ENV{PATH};
    skip_or_fail('promtool is not installed') unless $promtool;
    fake(out => filter_table('-s 192.0.2.1/32 -m comment --comment "a \"b\" \\\\ ' . "\xe9\n" . '" -j RETURN', '-i eth0', '-i eth0', '-p tcp'));
    fake6(out => filter_table('-s 2001:db8::/32 -m comment --comment "nfprom(service=a \"b\"' . "\xe9\n" . ';Host=x)"', '-i eth0 -m comment --comment "nfprom("'));
    spew("$DIR/metrics", print_mode('-ipv6', '-chain', 'prometheus', '-chain', 'INPUT')->{out});
    is(`'$promtool' check metrics <'$DIR/metrics' 2>&1`, '', 'promtool check metrics has nothing to say');
    is($?, 0, '... and agrees');
}

# ---- much of it

{
    my @rules = map {("-s 10.0.0.1/32 -j RETURN", "-i eth$_ -j RETURN")} 1 .. 5000;
    fake(out => filter_table(@rules));
    my $series = exposition('10,000 rules, half of them the same');
    if ($series) {
        is(scalar series($series, 'nfprom_rule_packets_total'), 9999, '10,000 rules, half of them the same, stay 10,000 series');
        is(value($series, 'nfprom_rule_packets_total', dup => 5000), 100 + 9999, '... the last of them dup 5000');
    }
}
{
    # Wherever whatever remembers the rules may have to grow: copies of the first, of early and of late ones, in between all along.
    my (@rules, @expected, %copies);
    my $add = sub {
        my ($match) = @_;
        my $n = ++$copies{$match};
        push @rules, "$match -j T$n";
        push @expected, $n > 1 ? "rule <$match -j T$n> dup <$n>" : $match =~ /-i / ? "rule <$match -j T$n>" : $match =~ s/-s (\S+)/$1 out all -/r;
    };
    my $rule = sub { my ($i) = @_; return $i % 2 ? "-i eth$i" : sprintf '-s 10.0.%d.%d/32', $i >> 8, $i & 255 };
    for (my $i = 0; @rules < 20_000; $i++) {
        $add->($rule->($i));
        $add->($rule->($_)) for $i < 40 ? 0 .. $i % 4 : ($i % 3, $i % 37, int($i / 2), $i)[$i % 5 == 0 ? 0 .. 3 : ()];
    }
    fake(out => filter_table(@rules));
    my $series = exposition('20,000 rules with copies of all ages among them');
    if ($series) {
        my @got;
        $got[ $_->{value} - 101 ] = written($_) for grep { $_->{name} =~ /^nfprom_(?:rule_)?packets_total$/ } @$series;
        my ($n) = grep { ($got[$_] // '') ne ($expected[$_] // '') } 0 .. ($#got > $#expected ? $#got : $#expected);
        is(defined $n ? "rule $n: " . ($got[$n] // 'nothing') : '', defined $n ? "rule $n: " . ($expected[$n] // 'nothing') : '',
            '20,000 rules with copies of all ages among them: each copy has its number');
        my %kinds = (exported => scalar grep({ !/^rule/ } @expected), duplicate => scalar grep({/> dup </} @expected));
        $kinds{other} = @expected - $kinds{exported} - $kinds{duplicate};
        is(join(' ', map { value($series, 'nfprom_rules', kind => $_) } sort keys %kinds), join(' ', @kinds{ sort keys %kinds }), '... and nfprom_rules counts each');
    }
}

done_testing;
