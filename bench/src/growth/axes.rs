//! What is measured at one count of an axis. Each count has processes of its own.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use underpass_loadtest::stand::usage::open_files;
use underpass_tests::deadline::{MOMENT, pause, wait_for};

use super::cost::{idle, memory_at_rest, processor_time, processor_times};
use super::figure::{Figure, Kind, Part};
use super::load::{self, Cost, Resting};
use super::stand::Stand;
use super::{Figures, Settings};

/// Flows that move bulk for this long before the first look at memory, so that buffers that are
/// made once count for none of those that follow.
const WARMING: usize = 64;
const WARM: Duration = Duration::from_millis(500);

/// Flows over which the cost of a request is taken where flows are not what grows.
const FLOWS: usize = 100;

/// Listeners of one hybrid connection: the product's own limit.
const LISTENERS_EACH: usize = 25;

/// How often a binding is tried that is to come.
const TRY_EACH: Duration = Duration::from_millis(1);

/// A second, in the figures' smaller units.
const MILLI: f64 = 1e3;
const MICRO: f64 = 1e6;

/// So many flows, of one hybrid connection and one agent.
pub(super) fn flows(settings: &Settings, count: usize) -> Result<Figures> {
    let (calls, echo) = (load::serve_calls()?, load::serve_echo()?);
    let to = [calls.address(), echo.address()];
    let mut stand = Stand::new(settings, to.len(), |nth| to[nth])?;
    stand.start()?;
    stand.start_agent(&[0, 1])?;
    let mut figures = Figures::new();
    stand.tell(resting(&stand, settings, count, &mut figures))?;
    let ids = stand.data_plane_ids()?;
    let to = [stand.binding(0)];
    let requests = stand.tell(load::requests(&to, count, &ids, settings))?;
    put_requests(&mut figures, &requests);
    let bulk = stand.tell(load::bulk(&to, count, &ids, settings))?;
    put_each(&mut figures, Kind::ByteCpu, &bulk.cpu, bulk.bytes / 1e9);
    Ok(figures)
}

/// Opening, what flows take that rest, and their end.
fn resting(stand: &Stand, settings: &Settings, count: usize, figures: &mut Figures) -> Result<()> {
    let ids = stand.data_plane_ids()?;
    let to = stand.binding(1);
    let warm = Settings {
        length: WARM,
        ..settings.clone()
    };
    load::bulk(&[stand.binding(0)], WARMING, &ids, &warm)?;
    let _warm = Resting::open(to, WARMING)?;
    let memory_before = memory_at_rest(&ids)?;
    let files_before = [open_files(ids[0])?, open_files(ids[1])?];
    let cpu_before = processor_times(&ids)?;
    let open = Resting::open(to, count)?;
    let cpu = since(&cpu_before, &processor_times(&ids)?);
    put_each(figures, Kind::OpeningCpu, &cpu, count as f64 / MICRO);
    figures.insert(Kind::OpeningTime.of(Part::Whole), open.took.as_secs_f64());
    let memory = memory_at_rest(&ids)?;
    for (side, part) in [Part::Relay, Part::Agent].into_iter().enumerate() {
        let more = memory[side].saturating_sub(memory_before[side]);
        figures.insert(Kind::FlowMemory.of(part), more as f64 / count as f64);
    }
    let idle = idle(&ids, settings.length)?;
    put_idle(figures, &[Part::Relay, Part::Agent], &idle);
    let cpu_before = processor_times(&ids)?;
    drop(open);
    wait_for("the flows to end", MOMENT, || {
        let mut each = ids.iter().zip(files_before);
        each.all(|(&id, before)| open_files(id).is_ok_and(|files| files <= before))
            .then_some(())
    })?;
    let cpu = since(&cpu_before, &processor_times(&ids)?);
    put_each(figures, Kind::ClosingCpu, &cpu, count as f64 / MICRO);
    Ok(())
}

