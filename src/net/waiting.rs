//! Waiting for input inside the receive itself.
//!
//! Who waits for an answer on a socket that never blocks makes two calls, `poll(2)` and `recv(2)`. On a
//! socket in blocking mode one is enough: the receive waits. What that takes, and why it is safe:
//!
//! * **The mode belongs to the open file description**, which every duplicate of a descriptor shares. So it
//!   is changed for sockets that were made here and that nobody else has seen: [`Socket::keep_mode`] ends
//!   it, for good, before a descriptor is lent, handed out or given to a poller to work with. Descriptors
//!   from elsewhere are left alone.
//! * **Every other call says `MSG_DONTWAIT`** and so never waits, whatever the mode: other threads go on
//!   sending, a poller drains the socket after a close. `splice(2)` has no such flag and asks the
//!   descriptor, so it comes after `keep_mode`.
//! * **Nobody can end a receive from another thread** without touching the connection. So none is longer
//!   than [`SLICE`]: that is the socket's `SO_RCVTIMEO`, set once, whatever the caller's timeout is. A
//!   caller whose answer takes longer polls for the rest of its time, which others can end.
//! * **A signal ends it as the slice does**, so a storm of signals prolongs nothing.
//!
//! Linux only: elsewhere it is not known to hold.

use std::{io, time::Duration};

use bytes::BytesMut;
use socket2::SockRef;

use super::{
    stream::{Received, Socket},
    syscall::{Call, call},
};
use crate::sync::{AtomicBool, AtomicU8, Ordering};

/// How long a receive waits at most; the system rounds it up to its own ticks of 1 to 10 ms.
const SLICE: Duration = Duration::from_millis(20);
/// A caller that would wait less than this polls, which is exact to the millisecond.
const WORTHWHILE: Duration = Duration::from_millis(2 * 20);

/// Changing the mode costs two calls, so a connection that is used once stays as it is.
const FIRST: u8 = 1;
/// A peer that takes longer than a slice again and again is polled for at once, so many times at most
/// before it gets another chance: the slices would be waited for nothing.
const SLOW: u8 = 7;
const NEVER: u8 = u8::MAX;

/// Whether the receives of a socket may wait. The one who reads asks and answers; others only ever end it.
#[derive(Debug)]
pub(super) struct Waits {
    /// How many waits from now on are polled for; [`NEVER`] stands for all.
    polls: AtomicU8,
    /// How many those will be after the next slice in which nothing came, beside the wait it was part of.
    slow: AtomicU8,
    /// The descriptor is in blocking mode and has its time-out.
    blocking: AtomicBool,
    /// Others have had the descriptor, or made it: its options may be anything.
    seen: AtomicBool,
    /// A receive waits now.
    inside: AtomicBool,
    /// A wait is to end at once, which a receive's cannot.
    interrupted: AtomicBool,
}

impl Waits {
    /// Receives never wait.
    pub(super) fn never() -> Self {
        Self::after(NEVER)
    }

    /// Receives may wait from the second wait on, where the system is known to be fit for it.
    pub(super) fn soon() -> Self {
        let fit = cfg!(any(target_os = "linux", target_os = "android"));
        // Models play the system, and none of their calls may wait for real.
        let modelled = cfg!(any(loom, shuttle));
        Self::after(if fit && !modelled { FIRST } else { NEVER })
    }

    fn after(polls: u8) -> Self {
        Self {
            polls: AtomicU8::new(polls),
            slow: AtomicU8::new(0),
            blocking: AtomicBool::new(false),
            seen: AtomicBool::new(false),
            inside: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
        }
    }

    pub(super) fn set_seen(&self, seen: bool) {
        self.seen.store(seen, Ordering::Relaxed);
    }

    pub(super) fn is_seen(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }
}

impl Socket {
    /// Whether the caller, who would wait for `left` (`None`: for ever), had better wait in
    /// [`recv_waiting`](Self::recv_waiting). To be asked once for each wait, by the one who reads.
    pub(crate) fn may_wait(&self, left: Option<Duration>) -> bool {
        let polls = self.waits().polls.load(Ordering::Relaxed);
        if polls == NEVER || left.is_some_and(|left| left < WORTHWHILE) {
            return false;
        }
        if self.waits().interrupted.load(Ordering::Relaxed) {
            return false;
        }
        if polls > 0 {
            self.waits().polls.store(polls - 1, Ordering::Relaxed);
            return false;
        }
        self.waits().blocking.load(Ordering::Relaxed) || self.let_block()
    }

