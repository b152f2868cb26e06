#!/usr/bin/perl

# What those who build, package and install nfprom may rely on: the same bytes from every folder, their flags and places obeyed,
# nothing built again or left behind. In copies of the tree; the tree itself is only read. Whether the result works on other
# machines is 03-machines.t's matter.

use strict;
use warnings;
use Cwd ();
use File::Find ();
use File::Temp ();
use FindBin ();
use POSIX ();
use Test::More;

my $SOURCE = Cwd::abs_path("$FindBin::Bin/..");
my $DIR = Cwd::abs_path(File::Temp::tempdir('nfprom-test-XXXXXX', TMPDIR => 1, CLEANUP => 1));
my ($VERSION) = slurp("$SOURCE/Makefile") =~ /^VERSION = (\S+)$/m or BAIL_OUT('no VERSION in Makefile');
my $PATH = $ENV{PATH};
my ($MAKE) = grep { -x } map {"$_/make"} split /:/, $PATH;
my $NOBODY = 65534;

$SIG{ALRM} = sub { BAIL_OUT("$0 takes more than ten minutes") };
alarm 1800;    # only a hang takes so long
umask 022;
chmod 0755, $DIR;
mkdir "$DIR/$_" or die "$DIR/$_: $!\n" for qw(bin musl tmp);
chmod 01777, "$DIR/tmp";

# ---- files

sub slurp {
    my ($path) = @_;
    open my $f, '<:raw', $path or return '';
    local $/;
    return scalar(<$f>) // '';
}

sub spew {
    my ($path, @bytes) = @_;
    open my $f, '>:raw', $path or die "$path: $!\n";
    print $f @bytes;
    close $f or die "$path: $!\n";
    return $path;
}

# A copy of what a package is built from.
sub tree {
    my ($name) = @_;
    my $dir = "$DIR/$name";
    mkdir $dir or die "$dir: $!\n";
    system('cp', '-R', (map {"$SOURCE/$_"} qw(Makefile README.md nfprom.c parse.c parse.h systemd xinetd)), "$dir/") == 0 or die "cp: $?\n";
    return $dir;
}

# All below a directory, itself left out: path => {mode, mtime}. Paths of directories end in a slash.
sub below {
    my ($dir) = @_;
    my %found;
    File::Find::find({ no_chdir => 1, wanted => sub {
        my @s = lstat or die "$_: $!\n";
        my $path = substr($_, length $dir) . (-d _ ? '/' : '');
        $found{$path} = { mode => sprintf('%04o', $s[2] & 07777), mtime => $s[9] } if $path ne '/';
    } }, $dir);
    return \%found;
}

sub files { my ($found) = @_; return join ' ', sort grep { !m{/\z} } keys %$found }

# ---- make

# Runs make in a directory, without flags of those who run this test: its status and what it said. Options:
#   env => variables, umask, nobody => true to leave root behind, from => another name of the directory
sub make {
    my ($dir, $o, @arguments) = @_;
    pipe my $read, my $write or die "pipe: $!\n";
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        open STDOUT, '>&', $write and open STDERR, '>&', $write and open STDIN, '<', '/dev/null' or POSIX::_exit(126);
        chdir($o->{from} || $dir) or POSIX::_exit(126);
        if ($o->{nobody} && $> == 0) {
            $) = "$NOBODY $NOBODY";
            POSIX::setgid($NOBODY) && POSIX::setuid($NOBODY) or POSIX::_exit(126);
        }
        umask($o->{umask} // 022);
        %ENV = (PATH => $PATH, HOME => '/nonexistent', TMPDIR => "$DIR/tmp", LC_ALL => 'C', PWD => $o->{from} || $dir, %{ $o->{env} || {} });
        exec { $MAKE } 'make', @arguments or POSIX::_exit(127);
    }
    close $write;
    my $said = do { local $/; <$read> } // '';
    waitpid $pid, 0;
    return ($? >> 8 || $?, $said);
}

sub made {
    my ($what, $dir, $o, @arguments) = @_;
    my ($status, $said) = make($dir, $o, @arguments);
    return is($status, 0, $what) || diag("make @arguments\n$said");
}

