//! `underpass relay`.

use underpass_dataplane::relay;

use super::{DataPlaneArgs, DirArgs, Exit, Failure, installation};
use crate::files::Caller;
use crate::signals;

/// Options of `underpass relay`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    dir: DirArgs,
    #[command(flatten)]
    data_plane: DataPlaneArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    args.data_plane.settle();
    let directory = args.dir.directory();
    directory.check(Caller::Process)?;
    let _lock = installation::lock(&directory, "relay")?;
    raise_file_limit();
    let requests = signals::drain_requests()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot take signals: {error}")))?;
    relay::run(
        directory.control_socket(),
        args.data_plane.settings(),
        requests,
    )
    .map_err(explain)
}

/// Every flow is a socket or two: the process takes all that the hard limit gives.
pub(super) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, the process works within what it has.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

fn explain(error: relay::Error) -> Failure {
    match &error {
        relay::Error::Io(_) => {
            Failure::configuration(error).hint("`--io auto` takes what this kernel permits")
        }
        relay::Error::Listen { address, .. } => {
            let port = address.port();
            let hint = format!(
                "`ss -ulpn 'sport = :{port}'` shows who has the port; another is chosen by `listen` in namespace.toml"
            );
            Failure::configuration(error).hint(hint)
        }
        relay::Error::Snapshot(_) => Failure::configuration(error),
        relay::Error::Worker(_) => Failure::new(Exit::Failed, error),
    }
}
