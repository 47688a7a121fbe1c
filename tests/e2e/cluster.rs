//! Several nodes and gateways over PostgreSQL cells: real processes, a real database, clients of the library.
//!
//! Every message that was acknowledged is with every device of both people, once and in order, whatever ends meanwhile.

mod api;
mod cut;
mod nodes;
mod people;

use crate::gateway::{Backend, Gateway, KeptPort};
use crate::link_tls::{Ca, Paper, strs};
use crate::postgres::{self, Postgres};
use crate::process::{Stopped, TempFile, program, run};
use crate::sdk::connect;
use crate::series::{Series, UNHURRIED};
use crate::{PATIENCE, soak, until};
use moorline::sys::clock;
use moorline_proto::random::Random;
use moorline_sdk::client::{Client, Pending};
use moorline_sdk::core::Target;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

/// People; their slots are of all nodes.
const PEOPLE: usize = 6;

/// Cells, nodes and gateways.
struct Cluster {
    cells: String,
    nodes: BTreeMap<u16, Backend>,
    /// Ready lines of the nodes.
    lines: BTreeMap<u16, String>,
    gateways: Vec<Series>,
    /// Settings of a node: what all nodes have, who it is, and whom it believes.
    trust: Box<dyn Fn(u16) -> Vec<String>>,
    /// Certificates of gateways.
    _papers: Vec<Paper>,
    /// The primary comes first.
    servers: Vec<Postgres>,
}

impl Cluster {
    /// Starts nodes 1 to 3 over this many cells, and this many gateways. `None`: PostgreSQL is not installed.
    fn start(cells: usize, gateways: usize) -> Option<Self> {
        let server = Postgres::start(&[("fsync", "off"), ("max_connections", "120")])?;
        let addresses: Vec<_> = (0..cells).map(|cell| server.database(&format!("cell{cell}"))).collect();
        Some(Self::over(vec![server], &addresses, gateways, None))
    }

    /// Starts nodes with these settings, and a gateway, over one cell. `None`: PostgreSQL is not installed, which is told.
    fn start_with(test: &str, settings: &[&str]) -> Option<Self> {
        Self::start_all_with(test, settings, &[])
    }

    /// Does what [`Self::start_with`] does; the gateway has these settings, too.
    fn start_all_with(test: &str, settings: &[&str], of_gateway: &[&str]) -> Option<Self> {
        let Some(server) = Postgres::start(&[("fsync", "off"), ("max_connections", "120")]) else {
            postgres::skip(test);
            return None;
        };
        let address = server.database("cell0");
        let mut trust = vec!["link.unproven=loopback".to_owned()];
        trust.extend(settings.iter().map(|set| (*set).to_owned()));
        let gateway = std::iter::once("gateway.id=g0").chain(of_gateway.iter().copied());
        let gateway: Vec<_> = gateway.map(str::to_owned).collect();
        Some(Self::trusting(vec![server], &[address], &[gateway], Box::new(move |_| trust.clone())))
    }

    /// Starts nodes and gateways over one cell, with TLS on all links.
    fn start_encrypted(gateways: usize) -> Option<Self> {
        let server = Postgres::start(&[("fsync", "off"), ("max_connections", "120")])?;
        let address = server.database("cell0");
        Some(Self::over(vec![server], &[address], gateways, Some(Ca::new("links"))))
    }

    /// Starts nodes and gateways over one cell of a primary and two standbys, of which one has to have each message.
    fn start_with_standbys(gateways: usize) -> Option<Self> {
        let primary = Postgres::start(&[
            ("max_connections", "120"),
            ("hot_standby", "on"),
            ("synchronous_standby_names", "'ANY 1 (*)'"),
        ])?;
        // Waits for no standby: there is none yet.
        let standbys = [primary.standby(), primary.standby()];
        primary.database("cell0");
        let hosts = [&primary, &standbys[0], &standbys[1]].map(Postgres::host).join(",");
        let address = format!("host={hosts} user=moorline dbname=cell0");
        Some(Self::over(std::iter::once(primary).chain(standbys).collect(), &[address], gateways, None))
    }

