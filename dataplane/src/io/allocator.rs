//! Memory that was freed goes back to the system. The allocator (mimalloc) gives it back a second
//! after it was freed, but only when some thread comes by; an idle process would keep all that an
//! attack made it take. A supervisor comes by, so that no worker stands still for it.

/// Gives back what has been free for a second. Without effect where the allocator is another one.
pub(crate) fn release_freed() {
    // SAFETY: `mi_collect` may be called at any time by any thread: it looks at what the calling
    // thread has freed, and at what is free in the process.
    #[expect(unsafe_code, reason = "the allocator has no safe interface for this")]
    unsafe {
        libmimalloc_sys::mi_collect(false);
    }
}
