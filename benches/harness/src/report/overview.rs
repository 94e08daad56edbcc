//! README.md of a report: how it was made, the noise, the ratios.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::table::Table;
use super::targets;
use super::{present, servers_of};
use crate::compare::scenario::{self, Scenario};
use crate::results::{Place, Results, metric};
use crate::stats;
use crate::{clients, peers, proxies};

/// The whole text; `plots` are the names of the plots beside it.
pub(super) fn text(results: &Results, plots: &[&str]) -> String {
    let mut text = String::from("# Benchmarks\n\n");
    text.push_str(&conditions(results));
    text.push_str(READING);
    text.push_str(&tables(results));
    if !plots.is_empty() {
        text.push_str("## Plots\n\n");
        for name in plots {
            let title = name.trim_end_matches(".svg").replace('-', " ");
            let _ = writeln!(text, "![{title}]({name})\n");
        }
    }
    text.push_str(&servers());
    text
}

const READING: &str = "\
## How to read this

Every server answers the same frame: four bytes of length, big-endian, and the payload. It receives a
frame whole before it answers, through its own output path. In every round each server is measured in
each scenario, the others stopped; a ratio is formed with the reference of the same round, and what is
shown is the median over the rounds. The reference is the raw epoll loop. It runs twice: how far its
second copy strays from it is the noise, and differences within that band mean nothing. Clients are
measured likewise, each in a process of its own that calls the reference server. Proxies stand before the
reference server, which is another process (in `pinned` on the load generator's core); the CPU told is the
proxy's alone, and the ratios are to HAProxy.

CPU is the server's own, user and system, read from its clock in nanoseconds. Latency is that of the
load generator, from before the send to after the receive. `pinned`: the server on core 0, the load
generator on core 1; `free`: both on any core. All scenarios with all figures are in
[details.md](details.md), all samples in [results.json](results.json).

";

fn conditions(results: &Results) -> String {
    let place = &results.environment;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "- {name}: {value}");
    };
    line("date", &place.date);
    line(
        "machine",
        &format!(
            "{}, {} cores, Linux {}",
            place.processor, place.cores, place.kernel
        ),
    );
    line("congestion control of every socket", &place.congestion);
    line("samples", &place.runs.join("; "));
    line("versions", &place.versions.join(", "));
    line(
        "load average, before and after",
        &place.load_average.join("; "),
    );
    let foreign = results
        .samples
        .iter()
        .filter_map(|one| one.figures.get(metric::FOREIGN));
    if let Some(median) = stats::median(foreign.copied()) {
        let value = format!("{:.2} cores (median over all samples)", median.value);
        line("busy beside server and load generator", &value);
    }
    text.push('\n');
    text
}

/// All tables of the overview.
pub(super) fn tables(results: &Results) -> String {
    let mut text = targets::table(results);
    text.push_str(&noise(results));
    for (title, figure, note) in [
        (
            "CPU per request",
            metric::CPU,
            "microseconds / ratio to the reference; less is better; of a client, its own",
        ),
        (
            "CPU per MiB",
            metric::CPU_MIB,
            "microseconds per MiB moved, both ways counted / ratio to the reference; less is better",
        ),
        (
            "Requests per second",
            metric::RATE,
            "thousands / ratio to the reference; more is better",
        ),
        (
            "99th percentile of the latency",
            metric::P99,
            "microseconds / ratio; less is better",
        ),
    ] {
        let tables = matrices(results, figure);
        if !tables.is_empty() {
            let _ = writeln!(text, "## {title}\n\n{note}\n\n{tables}");
        }
    }
    text.push_str(&silent(results));
    text.push_str(&counted(results));
    text.push_str(&failures(results));
    text
}

fn noise(results: &Results) -> String {
    let mut table = Table::new([
        "second copy / reference",
        "CPU",
        "90 % interval",
        "band",
        "requests/s",
        "rounds",
    ]);
    for mode in ["pinned", "free"] {
        for scenario in scenario::all() {
            let (reference, second) = scenario.reference();
            let place = Place {
                mode,
                scenario: &scenario.name,
                peer: second,
            };
            let cpu = results.ratios(&place, metric::CPU, reference);
            let Some(median) = stats::median(cpu.iter().copied()) else {
                continue;
            };
            let rate = stats::median(results.ratios(&place, metric::RATE, reference));
            table.row([
                Some(format!("{} {mode}", scenario.name)),
                Some(format!("{:.2}", median.value)),
                Some(format!("{:.2} - {:.2}", median.low, median.high)),
                stats::band(cpu).map(|band| format!("x {band:.2}")),
                rate.map(|rate| format!("{:.2}", rate.value)),
                Some(median.count.to_string()),
            ]);
        }
    }
    if table.is_empty() {
        return String::new();
    }
    format!(
        "## The noise: the reference against itself\n\nThe band is the factor within which the middle \
         half of the rounds lies. A target is missed when a ratio lies outside target x band.\n\n{}\n",
        table.text()
    )
}

