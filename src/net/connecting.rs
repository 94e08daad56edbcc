//! Making a connection in steps, none of which waits: a poller says when the next one is due.

use super::{
    address::Address,
    connect::{Dial, Knock, Race, into_own},
    endable::Endable,
    resolve::{Addresses, resolve_then},
    stream::Socket,
};
use crate::error::{Error, with_context};
use poller::{Interest, wait_ready};
use std::{io, mem, net::IpAddr, os::fd::AsFd, sync::Arc, time::Instant};

/// The peer of a socket from elsewhere, which may still be connecting: then this waits until it has
/// connected or failed.
///
/// # Errors
///
/// What the connect failed with, [`Error::DialTimeout`], [`Error::Overloaded`], [`Error::WouldDeadlock`] if it would wait on a thread
/// that must not, or that it is no connected socket.
pub(crate) fn peer_of(socket: &Socket, deadline: Option<Instant>) -> io::Result<Address> {
    match socket.peer_address() {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
        known => return known,
    }
    // One that has failed, or was never connected, is writable as well, and so is one that has connected
    // just now. It says what it is when it is asked again.
    let is_over = |until| {
        let ready = wait_ready(socket.as_fd(), Interest::WRITE, until)?;
        io::Result::Ok(!ready.is_empty())
    };
    if !is_over(Some(Instant::now()))? {
        if poller::is_polling_thread() {
            return Err(Error::WouldDeadlock.into());
        }
        let endable = Endable::begin();
        while !is_over(Some(Instant::now()))? {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::DialTimeout.into());
            }
            endable.check()?;
            endable.wait_any(&[socket.as_fd()], Interest::WRITE, deadline)?;
        }
    }
    match socket.take_error()? {
        Some(error) => Err(error),
        None => socket.peer_address(),
    }
}

/// A connection that is being made.
pub(crate) struct Connecting {
    address: Address,
    way: Way,
}

enum Way {
    /// Nothing has been done yet.
    Begin,
    /// A name is being looked up.
    LookUp,
    Race(Race),
    Knock(Knock),
    Over,
}

/// What a step came to.
pub(crate) enum Step {
    Connected(Socket),
    /// The next step is due when a socket is writable, and then if that is a time.
    Pending(Option<Instant>),
}

impl Connecting {
    pub(crate) fn new(address: Address) -> Self {
        Self {
            address,
            way: Way::Begin,
        }
    }

    /// One step. `found` is called with what a look-up of the host's name has found, on a thread that must
    /// not be held for long; that is to be given to [`found`](Self::found).
    ///
    /// # Errors
    ///
    /// As [`connect`](super::connect()). It is over then.
    pub(crate) fn step(
        &mut self,
        dial: &Dial<'_>,
        found: impl FnOnce(Addresses) + Send + 'static,
    ) -> io::Result<Step> {
        let step = self.go_on(dial, found);
        if !matches!(step, Ok(Step::Pending(_))) {
            self.way = Way::Over;
        }
        step.map_err(|error| self.in_context(error))
    }

    fn go_on(
        &mut self,
        dial: &Dial<'_>,
        found: impl FnOnce(Addresses) + Send + 'static,
    ) -> io::Result<Step> {
        if dial.is_late() && !matches!(self.way, Way::Race(_)) {
            return Err(Error::DialTimeout.into());
        }
        if let Way::Begin = self.way {
            self.way = self.begin(dial, found)?;
        }
        match &mut self.way {
            Way::Race(race) => {
                if let Some(socket) = race.step(dial)? {
                    // Others may still look at the losers.
                    self.way = Way::Over;
                    return into_own(socket).map(Step::Connected);
                }
                let next = [race.next_at(), dial.deadline];
                Ok(Step::Pending(next.into_iter().flatten().min()))
            }
            Way::Knock(knock) => {
                if !knock.has_connected(dial)? {
                    return Ok(Step::Pending(Some(knock.next_at)));
                }
                match mem::replace(&mut self.way, Way::Over) {
                    Way::Knock(knock) => Ok(Step::Connected(knock.into_socket())),
                    _ => Ok(Step::Pending(None)),
                }
            }
            Way::Begin | Way::LookUp | Way::Over => Ok(Step::Pending(dial.deadline)),
        }
    }

    fn begin(
        &self,
        dial: &Dial<'_>,
        found: impl FnOnce(Addresses) + Send + 'static,
    ) -> io::Result<Way> {
        Ok(match &self.address {
            Address::Ip(ip) => Way::Race(Race::new(&[*ip])),
            Address::Host(host, port) => match host.parse::<IpAddr>() {
                Ok(ip) => Way::Race(Race::new(&[(ip, *port).into()])),
                Err(_) => {
                    resolve_then(host, *port, found)?;
                    Way::LookUp
                }
            },
            Address::Unix(_) | Address::Abstract(_) | Address::Unnamed => {
                Way::Knock(Knock::new(dial, &self.address)?)
            }
        })
    }

