//! The examples, as processes of their own, and the names in the guides.

#[path = "../support/testbed.rs"]
mod bed;
#[path = "../../examples/support/quickstart/codec.rs"]
mod codec;
#[path = "../../examples/support/quickstart/multiplex.rs"]
mod multiplex;

mod echo;
mod from_netpoll;
mod line_echo;
mod proxy;
mod proxy_redis;
mod quickstart;
mod rpc;
#[path = "../support/examples.rs"]
mod support;
mod testbed;
mod testbed_client;
mod testbed_options;
