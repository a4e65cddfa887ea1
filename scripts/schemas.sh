#!/usr/bin/env bash
# Regenerates the code and schemas that are committed. Needs the `capnp` compiler (Debian: capnproto).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v capnp >/dev/null || { echo "schemas: the capnp compiler was not found; install capnproto" >&2; exit 1; }
cargo run --quiet -p sepal-wire --example generate
cargo run --quiet -p sepal-cli --bin sepal-engine -- schema > schemas/.pipeline.schema.json.new
mv schemas/.pipeline.schema.json.new schemas/pipeline.schema.json
