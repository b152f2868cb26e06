#!/usr/bin/perl

# The recipes of README.md, each as it stands there, under a real systemd in a container over this machine's own root, with a
# real node_exporter; what is written there goes to a tmpfs and is thrown away.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Live;

need(qw(systemd-nspawn systemd-analyze iptables-nft iptables-legacy bash make prometheus-node-exporter promtool));

# ---- what runs in the container: each check leaves its facts in a file

# `client PORT` prints all that comes back of /metrics; `client send FROM SPORT TO DPORT COUNT` sends datagrams.
my $client = <<'CLIENT';
use strict;
use warnings;
use IO::Socket::INET;
$SIG{PIPE} = 'IGNORE';
if ($ARGV[0] eq 'send') {
    my (undef, $from, $sport, $to, $dport, $count) = @ARGV;
    my $s = IO::Socket::INET->new(Proto => 'udp', LocalAddr => $from, LocalPort => $sport, PeerAddr => $to, PeerPort => $dport)
        or die "udp: $@";
    for (1 .. $count) { send $s, 'x' x 72, 0 or redo }    # an ICMP error of the one before is no matter
} else {
    my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $ARGV[0]) or die "connect: $@";
    syswrite $s, "GET /metrics HTTP/1.0\r\n\r\n";
    print while defined($_ = readline $s);
}
CLIENT

my $guest = <<'GUEST';
#!/bin/bash
. /srv/nfprom/functions
recipe() { in_source "$1" 2>&1 | out "recipe-$1"; }
in_source() { (cd source && bash -eu "../recipe-$1"); }
scrape() { perl client "${1:-9914}" 2>&1; }
# Those that run or have failed; one that a timer starts stays loaded.
units() { systemctl list-units --state=active,activating,reloading,deactivating,failed --no-legend 'nfprom*@*.service'; }
directory=/var/lib/prometheus/node-exporter
there() { (cd $directory && ls); }
textfile() { systemctl start "$@" nfprom@textfile.service; }
node_answers() { scrape 9100 | grep -q '^HTTP.* 200'; }

# The host and the namespace blue, joined.
ip link set lo up
ip netns add blue
ip link add veth0 address 02:00:00:00:00:8c type veth peer name veth0 address 02:00:00:00:00:01 netns blue
ip address add 203.0.113.140/24 dev veth0; ip link set veth0 up
ip -n blue address add 203.0.113.1/24 dev veth0; ip -n blue link set veth0 up; ip -n blue link set lo up
ip neighbour replace 203.0.113.1 lladdr 02:00:00:00:00:01 dev veth0
ip -n blue neighbour replace 203.0.113.140 lladdr 02:00:00:00:00:8c dev veth0
make -C source install > make.log 2>&1
bash -c "$(cat start-line)" 2>&1 | out start
iptables-restore -c << 'RULES'
*filter
:INPUT ACCEPT [11:1100]
:FORWARD ACCEPT [12:1200]
:OUTPUT ACCEPT [0:0]
:prometheus - [0:0]
[21:2100] -A INPUT -p udp -m udp --dport 53 -j DROP
[22:2200] -A FORWARD -p tcp -m tcp --dport 8080 -j ACCEPT
[31:415] -A prometheus -p tcp -m tcp --dport 22
[32:9007199254740992] -A prometheus -p tcp -m tcp --dport 25 -j RETURN
COMMIT
RULES
rm -rf $directory/*

# ---- in a terminal
recipe terminal
# ---- the file from cron
recipe cron
cp $directory/nfprom.prom out/cron-file
fake iptables-save 'exit 3'; recipe cron; there | out cron-failed; unfake
rm -f $directory/*

# ---- the file from a timer, which is waited for below
recipe textfile
systemctl is-enabled nfprom@textfile.timer 2>&1 | out textfile-enabled

# ---- two chains
recipe chains
scrape | out chains

# ---- another port
journal > /dev/null
recipe port
systemd-analyze verify nfprom-forward.socket nfprom-forward@x.service 2>&1 | out port-verify
systemctl is-enabled nfprom-forward.socket 2>&1 | out port-enabled
scrape 9915 | out port
scrape | out port-first
echo NFPROM_FLAGS= > /etc/default/nfprom; scrape | out port-first-changed; scrape 9915 | out port-after
settled; journal | out port-journal

# ---- the table raw
packets() {
    ip netns exec blue perl client send 203.0.113.1 0 203.0.113.140 53 6
    perl client send 203.0.113.140 53 203.0.113.1 9 4
    perl client send 203.0.113.140 0 203.0.113.140 53 3
}
raw_rules() { iptables-save -t "$1" | sed '/^#/d; s/\[.*//'; }
(cd source && bash -eu ../recipe-chain) 2>&1 | out recipe-chain
sed -i "s/^SERVICES=.*/SERVICES='dns=udp\/53'/" /etc/nfprom/chain
raw_rules raw | out raw-before
recipe raw; raw_rules raw | out raw-once; packets
recipe raw; raw_rules raw | out raw-twice
scrape | out raw
iptables-save -c -t filter | out raw-filter
settled; journal | out raw-journal
recipe raw-undo; { raw_rules raw; grep '^TABLE=' /etc/nfprom/chain; cat /etc/default/nfprom; } | out raw-undone
sed s/raw/mangle/g recipe-raw > recipe-mangle; recipe mangle; packets
scrape | out mangle
echo NFPROM_FLAGS= > /etc/default/nfprom

