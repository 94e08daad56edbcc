//! What all parts of a run share: where things run, what is kept of them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Options;
use super::point::Times;
use super::progress::Progress;
use super::scenario::{Mode, Scenario, What};
use super::server::Settings;
use crate::results::{Failed, Results, Sample};
use crate::sys;

pub(super) struct Run<'a> {
    pub(super) options: &'a Options,
    pub(super) results: Results,
    pub(super) progress: Progress,
    pub(super) times: Times,
    pub(super) deadline: Option<Instant>,
    pub(super) program: PathBuf,
    /// Steps of one computation, the same for all servers.
    pub(super) steps: u64,
    /// The cores there are to run on, at least one.
    pub(super) cores: Vec<usize>,
}

/// What a figure belongs to.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) mode: &'a str,
    pub(super) scenario: &'a str,
    pub(super) who: &'a str,
    pub(super) round: usize,
}

impl Run<'_> {
    /// Runs all scenarios of `mode`.
    pub(super) fn mode(&mut self, mode: Mode) -> io::Result<()> {
        self.place(mode)?;
        let options = self.options;
        let of_mode = options
            .scenarios
            .iter()
            .filter(|(_, modes)| modes.contains(&mode));
        let chosen: Vec<&Scenario> = of_mode.map(|(scenario, _)| scenario).collect();
        let part = |wanted: fn(&What) -> bool| -> Vec<&Scenario> {
            chosen
                .iter()
                .copied()
                .filter(|scenario| wanted(&scenario.what))
                .collect()
        };
        self.loads(mode, &part(|what| matches!(what, What::Load(_))))?;
        self.proxied(mode, &part(|what| matches!(what, What::Proxied(_))))?;
        self.calls(mode, &part(|what| matches!(what, What::Call(_))))?;
        for scenario in part(|what| matches!(what, What::Idle { .. })) {
            self.silent(mode, scenario);
        }
        Ok(())
    }

    /// Puts this thread where the load generator belongs.
    pub(super) fn place(&self, mode: Mode) -> io::Result<()> {
        match mode {
            Mode::Pinned => sys::set_affinity(&[self.second_core()]),
            Mode::Free => sys::set_affinity(&self.cores),
        }
    }

    /// The second core, or the only one.
    fn second_core(&self) -> usize {
        self.cores[1.min(self.cores.len() - 1)]
    }

    /// How what is measured is started in `mode`.
    pub(super) fn settings(&self, mode: Mode) -> Settings {
        Settings {
            program: self.program.clone(),
            congestion: self.options.congestion.clone(),
            steps: self.steps,
            core: (mode == Mode::Pinned).then_some(self.cores[0]),
            backend: None,
            under: Vec::new(),
        }
    }

    /// How the server is started that clients are measured against in `mode`.
    pub(super) fn opposite(&self, mode: Mode) -> Settings {
        let core = (mode == Mode::Pinned).then_some(self.second_core());
        Settings {
            core,
            ..self.settings(mode)
        }
    }

    /// Whether the time is up; says so.
    pub(super) fn is_late(&self) -> bool {
        let late = self
            .deadline
            .is_some_and(|deadline| Instant::now() > deadline);
        if late {
            self.progress.say("the time is up: the rest is left out");
        }
        late
    }

    /// Shows what is done now.
    pub(super) fn doing(&self, at: At<'_>) {
        self.progress
            .doing(&format!("{} {} {}", at.mode, at.scenario, at.who));
    }

    /// Says that a round is over.
    pub(super) fn round_done(&self, mode: Mode, what: &str, round: usize) {
        let (mode, all) = (mode.name(), self.options.rounds);
        self.progress
            .say(&format!("{mode} {what}: round {} of {all} done", round + 1));
    }

    /// Keeps the figures, or why there are none.
    pub(super) fn keep(&mut self, at: At<'_>, figures: io::Result<BTreeMap<String, f64>>) {
        let (mode, scenario) = (at.mode.to_owned(), at.scenario.to_owned());
        let (peer, round) = (at.who.to_owned(), at.round);
        match figures {
            Ok(figures) => {
                self.results.samples.push(Sample {
                    mode,
                    scenario,
                    peer,
                    round,
                    figures,
                });
            }
            Err(error) => {
                let reason = error.to_string();
                self.progress
                    .say(&format!("{mode} {scenario} {peer}: {reason}"));
                self.results.failed.push(Failed {
                    mode,
                    scenario,
                    peer,
                    round,
                    reason,
                });
            }
        }
    }

    /// Measures every server of the run with silent connections.
    fn silent(&mut self, mode: Mode, scenario: &Scenario) {
        let What::Idle { connections } = scenario.what else {
            return;
        };
        for peer in &self.options.peers {
            if self.is_late() {
                return;
            }
            let (mode_name, scenario) = (mode.name(), &scenario.name);
            if !self.options.takes(mode_name, scenario, peer.name) {
                continue;
            }
            let at = At {
                mode: mode_name,
                scenario,
                who: peer.name,
                round: 0,
            };
            self.doing(at);
            let figures = super::idle::measure(peer.name, &self.settings(mode), connections);
            self.keep(at, figures);
            self.progress.done();
        }
        // What was closed last is not to disturb what comes next.
        std::thread::sleep(Duration::from_millis(20));
    }
}
