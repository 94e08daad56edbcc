//! netpoll, in each of its dispatches.

use std::io::{self, BufRead};
use std::net::TcpListener;
use std::time::Duration;

use netpoll::{
    Connection, Dispatch, EventLoop, EventLoopBuilder, LinkBuffer, PollerGroup, handler_fn,
};

use crate::frame::{self, Front, HEADER, Kind, MAX_PAYLOAD};
use crate::work;

/// Threads of [`Dispatch::Workers`], as many as the hand-off peer has.
const WORKERS: usize = 64;
const MANY_WORKERS: usize = 512;
/// How long the busy poller looks for events before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// A loop with default options: handlers run where they are polled, and may block.
pub(crate) fn adaptive(listener: TcpListener) -> io::Result<()> {
    serve(EventLoop::builder(), answer_whole, listener)
}

/// README's server.
pub(crate) fn guide(listener: TcpListener) -> io::Result<()> {
    serve(EventLoop::builder(), answer_as_in_readme, listener)
}

/// A handler as blocking code has it: it waits in `next` for the length and for the rest.
pub(crate) fn waiting(listener: TcpListener) -> io::Result<()> {
    serve(EventLoop::builder(), answer_waiting, listener)
}

/// The same, but a handler waits in `fill` for the rest of a frame that came in part.
pub(crate) fn filling(listener: TcpListener) -> io::Result<()> {
    serve(EventLoop::builder(), answer_filling, listener)
}

/// Handlers run on a pool of threads.
pub(crate) fn workers(listener: TcpListener) -> io::Result<()> {
    on_workers(WORKERS, listener)
}

/// As many as the pollers of a loop with default options may start.
pub(crate) fn many_workers(listener: TcpListener) -> io::Result<()> {
    on_workers(MANY_WORKERS, listener)
}

fn on_workers(max: usize, listener: TcpListener) -> io::Result<()> {
    let workers = Dispatch::Workers {
        max,
        keep_alive: Duration::from_secs(60),
    };
    serve(
        EventLoop::builder().dispatch(workers),
        answer_whole,
        listener,
    )
}

/// Handlers run on the poller's thread, and block it when they block.
pub(crate) fn inline(listener: TcpListener) -> io::Result<()> {
    serve(
        EventLoop::builder().dispatch(Dispatch::Inline),
        answer_whole,
        listener,
    )
}

/// As [`adaptive`], frame by frame.
pub(crate) fn frames(listener: TcpListener) -> io::Result<()> {
    serve(EventLoop::builder(), answer_each, listener)
}

/// As [`adaptive`], with a poller that looks for events for a while before it sleeps.
pub(crate) fn busy(listener: TcpListener) -> io::Result<()> {
    let pollers = PollerGroup::builder().pollers(1).busy_poll(Some(SPIN));
    serve(
        EventLoop::builder().pollers(pollers.build()?),
        answer_whole,
        listener,
    )
}

fn serve(
    builder: EventLoopBuilder,
    handler: fn(&mut Connection) -> io::Result<()>,
    listener: TcpListener,
) -> io::Result<()> {
    builder.build(handler_fn(handler))?.serve(listener)
}

/// Answers every frame that is whole; called again once the next one is. Frames that lie in one
/// piece are looked at together, as in the other servers.
fn answer_whole(conn: &mut Connection) -> io::Result<()> {
    while conn.available() > 0 {
        match frame::front(conn.fill_buf()?) {
            Front::Echo(length) => conn.forward(length)?,
            Front::Special(kind, length) => answer_special(conn, kind, length)?,
            Front::Partial(need) => {
                if !conn.try_fill(need)? {
                    break;
                }
                // It is in several pieces.
                conn.peek(need)?;
            }
            Front::TooLong => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    conn.flush()
}

/// What README shows, and the special requests of the harness besides.
fn answer_as_in_readme(conn: &mut Connection) -> io::Result<()> {
    while let Some(head) = conn.try_peek(HEADER)? {
        let len = length(head)?;
        let Some(frame) = conn.try_slice(len)? else {
            break;
        };
        answer_slice(conn, frame)?;
    }
    conn.flush()
}

fn answer_waiting(conn: &mut Connection) -> io::Result<()> {
    if conn.available() == 0 {
        return Ok(());
    }
    let len = length(conn.peek(HEADER)?)?;
    let frame = conn.slice(len)?;
    answer_slice(conn, frame)?;
    conn.flush()
}

fn answer_slice(conn: &mut Connection, mut frame: LinkBuffer) -> io::Result<()> {
    if frame.len() > HEADER {
        match Kind::of(frame.peek(HEADER + 1)?[HEADER]) {
            Kind::Echo => {}
            Kind::Sink => return conn.write_slice(&frame::ACK),
            kind => {
                conn.flush()?;
                work::block_for(kind);
            }
        }
    }
    conn.append(frame)
}

/// The same frame by frame, as a handler of calls does it.
fn answer_each(conn: &mut Connection) -> io::Result<()> {
    while let Some(head) = conn.try_peek(HEADER)? {
        let frame = length(head)?;
        if !conn.try_fill(frame)? {
            break;
        }
        answer(conn, frame)?;
    }
    conn.flush()
}

/// Answers every frame of which there is something, waiting for the rest of the last.
fn answer_filling(conn: &mut Connection) -> io::Result<()> {
    while let Some(head) = conn.try_peek(HEADER)? {
        let frame = length(head)?;
        if conn.available() < frame {
            // What is answered already need not wait along.
            conn.flush()?;
            conn.fill(frame)?;
        }
        answer(conn, frame)?;
    }
    conn.flush()
}

/// Bytes of the frame that begins with `head`.
fn length(head: &[u8]) -> io::Result<usize> {
    let payload = head
        .first_chunk::<HEADER>()
        .map_or(0, |head| u32::from_be_bytes(*head) as usize);
    if payload > MAX_PAYLOAD {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(HEADER + payload)
}

/// Does what the whole frame at the front asks for, and moves it to the output.
fn answer(conn: &mut Connection, frame: usize) -> io::Result<()> {
    let kind = if frame > HEADER {
        Kind::of(conn.peek(HEADER + 1)?[HEADER])
    } else {
        Kind::Echo
    };
    match kind {
        Kind::Echo => conn.forward(frame),
        _ => answer_special(conn, kind, frame),
    }
}

/// Answers a frame that asks for more than an echo.
fn answer_special(conn: &mut Connection, kind: Kind, frame: usize) -> io::Result<()> {
    if kind == Kind::Sink {
        conn.skip(frame)?;
        return conn.write_slice(&frame::ACK);
    }
    // What is answered already need not wait along.
    conn.flush()?;
    work::block_for(kind);
    conn.forward(frame)
}
