//! ConnectionEvent-loop networking with zero-copy buffers and handlers that may block.
//!
//! For servers and clients of request protocols over TCP and unix sockets: RPC systems, caches,
//! brokers, proxies, gateways. Connections are driven by a few threads that poll; handlers are plain
//! functions on those threads, and may wait.
//!
//! ```
//! use netpoll::{Dialer, EventLoop, Listener, handler_fn};
//! use std::{io, time::Duration};
//!
//! fn main() -> io::Result<()> {
//!     let server = EventLoop::new(handler_fn(|conn| {
//!         let all = conn.slice(conn.available())?;
//!         conn.append(all)?;
//!         conn.flush()
//!     }))?;
//!     let listener = Listener::bind(([127, 0, 0, 1], 0))?;
//!     let address = listener.local_addr()?;
//!     server.serve_in_background(listener)?;
//!
//!     let mut client = Dialer::new().dial_connection(address)?;
//!     client.write_str("hello")?;
//!     client.flush()?;
//!     assert_eq!(client.next(5)?, b"hello");
//!
//!     server.shutdown(Duration::from_secs(1))
//! }
//! ```
//!
//! # What there is
//!
//! * [`EventLoop`] accepts connections and runs a [`Handler`]; [`Dialer`] and [`Pool`] open them.
//! * [`Connection`] reads and writes, waiting or not; [`ConnectionHandle`] sends, watches and closes
//!   from any thread.
//! * [`Decoder`] and [`Encoder`] cut a stream into messages; [`framed`] makes a handler of a codec.
//! * [`relay()`] joins two connections.
//! * [`LinkBuffer`] is what input and output are kept in; [`Reader`] and [`Writer`] are what codecs
//!   are written against, so that they are tested without a socket.
//! * [`Dispatch`] says where handlers run, [`SocketOptions`] and [`EventLoopBuilder`] what is allowed.
//! * [`poller`] is the layer below, usable by itself: any descriptor can be watched.
//!
//! The [`guide`] explains them by task. What can be relied upon, point by point and each with the test
//! that would show it broken, is in `docs/promises.md` of the repository; how it works inside is in
//! `ARCHITECTURE.md`; `docs/from-netpoll.md` is for those who know the Go library of that name.
//!
//! # Is this for you?
//!
//! Yes, if your protocol is requests and replies over streams, you would rather write functions than
//! futures, some of your handlers wait for something, and many connections are open at once.
//!
//! No, if you need TLS or HTTP out of the box, UDP, files, or Windows; if your program is built on an
//! async runtime anyway; or if a thread per connection is enough for you, which is simpler.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `tracing` | yes | log events through the `tracing` crate; without it they compile to nothing |
//! | `signals` | | drain an event loop when a signal arrives |
//!
//! No feature changes what existing calls do. What tests need and would change it is behind flags of the
//! compiler, which no dependency can turn on for a whole program: `RUSTFLAGS="--cfg netpoll_leaks"` for a
//! list of what is not released and where it was made (`netpoll::leak`), `--cfg netpoll_faults` for socket
//! calls that fail or fall short by a seeded schedule.
//!
//! # Platforms and versions
//!
//! Linux is tested. macOS and FreeBSD use kqueue behind the same contract and are not exercised by the
//! project's checks. The libraries need Rust 1.85; raising that is a minor release.

#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod codec;
mod config;
mod connection;
mod context;
mod dispatch;
mod error;
mod event_fn;
mod event_loop;
#[cfg(netpoll_faults)]
#[doc(hidden)]
pub mod fault;
mod foreign;
pub mod guide;
mod handler;
#[cfg(netpoll_leaks)]
#[cfg_attr(docsrs, doc(cfg(netpoll_leaks)))]
pub mod leak;
mod memory;
mod net;
mod relay;
#[cfg(feature = "signals")]
mod signal;
mod stats;
mod sync;
mod timer;
mod trace;

pub use bytes::{self, Bytes, BytesMut};
pub use client::{Dialer, Pool, PoolBuilder, PoolStats, Pooled};
pub use codec::{
    Decoder, Delimited, Encoder, FixedLength, FrameError, FrameView, Framed, LengthField, framed,
};
pub use config::OnFull;
pub use connection::{
    CloseCallback, CloseWaiter, Connection, ConnectionHandle, ConnectionState, OwnedReadHalf,
    OwnedWriteHalf, PendingReply, ReadHalf, TextLine, WriteHalf,
};
pub use dispatch::{Dispatch, DispatchTask, Executor};
pub use error::{CloseReason, Error, InvalidAddress};
pub use event_fn::{ConnectionEvent, event_fn, event_fn_with};
pub use event_loop::{EventLoop, EventLoopBuilder, Pollers};
pub use handler::{Handler, HandlerFn, handler_fn};
pub use linkbuffer::{self, LengthSlot, LinkBuffer, Reader, Writer};
pub use net::{Address, AddressError, ListenOptions, Listener, SocketOptions};
pub use poller::{self, Balance, BusyThread, PollerGroup};
pub use relay::{Relay, RelayBuilder, RelayEnd, RelayOutcome, RelaySide, RelayVerdict, relay};
#[cfg(feature = "signals")]
#[cfg_attr(docsrs, doc(cfg(feature = "signals")))]
pub use signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SignalGuard, shutdown_on};
pub use stats::{ConnectionStats, Stats};
pub use timer::TimerHandle;
