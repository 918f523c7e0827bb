//! Where commands have their changes made: by the control process that runs on the directory, over
//! its REST API, or on the files themselves when none does. Both check the same and use the same
//! words.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use underpass_proto::key::Which;
use underpass_proto::{Host, HycoName, Rule};
use zeroize::Zeroizing;

use super::{DirArgs, Exit, Failure};
use crate::clock;
use crate::files::definition::{Definition, Probe};
use crate::files::{Caller, Directory};
use crate::output::note;
use crate::rest::model::{HybridConnection, HybridConnections, Keys, Regenerate};
use crate::rest::{Actor, Client, ClientError, Wanted, note};
use crate::store::{Code, Condition, Described, Refusal, Store};

/// A change is made on what was read; when somebody was quicker it is read again this often.
const TRIES: usize = 5;

/// One of the two.
pub(super) enum Desk {
    /// Nobody runs there.
    Files(Store),
    /// Control runs there.
    Api(Client),
}

/// What is to become different of a definition; what is `None` stays.
#[derive(Clone, Default, Debug)]
pub(super) struct Change {
    pub(super) host: Option<Host>,
    pub(super) port: Option<NonZeroU16>,
    pub(super) bind: Option<Option<SocketAddr>>,
    pub(super) allow_from: Option<Vec<IpNet>>,
    pub(super) probe: Option<Probe>,
    pub(super) listeners_max: Option<u32>,
    pub(super) flows_max: Option<u32>,
}

impl Desk {
    pub(super) fn open(dir: &DirArgs) -> Result<Self, Failure> {
        let directory = dir.directory();
        directory.check(Caller::Command)?;
        match Client::find(&directory, clock::system()) {
            Ok(Some(client)) => Ok(Self::Api(client)),
            Ok(None) => Ok(Self::Files(Store::new(directory))),
            Err(error) => Err(unreachable(&directory, &error)),
        }
    }

    pub(super) fn list(&self) -> Result<Vec<Described>, Failure> {
        match self {
            Self::Files(store) => Ok(store.list()?.iter().map(Described::of).collect()),
            Self::Api(client) => {
                let all: HybridConnections = client.get(ALL)?;
                Ok(all.value.into_iter().map(|one| one.described).collect())
            }
        }
    }

    /// A good one: what is wrong with a bad one is the failure.
    pub(super) fn find(&self, name: &HycoName) -> Result<Described, Failure> {
        match self {
            Self::Files(store) => {
                let stored = store.find(name)?;
                stored.good()?;
                Ok(Described::of(&stored))
            }
            Self::Api(client) => Ok(read(client, name)?.described),
        }
    }

    pub(super) fn create(&self, definition: &Definition) -> Result<Described, Failure> {
        match self {
            Self::Files(store) => {
                let (_, stored) = store.put(definition, &Condition::Absent)?;
                Ok(Described::of(&stored))
            }
            Self::Api(client) => {
                let made: HybridConnection = client.put(
                    &path(&definition.name),
                    &Wanted::of(definition),
                    ("if-none-match", "*"),
                )?;
                Ok(made.described)
            }
        }
    }

    pub(super) fn change(&self, name: &HycoName, change: &Change) -> Result<Described, Failure> {
        match self {
            Self::Files(store) => {
                let stored = store.change(name, |definition| change.apply(definition))?;
                Ok(Described::of(&stored))
            }
            Self::Api(client) => change_by(client, name, change),
        }
    }

    pub(super) fn delete(&self, name: &HycoName) -> Result<(), Failure> {
        match self {
            Self::Files(store) => Ok(store.delete(name, &Condition::Any)?),
            Self::Api(client) => Ok(client.delete(&path(name))?),
        }
    }

    pub(super) fn connection_string(
        &self,
        name: &HycoName,
        rule: Rule,
        which: Which,
    ) -> Result<Zeroizing<String>, Failure> {
        match self {
            Self::Files(store) => {
                store.find(name)?;
                match audit(store, "listKeys", name, rule, which) {
                    // Who can read the files could take the keys unseen: a disk that takes no line
                    // is no reason to fail.
                    Err(refusal) if refusal.code == Code::Storage => warn_unrecorded(&refusal),
                    audited => audited?,
                }
                Ok(store.connection_string(name, rule, which)?.emit())
            }
            Self::Api(client) => {
                let listed = client.post::<Keys>(&format!("{}/listKeys", path(name)));
                let keys = match listed {
                    // Control tells no keys that it cannot record; this process may read them.
                    Err(ClientError::Problem(problem)) if problem.code == STORAGE => {
                        warn_unrecorded(&problem.detail);
                        let store = Store::new(client.directory().clone());
                        return Ok(store.connection_string(name, rule, which)?.emit());
                    }
                    listed => listed?,
                };
                let string = keys.string(rule.into(), which.into());
                let string = string.ok_or_else(|| Refusal::no_key(name, rule, which))?;
                Ok(Zeroizing::new(string.to_owned()))
            }
        }
    }

