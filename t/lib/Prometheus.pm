# What a Prometheus on this machine, or in this network namespace, answers to questions of its HTTP API.
package Prometheus;
use strict;
use warnings;
use Exporter 'import';
use HTTP::Tiny ();
use JSON::PP ();

our @EXPORT = qw(api query_at);
our $error;    # why the last answer has no data

sub escape {
    my ($text) = @_;
    utf8::encode($text) if utf8::is_utf8($text);
    return $text =~ s/([^A-Za-z0-9_])/sprintf '%%%02X', ord $1/ger;
}

# The data that this port gives for a path and its parameters, as in api(9090, 'query', query => 'up'). Undefined: none.
sub api {
    my ($port, $path, %parameters) = @_;
    my $query  = join '&', map { escape($_) . '=' . escape($parameters{$_}) } sort keys %parameters;
    my $answer = HTTP::Tiny->new(timeout => 600)->get("http://127.0.0.1:$port/api/v1/$path?$query");
    my $result = eval { JSON::PP::decode_json($answer->{content}) } || {};
    $error = $result->{data} ? '' : $result->{error} || $answer->{content};
    return $result->{data};
}

# The results of an instant query, for now or for a time in seconds.
sub query_at {
    my ($port, $expression, $at) = @_;
    my $data = api($port, 'query', query => $expression, $at ? (time => sprintf '%.3f', $at) : ());
    return @{ ($data || {})->{result} || [] };
}

1;
