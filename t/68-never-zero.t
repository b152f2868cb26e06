#!/usr/bin/perl

# A 200 is a promise that every rule was read: the moments in which the real iptables says otherwise with status 0, and what many
# scrapes at once do to who changes the legacy tables.

use strict;
use warnings;
use Fcntl qw(:flock);
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;
use POSIX ();
use Time::HiRes qw(sleep);

need(qw(iptables-nft iptables-nft-restore iptables-nft-save iptables-legacy iptables-legacy-restore nft setpriv));

sub ruleset {
    my ($count, @more) = @_;
    return join "\n", '*filter', ':prometheus - [0:0]', @more,
        map({ my $n = $_; sprintf '[%d:%d] -A prometheus -d 10.%d.%d.%d/32 -j RETURN', 1000 + $n, 100_000 + $n, $n >> 16, $n >> 8 & 255, $n & 255 } 1 .. $count), 'COMMIT', '';
}

# How a scrape ended: 'whole', the first line of its failure, or 'WRONG ...' for a success that lacks a rule.
sub scrape {
    my ($count, $wrap, @flags) = @_;
    my ($exit, $text, $said) = run('', @$wrap, $NFPROM, '-print', @flags);
    return $said =~ /\Anfprom: (.*)\n/ ? $1 : "WRONG: exit $exit without a word" if $exit ne '0';
    my $all = exposition($text);
    my %values = map { $_ => 1 } values %{ $all->{nfprom_packets_total} || {} };
    my $missing = grep { !$values{ 1000 + $_ } } 1 .. $count;
    return $missing ? "WRONG: a success without $missing of $count rules" : 'whole';
}

# A test: none of them was wrong; how often each happened is noted.
sub none_wrong {
    my ($promise, @ends) = @_;
    my %count;
    $count{ s/\d+/N/gr }++ for @ends;
    ok(!(grep {/^WRONG/} @ends), "$promise: " . @ends . ' scrapes, each whole or an honest failure')
        or diag((grep {/^WRONG/} @ends)[0]);
    note("$count{$_} times: ", substr $_, 0, 200) for sort { $count{$b} <=> $count{$a} } keys %count;
    return $count{whole} || 0;
}

# The same, of so many scrapes at least, and until iptables-nft-save alone has lost rules five times; at most so many, as there may
# be a kernel that does not do it.
sub none_wrong_beside_losses {
    my ($promise, $rules, $least, $most) = @_;
    my ($met, $reads, @ends) = (0, 0);
    while ($reads++ < $most && ($met < 5 || $reads < $least)) {
        my ($status, $saved) = run('', qw(iptables-nft-save -c -t filter));
        $met++ if $status eq '0' && (() = $saved =~ /-A prometheus /g) != $rules;
        push @ends, scrape($rules, [], qw(-variant nft));
    }
    note("iptables-nft-save by itself: $met of " . ($reads - 1) . ' reads without all rules');
    my $whole = none_wrong($promise, @ends);
    cmp_ok($whole, '>', 0, '... and some are whole');
    return;
}

# ---- a ruleset that is loaded again and again, as a whole

{
    my $rules = 200;
    spew("$DIR/rules", ruleset($rules));
    restore(4, 'nft', ruleset($rules));
    my $loader = start("$DIR/loader.log", 'sh', '-c', 'while iptables-nft-restore -c < "$0"; do echo >> "$0.times"; done', "$DIR/rules");
    ok((patiently { length slurp("$DIR/rules.times") > 2 }), 'rules are loaded in a loop');
    my @ways = (['-variant', 'nft', '-list'], ['-variant', 'nft']);
    my $whole = none_wrong('nft, while 200 rules are loaded', map { scrape($rules, [], @{ $ways[$_ % 2] }) } 1 .. 400);
    cmp_ok($whole, '>', 0, '... and some are whole');
    is(slurp("$DIR/loader.log"), '', '... the loader has met no error');
    note('loaded so often: ' . length slurp("$DIR/rules.times"));
    stop($loader);
}

# ---- a chain that is loaded anew, while somebody listens to changes: the kernel leaves rules out of what it lists in several
# messages, of 32 KiB each. A comment takes some 300 bytes there.

