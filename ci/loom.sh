#!/usr/bin/env bash
# The concurrency models: the real code with loom's atomics and locks, all interleavings up to a
# bound on preemptions (2; set LOOM_MAX_PREEMPTIONS for more).
source "$(dirname "$0")/lib.sh"

export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-2}"
export RUSTFLAGS="${RUSTFLAGS:-} --cfg loom"
export CARGO_TARGET_DIR="$target_root/loom"

for package in netpoll-poller netpoll; do
    # The listing builds the tests and says whether there is anything to run.
    list=$(cargo test -p "$package" --release --lib loom_ -- --list)
    if ! grep -q ': test$' <<<"$list"; then
        echo "$package has no loom models" >&2
        exit 1
    fi
    step cargo test -p "$package" --release --lib loom_ -- "$@"
done