    /// The name has been looked up.
    ///
    /// # Errors
    ///
    /// What the look-up failed with.
    pub(crate) fn found(&mut self, addresses: Addresses) -> io::Result<()> {
        if let Way::LookUp = self.way {
            let addresses = addresses.map_err(|error| self.in_context(error))?;
            self.way = Way::Race(Race::new(&addresses));
        }
        Ok(())
    }

    /// The sockets whose being writable is a reason for another step.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Arc<Socket>> {
        let pending = match &self.way {
            Way::Race(race) => &race.pending[..],
            _ => &[],
        };
        pending.iter().map(|attempt| &attempt.socket)
    }

    fn in_context(&self, error: io::Error) -> io::Error {
        with_context(format!("connect to {}", self.address), error)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            connect::tests::{black_hole, closed_port},
            testing::{failure, far},
        },
        *,
    };
    use poller::wait_any;
    use std::{
        net::{SocketAddr, TcpListener},
        thread,
        time::Duration,
    };

    /// A name that has been looked up.
    fn named(addresses: &[SocketAddr]) -> Connecting {
        let mut connecting = Connecting {
            address: Address::Host("name".into(), 1),
            way: Way::LookUp,
        };
        connecting.found(Ok(addresses.to_vec())).unwrap();
        connecting
    }

    /// Does what a poller does.
    fn drive(mut connecting: Connecting, deadline: Option<Instant>) -> io::Result<Socket> {
        let dial = Dial {
            deadline,
            ..Dial::default()
        };
        loop {
            match connecting.step(&dial, |_| {})? {
                Step::Connected(socket) => return Ok(socket),
                Step::Pending(at) => {
                    let sockets: Vec<_> = connecting.sockets().map(|s| s.as_fd()).collect();
                    if sockets.is_empty() {
                        let at = at.expect("something is to be waited for");
                        thread::sleep(at.saturating_duration_since(Instant::now()));
                    } else {
                        wait_any(&sockets, Interest::WRITE, at)?;
                    }
                }
            }
        }
    }

    #[test]
    fn an_address_that_does_not_answer_does_not_hold_up_the_next() {
        let (_listener, _waiting, hole) = black_hole();
        let hole = hole.as_socket_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let live = listener.local_addr().unwrap();
        for deadline in [None, far()] {
            let socket = drive(named(&[hole, live]), deadline).unwrap();
            assert_eq!(socket.peer_address().unwrap(), live.into());
        }
        let (_bound, dead) = closed_port();
        let socket = drive(named(&[dead, dead, live]), None).unwrap();
        assert_eq!(socket.peer_address().unwrap(), live.into());
    }

    #[test]
    fn an_error_says_what_became_of_each_address() {
        let (_bound, dead) = closed_port();
        let (_listener, _waiting, hole) = black_hole();
        let hole = hole.as_socket_addr().unwrap();
        let soon = Instant::now() + Duration::from_millis(60);
        let error = failure(drive(named(&[dead, hole, dead]), Some(soon)));
        assert!(Instant::now() >= soon);
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        let text = error.to_string();
        for part in [
            "connect to name:1".to_owned(),
            format!("{dead} (Connection refused"),
            format!("{hole} (no answer)"),
            format!("{dead} (not tried)"),
        ] {
            assert!(text.contains(&part), "{part} in {text}");
        }
    }

    #[test]
    fn a_look_up_that_is_late_or_fails_is_the_end() {
        let mut connecting = named(&[]);
        connecting.way = Way::LookUp;
        let dial = Dial {
            deadline: Some(Instant::now()),
            ..Dial::default()
        };
        let error = failure(connecting.step(&dial, |_| {}));
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        // What comes too late changes nothing.
        connecting.found(Ok(Vec::new())).unwrap();
        assert_eq!(connecting.sockets().count(), 0);
        connecting.way = Way::LookUp;
        let denied = Err(io::ErrorKind::PermissionDenied.into());
        let error = failure(connecting.found(denied));
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("name:1"), "{error}");
    }

    #[test]
    fn a_unix_listener_without_room_is_tried_again() {
        let path = std::env::temp_dir().join(format!("np-connecting-{}", std::process::id()));
        let listener = super::super::Listener::builder()
            .backlog(0)
            .bind(Address::Unix(path.clone()))
            .unwrap();
        let address = Address::Unix(path);
        let first = drive(Connecting::new(address.clone()), far()).unwrap();
        let soon = Instant::now() + Duration::from_millis(30);
        let error = failure(drive(Connecting::new(address.clone()), Some(soon)));
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        thread::scope(|scope| {
            let second = scope.spawn(|| drive(Connecting::new(address), far()));
            while listener.accept().is_err() {
                thread::yield_now();
            }
            second.join().unwrap().unwrap();
        });
        drop(first);
    }
}
