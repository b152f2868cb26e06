#!/usr/bin/perl

# HTTP on a real TCP connection: what each request gets, the limits, the deadline,
# and clients that are slow, silent, or gone.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Fcntl qw(:flock);
use Test::More;
use Time::HiRes qw(sleep time);
use NF;

my $HOST = "Host: localhost:9914\r\n";

# ---- what there is

for (
    # what a user is promised                           the request
    ['the metrics',                                     get('/metrics')],
    ['the metrics whatever the query string',           get('/metrics?name[]=a&x=%00;$(id)')],
    ['the metrics by their absolute URL',               get('http://localhost:9914/metrics')],
    ['the metrics by their absolute URL with a query',  get('http://127.0.0.1/metrics?x')],
    ['the metrics over HTTP/1.0 without a Host',        "GET /metrics HTTP/1.0\r\n\r\n"],
    ['the metrics for lines that end in LF alone',      "GET /metrics HTTP/1.1\nHost: x\n\n"],
    ['the metrics after an empty line',                 "\r\n" . get('/metrics')],
    ['the metrics for a field without a blank',         "GET /metrics HTTP/1.1\r\nhost:x\r\nX:\r\n\r\n"],
    ['the metrics for Latin-1 in a field',              get('/metrics', "X-Name: Andr\xe9")],
    ['the metrics for a Host that is empty',            "GET /metrics HTTP/1.1\r\nHost:\r\n\r\n"],
    ['the metrics for a timeout that is no number',     get('/metrics', 'X-Prometheus-Scrape-Timeout-Seconds: soon')],
) {
    my ($what, $request) = @$_;
    my $r = serve($request);
    answers($r, 200, "GET: $what");
    is(value($r->{series} || [], 'nfprom_scrape_success', l2proto => 'ipv4'), 1, "... $what: a success");
}

for my $path ('/', '/-/healthy', '/?x=1', 'http://localhost:9914') {
    fake();
    my $r = serve(get($path));
    answers($r, 200, "GET $path: is there");
    is(join(',', commands()), '', "GET $path: does not run iptables-save");
    next unless $path eq '/';
    like($r->{headers}{'content-type'}, qr{\Atext/html}, 'GET /: a page of HTML');
    like($r->{body}, qr{<a href="/?metrics"}, 'GET /: with a link to the metrics');
}

# ---- HEAD

answers(serve("HEAD /metrics HTTP/1.1\r\n\r\n"), 400, 'HEAD without Host: an answer without a body', head => 1);
answers(serve("HEAD /metrics HTTP/1.1\r\nHost: x\r\n" . 'A: b' x 5000), 431, 'HEAD with too many headers: the same', head => 1);
for my $path ('/metrics', '/', '/-/healthy', '/nowhere') {
    (my $request = get($path)) =~ s/^GET/HEAD/;
    my ($get, $head) = (serve(get($path)), serve($request));
    my $status = $path eq '/nowhere' ? 404 : 200;
    answers($head, $status, "HEAD $path: an answer without a body", head => 1);
    is("@{ $head->{header_names} }", "@{ $get->{header_names} }", "HEAD $path: the header fields of GET");
    cmp_ok($head->{headers}{'content-length'} || 0, '>', 0, "HEAD $path: Content-Length is that of the body");
    is($head->{headers}{'content-type'}, $get->{headers}{'content-type'}, "HEAD $path: Content-Type of GET");
    next if $path eq '/metrics';                  # has the duration in it
    is($head->{headers}{'content-length'}, $get->{headers}{'content-length'}, "HEAD $path: Content-Length of GET");
}

# ---- what there is not