/// Per mode and group of scenarios a table: servers or clients down, scenarios across.
fn matrices(results: &Results, figure: &str) -> String {
    let mut text = String::new();
    for mode in ["pinned", "free"] {
        for (group, scenarios) in columns(results, mode, figure) {
            let names = scenarios.iter().map(|scenario| scenario.name.clone());
            let mut table = Table::new([String::new()].into_iter().chain(names));
            let rows = scenarios
                .first()
                .map_or_else(Vec::new, Scenario::contestants);
            for who in present(results, rows) {
                let of = |scenario: &Scenario| cell(results, mode, scenario, who, figure);
                let cells: Vec<_> = scenarios.iter().map(of).collect();
                if cells.iter().any(Option::is_some) {
                    table.row([Some(who.to_owned())].into_iter().chain(cells));
                }
            }
            let _ = writeln!(text, "### {group}, {mode}\n\n{}", table.text());
        }
    }
    text
}

/// The groups of scenarios that have results, split so that a table stays readable.
fn columns(results: &Results, mode: &str, figure: &str) -> Vec<(String, Vec<Scenario>)> {
    let has = |scenario: &Scenario| {
        results.samples.iter().any(|one| {
            one.mode == mode && one.scenario == scenario.name && one.figures.contains_key(figure)
        })
    };
    let mut groups: Vec<(String, Vec<Scenario>)> = Vec::new();
    for scenario in scenario::all().into_iter().filter(has) {
        let size = scenario
            .name
            .strip_prefix("pp-")
            .and_then(|rest| rest.split_once('-'));
        let group = match size {
            Some((_, size)) => format!("{} of {size}", scenario.group),
            None => scenario.group.to_owned(),
        };
        match groups.last_mut() {
            Some((last, members)) if *last == group => members.push(scenario),
            _ => groups.push((group, vec![scenario])),
        }
    }
    groups
}

fn cell(
    results: &Results,
    mode: &str,
    scenario: &Scenario,
    who: &str,
    figure: &str,
) -> Option<String> {
    let place = Place {
        mode,
        scenario: &scenario.name,
        peer: who,
    };
    let value = stats::median(results.values(&place, figure).into_values())?.value;
    let value = if figure == metric::RATE {
        value / 1e3
    } else {
        value
    };
    let ratio = stats::median(results.ratios(&place, figure, scenario.reference().0));
    let ratio = ratio.map_or_else(|| "-".into(), |ratio| format!("{:.2}", ratio.value));
    Some(format!("{} / {ratio}", short(value)))
}

fn silent(results: &Results) -> String {
    let mut text = String::new();
    for name in ["idle-10000", "idle-1000"] {
        let head = [
            "server",
            "B each, connected",
            "B each, after a request",
            "CPU cores",
            "threads",
        ];
        let mut table = Table::new(head);
        for peer in servers_of(results) {
            let place = Place {
                mode: "pinned",
                scenario: name,
                peer,
            };
            let value =
                |figure| Some(stats::median(results.values(&place, figure).into_values())?.value);
            let Some(connected) = value(metric::BYTES_CONNECTED) else {
                continue;
            };
            table.row([
                Some(peer.to_owned()),
                Some(format!("{connected:.0}")),
                value(metric::BYTES_USED).map(|bytes| format!("{bytes:.0}")),
                value(metric::IDLE_CPU).map(|cores| format!("{cores:.4}")),
                value(metric::THREADS).map(|threads| format!("{threads:.0}")),
            ]);
        }
        if !table.is_empty() {
            let connections = name.trim_start_matches("idle-");
            let _ = writeln!(
                text,
                "## {connections} silent connections\n\nPrivate user memory that is backed by real \
                 memory; buffers the kernel keeps are not in it.\n\n{}",
                table.text()
            );
        }
    }
    text
}

