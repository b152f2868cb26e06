#!/usr/bin/perl

# What README names under "What it cannot see": iptables itself prints it so, with status 0 and without a sign, and nfprom shows
# what it is told. If one of these fails, iptables has changed for the better: then README can lose a line.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(iptables-nft iptables-nft-save nft));
my $version = must(qw(iptables-nft -V));
my ($major, $minor, $patch) = $version =~ /v(\d+)\.(\d+)\.(\d+)/ or BAIL_OUT("which iptables is this? $version");
my $from_1_8_11 = sprintf('%d.%03d%03d', $major, $minor, $patch) >= 1.008011;
note($version);

# The counters of a chain: a rule or a policy each.
sub shown {
    my ($chain, @flags) = @_;
    my ($exit, $text, $said) = run('', $NFPROM, qw(-print -variant nft -chain), $chain, @flags);
    return "exit $exit: $said" if $exit ne '0';
    my $all = exposition($text);
    my @series;
    for my $family (qw(packets rule_packets policy_packets)) {
        my $of = $all->{"nfprom_${family}_total"} || {};
        push @series, map { s/(?:comment|dup|direction|l2proto|l3proto|port)=[^,]*,?//gr =~ s/,\z//r . " $of->{$_}" } sort keys %$of;
    }
    return join '; ', @series;
}

# ---- a rule that is longer than a message of the kernel

{
    my $code = '64' . ',6 0 0 1' x 64;
    my @long = map { ('-m', 'bpf', '--bytecode', $code) } 1 .. 70;
    ipt(4, 'nft', qw(-N prometheus));
    ipt(4, 'nft', qw(-A prometheus -s 192.0.2.1 -j RETURN));
    ipt(4, 'nft', qw(-A prometheus), @long, qw(-j RETURN));
    ipt(4, 'nft', qw(-A prometheus -s 192.0.2.2 -j RETURN));
    is(shown('prometheus', @$_), 'address=192.0.2.1/32 0', "a rule of more than 32 KiB: iptables-nft prints neither it nor what follows (@$_)") for [], ['-list'];
    unlike(saved(4, 'nft'), qr/192\.0\.2\.2/, '... iptables-nft-save by itself');
    my ($status, $list) = run('', qw(nft list chain ip filter prometheus));
    is($status . ' ' . ($list =~ /192\.0\.2\.2/ ? 'whole' : 'cut'), '0 cut', '... nor does nft');
    unlike(ipt(4, 'nft', qw(-n -L prometheus)), qr/\(0 references\)/, '... what tells is that iptables -L counts the lost rules as references');
    flush_all();
}

# ---- an iptables that lacks one of its own files

{
    my ($libraries) = grep {-e "$_/libxt_udp.so"} glob('/usr/lib/*-linux-gnu*/xtables'), '/usr/lib/xtables';
    must('cp', '-r', $libraries, "$DIR/libraries");
    unlink "$DIR/libraries/libxt_udp.so";
    ipt(4, 'nft', qw(-N prometheus));
    ipt(4, 'nft', qw(-A prometheus -p udp --dport 53 -j RETURN));
    local $ENV{XTABLES_LIBDIR} = "$DIR/libraries";
    for my $way ([], ['-list']) {
        my ($exit, $text, $said) = run('', $NFPROM, qw(-print -variant nft), @$way);
        if ($from_1_8_11) { is($exit, 1, "a rule of a library that is not there is refused (@$way)") }
        else              { like("$exit $text", qr/\A0 .*^nfprom_packets_total\{[^}]*l3proto="udp",port=""\} 0$/ms, "a rule of a library that is not there is printed without what it knows (@$way)") }
    }
    delete $ENV{XTABLES_LIBDIR};
    flush_all();
}

# ---- native rules

