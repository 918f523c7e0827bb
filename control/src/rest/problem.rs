//! What is wrong with a request, as a problem document (RFC 9457). Programs go by `code`, people by
//! `detail`.

use std::ops::Deref;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::Code;

/// Of problem documents (RFC 9457, section 6.1).
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// A problem. A pointer wide, because every result of the API carries room for one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem(Box<Document>);

/// A problem document.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document {
    /// Names the kind as an identifier: `urn:underpass:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind for people: always the same for one code.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// The kind for programs. Stable.
    #[schema(example = "edition_limit")]
    pub code: String,
    /// What is wrong, and the next step.
    pub detail: String,
    /// What is wrong alone, one by one.
    pub errors: Vec<String>,
    /// The next step alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Seconds until it is worth trying again.
    #[serde(skip)]
    retry_after_secs: Option<u64>,
}

/// What kind of problem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The store's own.
    Refused(Code),
    /// Not what the document describes.
    Malformed,
    /// No token, or no valid one.
    Unauthorized,
    /// A valid token, of a key that may not do this.
    Forbidden,
    /// A Host that is none of ours.
    Host,
    /// A page of somebody else's.
    Origin,
    NotFound,
    MethodNotAllowed,
    TooLarge,
    MediaType,
    TooManyFailures,
    TooManyConnections,
    NoRelay,
    ProbeBusy,
    ProbeTimeout,
    NotReady,
    Timeout,
    Internal,
}

impl Kind {
    /// Status, code and title.
    fn told(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::Refused(Code::UnknownName) => (
                S::NOT_FOUND,
                "unknown_name",
                "No hybrid connection of that name",
            ),
            Self::Refused(Code::Exists) => (S::PRECONDITION_FAILED, "exists", "It exists already"),
            Self::Refused(Code::Changed) => {
                (S::PRECONDITION_FAILED, "changed", "It is not what it was")
            }
            Self::Refused(Code::Invalid) => (S::UNPROCESSABLE_ENTITY, "invalid", "This cannot be"),
            Self::Refused(Code::BindingTaken) => {
                (S::CONFLICT, "binding_taken", "Another one has that binding")
            }
            Self::Refused(Code::EditionLimit) => {
                (S::FORBIDDEN, "edition_limit", "The edition permits no more")
            }
            Self::Refused(Code::FaultyFile) => (
                S::CONFLICT,
                "faulty_file",
                "A file has to be put right by hand",
            ),
            Self::Refused(Code::Busy) => (S::SERVICE_UNAVAILABLE, "busy", "Somebody else edits"),
            Self::Refused(Code::Storage) => (
                S::INSUFFICIENT_STORAGE,
                "storage",
                "The disk did not take it",
            ),
            Self::Malformed => (
                S::BAD_REQUEST,
                "malformed",
                "The request is not as described",
            ),
            Self::Unauthorized => (
                S::UNAUTHORIZED,
                "unauthorized",
                "A token of a manage key is needed",
            ),
            Self::Forbidden => (S::FORBIDDEN, "forbidden", "This key may not manage"),
            Self::Host => (S::FORBIDDEN, "host_not_allowed", "This is not that host"),
            Self::Origin => (
                S::FORBIDDEN,
                "origin_not_allowed",
                "Not from a page of another site",
            ),
            Self::NotFound => (S::NOT_FOUND, "not_found", "Nothing there"),
            Self::MethodNotAllowed => (
                S::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Not by this method",
            ),
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, "too_large", "The body is too large"),
            Self::MediaType => (
                S::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body must be JSON",
            ),
            Self::TooManyFailures => (
                S::TOO_MANY_REQUESTS,
                "too_many_failures",
                "Too many invalid tokens",
            ),
            Self::TooManyConnections => (
                S::SERVICE_UNAVAILABLE,
                "too_many_connections",
                "Too many connections",
            ),
            Self::NoRelay => (S::SERVICE_UNAVAILABLE, "no_relay", "No relay is connected"),
            Self::ProbeBusy => (
                S::SERVICE_UNAVAILABLE,
                "probe_busy",
                "Too many probes at once",
            ),
            Self::ProbeTimeout => (
                S::GATEWAY_TIMEOUT,
                "probe_timeout",
                "The relay did not answer",
            ),
            Self::NotReady => (
                S::SERVICE_UNAVAILABLE,
                "not_ready",
                "No relay works by the newest snapshot",
            ),
            Self::Timeout => (S::SERVICE_UNAVAILABLE, "timeout", "It took too long"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "It failed"),
        }
    }
}

impl Problem {
    pub(super) fn new(kind: Kind, error: String, hint: &str) -> Self {
        Self::of(kind, vec![error], Some(hint.to_owned()))
    }

    pub(super) fn of(kind: Kind, errors: Vec<String>, hint: Option<String>) -> Self {
        let (status, code, title) = kind.told();
        let what = errors.join("; ");
        let detail = match &hint {
            Some(hint) => format!("{what}. {hint}"),
            None => what,
        };
        Self(Box::new(Document {
            kind: format!("urn:underpass:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail,
            errors,
            hint,
            retry_after_secs: None,
        }))
    }

    pub(super) fn retry_after(mut self, secs: u64) -> Self {
        self.0.retry_after_secs = Some(secs);
        self
    }
}

impl From<Document> for Problem {
    fn from(document: Document) -> Self {
        Self(Box::new(document))
    }
}

impl Deref for Problem {
    type Target = Document;

    fn deref(&self) -> &Document {
        &self.0
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, text).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("SharedAccessSignature"),
            );
        }
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, secs.into());
        }
        response
    }
}
