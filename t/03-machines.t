#!/usr/bin/perl

# The promises of parse.h on other machines than this one, under qemu-user, and with another libc; and that nfprom is built for
# them as a packager would, by `make CC=…`, without a warning.

use strict;
use warnings;
use File::Copy qw(copy);
use File::Temp ();
use FindBin ();
use Test::More;

chdir "$FindBin::Bin/.." or die "$FindBin::Bin/..: $!\n";

# What the compiler is called, what its binaries are, what runs them, and the packages of all that.
my @machines = (
    { name => 'aarch64',  cc => 'aarch64-linux-gnu-gcc',   elf => '64 bits, little-endian', qemu => 'qemu-aarch64',
      packages => 'gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user' },
    { name => 's390x',    cc => 's390x-linux-gnu-gcc',     elf => '64 bits, big-endian',    qemu => 'qemu-s390x',
      packages => 'gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user' },
    { name => 'armhf',    cc => 'arm-linux-gnueabihf-gcc', elf => '32 bits, little-endian', qemu => 'qemu-arm',
      packages => 'gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user' },
    { name => 'riscv64',  cc => 'riscv64-linux-gnu-gcc',   elf => '64 bits, little-endian', qemu => 'qemu-riscv64',
      packages => 'gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user' },
    { name => 'mips',     cc => 'mips-linux-gnu-gcc',      elf => '32 bits, big-endian',    qemu => 'qemu-mips',
      packages => 'gcc-mips-linux-gnu libc6-dev-mips-cross qemu-user' },
    { name => 'musl',     cc => 'musl-gcc', packages => 'musl-tools' },
);

# A tree of its own: the one that is tested keeps what was built in it.
my $dir = File::Temp::tempdir('nfprom-test-XXXXXX', TMPDIR => 1, CLEANUP => 1);
mkdir "$dir/t" or die "$dir/t: $!\n";
copy($_, "$dir/$_") or die "$_: $!\n" for qw(Makefile nfprom.c parse.c parse.h t/parse.c);
delete @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES CPPFLAGS SAN)};

sub installed { return grep { -x "$_/$_[0]" } split /:/, $ENV{PATH} }

# A compiler answers with the bare name of a file that it does not have. (musl-gcc comes with its libc, and asks gcc's paths.)
sub complete {
    my ($m) = @_;
    return 0 unless installed($m->{cc});
    return !$m->{qemu} || (installed($m->{qemu}) && `$m->{cc} -print-file-name=libc.a` =~ m{/});
}

sub make_is_silent {
    my ($m, $target, $flags) = @_;
    my $said = `make -s -C $dir CC=$m->{cc} CFLAGS='-O2 -Werror' LDFLAGS='$flags' SAN= $target 2>&1`;
    return is("$? $said", '0 ', "make CC=$m->{cc} LDFLAGS=$flags $target");
}

sub elf {
    my ($file) = @_;
    open my $in, '<:raw', $file or die "$file: $!\n";
    read $in, my $head, 6;
    my ($class, $data) = unpack 'x4 C C', $head;
    return (qw(? 32 64))[$class] . ' bits, ' . (qw(? little big))[$data] . '-endian';
}

for my $m (@machines) {
    subtest $m->{name} => sub {
        if (!complete($m)) {
            plan skip_all => "needs $m->{packages}" unless ($ENV{CI} // '') eq 'true';
            return fail("cannot run here: needs $m->{packages}");
        }
        make_is_silent($m, 'nfprom', '');
        make_is_silent($m, 't/parse', '-static') or return;
        is(elf("$dir/t/parse"), $m->{elf}, $m->{elf}) if $m->{elf};
        my $said = join '', `@{[$m->{qemu} // '']} $dir/t/parse 2>&1`;
        is($?, 0, 't/parse is content') or diag($said);
        like($said, qr/^ok 100 .*^1\.\.[0-9]+$/ms, 'with a hundred tests and more');
        is(join('', $said =~ /^not ok.*\n/mg), '', 'none of them failed');
    };
}

done_testing();
