//! One session of a process that dials: Hello, Welcome, and what it is registered for. Knows how
//! both proofs are made and checked; dials nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::Rng;
use tracing::{info, warn};
use underpass_proto::proof::relay_proof_holds;
use underpass_proto::wire::{Deregister, Ended, Refused, Registered};
use underpass_proto::{
    Endpoint, Exporter, FlowCode, Frame, HycoName, Key, Nonce, Register, Rule, SessionCode,
};

use super::Heard;
use super::wants::{Relay, Want};
use crate::control_stream::ControlStream;
use crate::log_limit::{LogCause, LogLimit, Permit};
use crate::quic::{Driver, SessionId};

/// Longest pause before a refused registration is asked for again.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);

/// A session, from its dial on.
pub(super) struct Session {
    pub(super) since: Instant,
    pub(super) state: State,
    /// The relay drains.
    pub(super) draining: bool,
    /// The highest flow code that the relay knows.
    pub(super) flow_code_max: u8,
    /// When this side said that it wants no more flows on it.
    pub(super) retired: Option<Instant>,
    /// The relay's signs of life on other sessions count for this one.
    shares_pulse: bool,
    /// In the order of their names, in which they are asked for again and given back.
    registrations: BTreeMap<HycoName, Registration>,
}

pub(super) enum State {
    Dialling,
    Up {
        exporter: Exporter,
        control: ControlStream,
        welcomed: bool,
    },
}

/// What became of one Register after the other.
#[derive(Default)]
struct Registration {
    /// Said, and not answered yet.
    asked: Option<Proven>,
    /// Both proofs hold. Stands while a later one is asked for, and when that is refused.
    stands: Option<(Proven, Endpoint)>,
    refusals: u32,
    ask_again: Option<Instant>,
}

/// A Register and what it was made of.
struct Proven {
    register: Register,
    key: Key,
}

