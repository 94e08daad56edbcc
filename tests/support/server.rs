//! Servers under test, under every dispatch and over every transport.

use super::{LIMIT, Log, Peer, loopback};
use netpoll::{
    Address, Connection, ConnectionHandle, Dialer, Dispatch, DispatchTask, EventLoop,
    EventLoopBuilder, Executor, Handler, Listener, PollerGroup,
};
use std::{
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

/// How connections are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
}

/// Where callbacks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Adaptive,
    Workers,
    OneWorker,
    Inline,
    Custom,
}

impl Kind {
    pub(crate) fn dispatch(self) -> Dispatch {
        match self {
            Self::Adaptive => Dispatch::Adaptive,
            Self::Workers => Dispatch::Workers {
                max: 16,
                keep_alive: Duration::from_secs(5),
            },
            Self::OneWorker => Dispatch::Workers {
                max: 1,
                keep_alive: Duration::from_secs(5),
            },
            Self::Inline => Dispatch::Inline,
            Self::Custom => Dispatch::Custom(Arc::new(Threads::new(8))),
        }
    }
}

/// One line of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) transport: Transport,
    pub(crate) kind: Kind,
}

impl Case {
    pub(crate) const fn new(transport: Transport, kind: Kind) -> Self {
        Self { transport, kind }
    }

    /// A loop with one poller and this case's dispatch.
    pub(crate) fn builder(self) -> EventLoopBuilder {
        EventLoop::builder()
            .pollers(1)
            .dispatch(self.kind.dispatch())
    }

    /// A loop with default options, served in the background.
    #[track_caller]
    pub(crate) fn serve(self, handler: impl Handler) -> Server {
        self.serve_with(self.builder(), handler)
    }

    #[track_caller]
    pub(crate) fn serve_with(self, builder: EventLoopBuilder, handler: impl Handler) -> Server {
        Server::start(self.transport, builder, handler)
    }
}

/// Runs a test over TCP and unix sockets and under every dispatch.
#[track_caller]
pub(crate) fn every(test: impl Fn(Case) + Send + Sync + 'static) {
    let kinds = [
        Kind::Adaptive,
        Kind::Workers,
        Kind::OneWorker,
        Kind::Inline,
        Kind::Custom,
    ];
    matrix(&[Transport::Tcp, Transport::Unix], &kinds, test);
}

/// As [`every`], for handlers that block: without `Inline`.
#[track_caller]
pub(crate) fn every_blocking(test: impl Fn(Case) + Send + Sync + 'static) {
    let kinds = [Kind::Adaptive, Kind::Workers, Kind::OneWorker, Kind::Custom];
    matrix(&[Transport::Tcp, Transport::Unix], &kinds, test);
}

/// Under every dispatch, over TCP only.
#[track_caller]
pub(crate) fn on_tcp(kinds: &[Kind], test: impl Fn(Case) + Send + Sync + 'static) {
    matrix(&[Transport::Tcp], kinds, test);
}

fn matrix(transports: &[Transport], kinds: &[Kind], test: impl Fn(Case) + Send + Sync + 'static) {
    let test = Arc::new(test);
    for &transport in transports {
        for &kind in kinds {
            let case = Case { transport, kind };
            let test = Arc::clone(&test);
            bounded(&format!("{case:?}"), move || test(case));
        }
    }
}

/// Runs `test` on a thread of its own and fails if it does not end.
#[track_caller]
pub(crate) fn bounded(what: &str, test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let runner = thread::Builder::new()
        .name(what.to_owned())
        .spawn(move || {
            test();
            let _ = done.send(());
        })
        .unwrap();
    match ended.recv_timeout(LIMIT * 4) {
        Ok(()) => runner.join().unwrap(),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let payload = runner.join().unwrap_err();
            eprintln!("failed in: {what}");
            resume_unwind(payload);
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs in: {what}"),
    }
}

/// A loop that is being served.
pub(crate) struct Server {
    pub(crate) event_loop: EventLoop,
    pub(crate) address: Address,
}

impl Server {
    #[track_caller]
    pub(crate) fn start(
        transport: Transport,
        builder: EventLoopBuilder,
        handler: impl Handler,
    ) -> Self {
        Self::serve(transport, builder.build(handler).unwrap())
    }

    /// Serves in the background, so that connections are accepted from here on.
    #[track_caller]
    pub(crate) fn serve(transport: Transport, event_loop: EventLoop) -> Self {
        let listener = listener(transport);
        let address = listener.local_addr().unwrap();
        event_loop.serve_in_background(listener).unwrap();
        Self {
            event_loop,
            address,
        }
    }

    /// A plain peer.
    #[track_caller]
    pub(crate) fn connect(&self) -> Peer {
        Peer::connect(&self.address).expect("the server listens")
    }

    /// A plain peer and the other end's handle, of a server whose script is
    /// [`giving`](super::giving) and whose earlier handles were taken.
    #[track_caller]
    pub(crate) fn connect_given(
        &self,
        handles: &Log<ConnectionHandle>,
    ) -> (Peer, ConnectionHandle) {
        let peer = self.connect();
        let mut given = handles.wait_len(1);
        handles.take();
        assert_eq!(given.len(), 1, "of this connection only");
        (peer, given.remove(0))
    }

    /// A client of the library.
    #[track_caller]
    pub(crate) fn dial(&self) -> Connection {
        let dialer = Dialer::new()
            .connect_timeout(LIMIT)
            .read_timeout(LIMIT)
            .write_timeout(LIMIT);
        dialer
            .dial_connection(self.address.clone())
            .expect("the server listens")
    }

    /// Ends the loop in order: everything is over when this returns.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.event_loop.shutdown(LIMIT).expect("the loop drains");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After a failure; otherwise everything is over.
        let _ = self.event_loop.shutdown_forced(Duration::from_millis(100));
    }
}

/// A group in which one thread does everything: one at most keeps a chunk to receive into.
pub(crate) fn one_thread() -> PollerGroup {
    PollerGroup::builder()
        .pollers(1)
        .max_threads(1)
        .build()
        .unwrap()
}

/// A listener of its own.
#[track_caller]
pub(crate) fn listener(transport: Transport) -> Listener {
    match transport {
        Transport::Tcp => Listener::bind((loopback(), 0)).unwrap(),
        Transport::Unix => Listener::bind(fresh_path()).unwrap(),
    }
}

/// A path for a socket that nobody else uses.
pub(crate) fn fresh_path() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("netpoll-test-{}-{n}.sock", std::process::id()))
}

/// A fixed number of threads that run tasks in order.
pub(crate) struct Threads {
    tasks: Mutex<Option<mpsc::Sender<DispatchTask>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn new(count: usize) -> Self {
        let (sender, receiver) = mpsc::channel::<DispatchTask>();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..count)
            .map(|_| {
                let receiver = Arc::clone(&receiver);
                thread::Builder::new()
                    .name("custom-executor".into())
                    .spawn(move || {
                        loop {
                            let next = receiver.lock().unwrap().recv();
                            match next {
                                Ok(task) => task.run(),
                                Err(_) => return,
                            }
                        }
                    })
                    .unwrap()
            })
            .collect();
        Self {
            tasks: Mutex::new(Some(sender)),
            threads,
        }
    }
}

impl Executor for Threads {
    fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
        match &*self.tasks.lock().unwrap() {
            Some(sender) => sender.send(task).map_err(|unsent| unsent.0),
            None => Err(task),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.tasks.lock().unwrap().take();
        for thread in self.threads.drain(..) {
            // The last task may be what drops us.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
