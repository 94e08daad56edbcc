//! `soak`: everything at once against one server, and a verdict.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg::Long;
use lexopt::ValueExt;

use super::Failure;
use super::load::seconds;
use crate::soak::{self, Options, Where};
use crate::sys;

const HELP: &str = "\
soak [options]

  --minutes N         how long
  --seconds N         the same in seconds (60)
  --connections N     connections held all the time, as far as descriptors allow (10000)
  --rate N            requests a second on these (4000)
  --peers N           threads whose peers churn, reset, stall and so on (12)
  --callers N         threads that call through the library's own clients (3)
  --seed N            what decides who does what (1)
  --dispatch NAME     where handlers run: adaptive, workers or inline (adaptive)
  --pollers N         pollers of the server (2)
  --out DIR           where samples.csv, report.md and plot.svg go (target/soak)

Fails if a byte was wrong, an answer lost, a callback out of order, a descriptor or thread left, or
if the server did not recover from a shortage of descriptors. A server process is started and ends
with this one.
";

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let mut options = Options::default();
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("minutes") => {
                let minutes: f64 = args.value()?.parse()?;
                options.time = Duration::try_from_secs_f64(minutes * 60.0)?;
            }
            Long("seconds") => options.time = seconds(&mut args)?,
            Long("connections") => options.connections = args.value()?.parse()?,
            Long("rate") => options.rate = args.value()?.parse()?,
            Long("peers") => options.peers = args.value()?.parse()?,
            Long("callers") => options.callers = args.value()?.parse()?,
            Long("seed") => options.seed = args.value()?.parse()?,
            Long("dispatch") => options.place = place(&mut args)?,
            Long("pollers") => options.pollers = args.value()?.parse()?,
            Long("out") => options.out = PathBuf::from(args.value()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let (verdict, holds) = soak::run(&options)?;
    print!("{verdict}");
    println!("written to {}", options.out.display());
    if holds {
        Ok(())
    } else {
        Err("not everything held".into())
    }
}

/// The server of a soak, started by [`run`]; not for users.
pub(super) fn serve(mut args: lexopt::Parser) -> Result<(), Failure> {
    let (mut at, mut pollers) = (Where::default(), 1);
    while let Some(arg) = args.next()? {
        match arg {
            Long("with-parent") => sys::die_with_parent()?,
            Long("dispatch") => at = place(&mut args)?,
            Long("pollers") => pollers = args.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    soak::serve(at, pollers).map_err(Into::into)
}

fn place(args: &mut lexopt::Parser) -> Result<Where, Failure> {
    let name = args.value()?.string()?;
    Where::named(&name)
        .ok_or_else(|| format!("no dispatch {name:?}: adaptive, workers or inline").into())
}
