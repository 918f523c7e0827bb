//! The signs of life of processes that have sessions with several workers. Touched once for each
//! session, when its first key is proven.
//!
//! Found by the process's instance *and* the right that was proven first: who only knows another's
//! instance shares nothing with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use underpass_proto::{HycoName, Instance, Rule};

use crate::quic::Pulse;

/// Entries beyond twice those in use before what is no longer used is dropped.
const SPARE: usize = 64;

/// Whose a pulse is.
type Process = (Instance, HycoName, Rule);

/// All pulses of a relay.
#[derive(Debug, Default)]
pub(crate) struct Pulses(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_process: HashMap<Process, Weak<Pulse>>,
    tidy_at: usize,
}

impl Pulses {
    /// The pulse that the sessions of this process share.
    pub(crate) fn of(&self, now: Instant, process: Process) -> Arc<Pulse> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pulse) = table.by_process.get(&process).and_then(Weak::upgrade) {
            return pulse;
        }
        let pulse = Arc::new(Pulse::new(now));
        table.by_process.insert(process, Arc::downgrade(&pulse));
        if table.by_process.len() > table.tidy_at {
            table.by_process.retain(|_, pulse| pulse.strong_count() > 0);
            table.tidy_at = 2 * table.by_process.len() + SPARE;
        }
        pulse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_one_process_share_a_pulse_and_those_of_another_right_do_not() {
        let (pulses, now) = (Pulses::default(), Instant::now());
        let of = |instance, name: &str, rule| {
            let name = name.parse().expect("a name");
            pulses.of(now, (Instance([instance; 16]), name, rule))
        };
        let first = of(1, "payroll-sql", Rule::Listen);
        assert!(Arc::ptr_eq(&first, &of(1, "payroll-sql", Rule::Listen)));
        for other in [
            of(2, "payroll-sql", Rule::Listen),
            of(1, "orders-sql", Rule::Listen),
            of(1, "payroll-sql", Rule::Send),
        ] {
            assert!(!Arc::ptr_eq(&first, &other));
        }
    }

    #[test]
    fn pulses_of_processes_that_are_gone_take_no_room() {
        let (pulses, now) = (Pulses::default(), Instant::now());
        let name: HycoName = "payroll-sql".parse().expect("a name");
        for number in 0..10_000_u128 {
            let instance = Instance(number.to_be_bytes());
            drop(pulses.of(now, (instance, name.clone(), Rule::Listen)));
        }
        let left = pulses.0.lock().expect("not poisoned").by_process.len();
        assert!(left <= 2 * SPARE, "{left}");
    }
}
