//! A handler made of a decoder and a closure.

use super::Decoder;
use crate::{
    connection::{Connection, ConnectionState},
    foreign::Foreign,
    handler::Handler,
    sync::Ordering,
    trace,
};
use std::{fmt, io};

/// Output that is not flushed while more frames of a batch are handled.
const FLUSH_AT: usize = 64 << 10;

/// A handler that calls `on_frame` with every frame.
///
/// Each connection has its own copy of `decoder`. All frames that have arrived are handled in
/// one go, and the output of `on_frame` is flushed once behind them (and whenever 64 KiB are
/// unflushed), so that many small requests are answered with few system calls.
///
/// When decoding fails ([`FrameError`](crate::FrameError), or
/// [`Error::PeerClosed`](crate::Error::PeerClosed) if the peer's input ends inside a frame) the
/// callback of [`on_error`](Framed::on_error) is called, its output is sent, and the
/// connection is closed. So it is when `on_frame` returns an error.
///
/// `on_frame` may give the connection to [another handler](Connection::set_handler) or
/// [take it](Connection::hijack); the bytes behind its frame go with it.
///
/// # Examples
///
/// ```
/// use netpoll::{Delimited, EventLoop, framed};
///
/// # fn main() -> std::io::Result<()> {
/// let shout = framed(Delimited::lines(4096).frames_as::<String>(), |conn, line| {
///     conn.write_str(&line.to_uppercase())?;
///     conn.write_u8(b'\n')
/// });
/// let server = EventLoop::new(shout)?;
/// # server.shutdown(std::time::Duration::ZERO)?;
/// # Ok(())
/// # }
/// ```
pub fn framed<D, F>(decoder: D, on_frame: F) -> Framed<D, F>
where
    D: Decoder + Clone + Send + Sync + 'static,
    F: Fn(&mut Connection, D::Frame) -> io::Result<()> + Send + Sync + 'static,
{
    Framed {
        decoder: Foreign::new(decoder),
        on_frame: Foreign::new(on_frame),
        on_error: Foreign::new(|_, _| {}),
    }
}

/// The callback of a handler without one for errors.
type Ignore = fn(&mut Connection, &io::Error);

/// A decoder and a closure as a handler: see [`framed`].
#[derive(Clone)]
pub struct Framed<D, F, E = Ignore> {
    decoder: Foreign<D>,
    on_frame: Foreign<F>,
    on_error: Foreign<E>,
}

impl<D, F> Framed<D, F> {
    /// Calls `on_error` when decoding fails, before the connection is closed. It may write a
    /// last message.
    ///
    /// # Examples
    ///
    /// ```
    /// use netpoll::{FrameError, LengthField, framed};
    ///
    /// let frames = LengthField::new(4).max_frame(1024);
    /// let handler = framed(frames, |_, _| Ok(())).on_error(|conn, error| {
    ///     if FrameError::from_io(error).is_some() {
    ///         // The connection is closed anyway if this cannot be written.
    ///         let _ = conn.write_str("too long\n");
    ///     }
    /// });
    /// # let _ = handler;
    /// ```
    pub fn on_error<E>(self, on_error: E) -> Framed<D, F, E>
    where
        E: Fn(&mut Connection, &io::Error) + Send + Sync + 'static,
    {
        Framed {
            decoder: self.decoder,
            on_frame: self.on_frame,
            on_error: Foreign::new(on_error),
        }
    }
}

impl<D, F, E> Handler for Framed<D, F, E>
where
    D: Decoder + Clone + Send + Sync + 'static,
    F: Fn(&mut Connection, D::Frame) -> io::Result<()> + Send + Sync + 'static,
    E: Fn(&mut Connection, &io::Error) + Send + Sync + 'static,
{
    type State = D;

    fn on_connect(&self, _: &mut Connection) -> io::Result<D> {
        Ok(D::clone(&self.decoder))
    }

    fn on_request(&self, conn: &mut Connection, decoder: &mut D) -> io::Result<()> {
        // Only frames that have been received by now: a peer that sends without a pause must not keep
        // the thread.
        let batch = received(conn);
        loop {
            match decoder.decode(conn) {
                Ok(Some(frame)) => {
                    if let Err(error) = (self.on_frame)(conn, frame) {
                        return Err(last_flush(conn, error));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // A panic of the closure must not meet one of the error's drop.
                    let mut error = Foreign::new(error);
                    (self.on_error)(conn, &error);
                    let error = error.take().expect("it was put there");
                    return Err(last_flush(conn, error));
                }
            }
            if conn.state() >= ConnectionState::Disconnecting {
                // Closed by the closure or by another thread: no more frames.
                return Ok(());
            }
            // The remaining bytes belong to another owner, or were not decoded. In both cases they
            // are not known to be too short.
            let decoded = received(conn).saturating_sub(conn.available() as u64);
            if conn.is_passed_on() || decoded >= batch {
                conn.rx.mark = 0;
                break;
            }
            if conn.malloc_len() >= FLUSH_AT {
                conn.flush()?;
            }
        }
        if conn.malloc_len() > 0 {
            conn.flush()
        } else {
            Ok(())
        }
    }
}

/// Bytes received from the kernel so far.
fn received(conn: &Connection) -> u64 {
    conn.rx.shared.bytes_in.load(Ordering::Relaxed)
}

/// Sends the answers to the frames before the one that failed.
fn last_flush(conn: &mut Connection, error: io::Error) -> io::Error {
    if conn.malloc_len() > 0 {
        if let Err(flush) = conn.flush() {
            trace::debug!("connection {}: last flush: {flush}", conn.id());
        }
    }
    error
}

impl<D: fmt::Debug, F, E> fmt::Debug for Framed<D, F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framed")
            .field("decoder", &*self.decoder)
            .finish_non_exhaustive()
    }
}
