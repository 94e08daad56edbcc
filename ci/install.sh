#!/usr/bin/env bash
# What the checks need beyond Rust. Everything here may fail without failing the run: the tests that
# talk to foreign programs say that they were skipped when a program is missing.
source "$(dirname "$0")/lib.sh"

for component in rustfmt clippy; do
    case $component in
    rustfmt) probe=(cargo fmt --version) ;;
    clippy) probe=(cargo clippy --version) ;;
    esac
    if ! "${probe[@]}" >/dev/null 2>&1; then
        step rustup component add "$component"
    fi
done

# Program and the Debian package it comes in.
missing=()
for pair in nc:netcat-openbsd socat:socat redis-server:redis-server python3:python3; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done

if [ "${#missing[@]}" -eq 0 ]; then
    echo "nc, socat, redis-server and python3 are there"
elif ! command -v apt-get >/dev/null; then
    skip "no apt-get: tests that need ${missing[*]} will be skipped"
else
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo -n)
    fi
    export DEBIAN_FRONTEND=noninteractive
    if "${as_root[@]}" timeout 120 apt-get update -q &&
        "${as_root[@]}" timeout 180 apt-get install -q -y --no-install-recommends "${missing[@]}"; then
        echo "installed ${missing[*]}"
    else
        skip "apt-get could not install ${missing[*]}: tests that need them will be skipped"
    fi
fi
