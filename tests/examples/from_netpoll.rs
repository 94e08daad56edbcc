//! What `docs/from-netpoll.md` says takes the place of the Go library's items is there: this file uses
//! every name of the columns that say so, and a test looks that none was left out.

use netpoll::{
    Address, Balance, CloseReason, Connection, ConnectionEvent, ConnectionHandle, Decoder,
    Delimited, Dialer, Dispatch, DispatchTask, Encoder, Error, EventLoop, Executor, FixedLength,
    Handler, LengthField, LinkBuffer, Listener, OnFull, PollerGroup, Pool, Reader, SocketOptions,
    Writer,
    bytes::{Buf, Bytes},
    event_fn, framed, handler_fn,
    linkbuffer::{ChunkPool, IoReader, IoWriter},
    poller::{
        Budget, Interest, Operator, PollerHandle, Progress, Readiness, Registration, WorkerPool,
        wait_ready,
    },
    relay,
};
use std::{
    collections::BTreeSet,
    io::{self, BufRead, IoSlice, Read, Write},
    net::{Shutdown, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::{Duration, Instant},
};

const TIME: Duration = Duration::from_secs(1);

/// What stands between backticks and is no name of an item.
const NO_NAMES: [&str; 25] = [
    "HOST",
    "IPV6",
    "N",
    "PORT",
    "ZONE",
    "b",
    "build",
    "delim",
    "fd",
    "global",
    "handle",
    "handler",
    "linkbuffer",
    "mut",
    "n",
    "name",
    "net",
    "netpoll",
    "os",
    "p",
    "path",
    "std",
    "trait",
    "try_",
    "what",
];

/// The words of code in the second column of every table.
fn names(document: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in document.lines().filter(|line| line.starts_with("| ")) {
        let Some(cell) = line.split(" | ").nth(1) else {
            continue;
        };
        for span in cell.split('`').skip(1).step_by(2) {
            let words = span.split(|c: char| !c.is_alphanumeric() && c != '_');
            names.extend(words.filter(|word| !word.is_empty()).map(str::to_owned));
        }
    }
    names
}

#[test]
fn every_name_of_the_document_is_used_here() {
    let named = names(include_str!("../../docs/from-netpoll.md"));
    assert!(named.len() > 150, "{named:?}");
    // Everything but this function and the list above, whose words would count for themselves.
    let source = include_str!("from_netpoll.rs");
    let (_, uses) = source.split_once("// ---- uses").expect("a mark");
    let used: BTreeSet<&str> = uses
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .collect();
    let missing: Vec<_> = named
        .iter()
        .map(String::as_str)
        .filter(|name| !used.contains(name) && !NO_NAMES.contains(name))
        .collect();
    assert!(missing.is_empty(), "nothing uses {missing:?}");
}

#[test]
fn a_timeout_of_zero_has_passed() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut conn = Dialer::new().adopt(ours).unwrap();
    conn.set_read_timeout(Some(Duration::ZERO));
    let error = conn.next(1).unwrap_err();
    assert_eq!(Error::from_io(&error), Some(Error::ReadTimeout));
}

#[test]
fn an_idle_timeout_ends_a_wait_of_an_owner() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut conn = Dialer::new().adopt(ours).unwrap();
    conn.set_idle_timeout(Some(Duration::from_millis(30)));
    let error = conn.next(1).unwrap_err();
    let idle = Error::Closed(CloseReason::IdleTimeout);
    assert_eq!(Error::from_io(&error), Some(idle));
}

#[test]
fn what_is_not_there_is_an_error_of_a_buffer() {
    let mut buffer = LinkBuffer::from(&b"half"[..]);
    assert_eq!(
        buffer.next(5).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    assert_eq!(buffer.try_until(b'\n').unwrap(), None);
    assert_eq!(Reader::try_peek(&mut buffer, 5).unwrap(), None);
    assert_eq!(Reader::available(&buffer), 4);
}

#[test]
fn a_callback_hijacks_before_it_detaches() {
    let (told, heard) = std::sync::mpsc::channel();
    let server = EventLoop::new(handler_fn(move |conn| {
        let all = conn.next(conn.available())?.len();
        let (fd, rest) = conn.hijack()?.detach()?;
        told.send((all, rest.len())).unwrap();
        drop(fd);
        Ok(())
    }))
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    server.serve_in_background(listener).unwrap();
    peer.write_all(b"hello").unwrap();
    assert_eq!(heard.recv_timeout(TIME * 30).unwrap(), (5, 0));
    server.shutdown(TIME * 30).unwrap();
}

// ---- uses: compiled and never called

#[allow(dead_code)]
struct Callbacks;

impl Handler for Callbacks {
    type State = ();

    fn on_prepare(&self, conn: &mut Connection) -> io::Result<()> {
        conn.set_value(1_u32);
        Ok(())
    }

    fn on_connect(&self, conn: &mut Connection) -> io::Result<()> {
        let value: Option<u32> = conn.take_value();
        println!("{value:?}");
        Ok(())
    }

    fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
        conn.set_handler(Self)
    }

    fn on_write_complete(&self, _: &ConnectionHandle) {}

    fn on_disconnect_from(&self, conn: &ConnectionHandle, state: (), reason: CloseReason) {
        println!("{}", conn.peer_addr());
        self.on_disconnect(state, reason);
    }

    fn on_disconnect(&self, state: (), reason: CloseReason) {
        let () = state;
        println!("{reason}");
    }
}

