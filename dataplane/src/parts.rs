//! Parts of the inside that benchmarks and fuzzing take by themselves. No promise: what is here
//! changes with the inside.

mod strangers;

use rand::Rng;
use underpass_proto::Instance;

pub use self::strangers::Strangers;
use crate::quic::SessionId;
use crate::relay::roster::{Entry, Health, Roster};

/// The listeners of one hybrid connection, each a process with one session, all of them well and
/// without flows.
#[derive(Debug)]
pub struct Listeners(Roster);

impl Listeners {
    /// So many.
    #[must_use]
    pub fn new(count: u32) -> Self {
        let mut roster = Roster::default();
        for number in 0..count {
            let mut instance = [0; 16];
            instance[..4].copy_from_slice(&number.to_le_bytes());
            roster.add(Entry {
                session: SessionId::of_test(number),
                instance: Instance(instance),
                weight: 100,
                priority: 0,
            });
        }
        Self(roster)
    }

    /// Picks the one for the next flow, and says whether there is one.
    pub fn pick(&self, rng: &mut impl Rng) -> bool {
        let picked = self.0.pick(|_| Health::Ready, |_| 0, None, rng);
        picked.is_some()
    }
}
