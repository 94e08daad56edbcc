//! The command line.

mod burst;
mod call;
mod compare;
mod flood;
mod list;
mod load;
mod pool;
mod serve;
mod soak;

use std::error::Error;
use std::ffi::OsString;
use std::net::SocketAddr;

use lexopt::ValueExt;

/// Anything a command can fail with; its text is for the user.
pub(crate) type Failure = Box<dyn Error>;

const HELP: &str = "\
netpoll-bench: a load generator, servers to compare, and their ratios

  compare [options]               run servers in turn under the same loads, and report
  serve NAME --listen ADDR        run one server or proxy until it is killed
  load --connect ADDR [options]   ask any server of the frame, and print what was seen
  call CLIENT --connect ADDR      run one client
  flood NAME [options]            what thousands of hostile peers do to the others on a server
  burst [options]                 how long others wait when many handlers begin to sleep at once
  pool [options]                  more callers than connections, over netpoll's pool and r2d2
  list                            the peers, the clients and the scenarios
  soak [options]                  everything at once against one server, for a while, and judge
  COMMAND --help                  the options of a command
";

/// Runs the command the arguments name; the first is the name of the program.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let mut args = lexopt::Parser::from_iter(args);
    let command = match args.next()? {
        Some(lexopt::Arg::Value(command)) => command.string()?,
        Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h')) | None => "help".into(),
        Some(other) => return Err(other.unexpected().into()),
    };
    match command.as_str() {
        "compare" => compare::run(args),
        "serve" => serve::run(args),
        "load" => load::run(args),
        "call" => call::run(args),
        "burst" => burst::run(args),
        "flood" => flood::run(args),
        "pool" => pool::run(args),
        "list" => list::run(),
        "soak" => soak::run(args),
        "soak-server" => soak::serve(args),
        "help" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("no command {other:?}; try --help").into()),
    }
}

/// The value of an option that is an address such as `127.0.0.1:7000`.
fn address(args: &mut lexopt::Parser) -> Result<SocketAddr, Failure> {
    let text = args.value()?.string()?;
    text.parse()
        .map_err(|_| format!("{text:?} is not an address such as 127.0.0.1:7000").into())
}