#[allow(dead_code)]
struct OwnThreads;

impl Executor for OwnThreads {
    fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
        task.run();
        Ok(())
    }
}

#[allow(dead_code)]
fn server(group: &PollerGroup, grace: Duration) -> io::Result<()> {
    let dispatches = [
        Dispatch::Adaptive,
        Dispatch::Inline,
        Dispatch::Workers {
            max: 1,
            keep_alive: TIME,
        },
        Dispatch::Custom(Arc::new(OwnThreads)),
    ];
    let [dispatch, ..] = dispatches;
    let (idle, interval, retries) = (TIME, TIME, 3);
    let options = SocketOptions::new().keepalive(idle, interval, retries);
    let server = EventLoop::builder()
        .pollers(1)
        .balance(Balance::LeastRegistered)
        .dispatch(dispatch)
        .max_connections(1)
        .input_limits(1, 1)
        .output_limit(1, OnFull::Error)
        .output_messages(1)
        .linger(TIME, 1)
        .half_open(true)
        .socket(options)
        .read_timeout(TIME)
        .write_timeout(TIME)
        .idle_timeout(TIME)
        .build(Callbacks)?;
    for balance in [Balance::RoundRobin, Balance::Random] {
        let builder: netpoll::EventLoopBuilder = EventLoop::builder();
        let _ = EventLoop::builder().balance(balance);
        builder.pollers(group.clone()).build(event_fn(|_, event| {
            assert_eq!(event, ConnectionEvent::Connected);
            Ok(())
        }))?;
    }
    let path = Address::from(std::path::PathBuf::from("/path"));
    let listener = Listener::bind(path)?;
    let bound = listener.local_addr()?;
    let fd: OwnedFd = Into::<OwnedFd>::into(listener);
    let listener = <Listener as TryFrom<OwnedFd>>::try_from(fd)?;
    let _: BorrowedFd<'_> = listener.as_fd();
    server.serve(listener)?;
    server.serve(<Listener as From<TcpListener>>::from(TcpListener::bind(
        "127.0.0.1:0",
    )?))?;
    server.serve(<Listener as From<UnixListener>>::from(UnixListener::bind(
        "/path",
    )?))?;
    server.serve_in_background(Listener::builder().bind(bound)?)?;
    server.stats();
    server.stop_accepting();
    server.shutdown_forced(grace)?;
    assert!(server.is_shutting_down());
    server.shutdown(grace)
}

#[cfg(feature = "signals")]
#[allow(dead_code)]
fn signals(server: &EventLoop) -> io::Result<()> {
    netpoll::shutdown_on(server, &[netpoll::SIGTERM], TIME).map(drop)
}

/// Levels and targets of log lines: the feature.
#[cfg(feature = "tracing")]
#[allow(dead_code)]
fn tracing() {}

#[allow(dead_code)]
fn client(address: Address, unix: UnixStream) -> io::Result<()> {
    let dialer = Dialer::new().local_addr(address.clone());
    let conn = dialer.dial_connection(address.clone())?;
    dialer.dial_with(address.clone(), handler_fn(|_| Ok(())))?;
    dialer.start_with(address.clone(), handler_fn(|_| Ok(())), drop)?;
    dialer.start_connection(address.clone(), drop)?;
    let (one, _pair) = UnixStream::pair()?;
    let other = dialer.adopt(one)?;
    let attached: ConnectionHandle = dialer.adopt(unix)?.attach(Callbacks)?;
    attached.abort();
    relay(conn, Pool::new(dialer).get(&address)?)?;
    let (_read, _write) = other.into_split();
    Ok(())
}

#[allow(dead_code)]
fn connection(conn: &mut Connection) -> io::Result<()> {
    conn.is_active();
    conn.is_shutting_down();
    conn.handle().interrupt();
    conn.set_read_timeout(None);
    conn.set_write_timeout(None);
    conn.set_read_deadline(Some(Instant::now()));
    conn.set_write_deadline(None);
    conn.set_idle_timeout(None);
    conn.set_output_limit(1, OnFull::Close);
    conn.set_output_messages(1);
    conn.local_addr()?;
    conn.peer_addr();
    conn.on_close(|_| ());
    conn.state();
    conn.stats();
    AsFd::as_fd(conn);
    conn.shutdown(Shutdown::Write)?;
    let (_, _) = conn.split();
    let handle: ConnectionHandle = conn.handle();
    handle.on_close(|_| ());
    handle.done();
    let held: netpoll::PendingReply = handle.hold();
    drop(held);
    handle.send(LinkBuffer::new())?;
    handle.try_send(LinkBuffer::new())?;
    handle.send_bytes(Bytes::new())?;
    handle.flush()?;
    handle.close();
    handle.abort();
    let (fd, rest): (OwnedFd, LinkBuffer) = conn.hijack()?.detach()?;
    drop((fd, rest));
    conn.hijack()?.close()
}

