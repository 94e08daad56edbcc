//! One callback for everything that happens to a connection.

use crate::{
    connection::{Connection, ConnectionHandle},
    error::{CloseReason, Error},
    foreign::Foreign,
    handler::{Handler, Hooks, Session, SessionMaker},
    trace,
};
use std::{convert::Infallible, fmt, io, sync::Arc};

/// What happened to a connection: see [`event_fn`].
///
/// For one connection events come in this order, never two at once:
///
/// | event | how often | [`state()`](Connection::state) |
/// |---|---|---|
/// | `Connecting` | once | `Connecting` |
/// | `Connected` | once, unless `Connecting` failed or the connection ended before | `Connecting` |
/// | `Established` | once, if `Connected` returned Ok | `Connected` |
/// | `Readable`, `WriteComplete` | any number of times | `Connected` or later |
/// | `Error` | at most once, right before `Closed` | `Disconnecting` |
/// | `Closed` | once, if `Connected` returned Ok | `Disconnecting` |
///
/// A dial that was [started](crate::Dialer::start_with) and comes to nothing has no socket and no event:
/// the callback that was given with it is told.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The connection was accepted or dialled and is not polled yet: the moment to set options,
    /// or to refuse it with an error. Not seen by a handler that replaces another.
    Connecting,
    /// The connection is polled. May read, write and wait, for a handshake for example; an
    /// error ends the connection without another event.
    Connected,
    /// The connection is in use from now on: the state is `Connected`, and `Closed` will come.
    Established,
    /// There is input to look at, as in [`Handler::on_request`]: new bytes, at least as many as
    /// the last unfulfilled `try_` call asked for, or unread bytes and the end of input.
    Readable,
    /// Everything that was queued behind a full socket, or sent through a handle, has reached the
    /// kernel. Several completions close together may be one event.
    WriteComplete,
    /// Something went wrong, which is why the connection ends: a callback returned an error of
    /// this kind, the system reported it, or a limit was reached.
    Error(io::ErrorKind),
    /// The connection ended. Nothing can be sent any more.
    Closed(CloseReason),
}

/// A handler from one closure that is called with every [`ConnectionEvent`].
///
/// An error returned from `on_event`, or a panic in it, ends that connection and nothing else;
/// errors at `Error` and `Closed` are logged. For a value per connection there is
/// [`event_fn_with`].
///
/// # Examples
///
/// ```
/// use netpoll::{ConnectionEvent, EventLoop, event_fn};
///
/// # fn main() -> std::io::Result<()> {
/// let server = EventLoop::new(event_fn(|conn, event| match event {
///     ConnectionEvent::Established => {
///         conn.write_str("welcome\n")?;
///         conn.flush()
///     }
///     ConnectionEvent::Readable => {
///         let all = conn.slice(conn.available())?;
///         conn.append(all)?;
///         conn.flush()
///     }
///     ConnectionEvent::Closed(reason) => {
///         println!("{} left: {reason}", conn.peer_addr());
///         Ok(())
///     }
///     _ => Ok(()),
/// }))?;
/// # server.shutdown(std::time::Duration::ZERO)?;
/// # Ok(())
/// # }
/// ```
pub fn event_fn<F>(on_event: F) -> impl Handler
where
    F: Fn(&mut Connection, ConnectionEvent) -> io::Result<()> + Send + Sync + 'static,
{
    event_fn_with(|| (), move |conn, (), event| on_event(conn, event))
}

/// As [`event_fn`], with a value per connection: `make` makes it right before the first event,
/// and it is dropped after the last.
///
/// # Examples
///
/// ```
/// use netpoll::{ConnectionEvent, event_fn_with};
///
/// let counting = event_fn_with(
///     || 0,
///     |conn, lines: &mut u64, event| {
///         if event == ConnectionEvent::Readable {
///             while conn.try_until(b'\n')?.is_some() {
///                 *lines += 1;
///             }
///         } else if let ConnectionEvent::Closed(_) = event {
///             println!("{} sent {lines} lines", conn.peer_addr());
///         }
///         Ok(())
///     },
/// );
/// # let _ = counting;
/// ```
pub fn event_fn_with<S, M, F>(make: M, on_event: F) -> impl Handler
where
    S: Send + 'static,
    M: Fn() -> S + Send + Sync + 'static,
    F: Fn(&mut Connection, &mut S, ConnectionEvent) -> io::Result<()> + Send + Sync + 'static,
{
    EventFn {
        make: Foreign::new(make),
        on_event: Foreign::new(on_event),
    }
}

struct EventFn<M, F> {
    make: Foreign<M>,
    on_event: Foreign<F>,
}

