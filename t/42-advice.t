#!/usr/bin/perl

# What to do about it: for each failure that people have met, the word that helps.

use strict;
use warnings;
use Fcntl qw(:DEFAULT);
use FindBin;
use IO::Socket::IP;
use lib "$FindBin::Bin/lib";
use Test::More;
use NF;

# ---- of iptables

# A test: it fails like this, and the reason ends with this advice; with IPv6 the same way.
sub advises {
    my ($promise, $fails, $advice, @flags) = @_;
    fake(%$fails);
    answers(serve(get('/metrics'), flags => \@flags), 503, $promise, body => $advice);
}

my $RULE = '-A prometheus -p tcp';
advises('rules without counters', { out => save($RULE) }, qr/unexpected line: \Q$RULE\E; the counters are missing: what stands in PATH as this command does not pass on -c$/m);
advises('... in the middle, of a built-in chain that has counted nothing', { out => save({ chains => [':INPUT ACCEPT [0:0]'] }) =~ s/^COMMIT/-A INPUT -p tcp\nCOMMIT/mr }, qr/unexpected line: -A INPUT -p tcp; the counters are missing/, '-chain', 'INPUT');
advises('a banner before the table', { out => "Welcome to host\n" . filter_table('-p tcp') }, qr/unexpected line: Welcome to host; something else writes to the standard output/);
advises('lines that end in CR', { out => filter_table('-p tcp') =~ s/\n/\r\n/gr }, qr/something else writes to the standard output of that command.*or changes its lines/);
advises('a kernel without nf_tables', { err => "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument\n", status => 4 }, qr/; if this kernel has no nf_tables, use -variant legacy$/m);
advises('... in other words', { err => "iptables-save v1.8.9 (nf_tables): Failed to initialize nft: Protocol not supported\n", status => 1 }, qr/; if this kernel has no nf_tables, use -variant legacy$/m);
advises('... but not if rights are missing', { err => "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n", status => 4 }, qr/CAP_NET_ADMIN/);
advises("rights are missing: $_", { err => "iptables-save: $_\n", status => 1 }, qr/CAP_NET_ADMIN/) for 'Permission denied', 'permission denied', 'Operation not permitted', 'you must be root';
advises('no right to the lock', { err => "Fatal: can't open lock file /run/xtables.lock: Permission denied\n", status => 4 }, qr/; the legacy backend needs CAP_NET_ADMIN, CAP_NET_RAW and, with -list, CAP_DAC_READ_SEARCH for its lock$/m);
advises('a word like permission', { err => "Could not determine whether revision 1 is supported, assuming it is.\n", status => 3 }, qr/assuming it is\.$/m);
advises('native rules that iptables cannot say', { err => "Error: unknown payload offset\niptables-save v1.8.9 (nf_tables): Parsing nftables rule failed\n", status => 3 }, qr/; the table holds native nft rules that iptables cannot express/);
advises('native rules that make iptables refuse the table', { out => "# Table `filter' is incompatible, use 'nft' tool.\n" }, qr/; the table holds native nft rules that iptables cannot express \(README, What it cannot see\)$/m);
advises("no memory: $_", { err => "iptables-save: $_\n", status => 1 }, qr/; it needs more memory/) for 'Cannot allocate memory', "can't alloc memory", 'Out of memory', 'memory allocation failed', 'Memory exhausted', 'No buffer space available';
advises("no memory for a library: $_", { err => "sh: error while loading shared libraries: libc.so.6: $_\n", status => 127 }, qr/; it needs more memory/)
    for 'failed to map segment from shared object', 'cannot map zero-fill pages', 'cannot create shared object descriptor: Cannot allocate memory';
advises('... or for its threads', { err => "cannot allocate TLS data structures for initial thread\n", status => 127 }, qr/; it needs more memory/);
my $unreadable = "/usr/lib/xtables/libxt_udp.so: /usr/lib/xtables/libxt_udp.so: cannot open shared object file: Permission denied\n";
advises('an extension of iptables that cannot be read, with status 0', { out => filter_table('-p udp'), err => $unreadable }, qr/gave no counters: rules may lack what an extension of iptables would print; it said: \S+libxt_udp\.so: .*; the user of this process must be able to read the files of iptables$/m);
advises('... with another', { out => '', err => $unreadable, status => 1 }, qr/ended with status 1; .*; the user of this process must be able to read the files of iptables$/m);
advises("... of $_", { out => filter_table('-p udp'), err => $unreadable =~ s/libxt_udp/$_/gr }, qr/must be able to read the files of iptables$/m) for 'libipt_icmp', 'libip6t_icmp6';
advises('... but not if there is no memory for it', { out => filter_table('-p udp'), err => $unreadable =~ s/cannot open.*/failed to map segment from shared object/r }, qr/; it needs more memory/);
advises('... but not a chain of that name', { list => '', err => "iptables v1.8.9 (nf_tables): chain `memory' in table `filter' is incompatible, use 'nft' tool.\n", status => 1 }, qr/no chain memory; it said: .*; else make the chain with/, '-list', '-chain', 'memory');
advises('... nor if memory is', { err => "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Memory allocation problem\n", status => 4 }, qr/; it needs more memory/);
advises('a kernel without legacy tables', { err => "iptables-save v1.8.9 (legacy): Cannot initialize: Table does not exist (do you need to insmod?)\n", status => 1 },
    qr/; if this kernel has no legacy tables, use -variant nft, or load their module \(RHEL: kernel-modules-extra\)$/m);
