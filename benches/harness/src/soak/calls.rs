//! Clients of the library under soak: pooled calls, and connections whose answers a poller reads.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use netpoll::{Address, Bytes, CloseReason, Connection, Dialer, Handler, Pool};

use super::peer::{compare, compare_front, is_end};
use super::tally::{Act, Fault, PATIENCE, Tally};
use super::wire::{Dice, HEAD, Head, Order};

/// Calls that follow each other on one client whose answers a poller reads.
const BATCH: u64 = 6;

/// What all callers share.
pub(super) struct Clients {
    address: Address,
    dialer: Dialer,
    pool: Pool,
}

impl Clients {
    /// Clients of the server at `address`.
    pub(super) fn new(address: Address) -> Self {
        let dialer = Dialer::new()
            .connect_timeout(PATIENCE)
            .read_timeout(PATIENCE)
            .write_timeout(PATIENCE);
        let pool = Pool::builder(dialer.clone())
            .max_idle(4)
            .max_total(6)
            .wait(PATIENCE)
            .build()
            .expect("options that hold together");
        Self {
            address,
            dialer,
            pool,
        }
    }

    /// Calls until told to stop.
    pub(super) fn run(&self, tally: &Tally, mut dice: Dice) {
        while !tally.is_over() {
            match dice.roll(32) {
                0 => tally.done(Act::PooledPanic, self.ended_by_panic(&mut dice)),
                1 => tally.done(Act::PooledEnd, self.call(Order::Close, tally, &mut dice)),
                2..5 => tally.done(Act::Dialled, self.dialled(tally, &mut dice)),
                _ => {
                    let orders = [Order::Echo, Order::Copy, Order::Take, Order::Late];
                    let order = orders[dice.roll(4) as usize];
                    tally.done(Act::Pooled, self.call(order, tally, &mut dice));
                }
            }
            thread::sleep(Duration::from_millis(dice.roll(10)));
        }
    }

    /// Closes what is kept for further calls.
    pub(super) fn close(&self) {
        self.pool.close();
    }

    /// One call on a pooled connection. Connections that an earlier call has asked the server to
    /// close may be handed out until their end arrives; the call is made again then.
    fn call(&self, order: Order, tally: &Tally, dice: &mut Dice) -> Result<(), Fault> {
        let head = unnumbered(order, dice, 100_000);
        loop {
            let mut conn = self
                .pool
                .get(&self.address)
                .map_err(|error| Fault::Lost(format!("no connection from the pool: {error}")))?;
            match exchange(&mut conn, &head) {
                Ok(whole) => {
                    tally.answer(whole);
                    return Ok(());
                }
                Err(Broken::Ended) => {
                    // How often this may be is for the judge to say.
                    tally.stale.fetch_add(1, Relaxed);
                    if tally.stale.load(Relaxed) > 1000 + tally.count(Act::PooledEnd) {
                        return Err(Fault::Lost("pooled connections end all the time".into()));
                    }
                }
                Err(Broken::Fault(fault)) => return Err(fault),
            }
        }
    }

    /// A call whose handler panics: the connection has to end, and must not be used again.
    fn ended_by_panic(&self, dice: &mut Dice) -> Result<(), Fault> {
        let head = unnumbered(Order::Panic, dice, 1000);
        // On a connection of its own, so that the end that is seen is the panic's.
        let mut conn = self
            .dialer
            .dial_connection(self.address.clone())
            .map_err(|error| Fault::Lost(format!("no connection: {error}")))?;
        match exchange(&mut conn, &head) {
            Err(Broken::Ended) => Ok(()),
            Err(Broken::Fault(fault)) => Err(fault),
            Ok(whole) => Err(Fault::Wrong(whole as u64, "a panic has answered".into())),
        }
    }

