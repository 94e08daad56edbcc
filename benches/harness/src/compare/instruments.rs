//! Counts instead of times: system calls with perf, or by name with strace, instructions and
//! allocations with callgrind, bytes copied with dhat.
//!
//! A server is run twice under the tool, with few and with more requests, and the difference is
//! divided by the difference in requests: what start-up and connecting cost falls out. All tools but
//! perf slow a server down, so that more requests arrive together than otherwise, and what happens at
//! a fixed rate happens more often per request.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use serde::Deserialize;

use super::point::{self, Times};
use super::scenario::Shape;
use super::server::{Server, Settings};
use crate::load;

/// A tool that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// `perf stat`: all calls, at the server's own speed.
    Perf,
    /// `strace -c`: calls by name.
    Strace,
    /// `valgrind --tool=callgrind`: instructions, and calls of the allocator.
    Callgrind,
    /// `valgrind --tool=dhat --mode=copy`: bytes that memcpy and its like have copied. A copy the
    /// compiler has put in line, of a few words, is not among them.
    Copies,
}

impl Tool {
    /// Whether it can be started here.
    pub(crate) fn is_present(self) -> bool {
        let program = match self {
            // It may be there and not be allowed to look.
            Self::Perf => return Self::perf_may_count(),
            Self::Strace => "strace",
            Self::Callgrind | Self::Copies => "valgrind",
        };
        let mut version = Command::new(program);
        version
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    }

    fn perf_may_count() -> bool {
        let report = Report::new(Self::Perf);
        let line = Self::Perf.command(&report.0);
        let mut trial = Command::new(&line[0]);
        trial.args(&line[1..]).arg("true");
        let ran = trial.stdout(Stdio::null()).stderr(Stdio::null()).status();
        ran.is_ok_and(|status| status.success())
            && fs::read_to_string(&report.0).is_ok_and(|text| parse_perf(&text).is_some())
    }

    /// The command line that runs a program under the tool, its report going to `out`.
    fn command(self, out: &Path) -> Vec<OsString> {
        match self {
            Self::Perf => {
                let mut line: Vec<OsString> = ["perf", "stat", "-x,", "-e", CALLS, "-o"]
                    .map(Into::into)
                    .into();
                line.extend([out.into(), "--".into()]);
                line
            }
            Self::Strace => {
                let mut line: Vec<OsString> = ["strace", "-c", "-f", "-o"].map(Into::into).into();
                line.push(out.into());
                line
            }
            Self::Callgrind => valgrind(&["--tool=callgrind"], "--callgrind-out-file=", out),
            Self::Copies => valgrind(&["--tool=dhat", "--mode=copy"], "--dhat-out-file=", out),
        }
    }

    /// The counts in its report.
    fn read(self, text: &str) -> io::Result<BTreeMap<String, u64>> {
        match self {
            Self::Perf => parse_perf(text)
                .map(|calls| BTreeMap::from([(CALLS.to_owned(), calls)]))
                .ok_or_else(|| io::Error::other("perf has not reported the system calls")),
            Self::Strace => Ok(parse_strace(text)),
            Self::Callgrind => parse_callgrind(text)
                .ok_or_else(|| io::Error::other("callgrind has not reported the instructions")),
            Self::Copies => parse_dhat(text),
        }
    }

    /// Few and more requests of `size` bytes: the tools differ in how much they slow a server down.
    fn requests(self, size: usize) -> (u64, u64) {
        match self {
            _ if size >= 1 << 20 => (50, 250),
            Self::Perf => (5_000, 25_000),
            Self::Strace => (2_000, 8_000),
            Self::Callgrind | Self::Copies => (2_000, 8_000),
        }
    }
}

/// The command line of a tool of valgrind's whose report goes to `out`.
fn valgrind(tool: &[&str], option: &str, out: &Path) -> Vec<OsString> {
    let mut file = OsString::from(option);
    file.push(out);
    let start = ["valgrind", "-q", "--fair-sched=yes"];
    let mut line: Vec<OsString> = start.iter().chain(tool).map(Into::into).collect();
    line.push(file);
    line
}

/// Counts per request of `shape` against `peer`, by name; perf has [`CALLS`], callgrind
/// [`TOTAL`] and [`ALLOCATOR`], dhat [`COPIED`].
pub(crate) fn count(
    tool: Tool,
    peer: &str,
    shape: &Shape,
    settings: &Settings,
) -> io::Result<BTreeMap<String, f64>> {
    difference(tool, shape.size, |requests, under| {
        let server = Server::start(
            peer,
            &Settings {
                under,
                ..settings.clone()
            },
        )?;
        let times = Times {
            warmup: Duration::ZERO,
            measure: Duration::ZERO,
        };
        let mut plan = point::plan(shape, &server, settings.congestion.as_deref(), times);
        plan.requests = Some(requests);
        load::run(&plan, &mut |_| ())?;
        server.finish()
    })
}

/// Counts per request of `size` bytes of what `run` does: it is given a number of requests and the tool to run under.
pub(crate) fn difference(
    tool: Tool,
    size: usize,
    mut run: impl FnMut(u64, Vec<OsString>) -> io::Result<()>,
) -> io::Result<BTreeMap<String, f64>> {
    let (few, more) = tool.requests(size);
    let mut counts = |requests| {
        let out = Report::new(tool);
        run(requests, tool.command(&out.0))?;
        tool.read(&fs::read_to_string(&out.0)?)
    };
    let (less, most) = (counts(few)?, counts(more)?);
    let each = |(name, count): (String, u64)| {
        let before = less.get(&name).copied().unwrap_or(0);
        (name, (count as f64 - before as f64) / (more - few) as f64)
    };
    Ok(most.into_iter().map(each).collect())
}

