#!/usr/bin/perl

# /status: the chain as a page for people. What it shows, that nothing in a rule gets out of its cell, that it is HTML to the
# letter, and what a browser makes of it.

use strict;
use warnings;
use utf8;
use Encode ();
use FindBin;
use lib "$FindBin::Bin/lib";
use Fcntl;
use IO::Socket::IP;
use JSON::PP ();
use POSIX ();
use Socket;
use Test::More;
use Time::HiRes qw(time);
use NF;
use Page;

my $MAX  = '18446744073709551615';
my $NONE = "\x{2013}";                              # in the cells where a rule has nothing to say

# Reads a page of nfprom. Dies with what is wrong; returns {paragraphs, rows => those of rules, totals => {group}{name}, heads => of the columns}. A row:
#   {group, comment, rule, marks, cells => address to direction, packets, bytes, share}
sub read_page {
    my ($bytes) = @_;
    my $root = read_html($bytes);
    my ($html, $title, @more) = (below($root, 'html'), below($root, 'title'));
    die "html without a language\n" if ($html->{attributes}{lang} || '') ne 'en';
    die "not one title with words\n" if @more || !$title || text_in($title) !~ /nfprom/;
    die "no charset in the first kilobyte\n" if substr($bytes, 0, 1024) !~ /<meta charset="?utf-8"?>/i;
    my %page = (paragraphs => [map { spaced(text_in($_)) } below($root, 'p')], rows => [], totals => {}, heads => []);
    read_table($_, \%page) for below($root, 'table');
    return \%page;
}

sub read_table {
    my ($table, $page) = @_;
    my ($caption, $more) = below($table, 'caption');
    my $group = spaced(text_in($caption));
    die "the table $group twice\n" if $more || grep { $_->{group} eq $group } @{ $page->{rows} };
    for my $part (grep { ref $_ && $_->{name} ne 'caption' } @{ $table->{children} }) {
        for my $tr (@{ $part->{children} }) {
            my ($head, @cells) = @{ $tr->{children} };
            my $columns = 0;
            $columns += $_->{attributes}{colspan} || 1 for $head, @cells;
            die "a row of $columns columns\n" if $columns != 8;
            if ($part->{name} eq 'thead') {
                die "a column's head that is none\n" if grep { $_->{name} ne 'th' || $_->{attributes}{scope} ne 'col' } $head, @cells;
                $page->{heads} = [map { spaced(text_in($_)) } $head, @cells];
                next;
            }
            die "a row without a head\n" if $head->{name} ne 'th' || $head->{attributes}{scope} !~ /\Arow(?:group)?\z/;
            if ($head->{attributes}{scope} eq 'rowgroup') {
                die "a group's head with cells\n" if @cells;
                die "totals that are not called so\n" if text_in($head) !~ /\ATotals\n?\z/ || $part->{name} ne 'tfoot';
                next;
            }
            die "a head among the cells\n" if grep { $_->{name} ne 'td' } @cells;
            my ($packets, $bytes, $share) = map { spaced(text_in($_)) } splice @cells, -3;
            my ($bar, $another) = below($tr, 'rect');
            my @marks = map { text_in($_) } below($head, 'small');
            my $goes_on = grep { $_ eq 'goes on' } @marks;
            die "not one bar\n" if $goes_on ? $bar : !$bar || $another;
            my ($width) = $goes_on ? () : $bar->{attributes}{width} =~ /([\d.]+)/;
            die "a share of $share\n" if $share ne ($goes_on ? $NONE : "$width %");
            my ($code) = below($head, 'code');
            my @parts = @{ $head->{children} };
            my $comment = '';
            while (@parts && !(ref $parts[0] && $parts[0]{name} =~ /\A(?:code|small)\z/)) { my $part = shift @parts; $comment .= ref $part ? text_in($part) : $part }
            die "a comment that runs into the rule: $comment\n" if $code && $comment ne '' && $comment !~ / \z/;
            die "a mark that runs into the rule\n" if grep { ref $parts[$_] && $parts[$_]{name} eq 'small' && (!$_ || ref $parts[ $_ - 1 ] || $parts[ $_ - 1 ] !~ / \z/) } 0 .. $#parts;
            my %row = (
                group => $group, comment => $comment =~ s/[ \n]\z|\Apolicy\K \z//r, text => text_in($head) =~ s/\A\s+|\s+\z//gr,
                rule => $code ? text_in($code) =~ s/\n\z//r : '', cells => [map { spaced(text_in($_)) } @cells],
                packets => $packets, bytes => $bytes, share => $share, node => $tr,
            );
            $row{marks} = "@marks";
            if ($part->{name} eq 'tfoot') { $page->{totals}{$group}{ $row{comment} } = \%row }
            else                          { push @{ $page->{rows} }, \%row }
        }
    }
}

# A row of a rule on one line.
sub line { my ($row) = @_; return join ' | ', $row->{comment}, $row->{rule}, @{ $row->{cells} }, @$row{qw(packets bytes share)} }

# A test: there is a page with this status, and it is in order. Returns it.
sub page {
    my ($promise, %o) = @_;
    my $r = serve(get($o{path} || '/status'), flags => $o{flags} || []);
    answers($r, $o{status} || 200, $promise);
    is($r->{headers}{'content-type'}, 'text/html; charset=utf-8', "... $promise: HTML");
    has_policy($r, "... $promise");
    my $page = eval { read_page($r->{body}) };
    is($@, '', "... $promise: to the letter");
    return $page || { paragraphs => [], rows => [], totals => {}, heads => [], broken => 1 };
}

# A test: these rules give these rows.
sub shows {
    my ($promise, $rules, $expected, @flags) = @_;
    fake(out => save(map {"[$_->[0]] -A prometheus $_->[1]"} @$rules));
    my $page = page($promise, flags => \@flags);
    is(join("\n", map { line($_) } @{ $page->{rows} }), join("\n", map {s/(?<![^ ])-(?= \|)/$NONE/gr} @$expected), "... $promise: these rows");
    return $page;
}

