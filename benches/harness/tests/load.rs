//! The program as it is used: a server in one process, the load generator in another.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_netpoll-bench");

struct Server {
    child: Child,
    addr: String,
}

impl Server {
    fn start(peer: &str) -> Self {
        Self::try_start(&[peer]).unwrap_or_else(|| panic!("{peer} does not listen"))
    }

    /// A server, or a proxy with its options; none where it ends instead.
    fn try_start(arguments: &[&str]) -> Option<Self> {
        let mut child = Command::new(PROGRAM)
            .arg("serve")
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--with-parent"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let Some(addr) = line.split_whitespace().nth(1) else {
            child.wait().unwrap();
            return None;
        };
        let addr = addr.to_owned();
        Some(Self { child, addr })
    }

    fn load(&self, options: &[&str]) -> serde_json::Value {
        let output = program(&[&["load", "--connect", &self.addr, "--json"], options].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn program(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

/// Every kind of load the two servers without further dependencies have to bear.
fn bear(peer: &str) {
    let server = Server::start(peer);
    let short = ["--seconds", "0.2", "--warmup", "0.02"];
    let plain = server.load(&[&short[..], &["--verify", "--connections", "8"]].concat());
    let (requests, seconds) = (
        plain["requests"].as_u64().unwrap(),
        plain["seconds"].as_f64().unwrap(),
    );
    assert!(requests > 8 && seconds >= 0.2, "{plain}");
    assert_eq!(plain["latency"]["count"].as_u64().unwrap(), requests);
    let latency = |quantile: &str| plain["latency"][quantile].as_f64().unwrap();
    assert!(0.0 < latency("p50_us") && latency("p50_us") <= latency("p999_us"));

    for (options, exact) in [
        (
            &["--requests", "3000", "--connections", "4", "--depth", "100"][..],
            false,
        ),
        (
            &[
                "--requests",
                "20",
                "--connections",
                "2",
                "--size",
                "1000000",
            ],
            false,
        ),
        (
            &[
                "--requests",
                "20",
                "--depth",
                "2",
                "--size",
                "1000000",
                "--kind",
                "sink",
            ],
            false,
        ),
        (
            &["--requests", "300", "--connections", "5", "--churn"],
            true,
        ),
    ] {
        let asked: u64 = options[1].parse().unwrap();
        let counted = server.load(options)["requests"].as_u64().unwrap();
        let tolerance = if exact { 5 } else { 400 };
        assert!(
            (asked..asked + tolerance).contains(&counted),
            "{options:?}: {counted}"
        );
    }

    let split = [
        "--requests",
        "500",
        "--connections",
        "10",
        "--size",
        "1000",
        "--split",
        "0.05",
    ];
    let split = server.load(&split);
    assert!(split["marked"]["count"].as_u64().unwrap() > 0, "{split}");
    assert!(
        split["marked"]["p50_us"].as_f64().unwrap() >= 10_000.0,
        "{split}"
    );

    let slow = ["--requests", "500", "--connections", "4", "--slow", "2"];
    assert!(server.load(&slow)["requests"].as_u64().unwrap() >= 500);
}

#[test]
fn the_raw_loop_bears_every_load() {
    bear("raw-epoll");
}

#[test]
fn threads_bear_every_load() {
    bear("threads");
}

#[test]
fn the_hand_off_bears_every_load() {
    bear("handoff");
}

#[test]
fn mio_bears_every_load() {
    bear("mio");
}

/// The names in one part of what `list` prints.
fn listed(part: &str) -> Vec<String> {
    let text = String::from_utf8(program(&["list"]).stdout).unwrap();
    let lines = text.lines().skip_while(|line| *line != part).skip(1);
    let names = lines.take_while(|line| line.starts_with(' '));
    names
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_server_listed_speaks_the_frame() {
    let names = listed("peers:");
    assert!(names.len() >= 6);
    for name in names {
        let server = Server::start(&name);
        let load = [
            "--verify",
            "--requests",
            "300",
            "--connections",
            "20",
            "--slow",
            "1",
        ];
        let answered = server.load(&load)["requests"].as_u64().unwrap();
        assert!(answered >= 300, "{name}: {answered}");
    }
}

#[test]
fn every_proxy_listed_passes_the_frames_on() {
    let backend = Server::start("raw-epoll");
    let names = listed("proxies:");
    assert!(names.len() >= 5);
    for name in names {
        let Some(proxy) = Server::try_start(&[&name, "--backend", &backend.addr]) else {
            assert!(name.starts_with("haproxy"), "{name} does not listen");
            println!("{name} is left out: its program is not installed");
            continue;
        };
        for load in [
            &["--verify", "--requests", "300", "--connections", "20"][..],
            &["--requests", "8", "--connections", "2", "--size", "1048576"],
        ] {
            let asked: u64 = load.iter().find_map(|word| word.parse().ok()).unwrap();
            let answered = proxy.load(load)["requests"].as_u64().unwrap();
            assert!(answered >= asked, "{name}: {answered} of {asked}");
        }
    }
}

#[test]
fn every_client_listed_makes_its_calls() {
    let server = Server::start("raw-epoll");
    let names = listed("clients:");
    assert!(names.len() >= 3);
    for name in names {
        // A client that holds its connections has none to share.
        let hows = [&[][..], &["--shared"]];
        for how in &hows[..if name == "netpoll-held" { 1 } else { 2 }] {
            let call = [
                "call",
                &name,
                "--connect",
                &server.addr,
                "--requests",
                "300",
            ];
            let output = program(&[&call[..], &["--callers", "5"], how].concat());
            let (text, error) = (output.stdout, String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{name} {how:?}: {error}");
            let figures: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert!(
                figures["requests_per_second"].as_f64().unwrap() > 0.0,
                "{figures}"
            );
            assert!(figures["p50_us"].as_f64().unwrap() > 0.0, "{figures}");
        }
    }
}

#[test]
fn mistakes_are_explained() {
    for (arguments, word) in [
        (&["load"][..], "--connect"),
        (&["serve", "nobody", "--listen", "127.0.0.1:0"], "nobody"),
        (&["load", "--connect", "nowhere"], "nowhere"),
        (
            &["serve", "netpoll-relay", "--listen", "127.0.0.1:0"],
            "--backend",
        ),
        (
            &["load", "--connect", "127.0.0.1:1", "--split", "2"],
            "share",
        ),
        (&["compare", "--scenario", "none"], "none"),
        (&["fly"], "fly"),
    ] {
        let output = program(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(word),
            "{arguments:?}: {text}"
        );
    }
}

#[test]
fn a_comparison_leaves_a_report() {
    let out = std::env::temp_dir().join(format!("netpoll-bench-report-{}", std::process::id()));
    let path = out.to_str().unwrap();
    let run = [
        "compare",
        "--scenario",
        "pp-10-1k,pp-100-1k,idle-1000,call-1",
        "--peers",
        "threads",
    ];
    let how = [
        "--rounds",
        "2",
        "--seconds",
        "0.03",
        "--pin",
        "--no-counts",
        "--out",
        path,
    ];
    let output = program(&[&run[..], &how].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let overview = std::fs::read_to_string(out.join("README.md")).unwrap();
    for expected in [
        "raw-epoll-2",
        "threads",
        "pp-100-1k pinned",
        "std-2",
        "1000 silent connections",
    ] {
        assert!(overview.contains(expected), "{expected}: {overview}");
    }
    let results = std::fs::read_to_string(out.join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    assert!(
        results["failed"].as_array().unwrap().is_empty(),
        "{}",
        results["failed"]
    );
    assert_eq!(
        results["samples"].as_array().unwrap().len(),
        2 * 2 * 3 + 3 + 2 * 2
    );
    assert!(out.join("latency-pinned.svg").exists());
    std::fs::remove_dir_all(out).unwrap();
}

#[test]
fn reports_of_several_runs_become_one() {
    let out = |name: &str| {
        let name = format!("netpoll-bench-{name}-{}", std::process::id());
        std::env::temp_dir().join(name)
    };
    let (first, second, all) = (out("first"), out("second"), out("all"));
    let how = [
        "--rounds",
        "1",
        "--seconds",
        "0.03",
        "--free",
        "--no-counts",
        "--out",
    ];
    for (scenario, peer, out) in [
        ("proxy-100-1k", "netpoll-relay", &first),
        ("pp-10-1k", "netpoll", &second),
    ] {
        let what = ["compare", "--scenario", scenario, "--peers", peer];
        let output = program(&[&what[..], &how, &[out.to_str().unwrap()]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{scenario}: {error}");
    }
    let file = |out: &std::path::Path| out.join("results.json").to_str().unwrap().to_owned();
    let (from, and) = (file(&first), file(&second));
    let merge = ["compare", "--from", &from, "--from", &and, "--out"];
    let output = program(&[&merge[..], &[all.to_str().unwrap()]].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let overview = std::fs::read_to_string(all.join("README.md")).unwrap();
    for expected in [
        "### Proxies, free",
        "| netpoll-relay |",
        "### Ping-pong of 1k, free",
        "| netpoll ",
        "1 rounds of 0.03 s each; 1 rounds of 0.03 s each",
    ] {
        assert!(overview.contains(expected), "{expected}: {overview}");
    }
    let results = std::fs::read_to_string(all.join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    let rounds: Vec<_> = results["samples"].as_array().unwrap().iter().collect();
    let of = |peer: &str| rounds.iter().filter(|one| one["peer"] == peer).count();
    assert_eq!((of("netpoll-relay"), of("netpoll")), (1, 1));
    assert!(all.join("proxy-cpu-per-request-free.svg").exists());
    for out in [first, second, all] {
        std::fs::remove_dir_all(out).unwrap();
    }
}