for (['300 rules', 300, ''], ['31 rules with comments', 31, ' -m comment --comment x' x 12]) {
    my ($what, $rules, $words) = @$_;
    my $anew = ruleset($rules) =~ s/(?= -j RETURN)/$words/gr;
    my $jump = '[1:1] -A INPUT -j prometheus';
    restore(4, 'nft', $anew =~ s/^(?=COMMIT)/$jump\n/mr);
    spew("$DIR/anew", $anew);
    spew("$DIR/anew.times", '');
    my $listener = start("$DIR/listener.log", 'sh', '-c', 'exec nft monitor > /dev/null');
    my $loader   = start("$DIR/loader.log", 'sh', '-c', 'while iptables-nft-restore -c -n < "$0"; do echo >> "$0.times"; done', "$DIR/anew");
    ok((patiently { length slurp("$DIR/anew.times") > 2 }), "$what are loaded anew in a loop");
    none_wrong_beside_losses("nft, while $what are loaded anew", $rules, 0, 2000);
    is(slurp("$DIR/loader.log"), '', '... the loader has met no error');
    stop($_) for $loader, $listener;
}

# ---- rules that are only checked: as long as the check takes, a rule is in front of those that are listed, and one of these may
# be left out. Two jumps that are to go make up for both in what the kernel counts of rules and jumps together.

{
    my ($rules, $others) = (2000, 20_000);
    restore(4, 'nft', ruleset($rules) =~ s/^(?=COMMIT)/[1:1] -A INPUT -i lo -j prometheus\n[1:1] -A INPUT -j prometheus\n/mr);
    restore(4, 'nft', join "\n", '*raw', ':others - [0:0]', (map {"-A others -p tcp -m tcp --dport $_"} 1 .. $others), 'COMMIT', '');
    spew("$DIR/checked", "insert rule ip filter prometheus ip saddr 192.0.2.1 counter return\nflush chain ip filter INPUT\nflush chain ip raw others\n");
    my $checker = start("$DIR/checker.log", 'sh', '-c', 'while nft -c -f "$0"; do echo >> "$0.times"; done', "$DIR/checked");
    ok((patiently { length slurp("$DIR/checked.times") > 2 }), 'rules are checked in a loop');
    none_wrong_beside_losses('nft, while rules are checked', $rules, 60, 300);
    is(slurp("$DIR/checker.log"), '', '... the checks have met no error');
    stop($checker);
}

# ---- iptables without memory

SKIP: {
    skip('the address sanitizer needs terabytes', 12) if slurp($NFPROM) =~ /__asan_init/;
    my $rules = 3000;
    my @limits = ((map { 1400 + 100 * $_ } 0 .. 29), 6000, 8000, 12_000, 20_000, 60_000);
    for my $variant (qw(nft legacy)) {
        flush_all();
        restore(4, $variant, ruleset($rules));
        is(scrape($rules, [], '-variant', $variant), 'whole', "$variant, 3,000 rules: without a limit a scrape is whole");
        for my $way ([], ['-list']) {
            my @ends = map { scrape($rules, ['sh', '-c', "ulimit -d $_ && exec \"\$@\"", 'sh'], '-variant', $variant, @$way) } @limits;
            my $whole = none_wrong("$variant, limits of 1.4 to 60 MB of data (@$way)", @ends);
            cmp_ok($whole, '>', 0, '... some are whole');
            next if @$way;    # iptables-nft -S fails by itself
            ok((grep {/may have lost rules for lack of more.*limit of \d+ KiB for data/} @ends), '... what may lack memory, and does not tell, is not believed');
        }
    }
}

# CAP_NET_ADMIN alone.
my @ADMIN = (qw(setpriv --reuid=65534 --regid=65534 --clear-groups), map({"--$_=-all,+net_admin"} qw(inh-caps ambient-caps bounding-set)), '--');

# ---- an iptables that may not read one of its own files

