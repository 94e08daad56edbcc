//! Event-loop networking with zero-copy buffers and handlers that may block.

#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod config;
mod connection;
mod context;
mod dispatch;
mod error;
mod event_loop;
#[cfg(feature = "fault-injection")]
#[doc(hidden)]
pub mod fault;
mod handler;
mod net;
mod stats;
mod sync;
mod trace;

pub use bytes::{self, Bytes, BytesMut};
pub use client::{Dialer, Pool, PoolStats, Pooled};
pub use config::OnFull;
pub use connection::{
    Connection, ConnectionHandle, Done, Hold, Line, OwnedReadHalf, OwnedWriteHalf, ReadHalf, State,
    WriteHalf,
};
pub use dispatch::{Dispatch, Executor, Task};
pub use error::{CloseReason, Error, InvalidAddress};
pub use event_loop::{Builder, EventLoop, Pollers};
pub use handler::{Handler, HandlerFn, handler_fn};
pub use linkbuffer::{self, LinkBuffer, Reader, Slot, Writer};
pub use net::{Address, AddressError, ListenOptions, Listener, SocketOptions};
pub use poller::{self, Balance, PollerGroup};
pub use stats::{ConnectionStats, Stats};
