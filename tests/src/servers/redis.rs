//! Redis, in memory only.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use super::{program, wait_until_it_listens};
use crate::process::{Process, free_tcp_address};

/// A running server.
#[derive(Debug)]
pub struct Redis {
    _process: Process,
    _folder: TempDir,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Redis {
    /// Starts a server that keeps nothing on disk.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-redis-")?;
        let address = free_tcp_address();
        let mut command = Command::new(program("redis-server", "redis-server")?);
        command
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &address.port().to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ])
            .arg(folder.path());
        let mut process = Process::start("redis", &mut command)?;
        wait_until_it_listens(&mut process, address)?;
        Ok(Self {
            _process: process,
            _folder: folder,
            address,
        })
    }
}

/// A client program that talks to `address`.
///
/// # Errors
/// When it is not installed.
pub fn client(name: &str, address: SocketAddr) -> Result<Command> {
    let mut command = Command::new(program(name, "redis-tools")?);
    command.args([
        "-h",
        &address.ip().to_string(),
        "-p",
        &address.port().to_string(),
    ]);
    Ok(command)
}
