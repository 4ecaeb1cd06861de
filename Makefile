# Wayleave. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ARCH      ?= $(shell go env GOARCH)
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
NODES     ?= 3
REGISTRY  ?=
LDFLAGS   := -s -w -X main.version=$(VERSION)
GOBUILD   := CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) go build -trimpath -ldflags '$(LDFLAGS)'
SOURCES   := $(shell git ls-files --cached --others --exclude-standard '*.go' go.mod go.sum 2>/dev/null | grep -v '^lab/\|^bench/')
LAB       := dist/lab
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

##@ The two commands

demo: $(LAB) image dist/lossmeter.tar ## Start a real 3-node Kubernetes, walk through what Wayleave does, leave it running (TOUR=all)
	@./hack/demo $(NODES)

test: setup ## All tests that need no cluster: pure, golden, fake, real packets in namespaces, fuzz seeds
	@./hack/test

##@ More tests

test-stress: setup ## Each package's tests ten times beside CPU, memory and disk load; PACKAGES=, ROUNDS=, JOBS=, LIMIT= choose
	@./hack/test-stress

test-lab: $(LAB) image dist/lossmeter.tar ## The demo's checks and foreign specs on a real Kubernetes; takes it down after
	@./hack/test-lab

test-vm: ## Tests as root in a VM with Debian's kernel
	@./hack/test-vm

test-routing: $(LAB) image dist/lossmeter.tar ## A real Kubernetes with routing: bgp and encryption: wireguard; no plain packet on the wire
	@./hack/test-routing

test-arm64: ## The programs of the arm64 image under qemu's user emulation
	@./hack/test-arm64

test-handover: ## Wayleave beside CoreDNS, kube-proxy and another CNI, in their place, and back, under the loss meter
	@./hack/test-handover

test-chart: ## The Helm chart in a namespace of its own, rendered by Helm's engine, on a real Kubernetes
	@./hack/test-chart

test-kubeadm: ## docs/install's recipe for kubeadm, word for word, on machines of the lab, and its removal
	@./hack/test-kubeadm

bench: setup ## Measure beside the programs that users run today; writes docs/bench-*.md
	go test -run xxx -bench . -benchmem ./model ./service/... ./dns/...
	cd bench && go test -count=1 -timeout 2h ./...

fuzz: ## Fuzz each parser of bytes from outside, FUZZTIME each (default 1m)
	@./hack/fuzz $${FUZZTIME:-1m}

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt-clean:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

##@ Build

image: dist/wayleave.tar ## dist/wayleave.tar, a docker-archive of wayleave.dev/wayleave:dev, for ARCH=amd64|arm64

push: dist/wayleave.tar ## Push the image to REGISTRY=host/path, with the credentials of docker login or podman login
	@test -n "$(REGISTRY)" || { echo "REGISTRY= is empty; say for example: make push REGISTRY=registry.example.com/net"; exit 1; }
	go run ./deploy/push dist/wayleave.tar $(REGISTRY)/wayleave:$(VERSION)

release: ## Everything of a release in dist/release: make release VERSION=v0.1.0 [REGISTRY=host/path]
	@./hack/release "$(VERSION)" "$(REGISTRY)"

push-release: ## Push image and chart in dist/release to REGISTRY=host/path
	@./hack/push-release "$(VERSION)" "$(REGISTRY)"

test-release: ## Pack a release twice, in two folders, and compare them
	@./hack/test-release

gen: ## Make the generated files anew
	go run ./deploy/gen

docs: ## Build the documentation's site into dist/site/html
	@./hack/docs

clean: ## Remove dist/
	rm -rf dist

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- files ---

dist/$(ARCH)/wayleave: $(SOURCES)
	@echo "building wayleave for $(ARCH)"; $(GOBUILD) -o $@ ./cmd/wayleave

dist/$(ARCH)/wayleave-cni: $(SOURCES)
	@echo "building wayleave-cni for $(ARCH)"; $(GOBUILD) -o $@ ./cmd/wayleave-cni

dist/$(ARCH)/lossmeter: $(SOURCES)
	@echo "building lossmeter for $(ARCH)"; $(GOBUILD) -o $@ ./cmd/lossmeter

# A stamp by architecture, so that ARCH=arm64 after amd64 is not taken for fresh.
dist/wayleave.tar: dist/$(ARCH)/wayleave dist/$(ARCH)/wayleave-cni dist/$(ARCH)/debian.done dist/arch-$(ARCH) $(wildcard deploy/image/*.go)
	@echo "making $@"; go run ./deploy/image -arch $(ARCH) -debian dist/$(ARCH)/debian -tag wayleave.dev/wayleave:dev -out $@ dist/$(ARCH)/wayleave dist/$(ARCH)/wayleave-cni

# What the image carries of Debian, fetched once.
dist/$(ARCH)/debian.done: hack/debian-root
	@./hack/debian-root $(ARCH) dist/$(ARCH)/debian iptables ipvsadm; touch $@

dist/lossmeter.tar: dist/$(ARCH)/lossmeter dist/arch-$(ARCH)
	@echo "making $@"; go run ./deploy/image -arch $(ARCH) -tag wayleave.dev/lossmeter:dev -out $@ dist/$(ARCH)/lossmeter

dist/arch-$(ARCH):
	@mkdir -p dist; rm -f dist/arch-*; touch $@

$(LAB): $(shell git ls-files --cached --others --exclude-standard lab internal/dockerarchive 2>/dev/null)
	@mkdir -p dist; echo "building the lab's command"; cd lab && go build -trimpath -o ../$(LAB) ./cmd/lab

setup:
	@./hack/setup

.PHONY: demo test test-chart test-stress test-lab test-vm test-arm64 test-handover test-kubeadm test-release test-routing bench fuzz lint image push release push-release gen docs clean help setup
