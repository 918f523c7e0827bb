//! OpenSSH: a server of its own beside the clients, and `ssh -R` from the far side, with the cipher
//! that is fastest where there is AES in hardware.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use underpass_tests::process::{Process, free_tcp_address};
use underpass_tests::servers::ssh::Sshd;

use super::{Open, Tunnel, wait_until_bound};

/// The cipher of both directions.
const CIPHER: &str = "aes128-gcm@openssh.com";

pub(super) fn open(tunnel: &Tunnel<'_>) -> Result<Open> {
    let listen = SocketAddr::from((tunnel.site.relay_ip(), free_tcp_address().port()));
    let sshd = Sshd::start_by(listen, |program| tunnel.site.near(program))?;
    let bound = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_address().port()));
    let mut client = sshd.client_by("ssh", listen, |program| tunnel.site.far(program))?;
    client.args(["-c", CIPHER, "-N", "-o", "ExitOnForwardFailure=yes", "-R"]);
    client.arg(format!("{bound}:{}", tunnel.server));
    client.arg(sshd.destination(listen));
    let mut client = Process::start("ssh", &mut client)?;
    let (sshd, folder) = sshd.into_parts();
    wait_until_bound(&mut client, &sshd, bound)?;
    Ok(Open::tunnel(bound, sshd, client).with_folder(folder))
}
