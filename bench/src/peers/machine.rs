//! The machine that measures: what it is, what is installed on it, and whether it is quiet.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use underpass_tests::servers::{postgres, program};

use super::{Way, tools};

/// Names of processes that mean that something is being built.
const BUILDERS: [&str; 7] = ["cargo", "rustc", "cc1", "cc1plus", "ld", "ld.lld", "make"];

/// Load of each core above which figures suffer.
const LOAD_MAX: f64 = 0.3;

/// What the figures were taken with.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Machine {
    /// The processor.
    pub processor: String,
    /// How many of it may be used.
    pub cores: usize,
    /// Kernel, its version, and the congestion control of its TCP: all ways and works take what it
    /// takes by itself.
    pub kernel: String,
    /// Programs and their versions.
    pub versions: Vec<String>,
}

impl Machine {
    /// This one, with the product and with what the ways and all works need.
    #[must_use]
    pub fn here(underpass: &Path, ways: &[Way]) -> Machine {
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
                "{} {}, TCP with {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy(),
                congestion_control()
            ),
            versions: versions(underpass, ways),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            processor,
            cores,
            kernel,
            versions,
        } = self;
        let versions = versions.join(", ");
        write!(f, "{processor}, {cores} cores, {kernel}; {versions}.")
    }
}

/// Workers that the product takes by itself on this machine: one for every two cores.
#[must_use]
pub fn usual_workers() -> usize {
    (cores() / 2).max(1)
}

/// Cores that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn congestion_control() -> String {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").map_or_else(
        |_| "unknown congestion control".into(),
        |name| name.trim().into(),
    )
}

fn versions(underpass: &Path, ways: &[Way]) -> Vec<String> {
    let told = |path: &Path, argument: &str| first_line(Command::new(path).arg(argument));
    let installed = |name: &str, argument: &str| told(&program(name, name).ok()?, argument);
    let has = |way: Way| ways.contains(&way);
    let rathole = (has(Way::Rathole) || has(Way::RatholeNoise)).then(tools::rathole);
    let postgres = postgres::server_program("postgres");
    [
        told(underpass, "--version").map(|line| format!("{line} ({})", profile(underpass))),
        has(Way::Ssh).then(|| installed("ssh", "-V")).flatten(),
        rathole.and_then(|path| told(&path.ok()?, "-V")),
        installed("iperf3", "--version"),
        installed("wrk", "-v"),
        installed("nginx", "-v"),
        postgres.ok().and_then(|path| told(&path, "--version")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_first_line_without_what_is_known_anyway() {
        let version = |text: &str| first_line(Command::new("echo").arg(text));
        assert_eq!(
            version("nginx version: nginx/1.22").as_deref(),
            Some("nginx/1.22")
        );
        assert_eq!(
            version("wrk 4.1 [epoll] Copyright (C) 2012").as_deref(),
            Some("wrk 4.1 [epoll]")
        );
    }
}
