#!/usr/bin/env bash
# The larger concurrency scenarios: the real code with shuttle's locks and atomics, random schedules.
# SHUTTLE_SCHEDULES says how many of either kind (random, and with few preemptions); arguments go to
# the test program, for example a test's name.
source "$(dirname "$0")/lib.sh"

export SHUTTLE_SCHEDULES="${SHUTTLE_SCHEDULES:-1000}"
export RUSTFLAGS="${RUSTFLAGS:-} --cfg shuttle"
export CARGO_TARGET_DIR="$target_root/shuttle"

list=$(cargo test -p netpoll --release --lib shuttle_ -- --list)
if ! grep -q ': test$' <<<"$list"; then
    echo "there are no shuttle scenarios" >&2
    exit 1
fi
step cargo test -p netpoll --release --lib shuttle_ -- "$@"
