//! The bindings of one worker: addresses where it takes applications in, and how they close when
//! the process drains.

use std::time::Instant;

use rustc_hash::FxHashMap;
use tracing::warn;
use underpass_proto::HycoName;

use crate::core::{Core, Owner};
use crate::io::{Close, Io, Listener, SocketId};

/// A binding as a worker is told of it.
pub(crate) enum Change {
    /// Take connections of this hybrid connection.
    Bind {
        /// Names the binding in later changes.
        number: u64,
        /// Whose.
        hyco: HycoName,
        /// Bound and listening.
        listener: Listener,
    },
    /// Close a binding.
    Unbind(u64),
}

/// The bindings of a worker, by number.
#[derive(Debug, Default)]
pub(crate) struct Listening(FxHashMap<u64, (SocketId, HycoName)>);

impl Listening {
    /// Opens or closes one.
    pub(crate) fn change<I: Io, D>(&mut self, core: &mut Core<I, D>, change: Change) {
        match change {
            Change::Bind {
                number,
                hyco,
                listener,
            } => match core.io.listen(listener) {
                Ok(socket) => {
                    core.own(socket, Owner::Role(number));
                    self.0.insert(number, (socket, hyco));
                }
                Err(error) => warn!(%hyco, %error, "binding cannot be watched"),
            },
            Change::Unbind(number) => {
                if let Some((socket, _)) = self.0.remove(&number) {
                    close(core, socket);
                }
            }
        }
    }

    /// Closes all.
    pub(crate) fn close<I: Io, D>(&mut self, core: &mut Core<I, D>) {
        for (_, (socket, _)) in self.0.drain() {
            close(core, socket);
        }
    }

    /// Whose this one is.
    #[must_use]
    pub(crate) fn hyco(&self, number: u64) -> Option<&HycoName> {
        self.0.get(&number).map(|(_, hyco)| hyco)
    }
}

fn close<I: Io, D>(core: &mut Core<I, D>, socket: SocketId) {
    core.disown(socket);
    core.io.close(socket, Close::Clean);
}

/// A drain of a process that takes applications in.
#[derive(Debug)]
pub(crate) struct Drain {
    until: Instant,
    /// Bindings stay open until the tick after the first, so that the backlog is accepted.
    closing: bool,
}

impl Drain {
    /// Live flows may go on until then.
    #[must_use]
    pub(crate) fn new(until: Instant) -> Self {
        Self {
            until,
            closing: false,
        }
    }

    /// One tick: closes the bindings once the backlog was accepted. `Some`: they are closed, and
    /// whether the time is over.
    pub(crate) fn tick<I: Io, D>(
        &mut self,
        core: &mut Core<I, D>,
        listening: &mut Listening,
    ) -> Option<bool> {
        if !std::mem::replace(&mut self.closing, true) {
            return None;
        }
        listening.close(core);
        Some(core.now >= self.until)
    }
}
