//! What was seen, against what has to hold.

use std::time::Duration;

use super::child::Resources;
use super::figures::Figures;
use super::floors::{Floors, Verdict};
use super::sample::Load;
use super::tally::Act;

/// How long accepting may take to go on once there are descriptors again. It tries ten times a
/// second; the rest is for a busy machine.
const RESUME: Duration = Duration::from_secs(5);
/// Threads that the first handler starts and that stay: the one that watches over handlers.
const MONITORS: u64 = 1;
/// By how much the low points of memory may seem to grow, in KiB, if that is more than [`GROWTH_SHARE`] of
/// them. The allocator of the system keeps freed memory in pieces, now more and now less, so resident memory
/// says less than what is allocated.
const RESIDENT_GROWTH: f64 = 16.0 * 1024.0;
const ALLOCATED_GROWTH: f64 = 2.0 * 1024.0;
const GROWTH_SHARE: f64 = 0.05;
/// What may stay allocated when all peers are gone, in KiB: within seconds the pool keeps 256 KiB of
/// chunks at most, each thread that serves keeps 600 KiB.
const KEPT_KIB: u64 = 4 * 1024;

/// An episode without descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shortage {
    /// Since the load began.
    pub(super) at: Duration,
    /// How long it lasted.
    pub(super) time: Duration,
    /// Accepts that failed for it.
    pub(super) failed_accepts: u64,
    /// Answers on held connections while it lasted.
    pub(super) held_answers: u64,
    /// How long after its end a peer that had connected in it got its answer; `None`: never.
    pub(super) resumed: Option<Duration>,
}

/// Everything there is to judge.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    /// How long the load lasted.
    pub(super) time: Duration,
    /// Connections that were held.
    pub(super) held: u64,
    /// The server's figures when all peers were gone.
    pub(super) figures: Figures,
    pub(super) load: Load,
    /// The server before its first connection, and when all peers were gone.
    pub(super) before: Resources,
    pub(super) after: Resources,
    /// Bytes the server had allocated before its first connection.
    pub(super) heap_before: u64,
    /// Descriptors of the load's own process, likewise.
    pub(super) load_descriptors: (u64, u64),
    pub(super) shortages: Vec<Shortage>,
    /// How often the server's process was stopped for a while.
    pub(super) stops: u64,
    pub(super) rss: Option<Floors>,
    pub(super) heap: Option<Floors>,
    /// What went wrong with the run itself, or with the shutdown.
    pub(super) trouble: Vec<String>,
    /// What peers have complained of, as far as it was kept.
    pub(super) notes: Vec<String>,
}

/// One thing that has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) what: &'static str,
    pub(super) holds: bool,
    /// What was seen.
    pub(super) seen: String,
}

