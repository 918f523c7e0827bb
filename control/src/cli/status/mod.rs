//! `underpass status`: asks control what it and the relay know. What is shown of it is
//! [`overview`]'s and [`detail`]'s.

mod detail;
mod overview;

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use underpass_proto::printable::printable_json;
use underpass_proto::snapshot::{HealthState, HycoReport};
use underpass_proto::{HycoName, Report, Status};

use self::detail::Detail;
use super::{DirArgs, Exit, Failure, print};
use crate::files::wording::{echo, nearest};
use crate::files::{Directory, keys};
use crate::publish::{self, DialError};
use crate::shell;

/// Options of `underpass status`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// One hybrid connection, in detail: its agents, senders and keys
    name: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DirArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directory = args.dir.directory();
    let status = ask(&directory)?;
    let now_ms = now_unix_ms();
    let Some(name) = &args.name else {
        return match args.json {
            true => print_json(&status),
            false => print(&overview::shown(&status, now_ms)),
        };
    };
    let report = relay_of(&status)?;
    let name = known(name, report)?;
    // Needs read access to the keys to tell primary from secondary; for keys in use the sessions
    // report it.
    let keys = keys::find(&directory, &name)
        .ok()
        .and_then(|path| keys::load(&directory.shown(&path), &path).ok());
    let Some(detail) = Detail::of(&name, &status, report, keys.as_ref()) else {
        return Err(unknown(name.as_str(), report));
    };
    match args.json {
        true => print_json(&detail),
        false => print(&detail.shown(now_ms)),
    }
}

/// The status, from the control process of a directory.
pub(super) fn ask(directory: &Directory) -> Result<Status, Failure> {
    publish::status(directory).map_err(|error| unanswered(directory, &error))
}

/// Why control gave no answer, and what to do.
pub(super) fn unanswered(directory: &Directory, error: &DialError) -> Failure {
    let socket = directory.control_socket();
    let dir = shell::word(directory.root());
    let failure = Failure::new(
        Exit::Unreachable,
        format!("cannot ask control at {}: {error}", socket.display()),
    );
    match error {
        DialError::Io(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            failure.hint(format!("start it with `underpass up --dir {dir}` or `underpass control --dir {dir}`"))
        }
        _ => failure.hint("this command must run as the user that control runs as, or as root, and be of the same version"),
    }
}

/// What the relay says, if one is there.
pub(super) fn relay_of(status: &Status) -> Result<&Report, Failure> {
    status.relay.as_ref().ok_or_else(no_relay)
}

pub(super) fn no_relay() -> Failure {
    Failure::new(Exit::Unreachable, "no relay is connected to control").hint(
        "`underpass relay` starts one, with the same `--dir`; its log says why if it does not stay",
    )
}

/// The name as the relay knows it, however it is spelled here.
pub(super) fn known(given: &str, report: &Report) -> Result<HycoName, Failure> {
    let asked = given.parse::<HycoName>().ok();
    let found = report
        .hycos
        .iter()
        .find(|hyco| Some(&hyco.name) == asked.as_ref());
    found
        .map(|hyco| hyco.name.clone())
        .ok_or_else(|| unknown(given, report))
}

/// A name that the relay does not know.
pub(super) fn unknown(given: &str, report: &Report) -> Failure {
    let failure = Failure::new(
        Exit::Failed,
        format!("the relay knows no hybrid connection {}", echo(given)),
    );
    let names = report.hycos.iter().map(|hyco| hyco.name.as_str());
    match nearest(given, names) {
        Some(meant) => failure.hint(format!("did you mean `{meant}`? `underpass status` shows all")),
        None => failure.hint("`underpass status` shows all that the relay knows, and what is wrong with the files of others"),
    }
}

/// The state in words, as people see it. A relay that does not watch it says only whether anybody
/// listens.
fn state(hyco: &HycoReport) -> &'static str {
    match hyco.health.state {
        HealthState::Ready => "ready",
        HealthState::Degraded => "degraded",
        HealthState::NoListener if hyco.listeners > 0 => "not known",
        HealthState::NoListener => "no listener",
    }
}

/// The first part of an identifier: enough to tell a few apart.
pub(super) fn short(id: impl ToString) -> String {
    id.to_string().chars().take(8).collect()
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Failure::new(Exit::Failed, error))?;
    print(&format!("{}\n", printable_json(&text)))
}
