//! What a worker owns: its io, its sessions, its flows, and who each socket belongs to.

use std::collections::VecDeque;
use std::time::Instant;

use quinn_proto::StreamId;
use rustc_hash::FxHashMap;

use crate::flow::{End, Flow, FlowKey};
use crate::held::InHand;
use crate::io::{Io, SocketId};
use crate::join::{Join, JoinEnd, Joins};
use crate::log_limit::LogLimit;
use crate::quic::{Driver, SessionId};

/// All of a worker but its role.
pub(crate) struct Core<I: Io, D> {
    /// This worker's index.
    pub(crate) worker: u8,
    /// The operating system.
    pub(crate) io: I,
    /// The sessions.
    pub(crate) quic: Driver,
    /// The time at which this turn began.
    pub(crate) now: Instant,
    /// The live flows.
    pub(crate) flows: Flows<D>,
    /// Flows that ended since the role was last told.
    pub(crate) ended: Vec<(Flow<D>, End)>,
    /// The live joins of two streams.
    pub(crate) joins: Joins<D>,
    /// Joins that ended since the role was last told.
    pub(crate) ended_joins: Vec<(Join<D>, JoinEnd)>,
    /// Flows whose sockets are not being read and not yet watched.
    pub(crate) paused: Vec<FlowKey>,
    /// Flows since the last tick whose sockets were connected here.
    pub(crate) young: VecDeque<FlowKey>,
    /// Bytes that were read from one side and not yet taken by the other.
    pub(crate) in_hand: InHand,
    /// Flows that may not read from their sockets until there is room.
    pub(crate) hungry: VecDeque<FlowKey>,
    /// Somebody waits for the end of a quiet send: the next wait is none.
    pub(crate) hurried: bool,
    owners: Vec<(u32, Owner)>,
    /// Which lines about flows and sessions are written.
    pub(crate) log: LogLimit,
    /// Defects that cost a session or a flow here.
    pub(crate) panics: u64,
}

/// Who a socket belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// Nobody: a completion for it is stale.
    None,
    /// A flow.
    Flow(FlowKey),
    /// The role, by a number of its own.
    Role(u64),
}

impl<I: Io, D> Core<I, D> {
    pub(crate) fn new(worker: u8, io: I, quic: Driver) -> Self {
        let now = io.now();
        Self {
            worker,
            io,
            quic,
            now,
            flows: Flows::default(),
            ended: Vec::new(),
            joins: Joins::default(),
            ended_joins: Vec::new(),
            paused: Vec::new(),
            young: VecDeque::new(),
            in_hand: InHand::default(),
            hungry: VecDeque::new(),
            hurried: false,
            owners: Vec::new(),
            log: LogLimit::default(),
            panics: 0,
        }
    }

    /// Says whose a socket is.
    pub(crate) fn own(&mut self, socket: SocketId, owner: Owner) {
        let index = socket.index as usize;
        if self.owners.len() <= index {
            self.owners.resize(index + 1, (0, Owner::None));
        }
        self.owners[index] = (socket.generation, owner);
    }

    /// Forgets a socket.
    pub(crate) fn disown(&mut self, socket: SocketId) {
        self.own(socket, Owner::None);
    }

    pub(crate) fn owner(&self, socket: SocketId) -> Owner {
        match self.owners.get(socket.index as usize) {
            Some((generation, owner)) if *generation == socket.generation => *owner,
            _ => Owner::None,
        }
    }

    /// Ends all flows of a session that is gone.
    pub(crate) fn session_gone(&mut self, session: SessionId) {
        for key in self.flows.of_session(session) {
            self.fail(key, End::Lost);
        }
        self.join_session_gone(session);
    }

    /// How many flows and joins a session carries.
    #[must_use]
    pub(crate) fn load(&self, session: SessionId) -> usize {
        self.flows.count_of_session(session) + self.joins.count_of_session(session)
    }

    /// Whether nothing is under way.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.flows.is_empty() && self.joins.is_empty()
    }
}

/// The live flows of a worker, by key and by stream.
#[derive(Debug)]
pub(crate) struct Flows<D> {
    slots: Vec<Slot<D>>,
    free: Vec<u32>,
    by_stream: FxHashMap<SessionId, FxHashMap<StreamId, FlowKey>>,
    live: usize,
}

#[derive(Debug)]
struct Slot<D> {
    generation: u32,
    flow: Option<Flow<D>>,
}

impl<D> Default for Flows<D> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_stream: FxHashMap::default(),
            live: 0,
        }
    }
}

impl<D> Flows<D> {
    /// Whether there is none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// How many there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// The flow of `key`, if it lives.
    #[must_use]
    pub(crate) fn get(&self, key: FlowKey) -> Option<&Flow<D>> {
        let slot = self.slots.get(key.index as usize)?;
        slot.flow
            .as_ref()
            .filter(|_| slot.generation == key.generation)
    }

    /// The flow of `key`, if it lives.
    #[must_use]
    pub(crate) fn get_mut(&mut self, key: FlowKey) -> Option<&mut Flow<D>> {
        let slot = self.slots.get_mut(key.index as usize)?;
        slot.flow
            .as_mut()
            .filter(|_| slot.generation == key.generation)
    }

    /// The flow whose stream this is.
    #[must_use]
    pub(crate) fn of_stream(&self, session: SessionId, stream: StreamId) -> Option<FlowKey> {
        self.by_stream.get(&session)?.get(&stream).copied()
    }

    /// The flows of a session.
    #[must_use]
    pub(crate) fn of_session(&self, session: SessionId) -> Vec<FlowKey> {
        self.by_stream
            .get(&session)
            .map(|streams| streams.values().copied().collect())
            .unwrap_or_default()
    }

    /// How many flows a session carries.
    #[must_use]
    pub(crate) fn count_of_session(&self, session: SessionId) -> usize {
        self.by_stream.get(&session).map_or(0, FxHashMap::len)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowKey, &Flow<D>)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let index = u32::try_from(index).ok()?;
            let flow = slot.flow.as_ref()?;
            Some((
                FlowKey {
                    index,
                    generation: slot.generation,
                },
                flow,
            ))
        })
    }

    pub(crate) fn insert(&mut self, flow: Flow<D>) -> FlowKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                flow: None,
            });
            u32::try_from(self.slots.len() - 1).expect("flows are bounded by file descriptors")
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let key = FlowKey {
            index,
            generation: slot.generation,
        };
        let (session, stream) = (flow.session, flow.stream);
        slot.flow = Some(flow);
        self.live += 1;
        self.link(session, stream, key);
        key
    }

    pub(crate) fn remove(&mut self, key: FlowKey) -> Option<Flow<D>> {
        self.get(key)?;
        let flow = self.slots.get_mut(key.index as usize)?.flow.take()?;
        self.free.push(key.index);
        self.live -= 1;
        self.unlink(flow.session, flow.stream);
        Some(flow)
    }

    pub(crate) fn link(&mut self, session: SessionId, stream: StreamId, key: FlowKey) {
        self.by_stream
            .entry(session)
            .or_default()
            .insert(stream, key);
    }

    pub(crate) fn unlink(&mut self, session: SessionId, stream: StreamId) {
        if let Some(streams) = self.by_stream.get_mut(&session) {
            streams.remove(&stream);
            if streams.is_empty() {
                self.by_stream.remove(&session);
            }
        }
    }
}
