# sublet: `make help` lists the targets.
SHELL        := /bin/bash
.SHELLFLAGS  := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# Debian's Go is older than go.mod asks for and fetches the right one by itself.
export GOTOOLCHAIN := auto
export CGO_ENABLED := 0
# As what is built is compiled, so that tests and linters do not compile all of
# it once more.
export GOFLAGS += -trimpath
export PATH := $(PATH):/usr/local/go/bin
# Where the caller names a locale that was never made here, every program warns.
export LC_ALL := C.UTF-8
# A first-boot script has no HOME; Go keeps its cache there.
export HOME := $(or $(HOME),$(shell getent passwd "$$(id -u)" | cut -d : -f 6))
LDFLAGS := -s -w -X sublet/internal/daemon.Version=$(VERSION)
# One build at a time writes to bin. Its modules' names are no news, but that
# of a Go that is fetched is.
BUILD   := flock -o bin go build -trimpath -buildvcs=false
# The largest package takes the compiler 0.8 GiB; with these it is 0.5 GiB, and
# not slower on one core.
ifneq ($(shell awk '/^MemTotal:/ && $$2 < 2097152' /proc/meminfo),)
BUILD := GOGC=30 GOMEMLIMIT=350MiB $(BUILD) -p 1
endif
QUIET   := 2>&1 | { grep --line-buffered -v '^go: downloading .*/' >&2 || true; }
TOOL    := go tool -modfile=$(CURDIR)/tools/go.mod
# A module of its own, whose dependencies the program does not have.
GRAFANA := cd packaging/grafana &&

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: ## install all it takes, start the daemon, create the guest `first`
	@scripts/install-deps run
	@$(MAKE) --no-print-directory build
	@scripts/up

.PHONY: down
down: ## undo `make up`
	@scripts/down

.PHONY: build
build: ## build bin/sublet and bin/sublet-init
	@scripts/install-deps go
	@scripts/assets --if-possible
	@[[ -e bin/sublet ]] || echo 'building (takes a minute, the first time)' >&2
	@mkdir -p bin
	@$(BUILD) -ldflags '$(LDFLAGS)' -o bin/sublet ./cmd/sublet $(QUIET)
	@$(BUILD) -ldflags '-s -w' -o bin/sublet-init ./cmd/sublet-init $(QUIET)

.PHONY: assets
assets: ## bundle what pages load of npm packages (installs npm)
	@scripts/install-deps assets
	@scripts/assets

.PHONY: test
test: ## install what the tests need and run all of them (root)
	@scripts/install-deps test
	@go vet ./...
	@$(GRAFANA) go vet ./... && go test -count=1 ./...
	@go test -count=1 -timeout 3h ./...

.PHONY: test-unit
test-unit: ## run the tests that need no root and no kernel feature
	@scripts/install-deps go
	@go test $$(go list ./... | grep -E '/(vps|plan|hostfile|store|api|cli|desired|reconcile|doctor)$$')

.PHONY: race
race: ## run the tests of pure and concurrent code under the race detector (needs gcc)
	@CGO_ENABLED=1 go test -race $$(go list ./... | grep -E '/(vps|plan|api|cli|desired|reconcile|sqlite)$$')

.PHONY: lint
lint: ## format check, linters, tidy check
	@scripts/install-deps go
	@$(TOOL) golangci-lint run ./...
	@$(GRAFANA) $(TOOL) golangci-lint run ./...
	@go mod tidy -diff
	@$(GRAFANA) go mod tidy -diff

.PHONY: vuln
vuln: ## look for known vulnerabilities (needs the vulnerability database)
	@$(TOOL) govulncheck ./...

.PHONY: fmt
fmt: ## format all Go files
	@$(TOOL) golangci-lint fmt

.PHONY: golden
golden: ## rewrite the golden files and generated documents from what the code says
	@go test ./internal/api ./internal/cli ./internal/daemon ./internal/nft ./internal/meter -run 'Golden|OpenAPI|Docs|Reference|DiskUsage' -update

.PHONY: fuzz
fuzz: ## run every fuzz test for a minute
	@scripts/fuzz 1m

.PHONY: bench
bench: ## measure what docs/performance.md tells (root; about 25 minutes, on a machine that does nothing else)
	@scripts/install-deps test
	@go test -run '^$$' -bench 'Create|Kernels|HundredGuests' -benchtime 7x ./test/bench
	@go test -run '^$$' -bench 'TenGuests|Throughput|Counting|Walls' -benchtime 2x ./test/bench
	@go test -run '^$$' -bench Edge -benchtime 3x ./test/bench
	@go test -run '^$$' -bench . ./internal/plan ./internal/hostnet ./internal/meter
	@go test -run '^$$' -bench 'Render|Load|AddOne|ApplySame|Traffic|Quotas' ./internal/nft
	@go test -run '^$$' -bench Counting -benchtime 20x ./internal/nft
	@go test -run '^$$' -bench . -benchtime 10x ./internal/fsusage
	@go test -run '^$$' -bench 'Sample|Months' ./internal/sqlite
	@go test -run '^$$' -bench 'Month$$' -benchtime 1x ./internal/sqlite
	@go test -run '^$$' -bench Sample -benchtime 60x ./internal/daemon
	@go test -run '^$$' -bench 'Pages|Months' -benchtime 20x ./internal/daemon

.PHONY: clean
clean: ## remove what was built
	@rm -rf bin dist
