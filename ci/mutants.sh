#!/usr/bin/env bash
# Mutation testing: small changes to the code, each of which some test should notice. It takes hours;
# run it on what was changed. docs/proofs.md says what is known of the survivors.
#
#   ci/mutants.sh linkbuffer [ARG...]   linkbuffer/src, but for what needs a flag
#   ci/mutants.sh leak [ARG...]         linkbuffer with --cfg netpoll_leaks
#   ci/mutants.sh connection [ARG...]   the state word and the queue behind a full socket
#   ci/mutants.sh pool [ARG...]         the books of the client pool
#
# Arguments go to cargo-mutants: --shard 0/8, -F try_write_direct, --list.
source "$(dirname "$0")/lib.sh"

if ! command -v cargo-mutants >/dev/null; then
    skip "cargo-mutants is not installed: 'cargo install --locked cargo-mutants'"
    exit
fi

what="${1:-}"
[ "$#" -eq 0 ] || shift
case $what in
linkbuffer)
    # Without its flag that file is not compiled: every change to it would survive.
    files=(-p linkbuffer -f 'linkbuffer/src/**' -e linkbuffer/src/leak.rs -e linkbuffer/src/leak_registry.rs -E ' tests::')
    tests=(--lib --tests)
    ;;
leak)
    files=(-p linkbuffer -f linkbuffer/src/leak.rs -f linkbuffer/src/leak_registry.rs)
    export RUSTFLAGS="${RUSTFLAGS:-} --cfg netpoll_leaks"
    tests=(--lib --tests)
    ;;
connection)
    files=(-p netpoll -f src/connection/state.rs -f src/connection/output.rs)
    tests=(--lib --test connection)
    ;;
pool)
    files=(-p netpoll -f src/client/shelf.rs -f src/client/pool.rs)
    tests=(--lib --test client)
    ;;
*)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

# Each mutant is a build of its own: no debugging information, few random cases.
unset CARGO_TARGET_DIR
export CARGO_PROFILE_DEV_DEBUG=0 PROPTEST_CASES="${PROPTEST_CASES:-48}"
step cargo mutants "${files[@]}" -j1 --timeout 60 -o "$target_root/mutants" "$@" -- "${tests[@]}"