impl<S, M, F> Handler for EventFn<M, F>
where
    S: Send + 'static,
    M: Fn() -> S + Send + Sync + 'static,
    F: Fn(&mut Connection, &mut S, ConnectionEvent) -> io::Result<()> + Send + Sync + 'static,
{
    /// The value is kept by the session, which has it before `on_connect`.
    type State = Infallible;

    fn on_connect(&self, _: &mut Connection) -> io::Result<Infallible> {
        // Called only by a handler that passes its callbacks on to this one.
        let text = "an event_fn inside another handler: it would not hear of the end, give it to \
                    the event loop or dialer itself";
        Err(Error::Unsupported(text).into())
    }

    fn on_request(&self, _: &mut Connection, never: &mut Infallible) -> io::Result<()> {
        match *never {}
    }

    fn into_sessions(self) -> SessionMaker {
        let handler = Arc::new(self);
        let hooks: Arc<dyn Hooks> = Arc::new(InTurn);
        SessionMaker::new(move || EventSession {
            handler: Arc::clone(&handler),
            state: Foreign::none(),
            hooks: Arc::clone(&hooks),
            failed: None,
        })
    }
}

/// One connection's value and the closures that all share.
struct EventSession<S, M, F> {
    handler: Arc<EventFn<M, F>>,
    /// Made by the first event, where a panic is contained.
    state: Foreign<S>,
    hooks: Arc<dyn Hooks>,
    /// What the closure last failed with.
    failed: Option<io::ErrorKind>,
}

impl<S, M, F> EventSession<S, M, F>
where
    M: Fn() -> S,
    F: Fn(&mut Connection, &mut S, ConnectionEvent) -> io::Result<()>,
{
    fn tell(&mut self, conn: &mut Connection, event: ConnectionEvent) -> io::Result<()> {
        let state = self.state.get_or_insert_with(&*self.handler.make);
        let result = (self.handler.on_event)(conn, state, event);
        if let Err(error) = &result {
            let ended = matches!(Error::from_io(error), Some(Error::Closed(_)));
            self.failed = (!ended).then(|| error.kind());
        }
        result
    }

    /// One of the last events: a panic or an error keeps nothing else from happening.
    fn tell_last(&mut self, conn: &mut Connection, event: ConnectionEvent) {
        let shared = Arc::clone(&conn.rx.shared);
        shared.contain("event_fn", || {
            if let Err(error) = self.tell(conn, event).map_err(Foreign::new) {
                trace::debug!(
                    "connection {}: event_fn at {event:?}: {}",
                    shared.id,
                    *error
                );
            }
        });
    }
}

impl<S, M, F> Session for EventSession<S, M, F>
where
    S: Send,
    M: Fn() -> S + Send + Sync,
    F: Fn(&mut Connection, &mut S, ConnectionEvent) -> io::Result<()> + Send + Sync,
{
    fn prepare(&mut self, conn: &mut Connection) -> io::Result<()> {
        self.tell(conn, ConnectionEvent::Connecting)
    }

    fn connect(&mut self, conn: &mut Connection) -> io::Result<()> {
        self.tell(conn, ConnectionEvent::Connected)
    }

    fn established(&mut self, conn: &mut Connection) -> io::Result<()> {
        self.tell(conn, ConnectionEvent::Established)
    }

    fn request(&mut self, conn: &mut Connection) -> io::Result<()> {
        self.tell(conn, ConnectionEvent::Readable)
    }

    fn wrote(&mut self, conn: &mut Connection) -> io::Result<()> {
        self.tell(conn, ConnectionEvent::WriteComplete)
    }

    fn disconnect(&mut self, conn: &mut Connection, reason: CloseReason) {
        if let Some(kind) = self.failed.or_else(|| fault(reason)) {
            self.tell_last(conn, ConnectionEvent::Error(kind));
        }
        self.tell_last(conn, ConnectionEvent::Closed(reason));
    }

    fn hooks(&self) -> Option<Arc<dyn Hooks>> {
        Some(Arc::clone(&self.hooks))
    }
}

/// The kind of error behind a reason, unless it is an orderly one.
fn fault(reason: CloseReason) -> Option<io::ErrorKind> {
    use io::ErrorKind;
    match reason {
        CloseReason::Peer
        | CloseReason::Local
        | CloseReason::Abort
        | CloseReason::IdleTimeout
        | CloseReason::Shutdown
        | CloseReason::Refused => None,
        CloseReason::Error(kind) => Some(kind),
        CloseReason::ReadTimeout | CloseReason::WriteTimeout => Some(ErrorKind::TimedOut),
        CloseReason::Overload => Some(ErrorKind::ResourceBusy),
        CloseReason::OutputFull => Some(ErrorKind::QuotaExceeded),
        CloseReason::InputLimit => Some(ErrorKind::InvalidData),
        CloseReason::HandlerError | CloseReason::HandlerPanic | CloseReason::Poller => {
            Some(ErrorKind::Other)
        }
    }
}

/// Completed writes are events, and events never come two at once.
struct InTurn;

impl Hooks for InTurn {
    fn in_turn(&self) -> bool {
        true
    }

    fn write_complete(&self, _: &ConnectionHandle) {}
}

impl<S, M, F> fmt::Debug for EventSession<S, M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSession")
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
