//! A connection string in the environment: taken out before anything else happens, so that neither
//! children nor `/proc/PID/environ` have it.
//!
//! What a process was started with stays readable for as long as it lives, whatever it does to its
//! variables. So the program begins again without the variable, once, and hands itself the string
//! through a pipe in the place of standard input; process id, arguments and open files stay as they
//! are.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use underpass_proto::connection_string::CONNECTION_STRING_MAX;
use zeroize::Zeroizing;

use super::{Exit, Failure};
use crate::files::pasted::PASTED_MAX;
use crate::lifeline;

/// Where users put the string.
pub(super) const VARIABLE: &str = "UNDERPASS_CONNECTION_STRING";

/// Says that standard input carries it.
const ON_STDIN: &str = "UNDERPASS_CONNECTION_STRING_ON_STDIN";

/// Begins again without the variable, if it is set. `wanted`: this command takes a connection
/// string; otherwise it is dropped.
pub(super) fn leave_behind(wanted: bool) -> Result<(), Failure> {
    let Some(value) = std::env::var_os(VARIABLE) else {
        return Ok(());
    };
    let value = Zeroizing::new(value.into_vec());
    let mut arguments = std::env::args_os();
    let (Some(name), Ok(program)) = (arguments.next(), std::env::current_exe()) else {
        return Err(not_taken(
            "this program cannot find itself: is /proc mounted?",
        ));
    };
    let mut again = Command::new(program);
    again.arg0(name).args(arguments).env_remove(VARIABLE);
    if wanted && !value.is_empty() {
        // A child's standard input is its tie to the parent, and a parent of ours has no such
        // variable to pass on.
        if lifeline::is_tied() {
            return Err(not_taken("standard input is taken"));
        }
        if value.len() > CONNECTION_STRING_MAX {
            return Err(not_taken(&format!(
                "it has more than {CONNECTION_STRING_MAX} bytes"
            )));
        }
        let reader = filled(&value).map_err(|error| not_taken(&error.to_string()))?;
        again.stdin(Stdio::from(reader)).env(ON_STDIN, "1");
    }
    // Comes back only when it failed.
    Err(not_taken(&again.exec().to_string()))
}

/// The string, where there was one. Can be had once.
pub(super) fn take() -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    if std::env::var_os(ON_STDIN).is_none() {
        return Ok(None);
    }
    read_stdin().map(Some)
}

/// All of standard input, bounded.
pub(super) fn read_stdin() -> io::Result<Zeroizing<Vec<u8>>> {
    // Roomy from the start: a buffer that grows leaves copies of the key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASTED_MAX + 64));
    // One byte more shows that there is too much: the string is longer than one may be then.
    io::stdin()
        .lock()
        .take(PASTED_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A pipe that holds the bytes and its end. They fit: a pipe takes at least 4096 at once (POSIX,
/// PIPE_BUF on Linux).
fn filled(bytes: &[u8]) -> io::Result<io::PipeReader> {
    const _: () = assert!(CONNECTION_STRING_MAX <= 4096);
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(bytes)?;
    Ok(reader)
}

fn not_taken(why: &str) -> Failure {
    Failure::new(Exit::Usage, format!("{VARIABLE} cannot be taken: {why}"))
        .hint("put the string into a file that only you can read, and name that: `--connection-string-file FILE`")
}
