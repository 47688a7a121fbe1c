//! Refusals of the server API, as JSON with a code and a reason.

use moorline_net::http::{Response, StatusCode, header};
use serde_json::json;
use std::borrow::Cow;

/// A refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    code: Cow<'static, str>,
    reason: String,
    /// Methods that the path takes; `None`: the method was not the problem.
    allow: Option<&'static str>,
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        reason: impl Into<String>,
    ) -> Self {
        Self { status, code: code.into(), reason: reason.into(), allow: None }
    }

    /// The request is malformed.
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID", reason)
    }

    /// The path takes the methods of `allow` only.
    pub(super) fn not_allowed(allow: &'static str) -> Self {
        let problem =
            Self::new(StatusCode::METHOD_NOT_ALLOWED, "INVALID", format!("this path takes {allow}"));
        Self { allow: Some(allow), ..problem }
    }

    /// Reason for people.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    pub(super) fn into_response(self) -> Response {
        let Self { status, code, reason, allow } = self;
        let body = json!({ "code": code, "reason": reason }).to_string();
        let mut response = Response::new(status, "application/json", body);
        if let Some(allow) = allow {
            response = response.with(header::ALLOW, allow);
        }
        match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                response.with(header::RETRY_AFTER, "1")
            }
            StatusCode::UNAUTHORIZED => response.with(header::WWW_AUTHENTICATE, "Bearer"),
            _ => response,
        }
    }
}
