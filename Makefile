GO ?= go
APP := github.com/viralpilot/user-management/internal/app
STATICCHECK := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT := $(GO) run mvdan.cc/gofumpt@v0.12.0
CYCLONEDX := $(GO) run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

# What axe.min.js of the version below has to be (SHA-256).
AXE := 29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c

# The folders that hold Go code: named, so that a module cache below the
# working tree is not taken for ours.
SOURCES := cmd internal migrations

# Go's own stamping ends the build where git distrusts the owner of the folder;
# `make build` stamps instead.
export GOFLAGS := $(strip $(shell $(GO) env GOFLAGS 2>/dev/null) -buildvcs=false)

.PHONY: help run demo picture test test-rules test-browser test-proxy test-alerts test-manual test-clients test-generators test-faults test-pgbouncer soak bench bench-compare bench-growth lint fmt build sbom dev go compiler curl wrk haproxy pgbouncer chromium prometheus npm node node20 python3-requests

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

run: dev ## Run the service, with a PostgreSQL of its own unless DATABASE_URL is set
	@exec bin/dev

demo: dev ## Run the service with 300 made-up users and 90 days of their history, to look at in the console
	@exec bin/dev demo

test: dev compiler curl ## Run all tests, on a PostgreSQL of their own unless TEST_DATABASE_URL is set
	@bin/dev ensure-postgres
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 30m ./...

test-rules: go ## Hold the token rules against exact buckets for a million commands, which takes some minutes
	$(GO) test -count=1 -timeout 60m -v -run 'EqualsExactBuckets|EqualExactBuckets|KeepsTopUps' ./internal/user/... -rapid.checks=12000

test-faults: dev ## Test what happens when the service, its database or the network between them fails, with real processes
	@bin/dev ensure-postgres
	$(GO) test -tags faults -count=1 -timeout 60m -v ./cmd/user-management

# Left out are tests of what PostgreSQL answers to a login, and of which sessions it has: PgBouncer has both in hand.
test-pgbouncer: dev pgbouncer curl ## Run the tests of the service by way of a PgBouncer in transaction pooling
	@bin/dev ensure-postgres
	TEST_PGBOUNCER=1 $(GO) test -count=1 -timeout 30m ./internal/httpapi ./cmd/user-management
	TEST_PGBOUNCER=1 $(GO) test -count=1 -timeout 30m ./internal/postgres ./internal/app \
		-skip 'TestOpenGivesUpAtOnceWhereWaitingCannotHelp|TestARoleThatOwnsNothing|TestAStartThatCannotSucceedEndsWithOneLine|TestWhatIsUnderWayWhenItStopsIsFinished'

soak: dev ## Let 64 clients work for ten minutes (SOAK_DURATION) while things fail at random
	@bin/dev ensure-postgres
	$(GO) test -tags soak -count=1 -timeout 60m -v -run TestSoak ./cmd/user-management

bench: go wrk ## Measure the service on a PostgreSQL of its own; BENCH_FIGURES=consume,floor chooses, BENCH_JSON=file keeps the figures
	@$(GO) run ./cmd/bench

bench-compare: go wrk ## Measure the working tree against another version: BASE=main BENCH_FIGURES=consume,status BENCH_SLOW_COMMITS=5ms
	@$(GO) run ./cmd/bench compare "$(or $(BASE),main)"

bench-growth: go wrk ## Measure what grows with accounts and entries, and what settings of PostgreSQL change about it
	@$(GO) run ./cmd/bench growth

test-proxy: dev haproxy ## Test the proxy of docker-compose.yml's profile "scale" with the haproxy of this machine
	@bin/dev ensure-postgres
	PATH="$$PATH:/usr/sbin" $(GO) test -tags proxy -count=1 -run TestTheProxy -v ./internal/app

test-browser: dev chromium bin/axe.min.js ## Test in Chromium the console, and what pages of other origins and the documentation can do
	@bin/dev ensure-postgres
	$(GO) test -tags browser -count=1 -timeout 15m -run Browser ./internal/app

picture: dev chromium bin/axe.min.js ## Make the README's picture of the console anew
	@bin/dev ensure-postgres
	@pictures=$$(mktemp -d) && \
	$(GO) test -tags browser -count=1 -timeout 15m -run 'TestThePagesOfTheConsoleInABrowser/overview_1280$$' ./internal/app -pictures "$$pictures" && \
	cp "$$pictures/overview-1280.png" internal/console/console.png; rm -r "$$pictures"

# It looks for what people who cannot see a page would miss.
bin/axe.min.js: | npm
	@mkdir -p bin && folder=$$(mktemp -d) && \
	( cd "$$folder" && npm pack --silent axe-core@4.14.1 >/dev/null && tar -xzf axe-core-4.14.1.tgz && \
	echo "$(AXE)  package/axe.min.js" | sha256sum --check --quiet ) && \
	cp "$$folder/package/axe.min.js" bin/; rm -r "$$folder"; test -f bin/axe.min.js

