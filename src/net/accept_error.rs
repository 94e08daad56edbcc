//! What to do after `accept(2)` failed: one table.

use std::{io, time::Duration};

/// How an acceptor goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptAction {
    /// Nothing is waiting: go on when the listener is ready again.
    Wait,
    /// Nothing happened: accept again at once.
    Retry,
    /// One connection was lost before it was accepted: count it and accept the next.
    Skip,
    /// The system has no room for a connection now: leave the listener alone for so long.
    Pause(Duration),
    /// The listener is closed or was none: stop and report.
    Stop,
}

impl AcceptAction {
    /// How it goes on if nothing but such errors comes, again and again: what seems to be the
    /// affair of one connection is none then, and accepting at once would never end.
    pub(crate) fn lasting(self) -> Self {
        match self {
            Self::Retry | Self::Skip => PAUSE,
            other => other,
        }
    }
}

/// Looks an error of accept up.
///
/// Whatever is not in the table is paused for: neither a busy loop nor a listener that gives up
/// can come of an error nobody thought of.
pub(crate) fn classify(error: &io::Error) -> AcceptAction {
    match error.raw_os_error() {
        Some(errno) => by_number(errno),
        None if error.kind() == io::ErrorKind::WouldBlock => AcceptAction::Wait,
        None if error.kind() == io::ErrorKind::Interrupted => AcceptAction::Retry,
        None => PAUSE,
    }
}

fn by_number(errno: i32) -> AcceptAction {
    match errno {
        libc::EAGAIN => AcceptAction::Wait,
        libc::EINTR => AcceptAction::Retry,
        // The peer, or a firewall, took the connection back while it waited in the queue. Linux
        // also reports pending network errors of the new connection here.
        libc::ECONNABORTED
        | libc::ECONNRESET
        | libc::EPROTO
        | libc::ETIMEDOUT
        | libc::EPERM
        | libc::ENETDOWN
        | libc::ENETUNREACH
        | libc::EHOSTDOWN
        | libc::EHOSTUNREACH
        | libc::ENOPROTOOPT => AcceptAction::Skip,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        libc::ENONET => AcceptAction::Skip,
        // Out of descriptors (this process, the system), of buffers, of memory.
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => PAUSE,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        libc::ENOSR => PAUSE,
        // Shut down, closed, or never a listener.
        libc::EINVAL | libc::EBADF | libc::ENOTSOCK => AcceptAction::Stop,
        _ => PAUSE,
    }
}

const PAUSE: AcceptAction = AcceptAction::Pause(Duration::from_millis(100));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds() {
        use AcceptAction::{Retry, Skip, Stop, Wait};
        let table: &[(AcceptAction, &[i32])] = &[
            (Wait, &[libc::EAGAIN, libc::EWOULDBLOCK]),
            (Retry, &[libc::EINTR]),
            (
                Skip,
                &[
                    libc::ECONNABORTED,
                    libc::ECONNRESET,
                    libc::EPROTO,
                    libc::ETIMEDOUT,
                    libc::EPERM,
                    libc::ENETDOWN,
                    libc::ENETUNREACH,
                    libc::EHOSTDOWN,
                    libc::EHOSTUNREACH,
                    libc::ENOPROTOOPT,
                ],
            ),
            (
                AcceptAction::Pause(Duration::from_millis(100)),
                &[libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM],
            ),
            (Stop, &[libc::EINVAL, libc::EBADF, libc::ENOTSOCK]),
        ];
        for (action, numbers) in table {
            for number in *numbers {
                let error = io::Error::from_raw_os_error(*number);
                assert_eq!(classify(&error), *action, "{error}");
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn numbers_of_linux_are_in_the_table() {
        let action = |number| classify(&io::Error::from_raw_os_error(number));
        assert_eq!(action(libc::ENONET), AcceptAction::Skip);
        assert_eq!(action(libc::ENOSR), PAUSE);
    }

    #[test]
    fn the_unknown_neither_spins_nor_stops() {
        for number in [libc::EIO, libc::EOPNOTSUPP, libc::EFAULT, 9999] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(classify(&error), PAUSE, "{error}");
        }
        assert_eq!(classify(&io::Error::other("text")), PAUSE);
    }

    #[test]
    fn what_lasts_is_paused_for() {
        use AcceptAction::{Retry, Skip, Stop, Wait};
        assert_eq!([Retry, Skip, PAUSE].map(AcceptAction::lasting), [PAUSE; 3]);
        assert_eq!([Wait, Stop].map(AcceptAction::lasting), [Wait, Stop]);
    }

    #[test]
    fn kinds_without_a_number_are_known_too() {
        let wait = io::Error::from(io::ErrorKind::WouldBlock);
        assert_eq!(classify(&wait), AcceptAction::Wait);
        let retry = io::Error::from(io::ErrorKind::Interrupted);
        assert_eq!(classify(&retry), AcceptAction::Retry);
    }
}