/// All checks.
pub(super) fn judge(seen: &Observed) -> Vec<Check> {
    let (figures, load) = (&seen.figures, &seen.load);
    let mut checks = Vec::new();
    let mut check = |what, holds, seen: String| checks.push(Check { what, holds, seen });
    let none = |count: u64| (count == 0, count.to_string());

    let (holds, text) = none(load.wrong_bytes);
    check("no wrong byte in an answer", holds, text);
    let (holds, text) = none(figures.wrong_bytes);
    check("no wrong byte in a request", holds, text);
    let (holds, text) = none(figures.misplaced);
    check(
        "no request lost, doubled, out of order or elsewhere",
        holds,
        text,
    );
    let (holds, text) = none(load.lost);
    check("no answer or end lost that was owed", holds, text);
    let (holds, text) = none(figures.order_violations);
    check("no callback out of order or beside another", holds, text);

    let books = [
        figures.prepared,
        figures.closed,
        figures.accepted,
        figures.loop_closed,
    ];
    check(
        "prepared = closed = accepted",
        books.iter().all(|count| *count == books[0]),
        format!(
            "{} / {} / {}, {} by the loop",
            books[0], books[1], books[2], books[3]
        ),
    );
    let books = [
        figures.connected,
        figures.disconnected,
        figures.loop_connected,
        figures.loop_disconnected,
    ];
    check(
        "connected = disconnected",
        books.iter().all(|count| *count == books[0]),
        format!(
            "{} / {}, {} / {} by the loop",
            books[0], books[1], books[2], books[3]
        ),
    );
    check(
        "every panic was asked for, and contained",
        figures.panics_unexpected == 0 && figures.loop_panics == figures.panics_ordered,
        format!(
            "{} asked for, {} contained, {} unexpected",
            figures.panics_ordered, figures.loop_panics, figures.panics_unexpected
        ),
    );
    let (holds, text) = none(figures.active);
    check("no connection left", holds, text);
    let (before, after) = (seen.before, seen.after);
    check(
        "as many descriptors as before the first connection",
        after.descriptors == before.descriptors,
        format!("{} before, {} after", before.descriptors, after.descriptors),
    );
    check(
        "no more threads than before the first connection and the monitor",
        after.threads <= before.threads + MONITORS,
        format!("{} before, {} after", before.threads, after.threads),
    );
    let (before, after) = seen.load_descriptors;
    check(
        "as many descriptors in the clients' process as before",
        before == after,
        format!("{before} before, {after} after"),
    );
    let ends = load.count(Act::PooledEnd);
    check(
        "a pool hands out no connection that had to be known dead",
        load.stale <= ends,
        format!("{} found dead in a call, {ends} asked to end", load.stale),
    );
    let (before, after) = (seen.heap_before / 1024, figures.heap / 1024);
    check(
        "what was allocated is freed, but for what is kept for the next connections",
        after <= before + KEPT_KIB,
        format!("{before} KiB before, {after} KiB after"),
    );
    check_shortages(seen, &mut check);
    check_done(seen, &mut check);
    for (what, floors, growth) in [
        ("resident memory stays", &seen.rss, RESIDENT_GROWTH),
        ("allocated memory stays", &seen.heap, ALLOCATED_GROWTH),
    ] {
        let Some(floors) = floors else { continue };
        let allowed = growth.max(floors.highest() * GROWTH_SHARE);
        let verdict = floors.verdict(allowed);
        let note = match verdict {
            Verdict::Stays | Verdict::Grows => "",
            Verdict::Short => "; not judged: that takes 12 minutes",
            Verdict::Unsteady => "; not judged: it rises and falls more slowly than that",
        };
        check(
            what,
            verdict != Verdict::Grows,
            format!(
                "its lowest values in windows of {:.1} minutes grow by {:.0} KiB, {allowed:.0} are allowed{note}",
                floors.window.as_secs_f64() / 60.0,
                floors.growth(),
            ),
        );
    }
    check(
        "the run went as planned and the server shut down",
        seen.trouble.is_empty(),
        if seen.trouble.is_empty() {
            "yes".into()
        } else {
            seen.trouble.join("; ")
        },
    );
    checks
}

