//! What each session is registered for: proven by a key, held against every new plan, and ended
//! when its key, its name or its place is gone.

use std::collections::HashMap;
use std::time::Instant;

use rustc_hash::FxHashMap;
use tracing::info;
use underpass_proto::limits::REGISTRATIONS_MAX;
use underpass_proto::proof::{CheckedKey, check_register, relay_proof};
use underpass_proto::snapshot::{HybridConnection, HycoLimits, KeyStatus, RegistrationReport};
use underpass_proto::wire::{Ended, EndedCode, Hello, RefusedCode, Registered};
use underpass_proto::{
    Exporter, Frame, HycoName, Instance, Key, Register, Role, Rule, SessionCode, Which,
};

use super::{Peer, Peers, Successor, Verdict, unix_ms};
use crate::log_limit::{LogCause, Permit};
use crate::quic::{Driver, SessionId};
use crate::relay::abuse;
use crate::relay::listeners::Who;
use crate::relay::plan::Plan;
use crate::relay::roster::{Entry, Roster, WEIGHT_MAX};
use crate::relay::senders;

/// A registration that is over, and whose flows are to end.
#[derive(Debug)]
pub(crate) struct Over {
    /// On which session.
    pub(crate) session: SessionId,
    /// For what.
    pub(crate) hyco: HycoName,
}
pub(super) struct Registration {
    pub(super) register: Register,
    pub(super) which: Which,
}

impl Peers {
    /// A peer asks to be registered, or again with another key.
    pub(super) fn register(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        plan: &Plan,
        session: SessionId,
        register: Register,
        successor: &mut Option<Successor>,
    ) -> Verdict {
        let (Some(peer), Some(path)) = (self.sessions.get_mut(&session), quic.path(session)) else {
            return Verdict::Fine;
        };
        let Some(hello) = peer.hello.clone() else {
            return Verdict::Close(SessionCode::Protocol);
        };
        let name = register.hyco.clone();
        let (definition, checked) = match authorise(plan, &hello, &register, &peer.exporter) {
            Ok(authorised) => authorised,
            Err(why) => {
                let why = (RefusedCode::NotAuthorised, why.as_str());
                return peer.refuse(now, quic, &mut self.log, session, &register, why);
            }
        };
        if peer.abuse.is_granted(now) == abuse::Judged::Close {
            return Verdict::Close(SessionCode::Overloaded);
        }
        let source = Some(path.remote.ip());
        if peer.check_only {
            let cause = LogCause::new("checked", (register.rule, register.key_id));
            if let Some(Permit { left_out }) = self.log.permits(now, cause, Some(&name), source) {
                info!(hyco = %name, key = %register.key_id, which = %checked.which, role = %hello.role, left_out, "checked");
            }
            let answer = registered(&checked.key, &register, definition, &peer.exporter);
            return peer.say(quic, session, &answer);
        }
        if !peer.registrations.contains_key(&name) {
            if peer.registrations.len() >= REGISTRATIONS_MAX {
                let why = (RefusedCode::Overloaded, "a session has no more of them");
                return peer.refuse(now, quic, &mut self.log, session, &register, why);
            }
            let who = Who {
                agent_id: hello.agent_id,
                instance: hello.instance,
                remote: path.remote,
            };
            let most = definition.limits.listeners_max;
            let listeners = &self.directory.listeners;
            if register.rule == Rule::Listen && !listeners.join(now, definition, who, self.worker) {
                // The place may be held by its own process of before, which is dead: that one is
                // asked for a sign of life, and the next try finds room.
                Successor::add(successor, peer, register.rule, name.clone());
                let why = format!("too many listeners, {most} may be");
                let why = (RefusedCode::TooManyListeners, why.as_str());
                return peer.refuse(now, quic, &mut self.log, session, &register, why);
            }
        }
        let keys = &self.directory.keys;
        keys.proven(&name, register.rule, register.key_id, unix_ms());
        if !std::mem::replace(&mut peer.shares_pulse, true) {
            let of = (hello.instance, name.clone(), register.rule);
            quic.share_pulse(now, session, &self.directory.pulses.of(now, of));
        }
        if register.rule == Rule::Send && peer.flows_allowed == 0 {
            peer.allow_flows(quic, session, senders::FLOWS_FIRST);
        }
        let cause = LogCause::new("registered", (register.rule, register.key_id));
        if let Some(Permit { left_out }) = self.log.permits(now, cause, Some(&name), source) {
            info!(hyco = %name, key = %register.key_id, which = %checked.which, role = %hello.role, agent = %hello.agent_id, left_out, "registered");
        }
        if register.rule == Rule::Listen {
            let entry = Entry::new(session, hello.instance, &register, &definition.limits);
            let cause = LogCause::new("a weight is over the bound", ());
            if register.weight > WEIGHT_MAX
                && definition.limits.weight.is_none()
                && let Some(Permit { left_out }) = self.log.permits(now, cause, Some(&name), source)
            {
                info!(hyco = %name, agent = %hello.agent_id, weight = register.weight, counts = WEIGHT_MAX, left_out, "a weight is over the bound");
            }
            self.rosters.entry(name.clone()).or_default().add(entry);
        }
        let answer = registered(&checked.key, &register, definition, &peer.exporter);
        let which = checked.which;
        peer.proven = true;
        quic.note_proven(now, session);
        if !peer.registrations.contains_key(&name) {
            Successor::add(successor, peer, register.rule, name.clone());
        }
        peer.registrations
            .insert(name, Registration { register, which });
        peer.say(quic, session, &answer)
    }

