//! The process under soak, asked as its parent asks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_netpoll-bench");

struct Server {
    child: Child,
    orders: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    addr: String,
}

impl Server {
    fn start(dispatch: &str) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["soak-server", "--with-parent", "--dispatch", dispatch])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut server = Self {
            orders: child.stdin.take(),
            lines: BufReader::new(child.stdout.take().unwrap()),
            child,
            addr: String::new(),
        };
        let first = server.line();
        server.addr = first.split_whitespace().nth(1).unwrap().into();
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().into()
    }

    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        self.line()
    }

    /// Asks until the figure `name` is at least `least`.
    fn until(&mut self, name: &str, least: u64) -> serde_json::Value {
        loop {
            let figures: serde_json::Value = serde_json::from_str(&self.ask("look")).unwrap();
            if figures[name].as_u64().unwrap() >= least {
                return figures;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended, as it should.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// Frame number `number` of the connection with tag 7, without content.
fn frame(order: u8, number: u8) -> [u8; 16] {
    [0, 0, 0, 12, order, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, number]
}

#[test]
fn frames_are_answered_and_every_callback_is_in_the_books() {
    for dispatch in ["adaptive", "workers", "inline"] {
        let mut server = Server::start(dispatch);
        let mut peer = TcpStream::connect(&server.addr).unwrap();
        let mut answer = [0; 16];
        // Echoed, copied, taken, after a sleep, late, waited for, and then closed.
        for order in 0..7 {
            peer.write_all(&frame(order, order)).unwrap();
            peer.read_exact(&mut answer).unwrap();
            assert_eq!(answer, frame(order, order), "{dispatch}");
        }
        assert_eq!(peer.read(&mut answer).unwrap(), 0, "{dispatch}");
        let figures = server.until("loop_closed", 1);
        for (name, count) in [
            ("prepared", 1),
            ("connected", 1),
            ("disconnected", 1),
            ("closed", 1),
            ("requests", 7),
            ("bytes", 7 * 16),
            ("order_violations", 0),
            ("misplaced", 0),
            ("wrong_bytes", 0),
        ] {
            assert_eq!(figures[name], count, "{dispatch}: {name}: {figures}");
        }
        assert_eq!(server.ask("end"), "ok");
        assert!(server.child.wait().unwrap().success());
    }
}

#[test]
fn what_peers_do_wrong_is_counted() {
    let mut server = Server::start("adaptive");
    let mut peer = TcpStream::connect(&server.addr).unwrap();
    // The second frame is missing, the next comes twice, the last is of another connection.
    let mut stranger = frame(0, 3);
    stranger[11] = 8;
    for frame in [frame(0, 0), frame(0, 2), frame(0, 2), stranger] {
        peer.write_all(&frame).unwrap();
    }
    assert_eq!(server.until("requests", 4)["misplaced"], 3);
    // A byte of content that is not what it should be.
    let mut spoilt = Vec::from(frame(0, 4));
    spoilt[3] += 1;
    spoilt[11] = 8;
    for guess in [0, 1] {
        let mut frame = spoilt.clone();
        frame[15] += guess;
        frame.push(guess);
        peer.write_all(&frame).unwrap();
    }
    assert!(server.until("requests", 6)["wrong_bytes"].as_u64() >= Some(1));
    // No frame at all.
    peer.write_all(&[0xff; 16]).unwrap();
    assert!(server.until("wrong_bytes", 16)["closed"].as_u64().is_some());
    // A panic that was asked for is contained, and told apart from others.
    let mut peer = TcpStream::connect(&server.addr).unwrap();
    peer.write_all(&frame(9, 0)).unwrap();
    let figures = server.until("loop_panics", 1);
    assert_eq!(figures["panics_ordered"], 1);
    assert_eq!(figures["panics_unexpected"], 0);
}

#[test]
fn without_descriptors_peers_wait_until_there_are_some() {
    let mut server = Server::start("adaptive");
    assert_eq!(server.ask("limit 1"), "ok");
    let mut peer = TcpStream::connect(&server.addr).unwrap();
    peer.write_all(&frame(0, 0)).unwrap();
    assert_eq!(server.until("emfile", 1)["accepted"], 0);
    assert_eq!(server.ask("limit 18446744073709551615"), "ok");
    let mut answer = [0; 16];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(answer, frame(0, 0));
}

#[test]
fn the_server_ends_with_its_input() {
    let mut server = Server::start("adaptive");
    let _peer = TcpStream::connect(&server.addr).unwrap();
    server.until("connected", 1);
    server.orders = None;
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn mistakes_are_explained() {
    for (arguments, word) in [
        (&["soak", "--dispatch", "nobody"][..], "nobody"),
        (&["soak", "--minutes", "-1"], "negative"),
        (&["soak-server", "--fly"], "fly"),
    ] {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(word),
            "{arguments:?}: {text}"
        );
    }
}
