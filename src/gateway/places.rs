//! Files, sockets and groups that the settings name, tried before anything rests on them.
//!
//! Example: `audit.file` names a folder that does not exist. A hot restart with these settings is refused while the old process
//! serves on, by the check and by `--dry-run` too, and the verdict has the cause. Nothing is made or bound to stay.

use super::handover::PidFile;
use super::{GatewayError, admin_sockets, tls, trust};
use crate::config::Config;
use crate::{admin, auth};
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

/// Tries everything that the settings name, as a process that starts would use it.
///
/// # Errors
/// [`GatewayError`]: the setting and the cause.
pub(super) fn check(config: &Config) -> Result<(), GatewayError> {
    check_files(config)?;
    check_audit(&config.audit.file).map_err(|problem| place("audit.file", &config.audit.file, &problem))?;
    if config.admin.enabled {
        check_admin_address(config.admin.address)?;
        let socket = &config.admin.socket;
        if !socket.as_os_str().is_empty() {
            check_folder(socket).map_err(|problem| place("admin.socket", socket, &problem))?;
        }
    }
    // A file that could not be replaced would name the process of before.
    PidFile::of(config).try_out().map_err(GatewayError::Takeover)
}

/// Tries what does not depend on the folders of this machine, for `moorline check`.
///
/// # Errors
/// [`GatewayError`]: the setting and the cause.
pub fn check_files(config: &Config) -> Result<(), GatewayError> {
    auth::judge(&config.auth)?;
    trust::check(config)?;
    tls::check(config)?;
    if !config.admin.enabled {
        return Ok(());
    }
    admin_sockets::group(&config.admin.group)?;
    let socket = &config.admin.socket;
    if socket.as_os_str().is_empty() {
        return Ok(());
    }
    let judged = admin::judge_socket(socket).and_then(|()| match fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => Err("the path exists and is not a socket".to_owned()),
        _ => Ok(()),
    });
    judged.map_err(|problem| place("admin.socket", socket, &problem))
}

fn place(key: &'static str, path: &Path, problem: &str) -> GatewayError {
    GatewayError::Place { key, path: path.to_owned(), problem: problem.to_owned() }
}

fn check_audit(file: &Path) -> Result<(), String> {
    if file.as_os_str().is_empty() {
        return Ok(());
    }
    check_folder(file)?;
    match fs::symlink_metadata(file) {
        Ok(found) if found.is_dir() => Err("it is a folder".to_owned()),
        Ok(found) if found.file_type().is_symlink() => Err("it is a link, which is not followed".to_owned()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The folder of a file or socket has to exist, or to be made by its user in one that does.
fn check_folder(file: &Path) -> Result<(), String> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is not a folder", folder.display())),
        Err(error) => Err(format!("the folder {}: {error}", folder.display())),
    }
}

/// An address in use may be the one that this gateway hands over, so it passes.
fn check_admin_address(address: SocketAddr) -> Result<(), GatewayError> {
    match TcpListener::bind(address).map(drop) {
        Err(source) if source.kind() != ErrorKind::AddrInUse => {
            Err(GatewayError::Bind { key: "admin.address".into(), address, source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        (config.auth.mode, config.backend.unproven) =
            (crate::config::AuthMode::Dev, crate::config::Unproven::Loopback);
        config.admin.address = "127.0.0.1:0".parse().expect("an address");
        change(&mut config);
        check(&config).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn what_the_settings_name_is_tried_and_told_by_its_key() {
        assert_eq!(said(|_| ()), "fine");
        let audit = said(|config| config.audit.file = "/nosuch/audit".into());
        assert!(audit.contains("audit.file") && audit.contains("/nosuch"), "{audit}");
        assert!(said(|config| config.audit.file = "/".into()).contains("it is a folder"));
        let group = said(|config| config.admin.group = "no-such-group".into());
        assert!(group.contains("no-such-group"), "{group}");
        let socket = said(|config| config.admin.socket = "relative.sock".into());
        assert!(socket.contains("admin.socket"), "{socket}");
        assert!(said(|config| config.admin.socket = "/tmp".into()).contains("not a socket"));
        assert!(said(|config| config.admin.socket = "/nosuch/a.sock".into()).contains("/nosuch"));
        let pid = said(|config| config.handover.pid_file = "/nosuch/pid".into());
        assert!(pid.contains("handover.pid_file"), "{pid}");
        let foreign = said(|config| config.admin.address = "192.0.2.1:1".parse().expect("an address"));
        assert!(foreign.contains("admin.address"), "{foreign}");
        assert_eq!(said(|config| config.audit.file = std::env::temp_dir().join("moorline-audit")), "fine");
    }
}
