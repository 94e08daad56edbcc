#!/usr/bin/env bash
# The integration tests once more, with faults in the way of every socket call of the library: short
# sends and receives, signals, bytes that come a moment after their announcement, and threads that
# are held up around their calls. The tests know nothing of it: the plan comes from the environment
# (NETPOLL_FAULTS, see src/fault/mod.rs).
#
#   ci/short.sh            four settings of the whole suite, about four minutes each
#   ci/short.sh --smoke    a slice of each, a minute in all after the build
#   ci/short.sh short      one setting: short, signals, later or late
#
# SHORT_SEED (1) is the seed of what is left to chance.
source "$(dirname "$0")/lib.sh"

export RUST_BACKTRACE="${RUST_BACKTRACE:-1}"
seed="${SHORT_SEED:-1}"

# Sends and receives of 1, 7 or 4097 bytes: about half of them.
short="seed=$seed,recv:short=1:chance=150,recv:short=7:chance=200,recv:short=4097:chance=300"
short+=",send:short=1:chance=150,send:short=7:chance=200,send:short=4097:chance=300"

# EINTR at every second call, or third where calls come in pairs.
signals="seed=$seed,recv:eintr:every=2,send:eintr:every=2,peek:eintr:every=2"
signals+=",accept:eintr:every=2,connect:eintr:every=2,shutdown:eintr:every=2,socket:eintr:every=2"
signals+=",bind:eintr:every=2,listen:eintr:every=2,get-option:eintr:every=3"
signals+=",set-option:eintr:every=3,name:eintr:every=3"

# EAGAIN although there are bytes, or room, and the announcement anew. TCP only: no other socket can
# be made to announce itself again.
later="seed=$seed,recv:later:chance=300,send:later:chance=500"

# Who makes a call sleeps before or after it: what its peer and other threads do meanwhile is done when
# it goes on. Seldom for 20 ms, longer than any exchange, and often for 0.3 ms, about as long as one.
late="seed=$seed,shutdown:late=5000:chance=150,shutdown:held=5000:chance=150"
late+=",accept:late=10000:chance=80,connect:late=10000:chance=80,set-option:late=2000:chance=40"
late+=",peek:late=20000:chance=10,peek:late=300:chance=200"
for call in send recv; do
    late+=",$call:late=20000:chance=3,$call:held=20000:chance=1"
    late+=",$call:late=300:chance=100,$call:held=300:chance=40"
done

# Not here, by program and module:
#   codec::fuzz, codec::split       no socket
#   faults::                        have plans of their own, or need another flag
#   memory::allocations, idle, vectored   count allocations; a call more is one more
#   connection::receive_bulk        tells how much one receive takes
not_here() {
    case "$1" in
    codec) echo fuzz:: split:: ;;
    memory) echo allocations:: idle:: vectored:: ;;
    connection) echo receive_bulk:: ;;
    esac
}

# Tests that rely on what only a whole receive or an early one gives, each with the reason.
skip_of() {
    case "$1:$2" in
    later:server)
        # What comes after the begin of the drain need not be answered.
        echo a_request_that_was_received_but_not_begun_is_answered
        # A deadline that has passed fails what has to wait, and a send that was put off has to.
        echo a_write_deadline_in_the_past_fails_only_what_has_to_wait
        ;;
    later:connection)
        # Holds the sending thread; a send that was put off is the poller's, who must not be held.
        echo the_figures_are_final_when_done_says_so
        # A send that was put off has a completion of its own.
        echo an_answer_that_fits_at_once_is_no_completion
        # A send that was put off fails after the flush that submitted it.
        echo what_came_before_a_send_that_fails_is_read_first
        ;;
    late:server)
        # Tells pollers by their threads; an accept that sleeps has another thread poll on.
        echo connections_are_spread_over_the_pollers
        ;;
    esac
}

# What a smoke run has room for: reading, writing and closing under every dispatch, clients, relays.
smoke_of() {
    case "$1" in
    short) echo client/dial client/pool connection/read connection/queue relay/sockets relay/matrix server/serve server/unix ;;
    signals) echo client/dial client/pool server/descriptors server/chaos server/unix relay/matrix ;;
    later) echo client/dial client/pool connection/read connection/queue relay/sockets relay/matrix server/chaos ;;
    late) echo client/dial client/pool connection/queue relay/drain relay/verdicts server/chaos server/unix ;;
    esac
}

settings=(short signals later late)
targets=(--tests)
smoke=false
case "${1:-}" in
"") ;;
--smoke)
    smoke=true
    targets=()
    # shellcheck disable=SC2046
    for name in $(printf '%s\n' $(smoke_of short) $(smoke_of signals) $(smoke_of later) $(smoke_of late) | cut -d/ -f1 | sort -u); do
        targets+=(--test "$name")
    done
    ;;
short | signals | later | late) settings=("$1") ;;
*)
    echo "usage: ci/short.sh [--smoke | short | signals | later | late]" >&2
    exit 2
    ;;
esac

export RUSTFLAGS="${RUSTFLAGS:-} --cfg netpoll_faults"
export CARGO_TARGET_DIR="$target_root/faults"
features=(--features signals)
build=(cargo test -p netpoll "${features[@]}" "${targets[@]}" --no-run)
step "${build[@]}"
if [ "${targets[0]}" = --tests ]; then
    # Examples are started by the tests named after them, and are hit as well.
    step cargo build -p netpoll "${features[@]}" --examples
fi
binaries=$("${build[@]}" 2>&1 |
    sed -n 's/.*Executable tests\/\([a-z_0-9]*\)\/main\.rs (\(.*\))$/\1 \2/p')
[ -n "$binaries" ] || {
    echo "no test binaries were built" >&2
    exit 1
}

failed=()
said=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for setting in "${settings[@]}"; do
    printf '\n==> %s: NETPOLL_FAULTS=%s\n' "$setting" "${!setting}"
    while read -r name binary; do
        if [ "$name" = faults ]; then
            continue
        fi
        # Slow tests as well, but no measurement.
        arguments=(--include-ignored --skip what_stays_after_peaks)
        if "$smoke"; then
            modules=0
            for module in $(smoke_of "$setting"); do
                if [ "${module%/*}" = "$name" ]; then
                    arguments+=("${module#*/}::")
                    modules=$((modules + 1))
                fi
            done
            [ "$modules" -gt 0 ] || continue
        fi
        for test in $(not_here "$name") $(skip_of "$setting" "$name"); do
            arguments+=(--skip "$test")
        done
        begin=$SECONDS
        if NETPOLL_FAULTS="${!setting}" timeout 1500 "$binary" "${arguments[@]}" >"$log" 2>&1; then
            printf '%-24s ok, %s s\n' "$name" "$((SECONDS - begin))"
        else
            printf '%-24s FAILED\n' "$name"
            grep -v '^test .* ok$' "$log"
            failed+=("$setting:$name")
        fi
        if grep -q '^NETPOLL_FAULTS in force' "$log"; then
            said=$((said + 1))
        fi
    done <<<"$binaries"
done

# A plan that nobody read would fail nothing.
if [ "$said" -lt "${#settings[@]}" ]; then
    echo "the plan was not in force" >&2
    exit 1
fi
if [ "${#failed[@]}" -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
