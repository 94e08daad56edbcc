//! What a message costs in linkbuffer, in nanoseconds, and how many times what it costs elsewhere.
//!
//! The candidates take turns, a few thousand messages each, and the medians of their turns are
//! compared: what disturbs the machine disturbs all of them.
//!
//! `cargo bench --manifest-path benches/Cargo.toml --bench ratios`, with a part of a table's title to see only
//! that.

#![allow(missing_docs)]

mod cases;

use std::time::Instant;

use cases::Candidate;

/// Turns of each candidate, and the time one should take.
const TURNS: usize = 101;
const TURN_NANOS: u128 = 400_000;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let benching = args.iter().any(|a| a == "--bench");
    let turns = if benching { TURNS } else { 1 };
    let only = args
        .into_iter()
        .find(|a| !a.starts_with('-'))
        .unwrap_or_default();
    for (title, candidates) in TABLES {
        if title.contains(&only) {
            table(title, candidates, turns);
        }
    }
}

type Candidates = fn(usize) -> Vec<Candidate>;

const TABLES: [(&str, Candidates); 4] = [
    ("receive, body owned", cases::receive_owned),
    ("receive, body borrowed", cases::receive_borrowed),
    ("send", cases::send),
    ("send, length filled in last", cases::send_with_slot),
];

fn table(title: &str, candidates: Candidates, turns: usize) {
    let names: Vec<_> = candidates(64).iter().map(|c| c.name).collect();
    println!("\n| {title} | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for body in cases::SIZES {
        let medians = measure(candidates(body), turns);
        let ours = medians[0];
        let cells = medians.iter().enumerate().map(|(i, &nanos)| match i {
            0 => format!("{nanos:.0} ns"),
            _ => format!("{nanos:.0} ns: **{:.2}**", ours / nanos),
        });
        println!("| {body} B | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

/// Median nanoseconds per message of each candidate.
fn measure(mut candidates: Vec<Candidate>, turns: usize) -> Vec<f64> {
    let rounds: Vec<u32> = candidates.iter_mut().map(calibrate).collect();
    let mut times = vec![Vec::with_capacity(turns); candidates.len()];
    for _ in 0..turns {
        for ((candidate, &n), times) in candidates.iter_mut().zip(&rounds).zip(&mut times) {
            times.push(turn(candidate, n).as_nanos() as f64 / f64::from(n));
        }
    }
    times
        .into_iter()
        .map(|mut t| {
            t.sort_by(f64::total_cmp);
            t[t.len() / 2]
        })
        .collect()
}

fn turn(candidate: &mut Candidate, n: u32) -> std::time::Duration {
    let start = Instant::now();
    for _ in 0..n {
        (candidate.step)();
    }
    start.elapsed()
}

/// Messages that fill a turn.
fn calibrate(candidate: &mut Candidate) -> u32 {
    let mut n = 16;
    loop {
        let took = turn(candidate, n).as_nanos();
        if took * 2 > TURN_NANOS || n > 1 << 20 {
            return n;
        }
        n *= 2;
    }
}
