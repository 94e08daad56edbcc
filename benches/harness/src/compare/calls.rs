//! Clients in turn against one server.

use std::io;

use super::callers;
use super::run::{At, Run};
use super::scenario::{Mode, Scenario, What};
use super::server::Server;
use crate::peers;

impl Run<'_> {
    /// Has every client call as every scenario says, round by round.
    pub(super) fn calls(&mut self, mode: Mode, scenarios: &[&Scenario]) -> io::Result<()> {
        if scenarios.is_empty() {
            return Ok(());
        }
        let server = Server::start(peers::REFERENCE, &self.opposite(mode))?;
        let settings = self.settings(mode);
        let clients = &self.options.clients;
        for round in 0..self.options.rounds {
            for (place, scenario) in scenarios.iter().enumerate() {
                let What::Call(calling) = scenario.what else {
                    continue;
                };
                for turn in 0..clients.len() {
                    if self.is_late() {
                        return Ok(());
                    }
                    let client = clients[(turn + round + place) % clients.len()];
                    if !self.options.takes(mode.name(), &scenario.name, client.name) {
                        continue;
                    }
                    if calling.shared && !client.shares {
                        self.progress.done();
                        continue;
                    }
                    let (mode, who) = (mode.name(), client.name);
                    let at = At {
                        mode,
                        scenario: &scenario.name,
                        who,
                        round,
                    };
                    self.doing(at);
                    let times = self.times;
                    let figures = callers::measure(client, calling, &server, &settings, times);
                    self.keep(at, figures);
                    self.progress.done();
                }
            }
            self.round_done(mode, "clients", round);
        }
        Ok(())
    }
}
