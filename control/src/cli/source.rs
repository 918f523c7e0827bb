//! Where an agent or a sender gets its connection strings from. Never from an argument; a file is
//! the best place, because it can be watched.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use underpass_proto::{ConnectionString, Rule};

use super::{Exit, Failure, environment, prompt};
use crate::files::strings;

/// The credential that is taken when nothing else is given.
const CREDENTIAL_DEFAULT: &str = "underpass.connection";

/// Where systemd puts credentials (systemd.exec(5), `LoadCredential=`).
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The options that name a source.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(super) struct SourceArgs {
    /// Read a configuration file: it names a file for each connection string
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One hybrid connection: the file holds its connection string, and a change of the file is
    /// noticed; `-` is standard input
    #[arg(
        long,
        value_name = "FILE",
        long_help = "One hybrid connection: the file holds its connection string; `-` is standard input.\n\n\
        The file is watched: a new key in it is proven at once, and no flow is cut. Only its owner may be able to read it.\n\n\
        Without any of these options, the environment variable UNDERPASS_CONNECTION_STRING is taken (a file is better: variables are passed on and shown \
        more than one thinks), and then systemd's credential `underpass.connection`"
    )]
    connection_string_file: Option<PathBuf>,
    /// Ask for the connection string on the terminal, without showing it
    #[arg(long)]
    connection_string_prompt: bool,
    /// One of systemd's credentials (LoadCredential=) holds the connection string
    /// [default: underpass.connection, if it is there]
    #[arg(long, value_name = "NAME")]
    connection_string_credential: Option<String>,
}

/// What was given.
#[derive(Debug)]
pub(super) enum Source {
    /// `agent.toml` or `sender.toml`.
    Config(PathBuf),
    /// A file with one string.
    File(PathBuf),
    /// One string that nothing can be watched for.
    Text(Box<ConnectionString>),
}

impl Source {
    /// What tells this process's configuration from another's on the same machine: stays the same
    /// over restarts, from whichever folder.
    pub(super) fn identity(&self) -> PathBuf {
        match self {
            Self::Config(path) | Self::File(path) => {
                std::path::absolute(path).unwrap_or_else(|_| path.clone())
            }
            Self::Text(string) => format!("{}/{}", string.relay(), string.name).into(),
        }
    }
}

impl SourceArgs {
    /// Finds the source. `rule` is that of the side that asks.
    pub(super) fn find(&self, rule: Rule) -> Result<Source, Failure> {
        // Read in any case: what is left in a pipe may be read by somebody else.
        let environment = environment::take().map_err(|error| unread("the environment", &error))?;
        if let Some(path) = &self.config {
            return Ok(Source::Config(path.clone()));
        }
        if let Some(path) = &self.connection_string_file {
            return match path == Path::new("-") {
                true => stdin(rule),
                false => Ok(Source::File(path.clone())),
            };
        }
        if self.connection_string_prompt {
            return ask(rule);
        }
        if let Some(name) = &self.connection_string_credential {
            return credential(name).map(Source::File);
        }
        if let Some(text) = environment {
            return text_source(environment::VARIABLE, &text, rule);
        }
        match credential(CREDENTIAL_DEFAULT) {
            Ok(path) if path.exists() => Ok(Source::File(path)),
            _ => Err(nothing_given(rule)),
        }
    }
}

fn stdin(rule: Rule) -> Result<Source, Failure> {
    if io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "standard input is a terminal, and would show what is typed",
        )
        .hint("`--connection-string-prompt` asks without showing it"));
    }
    let text = environment::read_stdin().map_err(|error| unread("standard input", &error))?;
    text_source("standard input", &text, rule)
}

fn ask(rule: Rule) -> Result<Source, Failure> {
    let side = match rule {
        Rule::Listen => "On-premises",
        Rule::Send => "Application",
    };
    let text = prompt::ask(&format!("{side} connection string (not shown): ")).map_err(|error| {
            Failure::new(Exit::Usage, format!("there is no terminal to ask on: {error}"))
                .hint("`--connection-string-file -` reads it from standard input, `--connection-string-file FILE` from a file")
        })?;
    text_source("what was typed", text.as_bytes(), rule)
}

fn credential(name: &str) -> Result<PathBuf, Failure> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(
            Failure::new(Exit::Usage, "a credential is named without a path")
                .hint("write the name that the unit's `LoadCredential=NAME:FILE` gives it"),
        );
    }
    let folder = std::env::var_os(CREDENTIALS_DIRECTORY).filter(|folder| !folder.is_empty());
    folder.map(|folder| Path::new(&folder).join(name)).ok_or_else(|| {
        Failure::configuration(format!("there are no credentials here: {CREDENTIALS_DIRECTORY} is not set"))
            .hint("systemd sets it for a unit that has `LoadCredential=NAME:FILE`; outside of one, take `--connection-string-file FILE`")
    })
}

fn text_source(from: &str, text: &[u8], rule: Rule) -> Result<Source, Failure> {
    Ok(Source::Text(Box::new(strings::parse_bytes(
        from, text, rule,
    )?)))
}

fn unread(what: &str, error: &io::Error) -> Failure {
    Failure::configuration(format!("{what}: cannot be read: {error}"))
}

fn nothing_given(rule: Rule) -> Failure {
    let role = strings::role(rule);
    let (side, file) = match rule {
        Rule::Listen => ("agent", "agent.toml"),
        Rule::Send => ("sender", "sender.toml"),
    };
    Failure::new(Exit::Usage, format!("this {side} is given no connection string")).hint(format!(
        "make one on the relay's machine (`underpass connection string NAME --role {role} --out FILE`) and name its file: `--connection-string-file FILE`, or several in `--config {file}`"
    ))
}