# ---- the file from a timer
patiently [ -e $directory/nfprom.prom ]
settled; journal | out textfile-journal-timer
systemctl stop nfprom@textfile.timer; settled; journal > /dev/null
there | out textfile-there
textfile
stat -c '%U %a' $directory/nfprom.prom | out textfile-mode
cp $directory/nfprom.prom out/textfile
systemd-analyze verify nfprom@textfile.timer nfprom@textfile.service 2>&1 | out textfile-verify
systemd-analyze security --no-pager nfprom@textfile.service | tail -n 1 | out textfile-security
echo 'ARGS="--collector.disable-defaults --collector.textfile --web.disable-exporter-metrics --web.listen-address=127.0.0.1:9100"' > /etc/default/prometheus-node-exporter
systemctl start prometheus-node-exporter.service
patiently node_answers
scrape 9100 | out node
# Each scrape finds a whole file, whenever it comes.
(for i in $(seq 8); do textfile; done; touch finished) &
until [ -e finished ]; do scrape 9100; done | out node-meanwhile
wait
settled; journal | out textfile-journal
fake iptables-save 'echo "a reason from the fake" >&2; exit 3'
textfile; there | out textfile-failed
scrape 9100 | out node-failed
settled; journal | out textfile-failed-journal
units | out textfile-units
unfake
# What an interrupted run has left is not mixed into the next.
seq 99999 > $directory/nfprom.tmp
textfile; cp $directory/nfprom.prom out/textfile-again; there | out textfile-again-there
scrape 9100 | out node-again
echo 'NFPROM_FLAGS=-timeout 30m' > /etc/default/nfprom
fake iptables-save "touch $directory/mine /var/lib/mine /etc/mine /srv/mine; exec sleep 987"
textfile --no-block; waiting -x nfprom; waiting -f 'sleep 987'
pid=$(pgrep -o -x nfprom); grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs)' /proc/$pid/status | out textfile-process
ls $directory/mine /var/lib/mine /etc/mine /srv/mine 2> /dev/null | out textfile-written
systemctl stop nfprom@textfile.service; there | out textfile-stopped
unfake; echo NFPROM_FLAGS= > /etc/default/nfprom

# ---- another network namespace
ip netns exec blue iptables-restore -c << 'RULES'
*filter
:INPUT ACCEPT [0:0]
:prometheus - [0:0]
[0:0] -A INPUT -j prometheus
[7:700] -A prometheus -d 203.0.113.1/32 -p udp -m udp --dport 9 -j RETURN
COMMIT
RULES
settled; journal > /dev/null
recipe netns
textfile; cp $directory/nfprom.prom out/netns-textfile
perl client send 203.0.113.140 0 203.0.113.1 9 5
scrape | out netns
settled; journal | out netns-journal
systemd-analyze verify nfprom@x.service 2>&1 | out netns-verify
systemd-analyze security --no-pager nfprom@x.service | tail -n 1 | out netns-security
scrape 9915 | out netns-other
ip netns delete blue
scrape | out netns-missing
settled; journal | out netns-missing-journal
systemctl list-units --failed --no-legend 'nfprom*' | out netns-missing-failed
systemctl is-active nfprom.socket | out netns-missing-active
ip netns add blue
ip netns exec blue iptables-restore -c << 'RULES'
*filter
:prometheus - [0:0]
[9:900] -A prometheus -d 203.0.113.1/32 -p udp -m udp --dport 9 -j RETURN
COMMIT
RULES
scrape | out netns-again; settled
rm -r /etc/systemd/system/nfprom@.service.d
sed -i s/nfprom@/nfprom-forward@/ recipe-netns; in_source netns
echo NFPROM_FLAGS= > /etc/default/nfprom-forward
scrape 9915 | out netns-port; scrape | out netns-port-other

