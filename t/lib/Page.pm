package Page;

# What the tests of pages have in common: a strict reader of HTML, and what a browser is told to do with a page.

use strict;
use warnings;
use Digest::SHA ();
use Encode ();
use Exporter 'import';
use Test::More;

our @EXPORT = qw(read_html below text_in spaced has_policy);

# ---- a strict reader of HTML

# Of the elements that a page may use: where they may stand, their attributes, and whether the end tag may be left out (and the
# next of these ends them) or there is none.
my $PHRASING = 'p td th caption h1 h2 code strong em i b a li time span small div';
my $BLOCK    = 'body main section div td th li';
my %ELEMENTS = (
    html    => { in => '', attributes => 'lang', omit => 'end' },
    head    => { in => 'html', omit => 'body' },
    body    => { in => 'html', omit => 'end' },
    meta    => { in => 'head', attributes => 'charset name content', void => 1 },
    title   => { in => 'head' },
    style   => { in => 'head' },
    (map { $_ => { in => $BLOCK, attributes => 'id' } } qw(h1 h2 main section div ul)),
    p       => { in => $BLOCK, attributes => 'role', omit => 'p h1 h2 table ul div section main' },
    table   => { in => $BLOCK, attributes => 'role' },
    caption => { in => 'table' },
    thead   => { in => 'table', attributes => 'role', omit => 'tbody tfoot' },
    tbody   => { in => 'table', attributes => 'role id', omit => 'tbody tfoot' },
    tfoot   => { in => 'table', attributes => 'role', omit => 'end' },
    tr      => { in => 'thead tbody tfoot', attributes => 'role', omit => 'tr thead tbody tfoot' },
    th      => { in => 'tr', attributes => 'scope colspan id role class', omit => 'td th tr thead tbody tfoot' },
    td      => { in => 'tr', attributes => 'colspan role class', omit => 'td th tr thead tbody tfoot' },
    li      => { in => 'ul', omit => 'li' },
    br      => { in => $PHRASING, void => 1 },
    a       => { in => $PHRASING, attributes => 'href' },
    svg     => { in => $PHRASING },
    rect    => { in => 'svg', attributes => 'width height' },
    time    => { in => $PHRASING, attributes => 'datetime' },
    (map { $_ => { in => $PHRASING, attributes => 'id' } } qw(code strong em b small span)),
);

# The text that these bytes say; undef if they are no UTF-8.
sub decoded { my ($bytes) = @_; return eval { Encode::decode('UTF-8', $bytes, Encode::FB_CROAK()) } }

