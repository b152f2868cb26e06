#!/usr/bin/perl

# -list: what is run in place of iptables-save, for which chains, and what is no success there.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use POSIX ();
use Test::More;
use Time::HiRes qw(time);
use NF;

my $GOOD = "-N prometheus\n-A prometheus -d 192.0.2.1/32 -p tcp -m tcp --dport 22 -c 101 6401 -j RETURN\n-A prometheus -c 102 6402 -j RETURN\n";

# ---- the command

sub asks {
    my ($promise, $flags, @commands) = @_;
    fake();
    fake6();
    my $r = print_mode(@$flags);
    is(join("\n", commands()), join("\n", @commands), $promise) or diag($r->{err});
}

SKIP: {
    skip_or_fail('has no CAP_NET_ADMIN, so sudo is used') unless has_net_admin();
    asks('-list reads one chain',            ['-list'],                       'iptables -w -t filter -v -S prometheus');
    asks('--list too',                       ['--list'],                      'iptables -w -t filter -v -S prometheus');
    asks('-list=true too',                   ['-list=true'],                  'iptables -w -t filter -v -S prometheus');
    asks('-list=1 too',                      ['-list=1'],                     'iptables -w -t filter -v -S prometheus');
    asks('-list=false reads the table',      ['-list=false'],                 'iptables-save -c -t filter');
    asks('the last -list counts',            ['-list', '-list=0'],            'iptables-save -c -t filter');
    asks('without -list, too',               [],                              'iptables-save -c -t filter');
    asks('-list of IPv6 alone',              [qw(-list -ipv4=false -ipv6)],   'ip6tables -w -t filter -v -S prometheus');
    asks('-list of both families',           [qw(-list -ipv6)],
        'iptables -w -t filter -v -S prometheus', 'ip6tables -w -t filter -v -S prometheus');
    for my $variant (qw(nft legacy)) {
        asks("-list with -variant $variant", ['-list', '-variant', $variant], "iptables-$variant -w -t filter -v -S prometheus");
        asks("... of IPv6, $variant",        [qw(-list -ipv4=false -ipv6), "-variant=$variant"], "ip6tables-$variant -w -t filter -v -S prometheus");
    }
    for my $table (qw(mangle raw nat security)) {
        fake(out => save({ table => $table }, '[5:6] -A prometheus -p tcp'));
        my $r = print_mode('-list', '-table', $table);
        my ($error, @series) = parse_metrics($r->{out});
        is(join("\n", commands(), $error, value(\@series, 'nfprom_packets_total')), "iptables -w -t $table -v -S prometheus\n\n5", "-list of the table $table");
    }
    fake(out => save({ chains => [map {":$_ - [0:0]"} 'a' .. 'c'] }, map {"[1:1] -A $_ -p tcp"} 'a' .. 'c'));
    is(print_mode(qw(-list -chain c -chain a -chain b))->{exit}, 0, 'several chains');
    is(join("\n", commands()), join("\n", map {"iptables -w -t filter -v -S $_"} qw(c a b)), '... are read one by one, in the order of the flags');
    my @many = map { sprintf "%02d'%s", $_, q(') x 25 } 1 .. 64;
    fake(out => save({ chains => [map {":$_ - [0:0]"} @many] }, map {"[$_:1] -A $many[$_ - 1] -p tcp"} 1 .. 64));
    my $r = print_mode('-list', '-table', 'filter', map { ('-chain', $_) } @many);
    my ($error, @series) = parse_metrics($r->{out});
    is("$r->{exit}|$r->{err}|$error|" . join(' ', map { $_->{value} } series(\@series, 'nfprom_packets_total')), '0|||' . join(' ', 1 .. 64),
        '64 chains with the longest and worst of names');
}
SKIP: {
    my @how = has_net_admin() ? unprivileged() : ();
    skip_or_fail('cannot give up CAP_NET_ADMIN') if has_net_admin() && !@how;
    fake(out => save({ chains => [map {":$_ - [0:0]"} qw(prometheus a;b)] }, '[1:2] -A prometheus -p tcp', '[3:4] -A a;b -p tcp'));
    my $r = run(flags => [qw(-print -list)], @how);
    is(join("\n", $r->{exit}, commands()), join("\n", 0, 'sudo -n iptables -w -t filter -v -S prometheus', 'iptables -w -t filter -v -S prometheus'),
        'without the capability: by sudo');
    fake(out => save({ chains => [map {":$_ - [0:0]"} qw(prometheus a;b)] }, '[1:2] -A prometheus -p tcp', '[3:4] -A a;b -p tcp'));
    $r = run(flags => [qw(-print -list -chain a;b -chain prometheus)], @how);
    is(join("\n", $r->{exit}, grep {/^sudo/} commands()), join("\n", 0, map {"sudo -n iptables -w -t filter -v -S $_"} qw(a;b prometheus)),
        '... each of several chains');
    fake_sudo(status => 1, err => 'sudo: a password is required');
    fake();
    $r = run(flags => [qw(-print -list -variant nft)], @how);
    is("$r->{exit}|$r->{out}", '1|', '... which may refuse');
    like($r->{err}, qr{a password is required.*CAP_NET_ADMIN.*sudoers[^:]*: USER ALL=\(root\) NOPASSWD: /usr/sbin/iptables-nft -w -t filter -v -S prometheus$}m,
        '... the answer then has the line for sudoers, with the command of -list');
    fake();
    $r = run(flags => [qw(-print -list -chain prometheus -chain other)], @how);
    like("$r->{exit}|$r->{err}", qr/\A1\|.*a password is required/s, '... also of several chains');
    unlike($r->{err}, qr/NOPASSWD/, '... without a line, for it would take one for each');
    fake_sudo();
}
like(run(flags => ['-help'])->{out}, qr/^  -list +\S.*iptables -v -S/m, '-help tells of -list');
for my $value ('-list=maybe', '-list=', '-list=2') {
    my $r = print_mode($value);
    is("$r->{exit}|$r->{out}", '2|', "$value is no flag");
    like($r->{err}, qr/-list/, '... which the message names');
}
is(print_mode('-list', 'false')->{exit}, 2, '-list takes no value in an argument of its own');

# ---- names reach iptables as they are

for my $name ("a'b", "'", "''", '$(touch>x)', '$(touch$IFS@x)', '$(id>x)', '`id>x`', 'a;b', ';id>x', 'a&b', 'a|b', '*', '?', '[a-z]*', '~', '~root', '"', '"a"',
    '\\', 'a\\', "\\'", '$HOME', '${HOME}', '#a', 'a#b', 'a!b', '{a,b}', '(a)', '<x', '>x', 'a=b', '%s%n', "\xff", "caf\xc3\xa9", '+', '@a', 'a:b', 'a,b',
    "x'" . '"' x 26, "'" x 28)
{
    my $cwd = "$DIR/cwd";
    mkdir $cwd;
    fake(list => "-N $name\n-A $name -p tcp -c 7 8\n", run => qq(printf '%s|' "\$#" "\$@" >'$DIR/words'; cat "\$OUT"));
    my $r = run(flags => ['-print', '-list', '-chain', $name], cwd => $cwd);
    is(slurp("$DIR/words"), "6|-w|-t|filter|-v|-S|$name|", "a chain that is named $name is one word of the command");
    my ($error, @series) = parse_metrics($r->{out});
    is("$r->{exit}|$error|$r->{err}|" . value(\@series, 'nfprom_packets_total'), '0|||7', '... and read');
    is(join(' ', grep { !/^\.\.?$/ } do { opendir(my $d, $cwd); readdir $d }), '', '... and nothing of it is run');
    fake(list => "-N $name\n-A $name -p tcp -c 7 8\n");
    run(flags => ['-print', '-list', '-chain', $name, '-chain', 'other'], cwd => $cwd);
    is((commands())[0], 'iptables -w -t filter -v -S ' . $name, '... also in front of another') if has_net_admin();
}

# ---- what is no success

# A test: this iptables gets a 503 that says why; the log has it in one line.
sub fails {
    my ($promise, $fake, $why, @flags) = @_;
    fake(%$fake);
    my $r = serve(get('/metrics'), flags => ['-list', @flags]);
    answers($r, 503, $promise, body => qr/^ipv4: .*$why/ms, stderr => qr/\Anfprom: ipv4: [^\n]+\n\z/);
    unlike($r->{body}, qr/^nfprom_/m, "... $promise: without a number");
    return $r;
}

answers(do { fake(list => $GOOD); serve(get('/metrics'), flags => ['-list']) }, 200, 'a chain that is there');

my $create = '`iptables -t filter -N prometheus`';
fails('no chain, says legacy: how to make it', { list => '', status => 1, err => "iptables: No chain/target/match by that name.\n" }, $create);
my $nft = "iptables v1.8.9 (nf_tables): chain `prometheus' in table `filter' is incompatible, use 'nft' tool.\n";
my $r = fails('no chain, says nft 1.8.9: how to make it', { list => '', status => 1, err => $nft }, $create);
like($r->{body}, qr/native nft rules/, '... and that it may be one that iptables does not list');
$r = fails('no chain, beside legacy tables', { list => '', status => 1,
    err => "# Warning: iptables-legacy tables present, use iptables-legacy to see them\n$nft" }, '-variant legacy');
fails('in the table asked for', { list => '', status => 1, err => "iptables: No chain/target/match by that name.\n" }, '`iptables-nft -t mangle -N absent`',
    qw(-table mangle -chain absent -variant nft));
{
    fake6(list => '', status => 1, err => "ip6tables: No chain/target/match by that name.\n");
    my $r = serve(get('/metrics'), flags => [qw(-list -ipv6 -ipv4=false)]);
    answers($r, 503, 'no chain, IPv6', body => qr/^ipv6: .*`ip6tables -t filter -N prometheus`/m);
    fake(list => $GOOD);
    $r = serve(get('/metrics'), flags => [qw(-list -ipv6)]);
    answers($r, 200, 'no chain in one of two families: the other is answered', exit => 0, stderr => qr/\Anfprom: ipv6: [^\n]+\n\z/);
    is(join(' ', map { value($r->{series} || [], 'nfprom_scrape_success', l2proto => $_) } qw(ipv4 ipv6)), '1 0', '... told apart');
    fake6();
}
SKIP: {
    skip_or_fail('has no CAP_NET_ADMIN, so sudo is used') unless has_net_admin();
    for (
        ['nft',                 4, 'iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)'],
        ['legacy',              4, "iptables v1.8.9 (legacy): can't initialize iptables table `filter': Permission denied (you must be root)"],
        ['the lock of legacy',  4, "Fatal: can't open lock file /run/xtables.lock: Permission denied"],
    ) {
        my ($who, $status, $said) = @$_;
        my $r = fails("no permission, says $who: the answer names the capability", { list => '', status => $status, err => "$said\n" }, 'CAP_NET_ADMIN');
        unlike($r->{body}, qr/-N prometheus/, '... and not how to make the chain');
        like($r->{body}, qr/\Q$said\E/, '... and what was said');
    }
}
fails('a command that is not there', { list => '', status => 127, err => "sh: 1: exec: iptables: not found\n" }, 'install iptables');
for my $status (1 .. 5, 100, 126, 128, 255) {
    fails("status $status is a failure, whatever was printed", { list => $GOOD, status => $status }, "ended with status $status");
}
for my $signal (qw(TERM KILL SEGV PIPE)) {
    fails("killed by SIG$signal", { list => $GOOD, run => "ulimit -c 0\ncat \$OUT", signal => $signal }, 'ended with status 1\d\d');
}
for (
    # what                                   printed
    ['nothing',                              ''],
    ['a line feed',                          "\n"],
    ['half of -N',                           '-N promet'],
    ['-N without its line end',              '-N prometheus'],
    ['the rules without -N',                 $GOOD =~ s/^-N.*\n//r],
    ['-N twice',                             "-N prometheus\n$GOOD"],
    ['another chain',                        $GOOD =~ s/prometheus/other/gr],
    ['a chain with a longer name',           $GOOD =~ s/prometheus/prometheus2/gr],
    ['a rule of another chain',              "$GOOD-A other -p tcp -c 1 1\n"],
    ['another chain behind it',              "$GOOD-N other\n"],
    ['all chains',                           "-P INPUT ACCEPT -c 0 0\n$GOOD"],
    ['a rule cut in its match',              $GOOD =~ s/--dp.*//sr],
    ['a rule cut after its chain',           $GOOD =~ s/ -d 192.*//sr],
    ['a rule cut in its chain',              $GOOD =~ s/etheus -d 192.*//sr],
    ['a rule cut before its counters',       $GOOD =~ s/ -c 101.*//sr],
    ['a rule cut before its counters, with a line end', $GOOD =~ s/ -c 101.*/\n/sr],
    ['a rule cut behind -c',                 $GOOD =~ s/ 101 .*/\n/sr],
    ['a rule cut between its counters',      $GOOD =~ s/ 6401.*/\n/sr],
    ['a rule cut in its last counter',       $GOOD =~ s/402 -j RETURN\n\z//r],
    ['a rule cut before its target',         $GOOD =~ s/ -j RETURN\n\z//r],
    ['a rule cut in its target',             $GOOD =~ s/URN\n\z//r],
    ['a rule cut in a comment',              "$GOOD-A prometheus -m comment --comment \"never\n-A prometheus -c 1 1\n"],
    ['a -P cut in its counters',             '-P prometheus ACCEPT -c 1'],
    ['a -P without counters',                "-P prometheus ACCEPT\n"],
    ['a -P with one counter',                "-P prometheus ACCEPT -c 1\n"],
    ['a -P with counters of 2^64',           "-P prometheus ACCEPT -c 18446744073709551616 0\n"],
    ['a -P with more behind it',             "-P prometheus ACCEPT -c 1 2 3\n"],
    ['-N with more behind it',               "-N prometheus -c 1 2\n"],
    ['counters in brackets',                 $GOOD =~ s/ -c 101 6401//r =~ s/^-A/[101:6401] -A/mr],
    ['a rule without counters',              $GOOD =~ s/ -c 101 6401//r],
    ['counters with a letter',               $GOOD =~ s/ 6401/ 64o1/r],
    ['negative counters',                    $GOOD =~ s/ 6401/ -1/r],
    ['counters that are too large',          $GOOD =~ s/ 101 / 18446744073709551616 /r],
    ['bytes that are too large',             $GOOD =~ s/ 6401 / 18446744073709551616 /r],
    ['counters in a comment alone',          qq(-N prometheus\n-A prometheus -p tcp -m comment --comment " -c 1 2 -j RETURN" -j RETURN\n)],
    ['a name like counters and a target',    "-N prometheus\n-A prometheus -i x -c 9 9 -j y -c 101 202 -j RETURN\n"],
    ['a deletion',                           $GOOD =~ s/^-A/-D/mr],
    ['a table',                              filter_table('-p tcp')],
    ['another language',                     "Hello\nworld\n"],
    ['what -L prints',                       "Chain prometheus (0 references)\n pkts bytes target\n"],
    ['zero bytes',                           "\0" x 10_000],
    ['random bytes',                         pack 'C*', map { ($_ * 7919 >> 3) & 255 } 1 .. 20_000],
) {
    my ($what, $out) = @$_;
    fails("status 0 is no success: $what", { list => $out }, '');
}
fails('no -N: how to make the chain', { list => '' }, $create);
for my $n ('0', '9007199254740993', '18446744073709551615') {
    fake(list => "-N prometheus\n-A prometheus -p tcp -c $n 7 -j RETURN\n-A prometheus -i eth0 -c 7 $n\n");
    my ($error, @series) = parse_metrics(print_mode('-list')->{out});
    is(join(' ', $error, value(\@series, 'nfprom_packets_total'), value(\@series, 'nfprom_rule_bytes_total')), " $n $n", "counters of $n, digit for digit");
}

# ---- counters are told from what looks like them

for (
    ['-m comment --comment "x -c 5 6 -j RETURN" -c 101 202 -j RETURN',        '-j RETURN'],
    ['-m comment --comment "x" -c 101 202 -j LOG --log-prefix " -c 5 6 -j x"', '-j LOG --log-prefix " -c 5 6 -j x"'],
    [qq(-m comment --comment "x\n-A prometheus -c 5 6 -j DROP\n-N other\n" -c 101 202 -j RETURN), '-j RETURN'],
    ['-m comment --comment -c -c 101 202 -j RETURN',                          '-j RETURN'],
    ['-i -c -c 101 202 -j RETURN',                                            '-i -c -j RETURN'],
    ['-i x -o -c -c 101 202',                                                 '-i x -o -c'],
    ['-m string --string "-c 5 6" --algo bm -c 101 202 -j -c',                '-m string --string "-c 5 6" --algo bm -j -c'],
    ['-m recent --name -c --rsource -c 101 202 -g x',                         '-m recent --name -c --rsource -g x'],
    ['-m set --match-set -c src -c 101 202 -g x',                             '-m set --match-set -c src -g x'],
    ['-i x -c 9 9 -c 101 202 -j RETURN',                                      '-i x -c 9 9 -j RETURN'],
    ['-i a b -c 101 202 -j RETURN',                                           '-i a b -j RETURN'],
    ['-c 101 202',                                                            '*'],
    ['-c 101 202 ',                                                           '*'],
    ['-i eth0 -c 101 202 ',                                                   '-i eth0'],
) {
    my ($rule, $expected) = @$_;
    fake(list => "-N prometheus\n-A prometheus $rule\n-A prometheus -p tcp -c 303 404\n");
    my $r = print_mode('-list');
    my ($error, @series) = parse_metrics($r->{out});
    is(join('|', $r->{err}, $error, map { value(\@series, "nfprom_rule_${_}_total", rule => $expected) } qw(packets bytes)), '||101|202',
        "the counters of: $rule");
    is(value(\@series, 'nfprom_packets_total'), 303, '... and the rule behind it');
}

# ---- several chains

{
    my %lists = map { ("filter.$_" => "-N $_\n-A $_ -p tcp -c 1 2\n") } qw(a b c);
    my @abc   = map { ('-chain', $_) } qw(a b c);
    for my $missing (qw(a b c)) {
        fails("of three chains $missing is missing", { lists => { %lists, "filter.$missing" => '' },
            run => qq([ "\$chain" != $missing ] || { echo 'iptables: No chain/target/match by that name.' >&2; exit 1; }; cat "\$OUT") },
            "-N $missing`", @abc);
        fails("of three chains $missing fails", { lists => \%lists, run => qq([ "\$chain" != $missing ] || { echo boom >&2; exit 3; }; cat "\$OUT") },
            'gave no counters: .*boom|status 3.*boom', @abc);
        fails("of three chains $missing fails after all was printed", { lists => \%lists, run => qq(cat "\$OUT"; [ "\$chain" != $missing ] || { echo boom >&2; exit 3; }) },
            'boom', @abc);
        fails("of three chains $missing is cut", { lists => { %lists, "filter.$missing" => "-N $missing\n-A $missing -p tc" } }, '', @abc);
        fails("of three chains $missing is another", { lists => { %lists, "filter.$missing" => $lists{'filter.c'} =~ s/\bc\b/d/gr } }, '', @abc);
    }
    fails('each of two chains is the same one', { list => $lists{'filter.a'} }, '', qw(-chain a -chain b));
    fake(lists => \%lists, run => qq([ "\$chain" != b ] || exit 3; cat "\$OUT"));
    print_mode('-list', @abc);
    is(scalar(grep {/c$/} commands()), 0, 'after a failure the other chains are not read') if has_net_admin();
}

# ---- it hangs

for (
    # how it hangs                              what the script does
    ['at once',                                 'exec sleep 86399'],
    ['with a child',                            'sleep 86399'],
    ['after half of its output',                'head -c 40 $OUT; sleep 86399'],
    ['after all of its output',                 'cat $OUT; sleep 86399'],
    ['deaf to all signals, with a grandchild',  'trap "" TERM HUP INT QUIT PIPE ALRM; (sleep 86399 & sleep 86399); sleep 86399'],
) {
    my ($how, $script) = @$_;
    for my $flags ([], [qw(-chain prometheus -chain INPUT)], [qw(-chain INPUT -chain prometheus)]) {
        fake(run => qq([ "\$chain" = prometheus ] || exec cat "\$OUT"; $script));
        my $what = "$how (@$flags)" =~ s/ \(\)//r;
        my $r = serve(get('/metrics'), flags => ['-list', '-timeout', '1s', @$flags]);
        answers($r, 504, "504 when iptables hangs $what");
        none_left("... $what: and no process is left");
    }
}
for my $flags ([], [qw(-chain prometheus -chain INPUT)]) {
    ends_with_all_when_killed('killed in the middle of a scrape', flags => ['-list', '-timeout', '60m', @$flags]);
}
for (
    ['rules without end',               q(cat $OUT; exec yes '-A prometheus -s 10.0.0.1/32 -c 1 1 -j RETURN'),         '60m'],
    ['a line without end',              q(cat $OUT; tr '\000' x </dev/zero),                                            '3s'],
    ['a comment without end',           q(cat $OUT; printf -- '-A prometheus -m comment --comment "'; tr '\000' '\n' </dev/zero), '3s'],
    ['words on standard error without end', q(cat $OUT; exec yes 'words' >&2),                                          '3s'],
) {
    my ($what, $script, $timeout) = @$_;
    fake(list => $GOOD, run => $script);
    my $r = serve(get('/metrics'), flags => ['-list', '-timeout', $timeout], wrap => [shell_limit('-v 300000', '-c 0')]);
    answers($r, [503, 504], "$what: an answer, in bounded memory");
    none_left("... $what: no process is left");
}

# ---- the lock is iptables' own business

{
    open my $held, '+<', $LOCK or die "$LOCK: $!";
    flock $held, Fcntl::LOCK_EX() or die "flock: $!";
    fake(list => $GOOD);
    answers(serve(get('/metrics'), flags => [qw(-list -variant legacy)]), 200, 'nfprom does not wait for the lock with -list');
    close $held;
    fake(list => $GOOD, run => "flock -xn '$LOCK' true && echo free >'$DIR/lock-was' || echo held >'$DIR/lock-was'\ncat \$OUT");
    answers(serve(get('/metrics'), flags => ['-list']), 200, 'nor hold it');
    is(slurp("$DIR/lock-was"), "free\n", '... so that iptables can have it');
    fake(list => '', status => 4, err => "Another app is currently holding the xtables lock; still 5s 0us time ahead to have a chance to grab the lock...\n");
    answers(serve(get('/metrics'), flags => ['-list']), 503, 'what iptables says of the lock is told', body => qr/^ipv4: .*xtables lock/m);
}

# ---- with the other ways to be run

{
    my $port = do { my $s = IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => 0, Listen => 1) or die "listen: $@"; $s->sockport };
    my $chain = "a'b";
    fake(list => "-N $chain\n-A $chain -p tcp -c 7 8\n");
    my $pid = spawn(flags => ['-addr', "127.0.0.1:$port", '-list', '-chain', $chain]);
    my $sock;
    ok(patiently(sub { $sock = IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port) }), '-addr with -list listens');
    my $r = converse($sock, get('/metrics'));
    answers($r, 200, '... and answers');
    is(value($r->{series} || [], 'nfprom_packets_total'), 7, '... with the counters');
    kill TERM => $pid;
    is(reap($pid), 0, '... and ends');
    fake(list => $GOOD);
    for my $path ('/', '/-/healthy') { serve(get($path), flags => ['-list']) }
    is(join(',', commands()), '', 'a page does not run iptables');
}
none_left('no process is left of all this');

{
    my @many = map { sprintf "%02d%s", $_, "'" x 26 } 1 .. 64;
    fake(lists => {});
    answers(serve(get('/metrics'), flags => ['-list', map { ('-chain', $_) } @many]), 503, 'of many long names the reason is told all the same',
        body => qr/No chain.*; else make the chain with /s);
}

done_testing;
