#!/usr/bin/perl

# OpenMetrics 1.0: who gets it, and that it says what the text format says. The reader of the format is NF::parse_openmetrics.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use NF;

my $TYPE = { text => 'text/plain; version=0.0.4; charset=utf-8', openmetrics => 'application/openmetrics-text; version=1.0.0; charset=utf-8' };
my $WANT = 'Accept: application/openmetrics-text; version=1.0.0';

# ---- the reader of the tests is strict

my $whole = <<'END';
# HELP a_b Words, \"more\" and \\ and \n.
# TYPE a_b counter
a_b_total{x="1",y=""} 18446744073709551615
a_b_total{x="2",y="\\ \" \n"} 0
# TYPE c gauge
# HELP c 
c 0.5
# TYPE d_seconds gauge
# UNIT d_seconds seconds
# HELP d_seconds x
d_seconds{} 1
# HELP e x
# TYPE e gauge
# EOF
END
is((parse_openmetrics($whole))[0], '', 'a whole OpenMetrics exposition is read');
is((parse_openmetrics("# EOF\n"))[0], '', '... an empty one, too');
for (
    ['no end',                           sub { s/# EOF\n// }],
    ['no line feed after the end',       sub { s/\n\z// }],
    ['something after the end',          sub { $_ .= "x 1\n" }],
    ['an empty line after the end',      sub { $_ .= "\n" }],
    ['an end in the middle',             sub { s/^(# TYPE c)/# EOF\n$1/m }],
    ['an empty line',                    sub { s/^(# TYPE c)/\n$1/m }],
    ['an empty line first',              sub { s/^/\n/ }],
    ['carriage returns',                 sub { s/\n/\r\n/g }],
    ['a blank at the end',               sub { s/ 0\.5$/ 0.5 /m }],
    ['two blanks',                       sub { s/ 0\.5$/  0.5/m }],
    ['another comment',                  sub { s/^/# Hello\n/ }],
    ['metadata with _total',             sub { s/(HELP|TYPE) a_b/$1 a_b_total/g }],
    ['a gauge with _total',              sub { s/^c 0/c_total 0/m }],
    ['a counter without _total',         sub { s/a_b_total/a_b/g }],
    ['_created',                         sub { s/^(# TYPE c)/a_b_created{x="1"} 5\n$1/m }],
    ['HELP twice',                       sub { s/^(# HELP c.*\n)/$1$1/m }],
    ['TYPE twice',                       sub { s/^(# TYPE c.*\n)/$1$1/m }],
    ['UNIT twice',                       sub { s/^(# UNIT d.*\n)/$1$1/m }],
    ['UNIT that is not in the name',     sub { s/UNIT d_seconds seconds/UNIT d_seconds bytes/ }],
    ['TYPE after samples',               sub { s/^(# TYPE c gauge\n)(# HELP c \nc.*\n)/$2$1/m }],
    ['no TYPE',                          sub { s/^# TYPE c.*\n//m }],
    ['no HELP',                          sub { s/^# HELP c.*\n//m }],
    ['a type of the text format',        sub { s/gauge/untyped/ }],
    ['a family in two pieces',           sub { s/^(# EOF)/a_b_total{x="3"} 1\n$1/m }],
    ['a family that begins again',       sub { s/^(# EOF)/# TYPE a_b counter\n$1/m }],
    ['two families of one sample',       sub { s/^(# EOF)/# TYPE a_b_total unknown\n# HELP a_b_total x\n$1/m }],
    ['a series twice',                   sub { s/^(a_b_total.*\n)/$1$1/m }],
    ['... but for an empty label',       sub { s/^(a_b_total\{x="1"),y=""(.*\n)/$1$2$1,z=""$2/m }],
    ['a label twice',                    sub { s/x="1",y/x="1",x/ }],
    ['a comma too many',                 sub { s/y=""\}/y="",}/ }],
    ['a reserved label',                 sub { s/y=/__y=/ }],
    ['a label with a digit first',       sub { s/y=/1y=/ }],
    ['a name with a minus',              sub { s/^c 0/c-d 0/m }],
    ['another escape',                   sub { s/\\\\ \\"/\\t \\"/ }],
    ['a quote not escaped in HELP',      sub { s/\\"more/"more/ }],
    ['another escape in HELP',           sub { s/\\"more/\\xmore/ }],
    ['a fraction of a counter',          sub { s/\} 0$/} 0.5/m }],
    ['a negative counter',               sub { s/\} 0$/} -1/m }],
    ['NaN',                              sub { s/ 0\.5$/ NaN/m }],
    ['no value',                         sub { s/ 0\.5$//m }],
    ['a timestamp',                      sub { s/ 0\.5$/ 0.5 1/m }],
    ['an exemplar',                      sub { s/\} 0$/} 0 # {} 1/m }],
    ['bytes that are not UTF-8',         sub { s/x="1"/x="\xe9"/ }],
) {
    my ($what, $break) = @$_;
    local $_ = $whole;
    $break->();
    ok($_ ne $whole && (parse_openmetrics($_))[0] ne '', "the reader takes no $what") or diag($_);
}

# ---- who gets which

my $OM = 'application/openmetrics-text';
for (
    # answer      who                               Accept
    ['text',        'no Accept'],
    ['openmetrics', 'Prometheus 2.42',              "$OM;version=1.0.0,$OM;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
    ['openmetrics', 'Prometheus 2.4x with protobuf', "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,"
                                                    . "$OM;version=1.0.0;q=0.6,$OM;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3"],
    ['openmetrics', 'Prometheus 3',                 "$OM;version=1.0.0;escaping=allow-utf-8;q=0.6,$OM;version=0.0.1;q=0.5,"
                                                    . "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"],
    ['openmetrics', 'Prometheus 3 that escapes names', "$OM;version=1.0.0;escaping=underscores;q=0.5,$OM;version=0.0.1;q=0.4,"
                                                    . "text/plain;version=1.0.0;escaping=underscores;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"],
    ['text',        'Prometheus 2 before 2.5',      'text/plain;version=0.0.4;q=1,*/*;q=0.1'],
    ['text',        'Prometheus 2.5 to 2.32',       "$OM; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
    ['text',        'Prometheus 3 told to take text', 'text/plain;version=0.0.4;q=0.6,' . "$OM;version=1.0.0;q=0.5,*/*;q=0.1"],
    ['text',        'curl, wget',                   '*/*'],
    ['text',        'Firefox',                      'text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8'],
    ['text',        'Chromium',                     'text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7'],
    ['text',        'an old browser',               'text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2'],
    ['text',        'an empty Accept',              ''],
    ['text',        'only commas',                  ', ,,'],
    ['text',        'text/plain',                   'text/plain'],
    ['text',        'text/plain of its version',    'text/plain; version=0.0.4'],
    ['text',        'text of any kind',             'text/*'],
    ['text',        'what there is not',            'application/json'],
    ['text',        'what there is not, else text', 'application/json, text/plain;q=0.5'],
    ['text',        'html, else text',              'text/html, text/plain;q=0.1'],
    ['openmetrics', 'what there is not, else OpenMetrics', "application/json, $OM;q=0.5"],
    ['text',        'protobuf, else any',           'application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited, */*;q=0.2'],
    ['openmetrics', 'OpenMetrics',                  $OM],
    ['openmetrics', 'OpenMetrics 1.0.0',            "$OM; version=1.0.0"],
    ['openmetrics', 'OpenMetrics in other letters', 'Application/OpenMetrics-Text; Version=1.0.0'],
    ['openmetrics', 'a version in quotes',          "$OM; version=\"1.0.0\""],
    ['openmetrics', 'a character set',              "$OM; version=1.0.0; charset=utf-8"],
    ['openmetrics', 'q first',                      "$OM;q=0.9;version=1.0.0, text/plain;q=0.8"],
    ['openmetrics', 'blanks and tabs',              "$OM \t;\tversion=1.0.0 ; q=0.9 ,\ttext/plain ;q=0.8"],
    ['openmetrics', 'Q in other letters',           "$OM;Q=0.9, text/plain;Q=0.8"],
    ['openmetrics', 'a separator in quotes',        "$OM; version=1.0.0; x=\",text/plain;q=1\", text/plain;q=0.9"],
    ['openmetrics', 'a quote escaped in quotes',    "$OM; version=1.0.0; x=\"\\\",text/plain\", text/plain;q=0.9"],
    ['text',        'OpenMetrics 0.0.1 alone',      "$OM; version=0.0.1"],
    ['text',        'OpenMetrics 2.0.0 alone',      "$OM; version=2.0.0"],
    ['text',        'OpenMetrics of an empty version', "$OM; version="],
    ['text',        'OpenMetrics 0.0.1, else text', "$OM;version=0.0.1, text/plain;q=0.5"],
    ['text',        'OpenMetrics 0.0.1, else any',  "$OM;version=0.0.1, */*;q=0.5"],
    ['text',        'a type that begins like it',   "$OM-x; version=1.0.0, text/plain;q=0.1"],
    ['text',        'a tie',                        "$OM;version=1.0.0;q=0.5, text/plain;version=0.0.4;q=0.5"],
    ['text',        'a tie, the other way round',   "text/plain, $OM"],
    ['text',        'a tie of 1 and 1.000',         "$OM;q=1.000, text/plain"],
    ['text',        'a tie by any',                 "$OM;q=0.5, */*;q=0.5"],
    ['openmetrics', 'a thousandth more',            "$OM;q=0.501, text/plain;q=0.5"],
    ['text',        'a thousandth less',            "$OM;q=0.499, text/plain;q=0.5"],
    ['text',        'no OpenMetrics',               "$OM;q=0, */*;q=0.1"],
    ['text',        'no OpenMetrics, 0.000',        "$OM;q=0.000, text/plain;q=0.001"],
    ['openmetrics', 'no text',                      "text/plain;q=0, */*"],
    ['text',        'nothing at all',               '*/*;q=0'],
    ['text',        'neither',                      "$OM;q=0, text/plain;q=0"],
    ['openmetrics', 'text less than the rest',      'text/*;q=0.3, */*;q=0.8'],
    ['openmetrics', 'application of any kind',      'application/*, text/*;q=0.5'],
    ['text',        'the more precise counts: less OpenMetrics', "*/*, $OM;q=0.5"],
    ['openmetrics', 'the more precise counts: less text', '*/*, text/plain;q=0.5'],
    ['openmetrics', 'the version is more precise',  "$OM;q=0.1, $OM;version=1.0.0;q=0.9, text/plain;q=0.5"],
    ['text',        'the version is more precise: less', "$OM, $OM;version=1.0.0;q=0.4, text/plain;q=0.5"],
    ['text',        'a q that is none',             "$OM;q=2, text/plain;q=0.1"],
    ['text',        'a q of a word',                "$OM;q=high, text/plain;q=0.1"],
    ['text',        'an empty q',                   "$OM;q=, text/plain;q=0.1"],
    ['text',        'a negative q',                 "$OM;q=-1, text/plain;q=0.1"],
    ['text',        'a q of too many digits',       "$OM;q=0.99999, text/plain;q=0.1"],
    ['text',        'a type without a slash',       'openmetrics'],
    ['text',        'a quote that is never closed', "x; y=\"$OM, $OM"],
    ['openmetrics', 'a hundred other types first',  join(',', map({"a/$_"} 1 .. 100), "$OM;q=0.9", 'text/plain;q=0.8')],
) {
    my ($format, $who, $accept) = @$_;
    my $r = serve(get('/metrics', defined $accept ? "Accept: $accept" : ()));
    answers($r, 200, "$format for $who", openmetrics => scalar(($r->{headers}{'content-type'} // '') =~ /openmetrics/));
    is($r->{headers}{'content-type'}, $TYPE->{$format}, "... $who: Content-Type");
}
for (
    ['openmetrics', 'two lines of Accept',            "Accept: text/plain;q=0.5", "Accept: $OM;q=0.9"],
    ['text',        'two lines the other way round',  "Accept: $OM;q=0.5", "Accept: text/plain;q=0.9"],
    ['openmetrics', 'accept in small letters',        "accept:$OM"],
    ['text',        'another header',                 "Accept-Language: $OM", "X-Accept: $OM"],
    ['text',        'Content-Type of the request',    "Content-Type: $OM; version=1.0.0"],
) {
    my ($format, $who, @headers) = @$_;
    is(serve(get('/metrics', @headers))->{headers}{'content-type'}, $TYPE->{$format}, "$format for $who");
}

# ---- the same in both

my $ESCAPES = q(-m comment --comment "a \\"b\\" \\\\ don\\'t {x=\\"y\\"} # EOF) . "\n# EOF\nx_total 1\n\n" . qq(\t\r \xe9 \xc3\xa9 \xf0\x9f\x90\xab \x01" );
my @RULES   = (
    "-d 192.0.2.1/32 -p tcp $ESCAPES-m tcp --dport 22 -j RETURN", '-s 192.0.2.1/32 -j RETURN', '-s 192.0.2.1/32 -j DROP',
    "-i eth0 $ESCAPES-j RETURN", "-i x\xe9 -j RETURN", '-j RETURN', '',
    map { $_ . $ESCAPES =~ s/"a/"nfprom(z=a/r =~ s/" \z/;host=alpha)" /r } '-p udp ', '-o eth0 ',
);

# {series} => value, each with its family's type and help as the text format has them; and the order of them.
sub told {
    my (@series) = @_;
    my %told = map {
        my $s = $_;
        (join("\0", $s->{name}, map {"$_=$s->{labels}{$_}"} sort keys %{ $s->{labels} }) => $s->{value})
    } grep { $_->{name} !~ /duration/ } @series;
    return (\%told, [map { $_->{line} =~ s/ \S+\z//r } @series]);
}

sub metadata {
    my ($text, $counters) = @_;
    return [map { /^# (?:HELP|TYPE) / ? s/^(# \S+ \S+?)(?:_total)?( .*)/$1$2/r : () } split /\n/, $text];
}

sub same {
    my ($promise, $flags, %o) = @_;
    my ($text, $om) = map { serve(get('/metrics', $_), flags => $flags) } 'Accept: text/plain', $WANT;
    answers($text, 200, "$promise: the text format", %o);
    answers($om, 200, "$promise: OpenMetrics", %o, openmetrics => 1);
    my ($t, $t_order) = told(@{ $text->{series} || [] });
    my ($o, $o_order) = told(@{ $om->{series} || [] });
    is_deeply($o, $t, "... $promise: the same series with the same values");
    is_deeply($o_order, $t_order, "... $promise: in the same order");
    is_deeply(metadata($om->{body}), metadata($text->{body}), "... $promise: with the same metadata");
    is(join(' ', $om->{body} =~ /^# \w+ (\S+_total) /mg), '', "... $promise: no _total in the metadata of OpenMetrics");
    cmp_ok(scalar(keys %$o), '>', 5, "... $promise: and there are some");
    return $om;
}

fake(out => filter_table(@RULES));
{
    my $om = same('one chain', []);
    my ($info) = series($om->{series}, 'nfprom_rule_info');
    is($info->{labels}{comment}, qq(a "b" \\ don't {x="y"} # EOF\n# EOF\nx_total 1\n\n\t\r \\xe9 \x{e9} \x{1f42b} \x01), 'a comment with all that is escaped comes through');
    for my $name (qw(nfprom_bytes_total nfprom_rule_bytes_total)) {
        my ($labelled) = series($om->{series}, $name, host => 'alpha');
        is($labelled->{labels}{z}, $info->{labels}{comment}, "... as does a label from a comment, in $name");
        like($labelled->{line}, qr/"(?:,dup=""|,port=""),host="alpha",z="a /, '... behind the others, sorted');
    }
    my %types = map { $_->{family}{name} => $_->{family}{TYPE} } @{ $om->{series} };
    is(join(' ', map {"$_=$types{$_}"} sort keys %types),
        join(' ', sort qw(nfprom_packets=counter nfprom_bytes=counter nfprom_rule_info=gauge nfprom_rule_packets=counter nfprom_rule_bytes=counter
            nfprom_rules=gauge nfprom_nonterminal_rules=gauge nfprom_unreachable_rules=gauge nfprom_chain_references=gauge nfprom_label_errors=gauge nfprom_build_info=gauge nfprom_scrape_success=gauge nfprom_scrape_duration_seconds=gauge)),
        'the families and their types');
    is(value($om->{series}, 'nfprom_packets_total', port => 22), 101, 'a counter has its _total');
    like($om->{body}, qr/\n# EOF\n\z/, '# EOF ends it');
    is(scalar(() = $om->{body} =~ /^# EOF$/mg), 1, '... once');
}
same('another namespace', ['-namespace', 'total']);
same('a namespace that ends in total', ['-namespace', 'x_total']);
same('with -list', ['-list']);
fake(out => filter_table());
same('an empty chain', []);
fake(out => save({ chains => [':INPUT DROP [18446744073709551615:9007199254740993]', ':OUTPUT ACCEPT [4:5]', ':prometheus - [0:0]'] },
    map { my $c = $_; map {"[18446744073709551615:9007199254740993] -A $c $_"} @RULES } qw(prometheus INPUT OUTPUT)));
fake6(out => save({ chains => [':INPUT DROP [1:2]', ':OUTPUT ACCEPT [4:5]', ':prometheus - [0:0]'] },
    map { my $c = $_; map { "[3:4] -A $c " . s{192.0.2.1/32}{2001:db8::1/128}r } @RULES } qw(prometheus INPUT OUTPUT)));
{
    my $om = same('three chains of two families', ['-ipv6', map { ('-chain', $_) } qw(prometheus INPUT OUTPUT)]);
    is(value($om->{series}, 'nfprom_policy_packets_total', chain => 'INPUT', l2proto => 'ipv4'), '18446744073709551615', 'the largest counter, digit for digit');
    is(value($om->{series}, 'nfprom_policy_bytes_total', chain => 'INPUT', l2proto => 'ipv4'), '9007199254740993', '... and one that no double holds');
    same('the same with -list', ['-list', '-ipv6', map { ('-chain', $_) } qw(prometheus INPUT OUTPUT)]);
}
fake6(out => '', status => 3, err => "boom\n");
{
    my $om = same('one of two families fails', ['-ipv6'], exit => 0, stderr => qr/\Anfprom: ipv6: [^\n]+boom[^\n]*\n\z/);
    is(join(' ', map { value($om->{series}, 'nfprom_scrape_success', l2proto => $_) } qw(ipv4 ipv6)), '1 0', '... and OpenMetrics says so');
    fake(out => '', status => 3, err => "bang\n");
    fake6(out => filter_table('-p tcp'));
    same('the other of two families fails', ['-ipv6'], exit => 0, stderr => qr/\Anfprom: ipv4: [^\n]+bang[^\n]*\n\z/);
    fake6();
}

# ---- nothing but /metrics is in that format

fake(out => '', status => 3, err => "boom\n");
for (
    [503, 'a failure',         [],                get('/metrics', $WANT)],
    [404, 'another path',      [],                get('/nowhere', $WANT)],
    [405, 'another method',    [],                "POST /metrics HTTP/1.1\r\nHost: x\r\n$WANT\r\n\r\n"],
    [400, 'no Host',           [],                "GET /metrics HTTP/1.1\r\n$WANT\r\n\r\n"],
    [500, 'wrong flags',       ['-nonsense'],     get('/metrics', $WANT)],
    [200, 'whether it lives',  [],                get('/-/healthy', $WANT)],
) {
    my ($status, $what, $flags, $request) = @$_;
    my $r = serve($request, flags => $flags);
    answers($r, $status, "$what: $status");
    is($r->{headers}{'content-type'}, 'text/plain; charset=utf-8', "... $what: in plain text");
}
fake(sleep => 86399);
is(serve(get('/metrics', $WANT), flags => ['-timeout', '1s'])->{headers}{'content-type'}, 'text/plain; charset=utf-8', 'too slow: in plain text');
fake();
like(serve(get('/', $WANT))->{headers}{'content-type'}, qr{^text/html}, 'the page stays a page');
unlike(print_mode()->{out}, qr/# EOF/, '-print prints the text format');

# ---- HEAD, and other ways to ask

for my $accept ('Accept: text/plain', $WANT) {
    my ($get, $head) = (serve(get('/metrics', $accept)), serve(get('/metrics', $accept) =~ s/^GET/HEAD/r));
    answers($head, 200, "HEAD with $accept", head => 1);
    is("@{ $head->{header_names} }", "@{ $get->{header_names} }", '... has the header fields of GET');
    is(join("\n", map { $head->{headers}{$_} } qw(content-type content-length)), join("\n", map { $get->{headers}{$_} } qw(content-type content-length)),
        '... and their Content-Type and Content-Length');
}
answers(serve("GET /metrics HTTP/1.0\r\n$WANT\r\n\r\n"), 200, 'over HTTP/1.0', openmetrics => 1);
answers(serve(get('/metrics?x=1', $WANT)), 200, 'with a query', openmetrics => 1);
answers(serve([map { ($_, \0.002) } split //, get('/metrics', $WANT)]), 200, 'byte by byte', openmetrics => 1);

# ---- much of it

fake(out => filter_table(map { sprintf '-s 10.%d.%d.0/24 -p tcp -m tcp --sport 443 -j RETURN', $_ >> 8, $_ & 255 } 1 .. 20_000));
{
    my $r = serve(get('/metrics', $WANT), flags => ['-timeout', '60m']);
    answers($r, 200, 'an answer of megabytes', openmetrics => 1);
    is(scalar series($r->{series} || [], 'nfprom_bytes_total'), 20_000, '... with every rule');
}
none_left('no process is left of all this');

done_testing;