advises('... without their module', { err => "modprobe: FATAL: Module ip_tables not found in directory /lib/modules/6.17\n", status => 3 }, qr/; if this kernel has no legacy tables, use -variant nft/);
advises('legacy in the unit as shipped', { err => "iptables-save v1.8.9 (legacy): Cannot initialize: Address family not supported by protocol\n", status => 1 }, qr/; the legacy backend needs more than the unit allows: the drop-in legacy\.conf/);
my $none = save({ chains => [':INPUT ACCEPT [1:1]'] });
advises('no such chain',               { out => $none }, qr/no chain prometheus; look at -chain and -table; if a script makes it \(\/etc\/nfprom\/chain, \/etc\/nfprom\/lan-hosts\), run that; else make the chain with `.*; if it is in the other backend, use -variant nft or -variant legacy$/m);
advises("a built-in chain's name, in small letters", { out => $none }, qr/no chain input; this is the name of a built-in chain, which are in capitals: of another -table, perhaps.*; for a base chain of native nft rules: README, Hosts with native nft rules/, '-chain', 'input');
advises('... of another table',        { out => $none }, qr/no chain PREROUTING; this is the name of a built-in chain/, '-chain', 'PREROUTING');
my @both = (qr/no chain prometheus;.* make the chain with `iptables -t filter -N prometheus` and send packets there: .*; without rules and a jump to it a chain counts nothing \(README, Make the chain, has both\); beside native nft rules: README, Hosts with native nft rules(?:;|$)/m);
advises('... a chain needs rules and a jump, and beside native nft rules there is another way', { out => $none }, @both);
advises('... -list says the same',     { list => '', err => "iptables: No chain/target/match by that name.\n", status => 1 }, @both, '-list');
like(slurp("$FindBin::Bin/../README.md"), qr/^##+ $_$/m, "... README has that section: $_") for 'Make the chain', 'Hosts with native nft rules';
advises('... beside base chains of nft', { out => "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.\n$none" }, qr/; if it is there, it holds native nft rules or is a base chain of nft/m);
advises('... in legacy',               { out => $none =~ s/\(nf_tables\)/(legacy)/r }, qr/; if it is in nft, use -variant nft$/m, '-variant', 'legacy');
advises('... in nft',                  { out => $none }, qr/; if it is in a legacy table, use -variant legacy$/m, '-variant', 'nft');
advises('... in nft, with a warning',  { out => $none, err => "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n" }, qr/; there are legacy tables too/, '-variant', 'nft');
advises('two chains in one flag',      { out => $none }, qr/no chain a,b;.*; if several chains are meant, give -chain once for each$/m, '-chain', 'a,b');
advises('a chain that is one',         { out => $none }, qr/no chain a;(?!.*once for each)/, '-chain', 'a');

# What was said is whole lines, the last of them, however many there were.
advises('many words', { err => join('', map {"line $_ of the words\n"} 1 .. 500), status => 3 }, qr/it said: (?:line \d+ of the words\n)+line 500 of the words$/);
advises('bytes that are no UTF-8', { err => "caf\xe9 \xc3\xa9\n", status => 3 }, qr/it said: caf\\xe9 \xc3\xa9$/m);
advises('one line without end', { err => 'x' x 5000, status => 3 }, qr/it said: x{900,1000}$/m);

# ---- of both families at once

{
    fake(err => "no table of iptables here\n", status => 3);
    fake6(err => "no table of ip6tables here\n", status => 3);
    my $r = serve(get('/metrics'), flags => ['-ipv6']);
    answers($r, 503, 'both families fail for one reason: it is told once', body => qr/\Aipv4, ipv6 \(the same with ip6tables\): `[^\n]*no table of iptables here[^\n]*\n\z/, stderr => qr/\Anfprom: ipv4, ipv6 \(the same with ip6tables\): [^\n]*\n\z/);
    fake6(err => "no table of ip6tables, either\n", status => 3);
    answers(serve(get('/metrics'), flags => ['-ipv6']), 503, '... two reasons are two lines', body => qr/\Aipv4: [^\n]*\nipv6: [^\n]*\n\z/, stderr => qr/\Anfprom: ipv4: [^\n]*\nnfprom: ipv6: [^\n]*\n\z/);
    fake6(err => "no table of iptables here, and more\n", status => 3);
    answers(serve(get('/metrics'), flags => ['-ipv6']), 503, '... also if one begins as the other', body => qr/\Aipv4: [^\n]*\nipv6: [^\n]*\n\z/, stderr => qr/\A(?:nfprom: [^\n]*\n){2}\z/);
}

