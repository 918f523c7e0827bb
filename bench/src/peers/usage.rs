//! What a tunnel's processes take while they work: processor time, memory, context switches,
//! datagrams dropped. Read from /proc, for each process that was started and all that came of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use underpass_loadtest::stand::usage::{cpu_time, memory};

use super::measure::{Figures, Measure};

/// What a tunnel had taken by some moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    at: Instant,
    cpu: Duration,
    switches: u64,
    peak: u64,
    drops: u64,
}

impl Usage {
    /// Of these processes and their descendants, up to now.
    ///
    /// # Errors
    /// One of those named has ended.
    pub fn of(roots: &[u32]) -> Result<Usage> {
        let mut usage = Usage {
            at: Instant::now(),
            cpu: Duration::ZERO,
            switches: 0,
            peak: 0,
            drops: 0,
        };
        for &root in roots {
            usage.cpu += cpu_time(root)?;
        }
        let all = with_descendants(roots);
        for &process in &all {
            if !roots.contains(&process) {
                usage.cpu += cpu_time(process).unwrap_or_default();
            }
            usage.switches += switches(process);
            let status = read(process, "status");
            usage.peak += field(&status, "VmHWM:").unwrap_or_default() << 10;
        }
        // One process of each network namespace tells of all that were dropped there.
        let networks: BTreeSet<PathBuf> = all
            .iter()
            .filter_map(|process| fs::read_link(format!("/proc/{process}/ns/net")).ok())
            .collect();
        for network in networks {
            let in_it = |process: &&u32| {
                fs::read_link(format!("/proc/{process}/ns/net")).is_ok_and(|own| own == network)
            };
            let told = all.iter().find(in_it);
            usage.drops += told
                .and_then(|&process| udp_drops(&read(process, "net/snmp")))
                .unwrap_or_default();
        }
        Ok(usage)
    }

    /// The figures of the time since `before`; `cost` makes the row's cost of processor time.
    #[must_use]
    pub fn since(&self, before: &Usage, cost: impl Fn(Duration) -> f64) -> Figures {
        let elapsed = (self.at - before.at).as_secs_f64();
        let switches = self.switches.saturating_sub(before.switches) as f64;
        [
            (Measure::Cost, cost(self.cpu.saturating_sub(before.cpu))),
            (Measure::PeakRss, self.peak as f64 / f64::from(1 << 20)),
            (Measure::Switches, switches / elapsed),
            (
                Measure::UdpDrops,
                self.drops.saturating_sub(before.drops) as f64,
            ),
        ]
        .into()
    }
}

/// Memory that a process and its descendants have for themselves, bytes.
///
/// # Errors
/// It has ended.
pub fn anonymous_memory(root: u32) -> Result<u64> {
    let others = with_descendants(&[root]).into_iter().skip(1);
    let others = others.filter_map(|process| memory(process).ok());
    Ok(memory(root)? + others.sum::<u64>())
}

fn read(process: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default()
}

fn entries(folder: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The processes, and all that descend from them.
fn with_descendants(roots: &[u32]) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = entries("/proc")
        .filter_map(|process| Some((process, parent(&read(process, "stat"))?)))
        .collect();
    let mut all = roots.to_vec();
    let mut next = 0;
    while let Some(&process) = all.get(next) {
        let children = parents.iter().filter(|(_, parent)| *parent == process);
        all.extend(children.map(|(child, _)| child));
        next += 1;
    }
    all
}

fn switches(process: u32) -> u64 {
    entries(&format!("/proc/{process}/task"))
        .map(|thread| read(process, &format!("task/{thread}/status")))
        .map(|status| {
            let count = |name| field(&status, name).unwrap_or_default();
            count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:")
        })
        .sum()
}

/// Fields after the name of proc_pid_stat(5), which may hold blanks and brackets; the first is the
/// third field.
fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace())
}

/// Field 4.
fn parent(stat: &str) -> Option<u32> {
    fields(stat)?.nth(1)?.parse().ok()
}

/// A number of a `status` file; of a size, KiB.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `RcvbufErrors` of a `net/snmp` file, whose lines come in pairs: names, then numbers.
fn udp_drops(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names
        .split_whitespace()
        .position(|name| name == "RcvbufErrors")?;
    numbers.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use underpass_tests::deadline::{MOMENT, wait_for};
    use underpass_tests::process::Process;

    use super::*;

    #[test]
    fn a_parent_is_found_whatever_the_name() {
        let stat = "77 (a b) c) S 1 2 3 4 5 6 7 8 9 10 130 20 5 6 20 0";
        assert_eq!(parent(stat), Some(1));
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

    #[test]
    fn numbers_of_a_status_file_are_found_by_their_whole_name() {
        let status =
            "VmHWM:\t    6120 kB\nvoluntary_ctxt_switches:\t15\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(status, "VmHWM:"), Some(6120));
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(15));
        assert_eq!(field(status, "nonvoluntary_ctxt_switches:"), Some(3));
        assert_eq!(field(status, "RssAnon:"), None);
    }

    #[test]
    fn dropped_datagrams_are_found_by_their_column() {
        let snmp = "Ip: Forwarding DefaultTTL\nIp: 1 64\nUdp: InDatagrams NoPorts RcvbufErrors SndbufErrors\nUdp: 10 2 7 1\nUdpLite: InDatagrams\nUdpLite: 0\n";
        assert_eq!(udp_drops(snmp), Some(7));
        assert_eq!(udp_drops("Udp: InDatagrams\nUdp: 1\n"), None);
    }

    #[test]
    fn what_a_child_takes_counts_for_its_parent() {
        // The child works for a moment and ends; the parent does nothing until it is killed.
        let script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done & wait; exec sleep 60";
        let parent = Process::start("sh", Command::new("sh").args(["-c", script])).expect("starts");
        let roots = [parent.id()];
        let before = Usage::of(&roots).expect("alive");
        let own = || cpu_time(parent.id()).expect("alive").as_secs_f64();
        let took = wait_for("a child's processor time", MOMENT, || {
            let now = Usage::of(&roots).expect("alive");
            let figures = now.since(&before, |cpu| cpu.as_secs_f64());
            (figures[&Measure::Cost] > own()).then_some(figures)
        });
        assert!(took.expect("noticed")[&Measure::PeakRss] > 0.0);
    }
}
