#!/usr/bin/perl

# While another process edits the table. The legacy backend replaces the whole table at each change, and until the kernel has
# added the old counters a reader sees zeros; nfprom reads under the lock that iptables takes.

use strict;
use warnings;
use Fcntl qw(:flock);
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;
use Time::HiRes ();

need(qw(iptables-legacy ip6tables-legacy iptables-nft iptables-legacy-restore ip6tables-legacy-restore iptables-nft-restore));

my $RULES = 300;

# A chain of counters that are not zero, and another chain for the editors.
sub load {
    my ($family, $variant) = @_;
    my @address = map { $family == 4 ? sprintf('10.0.%d.%d/32', $_ / 250, 1 + $_ % 250) : sprintf '2001:db8::%x/128', $_ } 1 .. $RULES;
    my @rules = map { '[' . (1000 + $_) . ':' . (9007199254740993 + $_) . "] -A prometheus -d $address[$_ - 1] -j RETURN" } 1 .. $RULES;
    restore($family, $variant, join "\n", '*filter', ':prometheus - [0:0]', ':edited - [0:0]', @rules, '[5:50] -A edited -j RETURN', 'COMMIT', '');
}

# Edits until it is stopped: the pid, and a file with a byte for each two changes.
sub editor {
    my ($n, $command) = @_;
    my ($log, $count) = ("$DIR/editor$n.log", "$DIR/editor$n.count");
    spew($count, '');
    my $pid = start($log, 'sh', '-c', 'while "$0" -w -A edited -s "$1" -j RETURN && "$0" -w -D edited -s "$1" -j RETURN; do '
        . 'echo >>"$2"; done', $command, "198.51.100.$n", $count);
    return { pid => $pid, log => $log, count => $count };
}

sub changes { my ($editor) = @_; return 2 * length slurp($editor->{count}) }

# Stops the editors; a test by itself.
sub end {
    my ($what, @editors) = @_;
    my ($sum, @said) = (0);
    for my $editor (@editors) {
        push @said, 'an editor has ended' unless kill 0 => $editor->{pid} and waitpid($editor->{pid}, 1) == 0;
        $sum += changes($editor);
        stop($editor->{pid});
        push @said, slurp($editor->{log});
    }
    is(join('', @said), '', "$what: the table was edited all the time, without an error");
    cmp_ok($sum, '>', 20, "$what: and that often");
    return $sum;
}

# What an exposition says of the rules; the duration of the scrape is another each time.
sub lasting {
    my ($text) = @_;
    return join '', grep { !/^nfprom_scrape_duration_seconds/ } $text =~ /^(.*\n)/mg;
}

sub over_http { my $r = one_shot($NFPROM, @_); return ($r->{status} == 200 ? $r->{exit} : "HTTP status $r->{status}", $r->{body}, $r->{said}) }
sub printed   { return run('', $NFPROM, '-print', @_) }

# So many scrapes, by turns as the list says: [code, flags]. Returns failures, scrapes that were not as the one before the
# editors began, and those of them with a zero; what the first bad one was is left in the notes.
sub scrapes {
    my ($count, $reference, @ways) = @_;
    my ($failures, $changed, $zeros) = (0, 0, 0);
    for my $n (0 .. $count - 1) {
        my ($how, @flags) = @{ $ways[$n % @ways] };
        my ($exit, $text, $said) = $how->(@flags);
        my $good = $reference->{"@flags"};
        if ($exit ne '0' || $said ne '') {
            diag("scrape $n (@flags): exit $exit, $said") if !$failures++;
        } elsif (lasting($text) ne $good) {
            my $zero = $text =~ /^nfprom_(?:packets|bytes)_total\{.*\} 0$/m;
            note("scrape $n (@flags): " . ($zero ? 'zeros' : 'not as before')) if !$changed++;
            $zeros++ if $zero;
        }
    }
    return ($failures, $changed, $zeros);
}

