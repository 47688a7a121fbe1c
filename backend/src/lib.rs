//! Backend of a Moorline gateway: the server side of the gateway-backend link as a small
//! library, and the reference instant-messaging backend on it.
//!
//! | module | holds | may import |
//! |---|---|---|
//! | [`config`] | settings of a backend process | - |
//! | [`secrets`] | secrets of gateways, from a file | config |
//! | [`server`] | the link: sockets, sessions, credit, keepalive; [`server::Handler`] is the seam | config, secrets |
//! | [`echo`] | the smallest useful handlers: echo, and acker for measuring a gateway | server |
//! | [`im`] | conversations, groups, inboxes, pull; pure, on [`im::store::Store`] | server (types) |
//! | [`cluster`] | several nodes over one store; pure | im |
//! | [`sql`] | cells of a cluster in PostgreSQL | cluster |
//! | [`node`] | a node of a cluster: the handler, and threads for its cells | sql, im, server |
//! | `api` | the server API: HTTP and JSON in front of [`im`] | im, config |
//! | [`import`] | puts an export, or made-up conversations, into a store | im, config |
//! | `login_hook` | asks an operator's service about logins | im, config |
//! | `webhook` | delivers to the endpoints of services | im, config |
//! | [`Live`] | tokens that are replaced while the backend runs | api, config |
//! | [`run`] | puts a handler of the configuration on a server | all |
//!
//! `docs/backend.md` specifies the link for people who bring their own backend.
#![forbid(unsafe_code)]

mod api;
mod clock;
pub mod cluster;
pub mod config;
mod disk_watch;
pub mod echo;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod growth;
pub mod im;
pub mod import;
mod live;
mod login_hook;
pub mod node;
mod run;
pub mod secrets;
pub mod server;
pub mod sql;
pub mod tokens;
mod undelivered;
mod webhook;

pub use config::BackendConfig;
pub use error::BackendError;
pub use live::{Live, Reloaded};
pub use run::{Ready, run};
