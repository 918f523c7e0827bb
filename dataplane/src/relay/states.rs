//! Says in a word how each hybrid connection is (ready, degraded, no listener), since when and why.
//! Put together each second by the supervisor from what sessions are like and what the book says of
//! their endpoints; logged when it changes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tracing::{info, warn};
use underpass_proto::snapshot::{
    DialReport, Health, HealthState, ListenerReport, SessionReport, SessionState,
};
use underpass_proto::{AgentId, HycoName, Instance, KeyId, Role, Rule};

use super::listeners::{Dial, Moment, Probing, Seen, View, Who};
use super::plan::Plan;

/// Listeners that are named as the cause; of more only the number is told.
const NAMED_MAX: usize = 3;

/// Digits of an agent's identifier that tell it from others well enough.
const ID_DIGITS: usize = 8;

/// How every hybrid connection was when it was last looked at.
#[derive(Debug, Default)]
pub(crate) struct States(HashMap<HycoName, State>);

#[derive(Debug)]
struct State {
    health: Health,
    /// What the log said last.
    told: HealthState,
}

/// The sessions of one hybrid connection, taken together.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_instance: HashMap<Instance, OfListener>,
    /// What every registration stands on.
    pub(crate) keys: Vec<(Rule, KeyId)>,
}

/// The sessions of one listener.
#[derive(Debug)]
struct OfListener {
    remote: SocketAddr,
    best: SessionState,
    worst: SessionState,
}

impl Sessions {
    /// Sorts reported sessions by what they are registered for.
    pub(crate) fn by_hyco(sessions: &[SessionReport]) -> HashMap<HycoName, Self> {
        let mut by_hyco: HashMap<HycoName, Self> = HashMap::new();
        for session in sessions {
            for registration in &session.hycos {
                let of_hyco = by_hyco.entry(registration.name.clone()).or_default();
                of_hyco.keys.push((registration.rule, registration.key_id));
                if session.role == Role::Agent {
                    of_hyco.add(session);
                }
            }
        }
        by_hyco
    }

    fn add(&mut self, session: &SessionReport) {
        let listener = self
            .by_instance
            .entry(session.instance)
            .or_insert(OfListener {
                remote: session.remote,
                best: session.state,
                worst: session.state,
            });
        if rank(session.state) < rank(listener.best) {
            listener.best = session.state;
            listener.remote = session.remote;
        }
        if rank(session.state) > rank(listener.worst) {
            listener.worst = session.state;
        }
    }
}

impl States {
    /// Forgets what is no longer defined.
    pub(crate) fn define(&mut self, plan: &Plan) {
        self.0.retain(|name, _| plan.hyco(name).is_some());
    }

    /// How one was when it was last looked at.
    #[must_use]
    pub(crate) fn last(&self, name: &HycoName) -> Health {
        self.0
            .get(name)
            .map_or_else(Health::default, |state| state.health.clone())
    }

    /// Looks at one.
    pub(crate) fn look(
        &mut self,
        moment: Moment,
        name: &HycoName,
        view: &View,
        sessions: &Sessions,
    ) -> Health {
        let judged = judge(moment, view, sessions);
        let since_unix_ms = match &view.left {
            Some((left, _)) if judged.state == HealthState::NoListener => left.unix_ms,
            _ => moment.unix_ms,
        };
        let state = self.0.entry(name.clone()).or_insert_with(|| State {
            health: Health {
                state: judged.state,
                since_unix_ms,
                why: None,
            },
            told: HealthState::NoListener,
        });
        if state.health.state != judged.state {
            state.health.state = judged.state;
            state.health.since_unix_ms = since_unix_ms;
        }
        state.health.why = judged.why;
        if state.told != judged.state && !judged.passing {
            state.told = judged.state;
            tell(name, &state.health);
        }
        state.health.clone()
    }
}

/// Each listener of a view, as it is reported.
#[must_use]
pub(crate) fn listeners(view: &View, sessions: &Sessions) -> Vec<ListenerReport> {
    let report = |seen: &Seen| {
        let of_listener = sessions.by_instance.get(&seen.who.instance);
        ListenerReport {
            agent_id: seen.who.agent_id,
            instance: seen.who.instance,
            remote: of_listener.map_or(seen.who.remote, |of| of.remote),
            // One that registered since the sessions were asked is as well as new.
            state: of_listener.map_or(SessionState::Ready, |of| of.best),
            dial: seen.last.map(|(dial, at)| dial_report(dial, at)),
        }
    };
    view.listeners.iter().map(report).collect()
}

fn dial_report(dial: Dial, at: Moment) -> DialReport {
    DialReport {
        failed: dial.failed.map(|code| code.name().to_owned()),
        latency_us: u64::try_from(dial.latency.as_micros()).unwrap_or(u64::MAX),
        by_flow: dial.by_flow,
        unix_ms: at.unix_ms,
    }
}

