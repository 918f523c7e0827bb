//! One session of a driver: its connection, what of it waits for its turn, and what it has to say.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionStats, StreamId};
use rustc_hash::FxHashMap;

use super::credit::{Credit, Received};
use super::event::Event;
use super::health::Vitals;
use super::stream_scheduler::{self, Amount, StreamScheduler};
use super::{SessionId, WriteError, config, mtu_blackhole, outgoing};
use crate::io::{DATAGRAMS_SIZE, Io};
use crate::network::Network;

/// GSO sends that one session may make before the next one has its turn.
const SENDS_PER_TURN: usize = 8;

/// A session of this worker.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) generation: u32,
    pub(super) dirty: bool,
    /// The earliest timer in the heap; a later deadline of the connection is found when it fires.
    pub(super) scheduled: Option<Instant>,
    pub(super) since: Instant,
    /// What the send window is fit for: the path's shortest round trip, and how many flows want as
    /// much as they can have.
    fit_for: (Duration, usize, u64),
    /// Bursts of losses that were looked at.
    congestion_events: u64,
    pub(super) lost: bool,
    pub(super) vitals: Vitals,
    /// Where it comes from, while its handshake is under way.
    pub(super) newcomer: Option<Network>,
    /// Streams that wait for room.
    pub(super) scheduler: StreamScheduler,
    /// What the peer may send before it is read; `None` where this side dialled, and has all of its
    /// window from the start.
    pub(super) credit: Option<Credit>,
    /// Whether the driver knows that it is short of credit.
    known_short: bool,
    /// The last words of streams that nobody else knows any more, where there was no room for them.
    pub(super) last_words: FxHashMap<StreamId, Bytes>,
}

/// How far a session was flushed.
pub(super) enum Flushed {
    /// All that it has to say for now.
    All,
    /// Its share of a turn.
    Part,
    /// There was no buffer.
    Starved,
}

impl Session {
    /// One that begins now; `newcomer`, where it was the peer that dialled.
    pub(super) fn new(
        connection: Connection,
        generation: u32,
        now: Instant,
        newcomer: Option<Network>,
        credit: Option<Credit>,
    ) -> Self {
        Self {
            connection,
            generation,
            dirty: false,
            scheduled: None,
            since: now,
            fit_for: (Duration::MAX, 0, 0),
            congestion_events: 0,
            lost: false,
            vitals: Vitals::new(now),
            newcomer,
            scheduler: StreamScheduler::default(),
            credit,
            known_short: false,
            last_words: FxHashMap::default(),
        }
    }

    /// Fits the send window to the path and to who writes. The shortest round trip becomes shorter
    /// as more are seen, and is another one on another path.
    fn fit(&mut self, now: Instant) {
        let most = self.credit.as_ref().map(Credit::send_window_max);
        let most = most.unwrap_or(config::SEND_WINDOW);
        let fit_for = (self.connection.min_rtt(), self.scheduler.crowd(now), most);
        if fit_for != self.fit_for {
            self.fit_for = fit_for;
            let window = config::send_window(fit_for.0, fit_for.1).min(most);
            self.connection.set_send_window(window);
        }
    }

    /// What the core's counters say that is to be acted on.
    fn follow_counters(&mut self, now: Instant) {
        let stats = self.connection.stats();
        if let Some(credit) = &mut self.credit {
            let received = received(&stats);
            credit.extend(now, received, &mut self.connection);
        }
        self.notice_mtu_blackhole(now, stats.path.congestion_events);
    }

    /// Begins with small datagrams again where large ones do not get through any more.
    fn notice_mtu_blackhole(&mut self, now: Instant, events: u64) {
        if events == self.congestion_events {
            return;
        }
        self.congestion_events = events;
        if mtu_blackhole::suspected(self.connection.congestion_state()) {
            self.connection.path_changed(now);
        }
    }

    /// Whether it is short of credit and the driver does not know yet, which it does from now on.
    pub(super) fn is_newly_short(&mut self) -> bool {
        let short = self.credit.as_ref().is_some_and(Credit::is_short);
        short && !std::mem::replace(&mut self.known_short, true)
    }

    /// How many bytes should be freed for it to go on, if it is short of credit.
    pub(super) fn shortage(&mut self) -> Option<u64> {
        let connection = &mut self.connection;
        let need = self
            .credit
            .as_mut()
            .and_then(|credit| credit.shortage(connection));
        self.known_short = need.is_some();
        need
    }

