//! A plan of faults from the environment: for processes that know nothing of it.

use netpoll::{
    Dialer, EventLoop, Listener,
    fault::{Call, environment_counts},
    handler_fn,
};
use std::{env, process::Output, time::Duration};

use crate::support::only_test;

const CHILD: &str = "NETPOLL_TEST_CHILD";
const PLAN: &str = "seed=1,recv:short=7:every=2,send:eintr:every=2,recv:later:chance=300";

/// This test binary again, with only the test `name` and this plan.
fn child(name: &str, plan: &str) -> Output {
    only_test(name)
        .env(CHILD, "1")
        .env("NETPOLL_FAULTS", plan)
        .output()
        .unwrap()
}

fn exchange() {
    let server = EventLoop::new(handler_fn(|conn| {
        let all = conn.slice(conn.available())?;
        conn.append(all)?;
        conn.flush()
    }))
    .unwrap();
    let listener = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
    let address = listener.local_addr().unwrap();
    server.serve_in_background(listener).unwrap();
    let mut conn = Dialer::new()
        .read_timeout(Duration::from_secs(30))
        .dial_connection(address)
        .unwrap();
    for round in 0..100_u8 {
        let out = vec![round; 100];
        conn.write_slice(&out).unwrap();
        conn.flush().unwrap();
        assert!(conn.next(100).unwrap() == out);
    }
    drop(conn);
    server.shutdown(Duration::from_secs(30)).unwrap();
}

#[test]
fn a_process_that_knows_nothing_of_it_is_hit() {
    if env::var_os(CHILD).is_none() {
        let output = child("a_process_that_knows_nothing_of_it_is_hit", PLAN);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{output:?}");
        assert!(said.contains("NETPOLL_FAULTS in force: seed=1"), "{said}");
        return;
    }
    exchange();
    for call in [Call::Receive, Call::Send] {
        let (calls, hits) = environment_counts(call).unwrap();
        assert!(hits > 50 && hits < calls, "{call:?}: {hits} of {calls}");
    }
    assert_eq!(environment_counts(Call::Accept).unwrap().1, 0);
}

#[test]
fn a_plan_that_cannot_be_read_ends_the_process_and_says_why() {
    if env::var_os(CHILD).is_none() {
        let name = "a_plan_that_cannot_be_read_ends_the_process_and_says_why";
        let output = child(name, "recv:short=seven:every=1");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{output:?}");
        assert!(said.contains("NETPOLL_FAULTS: 'seven'"), "{said}");
        return;
    }
    exchange();
}
