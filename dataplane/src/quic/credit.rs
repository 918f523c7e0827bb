//! The credit of one session (RFC 9000, section 4): what its peer may send before it is read here.
//! It grows when the peer says that it has used it up (DATA_BLOCKED) and shrinks when it was not
//! needed for a while, or when other sessions need it more.
//!
//! Credit that was given cannot be taken back. A smaller window is a debt, which the protocol core
//! pays with what is read from then on; until it is paid the peer has the window and the debt.
//!
//! A peer that has proven no key has credit for its control frames alone, which counts nowhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::{Connection, VarInt};

use crate::budget::{Budget, CreditAnswer, UNPROVEN};

/// A session that has not used its credit up for so long gives half of what it got beyond its first
/// back.
const UNUSED_AFTER: Duration = Duration::from_secs(10);

/// The credit of a session that was dialled from elsewhere.
#[derive(Debug)]
pub(super) struct Credit {
    budget: Arc<Budget>,
    /// What the budget gave first; 0 while the peer has proven no key.
    first: u64,
    window: u64,
    debt: u64,
    /// Bytes read or discarded, ever: no more than the protocol core knows of.
    read: u64,
    /// `read` when debt was last paid.
    read_settled: u64,
    /// Bytes read that did not pay debt, ever: what the peer got as new credit.
    returned: u64,
    /// The peer may send up to so many bytes in all: unless it has sent about as many, it cannot be
    /// blocked.
    limit: u64,
    /// DATA_BLOCKED frames that were answered.
    blocked_frames: u64,
    blocked_at: Instant,
    /// Value of `returned` when a request for credit was last cut short.
    short_since: Option<u64>,
}

/// What came from the peer so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Bytes of datagrams.
    pub(super) bytes: u64,
    /// DATA_BLOCKED frames.
    pub(super) blocked_frames: u64,
}

impl Credit {
    /// Of a session that begins with a window of [`UNPROVEN`] bytes.
    pub(super) fn new(budget: Arc<Budget>, now: Instant) -> Self {
        Self {
            budget,
            first: 0,
            window: UNPROVEN,
            debt: 0,
            read: 0,
            read_settled: 0,
            returned: 0,
            limit: UNPROVEN,
            blocked_frames: 0,
            blocked_at: now,
            short_since: None,
        }
    }

    /// The peer has proven a key: from now on it has a share of the budget.
    pub(super) fn begin(&mut self, now: Instant, connection: &mut impl Window) {
        if self.is_proven() {
            return;
        }
        self.first = self.budget.begin();
        self.blocked_at = now;
        self.widen(self.first.saturating_sub(self.window), connection);
    }

    fn is_proven(&self) -> bool {
        self.first > 0
    }

    /// So many bytes were read or discarded.
    pub(super) fn note_read(&mut self, bytes: usize) {
        self.read += bytes as u64;
    }

    /// The most that its session may keep until it is acknowledged.
    pub(super) fn send_window_max(&self) -> u64 {
        self.budget.send_window_max()
    }

    /// Gives more, where the peer has asked since the last look.
    pub(super) fn extend(
        &mut self,
        now: Instant,
        received: Received,
        connection: &mut impl Window,
    ) {
        if received.blocked_frames == self.blocked_frames {
            return;
        }
        // A peer is believed only as far as it has sent what it had credit for; some of that may
        // be lost or still on its way. It sends one DATA_BLOCKED for each limit, which may overtake
        // the data: the request stays pending until the data has arrived.
        let may_be_blocked = received.bytes + self.window / 2 >= self.limit;
        if !self.is_proven() || !may_be_blocked {
            return;
        }
        self.blocked_frames = received.blocked_frames;
        self.blocked_at = now;
        self.settle();
        let granted = self.grow(connection);
        self.short_since = granted.short.then_some(self.returned);
    }

    /// Asks the budget for more.
    fn grow(&mut self, connection: &mut impl Window) -> CreditAnswer {
        let granted = self.budget.more(self.window + self.debt);
        if granted.bytes > 0 {
            self.widen(granted.bytes, connection);
        }
        granted
    }

