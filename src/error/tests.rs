//! Errors and their way through `io::Error`.

use super::*;

fn all() -> Vec<Error> {
    vec![
        Error::Closed(CloseReason::Peer),
        Error::Closed(CloseReason::Local),
        Error::Closed(CloseReason::Error(io::ErrorKind::ConnectionReset)),
        Error::PeerClosed {
            wanted: 8,
            available: 3,
        },
        Error::ReadTimeout,
        Error::WriteTimeout {
            sent: 41,
            queued: 17,
        },
        Error::DialTimeout,
        Error::InputLimit {
            wanted: 100,
            limit: 64,
        },
        Error::OutputFull {
            queued: 60,
            limit: 64,
        },
        Error::Poisoned,
        Error::Overloaded,
        Error::Interrupted,
        Error::PoolExhausted,
        Error::ShuttingDown,
        Error::ShutdownIncomplete { remaining: 12 },
        Error::ShutdownCut { cut: 3 },
        Error::WouldDeadlock,
        Error::SelfConnect,
        Error::Unsupported("abstract names"),
        Error::InvalidAddress(InvalidAddress::NoPort),
    ]
}

#[test]
fn errors_survive_the_way_through_io_error() {
    for error in all() {
        let io = io::Error::from(error);
        assert_eq!(io.kind(), error.kind(), "{error:?}");
        assert_eq!(Error::from_io(&io), Some(error));
        assert_eq!(io.to_string(), error.to_string());
    }
}

#[test]
fn no_error_asks_to_be_tried_again_in_a_loop() {
    let mut errors = all();
    for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted] {
        errors.push(Error::Closed(CloseReason::Error(kind)));
    }
    for error in errors {
        assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{error:?}");
        assert_ne!(error.kind(), io::ErrorKind::Interrupted, "{error:?}");
    }
}

#[test]
fn kinds_are_the_documented_ones() {
    use io::ErrorKind;
    let expected = [
        (Error::Closed(CloseReason::Local), ErrorKind::NotConnected),
        (Error::Closed(CloseReason::Abort), ErrorKind::NotConnected),
        (
            Error::Closed(CloseReason::Shutdown),
            ErrorKind::NotConnected,
        ),
        (Error::Closed(CloseReason::Peer), ErrorKind::BrokenPipe),
        (
            Error::Closed(CloseReason::Error(ErrorKind::ConnectionReset)),
            ErrorKind::ConnectionReset,
        ),
        (
            Error::Closed(CloseReason::Error(ErrorKind::WouldBlock)),
            ErrorKind::NotConnected,
        ),
        (
            Error::PeerClosed {
                wanted: 8,
                available: 3,
            },
            ErrorKind::UnexpectedEof,
        ),
        (Error::ReadTimeout, ErrorKind::TimedOut),
        (
            Error::WriteTimeout { sent: 1, queued: 2 },
            ErrorKind::TimedOut,
        ),
        (
            Error::ShutdownIncomplete { remaining: 1 },
            ErrorKind::TimedOut,
        ),
        (Error::ShutdownCut { cut: 1 }, ErrorKind::TimedOut),
        (
            Error::InputLimit {
                wanted: 2,
                limit: 1,
            },
            ErrorKind::InvalidData,
        ),
        (
            Error::OutputFull {
                queued: 2,
                limit: 1,
            },
            ErrorKind::QuotaExceeded,
        ),
        (Error::Poisoned, ErrorKind::BrokenPipe),
        (Error::ShuttingDown, ErrorKind::NotConnected),
        (Error::Unsupported("this"), ErrorKind::Unsupported),
        (
            Error::InvalidAddress(InvalidAddress::NoPort),
            ErrorKind::InvalidInput,
        ),
        (Error::DialTimeout, ErrorKind::TimedOut),
        (Error::WouldDeadlock, ErrorKind::Deadlock),
        (Error::SelfConnect, ErrorKind::ConnectionRefused),
        (Error::PoolExhausted, ErrorKind::ResourceBusy),
        (Error::Overloaded, ErrorKind::ResourceBusy),
    ];
    for (error, kind) in expected {
        assert_eq!(error.kind(), kind, "{error:?}");
    }
}

#[test]
fn texts_name_the_values() {
    let text = Error::WriteTimeout {
        sent: 41,
        queued: 17,
    }
    .to_string();
    assert!(text.contains("41") && text.contains("17"), "{text}");
    let text = Error::InputLimit {
        wanted: 100,
        limit: 64,
    }
    .to_string();
    assert!(text.contains("100") && text.contains("64"), "{text}");
    let text = Error::Closed(CloseReason::Error(io::ErrorKind::ConnectionReset)).to_string();
    assert!(text.contains("reset"), "{text}");
}

#[test]
fn a_context_keeps_kind_error_and_source() {
    let error = with_context("dial 10.0.0.1:80", Error::DialTimeout.into());
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
    assert!(error.to_string().starts_with("dial 10.0.0.1:80: "));
    let twice = with_context("outer", error);
    assert_eq!(Error::from_io(&twice), Some(Error::DialTimeout));
    assert!(twice.get_ref().and_then(|e| e.source()).is_some());

    let system = io::Error::from_raw_os_error(libc::ECONNREFUSED);
    let error = with_context("dial", system);
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(Error::from_io(&error), None);
}

#[test]
fn foreign_errors_carry_nothing_of_ours() {
    assert_eq!(Error::from_io(&io::ErrorKind::TimedOut.into()), None);
    assert_eq!(Error::from_io(&io::Error::other("text")), None);
}

#[test]
fn helpers_sort_the_variants() {
    let timeouts = all().into_iter().filter(Error::is_timeout).count();
    assert_eq!(timeouts, 5);
    let closed = all().into_iter().filter(Error::is_closed).count();
    assert_eq!(closed, 6);
    for error in all() {
        assert_eq!(
            error.is_timeout(),
            error.kind() == io::ErrorKind::TimedOut,
            "{error:?}"
        );
    }
}

#[test]
fn close_reasons_have_distinct_texts() {
    let reasons = [
        CloseReason::Peer,
        CloseReason::Local,
        CloseReason::Abort,
        CloseReason::Error(io::ErrorKind::ConnectionReset),
        CloseReason::IdleTimeout,
        CloseReason::ReadTimeout,
        CloseReason::WriteTimeout,
        CloseReason::Shutdown,
        CloseReason::HandlerError,
        CloseReason::HandlerPanic,
        CloseReason::Refused,
        CloseReason::OutputFull,
        CloseReason::InputLimit,
        CloseReason::Overload,
        CloseReason::Poller,
    ];
    let texts: std::collections::HashSet<_> = reasons.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), reasons.len());
}
