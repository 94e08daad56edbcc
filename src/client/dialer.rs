//! Opens connections.

use super::starting::{Failed, Opened, Starting, Then};
use crate::{
    config::{Limits, OnFull},
    connection::{self, Connection, ConnectionHandle},
    context::Context,
    dispatch::{Dispatch, Runner},
    foreign::Foreign,
    handler::{Handler, sessions},
    net::{self, Address, Dial, Socket, SocketOptions},
    stats::Stats,
    trace,
};
use poller::{PollerGroup, PollerHandle};
use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// Opens connections to servers.
///
/// A dialled connection without a handler belongs to the caller, who reads and writes it with
/// blocking calls on its own thread; the pollers only watch for its end, so that
/// [`is_active`](Connection::is_active) is true knowledge. With a handler
/// ([`dial_with`](Self::dial_with)) it is driven like a server's connection.
///
/// Clones share their pollers and figures.
///
/// ```no_run
/// use netpoll::{Address, Dialer};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// let dialer = Dialer::new().connect_timeout(Duration::from_secs(1));
/// let mut conn = dialer.dial_connection("localhost:6379".parse::<Address>()?)?;
/// conn.write_str("PING\r\n")?;
/// conn.flush()?;
/// assert_eq!(conn.until(b'\n')?, b"+PONG\r\n");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Dialer {
    connect_timeout: Option<Duration>,
    local: Option<Address>,
    socket: SocketOptions,
    retries: u32,
    group: Option<PollerGroup>,
    dispatch: Dispatch,
    limits: Limits,
    /// Made by the first use of any of the clones.
    context: Arc<OnceLock<Arc<Context>>>,
}

impl Dialer {
    /// A dialer with default options: no timeout, no retries, the process-wide pollers.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long opening a connection may take in all, name resolution included.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Binds the local side before connecting.
    pub fn local_addr(mut self, address: impl Into<Address>) -> Self {
        self.local = Some(address.into());
        self
    }

    /// Socket options, set before connecting.
    pub fn socket(mut self, options: SocketOptions) -> Self {
        self.socket = options;
        self
    }

    /// How often a refused or failed attempt is repeated within the timeout, each time at once: who
    /// wants a pause between attempts makes it between dials. Default: never.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// The pollers that watch the connections. Default: the process-wide group.
    pub fn pollers(self, group: PollerGroup) -> Self {
        Self {
            group: Some(group),
            ..self.unshared()
        }
    }

    /// Where callbacks of connections with a handler run. Default: [`Dispatch::Adaptive`].
    pub fn dispatch(self, dispatch: Dispatch) -> Self {
        Self {
            dispatch,
            ..self.unshared()
        }
    }

    /// Read timeout that connections start with. Default: none.
    pub fn read_timeout(self, timeout: Duration) -> Self {
        self.limit(|limits| limits.read_timeout = Some(timeout))
    }

    /// Write timeout that connections start with. Default: none.
    pub fn write_timeout(self, timeout: Duration) -> Self {
        self.limit(|limits| limits.write_timeout = Some(timeout))
    }

    /// Closes connections that neither sent nor received anything for this long, with a handler or without,
    /// as [`EventLoopBuilder::idle_timeout`](crate::EventLoopBuilder::idle_timeout). Default: never.
    pub fn idle_timeout(self, timeout: Duration) -> Self {
        self.limit(|limits| limits.idle_timeout = Some(timeout))
    }

    /// How long the rest of a message may take, of connections with a handler, as
    /// [`EventLoopBuilder::message_timeout`](crate::EventLoopBuilder::message_timeout). Default: as long as it takes.
    pub fn message_timeout(self, timeout: Duration) -> Self {
        self.limit(|limits| limits.message_timeout = Some(timeout))
    }

    /// Input bounds in bytes, as [`EventLoopBuilder::input_limits`](crate::EventLoopBuilder::input_limits). Those that
    /// cannot hold together are an [`Error::Unsupported`](crate::Error::Unsupported) of every dial.
    pub fn input_limits(self, pause_at: usize, max: usize) -> Self {
        self.limit(|limits| {
            limits.pause_at = pause_at;
            limits.max_input = max;
        })
    }

    /// Output bound, as [`EventLoopBuilder::output_limit`](crate::EventLoopBuilder::output_limit).
    pub fn output_limit(self, bytes: usize, on_full: OnFull) -> Self {
        self.limit(|limits| {
            limits.output.bytes = bytes;
            limits.output.on_full = on_full;
        })
    }

    /// Output bound in messages, as
    /// [`EventLoopBuilder::output_messages`](crate::EventLoopBuilder::output_messages).
    pub fn output_messages(self, messages: usize) -> Self {
        self.limit(|limits| limits.output.messages = messages)
    }

    /// What a write through `io::Write` collects, as
    /// [`EventLoopBuilder::write_buffer`](crate::EventLoopBuilder::write_buffer).
    pub fn write_buffer(self, bytes: usize) -> Self {
        self.limit(|limits| limits.output.write_buffer = bytes)
    }

