//! What a process takes, read from /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::process::Signal;

/// Clock ticks of a second in proc_pid_stat(5): USER_HZ, which is this on every architecture that
/// Rust's std runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time of a process and its threads up to now, user and kernel.
///
/// # Errors
/// It has ended.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let stat = read(process, "stat")?;
    let ticks = ticks(&stat).with_context(|| format!("cannot read {stat:?}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

/// User and system time: fields 14 and 15 of proc_pid_stat(5). The name before is in parentheses
/// and may hold anything, the third field follows it.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some(user + kernel)
}

/// Resident memory of its own just now, bytes: what it shares with others (its program's file)
/// aside.
///
/// # Errors
/// It has ended.
pub fn memory(process: u32) -> Result<u64> {
    let status = read(process, "status")?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let anonymous = kib("RssAnon:").context("no RssAnon in its status")?;
    Ok(anonymous << 10)
}

/// What a process takes just now.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Taken {
    /// As [`memory`].
    pub memory: u64,
    /// As [`open_files`].
    pub files: u64,
}

/// Both at once.
///
/// # Errors
/// It has ended.
pub fn taken(process: u32) -> Result<Taken> {
    Ok(Taken {
        memory: memory(process)?,
        files: open_files(process)?,
    })
}

/// Whether it has a handler for a signal: SigCgt in proc_pid_status(5).
///
/// # Errors
/// It has ended.
pub fn handles(process: u32, signal: Signal) -> Result<bool> {
    let status = read(process, "status")?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .context("no SigCgt in its status")?;
    Ok(mask & (1 << (signal.as_raw() - 1)) != 0)
}

/// Whether every thread of it is stopped: the third field of proc_pid_stat(5). A signal that stops
/// a process is there before its threads have heard of it.
///
/// # Errors
/// It has ended.
pub fn is_stopped(process: u32) -> Result<bool> {
    let folder = format!("/proc/{process}/task");
    let threads = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    // One that ended meanwhile does nothing any more either.
    let stats =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    let mut states = stats.filter_map(|stat| stat.rsplit_once(')')?.1.trim().chars().next());
    Ok(states.all(|state| state == 'T'))
}

/// Open files just now.
///
/// # Errors
/// It has ended.
pub fn open_files(process: u32) -> Result<u64> {
    let folder = format!("/proc/{process}/fd");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    Ok(files.count() as u64)
}

fn read(process: u32, what: &str) -> Result<String> {
    let path = format!("/proc/{process}/{what}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has it ended?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_whatever_the_name() {
        let stat = "77 (a b) c) S 1 2 3 4 5 6 7 8 9 10 130 20 5 6 20 0";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("77 (a) S 1"), None);
    }

    #[test]
    fn this_process_takes_something() {
        let own = std::process::id();
        assert!(memory(own).is_ok_and(|bytes| bytes > 100_000));
        assert!(open_files(own).is_ok_and(|files| files > 2));
        assert!(cpu_time(own).is_ok_and(|time| time < Duration::from_secs(3_600)));
        assert!(cpu_time(u32::MAX).is_err());
        // Rust's own runtime ignores SIGPIPE, and handles SIGSEGV to tell of an overflow of the
        // stack.
        assert!(handles(own, Signal::SEGV).is_ok_and(|handles| handles));
        assert!(handles(own, Signal::INT).is_ok_and(|handles| !handles));
    }
}
