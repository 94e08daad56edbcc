#!/usr/bin/env bash
# Everything that is known without running the code: format, lints, documentation, house rules.
source "$(dirname "$0")/lib.sh"

libraries=(-p linkbuffer -p netpoll-poller -p netpoll)

step ci/tidy.sh
step cargo fmt --all --check
step cargo fmt "${benches[@]}" --all --check
step cargo clippy --workspace --all-targets -- -D warnings
step cargo clippy "${benches[@]}" --config benches/.cargo/config.toml --workspace --all-targets -- -D warnings
step cargo clippy "${libraries[@]}" --all-targets --all-features -- -D warnings
(
    with_test_flags
    step cargo clippy "${libraries[@]}" --all-targets --all-features -- -D warnings
)
step cargo clippy "${libraries[@]}" --all-targets --no-default-features -- -D warnings
step cargo clippy -p netpoll --no-default-features --features signals -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps

# Each package builds from what is published of it alone. In a directory of its own each time: cargo keeps what
# it has unpacked of a version by the path of the registry that it makes there.
mkdir -p "$target_root"
packages=$(mktemp -d "$target_root/packages.XXXXXX")
CARGO_TARGET_DIR="$packages" step cargo package --workspace --allow-dirty --quiet
rm -r "$packages"

# What users of the libraries get with them: no runtime, and nothing that ThreadSanitizer and loom
# cannot follow.
tree=$(cargo tree --edges normal --prefix none --all-features "${libraries[@]}")
if grep -E '^(tokio|async-std|futures|crossbeam-channel|flume)([ -]|$)' <<<"$tree"; then
    echo "the libraries must not depend on these" >&2
    exit 1
fi

# The libraries promise an older compiler than the tests and tools need.
msrv=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
toolchain=$( (rustup toolchain list 2>/dev/null || true) | sed -n "s/^\($msrv[^ ]*\).*/\1/p" | head -n 1)
if [ -n "$toolchain" ]; then
    CARGO_TARGET_DIR="$target_root/msrv" step cargo "+$toolchain" check "${libraries[@]}" --all-features
else
    skip "Rust $msrv is not installed: 'rustup toolchain install $msrv' to check the libraries with it"
fi

# The oldest dependencies that the manifests allow. Only a nightly cargo selects them, so that is asked of a
# copy; the usual compiler builds it.
if cargo +nightly --version >/dev/null 2>&1; then
    copy="$target_root/oldest"
    rm -rf "$copy" && mkdir -p "$copy"
    git ls-files -co --exclude-standard -- . ':!benches' ':!fuzz' ':!tests' | tar -cf - -T - | tar -xf - -C "$copy"
    step cargo +nightly update --quiet --manifest-path "$copy/Cargo.toml" -Z direct-minimal-versions
    CARGO_TARGET_DIR="$target_root/msrv" step cargo check --manifest-path "$copy/Cargo.toml" \
        "${libraries[@]}" --all-features
else
    skip "there is no nightly cargo to select the oldest dependencies"
fi

if command -v cargo-deny >/dev/null; then
    step cargo deny --offline check bans licenses sources
    step cargo deny --offline "${benches[@]}" check --config deny.toml bans licenses sources
else
    skip "cargo-deny is not installed"
fi