    fn widen(&mut self, bytes: u64, connection: &mut impl Window) {
        self.window += bytes;
        self.limit = self.read + self.window + self.debt;
        connection.set(self.window);
    }

    /// Makes the window smaller where it was not needed for a while, or where it is more than the
    /// session's share by now.
    pub(super) fn shrink(&mut self, now: Instant, connection: &mut impl Window) {
        if !self.is_proven() {
            return;
        }
        self.settle();
        let unused = now.saturating_duration_since(self.blocked_at) >= UNUSED_AFTER;
        let wanted = if unused {
            self.blocked_at = now;
            self.window / 2
        } else {
            self.window
        };
        let window = wanted.min(self.budget.share()).max(self.first);
        // Small steps are not worth a frame.
        if window < self.window - self.window / 8 {
            self.debt += self.window - window;
            self.window = window;
            connection.set(window);
        }
    }

    /// Whether it got less than it wanted.
    pub(super) fn is_short(&self) -> bool {
        self.short_since.is_some()
    }

    /// Tells the peer at once of what was read, however little it is.
    pub(super) fn announce(&mut self, connection: &mut impl Window) {
        self.settle();
        // The core announces a limit that a larger window moves, and no other before it has moved
        // by an eighth of the window.
        connection.set(self.window - 1);
        connection.set(self.window);
    }

    /// How many bytes should be freed for the session to go on, if it is short of credit and the
    /// budget has no more for it by now.
    pub(super) fn shortage(&mut self, connection: &mut impl Window) -> Option<u64> {
        self.settle();
        let since = self.short_since?;
        if !self.grow(connection).short {
            self.short_since = None;
            return None;
        }
        // A quarter of the window is more than the protocol core keeps to itself: the peer knows of
        // it, and asks again if it does not suffice.
        let enough = self.window / 4;
        if self.returned - since > enough {
            self.short_since = None;
        }
        self.short_since.map(|_| enough + self.debt)
    }

    fn settle(&mut self) {
        let read = self.read - self.read_settled;
        let paid = read.min(self.debt);
        self.read_settled = self.read;
        self.returned += read - paid;
        self.debt -= paid;
        if paid > 0 {
            self.budget.give_back(paid);
        }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if self.is_proven() {
            self.budget.end(self.window + self.debt);
        }
    }
}

/// The receive window of a connection, which is the protocol core's.
pub(super) trait Window {
    /// Sets it, bytes. The core announces a larger one at once.
    fn set(&mut self, bytes: u64);
}

