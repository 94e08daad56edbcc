//! What a comparison has found, as it is written to disk and read again.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// Names of the figures of a sample, with their units.
pub(crate) mod metric {
    /// Answers per second.
    pub(crate) const RATE: &str = "requests_per_second";
    /// Latency of the unmarked requests, microseconds.
    pub(crate) const P50: &str = "p50_us";
    /// See [`P50`].
    pub(crate) const P99: &str = "p99_us";
    /// See [`P50`].
    pub(crate) const P999: &str = "p999_us";
    /// Latency of the marked requests, microseconds.
    pub(crate) const MARKED_P50: &str = "marked_p50_us";
    /// See [`MARKED_P50`].
    pub(crate) const MARKED_P99: &str = "marked_p99_us";
    /// CPU microseconds of the server per request.
    pub(crate) const CPU: &str = "cpu_us_per_request";
    /// CPU microseconds of the server per MiB that was moved, both ways counted.
    pub(crate) const CPU_MIB: &str = "cpu_us_per_mib";
    /// Cores the server kept busy.
    pub(crate) const CORES: &str = "server_cores";
    /// Context switches of the server per request, when it waited.
    pub(crate) const VOLUNTARY: &str = "voluntary_switches_per_request";
    /// Context switches of the server per request, when its core was taken.
    pub(crate) const INVOLUNTARY: &str = "involuntary_switches_per_request";
    /// Cores the load generator kept busy.
    pub(crate) const GENERATOR: &str = "generator_cores";
    /// Cores the server behind a proxy kept busy.
    pub(crate) const BACKEND: &str = "backend_cores";
    /// Cores that neither server nor load generator kept busy: the disturbance.
    pub(crate) const FOREIGN: &str = "foreign_cores";
    /// Private memory of the server at the end, MiB.
    pub(crate) const MEMORY: &str = "server_memory_mib";
    /// Private memory per silent connection after it was made, bytes.
    pub(crate) const BYTES_CONNECTED: &str = "bytes_per_connection_connected";
    /// Private memory per silent connection after one request, bytes.
    pub(crate) const BYTES_USED: &str = "bytes_per_connection_used";
    /// Share of a core a server with silent connections uses.
    pub(crate) const IDLE_CPU: &str = "idle_cores";
    /// Threads of the server.
    pub(crate) const THREADS: &str = "threads";
    /// System calls per request.
    pub(crate) const SYSCALLS: &str = "syscalls_per_request";
    /// User-space instructions per request.
    pub(crate) const INSTRUCTIONS: &str = "instructions_per_request";
    /// Calls of the memory allocator per request.
    pub(crate) const ALLOCATIONS: &str = "allocations_per_request";
    /// Bytes copied in user space per request, by memcpy and its like.
    pub(crate) const COPIES: &str = "bytes_copied_per_request";
}

/// One measurement.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// `pinned` or `free`.
    pub(crate) mode: String,
    /// Name of the scenario.
    pub(crate) scenario: String,
    /// Name of the server.
    pub(crate) peer: String,
    /// Which round it belongs to; ratios are formed within a round.
    pub(crate) round: usize,
    /// The figures, by the names in [`metric`].
    pub(crate) figures: BTreeMap<String, f64>,
}

/// A measurement that could not be made.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Failed {
    pub(crate) mode: String,
    pub(crate) scenario: String,
    pub(crate) peer: String,
    pub(crate) round: usize,
    /// Why.
    pub(crate) reason: String,
}

/// Where and how the figures were taken.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct Environment {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) congestion: String,
    /// How often and how long was measured, an entry per run.
    pub(crate) runs: Vec<String>,
    /// Versions of the crates and programs the peers are built on.
    pub(crate) versions: Vec<String>,
    /// Load average when the run began and ended.
    pub(crate) load_average: Vec<String>,
}

impl Environment {
    /// What is said of both runs; what is said twice is said once.
    fn merge(&mut self, other: Self) {
        if self.date.is_empty() {
            *self = other;
            return;
        }
        for (own, new) in [
            (&mut self.date, other.date),
            (&mut self.processor, other.processor),
            (&mut self.kernel, other.kernel),
            (&mut self.congestion, other.congestion),
        ] {
            if !own.split(" and ").any(|one| one == new) {
                own.push_str(" and ");
                own.push_str(&new);
            }
        }
        self.cores = self.cores.max(other.cores);
        self.runs.extend(other.runs);
        self.load_average.extend(other.load_average);
        for version in other.versions {
            if !self.versions.contains(&version) {
                self.versions.push(version);
            }
        }
    }
}

