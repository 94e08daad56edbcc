//! One line of the record: what server and load say at a moment.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::child::Resources;
use super::figures::Figures;
use super::tally::{Act, Tally};

/// What the load has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) acts: Vec<(Act, u64)>,
    pub(super) connects: u64,
    pub(super) answers: u64,
    pub(super) held_answers: u64,
    pub(super) bytes: u64,
    pub(super) wrong_bytes: u64,
    pub(super) lost: u64,
    pub(super) stale: u64,
    pub(super) port_waits: u64,
}

impl Load {
    /// The counts of now.
    pub(super) fn of(tally: &Tally) -> Self {
        Self {
            acts: tally.acts(),
            connects: tally.connects.load(Relaxed),
            answers: tally.answers.load(Relaxed),
            held_answers: tally.held_answers.load(Relaxed),
            bytes: tally.bytes.load(Relaxed),
            wrong_bytes: tally.wrong_bytes.load(Relaxed),
            lost: tally.lost.load(Relaxed),
            stale: tally.stale.load(Relaxed),
            port_waits: tally.port_waits.load(Relaxed),
        }
    }

    /// How often `act` has ended as it should.
    pub(super) fn count(&self, act: Act) -> u64 {
        let found = self.acts.iter().find(|(one, _)| *one == act);
        found.map_or(0, |(_, count)| *count)
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Since the load began.
    pub(super) at: Duration,
    pub(super) figures: Figures,
    pub(super) load: Load,
    pub(super) resources: Resources,
    /// Episodes that have begun.
    pub(super) episodes: u64,
}

type Column = (&'static str, fn(&Sample) -> u64);

/// The columns behind the time.
const COLUMNS: [Column; 29] = [
    ("connections", |one| one.figures.active),
    ("accepted", |one| one.figures.accepted),
    ("requests", |one| one.figures.requests),
    ("request_bytes", |one| one.figures.bytes),
    ("answers", |one| one.load.answers),
    ("heap_kib", |one| one.figures.heap / 1024),
    ("rss_kib", |one| one.resources.rss_kib),
    ("descriptors", |one| one.resources.descriptors),
    ("threads", |one| one.resources.threads),
    ("cpu_ms", |one| one.resources.cpu.as_millis() as u64),
    ("wrong_bytes", |one| {
        one.load.wrong_bytes + one.figures.wrong_bytes
    }),
    ("misplaced", |one| one.figures.misplaced),
    ("order_violations", |one| one.figures.order_violations),
    ("lost_answers", |one| one.load.lost),
    ("panics", |one| one.figures.loop_panics),
    ("panics_unexpected", |one| one.figures.panics_unexpected),
    ("accepts_without_descriptor", |one| one.figures.emfile),
    ("episodes", |one| one.episodes),
    ("prepared", |one| one.figures.prepared),
    ("connected", |one| one.figures.connected),
    ("disconnected", |one| one.figures.disconnected),
    ("closed", |one| one.figures.closed),
    ("churned", |one| one.load.count(Act::Churn)),
    ("resets", |one| one.load.count(Act::Reset)),
    ("half_closes", |one| one.load.count(Act::HalfClose)),
    ("partials", |one| one.load.count(Act::Partial)),
    ("stalls", |one| one.load.count(Act::Stall)),
    ("pooled_calls", |one| one.load.count(Act::Pooled)),
    ("stale", |one| one.load.stale),
];

/// The record as comma-separated values, a header first.
pub(super) fn csv(samples: &[Sample]) -> String {
    let mut text = String::from("t_s");
    for (name, _) in COLUMNS {
        let _ = write!(text, ",{name}");
    }
    text.push('\n');
    for sample in samples {
        let _ = write!(text, "{:.1}", sample.at.as_secs_f64());
        for (_, value) in COLUMNS {
            let _ = write!(text, ",{}", value(sample));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_value_for_every_column() {
        let mut sample = Sample {
            at: Duration::from_millis(2340),
            ..Sample::default()
        };
        sample.figures.active = 12;
        sample.figures.wrong_bytes = 3;
        sample.load.wrong_bytes = 4;
        sample.load.acts = vec![(Act::Churn, 5), (Act::Reset, 6)];
        sample.resources.cpu = Duration::from_millis(789);
        let text = csv(&[sample.clone(), sample]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == COLUMNS.len() + 1));
        let value = |name: &str| {
            let column = lines[0].iter().position(|one| *one == name);
            lines[2][column.expect(name)]
        };
        assert_eq!(value("t_s"), "2.3");
        assert_eq!(value("connections"), "12");
        assert_eq!(value("wrong_bytes"), "7");
        assert_eq!(value("cpu_ms"), "789");
        assert_eq!((value("churned"), value("resets")), ("5", "6"));
        assert_eq!(value("half_closes"), "0");
    }
}