struct Judged {
    state: HealthState,
    why: Option<String>,
    /// Nothing failed: the first dial is under way, and says more in a moment.
    passing: bool,
}

fn judge(moment: Moment, view: &View, sessions: &Sessions) -> Judged {
    if view.listeners.is_empty() {
        return Judged {
            state: HealthState::NoListener,
            why: Some(why_nobody(moment, view)),
            passing: false,
        };
    }
    let causes: Vec<Cause> = view
        .listeners
        .iter()
        .filter_map(|seen| cause(view, seen, sessions))
        .collect();
    let untested = view.listeners.iter().all(|seen| seen.last.is_none());
    if causes.is_empty() {
        return Judged {
            state: HealthState::Ready,
            why: basis(moment, view, untested),
            passing: false,
        };
    }
    Judged {
        state: HealthState::Degraded,
        passing: causes.iter().all(|cause| cause.passing),
        why: Some(words(&causes)),
    }
}

/// What *ready* rests on, where that is not a dial of just now.
fn basis(moment: Moment, view: &View, untested: bool) -> Option<String> {
    if view.probing == Probing::Off {
        return untested.then(|| "not probed: probe is off".to_owned());
    }
    let rests = view.listeners.iter().filter(|seen| seen.rests);
    let oldest = rests.min_by_key(|seen| seen.last.map(|(_, at)| at.now))?;
    let since = match oldest.last {
        Some((_, at)) => {
            let ago = ago(moment.now.saturating_duration_since(at.now));
            format!("the endpoint was last reached {ago} ago")
        }
        None => "the endpoint was not reached yet".to_owned(),
    };
    let probes = oldest.probes;
    Some(format!(
        "{since}; it is not probed again after {probes} probes without a flow between, until one reaches it"
    ))
}

struct Cause {
    what: String,
    passing: bool,
}

/// What is not well with one listener: its sessions, or how its endpoint was last dialled.
fn cause(view: &View, seen: &Seen, sessions: &Sessions) -> Option<Cause> {
    let of_listener = sessions.by_instance.get(&seen.who.instance);
    let agent = agent(
        seen.who,
        of_listener.map_or(seen.who.remote, |of| of.remote),
    );
    let endpoint = &view.endpoint;
    let (what, passing) = match (of_listener.map(|of| of.worst), seen.last) {
        (Some(SessionState::Suspect), _) => (format!("{agent} does not answer"), false),
        (Some(SessionState::Draining), _) => (format!("{agent} is draining"), false),
        (_, Some((dial, _))) => (format!("{agent} to {endpoint}: {}", dial.failed?), false),
        (_, None) if view.probing != Probing::Off && !seen.rests => (
            format!("{agent} to {endpoint}: endpoint not dialled yet"),
            true,
        ),
        (_, None) => return None,
    };
    Some(Cause { what, passing })
}

/// `agent 1a2b3c4d (192.0.2.7:40112)`.
fn agent(who: Who, remote: SocketAddr) -> String {
    format!("agent {} ({remote})", short(who.agent_id))
}

fn short(id: AgentId) -> String {
    id.to_string().chars().take(ID_DIGITS).collect()
}

fn words(causes: &[Cause]) -> String {
    let named: Vec<&str> = causes
        .iter()
        .take(NAMED_MAX)
        .map(|cause| cause.what.as_str())
        .collect();
    let mut words = named.join("; ");
    if let more @ 1.. = causes.len().saturating_sub(NAMED_MAX) {
        let _ = write!(words, "; and {more} more");
    }
    words
}

fn why_nobody(moment: Moment, view: &View) -> String {
    match &view.left {
        None => "no agent has registered since the relay started".to_owned(),
        Some((left, why)) => {
            let ago = ago(moment.now.saturating_duration_since(left.now));
            format!("the last agent left {ago} ago: {why}")
        }
    }
}

/// Seconds, minutes or hours, whichever a person would say.
fn ago(since: Duration) -> String {
    match since.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

fn tell(name: &HycoName, health: &Health) {
    let why = health
        .why
        .as_deref()
        .unwrap_or("every agent reaches the endpoint");
    match health.state {
        HealthState::Ready => info!(hyco = %name, why, "ready"),
        HealthState::Degraded => warn!(hyco = %name, why, "degraded"),
        HealthState::NoListener => warn!(hyco = %name, why, "no listener"),
    }
}

fn rank(state: SessionState) -> u8 {
    match state {
        SessionState::Ready => 0,
        SessionState::Suspect => 1,
        SessionState::Draining => 2,
    }
}

#[cfg(test)]
mod tests;
