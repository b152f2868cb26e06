#!/usr/bin/perl

# The command line, and the command that comes of it.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Fcntl;
use Test::More;
use NF;

sub flags { return join ' ', map { /\s|^\z/ ? "'$_'" : $_ } @_ }

# The commands without sudo, which is there or not according to who runs the test.
sub plain_commands { return grep { !/^sudo / } commands() }

# A test: with these flags, exactly these commands are run.
sub runs {
    my ($promise, $flags, @expected) = @_;
    fake(out => save({ table => $flags =~ /table[= ](\w+)/ ? $1 : 'filter' }, '[1:1] -A prometheus -p tcp'));
    fake6(out => slurp("$DIR/iptables.out"));
    my $r = print_mode(split / /, $flags);
    is("$r->{exit}|" . join("\n", plain_commands()), '0|' . join("\n", @expected), "$promise: $flags");
}

# ---- values

runs('IPv4, the table filter, counters', '',                      'iptables-save -c -t filter');
runs('with IPv6',              '-ipv6',                           'iptables-save -c -t filter', 'ip6tables-save -c -t filter');
runs('a boolean with a value', "-ipv6=$_",                        'iptables-save -c -t filter', 'ip6tables-save -c -t filter') for qw(true TRUE True 1 t T);
runs('a boolean with a value', "-ipv6=$_",                        'iptables-save -c -t filter') for qw(false FALSE False 0 f F);
runs('what is not asked for',     '-help=false -h=0 -version=false -ipv4=false -ipv6', 'ip6tables-save -c -t filter');
runs('IPv6 alone',             '-ipv4=false -ipv6',               'ip6tables-save -c -t filter');
runs('two dashes',             '--ipv4=0 --ipv6',                 'ip6tables-save -c -t filter');
runs('the last one counts',    '-ipv6 -ipv6=false',               'iptables-save -c -t filter');
runs('another table',          "-table $_",                       "iptables-save -c -t $_") for qw(filter mangle raw nat security);
runs('with =',                 '-table=mangle',                   'iptables-save -c -t mangle');
runs('two dashes',             '--table nat',                     'iptables-save -c -t nat');
runs('two dashes and =',       '--table=nat',                     'iptables-save -c -t nat');
runs('the nft variant',        '-variant nft',                    'iptables-nft-save -c -t filter');
runs('the legacy variant',     '-variant=legacy -ipv6',           'iptables-legacy-save -c -t filter', 'ip6tables-legacy-save -c -t filter');
runs('all of it',              '-variant nft -table raw -ipv6 -ipv4=f', 'ip6tables-nft-save -c -t raw');
runs('a deadline',             "-timeout $_",                     'iptables-save -c -t filter') for qw(8s 1m30s 1.5s 2500ms 1h 0.5m);

# ---- chains

