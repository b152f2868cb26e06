#!/usr/bin/perl

# The script that makes the chain, systemd/chain: real iptables, both backends and both families, in this test's own network namespace;
# real packets between here and a peer in a namespace of its own.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy awk flock));

# ---- the network

my %PEER = (4 => '198.51.100.9', 6 => '2001:db8:2::9');
my %HERE = (4 => '198.51.100.8', 6 => '2001:db8:2::8');
command('ip netns add peer', 'ip link add wire type veth peer name eth0 netns peer', 'ip link set wire up', 'ip -n peer link set eth0 up',
    'ip -n peer link set lo up', 'ip address add 198.51.100.8/24 dev wire', 'ip address add 2001:db8:2::8/64 dev wire nodad',
    'ip -n peer address add 198.51.100.9/24 dev eth0', 'ip -n peer address add 2001:db8:2::9/64 dev eth0 nodad');

my $send = spew("$DIR/send", <<'SEND');
use strict;
use warnings;
use IO::Socket::IP;
my ($from, $sport, $to, $dport, $count) = @ARGV;
my $s = IO::Socket::IP->new(Proto => 'udp', LocalHost => $from, LocalPort => $sport, PeerHost => $to, PeerPort => $dport) or die "udp: $@";
for (1 .. $count) { send $s, 'x' x 100, 0 or redo }    # an ICMP error of the one before is no matter
SEND

# Datagrams that come to this machine, that leave it, and that it sends to itself, from or to the port.
sub packets {
    my ($family, $port, $in, $out, $self) = @_;
    my ($here, $peer) = ($HERE{$family}, $PEER{$family});
    must(qw(ip netns exec peer), $^X, $send, $peer, 0, $here, $port, $in)  if $in;
    must($^X, $send, $here, $port, $peer, 9, $out)                         if $out;
    must($^X, $send, $FAMILIES->{$family}{peer}, 0, $here, $port, $self)   if $self;
    return;
}

# ---- the script

my $script = slurp("$SOURCE/systemd/chain");
my $VARIANT;
delete $ENV{INVOCATION_ID};    # if this test is run by a unit

# With these values for the variables at its top.
sub edited {
    my %value = (ADDRESSES => "$HERE{4} 2001:DB8:2:0::8", SERVICES => 'dns=udp/53 ssh=tcp/22', @_);
    my $text = $script;
    for my $name (sort keys %value) { $text =~ s/^$name=.*$/$name='$value{$name}'/m or die "no variable $name" }
    return $text;
}

my %COMMANDS = map { $_ => commands_of($_) } qw(nft legacy);

# Runs it: its status, and what it said.
sub chain {
    my ($text, @arguments) = @_;
    local $ENV{PATH} = "$COMMANDS{$VARIANT}:$ENV{PATH}";
    my ($status, $out, $err) = run('', 'sh', spew("$DIR/chain", $text), @arguments);
    return "$status$out$err";
}

