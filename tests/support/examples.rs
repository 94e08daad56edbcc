//! Runs the built examples as processes of their own and talks to them.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longer than anything here takes: what reaches it has hung.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// An example that serves. It is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    /// What it wrote to stderr: shown if the test fails.
    errors: Option<JoinHandle<String>>,
    /// What it printed behind `listening`.
    pub(crate) place: String,
}

impl Server {
    /// Starts an example and waits until it listens.
    pub(crate) fn start(name: &str, args: &[&str]) -> Self {
        Self::spawn(command(name, args))
    }

    /// As [`Self::start`] with a limit on open descriptors.
    pub(crate) fn start_with_files(files: usize, name: &str, args: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {files}; exec \"$@\""), "sh"]);
        shell.arg(path(name)).args(args);
        Self::spawn(shell)
    }

    fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the example starts");
        let mut stderr = child.stderr.take().expect("a pipe");
        let errors = thread::spawn(move || {
            let mut errors = Vec::new();
            let _ = stderr.read_to_end(&mut errors);
            text(&errors)
        });
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("its first line");
        let Some(place) = line.trim_end().strip_prefix("listening ") else {
            let errors = errors.join();
            panic!(
                "{command:?} said {line:?}, then {errors:?}, {:?}",
                child.wait()
            );
        };
        Self {
            child,
            output,
            errors: Some(errors),
            place: place.to_owned(),
        }
    }

    pub(crate) fn connect(&self) -> Socket {
        if let Some(path) = self.place.strip_prefix("unix:") {
            let socket = UnixStream::connect(path).expect("connect");
            socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
            socket.set_write_timeout(Some(LIMIT)).expect("a timeout");
            return Socket::Unix(socket);
        }
        let place = self.place.trim_start_matches("tcp:");
        let socket = TcpStream::connect(place).expect("connect");
        socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
        socket.set_write_timeout(Some(LIMIT)).expect("a timeout");
        Socket::Tcp(socket)
    }

    pub(crate) fn port(&self) -> &str {
        self.place
            .rsplit_once(':')
            .expect("an address with a port")
            .1
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh")
            .args(["-c", &kill])
            .status()
            .expect("a shell");
        assert!(status.success(), "{kill}");
    }

    /// The exit code, once the server has ended by itself.
    pub(crate) fn wait(self) -> i32 {
        let (code, rest) = self.wait_output();
        assert_eq!(rest, "", "nothing but `listening` is printed");
        code
    }

    /// The exit code and what else was printed, once the server has ended by itself.
    pub(crate) fn wait_output(mut self) -> (i32, String) {
        let code = exit_code(&mut self.child);
        let mut rest = String::new();
        self.output
            .read_to_string(&mut rest)
            .expect("the rest of its output");
        (code, rest)
    }

    /// The next line it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line
    }

    /// Ends it with SIGTERM; the exit code.
    pub(crate) fn terminate(self) -> i32 {
        self.signal("TERM");
        self.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let (true, Some(errors)) = (thread::panicking(), self.errors.take()) {
            eprintln!("{}: {}", self.place, errors.join().unwrap_or_default());
        }
    }
}

fn exit_code(child: &mut Child) -> i32 {
    let deadline = Instant::now() + LIMIT;
    loop {
        match child.try_wait().expect("its status") {
            Some(status) => return status.code().unwrap_or_else(|| panic!("{status}")),
            None if Instant::now() > deadline => {
                let _ = child.kill();
                panic!("the example did not end within {LIMIT:?}");
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Runs an example to its end.
pub(crate) fn run(name: &str, args: &[&str]) -> Output {
    output(
        command(name, args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
        &[],
    )
}

/// Runs a command to its end with something to read.
pub(crate) fn output(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut pipe = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    // It may end without reading all.
    let writer = thread::spawn(move || pipe.write_all(&input));
    let output = child.wait_with_output().expect("its output");
    let _ = writer.join().expect("the writer");
    output
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The path of a program of the system, or `None` with a message.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&paths)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    found
}

fn command(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(path(name));
    command.args(args).env_remove("RUST_BACKTRACE");
    command
}

/// Where cargo puts a built example: beside the directory of the test.
fn path(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    let target = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("target/PROFILE/deps/TEST");
    let path = target.join("examples").join(name);
    assert!(
        path.is_file(),
        "{} is missing: `cargo test` builds it, with `--test` run `cargo build --examples` first",
        path.display()
    );
    path
}

/// A path for a unix socket or a file that no other test uses.
pub(crate) fn fresh_path(suffix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "netpoll-{}-{}{suffix}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let path = env::temp_dir().join(name);
    let _ = fs::remove_file(&path);
    path.into_os_string()
        .into_string()
        .expect("a UTF-8 temporary directory")
}

/// A connected socket of either kind.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(crate) fn send(&mut self, data: &[u8]) {
        self.write_all(data).expect("send");
    }

    /// The same socket for another thread.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone().expect("clone")),
            Self::Unix(socket) => Self::Unix(socket.try_clone().expect("clone")),
        }
    }

    /// Whether the server still took it.
    pub(crate) fn try_send(&mut self, data: &[u8]) -> bool {
        self.write_all(data).is_ok()
    }

    pub(crate) fn set_nonblocking(&self, on: bool) {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(on),
            Self::Unix(socket) => socket.set_nonblocking(on),
        }
        .expect("a mode");
    }

    /// Exactly `n` bytes.
    pub(crate) fn receive(&mut self, n: usize) -> Vec<u8> {
        let mut data = vec![0; n];
        self.read_exact(&mut data).expect("receive");
        data
    }

    /// The body of a frame with a 4-byte length.
    pub(crate) fn receive_frame(&mut self) -> Vec<u8> {
        let head = self.receive(4);
        let len = u32::from_be_bytes(head.try_into().expect("four bytes"));
        self.receive(len as usize)
    }

    /// As [`Self::receive_frame`], or why there is none.
    pub(crate) fn try_receive_frame(&mut self) -> io::Result<Vec<u8>> {
        let mut head = [0; 4];
        self.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_be_bytes(head) as usize];
        self.read_exact(&mut body)?;
        Ok(body)
    }

    /// Everything until the end; a reset is an end too.
    pub(crate) fn receive_rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("no end of input: {error}"),
        }
        rest
    }

    /// Tells the server that no more comes.
    pub(crate) fn finish(&self) {
        match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
        .expect("shutdown");
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buf),
            Self::Unix(socket) => socket.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(buf),
            Self::Unix(socket) => socket.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A frame with a 4-byte length.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

/// Bytes that differ from place to place.
pub(crate) fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// The number behind `name` in `key=1` or `"key":1` text.
pub(crate) fn figure(text: &str, name: &str) -> u64 {
    let found = [format!("\"{name}\":"), format!("{name}=")]
        .iter()
        .find_map(|key| text.find(key).map(|at| &text[at + key.len()..]))
        .unwrap_or_else(|| panic!("no {name} in {text:?}"));
    let digits: String = found.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("{name} is no number in {text:?}"))
}

/// Asks again and again until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