# From 1.8.11 on one of them is refused, with a status: then nfprom fails, and says so.
my @native = (
    ['ip saddr 192.0.2.1 return', 'address=192.0.2.1/32 0', 'a native rule without a counter reads as 0'],
    ['ip saddr 192.0.2.2 counter packets 7 bytes 70 counter packets 3 bytes 30 return', 'address=192.0.2.2/32 3', 'of two counters in a native rule the last is read'],
    ['ip saddr 10.0.0.0-10.0.0.9 counter packets 5 bytes 50 return', 'address=10.0.0.9/32 5', 'a native range of addresses comes out as its end', $from_1_8_11],
    ['ip saddr > 10.0.0.3 counter packets 6 bytes 60 return', 'address=10.0.0.3/32 6', 'a native comparison comes out as equality'],
);
for (@native) {
    my ($rule, $as, $promise, $refused) = @$_;
    must(qw(nft add table ip filter));
    must('nft', "add chain ip filter $_") for 'prometheus', 'INPUT { type filter hook input priority 0; policy accept; }';
    must('nft', "add rule ip filter prometheus $rule");
    for my $way ([], ['-list']) {
        my $shown = shown('prometheus', @$way);
        if ($refused) { like($shown, qr/\Aexit 1: nfprom: ipv4: /, "$promise no more: it is refused (@$way)") }
        else          { is($shown, $as, "$promise (@$way)") }
    }
    must(qw(nft delete table ip filter));
}

# ---- rules that are checked while the chain is read

spew("$DIR/checked", join '', map { sprintf "insert rule ip filter prometheus ip saddr 192.0.%d.%d counter return\n", $_ >> 8, $_ & 255 } 1 .. 1000);
for my $rules (20, 2500) {
    my @chain = map { sprintf '[%d:%d] -A prometheus -s 10.%d.%d.%d/32 -j RETURN', $_, $_, $_ >> 16, $_ >> 8 & 255, $_ & 255 } 1 .. $rules;
    restore(4, 'nft', join "\n", '*filter', ':prometheus - [0:0]', @chain, "COMMIT\n");
    my $checker = start("$DIR/checks", 'sh', '-c', "while nft -c -f '$DIR/checked'; do :; done");
    my ($met, $read) = ('', 0);
    for ($read = 1; $read <= 3000 && !$met; $read++) {
        my @printed = saved(4, 'nft') =~ /^(\[.*) *$/mg;
        $met = @printed if $rules < 100 ? @printed > $rules : @printed != $rules;
    }
    stop($checker);
    is(must(qw(nft -a list chain ip filter prometheus)) =~ tr/\n//, $rules + 4, "rules that are only checked change nothing ($rules rules)");
    flush_all();
  SKIP: {
        skip_or_fail('this kernel shows no other rules while some are checked: README can lose a line', 1) unless $met;
        isnt($met, $rules, "... but meanwhile iptables-nft-save prints other rules than there are, with status 0 ($met of $rules, in read $read)");
    }
}

# ---- built-in chains that nobody has made

ipt(4, 'nft', qw(-N prometheus));
unlike(must(qw(nft list table ip filter)), qr/chain INPUT/, 'a chain is made, and there is no INPUT');
is(shown('INPUT'), 'policy=ACCEPT 0', '... iptables-nft shows one all the same');

# ---- the policy of a built-in chain that iptables -A has made

ipt(4, 'nft', qw(-A INPUT -p udp --dport 9));
send_udp('198.51.100.7', 0, '203.0.113.140', 9, 5);
if ($from_1_8_11) { like(shown('INPUT'), qr/\A[^;]* [1-9]\d*; policy=ACCEPT [1-9]/, 'iptables-nft -A makes a chain whose policy counts') }
else              { like(shown('INPUT'), qr/\A[^;]* [1-9]\d*; policy=ACCEPT 0\z/, 'iptables-nft -A makes a chain whose policy counts nothing') }
restore(4, 'nft', saved(4, 'nft'));
send_udp('198.51.100.7', 0, '203.0.113.140', 9, 5);
like(shown('INPUT'), qr/; policy=ACCEPT [1-9]/, '... and iptables-restore one that counts');

done_testing;