    /// As [`recv_into`](Self::recv_into), and waits for input, but not for long.
    ///
    /// To be called after [`may_wait`](Self::may_wait) said so. Other threads cannot end the wait.
    ///
    /// # Errors
    ///
    /// As [`recv_into`](Self::recv_into); `WouldBlock` after the slice, and after a signal.
    pub(crate) fn recv_waiting(&self, buf: &mut BytesMut) -> io::Result<Received> {
        let slow = self.waits().slow.load(Ordering::Relaxed);
        // A word for those who ask; it orders nothing.
        self.waits().inside.store(true, Ordering::Relaxed);
        let received = self.recv_once(buf);
        self.waits().inside.store(false, Ordering::Relaxed);
        match received {
            Err(error) if is_over(&error) => {
                // The rest of this wait is one of them.
                self.waits().polls.store(1 + slow, Ordering::Relaxed);
                let slower = (2 * slow + 1).min(SLOW);
                self.waits().slow.store(slower, Ordering::Relaxed);
                Err(io::ErrorKind::WouldBlock.into())
            }
            received => {
                if slow > 0 {
                    self.waits().slow.store(0, Ordering::Relaxed);
                }
                received
            }
        }
    }

    /// Whether a receive waits now, as far as is known.
    pub(crate) fn is_inside(&self) -> bool {
        self.waits().inside.load(Ordering::Relaxed)
    }

    /// Says whether the next wait is to end at once: then it is no receive's.
    pub(crate) fn set_interrupted(&self, interrupted: bool) {
        self.waits()
            .interrupted
            .store(interrupted, Ordering::Relaxed);
    }

    /// From now on the descriptor is non-blocking and stays so: it may be shown to others.
    ///
    /// # Errors
    ///
    /// What the system reports; the mode is unknown then.
    pub(crate) fn keep_mode(&self) -> io::Result<()> {
        self.waits().polls.store(NEVER, Ordering::Relaxed);
        if !self.waits().blocking.load(Ordering::Relaxed) {
            return Ok(());
        }
        let socket = SockRef::from(self);
        call(Call::SetOption, || socket.set_nonblocking(true))?;
        call(Call::SetOption, || socket.set_read_timeout(None))?;
        self.waits().blocking.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Blocking mode, with a time-out before it has an effect.
    fn let_block(&self) -> bool {
        let socket = SockRef::from(self);
        let done = call(Call::SetOption, || socket.set_read_timeout(Some(SLICE)))
            .and_then(|()| call(Call::SetOption, || socket.set_nonblocking(false)));
        // What was done is undone when the descriptor is shown.
        self.waits().blocking.store(true, Ordering::Relaxed);
        if done.is_err() {
            self.waits().polls.store(NEVER, Ordering::Relaxed);
        }
        done.is_ok()
    }
}

/// The slice is over, or a signal came.
fn is_over(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        os::{
            fd::{AsFd, OwnedFd},
            unix::net::UnixStream,
        },
        thread,
        time::Instant,
    };

    use super::super::{
        stream::Peek,
        testing::{failure, is_prepared, tcp_pair, unix_pair},
    };
    use super::*;

