# Sepal: `just run FILE` trains, `just test` checks everything. Both set the machine up first.

set shell := ["bash", "-euo", "pipefail", "-c"]
# Arguments reach the program as they were given.
set positional-arguments

# What there is
default:
    @just --list --unsorted

# Bring libtorch and point cargo at it; costs nothing when all is there
setup:
    @python3 scripts/setup.py

# Run a pipeline: just run pipelines/sst2.yaml --set train.max_steps=100
[no-cd]
[no-exit-message]
run FILE *ARGS: _build
    @"{{ justfile_directory() }}/scripts/sepal" run "$@"

# Any other command of the program: just sepal serve --help
[no-cd]
[no-exit-message]
sepal *ARGS: _build
    @"{{ justfile_directory() }}/scripts/sepal" "$@"

# The command `sepal` for this user, in ~/.local/bin or another folder; it runs what this checkout built
[no-cd]
install FOLDER="~/.local/bin": _build
    @"{{ justfile_directory() }}/scripts/install.sh" "$@"

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
    cargo bench --profile dev --workspace --bench speed -- "$@"

# The small pieces of a step, each alone: just bench-pieces kernels
bench-pieces *ARGS: _build
    cargo bench --profile dev --workspace --bench pieces -- "$@"

# The same step by transformers and PEFT, in a Python environment of its own
bench-peers *ARGS:
    @python3 benchmarks/peers/peft.py "$@"

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
    @python3 scripts/new_plugin.py "$@"

# The whole workspace, so that run and test share every dependency they built
_build: setup
    @cargo build --workspace --bins
