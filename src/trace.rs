//! Logging that compiles to nothing without the `tracing` feature.
//!
//! `trace::debug!("connection {id}: {error}")` and its siblings take a format string and its
//! arguments, nothing else. With the feature they emit an event with the target `netpoll`;
//! without it the arguments are still type-checked but never evaluated.

/// Defines one macro per level, for both states of the feature.
macro_rules! levels {
    ($d:tt: $($name:ident = $level:ident),+ $(,)?) => {$(
        // Some levels may have no user in some combination of features.
        #[allow(unused_macros)]
        #[cfg(feature = "tracing")]
        macro_rules! $name {
            ($d($d arg:tt)+) => {
                ::tracing::event!(
                    target: "netpoll",
                    ::tracing::Level::$level,
                    "{}",
                    ::core::format_args!($d($d arg)+)
                )
            };
        }

        #[allow(unused_macros)]
        #[cfg(not(feature = "tracing"))]
        macro_rules! $name {
            ($d($d arg:tt)+) => {
                if false {
                    _ = ::core::format_args!($d($d arg)+);
                }
            };
        }
    )+};
}

levels!($:
    error_ = ERROR,
    warn_ = WARN,
    info_ = INFO,
    debug_ = DEBUG,
    trace_ = TRACE,
);

#[allow(unused_imports)]
pub(crate) use {debug_ as debug, error_ as error, info_ as info, trace_ as trace, warn_ as warn};

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    /// Counts how often a value was formatted.
    struct Shown<'a>(&'a Cell<u32>);

    impl std::fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.set(self.0.get() + 1);
            f.write_str("shown")
        }
    }

    #[test]
    fn every_level_takes_a_format_string_and_formats_nothing_unheard() {
        let count = Cell::new(0);
        let value = Shown(&count);
        super::error!("{value}");
        super::warn!("{} {}", value, 1);
        super::info!("{value:>8}");
        super::debug!("{value} {n}", n = 2);
        super::trace!("plain");
        // No subscriber is installed (or the feature is off), so nobody formats.
        assert_eq!(count.get(), 0);
    }

    #[cfg(not(feature = "tracing"))]
    #[test]
    fn arguments_are_not_evaluated_without_the_feature() {
        let count = Cell::new(0);
        let touch = || count.set(count.get() + 1);
        super::debug!("{:?}", touch());
        assert_eq!(count.get(), 0);
        touch();
        assert_eq!(count.get(), 1);
    }
}
