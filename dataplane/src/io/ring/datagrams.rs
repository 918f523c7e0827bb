//! The UDP half of the ring: one receive that goes on for ever, and transmit slots.

use std::io;
use std::os::fd::AsRawFd;

use bytes::{Buf, BytesMut};
use io_uring::{opcode, squeue, types::Fd};

use super::provided::Provided;
use super::queue::{Done, Kind, Queue, Token};
use crate::io::buffers::{TRANSMITS, TransmitBuffers};
use crate::io::message::{CONTROL_SIZE, Meta, NAME_SIZE, Outgoing};
use crate::io::udp::Udp;
use crate::io::{BATCH_SIZE, COPY_BELOW, Completion, Counters, DatagramBuffer, Transmit};

/// Receive buffers, 64 KiB each: the most that the kernel may fill before the worker looks. What
/// does not fit waits in the socket.
const BUFFERS: u16 = 64;

/// What the kernel writes before the name: lengths of name, control data and payload, and flags.
const HEADER_SIZE: usize = 16;

/// Where the payload begins in a buffer.
const PAYLOAD_AT: usize = HEADER_SIZE + NAME_SIZE + CONTROL_SIZE;

/// UDP of one ring.
pub(super) struct Datagrams {
    pub(super) udp: Udp,
    provided: Provided,
    /// Says how much room name and control data have; the kernel reads it when the receive is
    /// armed.
    template: Box<libc::msghdr>,
    armed: bool,
    pub(super) transmits: TransmitBuffers,
    sending: Vec<Slot>,
}

/// A transmit buffer under way.
struct Slot {
    // Boxed, because the kernel has pointers into it.
    message: Box<Outgoing>,
    buffer: Option<DatagramBuffer>,
}

impl Slot {
    /// The operation that sends what the buffer holds.
    fn entry(&mut self, udp: &Udp, flags: i32) -> squeue::Entry {
        let payload = self.buffer.as_ref().map_or(&[][..], |buffer| &buffer.data);
        let message = self.message.point(payload.as_ptr(), payload.len());
        opcode::SendMsg::new(Fd(udp.socket().as_raw_fd()), message)
            .flags((flags | libc::MSG_NOSIGNAL) as u32)
            .build()
    }
}

impl Datagrams {
    pub(super) fn new(udp: Udp, queue: &Queue, group: u16) -> io::Result<Self> {
        // SAFETY: a plain C structure for which all zeroes are valid.
        let mut template: libc::msghdr = unsafe { std::mem::zeroed() };
        template.msg_namelen = NAME_SIZE as libc::socklen_t;
        template.msg_controllen = CONTROL_SIZE as _;
        let slot = || Slot {
            message: Box::new(Outgoing::new()),
            buffer: None,
        };
        Ok(Self {
            udp,
            provided: Provided::register(
                queue,
                group,
                BUFFERS,
                PAYLOAD_AT + BATCH_SIZE,
                PAYLOAD_AT,
            )?,
            template: Box::new(template),
            armed: false,
            transmits: TransmitBuffers::new(),
            sending: (0..TRANSMITS).map(|_| slot()).collect(),
        })
    }

    /// Arms the receive, if it has ended or never began.
    pub(super) fn arm(&mut self, queue: &mut Queue) {
        if self.armed {
            return;
        }
        self.armed = true;
        let fd = Fd(self.udp.socket().as_raw_fd());
        let entry =
            opcode::RecvMsgMulti::new(fd, &raw const *self.template, self.provided.group()).build();
        // SAFETY: the template is boxed and outlives the ring's operations.
        unsafe { queue.push(Token::of_slot(Kind::DatagramsIn, 0), entry) };
    }

    pub(super) fn send(&mut self, queue: &mut Queue, buffer: DatagramBuffer, transmit: &Transmit) {
        let number = buffer.slot;
        let slot = &mut self.sending[number];
        let len = buffer.data.len();
        slot.message.address(transmit, len, self.udp.is_dual());
        let before = slot.buffer.replace(buffer);
        assert!(
            before.is_none(),
            "a buffer is sent by the backend that gave it"
        );
        let entry = slot.entry(&self.udp, libc::MSG_DONTWAIT);
        let token = Token::of_slot(Kind::DatagramsOut, number);
        // SAFETY: message and payload stay in the slot, which is not used again before the
        // completion.
        unsafe { queue.push_quiet(token, entry, Some(len)) };
    }

    pub(super) fn sent(&mut self, queue: &mut Queue, done: Done, counters: &mut Counters) {
        let Some(slot) = self.sending.get_mut(done.token.index() as usize) else {
            return;
        };
        if done.result == -libc::EAGAIN && done.token.is_quiet() {
            // No room in the kernel: once more, waiting for it.
            let entry = slot.entry(&self.udp, 0);
            let token = Token::of_slot(Kind::DatagramsOut, done.token.index() as usize);
            // SAFETY: message and payload stay in the slot, which is not used again before the
            // completion.
            return unsafe { queue.push(token, entry) };
        }
        let Some(buffer) = slot.buffer.take() else {
            return;
        };
        if done.result < 0 {
            counters.datagram_send_errors += 1;
            self.udp.note_send_error(-done.result);
        }
        self.transmits.put(buffer);
    }

    pub(super) fn received(
        &mut self,
        done: Done,
        counters: &mut Counters,
        completions: &mut Vec<Completion>,
    ) {
        // Whatever ended it (no buffers, a full completion queue, an error of an earlier send): it
        // is armed again.
        self.armed &= done.more;
        if done.result == -libc::ENOBUFS {
            self.provided.ran_out();
        }
        let Some(id) = done.buffer else { return };
        let batch = usize::try_from(done.result)
            .ok()
            .and_then(|len| self.batch(id, len, counters));
        match batch {
            Some(batch) => completions.push(Completion::Datagrams(batch)),
            None => self.provided.keep(id),
        }
    }

    /// Reads a filled buffer of `len` bytes in all: header, name, control data, payload.
    fn batch(
        &mut self,
        id: u16,
        len: usize,
        counters: &mut Counters,
    ) -> Option<crate::io::Datagrams> {
        let filled = self.provided.filled(id, len);
        let (name, rest) = filled.get(HEADER_SIZE..)?.split_at_checked(NAME_SIZE)?;
        let (control, payload) = rest.split_at_checked(CONTROL_SIZE)?;
        let control_len = u32::from_ne_bytes(filled[4..8].try_into().ok()?) as usize;
        let meta = Meta::decode(name, &control[..control_len.min(CONTROL_SIZE)])?;
        if payload.len() < COPY_BELOW {
            // Small: copied out, so that it does not pin a large buffer.
            counters.bytes_copied += payload.len() as u64;
            let data = BytesMut::from(payload);
            self.provided.keep(id);
            return Some(meta.of(data));
        }
        let mut data = self.provided.take(id, len);
        data.advance(PAYLOAD_AT);
        Some(meta.of(data))
    }

    pub(super) fn restock(&mut self) {
        self.provided.restock();
    }

    /// Never frees what the kernel may still use.
    pub(super) fn leak(&mut self) {
        self.provided.leak();
        std::mem::forget(std::mem::take(&mut self.sending));
    }

    pub(super) fn unregister(&self, queue: &Queue) {
        self.provided.unregister(queue);
    }
}
