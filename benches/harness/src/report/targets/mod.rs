//! What netpoll is to reach, and whether it does.

mod list;

use self::list::TARGETS;
use super::overview::short;
use super::table::Table;
use crate::compare::scenario;
use crate::results::{Place, Results};
use crate::stats::{self, Median};

/// What a figure is compared with.
#[derive(Clone, Copy)]
enum Against {
    /// The reference of the scenario, round by round.
    Reference,
    /// The best of these servers, round by round.
    Best(&'static [&'static str]),
    /// The same server in another scenario of the same mode, round by round.
    Own(&'static str),
    /// Nothing: the figure itself is limited.
    Nothing,
}

/// Which side of the limit is good.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    AtMost,
    AtLeast,
}

struct Target {
    who: &'static str,
    mode: &'static str,
    scenario: &'static str,
    figure: &'static str,
    against: Against,
    side: Side,
    limit: f64,
}

impl Target {
    /// What was measured, and what the second copy of the reference says of the noise.
    fn measured(&self, results: &Results) -> Option<(Median, f64)> {
        let Self {
            mode,
            scenario,
            who,
            figure,
            ..
        } = *self;
        let place = Place {
            mode,
            scenario,
            peer: who,
        };
        let values = results.values(&place, figure);
        let ratios: Vec<f64> = match self.against {
            Against::Reference => results.ratios(&place, figure, reference(scenario)?.0),
            Against::Best(others) => {
                let best = self.best(results, others)?;
                results.ratios(&place, figure, best)
            }
            Against::Own(other) => {
                let base = results.values(
                    &Place {
                        scenario: other,
                        ..place
                    },
                    figure,
                );
                let ratio = |(round, value): (usize, f64)| Some(value / base.get(&round)?);
                values.into_iter().filter_map(ratio).collect()
            }
            Against::Nothing => values.into_values().collect(),
        };
        let (first, second) = reference(scenario)?;
        let band = match self.against {
            Against::Nothing => 1.0,
            _ => {
                let copy = Place {
                    peer: second,
                    ..place
                };
                stats::band(results.ratios(&copy, figure, first)).unwrap_or(1.0)
            }
        };
        Some((stats::median(ratios)?, band))
    }

    /// The one of `others` that did best over all rounds.
    fn best(&self, results: &Results, others: &[&'static str]) -> Option<&'static str> {
        let Self {
            mode,
            scenario,
            figure,
            ..
        } = *self;
        let median = |peer: &'static str| {
            let values = results.values(
                &Place {
                    mode,
                    scenario,
                    peer,
                },
                figure,
            );
            Some((peer, stats::median(values.into_values())?.value))
        };
        let known = others.iter().filter_map(|peer| median(peer));
        let better = |a: &(&str, f64), b: &(&str, f64)| match self.side {
            Side::AtLeast => a.1.total_cmp(&b.1),
            Side::AtMost => b.1.total_cmp(&a.1),
        };
        known.max_by(better).map(|best| best.0)
    }

    fn verdict(&self, measured: f64, band: f64) -> &'static str {
        let reached = |limit: f64| match self.side {
            Side::AtMost => measured <= limit,
            Side::AtLeast => measured >= limit,
        };
        let widened = if self.side == Side::AtMost {
            self.limit * band
        } else {
            self.limit / band
        };
        match (reached(self.limit), reached(widened)) {
            (true, _) => "met",
            (_, true) => "within the noise",
            _ => "**missed**",
        }
    }

    fn base(&self, results: &Results) -> String {
        match self.against {
            Against::Reference => "reference".into(),
            Against::Best(others) => self.best(results, others).unwrap_or("-").into(),
            Against::Own(other) => format!("own {other}"),
            Against::Nothing => "-".into(),
        }
    }
}

/// The reference of the scenario called `name`, and its second copy.
fn reference(name: &str) -> Option<(&'static str, &'static str)> {
    scenario::all()
        .into_iter()
        .find(|one| one.name == name)
        .map(|one| one.reference())
}

/// A table of the targets there are results for; empty when there are none.
pub(super) fn table(results: &Results) -> String {
    let head = [
        "scenario",
        "server",
        "figure",
        "against",
        "target",
        "measured",
        "90 % interval",
        "band",
        "",
    ];
    let mut table = Table::new(head);
    for target in TARGETS {
        let Some((median, band)) = target.measured(results) else {
            continue;
        };
        let sign = if target.side == Side::AtMost {
            "<="
        } else {
            ">="
        };
        table.row([
            Some(format!("{} {}", target.scenario, target.mode)),
            Some(target.who.to_owned()),
            Some(target.figure.replace('_', " ")),
            Some(target.base(results)),
            Some(format!("{sign} {}", target.limit)),
            Some(short(median.value)),
            Some(format!("{} - {}", short(median.low), short(median.high))),
            Some(format!("x {band:.2}")),
            Some(target.verdict(median.value, band).to_owned()),
        ]);
    }
    if table.is_empty() {
        return String::new();
    }
    format!(
        "## What netpoll is to reach\n\nRatios are medians over the rounds. A target counts as missed when \
         the ratio lies outside target x band, the band being the noise of this scenario and figure.\n\n{}\n",
        table.text()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Side::AtLeast;
    use super::list::{cpu, of};
    use super::*;
    use crate::results::{Sample, metric};

    fn results(rows: &[(&str, &str, f64)]) -> Results {
        let sample = |&(scenario, peer, value): &(&str, &str, f64)| Sample {
            mode: "free".into(),
            scenario: scenario.into(),
            peer: peer.into(),
            round: 0,
            figures: BTreeMap::from([(metric::RATE.to_owned(), value)]),
        };
        Results {
            samples: rows.iter().map(sample).collect(),
            ..Results::default()
        }
    }

    #[test]
    fn the_best_of_others_is_what_counts() {
        let results = results(&[
            ("sleep-1-100", "handoff", 70.0),
            ("sleep-1-100", "netpoll-workers", 60.0),
            ("sleep-1-100", "netpoll", 63.0),
            ("sleep-1-100", "raw-epoll", 1.0),
            ("sleep-1-100", "raw-epoll-2", 0.9),
        ]);
        let text = table(&results);
        assert!(
            text.contains(" handoff |") && text.contains("0.90"),
            "{text}"
        );
        assert!(text.contains("within the noise"), "{text}");
    }

    #[test]
    fn a_limit_is_met_widened_or_missed() {
        let target = of(
            "free",
            "compute-100",
            metric::RATE,
            Against::Nothing,
            AtLeast,
            1.6,
        );
        let verdicts = [1.7, 1.5, 1.3].map(|value| target.verdict(value, 1.1));
        assert_eq!(verdicts, ["met", "within the noise", "**missed**"]);
        assert_eq!(cpu("free", "churn", 1.1).verdict(1.2, 1.05), "**missed**");
    }

    #[test]
    fn every_target_names_a_scenario_and_a_server_there_is() {
        for target in TARGETS {
            let found = scenario::all()
                .into_iter()
                .find(|one| one.name == target.scenario);
            let scenario = found.unwrap_or_else(|| panic!("{}", target.scenario));
            assert!(
                scenario.contestants().contains(&target.who),
                "{}",
                target.who
            );
        }
        assert!(table(&Results::default()).is_empty());
    }
}
