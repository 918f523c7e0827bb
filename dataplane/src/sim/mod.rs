//! A whole installation in one thread and in virtual time: the real relay, agents and senders
//! (their roles, their loop, their QUIC) over a network, a clock and a chance that come from one
//! seed. What must hold is looked at while it runs; a seed that fails says the same again.
//!
//! No sockets, no threads, no clocks. TLS takes its keys from the system, but lengths and order do
//! not depend on them: the certificate is Ed25519.

pub(crate) mod crew;
mod faults;
mod log;
mod machine;
mod net;
mod pattern;
mod peer;
mod queue;
mod scene;
mod tcp;
pub(crate) mod watched;
mod world;

mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use self::world::World;

/// What a worker of a simulation is made with.
pub(crate) struct Made {
    /// The time.
    pub(crate) now: Instant,
    /// Its chance.
    pub(crate) rng: StdRng,
    /// Datagrams that its kernel takes in one send.
    pub(crate) segments: usize,
}

/// What a run that held was like.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Summary {
    /// Number of events and their sum: the same seed says the same.
    sum: (u64, u64),
    flows: usize,
    clean: usize,
    faults: usize,
    bytes: u64,
    /// The most that one peer had said and its other one had not heard.
    under_way: u64,
    /// The longest time in which nobody heard anything, while somebody was waiting to.
    silence: Duration,
    virtual_ms: u128,
}

impl Summary {
    /// One run more.
    fn add(&mut self, other: &Self) {
        self.sum = (self.sum.0 + other.sum.0, self.sum.1 ^ other.sum.1);
        self.flows += other.flows;
        self.clean += other.clean;
        self.faults += other.faults;
        self.bytes += other.bytes;
        self.under_way = self.under_way.max(other.under_way);
        self.silence = self.silence.max(other.silence);
        self.virtual_ms += other.virtual_ms;
    }
}

/// Runs one seed to its end; `plant` spoils the world before.
///
/// # Errors
/// What did not hold, with the seed, the last events and the way to see it again.
fn run(seed: u64, plant: impl FnOnce(&mut World)) -> Result<Summary, String> {
    let mut world = World::new(seed);
    plant(&mut world);
    world.log.loud = std::env::var_os("SIM_LOG").is_some();
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let why = match ran {
        Ok(Ok(summary)) => return Ok(summary),
        Ok(Err(why)) => why,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("panic: {}", text.unwrap_or("without a word"))
        }
    };
    Err(format!(
        "seed {seed}: {why}\n{}\nagain: SIM_SEED={seed} cargo test -p underpass-dataplane --lib sim::",
        world.tail()
    ))
}
