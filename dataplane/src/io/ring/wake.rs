//! How another thread wakes the worker of a ring: an eventfd that the ring watches.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::io::Waker;

/// Wakes a [`Ring`](super::Ring).
#[derive(Clone)]
pub struct RingWaker {
    shared: Arc<WakeState>,
}

struct WakeState {
    event: OwnedFd,
    woken: AtomicBool,
}

impl Waker for RingWaker {
    fn wake(&self) {
        if self.shared.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the kernel reads eight bytes of `one`. The counter is written once for each time
        // that the worker saw it, so it never overflows.
        unsafe {
            libc::write(
                self.shared.event.as_raw_fd(),
                one.as_ptr().cast(),
                one.len(),
            )
        };
    }
}

impl RingWaker {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            shared: Arc::new(WakeState {
                // SAFETY: just made, and nobody else has it.
                event: unsafe { OwnedFd::from_raw_fd(event) },
                woken: AtomicBool::new(false),
            }),
        })
    }

    /// What the ring watches for input.
    pub(super) fn event(&self) -> i32 {
        self.shared.event.as_raw_fd()
    }

    /// Notes that the worker woke: from now on a wake is written again.
    pub(super) fn lower(&self) {
        self.shared.woken.store(false, Ordering::SeqCst);
    }
}