    /// Several calls at once on a connection whose answers a poller reads.
    fn dialled(&self, tally: &Tally, dice: &mut Dice) -> Result<(), Fault> {
        let heads: Vec<_> = (0..=dice.roll(BATCH))
            .map(|_| unnumbered(Order::Copy, dice, 20_000))
            .collect();
        let (sender, told) = mpsc::channel();
        let handler = Answers {
            heads: heads.clone(),
            told: sender,
        };
        let handle = self
            .dialer
            .dial_with(self.address.clone(), handler)
            .map_err(|error| Fault::Lost(format!("no connection: {error}")))?;
        for head in &heads {
            handle
                .send_bytes(Bytes::from(head.frame()))
                .map_err(|error| Fault::Lost(format!("sending through a handle: {error}")))?;
        }
        for head in &heads {
            match next(&told)? {
                Told::Answer(result) => result?,
                Told::End(reason) => {
                    return Err(Fault::Lost(format!("ended before {head:?}: {reason}")));
                }
            }
            tally.answer(head.whole());
        }
        handle.close();
        match next(&told)? {
            Told::End(CloseReason::Local) => {}
            other => return Err(Fault::Lost(format!("{other:?} instead of our own close"))),
        }
        // Once, and nothing after it: the handler is dropped with its connection.
        drop(handle);
        match told.recv_timeout(PATIENCE) {
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(()),
            other => Err(Fault::Lost(format!("{other:?} after the end"))),
        }
    }
}

/// Why a call has no answer.
enum Broken {
    /// The connection has ended before the first byte of the answer.
    Ended,
    Fault(Fault),
}

/// Sends a frame and compares the answer; returns its length.
fn exchange(conn: &mut Connection, head: &Head) -> Result<usize, Broken> {
    let ended = |error: io::Error| {
        if is_end(&error) {
            Broken::Ended
        } else {
            Broken::Fault(Fault::Lost(format!("{head:?}: {error}")))
        }
    };
    conn.write_slice(&head.frame()).map_err(ended)?;
    conn.flush().map_err(ended)?;
    conn.fill(1).map_err(ended)?;
    let lost = |error: io::Error| {
        Broken::Fault(Fault::Lost(format!(
            "inside the answer to {head:?}: {error}"
        )))
    };
    let front = conn.next(HEAD).map_err(lost)?;
    compare_front(head, front).map_err(Broken::Fault)?;
    let content = conn.next(head.content).map_err(lost)?;
    compare(head, 0, content).map_err(Broken::Fault)?;
    Ok(head.whole())
}

/// A frame on a connection that several callers use in turn.
fn unnumbered(order: Order, dice: &mut Dice, longest: usize) -> Head {
    Head {
        order,
        argument: if order == Order::Late {
            dice.roll(10) as u16
        } else {
            0
        },
        tag: 0,
        number: dice.roll(1 << 32) as u32,
        content: dice.length(longest),
    }
}

/// What the handler of a client says.
#[derive(Debug)]
enum Told {
    Answer(Result<(), Fault>),
    End(CloseReason),
}

fn next(told: &Receiver<Told>) -> Result<Told, Fault> {
    told.recv_timeout(PATIENCE)
        .map_err(|error| Fault::Lost(format!("a client's handler says nothing: {error}")))
}

/// Compares answers, in order.
struct Answers {
    heads: Vec<Head>,
    told: Sender<Told>,
}

impl Handler for Answers {
    type State = usize;

    fn on_connect(&self, _: &mut Connection) -> io::Result<usize> {
        Ok(0)
    }

    fn on_request(&self, conn: &mut Connection, answered: &mut usize) -> io::Result<()> {
        while let Some(head) = self.heads.get(*answered) {
            if !conn.try_fill(head.whole())? {
                return Ok(());
            }
            let bytes = conn.next(head.whole())?;
            let result =
                compare_front(head, &bytes[..HEAD]).and_then(|()| compare(head, 0, &bytes[HEAD..]));
            *answered += 1;
            self.told
                .send(Told::Answer(result))
                .map_err(io::Error::other)?;
        }
        match conn.available() {
            0 => Ok(()),
            more => {
                let fault = Fault::Wrong(more as u64, "behind the last answer".into());
                self.told
                    .send(Told::Answer(Err(fault)))
                    .map_err(io::Error::other)
            }
        }
    }

    fn on_disconnect(&self, _: usize, reason: CloseReason) {
        // Nobody may be listening any more after a fault.
        let _ = self.told.send(Told::End(reason));
    }
}