/// The event `perf stat` counts, which is its name in what [`count`] returns, too.
pub(crate) const CALLS: &str = "raw_syscalls:sys_enter";
/// The name of all instructions in what [`count`] returns.
pub(crate) const TOTAL: &str = "instructions";
/// The name of the calls of the allocator in what [`count`] returns.
pub(crate) const ALLOCATOR: &str = "allocations";

/// The name of the bytes copied in what [`count`] returns.
pub(crate) const COPIED: &str = "copied";

/// A file in the temporary directory, gone when dropped.
struct Report(PathBuf);

impl Report {
    fn new(tool: Tool) -> Self {
        let name = format!("netpoll-bench-{}-{tool:?}.out", std::process::id());
        Self(env::temp_dir().join(name))
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Missing when the tool has not written one.
        let _ = fs::remove_file(&self.0);
    }
}

/// The calls in the line `perf stat -x,` writes.
fn parse_perf(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(CALLS))?;
    line.split(',').next()?.parse().ok()
}

/// The calls by name in the table `strace -c` writes.
fn parse_strace(text: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let share: f64 = fields.first()?.parse().ok()?;
        let name = *fields.last()?;
        let calls = fields.get(3)?.parse().ok()?;
        (share <= 100.0 && name != "total").then(|| (name.to_owned(), calls))
    };
    text.lines().filter_map(row).collect()
}

/// The instructions and the calls of the allocator in a profile of callgrind.
fn parse_callgrind(text: &str) -> Option<BTreeMap<String, u64>> {
    const ALLOCATING: [&str; 5] = ["malloc", "calloc", "realloc", "memalign", "posix_memalign"];
    let mut total = None;
    let mut allocations = 0;
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut called = "";
    for line in text.lines() {
        if let Some(sum) = line
            .strip_prefix("totals: ")
            .or_else(|| line.strip_prefix("summary: "))
        {
            total = sum.split_whitespace().next()?.parse().ok();
        } else if let Some(function) = line
            .strip_prefix("cfn=")
            .or_else(|| line.strip_prefix("fn="))
        {
            // `(7) name` introduces a name, `(7)` means it again.
            let (id, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            if line.starts_with('c') {
                called = names.get(id).copied().unwrap_or("");
            }
        } else if let Some(calls) = line.strip_prefix("calls=") {
            // Recursion is marked behind the name: `malloc'2`.
            if ALLOCATING.contains(&called.split('\'').next().unwrap_or("")) {
                allocations += calls.split_whitespace().next()?.parse::<u64>().ok()?;
            }
        }
    }
    Some(BTreeMap::from([
        (TOTAL.to_owned(), total?),
        (ALLOCATOR.to_owned(), allocations),
    ]))
}

/// The bytes copied in a profile of dhat: the sum over all places that copy.
fn parse_dhat(text: &str) -> io::Result<BTreeMap<String, u64>> {
    #[derive(Deserialize)]
    struct Profile {
        mode: String,
        pps: Vec<Place>,
    }
    #[derive(Deserialize)]
    struct Place {
        tb: u64,
    }
    let profile: Profile = serde_json::from_str(text)?;
    if profile.mode != "copy" {
        let text = format!("dhat has counted {:?}, not copies", profile.mode);
        return Err(io::Error::other(text));
    }
    let copied = profile.pps.iter().map(|place| place.tb).sum();
    Ok(BTreeMap::from([(COPIED.to_owned(), copied)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_perf_is_read() {
        let text = "# started on Sat\n\n29,,raw_syscalls:sys_enter,611149,100.00,,\n";
        assert_eq!(parse_perf(text), Some(29));
        let refused = "<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n";
        assert_eq!(parse_perf(refused), None);
    }

    #[test]
    fn the_table_of_strace_is_read() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           3       200           recvfrom
 40.00    0.000400           2       180         7 sendto
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           2       380         7 total
";
        let calls = parse_strace(text);
        assert_eq!(
            calls,
            BTreeMap::from([("recvfrom".into(), 200), ("sendto".into(), 180)])
        );
    }

    #[test]
    fn a_profile_of_callgrind_is_read() {
        let text = "\
events: Ir
fn=(1) main
16 400
cob=(2) /lib/libc.so.6
cfn=(7) malloc
calls=3 0
16 90
cfn=(8) free
calls=5 0
16 90
fn=(2) other
cfn=(7)
calls=2 0
16 400
totals: 12345
";
        let counts = parse_callgrind(text).unwrap();
        assert_eq!(counts[TOTAL], 12345);
        assert_eq!(counts[ALLOCATOR], 5);
        assert!(parse_callgrind("events: Ir\n").is_none());
    }

    #[test]
    fn a_profile_of_dhat_is_read() {
        let of = |mode| {
            format!(
                r#"{{"dhatFileVersion":2,"mode":"{mode}","pps":
                [{{"tb":45,"tbk":3,"fs":[1]}},{{"tb":100,"tbk":1,"fs":[2]}}],"ftbl":["[root]"]}}"#
            )
        };
        assert_eq!(parse_dhat(&of("copy")).unwrap()[COPIED], 145);
        let wrong = parse_dhat(&of("heap")).unwrap_err().to_string();
        assert!(wrong.contains("heap"), "{wrong}");
        assert!(parse_dhat("").is_err());
    }
}
