//! The server under soak: a process of its own that obeys its frames and its standard input.
//!
//! Lines it takes, each answered by one line: `look` (its figures as JSON), `limit N` (of its open
//! descriptors), `end` (shut down; `ok` or what went wrong, then the process ends). It ends at once
//! when its input does, so that it cannot outlive the one who started it.

use std::io::{self, BufRead, Write};
use std::panic;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use netpoll::{
    Bytes, CloseReason, Connection, ConnectionHandle, Dispatch, EventLoop, Handler, Listener,
    PendingReply,
};

use super::ledger::{Ledger, Record};
use super::wire::{HEAD, Head, Order};
use crate::sys;

/// Threads of [`Dispatch::Workers`].
const WORKERS: usize = 64;
/// Contents up to this length in bytes are compared on arrival; all are by who sent them.
const COMPARED: usize = 8 << 10;
/// How long a shutdown may take when all peers are gone.
const GRACE: Duration = Duration::from_secs(10);
/// The text of panics that were asked for.
const AS_ORDERED: &str = "soak: as ordered";

/// Where handlers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Where {
    /// [`Dispatch::Adaptive`].
    #[default]
    Adaptive,
    /// [`Dispatch::Workers`].
    Workers,
    /// [`Dispatch::Inline`].
    Inline,
}

impl Where {
    const ALL: [Self; 3] = [Self::Adaptive, Self::Workers, Self::Inline];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Workers => "workers",
            Self::Inline => "inline",
        }
    }

    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    fn dispatch(self) -> Dispatch {
        match self {
            Self::Adaptive => Dispatch::Adaptive,
            Self::Inline => Dispatch::Inline,
            Self::Workers => Dispatch::Workers {
                max: WORKERS,
                keep_alive: Duration::from_secs(10),
            },
        }
    }
}

/// Serves until the input ends or says `end`.
///
/// # Errors
///
/// When the server cannot be started, or its input or output fails.
pub(crate) fn run(place: Where, pollers: usize) -> io::Result<()> {
    let most = sys::raise_fd_limit()?;
    let ledger = Arc::new(Ledger::default());
    count_unexpected_panics(Arc::clone(&ledger));
    let server = EventLoop::builder()
        .pollers(pollers)
        .dispatch(place.dispatch())
        .build(Obedient {
            may_wait: place != Where::Inline,
            late: start_late(),
            ledger: Arc::clone(&ledger),
        })?;
    let listener = Listener::bind(([127, 0, 0, 1], 0))?;
    let address = listener.local_addr()?;
    server.serve_in_background(listener)?;
    answer(&format!("listening {address} pid {}", std::process::id()))?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line == "look" {
            let figures = ledger.figures(&server.stats());
            answer(&serde_json::to_string(&figures)?)?;
        } else if let Some(limit) = line.strip_prefix("limit ") {
            let limit = limit.parse().unwrap_or(most);
            answer(&told(sys::set_fd_limit(limit.min(most))))?;
        } else if line == "end" {
            return answer(&told(server.shutdown(GRACE)));
        } else {
            answer("what?")?;
        }
    }
    std::process::exit(0)
}

fn told(result: io::Result<()>) -> String {
    result.map_or_else(|error| error.to_string(), |()| "ok".into())
}

fn answer(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Panics that were asked for are not worth a line; all others are, and are counted.
fn count_unexpected_panics(ledger: Arc<Ledger>) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref() != Some(&AS_ORDERED) {
            ledger.unexpected.fetch_add(1, Relaxed);
            usual(info);
        }
    }));
}

/// A reply that another thread sends.
struct Late {
    due: Instant,
    handle: ConnectionHandle,
    hold: PendingReply,
    reply: Bytes,
}

/// The thread that sends late replies, in the order in which it gets them.
fn start_late() -> mpsc::Sender<Late> {
    let (sender, queue) = mpsc::channel::<Late>();
    thread::spawn(move || {
        for late in queue {
            thread::sleep(late.due.saturating_duration_since(Instant::now()));
            // Whoever asked may be gone by now.
            let _ = late.handle.send_bytes(late.reply);
            drop(late.hold);
        }
    });
    sender
}

/// Does what the frames say.
struct Obedient {
    may_wait: bool,
    late: mpsc::Sender<Late>,
    ledger: Arc<Ledger>,
}

/// What the handler remembers of a connection.
struct Peer {
    record: Arc<Record>,
    tag: u32,
    next: u32,
}