#[allow(dead_code)]
fn reading(conn: &mut Connection, reader: &mut dyn Reader) -> io::Result<()> {
    conn.next(1)?;
    conn.next_bytes(1)?;
    conn.peek(1)?;
    conn.skip(1)?;
    conn.until(b'\n')?;
    conn.try_until(b'\n')?;
    conn.read_string(1)?;
    conn.read_vec(1)?;
    conn.read_u8()?;
    conn.slice(1)?;
    conn.available();
    conn.fill(1)?;
    conn.read_line(1)?;
    conn.read_at_least(&mut [0], 1)?;
    conn.is_read_closed();
    Read::read(conn, &mut [0])?;
    reader.fill(1)
}

#[allow(dead_code)]
fn writing(conn: &mut Connection, writer: &mut dyn Writer) -> io::Result<()> {
    conn.malloc(1)?;
    conn.malloc_ack(1)?;
    conn.malloc_len();
    let slot = conn.reserve_slot::<4>()?;
    conn.fill_slot(slot, [0; 4])?;
    conn.write_bytes(Bytes::new())?;
    conn.write_slice(&[])?;
    conn.write_str("")?;
    conn.write_u8(0)?;
    let remain = 0;
    conn.write_direct(Bytes::new(), remain)?;
    conn.append(LinkBuffer::new())?;
    conn.write_vectored(&[IoSlice::new(&[])])?;
    conn.flush()?;
    conn.flush_and_wait()?;
    conn.try_flush()?;
    Write::write(conn, &[])?;
    writer.flush()
}

#[allow(dead_code)]
fn buffers() -> io::Result<()> {
    let pool = ChunkPool::with_retain(1);
    let mut buffer = LinkBuffer::with_pool(&pool);
    buffer.push_front(LinkBuffer::with_capacity(1));
    let _ = LinkBuffer::new();
    let _ = buffer.chunks();
    buffer.io_slices(&mut [IoSlice::new(&[])]);
    buffer.is_empty();
    buffer.len();
    buffer.reserve_recv(1);
    buffer.compact();
    buffer.memory_size();
    buffer.write_with(1, |_| ());
    buffer.release();
    Buf::remaining(&buffer);
    BufRead::fill_buf(&mut buffer)?;
    IoReader::new(io::empty());
    IoWriter::new(io::sink());
    Ok(())
}

#[allow(dead_code)]
fn framing(mut reader: LinkBuffer, mut writer: LinkBuffer) -> io::Result<()> {
    let mut fixed = FixedLength::new(4);
    let _: Option<Bytes> = Decoder::decode(&mut fixed, &mut reader)?;
    Encoder::encode(&LengthField::new(4), &mut writer, Bytes::new())?;
    let _handler = framed(Delimited::lines(1), |_, _: Bytes| Ok(()));
    Ok(())
}

#[allow(dead_code)]
fn errors(error: &io::Error) -> Option<()> {
    let _ = error.raw_os_error();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    match Error::from_io(error)? {
        Error::Closed(CloseReason::Local) | Error::ReadTimeout | Error::DialTimeout => {}
        Error::WriteTimeout { sent, queued } => assert!(sent < queued),
        Error::PeerClosed { wanted, available } => assert!(wanted > available),
        Error::Unsupported(_) | Error::Poisoned | Error::Overloaded | Error::Interrupted => {}
        Error::InputLimit { .. } | Error::OutputFull { .. } => {}
        Error::PoolExhausted | Error::ShuttingDown | Error::ShutdownIncomplete { .. } => {}
        Error::WouldDeadlock | Error::SelfConnect | Error::InvalidAddress(_) => {}
        Error::ShutdownCut { .. } => {}
        _ => {}
    }
    let _: Result<Address, _> = "unix:@name".parse();
    Some(())
}

/// A descriptor of one's own at a poller.
#[allow(dead_code)]
struct Watched(UnixStream);

impl Operator for Watched {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn on_ready(&self, _: Readiness, budget: &mut Budget<'_>) -> Progress {
        budget.set_timer(None);
        budget.request_run();
        Progress::Drained
    }

    fn run(&self) -> Progress {
        Progress::Drained
    }

    fn on_detached(&self) {}
}

#[allow(dead_code)]
fn poller(operator: UnixStream) -> io::Result<()> {
    PollerGroup::global()?;
    let group = PollerGroup::builder().pollers(1).build()?;
    wait_ready(operator.as_fd(), Interest::READ, None)?;
    let registered: Registration = group.register(Arc::new(Watched(operator)), Interest::READ)?;
    registered.wake();
    registered.set_interest(Interest::WRITE)?;
    let handle: &PollerHandle = registered.poller();
    handle.schedule(Instant::now(), || ());
    registered.detach();
    let _: Option<WorkerPool> = None;
    group.stats();
    group.health()?;
    group.close();
    Ok(())
}
