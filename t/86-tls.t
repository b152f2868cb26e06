#!/usr/bin/perl

# TLS as README.md has it: systemd/tls makes the certificates and the configuration, stunnel and xinetd serve with them, and
# curl and a real Prometheus ask with its scrape_configs. Whoever has no certificate of this CA gets nothing, and nfprom is not
# even asked.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::IP ();
use IO::Socket::UNIX ();
use Socket qw(MSG_DONTWAIT SOCK_DGRAM);
use Test::More;
use Time::HiRes qw(sleep time);
use Live;
use Prometheus;

need(qw(iptables-nft iptables-nft-save iptables-nft-restore xinetd setpriv stunnel4 openssl curl prometheus));

# ---- the recipe

my $readme = $ENV{NFPROM_README} || "$SOURCE/README.md";
my ($section) = slurp($readme) =~ /^## TLS\n(.*?)(?=^##|\z)/ms;
my %blocks;
push @{ $blocks{$1} }, $2 while ($section || '') =~ /^```(\w+)\n(.*?)^```$/msg;
is(scalar @{ $blocks{sh} || [] }, 4, 'README.md has four commands for TLS') or do { done_testing(); exit 1 };
is(scalar @{ $blocks{yaml} || [] }, 1, 'and one job for Prometheus') or do { done_testing(); exit 1 };
my ($commands, $yaml) = (join('', @{ $blocks{sh} }), $blocks{yaml}[0]);
is($commands =~ s{^cd /etc/stunnel && (curl .*)\n\z}{}m, 1, 'the last command asks with curl');
my $curl = $1;

