//! The directory of an installation: what stands where, how it is read, checked and written.
//!
//! Everything has a default but a definition's host and port; what is missing is made. A file that
//! is wrong is a [`Fault`] with its line and what to write instead. Nothing here decides what
//! happens with a faulty file: that is [`crate::publish`]'s.

pub mod agent;
pub mod allow;
pub mod control_section;
pub mod data_plane;
pub mod definition;
pub mod disk;
pub mod document;
mod edit;
mod fault;
pub mod hosts;
pub mod identity;
pub mod keys;
mod lock;
pub mod namespace;
pub mod pasted;
mod private;
pub mod quota;
pub mod sender;
pub mod strings;
pub mod tls;
pub mod trust;
pub mod typed;
pub mod wording;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use underpass_proto::HycoName;

pub use fault::Fault;
pub use lock::{Lock, LockError};
pub use trust::Caller;

/// The path limit of a unix socket's address, bytes (`sun_path` less its end).
pub const SOCKET_PATH_MAX: usize = 107;

/// A temporary file this old is nobody's any more: a write takes milliseconds.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(60);

/// The directory, as a set of paths. Touches nothing by itself.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// The directory at `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path that was given.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `namespace.toml`.
    #[must_use]
    pub fn namespace(&self) -> PathBuf {
        self.root.join("namespace.toml")
    }

    /// The folder of definitions.
    #[must_use]
    pub fn connections(&self) -> PathBuf {
        self.root.join("connections")
    }

    /// The folder of keys.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The folder of the relay's certificate and its key.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    /// The folder of what lives only as long as the processes.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The folder of the figures of data use.
    #[must_use]
    pub fn usage(&self) -> PathBuf {
        self.root.join("usage")
    }

    /// Control's socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run().join("control.sock")
    }

    /// The definition file of a new hybrid connection.
    #[must_use]
    pub fn definition(&self, name: &HycoName) -> PathBuf {
        self.connections().join(format!("{name}.toml"))
    }

    /// The key file of a new hybrid connection.
    #[must_use]
    pub fn key_file(&self, name: &HycoName) -> PathBuf {
        self.keys().join(format!("{name}.toml"))
    }

    /// A path as it is named to people: relative to the directory.
    #[must_use]
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root)
            .unwrap_or(path)
            .display()
            .to_string()
    }

    /// Refuses a directory that others than root and this process's user can change: they would
    /// decide what it does. Root acts for the directory's owner in a command.
    ///
    /// # Errors
    /// Which folder, why, and the command that mends it.
    pub fn check(&self, caller: Caller) -> Result<(), Fault> {
        trust::act_for_owner_of(&self.root, caller);
        for folder in self.folders() {
            trust::check_folder(&folder)
                .map_err(|error| unreadable(&folder.display().to_string(), &error))?;
        }
        Ok(())
    }

    /// All folders.
    fn folders(&self) -> [PathBuf; 6] {
        [
            self.root.clone(),
            self.connections(),
            self.keys(),
            self.tls(),
            self.run(),
            self.usage(),
        ]
    }

    /// Makes the folders and a `namespace.toml` that says what may be written there.
    /// What is there is left alone.
    ///
    /// # Errors
    /// The path that could not be made, and the kernel's reason.
    pub fn prepare(&self) -> Result<(), Unmade> {
        let secret_folders = [self.keys(), self.tls(), self.run()];
        let open_folders = [self.root.clone(), self.connections()];
        let made = open_folders
            .iter()
            .map(|path| (path, disk::FOLDER))
            .chain(secret_folders.iter().map(|path| (path, 0o700)));
        for (path, mode) in made {
            disk::folder(path, mode).map_err(|source| Unmade {
                path: path.clone(),
                source,
            })?;
        }
        // Nothing is written where all is there: a full or read-only disk is no reason to fail.
        if self.namespace().exists() {
            return Ok(());
        }
        match disk::create(
            &self.namespace(),
            namespace::TEMPLATE.as_bytes(),
            disk::OPEN,
        ) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Unmade {
                path: self.namespace(),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Removes what writers left behind that died in the middle, if it is old enough to be
    /// nobody's.
    pub fn sweep(&self) {
        for entry in self
            .folders()
            .iter()
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flatten()
            .flatten()
        {
            let old = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_BEHIND_AFTER));
            if old && entry.file_name().to_str().is_some_and(disk::is_temporary) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The files of a folder whose names end in `.toml`, hidden ones left out, sorted.
    /// A missing folder is an empty one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn toml_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let hidden = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden
                && path
                    .extension()
                    .is_some_and(|extension| extension == "toml")
            {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

/// A file or folder that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {}: {}", path.display(), trust::reason(path, source))]
pub struct Unmade {
    /// What.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// A fault for a file that could not be read at all.
#[must_use]
pub fn unreadable(file: &str, error: &io::Error) -> Fault {
    let what = match error.kind() {
        io::ErrorKind::InvalidData => trust::reason(Path::new(file), error),
        io::ErrorKind::NotFound => "is not there; check the path".to_owned(),
        io::ErrorKind::PermissionDenied => {
            format!("cannot be read: {error}; run `chown` or `chmod` so that this user can read it")
        }
        _ => format!("cannot be read: {error}"),
    };
    Fault::whole(file, what)
}
