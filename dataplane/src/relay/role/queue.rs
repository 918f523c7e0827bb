//! Flows for which there is a listener and no room: each of its sessions carries as many as it may.
//! They are served in turn as others end, or refused.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn_proto::StreamId;
use underpass_proto::{FlowCode, HycoName};

use super::flows::Choice;
use super::{Relay, RelayFlow};
use crate::core::Core;
use crate::io::{Io, SocketId};
use crate::opening::Asked;
use crate::quic::SessionId;
use crate::relay::plan::Place;

/// A flow that waits. It counts as a live one meanwhile.
pub(super) enum Waiter {
    /// Of an application that is here.
    Application {
        hyco: HycoName,
        socket: SocketId,
        application: SocketAddr,
        place: Place,
    },
    /// Of an application that is beside a sender.
    Sender(Asked, Place),
}

impl Relay {
    /// Whoever waits goes on, where there is room.
    pub(super) fn resume<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        if self.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let served = waiting.served(|waiter| match self.choose(core, waiter.hyco(), None) {
            Choice::Stream(session, stream) => Some((session, stream)),
            Choice::Full | Choice::Nobody => None,
        });
        self.waiting = waiting;
        let plan = Arc::clone(&self.plan);
        for (waiter, chosen) in served {
            let Some(hyco) = plan.hyco(waiter.hyco()) else {
                let (session, stream) = chosen;
                core.quic
                    .abort(session, stream, FlowCode::RegistrationEnded);
                self.give_up(core, waiter, FlowCode::RegistrationEnded);
                continue;
            };
            match waiter {
                Waiter::Application {
                    socket,
                    application,
                    place,
                    ..
                } => self.start(core, hyco, (socket, application), place, chosen),
                Waiter::Sender(asked, place) => {
                    self.start_joined(core, hyco, asked, place, chosen);
                }
            }
        }
    }

    /// Whether this is the stream of a sender's flow that waits, and the sender has reset it.
    pub(super) fn waiting_was_taken_back<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
        stream: StreamId,
    ) -> bool {
        let is_it = |waiter: &Waiter| matches!(waiter, Waiter::Sender(asked, _) if asked.session == session && asked.stream == stream);
        if self.waiting.is_empty() || core.quic.reset_of(session, stream).is_none() {
            return false;
        }
        let forgotten = self.waiting.forget(is_it);
        if forgotten {
            core.quic.abort(session, stream, FlowCode::Reset);
        }
        forgotten
    }

    /// Refuses those that waited for too long.
    pub(super) fn expire_waiting<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        self.resume(core);
        for waiter in self.waiting.expired(core.now) {
            self.give_up(core, waiter, FlowCode::Overloaded);
        }
    }

    /// Refuses one.
    pub(super) fn give_up<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        waiter: Waiter,
        code: FlowCode,
    ) {
        match waiter {
            Waiter::Application {
                hyco,
                socket,
                application,
                ..
            } => self.turn_away(core, &hyco, socket, application, code),
            Waiter::Sender(asked, _) => {
                self.note_refusal(core, &asked.open.hyco, asked.open.application, code);
                core.quic.abort(asked.session, asked.stream, code);
            }
        }
    }
}

impl Waiter {
    fn hyco(&self) -> &HycoName {
        match self {
            Self::Application { hyco, .. } => hyco,
            Self::Sender(asked, _) => &asked.open.hyco,
        }
    }

    /// Whether it stands on this session of a sender.
    pub(super) fn is_of(&self, session: SessionId) -> bool {
        matches!(self, Self::Sender(asked, _) if asked.session == session)
    }
}