# All rules, without their counters.
sub ruleset { return join "\n", map { my $f = $_; map { map { s{\[\d+:\d+\] ?}{}gr } grep { !/^#/ } split /\n/, saved($f, $VARIANT, $_) } @_ ? @_ : 'filter' } 4, 6 }
sub rules_of { my ($family, $chain, $table) = @_; return [map { $_->[2] } saved_rules($family, $VARIANT, $chain, $table)] }

# {"dns in" => packets}; `rest` is the last rule.
sub counted {
    my ($family, @flags) = @_;
    my $e = exposition(one_shot($NFPROM, '-variant', $VARIANT, $family == 6 ? ('-ipv4=false', '-ipv6') : (), @flags)->{body});
    my %counted;
    for my $series (keys %{ $e->{nfprom_packets_total} }) {
        my ($direction, $service) = ",$series" =~ /,direction=(\w+).*,service=([^,]*)/ or next;
        $counted{"$service $direction"} += $e->{nfprom_packets_total}{$series};
    }
    $counted{rest} = $e->{nfprom_rule_packets_total}{ series_of(l2proto => $FAMILIES->{$family}{l2proto}, rule => '-j RETURN', comment => '', dup => '') };
    $counted{$_} = $e->{"nfprom_$_"}{"l2proto=$FAMILIES->{$family}{l2proto}"} for qw(chain_references unreachable_rules nonterminal_rules label_errors);
    return \%counted;
}

sub counts {
    my ($what, $family, %expected) = @_;
    my $counted = counted($family);
    return is_deeply({ map { $_ => $counted->{$_} } keys %expected }, \%expected, "$VARIANT, IPv$family: $what") || diag(explain($counted));
}

for my $variant (qw(nft legacy)) {
    $VARIANT = $variant;
    for my $family (4, 6) {
        ipt($family, $variant, @$_) for [qw(-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT)], [qw(-A OUTPUT -j ACCEPT)], [qw(-A FORWARD -j ACCEPT)];
    }
    my $before = ruleset();

    # ---- made, and counting
    is(chain(edited()), 0, "$variant: it makes the chain, and says nothing");
    for my $family (4, 6) {
        my $bits = $FAMILIES->{$family}{bits};
        is_deeply(rules_of($family, 'prometheus'), [
            qq{-d $HERE{$family}/$bits -p udp -m udp --dport 53 -m comment --comment "nfprom(service=dns)" -j RETURN},
            qq{-s $HERE{$family}/$bits -p udp -m udp --sport 53 -m comment --comment "nfprom(service=dns)" -j RETURN},
            qq{-d $HERE{$family}/$bits -p tcp -m tcp --dport 22 -m comment --comment "nfprom(service=ssh)" -j RETURN},
            qq{-s $HERE{$family}/$bits -p tcp -m tcp --sport 22 -m comment --comment "nfprom(service=ssh)" -j RETURN},
            '-j RETURN'], "$variant, IPv$family: two rules for each service, and the last one");
        is(rules_of($family, 'INPUT')->[0], '! -i lo -j prometheus', "$variant, IPv$family: the jump is the first rule of INPUT");
        is(rules_of($family, 'OUTPUT')->[0], '! -o lo -j prometheus', "$variant, IPv$family: and of OUTPUT");
        is(scalar(grep {/prometheus/} @{ rules_of($family, 'FORWARD') }), 0, "$variant, IPv$family: without a router none in FORWARD");
        packets($family, 53, 6, 4, 3);
        counts('packets in both directions, and not what the machine sends to itself', $family, 'dns in' => 6, 'dns out' => 4,
            chain_references => 2, unreachable_rules => 0, nonterminal_rules => 0, label_errors => 0);
    }

    # ---- run again
    my $once = ruleset();
    is(chain(edited()), 0, "$variant: it can be run again");
    is(ruleset(), $once, "$variant: which changes nothing");
    counts('and keeps the counters', $_, 'dns in' => 6, 'dns out' => 4) for 4, 6;
    for my $family (4, 6) {
        ipt($family, $variant, @$_) for [qw(-I INPUT -j prometheus)], [qw(-A INPUT ! -i lo -j prometheus)], [qw(-A FORWARD -j prometheus)], [qw(-A OUTPUT ! -o lo -j prometheus)],
            [qw(-A prometheus -j RETURN)], [qw(-A prometheus -p tcp --dport 9)], [qw(-I prometheus -p tcp --dport 7 -m comment --comment), 'my own -j RETURN'];
    }
    is(chain(edited()), 0, "$variant: jumps and rules that somebody has doubled");
    for my $family (4, 6) {
        counts('each jump is there once', $family, 'dns in' => 6, 'dns out' => 4, chain_references => 2);
        is(rules_of($family, 'INPUT')->[0], '! -i lo -j prometheus', "$variant, IPv$family: in its place");
        my $rules = rules_of($family, 'prometheus');
        is(scalar(grep { $_ eq '-j RETURN' } @$rules), 1, "$variant, IPv$family: and the last rule");
        is_deeply([@$rules[0, -1]], ['-p tcp -m tcp --dport 7 -m comment --comment "my own -j RETURN"', '-p tcp -m tcp --dport 9'],
            "$variant, IPv$family: rules of others stay where they are");
        ipt($family, $variant, qw(-D prometheus), $_) for scalar @$rules, 1;
    }

    ipt($_, $variant, qw(-I INPUT -p tcp --dport 22 -j ACCEPT)) for 4, 6;
    is(chain(edited()), 0, "$variant: a jump that has a rule before it");
    for my $family (4, 6) {
        is_deeply([@{ rules_of($family, 'INPUT') }[0, 1]], ['! -i lo -j prometheus', '-p tcp -m tcp --dport 22 -j ACCEPT'], "$variant, IPv$family: is the first again");
        counts('and the only one', $family, chain_references => 2, 'dns in' => 6);
        ipt($family, $variant, qw(-D INPUT 2));
    }

    # ---- other services
    is(chain(edited(SERVICES => 'dns=udp/53 web=tcp/80,443 dns=tcp/53 game=udp/6000:6010')), 0, "$variant: services come and go");
    for my $family (4, 6) {
        my $bits = $FAMILIES->{$family}{bits};
        is_deeply([map { /^-d \S+ (.*) -j RETURN$/ ? $1 =~ s/ -m comment --comment "nfprom\(service=(\w+)\)"/ $1/r : $_ eq '-j RETURN' ? $_ : () } @{ rules_of($family, 'prometheus') }],
            ['-p udp -m udp --dport 53 dns', '-p tcp -m multiport --dports 80,443 web', '-p tcp -m tcp --dport 53 dns', '-p udp -m udp --dport 6000:6010 game', '-j RETURN'],
            "$variant, IPv$family: new ones stand before the last rule, gone ones have none");
        packets($family, 6001, 2, 1, 0);
        counts('all others keep their counters', $family, 'dns in' => 6, 'dns out' => 4, 'game in' => 2, 'game out' => 1, 'ssh in' => undef, unreachable_rules => 0);
    }
    my $behind = ['-d', "$HERE{4}/32", qw(-p tcp -m tcp --dport 25 -m comment --comment nfprom(service=smtp) -j RETURN)];
    ipt(4, $variant, qw(-A prometheus), @$behind);
    is(chain(edited(SERVICES => 'dns=udp/53 smtp=tcp/25')), 0, "$variant: a service that stands behind the last rule");
    is(rules_of(4, 'prometheus')->[-1], '-j RETURN', "$variant: is put before it");
    counts('where it can count', 4, 'dns in' => 6, 'smtp in' => 0, unreachable_rules => 0);
    ipt(4, $variant, qw(-I prometheus -d), "$HERE{4}/32", qw(-p tcp -m tcp --dport 25 -j RETURN));
    is(chain(edited(SERVICES => 'dns=udp/53 mail=tcp/25')), 0, "$variant: a service with another name, and a plain rule for its port");
    is_deeply([grep {/port 25/} @{ rules_of(4, 'prometheus') }], [map { qq{$_ 25 -m comment --comment "nfprom(service=mail)" -j RETURN} }
        "-d $HERE{4}/32 -p tcp -m tcp --dport", "-s $HERE{4}/32 -p tcp -m tcp --sport"], "$variant: become rules with that name");

    # ---- a router, beside lan-hosts; loopback
    is(chain(edited(ROUTER => 'yes', LOOPBACK => 'yes')), 0, "$variant: a router, and loopback");
    for my $family (4, 6) {
        is(rules_of($family, 'FORWARD')->[0], '-j prometheus', "$variant, IPv$family: a jump in FORWARD, the first rule");
        packets($family, 53, 0, 0, 5);
        counts('what the machine sends to itself counts once', $family, 'dns in' => 11, 'dns out' => 4, chain_references => 3);
        ipt($family, $variant, @$_) for [qw(-N lan)], [qw(-I FORWARD -j lan)];
    }
    my $beside = ruleset();
    is(chain(edited(ROUTER => 'yes', LOOPBACK => 'yes')), 0, "$variant: beside lan-hosts");
    is(ruleset(), $beside, "$variant: nothing is changed, since that only counts");
    for my $family (4, 6) { ipt($family, $variant, @$_) for [qw(-D FORWARD -j lan)], [qw(-X lan)] }

    # ---- what it does not do
    my $still = ruleset();
    for my $wrong (
        [{ ADDRESSES => '' }, 'no address'], [{ ADDRESSES => 'alpha' }, 'no address: alpha'], [{ ADDRESSES => '1.2.3' }, 'no address: 1.2.3'],
        [{ ADDRESSES => '1.2.3.4 1.2.3.256' }, 'no address: 1.2.3.256'], [{ ADDRESSES => '203.0.113.0/24' }, 'no address: 203.0.113.0/24'],
        [{ ADDRESSES => '2001:db8::1::2' }, 'no address: 2001:db8::1::2'], [{ ADDRESSES => '1.2.3.4 ::1' }, 'no address: ::1'], [{ ADDRESSES => '*' }, 'no address: *'], [{ ADDRESSES => '1.2.3.4 0' }, 'no address: 0'],
        [{ SERVICES => 'ssh=tcp/22 22' }, 'no NAME=PROTOCOL/PORT: 22'], [{ SERVICES => 'a;b=tcp/22' }, 'no NAME=PROTOCOL/PORT: a;b=tcp/22'],
        [{ SERVICES => 'ssh=icmp/22' }, 'tcp, udp or sctp: ssh=icmp/22'], [{ SERVICES => 'ssh=tcp/0' }, 'no port, range or list: ssh=tcp/0'],
        [{ SERVICES => 'ssh=tcp/65536' }, 'no port, range or list: ssh=tcp/65536'], [{ SERVICES => 'ssh=tcp/9:8' }, 'no port, range or list: ssh=tcp/9:8'],
        [{ SERVICES => 'ssh=tcp/22 sftp=tcp/22' }, 'the same ports for ssh and sftp'], [{ SERVICES => '*=tcp/22' }, 'no NAME=PROTOCOL/PORT: *=tcp/22'],
        [{ TABLE => 'nat' }, 'filter, raw or mangle: TABLE=nat'],
    ) {
        is(chain(edited(%{ $wrong->[0] })), "1chain: $wrong->[1]\n", "$variant: it says: $wrong->[1]");
    }
    is(chain(edited(), 'again'), "1chain: chain, or chain remove\n", "$variant: it says what it can do");
    my $broken = edited(SERVICES => 'imap=tcp/143');
    for my $fake (["#!/bin/sh\nexit 3\n", 'iptables-save', qr/^1chain: iptables-save failed, nothing is changed$/],
        ["#!/bin/sh\necho '# Table is incompatible'\n", 'iptables-save', qr/^1chain: iptables-save: # Table is incompatible$/],
        ["#!/bin/sh\nexit 4\n", 'iptables-restore', qr/^1chain: iptables-restore failed, nothing is changed$/]) {
        my ($text, $name, $says) = @$fake;
        rename "$DIR/$variant/$name", "$DIR/real";
        chmod 0755, spew("$DIR/$variant/$name", $text);
        like(chain($broken), $says, "$variant: $name fails, and it says so");
        rename "$DIR/real", "$DIR/$variant/$name";
    }
    is(ruleset(), $still, "$variant: and nothing is changed by all that");

    # ---- one family; several addresses
    my $foreign = '203.0.113.77';
    is(chain(edited(ADDRESSES => "$HERE{4} $foreign")), "0chain: $foreign is no address of this host (ip -br address)\n", "$variant: an address that the host has not got is told");
    is(scalar(grep {/\Q$foreign\E/} @{ rules_of(4, 'prometheus') }), 4, "$variant: ... and has its rules, for later");
    is(chain(edited(ADDRESSES => "$HERE{4} $foreign", ROUTER => 'yes')), 0, "$variant: ... a router may count for others");
    {
        local $ENV{INVOCATION_ID} = '0123456789abcdef0123456789abcdef';
        is(chain(edited(ADDRESSES => "$HERE{4} $foreign")), 0, "$variant: ... nor is it told to a unit, which may come before the network");
    }
    is(chain(edited()), 0, "$variant: ... and back");
    is(chain(edited(ADDRESSES => "$HERE{4} 203.0.113.140", SERVICES => 'dns=udp/53')), 0, "$variant: a second address, and none of IPv6");
    is(scalar(grep {/service=dns/} @{ rules_of(4, 'prometheus') }), 4, "$variant: rules for each address");
    counts('the first keeps its counters', 4, 'dns in' => 11, 'dns out' => 4);
    counts('a family without an address is left as it is', 6, 'dns in' => 11, 'dns out' => 4);

    # ---- before there is a network
    my @written = ('2001:DB8:0:0::140', '2001:0db8:0000:0000:0001::0', 'fd00:1:0:0:1:0:0:1', 'fe80::1');
    my $early = spew("$DIR/early", edited(ADDRESSES => "198.51.100.8 @written", SERVICES => 'dns=udp/53'));
    my $quietly = "export PATH=$DIR/$variant:\$PATH; sh $early && ip6tables-save >&3 && sh $early && ip6tables-save >&3";
    my $saved = must('unshare', '-n', 'sh', '-ec', "( $quietly ) 3>&1 2>&1 | sed '/^#/d; s/\\[.*//'");
    my ($first, $second) = split /(?<=^COMMIT\n)/m, $saved;
    is($second, $first, "$variant: before there is a network: run twice, the rules are the same");
    is_deeply([$first =~ /-d (\S+) /g], [map {"$_/128"} '2001:db8::140', '2001:db8:0:0:1::', 'fd00:1::1:0:0:1', 'fe80::1'], "$variant: for each address, however it is written");

    # ---- its own undo
    ipt(4, $variant, @$_) for [qw(-N mine)], [qw(-A mine -g prometheus)];
    is(chain(edited(SERVICES => 'what is this', ADDRESSES => ''), 'remove'), 0, "$variant: remove");
    is(chain(edited(), 'remove'), 0, "$variant: and once more");
    ipt(4, $variant, qw(-X mine));
    is(ruleset(), $before, "$variant: the rules are those from before");

    # ---- other tables
    for my $table (qw(raw mangle)) {
        my @o = (TABLE => $table, CHAIN => 'acct', ROUTER => 'yes');
        is(chain(edited(@o)) . chain(edited(@o)), '00', "$variant: in the table $table, twice");
        for my $family (4, 6) {
            is_deeply([map { rules_of($family, $_, $table) } qw(PREROUTING OUTPUT), $table eq 'mangle' ? qw(INPUT FORWARD) : ()],
                [['! -i lo -j acct'], ['! -o lo -j acct'], $table eq 'mangle' ? ([], []) : ()], "$variant, IPv$family: where packets come in and where they leave");
            packets($family, 53, 2, 3, 4);
            my $counted = counted($family, '-table', $table, '-chain', 'acct');
            is("@$counted{'dns in', 'dns out'}", '2 3', "$variant, IPv$family: and counts");
        }
        is(chain(edited(@o), 'remove'), 0, "$variant: and away");
        unlike(ruleset($table), qr/acct/, "$variant: without a trace");
    }
    flush_all();
}

done_testing();
