//! Blocked producers under shuttle: the real handle, outbox and waiters on a socket pair that is
//! full now and then. The model plays the poller.

use super::{
    handle::ConnectionHandle,
    shared::Shared,
    state::{CONNECTED, ConnectionState, OWNED, QUEUED, RUNNING, WRITABLE},
};
use crate::{
    config::{Limits, OnFull, OutputLimits},
    context::Context,
    dispatch::Runner,
    error::Error,
    net::{Address, Socket},
    sync::{AtomicBool, Ordering, check_schedules, thread},
};
use bytes::Bytes;
use poller::PollerGroup;
use std::{
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    sync::Arc,
};

/// One message fills most of the queue; a few fill the socket.
const MESSAGE: usize = 64 << 10;

fn limits() -> Limits {
    Limits {
        output: OutputLimits {
            bytes: MESSAGE + 1,
            on_full: OnFull::Block,
            ..OutputLimits::default()
        },
        ..Limits::default()
    }
}

struct Link {
    shared: Arc<Shared>,
    /// No more will be sent.
    over: AtomicBool,
}

impl Link {
    fn new() -> (Arc<Self>, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        let socket = Socket::from_fd(ours.into()).unwrap();
        let group = PollerGroup::builder().pollers(1).build().unwrap();
        let context = Arc::new(Context::new(limits(), Runner::Inline, group));
        let peer_address = "127.0.0.1:1".parse::<Address>().unwrap();
        let wire = context.connections.insert(|key| {
            let bits = RUNNING | OWNED | CONNECTED;
            Shared::open(Arc::clone(&context), key, 1, socket, peer_address, bits)
        });
        let shared = Arc::clone(&wire.shared);
        let over = AtomicBool::new(false);
        (Arc::new(Self { shared, over }), peer)
    }

    /// Sends messages of one byte's value; how many were accepted.
    fn produce(self: &Arc<Self>, value: u8, messages: usize) -> thread::JoinHandle<usize> {
        let handle = ConnectionHandle::new(Arc::clone(&self.shared));
        thread::spawn(move || {
            let message = Bytes::from(vec![value; MESSAGE]);
            (0..messages)
                .map(|_| handle.send_bytes(message.clone()))
                .take_while(|sent| match sent {
                    Ok(n) => *n == MESSAGE,
                    // Only an abort may end this.
                    Err(error) => {
                        assert!(handle.state() > ConnectionState::Connected, "{error}");
                        false
                    }
                })
                .count()
        })
    }

