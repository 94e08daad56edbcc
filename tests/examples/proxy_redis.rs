//! `proxy` in front of a Redis, driven by Redis' own clients. Skipped where they are not installed.

use crate::support::{Server, eventually, figure, fresh_path, noise, output, program, text};
use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A Redis of our own on a unix socket. It is killed when this is dropped.
struct Redis {
    child: Child,
    dir: PathBuf,
    socket: String,
    cli: PathBuf,
    benchmark: PathBuf,
}

impl Redis {
    /// `None`, with a message, if there is none to start.
    fn start() -> Option<Self> {
        let server = program("redis-server")?;
        let cli = program("redis-cli")?;
        let benchmark = program("redis-benchmark")?;
        let dir = PathBuf::from(fresh_path(".redis"));
        fs::create_dir_all(&dir).expect("a directory");
        let socket = fresh_path(".sock");
        let child = Command::new(server)
            .args(["--port", "0", "--unixsocket", &socket])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let redis = Self {
            child,
            dir,
            socket,
            cli,
            benchmark,
        };
        eventually("redis-server listens", || {
            UnixStream::connect(&redis.socket).is_ok()
        });
        Some(redis)
    }

    fn backend(&self) -> String {
        format!("unix:{}", self.socket)
    }

    /// What redis-cli prints, connected directly.
    fn ask(&self, words: &[&str]) -> String {
        cli(&self.cli, &["-s", &self.socket], words, b"")
    }

    /// What redis-cli prints, connected through a proxy.
    fn ask_through(&self, proxy: &Server, words: &[&str], input: &[u8]) -> String {
        cli(&self.cli, &["-p", proxy.port()], words, input)
    }

    /// How often a command was called.
    fn calls(&self, command: &str) -> u64 {
        let all = self.ask(&["INFO", "commandstats"]);
        let line = format!("cmdstat_{command}:");
        all.lines()
            .find(|l| l.starts_with(&line))
            .map_or(0, |line| figure(line, "calls"))
    }

    /// Runs redis-benchmark through a proxy; it fails on any wrong answer.
    fn load(&self, proxy: &Server, flags: &[&str]) {
        let mut command = Command::new(&self.benchmark);
        let done = output(command.args(["-p", proxy.port(), "--csv"]).args(flags), b"");
        let (out, err) = (text(&done.stdout), text(&done.stderr));
        assert!(done.status.success(), "{command:?}: {out}{err}");
        let answered = out.lines().any(|line| line.starts_with("\"SET\""));
        assert!(answered && !out.contains("rror"), "{out}{err}");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Fails if it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(&self.socket);
    }
}

fn cli(program: &Path, to: &[&str], words: &[&str], input: &[u8]) -> String {
    let mut command = Command::new(program);
    let done = output(command.args(to).args(words), input);
    let out = text(&done.stdout);
    assert!(
        done.status.success(),
        "{command:?}: {out}{}",
        text(&done.stderr)
    );
    out.trim_end().to_owned()
}

fn proxy(backend: &str, flags: &[&str]) -> Server {
    let mut args = vec!["--listen", "127.0.0.1:0", "--backend", backend];
    args.extend_from_slice(flags);
    Server::start("proxy", &args)
}

