//! One node of a cluster: [`Im`] on a [`ClusterStore`], the threads of its cells, and its part of the links.
//!
//! ```text
//! gateways --Event--> NodeHandler --ImHandler--> ClusterStore --CellRequest--> threads --SQL--> cells
//! other nodes --PEER--^      |                        ^------------CellResult-----+
//!                            +--slots, messages to other nodes--> LinkHost
//! ```

mod cells;
mod figures;

pub(crate) use figures::NodeFigures;

use crate::cluster::calls::{Calls, Output as CallOutput};
use crate::cluster::cell::{CellId, Life, RequestId, UnknownOutcome};
use crate::cluster::store::{ClusterStore, Layout, Output as StoreOutput, PeerMessage};
use crate::cluster::wire;
use crate::config::{BackendConfig, StoreConfig};
use crate::error::BackendError;
use crate::im::{ApiCall, BackendMessage, Im, ImHandler, Judgement};
use crate::server::{Event, Handler, JudgeTo, NodeSlots, Now, Outbox, Remote, Up};
use crate::sql::{CellAddress, Connection, admin};
use bytes::Bytes;
use cells::Cells;
use figures::Tick;
use moorline_net::secret_file;
use moorline_proto::frame::Command;
use moorline_proto::line_limit::LineLimit;
use moorline_proto::link::LinkAddress;
use moorline_proto::message::backend::Auth;
use moorline_proto::message::client::Code;
use moorline_proto::slots::NodeId;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;
use std::sync::Arc;

/// Longest password, in bytes.
const PASSWORD_MAX: u64 = 4096;
/// Longest time for giving all slots away at the end.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Longest name of a cluster that is told as it is, in bytes.
const NAME_MAX: usize = 48;

/// Handler of a node.
#[derive(Debug)]
pub(crate) struct NodeHandler {
    inner: ImHandler<ClusterStore>,
    node: NodeId,
    cells: Cells,
    figures: Arc<NodeFigures>,
    /// Time of the last input.
    now: Instant,
    /// Revision of the slots that were told.
    told: Option<u64>,
    /// Requests that no thread has taken: they are answered with the next tick.
    unsent: Vec<RequestId>,
    to_peers: VecDeque<(NodeId, Bytes)>,
    calls: Calls,
    stop_until: Option<Instant>,
    had_lease: bool,
    /// Log lines about a lease that another process has.
    twins: LineLimit,
}

/// Reads the addresses of the cells, with the password of their user.
///
/// # Errors
/// [`BackendError`]: a connection string or the password's file.
pub fn addresses(config: &StoreConfig) -> Result<Vec<CellAddress>, BackendError> {
    let file = &config.password_file;
    let password = if file.as_os_str().is_empty() {
        None
    } else {
        let read = secret_file::read(file, PASSWORD_MAX);
        let read = read.map_err(|cause| BackendError::SecretFile { key: "store.password_file", cause })?;
        read.warning.iter().for_each(|warning| tracing::warn!("store.password_file: {warning}"));
        Some(read.bytes.trim_ascii().to_vec())
    };
    let parsed = config.cells.iter().map(|text| {
        let address = text
            .parse::<CellAddress>()
            .map_err(|cause| BackendError::InvalidConfig { key: "store.cells", reason: cause.to_string() })?;
        Ok(match &password {
            Some(password) => address.with_password(password),
            None => address,
        })
    });
    parsed.collect()
}

