//! Children that cannot outlive their parent: each holds the read end of a pipe whose other end the
//! parent alone has.
//!
//! The kernel closes that end however the parent dies, `kill -9` included, and the child ends at
//! once. Knows nothing of what the processes do.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, PipeWriter, Read, Stdin};
use std::process::{Command, Stdio, exit};
use std::thread;

/// Tells a child that its standard input is the pipe.
const VARIABLE: &str = "UNDERPASS_LIFELINE";

/// Exit code of a child whose parent is gone.
const PARENT_GONE: i32 = 1;

/// The parent's end. The child ends when it is dropped.
#[derive(Debug)]
pub struct Lifeline {
    _writer: PipeWriter,
}

/// Ties the child that `command` starts to this process. One call for each start.
///
/// # Errors
/// No pipe can be had.
pub fn hold(command: &mut Command) -> io::Result<Lifeline> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::from(reader)).env(VARIABLE, "stdin");
    Ok(Lifeline { _writer: writer })
}

/// In a child that was started so, ends the process as soon as the parent is gone. Elsewhere does
/// nothing. Called first in `main`.
pub fn watch() {
    if !is_tied() {
        return;
    }
    thread::spawn(|| {
        wait_for_end(io::stdin());
        exit(PARENT_GONE);
    });
}

/// Whether this is such a child, whose standard input is the pipe.
pub(crate) fn is_tied() -> bool {
    std::env::var_os(VARIABLE).as_deref() == Some(OsStr::new("stdin"))
}

fn wait_for_end(mut stdin: Stdin) {
    let mut ignored = [0; 64];
    loop {
        match stdin.read(&mut ignored) {
            Ok(0) => return,
            Err(error) if error.kind() != ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}
