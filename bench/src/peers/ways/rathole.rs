//! rathole 0.5.0: plain TCP, or each connection encrypted by its Noise transport.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;
use underpass_tests::deadline::MOMENT;
use underpass_tests::process::{Process, free_tcp_address, run_ok};

use super::{Open, Tunnel, wait_until_bound, write_private};
use crate::peers::tools;

/// What keeps others of this machine out; both files are readable by their owner only.
const TOKEN: &str = "underpass-bench";

/// The server's key pair of the Noise transport.
struct Keys {
    private: String,
    public: String,
}

pub(super) fn open(tunnel: &Tunnel<'_>, noise: bool) -> Result<Open> {
    let program = tools::rathole().map_err(|missing| anyhow::anyhow!("{missing}"))?;
    let keys = if noise {
        let told = run_ok(Command::new(&program).arg("--genkey"), MOMENT)?;
        Some(keys(&told).with_context(|| "rathole --genkey tells no keys")?)
    } else {
        None
    };
    let listen = SocketAddr::from((tunnel.site.relay_ip(), free_tcp_address().port()));
    let bound = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_address().port()));
    let folder = TempDir::with_prefix("underpass-rathole-")?;
    let start = |name: &str, mut command: Command, configuration: &str| {
        let file = folder.path().join(format!("{name}.toml"));
        write_private(&file, configuration)?;
        Process::start(name, command.arg(format!("--{name}")).arg(file))
    };
    let server = start(
        "server",
        tunnel.site.near(&program),
        &server(listen, bound, keys.as_ref()),
    )?;
    let mut client = start(
        "client",
        tunnel.site.far(&program),
        &client(listen, tunnel.server, keys.as_ref()),
    )?;
    wait_until_bound(&mut client, &server, bound)?;
    Ok(Open::tunnel(bound, server, client).with_folder(folder))
}

fn server(listen: SocketAddr, bound: SocketAddr, keys: Option<&Keys>) -> String {
    let mut text = format!("[server]\nbind_addr = \"{listen}\"\ndefault_token = \"{TOKEN}\"\n");
    if let Some(Keys { private, .. }) = keys {
        let _ = write!(
            text,
            "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{private}\"\n"
        );
    }
    text + &format!("[server.services.bench]\nbind_addr = \"{bound}\"\n")
}

fn client(relay: SocketAddr, endpoint: SocketAddr, keys: Option<&Keys>) -> String {
    let mut text = format!("[client]\nremote_addr = \"{relay}\"\ndefault_token = \"{TOKEN}\"\n");
    if let Some(Keys { public, .. }) = keys {
        let _ = write!(
            text,
            "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{public}\"\n"
        );
    }
    text + &format!("[client.services.bench]\nlocal_addr = \"{endpoint}\"\n")
}

/// What `--genkey` prints: each key in the line after its name.
fn keys(told: &str) -> Option<Keys> {
    let after = |name: &str| {
        let mut lines = told.lines().skip_while(|line| line.trim() != name);
        Some(lines.nth(1)?.trim().to_owned()).filter(|key| !key.is_empty())
    };
    Some(Keys {
        private: after("Private Key:")?,
        public: after("Public Key:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_lines_after_their_names() {
        let keys = keys("Private Key:\nAAA=\n\nPublic Key:\nBBB=\n").expect("understood");
        assert_eq!((&*keys.private, &*keys.public), ("AAA=", "BBB="));
        assert!(super::keys("Private Key:\n\nPublic Key:\n").is_none());
    }

    #[test]
    fn only_the_noise_transport_has_keys_and_the_server_alone_the_private_one() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7));
        let keys = Keys {
            private: "secret".into(),
            public: "open".into(),
        };
        assert!(!server(address, address, None).contains("transport"));
        let (server, client) = (
            server(address, address, Some(&keys)),
            client(address, address, Some(&keys)),
        );
        assert!(server.contains("local_private_key = \"secret\"") && !server.contains("open"));
        assert!(client.contains("remote_public_key = \"open\"") && !client.contains("secret"));
    }
}
