//! What watching over idle connections costs.

use crate::support::{
    Case, Kind, Peer, Server, Transport, counting, echo, eventually, in_child, let_pass, one_thread,
};
use netpoll::{Dialer, PollerGroup, Pollers};
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 8000;
const LONG: Duration = Duration::from_secs(3600);

fn serve(idle_timeout: Option<Duration>) -> Server {
    serve_on(1, idle_timeout)
}

/// With these pollers.
fn serve_on(pollers: impl Into<Pollers>, idle_timeout: Option<Duration>) -> Server {
    let case = Case::new(Transport::Unix, Kind::Adaptive);
    let builder = case.builder().pollers(pollers);
    let builder = match idle_timeout {
        Some(timeout) => builder.idle_timeout(timeout),
        None => builder,
    };
    case.serve_with(builder, echo())
}

fn connect_all(server: &Server) -> Vec<Peer> {
    let peers = (0..CONNECTIONS).map(|_| server.connect()).collect();
    eventually("all are accepted", || {
        server.event_loop.stats().connected as usize >= CONNECTIONS
    });
    peers
}

/// Bytes that the connections of such a server hold. What its only thread keeps to receive into is
/// there before.
fn held(group: &PollerGroup, idle_timeout: Option<Duration>) -> usize {
    let server = serve_on(group.clone(), idle_timeout);
    server.connect().ping(b"first");
    let mut peers = Vec::with_capacity(CONNECTIONS);
    let before = counting::live();
    peers.append(&mut connect_all(&server));
    // The last callback may still be on its way out.
    let mut least = usize::MAX;
    for peer in peers.iter_mut().take(20) {
        peer.ping(b"x");
        least = least.min(counting::live() - before);
    }
    drop(peers);
    server.stop();
    least
}

#[test]
fn an_idle_check_costs_no_more_than_32_bytes() {
    in_child("an_idle_check_costs_no_more_than_32_bytes", || {
        let group = one_thread();
        let without = (0..3).map(|_| held(&group, None)).min().unwrap();
        let mut least = usize::MAX;
        for _ in 0..5 {
            let with = held(&group, Some(LONG));
            // The four bytes of the timeout itself are in both. (The time of the last activity is
            // a statistic, kept for everybody.)
            let each = with.saturating_sub(without) / CONNECTIONS + 4;
            println!("{each} bytes per connection ({without} without, {with} with idle timeout)");
            least = least.min(each);
            if least <= 32 {
                return;
            }
        }
        panic!("{least} bytes");
    });
}

#[test]
fn thousands_of_idle_connections_use_no_processor_time() {
    in_child(
        "thousands_of_idle_connections_use_no_processor_time",
        || {
            let server = serve(Some(LONG));
            let mut peers = connect_all(&server);
            for peer in peers.iter_mut().take(100) {
                peer.ping(b"x");
            }
            // What is measured is the lack of activity, so there is nothing to wait for; what the
            // requests began may still end in the first rounds.
            let round = || {
                let before = crate::support::cpu_time();
                let_pass(Duration::from_millis(500));
                crate::support::cpu_time() - before
            };
            let used = (0..5).map(|_| round()).min().unwrap();
            assert!(used <= Duration::from_millis(10), "{used:?} of 500 ms");
            drop(peers);
            server.stop();
        },
    );
}

#[test]
fn connections_that_are_idle_together_are_all_closed_and_others_are_served_meanwhile() {
    in_child(
        "connections_that_are_idle_together_are_all_closed_and_others_are_served_meanwhile",
        || {
            let server = serve(Some(Duration::from_millis(500)));
            let mut peers = connect_all(&server);
            let mut busy = peers.pop().unwrap();
            let mut rounds = 0;
            let event_loop = server.event_loop.clone();
            eventually("all others are closed", || {
                busy.ping(b"x");
                rounds += 1;
                event_loop.stats().active == 1
            });
            assert!(rounds > 1);
            drop((busy, peers));
            server.stop();
        },
    );
}

#[test]
fn the_last_activity_is_when_bytes_moved() {
    let server = serve(None);
    let begin = Instant::now();
    // The coarse clock may be behind by a tick, or by more where a hypervisor delays those.
    let slack = Duration::from_millis(100);
    let (a, mut b) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut conn = Dialer::new().adopt(a).unwrap();
    let born = conn.stats().last_activity.unwrap();
    assert!(born + slack >= begin && born <= Instant::now());

    let_pass(3 * slack);
    let quiet = conn.stats().last_activity.unwrap();
    assert!(quiet <= born + slack, "nothing moved since");

    let sending = Instant::now();
    conn.write_slice(b"out").unwrap();
    conn.flush().unwrap();
    let sent = conn.stats().last_activity.unwrap();
    assert!(sent + slack >= sending, "output counts");

    let_pass(3 * slack);
    std::io::Write::write_all(&mut b, b"in").unwrap();
    let receiving = Instant::now();
    assert_eq!(conn.next(2).unwrap(), b"in");
    let received = conn.stats().last_activity.unwrap();
    assert!(received + slack >= receiving, "input counts");
    drop(conn);
    server.stop();
}
