//! Control's work: loads definitions and keys, numbers snapshots of them, and hands them to the
//! relay.
//!
//! [`Source`] is where a snapshot comes from: [`Folder`] today. The publisher numbers what it
//! gives, the feed serves it on `run/control.sock`. Control may end at any moment: the relay goes
//! on with what it has.

mod bindings;
pub(crate) mod cache;
mod dial;
mod feed;
mod folder;
mod limit;
mod live;
mod publisher;
mod resolve;
pub(crate) mod watch;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{info, warn};
use underpass_proto::Snapshot;

use crate::clock;
use crate::files::namespace::Namespace;
use crate::files::{Caller, Directory, Fault, Lock, LockError, SOCKET_PATH_MAX, Unmade, trust};
use crate::rest::{self, Rest};
use crate::store::Store;
use crate::usage::{self, Meter};

pub use dial::{DialError, probe, status};
pub(crate) use feed::is_ours;
pub use folder::Folder;
pub use live::{Live, PROBE_DEADLINE, ProbeError};

/// Where snapshots come from.
pub trait Source: Send {
    /// Reads everything anew. What is wrong keeps its own last good content.
    ///
    /// # Errors
    /// There is nothing whole yet, and why: only before the first success.
    fn load(&mut self) -> Result<Loaded, Vec<Fault>>;

    /// Waits until loading again may give something else; a bounded time, at most about a second.
    fn wait(&mut self);
}

/// What a source gave.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Everything; its generation is the publisher's to set.
    pub snapshot: Snapshot,
    /// What is wrong, in the order of files.
    pub faults: Vec<Fault>,
    /// What the snapshot's own fields of the namespace come from.
    pub namespace: Namespace,
}

/// Why control does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder or file cannot be made.
    #[error(transparent)]
    Unmade(#[from] Unmade),
    /// Another control runs on this directory.
    #[error("another control process runs on {}", .0.display())]
    Running(PathBuf),
    /// The lock failed otherwise.
    #[error("cannot lock {}: {}", path.display(), trust::reason(path, error))]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The files give nothing to start with.
    #[error("the configuration cannot be used")]
    Faults(Vec<Fault>),
    /// The socket's path does not fit a unix socket's address.
    #[error("the path {} is too long for a unix socket (more than {SOCKET_PATH_MAX} bytes)", .0.display())]
    SocketPath(PathBuf),
    /// The socket cannot be opened, or threads cannot be had.
    #[error("cannot listen on {}: {error}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Runs control on a directory until told to stop.
///
/// # Errors
/// See [`Error`]: all of them at the start. Once it runs, it goes on with the last good content of
/// everything.
pub fn run(directory: &Directory, stop: oneshot::Receiver<()>) -> Result<(), Error> {
    let socket = directory.control_socket();
    if socket.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
        return Err(Error::SocketPath(socket));
    }
    let untrusted = |fault| Error::Faults(vec![fault]);
    directory.check(Caller::Process).map_err(untrusted)?;
    directory.prepare()?;
    let _lock = lock(directory)?;
    directory.sweep();
    let store = Store::new(directory.clone());
    if let Err(refusal) = store.finish_deletions() {
        warn!("a deletion that was cut short cannot be finished: {refusal}");
    }
    let start = publisher::next_start(directory);
    let meter = Meter::open(directory, clock::system());
    let mut source = Folder::open(directory.clone(), Arc::clone(&meter));
    let first = source.load().map_err(Error::Faults)?;
    rest::check(directory, &first.namespace).map_err(|fault| Error::Faults(vec![fault]))?;
    info!(directory = %directory.root().display(), hybrid_connections = first.snapshot.hycos.len(), "control started");

    let unopened = |error| Error::Listen {
        path: socket.clone(),
        error,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(unopened)?;
    let listener = {
        let _inside = runtime.enter();
        listen(&socket).map_err(unopened)?
    };
    let published = publisher::start(source, first, start).map_err(unopened)?;
    let live = Arc::new(Live::new(published, Arc::clone(&meter)));
    let rest = Rest::new(store, Arc::clone(&live), clock::system());
    runtime.block_on(async {
        tokio::select! {
            () = feed::serve(listener, live) => {}
            () = rest::serve(rest) => {}
            () = usage::keep(Arc::clone(&meter)) => {}
            _ = stop => {}
        }
    });
    meter.close();
    let _ = std::fs::remove_file(directory.run().join("api.sock"));
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// Makes sure that no other control process works on this directory.
pub(crate) fn lock(directory: &Directory) -> Result<Lock, Error> {
    let path = directory.run().join("lock");
    Lock::take(&path).map_err(|error| match error {
        LockError::Held => Error::Running(directory.root().to_owned()),
        LockError::Io(error) => Error::Lock { path, error },
    })
}

/// Opens a socket of control's for its own user. Its lock is held, so one that is there is a dead
/// process's.
pub(crate) fn listen(socket: &Path) -> io::Result<tokio::net::UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