    pub(super) fn deregister(
        &mut self,
        now: Instant,
        session: SessionId,
        name: &HycoName,
    ) -> Verdict {
        // Live flows go on; a session that has neither registrations nor flows is overdue.
        self.unregister(now, session, name, "deregistered");
        Verdict::Fine
    }

    /// What it registers for is judged and not granted: nothing that others see changes.
    pub(super) fn check(&mut self, session: SessionId) -> Verdict {
        let peer = self.sessions.get_mut(&session);
        let Some(peer) = peer.filter(|peer| peer.hello.is_some() && !peer.proven) else {
            return Verdict::Close(SessionCode::Protocol);
        };
        peer.check_only = true;
        Verdict::Fine
    }

    pub(super) fn draining(&mut self, session: SessionId) -> Verdict {
        if let Some(peer) = self.sessions.get_mut(&session) {
            peer.draining = true;
        }
        Verdict::Fine
    }

    pub(super) fn unregister(
        &mut self,
        now: Instant,
        session: SessionId,
        name: &HycoName,
        why: &str,
    ) {
        let Some(peer) = self.sessions.get_mut(&session) else {
            return;
        };
        let Some(registration) = peer.registrations.remove(name) else {
            return;
        };
        leave(&mut self.rosters, name, session);
        if let Some(instance) = self.instance(session) {
            self.leave(now, name, &registration, instance, why);
        }
    }

    /// Holds every registration against a new plan. Answers which are over; tells peers of those,
    /// and of endpoints that changed.
    pub(crate) fn apply(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        old: &Plan,
        new: &Plan,
    ) -> Vec<Over> {
        let too_many = self.too_many(old, new);
        let mut over = Vec::new();
        let mut changed = Vec::new();
        for (&session, peer) in &mut self.sessions {
            let instance = peer.hello.as_ref().map(|hello| hello.instance);
            for (name, registration) in &peer.registrations {
                if let Some((instance, limits)) = instance.zip(reweighed(old, new, name))
                    && let Some(roster) = self.rosters.get_mut(name)
                    && registration.register.rule == Rule::Listen
                {
                    roster.add(Entry::new(
                        session,
                        instance,
                        &registration.register,
                        limits,
                    ));
                }
            }
            let above = |name| {
                let instances = too_many.get(name).zip(instance);
                instances.is_some_and(|(above, instance)| above.contains(&instance))
            };
            for (name, registration) in &mut peer.registrations {
                match judge(registration, old, new, name) {
                    Judged::Stands | Judged::Moved if above(name) => {
                        let code = EndedCode::TooManyListeners;
                        over.push((session, name.clone(), code));
                    }
                    Judged::Stands => {}
                    Judged::Moved => changed.push((session, name.clone())),
                    Judged::Over(code) => over.push((session, name.clone(), code)),
                }
            }
        }
        for (session, name) in changed {
            self.tell_endpoint(quic, new, session, &name);
        }
        let mut ended = Vec::new();
        for (session, name, code) in over {
            info!(hyco = %name, why = %code, "registration ended");
            self.unregister(now, session, &name, &code.to_string());
            if let Some(peer) = self.sessions.get_mut(&session) {
                let _ = peer.say(
                    quic,
                    session,
                    &Frame::Ended(Ended {
                        hyco: name.clone(),
                        code,
                    }),
                );
            }
            ended.push(Over {
                session,
                hyco: name,
            });
        }
        ended
    }

