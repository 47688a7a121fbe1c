//! Carriers of a dialect's bytes: plain TCP, TLS 1.3, WebSocket, or WebSocket over TLS.
//!
//! TLS is rustls, without anything between; the framing of WebSocket is written here a second time, because an instrument
//! must not share bugs with what it measures. A client without either has no part of this.
//!
//! | file | holds |
//! |---|---|
//! | `tls` | configurations, tickets, and the verifier that accepts anybody |
//! | `websocket` | the client's side of RFC 6455 |
//! | `wrap` | both of one connection, in their order |

mod tls;
mod websocket;
mod wrap;

pub use tls::{TlsRule, Trust, server_config};
pub use wrap::{News, Wrap};

use crate::exit::Failure;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tls::Tickets;
use wrap::Sealing;

/// Rule for all connections of a run; it travels between processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarryRule {
    /// TLS below everything else; `None`: plain TCP.
    pub tls: Option<TlsRule>,
    /// The `Host` of the upgrade request; `None`: no WebSocket.
    pub websocket: Option<String>,
}

/// Maker of the connections' wraps, one per loop.
#[derive(Debug)]
pub struct Carrier {
    tls: Option<Secured>,
    websocket: Option<String>,
    /// Connections so far; the masks of each begin with another number.
    made: u32,
}

/// TLS of all connections of a loop.
#[derive(Debug)]
struct Secured {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tickets: Arc<Tickets>,
}

impl Carrier {
    /// Reads certificates.
    ///
    /// # Errors
    /// [`Failure::Usage`]: a file or a name that cannot be used.
    pub fn new(rule: &CarryRule) -> Result<Self, Failure> {
        let tls = match &rule.tls {
            None => None,
            Some(tls) => {
                let name = ServerName::try_from(tls.name.clone()).map_err(|_| {
                    Failure::Usage(format!(
                        "{:?} is neither a host name nor an IP address; give --tls-name",
                        tls.name
                    ))
                })?;
                let tickets = Arc::default();
                let config = tls.client_config(rule.websocket.is_some(), &tickets)?;
                Some(Secured { config: Arc::new(config), name, tickets })
            }
        };
        Ok(Self { tls, websocket: rule.websocket.clone(), made: 0 })
    }

    /// Makes the wrap of a client's new connection; `None`: bytes travel as they are.
    ///
    /// # Errors
    /// The library's, as a sentence.
    pub fn wrap(&mut self, client: u32) -> Result<Option<Wrap>, String> {
        if self.tls.is_none() && self.websocket.is_none() {
            return Ok(None);
        }
        self.made = self.made.wrapping_add(1);
        let tls = match &self.tls {
            None => None,
            Some(tls) => {
                tls.tickets.begin_turn(client);
                let connection = ClientConnection::new(Arc::clone(&tls.config), tls.name.clone());
                Some(Sealing {
                    connection: Box::new(connection.map_err(|error| format!("TLS: {error}"))?),
                    tickets: Arc::clone(&tls.tickets),
                    client,
                })
            }
        };
        let wrap = Wrap::new(tls, self.websocket.as_deref(), self.made);
        Ok(Some(wrap))
    }
}

#[cfg(test)]
mod tests;
