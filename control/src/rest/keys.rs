//! Keys over REST. Both operations are audited before they are done.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, body};
use underpass_proto::key::Which;
use underpass_proto::{HycoName, Rule};
use zeroize::Zeroizing;

use super::audit::{Actor, record};
use super::body::{Body, Name};
use super::door::Remote;
use super::model::{KeyWord, Keys, Regenerate, RuleKeys, RuleWord};
use super::patterns::NamePath;
use super::problem::{Kind, Problem};
use super::{Api, Rest, blocking};
use crate::store::{Issuer, Refusal};

/// List its keys
///
/// Four keys and four connection strings. Audited.
#[utoipa::path(
    post,
    path = "/v1/hybridconnections/{name}/listKeys",
    tag = "keys",
    operation_id = "listKeys",
    params(NamePath),
    responses((status = 200, body = Keys, description = "All of them"))
)]
pub(super) async fn list(
    State(rest): Api,
    Extension(remote): Extension<Remote>,
    Name(name): Name,
) -> Result<Response, Problem> {
    let text = blocking(&rest, move |rest| {
        let issuer = rest.store.issuer(&name)?;
        audit(rest, remote, "listKeys", &name, None)?;
        let keys = keys_of(&issuer);
        let text = serde_json::to_vec(&keys).map(Zeroizing::new);
        text.map_err(|error| {
            Problem::new(
                Kind::Internal,
                error.to_string(),
                "the log of control may say more",
            )
        })
    });
    // Wiped when it has been sent.
    let body = body::Body::from(body::Bytes::from_owner(text.await?));
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, body).into_response())
}

/// Regenerate one key
///
/// Registrations and flows that use the old key are closed within one second. Audited.
#[utoipa::path(
    post,
    path = "/v1/hybridconnections/{name}/regenerateKey",
    tag = "keys",
    operation_id = "regenerateKey",
    params(NamePath),
    request_body = Regenerate,
    responses((status = 204, description = "Regenerated; listKeys shows it"))
)]
pub(super) async fn regenerate(
    State(rest): Api,
    Extension(remote): Extension<Remote>,
    Name(name): Name,
    Body(wanted): Body<Regenerate>,
) -> Result<StatusCode, Problem> {
    let (rule, which): (Rule, Which) = (wanted.rule.into(), wanted.key.into());
    blocking(&rest, move |rest| {
        rest.store.find(&name)?;
        audit(
            rest,
            remote,
            "regenerateKey",
            &name,
            Some(&format!("{} {which}", rule.right())),
        )?;
        Ok(rest.store.regenerate(&name, rule, which)?)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn audit(
    rest: &Rest,
    remote: Remote,
    action: &str,
    name: &HycoName,
    key: Option<&str>,
) -> Result<(), Problem> {
    let actor = Actor {
        rule: underpass_proto::sas::MANAGE,
        remote: remote.to_string(),
    };
    let noted = record(rest.directory(), &rest.clock, &actor, action, name, key);
    noted
        .map_err(|error| Refusal::storage(&rest.directory().run().join("audit.log"), &error).into())
}

fn keys_of(issuer: &Issuer) -> Keys {
    let of_rule = |rule| {
        let key = |which| {
            let key = issuer.key(rule, which);
            key.map(|key| key.expose().to_owned())
        };
        let string = |which| {
            let string = issuer.string(rule, which);
            string.map(|string| string.emit().to_string())
        };
        RuleKeys {
            primary_key: key(Which::Primary).unwrap_or_default(),
            secondary_key: key(Which::Secondary),
            primary_connection_string: string(Which::Primary).unwrap_or_default(),
            secondary_connection_string: string(Which::Secondary),
        }
    };
    Keys {
        listen: of_rule(Rule::Listen),
        send: of_rule(Rule::Send),
    }
}

impl Keys {
    /// One connection string of the four.
    #[must_use]
    pub fn string(&self, rule: RuleWord, key: KeyWord) -> Option<&str> {
        let keys = match rule {
            RuleWord::Listen => &self.listen,
            RuleWord::Send => &self.send,
        };
        match key {
            KeyWord::Primary => Some(&keys.primary_connection_string),
            KeyWord::Secondary => keys.secondary_connection_string.as_deref(),
        }
    }
}
