//! nginx, with a small answer and a big file.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;
use underpass_loadtest::pattern::Pattern;

use super::{program, text, wait_until_it_listens};
use crate::process::{Process, free_tcp_address};

/// What `/small` is.
pub const SMALL: &str = "It works, through here too.\n";

/// A running server.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
    folder: TempDir,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Nginx {
    /// Starts a server whose `/small` is [`SMALL`].
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-nginx-")?;
        let address = free_tcp_address();
        fs::create_dir(folder.path().join("root"))?;
        let configuration = folder.path().join("nginx.conf");
        fs::write(
            &configuration,
            configuration_for(text(folder.path())?, address),
        )?;
        let mut command = Command::new(program("nginx", "nginx")?);
        command
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&configuration)
            .args(["-e", "stderr"]);
        let mut process = Process::start("nginx", &mut command)?;
        wait_until_it_listens(&mut process, address)?;
        Ok(Self {
            _process: process,
            folder,
            address,
        })
    }

    /// Makes a file `/big` of `len` bytes that does not repeat, and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn make_big(&self, len: u64) -> Result<PathBuf> {
        let path = self.folder.path().join("root/big");
        write_pattern(&path, len)?;
        Ok(path)
    }
}

/// Writes a file of bytes that do not repeat.
///
/// # Errors
/// When it cannot be written.
pub fn write_pattern(path: &std::path::Path, len: u64) -> Result<()> {
    let pattern = Pattern::new(len);
    let mut file = BufWriter::new(File::create(path)?);
    let mut chunk = vec![0; 1 << 20];
    let mut position = 0;
    while position < len {
        let part = &mut chunk[..usize::try_from(len - position)
            .unwrap_or(1 << 20)
            .min(1 << 20)];
        pattern.fill(position, part);
        file.write_all(part)?;
        position += part.len() as u64;
    }
    Ok(file.flush()?)
}

/// One process, no files outside of the folder, connections kept for as long as a client likes.
/// `/small` is answered from memory in one write, as an application answers: from a file it would
/// be two of them, head and page, and four more system calls of the server, which have nothing to
/// do with a tunnel.
fn configuration_for(folder: &str, address: SocketAddr) -> String {
    let small = SMALL.escape_default();
    format!(
        "daemon off;
master_process off;
pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    server {{
        listen {address} backlog=4096;
        root {folder}/root;
        location = /small {{ default_type text/plain; return 200 \"{small}\"; }}
    }}
}}
"
    )
}
