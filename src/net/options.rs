//! Options of connected sockets, collected before there is a socket.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

use super::{
    stream::Socket,
    syscall::{Call, call},
};
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use crate::error::Error;
use crate::error::with_context;

/// What to set on the sockets of a server or a dialer.
///
/// By default small messages are sent at once ([`nodelay`](Self::nodelay)) and everything else is
/// left as the system has it. Options of TCP do not exist for unix sockets and are passed over
/// for them; [`recv_buffer`](Self::recv_buffer) and [`send_buffer`](Self::send_buffer) apply to
/// both.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use netpoll::SocketOptions;
///
/// let options = SocketOptions::new()
///     .keepalive(Duration::from_secs(60), Duration::from_secs(10), 3)
///     .user_timeout(Duration::from_secs(90));
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct SocketOptions {
    nodelay: bool,
    keepalive: Option<Keepalive>,
    user_timeout: Option<Duration>,
    reuse_address: Option<bool>,
    reuse_port: bool,
    recv_buffer: Option<usize>,
    send_buffer: Option<usize>,
    congestion: Option<Box<str>>,
    unsent_low_mark: Option<u32>,
    busy_poll: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keepalive {
    idle: Duration,
    interval: Duration,
    retries: u32,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: None,
            user_timeout: None,
            reuse_address: None,
            reuse_port: false,
            recv_buffer: None,
            send_buffer: None,
            congestion: None,
            unsent_low_mark: None,
            busy_poll: None,
        }
    }
}

impl SocketOptions {
    /// The defaults: `nodelay` on, the rest as the system has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a small message is sent at once rather than kept back until the one before is
    /// acknowledged. `TCP_NODELAY`; on by default.
    pub fn nodelay(mut self, on: bool) -> Self {
        self.nodelay = on;
        self
    }

    /// Asks a silent peer whether it is still there: first after `idle`, then every `interval`,
    /// and gives up after `retries` unanswered questions. `SO_KEEPALIVE`, `TCP_KEEPIDLE`,
    /// `TCP_KEEPINTVL`, `TCP_KEEPCNT`; whole seconds, at least one.
    ///
    /// A dead peer is noticed after `idle + interval * retries`. Output that is not acknowledged
    /// postpones the questions; [`user_timeout`](Self::user_timeout) covers that case.
    pub fn keepalive(mut self, idle: Duration, interval: Duration, retries: u32) -> Self {
        self.keepalive = Some(Keepalive {
            idle,
            interval,
            retries,
        });
        self
    }

    /// How long sent bytes may stay unacknowledged, or a full peer may take nothing, before the
    /// connection is given up. `TCP_USER_TIMEOUT`, milliseconds; Linux only, elsewhere applying
    /// it fails with [`Error::Unsupported`](crate::Error::Unsupported).
    pub fn user_timeout(mut self, timeout: Duration) -> Self {
        self.user_timeout = Some(timeout);
        self
    }

    /// Whether a local address may be used that a closed connection still occupies, for dialers
    /// with a local address. `SO_REUSEADDR`. For listeners see
    /// [`ListenOptions::reuse_address`](crate::ListenOptions::reuse_address).
    pub fn reuse_address(mut self, on: bool) -> Self {
        self.reuse_address = Some(on);
        self
    }

    /// Whether several sockets may use one local address, for dialers with a local address.
    /// `SO_REUSEPORT`. For listeners see
    /// [`ListenOptions::reuse_port`](crate::ListenOptions::reuse_port).
    pub fn reuse_port(mut self, on: bool) -> Self {
        self.reuse_port = on;
        self
    }

    /// Bytes the system may hold that were received and not read. `SO_RCVBUF`; Linux doubles it
    /// for its bookkeeping and stops adapting it to the connection.
    pub fn recv_buffer(mut self, bytes: usize) -> Self {
        self.recv_buffer = Some(bytes);
        self
    }

