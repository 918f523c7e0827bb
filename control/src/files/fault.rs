//! What is wrong with a file, in one line that names the place and says what to write instead.

use std::fmt;

use underpass_proto::HycoName;

/// One thing that is wrong. Prints as `file:line: what, and what to write instead`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The file, as a person would name it: relative to the directory.
    pub file: String,
    /// Line in it, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// The hybrid connection that it touches, where it is one.
    pub hyco: Option<HycoName>,
    /// What is wrong and what to write instead. Never a key.
    pub what: String,
}

impl Fault {
    /// A fault of the whole file.
    pub fn whole(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: 0,
            hyco: None,
            what: what.into(),
        }
    }

    /// The same fault, said of a hybrid connection.
    #[must_use]
    pub fn of(mut self, hyco: &HycoName) -> Self {
        self.hyco = Some(hyco.clone());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.what),
            line => write!(f, "{}:{line}: {}", self.file, self.what),
        }
    }
}

impl From<&Fault> for underpass_proto::snapshot::Fault {
    fn from(fault: &Fault) -> Self {
        Self {
            hyco: fault.hyco.clone(),
            what: fault.to_string(),
        }
    }
}
