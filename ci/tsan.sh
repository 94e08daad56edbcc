#!/usr/bin/env bash
# The library tests under ThreadSanitizer. The standard library is not instrumented, hence the ABI
# flag and the suppressions of ci/tsan.supp. Arguments go to cargo test: `ci/tsan.sh --test echo`.
source "$(dirname "$0")/lib.sh"

export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"
export TSAN_OPTIONS="exitcode=66 suppressions=$PWD/ci/tsan.supp ${TSAN_OPTIONS:-}"
export CARGO_TARGET_DIR="$target_root/tsan"

if [ "$#" -eq 0 ]; then
    set -- --lib --tests
fi
step cargo test -p netpoll-poller -p netpoll --release --target "$(host_target)" "$@"
