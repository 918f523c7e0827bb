//! A hybrid connection as a request asks for it: what its fields may be, and the definition that it
//! stands for.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use underpass_proto::snapshot::HycoLimits;
use underpass_proto::{Endpoint, HycoName};
use utoipa::ToSchema;

use super::body::malformed;
use super::patterns;
use super::problem::{Kind, Problem};
use crate::files::definition::{Definition, LIMIT_MAX, Probe};
use crate::files::typed::{Binding, Network, ServiceHost, ServiceHostFault};
use crate::store::Code;

/// Networks of one binding: more is a firewall's job.
pub(super) const NETWORKS_MAX: usize = 1_000;

/// A hybrid connection as it should be. What is left out gets its default.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "Wanted")]
pub struct Wanted {
    /// Host of the service, as it is reached from the agent.
    #[schema(schema_with = patterns::host)]
    pub host: String,
    /// TCP port of the service.
    #[serde(deserialize_with = "whole::number")]
    #[schema(minimum = 1, maximum = 65535, example = 1433)]
    pub port: u32,
    /// Where applications connect on the relay's machine; needs `allow_from` where that is not
    /// loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = patterns::binding)]
    pub bind: Option<String>,
    /// Networks that may connect to the binding.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = patterns::networks)]
    pub allow_from: Vec<String>,
    /// Whether the endpoint is dialled to learn its health: `auto` (the default) as little as is
    /// needed, `on` each minute without end, `off` never. Of older clients, `true` is `auto` and
    /// `false` is `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = patterns::probe)]
    pub probe: Option<Probe>,
    /// Listeners at once, most.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "whole::perhaps"
    )]
    #[schema(minimum = 1, maximum = 10_000_000)]
    pub listeners_max: Option<u32>,
    /// Live flows at once, most.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "whole::perhaps"
    )]
    #[schema(minimum = 1, maximum = 10_000_000)]
    pub flows_max: Option<u32>,
}

impl Wanted {
    /// As a definition.
    pub(super) fn definition(&self, name: HycoName) -> Result<Definition, Problem> {
        let wrong = |field: &str, why: &dyn std::fmt::Display| malformed(format!("{field}: {why}"));
        if self.allow_from.len() > NETWORKS_MAX {
            return Err(wrong(
                "allow_from",
                &format!("it has more than {NETWORKS_MAX} networks"),
            ));
        }
        let networks: Result<Vec<_>, _> = self
            .allow_from
            .iter()
            .map(|network| network.parse::<Network>().map(|network| network.0))
            .collect();
        let default = HycoLimits::default();
        let limit = |field, limit: Option<u32>, default| match limit.unwrap_or(default) {
            limit if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
            _ => Err(wrong(
                field,
                &format!("a number from 1 to {LIMIT_MAX} is needed"),
            )),
        };
        let port = u16::try_from(self.port)
            .ok()
            .and_then(NonZeroU16::new)
            .ok_or(());
        Ok(Definition {
            name,
            endpoint: Endpoint {
                host: match self.host.parse::<ServiceHost>() {
                    Ok(host) => host.0,
                    // A right text, and still no host that can be had.
                    Err(fault @ ServiceHostFault::NeverDialled(_)) => {
                        let what = vec![format!("host: {fault}")];
                        return Err(Problem::of(Kind::Refused(Code::Invalid), what, None));
                    }
                    Err(fault) => return Err(wrong("host", &fault)),
                },
                port: port.map_err(|()| wrong("port", &"a number from 1 to 65535 is needed"))?,
            },
            bind: match &self.bind {
                Some(bind) => match bind.parse::<Binding>() {
                    Ok(binding) => Some(binding.0),
                    Err(fault) => return Err(wrong("bind", &fault)),
                },
                None => None,
            },
            allow_from: networks.map_err(|error| wrong("allow_from", &error))?,
            limits: HycoLimits {
                listeners_max: limit("listeners_max", self.listeners_max, default.listeners_max)?,
                flows_max: limit("flows_max", self.flows_max, default.flows_max)?,
                // Of the file alone: a change by REST leaves them there.
                ..default
            },
            probe: self.probe.unwrap_or_default(),
            bind_line: 0,
        })
    }

    /// What a definition would be asked for by.
    #[must_use]
    pub fn of(definition: &Definition) -> Self {
        Self {
            host: definition.endpoint.host.to_string(),
            port: definition.endpoint.port.get().into(),
            bind: definition.bind.map(|bind| bind.to_string()),
            allow_from: definition
                .allow_from
                .iter()
                .map(ToString::to_string)
                .collect(),
            probe: Some(definition.probe).filter(|probe| *probe != Probe::default()),
            listeners_max: Some(definition.limits.listeners_max),
            flows_max: Some(definition.limits.flows_max),
        }
    }
}

/// Whole numbers as JSON Schema has them: `1433.0` is one. What does not fit is the largest, and
/// refused with the field's name.
mod whole {
    use serde::{Deserialize, Deserializer};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a whole number is needed")]
    enum Number {
        Whole(u64),
        Real(f64),
    }

    impl Number {
        fn value(&self) -> Option<u32> {
            match self {
                Self::Whole(number) => Some(u32::try_from(*number).unwrap_or(u32::MAX)),
                // A cast of a float ends at the bounds of the type.
                Self::Real(number) if number.fract() == 0.0 && *number >= 0.0 => {
                    Some(*number as u32)
                }
                Self::Real(_) => None,
            }
        }
    }

    pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let number = Number::deserialize(deserializer)?.value();
        number.ok_or_else(|| serde::de::Error::custom("a whole number is needed"))
    }

    pub(super) fn perhaps<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u32>, D::Error> {
        let number = Option::<Number>::deserialize(deserializer)?;
        let value = |number: Number| {
            number
                .value()
                .ok_or_else(|| serde::de::Error::custom("a whole number is needed"))
        };
        number.map(value).transpose()
    }
}
