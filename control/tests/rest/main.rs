//! The REST API by itself: who may do what, what is answered, and what is left on the disk.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod changes;
mod document;
mod door;
#[path = "../store/failing.rs"]
mod failing;
mod network;
#[path = "../running/mod.rs"]
mod running;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use underpass::files::namespace::Namespace;
use underpass::files::{Directory, keys};
use underpass::publish::Live;
use underpass::rest::{Remote, Rest, router};
use underpass::store::Store;
use underpass::usage::Meter;
use underpass_proto::KeyPair;
use underpass_proto::sas::{self, SasRule};

/// What the clock says.
const NOW: u64 = 1_795_392_000;

/// The Host of requests.
const HOST: &str = "127.0.0.1:8480";

const PAYROLL: &str = "/v1/hybridconnections/payroll-sql";

/// An API on a fresh directory.
struct Api {
    _folder: tempfile::TempDir,
    directory: Directory,
    router: Router,
    time: Arc<AtomicU64>,
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Api {
    fn new() -> Self {
        Self::with("", Store::new)
    }

    fn with(namespace: &str, store: impl FnOnce(Directory) -> Store) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        std::fs::write(directory.namespace(), namespace).unwrap();
        directory.prepare().unwrap();
        keys::make_manage(&directory, &mut rand::rng()).unwrap();
        let time = Arc::new(AtomicU64::new(NOW));
        let clock: underpass::clock::Clock = {
            let time = time.clone();
            Arc::new(move || time.load(Ordering::SeqCst))
        };
        let meter = Meter::open(&directory, clock.clone());
        let namespace = Namespace::parse("namespace.toml", namespace, "cloud-7").unwrap();
        let live = Arc::new(Live::alone(namespace, meter));
        let rest = Rest::new(store(directory.clone()), live, clock);
        Self {
            _folder: folder,
            directory,
            router: router(&rest),
            time,
        }
    }

    fn manage(&self) -> KeyPair {
        keys::load_manage(&self.directory).unwrap()
    }

    /// A token of the manage key, for everything.
    fn token(&self) -> String {
        sas::make(
            &format!("http://{HOST}/"),
            SasRule::Manage,
            &self.manage().primary,
            NOW + 60,
        )
        .to_string()
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", &[]).await
    }

    /// With a valid token.
    async fn ask(&self, method: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        let token = self.token();
        let mut all = vec![
            ("host", HOST),
            ("authorization", &token),
            ("content-type", "application/json"),
        ];
        all.retain(|(name, _)| !headers.iter().any(|(other, _)| name == other));
        all.extend_from_slice(headers);
        self.send(method, path, body, &all).await
    }

    /// With these headers alone. An empty one is left out.
    async fn send(&self, method: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body.to_owned())).unwrap();
        let remote = Remote::Network {
            peer: "127.0.0.1:5".parse().unwrap(),
            local: HOST.parse().unwrap(),
        };
        request.extensions_mut().insert(remote);
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(text.to_vec()).unwrap(),
        }
    }

    async fn create(&self, name: &str) -> Answer {
        let answer = self
            .ask(
                "PUT",
                &format!("/v1/hybridconnections/{name}"),
                r#"{"host": "sql01", "port": 1433}"#,
                &[],
            )
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.root().join(path)
    }
}

impl Answer {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// A problem document of this status and code, with a next step.
    fn is_problem(&self, status: u16, code: &str) -> serde_json::Value {
        assert_eq!(
            (self.status.as_u16(), self.header("content-type")),
            (status, "application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(
            (problem["status"].as_u64(), problem["code"].as_str()),
            (Some(status.into()), Some(code)),
            "{problem}"
        );
        assert_eq!(problem["type"], format!("urn:underpass:{code}"));
        assert!(problem["detail"].as_str().unwrap().len() > 10, "{problem}");
        problem
    }
}