# ---- the file, and a copy, with the drop-in for the legacy backend
printf '*filter\n:prometheus - [0:0]\n[92:653] -A prometheus -p tcp -m tcp --dport 22\nCOMMIT\n' | iptables-legacy-restore -c
install -D -m 644 source/systemd/legacy.conf /etc/systemd/system/nfprom@.service.d/legacy.conf; systemctl daemon-reload
echo 'NFPROM_FLAGS=-variant legacy' > /etc/default/nfprom
rm -f $directory/*; textfile; cp $directory/nfprom.prom out/legacy-textfile
fake iptables-legacy-save 'exit 3'; textfile; there | out legacy-textfile-failed; unfake
rm -r /etc/systemd/system/nfprom-forward@.service.d; in_source port
echo 'NFPROM_FLAGS=-variant legacy' > /etc/default/nfprom-forward; scrape 9915 | out legacy-port
sh source/systemd/another-port forward port 2>&1 | out port-wrong
sh source/systemd/another-port forward remove > /dev/null 2>&1
{ find /etc -name '*nfprom-forward*' -not -path '*/nfprom-forward@.service.d*'; systemctl list-units --no-legend nfprom-forward.socket; } | out port-removed
GUEST

# ---- what README.md says to do

# The commands of each section: its blocks for the shell, as one script.
sub sections {
    my ($text) = @_;
    my (%commands, $title, $block);
    for (split /^/, $text) {
        if (defined $block) {
            if (/^```$/) {
                $commands{$title} .= $block if defined $title && $block =~ s/\A```sh\n//;
                undef $block;
            } else {
                $block .= $_;
            }
        } elsif (/^```/) {
            $block = $_;
        } elsif (/^#+ (.*)$/) {
            $title = $1;
        }
    }
    return \%commands;
}

my $readme = slurp("$SOURCE/README.md");
my ($start_line) = $readme =~ /^make && make install && (systemctl .*enable .*nfprom\.socket)$/m;
my ($cron_line)  = $readme =~ /^(cd .* && \S*nfprom -print > .*)$/m;
my %recipes = (
    terminal => 'In a terminal',
    textfile => 'A file for node_exporter',
    chains   => 'Two chains in one scrape',
    port     => 'Another chain on another port',
    netns    => 'Another network namespace',
    raw      => 'A chain in the table raw',
);
my $sections = sections($ENV{NFPROM_README} ? slurp($ENV{NFPROM_README}) : $readme);
my %script;
for my $name (sort keys %recipes) {
    ok($script{$name} = $sections->{ $recipes{$name} }, "README.md has the recipe: $recipes{$name}");
}
is($script{netns} && $script{netns} =~ s/NAME/blue/, 1, 'and there the name of the namespace to be put in');
ok($script{cron} = $cron_line, 'and a line for cron');
($script{'raw-undo'}) = $readme =~ /^### A chain in the table raw\n.*?^The undo: `(.*?)`/ms;
ok($script{'raw-undo'}, 'and an undo of the chain in the table raw');
($script{chain}) = ($sections->{'The services of this host'} // '') =~ /^(.*install .*systemd\/chain .*)$/m;
ok($script{chain}, 'and a line that installs the script for the chain');
ok($start_line, 'and a line that starts the socket unit');
if (!Test::More->builder->is_passing) {
    done_testing();
    exit 1;
}

in_container(guest => $guest, client => $client, 'start-line' => $start_line, map { ("recipe-$_" => $script{$_}) } keys %script);

# node_exporter answers in HTTP/1.0 what is asked in it.
sub http { return fact($_[0]) =~ s{\AHTTP/1\.0}{HTTP/1.1}r }

# {name}{series}, of an answer or of a file.
sub samples {
    my ($name) = @_;
    my $text = http($name);
    my $body = $text =~ /\AHTTP/ ? Live::answer($text)->{body} : $text;
    my $all = eval { exposition($body) };
    diag("$name: ", $@, $text) if !$all;
    return $all || {};
}

sub value {
    my ($name, $metric, %labels) = @_;
    return samples($name)->{$metric}{ series_of(%labels) };
}

# The counter of a series that names this much of its labels.
sub packets {
    my ($name, %labels) = @_;
    return value($name, 'nfprom_packets_total', address => '', direction => 'in', l2proto => 'ipv4', l3proto => 'tcp', port => 22, %labels);
}

sub exposure { return fact($_[0]) =~ /: ([0-9.]+)/ ? $1 : 10 }
# ---- what came out

is(fact("recipe-$_"), '',                            "the commands of the recipe have nothing to say: $_") for qw(chains netns chain raw raw-undo mangle);
unlike(fact("recipe-$_"), qr/^(?!Created symlink )./m, "nor have these, but for the links: $_") for qw(textfile port);

like(fact('recipe-terminal'), qr/\Anfprom_bytes_total\{.*port="25"\} 9007199254740992\nnfprom_bytes_total\{.*port="22"\} 415\n\z/,
    'in a terminal: the rules with the most bytes come first');
is(packets('cron-file'), 31,                         'cron: the file has the counters');
unlike(fact('cron-failed'), qr/\.prom$/m,            'cron: a failure takes it away');
like(fact('recipe-cron'), qr/\A[^\n]*status 3[^\n]*\n\z/, 'cron: and is one line in the mail');

# The file from a timer.
is(fact('textfile-enabled'), "enabled\n",            'the timer will be there at the next boot');
is(fact('textfile-there'), "nfprom.prom\n",          'it puts a file in place, and leaves no other');
is(fact('textfile-mode'), "root 644\n",              'which everybody may read, and root alone write');
is(packets('textfile'), 31,                          'it has the counters');
is(promtool_says(fact('textfile')), '',              'promtool has nothing to say of it');
is(fact('textfile-journal-timer'), '',               'the journal has no line of it');
is(fact('textfile-verify'), '',                      'systemd-analyze verify has nothing to say of the units');
cmp_ok(exposure('textfile-security'), '<=', 3.5,     'systemd-analyze security: the exposure is that of a scrape');
is(packets('node'), 31,                              'node_exporter shows the counters');
is(value('node', 'node_textfile_scrape_error'), 0,   'and finds no fault');
my $file = 'file=/var/lib/prometheus/node-exporter/nfprom.prom';
ok(samples('node')->{node_textfile_mtime_seconds}{$file}, 'and tells how old the file is');
is(promtool_says(Live::answer(http('node'))->{body}), '', 'promtool has nothing to say of its page');
my @pages = split /^(?=HTTP)/m, fact('node-meanwhile');
my @whole = grep { /^node_textfile_scrape_error 0$/m && 4 == (() = /^nfprom_(?:packets|bytes)_total\{/mg) && /^nfprom_scrape_success\S* 1$/m } @pages;
cmp_ok(scalar @pages, '>=', 2,                       'node_exporter is asked while the file is made anew');
is(scalar @whole, scalar @pages,                     'and each page is whole');
is(fact('textfile-journal'), '',                     'with no line in the journal');
is(fact('textfile-failed'), '',                      'when iptables-save fails, the file is gone');
unlike(fact('node-failed'), qr/^nfprom_/m,           'and so are the counters of node_exporter');
is(value('node-failed', 'node_textfile_scrape_error'), 0, 'which finds no fault in that');
like(fact('textfile-failed-journal'), qr/\A[^\n]*ipv4: [^\n]*a reason from the fake\n\z/, 'one line in the journal has the reason');
is(fact('textfile-units'), '',                       'no unit has failed');
is(fact('textfile-again-there'), "nfprom.prom\n",    'after it the file is there again');
is(packets('textfile-again'), 31,                    'with the counters, and nothing of what an interrupted run had left');
is(packets('node-again'), 31,                        'and node_exporter shows them');
my %process = fact('textfile-process') =~ /^(\w+):[ \t]*(.*)$/mg;
unlike(join(' ', map { $_ || 0 } @process{qw(Uid Gid)}), qr/\b0\b/, 'nfprom is not root there');
is(hex($process{$_} || 0), 0,                        "its $_ is empty") for qw(CapPrm CapEff CapAmb);
is(hex($process{CapBnd} || 0), 1 << 12,              'the set that bounds it is CAP_NET_ADMIN alone');
is($process{NoNewPrivs}, 1,                          'it gains no new privileges');
is(fact('textfile-written'), '',                     'and can write no other file');
is(fact('textfile-stopped'), '',                     'a run that is stopped takes the file away');

is(packets('chains', chain => 'prometheus'), 31,     'two chains: the counters of the first');
is(packets('chains', chain => 'INPUT', l3proto => 'udp', port => 53), 21, 'and of the second');
cmp_ok(value('chains', 'nfprom_policy_packets_total', chain => 'INPUT', l2proto => 'ipv4', policy => 'ACCEPT'), '>=', 11, 'and its policy');

is(fact('port-enabled'), "enabled\n",                'another port: the socket will be there at the next boot');
is(fact('port-verify'), '',                          'systemd-analyze verify has nothing to say of the copies');
is(packets('port', port => 8080), 22,                'it has the counters of the other chain');
is(value('port', 'nfprom_policy_packets_total', l2proto => 'ipv4', policy => 'ACCEPT'), 12, 'and its policy');
is(packets('port-first', chain => 'prometheus'), 31, 'and the first port those of its own');
is(packets('port-first-changed'), 31,                'whose flags can be changed');
is(packets('port-after', port => 8080), 22,          'without effect on the other');
unlike(fact('port-journal'), qr/^(?!systemd\[1\]: (?:Listening on|Created slice) )./m, 'the journal has no line of a scrape');

for my $table (qw(raw mangle)) {
    my %labels = (address => '203.0.113.140/32', l3proto => 'udp', port => 53, service => 'dns');
    is(packets($table, %labels), 6,                  "$table: the packets that came, though the filter drops them");
    is(packets($table, %labels, direction => 'out'), 4, "$table: and those that left, and none of lo");
}
is(fact('raw-twice'), fact('raw-once'),              'the recipe for the table raw, once more: nothing is there twice');
like(fact('raw-once'), qr/^-A PREROUTING ! -i lo -j prometheus$/m, 'the packets that come in are sent there');
is(fact('raw-undone'), fact('raw-before') . "TABLE=filter\nNFPROM_FLAGS=\n", 'and the undo leaves nothing');
like(fact('raw-filter'), qr/^\[(?!21:)\d+:\d+\] -A INPUT -p udp -m udp --dport 53 -j DROP$/m, 'the filter did drop packets');
is(fact('raw-journal'), '',                          'and nothing is in the journal');

my %blue = (address => '203.0.113.1/32', l3proto => 'udp', port => 9);
is(packets('netns', %blue), 12,                      'another namespace: its counters, and what came to it');
unlike(fact('netns'), qr/port="22"/,                 'and not the host\'s');
is(packets('netns-textfile', %blue), 7,              'in the file from the timer too');
is(fact('netns-journal') . fact('netns-verify'), '', 'the journal and systemd-analyze verify have nothing to say');
cmp_ok(exposure('netns-security'), '<=', 3.5,        'the exposure is the same');
is(packets('netns-other', port => 8080), 22,         'and the other port is not touched');
is(fact('netns-missing'), '',                        'without the namespace nothing is answered');
like(fact('netns-missing-journal'), qr{Failed to open network namespace path /run/netns/blue: No such file}, 'and the journal says why');
is(fact('netns-missing-failed'), '',                 'no unit has failed');
is(fact('netns-missing-active'), "active\n",         'and the socket listens');
is(packets('netns-again', %blue), 9,                'once it is there again, so are its counters');
is(packets('netns-port', %blue), 9,                  'the copies can have a namespace to themselves');
is(packets('netns-port-other'), 31,                  'and the first port has the host\'s rules');

is(packets('legacy-textfile'), 92,                   'the file from the timer goes with the drop-in for the legacy backend');
is(fact('legacy-textfile-failed'), '',               'where a failure takes it away too');
is(packets('legacy-port'), 92,                       'and so do the copies');
like(fact('port-wrong'), qr/\Aanother-port: [^\n]*\n\z/, 'the script says in a line what is wrong with its arguments');
is(fact('port-removed'), '',                         'and it can take away what it has made');

leave_container();

done_testing();