fake();
answers(serve(get('/nowhere')), 404, 'a 404 says which paths there are', body => qr{\AThere is /metrics here, /status, /-/healthy and /\.\n\z});
for (
    # status, what a user is promised, the request
    [404, 'another path',                         get('/nowhere')],
    [404, 'a path that goes on',                  get('/metricsx')],
    [404, 'a path below',                         get('/metrics/x')],
    [404, 'a path in other letters',              get('/METRICS')],
    [405, 'POST',                                 "POST /metrics HTTP/1.1\r\n${HOST}Content-Length: 3\r\n\r\nx=1"],
    [405, 'PUT to a path that is not there',      "PUT /nowhere HTTP/1.1\r\n$HOST\r\n"],
    [405, 'DELETE',                               "DELETE /metrics HTTP/1.1\r\n$HOST\r\n"],
    [405, 'OPTIONS *',                            "OPTIONS * HTTP/1.1\r\n$HOST\r\n"],
    [405, 'CONNECT',                              "CONNECT localhost:22 HTTP/1.1\r\n$HOST\r\n"],
    [405, 'a method nobody knows',                "BREW /metrics HTTP/1.1\r\n$HOST\r\n"],
    [405, 'get in small letters',                 "get /metrics HTTP/1.1\r\n$HOST\r\n"],
    [400, 'HTTP/1.1 without Host',                "GET /metrics HTTP/1.1\r\n\r\n"],
    [400, 'HTTP/1.1 with two Hosts',              "GET /metrics HTTP/1.1\r\n$HOST$HOST\r\n"],
    [400, 'a Host that is only a continuation',   "GET /metrics HTTP/1.1\r\nX: a\r\n $HOST\r\n"],
    [400, 'a continuation of the request line',   "GET /metrics HTTP/1.1\r\n X: a\r\n$HOST\r\n"],
    [400, 'a blank before the colon',             "GET /metrics HTTP/1.1\r\n${HOST}X-A : b\r\n\r\n"],
    [400, 'a Host with a blank before the colon', "GET /metrics HTTP/1.1\r\nHost : x\r\n\r\n"],
    [400, 'a field without a colon',              "GET /metrics HTTP/1.1\r\n${HOST}nonsense\r\n\r\n"],
    [400, 'a field without a name',               "GET /metrics HTTP/1.1\r\n${HOST}: x\r\n\r\n"],
    [400, 'a blank in the name of a field',       "GET /metrics HTTP/1.1\r\n${HOST}X A: x\r\n\r\n"],
    [400, 'a Content-Length that is no number',   "GET /metrics HTTP/1.1\r\n${HOST}Content-Length: abc\r\n\r\n"],
    [400, 'a Content-Length below zero',          "GET /metrics HTTP/1.1\r\n${HOST}Content-Length: -1\r\n\r\n"],
    [400, 'an empty Content-Length',              "GET /metrics HTTP/1.1\r\n${HOST}Content-Length:\r\n\r\n"],
    [400, 'two of Content-Length',                "GET /metrics HTTP/1.1\r\n${HOST}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"],
    [400, 'a Transfer-Encoding without an end',   "GET /metrics HTTP/1.1\r\n${HOST}Transfer-Encoding: chunked, gzip\r\n\r\n"],
    [400, 'a NUL in a field',                     "GET /metrics HTTP/1.1\r\n${HOST}X: a\0b\r\n\r\n"],
    [400, 'a NUL in the path',                    "GET /metrics\0 HTTP/1.1\r\n$HOST\r\n"],
    [400, 'a line without a version',             "GET /metrics\r\n\r\n"],
    [400, 'one word',                             "hello\r\n\r\n"],
    [400, 'four words',                           "GET /metrics and more HTTP/1.1\r\n$HOST\r\n"],
    [[400, 404], 'a path that does not begin with /',    "GET metrics HTTP/1.1\r\n$HOST\r\n"],
    [400, 'another protocol',                     "GET /metrics RTSP/1.0\r\n$HOST\r\n"],
    [400, 'a version that is no number',          "GET /metrics HTTP/x.y\r\n$HOST\r\n"],
    [505, 'HTTP/2.0',                             "GET /metrics HTTP/2.0\r\n$HOST\r\n"],
    [505, 'HTTP/3.0',                             "GET /metrics HTTP/3.0\r\n$HOST\r\n"],
    [505, 'the preface of HTTP/2',                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
) {
    my ($status, $what, $request) = @$_;
    my $r = serve($request);
    answers($r, $status, (ref $status ? "@$status" : $status) . " for $what");
    is($r->{headers}{allow}, 'GET, HEAD', "... $what: with what is allowed") if $r->{status} == 405;
}
is(join(',', commands()), '', 'none of these runs iptables-save');

# ---- limits

sub line_of { my ($n) = @_; my $l = 'GET /metrics?' . ' HTTP/1.1'; return 'GET /metrics?' . 'x' x ($n - length $l) . ' HTTP/1.1' }
sub lines_of { my ($n) = @_; return $HOST . join '', map {"X-$_: y\r\n"} 2 .. $n }

for (
    [200, 'a request line of 8192 bytes',              line_of(8192) . "\r\n$HOST\r\n"],
    [414, 'a request line of 8193 bytes',              line_of(8193) . "\r\n$HOST\r\n"],
    [414, 'a request line of a megabyte',              line_of(1 << 20) . "\r\n$HOST\r\n"],
    [200, '100 header lines',                          "GET /metrics HTTP/1.1\r\n" . lines_of(100) . "\r\n"],
    [431, '101 header lines',                          "GET /metrics HTTP/1.1\r\n" . lines_of(101) . "\r\n"],
    [431, '10,000 header lines',                       "GET /metrics HTTP/1.1\r\n" . lines_of(10_000) . "\r\n"],
    [200, 'headers of 16 KiB with all their ends',     "GET /metrics HTTP/1.1\r\n${HOST}X: " . 'y' x (16384 - length("${HOST}X: ") - 4) . "\r\n\r\n"],
    [431, 'headers of 16 KiB and a byte without any',  "GET /metrics HTTP/1.1\r\n${HOST}X: " . 'y' x (16385 - length("${HOST}X: ") + 2) . "\r\n\r\n"],
    [431, 'headers of a megabyte in many lines',       "GET /metrics HTTP/1.1\r\n$HOST" . ('X: ' . 'y' x 8000 . "\r\n") x 130 . "\r\n"],
    [200, 'both at their limit',                       line_of(8192) . "\r\n${HOST}X: " . 'y' x (16384 - length("${HOST}X: ") - 4) . "\r\n\r\n"],
) {
    my ($status, $what, $request) = @$_;
    answers(serve($request), $status, "$status for $what");
}
answers(serve('GET /' . 'x' x 100_000, flags => ['-timeout', '60m']), 414,
    '414 for a request line that does not end, before the deadline');
answers(serve("GET / HTTP/1.1\r\nX: " . 'x' x 100_000, flags => ['-timeout', '60m']), 431,
    '431 for a header that does not end, before the deadline');
answers(serve("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" . "\x5a" x 32, flags => ['-timeout', '60m']), 400,
    '400 at once for a client that speaks TLS and waits');

# ---- one request, one answer

sub answers_in { my ($r) = @_; return scalar(() = $r->{raw} =~ m{HTTP/1\.1 \d}g) }

fake();
my $two = serve(get('/metrics') . get('/'));
answers($two, 200, 'of two requests in one go the first is answered');
is(answers_in($two), 1, '... and the second is not');
answers(serve("GET /metrics HTTP/1.1\r\n${HOST}Content-Length: 40\r\n\r\n" . get('/nowhere')), 200,
    'a body is not read as a request');
answers(serve("GET /metrics HTTP/1.1\r\n${HOST}Transfer-Encoding: gzip\r\nTransfer-Encoding: deflate, Chunked\r\n\r\n0\r\n\r\n"), 200,
    '... nor is a body that comes in chunks');
answers(serve("GET /metrics HTTP/1.1\r\n${HOST}Transfer-Encoding: , chunked , ,\r\n\r\n0\r\n\r\n"), 200, '... with empty elements behind that word');
for my $status (404, 400) {
    my $bad = $status == 404 ? get('/nowhere') : "hello\r\n\r\n";
    is(answers_in(serve($bad . get('/'))), 1, "one answer after a $status as well");
}

# ---- bodies of megabytes

my $post = "POST /metrics HTTP/1.1\r\n${HOST}Content-Length: 3000000\r\n\r\n";
answers(serve($post . 'x' x 3_000_000, read_last => 1), 405,
    'a POST of 3 MB in one go gets its whole 405, also if the client reads last');
answers(serve([$post, map { ('x' x 100_000, \0.02) } 1 .. 30], read_last => 1), 405,
    'a POST of 3 MB sent bit by bit gets its whole 405');
answers(serve([$post, \0.5, 'x' x 3_000_000], read_last => 1), 405,
    'a POST whose body comes late gets its whole 405');
answers(serve(get('/metrics') . 'x' x 3_000_000, read_last => 1), 200,
    'a GET with 3 MB behind it gets its whole answer');
answers(serve("GET /" . 'x' x 3_000_000 . " HTTP/1.1\r\n$HOST\r\n", read_last => 1), 414,
    'a request line of 3 MB gets its whole 414');
{
    # The answer may be lost: there is no end of what else comes.
    my $r = serve([get('/metrics'), ('x' x (1 << 20)) x 64], read_last => 1, flags => ['-timeout', '60m']);
    cmp_ok($r->{unsent} // 0, '>', 32, 'of 64 MiB behind a request less than half is read');
    is("$r->{exit}|$r->{stderr}", '0|', '... and that is no error');
}

# ---- large answers

my $rules = 20_000;
fake(out => filter_table(map { sprintf '-s 10.%d.%d.0/24 -p tcp -m tcp --sport 443 -j RETURN', $_ >> 8, $_ & 255 } 1 .. $rules));
for (
    ['a fast reader'],
    ['a slow reader with a small window', rcvbuf => 4096, read_chunk => 40_000, read_pause => 0.01],
    ['a reader that has sent all it will', half_close => 1],
    ['a reader on a local socket',         unix => 1, read_chunk => 100_000, read_pause => 0.01],
) {
    my ($who, @how) = @$_;
    my $r = serve(get('/metrics'), flags => ['-timeout', '60m'], @how);
    answers($r, 200, "an answer of megabytes arrives whole at $who");
    is(scalar series($r->{series} || [], 'nfprom_packets_total'), $rules, "... at $who: every rule");
}

{
    # What it reads behind the deadline is the part that the kernel had taken.
    my $r = serve([get('/metrics'), \4, ''], flags => ['-timeout', '2s'], rcvbuf => 4096, read_last => 1);
    is($r->{exit}, 0, 'a client that does not read in time: exit 0');
    my ($got, $all) = $r->{stderr} =~ /\Anfprom: the client 127\.0\.0\.1 did not read in time: it got (\d+) of (\d+) bytes\n\z/;
    is($got // $r->{stderr}, length $r->{raw}, '... and a line for the log that says how much it got');
    cmp_ok($all // 0, '>', 2_000_000, '... of how much');
}

# ---- clients that go away

for my $sigpipe ('DEFAULT', 'IGNORE') {
    my @setup = (setup => sub { $SIG{PIPE} = $sigpipe });
    for my $reset (0, 1) {
        my $how = ($reset ? 'with a reset' : 'quietly') . ", SIGPIPE $sigpipe";
        for (['in the middle of the answer', go_away => 1000], ['before the answer', go_away => 0]) {
            my ($when, @go) = @$_;
            my $r = serve(get('/metrics'), @go, reset => $reset, rcvbuf => 4096, @setup);
            is("$r->{exit}|$r->{stderr}", '0|', "a client that goes away $when is no error ($how)");
        }
        for my $part ('', 'G', "GET /metrics HTTP/1.1\r\nHost: x\r\n") {
            my $r = serve($part, go_away => 0, reset => $reset, @setup);
            is("$r->{exit}|$r->{stderr}", '0|',
                'a client that goes away after ' . length($part) . " bytes of a request is no error ($how)");
        }
    }
}
fake();
{
    my $r = serve('', half_close => 1);
    is("$r->{exit}|$r->{raw}|$r->{stderr}", '0||', 'a connection that says nothing and closes: nothing, and no error');
    is(join(',', commands()), '', '... and iptables-save is not run');
}
answers(serve(get('/metrics'), half_close => 1), 200, 'a client that closes its sending side after the request is answered');
answers(serve("GET /metrics HTTP/1.1\r\nHost: x\r\n", half_close => 1), 400, '400 for a request that ends too early');
answers(serve("GET /metr", half_close => 1), 400, '400 for a request line that ends too early');
{
    fake(sleep => 1);
    my $r = serve(get('/metrics'), go_away => 0, reset => 1);
    is("$r->{exit}|$r->{stderr}", '0|', 'a client that resets the connection while iptables-save works is no error');
    none_left('... and leaves no process');
}

# ---- the deadline

fake();
my @slowly = map { ($_, \0.2) } split //, "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: " . 'x' x 400;
for (
    ['a client that trickles one byte at a time', \@slowly],
    ['a client that stops in the request line',   'GET /met'],
    ['a client that stops in the headers',        "GET /metrics HTTP/1.1\r\nHost: x\r\n"],
) {
    my ($who, $request) = @$_;
    my $r = serve($request, flags => ['-timeout', '1s']);
    cmp_ok($r->{unsent} // 0, '>', 0, "the answer does not wait for the rest from $who") if ref $request;
    delete $r->{read_error} if ref $request;      # it goes on writing; the answer comes first
    answers($r, 408, "408 for $who");
}
{
    my $r = serve('', flags => ['-timeout', '1s']);
    ok(!$r->{hung}, 'a silent client is not waited for beyond the deadline');
    is("$r->{exit}|$r->{stderr}", '0|', '... and is no error');
    ok($r->{raw} eq '' || $r->{status} == 408, '... and is told nothing else than 408');
}
answers(serve([map { ($_, \0.002) } split //, get('/metrics')], flags => ['-timeout', '60m']), 200,
    'a request that comes in single bytes within the deadline is answered');

fake(sleep => 86_399);
for (
    ['a scrape timeout shortens the deadline',       '60m', 'X-Prometheus-Scrape-Timeout-Seconds: 1.5'],
    ['in any letters',                               '60m', 'x-prometheus-scrape-timeout-seconds:1'],
    ['a scrape timeout does not lengthen it',        '1s',  'X-Prometheus-Scrape-Timeout-Seconds: 3600'],
    ['not even an enormous one',                     '1s',  'X-Prometheus-Scrape-Timeout-Seconds: 1e300'],
    ['nor one that is no number',                    '1s',  'X-Prometheus-Scrape-Timeout-Seconds: inf'],
) {
    my ($promise, $timeout, $field) = @$_;
    answers(serve(get('/metrics', $field), flags => ['-timeout', $timeout]), 504, $promise);
}
fake();
answers(serve(get('/metrics', 'X-Prometheus-Scrape-Timeout-Seconds: 10')), 200, 'a usual scrape timeout does no harm');

# ---- not only TCP

answers(serve(get('/metrics'), unix => 1), 200, 'a local socket as connection does as well');
{
    my $r = run(input => get('/-/healthy'));
    like($r->{out}, qr{\AHTTP/1\.1 200 .*\r\n\r\n.}s, 'two pipes as connection do as well');
    is($r->{exit}, 0, '... and are left with status 0');

    # who reads the answer sees its end while nfprom still takes what comes from the client
    my ($runs, $answer) = (0, '');
    for my $try (1 .. 20) {    # (of a slow machine: for two seconds it does)
        pipe my $in,  my $request or die "pipe: $!";
        pipe my $out, my $to      or die "pipe: $!";
        my $pid = spawn(in => $in, out => $to);
        close $_ for $in, $to;
        syswrite $request, get('/-/healthy');
        $answer = do { local $/; <$out> };
        $runs = defined readlink "/proc/$pid/fd/0";    # who is about to end has closed it
        close $request;
        reap($pid);
        last if $runs;
    }
    like($answer, qr{\AHTTP/1\.1 200 }, 'a pipe as connection, the other one is open');
    ok($runs, '... the answer has its end all the same');

    # who does not read
    fake(out => save(map {"[1:$_] -A prometheus -d 10.0." . ($_ >> 8) . '.' . ($_ & 255) . '/32 -p tcp -j RETURN'} 1 .. 2000));
    pipe my $unread, my $to or die "pipe: $!";
    $r = run(input => get('/metrics'), out => $to, flags => [qw(-timeout 2s)]);
    is($r->{exit}, 0, 'who does not read from a pipe is not waited for beyond the deadline');
    like($r->{err}, qr/\Anfprom: the client did not read in time: it got \d+ of \d+ bytes\n\z/, '... which the log says');
    fake();
}

# ---- the lock of the legacy tables, which nft does not have

for (
    # who prints it, what the others get while somebody holds the lock
    ['iptables-save v1.8.9 (nf_tables)',  200],
    ['iptables-nft-save v1.8.4',          200],
    ['iptables-legacy-save v1.8.4',       503],
    ['iptables-save v1.8.9',              503],
) {
    my ($program, $status) = @$_;
    fake(out => save({ program => $program }, '[1:2] -A prometheus -p tcp'));
    open my $held, '+<', $LOCK or die "$LOCK: $!";
    flock $held, LOCK_EX or die "flock: $!";
    my $r = serve(get('/metrics'), flags => ['-timeout', $status == 200 ? '60m' : '5s']);
    answers($r, $status, "$status while somebody holds the lock, from $program", $status == 503 ? (body => qr/\Q$LOCK\E/) : ());
}
unlink $LOCK;
answers(serve(get('/metrics')), 200, 'where there is no such file it is made');
is(sprintf('%04o', (stat $LOCK)[2] & 07777), '0600', '... as iptables would make it');
fake();

# ---- the date

{
    my $r = serve(get('/-/healthy'));
    my @now = gmtime;
    my $year = $now[5] + 1900;
    like($r->{headers}{date}, qr/ (?:$year|@{[$year + 1]}) /, 'Date is of this year');
}
none_left('no process is left of all this');

done_testing;
