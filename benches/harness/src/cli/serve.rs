//! `serve`: one server, until it is killed.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;

use super::{Failure, address};
use crate::{net, peers, proxies, sys, work};

const HELP: &str = "\
serve NAME --listen ADDR [options]

  --listen ADDR       where to listen, such as 127.0.0.1:7000 (port 0: any)
  --backend ADDR      of a proxy: the server behind it
  --congestion NAME   congestion control of every socket
  --core N            run on this core alone
  --steps N           steps of one computation (measured at the start when not given)
  --with-parent       end when the process that started this one ends

Prints `listening ADDR pid PID` once connections are taken. `list` names
the peers and the proxies.
";

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let (mut name, mut listen, mut backend) = (None, None, None);
    let (mut congestion, mut core, mut steps) = (None, None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("listen") => listen = Some(address(&mut args)?),
            Long("backend") => backend = Some(address(&mut args)?),
            Long("congestion") => congestion = Some(args.value()?.string()?),
            Long("core") => core = Some(args.value()?.parse()?),
            Long("steps") => steps = Some(args.value()?.parse()?),
            Long("with-parent") => sys::die_with_parent()?,
            Value(value) if name.is_none() => name = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let name = name.ok_or("serve needs the name of a peer; `list` names them")?;
    let serve = server(&name, backend)?;
    let listen = listen.ok_or("serve needs --listen ADDR")?;
    if let Some(core) = core {
        sys::set_affinity(&[core])?;
    }
    sys::raise_fd_limit()?;
    work::set_steps(steps.unwrap_or_else(work::calibrate));
    let listener = net::listen(listen, congestion.as_deref())
        .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    println!(
        "listening {} pid {}",
        listener.local_addr()?,
        std::process::id()
    );
    io::stdout().flush()?;
    serve(listener).map_err(|error| format!("{name} has ended: {error}").into())
}

type Serve = Box<dyn FnOnce(TcpListener) -> io::Result<()>>;

/// The server called `name`, or the proxy of that name in front of `backend`.
fn server(name: &str, backend: Option<SocketAddr>) -> Result<Serve, Failure> {
    if let Some(peer) = peers::find(name) {
        return Ok(Box::new(peer.serve));
    }
    let proxy =
        proxies::find(name).ok_or_else(|| format!("no peer {name:?}; `list` names them"))?;
    if let Some(reason) = proxy.missing() {
        return Err(reason.into());
    }
    let backend = backend.ok_or_else(|| format!("{name} is a proxy: it needs --backend ADDR"))?;
    Ok(Box::new(move |listener| (proxy.serve)(listener, backend)))
}
