# Shared by the scripts next to it. Source it, do not run it.
#
# Every script works from any directory, asks nothing and reads nothing from its input.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"
export CARGO_TERM_PROGRESS_WHEN="${CARGO_TERM_PROGRESS_WHEN:-never}"
target_root="${CARGO_TARGET_DIR:-$PWD/target}"
# What is measured, and against what, is a workspace of its own.
benches=(--manifest-path benches/Cargo.toml)
benches_target="${CARGO_TARGET_DIR:-$PWD/benches/target}"

# Says what is run, runs it, and says how long it took.
step() {
    local begin=$SECONDS
    printf '\n==> %s\n' "$*"
    "$@" || {
        local code=$?
        printf '==> FAILED (%s) after %s s: %s\n' "$code" "$((SECONDS - begin))" "$*" >&2
        return "$code"
    }
    printf '==> done in %s s\n' "$((SECONDS - begin))"
}

skip() {
    printf '\n==> skipped: %s\n' "$*"
}

# Has everything after it built with what only tests need: faults in the way of system calls, and a list of
# what is alive.
with_test_flags() {
    export RUSTFLAGS="${RUSTFLAGS:-} --cfg netpoll_faults --cfg netpoll_leaks"
    export RUSTDOCFLAGS="${RUSTDOCFLAGS:-} --cfg netpoll_faults --cfg netpoll_leaks"
    export CARGO_TARGET_DIR="$target_root/flags"
}

# Build scripts and procedural macros must not be built with a sanitizer: --target keeps them apart.
host_target() {
    rustc -vV | sed -n 's/^host: //p'
}
