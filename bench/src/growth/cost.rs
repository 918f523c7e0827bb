//! What one process takes: processor time to the nanosecond, and the memory that it has for itself,
//! once that is at rest.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use underpass_tests::deadline::{MOMENT, pause, wait_for};

pub(super) use crate::peers::usage::anonymous_memory;

/// Memory that has not changed by more than [`NO_CHANGE`] for this long is at rest.
const AT_REST: Duration = Duration::from_millis(750);
const NO_CHANGE: u64 = 64 << 10;

/// Processor time of all threads that a process has, user and kernel
/// (Documentation/scheduler/sched-stats.rst: the first field). That of threads which have ended is
/// not in it, so it is compared only over times in which none ends.
///
/// # Errors
/// The process has ended, or the kernel does not tell.
pub(super) fn processor_time(process: u32) -> Result<Duration> {
    let folder = format!("/proc/{process}/task");
    let threads = fs::read_dir(&folder).with_context(|| format!("process {process} has ended"))?;
    let mut sum = Duration::ZERO;
    for thread in threads {
        // One that ends just now counts no more.
        let Ok(stat) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let spent = stat.split_whitespace().next();
        let spent = spent.and_then(|spent| spent.parse().ok());
        sum += Duration::from_nanos(spent.context("the kernel tells no processor time")?);
    }
    ensure!(!sum.is_zero(), "process {process} has ended");
    Ok(sum)
}

/// Of each process, in their order.
///
/// # Errors
/// As [`processor_time`].
pub(super) fn processor_times(processes: &[u32]) -> Result<Vec<Duration>> {
    processes
        .iter()
        .map(|&process| processor_time(process))
        .collect()
}

/// Processor time that each process takes of a second, while nothing is asked of it.
///
/// # Errors
/// As [`processor_time`].
pub(super) fn idle(processes: &[u32], length: Duration) -> Result<Vec<f64>> {
    let (start, before) = (Instant::now(), processor_times(processes)?);
    pause(length);
    let after = processor_times(processes)?;
    let elapsed = start.elapsed().as_secs_f64();
    let each = after.iter().zip(before);
    Ok(each
        .map(|(after, before)| after.saturating_sub(before).as_secs_f64() / elapsed)
        .collect())
}

/// Memory of each process, bytes, once none of them changes any more; what changes for ever is
/// taken as it is.
///
/// # Errors
/// One of them has ended.
pub(super) fn memory_at_rest(processes: &[u32]) -> Result<Vec<u64>> {
    let look = || {
        let each = processes.iter().map(|&process| anonymous_memory(process));
        each.collect::<Result<Vec<u64>>>()
    };
    let mut last = look()?;
    let mut since = Instant::now();
    let settled = wait_for("memory at rest", MOMENT, || {
        let now = look().ok()?;
        let mut pairs = now.iter().zip(&last);
        if pairs.any(|(now, last)| now.abs_diff(*last) > NO_CHANGE) {
            (last, since) = (now.clone(), Instant::now());
        }
        (since.elapsed() >= AT_REST).then_some(now)
    });
    Ok(settled.unwrap_or(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_takes_processor_time_and_one_that_waits_does_not() {
        let own = std::process::id();
        let before = processor_time(own).expect("alive");
        let mut sum = 0_u64;
        let worked = Instant::now();
        while worked.elapsed() < Duration::from_millis(20) {
            sum = (0..10_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        assert!(processor_time(own).expect("alive") > before);
        assert!(processor_time(0).is_err());
    }
}
