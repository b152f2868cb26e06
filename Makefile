# nfprom: build, test, install, try out.
#
# Packagers set CC, CPPFLAGS, CFLAGS, LDFLAGS, PREFIX, SBINDIR, UNITDIR, SYSCONFDIR, XINETDDIR, DOCDIR and DESTDIR.
# `make SAN=1` builds with the address and undefined-behaviour sanitizers.
VERSION = 1.0.0

PREFIX ?= /usr/local
SBINDIR ?= $(PREFIX)/sbin
# systemd reads units from /usr/local/lib and from /usr/lib; /etc/systemd stays the administrator's.
UNITDIR ?= $(PREFIX)/lib/systemd/system
DOCDIR ?= $(PREFIX)/share/doc/nfprom
SYSCONFDIR ?= /etc
XINETDDIR ?= $(SYSCONFDIR)/xinetd.d
INSTALL ?= install
CFLAGS ?= -O2 -g

# A static binary starts sooner, and musl's much sooner than glibc's: where musl-gcc is installed, it is the compiler, unless CC
# is set or the sanitizers, which it does not have, are wanted.
ifeq ($(origin CC)$(SAN),default)
ifneq ($(shell command -v musl-gcc),)
CC = musl-gcc
LDFLAGS ?= -static -Wl,-z,noseparate-code
endif
endif

# make run
ADDR ?= 127.0.0.1
PORT ?= 9914

WARNINGS = -Wall -Wextra -Wpedantic -Wshadow
SANITIZE = $(if $(SAN),-fsanitize=address$(,)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
, = ,
STANDARD = -std=c11 -DVERSION='"$(VERSION)"'
COMPILE = $(CC) $(STANDARD) $(WARNINGS) $(CPPFLAGS) $(CFLAGS) $(SANITIZE) $(LDFLAGS)

# What is built again for other flags: all but what `make install` finds, which packagers call without them.
REBUILD = $(if $(filter install%,$(MAKECMDGOALS)),,.compiled-with)

nfprom: nfprom.c parse.c parse.h $(REBUILD)
	$(COMPILE) -o $@ nfprom.c parse.c

t/parse: t/parse.c parse.c parse.h .compiled-with
	$(COMPILE) -I. -o $@ t/parse.c parse.c

# Changes with the command.
.compiled-with: force
	@echo "$(COMPILE)" | cmp -s - $@ || echo "$(COMPILE)" > $@

test: nfprom t/parse t/fuzz
	prove t/

# Each with warnings as errors; the sanitizers' turn is `make SAN=1 test`.
lint:
	gcc -c -fanalyzer -Werror -O2 $(STANDARD) $(WARNINGS) nfprom.c -o /dev/null
	gcc -c -fanalyzer -Werror -O2 $(STANDARD) $(WARNINGS) parse.c -o /dev/null
	clang -fsyntax-only -Werror $(STANDARD) $(WARNINGS) nfprom.c parse.c
	clang-tidy --quiet --warnings-as-errors='*' nfprom.c parse.c -- $(STANDARD)
	cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability --inline-suppr nfprom.c parse.c

# parse.c against what it may be fed, FUZZ_SECONDS for each of its grammars; a broken promise leaves its input in t/, what is
# of use to the next run in t/finds/. (Without trace-cmp, twice as fast: the words that matter are in the corpus.)
FUZZ_SECONDS ?= 60
FUZZERS = t/fuzz-request t/fuzz-ruleset t/fuzz-list
fuzz: $(FUZZERS)
	for k in request ruleset list; do mkdir -p t/finds/$$k && t/fuzz-$$k -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
		-artifact_prefix=t/ -print_final_stats=1 t/finds/$$k t/corpus/$$k || exit; done

$(FUZZERS): t/fuzz-%: t/fuzz.c parse.c parse.h
	clang $(STANDARD) $(WARNINGS) -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-coverage=trace-cmp \
		-fno-sanitize-recover=all -DFUZZ=$* -o $@ t/fuzz.c parse.c

t/fuzz: t/fuzz.c parse.c parse.h .compiled-with
	$(COMPILE) -o $@ t/fuzz.c parse.c

# What nfprom costs, and whether its bounds hold; as root, three minutes. `make bench BENCH="scrape cpu" BENCH_SAMPLES=4`
bench: nfprom t/bench-run
	t/bench $(BENCH)

t/bench-run: t/bench.c parse.c parse.h .compiled-with
	$(COMPILE) -o $@ t/bench.c parse.c

# The files name the default places; what is installed names the real ones.
PLACE = sed -e 's|/usr/local/sbin/|$(SBINDIR)/|' -e 's|/usr/local/share/doc/nfprom/|$(DOCDIR)/|'

install: nfprom
	$(INSTALL) -d "$(DESTDIR)$(SBINDIR)" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(DOCDIR)" "$(DESTDIR)$(SYSCONFDIR)/default"
	$(INSTALL) -m 755 nfprom "$(DESTDIR)$(SBINDIR)/nfprom"
	$(INSTALL) -m 644 systemd/nfprom.socket systemd/nfprom@.service "$(DESTDIR)$(UNITDIR)"
	$(INSTALL) -m 644 xinetd/nfprom "$(DESTDIR)$(DOCDIR)/xinetd"
	$(INSTALL) -m 644 README.md systemd/legacy.conf "$(DESTDIR)$(DOCDIR)"
	$(PLACE) -i "$(DESTDIR)$(UNITDIR)/nfprom.socket" "$(DESTDIR)$(UNITDIR)/nfprom@.service" "$(DESTDIR)$(DOCDIR)/xinetd"
	test -e "$(DESTDIR)$(SYSCONFDIR)/default/nfprom" || \
		$(INSTALL) -m 644 systemd/nfprom.default "$(DESTDIR)$(SYSCONFDIR)/default/nfprom"

# Apart, since what lies in xinetd's directory is served from its next reload on.
install-xinetd: install
	$(INSTALL) -d "$(DESTDIR)$(XINETDDIR)"
	$(INSTALL) -m 644 "$(DESTDIR)$(DOCDIR)/xinetd" "$(DESTDIR)$(XINETDDIR)/nfprom"

uninstall:
	rm -f "$(DESTDIR)$(SBINDIR)/nfprom" "$(DESTDIR)$(UNITDIR)/nfprom.socket" "$(DESTDIR)$(UNITDIR)/nfprom@.service" \
		"$(DESTDIR)$(SYSCONFDIR)/default/nfprom" "$(DESTDIR)$(XINETDDIR)/nfprom"
	rm -rf "$(DESTDIR)$(DOCDIR)"
	rmdir "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(dir $(UNITDIR))" 2> /dev/null || true

run: nfprom
	@t/run "$(ADDR)" "$(PORT)"

clean:
	rm -f nfprom t/parse t/fuzz t/bench-run $(FUZZERS) .compiled-with
	rm -rf t/finds

.PHONY: force test lint fuzz bench install install-xinetd uninstall run clean
