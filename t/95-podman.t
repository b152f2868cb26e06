#!/usr/bin/perl

# README.md, In a container (podman): its commands build an image and run it on the network of this test's namespace, which plays
# the host, with real rules and packets. Nothing is pulled: the image's base is made of this machine's own packages. What podman
# keeps lies in the test's directory.
#
# NFPROM_README is another README.md than that of the tree.

use strict;
use warnings;
use Cwd ();
use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::IP ();
use Test::More;
use Live;

need(qw(podman crun iptables-nft iptables-legacy setpriv tar dpkg-query apt-cache));

my $ADDRESS = $FAMILIES->{4}{here};
my $PEER    = $FAMILIES->{4}{peer};
my $TEST    = $$;

# ---- what README says

my $README = slurp($ENV{NFPROM_README} || "$SOURCE/README.md");
my ($section) = $README =~ /^### In a container \(podman\)\n(.*?)(?=^### )/ms;
my @blocks = ($section || '') =~ /^```sh\n(.*?)^```$/msg;
is(scalar(@blocks), 2, 'README has the recipes: podman, and docker') or BAIL_OUT('no recipes');
my ($build, $run) = $blocks[0] =~ /\A(podman build .*?^E\n)(podman run .*)\z/ms;
my ($base)     = $build =~ /^FROM (\S+)$/m;
my @lines      = $build =~ /^([A-Z]+) /mg;
my ($legacy)   = $section =~ /`(--cap-add NET_ADMIN,[^`]*)`, with `-variant legacy`/;
is("@lines", 'FROM RUN COPY USER ENTRYPOINT', 'a Containerfile of five lines');
ok($legacy, 'and what a host with legacy tables needs');
my $legacy_run = $run =~ s/--cap-add NET_ADMIN/$legacy/r =~ s/$/ -variant legacy/r;

# ---- podman: all that it keeps is in the test's directory, and in the test's own /run. It may do here what any container may do.

# (crun refuses a host with control groups of both versions.)
if (!-e '/sys/fs/cgroup/cgroup.procs') {
    must(qw(umount -R -l /sys/fs/cgroup));
    must(qw(mount -t cgroup2 none /sys/fs/cgroup));
}
my $store = '/var/lib/containers';
my $made  = !-e $store;
must(qw(mkdir -p), $store, "$DIR/containers", "$DIR/context");
must(qw(mount --bind), "$DIR/containers", $store);
spew("$DIR/containers.conf", <<'CONF');
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
CONF
spew("$DIR/storage.conf", <<'CONF');
[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
CONF
%ENV = (%ENV, CONTAINERS_CONF => "$DIR/containers.conf", CONTAINERS_STORAGE_CONF => "$DIR/storage.conf", TMPDIR => $DIR, HOME => $DIR,
    BUILDAH_ISOLATION => 'chroot', BUILDAH_LAYERS => 'false');
delete @ENV{qw(XDG_RUNTIME_DIR http_proxy https_proxy)};

END {
    if ($TEST && $$ == $TEST && -e "$DIR/containers.conf") {
        local $?;
        run('', qw(podman rm -f -a -t 0));
        run('', qw(umount -l), $store);
        rmdir $store if $made;
    }
}

# The base: the packages that a Debian has at least, as they are installed here. (/bin and the like are links.)
sub make_base {
    my @packages = grep { /^[a-z]/ } split /\n/, must(qw(apt-cache depends --recurse --installed), (map {"--no-$_"} qw(recommends suggests conflicts breaks
        replaces enhances)), qw(apt base-files base-passwd bash coreutils dash dpkg findutils grep iptables sed util-linux));
    my %seen;
    my @there = grep { /^ii / && s/^ii // } split /\n/, (run('', qw(dpkg-query -W -f), '${db:Status-Abbrev}${binary:Package}\n', @packages))[1];
    my @files = split /\n/, must(qw(dpkg-query -L), @there);
    push @files, glob '/usr/sbin/*tables* /etc/alternatives/*tables* /bin /sbin /lib /lib64 /etc/ld.so.cache /etc/passwd /etc/group /etc/apt /var/lib/dpkg/status';
    push @files, map { ($_, Cwd::abs_path($_)) } (run('', 'ldd', $NFPROM))[1] =~ m{(/\S+)}g;    # a binary that is not static brings its own
    @files = grep { !$seen{$_}++ && (-l $_ || -e $_) } map { s{^/(bin|sbin|lib|lib64)/}{/usr/$1/}r }
        grep { m{^/[^.]} && !m{^/usr/share/(?:doc|man|locale|info)/|^/etc/apt/} } @files;
    spew("$DIR/base.list", join '', map {".$_\n"} @files);
    must(qw(tar -C / --no-recursion -cf), "$DIR/base.tar", '-T', "$DIR/base.list");
    return "$DIR/base.tar";
}

# Commands of README's, in a directory where nfprom lies.
must('cp', $NFPROM, "$DIR/context/nfprom");
sub follow {
    my ($what, $command) = @_;
    my ($status, $out, $err) = run('', 'sh', '-euc', "cd $DIR/context; $command");
    ok($status == 0, $what) or BAIL_OUT("$command: $out$err");
    return;
}

sub again {
    run('', qw(podman rm -f -t 0 nfprom));
    return;
}

{
    my ($status, @said) = run('', qw(podman import), make_base(), "docker.io/library/$base");
    is($status, 0, 'the base is made, under the name that README takes') or BAIL_OUT(join '', @said);
    unlink "$DIR/base.tar";
}
follow('README builds the image, and pulls nothing', $build);

# ---- the host's rules

ipt(4, 'nft', @$_) for (
    [qw(-N prometheus)],
    ['-A', 'prometheus', '-d', $ADDRESS, qw(-p udp --dport 53 -m comment --comment nfprom(service=dns) -j RETURN)],
    [qw(-A prometheus -j RETURN)],
    [qw(-I OUTPUT -p udp -j prometheus)],
);
my $listener = IO::Socket::IP->new(Proto => 'udp', LocalHost => $ADDRESS, LocalPort => 53) or die "udp: $@";
send_udp($PEER, 0, $ADDRESS, 53, 7);
my $DNS = series_of(address => "$ADDRESS/32", direction => 'in', l2proto => 'ipv4', l3proto => 'udp', port => 53, service => 'dns');

sub scrape {
    ok(wait_for_port(9914), 'nfprom listens') or BAIL_OUT(join ' ', run('', qw(podman logs --tail 3 nfprom)));
    return http_get($ADDRESS, 9914);
}
sub dns { my ($answer) = @_; return eval { exposition($answer->{body})->{nfprom_packets_total}{$DNS} } // "$answer->{status}: $answer->{body}" }

# What the kernel says of the process in the container.
sub process {
    my $pid = must(qw(podman inspect -f {{.State.Pid}} nfprom)) + 0;
    my %is  = slurp("/proc/$pid/status") =~ /^(\w+):[ \t]*(.*)$/mg;
    return { pid => $pid, %is };
}
sub has_one_right {
    my ($how) = @_;
    my $is = process();
    is($is->{Uid}, join("\t", (65534) x 4), "$how: it is not root");
    is($is->{$_}, sprintf('%016x', 1 << 12), "$how: its $_ is CAP_NET_ADMIN alone") for qw(CapPrm CapEff CapBnd CapAmb);
    return $is->{pid};
}

follow('README runs it', $run);
is(dns(scrape()), 7, "it reads the host's rules");
my $pid = has_one_right('podman');
like(slurp("/proc/$pid/mountinfo"), qr{^(?:\S+ ){4}/ ro[, ]}m, 'its root cannot be written');
send_udp($PEER, 0, $ADDRESS, 53, 5);
is(dns(scrape()), 12, 'and each scrape reads them again');
is(promtool_says(scrape()->{body}), '', 'promtool has nothing to say') if have('promtool');
BAIL_OUT('nothing runs in the container') if !$pid;
kill KILL => $pid;
ok(patiently(sub { my $now = process()->{pid}; $now && $now != $pid }), 'it is started again when it has ended');
is(dns(scrape()), 12, 'and answers');
is(must(qw(podman stop -t 600 nfprom)), "nfprom\n", 'it ends when it is told to');
is(must(qw(podman inspect -f {{.State.ExitCode}} nfprom)), "0\n", 'by itself');
again();

# ---- another network, other flags

{
    my ($status, $out, $err) = run('', qw(podman run --rm --network none --cap-drop all --cap-add NET_ADMIN --read-only nfprom -print));
    is($status, 1, 'another network');
    like($err, qr/no chain prometheus/, 'has no chain');
}

# ---- docker's way: a user gets no capability, as podman's does not if it has no ambient ones; and README's command

like(scrape_of($run =~ s/--cap-add NET_ADMIN//r)->{body}, qr/CAP_NET_ADMIN/, 'without the capability it says so');
follow("README's line for docker", $blocks[1] =~ s/^docker /podman /r);
is(dns(scrape()), 12, 'it reads the rules');
has_one_right('docker');
again();

sub scrape_of {
    my ($command) = @_;
    follow('it runs', $command);
    my $answer = scrape();
    again();
    return $answer;
}

# ---- a backend in the image that is not the host's

spew('/run/xtables.lock', '');
chmod 0600, '/run/xtables.lock';
sub is_not_there {
    my ($what, $command) = @_;
    my $answer = scrape_of($command);
    is($answer->{status}, 503, $what);
    return like($answer->{body}, qr/no chain prometheus.*-variant/, 'the answer says that there is no chain, and what may help');
}
is_not_there('legacy in the image, nft on the host', $legacy_run);

flush_all();
ipt(4, 'legacy', @$_) for (
    [qw(-N prometheus)],
    ['-A', 'prometheus', '-d', $ADDRESS, qw(-p udp --dport 53 -m comment --comment nfprom(service=dns) -j RETURN)],
    [qw(-I OUTPUT -p udp -j prometheus)],
);
send_udp($PEER, 0, $ADDRESS, 53, 3);
is_not_there('nft in the image, legacy on the host', $run);
is(scrape_of($run =~ s/$/ -chain OUTPUT/r)->{status}, 503, 'and a chain that is always there does not pass for an empty one');
follow("README's options for such a host", $legacy_run);
is(dns(scrape()), 3, 'it reads them');
my $holder = start("$DIR/flock.log", qw(flock /run/xtables.lock sleep 600));
ok(patiently(sub { slurp('/proc/locks') =~ /FLOCK.* @{[lock_id()]} / }), 'somebody holds the lock of the host');
like(http_get($ADDRESS, 9914)->{body}, qr/holds the lock/, 'and nfprom in the container sees that');
stop($holder);
is(dns(scrape()), 3, 'until it is free');
again();

sub lock_id { my ($device, $inode) = stat '/run/xtables.lock'; return sprintf '%02x:%02x:%d', $device >> 8 & 0xfff, $device & 0xff, $inode }

is(must(qw(podman ps -a -q)), '', 'no container is left');
done_testing();
