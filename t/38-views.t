#!/usr/bin/perl

# /status?by=NAME and /status?seconds=N: the chain added up by a label, and what is counted between two reads.

use strict;
use warnings;
use utf8;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use NF;
use Page;

my $MAX  = '18446744073709551615';
my $NONE = "\x{2013}";                              # in a cell for a direction that no rule has

sub comment { my ($text) = @_; $text =~ s/([\\"])/\\$1/g; return qq(-m comment --comment "$text") }

# Reads a page. Dies with what is wrong; returns {paragraphs, alerts, links, changes, tables}. A table: {caption, heads, rows}, a row on one line:
#   VALUE | in, packets in | out, packets out | neither, packets of neither | share
# VALUE as it is shown, what stands for none in <>, the marks behind it in brackets.
sub read_view {
    my ($bytes) = @_;
    my $root = read_html($bytes);
    my %view = (
        paragraphs => [map { spaced(text_in($_)) } below($root, 'p')],
        alerts     => [map { spaced(text_in($_)) } grep { ($_->{attributes}{role} || '') eq 'alert' } below($root, 'p')],
        links      => [map { $_->{attributes}{href} } below($root, 'a')],
        changes    => [map { spaced(text_in($_)) } below($root, 'li')],
        tables     => [],
    );
    for my $table (below($root, 'table')) {
        my ($caption, $head, $body) = map { below($table, $_) } qw(caption thead tbody);
        my @heads = map { spaced(text_in($_)) } below($head, 'th');
        my @rows;
        for my $tr (below($body, 'tr')) {
            my ($th, @cells) = @{ $tr->{children} };
            die 'a row of ' . (1 + @cells) . ' cells under ' . @heads . "\n" if 1 + @cells != @heads;
            my $name = join '', map { !ref $_ ? $_ : $_->{name} eq 'em' ? '<' . text_in($_) . '>' : $_->{name} eq 'small' ? ' [' . text_in($_) . ']' : text_in($_) } @{ $th->{children} };
            my @texts = map { spaced(text_in($_)) } @cells;
            my ($bar) = below($tr, 'rect');
            die "another bar than $texts[-1]\n" if ($bar ? "$bar->{attributes}{width}" =~ s/%/ %/r : $NONE) ne $texts[-1];
            push @rows, join ' | ', spaced($name), (map {"$texts[$_], $texts[$_ + 1]"} grep { $_ < @texts - 1 } 0, 2, 4), $texts[-1];
        }
        push @{ $view{tables} }, { caption => spaced(text_in($caption)), heads => \@heads, rows => \@rows };
    }
    return \%view;
}

# A test: there is a page with this status, and it is in order. Returns it.
sub view {
    my ($promise, $query, %o) = @_;
    my $r = serve(get("/status$query"), flags => $o{flags} || [], limit => $o{limit});
    answers($r, $o{status} || 200, $promise, $o{stderr} ? (stderr => $o{stderr}) : ());
    has_policy($r, "... $promise");
    my $view = eval { read_view($r->{body}) };
    is($@, '', "... $promise: HTML to the letter");
    return $view || { map { $_ => [] } qw(paragraphs alerts links changes tables) };
}

# A test: these rows, in a page of one table.
sub rows {
    my ($promise, $view, @expected) = @_;
    is(scalar @{ $view->{tables} }, 1, "... $promise: one table");
    s/(?<= )-(?=[ ,]|\z)/$NONE/g for @expected;
    is(join("\n", @{ ($view->{tables}[0] || {})->{rows} || [] }), join("\n", @expected), "... $promise: these rows");
}

sub reads { return scalar grep { !/^sudo/ } commands() }

# ---- added up by a label

my $ssh   = comment('nfprom(service=ssh;host=alpha)');
my $web   = comment('nfprom(service=<b>web & "co")');
my @lines = (
    '[10:1000] -A prometheus -d 192.0.2.1/32 -p tcp ' . $ssh . ' -m tcp --dport 22 -j RETURN',
    '[20:3000] -A prometheus -s 192.0.2.1/32 -p tcp ' . $ssh . ' -m tcp --sport 22 -j RETURN',
    '[1:50000] -A prometheus -d 192.0.2.1/32 -p tcp ' . $web . ' -m multiport --dports 80,443 -j RETURN',
    '[2:4000] -A prometheus ! -s 192.0.2.2/32 -p tcp ' . $web . ' -m tcp ! --sport 22 -j RETURN',
    '[5:2000] -A prometheus -i eth0 ' . comment('nfprom(host=alpha)') . ' -j RETURN',
    '[3:40000] -A prometheus ' . comment('the rest') . ' -j RETURN',
);
fake(out => save(@lines));
{
    my $view = view('by=service', '?by=service');
    is(join('|', @{ $view->{tables}[0]{heads} }), 'service|In|Packets in|Out|Packets out|Neither|Packets of neither|Share', '... under these heads');
    is($view->{tables}[0]{caption}, 'IPv4, chain prometheus', '... of this chain');
    rows('values, and the rules without one, the largest first', $view,
        '<b>web & "co" | 48.8 KiB, 1 | 3.9 KiB, 2 | -, - | 54.0 %',
        '<no service> | -, - | -, - | 41.0 KiB, 8 | 42.0 %',
        'ssh | 1000 B, 10 | 2.9 KiB, 20 | -, - | 4.0 %');
    is(reads(), 1, '... iptables is run once');
    like($view->{paragraphs}[0], qr/added up by a label/, '... in words');
    unlike("@{ $view->{paragraphs} }", qr/without a rate/, '... and none of what has changed, since nothing can');
    is("@{ $view->{alerts} }", '', '... no complaint');
}
rows('a label that other rules have', view('by=host', '?by=host'),
    '<no host> | 48.8 KiB, 1 | 3.9 KiB, 2 | 39.1 KiB, 3 | 94.0 %', 'alpha | 1000 B, 10 | 2.9 KiB, 20 | 2.0 KiB, 5 | 6.0 %');
rows('addresses', view('by=address', '?by=address'),
    '192.0.2.1/32 | 49.8 KiB, 11 | 2.9 KiB, 20 | -, - | 54.0 %', '<no address> | -, - | -, - | 41.0 KiB, 8 | 42.0 %', '!192.0.2.2/32 | -, - | 3.9 KiB, 2 | -, - | 4.0 %');
rows('ports', view('by=port', '?by=port'),
    '80,443 | 48.8 KiB, 1 | -, - | -, - | 50.0 %', '<no port> | -, - | -, - | 41.0 KiB, 8 | 42.0 %',
    '22 | 1000 B, 10 | 2.9 KiB, 20 | -, - | 4.0 %', '!22 | -, - | 3.9 KiB, 2 | -, - | 4.0 %');
rows('protocols', view('by=l3proto', '?by=l3proto'), 'tcp | 49.8 KiB, 11 | 6.8 KiB, 22 | -, - | 58.0 %', '<no l3proto> | -, - | -, - | 41.0 KiB, 8 | 42.0 %');
rows('directions', view('by=direction', '?by=direction'),
    'in | 49.8 KiB, 11 | -, - | -, - | 51.0 %', '<no direction> | -, - | -, - | 41.0 KiB, 8 | 42.0 %', 'out | -, - | 6.8 KiB, 22 | -, - | 7.0 %');
rows('comments', view('by=comment', '?by=comment'), '<no comment> | 49.8 KiB, 11 | 6.8 KiB, 22 | 2.0 KiB, 5 | 60.0 %', 'the rest | -, - | -, - | 39.1 KiB, 3 | 40.0 %');
rows('what all rules of the table have', view('by=l2proto', '?by=l2proto'), 'ipv4 | 49.8 KiB, 11 | 6.8 KiB, 22 | 41.0 KiB, 8 | 100.0 %');
rows('a name written in escapes, among other parameters', view('an escape', '?x&by=%68os%74&by=port'),
    '<no host> | 48.8 KiB, 1 | 3.9 KiB, 2 | 39.1 KiB, 3 | 94.0 %', 'alpha | 1000 B, 10 | 2.9 KiB, 20 | 2.0 KiB, 5 | 6.0 %');
rows('a chain alone read', view('by=service with -list', '?by=host', flags => ['-list']),
    '<no host> | 48.8 KiB, 1 | 3.9 KiB, 2 | 39.1 KiB, 3 | 94.0 %', 'alpha | 1000 B, 10 | 2.9 KiB, 20 | 2.0 KiB, 5 | 6.0 %');

# What may be counted again is in rows of its own.
fake(out => save(
    '[1:100] -A prometheus -p tcp ' . comment('nfprom(a=x)') . ' -j RETURN',
    '[2:500] -A prometheus -p udp ' . comment('nfprom(a=x)'),
    '[3:300] -A prometheus -p udp ' . comment('nfprom(a=x)') . ' -j RETURN',
    '[4:0] -A prometheus -p tcp ' . comment('nfprom(a=x)') . ' -j RETURN',
    '[6:600] -A prometheus -i eth0',
));
{
    my $view = view('rules that go on', '?by=a');
    rows('they have no share, and are marked', $view, '<no a> [goes on] | -, - | -, - | 600 B, 6 | -', 'x [goes on] | -, - | -, - | 500 B, 2 | -',
        'x [unreachable: 1 of 3 rules] | -, - | -, - | 400 B, 8 | 100.0 %');
    like(join("\n", @{ $view->{paragraphs} }), qr/^After 2 of these rules a packet goes on/m, '... in words, too');
    rows('a duplicate has the labels of its match', view('by=l3proto', '?by=l3proto'), '<no l3proto> [goes on] | -, - | -, - | 600 B, 6 | -',
        'udp [goes on] | -, - | -, - | 500 B, 2 | -', 'udp | -, - | -, - | 300 B, 3 | 75.0 %', 'tcp [unreachable: 1 of 2 rules] | -, - | -, - | 100 B, 5 | 25.0 %');
}

# A value is shown as it is, not with the escapes of the exposition.
fake(out => save('[1:100] -A prometheus -p tcp ' . comment('a "b" \\ c') . ' -j RETURN'));
rows('a comment with quotes and a backslash', view('escapes', '?by=comment'), 'a "b" \\ c | -, - | -, - | 100 B, 1 | 100.0 %');

# Sums may be larger than any counter.
fake(out => save(map {"[$MAX:$MAX] -A prometheus -d 192.0.2.$_/32 -p tcp -j RETURN"} 1 .. 3));
rows('sums of more than 64 bits', view('large sums', '?by=l3proto'), 'tcp | 48.0 EiB, 55,340,232,221,128,654,845 | -, - | -, - | 100.0 %');

# Never over chains, families or policies.
fake(out => save({ chains => [':INPUT DROP [7:300]', ':a"\\<b> - [0:0]'] }, '[1:100] -A INPUT -p tcp -j ACCEPT', '[2:50] -A INPUT -p tcp -i eth0 -j RETURN', '[3:900] -A a"\\<b> -p tcp -j RETURN'));
fake6(out => save({ chains => [':INPUT ACCEPT [1:1]', ':a"\\<b> - [0:0]'] }, '[4:4] -A INPUT -p tcp -j ACCEPT'));
for (
    ['l3proto', 'IPv4, chain INPUT: policy DROP | -, - | -, - | 300 B, 7 | 75.0 %; tcp | -, - | -, - | 100 B, 1 | 25.0 %; <no l3proto> [goes on] | -, - | -, - | 50 B, 2 | -'
        . "\nIPv4, chain a\"\\<b>: tcp | -, - | -, - | 900 B, 3 | 100.0 %\nIPv6, chain INPUT: tcp | -, - | -, - | 4 B, 4 | 80.0 %; policy ACCEPT | -, - | -, - | 1 B, 1 | 20.0 %"],
    ['chain', 'IPv4, chain INPUT: policy DROP | -, - | -, - | 300 B, 7 | 75.0 %; INPUT | -, - | -, - | 100 B, 1 | 25.0 %; INPUT [goes on] | -, - | -, - | 50 B, 2 | -'
        . "\nIPv4, chain a\"\\<b>: a\"\\<b> | -, - | -, - | 900 B, 3 | 100.0 %\nIPv6, chain INPUT: INPUT | -, - | -, - | 4 B, 4 | 80.0 %; policy ACCEPT | -, - | -, - | 1 B, 1 | 20.0 %"],
) {
    my ($by, $expected) = @$_;
    my $view = view("two chains, two families, by=$by", "?by=$by", flags => [qw(-ipv6 -chain INPUT -chain), 'a"\\<b>']);
    is(join("\n", map {"$_->{caption}: " . join '; ', @{ $_->{rows} }} @{ $view->{tables} }), $expected =~ s/(?<= )-(?=[ ,;\n]|\z)/$NONE/gr, '... a table for each, a row for a policy');
}
fake6();

# A name that only the other family has.
fake(out => save('[1:100] -A prometheus -p tcp -j RETURN'));
fake6(out => save('[2:200] -A prometheus -p tcp ' . comment('nfprom(six=s)') . ' -j RETURN'));
{
    my $view = view('a name of IPv6 alone', '?by=six', flags => ['-ipv6']);
    is("@{ $view->{alerts} }", '', '... is known');
    like(join("\n", map { @{ $_->{rows} } } @{ $view->{tables} }), qr/^s \| /m, '... and has its row');
}
fake6();

# Many values.
{
    my $n = 20_000;
    fake(out => save(map {"[1:$_] -A prometheus -d 10.0." . ($_ >> 8) . '.' . ($_ & 255) . '/32 -p tcp ' . comment("nfprom(host=h$_)") . ' -j RETURN'} 1 .. $n));
    my $r = serve(get('/status?by=host'));
    answers($r, 200, "$n values");
    my @names = $r->{body} =~ /^<tr><th scope=row>(\w+)</mg; # (the strict reader is slow)
    is(join(' ', @names), join(' ', map {"h$_"} reverse 1 .. $n), '... all of them, the largest first');
    fake(out => save(map {"[1:$_] -A prometheus -d 10.0." . ($_ >> 8) . '.' . ($_ & 255) . '/32 -p tcp ' . comment("nfprom(l$_=x)") . ' -j RETURN'} 1 .. 100));
    my $view = view('100 names', '?by=l100');
    is(scalar grep({/^\?by=l\d+$/} @{ $view->{links} }), 64, '... links to the first 64');
    like($view->{tables}[0]{rows}[0], qr/^<no l100>/, '... and the last can be asked for');
}

# ---- what there is not

fake(out => save('[1:100] -A prometheus -p tcp ' . comment('nfprom(a=x)') . ' -j RETURN'));
for (
    ['nothing', '', ''], ['another name', 'b', 'b'], ['a label of policies', 'policy', 'policy'], ['... of verbatim rules', 'rule', 'rule'], ['... of no rule', 'kind', 'kind'],
    ['the row of those from comments', 'those%20from%20comments', 'those from comments'], ['a chain where there is one', 'chain', 'chain'], ['a name cut short', 'por', 'por'],
    ['a name in upper case', 'Port', 'Port'], ['HTML', '%3C/p%3E%3Cscript%3E&amp=', '</p><script>'], ['HTML as it is', q{</p><script>"'}, q{</p><script>"'}],
    ['bytes that are not UTF-8', 'caf%e9%ff', 'caf\xe9\xff'], ['control characters', '%00%0d%0aX:%20y%7f%C2%85', '\x00\x0d\x0aX: y\x7f\xc2\x85'],
    ['an override', '%e2%80%ae', '\xe2\x80\xae'], ['UTF-8', '%C3%B6', "\x{f6}"], ['escapes that are none', '%zz%4%', '%zz%4%'], ['a plus', 'a+b', 'a+b'], ['8,000 bytes', 'x' x 8000, 'x' x 8000],
    ['8,000 bytes of HTML', '<' x 8000, '<' x 8000],
) {
    my ($what, $value, $shown) = @$_;
    my $view = view("no label: $what", "?by=$value");
    is("@{ $view->{alerts} }", "There is no label \x{201c}$shown\x{201d} to add up by.", '... it says so');
    is(($view->{tables}[0]{heads} || [])->[1], 'Address', '... over the whole chain');
}
answers(serve(get('/status?by=' . 'x' x 16_384)), 414, 'a name of 16 KiB is too long for a request');
for (
    ['', ''], ['0', '0'], ['6', '6'], ['10', '10'], ['02', '02'], ['-1', '-1'], ['+1', '+1'], ['1.5', '1.5'], ['%201', '1'], ['1e0', '1e0'], ['two', 'two'], ['%00', '\x00'], ['99999999999999999999', '99999999999999999999'],
    ['%3Cscript%3E%ff', '<script>\xff'], ['x' x 8000, 'x' x 8000],
) {
    my ($value, $shown) = @$_;
    fake(out => save('[1:100] -A prometheus -p tcp ' . comment('nfprom(a=x)') . ' -j RETURN'));
    my $view = view('a bad number: ' . substr($value, 0, 30), "?by=a&seconds=$value");
    like("@{ $view->{alerts} }", qr/\Aseconds= is a number from 1 to 5, not \x{201c} ?\Q$shown\E\x{201d}: this is what was read once\.\z/, '... it says so');
    rows('what was read once', $view, 'x | -, - | -, - | 100 B, 1 | 100.0 %');
    is(reads(), 1, '... iptables is run once');
}
{
    my $view = view('both are bad', '?seconds=x&by=x');
    is(scalar @{ $view->{alerts} }, 2, '... it says both');
    fake();
    $view = view('a label that is not there', '?seconds=5&by=x');
    is(reads(), 1, '... is not waited for');
    for (['5', '5s'], ['1', '1500ms']) {
        my ($seconds, $timeout) = @$_;
        fake();
        $view = view("$seconds seconds of $timeout", "?seconds=$seconds", flags => ['-timeout', $timeout]);
        is("@{ $view->{alerts} }", 'So many seconds do not fit into the time for an answer (-timeout): this is what was read once.', '... it says that there is no time');
        is(reads(), 1, '... and reads once');
    }
}

# Who asks for one read may have all of the time for it.
fake(out => save(@lines), sleep => 5);
view('one read takes more than half of the time', '', flags => [qw(-timeout 9s)]);

# ---- the links

fake(out => save(@lines));
for my $query ('', '?by=port', '?by=nothing', '?seconds=1') {
    my $view = view("links, $query", $query);
    my @names = qw(address direction l3proto port comment host service);
    is("@{ $view->{links} }", join(' ', '?', (map {"?by=$_"} @names), '?seconds=2', map {"?by=$_&seconds=2"} @names), '... to each label that is there');
}
fake(status => 1, err => 'no');
is("@{ view('nothing was read', '?by=port', status => 503)->{links} }", '', '... no link where nothing was read');
fake(out => save());
is("@{ view('no rule', '?by=port')->{links} }", '', '... nor where there is no rule');

# ---- between two reads

# iptables-save prints the first table until it is believed, then the second: a rule that stands twice is read three times.
sub two_reads {
    my ($first, $second, %o) = @_;
    my %seen;
    my $runs = grep({ $seen{s/\A\[\S+ //r}++ } @$first) ? 3 : 1;
    spew("$DIR/runs-left", 'x' x $runs);
    chmod 0666, "$DIR/runs-left";
    spew("$DIR/second", save(\%{ $o{save} || {} }, @$second));
    fake(out => save(\%{ $o{save} || {} }, @$first),
        run => "left=\$(cat '$DIR/runs-left'); if [ ! \"\$left\" ]; then " . ($o{then} || "cat '$DIR/second'") . "; else cat \"\$OUT\"; echo \"\${left#x}\" >'$DIR/runs-left'; fi");
}

# The rows, with the rates as what was counted: by the time that the page says. (It shows few digits.)
sub counted {
    my ($view) = @_;
    my ($apart) = map {/^IPv4: the two reads were (\d+\.\d{3}) s apart\.$/} @{ $view->{paragraphs} };
    return 'no time' if !$apart;
    my %unit = (bit => 1, kbit => 1e3, Mbit => 1e6, Gbit => 1e9, Tbit => 1e12, Pbit => 1e15, Ebit => 1e18, Zbit => 1e21);
    my $round = sub { my ($n) = @_; return sprintf $n < 100 ? '%.0f' : '%.0e', $n };
    my @rows = @{ $view->{tables}[0]{rows} || [] };
    for (@rows) {
        s{([\d.]+) ([kMGTPEZ]?bit)/s}{$1 < 1000 ? $round->($1 * $unit{$2} * $apart / 8) . ' B' : 'too many digits'}ge;
        s{([\d.]+)/s}{$round->($1 * $apart)}ge;
        s/$NONE/-/g;
    }
    return join "\n", @rows;
}

my @first = (
    '[100:1000] -A prometheus -d 192.0.2.1/32 -p tcp ' . $ssh . ' -m tcp --dport 22 -j RETURN',
    '[100:1000] -A prometheus -s 192.0.2.1/32 -p tcp ' . $ssh . ' -m tcp --sport 22 -j RETURN',
    '[100:1000] -A prometheus -d 192.0.2.1/32 -p tcp ' . $web . ' -m tcp --dport 80 -j RETURN',
    '[100:1000] -A prometheus -i eth0',
    '[100:1000] -A prometheus -j RETURN',
);
my @second = (
    '[160:1200] -A prometheus -d 192.0.2.1/32 -p tcp ' . $ssh . ' -m tcp --dport 22 -j RETURN',
    '[100:1000] -A prometheus -s 192.0.2.1/32 -p tcp ' . $ssh . ' -m tcp --sport 22 -j RETURN',
    '[700:500001000] -A prometheus -d 192.0.2.1/32 -p tcp ' . $web . ' -m tcp --dport 80 -j RETURN',
    '[150:1900] -A prometheus -i eth0',
    '[140:1300] -A prometheus -j RETURN',
);
for my $flags ([], [qw(-timeout 50s)]) {
    two_reads(\@first, \@second);
    my $view = view("seconds=1 @$flags", '?seconds=1', flags => $flags);
    is(counted($view), join("\n",
        'service=<b>web & "co" -d 192.0.2.1/32 -p tcp -m tcp --dport 80 -j RETURN | 5e+08 B, 6e+02 | -, - | -, - | 100.0 %', '-i eth0 [goes on] | -, - | -, - | 9e+02 B, 50 | -',
        '-j RETURN | -, - | -, - | 3e+02 B, 40 | 0.0 %', 'host=alpha; service=ssh -d 192.0.2.1/32 -p tcp -m tcp --dport 22 -j RETURN | 2e+02 B, 60 | -, - | -, - | 0.0 %',
        'host=alpha; service=ssh -s 192.0.2.1/32 -p tcp -m tcp --sport 22 -j RETURN | -, - | 0 B, 0 | -, - | 0.0 %'), '... what each rule has counted in between, the largest first');
    my ($apart) = map {/were (\S+) s apart/} @{ $view->{paragraphs} };
    cmp_ok($apart, '>=', 1, '... the reads are a second apart, or more');
    is(reads(), 2, '... iptables is run twice');
    is("@{ $view->{changes} }@{ $view->{alerts} }", '', '... and nothing else');
}
two_reads(\@first, \@second);
is(counted(view('seconds=1&by=service', '?seconds=1&by=service')), join("\n", '<b>web & "co" | 5e+08 B, 6e+02 | -, - | -, - | 100.0 %', '<no service> [goes on] | -, - | -, - | 9e+02 B, 50 | -',
    '<no service> | -, - | -, - | 3e+02 B, 40 | 0.0 %', 'ssh | 2e+02 B, 60 | 0 B, 0 | -, - | 0.0 %'), '... the same by a label');
two_reads([map { s/\[\S+\]/[0:0]/r } @first], [map { s/\[\S+\]/[$MAX:$MAX]/r } @first]);
is(counted(view('all that a counter holds', '?seconds=1&by=port')), join("\n",
    '22 | 2e+19 B, 2e+19 | 2e+19 B, 2e+19 | -, - | 50.0 %', '80 | 2e+19 B, 2e+19 | -, - | -, - | 25.0 %', '<no port> [goes on] | -, - | -, - | 2e+19 B, 2e+19 | -',
    '<no port> | -, - | -, - | 2e+19 B, 2e+19 | 25.0 %'), '... is shown');

two_reads([rule(1, 100, '-p tcp'), rule(5, 500, '-p tcp')], [rule(31, 3100, '-p tcp'), rule(12, 1200, '-p tcp')]);
is(counted(view('two alike', '?seconds=1')), join("\n", '-p tcp -j RETURN | -, - | -, - | 3e+03 B, 30 | 81.1 %', '-p tcp -j RETURN [unreachable] | -, - | -, - | 7e+02 B, 7 | 18.9 %'), '... have each what it has counted');
two_reads([map { rule(0, 0, "-s 10.0.0.$_") } 1 .. 20], [map { rule($MAX, $MAX, "-s 10.0.0.$_") } 1 .. 20]);
like(view('twenty such', '?seconds=1&by=l2proto')->{tables}[0]{rows}[0], qr/ [12]\.\d Zbit\/s/, '... are a large sum');

# Whatever the time between the reads, one of these is a little less than 1000 Mbit a second.
{
    my @bytes = map { int 125e6 * 1.0008**$_ } 0 .. 2500;
    two_reads(map { my $n = $_; [map { my $i = $_; "[$n:" . $n * $bytes[$i] . '] -A prometheus -d 10.0.' . ($i >> 8) . '.' . ($i & 255) . '/32 -p tcp -j RETURN' } 0 .. $#bytes] } 0, 1);
    my $view  = view('rates of all sizes', '?seconds=1');
    my @rates = map { /\| ([\d.]+ [kMG])bit/ } @{ $view->{tables}[0]{rows} };
    is(scalar @rates, scalar @bytes, '... each is shown');
    is(join(' ', grep { !/\A[1-9]\d{0,2}\.\d [kMG]\z/ } @rates), '', '... as a number from 1.0 to 999.9');
    my ($last) = grep { $rates[$_] =~ /\A999\.\d M/ } 0 .. $#rates;
    ok($last, '... up to the last before the next unit');

    # (The time is cut to ms, and the rate is rounded.)
    my ($apart) = map {/were (\S+) s apart/} @{ $view->{paragraphs} };
    my $over = $last ? 8e-6 * $bytes[$#bytes - $last] / ($rates[$last] =~ /(\S+)/)[0] : 0;
    cmp_ok($over, '>', $apart - 0.0002, '... over the time that is told');
    cmp_ok($over, '<', $apart + 0.0012, '... to the millisecond');
}

# What came, went, was set back, or cannot be told apart.
sub rule { my ($packets, $bytes, $rule) = @_; return "[$packets:$bytes] -A prometheus $rule -j RETURN" }
for (
    ['a rule came',          ['1 1 -p tcp'],                               ['5 9 -i <b>', '2 2 -p tcp'], ['was not there in the first read: -i <b> -j RETURN'], ['-p tcp']],
    ['a rule went',          ['1 1 -p tcp', '5 9 -i <b>'],                 ['2 2 -p tcp'],              ['was not there in the second read: -i <b> -j RETURN'], ['-p tcp']],
    ['fewer bytes',          ['1 1 -p tcp', '5 9 -p udp'],                 ['2 2 -p tcp', '6 8 -p udp'], ['was set back between the two reads: -p udp -j RETURN'], ['-p tcp']],
    ['fewer packets',        ['1 1 -p tcp', '5 9 -p udp'],                 ['2 2 -p tcp', '4 10 -p udp'], ['was set back between the two reads: -p udp -j RETURN'], ['-p tcp']],
    ['some went, some came', [map {"1 1 -p tcp -d 10.0.0.$_"} 1 .. 4], [map {"1 1 -p udp -d 10.0.0.$_"} 1 .. 4],
        [(map {"was not there in the first read: -p udp -d 10.0.0.$_ -j RETURN"} 1 .. 4), map {"was not there in the second read: -p tcp -d 10.0.0.$_ -j RETURN"} 1 .. 4], []],
    ['another order',        ['1 1 -p tcp', '5 9 -p udp'],                 ['6 11 -p udp', '2 2 -p tcp'], [], ['-p udp', '-p tcp']],
    ['another comment',      ['1 1 -p tcp ' . comment('a'), '5 9 -p udp'], ['2 2 -p tcp ' . comment('b'), '6 11 -p udp'],
        ['was not there in the first read: b -p tcp -j RETURN', 'was not there in the second read: a -p tcp -j RETURN'], ['-p udp']],
    ['another name in it',   ['1 1 -p tcp ' . comment('nfprom(a=b)')],     ['2 2 -p tcp ' . comment('nfprom(a=c)')],
        ['was not there in the first read: a=c -p tcp -j RETURN', 'was not there in the second read: a=b -p tcp -j RETURN'], []],
    ['all alike, as many',   [('1 1 -p tcp') x 2],                         ['3 4 -p tcp', '1 1 -p tcp'], [], ['-p tcp', '-p tcp']],
    ['one more of them',     [('1 1 -p tcp') x 2, '1 1 -p udp'],           [('9 9 -p tcp') x 3, '2 2 -p udp'], [('is one of several alike, of which some came, went or were set back: -p tcp -j RETURN') x 3], ['-p udp']],
    ['one less of them',     [('1 1 -p tcp') x 2, '1 1 -p udp'],           [('9 9 -p tcp') x 1, '2 2 -p udp'], ['is one of several alike, of which some came, went or were set back: -p tcp -j RETURN'], ['-p udp']],
) {
    my ($what, $before, $after, $changes, $left) = @$_;
    two_reads(map { [map { rule(split / /, $_, 3) } @$_] } $before, $after);
    my $view = view($what, '?seconds=1');
    is(join("\n", map { s/ \[unreachable\]//r =~ s/ unreachable\z//r } @{ $view->{changes} }), join("\n", @$changes), "... $what: it is named");
    is(join('|', map { /\A(?:a=.)?(.*?) -j/ } map { @{ $_->{rows} } } @{ $view->{tables} }), join('|', @$left), '... and has no rate');
}
two_reads(['[1:1] -A INPUT -p tcp -j ACCEPT'], ['[3:801] -A INPUT -p tcp -j ACCEPT'], save => { chains => [':INPUT DROP [5:50]'] });
is(counted(view('a policy', '?seconds=1', flags => [qw(-chain INPUT)])), "-p tcp -j ACCEPT | -, - | -, - | 8e+02 B, 2 | 100.0 %\npolicy DROP | -, - | -, - | 0 B, 0 | 0.0 %", '... has a rate, too');

# What fails.
two_reads(\@first, \@second, then => 'echo broken >&2; exit 1');
{
    my $view = view('the second read fails', '?seconds=1', status => 503);
    like("@{ $view->{alerts} }", qr/\AIPv4 could not be read: .* broken/, '... the reason is told');
    is(scalar @{ $view->{tables} }, 0, '... and no rate');
    two_reads(\@first, \@second);
    fake6(status => 1, err => 'ip6 is broken');
    two_reads(\@first, \@second);
    $view = view('one family fails', '?seconds=1', flags => ['-ipv6'], stderr => qr/\Anfprom: ipv6: [^\n]*ip6 is broken\n\z/);
    like("@{ $view->{alerts} }", qr/\AIPv6 could not be read: .*ip6 is broken/, '... with its own reason');
    is(join('|', map { $_->{caption} } @{ $view->{tables} }), 'IPv4, chain prometheus', '... and the rates of the other');
    is(scalar grep({/^ip6/} commands()), 1, '... it is not asked again');
    fake6();
    fake(status => 1, err => 'broken');
    view('the first read fails', '?seconds=1', status => 503);
    is(reads(), 1, '... nothing is waited for');
    fake(sleep => 86399);
    $view = view('the first read does not end', '?seconds=1', status => 504, flags => [qw(-timeout 3s)]);
    like("@{ $view->{alerts} }", qr/did not end in time/, '... within the time for it');
}

# Two chains, each with rules before and behind those of the other.
{
    my ($before, $after) = map { my $n = $_; [map { "[$n:$n] -A $_ -j RETURN" } 'a -s 192.0.2.1/32', 'b -s 192.0.2.2/32', 'a -s 192.0.2.3/32', 'b -s 192.0.2.4/32'] } 1, 1001;
    two_reads($before, $after, save => { chains => [':a - [0:0]', ':b - [0:0]'] });
    my $view = view('two chains', '?seconds=1', flags => [qw(-chain a -chain b)]);
    is(join('|', map { my $t = $_; map { "$t->{caption}: " . s/ -j RETURN .*//r } @{ $t->{rows} } } @{ $view->{tables} }),
        'IPv4, chain a: -s 192.0.2.1/32|IPv4, chain a: -s 192.0.2.3/32|IPv4, chain b: -s 192.0.2.2/32|IPv4, chain b: -s 192.0.2.4/32', '... have each their own rates');
    is("@{ $view->{changes} }", '', '... and nothing has changed');
}

# Waiting takes no CPU time: with one second of it five are waited.
two_reads(\@first, \@second);
answers(serve(get('/status?seconds=5'), wrap => [qw(prlimit --cpu=1)]), 200, 'five seconds of waiting take less than one of the processor');

# A pipe whose other end is closed is no client that has gone.
two_reads(\@first, \@second);
like(run(input => get('/status?seconds=1'))->{out}, qr{\AHTTP/1\.1 200 .* s apart\.$}ms, 'two pipes as connection, between two reads');

# HEAD, and who does not wait.
for my $query (qw(by=service by=service&seconds=1)) {
    two_reads(\@first, \@second);
    answers(serve("HEAD /status?$query HTTP/1.0\r\n\r\n"), 200, "HEAD, $query", head => 1);
}
{
    two_reads(\@first, \@second);
    my $r = serve(get('/status?seconds=5'), unix => 1, go_away => 0);
    is($r->{exit}, 0, 'a client goes away: exit 0');
    is(reads(), 1, '... at once: without a second read');
    two_reads(\@first, \@second);
    $r = serve("GET /status?seconds=1 HTTP/1.0\r\n\r\n", half_close => 1);
    answers($r, 200, 'one that has nothing more to ask is waited for');
    is(reads(), 2, '... and gets both reads');
}

# A scrape.
two_reads(\@first, \@second);
{
    my ($plain, $asked) = map { two_reads(\@first, \@second); serve(get($_)) } '/metrics', '/metrics?by=port&seconds=5';
    answers($asked, 200, 'a scrape');
    is(reads(), 1, '... reads once, whatever the query');
    is($asked->{body} =~ s/^(nfprom_scrape_duration_seconds\S*) .*/$1/mgr, $plain->{body} =~ s/^(nfprom_scrape_duration_seconds\S*) .*/$1/mgr, '... and answers the same');
}
none_left('no process is left of all this');

done_testing;