# What each way of scraping gives while nobody edits; tests by themselves.
sub references {
    my ($what, @ways) = @_;
    my %reference;
    for (@ways) {
        my ($how, @flags) = @$_;
        my ($exit, $text) = $how->(@flags);
        my @values = lasting($text) =~ /^nfprom_(?:packets|bytes)_total\{.*\} (\d+)$/mg;
        my $families = grep { $_ eq '-ipv6' } @flags;
        is("$exit " . scalar(grep { $_ > 1000 } @values), '0 ' . 2 * $RULES * (1 + $families), "$what: all counters are there before (@flags)");
        $reference{"@flags"} = lasting($text);
    }
    return \%reference;
}

# ---- the legacy backend under its lock

load(4, 'legacy');
load(6, 'legacy');
my @ways = map { [$_, '-variant', 'legacy'] } (\&printed) x 3, \&over_http;
push @ways, [\&printed, '-variant', 'legacy', '-ipv6'];
my $reference = references('legacy', @ways[0, 3, 4]);
{
    my @editors = map { editor($_, 'iptables-legacy') } 1 .. 3;
    patiently { !grep { !changes($_) } @editors };
    my ($failures, $changed, $zeros) = scrapes(500, $reference, @ways);
    is($failures, 0, 'legacy, 500 scrapes while the table is edited: none fails');
    is($zeros,    0, 'legacy, 500 scrapes while the table is edited: not one zero');
    is($changed,  0, 'legacy, 500 scrapes while the table is edited: each counter is what it was');
    my $bare = grep { saved(4, 'legacy') =~ /^\[0:0\] -A prometheus/m } 1 .. 200;
    note("iptables-legacy-save by itself: $bare of 200 reads had zeros");
    note('edits: ' . end('legacy', @editors));
}

# ---- without the lock

{
    local $ENV{XTABLES_LOCKFILE} = "$DIR/nowhere/xtables.lock";
    my @without = ([\&printed, '-variant', 'legacy']);
    my $editor = do { delete local $ENV{XTABLES_LOCKFILE}; editor(1, 'iptables-legacy') };
    patiently { changes($editor) };
    my ($failures, undef, $zeros) = scrapes(150, $reference, @without);
    is($failures, 0, 'legacy, a lock file that cannot be opened: 150 scrapes while the table is edited, none fails');
    note("$zeros of 150 scrapes without the lock had zeros");
    end('legacy, no lock file', $editor);
}

# ---- a lock that is never free

{
    open my $lock, '>>', '/run/xtables.lock' or die "/run/xtables.lock: $!";
    flock $lock, LOCK_EX or die "flock: $!";
    my $begin = Time::HiRes::time();
    my ($exit, $text, $said) = printed('-variant', 'legacy', '-timeout', '1s');
    my $seconds = Time::HiRes::time() - $begin;
    is($exit . ' ' . length $text, '1 0', 'legacy, the lock held all the time: no counters');
    like($said, qr{^nfprom: ipv4: .*/run/xtables\.lock.*\n\z}, 'legacy, the lock held all the time: one line that names the file');
    cmp_ok($seconds, '>', 0.5, 'legacy, the lock held all the time: it was waited for');
    load(4, 'nft');
    ($exit, $text) = printed('-variant', 'nft');
    is($exit, 0, 'nft, the lock held all the time: it does not matter');
}

# ---- the nft backend

{
    my @nft = map { [$_, '-variant', 'nft'] } (\&printed) x 3, \&over_http;
    my $before = references('nft', @nft[0, 3]);
    my @editors = map { editor($_, 'iptables-nft') } 1 .. 2;
    patiently { !grep { !changes($_) } @editors };
    my ($failures, $changed, $zeros) = scrapes(200, $before, @nft);
    is($failures, 0, 'nft, 200 scrapes while the table is edited: none fails');
    is($zeros,    0, 'nft, 200 scrapes while the table is edited: not one zero');
    is($changed,  0, 'nft, 200 scrapes while the table is edited: each counter is what it was');
    note('edits: ' . end('nft', @editors));
}

done_testing;
