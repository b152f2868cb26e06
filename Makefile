# nfprom: build, test, install, try out.
#
# Packagers set CC, CPPFLAGS, CFLAGS, LDFLAGS, PREFIX, SBINDIR, UNITDIR, SYSUSERSDIR, SYSCONFDIR, DEFAULTDIR, XINETDDIR, DOCDIR,
# MANDIR and DESTDIR, or what GNU calls prefix, sbindir, sysconfdir, docdir and mandir. `make SAN=1` builds with the address and
# undefined-behaviour sanitizers.
#
# -version, build_info, the manual and the package have the version from here.
VERSION = 1.1.0

PREFIX ?= $(or $(prefix),/usr/local)
SBINDIR ?= $(or $(sbindir),$(PREFIX)/sbin)
# systemd reads units from /usr/local/lib and from /usr/lib; /etc/systemd stays the administrator's. Empty: nothing for systemd.
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
DOCDIR ?= $(or $(docdir),$(PREFIX)/share/doc/nfprom)
MANDIR ?= $(or $(mandir),$(PREFIX)/share/man)
SYSCONFDIR ?= $(or $(sysconfdir),/etc)
# Where the flags for systemd lie: nfprom in this directory.
DEFAULTDIR ?= $(SYSCONFDIR)/default
XINETDDIR ?= $(SYSCONFDIR)/xinetd.d
INSTALL ?= install
# The same bytes from every folder, which debug information names otherwise, by PWD if that is one of its names.
CFLAGS ?= -O2 -g '-fdebug-prefix-map=$(CURDIR)=.'
export PWD = $(CURDIR)

# A static binary starts sooner, and musl's much sooner than glibc's: where musl-gcc is installed, it is the compiler, unless CC
# is set, or LDFLAGS, which are meant for the system's libc, or the sanitizers, which it does not have, are wanted.
# (Make before 4.3 takes `command` for a program, but for what needs a shell.)
ifeq ($(origin CC) $(origin LDFLAGS)$(SAN),default undefined)
ifneq ($(shell command -v musl-gcc 2> /dev/null),)
CC = musl-gcc
LDFLAGS = -static -Wl,-z,noseparate-code
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

nfprom: nfprom.c parse.c parse.h $(REBUILD) ## build the program (this is what make alone does)
	$(COMPILE) -o $@ nfprom.c parse.c

all: nfprom

# Each line of this file with a target and ## is a line of it.
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1 \2/p' Makefile | \
		while read -r target what; do printf 'make %-15s %s\n' "$$target" "$$what"; done