    /// A connected socket that counts as made here, and its peer.
    fn own_tcp() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        (own(ours, true), theirs)
    }

    fn own_unix() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (own(ours, false), theirs)
    }

    fn own(fd: impl Into<OwnedFd>, tcp: bool) -> Socket {
        let fd = fd.into();
        SockRef::from(&fd).set_nonblocking(true).unwrap();
        Socket::from_own(fd, tcp).unwrap()
    }

    fn timeout(socket: &Socket) -> Option<Duration> {
        SockRef::from(socket).read_timeout().unwrap()
    }

    fn let_wait(socket: &Socket) {
        assert!(!socket.may_wait(None), "the first wait is polled for");
        assert!(is_prepared(socket));
        assert!(socket.may_wait(None));
        assert!(!is_prepared(socket));
        assert!(timeout(socket).is_some_and(|time| time >= SLICE));
    }

    #[test]
    fn the_mode_changes_with_the_second_wait_and_goes_back_for_good() {
        for socket in [own_tcp().0, own_unix().0] {
            let_wait(&socket);
            assert!(socket.may_wait(Some(WORTHWHILE)));
            assert!(!socket.may_wait(Some(WORTHWHILE - Duration::from_nanos(1))));
            socket.keep_mode().unwrap();
            assert!(is_prepared(&socket));
            assert_eq!(timeout(&socket), None);
            assert!(!socket.may_wait(None));
            assert!(is_prepared(&socket));
        }
    }

    #[test]
    fn a_mode_that_is_kept_from_the_start_is_not_touched() {
        let (socket, _theirs) = own_tcp();
        let time = Duration::from_secs(7);
        SockRef::from(&socket).set_read_timeout(Some(time)).unwrap();
        socket.keep_mode().unwrap();
        for _ in 0..=SLOW {
            assert!(!socket.may_wait(None));
        }
        assert!(is_prepared(&socket));
        assert_eq!(timeout(&socket), Some(time));
    }

    #[test]
    fn descriptors_from_elsewhere_never_wait() {
        for socket in [tcp_pair().0, unix_pair().0] {
            for _ in 0..=SLOW {
                assert!(!socket.may_wait(None));
            }
            assert!(is_prepared(&socket));
        }
    }

    #[test]
    fn a_receive_waits_for_what_comes() {
        let (socket, mut theirs) = own_tcp();
        let_wait(&socket);
        let writing = thread::spawn(move || {
            theirs.write_all(b"answer").unwrap();
            theirs
        });
        let mut buf = BytesMut::with_capacity(64);
        // More than one slice on a machine that has no time for the writer.
        while buf.len() < 6 {
            match socket.recv_waiting(&mut buf) {
                Ok(received) => assert!(received.n > 0),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(&buf[..], b"answer");
        drop(writing.join().unwrap());
        // The end is an end.
        loop {
            match socket.recv_waiting(&mut buf) {
                Ok(received) => break assert_eq!(received.n, 0),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn after_a_slice_without_input_the_next_waits_are_polled_for() {
        let (tcp, _theirs) = own_tcp();
        let (unix, _its) = own_unix();
        for socket in [tcp, unix] {
            let_wait(&socket);
            let mut buf = BytesMut::with_capacity(64);
            // Each time more of them, up to a limit.
            for more in [0, 1, 3, 7, 7] {
                let start = Instant::now();
                let error = failure(socket.recv_waiting(&mut buf));
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                // It did wait.
                assert!(start.elapsed() >= SLICE / 2, "{:?}", start.elapsed());
                assert!(!socket.may_wait(None), "the rest of this wait");
                for _ in 0..more {
                    assert!(!socket.may_wait(None), "{more}");
                }
                assert!(socket.may_wait(None), "{more}");
            }
        }
    }

    #[test]
    fn an_answer_in_time_makes_up_for_slow_ones() {
        let (socket, mut theirs) = own_unix();
        let_wait(&socket);
        let mut buf = BytesMut::with_capacity(64);
        for _ in 0..2 {
            failure(socket.recv_waiting(&mut buf));
            while !socket.may_wait(None) {}
        }
        theirs.write_all(b"x").unwrap();
        assert_eq!(socket.recv_waiting(&mut buf).unwrap().n, 1);
        failure(socket.recv_waiting(&mut buf));
        assert!(!socket.may_wait(None), "the rest of this wait");
        assert!(socket.may_wait(None));
    }

    #[test]
    fn nothing_else_waits_whatever_the_mode() {
        let (tcp, _theirs) = own_tcp();
        let (unix, _its) = own_unix();
        for socket in [tcp, unix] {
            let_wait(&socket);
            // Waits would be for ever now.
            SockRef::from(&socket).set_read_timeout(None).unwrap();
            let mut buf = BytesMut::with_capacity(64);
            let would_block = io::ErrorKind::WouldBlock;
            assert_eq!(failure(socket.recv_into(&mut buf)).kind(), would_block);
            assert_eq!(failure(socket.recv(&mut [0; 8])).kind(), would_block);
            assert_eq!(socket.peek_state(), Peek::Empty);
            let much = vec![1; 1 << 20];
            let error = loop {
                let slices = [io::IoSlice::new(&much), io::IoSlice::new(&much)];
                if let Err(error) = socket
                    .send(&much)
                    .and_then(|_| socket.send_vectored(&slices))
                {
                    break error;
                }
            };
            assert_eq!(error.kind(), would_block);
            assert!(!is_prepared(&socket.as_fd()), "it was in blocking mode");
        }
    }

    #[cfg(netpoll_faults)]
    mod faults {
        use super::*;
        use crate::fault::{Fault, Plan};

        #[test]
        fn a_signal_ends_the_wait_as_the_slice_does() {
            let (socket, mut theirs) = own_tcp();
            let_wait(&socket);
            theirs.write_all(b"x").unwrap();
            let mut buf = BytesMut::with_capacity(64);
            let plan = Plan::new(0).every(Call::Receive, 1, Fault::Errno(libc::EINTR));
            let installed = plan.this_thread().install();
            let error = failure(socket.recv_waiting(&mut buf));
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(installed.calls(Call::Receive), 1, "tried once");
            assert!(!socket.may_wait(None));
        }

        #[test]
        fn a_mode_that_cannot_be_changed_stays() {
            for (first, errno) in [(1, libc::ENOMEM), (2, libc::EPERM)] {
                let (socket, _theirs) = own_tcp();
                assert!(!socket.may_wait(None));
                let fault = Fault::Errno(errno);
                let plan = Plan::new(0).from(Call::SetOption, first, 1, fault);
                let installed = plan.this_thread().install();
                assert!(!socket.may_wait(None));
                assert!(!socket.may_wait(None), "for good");
                drop(installed);
                socket.keep_mode().unwrap();
                assert!(is_prepared(&socket));
                assert_eq!(timeout(&socket), None);
            }
        }
    }
}
