//! Several buffers in one system call, without joining them: calls and allocations are counted.

use crate::support::{bounded, counting, pair, pattern};
use netpoll::{
    Bytes,
    fault::{Call, Plan},
};
use std::io::{IoSlice, Read};

/// Calls of `send` and bytes allocated while `code` runs on this thread.
fn cost(code: impl FnOnce()) -> (u64, u64) {
    let plan = Plan::new(0).this_thread().install();
    let before = counting::total();
    code();
    let allocated = counting::total() - before;
    (plan.calls(Call::Send), allocated)
}

// One test: the allocator counts for all threads of the process.
#[test]
fn several_buffers_go_out_in_one_call_and_are_not_joined() {
    bounded("vectored", || {
        let (mut conn, mut peer) = pair();
        let parts: Vec<Vec<u8>> = (0..8).map(|i| pattern(i, 5000)).collect();
        let all = parts.concat();
        let mut got = vec![0; all.len()];
        for round in 0..3 {
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let (calls, allocated) = cost(|| {
                assert_eq!(conn.write_vectored(&slices).unwrap(), all.len());
            });
            assert_eq!(calls, 1, "round {round}");
            assert!(
                allocated < 1000,
                "round {round}: {allocated} bytes allocated for {}",
                all.len()
            );
            peer.read_exact(&mut got).unwrap();
            assert!(got == all);
        }

        // So it is with owned buffers that are linked.
        let shared: Vec<Bytes> = parts.into_iter().map(Bytes::from).collect();
        for round in 0..3 {
            let (calls, allocated) = cost(|| {
                for part in &shared {
                    conn.write_bytes(part.clone()).unwrap();
                }
                conn.flush().unwrap();
            });
            assert_eq!(calls, 1, "round {round}");
            // The first round makes the lists that the others use again.
            assert!(
                round == 0 || allocated < 1000,
                "round {round}: {allocated} bytes allocated for {}",
                all.len()
            );
            peer.read_exact(&mut got).unwrap();
            assert!(got == all);
        }

        // And with what another thread would send: one message of several buffers.
        let handle = conn.handle();
        for round in 0..3 {
            let (calls, allocated) = cost(|| {
                let mut message = netpoll::LinkBuffer::new();
                for part in &shared {
                    message.write_bytes(part.clone());
                }
                assert_eq!(handle.send(message).unwrap(), all.len());
            });
            assert_eq!(calls, 1, "round {round}");
            println!("handle: round {round}: {allocated}");
            assert!(
                round == 0 || allocated < 8000,
                "round {round}: {allocated} bytes"
            );
            peer.read_exact(&mut got).unwrap();
            assert!(got == all);
        }
    });
}
