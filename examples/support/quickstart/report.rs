//! How far it is, and what came out.

use hdrhistogram::Histogram;
use std::{
    io::{self, IsTerminal, Write as _},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// What one or more callers measured.
pub(crate) struct Meter {
    nanos: Histogram<u64>,
    bytes: u64,
}

impl Meter {
    pub(crate) fn new() -> Self {
        // Up to a minute, to three digits.
        let nanos = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("a valid range");
        Self { nanos, bytes: 0 }
    }

    /// One call.
    pub(crate) fn record(&mut self, time: Duration, bytes: usize) {
        self.nanos.saturating_record(time.as_nanos() as u64);
        self.bytes += bytes as u64;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.nanos
            .add(&other.nanos)
            .expect("histograms of the same range");
        self.bytes += other.bytes;
    }
}

/// One line of the table.
pub(crate) struct Row {
    pub(crate) transport: &'static str,
    pub(crate) client: &'static str,
    pub(crate) elapsed: Duration,
    pub(crate) allocated: u64,
    pub(crate) meter: Meter,
}

/// Prints the table.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "\n{:5} {:17} {:>10} {:>9} {:>9} {:>9} {:>12}",
        "", "client", "calls/s", "p50 us", "p99 us", "MB", "allocs/call"
    );
    for row in rows {
        let nanos = &row.meter.nanos;
        let micros = |quantile| nanos.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "{:5} {:17} {:>10.0} {:>9.1} {:>9.1} {:>9.1} {:>12.2}",
            row.transport,
            row.client,
            nanos.len() as f64 / row.elapsed.as_secs_f64(),
            micros(0.5),
            micros(0.99),
            row.meter.bytes as f64 / 1e6,
            row.allocated as f64 / nanos.len().max(1) as f64,
        );
    }
    println!("Bytes and allocations are those of both sides.\n");
}

/// A bar that fills while the parts run; without a terminal one line for each part.
pub(crate) struct Progress {
    parts: u32,
    done: u32,
    label: String,
    live: bool,
}

impl Progress {
    const WIDTH: usize = 40;

    pub(crate) fn new(parts: u32) -> Self {
        Self {
            parts,
            done: 0,
            label: String::new(),
            live: io::stdout().is_terminal(),
        }
    }

    pub(crate) fn begin(&mut self, transport: &str, client: &str) {
        self.label = format!("{transport}, {client}");
        self.draw(0.0);
    }

    /// Waits for `time`, or until `stop` is set.
    pub(crate) fn wait(&self, time: Duration, stop: &AtomicBool) {
        let begin = Instant::now();
        loop {
            let gone = begin.elapsed();
            if gone >= time || stop.load(Ordering::Relaxed) {
                return;
            }
            self.draw(gone.as_secs_f64() / time.as_secs_f64());
            thread::sleep((time - gone).min(Duration::from_millis(50)));
        }
    }

    pub(crate) fn end(&mut self) {
        self.done += 1;
        self.draw(0.0);
        if !self.live {
            println!("[{}/{}] {}", self.done, self.parts, self.label);
        } else if self.done == self.parts {
            println!();
        }
    }

    fn draw(&self, part: f64) {
        if !self.live {
            return;
        }
        let whole = (f64::from(self.done) + part) / f64::from(self.parts);
        let filled = (whole * Self::WIDTH as f64) as usize;
        let (full, empty) = (
            "#".repeat(filled),
            ".".repeat(Self::WIDTH.saturating_sub(filled)),
        );
        print!(
            "\r[{full}{empty}] {:3.0} %  {:24}",
            whole * 100.0,
            self.label
        );
        // Only for the eye: a terminal that is gone does not matter.
        let _ = io::stdout().flush();
    }
}