    fn over(servers: Vec<Postgres>, addresses: &[String], gateways: usize, ca: Option<Ca>) -> Self {
        let (mut papers, mut of_gateways) = (Vec::new(), Vec::new());
        for number in 0..gateways {
            let id = format!("g{number}");
            let mut sets = vec![format!("gateway.id={id}")];
            if let Some(ca) = &ca {
                let paper = ca.issue(&[&id]);
                sets.extend(paper.sets("backend.tls", ca));
                papers.push(paper);
            }
            of_gateways.push(sets);
        }
        Self { _papers: papers, ..Self::trusting(servers, addresses, &of_gateways, node_trust(ca)) }
    }

    /// Starts nodes with these settings, and gateways with those.
    fn trusting(
        servers: Vec<Postgres>,
        addresses: &[String],
        of_gateways: &[Vec<String>],
        trust: Box<dyn Fn(u16) -> Vec<String>>,
    ) -> Self {
        let cells = format!("store.cells={addresses:?}");
        let (code, said, error) = run(&["backend", "migrate", "--cluster", "test", "--set", &cells]);
        assert_eq!((code, said.lines().count()), (Some(0), addresses.len()), "{said}{error}");
        let (nodes, lines) = (BTreeMap::new(), BTreeMap::new());
        let mut cluster =
            Self { cells, nodes, lines, gateways: Vec::new(), trust, _papers: Vec::new(), servers };
        for node in 1..=3 {
            cluster.start_node(node, "127.0.0.1:0");
        }
        cluster.until_owned(&[1, 2, 3]);
        for sets in of_gateways {
            cluster.start_gateway(&[1, 2, 3], sets);
        }
        cluster
    }

    /// Starts a gateway that is told the addresses of these nodes.
    fn start_gateway(&mut self, nodes: &[u16], sets: &[String]) {
        let endpoints: Vec<_> = nodes.iter().map(|node| self.nodes[node].address.to_string()).collect();
        let endpoints = format!("backend.endpoints={}", endpoints.join(","));
        let pid_file = TempFile::new("");
        let named = format!("handover.pid_file={}", pid_file.path().display());
        let own = ["backend.balance=cluster", &endpoints, &named];
        let gateway = Gateway::start_bare(&[&UNHURRIED[..], &own, &strs(sets)].concat());
        gateway.until_ready();
        self.gateways.push(Series::of(gateway, pid_file));
    }

    fn sets(&self, node: u16, listen: &str) -> Vec<String> {
        let sets = [format!("node_number={node}"), format!("listen={listen}"), self.cells.clone()];
        let sets = sets.into_iter().chain((self.trust)(node));
        sets.flat_map(|set| ["--set".to_owned(), set]).collect()
    }

    fn start_node(&mut self, node: u16, listen: &str) {
        let arguments = [vec!["backend".to_owned()], self.sets(node, listen)].concat();
        let (backend, line) = Backend::of_command(program(&arguments));
        assert!(line.contains("store=cells"), "{line}");
        self.nodes.insert(node, backend);
        self.lines.insert(node, line);
    }

    fn status(&self) -> Value {
        let (_, said, error) = run(&["cluster", "status", "--json", "--set", &self.cells]);
        serde_json::from_str(&said).unwrap_or_else(|cause| panic!("{cause}: {said}{error}"))
    }

    /// Waits until these nodes, and no others, own all slots.
    fn until_owned(&self, nodes: &[u16]) {
        until("the slots' owners", || {
            let state = self.status();
            let owners = state["nodes"].as_array().expect("a list").iter().filter(|it| it["slots"] != 0);
            let owners: Vec<_> = owners.filter_map(|it| it["node"].as_u64()).collect();
            let wanted: Vec<u64> = nodes.iter().map(|node| u64::from(*node)).collect();
            (owners == wanted && state["unowned"] == 0).then_some(())
        });
    }

