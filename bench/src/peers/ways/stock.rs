//! The baseline: this program's own subcommands.

use std::process::Command;

use anyhow::{Result, bail};
use underpass_tests::deadline::MOMENT;
use underpass_tests::process::Process;

use super::{Open, Tunnel};
use crate::stock::relay::Event;

/// Opens it, with datagrams held at `mtu` or as large as the path carries.
pub(super) fn open(tunnel: &Tunnel<'_>, mtu: Option<u16>) -> Result<Open> {
    let with_settings = |mut command: Command, name: &str| {
        command.arg(name);
        command.args(["--threads", &tunnel.threads.to_string()]);
        if let Some(mtu) = mtu {
            command.args(["--mtu", &mtu.to_string()]);
        }
        command
    };
    let bench = &tunnel.settings.bench;
    let mut relay = with_settings(tunnel.site.near(bench), "stock-relay");
    relay.arg(format!("--listen={}:0", tunnel.site.relay_ip()));
    let mut relay = Process::start("stock relay", &mut relay)?;
    let bound = relay.wait_for_line("\"bound\"", MOMENT)?;
    let Event::Bound { udp, tcp } = serde_json::from_str(&bound)? else {
        bail!("the stock relay said {bound}");
    };
    let mut agent = with_settings(tunnel.site.far(bench), "stock-agent");
    agent.arg(format!("--connect={udp}"));
    agent.arg(format!("--endpoint={}", tunnel.server));
    let agent = Process::start("stock agent", &mut agent)?;
    relay.wait_for_line("\"session\"", MOMENT)?;
    Ok(Open::tunnel(tcp, relay, agent))
}
