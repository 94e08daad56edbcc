//! Is a thread waiting, or computing? Read from `/proc`, so there is nothing `unsafe` about it.
//! Where there is no such file (not Linux, or not mounted) every answer is "unknown".

use std::{
    cell::Cell,
    fs::{self, File},
    io::Read,
    time::Duration,
};

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Asleep.
    Waiting,
    /// In an uninterruptible sleep (`D` in `proc_pid_stat(5)`): for a disk, but most often for a lock of the
    /// kernel that another thread gives back at once, like that of the process's memory map.
    Uninterruptible,
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
    let known = ID.try_with(Cell::get).ok().flatten();
    known.unwrap_or_else(|| {
        // A link to "<process>/task/<thread>".
        let id = fs::read_link("/proc/thread-self")
            .ok()
            .and_then(|link| link.file_name()?.to_str()?.parse().ok())
            .unwrap_or(0);
        let _ = ID.try_with(|known| known.set(Some(id)));
        id
    })
}

/// What a thread of this process is doing right now.
pub(crate) fn thread_activity(id: u32) -> Activity {
    match current_state(id) {
        Some(b'R') => Activity::Computing(processor_time(id)),
        Some(b'D') => Activity::Uninterruptible,
        Some(_) => Activity::Waiting,
        None => Activity::Unknown,
    }
}

/// Whether a thread of this process sleeps right now, for all that is known. Costs half as much as
/// [`thread_activity`].
pub(crate) fn thread_waits(id: u32) -> bool {
    !matches!(current_state(id), Some(b'R' | b'D'))
}

fn current_state(id: u32) -> Option<u8> {
    if id == 0 {
        return None;
    }
    let mut room = [0; 512];
    state(read(id, "stat", &mut room)?)
}

/// The state letter: the field after the name, which is in brackets and may contain anything.
fn state(stat: &[u8]) -> Option<u8> {
    let name_ends = stat.windows(2).rposition(|pair| pair == b") ")?;
    stat.get(name_ends + 2).copied()
}

/// Nanoseconds on a processor: the first field of `schedstat`.
fn processor_time(id: u32) -> Option<Duration> {
    let mut room = [0; 128];
    let text = read(id, "schedstat", &mut room)?;
    let digits = text.split(|byte| !byte.is_ascii_digit()).next()?;
    let nanos = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// The beginning of a file about a thread. Such files are written anew for each read, so one read
/// has to do.
fn read<'a>(id: u32, what: &str, room: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut file = File::open(format!("/proc/self/task/{id}/{what}")).ok()?;
    let length = file.read(room).ok()?;
    Some(&room[..length])
}

#[cfg(all(test, not(loom), target_os = "linux"))]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    #[test]
    fn state_is_found_behind_any_name() {
        assert_eq!(state(b"12 (a) R (b) S 1 2 3"), Some(b'S'));
        assert_eq!(state(b"12 (worker-1) R 1 2"), Some(b'R'));
        assert_eq!(state(b"12 (\xff) ) S 1"), Some(b'S'));
        assert_eq!(state(b"nonsense"), None);
        assert_eq!(state(b"12 (cut) "), None);
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
        assert!(thread_waits(id) && !thread_waits(thread_id()));
        assert!(matches!(
            thread_activity(thread_id()),
            Activity::Computing(Some(_))
        ));
        drop(stop);
        parked.join().unwrap();
        assert_eq!(thread_activity(0), Activity::Unknown);
    }
}