    fn gateway(&self, number: usize) -> &Gateway {
        &self.series(number).gateway
    }

    fn series(&self, number: usize) -> &Series {
        &self.gateways[number % self.gateways.len()]
    }
}

/// Settings by which a node is believed and believes others.
fn node_trust(ca: Option<Ca>) -> Box<dyn Fn(u16) -> Vec<String>> {
    let Some(ca) = ca else { return Box::new(|_| vec!["link.unproven=loopback".to_owned()]) };
    let issue = |node| ca.issue(&["127.0.0.1", &format!("node-{node}")]);
    let papers: Vec<Paper> = (1..=3).map(issue).collect();
    // A further node has the certificate of the third.
    Box::new(move |node| papers[usize::from(node.min(3)) - 1].sets("link.tls", &ca))
}

/// A person with a device at each gateway, and what the devices got: conversation, seq and text.
struct Person {
    uid: String,
    devices: Vec<Client>,
    got: Vec<Vec<(String, u64, String)>>,
}

fn people(cluster: &Cluster) -> Vec<Person> {
    let person = |number: usize| {
        let uid = format!("user{number}");
        let device = |at: usize| connect(cluster.gateway(at).listener, &uid, &format!("d{at}"));
        let devices: Vec<_> = (0..cluster.gateways.len()).map(device).collect();
        // A login is known to the gateway before it is known to the cell, and a message to an unknown user is refused for good.
        for device in &devices {
            until("the backend's answer to a device", || device.conversations(PATIENCE).ok());
        }
        let got = devices.iter().map(|_| Vec::new()).collect();
        Person { uid, devices, got }
    };
    (0..PEOPLE).map(person).collect()
}

/// Everybody writes `round` to everybody, from the devices in turn.
fn write(people: &[Person], round: usize) -> Vec<(String, Pending)> {
    let mut sent = Vec::new();
    for (from, person) in people.iter().enumerate() {
        for (to, other) in people.iter().enumerate().filter(|(to, _)| *to != from) {
            let text = format!("{from}>{to} {round}");
            let device = &person.devices[(round + to) % person.devices.len()];
            sent.push((text.clone(), device.send(Target::user(&other.uid), 1, text).expect("taken")));
        }
    }
    sent
}

/// Waits for the receipts. Returns the conversation, the seq and the text of each message.
fn stored(sent: Vec<(String, Pending)>) -> Vec<(String, u64, String)> {
    let stored = sent.into_iter().map(|(text, pending)| {
        let receipt = pending.wait_durable(PATIENCE).unwrap_or_else(|error| panic!("{text}: {error}"));
        (receipt.conversation.to_string(), receipt.seq, text)
    });
    stored.collect()
}

/// Every device has everything of its person's conversations, once and in order; but its own messages, as it pleases.
fn check(people: &mut [Person], stored: &[(String, u64, String)]) {
    let mut seqs = BTreeMap::<&str, Vec<u64>>::new();
    stored.iter().for_each(|(conversation, seq, _)| seqs.entry(conversation).or_default().push(*seq));
    for (conversation, seqs) in &mut seqs {
        seqs.sort_unstable();
        assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{conversation}: {seqs:?}");
    }
    for (number, person) in people.iter_mut().enumerate() {
        let is_theirs = |text: &str| {
            let (from, to) =
                text.split(' ').next().and_then(|pair| pair.split_once('>')).expect("a text of this test");
            (from == number.to_string(), to == number.to_string())
        };
        let wanted: Vec<_> = stored.iter().filter(|(_, _, text)| is_theirs(text).1).collect();
        for (device, got) in person.devices.iter().zip(&mut person.got) {
            until("the messages of a device", || {
                while let Ok(message) = device.recv_timeout(std::time::Duration::from_millis(20)) {
                    let text = String::from_utf8(message.payload.to_vec()).expect("text");
                    got.push((message.conversation.to_string(), message.seq, text));
                }
                wanted.iter().all(|message| got.contains(message)).then_some(())
            });
            for (at, message) in got.iter().enumerate() {
                assert!(!got[..at].contains(message), "{} got {message:?} twice", person.uid);
                let later = got[..at]
                    .iter()
                    .find(|(conversation, seq, _)| *conversation == message.0 && *seq > message.1);
                assert_eq!(later, None, "{} got {message:?} behind it", person.uid);
            }
        }
    }
}

