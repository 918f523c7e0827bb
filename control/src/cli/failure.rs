//! How a command fails: one error that names the thing and the place, one hint with the next step,
//! and an exit code.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use crate::files::{Fault, Unmade};
use crate::output;
use crate::publish;
use crate::store::{Code, Refusal};

/// Exit codes. Stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The program failed in a way that no configuration mends.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A file, an address or a permission is wrong.
    Configuration = 3,
    /// The relay refused: unknown name, or wrong key.
    NotAuthorised = 4,
    /// Nobody answered.
    Unreachable = 5,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One line each; usually one.
    pub errors: Vec<String>,
    /// The next step.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with one line.
    pub fn new(exit: Exit, error: impl Display) -> Self {
        Self {
            exit,
            errors: vec![error.to_string()],
            hint: None,
        }
    }

    /// A failure of the configuration.
    pub fn configuration(error: impl Display) -> Self {
        Self::new(Exit::Configuration, error)
    }

    /// Adds the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says it on stderr.
    #[must_use]
    pub fn tell(&self) -> ExitCode {
        let (red, bold, plain) = if colours() {
            ("\x1b[1;31m", "\x1b[1m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        for error in &self.errors {
            output::write_labelled((red, "error:", plain), error);
        }
        if let Some(hint) = &self.hint {
            output::write_labelled((bold, "hint:", plain), hint);
        }
        ExitCode::from(self.exit as u8)
    }
}

/// Whether stderr is a terminal that wants colours (<https://no-color.org>).
pub(super) fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl From<Vec<Fault>> for Failure {
    fn from(faults: Vec<Fault>) -> Self {
        Self {
            exit: Exit::Configuration,
            errors: faults.iter().map(Fault::to_string).collect(),
            hint: None,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::configuration(fault)
    }
}

impl From<Unmade> for Failure {
    fn from(error: Unmade) -> Self {
        Self::configuration(error)
            .hint("the directory must be one that this user can write; `--dir DIR` names another")
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.code {
            Code::Invalid => Exit::Usage,
            Code::EditionLimit | Code::Changed | Code::Busy => Exit::Failed,
            Code::UnknownName
            | Code::Exists
            | Code::BindingTaken
            | Code::FaultyFile
            | Code::Storage => Exit::Configuration,
        };
        Self {
            exit,
            errors: refusal.errors,
            hint: refusal.hint,
        }
    }
}

impl From<publish::Error> for Failure {
    fn from(error: publish::Error) -> Self {
        match error {
            publish::Error::Unmade(error) => error.into(),
            publish::Error::Faults(faults) => faults.into(),
            publish::Error::Running(_) => Self::configuration(error).hint(
                "one control process per directory; `underpass status` asks the one that runs",
            ),
            publish::Error::SocketPath(_) => Self::configuration(error)
                .hint("give the directory a shorter path, or name it relative to the current one"),
            publish::Error::Lock { .. } | publish::Error::Listen { .. } => {
                Self::configuration(error)
            }
        }
    }
}