impl NodeHandler {
    /// Checks the cells, and starts the threads of a node whose link port is `link`.
    ///
    /// # Errors
    /// [`BackendError`]: a cell is not reachable or not of this cluster, or the system refuses threads.
    pub(crate) fn open(
        config: &BackendConfig,
        link: &LinkAddress,
        remote: &Remote<BackendMessage>,
        figures: &Arc<NodeFigures>,
    ) -> Result<Self, BackendError> {
        let cells = addresses(&config.store)?;
        let cluster = admin::check(&cells)?;
        let node = NodeId(config.node_number);
        let mut last_id = 0;
        for (cell, address) in (0..).zip(&cells) {
            let to_error = |cause| admin::CellError::Sql { cell, address: Box::new(address.clone()), cause };
            if let Some(tls) = address.tls().map_err(|cause| to_error(cause.into()))? {
                tls.warnings().iter().for_each(|warning| tracing::warn!(cell, "{warning}"));
            }
            let mut connection = Connection::open(address).map_err(to_error)?;
            last_id = last_id.max(connection.last_id(node).map_err(to_error)?);
        }
        let mut random = [0; 8];
        let failed = |cause| BackendError::Poll { operation: "get random bytes", cause };
        getrandom::fill(&mut random).map_err(|error| failed(error.into()))?;
        let address = config.store.address.map_or_else(|| link.to_string(), |address| address.to_string());
        let life = Life {
            node,
            number: u64::from_le_bytes(random),
            address: address.as_str().into(),
            is_stopping: false,
        };
        let layout = Layout { cells: u16::try_from(cells.len()).unwrap_or(u16::MAX) };
        let store = ClusterStore::new(life, layout, last_id);
        let store = store.with_name(name_of(&cluster)).with_limits(&config.im);
        let failed = |cause| BackendError::Poll { operation: "start a thread for a cell", cause };
        let cells = Cells::start(&cells, remote, figures).map_err(failed)?;
        let im = Im::new(config.im.clone(), config.node_number, store);
        tracing::info!(node = node.0, cluster, address, "a node of a cluster");
        Ok(Self {
            inner: ImHandler::new(im, |_| ()),
            node,
            cells,
            figures: figures.clone(),
            now: Instant::ZERO,
            told: None,
            unsent: Vec::new(),
            to_peers: VecDeque::new(),
            calls: Calls::default(),
            stop_until: None,
            had_lease: false,
            twins: LineLimit::new(),
        })
    }

    /// Has `judge` judge logins.
    pub(crate) fn with_judge(
        self,
        judge: impl FnMut(Now, Auth, JudgeTo) -> Option<(JudgeTo, Judgement)> + 'static,
    ) -> Self {
        Self { inner: self.inner.with_judge(judge), ..self }
    }

    fn store(&self) -> &ClusterStore {
        self.inner.im().store()
    }

    /// Gives the store the time, once a turn.
    fn begin(&mut self, now: Now) {
        if self.now != now.instant {
            self.now = now.instant;
            self.inner.im_mut().store_mut().handle_time(now.instant);
            self.calls.handle_time(now.instant);
        }
    }

    /// Does what calls of the server API need.
    fn perform_calls(&mut self, now: Now, out: &mut Outbox) {
        while let Some(output) = self.calls.poll_output() {
            match output {
                CallOutput::Do(call, reply) => {
                    self.inner.handle_message(now, BackendMessage::Api(call, reply), out);
                }
                CallOutput::Peer(node, message) => self.to_peers.push_back((node, wire::encode(message))),
            }
        }
    }

    /// Takes what the store has to send.
    fn take_outputs(&mut self) {
        while let Some(output) = self.inner.im_mut().store_mut().poll_output() {
            match output {
                StoreOutput::Cell(cell, id, request) => {
                    if !self.cells.send(cell, id, request) {
                        self.unsent.push(id);
                    }
                }
                StoreOutput::Peer(node, message) => self.to_peers.push_back((node, wire::encode(message))),
            }
        }
    }

    /// Has what the store has completed go on.
    fn complete(&mut self, now: Now, out: &mut Outbox) {
        self.inner.handle_message(now, BackendMessage::Committed, out);
    }

    fn publish(&self) {
        let store = self.store();
        let (slots, nodes) = (store.owned().count() as u64, store.members().living().len() as u64);
        self.figures.set(Tick {
            slots,
            nodes,
            has_lease: store.members().is_held(self.now),
            has_twin: store.members().twin().is_some(),
            status: store.status(),
            calls: self.calls.status(),
        });
    }

    fn note_lease(&mut self) {
        let (is_held, node) = (self.store().members().is_held(self.now), self.node.0);
        let had_lease = std::mem::replace(&mut self.had_lease, is_held);
        if is_held {
            if !had_lease {
                tracing::info!(node, "the lease is held");
            }
            return;
        }
        if let Some(address) = self.store().members().twin().map(|life| life.address.clone())
            && self.twins.allow(self.now).is_some()
        {
            tracing::warn!(
                node,
                address = &*address,
                "another process has the lease of this node_number, or an earlier one had it a moment ago; give each node \
                 its own"
            );
        } else if had_lease {
            tracing::warn!(node, "the lease has ended: the first cell does not renew it");
        }
    }
}

/// The name of a cluster for the links, at most 64 bytes.
fn name_of(cluster: &str) -> Bytes {
    if cluster.len() <= NAME_MAX {
        return format!("cluster {cluster}").into();
    }
    let hash = cluster.bytes().fold(0, |hash, byte| moorline_proto::random::mix(hash ^ u64::from(byte)));
    format!("cluster {hash:016x}").into()
}

