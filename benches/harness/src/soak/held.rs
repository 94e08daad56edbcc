//! Connections that are held for the whole time: most are silent at any moment, each is asked now
//! and then, and every answer is compared.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use super::peer::{HELD_SOURCE, Route, compare, compare_front};
use super::tally::{Fault, PATIENCE, Tally};
use super::wire::{Dice, HEAD, Head, Order};
use crate::net;
use crate::sys::{Epoll, Events, READ};

/// How often requests are sent.
const TICK: Duration = Duration::from_millis(5);
/// How often answers are looked for that take too long.
const SWEEP: Duration = Duration::from_secs(1);
/// Longest content of a frame in bytes: a frame always fits into an empty socket.
const LONGEST: usize = 8 << 10;
/// Connections from one source address; it has about 28 000 ports.
const PER_SOURCE: usize = 20_000;

struct Place {
    stream: TcpStream,
    tag: u32,
    next: u32,
    /// The request under way, when it was sent, and how much of its answer has come.
    asked: Option<(Head, Instant)>,
    received: Vec<u8>,
}

/// All of them, and the thread that runs them.
pub(super) struct Held<'a> {
    server: SocketAddr,
    tally: &'a Tally,
    dice: Dice,
    epoll: Epoll,
    places: Vec<Place>,
    /// Requests per second, over all connections.
    rate: u32,
}

impl<'a> Held<'a> {
    /// Opens `count` connections.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub(super) fn open(
        count: usize,
        rate: u32,
        server: SocketAddr,
        tally: &'a Tally,
        dice: Dice,
    ) -> io::Result<Self> {
        let mut held = Self {
            server,
            tally,
            dice,
            epoll: Epoll::new()?,
            places: Vec::with_capacity(count),
            rate,
        };
        for at in 0..count {
            let place = held.place(at)?;
            held.places.push(place);
        }
        Ok(held)
    }

    /// Asks until told to stop; then takes the answers under way and closes everything.
    pub(super) fn run(mut self) {
        if let Err(error) = self.work() {
            let text = format!("the loop of the held connections: {error}");
            self.tally.fault("Held", &Fault::Lost(text));
        }
    }

    fn work(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; 64 << 10];
        let (start, mut sent) = (Instant::now(), 0u64);
        let mut swept = start;
        loop {
            let now = Instant::now();
            let over = self.tally.is_over();
            if over && self.places.iter().all(|place| place.asked.is_none()) {
                break;
            }
            if !over && !self.places.is_empty() {
                let due = (now - start).as_secs_f64() * f64::from(self.rate);
                // What could not be sent in time is not made up for at once.
                sent = sent.max((due as u64).saturating_sub(1000));
                while sent < due as u64 {
                    sent += 1;
                    let at = self.dice.roll(self.places.len() as u64) as usize;
                    if self.places[at].asked.is_none() {
                        let result = self.ask(at, now);
                        self.settle(at, result)?;
                    }
                }
            }
            if now - swept > SWEEP {
                swept = now;
                self.sweep(now)?;
            }
            self.epoll.wait(&mut events, Some(TICK))?;
            let ready: Vec<usize> = events.iter().map(|event| event.token as usize).collect();
            for at in ready {
                let result = self.receive(at, &mut scratch);
                self.settle(at, result)?;
            }
        }
        for (at, place) in self.places.drain(..).enumerate() {
            // A third of them leave with a reset.
            if at % 3 == 0 {
                let _ = net::reset_on_close(&place.stream);
            }
        }
        Ok(())
    }

    fn ask(&mut self, at: usize, now: Instant) -> Result<(), Fault> {
        let dice = &mut self.dice;
        let (order, argument) = match dice.roll(256) {
            0 => (Order::Sleep, dice.roll(20) as u16),
            1 => (Order::Late, dice.roll(20) as u16),
            2..96 => (Order::Copy, 0),
            96..176 => (Order::Take, 0),
            _ => (Order::Echo, 0),
        };
        let content = dice.length(LONGEST);
        let place = &mut self.places[at];
        let head = Head {
            order,
            argument,
            tag: place.tag,
            number: place.next,
            content,
        };
        place.next += 1;
        place.asked = Some((head, now));
        place.received.clear();
        write_now(&place.stream, &head.frame())
            .map_err(|error| Fault::Lost(format!("{head:?} could not be sent: {error}")))
    }

    fn receive(&mut self, at: usize, scratch: &mut [u8]) -> Result<(), Fault> {
        let place = &mut self.places[at];
        let received = match (&place.stream).read(scratch) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                return Err(Fault::Lost(format!(
                    "held connection {}: {error}",
                    place.tag
                )));
            }
        };
        let Some((head, _)) = place.asked else {
            return Err(if received == 0 {
                Fault::Lost(format!("held connection {} was ended", place.tag))
            } else {
                let text = format!("held connection {} was not asked", place.tag);
                Fault::Wrong(received as u64, text)
            });
        };
        if received == 0 {
            let got = place.received.len();
            return Err(Fault::Lost(format!(
                "the connection ended {got} bytes into the answer to {head:?}"
            )));
        }
        place.received.extend_from_slice(&scratch[..received]);
        if place.received.len() < head.whole() {
            return Ok(());
        }
        place.asked = None;
        let (front, content) = place.received.split_at(HEAD);
        compare_front(&head, front)?;
        let (answer, more) = content.split_at(head.content);
        compare(&head, 0, answer)?;
        if !more.is_empty() {
            let text = format!("behind the answer to {head:?}");
            return Err(Fault::Wrong(more.len() as u64, text));
        }
        // Thousands of them must not keep what they once needed.
        place.received = Vec::new();
        self.tally.answer(head.whole());
        self.tally.held_answers.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Answers that take too long are lost.
    fn sweep(&mut self, now: Instant) -> io::Result<()> {
        for at in 0..self.places.len() {
            if let Some((head, when)) = self.places[at].asked {
                if now - when > PATIENCE {
                    let fault = Fault::Lost(format!("no answer to {head:?} for {PATIENCE:?}"));
                    self.settle(at, Err(fault))?;
                }
            }
        }
        Ok(())
    }

    /// Counts a fault and puts another connection in the place of the one that has it.
    fn settle(&mut self, at: usize, result: Result<(), Fault>) -> io::Result<()> {
        if let Err(fault) = result {
            self.tally.fault("Held", &fault);
            self.places[at] = self.place(at)?;
        }
        Ok(())
    }

    fn place(&self, at: usize) -> io::Result<Place> {
        let source = HELD_SOURCE + (at / PER_SOURCE) as u8;
        let stream = Route::new(self.server, source).connect(self.tally)?;
        stream.set_nonblocking(true)?;
        self.epoll.add(&stream, at as u64, READ)?;
        Ok(Place {
            stream,
            tag: self.tally.tag(),
            next: 0,
            asked: None,
            received: Vec::new(),
        })
    }
}

/// Writes a frame into a socket that should have room for it.
fn write_now(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    let limit = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < limit => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
