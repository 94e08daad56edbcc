//! Calling code of others so that nothing it throws gets any further.

use std::{
    any::Any,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Values that are thrown one by the drop of the other before the rest is left alone.
const NESTED: usize = 32;

/// Runs `code`; a panic ends here.
///
/// # Errors
///
/// What the code threw, if it panicked.
#[inline]
pub fn contained<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|payload| Panicked(Some(payload)))
}

/// What a panic has thrown. That is a value of the user's, so its drop may panic too, and throw another
/// one: the drop of this type never panics.
#[derive(Debug)]
pub struct Panicked(Option<Box<dyn Any + Send>>);

impl Panicked {
    /// The text of the panic, if it has one.
    pub fn text(&self) -> &str {
        let payload = self.0.as_ref();
        let text = payload.and_then(|payload| payload.downcast_ref::<&str>().copied());
        text.or_else(|| payload?.downcast_ref().map(String::as_str))
            .unwrap_or("(no text)")
    }
}

impl Drop for Panicked {
    fn drop(&mut self) {
        let mut thrown = self.0.take();
        for _ in 0..NESTED {
            match thrown {
                Some(payload) => {
                    thrown = catch_unwind(AssertUnwindSafe(|| drop(payload))).err();
                }
                None => return,
            }
        }
        // There may be no end to it.
        mem::forget(thrown);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::{
        panic::panic_any,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };

    /// Throws another one like it when it is dropped, so many times.
    struct Thrower {
        left: usize,
        drops: Arc<AtomicUsize>,
    }

    impl Drop for Thrower {
        fn drop(&mut self) {
            self.drops.fetch_add(1, SeqCst);
            if self.left > 0 {
                panic_any(Self {
                    left: self.left - 1,
                    drops: Arc::clone(&self.drops),
                });
            }
        }
    }

    /// How many were dropped of a payload that throws `left` more.
    fn drops(left: usize) -> usize {
        let drops = Arc::new(AtomicUsize::new(0));
        let first = Thrower {
            left,
            drops: Arc::clone(&drops),
        };
        assert!(contained(|| panic_any(first)).is_err());
        drops.load(SeqCst)
    }

    #[test]
    fn what_is_thrown_by_drops_is_dropped_to_the_end() {
        assert_eq!(drops(0), 1);
        assert_eq!(drops(1), 2);
        assert_eq!(drops(10), 11);
    }

    #[test]
    fn a_chain_of_throws_without_an_end_is_left_alone() {
        assert_eq!(drops(usize::MAX), NESTED);
    }

    #[test]
    fn texts_are_told() {
        let text = |panic: Result<(), Panicked>| panic.unwrap_err().text().to_owned();
        assert_eq!(text(contained(|| panic!("plain"))), "plain");
        assert_eq!(text(contained(|| panic!("{}", 7))), "7");
        assert_eq!(text(contained(|| panic_any(7))), "(no text)");
        assert_eq!(contained(|| 7).unwrap(), 7);
    }
}
