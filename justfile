# Sepal: `just run FILE` trains, `just test` checks everything. Both set up the machine first.

set shell := ["bash", "-euo", "pipefail", "-c"]
# Arguments reach the program unchanged.
set positional-arguments

# List the recipes
default:
    @just --list --unsorted

# Download libtorch and configure cargo for it; returns at once if both are done (--cuda or --cpu is remembered)
setup *ARGS:
    @python3 scripts/setup.py "$@"

# Run a pipeline: just run pipelines/sst2.yaml --set train.max_steps=100
[no-cd]
[no-exit-message]
run FILE *ARGS: _build
    @"{{ justfile_directory() }}/scripts/sepal" run "$@"

# Run any other command of the program: just sepal serve --help
[no-cd]
[no-exit-message]
sepal *ARGS: _build
    @"{{ justfile_directory() }}/scripts/sepal" "$@"

# Build the program: just build --full adds peer-to-peer swarms and the search of the local network, also for later builds
build *ARGS: setup
    @python3 scripts/build.py "$@"

# Install the command `sepal` for this user, in ~/.local/bin or another folder; it runs the build of this checkout
[no-cd]
install FOLDER="~/.local/bin": _build
    @"{{ justfile_directory() }}/scripts/install.sh" "$@"

# Run everything that CI checks
test: setup lint
    cargo test --workspace

# Run unit tests only, for use while working
test-quick: setup
    cargo test --workspace --lib

# Check language (CONTRIBUTING.md), formatting, and clippy with warnings as errors
lint: setup
    python3 scripts/test_setup.py
    python3 scripts/test_build.py
    python3 scripts/test_start.py
    python3 scripts/test_soak.py
    python3 scripts/test_table.py
    python3 scripts/check_packages.py
    python3 scripts/check_language.py --self-test
    python3 scripts/check_language.py
    python3 scripts/check_docs.py --self-test
    python3 scripts/check_docs.py
    python3 scripts/check_contrib.py
    cargo fmt --all -- --check
    cargo clippy --workspace --all-targets -- -D warnings

# Give mutated bytes to every parser of files and messages: just fuzz --seconds 60 --target gguf; findings are kept in fuzz-findings
fuzz *ARGS: _build_all
    @"$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/sepal-fuzz" "$@"

# Make dist/sepal-*.whl: the program and the Python module, for the user's own torch
wheel: setup
    cargo build --workspace
    @python3 scripts/wheel.py

# Install the wheel into a new virtual environment and test it there (the first time 5 GB of torch)
test-wheel: wheel
    python3 scripts/test_wheel.py

# Measure speed, as ratios within one run; writes docs/bench.json and docs/bench.svg (--rounds N, --only SECTION)
bench *ARGS: _build_all
    cargo bench --profile dev --workspace --bench speed -- "$@"

# Measure single operations of a step: just bench-pieces kernels
bench-pieces *ARGS: _build_all
    cargo bench --profile dev --workspace --bench pieces -- "$@"

# Measure the same step with PEFT, Petals and Sepal; writes docs/peers.md and docs/peers.json (--only PEER)
bench-peers *ARGS: _build
    @python3 benchmarks/peers/run.py "$@"

# Run the table of results, or what is missing of it; writes docs/results.md, .json and .svg (--tasks, --methods, --write)
table *ARGS: _build
    @python3 benchmarks/table/run.py "$@"

# Measure the swarm: replicas, failures, plans; writes docs/bench-swarm.json
bench-swarm: _build_all
    cargo bench --profile dev --workspace --bench swarm

# Measure servers under attack and how soon liars are found; writes docs/attacks.json and tables of docs/reliability.md
bench-attacks *ARGS: _build_all
    @python3 benchmarks/attacks.py --folder "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug" "$@"

# Measure the largest differences of honest servers over threads and kernels, beside the tolerances of checks: just bench-verify [MODEL]
bench-verify *ARGS: _build_all
    cargo bench --profile dev --workspace --bench verify -- "$@"

# Measure the time of a step with and without verification; writes docs/verification.json and a line of docs/reliability.md
bench-checks *ARGS: _build_all
    @python3 benchmarks/verification.py --folder "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug" "$@"

# Measure training on a quantized model of 8 billion numbers (4.9 GB, made on first use); writes docs/bench-8b.json
bench-8b *ARGS: _build_all
    @python3 scripts/bench_8b.py "$@"

# Measure several classifiers in one process beside one process for each; writes docs/bench-serving.json
bench-serving *ARGS: _build
    @python3 scripts/bench_serving.py "$@"

# Let servers and runs live through kills, full disks and hostile clients; writes docs/reliability.json and the table of its page (--minutes N, --seed N, --check)
soak *ARGS: _build_all
    @python3 scripts/soak.py "$@"

# Rewrite the table of docs/families.md from the goldens
families: _build_all
    SEPAL_WRITE_DOCS=1 cargo test --workspace --test it -- families

# Regenerate the committed RPC code and pipeline schema (needs capnproto)
schemas: setup
    scripts/schemas.sh

# Make a plugin crate that passes its contract, or the skeleton of a model family: just new-plugin head my-head (or: tuning, family)
new-plugin KIND NAME:
    @python3 scripts/new_plugin.py "$@"

# Check everything that a release needs: versions, changelog, packages, documentation, wheel (--only NAME)
release-check *ARGS: setup
    @python3 scripts/release_check.py "$@"

# What was chosen last: quick or complete programs (sepal and sepal-engine)
_build: setup
    @python3 scripts/build.py

# Build the whole workspace, so that benchmarks and tests share every dependency
_build_all: setup
    @python3 scripts/build.py --workspace
