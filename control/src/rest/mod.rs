//! The REST API: what Azure's users manage by, on loopback and on `run/api.sock`. Everything it
//! changes, [`crate::store`] does.
//!
//! A request passes the door (Host and Origin, then a SAS token of a manage key) before anything of
//! it is read. Errors are problem documents (RFC 9457). Connections, bodies, waits and failed
//! tokens are bounded.

mod audit;
mod body;
mod client;
mod door;
mod failures;
mod hycos;
mod keys;
pub mod model;
mod namespace;
mod patterns;
mod places;
mod problem;
mod serve;
mod tls;
mod wanted;
mod written;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use tracing::error;
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{OpenApi, RefOr, Response as Documented, Schema};
use utoipa::{Modify, OpenApi as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::clock::Clock;
use crate::files::Directory;
use crate::publish::Live;
use crate::store::{Refusal, Store};
use failures::Failures;
use problem::Kind;

pub use audit::{Actor, note};
pub use client::{Client, ClientError};
pub use door::Remote;
pub use problem::Problem;
pub(crate) use serve::{check, serve};
pub use wanted::Wanted;

/// The largest body of a request, bytes: a definition with a thousand networks.
const BODY_MAX: usize = 64 * 1024;

/// From a request's head to its answer. A probe takes the longest.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

const _: () = assert!(crate::publish::PROBE_DEADLINE.as_millis() < ANSWER_WITHIN.as_millis());

/// What all requests share.
pub struct Rest {
    pub(crate) store: Store,
    pub(crate) live: Arc<Live>,
    clock: Clock,
    failures: Failures,
}

/// Handlers' state.
pub type Shared = Arc<Rest>;

impl Rest {
    /// An API over a store and what is known of the relay.
    #[must_use]
    pub fn new(store: Store, live: Arc<Live>, clock: Clock) -> Shared {
        Arc::new(Self {
            store,
            live,
            clock,
            failures: Failures::default(),
        })
    }

    fn directory(&self) -> &Directory {
        self.store.directory()
    }
}

/// The document's head.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Underpass",
        description = "Manages hybrid connections. Every request but the probes carries a SAS token of a manage key (`keys/_manage.toml`, rule name `manage`) in `Authorization`."
    ),
    components(schemas(problem::Document)),
    modifiers(&Everywhere),
    security(("sas" = []))
)]
struct Document;

/// What holds of every operation.
struct Everywhere;

impl Modify for Everywhere {
    fn modify(&self, document: &mut OpenApi) {
        let about = "SharedAccessSignature sr=…&sig=…&se=…&skn=manage";
        let token = ApiKey::Header(ApiKeyValue::with_description("Authorization", about));
        if let Some(components) = &mut document.components {
            components.add_security_scheme("sas", SecurityScheme::ApiKey(token));
        }
    }
}

/// All routes, behind the door; every answer within its time. Connections bring a [`Remote`].
pub fn router(rest: &Shared) -> Router {
    let (guarded, mut document) = guarded().split_for_parts();
    let (open, open_document) = open().split_for_parts();
    document.merge(open_document);
    complete(&mut document);
    let document = Arc::new(document);
    let guarded = guarded.route_layer(middleware::from_fn_with_state(
        rest.clone(),
        door::authorise,
    ));
    let told = axum::routing::get(move || async move { Json(document.as_ref().clone()) });
    guarded
        .merge(open)
        .route("/openapi.json", told)
        .fallback(nowhere)
        .method_not_allowed_fallback(not_that_way)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(
            rest.clone(),
            door::check_host,
        ))
        .layer(middleware::from_fn(in_time))
        .with_state(rest.clone())
}

fn guarded() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(hycos::list))
        .routes(routes!(hycos::get, hycos::put, hycos::delete))
        .routes(routes!(hycos::probe))
        .routes(routes!(keys::list))
        .routes(routes!(keys::regenerate))
        .routes(routes!(namespace::get))
        .routes(routes!(namespace::status))
}

fn open() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(namespace::healthz))
        .routes(routes!(namespace::readyz))
}

/// Every operation may end in a problem, and a header that may be left out is a text where it is
/// there.
fn complete(document: &mut OpenApi) {
    let schema = utoipa::openapi::Ref::from_schema_name("Problem");
    let content = utoipa::openapi::ContentBuilder::new()
        .schema(Some(RefOr::Ref(schema)))
        .build();
    let problem = Documented::builder()
        .description("What is wrong, with a stable `code` and the next step")
        .content(problem::MEDIA_TYPE, content)
        .build();
    for path in document.paths.paths.values_mut() {
        let operations = [
            &mut path.get,
            &mut path.put,
            &mut path.post,
            &mut path.delete,
        ];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            responses.insert("default".into(), RefOr::T(problem.clone()));
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter
                    && let Some(RefOr::T(Schema::Object(text))) = &mut parameter.schema
                {
                    text.schema_type = SchemaType::new(Type::String);
                }
            }
        }
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(
            Kind::Timeout,
            format!("no answer in {ANSWER_WITHIN:?}"),
            "try again; the log of control may say more",
        )
        .into_response(),
    }
}

async fn nowhere(request: Request) -> Problem {
    let path = request.uri().path();
    let shown = crate::files::wording::echo(path);
    Problem::new(
        Kind::NotFound,
        format!("there is nothing at {shown}"),
        "/openapi.json lists all there is",
    )
}

async fn not_that_way(request: Request) -> Problem {
    let method = crate::files::wording::echo(request.method().as_str());
    Problem::new(
        Kind::MethodNotAllowed,
        format!("the method {method} is not served here"),
        "the header Allow lists those that are",
    )
}

/// Runs what waits for a disk where nothing else waits for it.
async fn blocking<T: Send + 'static>(
    rest: &Shared,
    work: impl FnOnce(&Rest) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let rest = rest.clone();
    tokio::task::spawn_blocking(move || work(&rest))
        .await
        .unwrap_or_else(|error| {
            error!(%error, "a request failed");
            Err(Problem::new(
                Kind::Internal,
                "this request failed".into(),
                "the log of control says more",
            ))
        })
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::of(Kind::Refused(refusal.code), refusal.errors, refusal.hint)
    }
}

/// Axum's own way to hand the state to handlers.
type Api = State<Shared>;