{
    my ($extensions) = grep {-e "$_/libxt_udp.so"} glob('/usr/lib/*-linux-gnu*/xtables'), '/usr/lib/xtables';
    must('cp', '-r', $extensions, "$DIR/extensions");
    flush_all();
    restore(4, 'nft', "*filter\n:prometheus - [0:0]\n[1001:1] -A prometheus -p udp --dport 53 -j RETURN\nCOMMIT\n");
    local $ENV{XTABLES_LIBDIR} = "$DIR/extensions";
    for my $way ([], ['-list']) {
        chmod 0644, "$DIR/extensions/libxt_udp.so";
        is(scrape(1, \@ADMIN, qw(-variant nft), @$way), 'whole', "iptables reads its extensions (@$way): a scrape is whole");
        chmod 0, "$DIR/extensions/libxt_udp.so";
        my $end = scrape(1, \@ADMIN, qw(-variant nft), @$way);
        like($end, qr/libxt_udp\.so: .*Permission denied.*; the user of this process must be able to read the files of iptables/s, "... it may not read one: a failure that says so, not -p udp without the port (@$way)");
    }
}

# ---- chains that are not there

flush_all();
restore(4, 'legacy', "*filter\n:INPUT ACCEPT [7:700]\n[5:50] -A INPUT -d 10.0.0.1/32 -j ACCEPT\nCOMMIT\n");
{
    # CAP_NET_ADMIN alone may not read which legacy tables there are, so iptables-nft does not warn of them.
    for (['as root', []], ['with CAP_NET_ADMIN alone', \@ADMIN]) {
        my ($who, $wrap) = @$_;
        for my $way ([], ['-list']) {
            like(scrape(0, $wrap, qw(-variant nft -chain INPUT), @$way), qr/has counted nothing, as one that is not there.*use -variant legacy/, "INPUT is in legacy, nft is asked $who (@$way): a failure that says so");
        }
    }
    my ($exit, $text) = run('', $NFPROM, qw(-print -variant legacy -chain INPUT));
    is_deeply(exposition($text)->{nfprom_policy_packets_total}, { 'l2proto=ipv4,policy=ACCEPT' => 7 }, '... and so -variant legacy shows it');
}
{
    ipt(4, 'legacy', $_) for qw(-F -X);
    must(qw(nft add table ip filter));
    must('nft', 'add chain ip filter input { type filter hook input priority 0; policy accept; }');
    must('nft', 'add rule ip filter input counter accept');
    my $end = scrape(0, [], qw(-variant nft -chain INPUT));
    like($end, qr/has counted nothing, as one that is not there|is incompatible/, 'INPUT is hidden by a native base chain: a failure that says so');
    must(qw(nft delete table ip filter));
}

# ---- many clients at once, and who changes the legacy tables

flush_all();
restore(4, 'legacy', ruleset(300, ':edited - [0:0]'));
for my $way ('', '-list') {
    my ($clients, $reads) = (64, "$DIR/reads");
    spew($reads, '');
    spew("$DIR/failed", '');
    my @clients = map { start("$DIR/failed", 'sh', '-c', 'while "$0" -print -variant legacy -timeout 60m $2 > /dev/null; do echo >> "$1"; done', $NFPROM, $reads, $way) } 1 .. $clients;
    my $so_far = sub { return length slurp($reads) };
    ok((patiently { $so_far->() >= $clients }), "$clients clients scrape the legacy tables in a loop $way");

    # From the moment on in which somebody waits for the lock, as iptables -w does. (How long it takes to start is a matter of
    # the machine.)
    my @passed;
    for (1 .. 5) {
        open my $lock, '<', '/run/xtables.lock' or die "/run/xtables.lock: $!";
        my $before = $so_far->();
        flock $lock, LOCK_EX or die "flock: $!";
        push @passed, $so_far->() - $before;
        close $lock;
        my $after = $so_far->();
        patiently { $so_far->() > $after + 5 };
    }
    my $most = (sort { $a <=> $b } @passed)[-1];
    note("reads that passed while the lock was waited for: @passed");
    cmp_ok($most, '<', 4 * $clients, '... who waits for their lock gets it after some reads');
    for my $change ([qw(-A edited -s 198.51.100.1 -j RETURN)], [qw(-D edited -s 198.51.100.1 -j RETURN)]) {
        my $before = $so_far->();
        ok(ipt_ok(4, 'legacy', '-w', @$change), "... a real change is made: @$change");
        note($so_far->() - $before . ' reads, from the start of iptables-legacy to its end');
    }
    is(slurp("$DIR/failed"), '', '... and no scrape has failed');
    stop($_) for @clients;
}

done_testing;
