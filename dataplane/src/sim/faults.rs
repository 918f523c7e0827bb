//! What breaks, when, and for how long: machines, paths, endpoints, and what control says. All of
//! it by chance, and all of it mended in the end.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::machine::{Kind, Site};
use super::net::Path;
use super::peer::{Manner, endpoint};
use super::world::{Event, World, listener};

/// Something breaks, or is mended. Machines, and hybrid connections, by their number.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// A process ends at once.
    Kill(usize),
    /// A process is started, if none runs.
    Start(usize),
    /// A process is stopped and goes on after this time.
    Freeze(usize, Duration),
    /// A process drains, with this grace time.
    Drain(usize, Duration),
    /// A path is another one.
    Path(usize, Box<Path>),
    /// Nothing comes through a path, or everything again.
    Hole(usize, bool),
    /// Nothing comes through the path of one worker of a machine.
    HoleOf(usize, u8),
    /// A translated address changes.
    Rebind(usize),
    /// An endpoint listens or does not.
    Endpoint(usize, bool),
    /// An endpoint's address answers nothing, or answers again.
    Deaf(usize, bool),
    /// A definition is there or not.
    Define(usize, bool),
    /// The data of a hybrid connection is used up, or not.
    Quota(usize, bool),
    /// The key that agents use is another one.
    Rotate(usize),
    /// A machine is told the keys of now.
    Tell(usize),
    /// Control says again what it said.
    Again,
}

/// Plans the faults of a world, before `until`.
pub(super) fn plan(world: &mut World, until: Duration) {
    for _ in 0..world.rng.random_range(1..=8) {
        let at = until.mul_f64(world.rng.random());
        let machines = world.machines.len();
        let machine = world.rng.random_range(0..machines);
        let dialler = world.rng.random_range(1..machines);
        let hyco = world.rng.random_range(0..world.scene.definitions.len());
        let lasts = Duration::from_millis(world.rng.random_range(10..8_000));
        let mut then = |wait: Duration, fault| world.queue.after(at + wait, Event::Fault(fault));
        match world.rng.random_range(0..14) {
            0 | 1 => {
                then(Duration::ZERO, Fault::Kill(machine));
                then(lasts / 3, Fault::Start(machine));
            }
            2 => {
                let grace = lasts / 4;
                then(Duration::ZERO, Fault::Drain(machine, grace));
                then(grace + lasts / 2, Fault::Start(machine));
            }
            3 => {
                let lasts = lasts * world.rng.random_range(1..3_u32);
                then(Duration::ZERO, Fault::Freeze(machine, lasts));
            }
            4..=6 => {
                let path = bad(world.net.paths[&dialler].clone(), &mut world.rng);
                let good = world.net.paths[&dialler].clone();
                let mut then = |wait: Duration, path| {
                    let fault = Fault::Path(dialler, Box::new(path));
                    world.queue.after(at + wait, Event::Fault(fault));
                };
                then(Duration::ZERO, path);
                then(lasts, good);
            }
            7 => {
                let lasts = lasts * world.rng.random_range(1..4_u32);
                then(Duration::ZERO, Fault::Hole(dialler, true));
                then(lasts, Fault::Hole(dialler, false));
            }
            8 => then(Duration::ZERO, Fault::Rebind(dialler)),
            9 => {
                then(Duration::ZERO, Fault::Endpoint(hyco, false));
                then(lasts, Fault::Endpoint(hyco, true));
            }
            10 => {
                then(Duration::ZERO, Fault::Deaf(hyco, true));
                then(lasts, Fault::Deaf(hyco, false));
            }
            11 => {
                then(Duration::ZERO, Fault::Define(hyco, false));
                then(lasts, Fault::Define(hyco, true));
            }
            12 => {
                then(Duration::ZERO, Fault::Quota(hyco, true));
                then(lasts / 2, Fault::Again);
                then(lasts, Fault::Quota(hyco, false));
            }
            _ => {
                then(Duration::ZERO, Fault::Rotate(hyco));
                for machine in 1..machines {
                    let wait = lasts.mul_f64(world.rng.random());
                    world
                        .queue
                        .after(at + wait, Event::Fault(Fault::Tell(machine)));
                }
            }
        }
    }
}

/// A worse path: by loss up to a fifth, by order, copies, flipped bits, a narrow way, delay.
fn bad(mut path: Path, rng: &mut StdRng) -> Path {
    let lost = [0, 1_000, 10_000, 50_000, 200_000];
    path.lost = lost[rng.random_range(0..lost.len())];
    if rng.random() {
        path.late = rng.random_range(0..300_000);
    }
    if rng.random() {
        path.twice = rng.random_range(0..100_000);
    }
    if rng.random() {
        path.flipped = rng.random_range(0..10_000);
    }
    if rng.random_ratio(1, 3) {
        path.rate = Some(rng.random_range(50_000..5_000_000));
    }
    if rng.random_ratio(1, 3) {
        path.mtu = rng.random_range(1200..=1472);
    }
    path.jitter = Duration::from_micros(rng.random_range(1..20_000));
    path.delay = Duration::from_micros(rng.random_range(100..150_000));
    path
}

