//! All hybrid connections and sessions, one line each.

use std::fmt::Write;

use underpass_proto::snapshot::{HealthState, HycoReport, SessionReport, UsageReport};
use underpass_proto::{Report, Role, Status};

use super::{short, state};
use crate::cli::table::table;
use crate::quantity::{ago, bytes, millis};

/// A report this old, milliseconds, is said to be old: one comes each second.
const OLD_AFTER_MS: u64 = 5_000;

pub(super) fn shown(status: &Status, now_ms: u64) -> String {
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
        show_report(&mut out, report, now_ms);
    }
    if let Some(usage) = &status.usage {
        show_usage(&mut out, usage);
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

fn show_report(out: &mut String, report: &Report, now_ms: u64) {
    let _ = writeln!(
        out,
        "io: {} ({}), {} workers",
        report.io, report.io_why, report.workers
    );
    let age_ms = now_ms.saturating_sub(report.unix_ms);
    if report.unix_ms > 0 && age_ms > OLD_AFTER_MS {
        let _ = writeln!(
            out,
            "relay: what follows was said {}, and nothing since",
            ago(age_ms)
        );
    }
    if let Some(why) = &report.overloaded {
        let _ = writeln!(out, "relay: overloaded: {why}");
    }
    show_hycos(out, report, now_ms);
    show_sessions(out, report);
    if report.truncated {
        let _ = writeln!(out, "… and more than one report can carry");
    }
}

fn show_usage(out: &mut String, usage: &UsageReport) {
    let used = usage
        .bytes_to_endpoint
        .saturating_add(usage.bytes_to_application);
    let of = match usage.bytes_max {
        Some(most) => format!(" of {} (edition {})", bytes(most), usage.edition),
        None => String::new(),
    };
    let _ = writeln!(out, "\ndata in {}: {}{of}", usage.month, bytes(used));
}

fn show_hycos(out: &mut String, report: &Report, now_ms: u64) {
    let head = [
        "HYBRID CONNECTION",
        "STATE",
        "SINCE",
        "BINDING",
        "AGENTS",
        "SENDERS",
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
            match state(hyco) {
                "ready" if report.overloaded.is_some() => "overloaded".to_owned(),
                state => state.to_owned(),
            },
            since(hyco, now_ms),
            hyco.bound
                .map_or_else(|| "-".into(), |bound| bound.to_string()),
            hyco.listeners.to_string(),
            senders(report, hyco).to_string(),
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
    for hyco in &report.hycos {
        if let (HealthState::Degraded | HealthState::NoListener, Some(why)) =
            (hyco.health.state, &hyco.health.why)
        {
            let _ = writeln!(
                out,
                "{} is {}: {why}; `underpass status {}` shows more",
                hyco.name,
                match hyco.health.state {
                    HealthState::NoListener => "without a listener",
                    _ => "degraded",
                },
                hyco.name
            );
        }
    }
}

fn since(hyco: &HycoReport, now_ms: u64) -> String {
    match hyco.health.since_unix_ms {
        0 => "-".into(),
        since_ms => ago(now_ms.saturating_sub(since_ms)),
    }
}

/// Sender processes, not their sessions.
fn senders(report: &Report, hyco: &HycoReport) -> usize {
    let mut instances: Vec<_> = report
        .sessions
        .iter()
        .filter(|session| session.role == Role::Sender && serves(session, hyco))
        .map(|session| session.instance)
        .collect();
    instances.sort_unstable();
    instances.dedup();
    instances.len()
}

fn serves(session: &SessionReport, hyco: &HycoReport) -> bool {
    session
        .hycos
        .iter()
        .any(|registered| registered.name == hyco.name)
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
            short(session.agent_id),
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
            shown(&Status::default(), 0),
            "relay: not connected to control\n"
        );
    }

    #[test]
    fn data_of_the_month_is_told_with_its_limit() {
        let mut usage = UsageReport {
            month: "2026-11".into(),
            bytes_to_endpoint: 1_000_000_000,
            bytes_to_application: 500_000_000,
            edition: "free".into(),
            bytes_max: Some(5_000_000_000),
            enforced: false,
        };
        let shown = |usage: &UsageReport| {
            let status = Status {
                usage: Some(usage.clone()),
                ..Status::default()
            };
            shown(&status, 0)
        };
        assert!(shown(&usage).contains("data in 2026-11: 1.5 GB of 5.0 GB (edition free)\n"));
        usage.bytes_max = None;
        assert!(shown(&usage).contains("data in 2026-11: 1.5 GB\n"));
    }

    #[test]
    fn a_relay_that_fell_silent_is_said() {
        let report = Report {
            unix_ms: 1_000,
            ..Report::default()
        };
        let status = Status {
            relay: Some(report),
            ..Status::default()
        };
        assert!(
            shown(&status, 61_000)
                .contains("relay: what follows was said 1 minute ago, and nothing since\n")
        );
        assert!(!shown(&status, 3_000).contains("nothing since"));
    }
}
