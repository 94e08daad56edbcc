//! A peer on a blocking socket that compares every byte it gets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::tally::{Fault, PATIENCE, Tally};
use super::wire::{HEAD, Head, Order};
use crate::net;

/// The first source address of held connections; those below are for the other threads.
pub(super) const HELD_SOURCE: u8 = 200;

/// Where connections go, and the address they come from: each source has ports of its own, so that
/// those of connections closed a minute ago do not run out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) to: SocketAddr,
    pub(super) from: Ipv4Addr,
}

impl Route {
    /// The route of load thread `number`.
    pub(super) fn new(to: SocketAddr, number: u8) -> Self {
        Self {
            to,
            from: Ipv4Addr::new(127, 0, 1, number),
        }
    }

    /// Opens a blocking connection whose calls end after [`PATIENCE`].
    pub(super) fn connect(&self, tally: &Tally) -> io::Result<TcpStream> {
        let limit = Instant::now() + PATIENCE;
        loop {
            match self.try_connect() {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse
                    ) && Instant::now() < limit =>
                {
                    tally.port_waits.fetch_add(1, Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(stream) => {
                    tally.connects.fetch_add(1, Relaxed);
                    return Ok(stream);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn try_connect(&self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((self.from, 0)).into())?;
        socket.set_tcp_nodelay(true)?;
        socket.connect_timeout(&self.to.into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    }
}

/// One connection of the load.
pub(super) struct Peer<'a> {
    stream: TcpStream,
    tally: &'a Tally,
    tag: u32,
    next: u32,
}

impl<'a> Peer<'a> {
    /// Opens one.
    pub(super) fn connect(route: &Route, tally: &'a Tally) -> Result<Self, Fault> {
        let stream = route
            .connect(tally)
            .map_err(|error| Fault::Lost(format!("no connection: {error}")))?;
        Ok(Self {
            stream,
            tally,
            tag: tally.tag(),
            next: 0,
        })
    }

    /// The head of the connection's next frame.
    pub(super) fn head(&mut self, order: Order, argument: u16, content: usize) -> Head {
        let number = self.next;
        self.next += 1;
        Head {
            order,
            argument,
            tag: self.tag,
            number,
            content,
        }
    }

    /// Sends bytes to a server that has to take them.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.stream
            .write_all(bytes)
            .map_err(|error| Fault::Lost(format!("a request could not be sent: {error}")))
    }

    /// Sends bytes to a server that may be gone.
    pub(super) fn send_anyway(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Asks once and waits for the answer.
    pub(super) fn ping(&mut self, order: Order, argument: u16, size: usize) -> Result<(), Fault> {
        let head = self.head(order, argument, size);
        self.send(&head.frame())?;
        self.expect(&head)
    }

    /// Reads the answer to `head` and compares it.
    pub(super) fn expect(&mut self, head: &Head) -> Result<(), Fault> {
        expect(&self.stream, head)?;
        self.tally.answer(head.whole());
        Ok(())
    }

    /// Reads to the end of the stream, which has to come without another byte.
    pub(super) fn expect_end(&mut self) -> Result<(), Fault> {
        let mut rest = [0; 64];
        match self.stream.read(&mut rest) {
            Ok(0) => Ok(()),
            Ok(more) => Err(Fault::Wrong(
                more as u64,
                format!("instead of the end: {:?}", &rest[..more]),
            )),
            Err(error) if is_end(&error) => Ok(()),
            Err(error) => Err(Fault::Lost(format!("the end of the connection: {error}"))),
        }
    }

    /// Sends all frames from another thread, and the end of the stream if `fin`; waits for `pause`,
    /// then reads all answers.
    pub(super) fn pass(&mut self, heads: &[Head], pause: Duration, fin: bool) -> Result<(), Fault> {
        let mut stream = &self.stream;
        let (sent, seen) = thread::scope(|scope| {
            let sending = scope.spawn(move || {
                for head in heads {
                    stream.write_all(&head.frame())?;
                }
                if fin {
                    stream.shutdown(Shutdown::Write)?;
                }
                io::Result::Ok(())
            });
            thread::sleep(pause);
            let seen = heads.iter().try_for_each(|head| {
                expect(&self.stream, head)?;
                self.tally.answer(head.whole());
                Ok(())
            });
            if seen.is_err() {
                // Whatever the sender waits for will not come any more.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
            (sending.join(), seen)
        });
        seen?;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Fault::Lost(format!("sending at length: {error}"))),
            Err(_) => Err(Fault::Lost("the sender has panicked".into())),
        }
    }

    /// Ends the sending side.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(|error| Fault::Lost(format!("before the end of the stream: {error}")))
    }

    /// Ends the connection with a reset.
    pub(super) fn reset(self) {
        let _ = net::reset_on_close(&self.stream);
    }
}

/// Whether a failed read tells that the connection has ended.
pub(super) fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
            | ErrorKind::NotConnected
    )
}

/// Reads the answer to `head` and compares it byte by byte.
fn expect(mut stream: &TcpStream, head: &Head) -> Result<(), Fault> {
    let lost = |at: usize, error: &io::Error| {
        let whole = head.whole();
        Fault::Lost(format!(
            "the answer to {head:?} from byte {at} of {whole}: {error}"
        ))
    };
    let mut front = [0; HEAD];
    stream
        .read_exact(&mut front)
        .map_err(|error| lost(0, &error))?;
    compare_front(head, &front)?;
    let mut scratch = [0; 16 << 10];
    let mut at = 0;
    while at < head.content {
        let room = scratch.len().min(head.content - at);
        let some = &mut scratch[..room];
        stream
            .read_exact(some)
            .map_err(|error| lost(HEAD + at, &error))?;
        compare(head, at, some)?;
        at += room;
    }
    Ok(())
}

/// The first [`HEAD`] bytes of the answer to `head`.
pub(super) fn compare_front(head: &Head, front: &[u8]) -> Result<(), Fault> {
    let expected = head.encode();
    let wrong = front
        .iter()
        .zip(expected)
        .filter(|(a, b)| **a != *b)
        .count();
    if wrong == 0 {
        return Ok(());
    }
    let text = format!("{front:?} answers {head:?}");
    Err(Fault::Wrong(wrong as u64, text))
}

/// The bytes at `at` of the content of the answer to `head`.
pub(super) fn compare(head: &Head, at: usize, bytes: &[u8]) -> Result<(), Fault> {
    match head.wrong(at, bytes) {
        0 => Ok(()),
        wrong => {
            let to = at + bytes.len();
            let text = format!("between {at} and {to} of the answer to {head:?}");
            Err(Fault::Wrong(wrong, text))
        }
    }
}
