#!/usr/bin/env bash
# The programs a newcomer starts: the examples build, quickstart runs through, the load generator
# gets answers.
source "$(dirname "$0")/lib.sh"

step cargo build --workspace --examples
step cargo run --release --example quickstart

# The harness without the peers that need another networking stack, so that it builds quickly.
step cargo build --release -p netpoll-bench --no-default-features
step "$target_root/release/netpoll-bench" list
