//! The answer of a dispatch server, and what may be wrong with it. Pure.
//!
//! Run-through: `{"endpoints":[{"endpoint":"tls://eu-2.gw.example:7443"}],"lifetime_s":60}` is a list of one gateway for 60 s.
//! A list of nine gateways, one with an endpoint that is not an address, and 17 KiB of anything are refused whole: a
//! server that answers so is not to be believed in the rest either.

use super::limits;
use moorline_proto::time::Duration;
use serde::Deserialize;
use std::sync::Arc;

/// Longest body of an answer, in bytes. Eight endpoints with their regions take at most 3 KiB.
pub const DISPATCH_ANSWER_BYTES_MAX: usize = 16 << 10;
/// Endpoints of one answer.
pub(crate) const ENDPOINTS_MAX: usize = 8;
/// Shortest and longest lifetime of a list that the client keeps to.
const LIFETIME: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];

/// Reason why a question to a dispatch server brought no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DispatchFault {
    /// No answer by the deadline.
    #[error("the dispatch server did not answer in time")]
    TimedOut,
    /// No connection, or one that broke, or TLS without proof.
    #[error("cannot ask the dispatch server: {why}")]
    Unreachable {
        /// The cause, in the system's or the library's words.
        why: String,
    },
    /// The server answered with another status than 200.
    #[error("the dispatch server answers with status {status}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Wait that the server asks for; zero: none.
        retry_after: Duration,
    },
    /// The answer is not one that a dispatch server gives.
    #[error("the answer of the dispatch server is not a list of gateways: {why}")]
    BadAnswer {
        /// The fault.
        why: &'static str,
    },
    /// The list names no gateway that this client may go to.
    #[error(
        "the dispatch server names no gateway that this client may go to: over TLS any address will do, over plain TCP name it in \
         `alternates`"
    )]
    NothingAllowed,
}

impl DispatchFault {
    /// Wait that the server asks for, at most 10 minutes.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Refused { retry_after, .. } => (*retry_after).min(limits::PAUSE_MAX),
            _ => Duration::ZERO,
        }
    }

    /// Memory beside the size of the value, in bytes.
    pub(super) fn bytes(&self) -> usize {
        if let Self::Unreachable { why } = self { why.len() } else { 0 }
    }
}

/// Gateways to try, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EndpointList {
    /// Addresses, `host:port`; at least 1.
    pub(crate) places: Vec<Arc<str>>,
    /// Time for which the list may be used without another question.
    pub(crate) lifetime: Duration,
}

#[derive(Deserialize)]
struct Answer {
    endpoints: Vec<Entry>,
    lifetime_s: u64,
}

#[derive(Deserialize)]
struct Entry {
    endpoint: String,
}

/// Reads the body of an answer. `is_proved`: gateways have to prove a name, so that any `tls://` will do; otherwise only
/// `tcp://` addresses in `known`.
pub(crate) fn read(body: &[u8], known: &[Arc<str>], is_proved: bool) -> Result<EndpointList, DispatchFault> {
    let bad = |why| DispatchFault::BadAnswer { why };
    if body.len() > DISPATCH_ANSWER_BYTES_MAX {
        return Err(bad("it has more than 16 KiB"));
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|_| bad("it is not the JSON of a list"))?;
    if answer.endpoints.is_empty() {
        return Err(bad("it has no endpoint"));
    }
    if answer.endpoints.len() > ENDPOINTS_MAX {
        return Err(bad("it has more than 8 endpoints"));
    }
    let mut places: Vec<Arc<str>> = Vec::new();
    for Entry { endpoint } in &answer.endpoints {
        let (is_tls, place) = match (endpoint.strip_prefix("tls://"), endpoint.strip_prefix("tcp://")) {
            (Some(place), _) => (true, place),
            (None, Some(place)) => (false, place),
            (None, None) => return Err(bad("an endpoint is not `tls://host:port` or `tcp://host:port`")),
        };
        if !limits::is_place(place) {
            return Err(bad("an endpoint is not `tls://host:port` or `tcp://host:port`"));
        }
        let is_known = || known.iter().any(|known| known.eq_ignore_ascii_case(place));
        let is_allowed = is_tls == is_proved && (is_proved || is_known());
        if is_allowed && !places.iter().any(|other| **other == *place) {
            places.push(place.into());
        }
    }
    let [least, most] = LIFETIME;
    let lifetime = Duration::from_secs(answer.lifetime_s).clamp(least, most);
    if places.is_empty() { Err(DispatchFault::NothingAllowed) } else { Ok(EndpointList { places, lifetime }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(endpoints: &[&str], lifetime_s: &str) -> String {
        let entries: Vec<String> =
            endpoints.iter().map(|text| format!("{{\"endpoint\":{text:?},\"region\":\"eu\"}}")).collect();
        format!("{{\"age_ms\":null,\"endpoints\":[{}],\"lifetime_s\":{lifetime_s}}}", entries.join(","))
    }

    fn places(body: &str, known: &[&str], is_proved: bool) -> Result<Vec<String>, DispatchFault> {
        let known: Vec<Arc<str>> = known.iter().map(|place| (*place).into()).collect();
        let read = read(body.as_bytes(), &known, is_proved)?;
        Ok(read.places.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_list_is_taken_in_its_order_and_only_what_may_be_followed() {
        let body = list(&["tls://b:1", "tls://a:1", "tcp://c:1", "tls://b:1"], "60");
        assert_eq!(places(&body, &[], true), Ok(vec!["b:1".into(), "a:1".into()]));
        assert_eq!(places(&body, &["C:1", "a:1"], false), Ok(vec!["c:1".into()]), "plain TCP: listed ones");
        assert_eq!(places(&body, &["a:1"], false), Err(DispatchFault::NothingAllowed));
    }

    #[test]
    fn a_hostile_answer_is_refused_whole() {
        let nine: Vec<String> = (0..9).map(|number| format!("tls://h:{}", number + 1)).collect();
        let nine: Vec<&str> = nine.iter().map(|text| &**text).collect();
        let long = format!("tls://{}:1", "x".repeat(300));
        let bodies = [
            String::new(),
            "[".repeat(16 << 10),
            "null".to_owned(),
            list(&[], "60"),
            list(&nine, "60"),
            list(&["tls://a:1"], "-1"),
            list(&["tls://a:1"], "1e99"),
            list(&["tls://a:1"], "60") + &" ".repeat(16 << 10),
            list(&["tls://a:1", "http://a:1"], "60"),
            list(&["tls://a:1", "tls://a"], "60"),
            list(&["tls://a:1", "tls://a b:1"], "60"),
            list(&["tls://a:1", "tls://a:0"], "60"),
            list(&["tls://a:1", "tls://"], "60"),
            list(&["tls://a:1", &long], "60"),
            "{\"endpoints\":[{\"endpoint\":7}],\"lifetime_s\":60}".to_owned(),
        ];
        for body in bodies {
            let refused = matches!(places(&body, &[], true), Err(DispatchFault::BadAnswer { .. }));
            assert!(refused, "{}", &body[..body.len().min(200)]);
        }
    }

    #[test]
    fn lifetimes_and_pauses_of_a_server_are_bounded() {
        for (told, kept) in [("0", 1), ("60", 60), ("18446744073709551615", 3600)] {
            let read = read(list(&["tls://a:1"], told).as_bytes(), &[], true).expect("a list");
            assert_eq!(read.lifetime, Duration::from_secs(kept));
        }
        let fault = DispatchFault::Refused { status: 503, retry_after: Duration::MAX };
        assert_eq!(fault.retry_after(), limits::PAUSE_MAX);
    }
}
