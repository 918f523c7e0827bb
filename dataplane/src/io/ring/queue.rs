//! The submission and completion queues: operations in, raw completions out, one system call a
//! turn. Knows no sockets.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter, cqueue, squeue};

use crate::io::SocketId;

/// Operations that one turn may queue before they wait for the next submission.
const SUBMISSIONS: u32 = 1024;

/// Completions that the kernel holds without allocating; beyond these it keeps a list, so none is
/// lost. Several turns' worth.
const COMPLETIONS: u32 = 8192;

/// Which operation a completion belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Accept,
    Connect,
    Receive,
    Send,
    Watch,
    Cancel,
    DatagramsIn,
    DatagramsOut,
    Wake,
    Alarm,
    AlarmMoved,
}

/// In a token: the operation gives no completion where it succeeds.
const QUIET: u64 = 1 << 63;

impl Kind {
    const ALL: [Self; 11] = [
        Self::Accept,
        Self::Connect,
        Self::Receive,
        Self::Send,
        Self::Watch,
        Self::Cancel,
        Self::DatagramsIn,
        Self::DatagramsOut,
        Self::Wake,
        Self::Alarm,
        Self::AlarmMoved,
    ];
}

/// What the kernel gives back with each completion: kind (8 bits), generation (24 bits), index (32
/// bits).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Token(u64);

impl Token {
    const GENERATION: u32 = 0x00ff_ffff;

    pub(super) fn of_socket(kind: Kind, id: SocketId) -> Self {
        let generation = u64::from(id.generation & Self::GENERATION);
        Self(((kind as u64) << 56) | (generation << 32) | u64::from(id.index))
    }

    pub(super) fn of_slot(kind: Kind, slot: usize) -> Self {
        Self(((kind as u64) << 56) | slot as u64 & u64::from(u32::MAX))
    }

    pub(super) fn kind(self) -> Option<Kind> {
        Kind::ALL.get(((self.0 & !QUIET) >> 56) as usize).copied()
    }

    fn quiet(self) -> Self {
        Self(self.0 | QUIET)
    }

    /// Whether it was queued by [`Queue::push_quiet`]: a completion means that it failed.
    pub(super) fn is_quiet(self) -> bool {
        self.0 & QUIET != 0
    }

    /// As the kernel knows it.
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// Socket or slot.
    pub(super) fn index(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn is_of(self, id: SocketId) -> bool {
        let generation = (self.0 >> 32) as u32 & Self::GENERATION;
        self.index() == id.index && generation == id.generation & Self::GENERATION
    }
}

/// One completion as the kernel tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) token: Token,
    /// A count, or a negative error number.
    pub(super) result: i32,
    /// The provided buffer that was used.
    pub(super) buffer: Option<u16>,
    /// The operation goes on and tells more.
    pub(super) more: bool,
    /// A receive left something behind.
    pub(super) nonempty: bool,
}

/// The ring.
pub(super) struct Queue {
    ring: IoUring,
    /// Operations that found the submission queue full, in order.
    waiting: VecDeque<squeue::Entry>,
    /// Operations whose last completion has not come, quiet ones not counted.
    under_way: usize,
    /// Quiet operations since the last that were told, and what comes of each if it succeeds.
    quiet: Vec<Done>,
    pub(super) system_calls: u64,
}