fn start(test: &str, cells: usize, gateways: usize) -> Option<Cluster> {
    let cluster = Cluster::start(cells, gateways);
    if cluster.is_none() {
        postgres::skip(test);
    }
    cluster
}

#[test]
fn three_nodes_and_two_gateways_are_one_system() {
    let Some(cluster) = start("three_nodes_and_two_gateways_are_one_system", 2, 2) else { return };
    let mut people = people(&cluster);
    let mut all = Vec::new();
    for round in 0..3 {
        all.extend(stored(write(&people, round)));
    }
    check(&mut people, &all);
    let state = cluster.status();
    let leases = state["nodes"].as_array().expect("a list").iter().filter(|it| it["lease_ms"] != 0).count();
    assert_eq!((state["cluster"].as_str(), leases), (Some("test"), 3), "{state}");
    // The history is the same from each node: that of user0's slot reads what other nodes have stored.
    let reader = connect(cluster.gateway(1).listener, "user0", "late");
    for other in 1..PEOPLE {
        let conversation = format!("c2c:user0:user{other}");
        let page = reader.pull(&conversation, 1, 0, 0, PATIENCE).expect("a page");
        let mut read: Vec<_> = page
            .messages
            .iter()
            .map(|message| {
                (
                    conversation.clone(),
                    message.seq,
                    String::from_utf8(message.payload.to_vec()).expect("text"),
                )
            })
            .collect();
        let mut wanted: Vec<_> = all.iter().filter(|message| message.0 == conversation).cloned().collect();
        read.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(read, wanted);
    }
}

#[test]
fn a_node_that_is_killed_loses_nothing_that_was_acknowledged() {
    let Some(mut cluster) = start("a_node_that_is_killed_loses_nothing_that_was_acknowledged", 1, 2) else {
        return;
    };
    let mut people = people(&cluster);
    let mut all = stored(write(&people, 0));
    let under_way = write(&people, 1);
    let place = cluster.nodes.remove(&2).expect("it runs").kill();
    // Its slots are claimed when its lease has ended; what was sent meanwhile is stored then.
    let more = write(&people, 2);
    all.extend(stored(under_way));
    all.extend(stored(more));
    check(&mut people, &all);
    cluster.until_owned(&[1, 3]);
    cluster.start_node(2, &place.to_string());
    cluster.until_owned(&[1, 2, 3]);
    all.extend(stored(write(&people, 3)));
    check(&mut people, &all);
}

#[test]
fn a_node_that_is_told_to_end_gives_its_slots_away_first() {
    let Some(mut cluster) = start("a_node_that_is_told_to_end_gives_its_slots_away_first", 1, 1) else {
        return;
    };
    let mut people = people(&cluster);
    let mut all = stored(write(&people, 0));
    let mut node = cluster.nodes.remove(&1).expect("it runs");
    let under_way = write(&people, 1);
    node.process.signal(Signal::SIGTERM);
    assert!(node.process.end().success());
    // Nobody waits for the end of a lease: the other nodes own everything when the process has ended.
    let state = cluster.status();
    let owners = state["nodes"].as_array().expect("a list").iter().filter(|it| it["slots"] != 0);
    assert_eq!((owners.count(), &state["unowned"]), (2, &Value::from(0)), "{state}");
    all.extend(stored(under_way));
    all.extend(stored(write(&people, 2)));
    check(&mut people, &all);
}

