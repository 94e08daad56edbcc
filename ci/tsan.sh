#!/usr/bin/env bash
# The library tests under ThreadSanitizer. Arguments go to cargo test: `ci/tsan.sh --test connection`.
# `--smoke` is a slice for every day: callbacks under every dispatch, and the client pool.
#
# The standard library is not instrumented (hence the ABI flag), so what tests synchronise with std's
# locks and channels looks like a race. The libraries use none of those. A report therefore counts only
# if the innermost frame of ours is library code in both of its accesses.
source "$(dirname "$0")/lib.sh"

export RUSTC_BOOTSTRAP=1
# System calls go through the C library, where the sanitizer sees what they touch.
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg rustix_use_libc"
export CARGO_TARGET_DIR="$target_root/tsan"

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
export TSAN_OPTIONS="exitcode=0 suppressions=$PWD/ci/tsan.supp log_path=$reports/report ${TSAN_OPTIONS:-}"

only=()
if [ "${1:-}" = --smoke ]; then
    set -- --test connection --test client
    only=(callbacks:: pool::)
elif [ "$#" -eq 0 ]; then
    set -- --lib --tests
fi
step cargo test -p netpoll-poller -p netpoll --release --target "$(host_target)" "$@" \
    -- --include-ignored --skip what_stays_after_peaks "${only[@]}"

found=$(
    find "$reports" -type f -exec cat {} + | awk -v root="$PWD/" '
        function judge() { if (ours == 2) { printf "%s==================\n", text; } text = ""; ours = 0 }
        /^==================/ { judge(); next }
        { text = text $0 "\n" }
        # The two accesses, not where memory, locks and threads came from.
        /^  (Previous )?([Aa]tomic )?([Rr]ead|[Ww]rite) of size/ { access = 1; next }
        /^$/ { access = 0 }
        access && /^    #[0-9]+ / && index($0, root) {
            access = 0
            rest = substr($0, index($0, root) + length(root))
            if (rest ~ /^(poller\/|linkbuffer\/)?src\// && $0 !~ /(::tests::|::models::)/) ours++
        }
        END { judge() }
    '
)
if [ -n "$found" ]; then
    printf '%s\n' "$found" >&2
    exit 1
fi
echo "no race in the libraries"