    /// What happens after a close, as [`EventLoopBuilder::linger`](crate::EventLoopBuilder::linger).
    pub fn linger(self, time: Duration, bytes: usize) -> Self {
        self.limit(|limits| {
            limits.linger = time;
            limits.linger_bytes = bytes;
        })
    }

    /// Opens a connection for the caller's own use. Waits, at most the connect timeout; callable
    /// from any callback that may block.
    ///
    /// # Errors
    ///
    /// [`Error::DialTimeout`](crate::Error::DialTimeout),
    /// [`Error::SelfConnect`](crate::Error::SelfConnect), `ConnectionRefused` and what else the
    /// system reports, with the address in the text;
    /// [`Error::WouldDeadlock`](crate::Error::WouldDeadlock) on a poller's thread that must not
    /// wait.
    pub fn dial_connection(&self, address: impl Into<Address>) -> io::Result<Connection> {
        self.dial_until(&address.into(), None)
    }

    /// As [`Self::dial_connection`], and until `deadline` at most.
    pub(super) fn dial_until(
        &self,
        address: &Address,
        deadline: Option<Instant>,
    ) -> io::Result<Connection> {
        let context = self.context()?;
        let (socket, peer) = self.connect(address, deadline)?;
        let conn = connection::dialled(&context, socket, peer)?;
        trace::debug!(
            "connection {}: dialled {address}, {} from {}",
            conn.id(),
            conn.peer_addr(),
            conn.local_addr().unwrap_or(Address::Unnamed)
        );
        Ok(conn)
    }

    /// Opens a connection that `handler` drives. Waits for the connect as
    /// [`dial_connection`](Self::dial_connection) does, not for `on_connect`.
    ///
    /// # Errors
    ///
    /// As [`dial_connection`](Self::dial_connection), and what `on_prepare` returns.
    pub fn dial_with(
        &self,
        address: impl Into<Address>,
        handler: impl Handler,
    ) -> io::Result<ConnectionHandle> {
        let address = address.into();
        let context = self.context()?;
        let (socket, peer) = self.connect(&address, None)?;
        let conn = connection::accepted(&context, socket, peer, sessions(handler)())?;
        trace::debug!(
            "connection {}: dialled {address}, {} from {}",
            conn.id(),
            conn.peer_addr(),
            conn.local_addr()
        );
        Ok(conn)
    }

    /// Begins to open a connection for the caller's own use and returns at once, with its handle: no thread
    /// waits for the look-up of a name or for the peer. A thread of the pollers calls `done` with the
    /// connection, or with why there is none; `done` may wait. (If the pollers have ended, the calling
    /// thread does.)
    ///
    /// Until then the connection is [`ConnectionState::Connecting`](crate::ConnectionState::Connecting). What is sent through
    /// the handle is queued and goes out when it is connected; [`close`](ConnectionHandle::close) and
    /// [`abort`](ConnectionHandle::abort) cancel the dial: sockets are closed at once, `done` is told
    /// [`Error::Closed`](crate::Error::Closed), and what was queued counts as lost. [`ConnectionHandle::done`]
    /// and close callbacks tell of a failure too, behind `done`, with the kind of its error. The connect
    /// timeout, the retries and the local address hold as for
    /// [`dial_connection`](Self::dial_connection), and the addresses of a name are tried in the same way.
    /// [`peer_addr`](ConnectionHandle::peer_addr) is the address as it is given here, a host name if it is
    /// one.
    ///
    /// ```no_run
    /// use netpoll::{Address, Dialer};
    /// use std::{sync::mpsc, time::Duration};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let dialer = Dialer::new().connect_timeout(Duration::from_secs(1));
    /// let (tell, told) = mpsc::channel();
    /// for port in 7001..7004 {
    ///     let tell = tell.clone();
    ///     let address = Address::Host("localhost".into(), port);
    ///     // All three at once.
    ///     dialer.start_connection(address, move |done| drop(tell.send(done)))?;
    /// }
    /// let first = told.iter().take(3).find_map(Result::ok);
    /// # drop(first);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What keeps a dial from being begun, such as pollers that cannot be started; `done` is dropped
    /// uncalled then. Everything else is told by `done`: what
    /// [`dial_connection`](Self::dial_connection) returns.
    pub fn start_connection(
        &self,
        address: impl Into<Address>,
        done: impl FnOnce(io::Result<Connection>) + Send + 'static,
    ) -> io::Result<ConnectionHandle> {
        let done: Opened = Foreign::new(Box::new(done));
        self.start(address.into(), || Then::Owner(done))
    }

