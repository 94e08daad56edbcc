//! How to use this crate, in chapters.
//!
//! | chapter | answers |
//! |---|---|
//! | [`server`] | accepting, handlers, state, options, listeners |
//! | [`client`] | blocking calls, pools, many requests in flight |
//! | [`buffers`] | reading and writing without copies, codecs |
//! | [`framing`] | where one message ends and the next begins |
//! | [`events`] | states, events, idleness, timers |
//! | [`dispatch`] | what a handler that waits costs others |
//! | [`backpressure`] | what bounds memory, in both directions |
//! | [`relay`] | joining two connections |
//! | [`shutdown`] | closing a connection, half-close, ending a server |
//! | [`errors`] | which error means what, timeouts, panics, logging |
//!
//! Every example is compiled and run by this crate's tests.

#[doc = include_str!("../docs/guide/server.md")]
///
/// [`Builder::half_open`]: crate::Builder::half_open
/// [`ConnectionHandle::hold`]: crate::ConnectionHandle::hold
///
/// ---
/// Types of this chapter: [`EventLoop`](crate::EventLoop), [`Builder`](crate::Builder),
/// [`Handler`](crate::Handler), [`handler_fn`](crate::handler_fn),
/// [`Connection`](crate::Connection), [`Listener`](crate::Listener),
/// [`SocketOptions`](crate::SocketOptions). Next: [`client`].
pub mod server {}

#[doc = include_str!("../docs/guide/client.md")]
///
/// ---
/// Types of this chapter: [`Dialer`](crate::Dialer), [`Connection`](crate::Connection),
/// [`Pool`](crate::Pool), [`Pooled`](crate::Pooled),
/// [`ConnectionHandle`](crate::ConnectionHandle), [`Address`](crate::Address). Next: [`buffers`].
pub mod client {}

#[doc = include_str!("../docs/guide/buffers.md")]
///
/// ---
/// Types of this chapter: [`LinkBuffer`](crate::LinkBuffer), [`Reader`](crate::Reader),
/// [`Writer`](crate::Writer), [`Slot`](crate::Slot),
/// [`ChunkPool`](crate::linkbuffer::ChunkPool). Next: [`framing`].
pub mod buffers {}

#[doc = include_str!("../docs/guide/framing.md")]
///
/// ---
/// Types of this chapter: [`Decoder`](crate::Decoder), [`Encoder`](crate::Encoder),
/// [`LengthField`](crate::LengthField), [`Delimited`](crate::Delimited),
/// [`FixedLength`](crate::FixedLength), [`framed`](crate::framed),
/// [`FrameError`](crate::FrameError). Next: [`events`].
pub mod framing {}

#[doc = include_str!("../docs/guide/events.md")]
///
/// ---
/// Types of this chapter: [`State`](crate::State), [`event_fn`](crate::event_fn),
/// [`event_fn_with`](crate::event_fn_with), [`Event`](crate::Event), [`Timer`](crate::Timer),
/// [`Builder`](crate::Builder), [`Dialer`](crate::Dialer). Next: [`dispatch`].
pub mod events {}

#[doc = include_str!("../docs/guide/dispatch.md")]
///
/// ---
/// Types of this chapter: [`Dispatch`](crate::Dispatch), [`Executor`](crate::Executor),
/// [`Task`](crate::Task), [`PollerGroup`](crate::PollerGroup). Next: [`backpressure`].
pub mod dispatch {}

#[doc = include_str!("../docs/guide/backpressure.md")]
///
/// [`Builder::input_limits`]: crate::Builder::input_limits
/// [`Builder::memory_limit`]: crate::Builder::memory_limit
/// [`Builder::output_limit`]: crate::Builder::output_limit
/// [`Error::InputLimit`]: crate::Error::InputLimit
/// [`Error::WriteTimeout`]: crate::Error::WriteTimeout
///
/// ---
/// Types of this chapter: [`OnFull`](crate::OnFull),
/// [`ConnectionHandle`](crate::ConnectionHandle), [`ConnectionStats`](crate::ConnectionStats).
/// Next: [`relay`].
pub mod backpressure {}

#[doc = include_str!("../docs/guide/relay.md")]
///
/// ---
/// Types of this chapter: [`relay()`](crate::relay()), [`Relay`](crate::Relay),
/// [`RelayBuilder`](crate::RelayBuilder), [`RelayEnd`](crate::RelayEnd),
/// [`Outcome`](crate::Outcome), [`Verdict`](crate::Verdict). Next: [`shutdown`].
pub mod relay {}

#[doc = include_str!("../docs/guide/shutdown.md")]
///
/// ---
/// Types of this chapter: [`EventLoop`](crate::EventLoop),
/// [`ConnectionHandle`](crate::ConnectionHandle), [`Done`](crate::Done),
/// [`CloseReason`](crate::CloseReason). Next: [`errors`].
pub mod shutdown {}

#[doc = include_str!("../docs/guide/errors.md")]
///
/// ---
/// Types of this chapter: [`Error`](crate::Error), [`CloseReason`](crate::CloseReason).
pub mod errors {}

/// The examples of the other documents are tests too.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    mod readme {}

    #[doc = include_str!("../docs/from-netpoll.md")]
    mod from_netpoll {}
}
