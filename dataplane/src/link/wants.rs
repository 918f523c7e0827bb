//! Which relays a process dials, and what it asks for at each. Values only; rebuilt when connection
//! strings change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

#[cfg(test)]
use underpass_proto::limits::PING_AFTER;
use underpass_proto::{
    AgentId, AllowList, ConnectionString, Endpoint, HycoName, Instance, Role, Rule,
};

use crate::quic::Pulse;
use crate::quic::config::Trust;

/// Who dials.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// As what.
    pub(crate) role: Role,
    /// Which installation.
    pub(crate) agent_id: AgentId,
    /// Which process of it.
    pub(crate) instance: Instance,
    /// Registers, but asks for no flows.
    pub(crate) check_only: bool,
    /// How often it gives each relay a sign of life.
    pub(crate) keep_alive: Duration,
}

/// One hybrid connection that is asked for, and how a listener wants to be picked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Want {
    /// Name, right and key.
    pub(crate) string: ConnectionString,
    /// Share of new flows relative to other listeners.
    pub(crate) weight: u16,
    /// Lower is preferred.
    pub(crate) priority: u8,
    /// What may be dialled for it; a sender dials nothing.
    pub(crate) allow: AllowList,
}

#[cfg(test)]
impl Want {
    /// At this relay, by its on-premises string, which names no pin.
    pub(crate) fn of_test(relay: &str, name: &str, key: &underpass_proto::Key) -> Self {
        let string = format!(
            "Endpoint=hc://{relay}/{name};SharedAccessKeyName=defaultListener;SharedAccessKey={}",
            key.expose()
        );
        Self {
            string: string.parse().expect("a string"),
            weight: 100,
            priority: 0,
            allow: AllowList::default(),
        }
    }
}

#[cfg(test)]
impl Identity {
    /// Of some agent.
    pub(crate) fn of_test() -> Self {
        Self {
            role: Role::Agent,
            agent_id: AgentId([1; 16]),
            instance: Instance([2; 16]),
            check_only: false,
            keep_alive: PING_AFTER,
        }
    }
}

/// One relay and what is asked for there.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Its address.
    pub(crate) endpoint: Endpoint,
    /// How it is known.
    pub(crate) trust: Trust,
    /// What is asked for, by name.
    pub(crate) wants: BTreeMap<HycoName, Want>,
    /// How many workers it has; 0 before it said so.
    workers: Arc<AtomicU8>,
    /// Its own signs of life, on whatever session.
    pulse: Arc<OnceLock<Arc<Pulse>>>,
}

impl Relay {
    /// How many workers it has; 1 as long as that is not known.
    #[must_use]
    pub(crate) fn workers(&self) -> u8 {
        self.workers.load(Ordering::Relaxed).max(1)
    }

    /// Whether it has said how many workers it has.
    #[must_use]
    pub(crate) fn is_known(&self) -> bool {
        self.workers.load(Ordering::Relaxed) > 0
    }

    /// It said how many.
    pub(crate) fn has_workers(&self, count: u8) {
        self.workers.store(count.max(1), Ordering::Relaxed);
    }

    /// Its signs of life, for all sessions with it.
    pub(crate) fn pulse(&self, now: Instant) -> &Arc<Pulse> {
        self.pulse.get_or_init(|| Arc::new(Pulse::new(now)))
    }

    /// What is asked for under this name.
    #[must_use]
    pub(crate) fn want(&self, hyco: &HycoName) -> Option<&Want> {
        self.wants.get(hyco)
    }

    /// The same relay, of which nothing is wanted any more.
    #[must_use]
    pub(crate) fn without_wants(&self) -> Self {
        Self {
            endpoint: self.endpoint.clone(),
            trust: self.trust.clone(),
            wants: BTreeMap::new(),
            workers: Arc::clone(&self.workers),
            pulse: Arc::clone(&self.pulse),
        }
    }

    /// Whether it is the same relay, whatever is asked for there.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.trust == other.trust
    }
}

/// Why connection strings are of no use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum WantsError {
    /// None at all.
    #[error("no connection string: there is nothing to register for")]
    None,
    /// A key of the other rule.
    #[error(
        "the connection string for {name} has a {has} key, and this process needs a {needs} key; give it the {string} string"
    )]
    Rule {
        /// Whose.
        name: HycoName,
        /// The right that it gives.
        has: &'static str,
        /// The right that is needed.
        needs: &'static str,
        /// The role to ask for when the right string is made.
        string: &'static str,
    },
    /// A port that nothing can listen on.
    #[error("the connection string for {0} has port 0")]
    Port(HycoName),
}

