//! Asks for a secret on the terminal without showing it.
//!
//! The echo ends before the question is there, and what was typed before is dropped: what is pasted
//! at once is not shown either. The line goes into memory that is wiped. (The crate for this,
//! rpassword, asks first and reads into memory that grows.)

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// The longest line that a terminal hands over at once, bytes (N_TTY_BUF_SIZE).
const LINE_MAX: usize = 4096;

/// The line that is typed, without its end.
///
/// # Errors
/// There is no terminal, or the line is no text.
pub(super) fn ask(question: &str) -> io::Result<Zeroizing<String>> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty")?;
    let _silent = Silent::new(terminal.try_clone()?)?;
    terminal.write_all(question.as_bytes())?;
    let mut line = Zeroizing::new(vec![0; LINE_MAX]);
    let mut len = 0;
    while len < LINE_MAX && !line[..len].contains(&b'\n') {
        match terminal.read(&mut line[len..])? {
            0 => break, // Ctrl-D.
            more => len += more,
        }
    }
    let text = std::str::from_utf8(&line[..len])
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "this is no text"))?;
    Ok(Zeroizing::new(
        text.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}

/// A terminal that shows nothing of what is typed, until dropped.
struct Silent {
    terminal: File,
    before: Termios,
}

impl Silent {
    fn new(terminal: File) -> io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // The line end alone is shown, so that what follows has a line of its own.
        silent
            .local_modes
            .insert(LocalModes::ECHONL | LocalModes::ICANON);
        tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
