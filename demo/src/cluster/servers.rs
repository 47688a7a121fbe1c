//! The processes of a small cluster: started one after the other, watched, killed.

use super::cell::{Cell, Succession};
use crate::certificate::Certificate;
use crate::clock;
use crate::folder::RunFolder;
use crate::server::Server;
use crate::stage::Serving;
use crate::stop::Stop;
use crate::{DemoError, arguments, gateway_settings, system};
use moorline_proto::time::Duration;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

/// Nodes, and gateways, and the names of their logs.
const NODES: [(&str, &str); 3] =
    [("node-1", "node-1.log"), ("node-2", "node-2.log"), ("node-3", "node-3.log")];
const GATEWAYS: [(&str, &str); 3] =
    [("gateway-1", "gateway-1.log"), ("gateway-2", "gateway-2.log"), ("gateway-3", "gateway-3.log")];
/// From the start of the nodes until they own all slots.
const OWNED_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(100);
/// Index of the gateway and of the node that are killed.
const KILLED: usize = 1;

/// The processes of one run. Fields end in this order: the gateways first.
#[derive(Debug)]
pub(crate) struct Cluster {
    gateways: Vec<Server>,
    nodes: Vec<Server>,
    /// Work on another primary; `None`: it is done, or the first one lives.
    succession: Option<JoinHandle<Result<(), DemoError>>>,
    cell: Cell,
}

impl Cluster {
    /// Starts everything on free ports and Unix sockets, and waits until it serves.
    pub(crate) fn start(
        program: &Path,
        folder: &RunFolder,
        certificate: &Certificate,
        stop: &Stop,
    ) -> Result<Self, DemoError> {
        let log = |name| folder.file(name).map_err(system("make a log file"));
        let cell = Cell::start(folder.path(), &log("postgresql.log")?, stop)?;
        let mut cluster = Self { gateways: Vec::new(), nodes: Vec::new(), succession: None, cell };
        let cells = format!("store.cells=[{:?}]", cluster.cell.address());
        run(program, &["backend", "migrate", "--cluster", "demo", "--set", &cells])?;
        for (number, (name, file)) in (1..).zip(NODES) {
            let sets = [
                format!("node_number={number}"),
                "listen=127.0.0.1:0".to_owned(),
                "link.unproven=loopback".to_owned(),
                cells.clone(),
            ];
            cluster.nodes.push(Server::start(name, program, &arguments("backend", &sets), log(file)?, stop)?);
        }
        let until = clock::now() + OWNED_WITHIN;
        while let Err(problem) = run(program, &["cluster", "status", "--set", &cells]) {
            stop.check()?;
            cluster.check()?;
            if clock::now() >= until {
                return Err(DemoError::TooBusy(format!("the nodes do not own all slots: {problem}")));
            }
            std::thread::park_timeout(LOOK);
        }
        let links = cluster.nodes.iter().map(|node| node.address("link"));
        let links = links.collect::<Result<Vec<_>, _>>()?;
        for (name, file) in GATEWAYS {
            let mut sets = gateway_settings(name, certificate, &links);
            sets.push("backend.balance=cluster".to_owned());
            cluster.gateways.push(Server::start(name, program, &arguments("run", &sets), log(file)?, stop)?);
        }
        Ok(cluster)
    }

    /// Addresses of the gateways.
    pub(crate) fn listeners(&self) -> Result<Vec<SocketAddr>, DemoError> {
        self.gateways.iter().map(|gateway| gateway.address("listener")).collect()
    }

    /// The processes, for people.
    pub(crate) fn describe(&self) -> String {
        let pids = |servers: &[Server]| {
            servers.iter().map(|server| server.pid().to_string()).collect::<Vec<_>>().join(" ")
        };
        format!("gateways pid {}   nodes pid {}", pids(&self.gateways), pids(&self.nodes))
    }

    /// Kills a gateway. Returns the index that it had among the listeners.
    pub(crate) fn kill_gateway(&mut self) -> Result<usize, DemoError> {
        self.gateways.remove(KILLED).kill()?;
        Ok(KILLED)
    }

    pub(crate) fn kill_node(&mut self) -> Result<(), DemoError> {
        self.nodes.remove(KILLED).kill()
    }

    /// Kills the primary, and begins to make a standby the next one.
    pub(crate) fn kill_primary(&mut self) -> Result<(), DemoError> {
        let succession = self.cell.kill_primary()?;
        let named = std::thread::Builder::new().name("succession".to_owned());
        let thread = named.spawn(|| Succession::run(succession));
        self.succession = Some(thread.map_err(system("start a thread"))?);
        Ok(())
    }

    /// Returns true if there is a primary, as far as this process has made one.
    pub(crate) fn has_primary(&mut self) -> Result<bool, DemoError> {
        if self.succession.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(false);
        }
        match self.succession.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(true),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) => {
                Err(DemoError::Server { name: "database", problem: "its succession panicked".to_owned() })
            }
        }
    }
}

impl Serving for Cluster {
    fn check(&mut self) -> Result<(), DemoError> {
        for server in self.gateways.iter_mut().chain(&mut self.nodes) {
            server.check()?;
        }
        self.has_primary()?;
        self.cell.check()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Its programs of PostgreSQL are in the folder that goes with the cell.
        if let Some(succession) = self.succession.take() {
            succession.join().ok();
        }
    }
}

/// Runs the program to its end.
fn run(program: &Path, arguments: &[&str]) -> Result<(), DemoError> {
    let mut command = Command::new(program);
    crate::server::forget_settings(&mut command);
    let done = command.args(arguments).stdin(Stdio::null()).output().map_err(system("run the program"))?;
    if done.status.success() {
        return Ok(());
    }
    let words = [done.stdout, done.stderr].concat();
    let words = String::from_utf8_lossy(&words).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(DemoError::Server { name: "cluster", problem: format!("{} said: {words}", arguments.join(" ")) })
}
