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
            Side::AtMost => measured <= limit * EXACT,
            Side::AtLeast => measured >= limit / EXACT,
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

/// Who has to be measured in `mode` and `scenario` for the targets to be judged: the servers they
/// name, and the reference and its second copy for the noise. Nobody where there is no target.
pub(crate) fn needed(mode: &str, scenario: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for target in TARGETS.iter().filter(|target| target.mode == mode) {
        let is_base = matches!(target.against, Against::Own(other) if other == scenario);
        if target.scenario == scenario || is_base {
            names.push(target.who);
        }
        if let (Against::Best(others), true) = (target.against, target.scenario == scenario) {
            names.extend(others);
        }
    }
    if let (false, Some((first, second))) = (names.is_empty(), reference(scenario)) {
        names.extend([first, second]);
    }
    names.sort_unstable();
    names.dedup();
    names
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
        "rounds",
        "band",
        "",
    ];
    let mut table = Table::new(head);
    for target in TARGETS {
        if !results.has(target.mode, target.scenario) {
            continue;
        }
        let sign = if target.side == Side::AtMost {
            "<="
        } else {
            ">="
        };
        let head = [
            format!("{} {}", target.scenario, target.mode),
            target.who.to_owned(),
            target.figure.replace('_', " "),
            target.base(results),
            format!("{sign} {}", target.limit),
        ];
        let measured = match target.measured(results) {
            Some((median, band)) => [
                Some(short(median.value)),
                Some(format!("{} - {}", short(median.low), short(median.high))),
                Some(median.count.to_string()),
                Some(format!("x {band:.2}")),
                Some(target.verdict(median.value, band).to_owned()),
            ],
            None => [None, None, None, None, Some("not measured".into())],
        };
        table.row(head.into_iter().map(Some).chain(measured));
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

/// What is nearer than this is equal: a count is the difference of two runs over the requests of one,
/// and a few calls of thousands belong to neither.
const EXACT: f64 = 1.001;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Side::{AtLeast, AtMost};
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

    fn of_cpu(rows: &[(&str, &str, f64)]) -> Results {
        let mut results = results(rows);
        for sample in &mut results.samples {
            let value = sample.figures.remove(metric::RATE).unwrap();
            sample.figures.insert(metric::CPU.to_owned(), value);
        }
        results
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
        let calls = of(
            "counted",
            "call-1",
            metric::SYSCALLS,
            Against::Nothing,
            AtMost,
            3.0,
        );
        let verdicts = [3.0005, 3.01].map(|value| calls.verdict(value, 1.0));
        assert_eq!(verdicts, ["met", "**missed**"]);
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

    #[test]
    fn what_targets_need_is_who_they_name_and_the_references() {
        assert_eq!(
            needed("free", "sleep-10-100"),
            ["netpoll", "netpoll-workers", "raw-epoll", "raw-epoll-2"]
        );
        let proxies = ["haproxy", "haproxy-2", "haproxy-splice", "netpoll-relay"];
        assert_eq!(needed("pinned", "proxy-1m"), proxies);
        // Splits are compared with the same server without splits.
        assert!(needed("free", "pp-100-1k").contains(&"netpoll-fill"));
        assert!(needed("free", "pp-100-64").is_empty());
    }

    #[test]
    fn every_limit_has_the_noise_of_its_scenario() {
        for target in TARGETS {
            let (first, second) = reference(target.scenario).unwrap();
            let needed = needed(target.mode, target.scenario);
            assert!(
                needed.contains(&first) && needed.contains(&second),
                "{}",
                target.scenario
            );
        }
    }

    #[test]
    fn the_band_widens_a_limit_and_a_missing_peer_is_said() {
        let rows = [
            ("proxy-100-1k", "haproxy", 10.0),
            ("proxy-100-1k", "haproxy-2", 11.0),
            ("proxy-100-1k", "haproxy-splice", 10.5),
            ("proxy-100-1k", "netpoll-relay", 10.8),
        ];
        let text = table(&of_cpu(&rows));
        assert!(text.contains("| x 1.10 | within the noise |"), "{text}");
        assert!(
            text.contains(" haproxy |") && text.contains(" 1.08 |"),
            "{text}"
        );
        let without = table(&of_cpu(&rows[3..]));
        assert!(without.contains("not measured"), "{without}");
    }
}