/// Strings of one relay share sessions. What `before` is known of a relay stays known.
///
/// # Errors
/// See [`WantsError`].
pub(crate) fn by_relay(
    wants: Vec<Want>,
    rule: Rule,
    ca: &[Vec<u8>],
    before: &[Arc<Relay>],
) -> Result<Vec<Arc<Relay>>, WantsError> {
    if wants.is_empty() {
        return Err(WantsError::None);
    }
    let mut relays: Vec<Relay> = Vec::new();
    for want in wants {
        let fresh = relay_of(&want.string, rule, ca)?;
        let at = relays.iter().position(|relay| relay.is_same(&fresh));
        let at = at.unwrap_or_else(|| {
            relays.push(fresh);
            relays.len() - 1
        });
        let name = want.string.name.clone();
        relays[at].wants.entry(name).or_insert(want);
    }
    for relay in &mut relays {
        if let Some(known) = before.iter().find(|known| known.is_same(relay)) {
            relay.workers = Arc::clone(&known.workers);
            relay.pulse = Arc::clone(&known.pulse);
        }
    }
    Ok(relays.into_iter().map(Arc::new).collect())
}

fn relay_of(string: &ConnectionString, rule: Rule, ca: &[Vec<u8>]) -> Result<Relay, WantsError> {
    if string.rule != rule {
        return Err(WantsError::Rule {
            name: string.name.clone(),
            has: string.rule.right(),
            needs: rule.right(),
            string: match rule {
                Rule::Listen => "on-premises",
                Rule::Send => "application",
            },
        });
    }
    let port = string
        .relay_port
        .try_into()
        .map_err(|_| WantsError::Port(string.name.clone()))?;
    Ok(Relay {
        endpoint: Endpoint {
            host: string.relay_host.clone(),
            port,
        },
        trust: trust(string, ca),
        wants: BTreeMap::new(),
        workers: Arc::new(AtomicU8::new(0)),
        pulse: Arc::default(),
    })
}

fn trust(string: &ConnectionString, ca: &[Vec<u8>]) -> Trust {
    if !string.pins.is_empty() {
        Trust::Pins(string.pins.clone())
    } else if !ca.is_empty() {
        Trust::Authorities(ca.to_vec())
    } else {
        Trust::System
    }
}

#[cfg(test)]
mod tests {
    use underpass_proto::Key;

    use super::*;

    #[test]
    fn strings_of_one_relay_share_it_and_what_is_known_of_it() {
        let wants = |names: &[&str]| names.iter().map(|name| want(name, "relay.test")).collect();
        let before = by_relay(wants(&["payroll-sql"]), Rule::Listen, &[], &[]).expect("one");
        before[0].has_workers(4);
        let mut all: Vec<Want> = wants(&["payroll-sql", "orders-sql"]);
        all.push(want("archive-sql", "other.test"));
        let after = by_relay(all, Rule::Listen, &[], &before).expect("two relays");
        let counts: Vec<_> = after
            .iter()
            .map(|relay| (relay.wants.len(), relay.workers(), relay.is_known()))
            .collect();
        assert_eq!(counts, [(2, 4, true), (1, 1, false)]);
        let spelled = after[0].want(&"Orders-SQL".parse().expect("a name"));
        assert_eq!(
            spelled.map(|want| want.string.name.as_str()),
            Some("orders-sql")
        );
        assert!(
            after[1]
                .want(&"orders-sql".parse().expect("a name"))
                .is_none()
        );
        let none = after[0].without_wants();
        assert!(none.is_same(&after[0]) && none.wants.is_empty() && none.workers() == 4);
    }

    #[test]
    fn a_string_without_a_pin_trusts_the_authorities_that_are_given_and_else_the_systems() {
        let trusts = |ca: &[Vec<u8>]| {
            let wants = vec![want("payroll-sql", "relay.test")];
            by_relay(wants, Rule::Listen, ca, &[]).expect("one")[0]
                .trust
                .clone()
        };
        let authority = vec![vec![1, 2, 3]];
        assert_eq!(trusts(&authority), Trust::Authorities(authority.clone()));
        assert_eq!(trusts(&[]), Trust::System);
    }

    #[test]
    fn strings_that_are_of_no_use_are_told_with_what_to_give_instead() {
        let told = |wants, rule| {
            let error = by_relay(wants, rule, &[], &[]).expect_err("of no use");
            error.to_string()
        };
        assert_eq!(
            told(Vec::new(), Rule::Listen),
            "no connection string: there is nothing to register for"
        );
        assert_eq!(
            told(vec![want("payroll-sql", "relay.test")], Rule::Send),
            "the connection string for payroll-sql has a listen key, and this process needs a send key; give it the application string"
        );
        let mut sends = want("payroll-sql", "relay.test");
        sends.string.rule = Rule::Send;
        assert_eq!(
            told(vec![sends], Rule::Listen),
            "the connection string for payroll-sql has a send key, and this process needs a listen key; give it the on-premises string"
        );
    }

    fn want(name: &str, relay: &str) -> Want {
        Want::of_test(relay, name, &Key::from_random([7; 32]))
    }
}
