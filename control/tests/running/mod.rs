//! A control process as a thread, and a relay that only talks to it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use underpass::clock;
use underpass::files::Directory;
use underpass::publish::{self, Error};
use underpass::rest::Client;
use underpass::rest::model::NamespaceTold;
use underpass_proto::feed::{self, DialRole};
use underpass_proto::limits::SNAPSHOT_MAX;
use underpass_proto::{FeedMessage, FeedReader, Snapshot};
use underpass_tests::deadline;

/// The longest that anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Control {
    pub(crate) directory: Directory,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), Error>>>,
}

impl Control {
    pub(crate) fn start(folder: &tempfile::TempDir) -> Self {
        let directory = Directory::new(folder.path());
        let (tell, stop) = oneshot::channel();
        let running = thread::spawn({
            let directory = directory.clone();
            move || publish::run(&directory, stop)
        });
        let control = Self {
            directory,
            stop: Some(tell),
            running: Some(running),
        };
        wait_for("control to answer", || {
            Client::find(&control.directory, clock::system())
                .ok()
                .flatten()
        });
        control
    }

    pub(crate) fn client(&self) -> Client {
        Client::find(&self.directory, clock::system())
            .unwrap()
            .expect("control runs")
    }

    pub(crate) fn namespace(&self) -> NamespaceTold {
        self.client().get("/v1/namespace").unwrap()
    }

    pub(crate) fn relay(&self) -> Relay {
        relay(&self.directory)
    }
}

/// Dials control as a relay does.
pub(crate) fn relay(directory: &Directory) -> Relay {
    let stream = UnixStream::connect(directory.control_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut relay = Relay {
        stream,
        reader: FeedReader::new(SNAPSHOT_MAX),
    };
    relay.send(&FeedMessage::Dial {
        role: DialRole::Relay,
        process_id: std::process::id(),
    });
    relay
}

impl Drop for Control {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        self.stop.take().unwrap().send(()).unwrap();
        self.running.take().unwrap().join().unwrap().unwrap();
    }
}

pub(crate) struct Relay {
    pub(crate) stream: UnixStream,
    reader: FeedReader,
}

impl Relay {
    pub(crate) fn send(&mut self, message: &FeedMessage) {
        assert!(self.try_send(message), "control closed the connection");
    }

    /// Whether it could be sent.
    pub(crate) fn try_send(&mut self, message: &FeedMessage) -> bool {
        let encoded = feed::encode(message).unwrap();
        self.stream.write_all(&encoded).is_ok()
    }

    pub(crate) fn next(&mut self) -> FeedMessage {
        self.next_if_any().expect("control closed the connection")
    }

    /// The next message, until control is gone.
    pub(crate) fn next_if_any(&mut self) -> Option<FeedMessage> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some(message) = self.reader.next().unwrap() {
                return Some(message);
            }
            let len = self.stream.read(&mut chunk).unwrap_or(0);
            if len == 0 {
                return None;
            }
            self.reader.push(&chunk[..len]);
        }
    }

    /// The next snapshot, which must be the next message.
    pub(crate) fn snapshot(&mut self) -> Snapshot {
        match self.next() {
            FeedMessage::Snapshot(snapshot) => *snapshot,
            other => panic!("not a snapshot: {other:?}"),
        }
    }

    /// The next snapshot of which this holds; those before are let go.
    pub(crate) fn snapshot_when(&mut self, holds: impl Fn(&Snapshot) -> bool) -> Snapshot {
        loop {
            let snapshot = self.snapshot();
            if holds(&snapshot) {
                return snapshot;
            }
        }
    }

    /// The next message that is it; others are let go.
    pub(crate) fn next_that<T>(&mut self, is_it: impl Fn(FeedMessage) -> Option<T>) -> T {
        loop {
            if let Some(it) = is_it(self.next()) {
                return it;
            }
        }
    }
}

/// A directory with a `namespace.toml` and definitions.
pub(crate) fn folder(namespace: &str, names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("connections")).unwrap();
    fs::write(folder.path().join("namespace.toml"), namespace).unwrap();
    for name in names {
        fs::write(
            folder.path().join(format!("connections/{name}.toml")),
            "host = \"sql01\"\nport = 1433\n",
        )
        .unwrap();
    }
    folder
}

pub(crate) fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    deadline::wait_for(what, PATIENCE, look).unwrap()
}
