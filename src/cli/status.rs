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
    let uptime = varz.uptime_seconds as u64;
    let (hours, minutes, seconds) = (uptime / 3600, uptime / 60 % 60, uptime % 60);
    let mebibytes = varz.resident_bytes >> 20;
    let listeners: Vec<_> =
        varz.listeners.iter().map(|listener| format!("{} {}", listener.name, listener.address)).collect();
    let problems = Varz::warnings(&varz.problems);
    format!(
        "{}: {}\n\
         moorline {}   pid {}   generation {}   up {hours}h {minutes:02}m {seconds:02}s\n\
         connections {}   sessions {}   links up {}\n\
         listeners {}   reactors {}   workers {}\n\
         memory {mebibytes} MiB   open files {}   threads {}   cpu {:.1} s\n{problems}",
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
        varz.open_fds,
        varz.threads,
        varz.cpu_seconds,
    )
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
