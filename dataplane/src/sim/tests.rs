//! Seeds: 256 in each run, as many as `SIM_SEEDS` says, or the one that `SIM_SEED` names. And
//! whether the oracle can see anything at all.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::faults::Fault;
use super::machine::{Kind, Machine};
use super::net::Path;
use super::pattern::SAYS_MAX;
use super::peer::Manner;
use super::scene::Scene;
use super::tcp::Defect;
use super::world::{Event, World};
use super::{Summary, run};
use crate::quic::config::STREAM_WINDOW;

/// Seeds of each run.
const SEEDS: u64 = 256;

/// Seeds that may fail before the rest is not looked at.
const FAILURES_MAX: usize = 5;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

#[test]
fn every_seed_holds() {
    let began = Instant::now();
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let (next, failures) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let total = Mutex::new(Summary::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) || failures.lock().expect("no panic").len() >= FAILURES_MAX {
                return;
            }
            match run(seed, |_| {}) {
                Ok(summary) => total.lock().expect("no panic").add(&summary),
                Err(why) => failures.lock().expect("no panic").push(why),
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(8);
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().expect("no panic");
    println!("seeds {seeds:?}: {total:?} in {:?}", began.elapsed());
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn a_seed_does_the_same_again() {
    for seed in [2, 3, 5] {
        let first = run(seed, |_| {}).unwrap_or_else(|why| panic!("{why}"));
        let second = run(seed, |_| {}).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(first, second, "seed {seed}");
    }
}

/// A relay with so many agents and one hybrid connection, in which all flows must end well.
fn friendly(world: &mut World, agents: usize) {
    world.friendly = true;
    world.storm_until(Duration::from_secs(13));
    world.scene = Scene::new(1, &mut world.rng);
    let agents = (1..=agents).map(|number| Machine::new(Kind::Agent, number));
    world.machines = std::iter::once(Machine::new(Kind::Relay, 0))
        .chain(agents)
        .collect();
}

#[test]
fn an_end_that_came_before_a_refusal_goes_to_the_next_agent() {
    for seed in 0..8 {
        let plant = |world: &mut World| {
            friendly(world, 2);
            // The first agent's dial times out, the second's does not.
            for (at, deaf) in [(2, true), (9, false)] {
                let at = Duration::from_secs(at);
                world.queue.after(at, Event::Fault(Fault::Deaf(0, deaf)));
            }
            let at = Duration::from_millis(2_500);
            world.queue.after(at, Event::Begin(0, false));
        };
        run(seed, plant).unwrap_or_else(|why| panic!("{why}"));
    }
}

#[test]
fn no_flow_is_cut_when_a_newer_session_takes_the_place_of_one_that_is_well_again() {
    for seed in 0..8 {
        let plant = |world: &mut World| {
            friendly(world, 1);
            for (at, dead) in [(3, true), (7, false)] {
                let at = Duration::from_secs(at);
                world.queue.after(at, Event::Fault(Fault::Hole(1, dead)));
            }
            for ms in (7_000..12_000).step_by(50) {
                let at = Duration::from_millis(ms);
                world.queue.after(at, Event::Begin(0, false));
            }
        };
        run(seed, plant).unwrap_or_else(|why| panic!("{why}"));
    }
}

#[test]
fn a_session_whose_path_alone_is_dead_gets_no_flows_for_long() {
    for seed in 0..8 {
        let plant = |world: &mut World| {
            friendly(world, 1);
            world.workers = 2;
            // Later than flows that nobody answers are ended.
            world.storm_until(Duration::from_secs(25));
            let mut short = Manner::plain(&mut world.rng);
            (short.says, short.pause) = (1_000, Duration::ZERO);
            world.manners = Some((short.clone(), short));
            let hole = Event::Fault(Fault::HoleOf(1, 0));
            world.queue.after(Duration::from_secs(3), hole);
            for ms in (5_000..9_000).step_by(50) {
                let at = Duration::from_millis(ms);
                world.queue.after(at, Event::Begin(0, false));
            }
        };
        let summary = run(seed, plant).unwrap_or_else(|why| panic!("{why}"));
        // Those of 0.75 s, and what chance begins beside them; half of all came to that worker.
        let lost = summary.flows - summary.clean;
        assert!(
            summary.flows >= 80 && lost <= 20,
            "seed {seed}: {summary:?}"
        );
    }
}

#[test]
fn a_translated_address_that_changes_cuts_no_flow() {
    for seed in 0..8 {
        let plant = |world: &mut World| {
            friendly(world, 1);
            for second in 2..12 {
                let at = Duration::from_secs(second);
                world.queue.after(at, Event::Fault(Fault::Rebind(1)));
            }
        };
        run(seed, plant).unwrap_or_else(|why| panic!("{why}"));
    }
}

#[test]
fn whoever_reads_nothing_holds_back_who_speaks() {
    for seed in 0..2 {
        let plant = |world: &mut World| {
            friendly(world, 1);
            let mut applications = Manner::plain(&mut world.rng);
            applications.says = SAYS_MAX;
            applications.burst = 64 * 1024;
            applications.pause = Duration::ZERO;
            let mut endpoints = applications.clone();
            endpoints.silent = true;
            endpoints.leaves = Some(Duration::from_secs(9));
            world.manners = Some((applications, endpoints));
        };
        let summary = run(seed, plant).unwrap_or_else(|why| panic!("{why}"));
        let window = u64::from(STREAM_WINDOW);
        assert!(summary.under_way > window, "{summary:?}");
        assert!(summary.under_way <= window + 2 * 1024 * 1024, "{summary:?}");
    }
}

#[test]
fn a_path_that_becomes_narrower_in_the_middle_of_bulk_stops_nothing_for_long() {
    for seed in 0..4 {
        let plant = |world: &mut World| {
            friendly(world, 1);
            world.storm_until(Duration::from_secs(5));
            let mut bulk = Manner::plain(&mut world.rng);
            (bulk.says, bulk.burst, bulk.gulp) = (SAYS_MAX / 4, 64 * 1024, 64 * 1024);
            bulk.pause = Duration::ZERO;
            world.manners = Some((bulk.clone(), bulk));
            world
                .queue
                .after(Duration::from_secs(2), Event::Begin(0, false));
            let wide = Path {
                delay: Duration::from_millis(25),
                rate: Some(1_000_000),
                queue: Duration::from_millis(20),
                mtu: 1_472,
                ..Path::good(&mut world.rng)
            };
            let narrow = Path { mtu: 1_228, ..wide };
            for (at, path) in [(1, wide), (3, narrow)] {
                let fault = Fault::Path(1, Box::new(path));
                world
                    .queue
                    .after(Duration::from_secs(at), Event::Fault(fault));
            }
        };
        let summary = run(seed, plant).unwrap_or_else(|why| panic!("{why}"));
        assert!(summary.silence <= Duration::from_secs(1), "{summary:?}");
    }
}

#[test]
fn a_backend_that_swaps_loses_or_doubles_is_found_out() {
    for defect in [Defect::Swapped, Defect::Lost, Defect::Twice] {
        let found = (0..20).find_map(|seed| {
            let plant = |world: &mut World| {
                world.friendly = true;
                world.tcp.defect_in = Some((10, defect));
            };
            run(seed, plant).err()
        });
        let why = found.unwrap_or_else(|| panic!("nobody noticed: {defect:?}"));
        let truncated = defect != Defect::Swapped && why.contains("truncated: ");
        assert!(truncated || why.contains("corrupt: "), "{why}");
    }
}
