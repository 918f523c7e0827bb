//! Keeps keys out of core files: a process that holds some leaves none behind, unless it was asked
//! to.

use rustix::process::{Resource, Rlimit, setrlimit};
use tracing::warn;

/// The switch of processes that hold keys.
#[derive(clap::Args, Clone, Default, Debug)]
pub struct DumpArgs {
    /// Let a crash leave a core file; it holds keys
    #[arg(long)]
    core_dumps: bool,
}

impl DumpArgs {
    /// Settles it. Called before the first key is read.
    pub(super) fn settle(&self) {
        if self.core_dumps {
            warn!("a crash may leave a core file with keys in it (--core-dumps)");
        } else if let Err(error) = forbid() {
            warn!(%error, "core files cannot be forbidden: one would hold keys");
        }
    }

    /// The same as arguments, for a child process.
    pub(super) fn arguments(&self) -> Vec<String> {
        if self.core_dumps {
            vec!["--core-dumps".into()]
        } else {
            Vec::new()
        }
    }
}

/// Both are needed: a limit of zero does not hold where the kernel hands dumps to a program, and
/// not being dumpable is Linux's alone.
fn forbid() -> rustix::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}
