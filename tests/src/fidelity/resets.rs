//! Rows about resets, by either side at several moments. Whatever came before a reset must be true,
//! and it must never look like a clean end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::Fault;
use super::stage::{Speaker, Stage};
use crate::conversation::{End, gravest};

/// How much gets through before the reset in mid-stream.
const BEFORE: u64 = 1 << 20;

/// One step of a sender that looks whether it should reset.
const STEP: u64 = 16 * 1024;

pub(super) fn at_once_by_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    stage.connect()?.reset();
    // A tunnel may learn of the reset before it dials; what it did dial must be reset too.
    let nothing = stage.pattern();
    for mut endpoint in stage.settle()? {
        if let (got, End::Finished) = endpoint.receive_all(&nothing, 0)? {
            return Err(Fault::CleanEnd(format!("endpoint: after {got} bytes")));
        }
    }
    Ok(())
}

pub(super) fn at_once_by_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, mut application) = stage.open()?.endpoint_first();
    endpoint.line.reset();
    application.line.receive_reset(&endpoint.says, 0).map(drop)
}

pub(super) fn at_rest_by_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    at_rest(application, endpoint)
}

pub(super) fn at_rest_by_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    at_rest(endpoint, application)
}

fn at_rest(mut resetter: Speaker, mut other: Speaker) -> Result<(), Fault> {
    resetter.line.send(&resetter.says, 0..1)?;
    other.line.receive(&resetter.says, 0..1)?;
    other.line.send(&other.says, 0..1)?;
    resetter.line.receive(&other.says, 0..1)?;
    resetter.line.reset();
    other.line.receive_reset(&resetter.says, 1).map(drop)
}

pub(super) fn sending_by_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    sending(application, endpoint)
}

pub(super) fn sending_by_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    sending(endpoint, application)
}

/// `resetter` writes without pause and resets in the middle of it.
fn sending(mut resetter: Speaker, mut other: Speaker) -> Result<(), Fault> {
    let (stop, says) = (AtomicBool::new(false), resetter.says);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut position = 0;
            while !stop.load(Ordering::Relaxed) {
                resetter
                    .line
                    .send(&resetter.says, position..position + STEP)?;
                position += STEP;
            }
            resetter.line.reset();
            Ok(())
        });
        let received = other.line.receive(&says, 0..BEFORE);
        stop.store(true, Ordering::Relaxed);
        let ended = received.and_then(|()| other.line.receive_reset(&says, BEFORE));
        // Closed before the sender is joined: it must not be left writing to nobody.
        drop(other);
        gravest([
            ended.map(drop),
            sender.join().expect("a sender does not panic"),
        ])
    })
}

pub(super) fn receiving_by_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    receiving(application, endpoint)
}

pub(super) fn receiving_by_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    receiving(endpoint, application)
}

/// `resetter` resets while the other writes without pause.
fn receiving(mut resetter: Speaker, mut other: Speaker) -> Result<(), Fault> {
    let says = other.says;
    thread::scope(|scope| {
        let sender = scope.spawn(move || other.line.send_until_reset(&other.says, 0));
        let received = resetter.line.receive(&says, 0..BEFORE);
        resetter.line.reset();
        gravest([received, sender.join().expect("a sender does not panic")])
    })
}

pub(super) fn after_own_finish_by_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    after_own_finish(application, endpoint)
}

pub(super) fn after_own_finish_by_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    after_own_finish(endpoint, application)
}

/// `resetter` finishes, then resets while the other thinks about its reply.
fn after_own_finish(mut resetter: Speaker, mut other: Speaker) -> Result<(), Fault> {
    resetter.line.send(&resetter.says, 0..STEP)?;
    resetter.line.finish()?;
    other.line.receive(&resetter.says, 0..STEP)?;
    other.line.receive_end()?;
    resetter.line.reset();
    other.line.wait_for_failure()
}

pub(super) fn after_others_finish_by_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    after_others_finish(application, endpoint)
}

pub(super) fn after_others_finish_by_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    after_others_finish(endpoint, application)
}

/// The other has finished and waits for a reply; part of it comes, then a reset.
fn after_others_finish(mut resetter: Speaker, mut other: Speaker) -> Result<(), Fault> {
    other.line.finish()?;
    resetter.line.receive_end()?;
    resetter.line.send(&resetter.says, 0..STEP)?;
    other.line.receive(&resetter.says, 0..STEP)?;
    resetter.line.reset();
    other.line.receive_reset(&resetter.says, STEP).map(drop)
}
