//! One connection: callbacks, input, output, its states and its end.

mod callbacks;
mod close;
mod event_fn;
mod flush;
mod hijack;
mod interrupt;
mod io_write;
mod limits_changed;
mod queue;
#[cfg(feature = "tracing")]
mod queue_log;
mod read;
mod read_line;
mod receive_bulk;
#[cfg(target_os = "linux")]
mod receive_cut;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod thread_end;
mod timer;
mod values;
mod write;
