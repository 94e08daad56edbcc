//! details.md: every scenario with all its figures.

use std::fmt::Write as _;

use super::overview::short;
use super::present;
use super::table::Table;
use crate::compare::scenario::{self, Scenario, What};
use crate::results::{Place, Results, metric};
use crate::stats;

const INTRODUCTION: &str = "\
# Benchmarks in detail

Medians over the rounds. `ratio` is the median of the ratios to the reference of the same round, with
the interval that holds the true median with 90 % confidence (with fewer than six rounds: the extremes).
Switches are context switches of the server per request, waiting / its core taken. `generator` and
`others` are the cores the load generator and everything else on the machine kept busy.

";

/// The whole text.
pub(super) fn text(results: &Results) -> String {
    let mut text = String::from(INTRODUCTION);
    for mode in ["pinned", "free"] {
        for scenario in scenario::all() {
            if matches!(scenario.what, What::Idle { .. }) {
                continue;
            }
            let table = table(results, mode, &scenario);
            if !table.is_empty() {
                let (name, about) = (&scenario.name, &scenario.about);
                let _ = writeln!(text, "## {name}, {mode}\n\n{about}\n\n{}", table.text());
            }
        }
    }
    text
}

fn table(results: &Results, mode: &str, about: &Scenario) -> Table {
    let peers = present(results, about.contestants());
    let (reference, _) = about.reference();
    let scenario = about.name.as_str();
    let has_marked = peers.iter().any(|peer| {
        let place = Place {
            mode,
            scenario,
            peer,
        };
        !results.values(&place, metric::MARKED_P50).is_empty()
    });
    let is_bulk = peers.iter().any(|peer| {
        let place = Place {
            mode,
            scenario,
            peer,
        };
        !results.values(&place, metric::CPU_MIB).is_empty()
    });
    let mut head = vec![
        "server",
        "requests/s",
        "ratio",
        "CPU us",
        "ratio",
        "p50 us",
        "p99 us",
        "ratio",
        "p99.9 us",
    ];
    if has_marked {
        head.extend(["marked p50", "marked p99"]);
    }
    if is_bulk {
        head.extend(["CPU us/MiB"]);
    }
    head.extend([
        "cores",
        "switches",
        "memory MiB",
        "threads",
        "generator",
        "others",
        "rounds",
    ]);
    let mut table = Table::new(head);
    for peer in peers {
        let place = Place {
            mode,
            scenario,
            peer,
        };
        let of = |figure| stats::median(results.values(&place, figure).into_values());
        let value = |figure| of(figure).map(|median| short(median.value));
        let ratio = |figure| {
            let ratio = stats::median(results.ratios(&place, figure, reference))?;
            Some(format!(
                "{:.2} ({:.2} - {:.2})",
                ratio.value, ratio.low, ratio.high
            ))
        };
        let Some(rate) = of(metric::RATE) else {
            continue;
        };
        let mut row = vec![
            Some(peer.to_owned()),
            Some(format!("{:.0}", rate.value)),
            ratio(metric::RATE),
            value(metric::CPU),
            ratio(metric::CPU),
            value(metric::P50),
            value(metric::P99),
            ratio(metric::P99),
            value(metric::P999),
        ];
        if has_marked {
            row.extend([value(metric::MARKED_P50), value(metric::MARKED_P99)]);
        }
        let switches = of(metric::VOLUNTARY).map(|own| match of(metric::INVOLUNTARY) {
            Some(taken) => format!("{:.3} / {:.3}", own.value, taken.value),
            None => format!("{:.3}", own.value),
        });
        if is_bulk {
            row.extend([value(metric::CPU_MIB)]);
        }
        row.extend([
            value(metric::CORES),
            switches,
            value(metric::MEMORY),
            of(metric::THREADS).map(|threads| format!("{:.0}", threads.value)),
            value(metric::GENERATOR),
            value(metric::FOREIGN),
            Some(rate.count.to_string()),
        ]);
        table.row(row);
    }
    table
}
