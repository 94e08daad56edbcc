//! Dropping several nodes. The drop of a payload may run user code.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use crate::chunk::ChunkPool;
use crate::node::Node;

/// Drops nodes one by one, to the last, whatever their payloads do
/// ([`Bytes::from_owner`](bytes::Bytes::from_owner)). The first panic goes on when all of them are gone,
/// unless the thread is unwinding already: a second one would end the process.
#[derive(Default)]
pub(crate) struct Discarded {
    thrown: Option<Box<dyn Any + Send>>,
}

impl Discarded {
    pub(crate) fn add(&mut self, pool: &ChunkPool, node: Node) {
        match node {
            Node::Owned(chunk, class) => pool.give(chunk, class),
            Node::Shared(_) | Node::Extendable(..) => {
                if let Err(thrown) = catch_unwind(AssertUnwindSafe(|| drop(node))) {
                    if self.thrown.is_none() {
                        self.thrown = Some(thrown);
                    } else {
                        dispose(thrown);
                    }
                }
            }
            Node::Empty | Node::Exclusive(_) => {}
        }
    }
}

impl Drop for Discarded {
    fn drop(&mut self) {
        match self.thrown.take() {
            Some(thrown) if thread::panicking() => dispose(thrown),
            Some(thrown) => resume_unwind(thrown),
            None => {}
        }
    }
}

/// Drops the payload of a panic, and the payload of a panic in that drop.
#[cold]
fn dispose(thrown: Box<dyn Any + Send>) {
    let mut thrown = Some(thrown);
    for _ in 0..NESTED {
        match thrown {
            Some(payload) => thrown = catch_unwind(AssertUnwindSafe(|| drop(payload))).err(),
            None => return,
        }
    }
    // There may be no end to it.
    mem::forget(thrown);
}

/// Values that are thrown one by the drop of the other before the rest is left alone.
const NESTED: usize = 32;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use bytes::Bytes;

    use super::*;
    use crate::LinkBuffer;

    /// A payload that panics when it is dropped.
    struct Firework(Bytes, Arc<AtomicUsize>);

    impl AsRef<[u8]> for Firework {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Firework {
        fn drop(&mut self) {
            self.1.fetch_add(1, SeqCst);
            panic!("firework");
        }
    }

    /// Three of them, linked, with other bytes between.
    fn chain(drops: &Arc<AtomicUsize>) -> LinkBuffer {
        let mut chain = LinkBuffer::new();
        for _ in 0..3 {
            let payload = Firework(vec![1; 5000].into(), Arc::clone(drops));
            chain.write_bytes(Bytes::from_owner(payload));
            chain.write_str("between");
        }
        chain
    }

    /// Three that are views of chunks which are much larger, linked as they are.
    fn parts(len: usize, drops: &Arc<AtomicUsize>) -> LinkBuffer {
        let mut chain = LinkBuffer::new();
        for _ in 0..3 {
            let mut chunk = LinkBuffer::with_capacity(64 << 10);
            chunk.write_slice(&[1; 60_000]);
            chunk.flush();
            let view = chunk.next_bytes(60_000).unwrap().slice(..len);
            let payload = Bytes::from_owner(Firework(view, Arc::clone(drops)));
            chain.link(Node::Shared(payload));
            chain.pending += len;
            chain.written += len as u64;
        }
        chain
    }

    /// The panic message of `f`, and the number of payloads it dropped.
    fn drops(f: impl FnOnce(LinkBuffer)) -> (String, usize) {
        let drops = Arc::new(AtomicUsize::new(0));
        let chain = chain(&drops);
        let thrown = catch_unwind(AssertUnwindSafe(|| f(chain))).unwrap_err();
        let text = thrown.downcast_ref::<&str>().expect("a text");
        ((*text).to_owned(), drops.load(SeqCst))
    }

    #[test]
    fn all_payloads_are_dropped_and_the_first_panic_goes_on() {
        let one = "firework".to_owned();
        assert_eq!(drops(drop), (one.clone(), 3));
        assert_eq!(drops(|mut chain| chain.malloc_ack(0)), (one.clone(), 3));
        let consumed = drops(|mut chain| {
            chain.flush();
            let n = chain.len();
            chain.consume(n);
        });
        assert_eq!(consumed, (one.clone(), 3));
        let moved = drops(|mut chain| {
            chain.flush();
            let room = chain.reserve_recv(20_000);
            chain.commit_recv(room);
        });
        assert_eq!(moved, (one, 3));
    }

    #[test]
    fn a_buffer_is_whole_when_copied_payloads_panicked() {
        for len in [100, 5000] {
            let drops = Arc::default();
            let mut buf = parts(len, &drops);
            assert!(catch_unwind(AssertUnwindSafe(|| buf.compact())).is_err());
            // Where chunks lie is an estimate: a long one may have been left as it is.
            let copied = drops.load(SeqCst);
            assert!(copied == 3 || (len > 100 && copied > 0), "{copied}");
            buf.flush();
            assert_eq!(buf, *vec![1; 3 * len]);
        }
    }

    #[test]
    fn payloads_are_dropped_on_the_way_of_another_panic() {
        let unwound = drops(|_chain| panic!("on the way"));
        assert_eq!(unwound, ("on the way".to_owned(), 3));
    }

    #[test]
    fn a_buffer_whose_payloads_panicked_is_used_on() {
        let drops = Arc::new(AtomicUsize::new(0));
        let mut buf = chain(&drops);
        assert!(catch_unwind(AssertUnwindSafe(|| buf.malloc_ack(0))).is_err());
        assert_eq!((buf.malloc_len(), buf.len()), (0, 0));
        buf.write_str("fine");
        buf.flush();
        assert_eq!(buf, *b"fine");
    }
}