    /// Begins to open a connection that `handler` drives and returns at once, with its handle; see
    /// [`start_connection`](Self::start_connection). When it is connected all goes on as with
    /// [`dial_with`](Self::dial_with), from `on_prepare` on, which a thread of the pollers calls. If it
    /// cannot be connected, `on_prepare` refuses it, or the dial is cancelled, `failed` is called with the
    /// reason, on such a thread too, and no callback of the handler is, but `on_prepare`.
    ///
    /// # Errors
    ///
    /// As [`start_connection`](Self::start_connection); `failed` is dropped uncalled then.
    pub fn start_with(
        &self,
        address: impl Into<Address>,
        handler: impl Handler,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<ConnectionHandle> {
        let failed: Failed = Foreign::new(Box::new(failed));
        self.start(address.into(), || {
            Then::Handler(sessions(handler)(), failed)
        })
    }

    fn start(&self, address: Address, then: impl FnOnce() -> Then) -> io::Result<ConnectionHandle> {
        let context = self.context()?;
        let shared = Starting::start(&context, self, address, then());
        Ok(ConnectionHandle::new(shared))
    }

    /// Takes over a connected stream socket, TCP or unix, such as one half of a socket pair or a
    /// descriptor inherited from another process.
    ///
    /// One that is still connecting, in non-blocking mode, is waited for: at most the connect timeout. Where
    /// callbacks must not wait (inline dispatch), [`start_connection`](Self::start_connection) dials without.
    ///
    /// # Errors
    ///
    /// `InvalidInput` or `NotConnected` if it is no connected stream socket, or what the system reports; if
    /// it was connecting, `ConnectionRefused` and what else [`dial_connection`](Self::dial_connection)
    /// returns, [`Error::WouldDeadlock`](crate::Error::WouldDeadlock) among it. The descriptor is closed then.
    pub fn adopt(&self, fd: impl Into<OwnedFd>) -> io::Result<Connection> {
        let context = self.context()?;
        let socket = Socket::from_fd(fd.into())?;
        let peer = net::peer_of(&socket, self.deadline())?;
        connection::dialled(&context, socket, peer)
    }

    /// Figures of this dialer and its clones.
    ///
    /// # Errors
    ///
    /// What the system reports when the pollers cannot be started.
    pub fn stats(&self) -> io::Result<Stats> {
        Ok(self.context()?.stats())
    }

    /// One of the pollers that watch the connections.
    pub(super) fn poller(&self) -> io::Result<PollerHandle> {
        Ok(self.context()?.group.pick())
    }

    fn connect(&self, address: &Address, until: Option<Instant>) -> io::Result<(Socket, Address)> {
        if poller::is_polling_thread() {
            return Err(crate::Error::WouldDeadlock.into());
        }
        let deadline = [self.deadline(), until].into_iter().flatten().min();
        let mut failures = 0;
        loop {
            match net::connect(address, self.dial(deadline)) {
                Ok(socket) => {
                    let peer = match address {
                        // A name may stand for several addresses: ask which one answered.
                        Address::Host(..) => socket.peer_address().unwrap_or(Address::Unnamed),
                        other => other.clone(),
                    };
                    return Ok((socket, peer));
                }
                Err(error) if self.repeats(failures, &error) => {
                    trace::debug!("dial again: {error}");
                    failures += 1;
                }
                Err(error) => {
                    trace::debug!("dial failed: {error}");
                    return Err(error);
                }
            }
        }
    }

    /// When a dial that begins now gives up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let timeout = self.connect_timeout?;
        Instant::now().checked_add(timeout)
    }

    pub(super) fn dial(&self, deadline: Option<Instant>) -> Dial<'_> {
        Dial {
            options: Some(&self.socket),
            local: self.local.as_ref(),
            deadline,
            cancelled: None,
        }
    }

    /// Whether a dial is to be repeated after this error and so many before.
    pub(super) fn repeats(&self, failures: u32, error: &io::Error) -> bool {
        failures < self.retries && repeatable(error)
    }

    fn context(&self) -> io::Result<Arc<Context>> {
        if let Some(context) = self.context.get() {
            return Ok(Arc::clone(context));
        }
        self.limits.check()?;
        let group = match &self.group {
            Some(group) => group.clone(),
            None => PollerGroup::global()?.clone(),
        };
        let runner = Runner::new(self.dispatch.clone(), self.limits.overload_after)?;
        let context = Arc::new(Context::new(self.limits.clone(), runner, group).of_client());
        Ok(Arc::clone(self.context.get_or_init(|| context)))
    }

    fn limit(self, change: impl FnOnce(&mut Limits)) -> Self {
        let mut dialer = self.unshared();
        change(&mut dialer.limits);
        dialer
    }

    /// Options that connections share are fixed by the first dial: changed ones need their own.
    fn unshared(self) -> Self {
        Self {
            context: Arc::default(),
            ..self
        }
    }
}

fn repeatable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NotFound
    )
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("connect_timeout", &self.connect_timeout)
            .field("local", &self.local)
            .field("retries", &self.retries)
            .field("dispatch", &self.dispatch)
            .finish_non_exhaustive()
    }
}
