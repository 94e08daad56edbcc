//! Sockets: where they are, how they are made, and the calls that move bytes.
//!
//! Everything that touches the system does so through [`syscall`], so that faults can be put in
//! its way.

mod accept_error;
mod address;
mod bind;
mod connect;
mod connecting;
mod endable;
mod listener;
mod options;
mod outgoing;
mod resolve;
#[cfg(target_os = "linux")]
pub(crate) mod splice;
mod stream;
mod syscall;
#[cfg(test)]
mod testing;
mod unix_path;
mod waiting;

pub(crate) use accept_error::{AcceptAction, classify};
pub use address::{Address, AddressError};
pub use bind::ListenOptions;
pub(crate) use connect::{Dial, connect};
pub(crate) use connecting::{Connecting, Step, peer_of};
pub use listener::Listener;
pub use options::SocketOptions;
pub(crate) use resolve::Addresses;
#[cfg(all(netpoll_faults, target_os = "linux"))]
pub(crate) use stream::announce_input;
pub(crate) use stream::{Peek, Received, Socket, is_shortage};
#[cfg(netpoll_faults)]
pub use syscall::Call;
