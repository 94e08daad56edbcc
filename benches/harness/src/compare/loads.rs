//! Servers that go on running between their measurements, stopped while it is not their turn.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::run::{At, Run};
use super::scenario::{Mode, Scenario, Shape, What};
use super::server::Server;
use super::{point, procfs};
use crate::load;
use crate::peers::Peer;
use crate::results::metric;

/// How often a measurement is repeated for the sake of calm.
const ATTEMPTS: usize = 5;

/// A server between its measurements.
struct Contestant {
    peer: &'static Peer,
    server: Server,
    /// Descriptors it has open without connections.
    descriptors: usize,
}

impl Run<'_> {
    /// Runs every load against every server, round by round.
    pub(super) fn loads(&mut self, mode: Mode, scenarios: &[&Scenario]) -> io::Result<()> {
        if scenarios.is_empty() {
            return Ok(());
        }
        let mut contestants = Vec::new();
        for peer in &self.options.peers {
            let at = At {
                mode: mode.name(),
                scenario: "start",
                who: peer.name,
                round: 0,
            };
            self.doing(at);
            match self.contestant(peer, mode) {
                Ok(contestant) => contestants.push(contestant),
                Err(error) => self.keep(at, Err(error)),
            }
        }
        for round in 0..self.options.rounds {
            for (place, scenario) in scenarios.iter().enumerate() {
                let What::Load(shape) = &scenario.what else {
                    continue;
                };
                for turn in 0..contestants.len() {
                    if self.is_late() {
                        return Ok(());
                    }
                    let next = (turn + round + place) % contestants.len();
                    let contestant = &mut contestants[next];
                    let (mode_name, who) = (mode.name(), contestant.peer.name);
                    let at = At {
                        mode: mode_name,
                        scenario: &scenario.name,
                        who,
                        round,
                    };
                    self.doing(at);
                    let figures = self.figures(shape, at, contestant);
                    let failed = figures.is_err();
                    self.keep(at, figures);
                    if failed {
                        *contestant = self.contestant(contestant.peer, mode)?;
                    }
                    self.progress.done();
                }
            }
            self.round_done(mode, "servers", round);
        }
        Ok(())
    }

    /// A server that was started, checked, and stopped until its turn.
    fn contestant(&self, peer: &'static Peer, mode: Mode) -> io::Result<Contestant> {
        let server = Server::start(peer.name, &self.settings(mode))?;
        load::verify(server.addr())?;
        std::thread::sleep(Duration::from_millis(5));
        let descriptors = procfs::descriptors(server.pid())?;
        server.pause()?;
        Ok(Contestant {
            peer,
            server,
            descriptors,
        })
    }

    /// One measurement, repeated while the machine is not calm: the calmest is taken.
    fn figures(
        &self,
        shape: &Shape,
        at: At<'_>,
        contestant: &Contestant,
    ) -> io::Result<BTreeMap<String, f64>> {
        let server = &contestant.server;
        let congestion = self.options.congestion.as_deref();
        let plan = point::plan(shape, server, congestion, self.times);
        let mut calmest: Option<(f64, BTreeMap<String, f64>)> = None;
        for _ in 0..ATTEMPTS {
            server.resume()?;
            let figures = point::measure(&plan, server)?;
            if !server.settle(contestant.descriptors)? {
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
