//! `pipe`: a machine that carries datagrams alone, by hand: what a worker says is taken out, what
//! it shall hear is put in, and the time is what it is told. For programs that try what a stranger
//! may send. There are no connections: an application never comes.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::socket::{Listener, Stream};
use super::{
    Close, Completion, Counters, DATAGRAMS_SIZE, DatagramBuffer, Datagrams, Io, SocketId, Transmit,
    Waker,
};

/// The backend.
pub(crate) struct Pipe {
    pub(crate) now: Instant,
    incoming: Vec<Datagrams>,
    outgoing: Vec<(SocketAddr, Vec<u8>)>,
}

/// Wakes nobody: nobody sleeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Awake;

impl Waker for Awake {
    fn wake(&self) {}
}

impl Pipe {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            now,
            incoming: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    /// One datagram comes. None is empty.
    pub(crate) fn put(&mut self, remote: SocketAddr, datagram: &[u8]) {
        if datagram.is_empty() {
            return;
        }
        self.incoming.push(Datagrams {
            remote,
            local_ip: None,
            ecn: None,
            stride: datagram.len(),
            data: BytesMut::from(datagram),
        });
    }

    /// What has come and was not waited for.
    pub(crate) fn heard(&mut self) -> Vec<Datagrams> {
        std::mem::take(&mut self.incoming)
    }

    /// Datagrams sent since the last call, with their destinations.
    pub(crate) fn take(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.outgoing)
    }
}

impl Io for Pipe {
    type Waker = Awake;

    fn name(&self) -> &'static str {
        "pipe"
    }

    fn waker(&self) -> Awake {
        Awake
    }

    fn listen(&mut self, _: impl Into<Listener>) -> io::Result<SocketId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn adopt(&mut self, _: Stream) -> io::Result<SocketId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn release(&mut self, _: SocketId) -> Option<Stream> {
        None
    }

    fn connect(&mut self, _: SocketAddr) -> io::Result<SocketId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn receive(&mut self, _: SocketId) {}

    fn watch(&mut self, _: SocketId) {}

    fn send(&mut self, _: SocketId, _: Vec<Bytes>) {}

    fn shutdown(&mut self, _: SocketId) {}

    fn close(&mut self, _: SocketId, _: Close) {}

    fn datagram_buffer(&mut self) -> Option<DatagramBuffer> {
        Some(DatagramBuffer {
            data: Vec::with_capacity(DATAGRAMS_SIZE),
            slot: 0,
        })
    }

    fn send_datagrams(&mut self, buffer: DatagramBuffer, transmit: &Transmit) {
        self.outgoing.push((transmit.destination, buffer.data));
    }

    fn return_buffer(&mut self, _: DatagramBuffer) {}

    fn max_segments(&self) -> usize {
        1
    }

    fn wait(&mut self, _: Option<Instant>, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.extend(self.incoming.drain(..).map(Completion::Datagrams));
        Ok(())
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}
