//! `underpass control`.

use tokio::sync::oneshot;

use super::{DirArgs, DumpArgs, Exit, Failure};
use crate::{publish, signals};

/// Options of `underpass control`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    dir: DirArgs,
    #[command(flatten)]
    dumps: DumpArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    args.dumps.settle();
    let (tell, stop) = oneshot::channel();
    let mut tell = Some(tell);
    // Nothing of control's needs draining: the relay goes on without it.
    let stop_once = move |_| {
        let _ = tell.take().map(|tell| tell.send(()));
    };
    signals::on_each(stop_once)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot take signals: {error}")))?;
    Ok(publish::run(&args.dir.directory(), stop)?)
}
