#!/usr/bin/perl

# The corpus of the fuzzers, once through the promises of t/fuzz.c: the cases to begin with, and the inputs that broke one.

use strict;
use warnings;
use FindBin ();
use Test::More;

chdir "$FindBin::Bin/.." or die "$FindBin::Bin/..: $!\n";
die "t/fuzz is not there (make test builds it)\n" unless -x 't/fuzz';

for my $kind (qw(request ruleset list label kernel)) {
    my @files = glob "t/corpus/$kind/*";
    cmp_ok(scalar @files, '>', 0, "there is a corpus of the $kind");
    for my $file (@files) {
        my $said = `t/fuzz $kind '$file' 2>&1`;
        is("$? $said", '0 ', $file);
    }
}

done_testing();
