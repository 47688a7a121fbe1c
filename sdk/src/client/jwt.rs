//! Expiry of a token that is a JWT (RFC 7519). Nothing is verified: the gateway does that.

use moorline_proto::time::Duration;

/// Longest token that is looked into, in bytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;

#[derive(serde::Deserialize)]
struct Claims {
    /// Seconds since 1970.
    exp: f64,
}

/// Returns the `exp` claim of a JWT, as the time since 1970; `None`: the token is not a JWT, or has no such claim.
pub(super) fn expiry_of(token: &str) -> Option<Duration> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let mut parts = token.split('.');
    let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let claims = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    Duration::try_from_secs_f64(exp).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        use base64::Engine as _;
        let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.c2ln", part(r#"{"alg":"HS256"}"#), part(claims))
    }

    #[test]
    fn the_expiry_is_read_and_anything_else_has_none() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(expiry_of(&token(r#"{"sub":"alice","exp":1800000000}"#)), seconds(1_800_000_000));
        assert_eq!(expiry_of(&token(r#"{"exp":0.0,"iat":"x"}"#)), seconds(0));
        for claims in ["{}", r#"{"exp":"soon"}"#, r#"{"exp":-1}"#, r#"{"exp":1e300}"#, "[", ""] {
            assert_eq!(expiry_of(&token(claims)), None, "{claims}");
        }
        for text in ["", "token", "a.b", "..", "a.!.c", "a.e30.c.d", &"x".repeat(1 << 20)] {
            assert_eq!(expiry_of(text), None);
        }
    }
}