fn check_shortages(seen: &Observed, check: &mut impl FnMut(&'static str, bool, String)) {
    let all = &seen.shortages;
    let latest = all.iter().filter_map(|one| one.resumed).max();
    let in_time = |one: &Shortage| one.resumed.is_some_and(|time| time <= RESUME);
    check(
        "accepting goes on after every shortage of descriptors",
        all.iter().all(in_time),
        format!(
            "{} of {}, the latest after {:.3} s",
            all.iter().filter(|one| in_time(one)).count(),
            all.len(),
            latest.unwrap_or_default().as_secs_f64()
        ),
    );
    let answered = |one: &&Shortage| one.held_answers > 0;
    check(
        "connections are served during every shortage",
        seen.held == 0 || all.iter().all(|one| answered(&one)),
        format!("{} of {}", all.iter().filter(answered).count(), all.len()),
    );
}

/// A check that could not fail because nothing was done would be worth nothing.
fn check_done(seen: &Observed, check: &mut impl FnMut(&'static str, bool, String)) {
    let left_out: Vec<String> = Act::ALL
        .into_iter()
        .filter(|act| seen.load.count(*act) == 0)
        .map(|act| format!("{act:?}"))
        .collect();
    let idle = seen.held > 0 && seen.load.held_answers == 0;
    let felt =
        seen.shortages.iter().all(|one| one.failed_accepts > 0) && !seen.shortages.is_empty();
    check(
        "everything that was to be done has been done",
        left_out.is_empty() && !idle && felt,
        match (left_out.is_empty(), idle, felt) {
            (true, false, true) => "yes".into(),
            (false, ..) => format!("not once: {}", left_out.join(", ")),
            (_, true, _) => "no held connection was ever answered".into(),
            _ => "a shortage was not felt".into(),
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of so many minutes, each a step above the one before.
    fn rising(minutes: u64, step: f64) -> Option<Floors> {
        Some(Floors {
            window: Duration::from_secs(minutes * 60),
            kib: [0.0, 1.0, 2.0, 3.0, 4.0].map(|n| 40_000.0 + n * step),
        })
    }

    /// A run in which everything holds.
    fn good() -> Observed {
        let before = Resources {
            descriptors: 10,
            threads: 5,
            ..Resources::default()
        };
        Observed {
            time: Duration::from_secs(600),
            held: 100,
            figures: Figures {
                prepared: 500,
                closed: 500,
                accepted: 500,
                loop_closed: 500,
                connected: 490,
                disconnected: 490,
                loop_connected: 490,
                loop_disconnected: 490,
                panics_ordered: 7,
                heap: 3 << 20,
                loop_panics: 7,
                requests: 10_000,
                ..Figures::default()
            },
            load: Load {
                acts: Act::ALL.map(|act| (act, 3)).into(),
                held_answers: 1000,
                stale: 2,
                ..Load::default()
            },
            before,
            after: Resources {
                threads: 6,
                ..before
            },
            load_descriptors: (20, 20),
            shortages: vec![Shortage {
                failed_accepts: 12,
                held_answers: 40,
                resumed: Some(Duration::from_millis(90)),
                ..Shortage::default()
            }],
            rss: rising(10, 100.0),
            heap: rising(10, 100.0),
            ..Observed::default()
        }
    }

    fn broken(seen: &Observed) -> Vec<&'static str> {
        let checks = judge(seen).into_iter();
        checks
            .filter(|one| !one.holds)
            .map(|one| one.what)
            .collect()
    }

    #[test]
    fn a_run_in_which_everything_holds_is_good() {
        assert_eq!(broken(&good()), [""; 0]);
    }

    #[test]
    fn every_check_fails_when_what_it_is_about_is_broken() {
        type Spoil = fn(&mut Observed);
        let spoils: [(&str, Spoil); 34] = [
            ("no wrong byte in an answer", |seen| {
                seen.load.wrong_bytes = 1
            }),
            ("no wrong byte in a request", |seen| {
                seen.figures.wrong_bytes = 1
            }),
            ("no request lost", |seen| seen.figures.misplaced = 1),
            ("no answer or end lost", |seen| seen.load.lost = 1),
            ("no callback out of order", |seen| {
                seen.figures.order_violations = 1
            }),
            ("prepared =", |seen| seen.figures.prepared += 1),
            ("prepared =", |seen| seen.figures.closed -= 1),
            ("prepared =", |seen| seen.figures.accepted += 1),
            ("prepared =", |seen| seen.figures.loop_closed -= 1),
            ("connected =", |seen| seen.figures.connected += 1),
            ("connected =", |seen| seen.figures.disconnected -= 1),
            ("connected =", |seen| seen.figures.loop_connected -= 1),
            ("connected =", |seen| seen.figures.loop_disconnected += 1),
            ("every panic", |seen| seen.figures.loop_panics += 1),
            ("every panic", |seen| seen.figures.panics_unexpected = 1),
            ("no connection left", |seen| seen.figures.active = 1),
            ("as many descriptors as", |seen| seen.after.descriptors += 1),
            ("as many descriptors as", |seen| seen.after.descriptors -= 1),
            ("no more threads", |seen| seen.after.threads += 1),
            ("as many descriptors in", |seen| {
                seen.load_descriptors.1 += 1
            }),
            ("what was allocated", |seen| seen.figures.heap = 5 << 20),
            ("a pool", |seen| seen.load.stale = 4),
            ("accepting goes on", |seen| seen.shortages[0].resumed = None),
            ("accepting goes on", |seen| {
                seen.shortages[0].resumed = Some(Duration::from_secs(6));
            }),
            ("connections are served", |seen| {
                seen.shortages[0].held_answers = 0
            }),
            ("everything", |seen| seen.shortages[0].failed_accepts = 0),
            ("everything", |seen| seen.shortages.clear()),
            ("everything", |seen| seen.load.acts[4].1 = 0),
            ("everything", |seen| seen.load.held_answers = 0),
            ("resident memory", |seen| seen.rss = rising(2, 4500.0)),
            ("allocated memory", |seen| seen.heap = rising(2, 600.0)),
            ("the run went", |seen| seen.trouble.push("no answer".into())),
            ("no answer or end lost", |seen| {
                seen.time = Duration::from_secs(30);
                seen.load.lost = 1;
            }),
            ("as many descriptors as", |seen| {
                seen.before = Resources::default()
            }),
        ];
        for (at, (what, spoil)) in spoils.into_iter().enumerate() {
            let mut seen = good();
            spoil(&mut seen);
            let broken = broken(&seen);
            assert!(
                broken.iter().any(|one| one.starts_with(what)),
                "{at}: {what}: {broken:?}"
            );
        }
    }

    #[test]
    fn short_runs_are_not_judged_by_their_memory_and_say_so() {
        let mut seen = good();
        (seen.rss, seen.heap) = (rising(1, 1e6), rising(1, 1e6));
        assert_eq!(broken(&seen), [""; 0]);
        let said = judge(&seen).into_iter();
        let said = said.filter(|one| one.seen.contains("not judged"));
        assert_eq!(said.count(), 2);
        // Memory that is given back is no fault.
        let mut seen = good();
        (seen.rss, seen.heap) = (rising(10, -5000.0), rising(10, -5000.0));
        assert_eq!(broken(&seen), [""; 0]);
    }
}