#[test]
fn a_gateway_is_upgraded_and_another_one_killed_in_a_cluster() {
    let Some(mut cluster) = start("a_gateway_is_upgraded_and_another_one_killed_in_a_cluster", 1, 2) else {
        return;
    };
    let mut people = people(&cluster);
    let mut all = stored(write(&people, 0));
    let under_way = write(&people, 1);
    cluster.gateways[0].restart();
    all.extend(stored(under_way));
    all.extend(stored(write(&people, 2)));
    check(&mut people, &all);
    // The slots go on moving in the process that took over.
    let place = cluster.nodes.remove(&3).expect("it runs").kill();
    all.extend(stored(write(&people, 3)));
    check(&mut people, &all);
    cluster.start_node(3, &place.to_string());
    cluster.until_owned(&[1, 2, 3]);
    let mut gateway = cluster.gateways.pop().expect("the second");
    gateway.gateway.process.kill();
    for person in &mut people {
        person.devices.pop();
        person.got.pop();
    }
    all.extend(stored(write(&people, 4)));
    check(&mut people, &all);
}

#[test]
fn a_second_process_with_a_nodes_number_owns_nothing_and_says_so() {
    let Some(cluster) = start("a_second_process_with_a_nodes_number_owns_nothing_and_says_so", 1, 1) else {
        return;
    };
    let arguments = [vec!["backend".to_owned()], cluster.sets(2, "127.0.0.1:0")].concat();
    let mut command = program(&arguments);
    command.stderr(Stdio::piped());
    let (twin, _) = Backend::of_command(command);
    let warned = "another process has the lease of this node_number";
    until("the warning", || twin.process.log().contains(warned).then_some(()));
    let mut people = people(&cluster);
    let all = stored(write(&people, 0));
    check(&mut people, &all);
    let state = cluster.status();
    let node =
        state["nodes"].as_array().expect("a list").iter().find(|it| it["node"] == 2).expect("it lives");
    assert_eq!(node["address"].as_str(), Some(&*cluster.nodes[&2].address.to_string()), "{state}");
}

#[test]
fn gateways_and_backends_of_another_kind_are_refused_by_name() {
    let Some(cluster) = start("gateways_and_backends_of_another_kind_are_refused_by_name", 1, 0) else {
        return;
    };
    let endpoints = format!("backend.endpoints={}", cluster.nodes[&1].address);
    let plain = Gateway::start_bare(&[&endpoints, "gateway.id=plain"]);
    until("the refusal of a gateway that follows no slots", || {
        plain.process.log().contains("set backend.balance = \\\"cluster\\\"").then_some(())
    });
    let alone = Backend::start();
    let endpoints = format!("backend.endpoints={}", alone.address);
    let wrong = Gateway::start_bare(&[&endpoints, "backend.balance=cluster"]);
    until("the refusal of a backend of no cluster", || {
        wrong.process.log().contains("the backend is of no cluster").then_some(())
    });
    assert_eq!((plain.get("/readyz").0, wrong.get("/readyz").0), (503, 503));
}

#[test]
fn a_primary_that_is_killed_loses_nothing_that_was_acknowledged() {
    let Some(mut cluster) = Cluster::start_with_standbys(2) else {
        return postgres::skip("a_primary_that_is_killed_loses_nothing_that_was_acknowledged");
    };
    assert_eq!(cluster.status()["problems"], Value::from(Vec::<String>::new()), "{}", cluster.status());
    let mut people = people(&cluster);
    let mut all = stored(write(&people, 0));
    let under_way = write(&people, 1);
    cluster.servers[0].kill();
    // The one that has more is the next primary, as the software of a cell sees to it.
    let ahead = usize::from(position(&cluster.servers[2]) > position(&cluster.servers[1]));
    cluster.servers[1 + ahead].promote();
    // The other one gets no more from the dead primary: until it does, nothing may be acknowledged that one server alone has.
    relax(&cluster.servers[1 + ahead]);
    let more = write(&people, 2);
    all.extend(stored(under_way));
    all.extend(stored(more));
    check(&mut people, &all);
}