impl Session {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            state: State::Dialling,
            draining: false,
            flow_code_max: FlowCode::MAX_UNANNOUNCED,
            retired: None,
            shares_pulse: false,
            registrations: BTreeMap::new(),
        }
    }

    pub(super) fn is_welcomed(&self) -> bool {
        matches!(self.state, State::Up { welcomed: true, .. })
    }

    /// Whether it answers and takes flows.
    pub(super) fn is_well(&self, quic: &Driver, id: SessionId, now: Instant) -> bool {
        let takes = !self.draining && self.retired.is_none();
        self.is_welcomed() && takes && !quic.is_suspect(now, id)
    }

    pub(super) fn say(&mut self, quic: &mut Driver, id: SessionId, frame: &Frame) {
        if let State::Up { control, .. } = &mut self.state {
            // A stream that cannot take it is broken, and is noticed when it is read.
            let _ = control.say(quic, id, frame);
        }
    }

    /// The relay knows who this is: asks for all that is wanted of it.
    pub(super) fn welcome(
        &mut self,
        quic: &mut Driver,
        relay: &Relay,
        id: SessionId,
        workers: u8,
        rng: &mut impl Rng,
    ) {
        if let State::Up { welcomed, .. } = &mut self.state {
            *welcomed = true;
        }
        relay.has_workers(workers);
        for want in relay.wants.values() {
            self.register(quic, id, want, rng);
        }
    }

    /// The relay is proven: its signs of life on other sessions count for this one.
    pub(super) fn share_pulse(
        &mut self,
        quic: &mut Driver,
        relay: &Relay,
        id: SessionId,
        now: Instant,
    ) {
        if !std::mem::replace(&mut self.shares_pulse, true) {
            quic.share_pulse(now, id, relay.pulse(now));
        }
    }

    /// What is wanted is another list now: asks for what is new, proves keys that changed, gives
    /// back what is no longer there.
    pub(super) fn adopt(
        &mut self,
        quic: &mut Driver,
        relay: &Relay,
        id: SessionId,
        rng: &mut impl Rng,
    ) {
        if !self.is_welcomed() {
            return;
        }
        for want in relay.wants.values() {
            let registration = self.registrations.get(&want.string.name);
            if !registration.is_some_and(|registration| registration.is_for(want)) {
                self.register(quic, id, want, rng);
            }
        }
        let unwanted: Vec<_> = self
            .registrations
            .keys()
            .filter(|name| relay.want(name).is_none())
            .cloned()
            .collect();
        for hyco in unwanted {
            info!(%hyco, relay = %relay.endpoint, "registration given back");
            self.registrations.remove(&hyco);
            self.say(quic, id, &Frame::Deregister(Deregister { hyco }));
        }
    }

    pub(super) fn register(
        &mut self,
        quic: &mut Driver,
        id: SessionId,
        want: &Want,
        rng: &mut impl Rng,
    ) {
        let State::Up { exporter, .. } = &self.state else {
            return;
        };
        let mut nonce = Nonce([0; 16]);
        rng.fill_bytes(&mut nonce.0);
        let string = &want.string;
        let register = Register::new(
            &string.key,
            string.name.clone(),
            string.rule,
            nonce,
            want.weight,
            want.priority,
            exporter,
        );
        self.say(quic, id, &Frame::Register(register.clone()));
        let registration = self.registrations.entry(string.name.clone()).or_default();
        registration.ask_again = None;
        registration.asked = Some(Proven {
            register,
            key: string.key.clone(),
        });
    }

    /// Names whose registration is to be asked for again now.
    pub(super) fn due(&self, now: Instant) -> Vec<HycoName> {
        let due = |(name, registration): (&HycoName, &Registration)| {
            let due = registration.ask_again.is_some_and(|at| at <= now);
            due.then(|| name.clone())
        };
        self.registrations.iter().filter_map(due).collect()
    }

    /// The relay's proof is checked before anything is served.
    pub(super) fn registered(
        &mut self,
        relay: &Relay,
        said: Registered,
        (log, now): (&mut LogLimit, Instant),
    ) -> Option<Heard> {
        let State::Up { exporter, .. } = &self.state else {
            return None;
        };
        let registration = self.registrations.get_mut(&said.hyco)?;
        let holds = |proven: &Proven| {
            let Proven { register, key } = proven;
            relay_proof_holds(key, register, &said.endpoint, exporter, &said.relay_proof)
        };
        if registration.asked.as_ref().is_some_and(holds) {
            let proven = registration.asked.take()?;
            registration.tell(relay, &proven.register, &said.endpoint, (log, now));
            registration.stands = Some((proven, said.endpoint.clone()));
            registration.refusals = 0;
        } else if let Some((proven, endpoint)) = &mut registration.stands
            && holds(proven)
        {
            let cause = LogCause::new("endpoint changed", ());
            if let Some(Permit { left_out }) = log.permits(now, cause, Some(&said.hyco), None) {
                info!(hyco = %said.hyco, from = %endpoint, to = %said.endpoint, left_out, "endpoint changed");
            }
            *endpoint = said.endpoint.clone();
        } else {
            let why = format!("the relay does not know the key of {}", said.hyco);
            return Some(Heard::Broken(SessionCode::NotAuthorised, why));
        }
        Some(Heard::Registered(said.hyco, said.endpoint))
    }

    /// Not granted. What stood before stands on.
    pub(super) fn refused(
        &mut self,
        relay: &Relay,
        said: Refused,
        (log, now): (&mut LogLimit, Instant),
    ) -> Option<Heard> {
        let Refused { hyco, code } = said;
        let registration = self.registrations.get_mut(&hyco)?;
        registration.asked = None;
        registration.ask_later(now);
        let stands = registration.stands.is_some();
        let cause = LogCause::new("registration refused", (stands, code));
        if let Some(Permit { left_out }) = log.permits(now, cause, Some(&hyco), None) {
            let what = if stands {
                "the new key is refused; the one before still stands"
            } else {
                "registration refused"
            };
            warn!(%hyco, relay = %relay.endpoint, why = %code, left_out, "{what}");
        }
        if stands {
            return None;
        }
        Some(Heard::Refused(hyco, code))
    }

    /// Over. Its flows are ended by the relay.
    pub(super) fn ended(
        &mut self,
        relay: &Relay,
        said: Ended,
        (log, now): (&mut LogLimit, Instant),
    ) -> Option<Heard> {
        let Ended { hyco, code } = said;
        let registration = self.registrations.get_mut(&hyco)?;
        let cause = LogCause::new("registration ended", code);
        if let Some(Permit { left_out }) = log.permits(now, cause, Some(&hyco), None) {
            warn!(%hyco, relay = %relay.endpoint, why = %code, left_out, "registration ended");
        }
        registration.stands = None;
        if registration.asked.is_none() {
            registration.ask_later(now);
        }
        Some(Heard::Ended(hyco))
    }

    pub(super) fn endpoint(&self, hyco: &HycoName) -> Option<&Endpoint> {
        let (_, endpoint) = self.registrations.get(hyco)?.stands.as_ref()?;
        Some(endpoint)
    }

    /// All that both proofs hold for.
    pub(super) fn standing(&self) -> impl Iterator<Item = &HycoName> {
        let stands = |(name, it): (_, &Registration)| it.stands.is_some().then_some(name);
        self.registrations.iter().filter_map(stands)
    }

    /// Whether all that stands on it stands on the other one, too.
    pub(super) fn stands_on(&self, other: &Session) -> bool {
        let there = |name| other.registrations.get(name);
        self.standing()
            .all(|name| there(name).is_some_and(|it| it.stands.is_some()))
    }

    /// Whether it was asked for, nothing stands, and the relay has not answered.
    pub(super) fn is_awaited(&self, hyco: &HycoName) -> bool {
        self.registrations.get(hyco).is_some_and(|registration| {
            registration.stands.is_none() && registration.asked.is_some()
        })
    }
}