sub comment { my ($text) = @_; $text =~ s/([\\"])/\\$1/g; return qq(-m comment --comment "$text") }

# ---- what it shows

{
    my $page = shows('a chain', [
        ['242699:16223817',          '-d 203.0.113.140/32 -p tcp -m tcp --dport 22 -j RETURN'],
        ['338274:61386878',          '-s 203.0.113.140/32 -p tcp -m comment --comment "ssh, out" -m tcp --sport 22 -j RETURN'],
        ['277214:138061723',         '! -d 203.0.113.140/32 -p udp -m udp ! --dport 53 -j RETURN'],
        ['243107:24138542',          '! -p tcp -m comment --comment rest'],
        ['0:0',                      '-i eth0 -s 10.0.0.0/8 -d 192.0.2.1/32 -j RETURN'],
        ['1:40',                     '-p tcp -m multiport --sports 80,443:445 -j RETURN'],
        ['39127445:40218840716',     '-j RETURN'],
    ], [
        ' | -d 203.0.113.140/32 -p tcp -m tcp --dport 22 -j RETURN | 203.0.113.140/32 | tcp | 22 | in | 242,699 | 15.5 MiB | 0.0 %',
        'ssh, out | -s 203.0.113.140/32 -p tcp -m tcp --sport 22 -j RETURN | 203.0.113.140/32 | tcp | 22 | out | 338,274 | 58.5 MiB | 0.2 %',
        ' | ! -d 203.0.113.140/32 -p udp -m udp ! --dport 53 -j RETURN | !203.0.113.140/32 | udp | !53 | in | 277,214 | 131.7 MiB | 0.3 %',
        "rest | ! -p tcp | - | !tcp | - | - | 243,107 | 23.0 MiB | $NONE",
        ' | -i eth0 -s 10.0.0.0/8 -d 192.0.2.1/32 -j RETURN | - | - | - | - | 0 | 0 B | 0.0 %',
        ' | -p tcp -m multiport --sports 80,443:445 -j RETURN | - | tcp | 80,443:445 | out | 1 | 40 B | 0.0 %',
        ' | -j RETURN | - | - | - | - | 39,127,445 | 37.5 GiB | 99.5 %',
    ]);
    is(join('|', @{ $page->{heads} }), 'Comment or rule|Address|Protocol|Port|Direction|Packets|Bytes|Share', '... under these heads');
    my $totals = $page->{totals}{'IPv4, chain prometheus'};
    is(join('|', map {"$_ " . line($totals->{$_}) =~ s/.* \| (.* \| .* \| )/$1/r} sort keys %$totals),
        'In 519,913 | 147.1 MiB | 0.4 %|Neither 39,127,445 | 37.5 GiB | 99.5 %|Out 338,275 | 58.5 MiB | 0.2 %', '... with totals of both directions, and of neither');
    like($page->{paragraphs}[1], qr/^IPv4 read at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC in \d+\.\d ms\.$/, '... with the time');
    like(join("\n", @{ $page->{paragraphs} }), qr/^After 1 of these rules a packet goes on.*no total/m, '... with a word about what may be counted again');
    is(join("\n", grep { !/^sudo/ } commands()), 'iptables-save -c -t filter', '... iptables-save is run, once');
    my ($same, $list) = map { page('... the same', flags => $_) } [qw(-namespace other)], ['-list'];
    for (['-namespace', $same], ['-list', $list]) {
        is(join("\n", map { line($_) } @{ $_->[1]{rows} }), join("\n", map { line($_) } @{ $page->{rows} }), "... the same with $_->[0]");
    }
    is(join("\n", grep { !/^sudo|-save/ } commands()), 'iptables -w -t filter -v -S prometheus', '... which asks for the chain alone, once');
    page('... whatever the query', path => '/status?x=<script>');
}
unlike(join("\n", @{ shows('rules that end', [['1:2', '-p tcp -j RETURN']], [' | -p tcp -j RETURN | - | tcp | - | - | 1 | 2 B | 100.0 %'])->{paragraphs} }),
    qr/goes on/, '... need no warning');

# The page's number of rules after which a sum may be too large is the metric's.
for (
    ['rules of either pair, and a duplicate', [qw(-chain prometheus)], ':prometheus - [0:0]', 2, map {"-A prometheus $_"} '-p udp', '-p udp', '-i eth0', '-i eth1 -j LOG', '-p tcp', '-j RETURN'],
    ['a built-in chain',                      [qw(-chain INPUT)],      ':INPUT DROP [1:1]',   0, map {"-A INPUT $_"} '-p tcp -j RETURN', '-i eth0 -j LOG'],
) {
    my ($promise, $flags, $chain, $expected, @rules) = @$_;
    fake(out => save({ chains => [$chain] }, map {"[1:1] $_"} @rules));
    my ($said) = map {/^After \d+ of these .* nfprom_nonterminal_rules counts the (\d+) of them that are in nfprom_packets_total\.$/} @{ page($promise, flags => $flags)->{paragraphs} };
    my $r = serve(get('/metrics'), flags => $flags);
    answers($r, 200, "$promise: a scrape");
    my $metric = value($r->{series} || [], 'nfprom_nonterminal_rules', l2proto => 'ipv4');
    is(($said // 'nothing') . " $metric", "$expected $expected", '... the page and nfprom_nonterminal_rules say the same');
}
shows('rules that match the same', [(['1:1', '-p tcp -j ACCEPT']) x 2, ['2:2', '-p tcp -j DROP']], [
    (' | -p tcp -j ACCEPT | - | tcp | - | - | 1 | 1 B | 25.0 %') x 2, ' | -p tcp -j DROP | - | tcp | - | - | 2 | 2 B | 50.0 %']);
shows('a rule without words', [['1:1', '']], [" | * | - | - | - | - | 1 | 1 B | $NONE"]);
shows('comments', [['1:1', '-m comment --comment a -m comment --comment "b c"'], ['1:1', '-m comment --comment "" -p tcp']],
    ["a; b c | * | - | - | - | - | 1 | 1 B | $NONE", " | -p tcp | - | tcp | - | - | 1 | 1 B | $NONE"]);
{
    my $page = shows('labels from comments', [
        ['1:1', '-p tcp ' . comment('nfprom(service=ssh; host = <alpha> & "co")')],
        ['1:1', join ' ', '-i eth0', comment('mine'), comment('nfprom(service=ssh)'), comment('too')],
        ['1:1', '-p tcp ' . comment('nfprom(service=ssh)') . ' -j RETURN'],
        ['1:1', '-p udp ' . comment("nfprom(service=caf\xe9\nx)")],
    ], [
        qq(host=<alpha> & "co"; service=ssh | -p tcp | - | tcp | - | - | 1 | 1 B | $NONE), "mine; too; service=ssh | -i eth0 | - | - | - | - | 1 | 1 B | $NONE",
        'service=ssh | -p tcp -j RETURN | - | tcp | - | - | 1 | 1 B | 100.0 %', qq(service=caf\\xe9\\x0ax | -p udp | - | udp | - | - | 1 | 1 B | $NONE),
    ]);
    is(join('|', map { $_->{marks} =~ s/goes on//r } @{ $page->{rows} }), '|||', '... are all understood');
    for (
        ['nfprom(a=1',                          'the comment does not end with ) (255 bytes of it are kept)'],
        ['nfprom(ssh)',                         'NAME=VALUE is missing'],
        ['nfprom(1a=x)',                        'a name is not made of a-z, A-Z, 0-9 and _, or begins with a digit or __'],
        ['nfprom(port=22)',                     'a name has another meaning here or in Prometheus'],
        ['nfprom(a=1;a=2)',                     'the rule has a name twice'],
        ['nfprom(a=)',                          'a value is empty'],
        ['nfprom(' . join(';', map {"l$_=$_"} 1 .. 17) . ')', 'the rule has more than 16 names'],
    ) {
        my ($comment, $why) = @$_;
        fake(out => save('[1:1] -A prometheus -p tcp -j RETURN', '[1:1] -A prometheus -i eth0 ' . comment($comment) . ' -j RETURN', '[1:1] -A prometheus -p udp ' . comment('nfprom(x=1)') . ' ' . comment($comment) . ' -j RETURN'));
        $page = page("a comment that gives no labels: $comment");
        is(join('|', map { $_->{comment} } @{ $page->{rows} }), "|$comment|$comment; x=1", '... it is shown as a comment');
        is(join('|', map { $_->{marks} } @{ $page->{rows} }), "|no labels: $why|no labels: $why", '... its row says why');
    }
}
shows('an IPv6 address', [['1:1', '-s 2001:db8::/ffff:ffff::ff00 -p ipv6-icmp -j DROP']], [' | -s 2001:db8::/ffff:ffff::ff00 -p ipv6-icmp -j DROP | 2001:db8::/ffff:ffff::ff00 | ipv6-icmp | - | out | 1 | 1 B | 100.0 %']);

# ---- numbers

for (
    ['0', '0'], ['999', '999'], ['1000', '1,000'], ['999999', '999,999'], ['1000000', '1,000,000'], ['1000001', '1,000,001'],
    ['9007199254740993', '9,007,199,254,740,993'], ['9223372036854775808', '9,223,372,036,854,775,808'],
    ['10000000000000000000', '10,000,000,000,000,000,000'], [$MAX, '18,446,744,073,709,551,615'],
) {
    my ($packets, $shown) = @$_;
    shows("$packets packets", [["$packets:1", '-j RETURN']], [" | -j RETURN | - | - | - | - | $shown | 1 B | 100.0 %"]);
}
{
    my @sizes = (['0', '0 B'], ['1', '1 B'], ['1023', '1023 B'], ['1024', '1.0 KiB'], ['1075', '1.0 KiB'], ['1076', '1.1 KiB'], ['1536', '1.5 KiB'],
        ['1048524', '1023.9 KiB'], ['1048525', '1.0 MiB'], ['1048576', '1.0 MiB'], ['1073689395', '1023.9 MiB'], ['1073689396', '1.0 GiB'],
        ['1073741824', '1.0 GiB'], ['1099511627776', '1.0 TiB'], ['1125899906842623', '1.0 PiB'], ['1125899906842624', '1.0 PiB'],
        ['1152921504606846975', '1.0 EiB'], ['1152921504606846976', '1.0 EiB'], ['9223372036854775808', '8.0 EiB'], [$MAX, '16.0 EiB']);
    fake(out => save(map {"[1:$_->[0]] -A prometheus -j RETURN"} @sizes));
    my $page = page('bytes');
    is($page->{rows}[$_]{bytes}, $sizes[$_][1], "$sizes[$_][0] bytes") for 0 .. $#sizes;
}
for (
    ['thirds',                  [1, 1, 1],                  '33.3 33.3 33.3'],
    ['nothing at all',          [0, 0],                     '0.0 0.0'],
    ['one of two',              [0, 5],                     '0.0 100.0'],
    ['little beside much',      [1, 1999, 8000],            '0.0 20.0 80.0'],
    ['one of a million',        [999_999, 1],               '100.0 0.0'],
    ['as much as a counter holds', [$MAX],                  '100.0'],
) {
    my ($what, $bytes, $shares) = @$_;
    fake(out => save(map {"[1:$_] -A prometheus -j RETURN"} @$bytes));
    is(join(' ', map { $_->{share} =~ s/ %//r } @{ page("shares, $what")->{rows} }), $shares, "... $what: the shares");
}
{
    # Two families, each with its own table and sums.
    fake(out => save("[$MAX:$MAX] -A prometheus -d 192.0.2.1/32 -j DROP", "[1:$MAX] -A prometheus -d 192.0.2.2/32 -j DROP", '[3:4] -A prometheus -s 192.0.2.1/32 -j DROP'));
    fake6(out => save('[9:9] -A prometheus -d 2001:db8::1/128 -j DROP', '[10:20] -A prometheus -s 2001:db8::1/128 -j DROP', '[7:70] -A prometheus -j DROP'));
    my $page = page('more than a counter holds', flags => ['-ipv6']);
    for (['IPv4', 'In 18,446,744,073,709,551,616 32.0 EiB|Out 3 4 B|Neither 0 0 B', '50.0 50.0 0.0'], ['IPv6', 'In 9 9 B|Out 10 20 B|Neither 7 70 B', '9.1 20.2 70.7']) {
        my ($family, $totals, $shares) = @$_;
        my $group = "$family, chain prometheus";
        is(join('|', map { my $t = $page->{totals}{$group}{$_} || {}; "$_ $t->{packets} $t->{bytes}" } qw(In Out Neither)), $totals, "... is a total of more digits, and those of families are not one: $family");
        is(join(' ', map { $_->{share} =~ s/ %//r } grep { $_->{group} eq $group } @{ $page->{rows} }), $shares, "... so are the shares: $family");
    }
    is(join('|', map { $_->{group} } @{ $page->{rows} }), join('|', ('IPv4, chain prometheus') x 3, ('IPv6, chain prometheus') x 3), '... and each family has a table');
    is(scalar grep({/^IPv[46] read at /} @{ $page->{paragraphs} }), 2, '... with its time');
    $page = page('IPv6 alone', flags => [qw(-ipv4=false -ipv6)]);
    is(join('|', map { $_->{group} } @{ $page->{rows} }), join('|', ('IPv6, chain prometheus') x 3), '... is shown alone');
    is(join('|', grep {/IPv/} @{ $page->{paragraphs} }) =~ s/ at .*//r, 'IPv6 read', '... and no word of the other');

    # 200 rules of 2^64 - 1: 18446744073709551615 * 200.
    fake(out => save(map {"[$MAX:$MAX] -A prometheus -d 192.0.2.1/32 -m mark --mark $_ -j DROP"} 1 .. 200));
    $page = page('a total of 22 digits');
    my $total = $page->{totals}{'IPv4, chain prometheus'}{Neither} || {};
    is("$total->{packets} $total->{bytes} $total->{share}", '3,689,348,814,741,910,323,000 3.1 ZiB 100.0 %', '... is right to the last');
}

# ---- what lets a packet go on has no share

{
    my $page = shows('rules that let a packet go on', [['20:2000', '-s 192.0.2.1/32 -j LOG'], ['20:2000', '-s 192.0.2.1/32 -i eth0'], ['15:1500', '-j other'], ['20:1000', '-s 192.0.2.1/32 -j DROP'], ['5:1000', '-g other']], [
        " | -s 192.0.2.1/32 -j LOG | 192.0.2.1/32 | - | - | out | 20 | 2.0 KiB | $NONE", " | -s 192.0.2.1/32 -i eth0 | - | - | - | - | 20 | 2.0 KiB | $NONE",
        " | -j other | - | - | - | - | 15 | 1.5 KiB | $NONE", ' | -s 192.0.2.1/32 -j DROP | 192.0.2.1/32 | - | - | out | 20 | 1000 B | 50.0 %', ' | -g other | - | - | - | - | 5 | 1000 B | 50.0 %']);
    is(join('|', map { $_->{marks} } @{ $page->{rows} }), 'goes on|goes on|goes on||', '... are marked, of either pair');
    is(join(' ', map { $page->{totals}{'IPv4, chain prometheus'}{$_}{packets} } qw(In Out Neither)), '0 20 5', '... and in no total');
    fake(out => save({ chains => [':INPUT ACCEPT [15:1500]'] }, '[5:500] -A INPUT -p tcp -j RETURN', '[10:1000] -A INPUT -p udp -g x', '[1:100] -A INPUT -j DROP'));
    $page = page('rules that lead to the policy', flags => [qw(-chain INPUT)]);
    is(join('|', map { $_->{rule} . ' ' . $_->{share} . ' ' . $_->{marks} } @{ $page->{rows} }), "ACCEPT 93.8 % |-p tcp -j RETURN $NONE goes on|-p udp -g x $NONE goes on|-j DROP 6.2 % ",
        '... go on to it: the policy has counted the same');
    fake(out => save('[5:500] -A prometheus -p tcp'));
    is(join('|', %{ page('nothing but rules that let go on')->{totals} }), '', '... has no totals');
}

# ---- chains

{
    my @chains = (':INPUT ACCEPT [11:1100]', ':FORWARD DROP [22:2200]', ':OUTPUT ACCEPT [33:3300]', ':prometheus - [0:0]');
    fake(out => save({ chains => \@chains }, '[1:10] -A INPUT -s 192.0.2.1/32', '[2:20] -A INPUT -j prometheus', '[3:30] -A FORWARD -p tcp', '[4:40] -A prometheus -p udp'));
    my @pages = map { page("several chains, @$_", flags => [@$_, map { ('-chain', $_) } qw(prometheus FORWARD INPUT)]) } [], ['-list'];
    for (@pages) {
        my ($which, %groups) = ($_ == $pages[1] ? ' with -list' : '');
        push @{ $groups{ $_->{group} } }, join ' ', grep { $_ ne '' && $_ ne '0.0 %' } @$_{qw(comment rule packets)} for @{ $_->{rows} };
        is(join("\n", map {"$_: " . join ', ', sort @{ $groups{$_} }} sort keys %groups), join("\n",
            'IPv4, chain FORWARD: -p tcp 3, policy DROP 22', 'IPv4, chain INPUT: -j prometheus 2, -s 192.0.2.1/32 1, policy ACCEPT 11',
            'IPv4, chain prometheus: -p udp 4'), "... the rules and the policy of each$which");
        is(join('|', map { $_->{Neither}{packets} // 'none' } @{ $_->{totals} }{map {"IPv4, chain $_"} qw(FORWARD INPUT prometheus)}), '22|11|none', "... each has totals of its own, the policy among them, and nothing is added up over several$which");
    }
    is(join("\n", map { line($_) } @{ $pages[1]{rows} }), join("\n", map { line($_) } @{ $pages[0]{rows} }), '... in one order, with -list or without');
}
{
    fake(out => save({ chains => [':INPUT ACCEPT [11:1100]'] }));
    my $page = page('a built-in chain without rules', flags => [qw(-chain INPUT)]);
    is(join("\n", map { line($_) } @{ $page->{rows} }), join(' | ', 'policy', 'ACCEPT', ($NONE) x 4, '11', '1.1 KiB', '100.0 %'), '... shows its policy');
    fake(out => save());
    $page = page('an empty chain');
    is(scalar @{ $page->{rows} }, 0, '... has no rows');
    like(join('|', @{ $page->{paragraphs} }), qr/\|There is no rule in the chain prometheus of IPv4\.\|No rule of IPv4 jumps to the chain prometheus, so it counts nothing: unless a native base chain of nft jumps there, which iptables does not list\.(?:\||\z)/, '... and sentences that say so');
    fake(out => save({ chains => [map {":$_ - [0:0]"} qw(a b c d)] }, '[1:2] -A a -p tcp', '[1:2] -A c -p tcp'));
    $page = page('empty chains among others', flags => [map { ('-chain', $_) } qw(a b c d)]);
    is(join('|', grep {/^There/} @{ $page->{paragraphs} }), join('|', map {"There is no rule in the chain $_ of IPv4."} qw(b d)), '... are named, all of them');
    fake(out => save({ chains => [':INPUT ACCEPT [1:1]', ':x<y - [0:0]', ':prometheus - [0:0]'] }, '[1:2] -A INPUT -j prometheus', '[1:2] -A INPUT -p tcp -j prometheus', '[1:2] -A x<y -j prometheus',
        '[1:2] -A prometheus -p tcp', '[1:2] -A prometheus -j RETURN', '[0:0] -A prometheus -p udp', '[0:0] -A prometheus -p icmp'));
    is(join('|', grep {/jump|reach/} @{ page('how packets come to the chain')->{paragraphs} }),
        'The chain INPUT of IPv4 jumps 2 times to the chain prometheus, which may count a packet as often.|Rules that no packet reaches, in the chain prometheus of IPv4: 2. They are marked.',
        '... twice from one chain, and to which rules they do not');
    fake(out => save({ chains => [map {":$_ - [0:0]"} qw(a b)] }, '[1:2] -A b -p tcp -j a', ('[1:2] -A b -j a') x 2, ('[1:2] -A x -j b') x 3));
    is(join('|', grep {/jump/} @{ page('how packets come to each of two chains', flags => [qw(-chain a -chain b)])->{paragraphs} }),
        join('|', map {"The chain $_, which may count a packet as often."} 'b of IPv4 jumps 3 times to the chain a', 'x of IPv4 jumps 3 times to the chain b'),
        '... is said for each of them');
    fake(out => save({ chains => [':prometheus - [0:0]'] }, map { ("[1:2] -A c$_ -j prometheus") x 2 } 1 .. 40));
    is(join('|', grep {/jump/} @{ page('how packets come to a chain from forty others')->{paragraphs} }),
        join('|', map {"The chain c$_ of IPv4 jumps 2 times to the chain prometheus, which may count a packet as often."} 1 .. 32), '... is said of the first 32');
    fake(out => save({ chains => [':INPUT ACCEPT [1:1]', ':prometheus - [0:0]'] }, ('[1:2] -A INPUT -j prometheus') x 2), list => "-N prometheus\n");
    is(join('|', grep {/jump/} @{ page('how packets come to a chain of a list', flags => ['-list'])->{paragraphs} }), '', '... which does not tell it, though a table was read to confirm it');
    fake();
    fake6(out => save());
    like(join("\n", @{ page('an empty chain beside another', flags => ['-ipv6'])->{paragraphs} }), qr/^There is no rule in the chain prometheus of IPv6\.$/m, '... is named');
}

# ---- failures

sub fails {
    my ($promise, $status, $said, %o) = @_;
    my $page = page($promise, status => $status, %o);
    my ($sentence) = grep {/could not be read/} @{ $page->{paragraphs} };
    like($sentence || 'no sentence', $said, "... $promise: says why");
    return $page;
}
{
    fake(out => save({ chains => [':INPUT ACCEPT [1:1]'] }));
    fails('no chain', 503, qr/^IPv4 could not be read: `(?:sudo -n )?iptables-save -c -t filter` gave no counters: no chain prometheus; look at -chain and -table; if a script makes it .*; else make the chain with `iptables -t filter -N prometheus`/);
    fake(err => "first <b>line & \"more\"\nsecond line\e[31m\n", status => 3);
    fails('a failure', 503, qr/it said: first <b>line & "more" second line\\x1b\[31m(?:;|$)/);
    fake(err => "bad bytes \xff\xfe and \xe2\x80\xae\n", status => 3);
    fails('a failure in other bytes', 503, qr/it said: bad bytes \\xff\\xfe and \\xe2\\x80\\xae(?:;|$)/);
    fake(err => '<' x 3000, status => 3);
    fails('a failure of many words', 503, qr/it said: <{900,1000}(?:;|$)/);
    fake(out => save('[1:2] -A prometheus -p tcp') =~ s/COMMIT.*//sr);
    is(scalar @{ fails('a table that was cut', 503, qr/^IPv4 could not be read: .*COMMIT/)->{rows} }, 0, '... and shows no rule of it');
    fake();
    fake6(err => "ip6tables-save: no IPv6 here\n", status => 1);
    my $r = serve(get('/status'), flags => ['-ipv6']);
    answers($r, 200, 'a failure of one of two families', stderr => qr/\Anfprom: ipv6: .*no IPv6 here[^\n]*\n\z/);
    my $page = eval { read_page($r->{body}) } || { paragraphs => ["broken: $@"], rows => [] };
    like(join("\n", @{ $page->{paragraphs} }), qr/^IPv6 could not be read: .*it said: ip6tables-save: no IPv6 here(?:;|$)/m, '... is a sentence');
    is(join('|', map { $_->{group} } @{ $page->{rows} }), 'IPv4, chain prometheus', '... above the rules of the other');
    fake(sleep => 86_399);
    fails('a hang', 504, qr/^IPv4 could not be read: .*did not end in time/, flags => [qw(-timeout 1s)]);
    none_left('... leaves no process');
    fake(status => 1);
    fake6(status => 2);
    is(scalar grep({/could not be read/} @{ page('a failure of both families', status => 503, flags => ['-ipv6'])->{paragraphs} }), 2, '... has a sentence for each');
    fake();
    fake6();
    my ($get, $head) = map { serve(get('/status') =~ s/^GET/$_/r) } qw(GET HEAD);
    answers($head, 200, 'HEAD: an answer without a body', head => 1);
    is("@{ $head->{header_names} }", "@{ $get->{header_names} }", 'HEAD: the header fields of GET');
    cmp_ok($head->{headers}{'content-length'}, '>', 1000, 'HEAD: Content-Length is that of the page');
    answers(serve("POST /status HTTP/1.1\r\nHost: x\r\n\r\n"), 405, 'POST is not answered');
    answers(serve(get($_)), 404, "$_ is not there") for '/status/', '/statusx', '/STATUS';
}

# ---- nothing gets out of its cell

sub utf8 { my ($text) = @_; utf8::encode($text); return $text }

my @hostile = (
    # what                      bytes                                                       on the page, if not the same
    ['a script',                q(<script>document.title='x'</script>)],
    ['an image that fails',     q(<img src=x onerror="document.title='x'">)],
    ['the end of the cell',     q(</code></th></tr></table><script>)],
    ['the end of the style',    '</style></title></textarea>--></script>]]>'],
    ['a comment of HTML',       '<!-- <!--> --!>'],
    ['what ends no more',       '<plaintext><textarea><title><style><iframe srcdoc='],
    ['references',              '&amp; &#60;script&#62; &lt &notit; &'],
    ['quotes',                  q(" ' ` \ = "" ' onclick=)],
    ['a line break',            "a\nb\n",                                                   'a\x0ab\x0a'],
    ['a return and a tab',      "a\r\tb",                                                   'a\x0d\x09b'],
    ['a NUL',                   "a\0b",                                                    'a\x00b'],
    ['control characters',      "\x01\x08\x0b\x0c\x0e\x1b[31m\x1f\x7f",                     '\x01\x08\x0b\x0c\x0e\x1b[31m\x1f\x7f'],
    ['C1 control characters',   utf8("\x{80}\x{85}\x{9b}\x{9f}"),                           '\xc2\x80\xc2\x85\xc2\x9b\xc2\x9f'],
    ['Latin-1',                 "caf\xe9 <b>",                                              'caf\xe9 <b>'],
    ['bytes that are no UTF-8', "\xff\xfe\xc0\x80\xc1\xbc\xed\xa0\x80\xf4\x90\x80\x80\xe2\x82", '\xff\xfe\xc0\x80\xc1\xbc\xed\xa0\x80\xf4\x90\x80\x80\xe2\x82'],
    ['half a character',        "\xc3<script>\xe2\x80<b>",                                  '\xc3<script>\xe2\x80<b>'],
    ['an overlong <',           "\xc0\xbcscript\xc0\xbe\xe0\x80\xbc",                       '\xc0\xbcscript\xc0\xbe\xe0\x80\xbc'],
    ['noncharacters',           "\xef\xb7\x90\xef\xb7\xaf\xef\xbf\xbe\xef\xbf\xbf\xf0\x9f\xbf\xbf\xf4\x8f\xbf\xbe",
        '\xef\xb7\x90\xef\xb7\xaf\xef\xbf\xbe\xef\xbf\xbf\xf0\x9f\xbf\xbf\xf4\x8f\xbf\xbe'],
    ['text turned around',      utf8("a\x{202e}NRUTER j- \x{2066}x\x{2069}\x{202c}"),       'a\xe2\x80\xaeNRUTER j- \xe2\x81\xa6x\xe2\x81\xa9\xe2\x80\xac'],
    ['all that turns text around', utf8("\x{2029}x\x{202a}\x{202b}\x{202c}\x{202d}\x{202e}\x{202f}\x{2065}\x{2066}\x{2067}\x{2068}\x{2069}\x{206a}"),
        "\x{2029}x" . '\xe2\x80\xaa\xe2\x80\xab\xe2\x80\xac\xe2\x80\xad\xe2\x80\xae' . "\x{202f}\x{2065}" . '\xe2\x81\xa6\xe2\x81\xa7\xe2\x81\xa8\xe2\x81\xa9' . "\x{206a}"],
    (map { ["$_ alone", "a${_}b"] } qw(& < > ' `)),
    ['& as in a reference',     'a&lt;b'],
    ['all languages',           utf8("Größe – 日本 שלום \x{1f600} \x{a0}\x{fdcf}\x{fdf0}\x{fffd}\x{e000}"), "Größe – 日本 שלום \x{1f600} \x{a0}\x{fdcf}\x{fdf0}\x{fffd}\x{e000}"],
    ['255 bytes',               '<' x 255],
);
for (@hostile) {
    my ($what, $bytes, $shown) = @$_;
    $shown = $bytes unless defined $shown;
    my $string = qq(-m string --string "@{[$bytes =~ s/([\\"])/\\$1/gr]}" --algo bm -j RETURN);
    fake(out => save("[1:2] -A prometheus -d 192.0.2.1/32 " . comment($bytes) . ' -j RETURN', "[3:4] -A prometheus $string"));
    my $page = page("$what in a comment and a string");
    is($page->{rows}[0]{comment}, $shown, "$what in a comment");
    is($page->{rows}[0]{rule}, '-d 192.0.2.1/32 -j RETURN', '... beside it the rule');
    is($page->{rows}[1]{rule}, qq(-m string --string "@{[$shown =~ s/([\\"])/\\$1/gr =~ s/\\\\(?=x[0-9a-f]{2})/\\/gr]}" --algo bm -j RETURN), "$what in a rule");
    is(join(' ', map { $_->{packets} } @{ $page->{rows} }), '1 3', '... and every row');
}
for (
    ['of an interface', '-i <script>&', '-i <script>&'], ['of an interface with quotes', q(-i a"'`<b>), q(-i a"'`<b>)], ['of an interface in bytes', "-o \xff<\xe9>", '-o \xff<\xe9>'],
    ['of a set', '-m set --match-set </code><b> src', '-m set --match-set </code><b> src'], ['of a chain to jump to', '-j <script>&lt;"', '-j <script>&lt;"'],
    ['of a protocol', '-p <b>&', '-p <b>&'], ['of an address', '-s <b>&"', '-s <b>&"'],
) {
    my ($what, $rule, $shown) = @$_;
    fake(out => save("[1:2] -A prometheus $rule"));
    is(join('|', map { $_->{rule} } @{ page("a name $what")->{rows} }), $shown, "... the name $what is text");
}
for my $name ('<script>x</script>', '</th></table>', '&lt;"\'`', "caf\xe9", "\xff", utf8("größe"), utf8("\x{85}\x{202e}x"), '$(id);|', 'x' x 28) {
    my $shown = eval { Encode::decode('UTF-8', my $copy = $name, Encode::FB_CROAK()) } // $name =~ s/([\x80-\xff])/sprintf '\x%02x', ord $1/ger;
    $shown = $shown =~ s/([\x{80}-\x{9f}\x{202e}])/join '', map { sprintf '\x%02x', ord $_ } split m{}, utf8($1)/ger;
    fake(out => save({ chains => [":$name - [0:0]", ':b - [0:0]'] }, "[1:2] -A $name -p tcp", '[3:4] -A b -p tcp'));
    for my $list ([], $name =~ m{/} ? () : ['-list']) {
        my $page = page("a chain's name, @$list", flags => [@$list, '-chain', $name, '-chain', 'b']);
        is(join('|', map {"$_->{group} $_->{packets}"} @{ $page->{rows} }), "IPv4, chain $shown 1|IPv4, chain b 3", "... the chain's name is text: $shown");
    }
    fake(out => save());
    fails("no chain of that name", 503, qr/no chain \Q$shown\E/, flags => ['-chain', $name]) if $name !~ /[\x80-\xff]/;
}

# ---- in a browser

# Chromium, whole or without a head, told what to do by its DevTools protocol on two pipes, descriptors 3 and 4 there.
my ($browser, $to, $from, $calls, $unread, @events) = (undef, undef, undef, 0, '');

sub browser_command {
    for my $dir (qw(/usr/bin /bin /usr/local/bin)) {
        for (qw(chromium chromium-headless-shell)) { return "$dir/$_" if -x "$dir/$_" }
    }
    return;
}

sub start_browser {
    my ($command) = @_;
    pipe my $their_in, $to or die "pipe: $!";
    pipe $from, my $their_out or die "pipe: $!";
    $browser = spawn(
        program => $command,
        flags   => [qw(--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-breakpad --disable-background-networking
            --disable-component-update --no-first-run --no-proxy-server --remote-debugging-pipe), "--user-data-dir=$DIR/browser", 'about:blank'],
        setup => sub {
            my ($in, $out) = map { fcntl $_, F_DUPFD, 10 } $their_in, $their_out;
            POSIX::dup2($in, 3);
            POSIX::dup2($out, 4);
        },
    );
}

# The next message, or death.
sub message {
    my $end = time + $LIMIT;
    while (index($unread, "\0") < 0) {
        vec(my $ready = '', fileno $from, 1) = 1;
        die "the browser says nothing\n" if time > $end || !select $ready, undef, undef, $end - time;
        sysread $from, $unread, 1 << 20, length $unread or die "the browser is gone\n";
    }
    my $message = substr $unread, 0, 1 + index($unread, "\0"), '';
    chop $message;
    return JSON::PP::decode_json($message);
}

sub call {
    my ($method, $parameters, $session) = @_;
    my $bytes = JSON::PP::encode_json({ id => ++$calls, method => $method, params => $parameters || {}, $session ? (sessionId => $session) : () }) . "\0";
    while ($bytes ne '') { my $n = syswrite $to, $bytes or die "the browser does not listen: $!\n"; substr $bytes, 0, $n, '' }
    while (1) {
        my $m = message();
        if (($m->{id} || 0) == $calls) { die "$method: $m->{error}{message}\n" if $m->{error}; return $m->{result} }
        push @events, $m;
    }
}

sub wait_for { my ($method) = @_; while (1) { return if grep { ($_->{method} || '') eq $method } @events; push @events, message() } }

# What the page itself says: the value of an expression.
sub evaluate {
    my ($session, $expression) = @_;
    my $r = call('Runtime.evaluate', { expression => $expression, returnByValue => JSON::PP::true() }, $session);
    die 'in the page: ' . JSON::PP::encode_json($r->{exceptionDetails}) . "\n" if $r->{exceptionDetails};
    return $r->{result}{value};
}

sub show_page {
    my ($session, $url, $width, $scheme) = @_;
    call('Emulation.setDeviceMetricsOverride', { width => $width, height => 800, deviceScaleFactor => 1, mobile => JSON::PP::false() }, $session);
    call('Emulation.setEmulatedMedia', { features => [{ name => 'prefers-color-scheme', value => $scheme || 'light' }] }, $session);
    @events = ();
    call('Page.navigate', { url => $url }, $session);
    wait_for('Page.loadEventFired');
}

my $ROWS = q{JSON.stringify([...document.querySelectorAll('table tr')].map(r => [...r.cells].map(c => c.textContent.trim())))};
my $ALIEN = q{document.querySelectorAll('script,img,iframe,link,object,embed,svg:not(td.share > svg),a:not([href^="?"]),form,[src],:not(a)[href],[style]').length +
    [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length};
my $OVERFLOW = q{[document.documentElement.scrollWidth - document.documentElement.clientWidth,
    ...[...document.querySelectorAll('th,td,p')].filter(e => e.closest('thead') == null && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)].join('|')};

# The least contrast of any text with what is behind it, and that of a bar; how bright the page is; all as WCAG 2 defines it.
my $CONTRAST = q{(() => {
    const probe = document.body.appendChild(document.createElement('b'));
    const rgb = s => s.match(/[\d.]+/g).map(Number);
    const paint = (name, value) => { probe.style.backgroundColor = value; return rgb(getComputedStyle(probe).backgroundColor) };
    const canvas = paint('canvas', 'Canvas');
    const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const over = (c, opacity) => c.slice(0, 3).map((v, i) => v * opacity * (c[3] ?? 1) + canvas[i] * (1 - opacity * (c[3] ?? 1)));
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const shown = (e, pseudo, property) => {
        let opacity = pseudo ? +getComputedStyle(e, pseudo).opacity : 1;
        for (let p = e; p; p = p.parentElement) opacity *= getComputedStyle(p).opacity;
        return ratio(over(rgb(getComputedStyle(e, pseudo)[property]), opacity), canvas);
    };
    let text = 99;
    for (const e of document.querySelectorAll('h1,p,time,strong,caption,th,td,code'))
        for (const pseudo of [null, '::before']) text = Math.min(text, shown(e, pseudo, 'color'));
    const bars = [...document.querySelectorAll('rect')].map(e => shown(e, null, 'fill'));
    probe.remove();
    return [text, Math.min(...bars), light(canvas)];
})()};

SKIP: {
    skip('a browser takes too long for each of hundreds of faults') if $ENV{NFPROM_MUTATED};
    my $command = browser_command() or skip_or_fail('no browser (Debian: apt-get install chromium-headless-shell, or chromium)');
    my $probe = IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => 0, Listen => 1) or die "no port: $@";
    my $port = $probe->sockport;
    close $probe;
    my $listener = spawn(flags => ['-addr', "127.0.0.1:$port", qw(-timeout 60m)]);
    my $up = patiently(sub { IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port) });
    my $url = "http://127.0.0.1:$port/status";
    my $ok = ok($up, 'nfprom listens') && eval {
        start_browser($command);
        my $target  = call('Target.createTarget', { url => 'about:blank' })->{targetId};
        my $session = call('Target.attachToTarget', { targetId => $target, flatten => JSON::PP::true() })->{sessionId};
        call($_, {}, $session) for qw(Page.enable Network.enable Runtime.enable Log.enable);

        my @texts = map { comment($_->[1]) } @hostile;
        my @nine  = map {"-d 203.0.113.$_/32 -p tcp $texts[$_ - 1] -m tcp --dport 22 -j RETURN"} 1 .. 8;
        my @many  = map {"-s 10.1.@{[$_ >> 8]}.@{[$_ & 255]}/32 -p tcp $texts[$_ % @texts] -m tcp --sport 443 -j RETURN"} 1 .. 499;
        my @long  = (
            "[$MAX:$MAX] -A prometheus ! -d 2001:db8:1111:2222:3333:4444:5555:6666/ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00 -p udplite -m multiport ! --dports "
                . join(',', map { 10_001 + 2 * $_ . ':' . (10_002 + 2 * $_) } 1 .. 7) . ',65535 -j RETURN',
            "[$MAX:1023] -A prometheus -s 2001:db8:1111:2222:3333:4444:5555:6666/128 " . comment('x' x 255) . ' -j ' . 'y' x 28,
            "[7:$MAX] -A prometheus -i " . 'z' x 15 . ' ' . comment('some words that go on ' x 11) . ' -j RETURN',
        );
        for (
            ['9 rules',             filter_table(@nine, '-j RETURN'), [320, 500, 1280]],
            ['500 rules',           filter_table(@many, '-j RETURN'), [500, 1280]],
            ['the longest of all',  save(@long),                      [320, 500, 1080, 1280]],
            ['a failure',           undef,                            [320, 1280]],
        ) {
            my ($what, $out, $widths) = @$_;
            if ($out) { fake(out => $out) }
            else      { fake(err => 'Q' x 900, status => 1) }
            my $page = eval { read_page(serve(get('/status'))->{body}) };
            for my $width (@$widths) {
                show_page($session, $url, $width);
                is(evaluate($session, $OVERFLOW), 0, "$what, $width pixels: nothing is wider than the window");
                next if $width != $widths->[-1];
                is(evaluate($session, 'document.title'), 'nfprom', "$what: no script has run");
                is(evaluate($session, $ALIEN), 0, '... there is none, and nothing to load');
                is(join(' ', grep { $_ ne $url && !m{/favicon\.ico$} } map { $_->{params}{request}{url} } grep { $_->{method} eq 'Network.requestWillBeSent' } @events), '',
                    '... and nothing was loaded');
                is(evaluate($session, 'document.compatMode'), 'CSS1Compat', '... in the mode of standards');
                next unless $out && ok($page, "$what: a page in order");
                my @rows = map { Encode::encode('UTF-8', join ' | ', @$_) } grep { @$_ > 1 } @{ JSON::PP->new->decode(evaluate($session, $ROWS)) };
                my @expected = map { my $t = $_; Encode::encode('UTF-8', join ' | ', $t->{text}, @{ $t->{cells} }, @$t{qw(packets bytes share)}) }
                    @{ $page->{rows} }, map { $page->{totals}{'IPv4, chain prometheus'}{$_} } qw(In Out Neither);
                my @differ = grep { ($rows[ $_ + 1 ] // 'nothing') ne $expected[$_] } 0 .. $#expected;
                ok(@rows == 1 + @expected && !@differ, "$what: each row as it was sent")
                    or diag(@rows . ' rows for ' . @expected, map {"\n got $rows[$_ + 1]\n for $expected[$_]"} @differ > 3 ? @differ[0 .. 2] : @differ);
                is(scalar @{ $page->{rows} }, $what =~ /^(\d+)/ ? $1 : 3, '... and all of them');
            }
        }

        # The policy: what got into the page all the same would do nothing; the bars do not depend on it.
        fake(out => filter_table(@nine, '-j RETURN'));
        show_page($session, $url, 1280);
        is(evaluate($session, q{(() => {
            document.body.insertAdjacentHTML('beforeend', '<b id=x style="color:rgb(1,2,3)" onclick="document.title=1"></b><style>#x{opacity:0.5}</style>');
            const x = document.querySelector('#x'), script = document.createElement('script');
            script.textContent = "document.title = 'x'";
            document.body.append(script);
            x.click();
            return [getComputedStyle(x).color == 'rgb(1, 2, 3)', getComputedStyle(x).opacity, document.title].join(' ');
        })()}), 'false 1 nfprom', 'an injected script, style or handler does nothing');
        my $bars = JSON::PP->new->decode(evaluate($session, q{JSON.stringify([...document.querySelectorAll('td.share')].map(
            e => [parseFloat(e.textContent), e.querySelector('rect').getBoundingClientRect().width / e.querySelector('svg').getBoundingClientRect().width * 100]))}));
        is(scalar(grep { abs($_->[0] - $_->[1]) > 0.5 } @$bars), 0, 'each bar is as long as its share');
        cmp_ok(scalar(grep { $_->[1] > 5 } @$bars), '>', 5, '... and is seen');
        is(scalar(grep { $_->{method} eq 'Log.entryAdded' && ($_->{params}{entry}{url} // '') !~ m{/favicon\.ico\z} } @events), 0, 'the console has no complaint of the page') if show_page($session, $url, 1280) || 1;

        # What a screen reader is told.
        fake(out => filter_table(@nine, '-j RETURN'));
        my $page = eval { read_page(serve(get('/status'))->{body}) };
        my $cells = 0;
        die "no page in order\n" unless $page;
        $cells += 3 + @{ $_->{cells} } for @{ $page->{rows} }, map { values %$_ } values %{ $page->{totals} };
        for my $width (1280, 500) {
            show_page($session, $url, $width);
            my (%count, @heads, @names);
            for my $node (grep { !$_->{ignored} } @{ call('Accessibility.getFullAXTree', {}, $session)->{nodes} }) {
                my $role = $node->{role}{value};
                $count{$role}++;
                push @heads, $node->{name}{value} if $role eq 'columnheader';
                push @names, $node->{name}{value} if $role eq 'rowheader';
            }
            is(join(' ', map {"$_=" . ($count{$_} || 0)} qw(table caption row columnheader rowheader cell)),
                "table=1 caption=1 row=14 columnheader=8 rowheader=13 cell=$cells", "a screen reader finds a table, $width pixels wide");
            is(join('|', @heads), join('|', @{ $page->{heads} }), '... with a head for each column');
            is(scalar grep({ !defined $_ || $_ eq '' } @names), 0, '... and a head with words for each row');
        }

        # Contrast, 4.5 to 1 for text and 3 to 1 for bars (WCAG 2, level AA).
        for my $scheme (qw(light dark)) {
            for my $width (1280, 500) {
                show_page($session, $url, $width, $scheme);
                my ($text, $bar, $canvas) = @{ evaluate($session, $CONTRAST) };
                cmp_ok($text, '>=', 4.5, "$scheme, $width pixels: the contrast of the text");
                cmp_ok($bar, '>=', 3, '... and of the bars');
                ok($scheme eq 'light' ? $canvas > 0.5 : $canvas < 0.1, "... on a page that is $scheme");
            }
        }
        1;
    };
    fail("the browser: $@") if $up && !$ok;
    eval { call('Browser.close') } if $browser;
    kill TERM => $_ for grep { $_ } $listener;
    like(reap($listener), qr/\A0\z/, 'nfprom ends');
    reap($browser) if $browser;
}
none_left('no process is left of all this');

done_testing;
