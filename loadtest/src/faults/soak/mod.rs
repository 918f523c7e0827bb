//! A soak: harm by chance, round after round, of kinds that leave every process alive, and what
//! each process takes whenever all rests. What grows over an hour is a leak, however slow.

mod chart;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::Settings;
use super::rows::mix::{KINDS_WITHOUT_KILLS, State};
use super::scene::{wait_until_idle, with};
use super::trial::{Bar, RowResult, Trial};
use crate::stand::deadline::pause;
use crate::stand::usage::{self, Taken};

/// Between two looks at what processes take.
const LOOK_EACH: Duration = Duration::from_secs(15);

/// After all flows have ended, until a look: sessions that were opened beside suspect ones, and
/// buffers of ended flows, go within a moment.
const REST: Duration = Duration::from_secs(1);

/// Looks of which a comparison can be made: a quarter of them is compared with another.
const LOOKS_MIN: usize = 8;

/// The processes, in the order of every look.
const PROCESSES: [&str; 4] = ["relay", "agent", "other agent", "control"];

/// What a process may have grown by from the second quarter to the last: a share, and MB, for a
/// young one has few in all.
const GROWTH: f64 = 1.02;
const GROWTH_MB: f64 = 1.0;

/// What came of a soak. Displays as a row of the fault table does.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Soak {
    /// Of all chances.
    pub seed: u64,
    /// Backend of relay and agents.
    pub io: &'static str,
    /// Flows, faults and figures.
    pub result: RowResult,
    /// What the processes took, in order of time.
    pub looks: Vec<Look>,
}

/// What the processes took at one moment.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Look {
    /// Since the soak began, seconds.
    pub at: f64,
    /// Of the relay, both agents and control.
    pub processes: Vec<Taken>,
}

/// Does harm for this long.
#[must_use]
pub fn soak(settings: &Settings, length: Duration) -> Soak {
    let mut trial = Trial::new(settings, 0, "soak");
    let mut looks = Vec::new();
    let ran = run(&mut trial, length, &mut looks);
    Soak {
        seed: settings.seed,
        io: settings.io.name(),
        result: trial.end(ran),
        looks,
    }
}

fn run(trial: &mut Trial<'_>, length: Duration, looks: &mut Vec<Look>) -> Result<()> {
    let mut state = State::open(trial)?;
    let began = Instant::now();
    let mut next = began;
    let mut round = 0;
    while began.elapsed() < length {
        state.harm(trial, round, KINDS_WITHOUT_KILLS)?;
        round += 1;
        if Instant::now() >= next {
            wait_until_idle(&state.apart.scene)?;
            pause(REST);
            looks.push(look(&state, began)?);
            next = Instant::now() + LOOK_EACH;
        }
    }
    state.settle(trial)?;
    trial.count("sessions lost", state.apart.sessions_lost(), None);
    state.apart.scene.check_alive()?;
    judge(trial, looks)
}

fn look(state: &State, began: Instant) -> Result<Look> {
    let control = &mut state.apart.scene.installation.control();
    let control = with(control, |control| usage::taken(control.id()))?;
    let mut processes = state.usage()?;
    processes.push(control);
    Ok(Look {
        at: began.elapsed().as_secs_f64(),
        processes,
    })
}

/// The last quarter is held against the second: in the first, buffers grow to what they will be.
fn judge(trial: &mut Trial<'_>, looks: &[Look]) -> Result<()> {
    ensure!(
        looks.len() >= LOOKS_MIN,
        "{} looks are too few to compare: give it more time",
        looks.len()
    );
    let quarter = looks.len() / 4;
    let (second, last) = (
        &looks[quarter..2 * quarter],
        &looks[looks.len() - quarter..],
    );
    for (nth, name) in PROCESSES.iter().enumerate() {
        let memory = |looks: &[Look]| median(looks, |look| look.processes[nth].memory) / 1e6;
        // A binding that was made by chance has a socket, and may be there at a look or not: what
        // leaks is there each time.
        let files = |looks: &[Look]| fewest(looks, |look| look.processes[nth].files);
        trial.figure(
            format!("memory of the {name}, second quarter"),
            memory(second),
            "MB",
            None,
        );
        trial.figure(
            format!("memory of the {name}, last quarter"),
            memory(last),
            "MB",
            Some(Bar::AtMost(memory(second) * GROWTH + GROWTH_MB)),
        );
        trial.figure(
            format!("open files of the {name}, last quarter"),
            files(last),
            "",
            Some(Bar::AtMost(files(second) * GROWTH)),
        );
    }
    Ok(())
}

fn median(looks: &[Look], of: impl Fn(&Look) -> u64) -> f64 {
    let mut values: Vec<u64> = looks.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2] as f64
}

fn fewest(looks: &[Look], of: impl Fn(&Look) -> u64) -> f64 {
    looks.iter().map(of).min().unwrap_or(0) as f64
}

impl Soak {
    /// Memory and open files of each process as one SVG picture.
    #[must_use]
    pub fn chart(&self) -> String {
        chart::draw(&self.looks)
    }
}

impl fmt::Display for Soak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {}", self.seed, self.io)?;
        write!(f, "{}", self.result)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::super::Length;
    use super::*;
    use crate::stand::installation::Io;

    /// As many looks, a minute apart, in which the relay takes this many bytes.
    pub(in crate::faults::soak) fn looks(count: usize, relay: impl Fn(usize) -> u64) -> Vec<Look> {
        let taken = |memory| Taken { memory, files: 12 };
        let look = |nth| Look {
            at: nth as f64 * 60.0,
            processes: vec![
                taken(relay(nth)),
                taken(4_000_000),
                taken(5_000_000),
                taken(2_000_000),
            ],
        };
        (0..count).map(look).collect()
    }

    fn judged(looks: &[Look]) -> RowResult {
        let settings = Settings {
            underpass: PathBuf::new(),
            own: PathBuf::new(),
            seed: 1,
            length: Length::Nightly,
            io: Io::Auto,
            workers: 1,
            talk: false,
        };
        let mut trial = Trial::new(&settings, 0, "soak");
        let ran = judge(&mut trial, looks);
        trial.end(ran)
    }

    #[test]
    fn what_grows_slowly_is_seen_and_what_grew_at_first_is_not() {
        let at_first = |nth: usize| if nth < 4 { 4_000_000 } else { 20_000_000 };
        assert!(judged(&looks(16, at_first)).held());
        let slowly = |nth: usize| 20_000_000 + nth as u64 * 200_000;
        assert!(!judged(&looks(16, slowly)).held());
    }

    #[test]
    fn a_file_that_stays_open_is_seen_and_one_that_comes_and_goes_is_not() {
        let with = |files: fn(usize) -> u64| {
            let mut looks = looks(16, |_| 4_000_000);
            for (nth, look) in looks.iter_mut().enumerate() {
                look.processes[0].files = files(nth);
            }
            judged(&looks).held()
        };
        // More often there in the last quarter than in the second.
        assert!(with(|nth| 18 + u64::from(nth % 4 == 0 || nth > 13)));
        assert!(!with(|nth| 18 + u64::from(nth > 11)));
    }

    #[test]
    fn too_few_looks_are_no_result() {
        let result = judged(&looks(7, |_| 4_000_000));
        assert!(!result.held() && result.broken.is_some());
    }
}
