//! The Bearer token (RFC 6750), compared in constant time.

use super::Request;
use hyper::header::{AUTHORIZATION, HeaderValue};
use subtle::ConstantTimeEq as _;

/// True if a request carries this token as its Bearer token. The time that the answer takes shows the
/// length of a wrong token at most, and nothing of the right one's bytes.
pub fn has_bearer(request: &Request, token: &[u8]) -> bool {
    let value = request.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let Some((scheme, given)) = value.and_then(|value| value.split_at_checked(7)) else { return false };
    scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(token))
}
