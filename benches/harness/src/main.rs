//! Compares servers of one frame under one load generator.

mod cli;
mod clients;
mod compare;
mod frame;
mod load;
mod net;
mod peers;
mod proxies;
mod report;
mod results;
mod soak;
mod stats;
mod sys;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("netpoll-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
