//! Lines are the same however their bytes are cut on the way.

use crate::support::bounded;
use netpoll::{Connection, Decoder, Delimited, Dialer, Error, LinkBuffer, Reader};
use std::{
    io::{self, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Instant,
};

/// Lines of all lengths around the limit, with both kinds of ends and with none.
const INPUTS: [&str; 12] = [
    "\n",
    "\r\n",
    "ab\n",
    "ab\r\n",
    "abc\r\n",
    "abcd\r\nx",
    "abc\n\r\n",
    "\r\r\n\n",
    "abc\rd\n",
    "abcde",
    "abc\r",
    "ab\rcd\r\n",
];
const LIMITS: [usize; 4] = [1, 2, 3, 100];

/// All ways to cut `text` into pieces.
fn cuts(text: &str) -> impl Iterator<Item = Vec<&[u8]>> {
    let bytes = text.as_bytes();
    (0..1_u32 << (bytes.len() - 1)).map(move |cuts| {
        let mut pieces = Vec::new();
        let mut begin = 0;
        for at in 1..=bytes.len() {
            if at == bytes.len() || cuts & (1 << (at - 1)) != 0 {
                pieces.push(&bytes[begin..at]);
                begin = at;
            }
        }
        pieces
    })
}

/// What a way to read makes of input.
#[derive(Debug, PartialEq)]
enum Got {
    Text(Vec<u8>),
    Prefix(Vec<u8>),
    End,
    Failed(io::ErrorKind),
}

/// Reads what there is of the input so far; `None`: no more without more input.
type Read = fn(&mut Connection, usize) -> Option<Got>;

const WAYS: [(&str, Read); 5] = [
    ("read_line", |conn, max| {
        result(conn.read_line(max).map(|mut line| {
            let n = line.data.len();
            let text = line.data.read_vec(n).unwrap();
            if line.is_prefix {
                Got::Prefix(text)
            } else {
                Got::Text(text)
            }
        }))
    }),
    ("read_line of the trait", |conn, max| {
        result(Reader::read_line_string(conn, max).map(|line| Got::Text(line.into_bytes())))
    }),
    ("until", |conn, _| {
        result(conn.until(b'\n').map(|line| Got::Text(line.to_vec())))
    }),
    ("try_until", |conn, _| match conn.try_until(b'\n') {
        Ok(None) => None,
        Ok(Some(line)) => Some(Got::Text(line.to_vec())),
        Err(error) => result(Err(error)),
    }),
    ("lines", |conn, max| {
        let mut lines = Delimited::lines(max);
        match lines.decode(conn) {
            Ok(None) => None,
            Ok(Some(line)) => Some(Got::Text(line.to_vec())),
            Err(error) => result(Err(error)),
        }
    }),
];

fn result(read: io::Result<Got>) -> Option<Got> {
    match read {
        Ok(got) => Some(got),
        Err(error) => match Error::from_io(&error) {
            // The deadline has passed from the start: it fails what has to wait.
            Some(Error::ReadTimeout) => None,
            Some(Error::PeerClosed { .. }) => Some(Got::End),
            _ => Some(Got::Failed(error.kind())),
        },
    }
}

/// Everything that is read of the pieces, which come one after the other.
fn read_all(pieces: &[&[u8]], max: usize, read: Read) -> Vec<Got> {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut conn = Dialer::new().adopt(OwnedFd::from(ours)).unwrap();
    conn.set_read_deadline(Some(Instant::now()));
    let mut all = Vec::new();
    for piece in pieces {
        peer.write_all(piece).unwrap();
        while let Some(got) = read(&mut conn, max) {
            let failed = matches!(got, Got::Failed(_));
            all.push(got);
            if failed {
                return all;
            }
        }
    }
    peer.shutdown(Shutdown::Write).unwrap();
    while let Some(got) = read(&mut conn, max) {
        let over = matches!(got, Got::Failed(_) | Got::End);
        all.push(got);
        if over {
            break;
        }
    }
    all
}

#[test]
fn lines_do_not_depend_on_how_their_bytes_are_cut() {
    bounded("lines", || {
        for (what, read) in WAYS {
            for input in INPUTS {
                for max in LIMITS {
                    let whole = read_all(&[input.as_bytes()], max, read);
                    for pieces in cuts(input) {
                        let cut = read_all(&pieces, max, read);
                        assert_eq!(cut, whole, "{what}({max}) of {pieces:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_line_of_the_limit_is_whole_and_a_longer_one_is_not() {
    let text = |text: &str| Got::Text(text.as_bytes().to_vec());
    let prefix = |text: &str| Got::Prefix(text.as_bytes().to_vec());
    for (input, expected) in [
        ("abc\r\n", vec![text("abc"), Got::End]),
        ("abc\n", vec![text("abc"), Got::End]),
        ("abcd\n", vec![prefix("abc"), text("d"), Got::End]),
        ("abc\rd\n", vec![prefix("abc"), text("\rd"), Got::End]),
        ("abc", vec![text("abc"), Got::End]),
        ("abc\r", vec![prefix("abc"), text("\r"), Got::End]),
    ] {
        for pieces in cuts(input) {
            assert_eq!(read_all(&pieces, 3, WAYS[0].1), expected, "{pieces:?}");
        }
    }
    // As one that is in memory as a whole.
    let mut whole = LinkBuffer::from("abc\r\n".to_owned());
    assert_eq!(whole.read_line_string(3).unwrap(), "abc");
}

#[test]
fn a_limit_of_zero_takes_empty_lines_only() {
    bounded("lines", || {
        let (text, end) = (Got::Text(Vec::new()), Got::End);
        let refused = || Got::Failed(io::ErrorKind::InvalidInput);
        for (input, expected) in [
            ("\n", vec![&text, &end]),
            ("\r\n\n", vec![&text, &text, &end]),
            ("\nx\n", vec![&text, &refused()]),
            ("x", vec![&refused()]),
            ("\r", vec![&refused()]),
            ("\rx\n", vec![&refused()]),
        ] {
            for pieces in cuts(input) {
                let got = read_all(&pieces, 0, WAYS[0].1);
                assert!(
                    got.iter().eq(expected.iter().copied()),
                    "{pieces:?}: {got:?}"
                );
            }
        }
        // Nothing is consumed: a call that allows some goes on.
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut conn = Dialer::new().adopt(OwnedFd::from(ours)).unwrap();
        peer.write_all(b"abc\n").unwrap();
        assert!(conn.read_line(0).is_err());
        assert_eq!(conn.read_line(3).unwrap().data, *b"abc");
    });
}

#[test]
fn a_kept_line_holds_little_more_than_itself() {
    bounded("lines", || {
        const LEN: usize = 600;
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut text = vec![b'x'; LEN];
        text.push(b'\n');
        peer.write_all(&text.repeat(80)).unwrap();
        peer.write_all(&[&vec![b'y'; 30_000][..], b"\n"].concat())
            .unwrap();
        // All of it is there before the connection receives: no line lies in two chunks because it came in two
        // parts.
        let mut conn = Dialer::new().adopt(OwnedFd::from(ours)).unwrap();
        for max in [1000, LEN - 1] {
            for _ in 0..40 {
                let line = conn.read_line(max).unwrap();
                assert_eq!(line.is_prefix, max < LEN);
                assert!(line.data.pinned() <= 16 * max.min(LEN), "{:?}", line.data);
                if line.is_prefix {
                    let line = conn.read_line(max).unwrap();
                    assert_eq!((line.data.len(), line.is_prefix), (1, false));
                    assert!(line.data.pinned() <= 64, "{}", line.data.pinned());
                }
            }
        }
        // A long one is not copied.
        let line = conn.read_line(40_000).unwrap();
        assert_eq!(line.data.len(), 30_000);
        assert!(line.data.pinned() > 30_000, "{}", line.data.pinned());
    });
}
