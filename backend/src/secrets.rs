//! Secrets of gateways, from `link.secrets_file`, and the rule that nobody is believed without a reason.

use crate::config::{BackendConfig, Unproven};
use crate::error::BackendError;
use moorline_net::secret_file;
use moorline_proto::link::{LinkAddress, Secrets};

/// Longest file, in bytes: room for 4,096 gateways with two secrets each.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Setting with the path.
const KEY: &str = "link.secrets_file";

/// Reads the secrets of gateways. Warns if others can read the file.
///
/// # Errors
/// [`BackendError`]: the file cannot be read or trusted, a line of it is not valid, or the backend would listen on a
/// network without any way to tell gateways from strangers.
pub fn load(config: &BackendConfig) -> Result<Secrets, BackendError> {
    let link = &config.link;
    let path = &link.secrets_file;
    if path.as_os_str().is_empty() {
        let is_ip = matches!(config.listen, LinkAddress::Ip(_));
        if is_ip && link.unproven == Unproven::Refuse && link.tls.set().is_none() {
            let reason = format!(
                "nothing proves who connects to listen = \"{}\"; set link.tls, or name a file with lines `node secret`, or listen on a \
                 Unix socket (listen = \"unix:/run/moorline/link.sock\"), or for development run `moorline dev`; for \
                 gateways of an earlier version see docs/backend.md, section 5",
                config.listen
            );
            return Err(BackendError::InvalidConfig { key: KEY, reason });
        }
        return Ok(Secrets::default());
    }
    let file = secret_file::read(path, FILE_BYTES_MAX);
    let file = file.map_err(|cause| BackendError::SecretFile { key: KEY, cause })?;
    if let Some(warning) = &file.warning {
        tracing::warn!("{KEY}: {warning}");
    }
    let invalid = |reason| BackendError::InvalidConfig { key: KEY, reason };
    let text = str::from_utf8(&file.bytes).map_err(|_| invalid(format!("{} is not text", path.display())))?;
    let secrets = Secrets::parse(text).map_err(|error| invalid(format!("{}: {error}", path.display())))?;
    if secrets.is_empty() {
        return Err(invalid(format!("{} names no gateway; expected lines `node secret`", path.display())));
    }
    Ok(secrets)
}
