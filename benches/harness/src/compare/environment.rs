//! Where a comparison was made.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::results::Environment;

/// The lock file the servers were built with.
const LOCK: &str = include_str!("../../../../Cargo.lock");
/// The crates the peers stand on.
const CRATES: [&str; 7] = [
    "mio",
    "tokio",
    "monoio",
    "compio",
    "may",
    "io-uring",
    "crossbeam-channel",
];

/// What can be known of this machine; the rest is left empty.
pub(crate) fn describe(cores: usize) -> Environment {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    Environment {
        date: date(seconds / 86_400),
        processor: processor(),
        cores,
        kernel: first_line("/proc/sys/kernel/osrelease"),
        versions: CRATES
            .iter()
            .filter_map(|name| version(LOCK, name))
            .collect(),
        load_average: vec![load_average()],
        ..Environment::default()
    }
}

/// The load average, as the kernel words it.
pub(crate) fn load_average() -> String {
    first_line("/proc/loadavg")
}

/// The congestion control new sockets have.
pub(crate) fn default_congestion() -> String {
    first_line("/proc/sys/net/ipv4/tcp_congestion_control")
}

/// Whether sockets may ask for the congestion control `name`.
pub(crate) fn has_congestion(name: &str) -> bool {
    let known = first_line("/proc/sys/net/ipv4/tcp_available_congestion_control");
    known.split_whitespace().any(|one| one == name)
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    line.and_then(|rest| rest.split_once(':'))
        .map_or_else(String::new, |it| it.1.trim().into())
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().into()
}

/// `name version` of the highest version of `name` in the text of a lock file.
fn version(lock: &str, name: &str) -> Option<String> {
    let heading = format!("name = \"{name}\"");
    let mut lines = lock.lines();
    let mut found = None;
    while lines.by_ref().any(|line| line == heading) {
        let version = lines
            .next()?
            .strip_prefix("version = \"")?
            .strip_suffix('"')?;
        found = Some(format!("{name} {version}"));
    }
    found
}

/// The day `days` after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> String {
    // Years are counted from March, so that the leap day is the last of a year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day = shifted % 146_097;
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!("{:04}-{month:02}-{of_month:02}", year + era * 400 + carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        let dates = [0, 58, 59, 11_016, 19_782, 20_777].map(date);
        let expected = [
            "1970-01-01",
            "1970-02-28",
            "1970-03-01",
            "2000-02-29",
            "2024-02-29",
            "2026-11-20",
        ];
        assert_eq!(dates, expected);
    }

    #[test]
    fn the_highest_version_is_the_last_listed() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"0.6\"\n\n[[package]]\nname = \"a\"\nversion = \"0.7\"\n";
        assert_eq!(version(lock, "a").unwrap(), "a 0.7");
        assert!(version(lock, "b").is_none());
        assert!(version(LOCK, "mio").is_some());
    }
}
