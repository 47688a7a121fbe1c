//! Secrets of gateways' nodes: what `link.secrets_file` and `backend.secrets_file` hold.
//!
//! Each line is `node secret`; `#` begins a comment. A node has one secret, or two while the old one is being
//! replaced: both ends accept both.

use super::{SECRET_BYTES_MIN, Secret};
use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Secrets that one node may have at once: the old one and the new one.
pub const SECRETS_PER_NODE: usize = 2;
/// Longest name of a node, in bytes.
pub const NODE_BYTES_MAX: usize = 128;

/// Secrets by node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets(BTreeMap<String, Vec<Secret>>);

/// Fault of one line of a list of secrets. Never shows a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretsError {
    /// Line, counted from 1.
    pub line: usize,
    /// Cause, and what is expected.
    pub reason: &'static str,
}

impl fmt::Display for SecretsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl core::error::Error for SecretsError {}

impl Secrets {
    /// Reads a list.
    ///
    /// # Errors
    /// [`SecretsError`]: the first line that is not valid.
    pub fn parse(text: &str) -> Result<Self, SecretsError> {
        let mut secrets = Self::default();
        for (line, content) in (1..).zip(text.lines()) {
            let refused = |reason| Err(SecretsError { line, reason });
            let mut words = content.split_whitespace().take_while(|word| !word.starts_with('#'));
            let (node, secret) = match (words.next(), words.next(), words.next()) {
                (None, ..) => continue,
                (Some(node), Some(secret), None) => (node, secret),
                _ => return refused("expected `node secret`"),
            };
            if !is_node(node) {
                return refused("the name of a node has at most 128 bytes and no control characters");
            }
            let Some(secret) = Secret::new(secret.as_bytes()) else {
                return refused(
                    "the secret has fewer than 32 bytes; make one with `openssl rand -base64 32`",
                );
            };
            const { assert!(SECRET_BYTES_MIN == 32 && NODE_BYTES_MAX == 128, "the messages name the limits") };
            let of_node = secrets.0.entry(node.to_owned()).or_default();
            if of_node.contains(&secret) {
                return refused("this node has the same secret twice");
            }
            if of_node.len() >= SECRETS_PER_NODE {
                return refused("this node has more than two secrets: remove the oldest one");
            }
            of_node.push(secret);
        }
        Ok(secrets)
    }

    /// Returns the secrets of a node: none, one, or two.
    pub fn of(&self, node: &str) -> &[Secret] {
        self.0.get(node).map_or(&[], Vec::as_slice)
    }

    /// Returns whether no node has a secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of nodes that have a secret.
    pub fn nodes(&self) -> usize {
        self.0.len()
    }
}

/// Returns whether a text can name a node: not empty, at most [`NODE_BYTES_MAX`] bytes, no control characters.
pub fn is_node(node: &str) -> bool {
    !node.is_empty() && node.len() <= NODE_BYTES_MAX && !node.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString as _;

    const A: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_node_may_have_two_secrets() {
        let text = format!("# of gateways\n\ng1 {A}\r\ng1 {A}2 # the new one\ng2 {A}\n");
        let secrets = Secrets::parse(&text).expect("valid");
        assert_eq!((secrets.nodes(), secrets.of("g1").len(), secrets.of("g2").len()), (2, 2, 1));
        assert!(secrets.of("g3").is_empty() && Secrets::parse("").expect("valid").is_empty());
    }

    #[test]
    fn a_fault_names_its_line_and_no_secret() {
        let short = &A[1..];
        for (text, line) in [
            (format!("g1 {short}"), 1),
            (format!("\n{A}"), 2),
            (format!("g1 {A} {A}"), 1),
            (format!("g1 {A}\ng1 {A}"), 2),
            (format!("g1 {A}\ng1 {A}2\ng1 {A}3"), 3),
            (format!("{} {A}", "n".repeat(129)), 1),
        ] {
            let error = Secrets::parse(&text).expect_err("not valid");
            assert_eq!(error.line, line, "{text}");
            assert!(!error.to_string().contains(short), "{error}");
        }
    }
}
