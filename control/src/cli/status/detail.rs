//! One hybrid connection: what state it is in and why, who listens and who sends, and which key
//! each of them proved.

use std::fmt::Write;

use serde::Serialize;
use underpass_proto::key::Which;
use underpass_proto::snapshot::{
    DialReport, HealthState, HycoReport, ListenerReport, SessionReport,
};
use underpass_proto::{Fault, HycoKeys, HycoName, KeyId, Report, Role, Rule, Status};

use super::{short, state};
use crate::cli::advice;
use crate::cli::table::table;
use crate::quantity::{ago, bytes, millis};

/// All that is known. Its JSON is stable.
#[derive(Serialize, Debug)]
pub(super) struct Detail<'a> {
    #[serde(flatten)]
    report: &'a HycoReport,
    /// Sessions that are registered for it, with the key that each proved last.
    sessions: Vec<Session<'a>>,
    /// Each key that there is, and each that was proven since the relay started.
    key_uses: Vec<KeyLine>,
    faults: Vec<&'a Fault>,
}

#[derive(Serialize, Debug)]
struct Session<'a> {
    rule: Rule,
    key_id: KeyId,
    key: Which,
    #[serde(flatten)]
    session: Bare<'a>,
}

/// A session without what it is registered for elsewhere.
#[derive(Serialize, Debug)]
struct Bare<'a> {
    role: Role,
    agent_id: String,
    instance: String,
    remote: String,
    worker: u16,
    rtt_us: u64,
    mtu: u16,
    state: underpass_proto::snapshot::SessionState,
    since_unix_ms: u64,
    #[serde(skip)]
    whole: &'a SessionReport,
}

/// One key and its use.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct KeyLine {
    rule: Rule,
    /// `None`: it is neither of the two any more, or the key file cannot be read.
    key: Option<Which>,
    key_id: Option<KeyId>,
    sessions: u32,
    /// `None`: not since the relay started.
    last_used_unix_ms: Option<u64>,
}

impl<'a> Detail<'a> {
    /// `keys` as the key file has them, if it can be read.
    pub(super) fn of(
        name: &HycoName,
        status: &'a Status,
        relay: &'a Report,
        keys: Option<&HycoKeys>,
    ) -> Option<Self> {
        let report = relay.hycos.iter().find(|hyco| hyco.name == *name)?;
        let sessions: Vec<_> = relay
            .sessions
            .iter()
            .flat_map(|session| Session::all(session, name))
            .collect();
        let faults = status.faults.iter().chain(&relay.faults);
        Some(Self {
            report,
            key_uses: key_lines(report, &sessions, keys),
            sessions,
            faults: faults
                .filter(|fault| fault.hyco.as_ref() == Some(name))
                .collect(),
        })
    }

    pub(super) fn shown(&self, now_ms: u64) -> String {
        let mut out = String::new();
        let HycoReport { name, health, .. } = self.report;
        let since = match health.since_unix_ms {
            0 => String::new(),
            since => format!(", since {}", ago(now_ms.saturating_sub(since))),
        };
        let _ = writeln!(out, "{name}: {}{since}", state(self.report));
        if let Some(why) = &health.why {
            let _ = writeln!(out, "  {why}");
        }
        if health.state == HealthState::NoListener && self.report.listeners == 0 {
            let _ = writeln!(out, "  {}", advice::NO_LISTENER);
        }
        let _ = write!(out, "\n{}", self.figures());
        self.show_agents(&mut out, now_ms);
        self.show_senders(&mut out, now_ms);
        let _ = write!(out, "\n{}", self.keys(now_ms));
        for fault in &self.faults {
            let _ = writeln!(out, "fault: {}", fault.what);
        }
        out
    }

    fn figures(&self) -> String {
        let report = self.report;
        let row = |name: &str, value: String| [name.to_owned(), value];
        let bound = report
            .bound
            .map_or_else(|| "none is open".into(), |bound| bound.to_string());
        table(&[
            row("binding", bound),
            row(
                "flows",
                format!(
                    "{} now, {} since the relay started, {} of them failed",
                    report.flows_live, report.flows_total, report.flows_failed
                ),
            ),
            row(
                "bytes",
                format!(
                    "{} to the endpoint, {} to applications",
                    bytes(report.bytes_to_endpoint),
                    bytes(report.bytes_to_application)
                ),
            ),
            row(
                "last failure",
                report.last_ending.clone().unwrap_or_else(|| "none".into()),
            ),
        ])
    }

    fn show_agents(&self, out: &mut String, now_ms: u64) {
        if self.report.agents.is_empty() {
            return;
        }
        let head = ["AGENT", "FROM", "STATE", "SESSIONS", "KEY", "ENDPOINT"].map(str::to_owned);
        let rows = self.report.agents.iter().map(|agent| {
            [
                short(agent.agent_id),
                agent.remote.to_string(),
                agent.state.to_string(),
                self.sessions_of(agent).count().to_string(),
                proven(self.sessions_of(agent)),
                dialled(agent.dial.as_ref(), now_ms),
            ]
        });
        let _ = write!(
            out,
            "\n{}",
            table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
        );
        let mut told = Vec::new();
        let failed = self.report.agents.iter().filter_map(|agent| {
            let dial = agent.dial.as_ref()?;
            dial.failed.as_deref()
        });
        for advice in failed.filter_map(advice::of) {
            if !told.contains(&advice) {
                told.push(advice);
                let _ = writeln!(out, "hint: {advice}");
            }
        }
    }

