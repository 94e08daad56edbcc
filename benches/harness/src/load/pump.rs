//! Keeps requests under way on connections that stay open.

use std::collections::VecDeque;
use std::io;

use super::connection::{Connection, Templates};
use super::slow::SlowReaders;
use super::{Marked, Plan, Recorder, until};
use crate::frame::Kind;
use crate::net;
use crate::sys::{Epoll, Events, READ_WRITE_EDGE};
use crate::work::NAP;

/// Bytes of the one receive buffer all connections share.
const SCRATCH: usize = 256 << 10;

pub(super) struct Pump<'a> {
    plan: &'a Plan,
    templates: Templates,
    epoll: Epoll,
    connections: Vec<Connection>,
    slow: SlowReaders,
    /// Second halves of split requests: when they are due, and on which connection.
    later: VecDeque<(u64, usize)>,
    random: Random,
    scratch: Vec<u8>,
}

impl<'a> Pump<'a> {
    /// Opens the connections.
    pub(super) fn new(plan: &'a Plan) -> io::Result<Self> {
        let marked = match plan.mark {
            Some(mark) => match mark.what {
                Marked::Asks(kind) => kind,
                Marked::Split => plan.kind,
            },
            None => Kind::Echo,
        };
        let epoll = Epoll::new()?;
        let mut connections = Vec::with_capacity(plan.connections);
        for token in 0..plan.connections {
            let stream = net::connect(plan.addr, plan.congestion.as_deref(), None)?;
            net::reset_on_close(&stream)?;
            epoll.add(&stream, token as u64, READ_WRITE_EDGE)?;
            connections.push(Connection::new(stream));
        }
        Ok(Self {
            plan,
            templates: Templates::new(plan.kind, marked, plan.size, plan.depth),
            epoll,
            connections,
            slow: SlowReaders::new(plan)?,
            later: VecDeque::new(),
            random: Random(0x9e37_79b9_7f4a_7c15),
            scratch: vec![0; SCRATCH],
        })
    }

    /// Asks until the recorder has had enough.
    pub(super) fn run(mut self, recorder: &mut Recorder<'_>) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        recorder.start();
        for at in 0..self.plan.active.min(self.plan.connections) {
            self.ask(at, self.plan.depth as u32, recorder.now())?;
        }
        while recorder.tick()? {
            let now = recorder.now();
            let half = self.later.front().map_or(u64::MAX, |&(due, _)| due);
            let due = recorder.next().min(half).min(self.slow.due());
            self.epoll.wait(&mut events, until(due, now))?;
            for event in events.iter() {
                let at = event.token as usize;
                if event.writable {
                    self.connections[at].send(&self.templates)?;
                }
                if event.readable {
                    self.receive(at, recorder)?;
                }
            }
            self.second_halves(recorder.now())?;
            self.slow.act(recorder.now())?;
        }
        Ok(())
    }

    fn receive(&mut self, at: usize, recorder: &mut Recorder<'_>) -> io::Result<()> {
        loop {
            let connection = &mut self.connections[at];
            let (answers, more) = connection.receive(&self.templates, &mut self.scratch)?;
            if answers > 0 {
                let now = recorder.now();
                if answers > connection.under_way() {
                    return Err(io::Error::other("more answers than requests"));
                }
                let marked = connection.marked;
                connection.take(answers, |sent, count| {
                    recorder.record(sent, now, u64::from(count), marked);
                });
                self.ask(at, answers, now)?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn ask(&mut self, at: usize, count: u32, now: u64) -> io::Result<()> {
        let connection = &mut self.connections[at];
        match self.plan.mark {
            Some(mark) if self.random.share() < mark.share => match mark.what {
                Marked::Asks(_) => connection.ask_marked(&self.templates, now),
                Marked::Split => {
                    self.later.push_back((now + NAP.as_nanos() as u64, at));
                    connection.ask_half(&self.templates, now)
                }
            },
            _ => connection.ask(&self.templates, count, now),
        }
    }

    fn second_halves(&mut self, now: u64) -> io::Result<()> {
        while let Some(&(due, at)) = self.later.front() {
            if due > now {
                break;
            }
            self.later.pop_front();
            self.connections[at].ask_rest(&self.templates)?;
        }
        Ok(())
    }
}

/// A xorshift generator: the same sequence in every run, so every server is asked the same.
struct Random(u64);

impl Random {
    /// The next number from 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_met() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let hits = (0..100_000).filter(|_| random.share() < 0.01).count();
        assert!((800..1200).contains(&hits), "{hits}");
    }
}
