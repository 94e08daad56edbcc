//! What the kernel tells about a process.

use std::collections::HashMap;
use std::fs;
use std::io;

/// Context switches of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    /// It waited for something.
    pub(crate) voluntary: u64,
    /// Another thread took its core.
    pub(crate) involuntary: u64,
}

/// The switches of every living thread of `pid`, by thread.
pub(crate) fn switches(pid: u32) -> io::Result<HashMap<u32, Switches>> {
    let mut all = HashMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let Ok(thread) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        // A thread may end between the two reads.
        if let Ok(status) = fs::read_to_string(entry.path().join("status")) {
            let field = |name| field(&status, name).unwrap_or(0);
            let (voluntary, involuntary) = (
                field("voluntary_ctxt_switches"),
                field("nonvoluntary_ctxt_switches"),
            );
            all.insert(
                thread,
                Switches {
                    voluntary,
                    involuntary,
                },
            );
        }
    }
    Ok(all)
}

/// The switches between two looks, of the threads that lived at the second.
pub(crate) fn switches_between(
    before: &HashMap<u32, Switches>,
    after: &HashMap<u32, Switches>,
) -> Switches {
    let mut sum = Switches::default();
    for (thread, now) in after {
        let then = before.get(thread).copied().unwrap_or_default();
        sum.voluntary += now.voluntary.saturating_sub(then.voluntary);
        sum.involuntary += now.involuntary.saturating_sub(then.involuntary);
    }
    sum
}

/// Bytes of private memory of `pid` that are backed by real memory.
pub(crate) fn anonymous_bytes(pid: u32) -> io::Result<u64> {
    status(pid, "RssAnon").map(|kib| kib * 1024)
}

/// Threads of `pid`.
pub(crate) fn threads(pid: u32) -> io::Result<u64> {
    status(pid, "Threads")
}

/// Open descriptors of `pid`.
pub(crate) fn descriptors(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Open sockets of `pid`.
pub(crate) fn sockets(pid: u32) -> io::Result<usize> {
    let is_socket = |entry: &fs::DirEntry| {
        // A descriptor may be closed between the two reads.
        fs::read_link(entry.path()).is_ok_and(|target| {
            target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"socket:")
        })
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(entries.filter_map(Result::ok).filter(is_socket).count())
}

/// Jiffies that all cores together have been busy, and their length in seconds.
pub(crate) fn busy_seconds() -> io::Result<f64> {
    const SECONDS_PER_JIFFY: f64 = 0.01;
    let stat = fs::read_to_string("/proc/stat")?;
    busy_jiffies(&stat)
        .map(|jiffies| jiffies as f64 * SECONDS_PER_JIFFY)
        .ok_or_else(|| io::Error::other("/proc/stat does not begin with the sum of the cores"))
}

/// user, nice, system, irq, softirq and steal; not idle and iowait.
fn busy_jiffies(stat: &str) -> Option<u64> {
    let first = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = first
        .split_whitespace()
        .map_while(|text| text.parse().ok())
        .collect();
    let all: u64 = fields.iter().take(8).sum();
    Some(all - fields.get(3)? - fields.get(4)?)
}

fn status(pid: u32, name: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    field(&status, name)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has no {name}")))
}

/// The number behind `name:` in the text of a status file.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status =
            "RssAnon:\t    1234 kB\nnonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t5\n";
        assert_eq!(field(status, "RssAnon"), Some(1234));
        assert_eq!(field(status, "voluntary_ctxt_switches"), Some(5));
        assert_eq!(field(status, "Rss"), None);
    }

    #[test]
    fn a_process_can_look_at_itself() {
        let pid = std::process::id();
        assert!(anonymous_bytes(pid).unwrap() > 0);
        assert!(threads(pid).unwrap() > 0);
        assert!(descriptors(pid).unwrap() >= 3);
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!((1..descriptors(pid).unwrap()).contains(&sockets(pid).unwrap()));
        assert!(!switches(pid).unwrap().is_empty());
        assert!(busy_seconds().unwrap() > 0.0);
    }

    #[test]
    fn switches_of_new_threads_count_from_zero() {
        let of = |voluntary, involuntary| Switches {
            voluntary,
            involuntary,
        };
        let before = HashMap::from([(1, of(10, 1)), (2, of(5, 5))]);
        let after = HashMap::from([(1, of(13, 1)), (3, of(4, 2))]);
        assert_eq!(switches_between(&before, &after), of(7, 2));
    }

    #[test]
    fn waiting_is_not_busy() {
        assert_eq!(
            busy_jiffies("cpu  10 1 5 1000 7 2 3 4 0 0\ncpu0 1\n"),
            Some(25)
        );
    }
}
