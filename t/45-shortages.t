#!/usr/bin/perl

# What can fail, what nfprom does then, and where that is tested (40: 40-faults.t, and so on; no number: here).
# In every row: no number is invented, the reason names the cause, a failure is one line in the log, no process is left, and
# all is over by the deadline.
#
#   what fails                                          what nfprom does                                      tested
#   --------------------------------------------------  ----------------------------------------------------  ------
#   fork, in nfprom (EAGAIN, ENOMEM)                    503 `cannot start a process`
#   fork, in popen                                      503 `no shell`
#   fork, in -addr                                      that connection is closed, one line; goes on
#   fork, in what iptables-save starts                  503, or 200 with all numbers: every call in turn
#   pipe (EMFILE, ENFILE), in nfprom, in popen          503 with the kernel's words: every call in turn
#   dup, exec, in popen                                 503; exec's says `no shell`
#   the shell, iptables-save: not there, no rights      503: install, PATH; not: CAP_NET_ADMIN
#   memory, every call in turn, once and from then on   200 with all numbers, or 503
#   ... bounded: output without end                     503, 504                                              40
#   descriptors: limits 3 to 20                         200 or 503, in order: never worse with more
#   descriptors, -addr (accept: EMFILE, ENFILE)         waits, one line for the shortage; goes on             here, 50
#   what gives up rights (setresuid, capset, prctl)     nothing, exit 1, `rights cannot be dropped`            here, 55
#   processes: limits as another user                   200 or 503; -addr goes on                             40, 50
#   address space, data, stack, core, CPU               200 or 503 (a CPU limit: `status 152`)                here, 40
#   file size                                           -print: exit 1, `too large`; HTTP: 200
#   read: EINTR                                         again
#   read: EIO, every call in turn                       200 with all numbers, or 503
#   ... of the request; poll: ENOMEM                    nothing, exit 1, `standard input cannot be read`
#   poll: EINTR                                         again
#   send: EINTR, EAGAIN, one byte at a time             again, until the deadline
#   read, send: EPIPE, ECONNRESET                       nobody to tell: exit 0
#   send: ENOBUFS, EIO                                  exit 1, `cannot answer`
#   a client that goes away, reads slowly, reads nothing  exit 0                                              30
#   close: EIO                                          nothing is lost
#   wait: EINTR / ECHILD                                again / 503: a status unknown is no success
#   the lock: cannot be opened                          read without                                          40
#   disk full, quota, error told by write or by close   -print: exit 1 with the kernel's words                here, 40
#   ... README's crontab line                           takes nfprom.prom away, never shows half a file
#   standard streams closed: all eight                  -print, HTTP: works without err; else exit 1          here, 40
#   /dev/null missing, and streams closed               the same
#   standard error full, nobody reads it                the answer comes all the same, in time; also -addr
#   standard error: nobody there, disk full             the same
#   standard error: many processes share it             a line is one write
#   syslog stuck                                        the answer comes all the same, in time
#   syslog                                              gets the reason                                       40
#   standard input at its end at once                   nothing, exit 0                                       30
#   PATH unset, empty, without iptables-save            /usr/sbin is looked in                                here, 10
#   PATH: a directory or a text of that name first      goes on to the next
#   language, decimal comma                             iptables-save speaks C; numbers have points
#   the time of day jumps                               only the header Date tells it
#   signals ignored, blocked by the parent              as if they were not; -addr too                        here, 40
#   iptables-save killed, in the middle of its output   503                                                   here, 40
#   iptables-save replaced while it runs                200 with all numbers
#   the collector, the shell killed                     503
#   iptables-save hangs                                 504                                                   40
#   iptables-save says nonsense, stops early            503                                                   40
#   nfprom killed                                       leaves no process                                     40
#   2,000 clients of -addr that say nothing             408, or closed at once: 256 at once; the next is answered; nothing grows

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::IP;
use IO::Socket::UNIX;
use POSIX ();
use Socket;
use Test::More;
use Time::HiRes qw(sleep time);
use NF;

my $GOOD = filter_table('-d 192.0.2.1/32 -p tcp -m tcp --dport 22 -j RETURN', '-j RETURN');
my $many = filter_table(map {'-d 10.' . ($_ >> 8) . '.' . ($_ & 255) . '.1/32 -j RETURN'} 1 .. 3000);
my $NUMBERS = 'nfprom_packets_total 101, nfprom_bytes_total 6401, nfprom_rule_packets_total 102, nfprom_rule_bytes_total 6402';
my $FILES = qr/too many open files|no file descriptors/i;    # in the words of glibc, of musl
my $MEMORY = qr/memory/i;
my $SOURCE = "$FindBin::Bin/..";

# What is counted here are the system calls of a program alone, not those of a dynamic loader or of a sanitizer. Where nfprom
# is not static, it is the same source that is.
if (slurp($NFPROM) =~ m{/ld-(?:linux|musl)}) {
    my @cc = grep {-x} map {"$_/musl-gcc"} split /:/, $ENV{PATH};
    if (!@cc) { SKIP: { skip_or_fail('nfprom is not static, and there is no musl-gcc') } done_testing; exit }
    system($cc[0], qw(-std=c11 -O1 -static -DVERSION="test" -o), "$DIR/static", "$SOURCE/nfprom.c", "$SOURCE/parse.c") == 0 or BAIL_OUT('musl-gcc');
    $NFPROM = "$DIR/static";
}

