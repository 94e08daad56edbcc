#!/usr/bin/env bash
# The programs a newcomer starts: the examples build, quickstart runs through, the load generator
# gets answers.
source "$(dirname "$0")/lib.sh"

step cargo build --workspace --examples
step cargo run --release --example quickstart

# The harness, without the peers that need another networking stack so that it builds quickly: too
# short to say anything about speed, long enough to see that servers answer and reports are written.
step cargo build --release "${benches[@]}" -p netpoll-bench --no-default-features
report=$(mktemp -d)
trap 'rm -rf "$report"' EXIT
step "$benches_target/release/netpoll-bench" compare --scenario pp-10-1k,call-8 --free \
    --peers netpoll,netpoll-inline --rounds 2 --seconds 0.2 --no-counts --out "$report"
[ -s "$report/results.json" ]