impl Handler for NodeHandler {
    type Message = BackendMessage;

    fn store_name(&self) -> Bytes {
        self.inner.store_name()
    }

    fn handle(&mut self, now: Now, event: Event, out: &mut Outbox) {
        self.begin(now);
        match event {
            Event::Peer { node, message } => {
                let Some(message) = wire::decode(message) else {
                    return tracing::debug!(node = node.0, "a message of a node cannot be read");
                };
                if matches!(message, PeerMessage::Call(..) | PeerMessage::Called(..)) {
                    self.calls.handle_peer(self.inner.im().store(), node, message);
                    return self.perform_calls(now, out);
                }
                self.inner.im_mut().store_mut().handle_peer(node, message);
                self.complete(now, out);
            }
            // Members of a room are of all nodes, and this one knows its own.
            Event::Up(Up { command: Command::Sub | Command::Unsub, reply: Some(reply), .. }) => {
                out.answer_sub(reply, Code::Unsupported, "a node of a cluster has no rooms yet");
            }
            event => {
                if matches!(event, Event::Tick) {
                    for id in std::mem::take(&mut self.unsent) {
                        self.inner.im_mut().store_mut().handle_cell(id, Err(UnknownOutcome));
                    }
                    self.note_lease();
                    self.publish();
                }
                self.inner.handle(now, event, out);
            }
        }
    }

    fn handle_auth(&mut self, now: Now, question: Auth, judge: JudgeTo, out: &mut Outbox) {
        self.inner.handle_auth(now, question, judge, out);
    }

    fn handle_message(&mut self, now: Now, message: BackendMessage, out: &mut Outbox) {
        self.begin(now);
        match message {
            BackendMessage::Cell(id, result) => {
                self.inner.im_mut().store_mut().handle_cell(id, *result);
                self.complete(now, out);
            }
            BackendMessage::Api(call, reply) if !matches!(call, ApiCall::Status) => {
                self.calls.handle_call(self.inner.im().store(), now.instant, call, reply);
                self.perform_calls(now, out);
            }
            message => {
                if matches!(message, BackendMessage::Api(ApiCall::Status, _)) {
                    self.publish(); // a process that stood still has lost its lease since the last tick
                }
                self.inner.handle_message(now, message, out);
            }
        }
    }

    fn handle_turn_end(&mut self, now: Now, out: &mut Outbox) {
        self.begin(now);
        self.inner.handle_turn_end(now, out);
        self.perform_calls(now, out);
        self.take_outputs();
    }

    fn poll_slots(&mut self) -> Option<(NodeSlots, Vec<(NodeId, LinkAddress)>)> {
        let revision = self.store().revision();
        if self.told == Some(revision) {
            return None;
        }
        self.told = Some(revision);
        let store = self.store();
        // Without a lease this process may be a second one of its number, and must not speak in the name of the first.
        let is_held = store.members().is_held(self.now);
        let living = store.members().living().iter().filter(|_| is_held);
        let living = living.filter_map(|life| Some((life.node, life.address.parse().ok()?)));
        let addresses: Vec<(NodeId, LinkAddress)> = living.collect();
        let peers = addresses.iter().filter(|(node, _)| *node != self.node).cloned().collect();
        let (table, owned) = (store.table().clone(), store.owned().collect());
        Some((NodeSlots { node: self.node, table, owned, addresses }, peers))
    }

    fn poll_peer(&mut self) -> Option<(NodeId, Bytes)> {
        self.to_peers.pop_front()
    }

    fn next_deadline(&self) -> Instant {
        self.calls.next_deadline().into_iter().fold(self.store().next_deadline(), Instant::min)
    }

    fn try_stop(&mut self, now: Now) -> bool {
        self.begin(now);
        let until = *self.stop_until.get_or_insert(now.instant + STOP_MAX);
        self.inner.im_mut().store_mut().begin_stop();
        self.take_outputs();
        if !self.store().is_stopped() && now.instant < until {
            return false;
        }
        // The thread does it while this one ends; if it does not get there, the lease ends by itself.
        let release = self.store().members().release();
        self.cells.send(CellId(0), RequestId(0), release);
        self.cells.flush();
        true
    }

    fn is_over(&self, now: Now) -> bool {
        self.inner.is_over(now)
    }
}
