//! Servers that go on running between their measurements, stopped while it is not their turn.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::run::{At, Run};
use super::scenario::{Mode, Scenario, Shape, What};
use super::server::{Server, Settings};
use super::{point, procfs};
use crate::results::metric;
use crate::{load, peers};

/// How often a measurement is repeated for the sake of calm.
const ATTEMPTS: usize = 5;

/// A server between its measurements.
struct Contestant {
    name: &'static str,
    server: Server,
    /// Sockets it has open without connections.
    sockets: usize,
}

/// What servers of one kind have in common.
struct Field<'a> {
    mode: Mode,
    settings: Settings,
    /// The server behind them, of proxies.
    backend: Option<&'a Server>,
}

impl Run<'_> {
    /// Runs every load against every server, round by round.
    pub(super) fn loads(&mut self, mode: Mode, scenarios: &[&Scenario]) -> io::Result<()> {
        let names = self.options.peers.iter().map(|peer| peer.name).collect();
        let field = Field {
            mode,
            settings: self.settings(mode),
            backend: None,
        };
        self.rounds("servers", &field, names, scenarios)
    }

    /// Runs every load through every proxy to one server, round by round.
    pub(super) fn proxied(&mut self, mode: Mode, scenarios: &[&Scenario]) -> io::Result<()> {
        if scenarios.is_empty() {
            return Ok(());
        }
        let mut names = Vec::new();
        for proxy in &self.options.proxies {
            match proxy.missing() {
                None => names.push(proxy.name),
                Some(reason) => self.not_started(mode, proxy.name, io::Error::other(reason)),
            }
        }
        let backend = Server::start(peers::REFERENCE, &self.opposite(mode))?;
        let field = Field {
            mode,
            settings: Settings {
                backend: Some(backend.addr()),
                ..self.settings(mode)
            },
            backend: Some(&backend),
        };
        self.rounds("proxies", &field, names, scenarios)
    }

    fn rounds(
        &mut self,
        what: &str,
        field: &Field<'_>,
        mut names: Vec<&'static str>,
        scenarios: &[&Scenario],
    ) -> io::Result<()> {
        let (mode, options) = (field.mode, self.options);
        let takes = |scenario: &Scenario, name| options.takes(mode.name(), &scenario.name, name);
        names.retain(|name| scenarios.iter().any(|scenario| takes(scenario, name)));
        let mut contestants: Vec<Option<Contestant>> = Vec::new();
        for name in names {
            contestants.push(self.started(name, field));
        }
        if contestants.is_empty() {
            return Ok(());
        }
        for round in 0..options.rounds {
            for (place, scenario) in scenarios.iter().enumerate() {
                let (What::Load(shape) | What::Proxied(shape)) = &scenario.what else {
                    continue;
                };
                for turn in 0..contestants.len() {
                    if self.is_late() {
                        return Ok(());
                    }
                    let next = (turn + round + place) % contestants.len();
                    let Some(contestant) = &contestants[next] else {
                        continue;
                    };
                    let name = contestant.name;
                    if !takes(scenario, name) {
                        continue;
                    }
                    let at = At {
                        mode: mode.name(),
                        scenario: &scenario.name,
                        who: name,
                        round,
                    };
                    self.doing(at);
                    let figures = self.figures(shape, at, contestant, field.backend);
                    let failed = figures.is_err();
                    self.keep(at, figures);
                    if failed {
                        contestants[next] = self.started(name, field);
                    }
                    self.progress.done();
                }
            }
            self.round_done(mode, what, round);
        }
        Ok(())
    }

    /// A server that was started, checked, and stopped until its turn; none where that fails.
    fn started(&mut self, name: &'static str, field: &Field<'_>) -> Option<Contestant> {
        let start = || {
            let server = Server::start(name, &field.settings)?;
            load::verify(server.addr())?;
            std::thread::sleep(Duration::from_millis(5));
            let sockets = procfs::sockets(server.pid())?;
            server.pause()?;
            Ok(Contestant {
                name,
                server,
                sockets,
            })
        };
        match start() {
            Ok(contestant) => Some(contestant),
            Err(error) => {
                self.not_started(field.mode, name, error);
                None
            }
        }
    }

    /// Keeps why `who` is left out.
    fn not_started(&mut self, mode: Mode, who: &str, error: io::Error) {
        let at = At {
            mode: mode.name(),
            scenario: "start",
            who,
            round: 0,
        };
        self.keep(at, Err(error));
    }

    /// One measurement, repeated while the machine is not calm: the calmest is taken.
    fn figures(
        &self,
        shape: &Shape,
        at: At<'_>,
        contestant: &Contestant,
        backend: Option<&Server>,
    ) -> io::Result<BTreeMap<String, f64>> {
        let server = &contestant.server;
        let congestion = self.options.congestion.as_deref();
        let plan = point::plan(shape, server, congestion, self.times);
        let mut calmest: Option<(f64, BTreeMap<String, f64>)> = None;
        for _ in 0..ATTEMPTS {
            server.resume()?;
            let figures = point::measure(&plan, server, backend)?;
            if !server.settle(contestant.sockets)? {
                self.progress.say(&format!(
                    "{} {}: connections stay open",
                    at.scenario, at.who
                ));
            }
            server.pause()?;
            let foreign = figures.get(metric::FOREIGN).copied().unwrap_or(0.0);
            if calmest.as_ref().is_none_or(|best| foreign < best.0) {
                calmest = Some((foreign, figures));
            }
            if self.options.calm.is_none_or(|limit| foreign <= limit) {
                break;
            }
        }
        calmest
            .map(|best| best.1)
            .ok_or_else(|| io::Error::other("nothing was measured"))
    }
}
