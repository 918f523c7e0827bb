//! Turns signals into calls. The first SIGTERM or SIGINT asks to drain, the second to stop; a third
//! ends a process that does not obey. SIGHUP ends nothing: files are read again at once, if
//! there are any.

use std::io;
use std::process::exit;
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::info;
use underpass_dataplane::drain;

use crate::publish::watch;

/// Exit code of a process that had to be told three times.
const TOLD_THRICE: i32 = 1;

/// Calls `on` with 1 at the first signal to end, 2 at the second; at the third the process ends.
/// SIGHUP makes it read its files again; the relay has none.
pub(crate) fn on_each(on: impl FnMut(u32) + Send + 'static) -> io::Result<()> {
    on_each_and_reload(on, || match watch::look_now() {
        0 => info!("SIGHUP: no files to reload"),
        _ => info!("SIGHUP: files are read again"),
    })
}

/// The same, with `reload` at each SIGHUP.
pub(crate) fn on_each_and_reload(
    mut on: impl FnMut(u32) + Send + 'static,
    mut reload: impl FnMut() + Send + 'static,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut nth = 0;
            for signal in signals.forever() {
                if signal == SIGHUP {
                    reload();
                    continue;
                }
                nth += 1;
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