# One file for any Linux of a processor: static, stripped (by the linker, since `strip` is not the one of a cross compiler), and
# the same bytes from the same compiler. glibc says that a name in -addr, unlike an address, needs its shared libraries then. The
# sanitizers cannot be linked so, and are left out.
RELEASE = nfprom-$(VERSION)-linux-$(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
release: SANITIZE =
release: ## build one static, stripped file for any Linux of a processor
	$(COMPILE) -g0 -static -s -o $(RELEASE) nfprom.c parse.c
	@sha256sum $(RELEASE)

# A Debian package of what `make install` lays down, with the program of `make release`.
DEB_ARCH ?= $(shell dpkg --print-architecture)
deb: release ## build a Debian package, nfprom_VERSION_ARCH.deb
	rm -rf .deb
	$(MAKE) -s install PROGRAM=$(RELEASE) DESTDIR=.deb PREFIX=/usr SBINDIR=/usr/sbin UNITDIR=/usr/lib/systemd/system \
		SYSUSERSDIR=/usr/lib/sysusers.d DOCDIR=/usr/share/doc/nfprom MANDIR=/usr/share/man SYSCONFDIR=/etc DEFAULTDIR=/etc/default
	systemd/deb/pack .deb $(VERSION) $(DEB_ARCH)
	@rm -rf .deb

t/parse: t/parse.c parse.c parse.h .compiled-with
	$(COMPILE) -I. -o $@ t/parse.c parse.c

# Changes with the command.
.compiled-with: force
	@echo "$(COMPILE)" | cmp -s - $@ || echo "$(COMPILE)" > $@

test: nfprom t/parse t/fuzz t/series ## run the tests; as root, for those with iptables
	prove t/

# gcc, clang, clang-tidy, cppcheck; mandoc and groff for the manual; lintian for the package; then valgrind. The sanitizers' turn is `make SAN=1 test`.
lint: deb ## check code, manual and package; each warning is an error
	gcc -c -fanalyzer -Werror -O2 $(STANDARD) $(WARNINGS) nfprom.c -o /dev/null
	gcc -c -fanalyzer -Werror -O2 $(STANDARD) $(WARNINGS) parse.c -o /dev/null
	clang -fsyntax-only -Werror $(STANDARD) $(WARNINGS) nfprom.c parse.c
	clang-tidy --quiet --warnings-as-errors='*' nfprom.c parse.c -- $(STANDARD)
	cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability --inline-suppr nfprom.c parse.c
	mandoc -Tlint systemd/nfprom.8
	! groff -ww -man -Tutf8 -z systemd/nfprom.8 2>&1 | grep .
	lintian --allow-root -EIL +pedantic --fail-on error,warning,info,pedantic,experimental nfprom_$(VERSION)_$(DEB_ARCH).deb
	t/valgrind

# parse.c against what it may be fed, FUZZ_SECONDS for each of its grammars, and the series that become of rules; a broken promise leaves its input in t/, what is
# of use to the next run in t/finds/. (Without trace-cmp, twice as fast: the words that matter are in the corpus.)
FUZZ_SECONDS ?= 60
FUZZERS = t/fuzz-request t/fuzz-ruleset t/fuzz-list t/fuzz-label t/fuzz-kernel t/fuzz-series
fuzz: $(FUZZERS) ## feed parse.c with what may come, FUZZ_SECONDS for each grammar
	for k in request ruleset list label kernel series; do mkdir -p t/finds/$$k && t/fuzz-$$k -max_total_time=$(FUZZ_SECONDS) -max_len=1024 \
		-artifact_prefix=t/ -print_final_stats=1 t/finds/$$k t/corpus/$$k || exit; done

FUZZER = clang $(STANDARD) $(WARNINGS) -O2 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-coverage=trace-cmp \
		-fno-sanitize-recover=all
t/fuzz-request t/fuzz-ruleset t/fuzz-list t/fuzz-label t/fuzz-kernel: t/fuzz-%: t/fuzz.c parse.c parse.h
	$(FUZZER) -DFUZZ=$* -o $@ t/fuzz.c parse.c

t/fuzz-series: t/series.c nfprom.c parse.c parse.h
	$(FUZZER) -DFUZZ -o $@ t/series.c parse.c

t/fuzz: t/fuzz.c parse.c parse.h .compiled-with
	$(COMPILE) -o $@ t/fuzz.c parse.c

t/series: t/series.c nfprom.c parse.c parse.h .compiled-with
	$(COMPILE) -o $@ t/series.c parse.c

# What nfprom costs, and whether its bounds hold; as root, four minutes. `make bench BENCH="scrape cpu" BENCH_SAMPLES=4`
# With BASE=REF also over the nfprom of that git ref, built with the same compiler; six minutes: `make bench BASE=6133bdf`
bench: nfprom t/bench-run ## measure what nfprom costs; BASE=REF compares it with another one
	$(if $(BASE),BASE="$(BASE)" CC="$(CC)" LDFLAGS="$(LDFLAGS)") t/bench $(BENCH)

t/bench-run: t/bench.c parse.c parse.h .compiled-with
	$(COMPILE) -o $@ t/bench.c parse.c

# README's test command in a minimal root of each Debian release: bookworm, trixie, forky. As root, half an hour each.
releases: ## run the tests in a root of each Debian release
	t/releases

# What the tests notice: faults made by rule in parse.c and nfprom.c, a few seconds for most, two hours for 300 of them.
# The same seed makes the same faults; t/mutate says how to run some of them again.
MUTATE_COUNT ?= 300
mutate: ## see whether the tests notice faults that are made by rule
	t/mutate $(or $(MUTATE_SEED),$(shell date +%Y%m%d)) $(MUTATE_COUNT)

# The section OPTIONS of the manual, from the flags that nfprom itself lists. The manual lies in git whole, so that who builds for
# another processor, and cannot run nfprom, has it too.
man: nfprom ## write the flags that -help lists into the manual, systemd/nfprom.8
	./nfprom -help | sed -n -E -e '1s/.*/.\\" From here to EXIT STATUS: written by make man, from nfprom -help./p' \
		-e '/^Examples:/q' -e 's/-/\\-/g' -e 's/^([A-Z].*):$$/.SS \1/p' \
		-e 's/^  (\S+) ([A-Z]+) +(.*)/.TP\n.BI "\1 " \2\n\3/p' -e 's/^  (\S+) +(.*)/.TP\n.B \1\n\2/p' > systemd/nfprom.8.new
	sed -i -e '/^\.SH OPTIONS/,/^\.SH EXIT STATUS/{//!d}' -e '/^\.SH OPTIONS/r systemd/nfprom.8.new' systemd/nfprom.8
	@rm -f systemd/nfprom.8.new

# The files name the default places; what is installed names the real ones.
PLACE = sed -i -e 's|/usr/local/sbin/|$(SBINDIR)/|' -e 's|/usr/local/share/doc/nfprom/|$(DOCDIR)/|' \
	-e 's|/etc/default/|$(DEFAULTDIR)/|' -e 's|@VERSION@|$(VERSION)|'

# Each file is written under another name and renamed: whoever starts nfprom meanwhile finds the old one or the new one, whole.
# $(call put,MODE,FILE,PLACE); put_named also lets it name the real places.
put = $(INSTALL) -m $(1) $(2) "$(3).new" && mv -f "$(3).new" "$(3)"
put_named = $(INSTALL) -m $(1) $(2) "$(3).new" && $(PLACE) "$(3).new" && mv -f "$(3).new" "$(3)"

# What lies beside the program for later; the second list names places. What is for systemd stands apart.
DOCUMENTS = README.md $(addprefix systemd/,nfprom.rules.yml nfprom-dashboard.json prometheus-agent.yml chain lan-hosts nfprom.nft \
	nfprom.confd tls stunnel.conf)
DOCUMENTS_NAMED = systemd/nfprom.openrc
UNIT_DOCUMENTS = $(addprefix systemd/,legacy.conf sandbox.conf remote.conf namespace.conf lan-hosts.service lan-hosts.timer textfile.timer)
UNIT_DOCUMENTS_NAMED = $(addprefix systemd/,nfprom-chain.service nfprom-chain-again.service textfile.conf another-port)

# $(call put_documents,put or put_named,FILES): a line of a recipe for each.
define put_document
	$(call $(1),644,$(2),$(DESTDIR)$(DOCDIR)/$(notdir $(2)))

endef
put_documents = $(foreach file,$(2),$(call put_document,$(1),$(file)))

PROGRAM = nfprom
install: $(PROGRAM) ## install program, units, manual and documents
	$(INSTALL) -d "$(DESTDIR)$(SBINDIR)" "$(DESTDIR)$(DOCDIR)" "$(DESTDIR)$(MANDIR)/man8"
	$(call put,755,$(PROGRAM),$(DESTDIR)$(SBINDIR)/nfprom)
	$(call put_named,644,systemd/nfprom.8,$(DESTDIR)$(MANDIR)/man8/nfprom.8)
	$(call put_documents,put,$(DOCUMENTS))
	$(call put_documents,put_named,$(DOCUMENTS_NAMED))
	$(call put_named,644,xinetd/nfprom,$(DESTDIR)$(DOCDIR)/xinetd)
ifneq ($(UNITDIR),)
	$(INSTALL) -d "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(SYSUSERSDIR)" "$(DESTDIR)$(DEFAULTDIR)"
	$(call put,644,systemd/nfprom.sysusers,$(DESTDIR)$(SYSUSERSDIR)/nfprom.conf)
	@test -n "$(DESTDIR)" || ! command -v systemd-sysusers > /dev/null || systemd-sysusers "$(SYSUSERSDIR)/nfprom.conf"
	$(call put_documents,put,$(UNIT_DOCUMENTS))
	$(call put_documents,put_named,$(UNIT_DOCUMENTS_NAMED))
	@! grep -qs '^ListenStream=9914' "$(DESTDIR)$(UNITDIR)/nfprom.socket" || { \
		echo 'nfprom.socket listened on all addresses; the new one listens on loopback alone. After systemctl daemon-reload nothing listens'; \
		echo 'until systemctl restart nfprom.socket. To let a Prometheus server on another host ask, with its address in place of SERVER:'; \
		echo '  sed s/192.0.2.10/SERVER/ $(DOCDIR)/remote.conf | install -D -m 644 /dev/stdin /etc/systemd/system/nfprom.socket.d/remote.conf &&' \
			'systemctl daemon-reload && systemctl restart nfprom.socket'; }
	$(call put_named,644,systemd/nfprom@.service,$(DESTDIR)$(UNITDIR)/nfprom@.service)
	$(call put_named,644,systemd/nfprom.socket,$(DESTDIR)$(UNITDIR)/nfprom.socket)
	test -e "$(DESTDIR)$(DEFAULTDIR)/nfprom" || \
		{ $(call put,644,systemd/nfprom.default,$(DESTDIR)$(DEFAULTDIR)/nfprom); }
endif

# Apart, since what lies in xinetd's directory is served from its next reload on. Another file there is somebody's work.
install-xinetd: install ## install, and put the file for xinetd in place
	$(INSTALL) -d "$(DESTDIR)$(XINETDDIR)"
	@new="$(DESTDIR)$(DOCDIR)/xinetd" old="$(DESTDIR)$(XINETDDIR)/nfprom"; \
	if test -e "$$old" && ! cmp -s "$$new" "$$old"; then echo "$$old differs from $$new, and is left as it is"; \
	else $(INSTALL) -m 644 "$$new" "$$old.new" && mv -f "$$old.new" "$$old"; fi

# The service script, and its flags unless there are some already.
install-openrc: install ## install, and put the files for OpenRC in place
	$(INSTALL) -d "$(DESTDIR)$(SYSCONFDIR)/init.d" "$(DESTDIR)$(SYSCONFDIR)/conf.d"
	$(call put_named,755,systemd/nfprom.openrc,$(DESTDIR)$(SYSCONFDIR)/init.d/nfprom)
	test -e "$(DESTDIR)$(SYSCONFDIR)/conf.d/nfprom" || \
		{ $(call put,644,systemd/nfprom.confd,$(DESTDIR)$(SYSCONFDIR)/conf.d/nfprom); }

# What `make install` brings, file by file: the directories may be others' too.
uninstall: ## remove what these have installed
	rm -f "$(DESTDIR)$(SBINDIR)/nfprom" "$(DESTDIR)$(DEFAULTDIR)/nfprom" "$(DESTDIR)$(XINETDDIR)/nfprom" \
		"$(DESTDIR)$(SYSCONFDIR)/init.d/nfprom" "$(DESTDIR)$(SYSCONFDIR)/conf.d/nfprom" \
		"$(DESTDIR)$(DOCDIR)/xinetd" $(foreach file,$(DOCUMENTS) $(DOCUMENTS_NAMED) $(UNIT_DOCUMENTS) $(UNIT_DOCUMENTS_NAMED), \
		"$(DESTDIR)$(DOCDIR)/$(notdir $(file))")
	rm -f "$(DESTDIR)$(MANDIR)/man8/nfprom.8"
	rmdir "$(DESTDIR)$(DOCDIR)" "$(DESTDIR)$(MANDIR)/man8" 2> /dev/null || true
ifneq ($(UNITDIR),)
	rm -f "$(DESTDIR)$(UNITDIR)/nfprom.socket" "$(DESTDIR)$(UNITDIR)/nfprom@.service" "$(DESTDIR)$(SYSUSERSDIR)/nfprom.conf"
	rmdir "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(dir $(UNITDIR))" "$(DESTDIR)$(SYSUSERSDIR)" 2> /dev/null || true
endif

# (No shell stands between make and the script, so a signal that make passes on comes to the script.)
run: nfprom ## show nfprom at work, in a network namespace of its own
	@exec t/run "$(ADDR)" "$(PORT)"

clean: ## remove what was built
	rm -f nfprom nfprom-*-linux-* nfprom_*.deb t/parse t/fuzz t/series t/bench-run $(FUZZERS) .compiled-with
	rm -rf t/finds .deb

.PHONY: force all help man release deb releases test lint fuzz bench mutate install install-xinetd install-openrc uninstall run clean
