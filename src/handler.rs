//! What a server or client does with its connections.

use crate::{
    connection::{Connection, ConnectionHandle, Shared},
    error::CloseReason,
    foreign::Foreign,
};
use std::{fmt, io, sync::Arc};

/// The callbacks of a connection, all on one value that every connection shares.
///
/// For one connection they come in the order `on_prepare`, `on_connect`, `on_request` any number
/// of times, `on_disconnect`, close callbacks; never two at once. Which thread calls is the
/// loop's [`Dispatch`](crate::Dispatch); with the default any callback may block.
///
/// An error or a panic in a callback ends that connection and nothing else.
///
/// ```
/// use netpoll::{CloseReason, Connection, Handler};
/// use std::io;
///
/// struct Lines;
///
/// impl Handler for Lines {
///     type State = u64;
///
///     fn on_connect(&self, _: &mut Connection) -> io::Result<u64> {
///         Ok(0)
///     }
///
///     fn on_request(&self, conn: &mut Connection, lines: &mut u64) -> io::Result<()> {
///         while conn.try_until(b'\n')?.is_some() {
///             *lines += 1;
///         }
///         Ok(())
///     }
///
///     fn on_disconnect(&self, lines: u64, reason: CloseReason) {
///         println!("{lines} lines, then {reason}");
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// One value per connection, made by `on_connect`.
    type State: Send + 'static;

    /// Before the connection is polled: set options or timeouts, add close callbacks, or refuse
    /// it by returning an error. There is no data yet, and nothing to wait for: a call that would
    /// wait for this connection fails with [`Error::WouldDeadlock`](crate::Error::WouldDeadlock), and
    /// what it was to send goes out once the connection is polled.
    ///
    /// A value for `on_connect` is left in the connection: [`Connection::set_value`].
    ///
    /// Called by the thread that accepts or dials. One that waits for something else holds up those
    /// who are accepted behind it.
    ///
    /// # Errors
    ///
    /// Any error refuses the connection: it is closed, only its close callbacks run.
    fn on_prepare(&self, conn: &mut Connection) -> io::Result<()> {
        let _ = conn;
        Ok(())
    }

    /// The connection is open. May read, write and block.
    ///
    /// # Errors
    ///
    /// Any error closes the connection gracefully; `on_disconnect` is not called then, for there is
    /// no state to give to it. Once the connection was [taken](Connection::hijack), errors of this and
    /// of the other callbacks are only logged.
    fn on_connect(&self, conn: &mut Connection) -> io::Result<Self::State>;

    /// There is input to look at: new bytes, at least as many as the last unfulfilled `try_`
    /// call asked for, or unread bytes and the end of input.
    ///
    /// Returning without consuming anything waits for more input. Consuming some and leaving
    /// bytes that no `try_` call has found too few leads to another call at once.
    ///
    /// # Errors
    ///
    /// Any error closes the connection gracefully: what was flushed, or written through
    /// [`std::io::Write`], is still sent, and what other threads have [promised](ConnectionHandle::hold). After
    /// [`Error::PeerClosed`](crate::Error::PeerClosed), input that ended inside a message, what
    /// was written and not flushed is sent too: it answers the messages before.
    fn on_request(&self, conn: &mut Connection, state: &mut Self::State) -> io::Result<()>;

    /// Everything that was queued behind a full socket, or sent through a handle, has reached
    /// the kernel.
    ///
    /// Called by the thread that handed over the last byte, possibly while another callback of
    /// this connection runs. It must not block.
    fn on_write_complete(&self, conn: &ConnectionHandle) {
        let _ = conn;
    }

    /// The connection ended; exactly once if `on_connect` returned Ok, whatever the cause.
    fn on_disconnect(&self, state: Self::State, reason: CloseReason) {
        let _ = (state, reason);
    }

    /// As [`on_disconnect`](Self::on_disconnect), which it calls unless it is implemented, with a handle that
    /// knows whose end this is: number, address and figures of the connection. Nothing can be sent any more.
    ///
    /// ```
    /// use netpoll::{CloseReason, Connection, ConnectionHandle, Handler};
    /// use std::io;
    ///
    /// struct Audited;
    ///
    /// impl Handler for Audited {
    ///     type State = ();
    ///
    ///     fn on_connect(&self, _: &mut Connection) -> io::Result<()> {
    ///         Ok(())
    ///     }
    ///
    ///     fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
    ///         conn.skip(conn.available())
    ///     }
    ///
    ///     fn on_disconnect_from(&self, conn: &ConnectionHandle, (): (), reason: CloseReason) {
    ///         let (id, peer) = (conn.id(), conn.peer_addr());
    ///         println!("{id}: {peer} sent {} bytes: {reason}", conn.stats().bytes_in);
    ///     }
    /// }
    /// ```
    fn on_disconnect_from(&self, conn: &ConnectionHandle, state: Self::State, reason: CloseReason) {
        let _ = conn;
        self.on_disconnect(state, reason);
    }

    /// How connections get at this handler. Nothing to call or to implement.
    #[doc(hidden)]
    fn into_sessions(self) -> SessionMaker
    where
        Self: Sized,
    {
        let handler = Foreign::new(Arc::new(self));
        SessionMaker::new(move || Typed {
            handler: handler.clone(),
            state: Foreign::none(),
        })
    }
}

