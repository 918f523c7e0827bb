//! The namespace and the process over REST: limits and use, the status, and whether it lives.

use axum::Json;
use axum::extract::State;
use underpass_proto::Status;

use super::model::{Alive, NamespaceTold};
use super::problem::{Kind, Problem};
use super::{Api, blocking};

/// Edition, limits and use
#[utoipa::path(
    get,
    path = "/v1/namespace",
    tag = "namespace",
    operation_id = "namespace",
    responses((status = 200, body = NamespaceTold, description = "The namespace"))
)]
pub(super) async fn get(State(rest): Api) -> Result<Json<NamespaceTold>, Problem> {
    let told = blocking(&rest, |rest| {
        let namespace = rest.live.namespace();
        let meter = rest.live.meter();
        Ok(NamespaceTold {
            name: namespace.name.clone(),
            public_address: namespace.public_address.to_string(),
            api_address: rest.live.api_address(),
            edition: namespace.quota.edition.to_string(),
            limits: (&namespace.quota).into(),
            hybrid_connections: rest.store.count()?,
            data_used_up: meter.is_used_up(&namespace.quota),
            usage: meter.sums().into_iter().map(Into::into).collect(),
        })
    });
    Ok(Json(told.await?))
}

/// What control and relay know just now
///
/// As `underpass status --json` prints it.
#[utoipa::path(
    get,
    path = "/v1/status",
    tag = "namespace",
    operation_id = "status",
    responses((status = 200, body = Object, description = "The status"))
)]
pub(super) async fn status(State(rest): Api) -> Json<Status> {
    Json(rest.live.status())
}

/// Whether control lives
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "probes",
    operation_id = "healthz",
    security(()),
    responses((status = 200, body = Alive, description = "Yes"))
)]
pub(super) async fn healthz() -> Json<Alive> {
    Json(Alive::ok())
}

/// Whether a relay works by the newest definitions, and is not overloaded
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "probes",
    operation_id = "readyz",
    security(()),
    responses((status = 200, body = Alive, description = "Yes"), (status = 503, description = "No, and why", body = super::problem::Document, content_type = "application/problem+json"))
)]
pub(super) async fn readyz(State(rest): Api) -> Result<Json<Alive>, Problem> {
    let overloaded = rest
        .live
        .report()
        .and_then(|report| report.overloaded.clone());
    if let Some(why) = overloaded {
        let hint = "`underpass status` shows what holds how much, and when it is over";
        return Err(Problem::new(
            Kind::NotReady,
            format!("overloaded: {why}"),
            hint,
        ));
    }
    if rest.live.is_ready() {
        return Ok(Json(Alive::ok()));
    }
    let hint = "`underpass status` tells whether one is connected, and what it thinks of them";
    Err(Problem::new(
        Kind::NotReady,
        "no relay works by the newest definitions".into(),
        hint,
    ))
}