# Reads a page. Dies with what is wrong; returns the root, a node: {name, attributes, children => nodes and strings}.
# (It goes through bytes: in decoded text Perl counts the characters up to \G each time.)
sub read_html {
    my ($text) = @_;
    my $characters = decoded($text) // die "not UTF-8\n";
    die sprintf "the character U+%04X\n", ord $1
        if $characters =~ /([^\n\x20-\x7e\xa0-\x{10ffff}]|\p{NChar}|[\x{202a}-\x{202e}\x{2066}-\x{2069}])/;
    $text =~ /\G<!DOCTYPE html>\n/gc or die "begins with another DOCTYPE: " . substr($text, 0, 40) . "\n";
    my @open = my $root = { name => '', attributes => {}, children => [] };
    my %ids;
    my $here = sub { return substr $text, pos $text, 80 };
    my $enter = sub {
        my ($name, $attributes) = @_;
        push @{ $open[-1]{children} }, my $node = { name => $name, attributes => $attributes, children => [] };
        push @open, $node;
    };
    # What is not written: html, head and body begin where something of theirs does.
    my $imply = sub {
        my ($name) = @_;
        $enter->('html', {}) if @open == 1;
        my $inside = join ' ', map { $_->{name} } @open;
        return if $name =~ /^(?:head|body)$/ || $inside =~ /body/;
        my $to_head = $name =~ /^(?:meta|title|style)$/;
        pop @open if !$to_head && $open[-1]{name} eq 'head';
        $enter->($to_head ? 'head' : 'body', {}) if $open[-1]{name} eq 'html';
    };
    while (pos $text < length $text) {
        if ($text =~ m{\G<([a-z][a-z0-9]*)}gc) {
            my $name = $1;
            my $e = $ELEMENTS{$name} or die "the element <$name>\n";
            my %attributes;
            while ($text =~ /\G[ \n]+([a-z-]+)(?:=(?:"([^"]*)"|([^ \n"'=<>`]+)))?/gc) {
                my ($attribute, $value) = ($1, decoded($2 // $3 // ''));
                die "the attribute $attribute of <$name>\n" unless grep { $_ eq $attribute } split / /, $e->{attributes} || '';
                die "the attribute $attribute twice\n" if exists $attributes{$attribute};
                die "an ampersand in $attribute\n"     if $value =~ /&(?!amp;)|</;
                $value =~ s/&amp;/&/g;
                die "the id $value twice\n"            if $attribute eq 'id' && $ids{$value}++;
                die "the width $value\n"               if $attribute eq 'width' && ($value !~ /\A(\d+\.\d)%\z/ || $1 > 100);
                die "the link $value\n"                if $attribute eq 'href' && $value !~ m{\A(?:[/#]?[a-z#-]*|\?(?:by=\w+)?|\?(?:by=\w+&)?seconds=\d)\z};
                $attributes{$attribute} = $value;
            }
            $text =~ /\G>/gc or die "in the tag <$name: " . $here->() . "\n";
            $imply->($name) if $name ne 'html';
            pop @open while ($ELEMENTS{ $open[-1]{name} }{omit} || '') =~ /\b\Q$name\E\b/;
            die "<$name> in <$open[-1]{name}>\n" unless grep { $_ eq $open[-1]{name} } $name eq 'html' ? '' : split / /, $e->{in};
            if ($e->{void}) { push @{ $open[-1]{children} }, { name => $name, attributes => \%attributes, children => [] } }
            else            { $enter->($name, \%attributes) }
            if ($name eq 'style') {
                $text =~ m{\G([^<]*)</style>}gc or die "a style with < in it\n";
                my $css = $1;
                die "a style that loads something: $1\n" if $css =~ /(url\(|\@import|image-set|\@font-face|expression|javascript)/i;
                die "a style with braces that do not match\n" if ($css =~ tr/{//) != ($css =~ tr/}//);
                pop @open;
            }
        } elsif ($text =~ m{\G</([a-z][a-z0-9]*)>}gc) {
            my $name = $1;
            pop @open while $open[-1]{name} ne $name && $ELEMENTS{ $open[-1]{name} } && $ELEMENTS{ $open[-1]{name} }{omit};
            die "</$name> in <$open[-1]{name}>\n" if $open[-1]{name} ne $name;
            pop @open;
        } elsif ($text =~ /\G([^<&]+|&(?:#\d+|amp|lt|gt|quot);)/gc) {
            my $piece = decoded($1);
            next if $piece =~ /\A\n+\z/ && $open[-1]{name} =~ /^(?:|html|head|body|main|section|div|ul|table|thead|tbody|tfoot|tr)$/;
            $piece = $piece =~ /^&#(\d+)/ ? chr $1 : { '&amp;' => '&', '&lt;' => '<', '&gt;' => '>', '&quot;' => '"' }->{$piece} if $piece =~ /^&/;
            $imply->('text') unless $open[-1]{name} eq 'title';
            die "text in <$open[-1]{name}>: $piece\n" unless grep { $_ eq $open[-1]{name} } 'title', split / /, $PHRASING;
            push @{ $open[-1]{children} }, $piece;
        } else {
            die 'neither tag nor text: ' . $here->() . "\n";
        }
    }
    for (@open[1 .. $#open]) { die "<$_->{name}> is not closed\n" unless ($ELEMENTS{ $_->{name} }{omit} || '') =~ /end|^p /}
    return $root;
}

sub below { my ($node, $name) = @_; return map { ref $_ ? (($_->{name} eq $name ? $_ : ()), below($_, $name)) : () } @{ $node->{children} } }
sub text_in { my ($node) = @_; return join '', map { ref $_ ? text_in($_) : $_ } @{ $node->{children} } }
sub spaced { my ($text) = @_; $text =~ s/\s+/ /g; return $text =~ s/\A | \z//gr }

# What a browser may do with a page: a test that it is its own style alone, known by its hash.
sub has_policy {
    my ($r, $promise) = @_;
    my ($style) = $r->{body} =~ m{<style>(.*?)</style>}s;
    my $hash = Digest::SHA::sha256_base64($style // '');
    $hash .= '=' while length($hash) % 4;
    my %policy = map { /\A(\S+) (.*)\z/ ? ($1 => $2) : () } split /; /, $r->{headers}{'content-security-policy'} // '';
    is($policy{'default-src'}, "'none'", "$promise: nothing is loaded");
    is($policy{'style-src'}, "'sha256-$hash'", "$promise: but its own style") if defined $style;
}

1;
