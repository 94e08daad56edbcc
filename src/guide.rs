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
/// [`EventLoopBuilder::half_open`]: crate::EventLoopBuilder::half_open
/// [`ConnectionHandle::hold`]: crate::ConnectionHandle::hold
///
/// ---
/// Types of this chapter: [`EventLoop`](crate::EventLoop), [`EventLoopBuilder`](crate::EventLoopBuilder),
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
/// [`Writer`](crate::Writer), [`LengthSlot`](crate::LengthSlot),
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
/// Types of this chapter: [`ConnectionState`](crate::ConnectionState), [`event_fn`](crate::event_fn),
/// [`event_fn_with`](crate::event_fn_with), [`ConnectionEvent`](crate::ConnectionEvent), [`TimerHandle`](crate::TimerHandle),
/// [`EventLoopBuilder`](crate::EventLoopBuilder), [`Dialer`](crate::Dialer). Next: [`dispatch`].
pub mod events {}

#[doc = include_str!("../docs/guide/dispatch.md")]
///
/// ---
/// Types of this chapter: [`Dispatch`](crate::Dispatch), [`Executor`](crate::Executor),
/// [`DispatchTask`](crate::DispatchTask), [`PollerGroup`](crate::PollerGroup). Next: [`backpressure`].
pub mod dispatch {}

#[doc = include_str!("../docs/guide/backpressure.md")]
///
/// [`EventLoopBuilder::input_limits`]: crate::EventLoopBuilder::input_limits
/// [`EventLoopBuilder::memory_limit`]: crate::EventLoopBuilder::memory_limit
/// [`EventLoopBuilder::output_limit`]: crate::EventLoopBuilder::output_limit
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
/// [`RelayOutcome`](crate::RelayOutcome), [`RelayVerdict`](crate::RelayVerdict). Next: [`shutdown`].
pub mod relay {}

#[doc = include_str!("../docs/guide/shutdown.md")]
///
/// ---
/// Types of this chapter: [`EventLoop`](crate::EventLoop),
/// [`ConnectionHandle`](crate::ConnectionHandle), [`CloseWaiter`](crate::CloseWaiter),
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