/// A handler from a closure, without per-connection state.
///
/// ```
/// use netpoll::handler_fn;
///
/// let echo = handler_fn(|conn| {
///     let all = conn.slice(conn.available())?;
///     conn.append(all)?;
///     conn.flush()
/// });
/// # let _ = echo;
/// ```
pub fn handler_fn<F>(f: F) -> HandlerFn<F>
where
    F: Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    HandlerFn { f }
}

/// A closure as a handler: see [`handler_fn`].
#[derive(Clone)]
pub struct HandlerFn<F> {
    f: F,
}

impl<F> fmt::Debug for HandlerFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandlerFn")
    }
}

impl<F> Handler for HandlerFn<F>
where
    F: Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    type State = ();

    fn on_connect(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
        (self.f)(conn)
    }
}

/// A handler and one connection's state, with the types erased.
pub(crate) trait Session: Send + fmt::Debug {
    fn prepare(&mut self, conn: &mut Connection) -> io::Result<()>;
    fn connect(&mut self, conn: &mut Connection) -> io::Result<()>;
    fn request(&mut self, conn: &mut Connection) -> io::Result<()>;
    /// Everything queued was written: called if the hooks ask for it in turn, and for writes
    /// that were completed from inside of another such call.
    fn wrote(&mut self, conn: &mut Connection) -> io::Result<()>;
    fn disconnect(&mut self, conn: &mut Connection, reason: CloseReason);
    fn hooks(&self) -> Option<Arc<dyn Hooks>>;

    /// `connect` returned Ok and the connection's state says so.
    fn established(&mut self, _conn: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    /// The connection ended before `connect` was called or because it failed.
    fn never_connected(&mut self, _reason: CloseReason) {}

    /// Whether the session has a say in what is received: [`input_share`](Self::input_share) and
    /// [`pump`](Self::pump) are asked in each turn. The same in all of its life.
    fn steers_input(&self) -> bool {
        false
    }

    /// How many bytes to receive at most before the next `request`; 0 for none at all now.
    fn input_share(&self, limit: usize) -> usize {
        limit
    }

    /// Moves input by itself instead of having it received. `false`: receive as usual.
    fn pump(&mut self, _conn: &mut Connection) -> bool {
        false
    }

    /// Whether the session is over when its connection is taken from it, instead of hearing of
    /// the connection's end.
    fn ends_when_taken(&self) -> bool {
        false
    }

    /// Whether `request` is to be called for the end of input even if no byte is left.
    fn wants_end(&self) -> bool {
        false
    }
}

/// What may be called outside of a connection's turn.
pub(crate) trait Hooks: Send + Sync {
    /// Whether the handler wants to hear of completed writes in its own turn instead.
    fn in_turn(&self) -> bool;
    fn write_complete(&self, conn: &ConnectionHandle);
    /// The end of a connection that has an owner is near: lets go of it if it is kept for another. `false`:
    /// it is not, and its owner's to end. Called on a thread of the pollers, where it may wait.
    fn let_go(&self, shared: &Shared) -> bool {
        let _ = shared;
        true
    }
}

impl<H: Handler> Hooks for H {
    fn in_turn(&self) -> bool {
        false
    }

    fn write_complete(&self, conn: &ConnectionHandle) {
        self.on_write_complete(conn);
    }
}

/// Makes the session of each new connection.
pub(crate) type Sessions = Arc<dyn Fn() -> Box<dyn Session> + Send + Sync>;

pub(crate) fn sessions<H: Handler>(handler: H) -> Sessions {
    handler.into_sessions().0
}

/// What [`Handler::into_sessions`] returns. Opaque to users, so only handlers of this crate have
/// sessions of their own kind.
#[expect(
    unnameable_types,
    reason = "seals `Handler::into_sessions`, which is hidden"
)]
pub struct SessionMaker(Sessions);

impl SessionMaker {
    pub(crate) fn new<S: Session + 'static>(make: impl Fn() -> S + Send + Sync + 'static) -> Self {
        Self(Arc::new(move || Box::new(make())))
    }
}

impl fmt::Debug for SessionMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionMaker")
    }
}

struct Typed<H: Handler> {
    handler: Foreign<Arc<H>>,
    state: Foreign<H::State>,
}

impl<H: Handler> fmt::Debug for Typed<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("connected", &self.state.is_some())
            .finish()
    }
}

impl<H: Handler> Session for Typed<H> {
    fn prepare(&mut self, conn: &mut Connection) -> io::Result<()> {
        self.handler.on_prepare(conn)
    }

    fn connect(&mut self, conn: &mut Connection) -> io::Result<()> {
        self.state = Foreign::new(self.handler.on_connect(conn)?);
        Ok(())
    }

    fn request(&mut self, conn: &mut Connection) -> io::Result<()> {
        match self.state.get_mut() {
            Some(state) => self.handler.on_request(conn, state),
            None => Ok(()),
        }
    }

    fn wrote(&mut self, conn: &mut Connection) -> io::Result<()> {
        let handle = conn.handle();
        conn.shared().contain("on_write_complete", || {
            self.handler.on_write_complete(&handle);
        });
        Ok(())
    }

    fn disconnect(&mut self, conn: &mut Connection, reason: CloseReason) {
        if let Some(state) = self.state.take() {
            self.handler
                .on_disconnect_from(&conn.handle(), state, reason);
        }
    }

    fn hooks(&self) -> Option<Arc<dyn Hooks>> {
        Some(Arc::<H>::clone(&self.handler) as Arc<dyn Hooks>)
    }
}
