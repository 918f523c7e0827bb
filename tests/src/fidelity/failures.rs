//! Rows about things that fail: an endpoint that refuses, is silent or unknown, and processes that
//! die.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use underpass_loadtest::pattern::Pattern;

use super::stage::{Ends, Stage};
use super::{Fault, Part};
use crate::conversation::{Conversation, gravest};

/// How long the silent endpoint stays silent.
const SILENCE: Duration = Duration::from_secs(3);

/// What gets through before a process dies, bytes.
const BEFORE: u64 = 1 << 20;

/// One step of a writer that looks whether it should go on.
const STEP: u64 = 16 * 1024;

pub(super) fn endpoint_stays_silent(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (mut application, mut endpoint) = stage.open()?.application_first();
    application.line.send(&application.says, 0..1000)?;
    application.line.stays_silent(SILENCE)?;
    endpoint.line.receive(&application.says, 0..1000)?;
    endpoint.line.send(&endpoint.says, 0..1000)?;
    application.line.receive(&endpoint.says, 0..1000)?;
    application.line.close();
    endpoint.line.receive_end()
}

/// Once for an application that waits, once for one that has already written.
pub(super) fn endpoint_refuses(stage: &mut Stage<'_>) -> Result<(), Fault> {
    stage.refuse();
    let refused = is_refused(stage.connect(), 0).and_then(|()| is_refused(stage.connect(), STEP));
    stage.listen()?;
    refused
}

pub(super) fn endpoint_name_unknown(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let address = stage.unknown_name()?;
    for writes in [0, STEP] {
        is_refused(
            Conversation::connect(address, "application", stage.until()),
            writes,
        )?;
    }
    Ok(())
}

/// The connection is refused, or reset soon after a tunnel accepted it.
fn is_refused(connected: Result<Conversation, Fault>, writes: u64) -> Result<(), Fault> {
    let mut application = match connected {
        Ok(application) => application,
        Err(Fault::Reset(_)) => return Ok(()),
        Err(fault) => return Err(fault),
    };
    let nothing = Pattern::new(0);
    match application.send(&nothing, 0..writes) {
        Ok(()) => application.receive_reset(&nothing, 0).map(drop),
        Err(Fault::Reset(_)) => Ok(()),
        Err(fault) => Err(fault),
    }
}

pub(super) fn kill_control(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let mut live = stage.open()?;
    goes_on(&mut live, 0)?;
    stage.processes()?.kill(Part::Control).map_err(other)?;
    let without = goes_on(&mut live, 1).and_then(|()| goes_on(&mut stage.open()?, 0));
    stage.processes()?.restore(Part::Control).map_err(other)?;
    without?;
    stage.settle()?;
    goes_on(&mut live, 2)
}

/// A flow moves 1 MiB each way for the `time`th time.
fn goes_on(flow: &mut Ends, time: u64) -> Result<(), Fault> {
    for position in (time * BEFORE..(time + 1) * BEFORE).step_by(STEP as usize) {
        let positions = position..position + STEP;
        flow.application.send(&flow.up, positions.clone())?;
        flow.endpoint.receive(&flow.up, positions.clone())?;
        flow.endpoint.send(&flow.down, positions.clone())?;
        flow.application.receive(&flow.down, positions)?;
    }
    Ok(())
}

pub(super) fn kill_relay(stage: &mut Stage<'_>) -> Result<(), Fault> {
    kill(stage, Part::Relay)
}

pub(super) fn kill_agent(stage: &mut Stage<'_>) -> Result<(), Fault> {
    kill(stage, Part::Agent)
}

pub(super) fn kill_sender(stage: &mut Stage<'_>) -> Result<(), Fault> {
    kill(stage, Part::Sender)
}

/// Kills a process under a flow at rest, an upload and a download. No end of them may look clean;
/// the far ends may learn of it only when the process is back.
fn kill(stage: &mut Stage<'_>, part: Part) -> Result<(), Fault> {
    let processes = stage.processes()?;
    let (mut rest, upload, download) = (stage.open()?, stage.open()?, stage.open()?);
    let (started, ready) = mpsc::channel();
    thread::scope(|scope| {
        let mut ends = Vec::new();
        for (writer, reader, pattern) in [
            (upload.application, upload.endpoint, upload.up),
            (download.endpoint, download.application, download.down),
        ] {
            let started = started.clone();
            let (mut writer, mut reader) = (writer, reader);
            ends.push(scope.spawn(move || writer.send_until_reset(&pattern, 0)));
            ends.push(scope.spawn(move || {
                reader.receive(&pattern, 0..BEFORE)?;
                let _ = started.send(());
                reader.receive_reset(&pattern, BEFORE).map(drop)
            }));
        }
        drop(started);
        let under_way = ready.iter().take(2).count() == 2;
        let cut = goes_on(&mut rest, 0).and_then(|()| {
            processes.kill(part).map_err(other)?;
            processes.restore(part).map_err(other)?;
            rest.application.receive_reset(&rest.down, BEFORE)?;
            rest.endpoint.receive_reset(&rest.up, BEFORE).map(drop)
        });
        gravest(
            ends.into_iter()
                .map(|end| end.join().expect("an end does not panic"))
                .chain([cut]),
        )?;
        if under_way {
            Ok(())
        } else {
            Err(Fault::Other("the load was not under way".into()))
        }
    })
}

fn other(error: anyhow::Error) -> Fault {
    Fault::Other(format!("{error:#}"))
}
