//! The probes of one worker: asks agents to dial their endpoints, waits for their answers under a
//! deadline, and writes what they found into the book.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rustc_hash::FxHashMap;
use underpass_proto::limits::OPEN_DEADLINE;
use underpass_proto::snapshot::{ProbedDial, ProbedListener};
use underpass_proto::wire::{Probe, Probed};
use underpass_proto::{Endpoint, FlowCode, Frame, HycoName, Instance};

use super::Peers;
use crate::quic::{Driver, SessionId};
use crate::relay::listeners::{Dial, Moment, PendingProbe};

/// Probes that may be under way at once on one worker: far below what an agent dials at once, and
/// 10,000 endpoints are still asked within seconds.
const PROBES_MAX: usize = 1024;

/// Probes that a person asked for, beyond those. The supervisor bounds how many ask at once.
const ASKED_MAX: usize = 4096;

/// Who asked for a probe, and waits for what it finds.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    /// Comes back with the answer.
    pub(crate) token: u64,
    /// Where the answer goes. One that finds no place is lost: the asker has a deadline.
    pub(crate) answers: Sender<(u64, ProbedListener)>,
}

/// Those under way.
#[derive(Debug, Default)]
pub(super) struct Probes {
    by_id: FxHashMap<u64, Sent>,
    /// In the order of their deadlines.
    deadlines: VecDeque<(Instant, u64)>,
    last_id: u64,
}

#[derive(Debug)]
struct Sent {
    session: SessionId,
    pending: PendingProbe,
    asker: Option<Asker>,
}

impl Peers {
    /// Sends the probes that are due, and gives those up that were not answered.
    pub(crate) fn keep_probing(&mut self, now: Instant, quic: &mut Driver) {
        self.give_up(now, quic);
        let room = PROBES_MAX.saturating_sub(self.probes.by_id.len());
        let listeners = &self.directory.listeners;
        for pending in listeners.due(self.worker, now, room, &mut self.rng) {
            if let Err(pending) = self.probe(now, quic, pending, None) {
                let (name, instance) = (&pending.hyco, pending.instance);
                self.directory
                    .listeners
                    .unsaid(now, name, instance, &mut self.rng);
            }
        }
    }

    /// Sends a probe that a person asked for. What cannot be sent is not answered.
    pub(crate) fn probe_asked(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        pending: PendingProbe,
        asker: Asker,
    ) {
        if self.probes.by_id.len() < PROBES_MAX + ASKED_MAX {
            let (name, instance) = (pending.hyco.clone(), pending.instance);
            if self.probe(now, quic, pending, Some(asker)).is_ok() {
                self.directory.listeners.probe_requested(&name, instance);
            }
        }
    }

    fn probe(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        pending: PendingProbe,
        asker: Option<Asker>,
    ) -> Result<(), PendingProbe> {
        let best = self.session_of(quic, now, &pending.hyco, pending.instance);
        let Some((session, peer)) =
            best.and_then(|best| Some((best, self.sessions.get_mut(&best)?)))
        else {
            return Err(pending);
        };
        // As the agent has it.
        let registered = peer.registrations.get(&pending.hyco);
        let hyco = registered.map_or(&pending.hyco, |registration| &registration.register.hyco);
        let id = self.probes.last_id + 1;
        let frame = Frame::Probe(Probe {
            hyco: hyco.clone(),
            id,
            endpoint: pending.endpoint.clone(),
        });
        if peer.say(quic, session, &frame) != super::Verdict::Fine {
            return Err(pending);
        }
        self.probes.last_id = id;
        self.probes.deadlines.push_back((now + OPEN_DEADLINE, id));
        self.probes.by_id.insert(
            id,
            Sent {
                session,
                pending,
                asker,
            },
        );
        Ok(())
    }

    /// The best session of a listener.
    fn session_of(
        &self,
        quic: &Driver,
        now: Instant,
        name: &HycoName,
        instance: Instance,
    ) -> Option<SessionId> {
        self.rosters
            .get(name)?
            .sessions_of(instance)
            .min_by_key(|session| self.health(quic, now, *session))
    }

    /// An agent answered. Answers that nobody waits for, or of another session, say nothing.
    pub(super) fn probed(
        &mut self,
        now: Instant,
        quic: &Driver,
        session: SessionId,
        said: &Probed,
    ) {
        let sent = self.probes.by_id.get(&said.id);
        if sent.is_none_or(|sent| sent.session != session) {
            return;
        }
        if let Some(sent) = self.probes.by_id.remove(&said.id) {
            let dial = Dial {
                failed: said.failed,
                latency: Duration::from_micros(u64::from(said.dial_us)),
                by_flow: false,
            };
            self.write_down(now, &sent.pending, dial);
            let endpoint = sent.pending.endpoint.clone();
            self.answer(quic, sent, Some(probed_dial(endpoint, said)));
        }
    }

    fn give_up(&mut self, now: Instant, quic: &Driver) {
        while let Some(&(deadline, id)) = self.probes.deadlines.front() {
            let sent = self.probes.by_id.contains_key(&id);
            if sent && deadline > now {
                return;
            }
            self.probes.deadlines.pop_front();
            let Some(sent) = self.probes.by_id.remove(&id) else {
                continue;
            };
            let dial = Dial {
                failed: Some(FlowCode::EndpointTimedOut),
                latency: OPEN_DEADLINE,
                by_flow: false,
            };
            self.write_down(now, &sent.pending, dial);
            self.answer(quic, sent, None);
        }
    }

    /// A session is gone, and with it the answers that it owed.
    pub(super) fn probes_lost(&mut self, now: Instant, quic: &Driver, session: SessionId) {
        let lost = self
            .probes
            .by_id
            .extract_if(|_, sent| sent.session == session);
        let lost: Vec<Sent> = lost.map(|(_, sent)| sent).collect();
        for sent in lost {
            let (name, instance) = (&sent.pending.hyco, sent.pending.instance);
            if sent.asker.is_none() {
                self.directory
                    .listeners
                    .unsaid(now, name, instance, &mut self.rng);
            }
            self.answer(quic, sent, None);
        }
    }

    fn write_down(&mut self, now: Instant, pending: &PendingProbe, dial: Dial) {
        let _ = self.directory.listeners.dialled(
            Moment::at(now),
            &pending.hyco,
            pending.instance,
            &pending.endpoint,
            dial,
            &mut self.rng,
        );
    }

    fn answer(&self, quic: &Driver, sent: Sent, dial: Option<ProbedDial>) {
        let Some(asker) = sent.asker else { return };
        let peer = self.sessions.get(&sent.session);
        let hello = peer.and_then(|peer| peer.hello.as_ref());
        let (Some(hello), Some(path)) = (hello, quic.path(sent.session)) else {
            return;
        };
        let found = ProbedListener {
            agent_id: hello.agent_id,
            instance: hello.instance,
            remote: path.remote,
            rtt_us: u64::try_from(path.rtt.as_micros()).unwrap_or(u64::MAX),
            dial,
        };
        let _ = asker.answers.try_send((asker.token, found));
    }
}

fn probed_dial(endpoint: Endpoint, said: &Probed) -> ProbedDial {
    ProbedDial {
        endpoint,
        address: said.dialled,
        resolve_us: said.resolve_us,
        dial_us: said.dial_us,
        failed: said.failed.map(|code| code.name().to_owned()),
        why: said.failed.map(|code| code.to_string()),
    }
}
