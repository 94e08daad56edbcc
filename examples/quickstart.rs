//! A server and two kinds of clients in one process, over TCP and a unix socket.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```
//!
//! The server answers frames of a length, an id and a body. Blocking clients take a connection
//! from a pool for each call; the multiplexed client has many calls on its way over one
//! connection and tells their answers apart by id. Every answer is checked; at the end there is
//! a table of what it cost. Exits 1 with a message if anything was wrong.

#[path = "support/quickstart/allocations.rs"]
mod allocations;
#[path = "support/quickstart/codec.rs"]
mod codec;
#[path = "support/quickstart/multiplex.rs"]
mod multiplex;
#[path = "support/quickstart/report.rs"]
mod report;

use multiplex::Multiplex;
use netpoll::{
    Address, Bytes, Connection, Dialer, EventLoop, Handler, LinkBuffer, Listener, Pool, Reader,
};
use report::{Meter, Progress, Row};
use std::{
    env, io,
    path::PathBuf,
    process::{self, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Threads that make calls, in each part.
const CALLERS: u32 = 8;
/// Bytes of a body.
const BODY: usize = 1024;
/// How long a part is measured, after a tenth of that to warm up.
const PART: Duration = Duration::from_millis(1000);
/// How long one answer may take: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match quickstart() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nquickstart failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn quickstart() -> io::Result<()> {
    let server = EventLoop::builder().pollers(1).build(Echo)?;
    let listener = Listener::bind("127.0.0.1:0".parse::<Address>()?)?;
    let tcp = listener.local_addr()?;
    server.serve_in_background(listener)?;
    let listener = Listener::bind(Address::from(socket_path()))?;
    let unix = listener.local_addr()?;
    server.serve_in_background(listener)?;

    println!("serving {tcp} and {unix}; {CALLERS} callers, {BODY} bytes a call");
    let mut progress = Progress::new(4);
    let mut rows = Vec::new();
    for (name, address) in [("tcp", &tcp), ("unix", &unix)] {
        let pool = Pool::new(Dialer::new().read_timeout(PATIENCE).write_timeout(PATIENCE));
        rows.push(part(&mut progress, name, "pooled, blocking", |caller| {
            let pool = pool.clone();
            move |sequence, body: &Bytes| pooled_call(&pool, address, caller ^ sequence, body)
        })?);
        if pool.stats().in_use > 0 {
            return Err(io::Error::other("a call kept its connection"));
        }
        pool.close();

        let client = Multiplex::dial(&Dialer::new(), address)?;
        rows.push(part(&mut progress, name, "multiplexed", |_| {
            let client = client.clone();
            move |_, body: &Bytes| client.call(body, PATIENCE)
        })?);
        if client.late() > 0 {
            return Err(io::Error::other(
                "an answer came after its call was given up",
            ));
        }
        client.close()?;
    }
    report::print(&rows);

    // Everything is answered, so this only has to say goodbye.
    server.shutdown(PATIENCE)?;
    let stats = server.stats();
    println!(
        "{} connections served, {} left, {} panics, 0 wrong bytes",
        stats.accepted, stats.active, stats.panics
    );
    if stats.active + stats.panics as usize > 0 || stats.connected != stats.disconnected {
        return Err(io::Error::other(format!(
            "the server did not end in order: {stats:?}"
        )));
    }
    Ok(())
}

/// The server: one frame in, the same frame out, nothing copied.
struct Echo;

impl Handler for Echo {
    type State = ();

    fn on_connect(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
        while let Some(len) = codec::frame_len(conn)? {
            // Not called again before the whole frame is here.
            let Some(frame) = conn.try_slice(len)? else {
                break;
            };
            conn.append(frame)?;
        }
        conn.flush()
    }
}

/// One call on a connection of the pool. It goes back when it is dropped.
fn pooled_call(pool: &Pool, address: &Address, id: u32, body: &Bytes) -> io::Result<LinkBuffer> {
    let mut conn = pool.get(address)?;
    codec::encode(&mut *conn, id, body)?;
    conn.flush()?;
    // Both of these wait, on this thread, for this connection alone.
    let head = conn.next(codec::HEAD)?;
    let (len, answered) = codec::head(head);
    if answered != id {
        return Err(io::Error::other(format!(
            "call {id} got the answer to {answered}"
        )));
    }
    conn.slice(len)
}

/// Runs one kind of client on all callers, shows how far it is, and measures it.
///
/// `start` makes a caller's function, which is given numbers from 0 on and a body, and returns
/// the body of the answer.
fn part<C>(
    progress: &mut Progress,
    transport: &'static str,
    client: &'static str,
    start: impl Fn(u32) -> C,
) -> io::Result<Row>
where
    C: FnMut(u32, &Bytes) -> io::Result<LinkBuffer> + Send,
{
    progress.begin(transport, client);
    let (measure, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (measure, stop) = (&measure, &stop);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let call = start(caller << 28);
                scope.spawn(move || {
                    let result = calls(caller, call, measure, stop);
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        progress.wait(PART / 10, stop);
        let allocated = allocations::count();
        let begin = Instant::now();
        measure.store(true, Ordering::Relaxed);
        progress.wait(PART, stop);
        measure.store(false, Ordering::Relaxed);
        let elapsed = begin.elapsed();
        let allocated = allocations::count() - allocated;
        stop.store(true, Ordering::Relaxed);

        let mut meter = Meter::new();
        for caller in callers {
            meter.add(&caller.join().expect("callers do not panic")?);
        }
        progress.end();
        Ok(Row {
            transport,
            client,
            elapsed,
            allocated,
            meter,
        })
    })
}

/// One caller: calls until it is told to stop, each answer compared with what was sent.
fn calls(
    caller: u32,
    mut call: impl FnMut(u32, &Bytes) -> io::Result<LinkBuffer>,
    measure: &AtomicBool,
    stop: &AtomicBool,
) -> io::Result<Meter> {
    let mut meter = Meter::new();
    let body: Bytes = (0..BODY as u32)
        .map(|i| (i * 31 + i / 256 + caller) as u8)
        .collect();
    for sequence in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        let answer = call(sequence & 0x0FFF_FFFF, &body)?;
        if answer != *body {
            return Err(io::Error::other(format!(
                "caller {caller}, call {sequence}: the answer ({} bytes) is not what was sent",
                answer.available()
            )));
        }
        if measure.load(Ordering::Relaxed) {
            meter.record(begin.elapsed(), 2 * (codec::HEAD + BODY));
        }
    }
    Ok(meter)
}

/// A path in the temporary directory that nobody else uses.
fn socket_path() -> PathBuf {
    env::temp_dir().join(format!("netpoll-quickstart-{}.sock", process::id()))
}
