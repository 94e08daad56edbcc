#!/usr/bin/env bash
# Half a minute of everything at once against one server: held connections, churn, resets, stalls,
# panics, no descriptors left. Fails if a byte, an answer or a callback was wrong, or if anything is
# left behind. Arguments go to the soak: `ci/soak.sh --minutes 10 --connections 10000 --out DIR`.
source "$(dirname "$0")/lib.sh"

report=$(mktemp -d)
trap 'rm -rf "$report"' EXIT

step cargo build --release "${benches[@]}" -p netpoll-bench --no-default-features
step "$benches_target/release/netpoll-bench" soak --seconds 30 --connections 1000 --out "$report" "$@"
