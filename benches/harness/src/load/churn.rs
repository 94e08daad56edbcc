//! Connects, asks once, closes, and begins again.

use std::io;
use std::net::TcpStream;

use super::connection::{Connection, Templates};
use super::{Plan, Recorder, until};
use crate::frame::Kind;
use crate::net;
use crate::sys::{Epoll, Events, READ_WRITE_EDGE};

struct Place {
    connection: Connection,
    started: u64,
    asked: bool,
}

pub(super) struct Churn<'a> {
    plan: &'a Plan,
    templates: Templates,
    epoll: Epoll,
    places: Vec<Place>,
    scratch: Vec<u8>,
}

impl<'a> Churn<'a> {
    pub(super) fn new(plan: &'a Plan) -> io::Result<Self> {
        Ok(Self {
            plan,
            templates: Templates::new(plan.kind, Kind::Echo, plan.size, 1),
            epoll: Epoll::new()?,
            places: Vec::with_capacity(plan.connections),
            scratch: vec![0; 64 << 10],
        })
    }

    pub(super) fn run(mut self, recorder: &mut Recorder<'_>) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        recorder.start();
        for at in 0..self.plan.connections {
            let place = self.connect(at, recorder.now())?;
            self.places.push(place);
        }
        while recorder.tick()? {
            self.epoll
                .wait(&mut events, until(recorder.next(), recorder.now()))?;
            for event in events.iter() {
                let at = event.token as usize;
                self.act(at, event.readable, recorder)?;
            }
        }
        for place in &self.places {
            net::reset_on_close(place.connection.stream())?;
        }
        Ok(())
    }

    fn act(&mut self, at: usize, readable: bool, recorder: &mut Recorder<'_>) -> io::Result<()> {
        let place = &mut self.places[at];
        if !place.asked {
            if let Some(error) = place.connection.stream().take_error()? {
                return Err(error);
            }
            place.asked = true;
            place.connection.ask(&self.templates, 1, place.started)?;
        } else if readable {
            let (answers, _) = place
                .connection
                .receive(&self.templates, &mut self.scratch)?;
            if answers > 0 {
                let now = recorder.now();
                recorder.record(place.started, now, u64::from(answers), false);
                self.places[at] = self.connect(at, now)?;
            }
        }
        Ok(())
    }

    fn connect(&self, at: usize, now: u64) -> io::Result<Place> {
        let stream = self.open()?;
        self.epoll.add(&stream, at as u64, READ_WRITE_EDGE)?;
        Ok(Place {
            connection: Connection::new(stream),
            started: now,
            asked: false,
        })
    }

    /// Starts to connect, waiting for a free port where all are taken by connections just closed.
    fn open(&self) -> io::Result<TcpStream> {
        const ATTEMPTS: u32 = 3000;
        let mut attempt = 0;
        loop {
            match net::start_connect(self.plan.addr, self.plan.congestion.as_deref()) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrNotAvailable && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }
}
