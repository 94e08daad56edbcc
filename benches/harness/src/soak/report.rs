//! The report of a soak: verdict, counts, the record in short, and a plot.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, io};

use super::floors::Floors;
use super::judge::{Check, Observed};
use super::sample::{Sample, csv};
use super::{Options, tally::Act};
use crate::compare::environment;
use crate::report::timeline::{Panel, draw};

/// Writes `samples.csv`, `report.md` and `plot.svg` into the directory `out`.
pub(super) fn write(
    options: &Options,
    seen: &Observed,
    checks: &[Check],
    samples: &[Sample],
) -> io::Result<()> {
    let out: &Path = &options.out;
    fs::create_dir_all(out)?;
    fs::write(out.join("samples.csv"), csv(samples))?;
    fs::write(out.join("plot.svg"), plot(seen, samples))?;
    fs::write(out.join("report.md"), text(options, seen, checks, samples))
}

/// The verdict alone, for the terminal.
pub(super) fn summary(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let word = if check.holds { "holds " } else { "BROKEN" };
        let _ = writeln!(text, "{word}  {}: {}", check.what, check.seen);
    }
    text
}

fn text(options: &Options, seen: &Observed, checks: &[Check], samples: &[Sample]) -> String {
    let mut text = String::new();
    let (figures, load) = (&seen.figures, &seen.load);
    let here = environment::describe(std::thread::available_parallelism().map_or(1, usize::from));
    let broken = checks.iter().filter(|check| !check.holds).count();
    let verdict = match broken {
        0 => "everything held".to_owned(),
        count => format!("{count} of {} checks are broken", checks.len()),
    };
    let _ = writeln!(
        text,
        "# Soak of {:.0} s: {verdict}\n\n\
         {}, {}{} cores of {}, Linux {}.\n\n\
         ```text\n{}\n```\n\n\
         {} connections held, {} opened in all; {} requests and {} MiB echoed and compared byte by \
         byte; {} shortages of descriptors, {} stops of the whole process.\n",
        seen.time.as_secs_f64(),
        here.date,
        commit().map_or_else(String::new, |commit| format!("commit {commit}, ")),
        here.cores,
        here.processor,
        here.kernel,
        options.command(),
        seen.held,
        load.connects,
        load.answers,
        load.bytes >> 20,
        seen.shortages.len(),
        seen.stops,
    );
    text.push_str("## What has to hold\n\n| | | seen |\n|---|---|---|\n");
    for check in checks {
        let word = if check.holds { "holds" } else { "**broken**" };
        let _ = writeln!(text, "| {} | {word} | {} |", check.what, check.seen);
    }
    if !seen.notes.is_empty() {
        text.push_str("\n## What peers saw\n\n");
        for note in &seen.notes {
            let _ = writeln!(text, "- `{note}`");
        }
    }
    text.push_str(
        "\n## What was done\n\nEach ended as it should so many times, on top of the held \
         connections.\n\n| | | times |\n|---|---|--:|\n",
    );
    for act in Act::ALL {
        let _ = writeln!(text, "| {act:?} | {} | {} |", act.about(), load.count(act));
    }
    let _ = writeln!(
        text,
        "\nThe server counted {} connections, {} requests with {} MiB, {} panics, {} accepts that \
         failed for want of descriptors and {} for other reasons. Connects that had to wait for a \
         free port: {}.\n",
        figures.accepted,
        figures.requests,
        figures.bytes >> 20,
        figures.loop_panics,
        figures.emfile,
        figures.accept_errors,
        load.port_waits,
    );
    text.push_str("## The server's process\n\n");
    text.push_str(&resources(seen, samples));
    text.push_str("\n![Connections, requests, memory, descriptors, threads, CPU](plot.svg)\n");
    text
}

fn resources(seen: &Observed, samples: &[Sample]) -> String {
    let mut text = String::from(
        "| | before the first connection | least | median | most | when all peers were gone |\n\
         |---|--:|--:|--:|--:|--:|\n",
    );
    type Value = fn(&super::child::Resources) -> u64;
    let rows: [(&str, Value); 3] = [
        ("memory, KiB", |one| one.rss_kib),
        ("descriptors", |one| one.descriptors),
        ("threads", |one| one.threads),
    ];
    for (name, value) in rows {
        let mut values: Vec<u64> = samples.iter().map(|one| value(&one.resources)).collect();
        values.sort_unstable();
        let at = |index: usize| values.get(index).copied().unwrap_or(0);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} |",
            value(&seen.before),
            at(0),
            at(values.len() / 2),
            at(values.len().saturating_sub(1)),
            value(&seen.after),
        );
    }
    let cpu = seen.after.cpu.saturating_sub(seen.before.cpu).as_secs_f64();
    let _ = writeln!(
        text,
        "\nCPU: {cpu:.1} s, {:.1} us per request.",
        cpu * 1e6 / seen.figures.requests.max(1) as f64
    );
    for (what, floors) in [("Resident", &seen.rss), ("Allocated", &seen.heap)] {
        let Some(floors) = floors else { continue };
        let lowest: Vec<String> = floors.kib.iter().map(|kib| format!("{kib:.0}")).collect();
        let _ = writeln!(
            text,
            "{what} memory, the lowest in each window of {:.1} minutes: {} KiB.",
            floors.window.as_secs_f64() / 60.0,
            lowest.join(", "),
        );
    }
    text
}

