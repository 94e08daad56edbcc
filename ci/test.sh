#!/usr/bin/env bash
# The tests, as in the README, documentation examples included; then those that need a feature, the
# unit tests without any, and the tests of the benchmark harness. Arguments go to cargo test, and nothing else is run then.
source "$(dirname "$0")/lib.sh"

if [ "$#" -gt 0 ]; then
    step cargo test --workspace "$@"
    exit
fi

step cargo test --workspace --no-fail-fast

with_features=()
for file in $(grep -lE '^#!\[cfg\(.*feature' tests/*.rs || true); do
    with_features+=(--test "$(basename "$file" .rs)")
done
step cargo test -p netpoll --no-fail-fast --all-features --lib "${with_features[@]}"
step cargo test -p linkbuffer --no-fail-fast --all-features --lib --tests
step cargo test -p netpoll --no-default-features --lib
step cargo test "${benches[@]}" --workspace --no-fail-fast