# ---- of an exchange that was out of time

{
    my $s = qr/\d+\.\d{3} s/;
    my $lock = qr/, of these waiting for the lock $s/;
    fake(sleep => 86_399);
    fake6();
    answers(serve(get('/metrics', 'X-Prometheus-Scrape-Timeout-Seconds: 2.5')), 504, 'a 504 says where the time went',
        body => qr/^Of 2\.000 s the request took $s, ipv4 $s$lock\.\n\z/m, stderr => qr/\Anfprom: ipv4: [^\n]*\n\z/);
    answers(serve([substr(get('/metrics'), 0, 20), \0.7, substr get('/metrics'), 20], flags => [qw(-timeout 3s)]), 504, '... also if the request came late',
        body => qr/^Of 3\.000 s the request took (?:0\.[4-9]|[12]\.)\d+ s, ipv4 $s$lock\.\n\z/m);
    fake6(sleep => 86_399);
    answers(serve(get('/metrics'), flags => [qw(-ipv6 -timeout 2s)]), 504, '... of both families',
        body => qr/^Of 2\.000 s the request took $s, ipv4 $s$lock, ipv6 $s$lock\.\n\z/m);
    answers(serve(get('/metrics'), flags => [qw(-ipv6 -ipv4=false -timeout 1s)]), 504, '... of IPv6 alone', body => qr/^Of 1\.000 s the request took $s, ipv6 $s$lock\.\n\z/m);
    fake(list => "", sleep => 86_399);
    for (['nft', qr//], ['legacy', qr/, in which iptables may have waited for the lock/]) {
        my ($variant, $words) = @$_;
        answers(serve(get('/metrics'), flags => ['-list', '-variant', $variant, qw(-timeout 1s)]), 504, "... with -list, $variant", body => qr/^Of 1\.000 s the request took $s, ipv4 $s$words\.\n\z/m);
    }
    fake(status => 3);
    fake6(status => 3);
    unlike(serve(get('/metrics'), flags => ['-ipv6'])->{body}, qr/the request took/, 'a failure that was none of time says nothing of it');
}
fake();
fake6();

# ---- of a start that nobody can have meant

fake();
fake6();
{
    open my $null, '<', '/dev/null' or die;
    open my $empty, '<', spew("$DIR/empty", '') or die;
    open my $asks, '<', spew("$DIR/asks", get('/-/healthy')) or die;
    open my $read, '<', "$DIR/asks" or die;
    seek $read, 0, 2;
    sysseek $read, 0, 2;
    for (['/dev/null', $null], ['an empty file', $empty], ['a file at its end', $read]) {
        my ($what, $in) = @$_;
        my $r = run(in => $in);
        is("$r->{exit}|$r->{out}", '2|', "standard input is $what: exit 2");
        like($r->{err}, qr/\Anfprom: [^\n]*-print is missing[^\n]*\nnfprom: [^\n]*-help[^\n]*\n\z/, '... and that -print is missing');
    }
    is(join(' ', commands()), '', '... and iptables is not run');
    my $r = run(in => $asks);
    like("$r->{exit}|$r->{out}", qr{\A0\|HTTP/1\.1 200 }, 'a file that holds a request gets its answer');
    pipe my $nothing, my $closed or die;
    close $closed;
    $r = run(in => $nothing);
    is("$r->{exit}|$r->{out}|$r->{err}", '0||', 'a connection that says nothing gets nothing');
    open $null, '<', '/dev/null' or die;
    is(run(in => $null, flags => ['-print'])->{exit}, 0, 'with -print it does not matter what standard input is');
}
{
    my $listening = IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => 0, Listen => 1) or die "cannot listen: $@";
    my $r = run(in => $listening);
    is($r->{exit}, 2, 'standard input is a socket that listens: exit 2');
    like($r->{err}, qr/\Anfprom: [^\n]*its unit needs Accept=yes\n/, '... and what the unit lacks');
}
{
    my $r = run(flags => [qw(-addr nowhere.invalid:9914)]);
    is($r->{exit}, 1, '-addr with a name that does not resolve: exit 1');
    like($r->{err}, qr/\Anfprom: -addr nowhere\.invalid:9914: the name does not resolve: .*; it must be name:port, ipv4:port, \[ipv6\]:port or :port\n\z/, '... and that it does not, and which forms there are');
}

# ---- where sudo runs iptables, and does it well

fake_sudo();
for (['native rules', { out => "# Table `filter' is incompatible, use 'nft' tool.\n" }, qr/; the table holds native nft rules that iptables cannot express/],
     ['no legacy tables', { err => "iptables-save v1.8.9 (legacy): Cannot initialize: Table does not exist (do you need to insmod?)\n", status => 1 }, qr/; if this kernel has no legacy tables, use -variant nft/]) {
    my ($promise, $fails, $advice) = @$_;
    fake(%$fails);
    answers(serve(get('/metrics'), unprivileged()), 503, "$promise, through sudo", body => $advice);
}

none_left('no process is left of all this');
done_testing;
