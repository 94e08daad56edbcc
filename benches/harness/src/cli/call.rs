//! `call`: one client, for a while.

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;

use super::load::seconds;
use super::{Failure, address};
use crate::clients::{self, Job};
use crate::compare::callers;
use crate::sys;

const HELP: &str = "\
call CLIENT --connect ADDR [options]

  --connect ADDR      the server
  --callers N         callers, each with one call under way (1)
  --shared            on one connection for all, instead of one each
  --size BYTES        payload of a call (1024)
  --seconds S         how long to record (1)
  --warmup S          how long to call before (0.1)
  --requests N        end after N calls instead
  --core N            run on this core alone
  --with-parent       end when the process that started this one ends

Prints one JSON object. `list` names the clients.
";

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let (mut name, mut connect) = (None, None);
    let (mut callers, mut shared, mut size, mut requests) = (1, false, 1024, None);
    let mut measure = std::time::Duration::from_secs(1);
    let mut warmup = measure / 10;
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("connect") => connect = Some(address(&mut args)?),
            Long("callers") => callers = args.value()?.parse()?,
            Long("shared") => shared = true,
            Long("size") => size = args.value()?.parse()?,
            Long("seconds") => measure = seconds(&mut args)?,
            Long("warmup") => warmup = seconds(&mut args)?,
            Long("requests") => requests = Some(args.value()?.parse()?),
            Long("core") => sys::set_affinity(&[args.value()?.parse()?])?,
            Long("with-parent") => sys::die_with_parent()?,
            Value(value) if name.is_none() => name = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let name = name.ok_or("call needs the name of a client; `list` names them")?;
    let client =
        clients::find(&name).ok_or_else(|| format!("no client {name:?}; `list` names them"))?;
    let addr = connect.ok_or("call needs --connect ADDR")?;
    let job = Job {
        addr,
        callers,
        shared,
        size,
        warmup,
        measure,
        requests,
    };
    let figures = callers::figures(client, &job)?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
