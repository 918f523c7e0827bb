//! Hybrid connections over REST: listed, made, changed, deleted, probed.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use underpass_proto::HycoName;
use underpass_proto::snapshot::HycoReport;

use super::body::{Body, Name, condition, tags};
use super::model::{HybridConnection, HybridConnections, HycoState, Probed};
use super::patterns::NamePath;
use super::problem::{Kind, Problem};
use super::wanted::Wanted;
use super::{Api, Rest, blocking};
use crate::publish::ProbeError;
use crate::store::{Condition, Described, Put, Stored};

/// List all
///
/// Good and bad, in the order of their files.
#[utoipa::path(
    get,
    path = "/v1/hybridconnections",
    tag = "hybrid connections",
    operation_id = "list",
    responses((status = 200, body = HybridConnections, description = "All of them"))
)]
pub(super) async fn list(State(rest): Api) -> Result<Json<HybridConnections>, Problem> {
    let all = blocking(&rest, |rest| {
        let stored = rest.store.list()?;
        let report = rest.live.report();
        let reports: HashMap<&HycoName, &HycoReport> = report
            .iter()
            .flat_map(|report| &report.hycos)
            .map(|hyco| (&hyco.name, hyco))
            .collect();
        let value = stored
            .iter()
            .map(|stored| told(rest, stored, |name| reports.get(name).copied()));
        Ok(HybridConnections {
            value: value.collect(),
        })
    });
    Ok(Json(all.await?))
}

/// Show one
///
/// As it is defined and as it is doing.
#[utoipa::path(
    get,
    path = "/v1/hybridconnections/{name}",
    tag = "hybrid connections",
    operation_id = "get",
    params(
        NamePath,
        ("If-None-Match" = Option<String>, Header, description = "The ETag that is known"),
    ),
    responses(
        (status = 200, body = HybridConnection, description = "This one", headers(("ETag" = String, description = "Names the content of its file"))),
        (status = 304, description = "It is what it was"),
    )
)]
pub(super) async fn get(
    State(rest): Api,
    Name(name): Name,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let stored = blocking(&rest, move |rest| Ok(rest.store.find(&name)?)).await?;
    let known = tags(&headers, &header::IF_NONE_MATCH);
    if known.is_some_and(|known| Condition::is_known(&known, stored.etag())) {
        return Ok((StatusCode::NOT_MODIFIED, etag(&stored)).into_response());
    }
    Ok(answer(&rest, StatusCode::OK, &stored))
}

/// Make one, or change it
///
/// What is left out gets its default. Keys are made with a new one. Comments in its file stay.
#[utoipa::path(
    put,
    path = "/v1/hybridconnections/{name}",
    tag = "hybrid connections",
    operation_id = "put",
    params(
        NamePath,
        ("If-Match" = Option<String>, Header, description = "Change it only if it has this ETag"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: make it only if it is not there"),
    ),
    request_body = Wanted,
    responses(
        (status = 200, body = HybridConnection, description = "Changed", headers(("ETag" = String, description = "Names the content of its file"))),
        (status = 201, body = HybridConnection, description = "Made", headers(("ETag" = String, description = "Names the content of its file"), ("Location" = String, description = "Where it is"))),
        (status = 403, body = super::problem::Document, content_type = "application/problem+json", description = "`edition_limit`: the edition permits no more"),
        (status = 412, body = super::problem::Document, content_type = "application/problem+json", description = "It is not what `If-Match` or `If-None-Match` says"),
        (status = 507, body = super::problem::Document, content_type = "application/problem+json", description = "The disk did not take it; what was there still stands"),
    )
)]
pub(super) async fn put(
    State(rest): Api,
    Name(name): Name,
    headers: HeaderMap,
    Body(wanted): Body<Wanted>,
) -> Result<Response, Problem> {
    let condition = condition(&headers);
    let definition = wanted.definition(name)?;
    let (put, stored) = blocking(&rest, move |rest| {
        Ok(rest.store.put(&definition, &condition)?)
    })
    .await?;
    let status = match put {
        Put::Created => StatusCode::CREATED,
        Put::Replaced => StatusCode::OK,
    };
    let mut response = answer(&rest, status, &stored);
    let location = HeaderValue::from_str(&format!("/v1/hybridconnections/{}", stored.name));
    if let (Put::Created, Ok(location)) = (put, location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Delete one
///
/// And its keys. Its sessions and flows end.
#[utoipa::path(
    delete,
    path = "/v1/hybridconnections/{name}",
    tag = "hybrid connections",
    operation_id = "delete",
    params(
        NamePath,
        ("If-Match" = Option<String>, Header, description = "Delete it only if it has this ETag"),
    ),
    responses((status = 204, description = "Deleted"))
)]
pub(super) async fn delete(
    State(rest): Api,
    Name(name): Name,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let condition = condition(&headers);
    blocking(&rest, move |rest| {
        Ok(rest.store.delete(&name, &condition)?)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Dial its endpoint now
///
/// From every agent that listens.
#[utoipa::path(
    post,
    path = "/v1/hybridconnections/{name}/probe",
    tag = "hybrid connections",
    operation_id = "probe",
    params(NamePath),
    responses((status = 200, body = Probed, description = "What each agent found"))
)]
pub(super) async fn probe(State(rest): Api, Name(name): Name) -> Result<Json<Probed>, Problem> {
    let asked = name.clone();
    blocking(&rest, move |rest| Ok(rest.store.find(&asked)?)).await?;
    let report = rest.live.probe(&name).await.map_err(|error| {
        let (kind, hint) = match error {
            ProbeError::NoRelay => (
                Kind::NoRelay,
                "start it with `underpass relay` or `underpass up`; it dials control by itself",
            ),
            ProbeError::Busy => (Kind::ProbeBusy, "try again in a few seconds"),
            ProbeError::Silent => (
                Kind::ProbeTimeout,
                "look at the relay's log, and at its version",
            ),
        };
        Problem::new(kind, error.to_string(), hint)
    })?;
    if !report.known {
        let hint = "its file may be new, faulty or beyond the edition: /v1/status tells the faults";
        return Err(Problem::new(
            Kind::NotReady,
            format!("the relay does not know {name}"),
            hint,
        ));
    }
    Ok(Json(report.into()))
}

fn answer(rest: &Rest, status: StatusCode, stored: &Stored) -> Response {
    let report = stored
        .definition
        .as_ref()
        .ok()
        .and_then(|definition| rest.live.hyco(&definition.name));
    let told = told(rest, stored, |_| report.as_ref());
    (status, etag(stored), Json(told)).into_response()
}

fn etag(stored: &Stored) -> [(header::HeaderName, String); 1] {
    [(header::ETAG, stored.etag().to_string())]
}

fn told<'a>(
    rest: &Rest,
    stored: &Stored,
    report: impl Fn(&HycoName) -> Option<&'a HycoReport>,
) -> HybridConnection {
    let described = Described::of(stored);
    let name = described.name.parse::<HycoName>().ok();
    HybridConnection {
        state: name
            .as_ref()
            .and_then(report)
            .map_or_else(HycoState::default, Into::into),
        usage: rest.live.meter().of(name.as_ref()).into(),
        etag: stored.etag().to_string(),
        described,
    }
}