    /// Bytes the system may hold that were sent and not acknowledged. `SO_SNDBUF`; Linux doubles
    /// it for its bookkeeping and stops adapting it to the connection.
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = Some(bytes);
        self
    }

    /// The congestion control algorithm by name, `bbr` for example. `TCP_CONGESTION`; Linux and
    /// FreeBSD only, elsewhere applying it fails with [`Error::Unsupported`](crate::Error::Unsupported).
    pub fn congestion(mut self, name: &str) -> Self {
        self.congestion = Some(name.into());
        self
    }

    /// How many unsent bytes the system takes before it says that the socket is full, which
    /// keeps the delay of urgent output short. `TCP_NOTSENT_LOWAT`; Linux only, elsewhere
    /// applying it fails with [`Error::Unsupported`](crate::Error::Unsupported).
    pub fn unsent_low_mark(mut self, bytes: u32) -> Self {
        self.unsent_low_mark = Some(bytes);
        self
    }

    /// How long a wait for input may poll the network device by itself. `SO_BUSY_POLL`,
    /// microseconds; Linux only (elsewhere applying it fails with [`Error::Unsupported`](crate::Error::Unsupported)), and
    /// raising it needs the `CAP_NET_ADMIN` capability.
    pub fn busy_poll(mut self, time: Duration) -> Self {
        self.busy_poll = Some(time);
        self
    }

    /// Sets everything that makes sense for a connected socket.
    ///
    /// # Errors
    ///
    /// What the system reports, with the name of the option; [`Error::Unsupported`](crate::Error::Unsupported).
    pub(crate) fn apply(&self, socket: &Socket) -> io::Result<()> {
        self.apply_to(&SockRef::from(socket), socket.is_tcp())
    }

    /// Sets the options on a listening socket whose connections inherit them, which saves a call
    /// per option and connection. `false`: this system's connections do not inherit, so
    /// [`Self::apply`] is needed for each.
    pub(crate) fn apply_inherited(&self, listener: &SockRef<'_>, tcp: bool) -> io::Result<bool> {
        if cfg!(not(any(target_os = "linux", target_os = "android"))) || !tcp {
            return Ok(false);
        }
        self.apply_to(listener, tcp)?;
        Ok(true)
    }

    /// Sets what must be there before a socket is bound.
    pub(super) fn apply_before_bind(&self, socket: &SockRef<'_>, tcp: bool) -> io::Result<()> {
        if !tcp {
            return Ok(());
        }
        if let Some(on) = self.reuse_address {
            set("SO_REUSEADDR", || socket.set_reuse_address(on))?;
        }
        if self.reuse_port {
            set("SO_REUSEPORT", || socket.set_reuse_port(true))?;
        }
        Ok(())
    }

    pub(super) fn apply_to(&self, socket: &SockRef<'_>, tcp: bool) -> io::Result<()> {
        if let Some(bytes) = self.recv_buffer {
            set("SO_RCVBUF", || socket.set_recv_buffer_size(bytes))?;
        }
        if let Some(bytes) = self.send_buffer {
            set("SO_SNDBUF", || socket.set_send_buffer_size(bytes))?;
        }
        if !tcp {
            return Ok(());
        }
        if self.nodelay {
            set("TCP_NODELAY", || socket.set_tcp_nodelay(true))?;
        }
        if let Some(keepalive) = self.keepalive {
            let parameters = TcpKeepalive::new()
                .with_time(whole_seconds(keepalive.idle))
                .with_interval(whole_seconds(keepalive.interval))
                .with_retries(keepalive.retries);
            set("SO_KEEPALIVE", || socket.set_tcp_keepalive(&parameters))?;
        }
        self.apply_system_specific(socket)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn apply_system_specific(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if let Some(timeout) = self.user_timeout {
            set("TCP_USER_TIMEOUT", || {
                socket.set_tcp_user_timeout(Some(timeout))
            })?;
        }
        if let Some(bytes) = self.unsent_low_mark {
            set("TCP_NOTSENT_LOWAT", || socket.set_tcp_notsent_lowat(bytes))?;
        }
        if let Some(name) = &self.congestion {
            set_congestion(socket, name)?;
        }
        if let Some(time) = self.busy_poll {
            set_busy_poll(socket, time)?;
        }
        Ok(())
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn apply_system_specific(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if self.user_timeout.is_some() {
            return Err(Error::Unsupported("TCP_USER_TIMEOUT").into());
        }
        if self.unsent_low_mark.is_some() {
            return Err(Error::Unsupported("TCP_NOTSENT_LOWAT").into());
        }
        if let Some(name) = &self.congestion {
            set_congestion(socket, name)?;
        }
        if let Some(time) = self.busy_poll {
            set_busy_poll(socket, time)?;
        }
        Ok(())
    }
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn set_congestion(socket: &SockRef<'_>, name: &str) -> io::Result<()> {
    call(Call::SetOption, || {
        socket.set_tcp_congestion(name.as_bytes())
    })
    .map_err(|error| with_context(format!("set TCP_CONGESTION to {name:?}"), error))
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn set_congestion(_: &SockRef<'_>, _: &str) -> io::Result<()> {
    Err(Error::Unsupported("TCP_CONGESTION").into())
}

#[cfg(target_os = "linux")]
fn set_busy_poll(socket: &SockRef<'_>, time: Duration) -> io::Result<()> {
    // The system keeps a signed number.
    let micros = time.as_micros().min(i32::MAX.unsigned_abs().into());
    let micros = u32::try_from(micros).unwrap_or(u32::MAX);
    set("SO_BUSY_POLL", || socket.set_busy_poll(micros))
}

#[cfg(not(target_os = "linux"))]
fn set_busy_poll(_: &SockRef<'_>, _: Duration) -> io::Result<()> {
    Err(Error::Unsupported("SO_BUSY_POLL").into())
}

/// Sets one option and names it if that fails.
pub(super) fn set(name: &str, op: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    call(Call::SetOption, op).map_err(|error| with_context(format!("set {name}"), error))
}

/// Rounded up to a second, because 0 is an error to some systems.
fn whole_seconds(time: Duration) -> Duration {
    let round_up = u64::from(time.subsec_nanos() > 0);
    // The system keeps seconds as a signed number and takes 32767 at most.
    Duration::from_secs(time.as_secs().saturating_add(round_up).clamp(1, 32767))
}
