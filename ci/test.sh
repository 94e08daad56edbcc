#!/usr/bin/env bash
# The tests, as in the README, documentation examples included; the unit tests without any
# feature; the tests of the benchmark harness; those that need a feature or a flag of the compiler.
# Arguments go to cargo test, and nothing else is run then.
source "$(dirname "$0")/lib.sh"

if [ "$#" -gt 0 ]; then
    step cargo test --workspace "$@"
    exit
fi

step cargo test --workspace --no-fail-fast
step cargo test -p netpoll --no-default-features --lib
step cargo test "${benches[@]}" --workspace --no-fail-fast

with_test_flags
# What these flags bring: the program `faults`, and modules of others.
step cargo test -p netpoll --no-fail-fast --all-features --lib --test faults
step cargo test -p netpoll --no-fail-fast --all-features --test memory -- vectored::
step cargo test -p netpoll --no-fail-fast --all-features --test server -- signals::
step cargo test -p linkbuffer --no-fail-fast --lib --tests
step cargo test -p netpoll -p linkbuffer --doc leak
