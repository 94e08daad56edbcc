//! A poller on its own, without sockets: an eventfd, a pipe and a timerfd are operators.
//!
//! The timer ticks; each tick bumps the eventfd; the eventfd's operator writes a line into the
//! pipe, from a run that is allowed to block; the pipe's reader prints the line. After
//! [`TICKS`] lines everything is taken down and the program ends.
//!
//! ```sh
//! cargo run -p netpoll-poller --example timerfd
//! ```

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("eventfd and timerfd are Linux only");
}

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io::{self, Write},
        os::fd::{AsFd, BorrowedFd, OwnedFd},
        sync::{Arc, mpsc},
        time::Duration,
    };

    use poller::{
        Balance, Budget, Interest, Operator, PollerGroup, Progress, Readiness, before_blocking,
    };
    use rustix::{
        event::{EventfdFlags, eventfd},
        pipe::{PipeFlags, pipe_with},
        time::{
            Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
            timerfd_settime,
        },
    };

    /// Lines printed before the program ends.
    const TICKS: u64 = 5;

    pub(crate) fn main() -> io::Result<()> {
        let group = PollerGroup::new(1, Balance::RoundRobin)?;
        let (done, finished) = mpsc::channel();

        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        let printer = group.register(Arc::new(Printer { reader, done }), Interest::READ)?;

        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let ringer = bell.try_clone()?;
        let scribe = group.register(Arc::new(Scribe { bell, writer }), Interest::READ)?;

        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let every = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let spec = Itimerspec {
            it_interval: every,
            it_value: every,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
        let clock = group.register(Arc::new(Clock { timer, ringer }), Interest::READ)?;

        let lines: u64 = finished.iter().take(TICKS as usize).sum();
        println!("{lines} lines, {:?}", group.stats().total());
        drop((clock, scribe, printer));
        group.close();
        Ok(())
    }

    /// Reads an 8-byte counter; `None` if there is nothing (any more).
    fn counter(fd: &OwnedFd) -> Option<u64> {
        let mut bytes = [0; 8];
        match rustix::io::read(fd, &mut bytes) {
            Ok(8) => Some(u64::from_ne_bytes(bytes)),
            _ => None,
        }
    }

    /// Owns the timerfd; rings the bell at each tick.
    struct Clock {
        timer: OwnedFd,
        ringer: OwnedFd,
    }

    impl Operator for Clock {
        fn fd(&self) -> BorrowedFd<'_> {
            self.timer.as_fd()
        }

        fn on_ready(&self, _: Readiness, _: &mut Budget<'_>) -> Progress {
            if let Some(ticks) = counter(&self.timer) {
                // A counter that is full has been ringing for long enough.
                let _ = rustix::io::write(&self.ringer, &ticks.to_ne_bytes());
            }
            Progress::Drained
        }
    }

    /// Owns the eventfd; writes a line for each ring, slowly.
    struct Scribe {
        bell: OwnedFd,
        writer: OwnedFd,
    }

    impl Operator for Scribe {
        fn fd(&self) -> BorrowedFd<'_> {
            self.bell.as_fd()
        }

        fn on_ready(&self, _: Readiness, budget: &mut Budget<'_>) -> Progress {
            budget.request_run();
            Progress::Drained
        }

        fn run(&self) -> Progress {
            let Some(rings) = counter(&self.bell) else {
                return Progress::Drained;
            };
            // The clock goes on ticking meanwhile, on another thread.
            before_blocking();
            std::thread::sleep(Duration::from_millis(5));
            for _ in 0..rings {
                let _ = rustix::io::write(&self.writer, b"tick\n");
            }
            Progress::Drained
        }
    }

    /// Owns the pipe's reading end; prints what comes.
    struct Printer {
        reader: OwnedFd,
        done: mpsc::Sender<u64>,
    }

    impl Operator for Printer {
        fn fd(&self) -> BorrowedFd<'_> {
            self.reader.as_fd()
        }

        fn on_ready(&self, _: Readiness, budget: &mut Budget<'_>) -> Progress {
            let mut bytes = [0; 256];
            while budget.bytes_left() > 0 {
                match rustix::io::read(&self.reader, &mut bytes) {
                    Ok(0) => return Progress::Detach,
                    Ok(n) => {
                        budget.spend(n);
                        let _ = io::stdout().write_all(&bytes[..n]);
                        for _ in bytes[..n].iter().filter(|&&byte| byte == b'\n') {
                            // The receiver is gone once it has seen enough.
                            let _ = self.done.send(1);
                        }
                    }
                    Err(_) => return Progress::Drained,
                }
            }
            Progress::Yield
        }

        fn on_detached(&self) {
            println!("the pipe is done");
        }
    }
}