# In its own words, but for what is in /etc. What is not of this directory is only written down.
my $etc     = "$DIR/etc";
my $stunnel = "$etc/stunnel";
mkdir "$DIR/bin";
for my $program (qw(apt-get systemctl)) {
    spew("$DIR/bin/$program", qq(#!/bin/sh\necho "$program \$*" >> $DIR/called\n));
    chmod 0755, "$DIR/bin/$program";
}

sub make_it {
    my ($under) = @_;
    Live::must('mkdir', '-p', "$under/stunnel", "$under/source/systemd");
    spew("$under/source/systemd/$_", slurp("$SOURCE/systemd/$_") =~ s{/etc/(?=stunnel)}{$under/}gr) for qw(tls stunnel.conf);
    local $ENV{PATH} = "$DIR/bin:$ENV{PATH}";
    my ($status, $out, $said) = run('', 'sh', '-e', '-c', "cd $under/source\n$commands");
    is($status, 0, 'the commands run to their end') or diag($out, $said);
    return;
}
make_it($etc);

my $conf = slurp("$etc/stunnel/nfprom.conf");
my ($behind) = $conf =~ /^connect = (\S+)$/m;
is($behind, '127.0.0.1:9914', 'stunnel asks on loopback');
my ($user) = $conf =~ /^setuid = (.*)$/m;
like($user, qr/\Astunnel4?\z/, 'and runs as the user of its package');
like(slurp("$SOURCE/systemd/nfprom.socket"), qr/^ListenStream=\Q$behind\E$/m, 'where nfprom.socket listens');
is(slurp("$DIR/called"), <<'CALLED', 'what is done to the machine');
apt-get install -y stunnel4 openssl curl
systemctl enable --now stunnel@nfprom
CALLED

for my $file (qw(ca.key server.pem client.pem)) {
    is(sprintf('%o', (stat "$stunnel/$file")[2] & 07777), '600', "$file is for its owner only");
}
unlike(slurp("$stunnel/ca.pem"), qr/PRIVATE/, 'ca.pem has no key');
for (['server', 'sslserver'], ['client', 'sslclient']) {
    my ($name, $purpose) = @$_;
    my ($status, undef, $said) = run('', qw(openssl verify -x509_strict -purpose), $purpose, '-CAfile', "$stunnel/ca.pem", "$stunnel/$name.pem");
    is($status, 0, "$name.pem is a certificate of the CA for its purpose") or diag($said);
    ($status) = run('', qw(openssl x509 -noout -checkend), 9 * 365 * 86400, '-in', "$stunnel/$name.pem");
    is($status, 0, "$name.pem is good for nine years");
}

# Once more, for another address: the CA stays, and so what Prometheus has.
{
    my $ca = slurp("$stunnel/ca.pem");
    my ($status, $out, $said) = run('', 'sh', "$etc/source/systemd/tls", 'DNS:alpha.example');
    is($status, 0, 'the script runs again') or diag($out, $said);
    is(slurp("$stunnel/ca.pem"), $ca, 'with the same CA');
    ($status) = run('', qw(openssl verify -x509_strict -verify_hostname alpha.example), '-CAfile', "$stunnel/ca.pem", "$stunnel/server.pem");
    is($status, 0, 'and a certificate for the name');
    ($status, $out, $said) = run('', 'sh', "$etc/source/systemd/tls", '203.0.113.140');
    is("$status $out$said", "1 tls: tls IP:ADDRESS, or tls DNS:NAME\n", 'what is no address and no name is refused');
    Live::must('sh', "$etc/source/systemd/tls", 'IP:203.0.113.140');
}

# A CA of somebody else, with certificates of the same names; and one that the holder of our client's key made.
make_it("$DIR/other");
my $other = "$DIR/other/stunnel";
my ($status, undef, $said) = run('', qw(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=forged
    -addext basicConstraints=CA:FALSE -addext extendedKeyUsage=clientAuth), '-CA', "$stunnel/client.pem", '-CAkey', "$stunnel/client.pem",
    '-keyout', "$DIR/forged.pem", '-out', "$DIR/forged.pem");
is($status, 0, 'a certificate signed with the key of the client') or diag($said);
spew("$DIR/forged.pem", slurp("$DIR/forged.pem") . slurp("$stunnel/client.pem") =~ s/.*(?=-----BEGIN CERT)//sr);

# ---- the servers: the rules, xinetd with the file that is shipped, and stunnel as Debian's unit starts it

restore(4, 'nft', join "\n", '*filter', ':INPUT ACCEPT [0:0]', ':prometheus - [0:0]', ':asked - [0:0]',
    '[9007199254740991:4503599627370497] -A prometheus -d 203.0.113.140/32 -p tcp -m tcp --dport 22 -j RETURN',
    '[31:415] -A prometheus -s 203.0.113.140/32 -p tcp -m tcp --sport 22 -j RETURN',
    '-A INPUT -p tcp -m tcp --dport 9914 --syn -j asked', '-A asked', 'COMMIT', '');

# Connections to nfprom so far.
sub asked { return (saved_rules(4, 'nft', 'asked'))[0][0] }

# What iptables counted, in the form that exposition() has.
my %series = map { $_ => series_of(address => '203.0.113.140/32', direction => $_, l2proto => 'ipv4', l3proto => 'tcp', port => 22) } qw(in out);
sub counted {
    my ($kind) = @_;
    return { map { $series{ $_->[2] =~ /^-d/ ? 'in' : 'out' } => $_->[$kind eq 'bytes'] } saved_rules(4, 'nft', 'prometheus') };
}

# Both in a /dev of their own, where syslog is a socket of ours, to be read before its queue is full: who logs would wait.
my $syslog = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => "$DIR/syslog") or die "syslog: $!";
chmod 0666, "$DIR/syslog";
sub logged {
    my @lines;
    while (defined $syslog->recv(my $line, 8192, MSG_DONTWAIT)) { push @lines, $line =~ s/\0\z//r }
    return @lines;
}
my $own_dev = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && ln -s $DIR/syslog /dev/log"
    . ' || exit 125; exec "$@"';
sub serve {
    my ($name, $port, @command) = @_;
    my $pid = start("$DIR/$name.log", qw(unshare -m sh -c), $own_dev, 'sh', @command);
    ok(wait_for_port($port), "$name listens on port $port") or diag(slurp("$DIR/$name.log"), logged());
    return $pid;
}

my $xinetd_conf = slurp("$SOURCE/xinetd/nfprom");
is($xinetd_conf =~ s{/usr/local/sbin/nfprom}{$NFPROM}, 1, 'the shipped file for xinetd names the installed program once');
serve('xinetd', 9914, 'xinetd', '-dontfork', '-f', spew("$DIR/xinetd.conf", $xinetd_conf), '-pidfile', "$DIR/xinetd.pid");
my $pid = serve('stunnel', 9915, 'stunnel4', "$stunnel/nfprom.conf");

my %process = slurp("/proc/$pid/status") =~ /^(\w+):[ \t]*(.*?)[ \t]*$/mg;
my ($uid, $gid) = (getpwnam $user)[2, 3];
is($process{Uid}, join("\t", ($uid) x 4), 'stunnel is that user');
is($process{Gid}, join("\t", ($gid) x 4), 'and its group');
is_deeply([grep { $_ ne $gid } split ' ', $process{Groups}], [], 'and no other');
is(hex($process{$_}), 0, "stunnel has nothing in $_") for qw(CapInh CapPrm CapEff CapAmb);

# ---- curl

sub ask {
    my (@options) = @_;
    return run('', 'curl', '-sS', @options);
}
my @ca     = ('--cacert', "$stunnel/ca.pem");
my @client = ('--cert', "$stunnel/client.pem");
my $url    = 'https://203.0.113.140:9915/metrics';

($status, my $body, $said) = run('', 'sh', '-c', "cd $stunnel && exec $curl");
is($status, 0, 'the line with curl has an answer') or diag($said);
my $all = eval { exposition($body) } || {};
is_deeply($all->{"nfprom_${_}_total"}, counted($_), "its $_ are what iptables counted") for qw(packets bytes);
is(asked(), 1, 'for which nfprom was started once');
(undef, my $head) = ask('-I', @ca, @client, $url);
like($head, qr{\AHTTP/1\.1 200 }, 'HEAD is answered too');
my %answers;
$answers{ (ask(@ca, @client, '-o', '/dev/null', '-w', '%{http_code} %{ssl_verify_result}', $url))[1] }++ for 1 .. 20;
is_deeply(\%answers, { '200 0' => 20 }, 'and twenty in a row are');
is(asked(), 22, 'each of them by an nfprom');
is_deeply([grep { /stunnel|nfprom/ } logged()], [], 'of which nothing is logged');

for (
    ['without a certificate',                       @ca],
    ['with a certificate of another CA',            @ca, '--cert', "$other/client.pem"],
    ['with a certificate signed by the client',     @ca, '--cert', "$DIR/forged.pem"],
    ['with the certificate of the server',          @ca, '--cert', "$stunnel/server.pem"],
    ['without a certificate, and with TLS 1.2',     @ca, '--tls-max', '1.2'],
) {
    my ($what, @options) = @$_;
    my ($status, $body) = ask(@options, $url);
    isnt($status, 0, "$what: refused");
    is($body, '', "$what: nothing comes");
    my @lines;
    my $logged = patiently { push @lines, logged(); grep { /stunnel.*SSL_accept/ } @lines };
    ok($logged, "$what: which is logged") or diag(@lines);
}
is(asked(), 22, 'nfprom was not asked for any of these');
for my $options ([], [@client]) {
    ($status, $body) = ask(@$options, 'http://203.0.113.140:9915/metrics');
    isnt($status, 0, 'plain HTTP to this port: refused');
    is($body, '', 'plain HTTP to this port: nothing comes');
}
unlike(http_get('203.0.113.140', 9915)->{wire}, qr/nfprom|HTTP/, 'nor to who does not wait for TLS');
is(asked(), 22, 'nor was nfprom for these');
is(http_get('203.0.113.140', 9914)->{wire}, '', 'the port behind it does not answer others either');

# curl may look at the server's certificate before the end of the handshake or after it: then nfprom has been asked.
for (
    ['a server of another CA',                       '--cacert', "$other/ca.pem", @client, $url],
    ['an address that the certificate does not name', @ca, @client, 'https://198.51.100.7:9915/metrics'],
) {
    my ($what, @options) = @$_;
    my ($status, $body) = ask(@options);
    is($status, 60, "curl refuses $what");
    is($body, '', 'and shows nothing');
}

# One who says nothing at all, to be looked at later.
my $silent = IO::Socket::IP->new(PeerHost => '203.0.113.140', PeerPort => 9915) or die "connect: $!";
my $since  = time;

# ---- Prometheus, with the files as nobody's, and beside the job of the recipe some that must fail

my $there = "$etc/prometheus";
Live::must('mkdir', $there, "$DIR/data");
Live::must('cp', "$stunnel/ca.pem", "$stunnel/client.pem", $there);
Live::must('cp', "$other/ca.pem", "$there/other-ca.pem");
Live::must('cp', "$other/client.pem", "$there/other-client.pem");
Live::must('chown', '-R', 'nobody', $there, "$DIR/data");

$yaml =~ s{/etc/}{$etc/}g;
like($yaml, qr/\A  - job_name: nfprom\n/, 'the other block is a job');
sub job {
    my ($name, $edit) = @_;
    local $_ = $yaml;
    is(s/^(  - job_name:) nfprom$/$1 $name/m, 1, 'with the job nfprom') if $name ne 'nfprom';
    $edit->() || BAIL_OUT("the job $name is like nfprom") if $edit;
    return $_;
}
my %fails = (
    'no-certificate' => [sub { s/, cert_file:.*(?=\})// },                     qr/certificate required|bad certificate|reset|EOF/],
    'other-client'   => [sub { s{/client\.pem}{/other-client.pem}g },          qr/unknown certificate authority|bad certificate|reset|EOF/],
    'other-ca'       => [sub { s{/ca\.pem}{/other-ca.pem} },                   qr/unknown authority|ECDSA verification/],
    'other-address'  => [sub { s/203\.0\.113\.140(?=:9915)/198.51.100.7/ },    qr/certificate is valid for 203\.0\.113\.140/],
    'plain'          => [sub { s/scheme: https/scheme: http/ },                qr/reset|EOF|malformed/],
);
my $port = free_port();
spew("$DIR/prometheus.yml", join '', "global: {scrape_interval: 5s, scrape_timeout: 5s}\nscrape_configs:\n", job('nfprom'), map { job($_, $fails{$_}[0]) } sort keys %fails);
my $prometheus = start("$DIR/prometheus.log", qw(setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs prometheus), "--config.file=$DIR/prometheus.yml",
    "--storage.tsdb.path=$DIR/data", "--web.listen-address=127.0.0.1:$port");

sub query { return query_at($port, @_) }

my $jobs = 1 + keys %fails;
ok(patiently { logged(); $jobs == query('up') && query('up{job="nfprom"} == 1') }, 'Prometheus has asked each of them')
    or diag(slurp("$DIR/prometheus.log"));
is_deeply({ map { $_->{metric}{job} => $_->{value}[1] } query('up') }, { nfprom => 1, map { $_ => 0 } keys %fails }, 'only nfprom is up');
for my $kind (qw(packets bytes)) {
    my %stored = map {
        my %labels = %{ $_->{metric} };
        delete @labels{qw(__name__ instance job)};
        series_of(%labels) => $_->{value}[1]
    } query("nfprom_${kind}_total");
    is_deeply(\%stored, counted($kind), "its $kind are what iptables counted, digit for digit");
}
my %error = map { $_->{labels}{job} => $_->{lastError} } @{ (api($port, 'targets') || {})->{activeTargets} || [] };
is($error{nfprom}, '', 'there is no error') or diag(slurp("$DIR/prometheus.log"));
like($error{$_}, $fails{$_}[1], "$_: why not") for sort keys %fails;
stop($prometheus);

# ---- who says nothing

logged();
ok(!sysread($silent, my $bytes, 1), 'a connection without a word is closed');
cmp_ok(time - $since, '<', 290, 'and sooner than stunnel does it by itself, after 300 s');

done_testing();
