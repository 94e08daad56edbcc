//! What befalls the whole server now and then: it has no descriptors left, or does not run at all.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::child::Server;
use super::judge::Shortage;
use super::peer::{Peer, Route};
use super::tally::{Fault, Tally};
use super::wire::{Dice, Order};
use crate::sys::{self, Signal};

/// What has befallen the server so far.
#[derive(Debug, Default)]
pub(super) struct Episodes {
    pub(super) begun: AtomicU64,
    pub(super) stops: AtomicU64,
    pub(super) shortages: Mutex<Vec<Shortage>>,
}

/// The parts of a run that episodes need.
#[derive(Clone, Copy)]
pub(super) struct Stage<'a> {
    pub(super) server: &'a Mutex<&'a mut Server>,
    pub(super) route: Route,
    pub(super) tally: &'a Tally,
    /// When the load began, and when it will end.
    pub(super) start: Instant,
    pub(super) end: Instant,
}

/// Time left before the end in which no episode begins any more.
const QUIET: Duration = Duration::from_secs(5);

impl Episodes {
    /// One episode after the other until the end: shortages of descriptors and stops in turn.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked, or its process cannot be signalled.
    pub(super) fn run(&self, stage: Stage<'_>, mut dice: Dice) -> io::Result<()> {
        let gap = (stage.end - stage.start) / 50;
        let gap = gap.clamp(Duration::from_secs(4), Duration::from_secs(20));
        let mut due = stage.start + Duration::from_secs(2);
        loop {
            while Instant::now() < due {
                if stage.tally.is_over() {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(20));
            }
            if Instant::now() + QUIET > stage.end {
                return Ok(());
            }
            if self.begun.fetch_add(1, Relaxed) % 2 == 0 {
                let time = Duration::from_millis(1000 + dice.roll(1000));
                let shortage = shortage(&stage, time)?;
                self.shortages.lock().push(shortage);
            } else {
                let pid = stage.server.lock().pid();
                sys::signal(pid, Signal::Stop)?;
                thread::sleep(Duration::from_millis(50 + dice.roll(500)));
                sys::signal(pid, Signal::Continue)?;
                self.stops.fetch_add(1, Relaxed);
            }
            due += gap;
        }
    }
}

/// Takes the server's spare descriptors away for a while. A peer that connects in that time waits in
/// the kernel's queue and has to be answered afterwards.
fn shortage(stage: &Stage<'_>, time: Duration) -> io::Result<Shortage> {
    let tally = stage.tally;
    let at = stage.start.elapsed();
    let failed = stage.server.lock().look()?.emfile;
    stage.server.lock().limit(1)?;
    let answered = tally.held_answers.load(Relaxed);
    let waiting = Peer::connect(&stage.route, tally).and_then(|mut peer| {
        let head = peer.head(Order::Echo, 0, 1000);
        peer.send(&head.frame())?;
        Ok((peer, head))
    });
    thread::sleep(time);
    let held_answers = tally.held_answers.load(Relaxed) - answered;
    stage.server.lock().limit(u64::MAX)?;
    let raised = Instant::now();
    let resumed = waiting.and_then(|(mut peer, head)| {
        peer.expect(&head)?;
        Ok::<_, Fault>(raised.elapsed())
    });
    let failed_accepts = stage.server.lock().look()?.emfile - failed;
    Ok(Shortage {
        at,
        time,
        failed_accepts,
        held_answers,
        resumed: match resumed {
            Ok(time) => Some(time),
            Err(fault) => {
                tally.fault("Shortage", &fault);
                None
            }
        },
    })
}
