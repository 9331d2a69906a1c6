# make check is what a change has to pass; CI runs make test.
PREFIX = /usr/local

# Tests and benchmarks make namespaces, cgroups and mounts. They are compiled as
# the user and run as root, so that root writes nothing to the user's caches.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E env PATH=$(PATH))
EXEC := $(if $(SUDO),-exec '$(SUDO)')

.PHONY: all check test escape vmtest bench generate install clean

all:
	CGO_ENABLED=0 go build -trimpath ./cmd/msh

check:
	@files=$$(gofmt -l .) && { [ -z "$$files" ] || { echo "gofmt would change:" $$files; exit 1; }; }
	go vet ./...
	@$(MAKE) --no-print-directory test

# One package after another: they share the host's cgroups. No cached results:
# the kernel is an input that go does not see.
test:
	@scripts/deps
	go test -count=1 -p 1 -timeout 20m $(EXEC) ./...
	@$(MAKE) --no-print-directory vmtest

# The tests that want cgroup v2's controllers, netem and the like, in a virtual
# machine; see scripts/vmtest.
vmtest:
	@scripts/deps
	@scripts/vmtest

# Every attack of kernel/escape at every level, as a table; part of make test as well.
escape:
	@scripts/deps
	go test -count=1 -v $(EXEC) ./kernel/escape

bench:
	@scripts/deps --bench
	go run $(EXEC) ./bench $(ARGS)

generate:
	go generate ./...

install: all
	install -D -m 755 msh $(DESTDIR)$(PREFIX)/bin/msh

clean:
	rm -f msh
