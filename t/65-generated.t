#!/usr/bin/perl

# Rulesets made at random from the grammar of iptables-save, first as text, then in the kernel. What nfprom has to show follows
# from how each rule was made (its parts), never from reading its text; it is the same with -list, whose words are those of
# `iptables -v -S`. NFPROM_SEED repeats a run.

use strict;
use warnings;
no warnings 'qw';    # commas and # are in iptables' own words

BEGIN { $ENV{PATH} .= ':/usr/sbin:/sbin' }

use FindBin;
use lib "$FindBin::Bin/lib";
use List::Util qw(shuffle);
use POSIX ();
use Test::More;
use NF;

my $SEED = defined $ENV{NFPROM_SEED} ? $ENV{NFPROM_SEED} : (time ^ $$ << 12) & 0x7fffffff;
my ($RULESETS, $KERNEL_RULES) = (50, 1000);
srand $SEED;
diag("NFPROM_SEED=$SEED");

# ---- choices

sub pick    { return $_[ rand @_ ] }
sub maybe   { return rand() < $_[0] }
sub between { my ($least, $most) = @_; return $least + int rand($most - $least + 1) }

# One of a few most of the time, so that there are duplicates.
sub often { my ($few, $any) = @_; return maybe(0.5) ? pick(@$few) : $any->() }

# Any bytes but NUL, with a liking for those that mean something.
my @TELLING = ('"', '\\', '\'', ' ', "\n", "\r", "\t", '!', '-', '#', ':', '*', '[', ']', '{', '}', '\xe9', "\xe9", "\xc3\xa9",
    "\xe2\x82\xac", "\xf0\x9f\x90\xab",
    "\xed\xa0\x80", "\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xf4\x90\x80\x80", "\xf8\x88", "\xe2\x82", "\xef\xbf\xbd",
    "\x7f", "\x01", "\xff", '\\n', ' "', '" ', '\\"',
    ' -j DROP', ' -s 6.6.6.6/32', ' --dport 66', '-m comment --comment', "\nCOMMIT\n", "\n*nat\n:prometheus - [0:0]\n", "\n# Completed",
    "\n[5:5] -A prometheus -s 6.6.6.6/32 -j RETURN\n", "\"\n[5:5] -A prometheus -p tcp\n\"", "\n:INPUT DROP [6:6]\n");

sub bytes {
    my ($max) = @_;
    my $s = '';
    my $length = maybe(0.05) ? $max : between(1, $max < 24 ? $max : 24);
    while (length $s < $length) {
        $s .= maybe(0.4) ? join('', map { chr between(97, 122) } 1 .. between(1, 6)) : maybe(0.5) ? pick(@TELLING) : chr between(1, 255);
    }
    return substr $s, 0, $length;
}

sub number {
    my $n = pick(0, 1, 1 << 32, 1 << 53, 1 << 63, between(0, 1000), between(0, 1 << 32), 18446744073709551615,
        int(rand 2**32) << 32 | int rand 2**32);
    return $n > 0 && maybe(0.1) ? $n - 1 : $n;
}

# ---- words: as given to iptables and as printed, the same but for strings

