//! One process of a kind per directory: a lock that the kernel gives up with the process, however
//! that ends.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::disk;

/// How long a lock is tried for: a process that was just killed lets go of its files a little
/// later.
const WAIT: Duration = Duration::from_secs(1);

/// Between two tries.
const RETRY: Duration = Duration::from_millis(5);

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("another process holds it")]
    Held,
    /// The file could not be opened or locked.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes the lock at `path`, making the file. Waits a second for a process that is about to be
    /// gone.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take(path: &Path) -> Result<Self, LockError> {
        Self::take_within(path, WAIT)
    }

    /// The same, waiting for as long as is said.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take_within(path: &Path, wait: Duration) -> Result<Self, LockError> {
        // Not truncated: the file is another's until the lock is had.
        let mut file = disk::open_own(path, OFlags::WRONLY)?;
        hold(&file, wait)?;
        // For a person who looks who has it. A full disk does not take it, and the lock holds all
        // the same.
        let _ = file.set_len(0);
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self { _file: file })
    }

    /// Takes the lock of a folder itself: for one who reads a file in it, and then replaces that.
    /// Leaves nothing behind.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn folder(path: &Path) -> Result<Self, LockError> {
        Self::folder_within(path, WAIT)
    }

    /// The same, waiting for as long as is said.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn folder_within(path: &Path, wait: Duration) -> Result<Self, LockError> {
        let file = File::open(path)?;
        hold(&file, wait)?;
        Ok(Self { _file: file })
    }
}

fn hold(file: &File, wait: Duration) -> Result<(), LockError> {
    let give_up = Instant::now() + wait;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) if Instant::now() >= give_up => {
                return Err(LockError::Held);
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(RETRY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_told_and_a_freed_lock_can_be_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path).unwrap();
        assert!(matches!(Lock::take(&path), Err(LockError::Held)));
        drop(first);
        Lock::take(&path).unwrap();
    }
}
