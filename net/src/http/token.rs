//! The Bearer token (RFC 6750).

use hyper::header::{AUTHORIZATION, HeaderMap};

/// The Bearer token of a request; `None`: there is none, or more than one.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}