impl Queue {
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_clamp()
            .setup_cqsize(COMPLETIONS)
            .setup_submit_all()
            // One thread submits, and completions are worked out when it waits: no interruption, no
            // lock between cores.
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .build(SUBMISSIONS)?;
        let params = ring.params();
        if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            ring,
            waiting: VecDeque::new(),
            under_way: 0,
            quiet: Vec::new(),
            system_calls: 0,
        })
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// Operations whose last completion has not come.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether a quiet operation may have ended that was not told.
    pub(super) fn has_quiet(&self) -> bool {
        !self.quiet.is_empty()
    }

    /// Queues an operation.
    ///
    /// # Safety
    /// All that the entry points at stays where it is until the operation's last completion.
    pub(super) unsafe fn push(&mut self, token: Token, entry: squeue::Entry) {
        self.under_way += 1;
        // SAFETY: the caller's promise.
        unsafe { self.enqueue(entry.user_data(token.0)) };
    }

    /// Queues an operation that the kernel carries out as it takes it, or refuses, and that ends no
    /// wait unless it fails. Where it succeeds, `success`, in bytes, is told with what ends a wait
    /// next, ahead of that.
    ///
    /// # Safety
    /// All that the entry points at stays where it is until the operation is told; of one without
    /// `success`, until it was submitted.
    pub(super) unsafe fn push_quiet(
        &mut self,
        token: Token,
        entry: squeue::Entry,
        success: Option<usize>,
    ) {
        let token = token.quiet();
        self.quiet.extend(success.map(|bytes| Done {
            token,
            // What does not fit is more than the kernel takes at once: it fails as what finds no
            // room does.
            result: i32::try_from(bytes).unwrap_or(i32::MAX),
            buffer: None,
            more: false,
            nonempty: false,
        }));
        let entry = entry.user_data(token.0).flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: the caller's promise.
        unsafe { self.enqueue(entry) };
    }

    /// # Safety
    /// As [`Self::push`] and [`Self::push_quiet`] say.
    unsafe fn enqueue(&mut self, entry: squeue::Entry) {
        if !self.waiting.is_empty() {
            self.waiting.push_back(entry);
            return;
        }
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.waiting.push_back(entry);
        }
    }

    /// Submits everything and waits for a completion, for `timeout` at most; not at all when it is
    /// zero.
    pub(super) fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        while !self.waiting.is_empty() {
            self.refill();
            if self.waiting.is_empty() {
                break;
            }
            if !self.submit_only()? {
                return Ok(());
            }
        }
        let waits = timeout != Some(Duration::ZERO);
        let timespec = timeout.map(Timespec::from).unwrap_or_default();
        let mut args = SubmitArgs::new();
        if waits && timeout.is_some() {
            args = args.timespec(&timespec);
        }
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        self.call(u32::from(waits), flags, Some(&args)).map(drop)
    }

    /// Takes at most `max` completions, and tells the quiet operations that succeeded ahead of
    /// them.
    pub(super) fn reap(&mut self, max: usize, into: &mut Vec<Done>) {
        let submitted = self.waiting.is_empty() && self.ring.submission().is_empty();
        let completions = self.ring.completion();
        // Those that failed are among the completions, so that all of these must be at hand.
        if submitted && completions.len() <= max {
            into.append(&mut self.quiet);
        }
        for entry in completions.take(max) {
            let done = Done::from(&entry);
            if done.token.is_quiet() {
                into.retain(|quiet| quiet.token != done.token);
                self.quiet.retain(|quiet| quiet.token != done.token);
            } else if !done.more {
                self.under_way -= 1;
            }
            into.push(done);
        }
    }

    /// Moves what waited into the submission queue.
    fn refill(&mut self) {
        let mut submission = self.ring.submission();
        while let Some(entry) = self.waiting.front() {
            // SAFETY: the caller that pushed the entry promised that what it points at stays.
            if unsafe { submission.push(entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Submits a full queue. Tells whether the kernel took it; else completions must be reaped
    /// first.
    fn submit_only(&mut self) -> io::Result<bool> {
        let args = SubmitArgs::new();
        self.call(0, EnterFlags::EXT_ARG, Some(&args))
    }

    fn call(
        &mut self,
        want: u32,
        flags: EnterFlags,
        args: Option<&SubmitArgs<'_, '_>>,
    ) -> io::Result<bool> {
        let len = self.ring.submission().len() as u32;
        self.system_calls += 1;
        // SAFETY: the flags announce the extended argument, which lives until the call returns;
        // entries were promised to be sound.
        match unsafe { self.ring.submitter().enter(len, want, flags.bits(), args) } {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                // Time is up, a signal came, or the kernel wants completions to be reaped first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(false),
                _ => Err(error),
            },
        }
    }
}

impl From<&cqueue::Entry> for Done {
    fn from(entry: &cqueue::Entry) -> Self {
        let flags = entry.flags();
        Self {
            token: Token(entry.user_data()),
            result: entry.result(),
            buffer: cqueue::buffer_select(flags),
            more: cqueue::more(flags),
            nonempty: cqueue::sock_nonempty(flags),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_both_queues_hold_is_done_and_none_is_lost() -> io::Result<()> {
        const OPERATIONS: usize = 5 * COMPLETIONS as usize;
        let mut queue = Queue::new()?;
        for number in 0..OPERATIONS {
            let entry = io_uring::opcode::Nop::new().build();
            // SAFETY: the entry points at nothing.
            unsafe { queue.push(Token::of_slot(Kind::Cancel, number), entry) };
        }
        let mut done = Vec::new();
        while queue.under_way() > 0 {
            let before = done.len();
            queue.enter(Some(Duration::from_secs(10)))?;
            queue.reap(500, &mut done);
            assert!(done.len() > before);
        }
        let mut numbers: Vec<_> = done.iter().map(|done| done.token.index()).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..OPERATIONS as u32));
        Ok(())
    }

    fn nop() -> squeue::Entry {
        io_uring::opcode::Nop::new().build()
    }

    /// An operation that the kernel refuses.
    fn refused() -> squeue::Entry {
        let nowhere = io_uring::types::Fd(-1);
        io_uring::opcode::Read::new(nowhere, std::ptr::null_mut(), 0).build()
    }

    fn token(number: usize) -> Token {
        Token::of_slot(Kind::Send, number)
    }

    /// Holds an operation, a quiet one that succeeds and a quiet one that fails.
    fn loud_and_quiet() -> io::Result<Queue> {
        let mut queue = Queue::new()?;
        // SAFETY: the entries point at nothing.
        unsafe {
            queue.push(token(0), nop());
            queue.push_quiet(token(1), nop(), Some(70));
            queue.push_quiet(token(2), refused(), Some(70));
        }
        Ok(queue)
    }

    fn numbers(done: &[Done]) -> Vec<(u32, i32)> {
        let number = |done: &Done| (done.token.index(), done.result);
        done.iter().map(number).collect()
    }

    #[test]
    fn a_quiet_operation_is_told_once_ahead_of_what_ended_the_wait() -> io::Result<()> {
        let mut queue = loud_and_quiet()?;
        // SAFETY: the entries point at nothing.
        unsafe {
            queue.push_quiet(token(3), nop(), None);
            queue.push_quiet(token(4), refused(), None);
            queue.push(token(5), nop());
        }
        queue.enter(Some(Duration::ZERO))?;
        let mut done = Vec::new();
        queue.reap(10, &mut done);
        let told = [
            (1, 70),
            (0, 0),
            (2, -libc::EBADF),
            (4, -libc::EBADF),
            (5, 0),
        ];
        assert_eq!(numbers(&done), told);
        assert_eq!(queue.under_way(), 0);
        done.clear();
        queue.reap(10, &mut done);
        assert_eq!(numbers(&done), []);
        Ok(())
    }

    #[test]
    fn quiet_operations_are_told_when_all_that_failed_are_at_hand() -> io::Result<()> {
        let mut queue = loud_and_quiet()?;
        let mut done = Vec::new();
        // Nothing was submitted yet.
        queue.reap(10, &mut done);
        assert_eq!(numbers(&done), []);
        queue.enter(Some(Duration::ZERO))?;
        queue.reap(1, &mut done);
        assert_eq!(numbers(&done), [(0, 0)]);
        done.clear();
        queue.reap(1, &mut done);
        assert_eq!(numbers(&done), [(1, 70), (2, -libc::EBADF)]);
        Ok(())
    }

    #[test]
    fn a_token_names_one_operation_of_one_socket() {
        let id = SocketId {
            index: 7,
            generation: 0x0100_0003,
        };
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            let token = Token::of_socket(kind, id);
            assert_eq!(token.kind(), Some(kind));
            assert_eq!(token.index(), 7);
            assert!(token.is_of(id));
            let later = SocketId {
                generation: id.generation + 1,
                ..id
            };
            assert!(!token.is_of(later));
        }
    }
}