    /// Where the limit on listeners was lowered: those above it.
    fn too_many(&self, old: &Plan, new: &Plan) -> HashMap<HycoName, Vec<Instance>> {
        let most =
            |plan: &Plan, name: &HycoName| plan.hyco(name).map(|hyco| hyco.limits.listeners_max);
        let beyond = |name: &HycoName| {
            let now = most(new, name)?;
            let lowered = most(old, name).is_some_and(|was| now < was);
            lowered.then(|| (name.clone(), self.directory.listeners.beyond(name, now)))
        };
        self.rosters.keys().filter_map(beyond).collect()
    }

    /// Sends Registered again, with a proof over the last Register: the endpoint is another one
    /// now.
    pub(super) fn tell_endpoint(
        &mut self,
        quic: &mut Driver,
        plan: &Plan,
        session: SessionId,
        name: &HycoName,
    ) {
        if let Some(peer) = self.sessions.get_mut(&session)
            && let Some(answer) = peer.registered_again(plan, name)
        {
            let _ = peer.say(quic, session, &answer);
        }
    }
}

impl Peer {
    /// The answer to what it asked for before, by what the plan says now; `None` where its key is
    /// not known just now.
    fn registered_again(&self, plan: &Plan, name: &HycoName) -> Option<Frame> {
        let registration = self.registrations.get(name)?;
        let definition = plan.hyco(name)?;
        let pair = definition.keys.rule(registration.register.rule)?;
        let key = pair.which(registration.which)?;
        let register = &registration.register;
        Some(registered(key, register, definition, &self.exporter))
    }
}

impl Registration {
    pub(super) fn report(&self, name: &HycoName) -> RegistrationReport {
        RegistrationReport {
            name: name.clone(),
            rule: self.register.rule,
            key_id: self.register.key_id,
            key: self.which,
        }
    }
}

enum Judged {
    Stands,
    /// The endpoint is another one.
    Moved,
    Over(EndedCode),
}

/// The limits of a definition that fixes weight or priority otherwise than before.
fn reweighed<'a>(old: &Plan, new: &'a Plan, name: &HycoName) -> Option<&'a HycoLimits> {
    let limits = &new.hyco(name)?.limits;
    let before = &old.hyco(name)?.limits;
    let fixed = |limits: &HycoLimits| (limits.weight, limits.priority);
    (fixed(limits) != fixed(before)).then_some(limits)
}

/// Whether this peer may have what it asks for, and by which key.
fn authorise<'a>(
    plan: &'a Plan,
    hello: &Hello,
    register: &Register,
    exporter: &Exporter,
) -> Result<(&'a HybridConnection, CheckedKey), String> {
    let definition = plan.hyco(&register.hyco);
    let keys = definition.map(|hyco| &hyco.keys);
    let checked = check_register(register, keys, exporter).map_err(|why| why.to_string())?;
    let role_fits = matches!(
        (hello.role, register.rule),
        (Role::Agent, Rule::Listen) | (Role::Sender, Rule::Send)
    );
    definition
        .filter(|_| role_fits)
        .map(|definition| (definition, checked))
        .ok_or_else(|| "wrong rule for its role".into())
}

/// The answer to a Register, proven by the same key.
fn registered(
    key: &Key,
    register: &Register,
    definition: &HybridConnection,
    exporter: &Exporter,
) -> Frame {
    Frame::Registered(Registered {
        hyco: register.hyco.clone(),
        endpoint: definition.endpoint.clone(),
        relay_proof: relay_proof(key, register, &definition.endpoint, exporter),
    })
}

fn judge(registration: &mut Registration, old: &Plan, new: &Plan, name: &HycoName) -> Judged {
    let Some(definition) = new.hyco(name) else {
        return Judged::Over(EndedCode::Removed);
    };
    match definition
        .keys
        .status(registration.register.rule, registration.register.key_id)
    {
        KeyStatus::Revoked => return Judged::Over(EndedCode::KeyRevoked),
        KeyStatus::Alive(which) => registration.which = which,
        KeyStatus::Unknown => {}
    }
    let moved = old
        .hyco(name)
        .is_some_and(|was| was.endpoint != definition.endpoint);
    if moved { Judged::Moved } else { Judged::Stands }
}
pub(super) fn leave(
    rosters: &mut FxHashMap<HycoName, Roster>,
    name: &HycoName,
    session: SessionId,
) {
    if let Some(roster) = rosters.get_mut(name) {
        roster.remove(session);
        if roster.is_empty() {
            rosters.remove(name);
        }
    }
}