# ---- what came of it

# '200' (whole, every number right), '503', '504' (with a reason, and one line of log), 'nothing'; or what is wrong.
sub outcome {
    my ($r) = @_;
    my $said = "$r->{exit} '$r->{stderr}' " . substr $r->{raw}, 0, 300;
    return "no end: $said" if $r->{hung} || $r->{exit} eq 'still running';
    return $r->{raw} eq '' ? 'nothing' : "no answer: $said" if !$r->{status};
    return "length: $said" if ($r->{headers}{'content-length'} || 0) != length $r->{body};
    if ($r->{status} == 200) {
        my ($error, @series) = parse_metrics($r->{body});
        my $got = join ', ', map {"$_->{name} $_->{value}"} grep { $_->{name} =~ /_total\z/ } @series;
        my @others = map { $_->{labels}{rule} // 'none' } series(\@series, 'nfprom_rule_packets_total');
        $error ||= "rules @others" if "@others" ne '-j RETURN';
        return $error || $got ne $NUMBERS || value(\@series, 'nfprom_scrape_success') ne '1' ? "numbers: $error $got"
            : $r->{exit} eq '0' && $r->{stderr} eq '' ? 200 : "log: $said";
    }
    return "answer: $said" if $r->{status} !~ /\A50[34]\z/ || $r->{exit} ne '1' || $r->{body} =~ /^nfprom_/m;
    return $r->{on_socket} || $r->{quiet} || $r->{stderr} =~ /\Anfprom: (?:ipv4: )?[^\n]+\n\z/ ? $r->{status} : "log: $said";
}

# A test: a scrape ends so, and for this reason.
sub scrape_is {
    my ($expected, $why, $promise, %how) = @_;
    my $r = serve(get('/metrics'), %how);
    $r->{quiet} = $how{quiet};
    my $got = outcome($r);
    my $ok = $got =~ /\A(?:$expected)\z/ && (!$why || $got eq 200 || "$r->{body} $r->{stderr}" =~ $why);
    ok($ok, "$expected: $promise") or diag("$got\n$r->{body}$r->{stderr}");
    return $r;
}

# ---- faults, one at a time

my $FAULT = "$DIR/fault";
my $can = can_fault($FAULT);
sub fault { return (wrap => [$FAULT, split / /, shift], env => { FAULTS => "$DIR/faults" }) }
sub faults { return length slurp("$DIR/faults") }

# A test: with this call failing a scrape ends so.
sub with_fault {
    my ($fault, $expected, $why, %how) = @_;
    unlink "$DIR/faults";
    my $r = scrape_is($expected, $why, "with $fault" . ($how{what} ? ", $how{what}" : ''), fault($fault), %how);
    ok(faults(), "... with $fault: it was called") if !$how{maybe};
    return $r;
}

# A test: whichever call of that kind fails, the outcome is one of these. Ends with the first run that has no such call.
sub sweep {
    my ($fault, $expected, $why) = @_;
    my ($n, $hit, @bad, %seen) = (0, 1);
    while ($hit && $n++ < 400 && @bad < 3) {
        unlink "$DIR/faults";
        (my $this = $fault) =~ s/\bN\b/$n/;
        my $r = serve(get('/metrics'), fault($this));
        my $got = outcome($r);
        $hit = faults();
        $seen{$got}++;
        last if !$hit && $got eq 200;
        push @bad, "$this: $got $r->{body}" if $got !~ /\A(?:$expected)\z/ || $got eq 503 && $why && $r->{body} !~ $why;
    }
    ok(!@bad && $n > 1 && !$hit, "$expected: with $fault for each N, " . ($n - 1) . ' calls') or diag join "\n", $n, @bad;
    return %seen;
}

SKIP: {
    skip_or_fail('cannot trace a process here', 1) unless $can;
    fake(out => $GOOD);
    with_fault('fork 1 EAGAIN', 503, qr/cannot start a process: .*(?:unavailable|again)/);
    with_fault('fork 1 ENOMEM', 503, qr/cannot start a process: .*memory/i);
    with_fault('-f fork 2 EAGAIN', 503, qr/no shell: .*(?:unavailable|again)/, what => q(popen's own));
    sweep('-f fork N EAGAIN', '200|503', qr/cannot start|no shell|fork|gave no counters/i);
    sweep("-f pipe N $_", 503, qr/(?:cannot start a process|no shell): /) for 'EMFILE', 'ENFILE';
    with_fault('-f pipe 1+ EMFILE', 503, $FILES);
    with_fault('-f exec 1 EACCES', 503, qr/no shell: Permission denied(?!.*CAP_NET_ADMIN)/, what => 'of the shell');
    with_fault("-f exec 1 $_->[0]", 503, qr/no shell: $_->[1]/, what => 'of the shell')
        for ['ENOENT', 'No such file'], ['ENOMEM', '.*memory'], ['E2BIG', 'Arg'];
    sweep('-f dup N EIO', '200|503', qr/cannot start a process: (?:the collector has been killed|I\/O error)|no shell: I\/O error|gave no counters: /);
    with_fault('-f open 1 EMFILE', 200, undef, what => 'the lock, which nft does not need');

    # memory: nothing is known of what libc does with it, so each call
    my %seen = (sweep('memory N ENOMEM', '200|503'), sweep('memory N+ ENOMEM', '200|503'));
    ok($seen{200}, '... and at last it is enough');
    {
        # Also what the command needs to be found and understood.
        my ($n, @bad) = (0);
        my %env = (FAULTS => "$DIR/faults", LC_ALL => 'de_DE', PATH => "$DIR/bin:/usr/bin:/bin");
        do {
            unlink "$DIR/faults";
            my $r = serve(get('/metrics'), wrap => [$FAULT, 'memory', ++$n, 'ENOMEM'], env => \%env);
            my @got = slurp("$DIR/environment") =~ /^((?:LC_ALL|PATH)=.*)$/mg;
            my $got = join ' ', sort @got;
            push @bad, "$n: $got" if $r->{status} == 200 && $got ne "LC_ALL=C PATH=$env{PATH}:/usr/sbin:/sbin";
        } while faults() && $n < 200 && @bad < 3;
        is("@bad", '', "no memory for the Nth call, and no success without the command's environment, $n calls");
    }
    fake(out => filter_table('-d 192.0.2.1/32 -p tcp -m tcp --dport 22 -j RETURN', '-j RETURN') =~
        s{(?=COMMIT)}{join '', map {"[1:1] -A INPUT -s 10.0.$_.0/24 -j ACCEPT\n"} 1 .. 200}er);
    sweep('-f memory N ENOMEM', '200|503');
    fake(out => filter_table(qq(-d 192.0.2.1/32 -p tcp -m comment --comment "caf\xe9" -m tcp --dport 22 -j RETURN), '-j RETURN'));
    sweep('memory N ENOMEM', '200|503');    # also for a text that is shown in other bytes
    my $each = filter_table(map {qq(-i eth$_ -j LOG --log-prefix "a target of its own, number $_ ")} 1 .. 3000);
    for (
        ['3,000 rules',                    $many, qr/^nfprom_bytes_total/m],
        ['... each with a target of its own', $each, qr/^nfprom_rule_bytes_total\{l2proto="ipv4",rule="-i eth(\d+) -j LOG --log-prefix \\"a target of its own, number \1 \\""/m],
    ) {
        my ($what, $out, $one) = @$_;
        fake(out => $out);
        my ($n, $got, @bad, @kept) = (0, '');
        do {
            unlink "$DIR/faults";
            my $r = serve(get('/metrics'), fault('memory ' . ++$n . '+ ENOMEM'));
            push @kept, $r->{body} =~ /after (\d+) rules/;
            my $rules = () = $r->{body} =~ /$one/g;
            $got = "$r->{status} $r->{exit} $rules";
            push @bad, "$n: $got" if $got !~ /\A(?:200 0 3000|503 1 0)\z/ || $got =~ /^503/ && "$r->{body}|$r->{stderr}" !~ $MEMORY;
        } while faults() && $n < 200 && @bad < 3;
        is("@bad $got", ' 200 0 3000', "$what, and memory ends at the Nth call: all or `memory`, $n calls");
        ok(scalar grep({ $_ > 0 && $_ < 3000 } @kept), "... and where in the chain it was: @kept");
    }
    fake(out => $GOOD);

    # the page that adds up needs more of it, when all is read
    my %ends;
    my ($n, $got, @bad) = (0, '');
    do {
        unlink "$DIR/faults";
        my $r = serve(get('/status?by=port'), fault('memory ' . ++$n . '+ ENOMEM'));
        my ($alert) = $r->{body} =~ /<p role=alert>(.*)/;
        $got = join ' ', $r->{status}, $r->{exit}, map { $_ ? 'said' : 'silent' } $alert, $r->{stderr};
        $ends{ $got . ($r->{stderr} =~ /add up/ ? ' of sums' : '') }++;
        push @bad, "$n: $got $r->{body}" if $got !~ /\A(?:200 0 silent silent|503 1 said said)\z/;
    } while faults() && $n < 200 && @bad < 3;
    is("@bad $got", ' 200 0 silent silent', "/status?by=, and memory ends at the Nth call: all or a reason, $n calls");
    ok($ends{'503 1 said said of sums'}, '... also when it ends at the sums');

    sweep('read N EINTR', 200);
    sweep('-f read N EIO', '200|503|nothing');
    sweep('poll N EINTR', 200);
    for my $fault ('poll 1 ENOMEM', 'read 1 EIO') {
        my $r = with_fault($fault, 'nothing');
        like("$r->{exit} $r->{stderr}", qr/\A1 nfprom: standard input cannot be read: [^\n]+\n\z/, '... which is not the client that went');
    }
    is(with_fault('read 1 ECONNRESET', 'nothing')->{exit}, 0, '... and this is');
    # the first is the word for the collector, the others are the answer
    with_fault('send 1 EINTR', 200);
    with_fault("send 1 $_->[0]", 503, qr/cannot start a process: $_->[1]/i)
        for ['EPIPE', 'the collector has been killed'], ['ECONNRESET', 'the collector has been killed'], ['ENOBUFS', 'no buffer space'], ['short', ''];
    with_fault('capabilities 1 EPERM', 200, undef, what => 'since root loses them with the user');
    for my $fault ('user 1 EPERM', 'prctl 1+ EPERM') {
        my $r = with_fault($fault, 'nothing');
        like("$r->{exit} $r->{stderr}", qr/\A1 nfprom: the rights cannot be dropped, so nothing is read: [^\n]+\n\z/, '... and no request is read');
    }
    SKIP: {
        need_root(2);
        my @as_user = qw(setpriv --reuid=65534 --clear-groups --inh-caps=+net_admin --ambient-caps=+net_admin);
        my $r = scrape_is('nothing', undef, 'with capabilities 1 EPERM, of a user who keeps his right then', wrap => [@as_user, $FAULT, qw(capabilities 1 EPERM)]);
        like("$r->{exit} $r->{stderr}", qr/\A1 nfprom: the rights cannot be dropped, so nothing is read: [^\n]+\n\z/, '... and no request is read');
    }
    with_fault('-f send 2 ENOBUFS', 503, qr/cannot start a process: .*buffer/i, flags => [qw(-variant legacy)], what => "the collector's answer"); # (of legacy tables the kernel is not asked: those questions would be sent, too)
    with_fault('send 2 EINTR', 200);
    with_fault('send 2 EAGAIN', 200);
    with_fault('send 2+ short', 200, undef, what => 'a byte at a time');
    with_fault('read 1+ short', 200, undef, what => 'a byte at a time');
    for (['EPIPE', '0 '], ['ECONNRESET', '0 '], ['ENOBUFS', '1 nfprom: cannot answer: [^\n]+\n'], ['EIO', '1 nfprom: cannot answer: [^\n]+\n']) {
        my ($error, $end) = @$_;
        my $r = with_fault("send 2 $error", 'nothing');
        like("$r->{exit} $r->{stderr}", qr/\A$end\z/, "... with $error of send: its status");
    }
    my $r = with_fault('send 2+ EAGAIN', 'nothing', undef, flags => [qw(-timeout 1s)], what => 'until the deadline');
    like("$r->{exit} $r->{stderr}", qr/\A0 nfprom: the client 127\.0\.0\.1 did not read in time: it got 0 of \d+ bytes\n\z/, '... and that is a client that reads nothing: a line for the log');
    with_fault('wait 1 EINTR', 200);
    with_fault('-f wait 1 EINTR', 200);
    with_fault('wait 1 ECHILD', 200);
    # (By a command that waits for nothing itself: so the first wait is the one for it.)
    mkdir "$DIR/alone";
    spew("$DIR/alone/iptables-save", "#!/bin/sh\nexec cat '$DIR/iptables.out'\n");
    chmod 0755, "$DIR/alone/iptables-save";
    with_fault('-f wait 1 ECHILD', 503, undef, what => 'so that the status is not known', env => { FAULTS => "$DIR/faults", PATH => "$DIR/alone:$DIR/bin:/usr/bin:/bin" });
    with_fault('close 1+ EIO', 200);

    # the time of day
    $r = with_fault('clock 1+ jump', 200, undef, what => 'a day at each look');
    my @tomorrow = gmtime time + 86400;
    like($r->{headers}{date}, qr/, @{[POSIX::strftime('%d', @tomorrow)]} /, '... of which the header Date tells, once');
    cmp_ok(($r->{body} =~ /^nfprom_scrape_duration_seconds\S+ (\S+)/m)[0], '<', 30, '... and the duration does not');
    fake(sleep => 86399);
    $r = with_fault('clock 1+ jump', 504, undef, flags => [qw(-timeout 1s)], what => 'a day at each look');
    cmp_ok($r->{seconds}, '>', 0.9, '... not before the deadline');
    fake(out => $GOOD);

    # -print
    for (
        # fault               exit  standard error
        ['write 1 EINTR',     '0 '],
        ['write 1+ short',    '0 '],
        ['write 1 ENOSPC',    '1 nfprom: cannot print: No space left on device\n'],
        ['write 2 EIO',       '1 nfprom: cannot print: [^\n]+\n'],
        ['close 1+ EDQUOT',   '1 nfprom: cannot print: [^\n]+\n'],
        ['memory 2+ ENOMEM',  '1 nfprom: [^\n]+\n'],
    ) {
        my ($fault, $end, $maybe) = @$_;
        fake(out => $fault =~ /2/ ? $many : $GOOD);    # so much that it takes several writes
        unlink "$DIR/faults";
        $r = run(flags => ['-print'], fault($fault));
        like("$r->{exit} $r->{err}", qr/\A$end\z/, "-print with $fault");
        ok($maybe || faults(), '... it was called');
    }

    # a line of the log is one write: others may write to the same file
    fake(out => '', status => 3, err => 'some ' x 100 . "words\n");
    $r = serve(get('/metrics'), fault('write 2+ EIO'));
    like("$r->{exit} $r->{stderr}", qr/\A1 nfprom: ipv4: [^\n]* words\n\z/, 'a line of the log is one write');
    fake(out => $GOOD);
}
none_left('no process is left of any fault');

# ---- limits

fake(out => $GOOD);
{
    my (@order, @why);
    for my $n (3 .. 20) {
        my $r = serve(get('/metrics'), wrap => [shell_limit("-n $n")]);
        push @order, my $got = outcome($r);
        push @why, "$n: $r->{body}" if $got eq 503 && $r->{body} !~ /$FILES|cannot (?:create|open|fork)|gave no counters|sh: .*Invalid argument/i;
    }
    like("@order", qr/\A(?:503 )+(?:200 ?)+\z/, 'descriptors, 3 to 20: 503, and 200 from some number on');
    is("@why", '', '... for that reason');
    my $bad = join ' ', grep { !/\A(?:0 [1-9]|1 0)/ } map {
        my $r = run(flags => ['-print'], wrap => [shell_limit("-n $_")]);
        my $numbers = () = $r->{out} =~ /^nfprom_\w+_total\{/mg;
        "$r->{exit} $numbers at $_: $r->{err}";
    } 3 .. 20;
    is($bad, '', '... the same with -print');
}
for my $limit ('-c 0', '-s 64', '-s 256', '-d 64', '-d 1000', '-d 4000', '-v 3000', '-v 6000', '-t 1', '-l 0') {
    my $r = serve(get('/metrics'), wrap => [shell_limit($limit)]);
    # where the kernel has no room for the program itself, there is no nfprom
    ok($r->{exit} =~ /^signal/ && $r->{raw} eq '' && $limit =~ /^-[dv]/ || outcome($r) =~ /\A(?:200|503)\z/, "200 or 503: ulimit $limit")
        or diag(outcome($r), $r->{body});
}
fake(run => 'while :; do :; done');
scrape_is(503, qr/status (?:152|137)/, 'ulimit -t 1, and an iptables-save that computes for ever',
    wrap => [shell_limit('-t 1', '-c 0')], flags => ['-timeout', '60m']);
fake(out => $GOOD);
{
    # the fake writes files; here is one that does not
    mkdir "$DIR/bare";
    spew("$DIR/bare/iptables-save", "#!/bin/sh\ncat '$DIR/iptables.out'\n");
    chmod 0755, "$DIR/bare/iptables-save";
    my @how = (wrap => [shell_limit('-f 1')], env => { PATH => "$DIR/bare:/usr/bin:/bin" });
    my $r = run(flags => ['-print'], @how);
    like("$r->{exit} $r->{err}", qr/\A1 nfprom: [^\n]*too large\n\z/i, '-print with ulimit -f 1: exit 1 and why');
    is(run(flags => ['-print'], @how, wrap => [shell_limit('-f 0')])->{exit}, 1, '... with ulimit -f 0: exit 1');
    scrape_is(200, undef, 'ulimit -f 1 is nothing to HTTP', @how);
}
none_left('no process is left under any limit');

# ---- a machine that lacks something

# What to put before nfprom so that it has mounts of its own, made by these lines of shell.
sub apart { return (wrap => ['unshare', '-m', '/bin/sh', '-c', "mount --make-rprivate / && " . join(' && ', @_) . ' || exit 125; exec "$@"', 'sh']) }

# exit status, whether all numbers are there, what is said
sub brief {
    my ($r) = @_;
    my $got = join ', ', $r->{out} =~ /^(nfprom_\w+_total)\{.*\}( \d+)$/mg;
    $got =~ s/, (?= )//g;
    return "$r->{exit}|" . ($got eq $NUMBERS ? 'all' : $r->{out} =~ /^nfprom_/m ? 'some' : 'none') . "|$r->{err}";
}

SKIP: {
    need_root(1);
    skip_or_fail('cannot make a mount namespace', 1) unless system(qw(unshare -m true)) == 0;

    for my $dev ([], [apart('mount -t tmpfs none /dev')]) {
        my @how = @$dev;
        my $where = @how ? 'no /dev/null' : 'closed';
        for my $closed ('', 'in', 'out', 'err', 'in out', 'in err', 'out err', 'in out err') {
            my %c = map { $_ => 'closed' } split / /, $closed;
            my $line = $c{err} ? '' : 'nfprom: [^\n]+\n';
            my $r = run(flags => ['-print'], @how, %c);
            my $end = $c{out} ? "1\\|none\\|$line" : '0\|all\|';
            like(brief($r), qr/\A$end\z/, "$where, -print without: $closed");
            $r = run(flags => [], @how, $c{in} ? () : (input => get('/metrics')), %c);
            $end = $c{in} || $c{out} ? "1\\|none\\|$line" : '0\|all\|';
            like(brief($r), qr/\A$end\z/, "$where, HTTP without: $closed");
        }
        my $r = run(flags => [], @how, input => get('/-/healthy'), out => 'closed');
        like("$r->{exit} $r->{err}", qr/\A1 nfprom: [^\n]+\n\z/, "$where, HTTP without: out, where iptables is not run");
        none_left("$where: and no process is left");
    }

    # PATH; nfprom looks in /usr/sbin and /sbin, too
    my @sbin = map {"mount -t tmpfs none $_"} '/usr/sbin', -l '/sbin' || -l '/usr/sbin' ? () : '/sbin';
    my @there = (@sbin, "cp $DIR/bin/iptables-save /usr/sbin/");
    mkdir "$DIR/$_" for qw(dir text);
    mkdir "$DIR/dir/iptables-save";
    spew("$DIR/text/iptables-save", "not a program\n");
    my $usual = '/usr/bin:/bin';
    for (
        # PATH                        mounts   outcome and why                                    what
        ['-u PATH',                   \@there, 200, undef,                                        'unset'],
        ['PATH=',                     \@there, 200, undef,                                        'empty'],
        ["PATH=$usual",               \@there, 200, undef,                                        'without iptables-save'],
        ["PATH=$DIR/dir:$usual",      \@there, 200, undef,                                        'with a directory of that name'],
        ["PATH=$DIR/text:$usual",     \@there, 200, undef,                                        'with a text of that name'],
        ["PATH=$usual",               \@sbin,  503, qr/not found; install iptables/,              'without it, nor is it in /usr/sbin'],
        ["PATH=$DIR/dir:$usual",      \@sbin,  503, qr/iptables-save: (?:not found; install|Permission denied\n)/, 'with a directory alone'],
        ["PATH=$DIR/text:$usual",     \@sbin,  503, qr/iptables-save: Permission denied(?!.*CAP_NET_ADMIN)/, 'with a text alone'],
    ) {
        my ($path, $mounts, $expected, $why, $what) = @$_;
        my @how = apart(@$mounts);
        push @{ $how[1] }, '/usr/bin/env', split / /, $path;
        scrape_is($expected, $why, "a PATH $what", @how);
    }
    scrape_is(503, qr/no shell: Permission denied(?!.*CAP_NET_ADMIN)/, 'no /bin/sh',
        apart('mount --bind /dev/null $(readlink -f /bin/sh)'));

    # a full disk, and README's line for it
    my ($line) = slurp("$SOURCE/README.md") =~ m{^(cd \S+ && \S*/nfprom -print > .*)$}m;
    ok($line, 'README has a line for crontab');
    $line =~ s{cd \S+ && \S*/nfprom}{cd $DIR/disk && "\$0"};
    mkdir "$DIR/disk";
    for my $kib (0, 1016, 1020) {
        fake(out => $many) if $kib;
        my @mount = apart("mount -t tmpfs -o size=1m none $DIR/disk", "echo nfprom_old 1 > $DIR/disk/nfprom.prom",
            "head -c ${kib}k /dev/zero > $DIR/disk/filler");
        push @{ $mount[1] }, '/bin/sh', '-c', "$line; test ! -e nfprom.prom || cat nfprom.prom";
        my $r = run(@mount);
        if   (!$kib) { is(brief($r), '0|all|', q(README's line for crontab: the file is whole)) }
        else         { like("$r->{out}|$r->{err}", qr/\A\|nfprom: cannot print: No space left on device\n\z/,
            "... a disk with ${kib} KiB of 1024 taken: neither half a file nor the old one, and the reason") }
    }
    fake(out => $GOOD);

    # syslog that does not take a word more
    my $log = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => "$DIR/log") or die "log: $!";
    my $full = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Peer => "$DIR/log") or die "log: $!";
    $full->blocking(0);
    1 while defined send $full, 'x', 0;
    fake(out => '', err => "boom\n", status => 1);
    my $r = scrape_is(503, qr/boom/, 'syslog is stuck', stderr_on_socket => 1, flags => ['-timeout', '4s'],
        apart('mount -t tmpfs none /dev', 'mknod -m 666 /dev/null c 1 3', "ln -s $DIR/log /dev/log"));
    fake(out => $GOOD);
}
none_left('no process is left of these');

# ---- standard error that takes nothing

sub full_pipe {
    pipe my $read, my $write or die "pipe: $!";
    $write->blocking(0);
    1 while defined syswrite $write, 'x' x 4096;
    1 while defined syswrite $write, 'x';
    $write->blocking(1);
    return ($read, $write);
}

my @SOON = (flags => ['-timeout', '4s'], quiet => 1);
fake(out => '', status => 3, err => "boom\n");
{
    my ($read, $write) = full_pipe();
    scrape_is(503, qr/boom/, 'standard error is full and nobody reads it', err => $write, @SOON);
    my $r = serve(get('/metrics'), err => $write, flags => ['-nonsense']);
    is("$r->{status} $r->{exit}", '500 2', '... wrong flags are answered, too');
    fake(out => $GOOD);
    scrape_is(200, undef, '... and a success is one', err => $write, @SOON);
    fake(out => '', status => 3, err => "boom\n");
    close $read;
    scrape_is(503, qr/boom/, 'standard error is a pipe to nobody', err => $write, @SOON);
    open my $disk, '>', '/dev/full' or die "/dev/full: $!";
    scrape_is(503, qr/boom/, 'standard error is on a full disk', err => $disk, @SOON);
}
none_left('no process is left that waits for standard error');

# ---- what else happens to iptables-save

# More than a pipe holds: when it is written, nfprom reads, so the collector has told that it started.
my $read_on = q(yes '# a remark' | head -n 20000);

for (
    # how                                      the script                                         outcome and why
    ['killed in the middle of its output',     'head -c 200 $OUT; kill -KILL $$',                 503, qr/status 137/],
    ['terminated in the middle of a rule',     'head -c 250 $OUT; kill -TERM $$',                 503, qr/status 143/],
    ['whose collector is killed',              $read_on . '; cat $OUT; kill -KILL $PPID',         503, qr/status 137/],
    ['whose collector is killed before',       $read_on . '; kill -KILL $PPID; cat $OUT',         503, qr/status 137/],
    ['whose whole group is killed',            $read_on . '; cat $OUT; kill -KILL 0',             503, qr/status 137/],
    ['replaced while it runs',                 q(head -c 200 $OUT; echo 'echo rubbish; exit 3' > $0.new; mv $0.new $0; tail -c +201 $OUT), 200],
) {
    my ($how, $script, $expected, $why) = @$_;
    fake(out => $GOOD, run => $script);
    scrape_is($expected, $why, "an iptables-save $how");
}
none_left('no process is left of them');

# ---- language

fake(out => $GOOD);
scrape_is(200, undef, 'a language with a decimal comma', flags => ['-timeout', '1.5m'],
    env => { map { $_ => 'de_DE.UTF-8' } qw(LC_ALL LC_NUMERIC LC_MESSAGES LANG LANGUAGE) });
is(join(' ', slurp("$DIR/environment") =~ /^(LC_ALL=.*)$/mg), 'LC_ALL=C', '... iptables-save speaks C');

# ---- -addr

sub dial { return IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $_[0], Type => SOCK_STREAM, $_[1] ? (LocalHost => $_[1]) : ()) }

sub children {
    my ($pid) = @_;
    return grep { slurp("/proc/$_/stat") =~ /\) \S $pid / } map {m{/proc/(\d+)}} glob '/proc/[0-9]*/stat';
}

sub free_port {
    my $free = IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => 0, Listen => 1, Type => SOCK_STREAM) or die "no port: $@";
    return $free->sockport;
}

# Starts a listener, which is not asked anything before the test does. Options as spawn's.
sub listener {
    my (%o) = @_;
    my $port = free_port();
    open my $err, '+>:raw', "$DIR/listener.err" or die;
    my $pid = spawn(err => $err, %o, flags => ['-addr', "127.0.0.1:$port", @{ $o{flags} || [] }]);
    my $hex = sprintf '0100007F:%04X 00000000:0000 0A', $port;
    patiently(sub { slurp('/proc/net/tcp') =~ /$hex/ }) or diag('does not listen: ' . slurp("$DIR/listener.err"));
    my ($traced) = $o{wrap} ? children($pid) : ();
    return { pid => $pid, port => $port, server => $traced || $pid };
}

sub ask {
    my ($l, $host) = @_;
    my $sock = IO::Socket::IP->new(PeerHost => $host || '127.0.0.1', PeerPort => $l->{port}, Type => SOCK_STREAM) or return { status => 0, raw => '' };
    return converse($sock, get('/metrics'));
}

sub ends {
    my ($l, $promise, $log) = @_;
    kill TERM => $l->{server};
    is(reap($l->{pid}), 0, "$promise: SIGTERM ends it with status 0");
    none_left("$promise: and no process is left");
    like(slurp("$DIR/listener.err"), $log || qr/\A\z/, "$promise: the log");
}

fake(out => $GOOD);
SKIP: {
    skip_or_fail('cannot trace a process here', 1) unless $can;
    for (
        # fault              the first   the log
        ['accept 1 EMFILE',  200,        qr/\Anfprom: -addr: a connection has to wait: [^\n]*(?:open files|descriptors)[^\n]*\n\z/],
        ['accept 1 ENFILE',  200,        qr/\Anfprom: -addr: a connection has to wait: [^\n]+\n\z/],
        ['accept 1 EINTR',   200,        qr/\A\z/],
        ['fork 1 EAGAIN',    0,          qr/\Anfprom: -addr: a connection is lost, no process for it: [^\n]+\n\z/],
        ['poll 1 EINTR',     200,        qr/\A\z/],
    ) {
        my ($fault, $first, $log) = @$_;
        unlink "$DIR/faults";
        my $l = listener(fault($fault));
        is(ask($l)->{status}, $first, "-addr with $fault: the first connection");
        is(ask($l)->{status}, 200, '... the next is answered');
        ok(faults(), '... and it was called');
        ends($l, "-addr with $fault", $log);
    }

    # Of a port alone one address is of IPv4, and the other of IPv6, which a kernel may not have.
    for (['EAFNOSUPPORT', 'one'], ['EMFILE', 'none']) {
        my ($error, $least) = @$_;
        my ($n, %seen) = (0);
        do {
            unlink "$DIR/faults";
            my $port = free_port();
            open my $err, '+>:raw', "$DIR/listener.err" or die;
            my $pid = spawn(fault('socket ' . ++$n . " $error"), err => $err, flags => ['-addr', ":$port"]);
            my $answering = sub { return grep { ask({ port => $port }, $_)->{status} } qw(127.0.0.1 ::1) };
            patiently(sub { $answering->() || slurp("/proc/$pid/stat") =~ /\) Z / });
            my @at = $answering->();    # where one answers the other has been tried
            $seen{ @at ? ('one', 'both')[$#at] : slurp("$DIR/listener.err") =~ /\Anfprom: -addr :$port: cannot listen: [^\n]+\n\z/ ? 'none' : 'silence' }++;
            kill TERM => children($pid);
            reap($pid);
        } while faults() && $n < 40;
        is(join(' ', sort keys %seen), "both $least", "-addr with a port alone, and one of its sockets cannot be made, $error: it listens at both, or at $least");
        none_left('... no process is left');
    }
    my ($read, $write) = full_pipe();
    my $l = listener(fault('accept 1 EMFILE'), err => $write);
    is(ask($l)->{status}, 200, '-addr, a shortage, and standard error full: the connection is answered');
    ends($l, '-addr, a shortage, and standard error full');
}
{
    my ($read, $write) = full_pipe();
    my $l = listener(err => $write, flags => ['-timeout', '4s']);
    fake(out => '', status => 3, err => "boom\n");
    is(ask($l)->{status}, 503, '-addr, a failure, and standard error full: the answer');
    ok(patiently(sub { !children($l->{pid}) }), '... and its process ends');
    ends($l, '-addr, a failure, and standard error full');
    fake(out => $GOOD);
}
{
    my $all = POSIX::SigSet->new;
    $all->fillset;
    my $l = listener(in => 'closed', out => 'closed', setup => sub {
        $SIG{$_} = 'IGNORE' for qw(HUP INT QUIT PIPE ALRM TERM CHLD USR1 USR2 XFSZ XCPU);
        POSIX::sigprocmask(POSIX::SIG_BLOCK(), $all);
    });
    is(ask($l)->{status}, 200, '-addr born with all signals ignored and blocked, and no standard streams: it answers');
    ok(patiently(sub { !children($l->{pid}) }), '... and no zombie is left');
    ends($l, '-addr born with all signals ignored and blocked');
}
{
    my $l = listener(flags => ['-timeout', '1s']);
    my $state = sub {
        my $fds = () = glob "/proc/$l->{pid}/fd/*";
        return "$fds descriptors, " . join ' ', slurp("/proc/$l->{pid}/status") =~ /^(Vm(?:Data|Stk|Size|Lck):\s+\d+ kB)$/mg;
    };
    ask($l);
    patiently(sub { !children($l->{pid}) });
    my $before = $state->();
    my ($rss) = slurp("/proc/$l->{pid}/status") =~ /^VmRSS:\s+(\d+)/m;
    pipe my $read, my $write or die "pipe: $!";
    pipe my $go, my $start or die "pipe: $!";
    my @crowd = map {
        my $net = $_;
        my $pid = fork // die "fork: $!";
        if (!$pid) {
            close $start;
            my @socks = grep {defined} map { dial($l->{port}, "127.0.$net." . (1 + int $_ / 8)) } 0 .. 499;    # eight from each address
            syswrite $write, sprintf "%4d\n", scalar @socks;
            my $told = 0;
            for my $s (@socks) {
                my $r = converse($s, '');
                $told++ if !$r->{hung} && ($r->{status} == 408 || $r->{raw} eq '');
            }
            syswrite $write, sprintf "%4d\n", $told;
            POSIX::_exit(0);
        }
        $pid;
    } 1 .. 4;
    close $write;
    my ($connected, $most) = (0, 0);
    for (1 .. 4) { sysread $read, my $n, 5 or last; $connected += $n }
    my $ask = fork // die "fork: $!";
    POSIX::_exit(patiently(sub { ask($l)->{status} == 200 }) ? 0 : 1) if !$ask;
    my $answered;
    patiently(sub {
        my $now = children($l->{pid});
        $most = $now if $now > $most;
        waitpid($ask, POSIX::WNOHANG()) == $ask and $answered = $? == 0;
    });
    waitpid $_, 0 for @crowd;
    my @told = split ' ', do { local $/; <$read> // '' };
    my $told = 0;
    $told += $_ for @told;
    # those counted first may have had their answer before the last had connected
    is("$connected $told", '2000 2000', '2,000 clients that say nothing: each is told 408, or closed');
    ok($answered, '... and a good one that comes after them is answered');
    cmp_ok($most, '<=', 256, "... at no time more than 256 processes ($most)");
    ok(patiently(sub { !children($l->{pid}) }), '... of which none is left, nor a zombie');
    is($state->(), $before, '... no descriptor, no memory more than before');
    my ($after) = slurp("/proc/$l->{pid}/status") =~ /^VmRSS:\s+(\d+)/m;
    cmp_ok($after - $rss, '<=', 200, '... nor resident memory, but for a few pages');
    is(ask($l)->{status}, 200, '... the next is answered');
    # (A slow machine may tell the first that it is late before there are too many. t/50 sees the line.)
    ends($l, '2,000 clients that say nothing', qr/\A(?:nfprom: -addr: a connection is closed: 256 are the most at once, 8 from one address\n)*\z/);
}

none_left('no process is left of all this');
done_testing;
