//! Rows about beginnings and clean ends.

use super::Fault;
use super::stage::{Speaker, Stage};

/// A reply, and an upload, larger than any buffer on the way that is sized for a packet.
const REPLY: u64 = 1 << 20;

/// A request.
const REQUEST: u64 = 10_000;

pub(super) fn server_speaks_first(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (mut endpoint, mut application) = stage.open()?.endpoint_first();
    endpoint.line.send(&endpoint.says, 0..100)?;
    application.line.receive(&endpoint.says, 0..100)?;
    application.line.send(&application.says, 0..REQUEST)?;
    endpoint.line.receive(&application.says, 0..REQUEST)?;
    endpoint.line.finish()?;
    application.line.receive_end()?;
    application.line.finish()?;
    endpoint.line.receive_end()
}

pub(super) fn half_close_by_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    half_close(application, endpoint)
}

pub(super) fn half_close_by_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    half_close(endpoint, application)
}

/// `first` says its part and finishes; only when `second` has seen that end does it begin.
fn half_close(mut first: Speaker, mut second: Speaker) -> Result<(), Fault> {
    first.line.send(&first.says, 0..REQUEST)?;
    first.line.finish()?;
    second.line.receive(&first.says, 0..REQUEST)?;
    second.line.receive_end()?;
    let says = second.says;
    std::thread::scope(|scope| {
        let replying = scope.spawn(move || {
            second.line.send(&second.says, 0..REPLY)?;
            second.line.finish()?;
            Ok(second)
        });
        first.line.receive(&says, 0..REPLY)?;
        first.line.receive_end()?;
        replying.join().expect("a speaker does not panic").map(drop)
    })
}

pub(super) fn application_closes_at_once(stage: &mut Stage<'_>) -> Result<(), Fault> {
    stage.connect()?.close();
    let mut endpoint = stage.accept()?;
    endpoint.receive_end()
}

pub(super) fn endpoint_closes_at_once(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, mut application) = stage.open()?.endpoint_first();
    endpoint.line.close();
    application.line.receive_end()
}

pub(super) fn application_closes_while_sent_to(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    closes_while_sent_to(application, endpoint)
}

pub(super) fn endpoint_closes_while_sent_to(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    closes_while_sent_to(endpoint, application)
}

/// `leaver` closes with nothing unread, which is a clean end; `stayer` learns from writing on that
/// nobody reads any more.
fn closes_while_sent_to(mut leaver: Speaker, mut stayer: Speaker) -> Result<(), Fault> {
    stayer.line.send(&stayer.says, 0..REQUEST)?;
    leaver.line.receive(&stayer.says, 0..REQUEST)?;
    leaver.line.close();
    stayer.line.receive_end()?;
    stayer.line.send_until_reset(&stayer.says, REQUEST)
}

pub(super) fn application_closes_with_unread(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    closes_with_unread(application, endpoint)
}

pub(super) fn endpoint_closes_with_unread(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    closes_with_unread(endpoint, application)
}

fn closes_with_unread(mut leaver: Speaker, mut stayer: Speaker) -> Result<(), Fault> {
    stayer.line.send(&stayer.says, 0..REQUEST)?;
    leaver.line.wait_for_unread()?;
    leaver.line.close();
    stayer.line.receive_reset(&leaver.says, 0).map(drop)
}
