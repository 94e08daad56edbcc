#!/usr/bin/env bash
# The tests, as in the README, documentation examples included. Arguments go to cargo test.
source "$(dirname "$0")/lib.sh"

step cargo test --workspace "$@"