/// A fault happens.
pub(super) fn strike(world: &mut World, fault: Fault) {
    world.faults += 1;
    world.note(format_args!("fault: {fault:?}"));
    match fault {
        Fault::Kill(machine) => world.kill(machine),
        Fault::Start(machine) => world.start(machine),
        Fault::Freeze(machine, lasts) => {
            let until = world.queue.now() + lasts;
            world.machines[machine].asleep = Some(until);
        }
        Fault::Drain(machine, grace) => drain(world, machine, grace),
        Fault::Path(machine, path) => {
            let dead = world.net.paths.get(&machine).is_some_and(|path| path.dead);
            world.net.paths.insert(machine, Path { dead, ..*path });
        }
        Fault::Hole(machine, dead) => {
            if let Some(path) = world.net.paths.get_mut(&machine) {
                path.dead = dead;
            }
        }
        Fault::HoleOf(machine, worker) => {
            world.net.holes.insert((machine, worker));
        }
        Fault::Rebind(machine) => world.net.rebind(machine),
        Fault::Endpoint(hyco, up) => {
            world.tcp.unlisten(endpoint(hyco), listener(hyco));
            if up {
                world.tcp.listen(endpoint(hyco), listener(hyco));
            }
        }
        Fault::Deaf(hyco, deaf) => world.tcp.set_deaf(endpoint(hyco), deaf),
        Fault::Define(hyco, defined) => {
            world.scene.definitions[hyco].defined = defined;
            control_says(world);
        }
        Fault::Quota(hyco, used_up) => {
            world.scene.definitions[hyco].over_quota = used_up;
            control_says(world);
        }
        Fault::Rotate(hyco) => {
            world.scene.rotate(hyco, &mut world.rng);
            control_says(world);
        }
        Fault::Tell(machine) => tell(world, machine),
        Fault::Again => control_says(world),
    }
}

fn drain(world: &mut World, machine: usize, grace: Duration) {
    let until = world.queue.now() + grace;
    let machine = &mut world.machines[machine];
    match &machine.site {
        Some(Site::Relay(site)) => site.drain(until),
        Some(Site::Agent(site)) => site.drain(until),
        Some(Site::Sender(site)) => site.drain(until),
        None => return,
    }
    machine.draining = true;
}

/// A snapshot for the relay. One that drains takes none.
fn control_says(world: &mut World) {
    let (now, relay) = (world.queue.now(), &mut world.machines[0]);
    if let (Some(Site::Relay(site)), false) = (&mut relay.site, relay.draining) {
        site.apply(world.scene.snapshot(), now);
    }
}

/// The keys of now, for who dials.
fn tell(world: &mut World, number: usize) {
    let id = u8::try_from(number).expect("few machines");
    match &mut world.machines[number].site {
        Some(Site::Agent(site)) => site.apply(world.scene.agent(id)),
        Some(Site::Sender(site)) => site.apply(world.scene.sender(id)),
        Some(Site::Relay(_)) | None => {}
    }
}

/// Mends everything.
pub(super) fn mend(world: &mut World) {
    world.net.holes.clear();
    for hyco in 0..world.scene.definitions.len() {
        world.scene.definitions[hyco].defined = true;
        world.scene.definitions[hyco].over_quota = false;
        world.tcp.set_deaf(endpoint(hyco), false);
        world.tcp.unlisten(endpoint(hyco), listener(hyco));
        world.tcp.listen(endpoint(hyco), listener(hyco));
    }
    for number in 0..world.machines.len() {
        if world.machines[number].draining {
            world.kill(number);
        }
        world.machines[number].asleep = None;
        if world.machines[number].kind != Kind::Relay {
            let good = Path::good(&mut world.rng);
            world.net.paths.insert(number, good);
        }
        if world.machines[number].is_up() {
            tell(world, number);
        } else {
            world.start(number);
        }
        world.go_on(number);
    }
    control_says(world);
}

/// How a peer behaves among faults: one in three is no friendly one.
pub(super) fn manner(mut plain: Manner, application: bool, rng: &mut StdRng) -> Manner {
    match rng.random_range(0..15) {
        0 | 1 => plain.resets_at = Some(rng.random_range(0..plain.says * 2)),
        2 => plain.leaves = Some(Duration::from_millis(rng.random_range(1..10_000))),
        3 if !application => {
            plain.silent = true;
            plain.leaves = Some(Duration::from_millis(rng.random_range(100..15_000)));
        }
        4 | 5 => {
            plain.gulp = 1 << rng.random_range(13..16_u32);
            plain.rest = Duration::from_millis(rng.random_range(5..40));
        }
        6 if rng.random_ratio(1, 6) => {
            plain.says = rng.random_range(2_500_000..5_000_000);
            plain.burst = 1 << 16;
            plain.pause = Duration::ZERO;
        }
        _ => {}
    }
    plain
}