fn counted(results: &Results) -> String {
    let value = |scenario, who, figure| {
        let place = Place {
            mode: "counted",
            scenario,
            peer: who,
        };
        Some(stats::median(results.values(&place, figure).into_values())?.value)
    };
    let calls = |scenario: &str, who: &str| {
        let of = results.calls.get(&format!("{scenario} {who}"));
        of.map(frequent)
    };
    let count = |value: Option<f64>| value.map(|value| format!("{value:.2}"));
    let whole = |value: Option<f64>| value.map(|value| format!("{value:.0}"));
    let mut text = String::new();
    let mut add = |note: &str, table: &Table| {
        if !table.is_empty() {
            let _ = writeln!(text, "{note}\n\n{}", table.text());
        }
    };
    let mut table = Table::new([
        "server",
        "system calls, 1 connection",
        "system calls, 100",
        "user instructions, 100",
        "allocations, 100",
        "bytes copied, 100",
        "most frequent calls",
    ]);
    for peer in servers_of(results) {
        let cells = [
            count(value("pp-1-1k", peer, metric::SYSCALLS)),
            count(value("pp-100-1k", peer, metric::SYSCALLS)),
            whole(value("pp-100-1k", peer, metric::INSTRUCTIONS)),
            count(value("pp-100-1k", peer, metric::ALLOCATIONS)),
            whole(value("pp-100-1k", peer, metric::COPIES)),
            calls("pp-100-1k", peer),
        ];
        if cells.iter().any(Option::is_some) {
            table.row([Some(peer.to_owned())].into_iter().chain(cells));
        }
    }
    add(
        "Ping-pong of 1 KiB. Bytes copied are those of memcpy and its like; copies of a few words that \
         the compiler has put in line are not among them.",
        &table,
    );
    for (name, head, note, all) in [
        (
            "proxy-100-1k",
            "proxy",
            "Through a proxy, 100 connections, ping-pong of 1 KiB:",
            proxies::ALL.iter().map(|one| one.name).collect::<Vec<_>>(),
        ),
        (
            "proxy-1m",
            "proxy",
            "Through a proxy, 1 MiB each way:",
            proxies::ALL.iter().map(|one| one.name).collect(),
        ),
        (
            "call-1",
            "client",
            "One caller, 1 KiB:",
            clients::ALL.iter().map(|one| one.name).collect(),
        ),
    ] {
        let mut table = Table::new([head, "system calls", "most frequent calls"]);
        for who in all {
            if let Some(total) = value(name, who, metric::SYSCALLS) {
                table.row([Some(who.to_owned()), count(Some(total)), calls(name, who)]);
            }
        }
        add(note, &table);
    }
    if text.is_empty() {
        return text;
    }
    format!(
        "## Counts per request\n\nSystem calls are counted by perf where it may, otherwise by strace; the \
         calls by name are strace's, instructions, allocations and copies valgrind's. These two slow a \
         server down, so that more requests arrive at once than otherwise, and what happens at a fixed \
         rate (a timer's tick) happens more often per request.\n\n{text}"
    )
}