    /// Reads like a peer and reports room like a poller, until all is over and read.
    fn consume(self: &Arc<Self>, mut peer: UnixStream) -> thread::JoinHandle<Vec<u8>> {
        let link = Arc::clone(self);
        thread::spawn(move || {
            let mut got = Vec::new();
            let mut piece = vec![0; MESSAGE];
            loop {
                let last = link.over.load(Ordering::Acquire);
                let shared = &link.shared;
                match peer.read(&mut piece) {
                    // An abort is on the wire at once.
                    Ok(0) => return got,
                    Ok(n) => got.extend_from_slice(&piece[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        if last && shared.outbox.queued() == 0 {
                            return got;
                        }
                    }
                    Err(e) => panic!("{e}"),
                }
                // The operator's part.
                if shared.word.set(WRITABLE) & QUEUED != 0 {
                    if let Some(socket) = shared.socket() {
                        shared.drive(&socket);
                    }
                }
                thread::yield_now();
            }
        })
    }
}

impl Drop for Link {
    /// The table, the context and the connection hold each other.
    fn drop(&mut self) {
        self.shared.drop_socket();
        self.shared.context.connections.remove(&self.shared);
    }
}

/// How many messages begin in what was received: no two are mixed, none is cut in the middle.
fn whole_messages(got: &[u8]) -> usize {
    for message in got.chunks(MESSAGE) {
        assert!(message.iter().all(|b| *b == message[0]), "mixed messages");
    }
    got.len().div_ceil(MESSAGE)
}

#[test]
fn shuttle_blocked_producers_go_on_when_there_is_room() {
    check_schedules(|| {
        let (link, peer) = Link::new();
        let consumer = link.consume(peer);
        let producers: Vec<_> = (1..=3).map(|value| link.produce(value, 3)).collect();
        let accepted: usize = producers.into_iter().map(|t| t.join().unwrap()).sum();
        link.over.store(true, Ordering::Release);
        let got = consumer.join().unwrap();
        assert_eq!(accepted, 9);
        assert_eq!(got.len(), 9 * MESSAGE);
        assert_eq!(whole_messages(&got), 9);
        assert_eq!(link.shared.outbox.lost().bytes, 0);
    });
}

#[test]
fn shuttle_interrupts_of_blocked_producers_cost_no_message() {
    check_schedules(|| {
        let (link, peer) = Link::new();
        let consumer = link.consume(peer);
        let producers: Vec<_> = (1..=2)
            .map(|value| {
                let handle = ConnectionHandle::new(Arc::clone(&link.shared));
                thread::spawn(move || {
                    let message = Bytes::from(vec![value; MESSAGE]);
                    for _ in 0..3 {
                        while let Err(error) = handle.send_bytes(message.clone()) {
                            assert_eq!(Error::from_io(&error), Some(Error::Interrupted));
                        }
                    }
                    while let Err(error) = handle.flush() {
                        assert_eq!(Error::from_io(&error), Some(Error::Interrupted));
                    }
                })
            })
            .collect();
        let handle = ConnectionHandle::new(Arc::clone(&link.shared));
        let interrupter = thread::spawn(move || {
            for _ in 0..3 {
                handle.interrupt();
                thread::yield_now();
            }
        });
        producers.into_iter().for_each(|t| t.join().unwrap());
        interrupter.join().unwrap();
        link.over.store(true, Ordering::Release);
        let got = consumer.join().unwrap();
        assert_eq!(got.len(), 6 * MESSAGE);
        assert_eq!(whole_messages(&got), 6);
        assert_eq!(link.shared.outbox.lost().bytes, 0);
    });
}

/// One interrupt for a thread that is about to wait, or waits: it is told.
#[test]
fn shuttle_an_interrupt_is_never_lost() {
    check_schedules(|| {
        let (link, _peer) = Link::new();
        let handle = ConnectionHandle::new(Arc::clone(&link.shared));
        // More than the socket takes; the peer reads nothing.
        let bytes = Bytes::from(vec![1; 64 * MESSAGE]);
        assert_eq!(handle.send_bytes(bytes).unwrap(), 64 * MESSAGE);
        let other = handle.clone();
        let interrupter = thread::spawn(move || other.interrupt());
        let error = handle.flush().unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::Interrupted));
        interrupter.join().unwrap();
        assert!(!handle.clear_interrupts());
    });
}

#[test]
fn shuttle_an_abort_frees_every_blocked_producer() {
    check_schedules(|| {
        let (link, peer) = Link::new();
        let producers: Vec<_> = (1..=3).map(|value| link.produce(value, 4)).collect();
        let closer = {
            let handle = ConnectionHandle::new(Arc::clone(&link.shared));
            thread::spawn(move || handle.abort())
        };
        closer.join().unwrap();
        // Nobody reads: who is blocked is freed by the abort, or waits for ever.
        let accepted: usize = producers.into_iter().map(|t| t.join().unwrap()).sum();
        link.over.store(true, Ordering::Release);
        let got = link.consume(peer).join().unwrap();
        whole_messages(&got);
        // Accepted is sent or counted as lost; a call that failed may have sent a part.
        let lost = link.shared.outbox.lost().bytes as usize;
        assert!(
            got.len() + lost >= accepted * MESSAGE,
            "{accepted} accepted"
        );
        assert!(got.len() + lost <= (accepted + 3) * MESSAGE);
        assert_eq!(link.shared.outbox.queued(), 0);
    });
}
