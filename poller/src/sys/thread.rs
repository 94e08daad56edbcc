//! Is a thread waiting, or computing? Read from `/proc`, so there is nothing `unsafe` about it.
//! Where there is no such file (not Linux, or not mounted) every answer is "unknown".

use std::{cell::Cell, fs, time::Duration};

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Asleep or in an uninterruptible wait.
    Waiting,
    /// Running, or ready to; with the processor time it has used so far, if known.
    Computing(Option<Duration>),
    /// The system does not tell.
    Unknown,
}

/// The calling thread's number, for [`thread_activity`]; 0 if unknown. Looked up once per thread.
pub(crate) fn thread_id() -> u32 {
    thread_local! {
        static ID: Cell<Option<u32>> = const { Cell::new(None) };
    }
    ID.get().unwrap_or_else(|| {
        // A link to "<process>/task/<thread>".
        let id = fs::read_link("/proc/thread-self")
            .ok()
            .and_then(|link| link.file_name()?.to_str()?.parse().ok())
            .unwrap_or(0);
        ID.set(Some(id));
        id
    })
}

/// What a thread of this process is doing right now.
pub(crate) fn thread_activity(id: u32) -> Activity {
    if id == 0 {
        return Activity::Unknown;
    }
    let Ok(stat) = fs::read_to_string(format!("/proc/self/task/{id}/stat")) else {
        return Activity::Unknown;
    };
    match state(&stat) {
        Some('R') => Activity::Computing(processor_time(id)),
        Some(_) => Activity::Waiting,
        None => Activity::Unknown,
    }
}

/// The state letter: the field after the name, which is in brackets and may contain anything.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Nanoseconds on a processor: the first field of `schedstat`.
fn processor_time(id: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/self/task/{id}/schedstat")).ok()?;
    text.split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Duration::from_nanos)
}

#[cfg(all(test, not(loom), target_os = "linux"))]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    #[test]
    fn state_is_found_behind_any_name() {
        assert_eq!(state("12 (a) R (b) S 1 2 3"), Some('S'));
        assert_eq!(state("12 (worker-1) R 1 2"), Some('R'));
        assert_eq!(state("nonsense"), None);
    }

    #[test]
    fn a_parked_thread_waits_and_this_one_computes() {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let parked = thread::spawn(move || {
            tell.send(thread_id()).unwrap();
            let _ = stopped.recv();
        });
        let id = told.recv().unwrap();
        assert_ne!(id, thread_id());
        while thread_activity(id) != Activity::Waiting {
            thread::yield_now();
        }
        assert!(matches!(
            thread_activity(thread_id()),
            Activity::Computing(Some(_))
        ));
        drop(stop);
        parked.join().unwrap();
        assert_eq!(thread_activity(0), Activity::Unknown);
    }
}
