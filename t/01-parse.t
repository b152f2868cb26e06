#!/usr/bin/perl
# parse.c, without a process around it: requests and rulesets in, what is understood out.
use strict;
use warnings;

exec './t/parse' or die "t/parse: $! (make test builds it)\n";
