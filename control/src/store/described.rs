//! One hybrid connection as JSON: the same from the command line and from the REST API. Stable.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Stored;
use crate::files::Fault;
use crate::files::definition::Probe;

/// What a definition says, or what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Described {
    /// Its name.
    #[schema(example = "payroll-sql")]
    pub name: String,
    /// `host:port`, resolved and dialled by the agent.
    #[schema(example = "sql01.corp:1433")]
    pub endpoint: Option<String>,
    /// The host alone.
    pub host: Option<String>,
    /// The port alone.
    pub port: Option<u16>,
    /// Where applications connect on the relay's machine.
    #[schema(value_type = Option<String>)]
    pub bind: Option<SocketAddr>,
    /// Networks that may connect to the binding; empty: that machine alone.
    pub allow_from: Vec<String>,
    /// Listeners at once.
    pub listeners_max: Option<u32>,
    /// Live flows at once.
    pub flows_max: Option<u32>,
    /// Whether the endpoint is dialled to learn its health: `auto` as little as is needed, `on`
    /// each minute without end, `off` never.
    #[schema(value_type = Option<String>, example = "auto")]
    pub probe: Option<Probe>,
    /// What is wrong with the file; the last good content stays in force.
    pub faults: Vec<String>,
}

impl Described {
    /// Of a file.
    #[must_use]
    pub fn of(stored: &Stored) -> Self {
        let good = stored.definition.as_ref().ok();
        let faults = stored.definition.as_ref().err();
        Self {
            name: good.map_or_else(|| stored.name.clone(), |good| good.name.to_string()),
            endpoint: good.map(|good| good.endpoint.to_string()),
            host: good.map(|good| good.endpoint.host.to_string()),
            port: good.map(|good| good.endpoint.port.get()),
            bind: good.and_then(|good| good.bind),
            allow_from: good.map_or_else(Vec::new, |good| {
                good.allow_from.iter().map(ToString::to_string).collect()
            }),
            listeners_max: good.map(|good| good.limits.listeners_max),
            flows_max: good.map(|good| good.limits.flows_max),
            probe: good.map(|good| good.probe),
            faults: faults.map_or_else(Vec::new, |faults| {
                faults.iter().map(Fault::to_string).collect()
            }),
        }
    }
}
