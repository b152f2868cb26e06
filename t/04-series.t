#!/usr/bin/perl

# Two series of one name and equal labels are none to Prometheus: the corpus of t/fuzz-series, and that of the rulesets, whose
# lines are taken for rules whatever they are.

use strict;
use warnings;
use FindBin ();
use Test::More;

chdir "$FindBin::Bin/.." or die "$FindBin::Bin/..: $!\n";
die "t/series is not there (make test builds it)\n" unless -x 't/series';

my @files = (glob('t/corpus/series/*'), glob 't/corpus/ruleset/*');
cmp_ok(scalar @files, '>', 10, 'there is a corpus');
for my $file (@files) {
    my $said = `t/series '$file' 2>&1`;
    is("$? $said", '0 ', $file);
}

done_testing();
