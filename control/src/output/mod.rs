//! Standard error of this process: its log and its remarks. Output that cannot be written is lost
//! and counted; it never ends the process.
//!
//! A long-running process writes from a thread of its own, so a reader that has stopped reading or
//! a full disk holds up no traffic.

mod fields;
mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Arguments;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

pub(crate) use fields::Fields;
use queue::Queue;
use underpass_proto::printable::printable_lines;

/// How long the end of the process waits for a slow reader to take what is queued.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Set for a long-running process; others write at once, so that stdout and stderr keep their order
/// on a terminal.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// From here on a thread of its own writes to stderr.
///
/// # Errors
/// No thread can be started.
pub(crate) fn start() -> io::Result<()> {
    let queue = Queue::start(io::stderr())?;
    if QUEUE.set(queue).is_ok() {
        std::panic::set_hook(Box::new(panicked));
    }
    Ok(())
}

/// Writes what is still queued, before the process ends.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_MAX);
    }
}

/// Writes a remark of one or several lines to stderr. What it quotes from elsewhere changes nothing
/// on a terminal.
pub(crate) fn write(text: Arguments<'_>) {
    write_bytes(printable_lines(&text.to_string()).into_bytes());
}

/// Writes one line to stderr that begins with a label in these colours: `("\x1b[1m", "hint:",
/// "\x1b[0m")`.
pub(crate) fn write_labelled((colour, label, plain): (&str, &str, &str), text: &str) {
    let text = printable_lines(text);
    write_bytes(format!("{colour}{label}{plain} {text}\n").into_bytes());
}

/// Writes one line to stderr: `note!("changed {name}")`.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use note;

fn write_bytes(bytes: Vec<u8>) {
    match QUEUE.get() {
        Some(queue) => queue.push(bytes),
        // Without a reader there is nobody to report it to.
        None => drop(io::stderr().write_all(&bytes)),
    }
}

/// The standard hook writes to stderr itself and would wait for its reader in the middle of a
/// worker's turn.
fn panicked(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        write(format_args!("\nthread '{name}' {info}\n{backtrace}\n"));
    } else {
        write(format_args!("\nthread '{name}' {info}\n"));
    }
    if name == "main" {
        flush();
    }
}

/// Where the log goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log;

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Log {
    /// The subscriber writes each event whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        write_bytes(event.to_vec());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