impl Registration {
    /// Whether this is what was asked for last.
    fn is_for(&self, want: &Want) -> bool {
        let stands = self.stands.as_ref().map(|(proven, _)| proven);
        self.asked.as_ref().or(stands).is_some_and(|proven| {
            let said = &proven.register;
            proven.key == want.string.key
                && said.weight == want.weight
                && said.priority == want.priority
        })
    }

    fn ask_later(&mut self, now: Instant) {
        let pause = Duration::from_secs(1 << self.refusals.min(8)).min(ASK_AGAIN_MAX);
        self.refusals += 1;
        self.ask_again = Some(now + pause);
    }

    fn tell(
        &self,
        relay: &Relay,
        register: &Register,
        endpoint: &Endpoint,
        (log, now): (&mut LogLimit, Instant),
    ) {
        let (hyco, key, relay) = (&register.hyco, register.key_id, &relay.endpoint);
        let kind = match &self.stands {
            Some((before, _)) if before.register.key_id != key => "key changed",
            Some((_, was)) if was != endpoint => "endpoint changed",
            Some(_) => return,
            None => "registered",
        };
        let Some(Permit { left_out }) = log.permits(now, LogCause::new(kind, ()), Some(hyco), None)
        else {
            return;
        };
        match &self.stands {
            Some((before, _)) if before.register.key_id != key => {
                info!(%hyco, from = %before.register.key_id, to = %key, %relay, left_out, "key changed");
            }
            Some((_, was)) => {
                info!(%hyco, from = %was, to = %endpoint, left_out, "endpoint changed");
            }
            None if register.rule == Rule::Listen => {
                info!(%hyco, %endpoint, %relay, %key, left_out, "listener registered");
            }
            None => info!(%hyco, %endpoint, %relay, %key, left_out, "sender registered"),
        }
    }
}
