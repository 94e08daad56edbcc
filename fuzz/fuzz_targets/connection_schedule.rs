//! A real connection over a unix socket, written to by a schedule: pieces of any size, replies read
//! in between or not, a half-close, a close with replies unread. Whatever the schedule, the server
//! answers exactly the frames that arrived whole, in order, and goes on serving others.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use netpoll::{Address, Dispatch, EventLoop, LengthField, Listener, framed};
use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::OnceLock,
    time::Duration,
};

/// The most bytes of a frame, header included.
const MAX: usize = 300;
/// A reply that takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Arbitrary, Debug)]
struct Input {
    server: Server,
    frames: Vec<Frame>,
    steps: Vec<Step>,
    end: End,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Server {
    Adaptive,
    Inline,
    Workers,
}

#[derive(Arbitrary, Debug)]
enum Frame {
    Whole(u8),
    Large(u8),
    /// One byte more than allowed.
    TooLong,
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Write(u8),
    WriteMuch(u16),
    /// Waits for the replies that are due.
    Read,
    Yield,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum End {
    HalfClose,
    Close,
    /// With what was not sent yet left out.
    CutOff,
}

/// Length of two bytes, then the body; the reply is the same with every bit of the body turned.
fn request(frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, frame) in frames.iter().take(64).enumerate() {
        let len = match frame {
            Frame::Whole(n) => usize::from(*n % 32),
            Frame::Large(n) => MAX - 2 - usize::from(*n % 32),
            Frame::TooLong => MAX - 1,
            Frame::Raw(bytes) => {
                out.extend_from_slice(&bytes[..bytes.len().min(64)]);
                continue;
            }
        };
        out.extend_from_slice(&(len as u16).to_be_bytes());
        out.extend((0..len).map(|k| (k + i) as u8));
    }
    out
}

/// The replies to what is whole in `bytes`, and whether all of it is fit to be answered.
fn replies(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*head));
        if len + 2 > MAX {
            return (out, false);
        }
        let Some((body, rest)) = rest.split_at_checked(len) else {
            break;
        };
        out.extend_from_slice(head);
        out.extend(body.iter().map(|b| !b));
        bytes = rest;
    }
    (out, true)
}

fn server(which: Server) -> &'static PathBuf {
    static SERVERS: OnceLock<[PathBuf; 3]> = OnceLock::new();
    &SERVERS.get_or_init(|| {
        let workers = Dispatch::Workers {
            max: 4,
            keep_alive: Duration::from_secs(1),
        };
        [
            start("adaptive", Dispatch::Adaptive),
            start("inline", Dispatch::Inline),
            start("workers", workers),
        ]
    })[which as usize]
}

fn start(name: &str, dispatch: Dispatch) -> PathBuf {
    let handler = framed(LengthField::new(2).max_frame(MAX), |conn, body| {
        conn.write_slice(&(body.len() as u16).to_be_bytes())?;
        let turned: Vec<u8> = body.iter().map(|b| !b).collect();
        conn.write_slice(&turned)
    });
    let path = std::env::temp_dir().join(format!("netpoll-fuzz-{}-{name}", std::process::id()));
    let listener = Listener::bind(Address::from(path.clone())).expect("a listener");
    let server = EventLoop::builder()
        .dispatch(dispatch)
        .pollers(1)
        .build(handler)
        .expect("a loop");
    server.serve_in_background(listener).expect("serving");
    // The process ends without a shutdown.
    std::mem::forget(server);
    path
}

struct Client {
    stream: UnixStream,
    got: Vec<u8>,
    /// The server closed.
    over: bool,
}

impl Client {
    fn write(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                self.over = true;
            }
            Err(e) => panic!("write: {e}"),
        }
    }

    /// Reads until `len` bytes are here or the server closed.
    fn read_to(&mut self, len: usize) {
        let mut piece = [0; 4096];
        while self.got.len() < len {
            match self.stream.read(&mut piece) {
                Ok(0) => return self.over = true,
                Ok(n) => self.got.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return self.over = true,
                Err(e) => panic!("{} of {len} bytes of replies: {e}", self.got.len()),
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let bytes = request(&input.frames);
    let stream = UnixStream::connect(server(input.server)).expect("the server accepts");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client {
        stream,
        got: Vec::new(),
        over: false,
    };
    let mut sent = 0;
    for step in input.steps.iter().take(64) {
        let n = match *step {
            Step::Write(n) => n.into(),
            Step::WriteMuch(n) => n.into(),
            Step::Yield => {
                std::thread::yield_now();
                0
            }
            Step::Read => {
                let (due, _) = replies(&bytes[..sent]);
                client.read_to(due.len());
                assert!(client.got.len() >= due.len(), "closed before all replies");
                0
            }
        };
        let upto = (sent + n).min(bytes.len());
        client.write(&bytes[sent..upto]);
        sent = upto;
    }
    if input.end != End::CutOff {
        client.write(&bytes[sent..]);
        sent = bytes.len();
    }
    let (due, sound) = replies(&bytes[..sent]);
    match input.end {
        End::HalfClose => {
            let _ = client.stream.shutdown(Shutdown::Write);
            client.read_to(usize::MAX);
            assert_eq!(client.got, due, "everything due, and nothing else");
        }
        End::CutOff => {
            client.read_to(due.len());
            assert_eq!(client.got, due);
        }
        End::Close => {
            assert!(due.starts_with(&client.got));
        }
    }
    if client.over && input.end == End::CutOff {
        assert!(!sound, "the server closed a sound connection");
    }
});