    /// Sends its share of a turn.
    pub(super) fn flush(&mut self, now: Instant, segments_max: usize, io: &mut impl Io) -> Flushed {
        self.follow_counters(now);
        self.fit(now);
        for _ in 0..SENDS_PER_TURN {
            let Some(mut buffer) = io.datagram_buffer() else {
                return Flushed::Starved;
            };
            // More than the kernel takes in one send would be lost without a word (EMSGSIZE).
            let fit = DATAGRAMS_SIZE / usize::from(self.connection.current_mtu());
            let segments = segments_max.min(fit).max(1);
            let Some(transmit) = self
                .connection
                .poll_transmit(now, segments, &mut buffer.data)
            else {
                io.return_buffer(buffer);
                return Flushed::All;
            };
            io.send_datagrams(buffer, &outgoing(&transmit));
        }
        Flushed::Part
    }

    /// Writes in turn with the other streams; the control stream does not wait for them.
    pub(super) fn write(
        &mut self,
        stream: StreamId,
        chunks: &mut [Bytes],
        amount: Amount,
    ) -> Result<usize, WriteError> {
        let is_control = stream == stream_scheduler::control();
        if !is_control && !self.scheduler.may_write(stream) {
            self.scheduler.wait(stream, amount);
            return Err(WriteError::Blocked);
        }
        match self.connection.send_stream(stream).write_chunks(chunks) {
            Ok(written) => {
                self.scheduler.has_written(stream);
                Ok(written.bytes)
            }
            Err(quinn_proto::WriteError::Blocked) => {
                if !is_control && self.is_full() {
                    self.scheduler.found_no_room(stream, amount);
                }
                Err(WriteError::Blocked)
            }
            Err(quinn_proto::WriteError::Stopped(_) | quinn_proto::WriteError::ClosedStream) => {
                Err(WriteError::Closed)
            }
        }
    }

    /// Whether it is the session that has no room, after a stream was blocked: that stream's own
    /// window may be what is used up. The core tells the two apart when nothing is written to a
    /// stream that has a window, and wakes that one, too, as soon as there is room. (Where there
    /// is, it sends a STREAM frame without bytes: once for each time that a reader's window is used
    /// up.)
    fn is_full(&mut self) -> bool {
        let mut control = self.connection.send_stream(stream_scheduler::control());
        matches!(
            control.write_chunks(&mut []),
            Err(quinn_proto::WriteError::Blocked)
        )
    }

    /// Calls the streams whose turn it is.
    pub(super) fn call_next(&mut self, id: SessionId, events: &mut VecDeque<(SessionId, Event)>) {
        for stream in self.scheduler.call() {
            match self.last_words.remove(&stream) {
                Some(words) => self.say_last(stream, words),
                None => events.push_back((id, Event::Writable(stream))),
            }
        }
    }

    /// Reads what has arrived on a stream and drops it, before the stream is stopped. The protocol
    /// core would return its credit by itself, but not report how much.
    pub(super) fn discard(&mut self, stream: StreamId) {
        let mut receiving = self.connection.recv_stream(stream);
        let Ok(mut chunks) = receiving.read(true) else {
            return;
        };
        let mut bytes = 0;
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            bytes += chunk.bytes.len();
        }
        // The caller marks the session, so what is to be sent is sent.
        let _ = chunks.finalize();
        if let Some(credit) = &mut self.credit {
            credit.note_read(bytes);
        }
    }

    /// As [`Driver::say_last`](super::Driver::say_last).
    pub(super) fn say_last(&mut self, stream: StreamId, words: Bytes) {
        let mut chunks = [words];
        while !chunks[0].is_empty() {
            match self.write(stream, &mut chunks, Amount::Little) {
                Ok(_) => {}
                Err(WriteError::Blocked) => {
                    let [rest] = chunks;
                    self.last_words.insert(stream, rest);
                    return;
                }
                Err(WriteError::Closed) => return,
            }
        }
        // Fails only where the peer stopped the stream.
        let _ = self.connection.send_stream(stream).finish();
    }
}

/// As the session's credit needs it.
fn received(stats: &ConnectionStats) -> Received {
    Received {
        bytes: stats.udp_rx.bytes,
        blocked_frames: stats.frame_rx.data_blocked,
    }
}
