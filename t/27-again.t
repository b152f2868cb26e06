#!/usr/bin/perl

# What is not believed at the first reading. iptables was seen to lose all rules of a chain with status 0, to print a chain twice or
# a rule of it, and to show built-in chains that are not there. Here a fake does each of that on demand; t/68 meets them with the real one.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use NF;

# ---- a fake that says something else each time

# What the commands print, one after the other; the last again and again. Each is a text, or {out, err, status, hang, slow => seconds,
# does => a line of shell}.
sub answers_in_turn {
    my (%says) = @_;
    fake(list => 'whatever the chain', run => <<"SHELL");
kind=save; [ "\$chain" = '' ] || kind=list
echo >>'$DIR/turn/'\$kind
n=\$(wc -l <'$DIR/turn/'\$kind); [ \$n -le \$(cat '$DIR/turn/'\$kind.last) ] || n=\$(cat '$DIR/turn/'\$kind.last)
f='$DIR/turn/'\$kind.\$n
cat \$f.err >&2; sleep \$(cat \$f.slow); . \$f.does; cat \$f.out; [ ! -e \$f.hang ] || sleep 86400
exit \$(cat \$f.status)
SHELL
    system 'rm', '-rf', "$DIR/turn";
    mkdir "$DIR/turn";
    chmod 0777, "$DIR/turn";
    for my $kind (qw(save list)) {
        my @turns = @{ $says{$kind} || [{ err => "the command $kind should not be run\n", status => 99 }] };
        spew("$DIR/turn/$kind.last", scalar @turns);
        for my $n (1 .. @turns) {
            my $turn = ref $turns[$n - 1] ? $turns[$n - 1] : { out => $turns[$n - 1] };
            spew("$DIR/turn/$kind.$n.$_", $turn->{$_} // '') for qw(out err does);
            spew("$DIR/turn/$kind.$n.status", $turn->{status} // 0);
            spew("$DIR/turn/$kind.$n.slow", $turn->{slow} // 0);
            spew("$DIR/turn/$kind.$n.hang", '') if $turn->{hang};
        }
    }
}

# What was run, as in "save list save".
sub turns { return join ' ', map { /-save / ? 'save' : / -S / ? 'list' : () } grep { !/^sudo / } commands() }

my @CHAINS = (':INPUT ACCEPT [11:1100]', ':prometheus - [0:0]');
my $EMPTY  = save({ chains => \@CHAINS });
my $RULE   = save({ chains => \@CHAINS }, '[7:70] -A prometheus -p tcp');
my $TWICE  = save({ chains => [@CHAINS, $CHAINS[1]] }, '[7:70] -A prometheus -p tcp');
my %LIST   = (EMPTY => "-N prometheus\n", RULE => "-N prometheus\n-A prometheus -p tcp -c 7 70\n", TWICE => "-N prometheus\n-A prometheus -p tcp -c 7 70\n-N prometheus\n");

# As many as are read at most, in turn; and the words for it.
sub always { my @says = @_; return [map { $says[$_ % @says] } 0 .. 19] }
my $TWENTY = join ' ', ('save') x 20;

# A test: a scrape ends like this, and it took these commands. Expected is a number of packets ('none': a success without any
# series of rules), or a pattern of the reason.
sub ends {
    my ($promise, $says, $expected, $turns, %o) = @_;
    answers_in_turn(%$says);
    my $r = serve(get('/metrics'), flags => ['-timeout', '60m', @{ $o{flags} || [] }], map { $_ => $o{$_} } grep { exists $o{$_} } qw(wrap program env));
    if (ref $expected) {
        answers($r, $o{status} || 503, $promise, body => $expected);
    } else {
        answers($r, 200, $promise);
        my @packets = map { $_->{value} } map { series($r->{series} || [], $_) } qw(nfprom_packets_total nfprom_rule_packets_total);
        is(@packets ? "@packets" : 'none', $expected, "... $promise: these packets");
        is(join(' ', map { $_->{value} } series($r->{series} || [], 'nfprom_scrape_success')), '1', "... $promise: a success");
    }
    is(turns(), $turns, "... $promise: these commands");
    none_left("... $promise: no process is left");
}

# ---- a chain without a rule

ends('a chain with a rule is believed',             { save => [$RULE] },                                    7,      'save');
ends('... with -list',                              { list => [$LIST{RULE}] },                              7,      'list',           flags => ['-list']);
ends('one without is when both commands say so',    { save => [$EMPTY], list => [$LIST{EMPTY}] },           'none', 'save list');
ends('... with -list',                              { save => [$EMPTY], list => [$LIST{EMPTY}] },           'none', 'list save',      flags => ['-list']);
ends('the other command finds the rules',           { save => [$EMPTY], list => [$LIST{RULE}] },            7,      'save list');
ends('... with -list',                              { save => [$RULE], list => [$LIST{EMPTY}] },            7,      'list save',      flags => ['-list']);
ends('the other command sees the change first',     { save => [$EMPTY], list => [$LIST{TWICE}, $LIST{RULE}] }, 7,   'save list list');
ends('the other command fails',                     { save => [$EMPTY], list => [{ status => 4, err => "iptables: what now?\n" }] },
    qr/^ipv4: a chain was printed without a rule.*not confirmed: `(?:sudo -n )?iptables -w .*status 4; it said: iptables: what now\?/m, 'save list');
ends('the other command does not find the chain',   { save => [$EMPTY], list => [{ status => 1, err => "iptables: No chain/target/match by that name.\n" }] },
    qr/^ipv4: a chain was printed without a rule.*no chain prometheus/m, 'save list');
{
    # As long as a reason can be: a command of sixteen chains, all that iptables says, all the advice, and the doubt in front.
    my @names = map { "$_," . q(') x 25 } 10 .. 25;
    my $last  = "iptables: No chain/target/match by that name.\n# is incompatible\n# Warning: iptables-legacy tables present\n";
    my @reason;
    ends('the other command fails, and there is no end of what is to be said', { save => [save({ chains => [map {":$_ - [0:0]"} @names] })], list => [{ status => 1, err => 'x' x (999 - length $last) . "\n$last" }] },
        qr/\A(?=ipv4: (a chain was printed without a rule.*)\n\z)(?{ @reason = $1 })/s, 'save list', flags => ['-ipv6=false', map { (-chain => $_) } @names]);
    is(length $reason[0], 2999, '... a reason of 3,000 bytes, its end cut off');
    like($reason[0], qr/no chain 10,.*; it said: x+\n.*make the chain with .*; there are legacy tables too/s, '... behind all that matters');
}
ends('the other command hangs',                     { save => [$EMPTY], list => [{ hang => 1 }] }, qr/^ipv4: a chain was printed without a rule.*did not end in time/m,
    'save list', flags => [qw(-timeout 5s)], status => 504);
ends('... after words of a refusal',                 { save => [$EMPTY], list => [{ hang => 1, err => "iptables v1.8.9 (nf_tables): Permission denied (you must be root)\n" }] },
    qr/^ipv4: a chain was printed without a rule.*did not end in time/m, 'save list', flags => [qw(-timeout 5s)], status => 504);

my ($A, $B, $AB) = map { my $rules = $_; save({ chains => [':a - [0:0]', ':b - [0:0]'] }, map {"[7:70] -A $_ -p tcp"} split //, $rules) } qw(a b ab);
my @two = (flags => [qw(-chain a -chain b)]);
ends('one of two chains is empty, in both words',   { save => [$A], list => [map {"-N $_\n" . ($_ eq 'a' ? "-A a -p tcp -c 7 70\n" : '')} qw(a b)] }, 7, 'save list list save', @two);
ends('... the answer is a table, not the list', { save => [$A, $A =~ s/7:70/9:90/r], list => [map {"-N $_\n" . ($_ eq 'a' ? "-A a -p tcp -c 8 80\n" : '')} qw(a b)] }, 9, 'save list list save', @two);
ends('... but with -list, which a table confirms', { save => [$A], list => [map {"-N $_\n" . ($_ eq 'a' ? "-A a -p tcp -c 8 80\n" : '')} qw(a b)] }, 7, 'list list save', flags => [@{ $two[1] }, '-list']);
ends('in each read another one: in the third none', { save => [$A, $AB], list => [map {"-N $_\n" . ($_ eq 'b' ? "-A b -p tcp -c 7 70\n" : '')} qw(a b)] }, '7 7', 'save list list save', @two);
ends('a list of several chains, each of another moment, confirms and no more', { save => [$A, $B], list => [map {"-N $_\n-A $_ -p tcp -c 9 90\n"} qw(a b)] },
    qr/^ipv4: the ruleset changes while it is read/m, 'save list list save', @two);
ends('... and the third read decides', { save => [$A, $AB], list => [map {"-N $_\n-A $_ -p tcp -c 9 90\n"} qw(a b)] }, '7 7', 'save list list save', @two);
ends('... in the third the first again',            { save => [$A], list => [map {"-N $_\n" . ($_ eq 'b' ? "-A b -p tcp -c 7 70\n" : '')} qw(a b)] },
    qr/^ipv4: the ruleset changes while it is read/m, 'save list list save', @two);

# A built-in chain that iptables-nft has not found is printed as one that has counted nothing. (With other chains in a table it does not find
# all, while some are made or checked.)
{
    my ($lost, $found) = map { save({ chains => [":FORWARD $_", $CHAINS[1]] }, '[7:70] -A prometheus -p tcp') } 'ACCEPT [0:0]', 'DROP [123:4567]';
    my %list = (FORWARD => "-P FORWARD DROP -c 123 4567\n", prometheus => $LIST{RULE}, idle => "-P FORWARD DROP -c 0 0\n");
    my @both = (flags => [qw(-chain FORWARD -chain prometheus)]);
    ends('a policy is lost, and the other command shows it', { save => [$lost, $found], list => [@list{qw(FORWARD prometheus)}] }, 7, 'save list list save', @both);
    answers_in_turn(save => [$lost, $found], list => [@list{qw(FORWARD prometheus)}]);
    like(print_mode(@{ $both[1] })->{out}, qr/^nfprom_policy_packets_total\{[^}]*"DROP"\} 123$/m, '... in the answer, too');
    ends('... and then lost again',              { save => [$lost], list => [@list{qw(FORWARD prometheus)}] }, qr/^ipv4: the ruleset changes while it is read/m, 'save list list save', @both);
    ends('... a policy that has counted nothing', { save => [$lost], list => [@list{qw(idle prometheus)}] }, qr/^ipv4: the ruleset changes while it is read/m, 'save list list save', @both);
    ends('it is lost in the second read',        { save => [$found], list => ["-P FORWARD ACCEPT -c 0 0\n", $list{prometheus}] }, 7, 'save list list save', @both);
    ends('one chain alone',                      { save => [$lost], list => [$list{FORWARD}] }, 'none', 'save list', flags => [qw(-chain FORWARD)]);
    answers_in_turn(save => [$lost], list => [$list{FORWARD}]);
    like(print_mode(qw(-chain FORWARD))->{out}, qr/^nfprom_policy_packets_total\{[^}]*"DROP"\} 123$/m, '... as the other command shows it');
}

# ---- where the other command may not be run

for (
    ['is not there',               { status => 127, err => "sh: 1: iptables: not found\n" }],
    ['may not read',               { status => 4,   err => "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n" }],
    ['cannot get at its lock',     { status => 4,   err => "Fatal: can't open lock file /run/xtables.lock: Permission denied\n" }],
) {
    my ($what, $refusal) = @$_;
    ends("the other command $what: the same once more", { save => [$EMPTY], list => [$refusal] }, 'none', 'save list save');
    ends('... finds a rule',                            { save => [$EMPTY, $RULE], list => [$refusal] }, 7, 'save list save');
    ends('... with -list, which finds one',             { list => [$LIST{EMPTY}, $LIST{RULE}], save => [$refusal] }, 7, 'list save list', flags => ['-list']);
    ends("the usual command $what: that is a failure",  { save => [$refusal], list => [$LIST{RULE}] }, qr/^ipv4: `/m, 'save');
}
ends('with -list, a table that iptables-save refuses', { list => [$LIST{EMPTY}], save => ["# Table `filter' is incompatible, use 'nft' tool.\n"] }, 'none', 'list save list', flags => ['-list']);
ends('... in other words',                             { list => [$LIST{EMPTY}], save => [{ status => 3, err => "Error: unsupported layer 4 protocol value\niptables-save v1.8.9 (nf_tables): Parsing nftables rule failed\n" }] }, 'none', 'list save list', flags => ['-list']);

SKIP: {
    need_root(8);
    NF::_install('sudo', '#!/bin/sh', 'case "$*" in *-save*) while [ "$1" = -n ]; do shift; done; exec "$@";; esac', "echo 'sudo: a password is required' >&2", 'exit 1', '');
    ends('sudo allows one command alone: the same once more', { save => [$EMPTY] }, 'none', 'save save', unprivileged());
    ends('... finds a rule', { save => [$EMPTY, $RULE] }, 7, 'save save', unprivileged());
    fake_sudo();
}
SKIP: {
    skip('the address sanitizer needs terabytes', 5) if is_sanitized();
    ends('a limit of memory that is out of reach is none', { save => [$EMPTY], list => [{ status => 127, err => "sh: 1: iptables: not found\n" }] }, 'none', 'save list save',
        wrap => [shell_limit('-v 4000000')]);
}

# ---- for lack of memory

SKIP: {
    skip('the address sanitizer needs terabytes', 12) if is_sanitized();
    my @little = (wrap => [shell_limit('-d 900000')]);
    ends('under a limit, both commands say the same', { save => [$EMPTY], list => [$LIST{EMPTY}] }, 'none', 'save list', @little);
    ends('under a limit, the other command runs out of memory', { save => [$EMPTY], list => [{ status => 4, err => "iptables v1.8.9 (nf_tables): Memory allocation problem\n" }] },
        qr/^ipv4: a chain was printed without a rule.*a limit of 900000 KiB for data \(ulimit -d/m, 'save list', @little);
    ends('under a limit, the other command may not be run', { save => [$EMPTY], list => [{ status => 127 }] }, qr/^ipv4: a chain was printed without a rule.*a limit of 900000 KiB for data/m,
        'save list', @little);
    ends('under a limit, memory is missing at once', { save => [{ status => 1, err => "iptables: Memory allocation problem.\n" }] }, qr/^ipv4: `.*it needs more memory; there is a limit of 900000 KiB/m, 'save', @little);
}

# iptables may lose some rules of a chain, too, and tell of it as little: so what comes near a limit is not believed.
SKIP: {
    skip('the address sanitizer needs terabytes', 2) if is_sanitized();
    for ([20, 200], [120, 503], [120, 200, '-d unlimited'], [20, 200, '-v 400000'], [120, 503, '-v 400000', 'address space']) {
        my ($megabytes, $status, $limit, $of) = @$_;
        fake(out => $RULE, run => qq(perl -e 'push \@a, \$_ . "x" x 1000000 for 1 .. $megabytes'\ncat "\$OUT"));
        my $r = serve(get('/metrics'), wrap => [shell_limit($limit || '-d 200000')]);
        answers($r, $status, "an iptables-save that takes $megabytes MB, " . ($limit || 'of 200 that it may'), $status == 503 ?
            (body => qr/^ipv4: `.*it took \d{6} KiB of memory and may have lost rules[^;]*; it needs more memory; there is a limit of [24]00000 KiB for @{[$of || 'data']} /m) : ());
    }
}

# What nfprom itself has in memory is not the command's.
SKIP: {
    skip('the address sanitizer needs terabytes', 2) if is_sanitized();
    fake(list => 'x', run => q(perl -e 'print "*filter\n:prometheus - [0:0]\n"; printf "[1:1] -A prometheus -s 10.%d.%d.%d/32 -p tcp -m tcp --sport 443 -j RETURN\n", $_ >> 16, $_ >> 8 & 255, $_ & 255 for 1 .. 100_000; print "COMMIT\n"'));
    fake6();
    my $r = run(flags => ['-print', '-ipv6', '-timeout', '60m'], wrap => [shell_limit('-d 14000')]);
    is("$r->{exit} $r->{err}", '0 ', 'a limit of twice what nfprom itself has in memory');
    is(join(' ', $r->{out} =~ /^nfprom_scrape_success\{.*\} (\d)$/mg), '1 1', '... and both families are read');
}

# ---- a ruleset that changes

ends('a chain that comes twice is read again',  { save => [$TWICE, $RULE] }, 7, 'save save');
ends('... and once more',                       { save => [$TWICE, $TWICE, $RULE] }, 7, 'save save save');
ends('... but not for ever',                    { save => [$TWICE] }, qr/^ipv4: `(?:sudo -n )?iptables-save -c -t filter` gave no counters: the ruleset changed while it was read/m, 'save save save');
ends('... with -list',                          { list => [$LIST{TWICE}, $LIST{RULE}] }, 7, 'list list', flags => ['-list']);
ends('what is not understood is no change',     { save => [$RULE =~ s/\[7:70\]/7:70/r, $RULE] }, qr/^ipv4: `.*unexpected line/m, 'save');

# ---- a rule that stands there twice: so iptables-nft-save prints some while others are only checked (t/67)

my ($COPIES, $OTHERS, $WORDS) = map { my @rules = @$_; save({ chains => \@CHAINS }, map {"[7:70] -A prometheus $_"} @rules) }
    ['-p tcp -j RETURN', '-p tcp -j RETURN'], ['-p tcp -j LOG', '-p tcp -j DROP'], ['-p tcp -j RETURN', '-p tcp -m tcp -j RETURN'];
my $COPIED = "-N prometheus\n" . "-A prometheus -p tcp -c 7 70 -j RETURN\n" x 2;
ends('a rule that comes twice is read again',     { save => [$COPIES, $RULE] },                   7,     'save save');
ends('... and once more',                         { save => [$COPIES, $COPIES, $RULE] },          7,     'save save save');
ends('... and then believed',                     { save => [$COPIES] },                          '7 7', 'save save save');
ends('... with -list',                            { list => [$COPIED, $COPIED, $LIST{RULE}] },    7,     'list list list', flags => ['-list']);
ends('... which believes it, too',                { list => [$COPIED] },                          '7 7', 'list list list', flags => ['-list']);
ends('two rules with one match, printed twice',   { save => [save({ chains => \@CHAINS }, map {"[7:70] -A prometheus -p tcp -j $_"} qw(LOG RETURN) x 2), $OTHERS] }, '7 7', 'save save');
ends('... a hundred of them',                         { save => [save({ chains => \@CHAINS }, map {"[7:70] -A prometheus -p tcp -j MARK --set-xmark $_"} (1 .. 100) x 2), $OTHERS] }, '7 7', 'save save');
{
    my ($two, $four) = map { save({ chains => \@CHAINS }, ('[7:70] -A prometheus -p tcp -j RETURN') x $_) } 2, 4;
    ends('two that are there, and in one read four', { save => [$four, $two] }, '7 7', 'save save save save');
    ends('... in the second',                        { save => [$two, $four, $two] }, '7 7', 'save save save save save');
    ends('... in the third',                         { save => [$two, $two, $four, $two] }, '7 7', 'save save save save save save');
    ends('... now and then',                         { save => always($two, $four, $two) }, qr/^ipv4: the ruleset changes/m, $TWENTY);
}
ends('two in a row, not the first two',           { save => [$COPIES, $RULE, $COPIES] },          7,     'save save');
ends('one with another target is another rule',   { save => [$OTHERS] },                          '7 7', 'save');
ends('... so is one in other words',              { save => [$WORDS] },                           '7 7', 'save');
ends('... and one with another comment',           { save => [save({ chains => \@CHAINS }, map {"[7:70] -A prometheus -p tcp -m comment --comment $_"} 'a', 'b')] }, '7 7', 'save');
ends('... or with another label in it',           { save => [save({ chains => \@CHAINS }, map {"[7:70] -A prometheus -p tcp -m comment --comment \"nfprom(a=$_)\""} 'a', 'b')] }, '7 7', 'save');
{
    # As many copies in each read, but of other rules: where one comes twice, another may be missing.
    my @one_twice = map { my $twice = $_; save({ chains => \@CHAINS }, map {"[7:70] -A prometheus -p tcp -m tcp --dport $_"} sort 1 .. 6, $twice) } 1 .. 6;
    ends('in each read another rule',             { save => always(@one_twice) },                  qr/^ipv4: the ruleset changes/m, $TWENTY);
    ends('... until three are the same',          { save => [@one_twice[0 .. 2], $one_twice[2]] },  join(' ', (7) x 7), join(' ', ('save') x 5));
    my @jumps = map { my $more = $_; save({ chains => \@CHAINS }, map({"[1:1] -A INPUT -i $_ -j prometheus"} 'a', 'b', @$more), '[7:70] -A prometheus -p tcp') } [], ['b'], ['a'];
    ends('a jump that comes twice is read again', { save => [@jumps[1, 0]] },                       7, 'save save');
    ends('... and then believed',                 { save => [$jumps[1]] },                          7, 'save save save');
    ends('... if it is the same each time',       { save => always(@jumps[1, 2]) },                qr/^ipv4: the ruleset changes/m, $TWENTY);
    ends('... with -list, which does not tell',   { list => [$LIST{RULE}] },                        7, 'list', flags => ['-list']);
}
ends('where there is no time to read so often, it is believed', { save => [{ out => $COPIES, slow => 3 }] }, '7 7', 'save', flags => [qw(-timeout 14s)]);
ends('a chain without a rule is no answer to it', { save => [$COPIES, $EMPTY], list => [$LIST{EMPTY}] }, 'none', 'save save list');
my ($AAB, $ABB) = map { my $rules = $_; save({ chains => [':a - [0:0]', ':b - [0:0]'] }, map {"[7:70] -A $_ -p tcp"} split //, $rules) } qw(aab abb);
ends('a rule twice in one chain, while another chain changes', { save => [map { save({ chains => [':a - [0:0]', ':b - [0:0]'] }, ('[7:70] -A a -p tcp') x 2, "[7:70] -A b -p tcp -m tcp --dport $_") } 1 .. 3] }, '7 7 7', 'save save save', @two);
ends('in each read in another chain',             { save => always($AAB, $ABB) },                  qr/^ipv4: the ruleset changes while it is read: .* a rule twice/m, $TWENTY, @two);

# ---- a built-in chain that is not there

my $WARNING = "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n";
my $REMARK  = "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.\n";
my ($IDLE, $USED, $RULED) = map { save({ chains => [":INPUT ACCEPT [$_->[0]]"] }, map {"[0:0] -A INPUT $_"} @{$_}[1 .. $#$_]) } ['0:0'], ['5:50'], ['0:0', '-p tcp'];
my %INPUT   = (IDLE => "-P INPUT ACCEPT -c 0 0\n", USED => "-P INPUT ACCEPT -c 5 50\n");
my @input   = (flags => [qw(-chain INPUT -variant nft)]);
ends('a built-in chain with nothing in it, beside legacy tables, is not there', { save => [{ out => $IDLE, err => $WARNING }] },
    qr/^ipv4: `.*without a rule has counted nothing.*use -variant legacy/m, 'save save save', @input);
ends('... with -list', { list => [{ out => $INPUT{IDLE}, err => $WARNING }] }, qr/^ipv4: `.*without a rule has counted nothing.*use -variant legacy/m, 'list list list', flags => [qw(-list -chain INPUT)]);
ends('... one that has counted is',     { save => [{ out => $USED, err => $WARNING }], list => [{ out => $INPUT{USED}, err => $WARNING }] }, 'none', 'save list', @input);
ends('... one that has a rule is',      { save => [{ out => $RULED, err => $WARNING }] }, 0, 'save', @input);
ends("... a user's chain is",           { save => [{ out => $EMPTY, err => $WARNING }], list => [{ out => $LIST{EMPTY}, err => $WARNING }] }, 'none', 'save list');
ends('one beside native base chains is not there', { save => ["$REMARK$IDLE"] }, qr/^ipv4: `.*without a rule has counted nothing.*native base chains/m, 'save save save', @input);
ends('... but the remark comes in races, too', { save => ["$REMARK$IDLE", "$REMARK$IDLE", $RULED] }, 0, 'save save save', @input);

# ---- legacy tables: in the middle of a change all counters are 0; the lock may be another one than the changer's

my ($ZERO, $SOME) = map { save({ program => 'iptables-save v1.8.9', chains => \@CHAINS }, "[0:0] -A prometheus -p udp", "[$_] -A prometheus -p tcp") } '0:0', '7:70';
my %LISTED = (ZERO => "-N prometheus\n-A prometheus -p udp -c 0 0\n-A prometheus -p tcp -c 0 0\n", SOME => "-N prometheus\n-A prometheus -p udp -c 0 0\n-A prometheus -p tcp -c 7 70\n");
my @unlocked = (env => { XTABLES_LOCKFILE => "$DIR/no/such/lock" });
ends('no lock, a chain with a counter',           { save => [$SOME] }, '0 7', 'save', @unlocked);
ends('no lock, a chain of zeros: iptables -S waits for the lock', { save => [$ZERO], list => [$LISTED{SOME}] }, '0 7', 'save list', @unlocked);
ends('... and says the same',                     { save => [$ZERO], list => [$LISTED{ZERO}] }, '0 0', 'save list save', @unlocked);
ends('... and then none at all: that is not the same', { save => [$ZERO], list => [$LIST{EMPTY}] }, qr/^ipv4: the ruleset changes while it is read/m, 'save list save list', @unlocked);
ends('... in two moments of a change',            { save => [$ZERO, $SOME], list => [$LISTED{ZERO}] }, '0 7', 'save list save', @unlocked);
ends('... in two, and not in the third',          { save => [$ZERO, $ZERO, $SOME], list => [{ status => 4, err => "Fatal: can't open lock file /run/xtables.lock: Permission denied\n" }] }, '0 7', 'save list save save', @unlocked);
ends('... and has no right to',                   { save => [$ZERO, $SOME], list => [{ status => 4, err => "Fatal: can't open lock file /run/xtables.lock: Permission denied\n" }] }, '0 7', 'save list save', @unlocked);
ends('... with a rule twice in between: zeros are not confirmed by that', { save => [$ZERO], list => ["-N prometheus\n" . "-A prometheus -p tcp -c 7 70\n" x 2] },
    qr/^ipv4: the ruleset changes while it is read/m, 'save list save list save', @unlocked);
{
    my ($zero, $some) = map { save({ program => 'iptables-save v1.8.9', chains => [":INPUT ACCEPT [$_]"] }) } '0:0', '7:70';
    my @how = (@unlocked, flags => [qw(-chain INPUT)]);
    ends('a policy of zero, and no rule: it is not believed twice', { save => [$zero, $some], list => ["-P INPUT ACCEPT -c 0 0\n"] }, 'none', 'save list save', @how);
    answers_in_turn(save => [$zero, $some], list => ["-P INPUT ACCEPT -c 0 0\n"]);
    like(print_mode(qw(-chain INPUT))->{out}, qr/^nfprom_policy_packets_total\{.*\} 7$/m, '... the third read is what counts');
    ends('... but three times', { save => [$zero], list => ["-P INPUT ACCEPT -c 0 0\n"] }, 'none', 'save list save', @how);
    ends('a policy that has counted, and rules that have not', { save => [save({ program => 'iptables-save v1.8.9', chains => [':INPUT ACCEPT [7:70]'] }, '[0:0] -A INPUT -p tcp')] }, 0, 'save', @how);
}
ends('with a lock, a chain of zeros',             { save => [$ZERO], list => [$LISTED{SOME}] }, '0 7', 'save list');
ends('... and iptables -S says the same',         { save => [$ZERO], list => [$LISTED{ZERO}] }, '0 0', 'save list save');
ends('with a lock, a chain with a counter',       { save => [$SOME] }, '0 7', 'save');
ends('-list of zeros, of legacy',                 { save => [$SOME], list => [$LISTED{ZERO}] }, '0 7', 'list save', flags => [qw(-list -variant legacy)]);
ends('so they are of nft',                        { save => [$ZERO =~ s/v1\.8\.9/v1.8.9 (nf_tables)/r] }, '0 0', 'save', @unlocked);

# ---- other rules than the kernel counts, while the chain is loaded anew. Here a real chain of nft has 40 rules, and a
# jump to it in INPUT; the fake prints what it likes.

SKIP: {
    need_root(1);
    my ($nft, $setpriv, $iptables) = map { my $name = $_; (grep {-x} map {"$_/$name"} qw(/usr/sbin /sbin /usr/bin /bin))[0] } 'nft', 'setpriv', 'iptables-nft';
    skip_or_fail('needs nft, setpriv, iptables-nft and a network namespace', 1) unless $nft && $setpriv && $iptables && system('unshare', '-n', $nft, 'list ruleset') == 0;
    for my $family ('ip', 'ip6') {
        my $jumps = 'type filter hook input priority 0;' . join '', map {" counter jump $_;"} qw(prometheus both long);
        spew("$DIR/$family.nft", "table $family filter {\nchain prometheus {\n" . "counter return\n" x 40 . "}\nchain long {\n" . "counter return\n" x 1000 . "}\nchain both { counter return; counter return; }\nchain free { counter return; }\nchain empty { }\nchain native { type filter hook input priority -5; jump empty; }\nchain INPUT { $jumps }\n}\n");
    }
    my @there = (wrap => ['unshare', '-n', 'sh', '-c', "$nft -f '$DIR/ip.nft' && $nft -f '$DIR/ip6.nft' && exec \"\$@\"", 'sh']);
    my $printed = sub {
        my ($rules, %o) = @_;
        return save({ chains => [@CHAINS, ':both - [0:0]'], program => $o{program} },
            ('[1:1] -A INPUT -j prometheus') x ($o{jumps} // 1), '[1:1] -A INPUT -j both', (map {"[7:70] -A prometheus -p tcp -m tcp --dport $_"} grep { $_ != ($o{without} // 0) } 1 .. $rules), '[7:70] -A both -p udp', ('[7:70] -A both -p icmp') x ($o{two} // 1));
    };
    my $packets = sub { return join ' ', (7) x $_[0] };
    my ($all, $less) = map { $printed->($_) } 40, 39;
    my $six   = sub { return join ' ', ($_[0]) x 6 };
    my $other = qr/^ipv4: the ruleset changes while it is read: .* other rules than the kernel counts, and in 20 reads it did not/m;
    ends('all rules that the kernel counts',       { save => [$all] },                            $packets->(40), 'save',                @there);
    ends('fewer are read again',                   { save => [$less, $all] },                     $packets->(40), 'save save',           @there);
    ends('... and once more',                      { save => [$less, $less, $all] },              $packets->(40), 'save save save',      @there);
    ends('... and believed if they are the same each time', { save => [$less] },                  $packets->(39), $six->('save'),        @there);
    ends('... but others each time are not',       { save => always(map { $printed->($_) } 39, 38) }, $other, $TWENTY,              @there);
    ends('... nor as few, but not the same',       { save => always(map { $printed->(40, without => $_) } 1 .. 6) }, $other, $TWENTY, @there);
    ends('... nor five in a row',                  { save => always(map { $printed->(40, without => $_) } 1, (2) x 5) }, $other, $TWENTY, @there);
    ends('... until six are the same',             { save => [map { $printed->(40, without => $_) } 1, 2] }, $packets->(39), join(' ', ('save') x 7), @there);
    ends('a rule is missing, and the jump is there twice', { save => [$printed->(39, jumps => 2), $all] }, $packets->(40), 'save save',  @there);
    my $lost = save({ chains => [$CHAINS[0]] });
    ends('the chain is missing, but the kernel has it', { save => [$lost, $all] },                $packets->(40), 'save save',           @there);
    ends('... each time',                          { save => [$lost] }, qr/^ipv4: `.*no chain prometheus.*; the kernel has it, but iptables did not list it/m, 'save save save', @there);
    ends('... another one, which it has not got',  { save => [$lost] }, qr/^ipv4: `.*no chain other.*; look at -chain/m, 'save',                         @there, flags => [qw(-chain other)]);
    ends('... in legacy tables',                   { save => [save({ chains => [$CHAINS[0]], program => 'iptables-save v1.8.9' })] }, qr/^ipv4: `.*no chain prometheus.*; look at -chain/m, 'save', @there);
    ends('more are read again',                    { save => [$printed->(41), $all] },            $packets->(40), 'save save',           @there);
    ends('a jump that is not printed',             { save => [$printed->(40, jumps => 0), $all] }, $packets->(40), 'save save',        @there);
    ends('... is believed after three times',      { save => [$printed->(40, jumps => 0)] },      $packets->(40), 'save save save',      @there);
    ends('... until three are the same',           { save => [map { $printed->(40, jumps => $_) } 0, 2, 0, 0, 0] }, $packets->(40), join(' ', ('save') x 5), @there);
    ends('... but others each time are not',       { save => always(map { $printed->(40, jumps => $_) } 0, 2) }, $other, $TWENTY,   @there);
    ends('... native base chains may jump, too',   { save => [$REMARK . $printed->(40, jumps => 0)] }, $packets->(40), 'save',           @there);
    ends('... but rules are counted beside them',  { save => ["$REMARK$less", $all] },            $packets->(40), 'save save',           @there);
    ends('... where there is no time to read again', { save => [{ out => $printed->(40, jumps => 0), slow => 2 }] }, $packets->(40), 'save', @there, flags => [qw(-timeout 14s)]);
    ends('... but rules are not believed then',    { save => [{ out => $less }, { hang => 1 }] }, qr/^ipv4: .*did not end in time/m, 'save save', @there, flags => [qw(-timeout 14s)], status => 504);
    my ($free, $led_to) = map { save({ chains => [$CHAINS[0], ':free - [0:0]'] }, '[7:70] -A free -p tcp', @$_) } [], ['[1:1] -A INPUT -j free'];
    ends('a chain to which nothing jumps: the kernel does not count what a load would delete', { save => [$free] }, 7, 'save save save', @there, flags => [qw(-chain free)]);
    my @others = map { $free =~ s/-p tcp/-p $_/r } qw(udp icmp);
    ends('... whatever its rules are',             { save => [$free, @others] },                  7, 'save save save', @there, flags => [qw(-chain free)]);
    ends('... a jump comes to light',              { save => [$free, $led_to] },                  7, 'save save save save', @there, flags => [qw(-chain free)]);
    ends('... where native base chains may jump',  { save => [$REMARK . $free] },                 7, 'save',                @there, flags => [qw(-chain free)]);
    ends('... a built-in one',                     { save => [save({ chains => [':INPUT ACCEPT [7:70]'] }, map {"[7:70] -A INPUT -j $_"} qw(prometheus both long))] }, '7 7 7', 'save', @there, flags => [qw(-chain INPUT)]);
    ends('a small chain is counted, too',          { save => [$printed->(3), $all] },             $packets->(40), 'save save',           @there);
    ends('legacy tables are not in nft',           { save => [$printed->(39, program => 'iptables-save v1.8.9')] }, $packets->(39), 'save', @there, @unlocked);
    my ($list_all, $list_less, $list_more) = map { my $last = $_; join "\n", '-N prometheus', (map {"-A prometheus -p tcp -m tcp --dport $_ -c 7 70"} 1 .. $last), '' } 40, 39, 41;
    ends('a list, too, but of its jumps',          { list => [$list_less, $list_all] },           $packets->(40), 'list list',           @there, flags => [qw(-list -variant nft)]);
    ends('... believed if it is the same each time', { list => [$list_less] },                    $packets->(39), $six->('list'),        @there, flags => [qw(-list -variant nft)]);
    ends('... of legacy tables is not in nft',     { list => [$list_less] },                      $packets->(39), 'list',                @there, flags => [qw(-list -variant legacy)]);
    ends('... nor asked for there, whatever is printed', { save => [$less] },                     $packets->(39), 'save',                @there, @unlocked, flags => [qw(-variant legacy)]);
    ends('a native base chain jumps to an empty one, which no list says', { save => [$REMARK . save({ chains => [':empty - [0:0]'] })], list => ["-N empty\n"] }, 'none', 'save list', @there, flags => [qw(-chain empty -variant nft)]);
    ends('of two rules one is missing',            { save => [$printed->(40, two => 0), $all] },  '7 7',                  'save save',           @there, flags => [qw(-chain both)]);
    ends('the second of two chains',               { save => [$less, $all] },                     $packets->(42), 'save save',           @there, flags => [qw(-chain both -chain prometheus)]);
    my $long = sub {
        return save({ chains => [$CHAINS[0], ':long - [0:0]'] }, '[1:1] -A INPUT -j long', (map {"[7:70] -A long -p tcp -m tcp --dport $_"} 1 .. $_[0]));
    };
    ends('one that the kernel lists in many pieces', { save => [$long->(999), $long->(1000)] },  $packets->(1000), 'save save',          @there, flags => [qw(-chain long)]);
    ends('... believed if it is the same each time', { save => [$long->(1001)] },                $packets->(1001), $six->('save'),       @there, flags => [qw(-chain long)]);
    # A match of u32 takes 2 KB: the kernel's pieces have 32, the first one 20, or 8 if iptables has read. (Jumps are not counted beside native base chains.)
    my $wide = sub {
        return $REMARK . save({ chains => [':wide - [0:0]'] }, map {"[7:70] -A wide -p tcp -m tcp --dport $_"} 1 .. $_[0]);
    };
    for my $wide_rules ([5], [5, 5, 5], [11], [1, 14]) {
        my $loads = join '', map {"&& $iptables -w -A wide " . '-m u32 --u32 0=0 ' x $_ . '-j RETURN '} @$wide_rules;
        my @with = (wrap => ['unshare', '-n', 'sh', '-c', "$iptables -w -N wide $loads && exec \"\$@\"", 'sh'], flags => [qw(-chain wide)]);
        my $count = @$wide_rules;
        ends("rules of @$wide_rules times 2 KB",  { save => [$wide->($count)] },                   $packets->($count), 'save',            @with);
        ends('... of which one is missing',        { save => [$wide->($count - 1), $wide->($count)] }, $packets->($count), 'save save',   @with) if $count > 1;
        ends('... to which one was added',         { save => [$wide->($count + 1), $wide->($count)] }, $packets->($count), 'save save',   @with);
    }
    spew("$DIR/again.nft", "flush chain ip filter prometheus\ntable ip filter { chain prometheus {\n" . "counter return\n" x 40 . "}\n}\n");
    my $loaded = { out => $all, slow => 1, does => "$nft -f '$DIR/again.nft'\n" };
    my $more   = { out => $all, slow => 1, does => "$nft add rule ip filter prometheus return\n" };
    ends('a chain that is loaded anew meanwhile is read again', { save => [$loaded, $all] },     $packets->(40), 'save save',           @there);
    ends('... one that gets a rule, too',          { save => [$more, $printed->(41)] },           $packets->(41), 'save save',           @there);
    # Each change makes the ruleset another one, also for a chain that it leaves alone: so that is listed before and after.
    my $elsewhere = sub { return { out => $_[0], slow => 1, does => "$nft add table ip other\n$nft delete table ip other\n" } };
    ends('a change of another table: once more',   { save => [$elsewhere->($all)] },              $packets->(40), 'save save',           @there);
    ends('... each time: rules that are missing are noticed', { save => [map { $elsewhere->($_) } $less, $less, $all] }, $packets->(40), 'save save save', @there);
    ends('... without the right to see it: one read',    { save => [$elsewhere->($less)] },             $packets->(39), 'save', wrap => [@{ $there[1] }, $setpriv, qw(--bounding-set=-net_admin --)]);
    my $refused = { out => $all, slow => 1, does => "$nft -c add rule ip filter prometheus return\n! $nft delete chain ip filter prometheus 2>/dev/null\n" };
    ends('a change that is only checked, and one that is refused, are none', { save => [$refused] }, $packets->(40), 'save',          @there);
    # A question that fails (t/fault): of the first read these are sent: the order, the question for the generation, the word that the command
    # was started, the questions for the chain and its rules, twice, for the generation, and how it ended. A second read asks for chain and rules
    # before the command is started, and again behind it.
    SKIP: {
        my $fault = "$DIR/fault";
        my $can   = can_fault($fault);
        skip('the address sanitizer cannot be traced', 30) if is_sanitized();
        skip_or_fail('needs a C compiler and ptrace', 30) unless $can;
        my $asked = sub { my $n = shift; return (wrap => [@{ $there[1] }, $fault, '-f', 'send', $n, 'ENOBUFS']) };
        ends('a chain that can be listed only once', { save => ["$REMARK$less", $all] },           $packets->(40), 'save save',           $asked->($_)) for 5, 7;
        ends('... where there is no time to read again', { save => [{ out => $all, slow => 2 }, $all] }, $packets->(40), 'save save',       $asked->($_), flags => [qw(-timeout 14s)]) for 5, 7;
        ends('a generation that is not known at last', { save => [$all] },                         $packets->(40), 'save save',           $asked->(8));
        ends('a chain that is listed after iptables, but not before', { save => [$less, $all] },   $packets->(40), 'save save save',      $asked->(13));
    }
    my $long_list = join "\n", '-N long', (map {"-A long -p tcp -m tcp --dport $_ -c 7 70"} 1 .. 1000), '';
    ends('of two chains that are listed the second gets a rule', { list => [$long_list, { %$more, out => $list_all }, $long_list, $list_more] }, $packets->(1041), 'list list list list', @there, flags => [qw(-list -variant nft -chain long -chain prometheus)]);
    ends('a chain that is loaded anew in each read', { save => [$loaded] },                         $packets->(40), $six->('save'),        @there);
    ends('who has no right does not know',         { save => [$less] },                           $packets->(39), 'save', wrap => [@{ $there[1] }, $setpriv, qw(--bounding-set=-net_admin --)]);
    ends('a chain that nft has not got',           { save => [$less] },                           $packets->(39), 'save', wrap => [qw(unshare -n)]);
    ends('a table that nft has not got',           { save => [$less =~ s/^\*filter/*mangle/mr] }, $packets->(39), 'save', @there, flags => [qw(-table mangle)]);
    answers_in_turn(save => [$less]);
    fake6(out => $less);
    my $r = serve(get('/metrics'), flags => [qw(-ipv6 -ipv4=false -timeout 60m)], @there);
    answers($r, 200, 'IPv6 has its own chain');
    is(scalar grep({/^ip6tables-save/} commands()), 6, '... which is counted, too');
}

# ---- of two families, each by itself

{
    answers_in_turn(save => [$RULE]);
    fake6(out => $TWICE);
    answers(my $r = serve(get('/metrics'), flags => ['-ipv6']), 200, 'one family is steady, the other is not', stderr => qr/\Anfprom: ipv6: [^\n]*changed while it was read[^\n]*\n\z/);
    is(join(' ', map { value($r->{series} || [], 'nfprom_scrape_success', l2proto => $_) } qw(ipv4 ipv6)), '1 0', '... and that is said of each');
    is(join(' ', map { value($r->{series} || [], 'nfprom_packets_total', l2proto => $_) } qw(ipv4 ipv6)), '7 0 series', '... with the counters of one');
}

done_testing;
