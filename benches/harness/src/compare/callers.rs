//! One measurement of a client: what it sees, and what its own process spends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};

use super::instruments::{self, Tool};
use super::point::Times;
use super::server::{Server, Settings};
use crate::clients::{Client, Job};
use crate::results::metric;

/// How a client calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calling {
    /// Callers, each with one call under way.
    pub(crate) callers: usize,
    /// On one connection for all.
    pub(crate) shared: bool,
}

/// Payload bytes of a call.
const SIZE: usize = 1 << 10;

/// Does `job` in this process and returns the figures.
pub(crate) fn figures(client: &Client, job: &Job) -> io::Result<BTreeMap<String, f64>> {
    let tally = client.run(job)?;
    if tally.calls == 0 {
        return Err(io::Error::other("no call was answered while recording"));
    }
    let (calls, seconds) = (tally.calls as f64, tally.elapsed.as_secs_f64());
    let at = |quantile| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
    let cpu = tally.cpu.as_secs_f64();
    let mut figures = BTreeMap::new();
    for (name, value) in [
        (metric::RATE, calls / seconds),
        (metric::P50, at(0.5)),
        (metric::P99, at(0.99)),
        (metric::P999, at(0.999)),
        (metric::CPU, cpu * 1e6 / calls),
        (metric::CORES, cpu / seconds),
    ] {
        figures.insert(name.to_owned(), value);
    }
    if let Some(waits) = tally.waits {
        figures.insert(metric::VOLUNTARY.to_owned(), waits as f64 / calls);
    }
    Ok(figures)
}

/// Runs `client` as a child against `server` and returns its figures.
pub(crate) fn measure(
    client: &Client,
    calling: Calling,
    server: &Server,
    settings: &Settings,
    times: Times,
) -> io::Result<BTreeMap<String, f64>> {
    let mut line = command(client, calling, server, settings);
    for (option, time) in [("--seconds", times.measure), ("--warmup", times.warmup)] {
        line.extend([option.into(), time.as_secs_f64().to_string().into()]);
    }
    let output = run(&line)?;
    Ok(serde_json::from_slice(&output)?)
}

/// Counts per call of `client`, by name.
pub(crate) fn count(
    tool: Tool,
    client: &Client,
    calling: Calling,
    server: &Server,
    settings: &Settings,
) -> io::Result<BTreeMap<String, f64>> {
    instruments::difference(tool, SIZE, |requests, under| {
        let settings = Settings {
            under,
            ..settings.clone()
        };
        let mut line = command(client, calling, server, &settings);
        line.extend(["--requests".into(), requests.to_string().into()]);
        run(&line).map(drop)
    })
}

fn command(
    client: &Client,
    calling: Calling,
    server: &Server,
    settings: &Settings,
) -> Vec<OsString> {
    let mut line: Vec<OsString> = settings.under.clone();
    line.push(settings.program.clone().into());
    line.extend(["call", client.name, "--with-parent", "--connect"].map(Into::into));
    line.push(server.addr().to_string().into());
    line.extend(["--callers".into(), calling.callers.to_string().into()]);
    line.extend(["--size".into(), SIZE.to_string().into()]);
    if calling.shared {
        line.push("--shared".into());
    }
    if let Some(core) = settings.core {
        line.extend(["--core".into(), core.to_string().into()]);
    }
    line
}

fn run(line: &[OsString]) -> io::Result<Vec<u8>> {
    let mut command = Command::new(&line[0]);
    let output = command.args(&line[1..]).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(text.trim().to_owned()));
    }
    Ok(output.stdout)
}