/// All of a run.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct Results {
    pub(crate) environment: Environment,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failed: Vec<Failed>,
    /// System calls per request by name, for each scenario and peer that was traced.
    pub(crate) calls: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Results {
    /// Reads what [`Self::write`] has written.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Writes all figures as JSON.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string(self)?;
        // One sample per line: readable, and small differences stay small.
        text = text.replace("{\"mode\"", "\n{\"mode\"");
        text.push('\n');
        fs::write(path, text)
    }

    /// Adds what another run has found; its rounds count on from those there are.
    pub(crate) fn merge(&mut self, other: Self) {
        let rounds = self.samples.iter().map(|one| one.round);
        let first = rounds
            .chain(self.failed.iter().map(|one| one.round))
            .max()
            .map_or(0, |last| last + 1);
        self.samples
            .extend(other.samples.into_iter().map(|sample| Sample {
                round: sample.round + first,
                ..sample
            }));
        self.failed
            .extend(other.failed.into_iter().map(|failed| Failed {
                round: failed.round + first,
                ..failed
            }));
        self.calls.extend(other.calls);
        self.environment.merge(other.environment);
    }

    /// The values of `figure` for a server in a scenario, by round.
    pub(crate) fn values(&self, at: &Place<'_>, figure: &str) -> BTreeMap<usize, f64> {
        let of = |sample: &&Sample| {
            sample.mode == at.mode && sample.scenario == at.scenario && sample.peer == at.peer
        };
        let values = self.samples.iter().filter(of);
        values
            .filter_map(|one| Some((one.round, *one.figures.get(figure)?)))
            .collect()
    }

    /// Whether there is any figure of a scenario in a mode.
    pub(crate) fn has(&self, mode: &str, scenario: &str) -> bool {
        let of = |one: &Sample| one.mode == mode && one.scenario == scenario;
        self.samples.iter().any(of)
    }

    /// The ratios of `figure` to that of the server `reference` in the same round.
    pub(crate) fn ratios(&self, at: &Place<'_>, figure: &str, reference: &str) -> Vec<f64> {
        let base = self.values(
            &Place {
                peer: reference,
                ..*at
            },
            figure,
        );
        let own = self.values(at, figure).into_iter();
        own.filter_map(|(round, value)| Some(value / base.get(&round)?))
            .collect()
    }
}

/// Which figures are meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) mode: &'a str,
    pub(crate) scenario: &'a str,
    pub(crate) peer: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(peer: &str, round: usize, value: f64) -> Sample {
        let figures = BTreeMap::from([("x".to_owned(), value)]);
        let (mode, scenario) = ("free".into(), "s".into());
        Sample {
            mode,
            scenario,
            peer: peer.into(),
            round,
            figures,
        }
    }

    #[test]
    fn ratios_pair_the_samples_of_a_round() {
        let samples = vec![
            sample("a", 0, 2.0),
            sample("b", 0, 3.0),
            sample("b", 1, 5.0),
            sample("a", 1, 5.0),
            sample("b", 2, 9.0),
        ];
        let results = Results {
            samples,
            ..Results::default()
        };
        let place = Place {
            mode: "free",
            scenario: "s",
            peer: "b",
        };
        assert_eq!(results.ratios(&place, "x", "a"), [1.5, 1.0]);
        assert!(
            results
                .ratios(
                    &Place {
                        mode: "pinned",
                        ..place
                    },
                    "x",
                    "a"
                )
                .is_empty()
        );
    }

    #[test]
    fn merged_rounds_stay_apart() {
        let of = |value| Results {
            samples: vec![sample("a", 0, value), sample("b", 0, 2.0 * value)],
            ..Results::default()
        };
        let mut all = of(1.0);
        all.merge(of(7.0));
        let place = Place {
            mode: "free",
            scenario: "s",
            peer: "b",
        };
        assert_eq!(all.ratios(&place, "x", "a"), [2.0, 2.0]);
        assert_eq!(
            all.values(&place, "x").into_values().collect::<Vec<_>>(),
            [2.0, 14.0]
        );
    }

    #[test]
    fn merged_runs_say_what_differs_once() {
        let of = |kernel: &str, runs: &str, version: &str| Results {
            environment: Environment {
                date: "2026-01-01".into(),
                kernel: kernel.into(),
                runs: vec![runs.into()],
                versions: vec!["mio 1.0".into(), version.into()],
                ..Environment::default()
            },
            failed: vec![Failed {
                mode: "free".into(),
                scenario: "s".into(),
                peer: "a".into(),
                round: 0,
                reason: "none".into(),
            }],
            ..Results::default()
        };
        let mut all = Results::default();
        for (kernel, runs) in [("6.1", "9 rounds"), ("6.2", "5 rounds"), ("6.2", "1 round")] {
            all.merge(of(kernel, runs, "haproxy 2.6"));
        }
        let place = &all.environment;
        assert_eq!(
            (place.date.as_str(), place.kernel.as_str()),
            ("2026-01-01", "6.1 and 6.2")
        );
        assert_eq!(place.runs, ["9 rounds", "5 rounds", "1 round"]);
        assert_eq!(place.versions, ["mio 1.0", "haproxy 2.6"]);
        let rounds: Vec<usize> = all.failed.iter().map(|one| one.round).collect();
        assert_eq!(rounds, [0, 1, 2]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let path = std::env::temp_dir().join(format!("netpoll-bench-{}.json", std::process::id()));
        let results = Results {
            samples: vec![sample("a", 3, 1.5)],
            ..Results::default()
        };
        results.write(&path).unwrap();
        assert_eq!(Results::read(&path).unwrap(), results);
        fs::remove_file(path).unwrap();
    }
}
