//! A worker on a thread of its own, and how other threads reach it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{SendTimeoutError, Sender, TrySendError, bounded};
use rand::rngs::StdRng;

use super::{Role, Worker};
#[cfg(target_os = "linux")]
use crate::io::Ring;
use crate::io::udp::Udp;
use crate::io::{Io, Kind, Poll, Waker};
use crate::quic::Driver;

/// How long another thread waits for a place in a full inbox before it gives the worker up.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// How other threads reach a worker.
pub(crate) struct Handle<M> {
    inbox: Sender<M>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<M> Handle<M> {
    pub(super) fn new(inbox: Sender<M>, waker: impl Waker) -> Self {
        Self {
            inbox,
            wake: Arc::new(move || waker.wake()),
        }
    }

    /// To no worker: what is said to it is in the inbox.
    #[cfg(test)]
    pub(crate) fn to_inbox() -> (Self, crossbeam_channel::Receiver<M>) {
        let (inbox, said) = bounded(8);
        (Self::new(inbox, crate::io::pipe::Awake), said)
    }

    /// Tells the worker; waits for a place, boundedly. False when the worker is gone or stuck.
    #[must_use]
    pub(crate) fn send(&self, message: M) -> bool {
        match self.inbox.send_timeout(message, SEND_DEADLINE) {
            Ok(()) => {
                (self.wake)();
                true
            }
            Err(SendTimeoutError::Timeout(_) | SendTimeoutError::Disconnected(_)) => false,
        }
    }

    /// Tells the worker if there is a place now; gives the message back otherwise. For other
    /// workers, which must not wait.
    ///
    /// # Errors
    /// The message, when the inbox is full or the worker gone.
    pub(crate) fn try_send(&self, message: M) -> Result<(), M> {
        self.inbox.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
        })?;
        (self.wake)();
        Ok(())
    }
}

/// What a worker is made of.
pub(crate) struct Parts {
    /// Its index.
    pub(crate) worker: u8,
    /// How many there are on its port.
    pub(crate) workers: u8,
    /// Its socket.
    pub(crate) udp: Udp,
    /// Its backend.
    pub(crate) kind: Kind,
    /// Its sessions.
    pub(crate) quic: Driver,
}

/// Workers of a process without a configured number: one for every two cores. The other cores are
/// for the kernel's half of the work and for other programs; more workers batch less and wake each
/// other more (measured, docs/design/choices.md).
pub(crate) fn usual_count() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores / 2).unwrap_or(u16::MAX).max(1)
}

/// What a role is made with.
pub(crate) struct Start<M> {
    /// The handle that reaches its worker.
    pub(crate) handle: Handle<M>,
    /// The time, as the worker sees it.
    pub(crate) now: Instant,
    /// Where its chance comes from.
    pub(crate) rng: StdRng,
}

/// A running worker.
pub(crate) struct Running<M> {
    /// How to reach it.
    pub(crate) handle: Handle<M>,
    /// Its thread; ends with an error when the kernel refused to go on.
    pub(crate) thread: JoinHandle<std::io::Result<()>>,
}

/// Starts a worker on a thread of its own. `role` is made there.
///
/// # Errors
/// The backend or the thread cannot be had.
pub(crate) fn spawn<R, F>(parts: Parts, role: F) -> std::io::Result<Running<R::Message>>
where
    R: Role,
    F: FnOnce(Start<R::Message>) -> R + Send + 'static,
{
    let (ready, started) = bounded(1);
    let name = format!("worker-{}", parts.worker);
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || match parts.kind {
            #[cfg(target_os = "linux")]
            Kind::Ring => begin(
                Ring::new(parts.udp),
                parts.quic,
                (parts.worker, parts.workers),
                ready,
                role,
            ),
            Kind::Poll => begin(
                Poll::new(parts.udp),
                parts.quic,
                (parts.worker, parts.workers),
                ready,
                role,
            ),
        })?;
    match started.recv() {
        Ok(handle) => Ok(Running { handle, thread }),
        Err(_) => match thread.join() {
            Ok(Err(error)) => Err(error),
            _ => Err(std::io::Error::other("the worker's thread ended at once")),
        },
    }
}

fn begin<I: Io, R: Role>(
    io: std::io::Result<I>,
    quic: Driver,
    place: (u8, u8),
    ready: Sender<Handle<R::Message>>,
    role: impl FnOnce(Start<R::Message>) -> R,
) -> std::io::Result<()> {
    let io = io?;
    seed_randomness();
    let (worker, handle) = Worker::new(io, quic, place, rand::make_rng(), role);
    let _ = ready.send(handle);
    drop(ready);
    worker.run()
}

/// aws-lc seeds its generator in each thread at the first use, which takes 70 ms. Done here, it is
/// not in the first handshake's round-trip time.
fn seed_randomness() {
    // Where this fails, the handshake fails, and says so.
    let _ = aws_lc_rs::rand::fill(&mut [0]);
}