/// The calls made at least once in a hundred requests.
fn frequent(calls: &BTreeMap<String, f64>) -> String {
    let mut calls: Vec<_> = calls.iter().filter(|(_, count)| **count >= 0.01).collect();
    calls.sort_by(|a, b| b.1.total_cmp(a.1));
    let one = |(name, count): &(&String, &f64)| format!("{name} {count:.2}");
    calls.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn failures(results: &Results) -> String {
    if results.failed.is_empty() {
        return String::new();
    }
    let mut rounds: BTreeMap<[&str; 4], usize> = BTreeMap::new();
    for one in &results.failed {
        let what = [&one.mode, &one.scenario, &one.peer, &one.reason].map(String::as_str);
        *rounds.entry(what).or_default() += 1;
    }
    let mut text = String::from("## What could not be measured\n\n");
    for ([mode, scenario, who, reason], count) in rounds {
        let times = if count > 1 {
            format!(" ({count} times)")
        } else {
            String::new()
        };
        let _ = writeln!(text, "- {mode} {scenario} {who}: {reason}{times}");
    }
    text.push('\n');
    text
}

fn servers() -> String {
    let mut text = String::from("## The servers\n\n");
    for peer in peers::ALL {
        let _ = writeln!(
            text,
            "- **{}**: {}. Handlers that wait or compute {}.",
            peer.name, peer.design, peer.handlers
        );
    }
    text.push_str("\n## The proxies\n\n");
    for proxy in proxies::ALL {
        let _ = writeln!(text, "- **{}**: {}.", proxy.name, proxy.design);
    }
    text.push_str("\n## The clients\n\n");
    for client in clients::ALL {
        let _ = writeln!(text, "- **{}**: {}.", client.name, client.design);
    }
    text
}

/// A number with three digits that count.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Sample;

    fn results() -> Results {
        let mut samples = Vec::new();
        for round in 0..3 {
            for (peer, cpu) in [
                (peers::REFERENCE, 10.0),
                (peers::SECOND, 11.0),
                ("mio", 8.0),
            ] {
                samples.push(Sample {
                    mode: "pinned".into(),
                    scenario: "pp-100-1k".into(),
                    peer: peer.into(),
                    round,
                    figures: BTreeMap::from([(metric::CPU.to_owned(), cpu + round as f64)]),
                });
            }
        }
        Results {
            samples,
            ..Results::default()
        }
    }

    #[test]
    fn the_overview_shows_noise_and_ratios() {
        let text = text(&results(), &["cpu-pinned.svg"]);
        assert!(text.contains("| pp-100-1k pinned"));
        assert!(
            text.contains("11.0 / 1.00") && text.contains("9.00 / 0.82"),
            "{text}"
        );
        assert!(text.contains("![cpu pinned](cpu-pinned.svg)"));
        assert!(!text.contains("could not be measured"));
    }

    fn sample(scenario: &str, peer: &str, figures: &[(&str, f64)]) -> Sample {
        let figures = figures
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value));
        let mode = if figures.len() == 1 {
            "counted"
        } else {
            "free"
        };
        Sample {
            mode: mode.into(),
            scenario: scenario.into(),
            peer: peer.into(),
            round: 0,
            figures: figures.collect(),
        }
    }

    #[test]
    fn what_has_no_reference_is_shown_without_ratio() {
        let figures = [(metric::CPU, 12.0), (metric::RATE, 30_000.0)];
        let results = Results {
            samples: vec![
                sample("proxy-100-1k", "netpoll-relay", &figures),
                sample("proxy-100-1k", "nobody", &figures),
            ],
            ..Results::default()
        };
        let text = text(&results, &[]);
        assert!(text.contains("### Proxies, free"), "{text}");
        assert!(
            text.contains("12.0 / -") && text.contains("30.0 / -"),
            "{text}"
        );
        assert!(
            !text.contains("nobody") && !text.contains("| haproxy "),
            "{text}"
        );
    }

    #[test]
    fn counts_stand_where_they_belong() {
        let results = Results {
            samples: vec![
                sample("pp-100-1k", "netpoll", &[(metric::COPIES, 0.8)]),
                sample("proxy-1m", "haproxy", &[(metric::SYSCALLS, 71.5)]),
            ],
            ..Results::default()
        };
        let text = counted(&results);
        assert!(text.contains("bytes copied, 100"), "{text}");
        assert!(
            text.contains("| netpoll |") && text.contains("71.50"),
            "{text}"
        );
        assert!(!text.contains("One caller"), "{text}");
        assert!(counted(&Results::default()).is_empty());
    }

    #[test]
    fn what_failed_in_the_same_way_is_told_once() {
        let failed = |round, reason: &str| crate::results::Failed {
            mode: "free".into(),
            scenario: "start".into(),
            peer: "haproxy".into(),
            round,
            reason: reason.into(),
        };
        let results = Results {
            failed: vec![
                failed(0, "missing"),
                failed(1, "missing"),
                failed(2, "broken"),
            ],
            ..Results::default()
        };
        let text = failures(&results);
        assert!(
            text.contains("- free start haproxy: missing (2 times)\n"),
            "{text}"
        );
        assert!(text.contains("- free start haproxy: broken\n"), "{text}");
    }

    #[test]
    fn frequent_calls_come_first_and_rare_ones_not_at_all() {
        let calls = [
            ("sendto", 1.0),
            ("futex", 0.001),
            ("epoll_wait", 0.02),
            ("recvfrom", 1.5),
        ];
        let calls = calls.map(|(name, count)| (name.to_owned(), count)).into();
        assert_eq!(
            frequent(&calls),
            "recvfrom 1.50, sendto 1.00, epoll_wait 0.02"
        );
    }
}