    pub(super) fn regenerate(
        &self,
        name: &HycoName,
        rule: Rule,
        which: Which,
    ) -> Result<(), Failure> {
        match self {
            Self::Files(store) => {
                store.find(name)?;
                audit(store, "regenerateKey", name, rule, which)?;
                Ok(store.regenerate(name, rule, which)?)
            }
            Self::Api(client) => {
                let wanted = Regenerate {
                    rule: rule.into(),
                    key: which.into(),
                };
                Ok(client.order(&format!("{}/regenerateKey", path(name)), &wanted)?)
            }
        }
    }
}

/// The problem of a disk that takes nothing, as the API names it: [`Code::Storage`].
const STORAGE: &str = "storage";

const ASK_HINT: &str = "this command must run as the user that control runs as, or as root, and be of the same version";

/// All hybrid connections.
const ALL: &str = "/v1/hybridconnections";

fn path(name: &HycoName) -> String {
    format!("{ALL}/{name}")
}

fn read(client: &Client, name: &HycoName) -> Result<HybridConnection, Failure> {
    let found: HybridConnection = client.get(&path(name))?;
    if found.described.faults.is_empty() {
        return Ok(found);
    }
    let refusal = Refusal {
        code: Code::FaultyFile,
        errors: found.described.faults,
        hint: None,
    };
    Err(refusal.into())
}

/// A change that others make meanwhile is not lost: this one is made again on what they left.
fn change_by(client: &Client, name: &HycoName, change: &Change) -> Result<Described, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let found = read(client, name)?;
        let mut definition = found.definition().ok_or(ClientError::NoAnswer)?;
        change.apply(&mut definition);
        let put = client.put::<HybridConnection>(
            &path(name),
            &Wanted::of(&definition),
            ("if-match", &found.etag),
        );
        match put {
            Ok(changed) => return Ok(changed.described),
            Err(ClientError::Problem(problem)) if problem.code == "changed" && tries < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A person with access to the files could read the keys without a trace; this record is for those
/// who ask later which keys were read.
fn audit(
    store: &Store,
    action: &str,
    name: &HycoName,
    rule: Rule,
    which: Which,
) -> Result<(), Refusal> {
    let directory = store.directory();
    let uid = rustix::process::getuid().as_raw();
    let actor = Actor {
        rule: "files",
        remote: format!("command line, uid {uid}"),
    };
    let key = format!("{} {which}", rule.right());
    note(
        directory,
        &clock::system(),
        &actor,
        action,
        name,
        Some(&key),
    )
    .map_err(|error| Refusal::storage(&directory.run().join("audit.log"), &error))
}

fn warn_unrecorded(why: &dyn std::fmt::Display) {
    note!("warning: the reading of the keys is not recorded: {why}");
}

fn unreachable(directory: &Directory, error: &dyn std::fmt::Display) -> Failure {
    let socket = directory.run().join("api.sock");
    Failure::new(
        Exit::Unreachable,
        format!("cannot ask control at {}: {error}", socket.display()),
    )
    .hint(ASK_HINT)
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Problem(problem) => {
                let code = serde_json::from_value(problem.code.clone().into());
                let (errors, hint) = (problem.errors.clone(), problem.hint.clone());
                match code {
                    Ok(code) => Refusal { code, errors, hint }.into(),
                    Err(_) => Self {
                        exit: match problem.status {
                            401 | 403 => Exit::NotAuthorised,
                            _ => Exit::Failed,
                        },
                        errors,
                        hint,
                    },
                }
            }
            ClientError::Keys(faults) => faults.into(),
            ClientError::Io(_) | ClientError::NoAnswer => Self::new(
                Exit::Unreachable,
                format!("cannot ask control at run/api.sock: {error}"),
            )
            .hint(ASK_HINT),
        }
    }
}

impl Change {
    fn apply(&self, definition: &mut Definition) {
        if let Some(host) = &self.host {
            definition.endpoint.host = host.clone();
        }
        if let Some(port) = self.port {
            definition.endpoint.port = port;
        }
        if let Some(bind) = self.bind {
            definition.bind = bind;
            if bind.is_none() {
                definition.allow_from.clear(); // Says who may connect to it.
            }
        }
        if let Some(allow_from) = &self.allow_from {
            definition.allow_from.clone_from(allow_from);
        }
        definition.probe = self.probe.unwrap_or(definition.probe);
        let limits = &mut definition.limits;
        limits.listeners_max = self.listeners_max.unwrap_or(limits.listeners_max);
        limits.flows_max = self.flows_max.unwrap_or(limits.flows_max);
    }
}
