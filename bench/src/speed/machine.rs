//! The machine that measures: what it is, whether it is quiet, and how much processor time a process took.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use underpass_tests::servers::program;

/// Names of processes that mean that something is being built.
const BUILDERS: [&str; 7] = ["cargo", "rustc", "cc1", "cc1plus", "ld", "ld.lld", "make"];

/// Load of each core above which figures suffer.
const LOAD_MAX: f64 = 0.3;

/// Clock ticks of a second in proc_pid_stat(5): USER_HZ, which is this on every architecture that Rust's std runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the figures were taken with.
#[derive(Serialize, Clone, Debug)]
pub struct Machine {
    /// The processor.
    pub processor: String,
    /// How many of it may be used.
    pub cores: usize,
    /// Kernel and its version.
    pub kernel: String,
    /// Programs and their versions.
    pub versions: Vec<String>,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here(underpass: &Path) -> Machine {
        let uname = rustix::system::uname();
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown processor", |(_, model)| model);
        Machine {
            processor: processor.to_owned(),
            cores: cores(),
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            versions: versions(underpass),
        }
    }
}

/// Cores that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn versions(underpass: &Path) -> Vec<String> {
    let installed = |name: &str, argument: &str| {
        let path = program(name, name).ok()?;
        first_line(Command::new(path).arg(argument))
    };
    [
        first_line(Command::new(underpass).arg("--version"))
            .map(|line| format!("{line} ({})", profile(underpass))),
        installed("iperf3", "--version"),
        installed("wrk", "-v"),
        installed("nginx", "-v"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Cargo's profile, which is the folder that a binary of a build lies in.
#[must_use]
pub fn profile(binary: &Path) -> String {
    let folder = binary.parent().and_then(Path::file_name);
    folder.map_or_else(
        || "unknown profile".into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let told = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&told).lines().next()?.to_owned();
    let line = line.split(" Copyright").next()?.trim();
    Some(line.trim_start_matches("nginx version: ").to_owned())
}

/// What makes figures too low here and now, in words.
#[must_use]
pub fn busy() -> Vec<String> {
    let mut troubles = builds();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load
        .split(' ')
        .next()
        .and_then(|load| load.parse::<f64>().ok());
    if let Some(load) = load.filter(|load| *load > LOAD_MAX * cores() as f64) {
        troubles.push(format!("the load was {load} at the start"));
    }
    troubles
}

/// Builds that are running, in words.
#[must_use]
pub fn builds() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut names: Vec<String> = processes
        .filter_map(|process| fs::read_to_string(process.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| BUILDERS.contains(&name.as_str()))
        .map(|name| format!("{name} was running"))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Processor time of a process and its threads, user and kernel.
///
/// # Errors
/// It has ended.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))
        .with_context(|| format!("process {process} has ended"))?;
    let ticks = ticks(&stat).with_context(|| format!("cannot read {stat:?}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

/// Fields 14 and 15 of proc_pid_stat(5), clock ticks; the second field, a name, may hold blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some(user + kernel)
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
    fn a_process_that_works_takes_processor_time() {
        let id = std::process::id();
        let before = cpu_time(id).expect("alive");
        let mut sum = 0_u64;
        while cpu_time(id).expect("alive") <= before {
            sum = (0..100_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        assert!(cpu_time(id).expect("alive") > before);
    }
}