sub quoted { my ($s) = @_; $s =~ s/(["\\'])/\\$1/g; return qq("$s") }
sub string { my ($s) = @_; return [$s, $s =~ /\A[A-Za-z0-9_-]+\z/ ? $s : quoted($s)] }

sub given   { return map { ref $_ ? $_->[0] : $_ } @_ }
sub printed { return map { ref $_ ? $_->[1] : $_ } @_ }

# A name that is never quoted: any bytes, but not the line's own. Left out is what nobody can tell from the text: blanks at
# its ends, and a blank before what would be the next option.
sub name {
    my ($max) = @_;
    return pick('"x', 'x"', '"', "'x", 'a b', '!x', '!', '-x', '-j', '\\', 'eth0', 'a"b "c', "x\xe9", '[0:0]', '#') if maybe(0.3);
    my $s = bytes($max);
    $s =~ tr{\n/+}{_};
    $s =~ s/ (?=[-! ]|\z)|\A /_/g;
    return $s =~ /\A\.*\z/ ? 'x' : $s;
}

sub chain_name {
    my ($for_a_flag) = @_;
    return pick('"', '"x', 'x"', '\'', 'a]', '[0:0]', 'COMMIT', '#a', '*filter', ':x', '\\', "\xff", "caf\xc3\xa9", 'prom', 'prometheus2',
        'ACCEPTED', 'x' x 28, 'a-b', 'a=b,c{}') if maybe(0.6);
    my $s = bytes(28);
    $s =~ tr{\t\n\x0b\f\r /}{_};
    $s =~ s/\A[-!]/_/;
    $s =~ tr{\x01-\x1f\x7f}{_} if $for_a_flag;
    return $s;
}

# ---- the parts of a rule
#
#   words => its words    comment => bytes    target => it is one, with ends => the packet does not come to the next rule
#   says => [what, side, text] for each thing that the five labels can say    more => a condition that they cannot say
#   again => makes another of its kind

sub negated { return maybe(0.2) ? '!' : '' }

# An option that the labels know; returns its words and what it says.
sub option {
    my ($option, $value, $what, $side, $not) = @_;
    return ([$not ? '!' : (), $option, $value], [$what, $side, "$not$value"]);
}

sub address {
    my ($option, $side, $family, $real) = my @same = @_;
    my $text = $family == 4
        ? often(['192.0.2.1/32', '198.51.100.0/24', '10.0.0.0/8', '10.0.3.0/255.0.255.0', $real ? '192.0.2.9/32' : '0.0.0.0/0'],
            sub { sprintf '203.0.%d.%d/32', rand 256, rand 256 })
        : often(['2001:db8::/32', '2001:db8::1/128', 'fe80::/10', $real ? '::1/128' : ('::/0', '2001:db8::/ffff:0:ffff::')],
            sub { sprintf '2001:db8:%x::%x/128', between(1, 65535), between(1, 65535) });
    my ($words, $says) = option($option, $text, 'address', $side, negated());
    return { words => $words, says => [$says], again => sub { address(@same) } };
}

sub protocol {
    my ($name) = @_;
    my ($words, $says) = option('-p', $name, 'protocol', '', @_ > 1 ? '' : negated());
    return { words => $words, says => [$says] };
}

sub port {
    my $n = often([22, 80, 443], sub { between(0, 65535) });
    return $n < 65535 && maybe(0.2) ? $n . ':' . between($n + 1, 65535) : $n;
}

# `-m tcp` and its like, with up to one port of each side and perhaps more.
sub ports_of {
    my ($match, @sides) = @_;
    my %part = (words => ['-m', $match], again => sub { ports_of($match, @sides) });
    for my $side (@sides) {
        my ($words, $says) = option($side eq 'out' ? '--sport' : '--dport', port(), 'port', $side, negated());
        push @{ $part{words} }, @$words;
        push @{ $part{says} },  $says;
    }
    return \%part;
}

sub multiport {
    my ($side) = @_;
    my $list = join ',', map { port() } 1 .. between(1, 5);
    my ($words, $says) = option($side eq 'out' ? '--sports' : '--dports', $list, 'port', $side, negated());
    return { words => ['-m', 'multiport', @$words], says => [$says], again => sub { multiport($side) } };
}

# A comment that gives labels, or nearly does.
sub given_labels {
    my $blank = sub { return maybe(0.1) ? pick(' ', "\t", '  ', "\n") : '' };
    my @pairs = map {
        my $name  = maybe(0.9) ? pick(qw(service host a b A _ z9)) : pick(qw(port __x le dup 1a a-b), '', 'a b', "caf\xc3\xa9");
        my $value = maybe(0.9) ? often(['ssh', 'alpha', '1', '=', ')', 'a=b', 'web servers'], sub { bytes(12) =~ tr/;/,/r }) : '';
        join '', $blank->(), $name, $blank->(), maybe(0.97) ? '=' : '', $blank->(), $value, $blank->();
    } 1 .. (maybe(0.05) ? between(15, 17) : maybe(0.02) ? 0 : between(1, 3));
    @pairs = map {"l$_=$_"} 1 .. @pairs if @pairs > 3;
    my $s = substr(pick(('nfprom(') x 20, 'nfprom', ' nfprom(') . join(';', @pairs) . pick((')') x 20, '', ' ', ');'), 0, 255);
    return { words => ['-m', 'comment', '--comment', string($s)], comment => $s, again => \&comment };
}

sub comment {
    return given_labels() if maybe(0.3);
    my $s = often(['ssh', 'web servers', '-j', '-s', '--comment', '-i', "Gr\xc3\xbc\xc3\x9fe", "Andr\xe9", '"', '\\'], sub { bytes(255) });
    return { words => ['-m', 'comment', '--comment', string($s)], comment => $s, again => \&comment };
}

# What the labels cannot say: [families, protocol that it needs, words...]; a word that is code makes one. `real` stands at those
# that a kernel with all its modules takes and that iptables prints in just these words.
my @MATCHES = (
    ['46', '', 'real', qw(-m conntrack --ctstate), sub { pick('NEW', 'RELATED,ESTABLISHED', 'INVALID') }],
    ['46', '', 'real', qw(-m conntrack ! --ctstate), sub { pick('NEW', 'RELATED,ESTABLISHED') }],
    ['46', '', 'real', qw(-m mark --mark), sub { sprintf '0x%x', between(1, 9) }],
    ['46', '', 'real', qw(-m mark ! --mark 0x1/0xff)],
    ['46', '', 'real', qw(-m connmark --mark 0x1)],
    ['46', '', 'real', qw(-m limit --limit), sub { between(1, 9) . '/sec' }],
    ['46', '', 'real', qw(-m length --length), sub { '0:' . between(1, 99) }],
    ['46', '', 'real', qw(-m mac --mac-source 00:11:22:33:44:55)],
    ['46', '', 'real', qw(-m pkttype --pkt-type unicast)],
    ['46', '', 'real', qw(-m addrtype --dst-type LOCAL)],
    ['46', '', 'real', qw(-m socket)],
    ['46', '', 'real', qw(-m cpu --cpu), sub { between(0, 9) }],
    ['46', '', 'real', qw(-m helper --helper), sub { string(pick('ftp', '-j', '"', 'a b')) }],
    ['46', '', 'real', qw(-m string --string), 
        sub { my $s = pick('GET / HTTP', '-d 1.2.3.4/32 -j DROP', 'a"b', '-j', 'x', 'a  b', '\\"'); [$s, quoted($s)] }, qw(--algo bm)],
    ['46', '', 'real', qw(-m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name), sub { name(15) }],
    ['46', '', 'real', qw(-m physdev --physdev-in), sub { name(15) }],
    ['46', 'tcp', 'real', qw(-m osf --genre), sub { name(30) }],
    ['46', 'tcp', 'real', qw(-m tcp --tcp-flags FIN,SYN,RST,ACK SYN)],
    ['46', 'tcp', 'real', qw(-m tcp --dport 22 --tcp-flags SYN,ACK SYN)],
    ['46', 'tcp', 'real', qw(-m tcp --tcp-option 7)],
    ['46', 'tcp', 'real', qw(-m multiport --ports), sub { port() . ',' . port() }],
    ['46', 'udp', 'real', qw(-m multiport ! --ports 53,67)],
    ['4', '', 'real', qw(-m iprange --src-range 10.0.0.1-10.0.0.9)],
    ['4', '', 'real', qw(-m ttl --ttl-eq 5)],
    ['4', '', 'real', qw(-m recent --rcheck --name), sub { name(30) }, qw(--mask 255.255.255.255 --rsource)],
    ['4', 'icmp', 'real', qw(-m icmp --icmp-type 8)],
    ['4', 'icmp', 'real', qw(-m icmp ! --icmp-type 8/0)],
    ['6', '', 'real', qw(-m hl --hl-eq 5)],
    ['6', '', 'real', qw(-m recent --rcheck --name), sub { name(30) }, qw(--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource)],
    ['6', 'ipv6-icmp', 'real', qw(-m icmp6 --icmpv6-type 128)],
    ['4', '', '', '-f'],
    ['46', '', '', qw(-m unheardof)],
    ['46', '', '', qw(-m tcp --new-option), sub { between(1, 9) }],
    ['46', '', '', qw(-m eui64)],
    ['46', '', '', qw(-m rpfilter --loose)],
    ['46', '', '', qw(-m set --match-set), sub { name(28) . ' src,dst' }],
    ['46', '', '', qw(-m set ! --match-set), sub { name(28) . ' src' }],
    ['46', '', '', qw(-m nfacct --nfacct-name), sub { name(28) }],
    ['46', '', '', qw(-m rateest --rateest), sub { name(15) }, qw(--rateest-gt --rateest-bps 1)],
    ['46', '', '', qw(-m u32 --u32 "0x0>>0x16&0x3c=0x1")],
    ['46', '', '', qw(-m bpf --bytecode), '"1,6 0 0 1"'],
    ['46', '', '', qw(-m string --hex-string), '"|6122625c|"', qw(--algo kmp)],
    ['46', '', '', qw(-m string --string), sub { my $s = bytes(60); [$s, quoted($s)] }, qw(--algo kmp)],
    ['46', 'sctp', '', qw(-m sctp --chunk-types any INIT)],
    ['46', 'esp', '', qw(-m esp --espspi 500)],
);

# [families, ends, real, words...]; CHAIN is another chain.
my @TARGETS = (
    (map { ['46', 1, 'real', '-j', $_] } qw(ACCEPT DROP RETURN)),
    ['46', 1, 'real', qw(-g CHAIN)], ['46', 0, 'real', qw(-j CHAIN)], ['46', 0, 'real'],
    ['4', 1, 'real', qw(-j REJECT --reject-with icmp-port-unreachable)], ['6', 1, 'real', qw(-j REJECT --reject-with icmp6-port-unreachable)],
    ['46', 1, 'real', qw(-j NFQUEUE --queue-num 0)],
    ['46', 0, 'real', qw(-j MARK --set-xmark 0x1/0xffffffff)],
    ['46', 0, 'real', qw(-j LOG --log-prefix), sub { my $s = bytes(29); $s =~ tr/\n/_/; string($s) }],
    ['46', 0, 'real', qw(-j NFLOG --nflog-prefix), sub { my $s = bytes(60); $s =~ tr/\n/_/; string($s) }],
    ['4', 0, 'real', qw(-j TEE --gateway 192.0.2.1 --oif), sub { name(15) }],
    ['6', 0, 'real', qw(-j TEE --gateway 2001:db8::1 --oif), sub { name(15) }],
    ['46', 0, '', qw(-j LOG --log-prefix), sub { string(bytes(29)) }, qw(--log-level 7)],
    ['46', 0, '', qw(-j SET --add-set), sub { name(28) . ' src' }],
    ['46', 0, '', qw(-j CT --notrack)],
    ['46', 0, '', qw(-j IDLETIMER --timeout 5 --label), sub { name(27) }],
    ['4', 1, '', qw(-j DNAT --to-destination 10.0.0.1:80)], ['4', 1, '', qw(-j SNAT --to-source 10.0.0.1)],
    ['46', 1, '', qw(-j MASQUERADE)], ['46', 1, '', qw(-j REDIRECT --to-ports 80)], ['46', 1, '', qw(-j QUEUE)],
    ['46', 1, '', qw(-j TPROXY --on-port 80 --on-ip 0.0.0.0 --tproxy-mark 0x0/0x0)],
);

sub more {
    my @kind = @_;
    return { more => 1, words => [made(@kind[3 .. $#kind])], again => sub { more(@kind) } };
}

sub made { return map { ref $_ eq 'CODE' ? $_->() : $_ } @_ }

sub target {
    my ($g) = @_;
    my (undef, $ends, undef, @words) = @{ pick(@{ $g->{targets} }) };
    return { target => 1, ends => $ends, again => sub { target($g) }, words => [map { $_ eq 'CHAIN' ? pick(@{ $g->{others} }) : $_ } made(@words)] };
}

sub interface {
    my ($option) = @_;
    return { more => 1, words => [maybe(0.2) ? '!' : (), $option, name(15)], again => sub { interface($option) } };
}

# ---- a rule: a list of parts
#
# The generator's knowledge: family, real (rules that a kernel takes), sorted (it may change the order of the matches, so there
# is one only), matches and targets to choose from, others (chains to jump to).

my %LOADS = map { $_ => 1 } qw(tcp udp udplite sctp dccp icmp icmp6 esp);

sub simple_rule {    # mostly one that the labels say
    my ($g) = @_;
    my $side = pick('in', 'out');
    my $proto = pick('tcp', 'tcp', 'tcp', 'udp', 'udp', 'sctp', $g->{real} ? 'dccp' : ('dccp', 'udplite'));
    my @parts;
    push @parts, address($side eq 'out' ? '-s' : '-d', $side, $g->{family}, $g->{real}) if maybe(0.7);
    if (maybe(0.6)) {
        push @parts, protocol($proto, 'plain') if $g->{real} || maybe(0.95);
        push @parts, maybe(0.3) && $proto =~ /^(?:tcp|udp)$/ ? multiport($side) : ports_of($proto, maybe(0.9) ? $side : ());
        push @parts, { words => ['-m', $proto] } if !$g->{real} && maybe(0.1);
    } elsif (maybe(0.7)) {
        push @parts, protocol(pick('tcp', 'udp', '50', 'icmp', 'esp', '47', '99') =~ s/^50$/esp/r =~ s/^47$/$g->{gre} || 47/er);
        my $plain = $parts[-1]{says}[0][2];
        push @parts, { words => ['-m', $plain] } if $LOADS{$plain} && $plain ne 'icmp' && maybe(0.4);
        push @parts, { words => ['-m', 'icmp'] } if $plain eq 'icmp' && !$g->{real} && maybe(0.5);
    }
    return @parts;
}

sub free_rule {
    my ($g) = @_;
    my @matches = map { pick(@{ $g->{matches} }) } 1 .. between(0, $g->{sorted} ? 1 : 3);
    my ($proto) = map { $_->[1] ne '' ? $_->[1] : () } @matches;
    @matches = grep { $_->[1] eq '' || $_->[1] eq $proto } @matches;
    @matches = grep { my $m = $_; 1 == grep { "@{$_}[3, 4]" eq "@{$m}[3, 4]" } @matches } @matches if $g->{real};
    my @parts;
    push @parts, address('-s', 'out', $g->{family}, $g->{real}) if maybe(0.3);
    push @parts, address('-d', 'in',  $g->{family}, $g->{real}) if maybe(0.3);
    push @parts, interface('-i') if maybe(0.3);
    push @parts, interface('-o') if maybe(0.15);
    if ($proto) { push @parts, protocol($proto, 'plain') }
    elsif (maybe(0.3)) {
        $proto = pick('tcp', 'udp');
        push @parts, protocol($proto, 'plain');
        push @parts, ports_of($proto, maybe(0.5) ? ('out', 'in') : pick('in', 'out'));
        push @parts, map { multiport(pick('in', 'out')) } 1 .. between(0, $g->{sorted} ? 0 : 2);
    }
    push @parts, map { more(@$_) } @matches;
    return @parts;
}

# Some are a rule of before, with nothing or one part of it changed.
sub rule {
    my ($g) = @_;
    if ($g->{rules} && maybe(0.15)) {
        my @parts = @{ pick(@{ $g->{rules} }) };
        my $i = rand @parts;
        splice @parts, $i, 1, $parts[$i]{again}->() if maybe(0.7) && $parts[$i]{again};
        return @parts;
    }
    my @parts = new_rule($g);
    push @{ $g->{rules} }, \@parts;
    return @parts;
}

sub new_rule {
    my ($g) = @_;
    return ({ words => [] }) if !$g->{real} && maybe(0.01);
    my @parts = maybe(0.6) ? simple_rule($g) : free_rule($g);
    my $comments = maybe(0.3) ? 1 : maybe(0.04) ? between(2, 4) : maybe(0.002) && !$g->{real} ? between(100, 200) : 0;
    splice @parts, between(0, scalar @parts), 0, $_ for map { comment() } 1 .. $comments;
    @parts = sort { ($a->{words}[0] eq '-m') <=> ($b->{words}[0] eq '-m') } @parts if $g->{real};
    return (@parts, target($g));
}

# ---- what is expected

# Bytes as a label shows them: those that are not UTF-8 (Unicode's table of well-formed sequences) as text.
sub shown {
    my ($s) = @_;
    $s =~ s{((?:[\x01-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]
        |\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})+)|(.)}{defined $1 ? $1 : sprintf '\\x%02x', ord $2}gesx;
    utf8::decode($s);
    return $s;
}

sub told {
    my ($name, $labels, $value) = @_;
    return "$name\{" . join(',', map {"$_=$labels->{$_}"} sort keys %$labels) . "} $value";
}

# The five labels, or nothing if they do not say it all.
sub five_labels {
    my (@parts) = @_;
    return if grep { $_->{more} } @parts;
    my (%label, %side);
    for my $says (map { @{ $_->{says} || [] } } @parts) {
        my ($what, $side, $text) = @$says;
        return if exists $label{$what};
        $label{$what} = $text;
        $side{$side}  = 1 if $side;
    }
    return if !%label || keys %side > 1;
    my ($direction) = (keys %side, '');
    return { address => $label{address} // '', direction => $direction, l3proto => $label{protocol} // 'all', port => $label{port} // '' };
}

my $AS_IT_IS = sub { $_[0] };

# Matches that say the same of a packet each time they are asked, and targets that let it go on as it was.
my %STABLE = map { $_ => 1 } qw(tcp udp multiport icmp icmp6 sctp dccp udplite esp comment conntrack state mark addrtype iprange mac pkttype
    physdev length ttl hl tos dscp ecn tcpmss policy ah frag);
my %TURNS = map { $_ => 1 } qw(limit hashlimit recent set statistic time owner connlimit connbytes connmark quota nfacct string u32 bpf helper rpfilter);
my %LEAVES = map { $_ => 1 } qw(LOG NFLOG ULOG TRACE AUDIT IDLETIMER LED RATEEST);

# Whether a packet can come to a rule of a chain. The state: what was before it in the chain.
sub is_unreachable {
    my ($state, $labels, $match, $parts, $target) = @_;
    my $n       = ++$state->{rules};
    my $before  = $state->{last}{$labels};
    my @words   = map { [given(@{ $_->{words} })] } grep { !$_->{target} && !defined $_->{comment} } @$parts;
    my @modules = map { @$_ > 1 && $_->[0] eq '-m' ? $_->[1] : @$_ > 2 && "@$_[0, 1]" eq '! -m' ? $_->[2] : () } @words;
    my $unknown = grep { !$STABLE{$_} && !$TURNS{$_} } @modules;
    my $turns   = grep({ !$STABLE{$_} } @modules) || grep { /\A--ct(?:status|expire)\z/ } map {@$_} @words;
    my $again   = $before && $before->{n} > ($state->{rewritten} || 0) && $before->{closes} && $before->{match} eq $match;
    my $closes  = $again || $target->{ends} && !$turns && $match !~ /[\x00-\x1f"&<>\\\x7f-\xff]/;
    my $no_way  = $again || $state->{closed};
    $state->{last}{$labels} = { n => $n, closes => $closes, match => $match };
    $state->{closed} = 1 if $target->{ends} && $match eq '';
    my @target = given(@{ $target->{words} || [] });
    $state->{rewritten} = $n if !$no_way && ($unknown || @target && !$target->{ends} && !$LEAVES{ $target[1] });
    return $no_way ? 1 : 0;
}

my %RESERVED = map { $_ => 1 } qw(address chain comment direction dup instance job kind l2proto l3proto le policy port quantile rule version);

# What the comments of a rule say: its labels, the comments that give none, how many of those should.
sub said_by {
    my (@comments) = @_;
    my (%labels, @plain, $errors);
    for my $comment (@comments) {
        my %more;
        my $pairs = $comment =~ /\Anfprom\((.*)\)\z/s ? $1 : '';
        for my $pair (split /;/, $pairs, -1) {
            my ($name, $value) = $pair =~ /\A[ \t]*+(?!__)([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+(.*?)[ \t]*+\z/s;
            my $is_good = defined $value && $value ne '' && !$RESERVED{$name} && !exists $more{$name} && !exists $labels{$name};
            %more = (), last if !$is_good || keys(%more) + keys(%labels) == 16;
            $more{$name} = $value;
        }
        %labels = (%labels, %more);
        next if %more;
        push @plain, $comment;
        $errors++ if $comment =~ /\Anfprom\(/;
    }
    return ({ map { $_ => shown($labels{$_}) } keys %labels }, \@plain, $errors || 0);
}

# name => its lines, for one chain of one family. The code is applied to the label `rule`. Each rule is {parts, packets, bytes}.
sub expected {
    my ($common, $words, @rules) = @_;
    my (%lines, %copies, %state);
    my %tally = map { $_ => 0 } qw(exported other duplicate nonterminal unreachable errors);
    for my $rule (@rules) {
        my @parts = @{ $rule->{parts} };
        my ($target) = grep { $_->{target} } @parts;
        my ($given, $said, $errors) = said_by(map { defined $_->{comment} ? $_->{comment} : () } @parts);
        my $match   = join ' ', printed(map { $_->{target} || defined $_->{comment} ? () : @{ $_->{words} } } @parts);
        my $text    = join ' ', grep { $_ ne '' } $match, printed(@{ $target->{words} || [] });
        my $comment = shown(join '; ', @$said);
        my $five    = five_labels(@parts);
        my $labels_or_match = $five ? told('', $five, '') : shown($match);
        $tally{errors} += $errors;
        my $copy    = ++$copies{$labels_or_match};
        $tally{unreachable} += is_unreachable(\%state, $labels_or_match, $words->($match), \@parts, $target || {});
        my ($pair, $labels);
        if ($five && $copy == 1) {
            ($pair, $labels) = ('', { %$common, %$five, %$given });
            push @{ $lines{rule_info} }, told('rule_info', { %$labels, comment => $comment }, 1) if @$said;
            $tally{exported}++;
            $tally{nonterminal}++ unless $target->{ends};
        } else {
            my $rule_text = $words->(shown($text eq '' ? '*' : $text));
            ($pair, $labels) = ('rule_', { %$common, rule => $rule_text, comment => $comment, dup => $copy > 1 ? $copy : '', %$given });
            $tally{ $copy > 1 ? 'duplicate' : 'other' }++;
        }
        push @{ $lines{"${pair}${_}_total"} }, told("${pair}${_}_total", $labels, $rule->{$_}) for qw(packets bytes);
    }
    $lines{rules} = [map { told('rules', { %$common, kind => $_ }, $tally{$_}) } qw(exported other duplicate)];
    $lines{"${_}_rules"} = [told("${_}_rules", $common, $tally{$_})] for qw(nonterminal unreachable);
    $lines{label_errors} = [told('label_errors', $common, $tally{errors})];
    return \%lines;
}

my @PROMISES = (
    [[qw(packets_total bytes_total)], 'what the five labels express is one series for each rule, in the order of the chain, digit for digit'],
    [[qw(rule_packets_total rule_bytes_total)], 'all other rules are a series each by their words, duplicates by their number'],
    [['rule_info'], 'the comments are in rule_info'],
    [[qw(rules nonterminal_rules unreachable_rules)], 'the rules are counted by kind'],
    [['label_errors'], 'so are comments that should give labels'],
    [[qw(policy_packets_total policy_bytes_total)], 'the policies of the built-in chains asked for are shown, and no other'],
);

# Tests: this run of nfprom shows what was expected. The expectations: "l2proto chain" => lines by name; rules => how many rules.
sub holds {
    my ($what, $r, $words, $rules, %of) = @_;
    my %expected = map { $_ => { %{ $of{$_} } } } keys %of;
    my ($error, @series) = $r->{exit} eq '0' ? parse_metrics($r->{out}) : ("exit $r->{exit}");
    $error ||= 'standard error is not empty' if $r->{err} ne '';
    is($error, '', "$what: an exposition in order") or do { diag("NFPROM_SEED=$SEED: $r->{err}"); return };
    my (%got, %families, $exported);
    for my $s (@series) {
        my ($name, $l) = ($s->{name} =~ /^nfprom_(.*)/, $s->{labels});
        next if $name =~ /^(?:build_info|scrape_success|scrape_duration_seconds|chain_references)$/;
        $exported++ if $name =~ /^(?:rule_)?packets_total$/;
        $l->{rule} = $words->($l->{rule}) if exists $l->{rule};
        push @{ $families{$name} }, $l->{l2proto};
        push @{ $got{ $l->{l2proto} . ' ' . ($l->{chain} // '') }{$name} }, told($name, $l, $s->{value});
    }
    is($exported || 0, $rules, "$what: as many series as rules");
    is(join(' ', grep { "@{$families{$_}}" =~ /ipv6.*ipv4/ } sort keys %families), '', "$what: IPv4 before IPv6") if keys %expected > 1;
    for (@PROMISES) {
        my ($names, $promise) = @$_;
        my @wrong;
        for my $name (@$names) {
            for my $of (sort keys %expected) {
                my ($got, $expected) = map { delete $_->{$of}{$name} || [] } \%got, \%expected;
                next if "@$got" eq "@$expected";
                my ($i) = grep { ($got->[$_] // '') ne ($expected->[$_] // '') } 0 .. @$got + @$expected;
                push @wrong, "number $i: got      " . ($got->[$i] // 'nothing'), "expected " . ($expected->[$i] // 'nothing');
            }
        }
        splice @wrong, 4 if @wrong > 4;
        ok(!@wrong, "$what: $promise") or diag(map { my $w = substr $_, 0, 2000; "  $w\n" } "NFPROM_SEED=$SEED", @wrong);
    }
    is(join(' ', sort map { keys %$_ } values %got), '', "$what: and nothing else");
}

# ---- as text

sub words_of { my ($rule) = @_; return map { @{ $_->{words} } } @{ $rule->{parts} } }

# Options of a rule as iptables-save prints them, with the blanks that some release or other prints.
sub line {
    my ($rule) = @_;
    my @words = printed(words_of($rule));
    return "[$rule->{packets}:$rule->{bytes}] -A $rule->{chain}" . join('', map { (maybe(0.03) ? '  ' : ' ') . $_ } @words)
        . (maybe(@words && $rule->{parts}[-1]{words}[0] ? 0.1 : 0.5) ? ' ' : '');
}

# The same as iptables -v -S prints it: the counters before the target.
sub list_line {
    my ($rule) = @_;
    my ($target) = grep { $_->{target} } @{ $rule->{parts} };
    my @match = printed(map { $_->{target} ? () : @{ $_->{words} } } @{ $rule->{parts} });
    my @jump  = printed(@{ $target->{words} || [] });
    return "-A $rule->{chain}" . join('', map { (maybe(0.03) ? '  ' : ' ') . $_ } @match) . " -c $rule->{packets} $rule->{bytes}"
        . join('', map {" $_"} @jump) . (maybe(@jump ? 0.1 : 0.5) ? ' ' : '');
}

sub usable {
    my ($family, $real, @all) = @_;
    return [grep { $_->[0] =~ $family && (!$real || $_->[2]) } @all];
}

# One table with these chains: its lines, its rules, its policies, and what iptables -v -S prints of each chain. What is asked
# for gets most of the rules.
sub table_of {
    my ($family, $table, $asked, $chains, $count) = @_;
    my @own = grep { !/^(?:INPUT|FORWARD|OUTPUT)$/ } @$chains;
    my %g = (family => $family, others => [@own, 'elsewhere'], matches => usable($family, 0, @MATCHES), targets => usable($family, 0, @TARGETS));
    my %policy = map { $_ => /^(?:INPUT|FORWARD|OUTPUT)$/ ? [pick('ACCEPT', 'DROP'), number(), number()] : ['-', 0, 0] } @$chains;
    my @rules = map { { packets => number(), bytes => number(), chain => pick(maybe(0.8) ? @$asked : @$chains), parts => [rule(\%g)] } } 1 .. $count;
    my @lines = ("*$table", map({":$_ $policy{$_}[0] [$policy{$_}[1]:$policy{$_}[2]]"} @$chains), map({ line($_) } @rules), 'COMMIT');
    my %lists = map {
        my ($chain, $p) = ($_, $policy{$_});
        my $head = $p->[0] eq '-' ? "-N $chain" : "-P $chain $p->[0] -c $p->[1] $p->[2]";
        ("$table.$chain" => join '', map {"$_\n"} $head, map { list_line($_) } grep { $_->{chain} eq $chain } @rules);
    } @$chains;
    return (\@lines, \@rules, \%policy, \%lists);
}

sub save_of {
    my ($family, @tables) = @_;
    my $program = pick('-save v1.8.9', '-save v1.8.9 (nf_tables)', '-nft-save v1.8.13 (nf_tables)', '-legacy-save v1.6.0');
    $program = ($family == 6 ? 'ip6tables' : 'iptables') . $program;
    my $date  = 'on Thu Jan  1 00:00:00 1970';
    my @lines = map { ("# Generated by $program $date", maybe(0.2) ? '# Warning: "' : (), @$_, "# Completed $date") } @tables;
    return join "\n", @lines, '';
}

my $largest = '';
for my $n (1 .. $RULESETS) {
    my @families = @{ pick([4], [4], [6], [4, 6], [4, 6]) };
    my $table = pick('filter', 'filter', 'mangle', 'raw', 'nat', 'security');
    my %asked = map { (maybe(0.3) ? 'INPUT' : maybe(0.3) ? 'OUTPUT' : maybe(0.5) ? 'prometheus' : chain_name('flag')) => 1 } 1 .. pick(1, 1, 2, 5);
    %asked = (prometheus => 1) if maybe(0.3);
    my @asked  = sort keys %asked;
    my %chains = map { $_ => 1 } @asked, qw(INPUT FORWARD OUTPUT prometheus), map { chain_name() } 1 .. between(0, 12);
    my %expected;
    my $rules = 0;
    my $count = $n == 1 ? 2000 : pick(0, 1, 30, 300, 300, 600);
    for my $family (@families) {
        my $l2 = $family == 4 ? 'ipv4' : 'ipv6';
        my @shuffled = shuffle(sort keys %chains);
        my ($lines, $table_rules, $policy, $lists) = table_of($family, $table, \@asked, \@shuffled, $count);
        my @more   = grep { $_ ne $table && maybe(0.15) } qw(filter mangle raw nat security);
        my @tables = map { (table_of($family, $_, \@asked, \@shuffled, 20))[0] } @more;
        splice @tables, between(0, scalar @tables), 0, $lines;
        my $out = save_of($family, @tables);
        my $block = between(1, 5000);
        my %h = (out => $out, lists => $lists, maybe(0.4) ? (run => qq(dd bs=$block 2>/dev/null <"\$OUT")) : ());
        $family == 4 ? fake(%h) : fake6(%h);
        for my $chain (@asked) {
            my $common = { l2proto => $l2, @asked > 1 ? (chain => shown($chain)) : () };
            my @own = grep { $_->{chain} eq $chain } @$table_rules;
            my $e = $expected{ "$l2 " . ($common->{chain} // '') } = expected($common, $AS_IT_IS, @own);
            my ($name, @counters) = @{ $policy->{$chain} };
            for my $i ($name eq '-' ? () : (0, 1)) {
                my $metric = ('policy_packets_total', 'policy_bytes_total')[$i];
                $e->{$metric} = [told($metric, { %$common, policy => $name }, $counters[$i])];
            }
            $rules += @own;
        }
    }
    my @flags = ($families[0] == 4 ? () : '-ipv4=false', $families[-1] == 6 ? '-ipv6' : ());
    push @flags, '-table', $table, map { ('-chain', $_) } @asked;
    my $r = print_mode(@flags);
    holds("ruleset $n, $rules rules", $r, $AS_IT_IS, $rules, %expected);
    holds("ruleset $n, $rules rules, -list", print_mode('-list', @flags), $AS_IT_IS, $rules, %expected);
    $largest = $r->{out} if length $r->{out} > length $largest;
}
SKIP: {
    my ($promtool) = grep {-x} map {"$_/promtool"} split /:/, $ENV{PATH};
    skip_or_fail('promtool is not installed') unless $promtool;
    spew("$DIR/metrics", $largest);
    is(`'$promtool' check metrics <'$DIR/metrics' 2>&1`, '', 'promtool check metrics has nothing to say about the largest of them');
}

# ---- in the kernel

# iptables and its like: exit status and what it said.
sub iptables {
    my ($input, @command) = @_;
    spew("$DIR/input", $input);
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        open STDIN,  '<', "$DIR/input";
        open STDOUT, '>', "$DIR/output";
        open STDERR, '>&', \*STDOUT;
        $ENV{XTABLES_LOCKFILE} = $LOCK;
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    return ($? >> 8, slurp("$DIR/output"));
}

# A word as iptables-restore reads it.
sub for_restore { my ($s) = @_; $s =~ s/(["\\])/\\$1/g; return qq("$s") }

# What the kernel and this iptables take of these kinds of matches or targets.
sub taken {
    my ($command, $table, $kinds, @before) = @_;
    my @taken;
    for my $kind (@$kinds) {
        my (undef, $proto, undef, @words) = @$kind;
        my @p = @before || $proto eq '' ? () : ('-p', $proto);
        my ($status) = iptables('', $command, '-t', $table, '-A', 'trial', @p, given(map { $_ eq 'CHAIN' ? 'other' : $_ } made(@words)));
        push @taken, $kind if $status == 0;
        note("$command does not take: " . join ' ', map { ref $_ ? '...' : $_ } @words) if $status != 0;
    }
    return \@taken;
}

# What a rule of the generator's must not have in the kernel: a jump that makes a loop, and (but for a few) a line break, which
# iptables-restore cannot read.
sub tame {
    my ($rule, $jumps, $breaks) = @_;
    for my $part (@{ $rule->{parts} }) {
        if ($part->{target} && !$jumps && "@{$part->{words}}" =~ /^-[jg]/) {
            @$part{qw(ends words)} = (1, ['-j', 'RETURN']);
        } elsif (defined $part->{comment} && !$breaks) {
            $part->{comment} =~ tr/\n/_/;
            $part->{words} = [@{ $part->{words} }[0 .. 2], string($part->{comment})];
        }
    }
    return $rule;
}

# Loads a table: by iptables-restore, the rules with a line break one by one. The status and what was said.
sub load {
    my ($command, $table, $counters, $chains, $rules, $late) = @_;
    my @lines = ("*$table", map {":$_ - [0:0]"} @$chains);
    push @lines, map { "[$_->{packets}:$_->{bytes}] -A " . join ' ', map { for_restore($_) } $_->{chain}, given(words_of($_)) } @$rules;
    my ($status, $said) = iptables(join("\n", @lines, 'COMMIT', ''), "$command-restore", $counters ? '-c' : ());
    for my $rule (@$late) {
        last if $status != 0;
        my @counters = $counters ? ('-c', $rule->{packets}, $rule->{bytes}) : ();
        ($status, $said) = iptables('', $command, '-t', $table, '-A', $rule->{chain}, given(words_of($rule)), @counters);
    }
    return ($status, $said);
}

sub in_the_kernel {
    my ($variant, $family, $counters) = @_;
    my $l2      = $family == 4 ? 'ipv4' : 'ipv6';
    my $command = ($family == 4 ? 'iptables' : 'ip6tables') . "-$variant";
    my $what    = "$variant, $l2";
    my $table   = pick('filter', 'mangle');
    my $chain   = maybe(0.5) ? 'prometheus' : chain_name('flag');
    my @others  = grep { $_ ne $chain } 'other', 'prometheus2', '"x', '#a', '[0:0]', "\xff";
    iptables('', $command, '-t', $table, '-N', $_) for 'trial', 'other';
    iptables('', $command, '-t', $table, qw(-A trial -p 47));
    my ($gre) = (iptables('', $command, '-t', $table, qw(-S trial)))[1] =~ /-p (\S+)/;    # one release has a name where another has none
    my %g = (family => $family, real => 1, gre => $gre, sorted => $variant eq 'nft', others => \@others,
        matches => taken($command, $table, usable($family, 1, @MATCHES)),
        targets => taken($command, $table, usable($family, 1, @TARGETS), 'target'));
    iptables('', $command, '-t', $table, @$_) for ['-F'], ['-X'];
    cmp_ok(scalar @{ $g{matches} }, '>=', 5, "$what: the kernel takes matches of many kinds");

    my (@rules, @late);
    for (1 .. $KERNEL_RULES) {
        my $of    = maybe(0.9) ? $chain : pick(@others);
        my %count = map { $_ => $counters ? number() : 0 } qw(packets bytes);
        my $rule  = tame({ chain => $of, %count, parts => [map { {%$_} } rule(\%g)] }, $of eq $chain, $counters && maybe(0.1));
        push @{ (grep { ($_->{comment} // '') =~ /\n/ } @{ $rule->{parts} }) ? \@late : \@rules }, $rule;
    }
    my ($status, $said) = load($command, $table, $counters, [$chain, @others], \@rules, \@late);
    is($status, 0, "$what: $KERNEL_RULES rules are loaded") or diag("NFPROM_SEED=$SEED: $said");
    return if $status != 0;

    # nft prints the words of a rule in an order of its own.
    my $words = $variant eq 'nft' ? sub { join ' ', sort split / /, $_[0] } : $AS_IT_IS;
    my @own   = grep { $_->{chain} eq $chain } @rules, @late;
    my %expected = ("$l2 " => expected({ l2proto => $l2 }, $words, @own));
    my @said;
    for my $list ([], ['-list']) {
        my $r = run(env => { PATH => $ENV{PATH} },
            flags => ['-print', @$list, '-variant', $variant, '-table', $table, '-chain', $chain, $family == 6 ? ('-ipv4=false', '-ipv6') : ()]);
        holds(join(', ', $what, @own . ' rules', @$list), $r, $words, scalar @own, %expected);
        push @said, $r->{out} =~ s/^nfprom_scrape_duration_seconds\K.*//mgr =~ s/^(?:# \w+ )?nfprom_chain_references.*\n//mgr;    # a list does not see the rules that jump
    }
    ok($said[0] eq $said[1], "$what: with -list the same, byte for byte");
}

SKIP: {
    need_root();
    skip_or_fail('no network namespace to be had') unless $NF::OWN_NETWORK;    # the kernel's rules are loaded there
    for my $command (map { my $f = $_; map {"$f-$_"} qw(nft legacy nft-restore legacy-restore) } qw(iptables ip6tables)) {
        skip_or_fail("$command is not installed") unless grep { -x "$_/$command" } split /:/, $ENV{PATH};
    }
    in_the_kernel(@$_) for ['nft', 4, 1], ['legacy', 4, 1], ['legacy', 6, 1], ['nft', 6, 0];    # ip6tables-nft-restore 1.8.9 leaves zeros
}

done_testing;