# A compiler that writes down its arguments, one line each time, and makes a program of a few bytes.
sub recorder {
    my ($name) = @_;
    my $log = "$DIR/$name.log";
    spew("$DIR/bin/$name", <<"SH");
#!/bin/sh
[ "\$*" != -dumpmachine ] || { echo mips-openwrt-linux-musl; exit; }
echo "\$*" >> '$log'
while [ \$# -gt 1 ]; do [ "\$1" != -o ] || echo program > "\$2"; shift; done
SH
    chmod 0755, "$DIR/bin/$name";
    return sub { my @lines = split /\n/, slurp($log); unlink $log; return @lines };
}

# ---- make help

{
    my ($status, $said) = make("$SOURCE", {}, '-s', 'help');
    my %phony = map { $_ => 1 } split ' ', join '', slurp("$SOURCE/Makefile") =~ /^\.PHONY: force all (.*)/m;
    my %listed = $said =~ /^make (\S+) +(\S[^\n]*)$/mg;
    is(join(' ', sort keys %listed), join(' ', sort 'nfprom', keys %phony), 'make help has a line for each target');
    is(join('', grep { !/^make / || length > 90 } split /^/, $said), '', '... and no others, none too long');
}

# ---- which compiler: `make -n` says it, with and without a musl-gcc in PATH

my $tree = tree('packager');
spew("$DIR/musl/musl-gcc", "#!/bin/sh\necho x86_64-linux-musl\n");
spew("$DIR/musl/cc", "#!/bin/sh\necho x86_64-linux-gnu\n");
chmod 0755, "$DIR/musl/cc", "$DIR/musl/musl-gcc";
symlink "$DIR/musl/cc", "$DIR/bin/cc" or die "$DIR/bin/cc: $!\n";

for my $case (
    # what is said, the environment, the arguments => what the command begins with, whether it has -static
    ['musl',              'musl', {},                   [],                    'musl-gcc', 1],
    ['no musl',           'bin',  {},                   [],                    'cc',       0],
    ['CC',                'musl', {},                   ['CC=clang -m32'],     'clang -m32', 0],
    ['CC of environment', 'musl', { CC => 'gcc-12' },   [],                    'gcc-12',   0],
    ['LDFLAGS',           'musl', { LDFLAGS => '-pie' }, [],                   'cc',       0],
    ['only CFLAGS',       'musl', { CFLAGS => '-O3' },  [],                    'musl-gcc', 1],
    ['sanitizers',        'musl', {},                   ['SAN=1'],             'cc',       0],
    ['release, musl',     'musl', {},                   ['release'],           'musl-gcc', 1],
    ['release, no musl',  'bin',  {},                   ['release'],           'cc',       1],
    ['release, CC',       'musl', {},                   ['release', 'CC=cc'],  'cc',       1],
) {
    my ($name, $path, $env, $arguments, $compiler, $static) = @$case;
    my ($status, $said) = make($tree, { env => { PATH => "$DIR/$path", %$env } }, '-n', @$arguments);
    my ($command) = $said =~ /^((?!echo ).* -std=.*)$/m;
    like($command // $said, qr/\A\Q$compiler\E -std=c11 /, "$name: the compiler is $compiler");
    is(($command // '') =~ / -static / ? 1 : 0, $static, $static ? '... and the binary static' : '... which decides how to link');
}

# ---- the same bytes

my $can_drop = $> == 0 && do {
    my $pid = fork // die "fork: $!\n";
    if (!$pid) { $) = "$NOBODY $NOBODY"; POSIX::setuid($NOBODY); POSIX::_exit(-r "$DIR/packager/Makefile" && -w "$DIR/tmp" ? 0 : 1) }
    waitpid $pid, 0;
    $? == 0;
};

my @where = (tree('here'), tree('an other place'));
my %sources = %{ below($where[1]) };
utime 1e9, 1e9, map {"$where[1]$_"} sort keys %sources;
symlink $where[1], "$DIR/link" or die "$DIR/link: $!\n";
chown $NOBODY, $NOBODY, $where[1] if $can_drop;
mkdir "$DIR/tmp/other" or die "$DIR/tmp/other: $!\n";
chmod 01777, "$DIR/tmp/other";
made('make and make release', $where[0], {}, 'nfprom', 'release');
made('... elsewhere, by another name, at another time, by another user, with other settings', $where[1], {
    from => "$DIR/link", umask => 077, nobody => $can_drop, env => {
        LC_ALL => 'C.UTF-8', LANG => 'tr_TR.UTF-8', TZ => 'Asia/Kathmandu', SOURCE_DATE_EPOCH => 1, USER => 'nobody', TMPDIR => "$DIR/tmp/other",
    },
}, '-j4', 'release', 'nfprom');

my ($release) = map { s{.*/}{}r } glob "'$where[0]'/nfprom-*";
like($release // 'none', qr/\Anfprom-\Q$VERSION\E-linux-[a-z0-9_]+\z/, 'the name of the release binary');
for my $file ('nfprom', $release // 'nfprom-release') {
    my ($one, $other) = map { slurp("$_/$file") } @where;
    ok($one ne '' && $one eq $other, "$file: the same bytes");
    is(index($other, $_), -1, "... without $_") for $DIR, $where[1];
}
my %ignored = map { s{\A/}{}r => 1 } grep {/\S/} split /\n/, slurp("$SOURCE/.gitignore");
for my $new (grep { !$sources{$_} } sort keys %{ below($where[1]) }) {
    ok((grep { my $p = quotemeta; $p =~ s/\\\*/[^\/]*/g; $new =~ m{\A/$p\z} } keys %ignored), "git ignores $new");
}

sub readelf { my ($options, $file) = @_; open my $f, '-|', 'readelf', $options, $file or die "readelf: $!\n"; local $/; return scalar(<$f>) // '' }

SKIP: {
    skip 'no release binary', 6 unless defined $release;
    my $file = "$where[0]/$release";
    my ($headers, $sections) = (readelf('-lW', $file), readelf('-SW', $file));
    like($headers,    qr/\bLOAD\b/,             'the release binary is a program');
    unlike($headers,  qr/\b(?:INTERP|DYNAMIC)\b/, '... static');
    like($sections,   qr/ \.text /,             '... with code');
    unlike($sections, qr/ \.(?:symtab|debug)/,  '... stripped');
    is(join('', `'$file' -version`), join('', `'$where[0]/nfprom' -version`), '... that runs');
    like(readelf('-SW', "$where[0]/nfprom"), qr/ \.debug_info /, 'that of plain make can be debugged');
}
# ---- the manual

{
    my $manual = slurp("$SOURCE/systemd/nfprom.8");
    my ($options) = $manual =~ /^\.SH OPTIONS\n(.*?)^\.SH EXIT STATUS$/ms;
    my @rows = map { s/-/\\-/gr } `'$where[0]/nfprom' -help` =~ /^  (-\S.*)$/mg;
    my @told = map { /^\.BI? "?(\S+) ?(?:" (\S+))?\n(.*)$/m ? join ' ', $1, $2 // (), $3 : () } split /^\.TP\n/m, $options // '';
    is(join("\n", @told), join("\n", map { s/ +/ /gr } @rows), 'the manual has the flags of -help');
    made('make man', $where[0], {}, 'man');
    ok(slurp("$where[0]/systemd/nfprom.8") eq $manual, '... and make man has nothing to change in it') or diag('run make man');
    is(join(' ', $manual =~ /^\.SH (.*)$/mg), 'NAME SYNOPSIS DESCRIPTION OPTIONS EXIT STATUS FILES ENVIRONMENT EXAMPLES SEE ALSO', '... all its sections are there');
}
made('make clean', $where[1], {}, 'clean');
is(files(below($where[1])), files(\%sources), '... leaves what was there');

# ---- packages

# The system's own compiler, if it has a libc (gcc comes without), or what else is here.
my ($cc) = grep {
    my $cc = $_;
    spew("$DIR/tmp/try.c", "#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }\n");
    system("$cc -fPIE -pie -o '$DIR/tmp/try' '$DIR/tmp/try.c' 2> /dev/null") == 0;
} qw(gcc musl-gcc aarch64-linux-gnu-gcc);
BAIL_OUT('no C compiler') unless $cc;

my %everywhere = ('etc/default/' => '0755', 'etc/' => '0755', 'usr/' => '0755');

# What `make install` is to bring: all directories and files with their modes.
sub expected {
    my (%at) = @_;
    my %files = ("$at{sbin}/nfprom" => '0755', map { ($_ => '0644') } "$at{man}/man8/nfprom.8", map {"$at{doc}/$_"} qw(README.md nfprom.rules.yml nfprom.openrc nfprom.confd xinetd lan-hosts tls stunnel.conf nfprom.nft nfprom-dashboard.json prometheus-agent.yml chain));
    $files{$_} = '0644' for !$at{unit} ? () : (
        (map {"$at{doc}/$_.conf"} qw(legacy sandbox remote textfile namespace)), (map {"$at{doc}/$_"} qw(lan-hosts.service lan-hosts.timer nfprom-chain.service nfprom-chain-again.service textfile.timer another-port)),
        "$at{unit}/nfprom.socket", "$at{unit}/nfprom\@.service", ($at{default} // "$at{etc}/default") . '/nfprom', "$at{users}/nfprom.conf");
    $files{$_} = '0644' for $at{xinetd} ? "$at{etc}/xinetd.d/nfprom" : ();
    @files{"$at{etc}/init.d/nfprom", "$at{etc}/conf.d/nfprom"} = ('0755', '0644') if $at{openrc};
    for my $file (keys %files) { while ($file =~ m{/}g) { my $d = substr $file, 0, pos $file; $files{$d} = '0755' if $d ne '/' } }
    return \%files;
}

my $count = 0;

# Installs from a tree that it cannot write into, if there is somebody who cannot; takes all of it away again.
sub installs {
    my ($name, $o, $arguments, %at) = @_;
    subtest $name => sub {
        my $root = "$DIR/tmp/the root " . ++$count;
        mkdir $root or die "$root: $!\n";
        chown $NOBODY, $NOBODY, $root if $can_drop;
        my $before = below($tree);
        my @all = ("DESTDIR=$root", @$arguments);
        made('make install', $tree, { umask => 077, %$o, nobody => $can_drop }, '-j4', $at{xinetd} ? 'install-xinetd' : $at{openrc} ? 'install-openrc' : 'install', @all) or return;
        is_deeply(below($tree), $before, 'nothing is built again, or left in the source');
        my $found = below($root);
        is_deeply({ map { ($_ => $found->{$_}{mode}) } keys %$found }, expected(%at), 'the files, the directories, their modes');
        ok(slurp("$root$at{sbin}/nfprom") eq slurp("$tree/nfprom"), 'the program that was built');

        my %text = map { ($_ => slurp("$root$_")) } grep { !m{/\z} && !m{/README\.md\z} && $_ ne "$at{sbin}/nfprom" } keys %$found;
        is(join(' ', grep { index($text{$_}, $root) >= 0 } sort keys %text), '', 'none names the root');
        is(join(' ', grep { $text{$_} =~ m{/usr/local} } sort keys %text), '', 'or /usr/local') unless $at{sbin} =~ m{\A/usr/local};
        like($text{"$at{man}/man8/nfprom.8"}, qr{^\.TH NFPROM 8 .*\bnfprom \Q$VERSION\E".*^\.I \Q$at{doc}\E/$}ms, "the manual names the version and $at{doc}");
        like($text{"$at{doc}/xinetd"}, qr{ \Q$at{sbin}\E/nfprom$}m, "what is for xinetd names $at{sbin}");
        like($text{$_}, qr{^program=\Q$at{sbin}\E/nfprom$}m, "$_ names it too") for "$at{doc}/nfprom.openrc", $at{openrc} ? "$at{etc}/init.d/nfprom" : ();
        if ($at{unit}) {
            my $service = $text{"$at{unit}/nfprom\@.service"};
            like($service, qr{^ExecStart=\Q$at{sbin}\E/nfprom }m,                     'so does the service');
            like($service, qr{^EnvironmentFile=-\Q@{[$at{default} // "$at{etc}/default"]}\E/nfprom$}m, "it names where the flags are");
            like($_, qr{^Documentation=file:\Q$at{doc}\E/README\.md$}m,               "and $at{doc}") for $service, $text{"$at{unit}/nfprom.socket"};
        }

        spew("$root$at{doc}/other", '');
        made('make uninstall', $tree, { %$o, nobody => $can_drop }, 'uninstall', @all);
        is(files(below($root)), "$at{doc}/other", '... takes away what it brought, and nothing else');
    };
}

# As debhelper does, with all of dpkg's hardening.
my %debian = (
    CFLAGS   => "-g -O2 -ffile-prefix-map=$tree=. -fstack-protector-strong -Wformat -Werror=format-security -fPIE",
    CPPFLAGS => '-Wdate-time -D_FORTIFY_SOURCE=2',
    LDFLAGS  => '-fPIE -pie -Wl,-z,relro -Wl,-z,now',
);
my ($status, $said) = make($tree, { env => \%debian }, '-j4', 'all', "CC=$cc", 'INSTALL=install --strip-program=true');
is($status, 0, "Debian: make with the flags of dpkg-buildflags, by $cc") or diag($said);
unlike($said, qr/warning:/, '... without a warning');
my ($headers, $dynamic) = (readelf('-hlW', "$tree/nfprom"), readelf('-dW', "$tree/nfprom"));
like($headers, qr/^ *Type: *DYN\b/m,     '... position-independent');
like($headers, qr/^ *INTERP /m,          '... dynamic');
like($headers, qr/^ *GNU_RELRO /m,       '... relocations read-only');
like($dynamic, qr/\bBIND_NOW\b|FLAGS_1.*\bNOW\b/, '... all of them, before main');
like(readelf('-sW', "$tree/nfprom"), qr/\b__stack_chk_fail\b/, '... stacks guarded');
installs('Debian', { env => {} }, ['PREFIX=/usr', 'INSTALL=install --strip-program=true'],
    sbin => '/usr/sbin', doc => '/usr/share/doc/nfprom', man => '/usr/share/man', etc => '/etc', unit => '/usr/lib/systemd/system', users => '/usr/lib/sysusers.d');
installs('from the environment, with xinetd', { env => { PREFIX => '/usr', SBINDIR => '/usr/bin', UNITDIR => '/lib/systemd/system', %debian } }, [],
    sbin => '/usr/bin', doc => '/usr/share/doc/nfprom', man => '/usr/share/man', etc => '/etc', unit => '/lib/systemd/system', users => '/usr/lib/sysusers.d', xinetd => 1);
installs('the default', {}, [],
    sbin => '/usr/local/sbin', doc => '/usr/local/share/doc/nfprom', man => '/usr/local/share/man', etc => '/etc', unit => '/usr/local/lib/systemd/system', users => '/usr/local/lib/sysusers.d');
installs('GNU names', {}, [qw(prefix=/opt/n sbindir=/opt/n/libexec sysconfdir=/opt/n/etc docdir=/opt/n/doc mandir=/opt/n/man)],
    sbin => '/opt/n/libexec', doc => '/opt/n/doc', man => '/opt/n/man', etc => '/opt/n/etc', unit => '/opt/n/lib/systemd/system', users => '/opt/n/lib/sysusers.d', xinetd => 1);
installs('a folder for all documents, as by mistake', {}, [qw(PREFIX=/usr DOCDIR=/usr/share/doc)],
    sbin => '/usr/sbin', doc => '/usr/share/doc', man => '/usr/share/man', etc => '/etc', unit => '/usr/lib/systemd/system', users => '/usr/lib/sysusers.d');
installs('Fedora', {}, [qw(PREFIX=/usr SBINDIR=/usr/bin DEFAULTDIR=/etc/sysconfig)],
    sbin => '/usr/bin', doc => '/usr/share/doc/nfprom', man => '/usr/share/man', etc => '/etc', default => '/etc/sysconfig', unit => '/usr/lib/systemd/system',
    users => '/usr/lib/sysusers.d');
installs('Alpine: no systemd', {}, [qw(CC=gcc CFLAGS=-Os PREFIX=/usr UNITDIR=)],
    sbin => '/usr/sbin', doc => '/usr/share/doc/nfprom', man => '/usr/share/man', etc => '/etc', unit => '', openrc => 1);

# As OpenWrt does, and by way of a compiler that is not there until then.
my $cross = recorder('mips-openwrt-linux-musl-gcc');
my @cross = ('CC=mips-openwrt-linux-musl-gcc', 'CFLAGS=-Os -mno-branch-likely', 'CPPFLAGS=-I/staging/include', 'LDFLAGS=-L/staging/lib -Wl,-z,now');
my $openwrt = { env => { PATH => "$DIR/bin:$PATH", ARCH => 'mips', CROSS => 'mips-openwrt-linux-musl-' } };
made('OpenWrt: make', $tree, $openwrt, '-j4', @cross);
my @commands = $cross->();
is(scalar @commands, 1, '... runs the cross compiler, once, in place of what another one built');
like($commands[0] // '', qr/ -I\/staging\/include .*-Os -mno-branch-likely .*-L\/staging\/lib -Wl,-z,now /, '... with its flags');
unlike($commands[0] // '', qr/-Werror|-static|-O2|-march/, '... and no others that decide anything');
made('... and again', $tree, $openwrt, @cross);
is(join('|', $cross->()), '', '... builds nothing');
installs('OpenWrt', $openwrt, [qw(PREFIX=/usr UNITDIR=)], sbin => '/usr/sbin', doc => '/usr/share/doc/nfprom', man => '/usr/share/man', etc => '/etc', unit => '');
is(join('|', $cross->()), '', '... without a compiler');
made('make release by it', $tree, $openwrt, 'release', @cross);
like(join('|', $cross->()), qr/ -static -s -o nfprom-\Q$VERSION\E-linux-mips [^|]*\z/, '... is called by its machine');
made('make install of what was never built', tree('unbuilt'), $openwrt, 'install', "DESTDIR=$DIR/unbuilt-root", @cross);
is(scalar(() = $cross->()), 1, '... builds it');

# ---- who comes from 1.0.0, which listened on all addresses

{
    my $root = "$DIR/upgraded";
    my $unit = "$root/usr/local/lib/systemd/system";
    my $into = sub { my ($s, $t) = make($tree, $openwrt, '-s', 'install', "DESTDIR=$root"); is($s, 0, "make install $_[0]"); return $t };
    is($into->('where nothing was'), '', '... says nothing');
    is($into->('over itself'), '', '... says nothing');
    spew("$unit/nfprom.socket", "[Socket]\nListenStream=9914\nAccept=yes\n");
    my $said = $into->('over 1.0.0');
    like($said, qr/listens on loopback alone/, '... says what changed');
    like($said, qr{^  sed .*/remote\.conf \| install .*nfprom\.socket\.d/remote\.conf && systemctl daemon-reload && systemctl restart nfprom\.socket$}m, '... and the line that opens it');
    unlike(slurp("$unit/nfprom.socket"), qr/^ListenStream=9914/m, '... which is needed');
    is(join(' ', grep {/\.new\z/} keys %{ below($root) }), '', 'no other name of a file is left');
}

# ---- what an administrator wrote

my $etc = "$DIR/root/etc";
my $install = sub { my ($what) = @_; my ($s, $t) = make($tree, $openwrt, '-s', 'install-xinetd', 'install-openrc', "DESTDIR=$DIR/root"); is($s, 0, $what) or diag($t); return $t };
is($install->('make install-xinetd install-openrc'), '', '... says nothing');
is($install->('... and again'), '', '... says nothing');
spew("$etc/$_", "mine\n") for qw(default/nfprom conf.d/nfprom xinetd.d/nfprom);
like($install->('... over files that were changed'), qr{\A[^\n]*/etc/xinetd\.d/nfprom[^\n]*\n\z}, '... says so in one line');
is(slurp("$etc/$_"), "mine\n", "... and leaves $_ as it is") for qw(default/nfprom conf.d/nfprom xinetd.d/nfprom);

# ---- README: where its links lead, and the files that it names

{
    my $readme = slurp("$SOURCE/README.md") =~ s/^```.*?^```$//mgsr;
    my %anchors = map { (lc($_) =~ s/[^\w -]//gr =~ tr/ /-/r => 1) } $readme =~ /^#+ (.*)$/mg;
    my @links   = $readme =~ /\]\(#(.*?)\)/g;
    cmp_ok(scalar @links, '>=', 20, 'README has links to its sections');
    is_deeply([grep { !$anchors{$_} } @links], [], '... each leads to one');
    my %listed = map { $_ => 1 } $readme =~ /^- \[.*?\]\(#(.*?)\)/mg;
    is_deeply([grep { !$listed{ lc($_) =~ s/[^\w -]//gr =~ tr/ /-/r } && $_ ne 'Contents' } $readme =~ /^## (.*)$/mg], [], '... the contents have every section');
    my %named = map { $_ => 1 } slurp("$SOURCE/README.md") =~ m{(?<![\w/])((?:systemd|xinetd)/[\w.-]*\w)}g;
    is_deeply([grep { !-e "$SOURCE/$_" } sort keys %named], [], '... the files that it names are there');
}

done_testing();
