//! The library in the destructor of a thread-local value: its own thread-locals are gone by then, and
//! everything works all the same.

use crate::support::{Case, Kind, LIMIT, Log, Server, Transport, bounded, echo, frame};
use netpoll::{Connection, Dialer, EventLoop, LinkBuffer, Pool};
use std::{
    cell::RefCell,
    io::{self, Write},
    thread,
};

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// Runs when its thread's values are dropped.
struct Last(Option<Box<dyn FnOnce()>>);

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(last) = self.0.take() {
            last();
        }
    }
}

/// Runs `first` on a thread, and what it returns as the last thing on that thread, when all values are
/// gone that the library had for it.
fn at_the_end<F: FnOnce() + 'static>(first: impl FnOnce() -> F + Send + 'static) {
    let thread = thread::spawn(|| {
        // Values are dropped in the reverse order of their first use.
        LAST.with(|_| {});
        LAST.set(Some(Last(None)));
        let last = first();
        LAST.with_borrow_mut(|slot| slot.as_mut().unwrap().0 = Some(Box::new(last)));
    });
    thread.join().unwrap();
}

fn dialer() -> Dialer {
    Dialer::new()
        .connect_timeout(LIMIT)
        .read_timeout(LIMIT)
        .write_timeout(LIMIT)
}

/// A frame and its echo.
fn call(conn: &mut Connection, body: &[u8]) -> io::Result<Vec<u8>> {
    conn.write_slice(&frame(body))?;
    conn.flush()?;
    let got = conn.next(4 + body.len())?;
    Ok(got[4..].to_vec())
}

/// Small, filling a chunk, of known length and more than one receive.
const SIZES: [usize; 4] = [5, 70_000, 300_000, 2 << 20];

fn calls(conn: &mut Connection) {
    for size in SIZES {
        let body = vec![size as u8; size];
        assert!(call(conn, &body).unwrap() == body, "{size}");
    }
    // Many at once, so that receives are filled.
    conn.write_slice(&frame(&[7; 1000]).repeat(200)).unwrap();
    conn.flush().unwrap();
    for _ in 0..200 {
        assert_eq!(conn.next(1004).unwrap()[4..], [7; 1000]);
    }
}

/// A test with a server, whose results are what it logs.
fn with_server(
    test: impl FnOnce(Server, &Log<&'static str>) + Send + 'static,
    expected: &'static [&'static str],
) {
    bounded("the end of a thread", move || {
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let log = Log::new();
        test(case.serve(echo()), &log);
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn a_connection_is_used_and_closed() {
    with_server(
        |server, log| {
            let (log, mut conn) = (log.clone(), server.dial());
            at_the_end(move || {
                calls(&mut conn);
                move || {
                    calls(&mut conn);
                    conn.write_str("unflushed").unwrap();
                    drop(conn);
                    log.push("closed");
                }
            });
            server.stop();
        },
        &["closed"],
    );
}

#[test]
fn a_pool_is_used_and_dialled_for() {
    with_server(
        |server, log| {
            let (log, address) = (log.clone(), server.address.clone());
            at_the_end(move || {
                let pool = Pool::new(dialer());
                calls(&mut pool.get(&address).unwrap());
                move || {
                    calls(&mut pool.get(&address).unwrap());
                    let (mut first, mut second) =
                        (pool.get(&address).unwrap(), pool.get(&address).unwrap());
                    calls(&mut first);
                    calls(&mut second);
                    log.push("pooled");
                }
            });
            server.stop();
        },
        &["pooled"],
    );
}

#[test]
fn a_handler_s_connection_is_sent_on_and_waited_for() {
    with_server(
        |server, log| {
            let (log, address) = (log.clone(), server.address.clone());
            at_the_end(move || {
                let got = Log::new();
                let seen = got.clone();
                let handle = dialer()
                    .dial_with(
                        address,
                        netpoll::handler_fn(move |conn| {
                            seen.push(conn.next_bytes(conn.available())?);
                            Ok(())
                        }),
                    )
                    .unwrap();
                move || {
                    handle.send(LinkBuffer::from(frame(b"hello"))).unwrap();
                    handle.flush().unwrap();
                    got.wait("the echo", |got| got.concat() == frame(b"hello"));
                    handle.close();
                    handle.done().wait().unwrap();
                    log.push("done");
                }
            });
            server.stop();
        },
        &["done"],
    );
}

#[test]
fn a_loop_is_made_served_and_ended() {
    with_server(
        |server, log| {
            let log = log.clone();
            at_the_end(move || {
                move || {
                    let own = EventLoop::builder().pollers(1).build(echo()).unwrap();
                    let own = Server::serve(Transport::Tcp, own);
                    let mut peer = own.connect();
                    peer.ping(b"hello");
                    drop(peer);
                    own.stop();
                    log.push("ended");
                    server.stop();
                    log.push("the other too");
                }
            });
        },
        &["ended", "the other too"],
    );
}

#[test]
fn buffers_are_filled_and_dropped() {
    bounded("buffers", || {
        let log = Log::new();
        let done = log.clone();
        at_the_end(move || {
            let mut kept = LinkBuffer::new();
            kept.write_slice(&[1; 100_000]);
            move || {
                kept.flush();
                let mut more = LinkBuffer::new();
                more.write_all(&[2; 100_000]).unwrap();
                more.flush();
                more.append(kept);
                more.flush();
                assert_eq!(more.next(200_000).unwrap()[99_999..100_001], [2, 1]);
                done.push("dropped");
            }
        });
        assert_eq!(log.take(), ["dropped"]);
    });
}
