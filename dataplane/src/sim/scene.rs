//! What an installation is made of: hybrid connections with their keys, and what the relay, agents
//! and senders are told of them.

use std::sync::OnceLock;

use rand::RngExt;
use rand::rngs::StdRng;
use underpass_proto::snapshot::{HycoKeys, HycoLimits, RelayKeys, RelayLimits, Tls};
use underpass_proto::{
    AgentId, AllowList, ConnectionString, Generation, Host, HybridConnection, HycoName, Key,
    KeyPair, Pin, Rule, Secret, Secret32, Snapshot,
};

use super::net::RELAY;
use super::peer::{binding, endpoint};
use crate::{agent, sender};

/// The relay's TLS identity: always the same, so that handshakes have the same length.
struct Identity {
    certificate: Vec<u8>,
    key: Vec<u8>,
    pin: Pin,
}

fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        // PKCS#8 of an Ed25519 key (RFC 8410), whose secret is of no worth.
        let mut key = vec![
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        key.extend_from_slice(b"a simulation keeps no secret at ");
        let pair = rcgen::KeyPair::try_from(&key[..]).expect("an Ed25519 key");
        let params = rcgen::CertificateParams::new(["relay".to_owned()]).expect("a name");
        let certificate = params.self_signed(&pair).expect("a certificate");
        Identity {
            pin: Pin::of_spki(&rcgen::PublicKeyData::subject_public_key_info(&pair)),
            certificate: certificate.der().to_vec(),
            key,
        }
    })
}

/// One hybrid connection, as control knows it.
pub(super) struct Definition {
    pub(super) name: HycoName,
    pub(super) defined: bool,
    pub(super) over_quota: bool,
    listen: (Key, Key),
    send: Key,
    /// Counts the definitions, so that what moved is told.
    number: usize,
}

/// All that control knows.
pub(super) struct Scene {
    pub(super) definitions: Vec<Definition>,
    relay_keys: [[u8; 32]; 3],
    generation: u64,
}

impl Scene {
    pub(super) fn new(hycos: usize, rng: &mut StdRng) -> Self {
        let definition = |number, rng: &mut StdRng| Definition {
            name: format!("hybrid-connection-{number}")
                .parse()
                .expect("a name"),
            defined: true,
            over_quota: false,
            listen: (
                Key::from_random(rng.random()),
                Key::from_random(rng.random()),
            ),
            send: Key::from_random(rng.random()),
            number,
        };
        Self {
            definitions: (0..hycos).map(|number| definition(number, rng)).collect(),
            relay_keys: rng.random(),
            generation: 0,
        }
    }

    /// Regenerates the key that agents use.
    pub(super) fn rotate(&mut self, hyco: usize, rng: &mut StdRng) {
        let definition = &mut self.definitions[hyco];
        definition.listen.0 = Key::from_random(rng.random());
    }

    /// What the relay is told.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        self.generation += 1;
        let secret = |at: usize| Secret32::new(self.relay_keys[at]);
        let identity = identity();
        let defined = self
            .definitions
            .iter()
            .filter(|definition| definition.defined);
        Snapshot {
            generation: Generation {
                start: 1,
                number: self.generation,
            },
            namespace: "simulated".to_owned(),
            listen: RELAY,
            public_address: RELAY.to_string().parse().expect("an endpoint"),
            workers: None,
            tls: Tls {
                certificates: vec![identity.certificate.clone()],
                key: Secret::new(identity.key.clone()),
            },
            relay_keys: RelayKeys {
                reset: secret(0),
                token: secret(1),
                connection_id: secret(2),
            },
            limits: RelayLimits::default(),
            hycos: defined.map(Definition::hyco).collect(),
        }
    }

    /// What an agent is told: all hybrid connections, by the keys of now.
    pub(super) fn agent(&self, number: u8) -> agent::Config {
        let connect = |definition: &Definition| agent::Connect {
            string_file: None,
            string: definition.string(Rule::Listen),
            weight: 100,
            priority: 0,
            allow: AllowList::default(),
        };
        agent::Config {
            connects: self.definitions.iter().map(connect).collect(),
            allow: ["10.9.0.0/16:*".parse().expect("an entry")]
                .into_iter()
                .collect(),
            ca: Vec::new(),
            agent_id: AgentId([number; 16]),
        }
    }

    /// What a sender is told.
    pub(super) fn sender(&self, number: u8) -> sender::Config {
        let connect = |definition: &Definition| sender::Connect {
            string_file: None,
            string: definition.string(Rule::Send),
            bind: binding(definition.number, true),
        };
        sender::Config {
            connects: self.definitions.iter().map(connect).collect(),
            ca: Vec::new(),
            agent_id: AgentId([number; 16]),
        }
    }
}

impl Definition {
    fn hyco(&self) -> HybridConnection {
        let pair = |primary: &Key, secondary: Option<&Key>| KeyPair {
            primary: primary.clone(),
            secondary: secondary.cloned(),
        };
        HybridConnection {
            name: self.name.clone(),
            endpoint: endpoint(self.number)
                .to_string()
                .parse()
                .expect("an endpoint"),
            bind: Some(binding(self.number, false)),
            allow_from: Vec::new(),
            keys: HycoKeys {
                listen: Some(pair(&self.listen.0, Some(&self.listen.1))),
                send: Some(pair(&self.send, None)),
            },
            limits: HycoLimits::default(),
            probe: self.number.is_multiple_of(2),
            probe_always: false,
            over_quota: self.over_quota,
        }
    }

    fn string(&self, rule: Rule) -> ConnectionString {
        ConnectionString {
            relay_host: match RELAY.ip() {
                std::net::IpAddr::V4(ip) => Host::V4(ip),
                std::net::IpAddr::V6(ip) => Host::V6(ip),
            },
            relay_port: RELAY.port(),
            name: self.name.clone(),
            rule,
            key: match rule {
                Rule::Listen => self.listen.0.clone(),
                Rule::Send => self.send.clone(),
            },
            pins: vec![identity().pin],
            target: None,
        }
    }
}
