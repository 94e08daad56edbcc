//! Counts under the tools that are present.

use std::collections::BTreeMap;
use std::io;

use super::callers;
use super::instruments::{self, Tool};
use super::run::{At, Run};
use super::scenario::{self, Mode, What};
use super::server::Server;
use crate::peers;
use crate::results::metric;

/// The mode counts are kept under: they are no times, and no cores are compared.
pub(crate) const MODE: &str = "counted";

impl Run<'_> {
    /// Counts for servers with one and with a hundred connections, and for one caller.
    pub(super) fn counts(&mut self) -> io::Result<()> {
        self.place(Mode::Pinned)?;
        let server = Server::start(peers::REFERENCE, &self.opposite(Mode::Pinned))?;
        for (name, tool) in [
            ("pp-1-1k", Tool::Strace),
            ("pp-100-1k", Tool::Strace),
            ("pp-100-1k", Tool::Callgrind),
            ("call-1", Tool::Strace),
        ] {
            if !tool.is_present() {
                self.progress
                    .say(&format!("{tool:?} is not installed: {name} is not counted"));
                continue;
            }
            let Some(scenario) = scenario::all().into_iter().find(|one| one.name == name) else {
                continue;
            };
            let settings = self.settings(Mode::Pinned);
            match &scenario.what {
                What::Load(shape) => {
                    for peer in &self.options.peers {
                        self.progress
                            .doing(&format!("{tool:?} {name} {}", peer.name));
                        let counts = instruments::count(tool, peer.name, shape, &settings);
                        self.keep_counts(tool, name, peer.name, counts);
                    }
                }
                What::Call(calling) => {
                    for client in &self.options.clients {
                        self.progress
                            .doing(&format!("{tool:?} {name} {}", client.name));
                        let counts = callers::count(client, *calling, &server, &settings);
                        self.keep_counts(tool, name, client.name, counts);
                    }
                }
                What::Idle { .. } => {}
            }
        }
        Ok(())
    }

    fn keep_counts(
        &mut self,
        tool: Tool,
        scenario: &str,
        who: &str,
        counts: io::Result<BTreeMap<String, f64>>,
    ) {
        let figures = counts.map(|counts| match tool {
            Tool::Strace => {
                let total = counts.values().sum();
                self.results
                    .calls
                    .insert(format!("{scenario} {who}"), counts);
                BTreeMap::from([(metric::SYSCALLS.to_owned(), total)])
            }
            Tool::Callgrind => {
                let names = [
                    (instruments::TOTAL, metric::INSTRUCTIONS),
                    (instruments::ALLOCATOR, metric::ALLOCATIONS),
                ];
                let known = names
                    .into_iter()
                    .filter_map(|(from, to)| Some((to.to_owned(), *counts.get(from)?)));
                known.collect()
            }
        });
        self.keep(
            At {
                mode: MODE,
                scenario,
                who,
                round: 0,
            },
            figures,
        );
    }
}
