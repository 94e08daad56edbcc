#!/usr/bin/env bash
# The library tests under AddressSanitizer and LeakSanitizer, which come with the stable compiler.
# Arguments go to cargo test: `ci/asan.sh --test connection`. `--smoke` is a slice for every day: chains of
# chunks, and connections to their end.
source "$(dirname "$0")/lib.sh"

export RUSTC_BOOTSTRAP=1
# System calls go through the C library, where the sanitizer sees what they touch.
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address --cfg rustix_use_libc"
export CARGO_TARGET_DIR="$target_root/asan"

only=()
if [ "${1:-}" = --smoke ]; then
    export PROPTEST_CASES="${PROPTEST_CASES:-24}"
    step cargo test -p linkbuffer --target "$(host_target)" --lib --test model --test memory \
        -- --test-threads=1
    set -- --test connection
    only=(close::)
elif [ "$#" -eq 0 ]; then
    set -- --lib --tests
fi
step cargo test -p linkbuffer -p netpoll-poller -p netpoll \
    --target "$(host_target)" "$@" -- --test-threads=1 --include-ignored --skip what_stays_after_peaks "${only[@]}"
