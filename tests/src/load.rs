//! Verified load for tests of what changes under it: flows that live as long as the test wants, and
//! others that come and go, every byte checked by its position.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use underpass_loadtest::pattern::{Pattern, derive};

use crate::conversation::{Conversation, Fault, gravest};
use crate::deadline::{LOOK_EACH, MOMENT, pause};

/// Bytes said at a time and heard again before the next: more than one packet, less than any buffer
/// on the way.
const TURN: u64 = 16 * 1024;

/// Turns of a flow that comes and goes.
const TURNS_OF_SHORT: u64 = 2;

/// The longest that a loaded flow may live.
const LIFE_MAX: Duration = Duration::from_secs(120);

/// Flows to a [`Service`](crate::service::Service), which says a letter and echoes.
#[derive(Debug)]
pub struct Load {
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Carried, Fault>>>,
}

/// What a [`Load`] carried, all of it right.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Carried {
    /// Flows that were opened and ended clean.
    pub flows: u64,
    /// Bytes there and back again.
    pub bytes: u64,
    /// The longest that one flow waited for the echo of a turn.
    pub longest: Duration,
}

impl Load {
    /// Opens `lasting` flows that live until [`Self::stop`], and keeps opening short ones beside
    /// them.
    ///
    /// # Errors
    /// When one of the lasting flows cannot be opened.
    pub fn start(address: SocketAddr, lasting: u64, seed: u64) -> Result<Self, Fault> {
        let ending = Arc::<AtomicBool>::default();
        let mut threads = Vec::new();
        for number in 0..lasting {
            let flow = Flow::open(address, derive(seed, number))?;
            let end = Arc::clone(&ending);
            threads.push(thread::spawn(move || {
                flow.talk(|_| end.load(Ordering::SeqCst))
            }));
        }
        let end = Arc::clone(&ending);
        threads.push(thread::spawn(move || {
            let mut carried = Carried::default();
            while !end.load(Ordering::SeqCst) {
                let flow = Flow::open(address, derive(seed, lasting + carried.flows))?;
                carried.add(flow.talk(|turns| turns >= TURNS_OF_SHORT)?);
            }
            Ok(carried)
        }));
        Ok(Self { ending, threads })
    }

    /// Lets the flows end clean, and says what they carried.
    ///
    /// # Errors
    /// The gravest fault of any flow: a cut, a wrong byte, an early end, silence.
    pub fn stop(mut self) -> Result<Carried, Fault> {
        self.ending.store(true, Ordering::SeqCst);
        let mut carried = Carried::default();
        let ends = self.threads.drain(..).map(|thread| {
            let ended = thread.join().expect("a flow does not panic")?;
            carried.add(ended);
            Ok(())
        });
        gravest(ends.collect::<Vec<_>>())?;
        Ok(carried)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
    }
}

impl Carried {
    fn add(&mut self, other: Self) {
        self.flows += other.flows;
        self.bytes += other.bytes;
        self.longest = self.longest.max(other.longest);
    }
}

struct Flow {
    line: Conversation,
    says: Pattern,
}

impl Flow {
    fn open(address: SocketAddr, seed: u64) -> Result<Self, Fault> {
        let until = Instant::now() + MOMENT;
        let mut line = Conversation::connect(address, "application", until)?;
        line.receive_bytes::<1>()?;
        Ok(Self {
            line,
            says: Pattern::new(seed),
        })
    }

    fn talk(self, enough: impl Fn(u64) -> bool) -> Result<Carried, Fault> {
        let (mut line, says) = (self.line.until(Instant::now() + LIFE_MAX), self.says);
        let mut longest = Duration::ZERO;
        let mut turns = 0;
        while !enough(turns) {
            let positions = turns * TURN..(turns + 1) * TURN;
            let asked = Instant::now();
            line.send(&says, positions.clone())?;
            line.receive(&says, positions)?;
            longest = longest.max(asked.elapsed());
            turns += 1;
            // Leaves the machine to what is tested.
            pause(LOOK_EACH);
        }
        line.finish()?;
        line.receive_end()?;
        Ok(Carried {
            flows: 1,
            bytes: turns * TURN,
            longest,
        })
    }
}