{
    my @chains = map {":$_ - [0:0]"} 'prometheus', 'other', 'x' x 28, '$(id)';
    fake(out => save({ chains => \@chains }, map { /:(\S+)/; "[7:70] -A $1 -p tcp" } @chains));
    for my $chain ('prometheus', 'other', 'x' x 28, '$(id)') {
        my $r = print_mode('-chain', $chain);
        my ($error, @series) = parse_metrics($r->{out});
        is("$r->{exit}|$error|" . value(\@series, 'nfprom_packets_total'), '0||7', "-chain $chain is exported");
        unlike($r->{out}, qr/chain="/, '... one chain needs no label');
    }
    my ($error, @series) = parse_metrics(print_mode('-chain', 'prometheus', '--chain=other')->{out});
    is(join(' ', map { $_->{labels}{chain} } series(\@series, 'nfprom_packets_total')), 'prometheus other',
        'two chains: each series says which, in the order of the flags');
    is(scalar(plain_commands()), 5, '... and iptables-save is run once for both');
}

# ---- wrong values

for (
    # the flag that is named     the command line
    ['chain',                    '-chain', ''],
    ['chain',                    '-chain', 'x' x 29],
    ['chain',                    '-chain', 'two words'],
    ['chain',                    '-chain', "line\nbreak"],
    ['chain',                    '-chain', "tab\t"],
    ['chain',                    '-chain=-x'],
    ['chain',                    '-chain', '!x'],
    ['chain',                    '-chain'],
    ['chain',                    '-chain', 'a', '-chain', 'a'],
    ['chain',                    '-chain', "caf\xe9", '-chain', 'caf\xe9'],    # which would be written the same
    ['table',                    '-table', 'broute'],
    ['table',                    '-table='],
    ['table',                    '-table', 'filter;id'],
    ['table',                    '-table', 'FILTER'],
    ['ipv4',                     '-ipv4=maybe'],
    ['ipv6',                     '-ipv6=2'],
    ['ipv6',                     '-ipv6='],
    ['ipv4|ipv6',                '-ipv4=false'],
    ['ipv4|ipv6',                '-ipv4=0', '-ipv6=0'],
    ['namespace',                '-namespace', '9x'],
    ['namespace',                '-namespace', 'a-b'],
    ['namespace',                '-namespace', ''],
    ['namespace',                '-namespace', "caf\xc3\xa9"],
    ['namespace',                '-namespace', 'a:b'],
    ['namespace',                '-namespace', 'x' x 401],
    ['namespace',                '-namespace', "a\nb"],
    ['addr',                     '-addr', ''],
    ['addr',                     '-addr', '127.0.0.1'],
    ['addr',                     '-addr', '127.0.0.1:'],
    ['addr',                     '-addr', '127.0.0.1:0'],
    ['addr',                     '-addr', '127.0.0.1:65536'],
    ['addr',                     '-addr', '127.0.0.1:-1'],
    ['addr',                     '-addr', '127.0.0.1:http'],
    ['addr',                     '-addr', '127.0.0.1:9914x'],
    ['addr',                     '-addr', '[::1]'],
    ['addr',                     '-addr', '[::1:9914'],
    ['addr',                     '-addr', '127.0.0.1:9914', '-print'],
    ['variant',                  '-variant', 'nftables'],
    ['variant',                  '-variant', ''],
    ['variant',                  '-variant', '../x'],
    ['timeout',                  '-timeout', '8'],
    ['timeout',                  '-timeout', ''],
    ['timeout',                  '-timeout', 'soon'],
    ['timeout',                  '-timeout', '0s'],
    ['timeout',                  '-timeout', '9ms'],
    ['timeout',                  '-timeout', '61m'],
    ['timeout',                  '-timeout', '-1s'],
    ['timeout',                  '-timeout', '1s2'],
    ['timeout',                  '-timeout', '8 s'],
    ['timeout',                  '-timeout', '99999999999999999999s'],
    ['timeout',                  '-timeout', 'nans'],
    ['timeout',                  '-timeout'],
    ['print',                    '-print=perhaps'],
    ['nonsense',                 '-nonsense'],
    ['nonsense',                 '--nonsense=1'],
    ['chai',                     '-chai', 'x'],
    ['extra',                    'extra'],
    ['false',                    '-ipv6', 'false'],
    ['ipv4',                     '-ipv4=false'],
    ['ipv4',                     '-ipv4=false', '-list', '-print'],
) {
    my ($named, @flags) = @$_;
    my $what = flags(@flags) =~ s/\n/\\n/gr;
    fake();
    my $r = run(flags => [@flags]);
    is("$r->{exit}|$r->{out}", '2|', "wrong: $what exits 2");
    like($r->{err}, qr/\A[^\n]*(?:$named)/, "... $what: the first line on standard error names it");
    like($r->{err}, qr/\A[^\n]*\n[^\n]*-help[^\n]*\n\z/, "... $what: and a second line, the last, points to -help");
    my ($line) = $r->{err} =~ /\A(?:nfprom: )?([^\n]*)/;
    my $same = join '\s*.\s*', map {quotemeta} split /[^!-~]/, $line;   # the log has no control characters
    answers(serve(get('/metrics'), flags => [@flags]), 500, "... $what: a client is told as well",
        body => qr/$same/s, stderr => qr/\A[^\n]*(?:$named)/);
    is(join(',', commands()), '', "... $what: iptables-save is not run");
}
isnt(run(flags => ['-print', '-timeout', '10ms'])->{exit}, 2, 'the shortest time is 10 ms (which may be too short)');
{
    my $r = serve(get('/metrics'), flags => ['-nonsense'], stderr_on_socket => 1);
    answers($r, 500, 'wrong flags with standard error on the socket: one answer, whole', body => qr/nonsense/);
    for my $mode ('-print', '-addr=:1') {
        answers(serve(get('/metrics'), flags => [$mode, '-nonsense'], stderr_on_socket => 1), 500,
            "wrong flags beside $mode, standard error on the socket: one answer, whole", body => qr/nonsense/);
    }
    answers(serve('x' x 100, half_close => 1, flags => ['-nonsense']), [500, 400], 'wrong flags and a wrong request: one answer',
        exit => 2, stderr => qr/nonsense/);
    $r = serve('', half_close => 1, flags => ['-nonsense']);
    is($r->{exit}, 2, 'wrong flags and a client that says nothing: still exit 2');
    answers(serve("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" . 'x' x 3_000_000, flags => ['-nonsense'], read_last => 1),
        [500, 405], 'wrong flags and a client that sends megabytes: a whole answer', exit => 2, stderr => qr/nonsense/);
}

# ---- -help, -version, -print

for my $help ('-help', '--help', '-help=true') {
    my $r = run(flags => [$help]);
    is($r->{exit}, 0, "$help exits 0");
    for my $flag (qw(chain table ipv4 ipv6 namespace addr variant timeout print version help)) {
        like($r->{out}, qr/(?<![\w-])--?$flag\b/, "$help tells of -$flag");
    }
    is($r->{err}, '', '... and prints to standard output');
    is(join('|', $r->{out} =~ /^(\w.*:)$/mg), 'What is read:|How it is shown:|About itself:|Examples:', '... in groups, each under its title');
    my @lines = $r->{out} =~ /^  (-\w+(?: [A-Z]+)?) +(\S.*)$/mg;
    is(scalar @lines / 2, 13, '... a line for each flag');
    like($r->{out}, qr/^  -timeout D +\S.*\(default 8s\)$/m, '... with what it is if it is not given');
}
{
    # README's table has them all, as -help writes them, with what each is if it is not given.
    open my $readme, '<', "$FindBin::Bin/../README.md" or die "README.md: $!";
    my ($table) = join('', <$readme>) =~ /^## Flags\n.*?^\|---.*?\n(.*?)\n\n/ms;
    my %row = map { /^\| (.*?) \| (.*?) \|/ ? ("$1" => $2 =~ s/`//gr) : () } split /\n/, $table // '';
    my %in_help = run(flags => ['-help'])->{out} =~ /^  (-\w+(?: [A-Z]+)?) +(\S.*)$/mg;
    is_deeply([sort map { /`(-.*?)`/g } keys %row], [sort keys %in_help], 'README has a row for each flag');
    for my $flag (grep { $in_help{$_} =~ /\(default \w+\)/ } sort keys %in_help) {
        my ($default) = $in_help{$flag} =~ /\(default (\w+)\)/;
        is($row{"`$flag`"}, $default, "... and the default of $flag");
    }
}
for my $flag ('-version', '--version') {
    my $r = run(flags => [$flag]);
    is($r->{exit}, 0, "$flag exits 0");
    fake();
    my ($error, @series) = parse_metrics(print_mode()->{out});
    my ($info) = series(\@series, 'nfprom_build_info');
    like($r->{out}, qr/\Q$info->{labels}{version}\E/, '... and prints what nfprom_build_info has');
    like($r->{out}, qr/\A[^\n]+\n\z/, '... in a line');
}
{
    fake();
    my $r = print_mode();
    my ($error) = parse_metrics($r->{out});
    is("$r->{exit}|$error|$r->{err}", '0||', '-print prints the exposition and nothing else');
    $r = run(flags => ['-print'], input => get('/nowhere'));
    is($r->{exit}, 0, '-print does not read a request');
    like($r->{out}, qr/\A# HELP/, '... and prints no header');
    fake(out => '', status => 1, err => "boom\n");
    $r = print_mode();
    is("$r->{exit}|$r->{out}", '1|', '-print exits 1 when it fails, and prints nothing on standard output');
    like($r->{err}, qr/boom/, '... but the reason on standard error');
    fake();
    $r = serve('', flags => ['-print'], half_close => 1);
    like($r->{raw}, qr/\A# HELP/, '-print to a socket is the exposition as well');
    $r = run(flags => []);
    is("$r->{exit}|$r->{out}", '2|', 'without flags and with a standard input that asks nothing: exit 2');
    is(run(flags => [], input => '')->{exit}, 0, '... a connection that asks nothing: exit 0');
}
SKIP: {
    # a terminal of our own: TIOCSPTLCK unlocks its other end, TIOCGPTN has the number
    my ($unlock, $number, $master) = (pack('i', 0), pack('i', 0));
    sysopen($master, '/dev/ptmx', O_RDWR | O_NOCTTY) && ioctl($master, 0x40045431, $unlock) && ioctl($master, 0x80045430, $number)
        or skip_or_fail('no terminals here', 3);
    sysopen my $tty, '/dev/pts/' . unpack('i', $number), O_RDWR | O_NOCTTY or skip_or_fail('no terminals here', 3);
    fake();
    my $r = run(in => $tty, flags => []);
    like($r->{out}, qr/\A# HELP/, 'started by hand on a terminal: as with -print');
    is("$r->{exit}|$r->{err}", '0|', '... exit 0');
    fake(out => '', status => 1);
    is(run(in => $tty, flags => [])->{exit}, 1, '... or 1 when it fails');
}

# ---- the command

{
    fake(run => "printf %s \"\$PATH\" >'$DIR/path'; cat \$OUT");
    spew("$DIR/path", '');
    print_mode();
    like(slurp("$DIR/path"), qr{\A\Q$DIR\E/bin:/usr/bin:/bin:/usr/sbin:/sbin\z}, '/usr/sbin:/sbin is appended to PATH');

    # what is found in the directory one happens to be in is not run
    fake();
    for my $path ('', undef) {
        my $r = run(flags => ['-print', '-variant', 'nft'], cwd => "$DIR/bin", env => { PATH => $path });
        is(join(',', commands()), '', 'a PATH that is ' . (defined $path ? 'empty' : 'not set') . ' is not the current directory');
    }
}
{
    fake();
    my $evil = "\$(touch $DIR/evil) `touch $DIR/evil` ;touch $DIR/evil; |touch $DIR/evil";
    (my $path = "/metrics?$evil") =~ s/ /\${IFS}/g;
    for my $request (
        get($path), get('/metrics', "X-A: $evil", "User-Agent: $evil", "Accept: $evil", "X-Prometheus-Scrape-Timeout-Seconds: 5;touch $DIR/evil"),
        get('/metrics', 'Host2: x', 'Proxy: evil-proxy') . "touch $DIR/evil\n",
    ) {
        serve($request);
        is(join(',', plain_commands()), 'iptables-save -c -t filter', 'whatever is requested, the command is the same');
        unlike(slurp("$DIR/environment"), qr/evil/, '... and so is its environment');
        fake();
    }
    ok(!-e "$DIR/evil", 'nothing of a request is run');
}
SKIP: {
    my @how = has_net_admin() ? unprivileged() : ();
    skip_or_fail('cannot give up CAP_NET_ADMIN', 4) if has_net_admin() && !@how;
    fake();
    answers(serve(get('/metrics'), @how), 200, 'without CAP_NET_ADMIN the scrape works');
    my @commands = commands();
    like($commands[0], qr/\Asudo -n (?:-- )?iptables-save -c -t filter\z/, '... through sudo -n');
    is($commands[1], 'iptables-save -c -t filter', '... of the same command');
    is(run(flags => [qw(-print -variant legacy -table raw)], @how)->{exit}, 1, '... a table that is not what was asked for fails there, too');
    like((commands())[2], qr/\Asudo -n (?:-- )?iptables-legacy-save -c -t raw\z/, '... with the variant and the table');
}
SKIP: {
    skip_or_fail('has no CAP_NET_ADMIN', 2) unless has_net_admin();
    fake();
    print_mode();
    is(join(',', commands()), 'iptables-save -c -t filter', 'with CAP_NET_ADMIN sudo is not needed');
    need_root(1);
    fake();
    my $r = run(flags => ['-print'], unprivileged(65534, '--inh-caps=+net_admin', '--ambient-caps=+net_admin'));
    is("$r->{exit}|" . join(',', commands()), '0|iptables-save -c -t filter', '... nor by a user who has this capability alone');
}

none_left('no process is left of all this');
# Where both streams go to one pipe, as into a pager, the message is not taken for one that a client must not see.
like(`'$NFPROM' -nonsense < /dev/null 2>&1`, qr/\Anfprom: -nonsense: no such flag\n/, 'with 2>&1 the reason is there');
like(`'$NFPROM' $_ < /dev/null 2>&1`, qr/\Anfprom: -x: no such flag\n/, "$_ is a flag, and none of ours") for '-x', '--x';

for my $flag (qw(-version -help)) {
    open my $full, '>', '/dev/full' or die "/dev/full: $!";
    is(run(flags => [$flag], out => $full)->{exit}, 1, "$flag that cannot be written: exit 1");
}

# Whoever reads may have set the pipe not to block, and be slow.
{
    fake(out => filter_table(map {"-p tcp -m tcp --dport $_"} 1 .. 3000));
    pipe my $reader, my $writer or die "pipe: $!";
    fcntl $writer, Fcntl::F_SETFL(), Fcntl::O_NONBLOCK() | Fcntl::O_WRONLY() or die "fcntl: $!";
    my $pid = spawn(flags => ['-print'], out => $writer);
    close $writer;
    select undef, undef, undef, 0.5;
    my $printed = do { local $/; <$reader> };
    is(reap($pid), 0, '-print to a pipe that does not block and is read late');
    is(scalar(() = $printed =~ /^nfprom_bytes_total\{/mg), 3000, '... prints everything');
}

done_testing;
