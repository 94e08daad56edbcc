#!/usr/bin/env bash
# The slow tests, which `cargo test` leaves out and says so: chaos, the matrix of relays, long races, the testbed's
# programs and redis behind the proxy. Arguments go to the test programs: a test's name, for example.
source "$(dirname "$0")/lib.sh"

# The only other tests that are left out measure and judge nothing.
step cargo test -p netpoll --no-fail-fast --tests -- --ignored --skip what_stays_after_peaks "$@"
