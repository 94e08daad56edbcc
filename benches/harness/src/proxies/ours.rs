//! netpoll: a relay per client, its backend from a pool.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use netpoll::{Address, Connection, Dialer, EventLoop, EventLoopBuilder, Handler, Pool, relay};

/// Clients and backends on the process-wide pollers, as everything is by default.
pub(crate) fn together(listener: TcpListener, backend: SocketAddr) -> io::Result<()> {
    serve(EventLoop::builder(), listener, backend)
}

/// Clients on one poller, backends on the process-wide ones.
pub(crate) fn apart(listener: TcpListener, backend: SocketAddr) -> io::Result<()> {
    serve(EventLoop::builder().pollers(1), listener, backend)
}

struct Relaying {
    pool: Pool,
    backend: Address,
}

impl Handler for Relaying {
    type State = ();

    fn on_connect(&self, client: &mut Connection) -> io::Result<()> {
        let backend = self.pool.get(&self.backend)?;
        relay(client.hijack()?, backend).map(drop)
    }

    fn on_request(&self, _: &mut Connection, (): &mut ()) -> io::Result<()> {
        // The relay has taken the connection.
        Ok(())
    }
}

fn serve(builder: EventLoopBuilder, listener: TcpListener, backend: SocketAddr) -> io::Result<()> {
    let relaying = Relaying {
        pool: Pool::new(Dialer::new().connect_timeout(Duration::from_secs(5))),
        backend: backend.into(),
    };
    builder.build(relaying)?.serve(listener)
}