impl Window for Connection {
    fn set(&mut self, bytes: u64) {
        self.set_receive_window(VarInt::from_u64(bytes).unwrap_or(VarInt::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The last window that was set.
    #[derive(Default)]
    struct Last(u64);

    impl Window for Last {
        fn set(&mut self, bytes: u64) {
            self.0 = bytes;
        }
    }

    struct Scene {
        budget: Arc<Budget>,
        now: Instant,
    }

    impl Scene {
        fn new(mib: u64) -> Self {
            let budget = Arc::new(Budget::default());
            budget.set(mib * MIB, 1);
            Self {
                budget,
                now: Instant::now(),
            }
        }

        fn stranger(&self) -> Credit {
            Credit::new(Arc::clone(&self.budget), self.now)
        }

        fn peer(&self) -> Credit {
            let mut credit = self.stranger();
            credit.begin(self.now, &mut Last::default());
            credit
        }
    }

    /// Says that it is blocked, and has sent so many bytes.
    fn ask(scene: &Scene, credit: &mut Credit, bytes: u64) -> u64 {
        let blocked_frames = credit.blocked_frames + 1;
        let received = Received {
            bytes,
            blocked_frames,
        };
        let mut last = Last(credit.window);
        credit.extend(scene.now, received, &mut last);
        last.0
    }

    /// Sends and reads all that it may until it gets no more; how much it has read.
    fn fill(scene: &Scene, credit: &mut Credit) {
        for _ in 0..32 {
            let all = credit.read + credit.window;
            ask(scene, credit, all);
        }
    }

    #[test]
    fn strangers_take_nothing_from_anybody_whatever_they_ask_for() {
        let scene = Scene::new(256);
        let free = scene.budget.share();
        let mut strangers: Vec<Credit> = (0..2_000).map(|_| scene.stranger()).collect();
        for stranger in &mut strangers {
            assert_eq!(ask(&scene, stranger, 10 * MIB), UNPROVEN);
        }
        assert_eq!(scene.budget.share(), free);
        drop(strangers);
        assert_eq!(scene.budget.share(), free);
    }

    #[test]
    fn credit_grows_only_for_who_has_sent_what_it_had_credit_for() {
        let scene = Scene::new(256);
        let mut credit = scene.peer();
        let first = credit.window;
        assert_eq!(ask(&scene, &mut credit, 1_000), first);
        assert_eq!(ask(&scene, &mut credit, first), 2 * first);
        // The same frame once more, or a late one.
        assert_eq!(ask(&scene, &mut credit, first - 1), 2 * first);
        credit.note_read(usize::try_from(first).unwrap());
        assert_eq!(ask(&scene, &mut credit, 3 * first), 4 * first);
    }

    #[test]
    fn a_request_that_overtakes_its_data_stays_pending() {
        let scene = Scene::new(256);
        let mut credit = scene.peer();
        let first = credit.window;
        assert_eq!(ask(&scene, &mut credit, 1_000), first);
        let came = Received {
            bytes: first,
            blocked_frames: credit.blocked_frames + 1,
        };
        let mut last = Last(first);
        credit.extend(scene.now, came, &mut last);
        assert_eq!(last.0, 2 * first);
        // It is answered now.
        let more = Received {
            bytes: 2 * first,
            ..came
        };
        credit.extend(scene.now, more, &mut last);
        assert_eq!(last.0, 2 * first);
    }

    #[test]
    fn who_is_short_stays_so_until_a_quarter_of_its_window_was_read() {
        let scene = Scene::new(256);
        let mut credit = scene.peer();
        fill(&scene, &mut credit);
        let window = credit.window;
        let need = credit.shortage(&mut Last::default());
        assert_eq!(need, Some(window / 4));
        credit.note_read(usize::try_from(window / 4).unwrap());
        credit.announce(&mut Last::default());
        assert_eq!(credit.shortage(&mut Last::default()), need);
        credit.note_read(1);
        assert_eq!(credit.shortage(&mut Last::default()), None);
    }

    #[test]
    fn what_pays_debt_leaves_a_session_as_short_as_it_was() {
        let scene = Scene::new(256);
        let mut credit = scene.peer();
        fill(&scene, &mut credit);
        // So many that nothing is left, whatever is paid back.
        let _others: Vec<Credit> = (0..4_096).map(|_| scene.peer()).collect();
        scene.budget.set(MIB, 1);
        credit.shrink(scene.now, &mut Last::default());
        let (window, debt) = (credit.window, credit.debt);
        assert!(debt > window, "{debt} {window}");
        credit.note_read(usize::try_from(debt).unwrap());
        let need = credit.shortage(&mut Last::default());
        assert_eq!(need, Some(window / 4), "the peer got nothing");
        credit.note_read(usize::try_from(window / 4 + 1).unwrap());
        assert_eq!(credit.shortage(&mut Last::default()), None);
    }

    #[test]
    fn who_was_short_goes_on_as_soon_as_others_gave_credit_back() {
        let scene = Scene::new(256);
        let mut hoarder = scene.peer();
        fill(&scene, &mut hoarder);
        let mut late = scene.peer();
        fill(&scene, &mut late);
        assert!(late.shortage(&mut Last::default()).is_some());
        let had = late.window;
        drop(hoarder);
        assert_eq!(late.shortage(&mut Last::default()), None);
        assert_eq!(late.window, 2 * had);
        drop(late);
        assert_eq!(scene.budget.share(), Scene::new(256).budget.share());
    }
}
