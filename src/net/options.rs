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
    /// `TCP_KEEPINTVL`, `TCP_KEEPCNT`; whole seconds, at least one; from 1 to
    /// 127 retries.
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
            set("SO_RCVBUF", || {
                socket.set_recv_buffer_size(bytes.min(MAX_INT))
            })?;
        }
        if let Some(bytes) = self.send_buffer {
            set("SO_SNDBUF", || {
                socket.set_send_buffer_size(bytes.min(MAX_INT))
            })?;
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
                .with_retries(keepalive.retries.clamp(1, 127));
            set("SO_KEEPALIVE", || socket.set_tcp_keepalive(&parameters))?;
        }
        self.apply_system_specific(socket)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn apply_system_specific(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if let Some(timeout) = self.user_timeout {
            let timeout = timeout.min(Duration::from_millis(MAX_INT as u64));
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
    let micros = time.as_micros().min(MAX_INT as u128) as u32;
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

/// Options are signed numbers to the system.
const MAX_INT: usize = i32::MAX as usize;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::super::testing::{failure, tcp_pair, unix_pair};
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn small_messages_are_not_kept_back_by_default() {
        let (socket, _theirs) = tcp_pair();
        assert!(!SockRef::from(&socket).tcp_nodelay().unwrap());
        SocketOptions::new().apply(&socket).unwrap();
        assert!(SockRef::from(&socket).tcp_nodelay().unwrap());
        assert!(!SockRef::from(&socket).keepalive().unwrap());
    }

    #[test]
    fn nodelay_can_be_left_off() {
        let (socket, _theirs) = tcp_pair();
        SocketOptions::new().nodelay(false).apply(&socket).unwrap();
        assert!(!SockRef::from(&socket).tcp_nodelay().unwrap());
    }

    #[test]
    fn every_option_arrives_at_the_socket() {
        let (socket, _theirs) = tcp_pair();
        SocketOptions::new()
            .keepalive(seconds(61), seconds(7), 4)
            .recv_buffer(40_000)
            .send_buffer(50_000)
            .apply(&socket)
            .unwrap();
        let system = SockRef::from(&socket);
        assert!(system.keepalive().unwrap());
        assert_eq!(system.tcp_keepalive_time().unwrap(), seconds(61));
        assert_eq!(system.tcp_keepalive_interval().unwrap(), seconds(7));
        assert_eq!(system.tcp_keepalive_retries().unwrap(), 4);
        assert!(system.recv_buffer_size().unwrap() >= 40_000);
        assert!(system.send_buffer_size().unwrap() >= 50_000);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn options_of_linux_arrive_too() {
        let (socket, _theirs) = tcp_pair();
        SocketOptions::new()
            .user_timeout(Duration::from_millis(12_345))
            .unsent_low_mark(16 << 10)
            .congestion("reno")
            .busy_poll(Duration::ZERO)
            .apply(&socket)
            .unwrap();
        let system = SockRef::from(&socket);
        assert_eq!(
            system.tcp_user_timeout().unwrap(),
            Some(Duration::from_millis(12_345))
        );
        assert_eq!(system.tcp_notsent_lowat().unwrap(), 16 << 10);
        assert!(system.tcp_congestion().unwrap().starts_with(b"reno"));
        assert_eq!(system.busy_poll().unwrap(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_failing_option_is_named() {
        let (socket, _theirs) = tcp_pair();
        let error = failure(SocketOptions::new().congestion("no such").apply(&socket));
        assert!(error.to_string().contains("TCP_CONGESTION"), "{error}");
        assert!(error.to_string().contains("no such"), "{error}");
    }

    #[test]
    fn unix_sockets_pass_over_what_they_do_not_have() {
        let (socket, _theirs) = unix_pair();
        SocketOptions::new()
            .keepalive(seconds(1), seconds(1), 1)
            .user_timeout(seconds(1))
            .congestion("no such")
            .unsent_low_mark(1)
            .busy_poll(seconds(1))
            .send_buffer(70_000)
            .apply(&socket)
            .unwrap();
        assert!(SockRef::from(&socket).send_buffer_size().unwrap() >= 70_000);
    }

    #[test]
    fn accepted_sockets_have_what_the_listener_says_they_inherit() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = SocketOptions::new()
            .keepalive(seconds(33), seconds(5), 2)
            .send_buffer(60_000);
        let inherited = options
            .apply_inherited(&SockRef::from(&listener), true)
            .unwrap();
        assert_eq!(inherited, cfg!(target_os = "linux"));
        if !inherited {
            return;
        }
        let _theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let system = SockRef::from(&accepted);
        assert!(system.tcp_nodelay().unwrap() && system.keepalive().unwrap());
        assert_eq!(system.tcp_keepalive_time().unwrap(), seconds(33));
        assert_eq!(system.tcp_keepalive_retries().unwrap(), 2);
        assert!(system.send_buffer_size().unwrap() >= 60_000);
    }

    #[test]
    fn seconds_are_rounded_up_and_kept_in_range() {
        assert_eq!(whole_seconds(Duration::ZERO), seconds(1));
        assert_eq!(whole_seconds(Duration::from_millis(1)), seconds(1));
        assert_eq!(whole_seconds(Duration::from_millis(1500)), seconds(2));
        assert_eq!(whole_seconds(seconds(9)), seconds(9));
        assert_eq!(whole_seconds(Duration::MAX), seconds(32767));
    }

    #[test]
    fn huge_values_are_no_error() {
        let (socket, _theirs) = tcp_pair();
        SocketOptions::new()
            .keepalive(Duration::MAX, Duration::MAX, u32::MAX)
            .user_timeout(Duration::MAX)
            .recv_buffer(usize::MAX)
            .send_buffer(usize::MAX)
            .apply(&socket)
            .unwrap();
    }
}
