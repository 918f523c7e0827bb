//! Bodies and names of requests, checked before a handler sees them.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use underpass_proto::HycoName;

use super::BODY_MAX;
use super::problem::{Kind, Problem};
use crate::store::Condition;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                Kind::MediaType,
                "the body is not said to be JSON".into(),
                "send `Content-Type: application/json`",
            ));
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| unread(&rejection))?;
        // Its own words may repeat what was read; the place is enough.
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let what = match error.classify() {
                serde_json::error::Category::Data => error.to_string(),
                _ => format!(
                    "the body is not JSON (line {}, column {})",
                    error.line(),
                    error.column()
                ),
            };
            malformed(what)
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

fn unread(rejection: &BytesRejection) -> Problem {
    match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            Problem::new(
                Kind::TooLarge,
                format!("the body has more than {BODY_MAX} bytes"),
                "a definition is far smaller; put fewer networks into allow_from",
            )
        }
        _ => malformed("the body ended too early".into()),
    }
}

/// What is not as the document says.
pub(super) fn malformed(error: String) -> Problem {
    Problem::new(
        Kind::Malformed,
        error,
        "/openapi.json says what is expected",
    )
}

/// The name in a path.
pub(super) struct Name(pub(super) HycoName);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = text.map_err(|_| malformed("the name is not UTF-8".into()))?;
        text.parse()
            .map(Self)
            .map_err(|error: underpass_proto::name::NameError| malformed(error.to_string()))
    }
}

/// A header that is a list: several lines are one list (RFC 9110, section 5.3). `None`: there is
/// none.
pub(super) fn tags(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    let lines = headers.get_all(name).iter();
    let lines: Vec<&str> = lines
        .map(|line| line.to_str().unwrap_or_default())
        .collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// What must be true for a change to be made, by `If-Match` and `If-None-Match`.
pub(super) fn condition(headers: &HeaderMap) -> Condition {
    let is = tags(headers, &header::IF_MATCH).map(|tags| Condition::if_match(&tags));
    let is_not = tags(headers, &header::IF_NONE_MATCH).map(|tags| Condition::if_none_match(&tags));
    match (is, is_not) {
        (Some(is), Some(is_not)) => is.and(is_not),
        (one, other) => one.or(other).unwrap_or_default(),
    }
}
