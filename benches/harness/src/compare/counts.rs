//! Counts under the tools that are present.

use std::collections::BTreeMap;
use std::io;

use super::callers;
use super::instruments::{self, Tool};
use super::run::{At, Run};
use super::scenario::{Mode, What};
use super::server::{Server, Settings};
use crate::results::metric;
use crate::{clients, peers, proxies};

/// The mode counts are kept under: they are no times, and no cores are compared.
pub(crate) const MODE: &str = "counted";

/// What is counted, and with which tool.
const COUNTED: [(&str, &[Tool]); 5] = [
    ("pp-1-1k", CALLS),
    (
        "pp-100-1k",
        &[Tool::Perf, Tool::Strace, Tool::Callgrind, Tool::Copies],
    ),
    ("proxy-100-1k", CALLS),
    ("proxy-1m", CALLS),
    ("call-1", CALLS),
];
/// Their number comes from perf where it may count, their names from strace.
const CALLS: &[Tool] = &[Tool::Perf, Tool::Strace];

impl Run<'_> {
    /// Counts for servers with one and with a hundred connections, for proxies, and for one caller.
    pub(super) fn counts(&mut self) -> io::Result<()> {
        self.place(Mode::Pinned)?;
        let server = Server::start(peers::REFERENCE, &self.opposite(Mode::Pinned))?;
        let has_perf = Tool::Perf.is_present();
        let pairs = COUNTED.iter().flat_map(|(name, tools)| {
            let name = *name;
            tools.iter().map(move |tool| (name, *tool))
        });
        for (name, tool) in pairs {
            let options = self.options;
            let mut chosen = options.scenarios.iter().map(|(scenario, _)| scenario);
            let Some(scenario) = chosen.find(|one| one.name == name) else {
                continue;
            };
            let mut names = options.taken(MODE, scenario);
            if let What::Proxied(_) = scenario.what {
                names.retain(|name| proxies::find(name).is_some_and(|one| one.missing().is_none()));
            }
            if names.is_empty() {
                continue;
            }
            if !tool.is_present() {
                self.progress.say(&format!(
                    "{tool:?} cannot be used here: {name} is not counted"
                ));
                continue;
            }
            for who in names {
                self.progress.doing(&format!("{tool:?} {name} {who}"));
                let settings = self.settings(Mode::Pinned);
                let counts = match &scenario.what {
                    What::Load(shape) => instruments::count(tool, who, shape, &settings),
                    What::Proxied(shape) => {
                        let settings = Settings {
                            backend: Some(server.addr()),
                            ..settings
                        };
                        instruments::count(tool, who, shape, &settings)
                    }
                    What::Call(calling) => match clients::find(who) {
                        Some(client) => callers::count(tool, client, *calling, &server, &settings),
                        None => continue,
                    },
                    What::Idle { .. } => continue,
                };
                self.keep_counts(tool, name, who, counts, has_perf);
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
        has_perf: bool,
    ) {
        let figures = counts.map(|counts| match tool {
            Tool::Strace => {
                let total = (!has_perf).then(|| counts.values().sum());
                self.results
                    .calls
                    .insert(format!("{scenario} {who}"), counts);
                let total = total.map(|total| (metric::SYSCALLS.to_owned(), total));
                total.into_iter().collect()
            }
            Tool::Perf | Tool::Callgrind | Tool::Copies => {
                let names = [
                    (instruments::CALLS, metric::SYSCALLS),
                    (instruments::TOTAL, metric::INSTRUCTIONS),
                    (instruments::ALLOCATOR, metric::ALLOCATIONS),
                    (instruments::COPIED, metric::COPIES),
                ];
                let known = names
                    .into_iter()
                    .filter_map(|(from, to)| Some((to.to_owned(), *counts.get(from)?)));
                known.collect()
            }
        });
        if figures.as_ref().is_ok_and(BTreeMap::is_empty) {
            return;
        }
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
