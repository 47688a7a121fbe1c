//! `moorline status`: asks a running gateway.

use super::find::AdminArgs;
use super::{Failure, say};
use crate::admin::Varz;
use moorline_net::http::Question;

pub(super) fn show(admin: &AdminArgs, is_json: bool) -> Result<(), Failure> {
    let gateway = admin.find()?;
    let body = gateway
        .ask(&Question::get("/v1/varz"))
        .map_err(|error| gateway.cannot("get the status from", &error))?;
    let varz: Varz = serde_json::from_str(&body).map_err(|error| {
        Failure::Failed(format!("{gateway} answers, but not as a moorline of this version does: {error}"))
    })?;
    if is_json { say(&body) } else { say(&summary(&varz)) }
}

fn summary(varz: &Varz) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // uptime is not negative
    let uptime = shown(varz.uptime_seconds, |seconds| {
        let uptime = seconds as u64;
        format!("{}h {:02}m {:02}s", uptime / 3600, uptime / 60 % 60, uptime % 60)
    });
    let memory = shown(varz.resident_bytes, |bytes| format!("{} MiB", bytes >> 20));
    let [open, threads] = [varz.open_fds, varz.threads].map(|count| shown(count, |count| count.to_string()));
    let cpu = shown(varz.cpu_seconds, |seconds| format!("{seconds:.1} s"));
    let listeners: Vec<_> =
        varz.listeners.iter().map(|listener| format!("{} {}", listener.name, listener.address)).collect();
    let problems = Varz::warnings(&varz.problems);
    format!(
        "{}: {}\n\
         moorline {}   pid {}   generation {}   up {uptime}\n\
         connections {}   sessions {}   links up {}\n\
         listeners {}   reactors {}   workers {}\n\
         memory {memory}   open files {open}   threads {threads}   cpu {cpu}\n{problems}",
        varz.gateway,
        varz.phase,
        varz.version,
        varz.pid,
        varz.generation,
        varz.connections,
        varz.sessions,
        varz.links_up,
        listeners.join(", "),
        varz.reactors,
        varz.workers,
    )
}

/// Writes a figure, or `-` for one that the gateway cannot read.
fn shown<T>(figure: Option<T>, write: impl FnOnce(T) -> String) -> String {
    figure.map_or_else(|| "-".to_owned(), write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Status;
    use crate::config::Config;
    use crate::metrics::Registry;
    use std::net::TcpListener;

    #[test]
    fn a_running_gateway_is_shown() {
        let mut config = Config::default();
        config.gateway.id = "g1".into();
        let varz = Varz::read(&Status::new(&config, "g1"), &Registry::new());
        let body = serde_json::to_string(&varz).expect("JSON");
        let shown = summary(&serde_json::from_str(&body).expect("JSON"));
        assert!(shown.starts_with("g1: not ready: no link to a backend is up\n"), "{shown}");
        assert!(shown.contains("connections 0   sessions 0   links up 0\n"), "{shown}");
        assert!(shown.contains(" MiB   open files "), "{shown}");
        let blind = Varz { resident_bytes: None, open_fds: None, threads: None, cpu_seconds: None, ..varz };
        let body = serde_json::to_string(&blind).expect("JSON");
        assert!(body.contains("\"resident_bytes\":null"), "{body}");
        let shown = summary(&serde_json::from_str(&body).expect("JSON"));
        assert!(shown.contains("memory -   open files -   threads -   cpu -\n"), "{shown}");
    }

    #[test]
    fn nobody_there_is_said_with_the_fix() {
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let admin =
            AdminArgs { admin: Some(free.to_string().parse().expect("an address")), ..AdminArgs::default() };
        let Err(Failure::Failed(said)) = show(&admin, false) else { panic!("nobody listens on {free}") };
        assert!(said.contains(&free.to_string()) && said.contains("--admin"), "{said}");
    }
}
