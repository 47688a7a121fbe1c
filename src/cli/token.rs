//! `moorline token`: a login token for trying things out.

use super::{Failure, say};
use crate::auth::{self, Grant};
use crate::config::{UnitError, parse_duration};
use crate::sys::clock;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// Key that signs: an Ed25519 private key in PEM (EdDSA), or the HS256 secret of the gateway's auth.key_file
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// User id: the token's sub
    #[arg(long)]
    uid: String,
    /// Device id the token is bound to: its did; without it any device may use the token
    #[arg(long)]
    device: Option<String>,
    /// Name of the key in a key set (JWKS): the token's kid
    #[arg(long, value_name = "NAME")]
    kid: Option<String>,
    /// The token's aud
    #[arg(long)]
    audience: Option<String>,
    /// Time until the token expires
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    ttl: Duration,
}

fn duration(text: &str) -> Result<Duration, UnitError> {
    parse_duration(text)
}

pub(super) fn sign(args: &TokenArgs) -> Result<(), Failure> {
    let grant = Grant {
        uid: args.uid.clone(),
        device: args.device.clone(),
        audience: args.audience.clone(),
        kid: args.kid.clone(),
        ttl: args.ttl,
    };
    let token = auth::sign(&args.key_file, &grant, clock::unix_seconds()).map_err(Failure::usage)?;
    say(&format!("{token}\n"))
}