    fn sessions_of(&self, agent: &ListenerReport) -> impl Iterator<Item = &Session<'a>> {
        self.sessions
            .iter()
            .filter(|session| session.session.whole.instance == agent.instance)
    }

    fn show_senders(&self, out: &mut String, now_ms: u64) {
        let head = ["SENDER", "FROM", "STATE", "ROUND TRIP", "KEY", "SINCE"].map(str::to_owned);
        let rows: Vec<_> = self
            .sessions
            .iter()
            .filter(|session| session.session.role == Role::Sender)
            .map(|session| {
                let whole = session.session.whole;
                [
                    short(whole.agent_id),
                    whole.remote.to_string(),
                    whole.state.to_string(),
                    millis(whole.rtt_us),
                    session.key.to_string(),
                    ago(now_ms.saturating_sub(whole.since_unix_ms)),
                ]
            })
            .collect();
        if !rows.is_empty() {
            let _ = write!(
                out,
                "\n{}",
                table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
            );
        }
    }

    fn keys(&self, now_ms: u64) -> String {
        let rows: Vec<_> = self
            .key_uses
            .iter()
            .map(|line| [line.name(), line.used(now_ms)])
            .collect();
        table(&rows)
    }
}

impl<'a> Session<'a> {
    fn all(
        session: &'a SessionReport,
        name: &HycoName,
    ) -> impl Iterator<Item = Session<'a>> + use<'a> {
        let name = name.clone();
        let of_name = move |registered: &&'a underpass_proto::snapshot::RegistrationReport| {
            registered.name == name
        };
        session.hycos.iter().filter(of_name).map(|registered| Self {
            rule: registered.rule,
            key_id: registered.key_id,
            key: registered.key,
            session: Bare {
                role: session.role,
                agent_id: session.agent_id.to_string(),
                instance: session.instance.to_string(),
                remote: session.remote.to_string(),
                worker: session.worker,
                rtt_us: session.rtt_us,
                mtu: session.mtu,
                state: session.state,
                since_unix_ms: session.since_unix_ms,
                whole: session,
            },
        })
    }
}

/// The keys that there are, in order; then those that were of use and are none of them any more.
fn key_lines(
    report: &HycoReport,
    sessions: &[Session<'_>],
    keys: Option<&HycoKeys>,
) -> Vec<KeyLine> {
    let mut lines = Vec::new();
    for rule in [Rule::Listen, Rule::Send] {
        for which in [Which::Primary, Which::Secondary] {
            let id = key_id(rule, which, sessions, keys);
            let key = keys.and_then(|keys| keys.rule(rule)?.which(which));
            if key.is_some() || keys.is_none() {
                lines.push(line(report, sessions, rule, Some(which), id));
            }
        }
    }
    let others = report
        .keys
        .iter()
        .filter(|used| {
            !lines
                .iter()
                .any(|line| line.rule == used.rule && line.key_id == Some(used.key_id))
        })
        .map(|used| line(report, sessions, used.rule, None, Some(used.key_id)))
        .collect::<Vec<_>>();
    lines.extend(others);
    lines
}

/// From the key file, or from a session that proved it.
fn key_id(
    rule: Rule,
    which: Which,
    sessions: &[Session<'_>],
    keys: Option<&HycoKeys>,
) -> Option<KeyId> {
    let file = keys.and_then(|keys| Some(KeyId::of(rule, keys.rule(rule)?.which(which)?)));
    file.or_else(|| {
        sessions
            .iter()
            .find(|session| session.rule == rule && session.key == which)
            .map(|session| session.key_id)
    })
}

fn line(
    report: &HycoReport,
    sessions: &[Session<'_>],
    rule: Rule,
    key: Option<Which>,
    key_id: Option<KeyId>,
) -> KeyLine {
    let used = report
        .keys
        .iter()
        .find(|used| used.rule == rule && Some(used.key_id) == key_id);
    let standing = sessions
        .iter()
        .filter(|session| session.rule == rule && Some(session.key_id) == key_id)
        .count();
    let standing = u32::try_from(standing).unwrap_or(u32::MAX);
    KeyLine {
        rule,
        key,
        key_id,
        // A report that was cut has fewer sessions than there are.
        sessions: used.map_or(standing, |used| used.registrations.max(standing)),
        last_used_unix_ms: used.map(|used| used.last_used_unix_ms),
    }
}

impl KeyLine {
    fn name(&self) -> String {
        let right = self.rule.right();
        match (self.key, self.key_id) {
            (Some(which), _) => format!("{right} key, {which}"),
            (None, Some(id)) => format!("{right} key, earlier ({id})"),
            (None, None) => format!("{right} key"),
        }
    }

    fn used(&self, now_ms: u64) -> String {
        match (self.sessions, self.last_used_unix_ms) {
            (1, _) => "in use by 1 session".into(),
            (2.., _) => format!("in use by {} sessions", self.sessions),
            (0, Some(at)) => format!("last used {}", ago(now_ms.saturating_sub(at))),
            (0, None) => "not used since the relay started".into(),
        }
    }
}

/// The keys that the sessions of one agent proved: one, but for the moment of a rotation.
fn proven<'a>(sessions: impl Iterator<Item = &'a Session<'a>>) -> String {
    let mut keys: Vec<String> = sessions.map(|session| session.key.to_string()).collect();
    keys.sort_unstable();
    keys.dedup();
    if keys.is_empty() {
        "-".into()
    } else {
        keys.join(" and ")
    }
}

fn dialled(dial: Option<&DialReport>, now_ms: u64) -> String {
    let Some(dial) = dial else {
        return "not dialled yet".into();
    };
    let when = ago(now_ms.saturating_sub(dial.unix_ms));
    let by = if dial.by_flow { "a flow" } else { "a probe" };
    match &dial.failed {
        None => format!("reached in {}, by {by} {when}", millis(dial.latency_us)),
        Some(failed) => format!("{}, by {by} {when}", advice::words(failed)),
    }
}
