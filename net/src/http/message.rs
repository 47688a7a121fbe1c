//! A request as handlers see it, and their answer.

use super::Caller;
use super::address::Peer;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};

/// One request, whole.
#[derive(Debug)]
pub struct Request {
    /// Method of the request.
    pub method: Method,
    /// Headers of the request.
    pub headers: HeaderMap,
    /// Body of the request; empty if there is none.
    pub body: Bytes,
    /// Visitor, as the system names it.
    pub peer: Peer,
    /// Caller, as the server's judge knows it.
    pub caller: Caller,
    pub(super) uri: Uri,
}

impl Request {
    /// A request that came over no connection.
    pub const fn new(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Self {
        Self { method, headers, body, peer: Peer::Unknown, caller: Caller::Stranger, uri }
    }

    /// The path without query and authority.
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The text behind `?`; `None`: there is no `?`.
    pub fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    /// The value of a header as text; `None`: absent, or not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// True if the body is declared as JSON. A page in a browser cannot send this type to another
    /// origin without asking the server first.
    pub fn is_json(&self) -> bool {
        let kind = self.header(CONTENT_TYPE.as_str()).and_then(|kind| kind.split(';').next());
        kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    }
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Response {
    /// An answer with this body.
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self { status, headers, body: body.into() }
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }

    /// The status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The whole answer as bytes, for a connection that hyper does not serve. It ends the connection.
    pub(super) fn to_wire(&self) -> Vec<u8> {
        let status = self.status;
        let reason = status.canonical_reason().unwrap_or("Error");
        let mut wire = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
        for (name, value) in &self.headers {
            wire.extend_from_slice(name.as_str().as_bytes());
            wire.extend_from_slice(b": ");
            wire.extend_from_slice(value.as_bytes());
            wire.extend_from_slice(b"\r\n");
        }
        let length = self.body.len();
        wire.extend_from_slice(format!("content-length: {length}\r\nconnection: close\r\n\r\n").as_bytes());
        wire.extend_from_slice(&self.body);
        wire
    }

    pub(super) fn into_hyper(self) -> hyper::Response<Full<Bytes>> {
        let mut response = hyper::Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}
