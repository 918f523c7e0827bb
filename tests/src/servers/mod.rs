//! Real servers of the system's packages, each in a temporary directory, on a free port of
//! loopback, and ended with the test.

pub mod mariadb;
pub mod nginx;
pub mod postgres;
pub mod redis;
pub mod ssh;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::deadline::{MOMENT, wait_for};
use crate::process::Process;

/// Folders that hold servers and are not always in the path of a user.
const MORE_FOLDERS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// Finds a program.
///
/// # Errors
/// When it is not installed; the message names the package (Debian's name).
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MORE_FOLDERS.iter().map(PathBuf::from));
    find(name, folders).with_context(|| {
        format!(
            "{name} is not installed: `apt-get install {package}`, or run tests/run.sh, which does"
        )
    })
}

fn find(name: &str, folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Waits until something accepts at `address`.
fn wait_until_it_listens(process: &mut Process, address: SocketAddr) -> Result<()> {
    wait_for(&format!("a listener at {address}"), MOMENT, || {
        TcpStream::connect(address).ok()
    })
    .with_context(|| process.log_end())
    .map(drop)
}

/// A path as text, for configuration files.
fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
