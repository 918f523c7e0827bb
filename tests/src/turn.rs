//! Taking turns: a test that fills both cores or measures time runs alone, all others side by side.
//! Holds across processes, so that any test runner will do.

use std::fs::File;
use std::io;

/// Held while a test runs. Others wait until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Turn(#[expect(dead_code, reason = "the lock ends when the file is closed")] File);

/// A turn beside others.
///
/// # Panics
/// When the lock file cannot be had.
pub fn shared() -> Turn {
    take(File::lock_shared)
}

/// A turn with nobody beside.
///
/// # Panics
/// When the lock file cannot be had.
pub fn alone() -> Turn {
    take(File::lock)
}

fn take(lock: impl FnOnce(&File) -> io::Result<()>) -> Turn {
    // One lock for all test executables of one target folder, which is where this one lies.
    let path = std::env::current_exe()
        .expect("a running test has an executable")
        .with_file_name("underpass-tests.lock");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    lock(&file).unwrap_or_else(|error| panic!("cannot lock {}: {error}", path.display()));
    Turn(file)
}
