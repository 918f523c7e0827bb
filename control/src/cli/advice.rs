//! What a failure to reach an endpoint means for people, and what to do. Knows codes, and nothing
//! that happened.

use underpass_proto::FlowCode;

/// Nobody listens.
pub(super) const NO_LISTENER: &str = "start an agent beside the endpoint: `underpass agent run --connection-string-file FILE`; `underpass agent run --check` there says what is in its way";

/// The words for the stable name of a code; the name itself where it is of a later version.
pub(super) fn words(name: &str) -> String {
    code(name).map_or_else(|| name.to_owned(), |code| code.to_string())
}

/// What to do about it.
pub(super) fn of(name: &str) -> Option<&'static str> {
    Some(match code(name)? {
        FlowCode::EndpointRefused => {
            "nothing accepts connections at that host and port: start the service, or mend the definition's port"
        }
        FlowCode::EndpointTimedOut => {
            "the host is down, or a firewall between agent and endpoint drops the connection: try from the agent's machine, with `nc -vz HOST PORT`"
        }
        FlowCode::EndpointUnreachable => {
            "the agent's machine has no way to that address: look at its routes and its firewall"
        }
        FlowCode::NameNotFound => {
            "the agent's machine cannot resolve the name: mend its DNS or its /etc/hosts, or mend the definition's host"
        }
        FlowCode::NameServerSilent => {
            "the agent's machine gets no answer from its name servers: try `getent ahosts HOST` there, and mend its DNS (/etc/resolv.conf)"
        }
        FlowCode::NoSourcePort => {
            "each connection to one address and port takes a source port of the agent's machine: widen `net.ipv4.ip_local_port_range` there, give the endpoint's name or another agent more addresses, or let applications keep their connections instead of opening new ones"
        }
        FlowCode::NotAllowed => {
            "the agent may not dial that: run `underpass agent allow HOST:PORT --config agent.toml` on its machine"
        }
        FlowCode::Loop => {
            "the definition's host and port are a binding of this relay, or of a sender beside the agent: name the service itself there"
        }
        FlowCode::Draining => {
            "the agent is on its way out: start it again, or wait for the next one"
        }
        FlowCode::TooManyFlows | FlowCode::Overloaded => {
            "the agent is at a limit: try later, or start another agent"
        }
        FlowCode::NoListener => NO_LISTENER,
        FlowCode::OverQuota => {
            "the data of this month is used up: raise the edition or its limit in namespace.toml"
        }
        _ => return None,
    })
}

fn code(name: &str) -> Option<FlowCode> {
    FlowCode::ALL.into_iter().find(|code| code.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_miss_an_endpoint_has_a_next_step() {
        for name in [
            "refused",
            "timed_out",
            "unreachable",
            "name_not_found",
            "name_server_silent",
            "no_source_port",
            "not_allowed",
            "loop",
            "no_listener",
        ] {
            assert!(of(name).is_some(), "{name}");
            assert_ne!(words(name), name);
        }
        assert_eq!(
            (of("of_tomorrow"), words("of_tomorrow")),
            (None, "of_tomorrow".into())
        );
    }
}
