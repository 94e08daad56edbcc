//! `quickstart` runs to its end and shows what it measured.

#[path = "support/examples.rs"]
mod support;

use support::{run, text};

#[test]
fn quickstart_ends_well_and_prints_its_table() {
    let output = run("quickstart", &[]);
    let printed = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{printed} {}",
        text(&output.stderr)
    );
    for transport in ["tcp ", "unix "] {
        for client in ["pooled, blocking", "multiplexed"] {
            let row = printed
                .lines()
                .find(|line| line.starts_with(transport) && line.contains(client))
                .unwrap_or_else(|| panic!("no row {transport}{client} in {printed}"));
            let numbers: Vec<f64> = row
                .rsplit_once(client)
                .expect("it is there")
                .1
                .split_whitespace()
                .map(|number| number.parse().expect("a number"))
                .collect();
            let [calls, p50, p99, megabytes, allocations] = numbers[..] else {
                panic!("five numbers: {row}");
            };
            assert!(
                calls > 0.0 && p50 > 0.0 && p99 >= p50 && megabytes > 0.0,
                "{row}"
            );
            assert!(allocations >= 0.0, "{row}");
        }
    }
    assert!(
        printed.contains("18 connections served, 0 left, 0 panics"),
        "{printed}"
    );
    assert!(printed.contains("[4/4]"), "{printed}");
}
