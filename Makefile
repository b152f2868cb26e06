# nfprom: build, test, install. Packagers set CC, CFLAGS, LDFLAGS, PREFIX, DESTDIR, UNITDIR.
PREFIX ?= /usr/local
SBINDIR ?= $(PREFIX)/sbin
DOCDIR ?= $(PREFIX)/share/doc/nfprom
UNITDIR ?= /etc/systemd/system
XINETDDIR ?= /etc/xinetd.d
CFLAGS ?= -O2 -g
WARNINGS = -Wall -Wextra -Wpedantic -Wshadow -Werror
VERSION = 1.0.0

nfprom: nfprom.c parse.c parse.h Makefile
	$(CC) -std=c11 $(WARNINGS) $(CPPFLAGS) -DVERSION='"$(VERSION)"' $(CFLAGS) $(LDFLAGS) -o $@ nfprom.c parse.c

.PHONY: test lint run install uninstall clean
