//! Servers: accepting, dispatch, limits, overload, the end.

mod accept;
mod chaos;
mod descriptors;
mod dispatch;
#[cfg(feature = "tracing")]
mod event_log;
mod extremes;
#[cfg(target_os = "linux")]
mod fork;
mod latency;
mod limits;
mod message_deadline;
mod overload;
#[cfg(feature = "tracing")]
mod overload_log;
mod serve;
mod shutdown;
#[cfg(feature = "signals")]
mod signals;
#[path = "../support/mod.rs"]
mod support;
mod unix;
