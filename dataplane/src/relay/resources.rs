//! What the machine gives a relay, looked at once a second: memory and descriptors. Where either
//! runs short, newcomers are refused at once and in words, and those that are there go on. Does not
//! decide which flows are ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tracing::{info, warn};

use crate::budget::Budget;

/// Descriptors that no flow of an application gets: for control, logs, names, and to refuse
/// newcomers with.
const DESCRIPTORS_KEPT: usize = 64;

/// Of memory and of descriptors a relay takes newcomers again below this share of its limit, in
/// percent.
const ENOUGH: u64 = 90;

/// Of a machine's memory, the relay's share where nothing else is said, in percent.
const MEMORY_SHARE: u64 = 75;

/// What there is, for the workers.
#[derive(Debug)]
pub(crate) struct Resources {
    /// What may be held of data on its way.
    pub(crate) budget: Arc<Budget>,
    tight: AtomicBool,
    sockets_max: AtomicUsize,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            budget: Arc::default(),
            tight: AtomicBool::new(false),
            sockets_max: AtomicUsize::new(usize::MAX),
        }
    }
}

impl Resources {
    /// Whether memory is so short that nobody new is served.
    pub(crate) fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    /// Sockets of applications that each worker may have.
    pub(crate) fn sockets_max(&self) -> usize {
        self.sockets_max.load(Ordering::Relaxed)
    }

    /// Looks again. `memory_max` is what the operator said, bytes.
    pub(crate) fn look(&self, memory_max: Option<u64>, bindings: usize, workers: usize) {
        let most = memory_max.or_else(|| share_of(memory_of_machine()?));
        if let Some(most) = most {
            self.budget.set(most, workers);
        }
        if let Some((used, most)) = resident().zip(most) {
            self.judge_memory(used, most);
        }
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let files = files.map_or(usize::MAX, |files| {
            usize::try_from(files).unwrap_or(usize::MAX)
        });
        let sockets = sockets_of(files, bindings, workers);
        self.sockets_max.store(sockets, Ordering::Relaxed);
    }

    fn judge_memory(&self, used: u64, most: u64) {
        let was = self.is_tight();
        let tight = is_tight(was, used, most);
        self.tight.store(tight, Ordering::Relaxed);
        let (used_mib, most_mib) = (used >> 20, most >> 20);
        if tight && !was {
            warn!(
                used_mib,
                most_mib,
                "memory is short: no new sessions and flows; `memory_mib_max` in [relay] of namespace.toml sets the limit"
            );
        } else if was && !tight {
            info!(used_mib, most_mib, "memory suffices again");
        }
    }
}

fn is_tight(was: bool, used: u64, most: u64) -> bool {
    let limit = if was { most / 100 * ENOUGH } else { most };
    used > limit
}

fn sockets_of(files: usize, bindings: usize, workers: usize) -> usize {
    let workers = workers.max(1);
    let taken = DESCRIPTORS_KEPT.saturating_add(bindings.saturating_mul(workers));
    files.saturating_sub(taken) / workers
}

fn share_of(memory: u64) -> Option<u64> {
    (memory > 0).then_some(memory / 100 * MEMORY_SHARE)
}

/// What the process holds in memory, bytes; known on Linux.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kilobytes(&status, "VmRSS:")
}

/// What the machine has, or the container that it is, bytes; known on Linux.
fn memory_of_machine() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = kilobytes(&machine, "MemTotal:")?;
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|text| text.trim().parse().ok());
    Some(container.map_or(machine, |container: u64| container.min(machine)))
}

fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_short_suffices_again_only_well_below_the_limit() {
        assert!(!is_tight(false, 1_000, 1_000));
        assert!(is_tight(false, 1_001, 1_000));
        assert!(is_tight(true, 950, 1_000));
        assert!(!is_tight(true, 900, 1_000));
    }

    #[test]
    fn descriptors_for_flows_are_what_is_left_for_each_worker() {
        assert_eq!(sockets_of(256, 2, 1), 190);
        assert_eq!(sockets_of(256, 2, 2), 94);
        assert_eq!(sockets_of(10, 2, 1), 0);
        assert_eq!(sockets_of(usize::MAX, 0, 1), usize::MAX - 64);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_this_machine_gives_is_known() {
        let (used, most) = (resident().unwrap(), memory_of_machine().unwrap());
        assert!(used > 100_000 && used < most, "{used} of {most}");
        assert_eq!(kilobytes("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12_288));
        assert_eq!(kilobytes("VmRSS:\t  many kB\n", "VmRSS:"), None);
    }
}
