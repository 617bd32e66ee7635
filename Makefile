# The only task runner. Each target is one script or one cargo call.
.PHONY: help build image cluster cluster-down test demo demo-down bench check fmt docs protos deny clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

build: ## build the programs, optimised
	cargo build --locked --release --workspace --bins

image: ## make the images as one OCI archive, without Docker
	@deploy/image

cluster: ## a local two-node Kubernetes with the mesh and a small shop (root)
	@tests/cluster/shop

cluster-down: ## take that cluster down
	@tests/cluster/down

test: ## run every test; the closing line is `N passed, N failed`
	@tests/run

demo: ## see the mesh at work on this machine (root); KEEP=1 leaves it running
	@tests/demo $(if $(KEEP),--keep)

demo-down: ## take a demo down that was started with KEEP=1
	@tests/demo --down

bench: ## measure the mesh against plain TCP in the same run
	@benches/run

check: ## format, lints and licences, as CI does
	@tests/check

fmt: ## format the code
	cargo fmt --all

docs: ## print docs/config.md, docs/metrics.md and docs/reasons.md from the code
	UPDATE_DOCS=1 cargo test --locked -p tests --test pure documents_are_fresh

protos: ## write ambit-net/src/proto/*.rs anew from ambit-net/proto/*.proto
	cargo run --locked -p ambit-net --example generate-protos

clean: ## remove what was built
	cargo clean
