//! `underpass status`: asks control what it and the relay know.

use std::fmt::Write;
use std::io;

use underpass_proto::{Report, Status};

use super::table::table;
use super::{DirArgs, Exit, Failure, print};
use crate::publish::{self, DialError};
use crate::quantity::{bytes, millis};

/// Options of `underpass status`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DirArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directory = args.dir.directory();
    let status = publish::status(&directory).map_err(|error| {
        let socket = directory.control_socket();
        let failure = Failure::new(Exit::Unreachable, format!("cannot ask control at {}: {error}", socket.display()));
        match error {
            DialError::Io(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                failure.hint(format!("start it with `underpass up --dir {0}` or `underpass control --dir {0}`", args.dir.dir.display()))
            }
            _ => failure.hint("this command must run as the user that control runs as, or as root, and be of the same version"),
        }
    })?;
    if args.json {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|error| Failure::new(Exit::Failed, error))?;
        return print(&format!("{text}\n"));
    }
    print(&shown(&status))
}

fn shown(status: &Status) -> String {
    let mut out = String::new();
    let _ = match (&status.relay, status.applied) {
        (None, None) => writeln!(out, "relay: not connected to control"),
        (_, Some(applied)) if applied == status.generation => {
            writeln!(out, "relay: works by the newest snapshot")
        }
        _ => writeln!(out, "relay: has not applied the newest snapshot yet"),
    };
    if let Some(why) = &status.rejected {
        let _ = writeln!(out, "relay: rejected the newest snapshot: {why}");
    }
    if let Some(report) = &status.relay {
        show_report(&mut out, report);
    }
    for fault in &status.faults {
        // Names its file, and so its hybrid connection.
        let _ = writeln!(out, "fault: {}", fault.what);
    }
    for fault in status.relay.iter().flat_map(|report| &report.faults) {
        let _ = writeln!(out, "fault: {fault}");
    }
    out
}

fn show_report(out: &mut String, report: &Report) {
    let _ = writeln!(
        out,
        "io: {} ({}), {} workers",
        report.io, report.io_why, report.workers
    );
    let head = [
        "HYBRID CONNECTION",
        "BINDING",
        "LISTENERS",
        "FLOWS",
        "TOTAL",
        "FAILED",
        "TO ENDPOINT",
        "TO APPLICATION",
        "LAST FAILURE",
    ]
    .map(str::to_owned);
    let rows = report.hycos.iter().map(|hyco| {
        [
            hyco.name.to_string(),
            hyco.bound
                .map_or_else(|| "-".into(), |bound| bound.to_string()),
            hyco.listeners.to_string(),
            hyco.flows_live.to_string(),
            hyco.flows_total.to_string(),
            hyco.flows_failed.to_string(),
            bytes(hyco.bytes_to_endpoint),
            bytes(hyco.bytes_to_application),
            hyco.last_ending.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    let _ = write!(
        out,
        "\n{}",
        table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
    );
    show_sessions(out, report);
    if report.truncated {
        let _ = writeln!(out, "… and more than one report can carry");
    }
}

fn show_sessions(out: &mut String, report: &Report) {
    if report.sessions.is_empty() {
        let _ = writeln!(out, "\nno session: no agent is connected");
        return;
    }
    let head = [
        "SESSION",
        "ROLE",
        "FROM",
        "STATE",
        "ROUND TRIP",
        "MTU",
        "REGISTERED",
    ]
    .map(str::to_owned);
    let rows = report.sessions.iter().map(|session| {
        let registered: Vec<String> = session
            .hycos
            .iter()
            .map(|hyco| format!("{} ({} key)", hyco.name, hyco.key))
            .collect();
        [
            session.agent_id.to_string().chars().take(8).collect(),
            session.role.to_string(),
            session.remote.to_string(),
            session.state.to_string(),
            millis(session.rtt_us),
            session.mtu.to_string(),
            registered.join(", "),
        ]
    });
    let _ = write!(
        out,
        "\n{}",
        table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_relay_is_said() {
        assert_eq!(
            shown(&Status::default()),
            "relay: not connected to control\n"
        );
    }
}