fn plot(seen: &Observed, samples: &[Sample]) -> String {
    let over_time = |title: &str, value: fn(&Sample) -> f64| Panel {
        title: title.into(),
        points: samples
            .iter()
            .map(|one| (one.at.as_secs_f64(), value(one)))
            .collect(),
        trend: None,
    };
    // What happened between one sample and the next, per second.
    let per_second = |title: &str, value: fn(&Sample) -> f64| Panel {
        title: title.into(),
        points: samples
            .windows(2)
            .map(|pair| {
                let time = (pair[1].at - pair[0].at).as_secs_f64().max(0.001);
                let change = value(&pair[1]) - value(&pair[0]);
                (pair[1].at.as_secs_f64(), change / time)
            })
            .collect(),
        trend: None,
    };
    let mut resident = over_time("resident memory of the server, MiB", |one| {
        one.resources.rss_kib as f64 / 1024.0
    });
    resident.trend = trend(seen.rss.as_ref());
    let mut allocated = over_time("allocated by the server, MiB", |one| {
        one.figures.heap as f64 / f64::from(1 << 20)
    });
    allocated.trend = trend(seen.heap.as_ref());
    let panels = [
        over_time("open connections", |one| one.figures.active as f64),
        per_second("requests per second", |one| one.figures.requests as f64),
        per_second("connections accepted per second", |one| {
            one.figures.accepted as f64
        }),
        resident,
        allocated,
        over_time("descriptors of the server", |one| {
            one.resources.descriptors as f64
        }),
        over_time("threads of the server", |one| one.resources.threads as f64),
        per_second("cores the server keeps busy", |one| {
            one.resources.cpu.as_secs_f64()
        }),
    ];
    let marks: Vec<f64> = seen
        .shortages
        .iter()
        .map(|one| one.at.as_secs_f64())
        .collect();
    draw(
        "Soak (vertical lines: shortages of descriptors)",
        &panels,
        &marks,
    )
}

/// The commit of the directory this runs in, as far as git is there to tell.
fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let name = String::from_utf8(output.stdout).ok()?;
    Some(name.trim().to_owned()).filter(|name| output.status.success() && !name.is_empty())
}

/// A line in MiB from the middle of the first window to that of the last, which rises as the low points do.
fn trend(floors: Option<&Floors>) -> Option<[(f64, f64); 2]> {
    let floors = floors?;
    let window = floors.window.as_secs_f64();
    let first = floors.kib[0] / 1024.0;
    let count = floors.kib.len() as f64;
    Some([
        (window * 1.5, first),
        (window * (count + 0.5), first + floors.growth() / 1024.0),
    ])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::soak::judge::Shortage;

    #[test]
    fn a_report_says_what_broke() {
        let mut seen = Observed {
            time: Duration::from_secs(20),
            rss: Some(Floors {
                window: Duration::from_secs(90),
                kib: [2000.0, 2001.0, 2002.0, 2003.0, 2004.0],
            }),
            ..Observed::default()
        };
        seen.shortages.push(Shortage::default());
        let check = |what, holds| Check {
            what,
            holds,
            seen: "7".into(),
        };
        let checks = [check("first thing", true), check("second thing", false)];
        let samples: Vec<_> = (0..4u64)
            .map(|n| {
                let mut sample = Sample {
                    at: Duration::from_secs(n * 5),
                    ..Sample::default()
                };
                sample.resources.rss_kib = 1000 + n;
                sample.figures.requests = n * 100;
                sample
            })
            .collect();
        let options = Options::default();
        let text = text(&options, &seen, &checks, &samples);
        assert!(text.starts_with("# Soak of 20 s: 1 of 2 checks are broken\n"));
        assert!(text.contains("| second thing | **broken** | 7 |"));
        assert!(text.contains("| first thing | holds | 7 |"));
        assert!(text.contains("| memory, KiB | 0 | 1000 | 1002 | 1003 | 0 |"));
        assert!(text.contains("window of 1.5 minutes: 2000, 2001, 2002, 2003, 2004 KiB"));
        assert!(summary(&checks).contains("BROKEN  second thing: 7"));
        assert!(plot(&seen, &samples).contains("requests per second"));
        // A run that ended before the first sample still has a report.
        assert!(resources(&seen, &[]).contains("| threads | 0 | 0 | 0 | 0 | 0 |"));
        assert!(plot(&Observed::default(), &[]).contains("</svg>"));
    }
}
