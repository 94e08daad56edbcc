//! `serve`: one server, until it is killed.

use std::io::Write;

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;

use super::{Failure, address};
use crate::{net, peers, sys, work};

const HELP: &str = "\
serve PEER --listen ADDR [options]

  --listen ADDR       where to listen, such as 127.0.0.1:7000 (port 0: any)
  --congestion NAME   congestion control of every socket
  --core N            run on this core alone
  --steps N           steps of one computation (measured at the start when not given)
  --with-parent       end when the process that started this one ends

Prints `listening ADDR pid PID` once connections are taken. `list` names the peers.
";

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let (mut name, mut listen, mut congestion, mut core, mut steps) =
        (None, None, None, None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("listen") => listen = Some(address(&mut args)?),
            Long("congestion") => congestion = Some(args.value()?.string()?),
            Long("core") => core = Some(args.value()?.parse()?),
            Long("steps") => steps = Some(args.value()?.parse()?),
            Long("with-parent") => sys::die_with_parent()?,
            Value(value) if name.is_none() => name = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let name = name.ok_or("serve needs the name of a peer; `list` names them")?;
    let peer = peers::find(&name).ok_or_else(|| format!("no peer {name:?}; `list` names them"))?;
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
    std::io::stdout().flush()?;
    (peer.serve)(listener).map_err(|error| format!("{name} has ended: {error}").into())
}