test-alerts: go prometheus ## Test with promtool when each alert fires, and what the dashboard shows at first
	$(GO) test -tags alerts -count=1 -run 'TestAlerts|TestDashboard' ./internal/telemetry

test-clients: dev node python3-requests ## Test the clients that the service hands out, and programs that use them while things fail
	@bin/dev ensure-postgres
	$(GO) test -tags clients -count=1 -timeout 10m ./internal/clients
	$(GO) test -tags clients -count=1 -timeout 10m -v -run Clients ./cmd/user-management

test-manual: dev ## Run the procedures of the manual: backup, recovery, archive, upgrade and roll-back, change of keys
	@bin/dev ensure-postgres
	$(GO) test -tags manual -count=1 -timeout 10m -run TestManual ./cmd/user-management

test-generators: dev node20 ## Test that generators make clients of the published document that compile and work
	@bin/dev ensure-postgres
	$(GO) test -tags generators -count=1 -timeout 20m -run 'OapiCodegen|GeneratorsFor' ./internal/app

lint: go ## Check the code: vet, staticcheck, gofumpt, go.mod and go.sum
	$(GO) vet -tags proxy,faults,soak,browser,alerts,clients,manual,generators ./...
	$(STATICCHECK) -tags proxy,faults,soak,browser,alerts,clients,manual,generators ./...
	@echo "$(GOFUMPT) -l $(SOURCES)"
	@files=$$($(GOFUMPT) -l $(SOURCES)) || exit 1; \
	if [ -n "$$files" ]; then echo "Not formatted, run make fmt:"; echo "$$files"; exit 1; fi >&2
	$(GO) mod verify
	$(GO) mod tidy -diff

fmt: go ## Format the code
	$(GOFUMPT) -w $(SOURCES)

build: go ## Build the static binary bin/user-management
	@version=$$(git describe --tags --always --dirty 2>/dev/null) || version=dev; \
	commit=$$(git rev-parse HEAD 2>/dev/null) || commit=unknown; \
	set -x; CGO_ENABLED=0 $(GO) build -trimpath \
		-ldflags "-s -w -X $(APP).version=$$version -X $(APP).commit=$$commit" \
		-o bin/user-management ./cmd/user-management

sbom: build ## Write bin/user-management.cdx.json: what the binary is made of (CycloneDX)
	@version=$$(bin/user-management version); set -x; \
	$(CYCLONEDX) bin -json -std -version "$${version%% *}" -output bin/user-management.cdx.json bin/user-management

dev: go
	@[ -e bin/dev ] || echo "Compiling, which takes some minutes the first time." >&2
	@CGO_ENABLED=0 $(GO) build -o bin/dev ./cmd/dev

go:
	@command -v $(GO) >/dev/null || { \
		echo "Go is not installed: get the version that go.mod names, or a later one, from https://go.dev/dl and put it on PATH." >&2; exit 1; }

# The README's lines are run with curl, the load comes from wrk, haproxy is what is in front of several replicas,
# pgbouncer what may be in front of the database, chromium what people look at pages with, and prometheus brings promtool.
curl wrk haproxy pgbouncer chromium prometheus npm:
	@PATH="$$PATH:/usr/sbin" command -v $@ >/dev/null && exit; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing $@." >&2; export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -q && apt-get install -q -y --no-install-recommends $@; \
	else \
		echo "$@ is not installed: install the package of that name." >&2; exit 1; \
	fi

# What the clients that the service hands out run on.
node python3-requests:
	@case $@ in node) there="command -v node" package=nodejs ;; *) there="python3 -c 'import requests'" package=$@ ;; esac; \
	eval "$$there" >/dev/null 2>&1 && exit; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing $$package." >&2; export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -q && apt-get install -q -y --no-install-recommends $$package; \
	else \
		echo "$$package is not installed: install the package of that name." >&2; exit 1; \
	fi

# The generators come by npm, at the versions that internal/app/testdata/generators/package.json names.
node20:
	@new() { node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null; }; \
	new && command -v npm >/dev/null && exit; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Node.js." >&2; export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -q && apt-get install -q -y --no-install-recommends nodejs npm; \
	fi; \
	new && command -v npm >/dev/null || { \
		echo "Node.js 20.19 or later is not installed: get it from https://nodejs.org/en/download and put it on PATH." >&2; exit 1; }

# The race detector needs a C compiler.
compiler: go
	@cc=$$($(GO) env CC); command -v $${cc%% *} >/dev/null && exit; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing a C compiler, which the race detector needs." >&2; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -q && apt-get install -q -y --no-install-recommends gcc libc6-dev; \
	else \
		echo "The race detector needs a C compiler: install gcc or clang." >&2; exit 1; \
	fi
