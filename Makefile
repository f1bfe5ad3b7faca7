# make help lists the targets. Everything but Go, apt and user namespaces comes
# from the tool tree that apimage sets up in its cache.
BOARD ?= x86_64
# At how many moments the tests cut the power during an installation.
CUTS ?= 20
# Tests to leave out, as for go test -skip: of all packages but vmtest and gateway,
# and of these two.
SKIP ?=
SKIP_MACHINES ?=
BOARDS := $(notdir $(patsubst %/,%,$(dir $(wildcard boards/*/board.json))))
APIMAGE := bin/apimage
PATH := $(CURDIR)/bin/tools:$(PATH)
export PATH

.PHONY: help run gateway build release $(BOARDS) test check powercut fuzz bench lint shellcheck tools clean FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z$$()A-Z_-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

run: build ## build the VM image and start it; the terminal is its console
	$(APIMAGE) run $(BOARD)

MODEL ?= IPx11
gateway: BOARD = $(if $(filter IPx13,$(MODEL)),arm64,armel)
gateway: $(APIMAGE) ## build the image of MODEL (IPx10, IPx11, IPx13) and play the gateway in a browser
	$(APIMAGE) build $(BOARD)
	go run ./cmd/apgateway --model $(MODEL) --install out/$(BOARD)/app-platform-$(BOARD).img

build: $(BOARD) ## build the image of BOARD (x86_64, armel, arm64)

$(BOARDS): $(APIMAGE)
	$(APIMAGE) build $@

LABEL ?=
KEY ?=
release: $(APIMAGE) ## put all boards and formats of a version into out/release/LABEL: make release LABEL=160002 KEY=release.key
	$(APIMAGE) release $(if $(LABEL),--label $(LABEL)) $(if $(KEY),--key $(KEY)) $(BOARDS)

# What the tests update the boards' images to.
next-%: $(APIMAGE)
	$(APIMAGE) build --label 999999 --out out/$*/next $*

test: lint $(BOARDS) $(BOARDS:%=next-%) ## run everything, the QEMU tests included (over an hour with an empty cache)
	go test -timeout 30m $(SKIP:%=-skip '%') $(FAST)
	go test -timeout 90m -parallel 2 $(SKIP_MACHINES:%=-skip '%') ./vmtest -cuts $(CUTS)
	go test -timeout 30m -parallel 2 $(SKIP_MACHINES:%=-skip '%') ./gateway

check: lint ## the fast part: format, vet, staticcheck, layers, unit tests, shellcheck
	go test -short $(FAST) ./gateway

# Everything but the tests that install whole machines.
FAST = $$(go list ./... | grep -v -e '/vmtest$$' -e '/gateway$$')

# How many states of each line of its table `make powercut` starts, and the seed of
# all that is random (0: the time).
BOOTS ?= 14
SEED ?= 0
POWERCUT_PLANS ?= install update restore rollback resize
powercut: $(BOARDS) $(BOARDS:%=next-%) ## replay what installations, updates, failed updates, rollbacks and resizes write, cut at every moment, on each board (hours, for the machines that it starts)
	@mkdir -p out/powercut && rm -f out/powercut/table
	go test -timeout 24h -parallel 2 ./vmtest -run 'TestReplay$$' -v -boards '$(BOARDS)' -plans '$(POWERCUT_PLANS)' \
		-samples 300 -torn 64 -repairs 2000 -boots $(BOOTS) -seed $(SEED); \
		status=$$?; cat out/powercut/table; exit $$status

# How long each fuzz target runs, and which ones (a regular expression).
FUZZTIME ?= 3m
FUZZ ?= .
fuzz: tools ## run every fuzz target for FUZZTIME, one after the other (or those that FUZZ=REGEXP names)
	@git grep -o 'func Fuzz[A-Za-z0-9]*' -- '*_test.go' | sed 's|/[^/]*:func | |' | grep -E '$(FUZZ)' | while read dir target; do \
		echo "$$target in ./$$dir"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 200x -parallel 1 "./$$dir" || exit 1; \
	done

lint: $(APIMAGE) tools
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'hint: gofmt -w these files'; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	@$(MAKE) --no-print-directory shellcheck

shellcheck: tools
	@scripts/shell-files | xargs $(APIMAGE) tool shellcheck --shell=sh --severity=style --exclude=SC1091

bench: build ## measure against peers, side by side (needs mmdebstrap: apt-get install mmdebstrap)
	go run ./scripts/bench

# The tools are looked up through PATH by tests, which then run them as users
# and the device do.
tools: $(APIMAGE)
	@scripts/test-tools $(CURDIR)/$(APIMAGE) bin/tools

$(APIMAGE): FORCE
	@go build -trimpath -o $@ ./cmd/apimage

clean: ## remove what was built here (the cache stays)
	rm -rf bin out
