# Sepal: `just run FILE` trains, `just test` checks everything. Both set the machine up first.

set shell := ["bash", "-euo", "pipefail", "-c"]

# What there is
default:
    @just --list --unsorted

# Bring libtorch and point cargo at it; costs nothing when all is there
setup:
    @python3 scripts/setup.py

# Run a pipeline: just run pipelines/sst2.yaml --set train.max_steps=100
run FILE *ARGS: _build
    @scripts/sepal run {{ FILE }} {{ ARGS }}

# Any other command of the program: just sepal serve --help
sepal *ARGS: _build
    @scripts/sepal {{ ARGS }}

# Everything that CI checks
test: setup lint
    cargo test --workspace

# Unit tests alone, for use while working
test-quick: setup
    cargo test --workspace --lib

# Formatting and clippy, warnings as errors
lint: setup
    cargo fmt --all -- --check
    cargo clippy --workspace --all-targets -- -D warnings

# Speed, as ratios measured side by side in one run; writes docs/bench.json and docs/bench.svg (--rounds N, --only SECTION)
bench *ARGS: _build
    cargo bench --profile dev --workspace --bench speed -- {{ ARGS }}

# The same step by transformers and PEFT, in a Python environment of its own
bench-peers *ARGS:
    @python3 benchmarks/peers/peft.py {{ ARGS }}

# What the swarm makes of its servers: replicas, failures, plans; writes docs/bench-swarm.json
bench-swarm: _build
    cargo bench --profile dev --workspace --bench swarm

# Writes the table of docs/families.md anew, from the goldens
families: _build
    SEPAL_WRITE_DOCS=1 cargo test --workspace --test it -- families

# Regenerate what is generated and committed: RPC code and the pipeline schema (needs capnproto)
schemas: setup
    scripts/schemas.sh

# A new plugin crate that passes its contract, or the skeleton of a model family: just new-plugin head my-head (or: tuning, family)
new-plugin KIND NAME:
    @python3 scripts/new_plugin.py {{ KIND }} {{ NAME }}

# The whole workspace, so that run and test share every dependency they built
_build: setup
    @cargo build --workspace --bins
