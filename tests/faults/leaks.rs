//! What is reported with `--cfg netpoll_leaks`. The list is the process's, so the tests take turns.

use netpoll::{
    Bytes, Connection, ConnectionHandle, Dialer, EventLoop, LinkBuffer, Listener, PendingReply,
    Pool, handler_fn,
    leak::{self, Kind, Leak},
};
use parking_lot::{Mutex, MutexGuard};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(30);

/// A server whose handler may keep things; nothing is alive before it, and nothing after.
struct Server {
    events: EventLoop,
    address: SocketAddr,
    _turn: MutexGuard<'static, ()>,
}

impl Server {
    fn start(handler: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let turn = crate::TURN.lock();
        assert_eq!(leak::report().len(), 0, "{:?}", leak::report());
        let events = EventLoop::new(handler_fn(handler)).unwrap();
        let listener = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
        let address = listener.local_addr().unwrap().as_socket_addr().unwrap();
        events.serve_in_background(listener).unwrap();
        Self {
            events,
            address,
            _turn: turn,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    #[track_caller]
    fn stop(self) {
        self.events.shutdown(LIMIT).unwrap();
        wait_for(|leaks| leaks.is_empty());
    }
}

/// The pollers close descriptors in their own time.
#[track_caller]
fn wait_for(wanted: impl Fn(&[Leak]) -> bool) -> Vec<Leak> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let leaks = leak::report();
        if wanted(&leaks) {
            return leaks;
        }
        assert!(Instant::now() < deadline, "{leaks:#?}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
fn only(kind: Kind) -> Leak {
    let mut found: Vec<_> = leak::report()
        .into_iter()
        .filter(|leak| leak.kind() == kind)
        .collect();
    assert_eq!(found.len(), 1, "{:?}", leak::report());
    found.remove(0)
}

fn echo(conn: &mut Connection) -> io::Result<()> {
    let all = conn.slice(conn.available())?;
    conn.append(all)?;
    conn.flush()
}

#[test]
fn nothing_is_reported_after_a_clean_run() {
    let server = Server::start(|conn| {
        let view = conn.next_bytes(conn.available())?;
        let handle = conn.handle();
        let _hold = handle.hold();
        handle.send_bytes(view).map(drop)
    });
    let pool = Pool::new(Dialer::new());
    let address = server.address.into();
    for size in [1, 600, 5000, 100_000] {
        let data = vec![size as u8; size];
        let mut back = vec![0; size];
        let mut peer = server.connect();
        peer.write_all(&data).unwrap();
        peer.read_exact(&mut back).unwrap();
        assert!(back == data);
        let mut conn = pool.get(&address).unwrap();
        conn.write_slice(&data).unwrap();
        conn.flush().unwrap();
        assert!(conn.next_bytes(size).unwrap() == data);
    }
    pool.close();
    server.stop();
}

#[inline(never)]
fn keeps_a_connection(address: SocketAddr) -> Connection {
    Dialer::new().dial_connection(address).unwrap()
}

#[test]
fn a_kept_connection_is_reported_with_the_place_where_it_was_dialled() {
    let server = Server::start(echo);
    let kept = keeps_a_connection(server.address);
    let leaks = wait_for(|leaks| {
        let described = |leak: &&Leak| leak.kind() == Kind::Connection && !leak.note().is_empty();
        leaks.iter().filter(described).count() == 2
    });
    let ours = format!("of connection #{} with {}", kept.id(), server.address);
    let found: Vec<_> = leaks.iter().filter(|leak| leak.note() == ours).collect();
    assert_eq!(found.len(), 1, "{leaks:?}");
    let text = found[0].to_string();
    assert!(text.contains("keeps_a_connection"), "{text}");
    assert!(text.contains(&ours), "{text}");
    assert_eq!(found[0].thread(), thread::current().name());
    drop(kept);
    server.stop();
}

#[inline(never)]
fn keeps_memory(conn: &mut Connection) -> io::Result<Option<(Bytes, LinkBuffer)>> {
    if !conn.try_fill(10_000)? {
        return Ok(None);
    }
    Ok(Some((conn.next_bytes(5000)?, conn.slice(5000)?)))
}

#[test]
fn what_a_handler_keeps_of_a_message_is_reported() {
    let kept = Arc::new(Mutex::new(None));
    let keeper = Arc::clone(&kept);
    let server = Server::start(move |conn| {
        if let Some(memory) = keeps_memory(conn)? {
            *keeper.lock() = Some(memory);
            conn.write_slice(b"!")?;
        }
        conn.flush()
    });
    let mut peer = server.connect();
    peer.write_all(&[9; 10_000]).unwrap();
    peer.read_exact(&mut [0]).unwrap();
    drop(peer);
    for kind in [Kind::View, Kind::Slice] {
        let found = only(kind);
        assert_eq!(found.bytes(), 5000);
        // A chunk to receive into is much larger than what is kept of it.
        assert!(found.pinned() >= 10_000, "{found:?}");
        assert!(found.backtrace().to_string().contains("keeps_memory"));
    }
    // The connection is over, what was kept of it is not.
    wait_for(|leaks| leaks.len() == 2);
    let (view, slice) = kept.lock().take().unwrap();
    assert_eq!((&view[..], slice.len()), (&[9; 5000][..], 5000));
    drop((view, slice));
    server.stop();
}

#[inline(never)]
fn keeps_a_handle(conn: &Connection) -> ConnectionHandle {
    conn.handle()
}

#[inline(never)]
fn keeps_a_hold(handle: &ConnectionHandle) -> PendingReply {
    handle.hold()
}

#[test]
fn handles_and_holds_are_reported_each_where_it_was_made() {
    let kept = Arc::new(Mutex::new(None));
    let keeper = Arc::clone(&kept);
    let server = Server::start(move |conn| {
        let mut kept = keeper.lock();
        if kept.is_none() {
            let handle = keeps_a_handle(conn);
            let hold = keeps_a_hold(&handle);
            *kept = Some((handle, hold));
        }
        drop(kept);
        echo(conn)
    });
    let mut peer = server.connect();
    peer.write_all(b"x").unwrap();
    peer.read_exact(&mut [0]).unwrap();
    let held = wait_for(|leaks| leaks.len() == 3);
    let place = |kind| {
        let found = held.iter().find(|leak| leak.kind() == kind);
        found.unwrap().backtrace().to_string()
    };
    assert!(place(Kind::Handle).contains("keeps_a_handle"));
    assert!(place(Kind::PendingReply).contains("keeps_a_hold"));

    // The hold keeps the half-closed connection open.
    peer.shutdown(Shutdown::Write).unwrap();
    let (handle, hold) = kept.lock().take().unwrap();
    let clone = handle.clone();
    drop(handle);
    assert_eq!(only(Kind::Handle).note(), only(Kind::Connection).note());
    drop(hold);
    peer.read_to_end(&mut Vec::new()).unwrap();
    drop(peer);
    // The clone keeps no descriptor.
    let rest = wait_for(|leaks| leaks.len() == 1);
    assert_eq!(rest[0].kind(), Kind::Handle);
    let place = rest[0].backtrace().to_string();
    assert!(place.contains("handles_and_holds_are_reported"), "{place}");
    drop(clone);
    server.stop();
}
