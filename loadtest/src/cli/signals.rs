//! Signals that end a run.

use underpass_loadtest::scenario::Stop;

/// The first signal ends the run with its report, a second one ends the process.
pub(super) fn stop_on_signals(stop: Stop) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in &mut signals {
                if stop.is_stopped() {
                    std::process::exit(128 + signal);
                }
                stop.stop();
            }
        })?;
    Ok(())
}
