//! What a process takes, read from /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Clock ticks of a second in proc_pid_stat(5): USER_HZ, which is this on every architecture that Rust's std runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time up to now.
pub(super) fn cpu_time(process: u32) -> Result<Duration> {
    let stat = read(process, "stat")?;
    // The name is in parentheses and may hold anything; what follows is numbers. User and system time are the 14th and 15th field.
    let after_name = stat.rsplit_once(')').context("stat without a name")?.1;
    let ticks = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<f64>);
    let ticks: f64 = ticks.sum::<Result<f64, _>>()?;
    Ok(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
}

/// Resident memory of its own just now, bytes: what it shares with others (its program's file) aside.
pub(super) fn memory(process: u32) -> Result<u64> {
    let status = read(process, "status")?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let anonymous = kib("RssAnon:").context("no RssAnon in its status")?;
    Ok(anonymous << 10)
}

/// Open files just now.
pub(super) fn open_files(process: u32) -> Result<u64> {
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
    fn this_process_takes_something() {
        let own = std::process::id();
        assert!(memory(own).is_ok_and(|bytes| bytes > 100_000));
        assert!(open_files(own).is_ok_and(|files| files > 2));
        assert!(cpu_time(own).is_ok_and(|time| time < Duration::from_secs(3_600)));
        assert!(cpu_time(u32::MAX).is_err());
    }
}