/// So many definitions; one agent, for the first of them.
pub(super) fn hycos(settings: &Settings, count: usize) -> Result<Figures> {
    let calls = load::serve_calls()?;
    let mut stand = Stand::new(settings, count, |_| calls.address())?;
    let start = Instant::now();
    stand.start()?;
    stand.start_agent(&[0])?;
    let mut figures = Figures::new();
    let ready = start.elapsed().as_secs_f64();
    figures.insert(Kind::Ready.of(Part::Whole), ready);
    let [relay, agent] = stand.data_plane_ids()?;
    let ids = [relay, agent, stand.control_id()?];
    let parts = [Part::Relay, Part::Agent, Part::Control];
    for (part, bytes) in parts.into_iter().zip(memory_at_rest(&ids)?) {
        let mebibytes = bytes as f64 / f64::from(1 << 20);
        figures.insert(Kind::Memory.of(part), mebibytes);
    }
    put_idle(&mut figures, &parts, &idle(&ids, settings.length)?);
    let to = [stand.binding(0)];
    let requests = stand.tell(load::requests(&to, FLOWS, &ids[..2], settings))?;
    put_requests(&mut figures, &requests);
    let change = stand.tell(change(&stand, count - 1, calls.address()))?;
    figures.insert(Kind::Change.of(Part::Whole), change.as_secs_f64() * MILLI);
    Ok(figures)
}

/// From the moment that a definition's file names another binding until one can connect there.
fn change(stand: &Stand, nth: usize, endpoint: SocketAddr) -> Result<Duration> {
    let to = stand.move_binding(nth, endpoint)?;
    let start = Instant::now();
    while TcpStream::connect(to).is_err() {
        ensure!(
            start.elapsed() < MOMENT,
            "the new binding {to} is not open after {MOMENT:?}"
        );
        pause(TRY_EACH);
    }
    Ok(start.elapsed())
}

/// So many agents in one process, spread over as few hybrid connections as the limit of listeners
/// permits.
pub(super) fn agents(settings: &Settings, count: usize) -> Result<Figures> {
    let calls = load::serve_calls()?;
    let hycos = count.div_ceil(LISTENERS_EACH);
    let mut stand = Stand::new(settings, hycos, |_| calls.address())?;
    stand.start()?;
    let mut figures = Figures::new();
    let before = memory_at_rest(&[stand.relay_id()?])?;
    stand.start_agents(count)?;
    // Only the relay's: many agents in one process take what no single one does.
    let relay = [stand.relay_id()?];
    let more = memory_at_rest(&relay)?[0].saturating_sub(before[0]);
    let each = more as f64 / count as f64;
    figures.insert(Kind::SessionMemory.of(Part::Relay), each);
    put_idle(
        &mut figures,
        &[Part::Relay],
        &idle(&relay, settings.length)?,
    );
    let to: Vec<SocketAddr> = (0..hycos).map(|nth| stand.binding(nth)).collect();
    let flows = FLOWS.max(count);
    let requests = stand.tell(load::requests(&to, flows, &relay, settings))?;
    put_requests(&mut figures, &requests);

    let start = Instant::now();
    stand.start_relay()?;
    stand.wait_for_registered(count)?;
    let back = start.elapsed().as_secs_f64();
    figures.insert(Kind::Reconnect.of(Part::Whole), back);
    let cpu = processor_time(stand.relay_id()?)?.as_secs_f64() * MILLI;
    figures.insert(Kind::ReconnectCpu.of(Part::Relay), cpu);
    Ok(figures)
}

fn since(before: &[Duration], after: &[Duration]) -> Vec<Duration> {
    let each = after.iter().zip(before);
    each.map(|(after, before)| after.saturating_sub(*before))
        .collect()
}

fn put_requests(figures: &mut Figures, cost: &Cost) {
    put_each(figures, Kind::RequestCpu, &cost.cpu, cost.calls / MICRO);
    let p99 = cost.p99.as_secs_f64() * MILLI;
    figures.insert(Kind::RequestP99.of(Part::Whole), p99);
}

/// The relay's processor time, and the agent's where it is known, for each unit.
fn put_each(figures: &mut Figures, kind: Kind, cpu: &[Duration], units: f64) {
    for (cpu, part) in cpu.iter().zip([Part::Relay, Part::Agent]) {
        figures.insert(kind.of(part), cpu.as_secs_f64() / units);
    }
}

fn put_idle(figures: &mut Figures, parts: &[Part], idle: &[f64]) {
    let each = parts.iter().zip(idle);
    figures.extend(
        each.map(|(&part, idle)| -> (Figure, f64) { (Kind::IdleCpu.of(part), idle * MILLI) }),
    );
}
