#!/usr/bin/env bash
# The fuzz targets, with libFuzzer and AddressSanitizer. Neither cargo-fuzz nor a nightly compiler is
# needed: libFuzzer is built from source by a C++ compiler, the flags are those of cargo-fuzz.
#
#   ci/fuzz.sh --smoke            every target for FUZZ_SECONDS (10)
#   ci/fuzz.sh TARGET [ARG...]    one target; arguments go to libFuzzer: -max_total_time=3600
#
# What is found lies in fuzz/artifacts/TARGET; give the file as argument to run it again. Inputs in
# fuzz/seeds/TARGET are always tried, new ones are kept in fuzz/corpus/TARGET.
source "$(dirname "$0")/lib.sh"

targets=(address connection_schedule frame_decoders linkbuffer_ops)

smoke=0
if [ "${1:-}" = --smoke ]; then
    smoke=1
elif [ "$#" -eq 0 ]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 2
else
    targets=("$1")
    shift
fi

if ! command -v c++ >/dev/null; then
    skip "no C++ compiler, which libFuzzer needs"
    exit
fi

host=$(host_target)
export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR="$target_root/fuzz"
export RUSTFLAGS="${RUSTFLAGS:-} --cfg fuzzing -Zsanitizer=address -Ccodegen-units=1
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
RUSTFLAGS=$(tr -s ' \n' ' ' <<<"$RUSTFLAGS")

bins=()
for target in "${targets[@]}"; do
    bins+=(--bin "$target")
done
step cargo build --release --manifest-path fuzz/Cargo.toml --target "$host" "${bins[@]}"

for target in "${targets[@]}"; do
    corpus="fuzz/corpus/$target"
    artifacts="fuzz/artifacts/$target"
    seeds="fuzz/seeds/$target"
    mkdir -p "$corpus" "$artifacts"
    options=(-artifact_prefix="$artifacts/" -timeout=60 -rss_limit_mb=2048)
    export ASAN_OPTIONS="${FUZZ_ASAN_OPTIONS:-}"
    if [ "$target" = connection_schedule ]; then
        # Its servers live until the process ends.
        options+=(-detect_leaks=0)
        ASAN_OPTIONS="detect_leaks=0 $ASAN_OPTIONS"
    fi
    program="$CARGO_TARGET_DIR/$host/release/$target"
    if [ "$smoke" -eq 1 ]; then
        # What is found in passing is not kept.
        scratch=$(mktemp -d)
        mkdir -p "$seeds"
        step "$program" "${options[@]}" -max_total_time="${FUZZ_SECONDS:-10}" \
            -verbosity=0 -print_final_stats=1 "$scratch" "$seeds"
        rm -rf "$scratch"
    elif [ "$#" -gt 0 ] && [ -f "$1" ]; then
        step "$program" "${options[@]}" "$@"
    else
        mkdir -p "$seeds"
        step "$program" "${options[@]}" "$@" "$corpus" "$seeds"
    fi
done
