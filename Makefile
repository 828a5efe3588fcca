# `make test` installs what the tests need into .tools/ and passes every test.

TOOLS  := .tools
VENV   := $(TOOLS)/venv
STUBS  := $(TOOLS)/stubs
BIN    := $(VENV)/bin
PROTOS := $(wildcard proto/accolade/v1/*.proto)
CARGO  := cargo --locked
# `failpoints` lets tests crash the program at named places; `otel` sends traces.
FEATURES := failpoints,otel

.DEFAULT_GOAL := help
.PHONY: help test check unit integration crash endurance clients soak bench bench-unary bench-stream \
	bench-latency bench-watch bench-scale bench-cluster tools clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

test: check unit integration crash endurance clients ## Install the test tools and pass every test

# Advisories are read from the internet, so whoever has it asks for them: see deny.toml.
check: tools ## Format, lints, the protocol files' own rules, and what comes in with Cargo.lock
	cargo fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(BIN)/buf format proto -d --exit-code
	$(BIN)/buf lint
	$(BIN)/buf breaking --against proto/released.binpb
	$(BIN)/cargo-deny --locked --workspace check bans licenses sources

unit: tools ## Rules, stores, formats
	$(CARGO) test --features $(FEATURES) --lib
	$(CARGO) test --features $(FEATURES) --doc

integration: tools ## The real binary, from outside
	$(CARGO) test --features $(FEATURES) --test it -- --skip cluster_faults
	# Alone, and one after the other: each takes all of the machine.
	$(CARGO) test --features $(FEATURES) --test it cluster_faults -- --test-threads 1

crash: ## kill -9 under load; ACCOLADE_CRASH_CYCLES sets how often
	$(CARGO) test --features $(FEATURES) --test crash

endurance: ## Memory, files and disk stay flat; ACCOLADE_SOAK_SECONDS sets for how long
	$(CARGO) test --features $(FEATURES) --test soak

clients: tools programs ## Clients in other languages and the READMEs' commands, against the real binary
	$(CARGO) build --bins --example first_steps
	PYTHONPATH=$(STUBS):clients/python/src $(BIN)/python -m pytest -q -p no:cacheprovider tests/clients

soak: export ACCOLADE_CRASH_CYCLES := 10000
soak: export ACCOLADE_POWER_CUTS := 1000
soak: export ACCOLADE_HISTORIES := 2000
soak: export ACCOLADE_NETWORK_HISTORIES := 1000
soak: export ACCOLADE_MODEL_HISTORIES := 35000
soak: export ACCOLADE_CRASHES := 1000
soak: export ACCOLADE_CORRUPTIONS := 10000
soak: export ACCOLADE_DEADLINES := 100000
soak: export ACCOLADE_PAUSES := 200
soak: export ACCOLADE_STALLED_SETS := 3000
soak: export ACCOLADE_STORMS := 200
soak: export ACCOLADE_IDLE_SECONDS := 600
soak: export ACCOLADE_SOAK_SECONDS := 28800
soak: export ACCOLADE_LEADER_KILLS := 500
soak: unit integration crash endurance ## The same tests of faults at their nightly sizes; takes hours

# Databases to compare with come from Debian: etcd-server redis-server postgresql. Those that are not
# installed are left out. BENCH passes options on, such as BENCH="--rounds 9 --seconds 4".
bench: ## How fast, beside bare tonic, bare sled and other databases; writes bench.json
	$(CARGO) build --release -p accolade -p accolade-bench
	target/release/accolade-bench --dir target --json bench.json $(BENCH)

bench-cluster: tools ## Three servers of NATS on this machine, beside JetStream alone and etcd; growth
	$(CARGO) build --release -p accolade -p accolade-bench
	target/release/accolade-bench --dir target --part cluster --part cluster-scale \
		--json bench-cluster.json $(BENCH)

bench-unary bench-stream bench-latency bench-watch bench-scale: bench-%: ## One part of it
	$(CARGO) build --release -p accolade -p accolade-bench
	target/release/accolade-bench --dir target --part $* $(BENCH)

tools: $(TOOLS)/installed $(STUBS)/generated

$(TOOLS)/installed: tests/clients/requirements.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $<
	sh tests/clients/install-strace.sh $(TOOLS)
	touch $@

# Programs of other languages; where a machine lacks what one needs, its tests say so.
.PHONY: programs
programs: tools $(TOOLS)/debian/unpacked clients/typescript/node_modules/installed
	sh tests/clients/drivers/cpp/build.sh $(TOOLS)

$(TOOLS)/debian/unpacked: tests/clients/install-debian.sh
	sh tests/clients/install-debian.sh $(TOOLS)
	mkdir -p $(@D)
	touch $@

clients/typescript/node_modules/installed: clients/typescript/package-lock.json
	if command -v npm >/dev/null; then npm --prefix clients/typescript ci --no-audit --no-fund; \
		else mkdir -p $(@D); echo "npm is missing: tests of TypeScript will be skipped"; fi
	touch $@

$(STUBS)/generated: $(TOOLS)/installed $(PROTOS)
	mkdir -p $(STUBS)
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(STUBS) --grpc_python_out=$(STUBS) \
		$(PROTOS)
	touch $@

clean: ## Remove what was built and installed
	cargo clean
	rm -rf $(TOOLS) clients/typescript/node_modules clients/typescript/dist
