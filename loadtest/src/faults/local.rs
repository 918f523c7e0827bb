//! Verified flows of this process, where a row must know at any moment how much they have moved.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::scene::Shape;
use super::trial::Trial;
use crate::io::Choice;
use crate::run::{self, Outcome, Plan};
use crate::scenario::Stop;

/// Longer than any row.
const ALWAYS: Duration = Duration::from_secs(24 * 3600);

/// Flows under way.
pub(super) struct LocalFlows {
    stop: Stop,
    bytes_down: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<Outcome>>,
}

impl LocalFlows {
    /// Begins them.
    pub(super) fn start(trial: &mut Trial<'_>, target: SocketAddr, shape: Shape) -> LocalFlows {
        let stop = Stop::default();
        let plan = Plan {
            flows: shape.flows,
            bytes: shape.bytes,
            message: usize::try_from(shape.message).unwrap_or(run::MESSAGE_MAX),
            duration: Some(ALWAYS),
            stall: shape.deadline,
            seed: trial.chance(u64::MAX),
            io: Choice::Tokio,
            stop: stop.clone(),
            ..Plan::new(target, shape.mode)
        };
        let bytes_down = Arc::<AtomicU64>::default();
        let told = Arc::clone(&bytes_down);
        let thread = std::thread::spawn(move || {
            run::run(&plan, |counters| {
                told.store(counters.bytes_down(), Ordering::Relaxed);
            })
        });
        LocalFlows {
            stop,
            bytes_down,
            thread,
        }
    }

    /// Bytes that have come, as of a tenth of a second ago.
    pub(super) fn bytes_down(&self) -> u64 {
        self.bytes_down.load(Ordering::Relaxed)
    }

    /// Lets them end, and gives their endings to the trial.
    pub(super) fn stop(self, trial: &mut Trial<'_>) -> Result<Outcome> {
        self.stop.stop();
        let outcome = self
            .thread
            .join()
            .map_err(|_| anyhow!("the flows' thread has failed"))??;
        trial.take_tally(&outcome.tally, outcome.bytes_up + outcome.bytes_down);
        Ok(outcome)
    }
}
