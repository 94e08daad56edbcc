//! The plots of a report.

use super::chart::{Bars, Lines};
use super::servers_of;
use crate::compare::scenario::{self, CONNECTIONS};
use crate::results::{Place, Results, metric};
use crate::stats;

/// File names and drawings of all plots there are figures for.
pub(super) fn all(results: &Results) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for mode in ["pinned", "free"] {
        for (name, title, figure, unit) in [
            ("latency", "Latency, median", metric::P50, "us"),
            ("latency-p99", "Latency, 99th percentile", metric::P99, "us"),
            ("cpu", "Server CPU per request", metric::CPU, "us"),
        ] {
            let lines = Lines {
                title: format!("{title}: ping-pong of 1 KiB, {mode}"),
                x: "connections".into(),
                y: unit.into(),
                series: over_connections(results, mode, figure),
            };
            plots.extend(
                lines
                    .draw()
                    .map(|text| (format!("{name}-{mode}.svg"), text)),
            );
        }
        let hundred = format!("Server CPU per request: 100 connections, 1 KiB, {mode}");
        let small = format!("CPU of a proxy per request: 100 connections, 1 KiB, {mode}");
        let bulk = format!("CPU of a proxy per MiB: 1 MiB each way, {mode}");
        for (name, title, scenario, figure) in [
            ("cpu-per-request", hundred, "pp-100-1k", metric::CPU),
            ("proxy-cpu-per-request", small, "proxy-100-1k", metric::CPU),
            ("proxy-cpu-per-mib", bulk, "proxy-1m", metric::CPU_MIB),
        ] {
            let bars = Bars {
                title,
                unit: "us".into(),
                bars: vec!["median".into()],
                rows: rows(results, mode, scenario, &[figure]),
            };
            plots.extend(bars.draw().map(|text| (format!("{name}-{mode}.svg"), text)));
        }
    }
    let idle = ["idle-10000", "idle-1000"]
        .into_iter()
        .find_map(|scenario| {
            let figures = [metric::BYTES_CONNECTED, metric::BYTES_USED];
            let rows = rows(results, "pinned", scenario, &figures);
            let bars = vec![
                "after connecting".into(),
                "after one request of 1 KiB".into(),
            ];
            Bars {
                title: "Memory per silent connection".into(),
                unit: "bytes".into(),
                bars,
                rows,
            }
            .draw()
        });
    plots.extend(idle.map(|text| ("memory-per-connection.svg".into(), text)));
    plots
}

fn over_connections(results: &Results, mode: &str, figure: &str) -> Vec<(String, Vec<(f64, f64)>)> {
    let series = servers_of(results).into_iter().map(|peer| {
        let point = |connections: usize| {
            let scenario = format!("pp-{connections}-1k");
            let place = Place {
                mode,
                scenario: &scenario,
                peer,
            };
            let median = stats::median(results.values(&place, figure).into_values())?;
            Some((connections as f64, median.value))
        };
        (
            peer.to_owned(),
            CONNECTIONS
                .into_iter()
                .filter_map(point)
                .collect::<Vec<_>>(),
        )
    });
    // One point is no line.
    series.filter(|(_, points)| points.len() > 1).collect()
}

fn rows(
    results: &Results,
    mode: &str,
    scenario: &str,
    figures: &[&str],
) -> Vec<(String, Vec<f64>)> {
    let row = |peer| {
        let place = Place {
            mode,
            scenario,
            peer,
        };
        let value = |figure: &&str| {
            Some(stats::median(results.values(&place, figure).into_values())?.value)
        };
        let values: Option<Vec<f64>> = figures.iter().map(value).collect();
        Some((String::from(peer), values?))
    };
    let about = scenario::all().into_iter().find(|one| one.name == scenario);
    let names = about.map_or_else(Vec::new, |about| about.contestants());
    names.into_iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::results::Sample;

    #[test]
    fn proxies_are_drawn_where_they_were_measured() {
        let sample = |peer: &str, value| Sample {
            mode: "free".into(),
            scenario: "proxy-1m".into(),
            peer: peer.into(),
            round: 0,
            figures: BTreeMap::from([(metric::CPU_MIB.to_owned(), value)]),
        };
        let results = Results {
            samples: vec![sample("netpoll-relay", 90.0), sample("nobody", 1.0)],
            ..Results::default()
        };
        let plots = all(&results);
        let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["proxy-cpu-per-mib-free.svg"]);
        assert!(plots[0].1.contains(">netpoll-relay<") && !plots[0].1.contains("nobody"));
    }
}
