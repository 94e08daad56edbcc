//! HAProxy in TCP mode: this process becomes it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{env, process};

use crate::sys;

/// The program's name.
pub(crate) const PROGRAM: &str = "haproxy";

/// Bytes go through its buffers.
pub(crate) fn copying(listener: TcpListener, backend: SocketAddr) -> io::Result<()> {
    become_it(&listener, backend, "")
}

/// Bulk goes through kernel pipes both ways.
pub(crate) fn splicing(listener: TcpListener, backend: SocketAddr) -> io::Result<()> {
    become_it(
        &listener,
        backend,
        "    option splice-request\n    option splice-response\n",
    )
}

/// Replaces this process, which keeps its id, its cores and the listening socket.
fn become_it(listener: &TcpListener, backend: SocketAddr, options: &str) -> io::Result<()> {
    let file = nameless_file(&configuration(listener.as_raw_fd(), backend, options))?;
    sys::inherit(listener)?;
    sys::inherit(&file)?;
    let mut program = Command::new(PROGRAM);
    // -db: no background, no second process.
    program
        .arg("-db")
        .arg("-f")
        .arg(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let error = program.exec();
    let text = format!("{PROGRAM} cannot be started: {error}");
    Err(io::Error::new(error.kind(), text))
}

/// A proxy of one server behind the listening socket `listener`.
fn configuration(listener: i32, backend: SocketAddr, options: &str) -> String {
    format!(
        "global
    nbthread 1
    maxconn 2000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen relay
    bind fd@{listener}
{options}    server echo {backend}
"
    )
}

/// A file with `text` that is in no directory any more.
fn nameless_file(text: &str) -> io::Result<File> {
    let path = env::temp_dir().join(format!("netpoll-bench-{}.cfg", process::id()));
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let written = file.write_all(text.as_bytes());
    fs::remove_file(&path)?;
    written.map(|()| file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_socket_and_server() {
        let text = configuration(
            7,
            ([127, 0, 0, 1], 4000).into(),
            "    option splice-request\n",
        );
        assert!(
            text.contains("bind fd@7\n    option splice-request\n    server echo 127.0.0.1:4000\n")
        );
    }

    #[test]
    fn a_nameless_file_is_read_by_its_descriptor() {
        let file = nameless_file("hello").unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(fs::read_to_string(path).unwrap(), "hello");
    }
}
