//! `compare`: servers in turn under the same loads, and a report.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg::Long;
use lexopt::ValueExt;

use super::Failure;
use crate::clients::{self, Client};
use crate::compare::scenario::{self, Mode, Scenario, What};
use crate::compare::{self, Options};
use crate::peers::{self, Peer};
use crate::proxies::{self, Proxy};
use crate::{report, results::Results};

const HELP: &str = "\
compare [options]

  --quick             few scenarios, ends within 3 minutes
  --scenario NAME     this scenario, or all whose names begin with NAME; may be repeated, and one
                      option may name several, separated by commas
  --peers NAMES       these servers, proxies and clients beside the references, separated by commas
  --targets           only what the targets need: their scenarios, modes, servers and clients
  --rounds N          measurements of each server in each scenario (9; 3 when quick)
  --seconds S         length of each (0.5; what fits when quick)
  --pin               every scenario with the server on core 0 and the load on core 1
  --free              every scenario on any core (both options: each both ways)
  --congestion NAME   congestion control of every socket (cubic); `system` leaves the default
  --calm CORES        measure again, a few times, while other processes keep more cores busy
  --no-counts         do not count system calls and instructions (not done when quick)
  --counts            count them when quick, too
  --out DIR           where the report goes (docs/benchmarks)
  --from FILE         make the report from results of earlier runs instead; may be repeated

Writes results.json, README.md, details.md and SVG plots. `list` names peers and scenarios.
";

/// How long a quick run may take.
const QUICK: Duration = Duration::from_secs(160);

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let mut options = Given::default();
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("quick") => options.quick = true,
            Long("scenario") => options.scenarios.extend(names(&mut args)?),
            Long("peers") => options.peers.extend(names(&mut args)?),
            Long("targets") => options.targets = true,
            Long("rounds") => options.rounds = Some(args.value()?.parse()?),
            Long("seconds") => options.seconds = Some(args.value()?.parse()?),
            Long("pin") => options.modes.push(Mode::Pinned),
            Long("free") => options.modes.push(Mode::Free),
            Long("congestion") => options.congestion = Some(args.value()?.string()?),
            Long("calm") => options.calm = Some(args.value()?.parse()?),
            Long("no-counts") => options.counts = Some(false),
            Long("counts") => options.counts = Some(true),
            Long("out") => options.out = Some(PathBuf::from(args.value()?)),
            Long("from") => options.from.push(PathBuf::from(args.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| "docs/benchmarks".into());
    let results = if options.from.is_empty() {
        compare::run(&options.complete()?)?
    } else {
        merged(&options.from)?
    };
    report::write(&results, &out)?;
    print!("{}", report::summary(&results));
    println!("written to {}", out.display());
    Ok(())
}

/// The results of several runs as one.
fn merged(files: &[PathBuf]) -> Result<Results, Failure> {
    let mut all = Results::default();
    for file in files {
        let one = Results::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        all.merge(one);
    }
    Ok(all)
}

/// Names separated by commas.
fn names(args: &mut lexopt::Parser) -> Result<Vec<String>, Failure> {
    let text = args.value()?.string()?;
    Ok(text.split(',').map(|name| name.trim().to_owned()).collect())
}

/// What the command line says.
#[derive(Default)]
struct Given {
    quick: bool,
    targets: bool,
    scenarios: Vec<String>,
    peers: Vec<String>,
    rounds: Option<usize>,
    seconds: Option<f64>,
    modes: Vec<Mode>,
    congestion: Option<String>,
    calm: Option<f64>,
    counts: Option<bool>,
    out: Option<PathBuf>,
    from: Vec<PathBuf>,
}

impl Given {
    /// Fills in what was not said.
    fn complete(&self) -> Result<Options, Failure> {
        let congestion = match self.congestion.as_deref() {
            Some("system") => None,
            Some(name) => Some(name.to_owned()),
            None => compare::usual_congestion(),
        };
        Ok(Options {
            scenarios: self.scenarios()?,
            peers: self.peers()?,
            clients: self.clients(),
            proxies: self.proxies(),
            needed: self.targets.then_some(report::needed),
            rounds: self.rounds.unwrap_or(if self.quick { 3 } else { 9 }).max(1),
            seconds: self.seconds,
            limit: self.quick.then_some(QUICK),
            congestion,
            calm: self.calm,
            count: self.counts.unwrap_or(!self.quick),
        })
    }

    fn is_wanted(&self, name: &str, references: [&str; 2]) -> bool {
        self.peers.is_empty()
            || references.contains(&name)
            || self.peers.iter().any(|wanted| wanted == name)
    }

    fn peers(&self) -> Result<Vec<&'static Peer>, Failure> {
        for name in &self.peers {
            let known = peers::find(name).is_some() || clients::find(name).is_some();
            if !known && proxies::find(name).is_none() {
                return Err(format!("no peer {name:?}; `list` names them").into());
            }
        }
        let references = [peers::REFERENCE, peers::SECOND];
        let wanted = |peer: &&Peer| self.is_wanted(peer.name, references);
        Ok(peers::ALL.iter().filter(wanted).collect())
    }

    fn proxies(&self) -> Vec<&'static Proxy> {
        let references = [proxies::REFERENCE, proxies::SECOND];
        let wanted = |proxy: &&Proxy| self.is_wanted(proxy.name, references);
        proxies::ALL.iter().filter(wanted).collect()
    }

    fn clients(&self) -> Vec<&'static Client> {
        let references = [clients::REFERENCE, clients::SECOND];
        let wanted = |client: &&Client| self.is_wanted(client.name, references);
        clients::ALL.iter().filter(wanted).collect()
    }

    /// The modes there are targets for in `scenario`, of those that are wanted.
    fn modes_of_targets(&self, scenario: &str) -> Vec<Mode> {
        let mut modes = vec![Mode::Pinned, Mode::Free];
        modes.retain(|mode| {
            let is_wanted = self.modes.is_empty() || self.modes.contains(mode);
            is_wanted && !report::needed(mode.name(), scenario).is_empty()
        });
        modes
    }

    fn scenarios(&self) -> Result<Vec<(Scenario, Vec<Mode>)>, Failure> {
        let all = scenario::all();
        for filter in &self.scenarios {
            if !all.iter().any(|one| scenario::matches(&one.name, filter)) {
                return Err(format!("no scenario {filter:?}; `list` names them").into());
            }
        }
        let chosen = all.into_iter().filter_map(|scenario| {
            let named = self
                .scenarios
                .iter()
                .any(|one| scenario::matches(&scenario.name, one));
            let usual = if self.quick {
                scenario.quick
            } else {
                scenario.modes
            };
            if self.targets && (named || self.scenarios.is_empty()) {
                let modes = self.modes_of_targets(&scenario.name);
                return (!modes.is_empty()).then_some((scenario, modes));
            }
            let modes = match (named, self.scenarios.is_empty()) {
                (false, false) => return None,
                // Silent connections do not care where they are: reports show one mode.
                (true, _) if matches!(scenario.what, What::Idle { .. }) => &[Mode::Pinned],
                // What is asked for by name is run, also where it usually is not.
                (true, _) if self.modes.is_empty() && usual.is_empty() => &[Mode::Pinned],
                (true, _) if !self.modes.is_empty() => &self.modes[..],
                (false, true) if !usual.is_empty() && !self.modes.is_empty() => &self.modes[..],
                _ => usual,
            };
            (!modes.is_empty()).then(|| (scenario.clone(), modes.to_vec()))
        });
        Ok(chosen.collect())
    }
}