/// Bytes of the log that a standby has.
fn position(server: &Postgres) -> u64 {
    let text = "select (pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::int8";
    server.sql("postgres", text).parse().expect("a number")
}

/// Lets a new primary commit without a standby: this test makes it no new ones.
fn relax(server: &Postgres) {
    server.sql("postgres", "alter system set synchronous_standby_names = ''");
    server.sql("postgres", "select pg_reload_conf()");
}

#[test]
fn nodes_and_gateways_speak_tls_and_a_node_with_anothers_certificate_is_refused() {
    let Some(mut cluster) = Cluster::start_encrypted(1) else {
        return postgres::skip(
            "nodes_and_gateways_speak_tls_and_a_node_with_anothers_certificate_is_refused",
        );
    };
    let mut people = people(&cluster);
    let mut all = stored(write(&people, 0));
    check(&mut people, &all);
    until("the links between nodes", || {
        let are_up = |node: &Backend| node.process.log().matches("link to another node up").count() >= 2;
        cluster.nodes.values().all(are_up).then_some(())
    });
    cluster.start_node(4, "127.0.0.1:0");
    until("the refusal of node 4", || {
        let log = cluster.nodes[&4].process.log();
        log.contains("the certificate of the gateway is not for this name").then_some(())
    });
    // It gets slots, for its lease is real, and nobody reaches it: its users write when it has gone.
    cluster.nodes.remove(&4).expect("it runs").kill();
    cluster.until_owned(&[1, 2, 3]);
    all.extend(stored(write(&people, 1)));
    check(&mut people, &all);
}

/// Nodes die, end, stand still and come back, and gateways are upgraded, in any order, while everybody writes.
#[test]
fn whatever_dies_nothing_that_was_acknowledged_is_lost() {
    let Some(mut cluster) = start("whatever_dies_nothing_that_was_acknowledged_is_lost", 2, 2) else {
        return;
    };
    let seed = soak::seed();
    println!("MOORLINE_SOAK_SEED={seed}");
    let mut random = Random::new(seed);
    let mut people = people(&cluster);
    let (mut all, mut counts, mut round) = (Vec::new(), BTreeMap::<&str, u32>::new(), 0);
    let end = clock::now() + soak::time(10);
    while clock::now() < end {
        let under_way = write(&people, round);
        let node = 1 + u16::try_from(random.below(3)).expect("small");
        let (what, others) = match random.below(4) {
            0 => {
                let place = cluster.nodes.remove(&node).expect("it runs").kill();
                let others = write(&people, round + 1);
                cluster.start_node(node, &place.to_string());
                ("killed", others)
            }
            1 => {
                let mut ended = cluster.nodes.remove(&node).expect("it runs");
                ended.process.signal(Signal::SIGTERM);
                let others = write(&people, round + 1);
                assert!(ended.process.end().success());
                let place = KeptPort::keep(ended.address);
                cluster.start_node(node, &place.to_string());
                ("ended", others)
            }
            2 => {
                let pid = cluster.nodes[&node].process.pid();
                let stopped = Stopped::stop(pid);
                let others = write(&people, round + 1);
                // Longer than its lease, or not.
                let time = if random.one_in(2) { 7000 } else { random.below(2000) };
                std::thread::park_timeout(Duration::from_millis(time));
                stopped.go_on();
                ("stopped", others)
            }
            _ => {
                cluster.series(usize::from(node)).restart();
                ("upgraded", write(&people, round + 1))
            }
        };
        *counts.entry(what).or_default() += 1;
        round += 2;
        all.extend(stored(under_way));
        all.extend(stored(others));
    }
    cluster.until_owned(&[1, 2, 3]);
    all.extend(stored(write(&people, round)));
    check(&mut people, &all);
    println!("{} messages, {counts:?}", all.len());
}