impl Handler for Obedient {
    type State = Peer;

    fn on_prepare(&self, conn: &mut Connection) -> io::Result<()> {
        let record = self.ledger.prepare(conn.id());
        let ledger = Arc::clone(&self.ledger);
        conn.on_close(move |_| ledger.close(&record));
        Ok(())
    }

    fn on_connect(&self, conn: &mut Connection) -> io::Result<Peer> {
        let record = self.ledger.connect(conn.id());
        drop(self.ledger.enter(&record));
        Ok(Peer {
            record,
            tag: 0,
            next: 0,
        })
    }

    fn on_request(&self, conn: &mut Connection, peer: &mut Peer) -> io::Result<()> {
        let record = Arc::clone(&peer.record);
        let _turn = self.ledger.enter(&record);
        while let Some(front) = conn.try_peek(HEAD)? {
            let Some(head) = Head::decode(front) else {
                let text = format!("no head of a frame: {front:?}");
                self.ledger.wrong(HEAD as u64, &text);
                return Err(io::ErrorKind::InvalidData.into());
            };
            if head.order == Order::Wait && self.may_wait {
                if conn.available() < head.whole() {
                    conn.flush()?;
                    conn.fill(head.whole())?;
                }
            } else if !conn.try_fill(head.whole())? {
                break;
            }
            self.check(conn, peer, &head)?;
            self.obey(conn, &head)?;
        }
        self.flush(conn)
    }

    fn on_disconnect(&self, peer: Peer, _: CloseReason) {
        self.ledger.disconnect(&peer.record);
    }
}

impl Obedient {
    /// Counts the frame at the front, and whatever is wrong with it.
    fn check(&self, conn: &mut Connection, peer: &mut Peer, head: &Head) -> io::Result<()> {
        let ledger = &self.ledger;
        ledger.requests.fetch_add(1, Relaxed);
        ledger.bytes.fetch_add(head.whole() as u64, Relaxed);
        if head.tag != 0 {
            if peer.next == 0 {
                peer.tag = head.tag;
            }
            if (head.tag, head.number) != (peer.tag, peer.next) {
                let (id, tag, next) = (conn.id(), peer.tag, peer.next);
                ledger.misplace(&format!(
                    "connection {id} got {head:?}, not {next} of tag {tag}"
                ));
            }
            peer.next = head.number.wrapping_add(1);
        }
        if head.content <= COMPARED {
            let wrong = head.wrong(0, &conn.peek(head.whole())?[HEAD..]);
            if wrong > 0 {
                let text = format!("connection {}: wrong bytes in {head:?}", conn.id());
                ledger.wrong(wrong, &text);
            }
        }
        Ok(())
    }

    fn obey(&self, conn: &mut Connection, head: &Head) -> io::Result<()> {
        let time = Duration::from_millis(head.argument.into());
        match head.order {
            Order::Echo | Order::Wait => self.echo(conn, head),
            Order::Copy => {
                let copy = conn.peek(head.whole())?.to_vec();
                conn.skip(head.whole())?;
                conn.write_slice(&copy)
            }
            Order::Take => {
                let taken = conn.next_bytes(head.whole())?;
                conn.write_bytes(taken)
            }
            Order::Sleep => {
                self.flush(conn)?;
                thread::sleep(time);
                self.echo(conn, head)
            }
            Order::Late => {
                self.flush(conn)?;
                let handle = conn.handle();
                let late = Late {
                    due: Instant::now() + time,
                    hold: handle.hold(),
                    reply: conn.next_bytes(head.whole())?,
                    handle,
                };
                self.late.send(late).map_err(io::Error::other)
            }
            Order::Close => {
                self.echo(conn, head)?;
                self.flush(conn)?;
                conn.handle().close();
                Ok(())
            }
            Order::Abort => {
                conn.skip(head.whole())?;
                conn.handle().abort();
                Ok(())
            }
            Order::Fail => Err(io::Error::other(AS_ORDERED)),
            Order::Panic => {
                self.ledger.panics.fetch_add(1, Relaxed);
                panic::panic_any(AS_ORDERED)
            }
        }
    }

    fn echo(&self, conn: &mut Connection, head: &Head) -> io::Result<()> {
        let whole = conn.slice(head.whole())?;
        conn.append(whole)
    }

    fn flush(&self, conn: &mut Connection) -> io::Result<()> {
        if self.may_wait {
            conn.flush()
        } else {
            conn.try_flush().map(drop)
        }
    }
}