/// The exit code and the statistics at the end.
fn end(proxy: Server) -> String {
    proxy.signal("TERM");
    let (code, statistics) = proxy.wait_output();
    assert_eq!(code, 0, "{statistics}");
    statistics
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn redis_behind_the_proxy() {
    let Some(redis) = Redis::start() else { return };
    let proxy = proxy(&redis.backend(), &[]);
    assert_eq!(redis.ask_through(&proxy, &["PING"], b""), "PONG");
    assert_eq!(
        redis.ask_through(&proxy, &["SET", "key", "value"], b""),
        "OK"
    );
    assert_eq!(redis.ask(&["GET", "key"]), "value", "it has arrived");
    assert_eq!(redis.ask_through(&proxy, &["GET", "key"], b""), "value");
    // Bulk in both directions: a value of a megabyte.
    let value: Vec<u8> = noise(1 << 20).iter().map(|b| b'a' + b % 26).collect();
    let set = redis.ask_through(&proxy, &["-x", "SET", "large"], &value);
    assert_eq!(set, "OK");
    assert_eq!(redis.ask(&["STRLEN", "large"]), (1 << 20).to_string());
    let got = redis.ask_through(&proxy, &["GET", "large"], b"");
    assert!(got.as_bytes() == value, "{} bytes came back", got.len());
    // Many commands in one connection.
    let many: String = (0..1000).map(|i| format!("SET k{i} v{i}\n")).collect();
    let answers = redis.ask_through(&proxy, &[], many.as_bytes());
    assert_eq!(answers.lines().filter(|line| *line == "OK").count(), 1000);
    assert_eq!(redis.ask(&["DBSIZE"]), "1002");

    let statistics = end(proxy);
    assert_eq!(figure(&statistics, "clients"), 6);
    assert_eq!(figure(&statistics, "gone"), 6);
    assert_eq!(figure(&statistics, "finished"), 6, "{statistics}");
    assert!(figure(&statistics, "to_backends") > 1 << 20, "{statistics}");
    assert!(figure(&statistics, "to_clients") > 1 << 20, "{statistics}");
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn redis_benchmark_through_the_proxy() {
    let Some(redis) = Redis::start() else { return };
    let proxy = proxy(&redis.backend(), &[]);
    redis.load(&proxy, &["-t", "set,get", "-n", "4000", "-c", "20"]);
    // Pipelined, with keys of their own and larger values.
    redis.load(
        &proxy,
        &[
            "-t", "set,get", "-n", "8000", "-c", "10", "-P", "16", "-d", "2000", "-r", "100",
        ],
    );
    assert_eq!(redis.calls("set"), 12_000, "none lost, none doubled");
    assert_eq!(redis.calls("get"), 12_000);
    let statistics = end(proxy);
    assert_eq!(
        figure(&statistics, "clients"),
        figure(&statistics, "gone"),
        "{statistics}"
    );
    assert!(figure(&statistics, "clients") >= 30, "{statistics}");
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn kept_connections_to_redis_serve_the_next_client() {
    let Some(redis) = Redis::start() else { return };
    let proxy = proxy(&redis.backend(), &["--pool", "4"]);
    for i in 0..10 {
        let value = i.to_string();
        assert_eq!(redis.ask_through(&proxy, &["SET", "n", &value], b""), "OK");
        assert_eq!(redis.ask_through(&proxy, &["GET", "n"], b""), value);
    }
    redis.load(&proxy, &["-t", "set,get", "-n", "2000", "-c", "10"]);
    assert_eq!(redis.ask(&["CONFIG", "RESETSTAT"]), "OK");
    assert_eq!(redis.ask_through(&proxy, &["PING"], b""), "PONG");
    let statistics = end(proxy);
    let (clients, dialled) = (
        figure(&statistics, "clients"),
        figure(&statistics, "dialled"),
    );
    assert_eq!(
        figure(&statistics, "reused"),
        clients - dialled,
        "{statistics}"
    );
    assert!(figure(&statistics, "reused") >= 19, "{statistics}");
    assert_eq!(figure(&statistics, "released"), clients, "{statistics}");
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn redis_behind_a_chain_of_proxies_with_one_thread_each() {
    let Some(redis) = Redis::start() else { return };
    let single = ["--pollers", "1", "--threads", "1"];
    let inner = proxy(&redis.backend(), &single);
    let middle = proxy(&format!("127.0.0.1:{}", inner.port()), &single);
    let outer = proxy(&format!("127.0.0.1:{}", middle.port()), &single);
    redis.load(
        &outer,
        &["-t", "set,get", "-n", "3000", "-c", "20", "-P", "4"],
    );
    assert_eq!((redis.calls("set"), redis.calls("get")), (3000, 3000));
    for proxy in [outer, middle, inner] {
        let statistics = end(proxy);
        assert_eq!(figure(&statistics, "refused"), 0, "{statistics}");
        assert_eq!(figure(&statistics, "failed"), 0, "{statistics}");
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn the_next_redis_is_tried_when_one_refuses() {
    let Some(redis) = Redis::start() else { return };
    let nobody = format!("unix:{}", fresh_path(".sock"));
    let backends = format!("{nobody},{},{nobody}", redis.backend());
    let proxy = proxy(&backends, &[]);
    for _ in 0..6 {
        assert_eq!(redis.ask_through(&proxy, &["PING"], b""), "PONG");
    }
    let statistics = end(proxy);
    // Taken in turn: from the first, from the second that answers, and round from the third.
    assert_eq!(figure(&statistics, "refused"), 6, "{statistics}");
    assert_eq!(figure(&statistics, "finished"), 6, "{statistics}");
}
