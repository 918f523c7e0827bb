//! Turns SIGTERM and SIGINT into calls. The first asks to drain, the second to stop; a third ends a process that does not obey.

use std::io;
use std::process::exit;
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use underpass_dataplane::drain;

/// Exit code of a process that had to be told three times.
const TOLD_THRICE: i32 = 1;

/// Calls `on` with 1 at the first signal, 2 at the second; at the third the process ends.
pub(crate) fn on_each(mut on: impl FnMut(u32) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for (nth, _) in (1..).zip(signals.forever()) {
                if nth >= 3 {
                    exit(TOLD_THRICE);
                }
                on(nth);
            }
        })?;
    Ok(())
}

/// Signals as the data plane understands them.
pub(crate) fn drain_requests() -> io::Result<drain::Requests> {
    drain_requests_and_word().map(|(requests, _)| requests)
}

/// The same, and a word at the first one, for what is done before the data plane runs.
pub(crate) fn drain_requests_and_word() -> io::Result<(drain::Requests, Receiver<()>)> {
    let (asker, requests) = drain::pair();
    let (tell, told) = bounded(1);
    on_each(move |nth| {
        let _ = tell.try_send(());
        asker.ask(if nth == 1 {
            drain::Request::Drain
        } else {
            drain::Request::Stop
        });
    })?;
    Ok((requests, told))
}
