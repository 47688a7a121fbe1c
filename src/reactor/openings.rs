//! Connections before their first frame: PROXY header, TLS handshake, HTTP upgrade.
//!
//! An opening is a connection of the shard from the begin, so its limits and its deadline are those of every connection
//! without a login. The arithmetic of TLS is done by threads of their own ([`Servers`]); the reactor reads, writes and keeps
//! the order.
//!
//! Run-through: a client connects to a `tls` listener and sends its ClientHello. The reactor gives the bytes to the pool and
//! goes on. The result comes by mail; its bytes are written in the turn after, and the client's Finished goes the same way.
//! The second result has the keys: from then on the connection has the layer [`Layer::Tls`], and its next bytes are frames.
//!
//! While a hot restart is under way no handshake is answered for the first time: its bytes go to the new process as they are.

use super::handshake_pool::Servers;
use super::{Reactor, ReactorMail, is_handshake};
use moorline_net::layer::{Done, Job, JobResult, Layer, Opening, OpeningFault, OpeningKind, Step};
use moorline_net::mailbox::Sender;
use moorline_net::proxy::Trusted;
use moorline_net::upgrade::Origins;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

/// Time in which a PROXY header must be there.
const PROXY_MAX: Duration = Duration::from_secs(1);
/// Interval at which handshakes are tried again that a hot restart held back.
const HELD_LOOK: Duration = Duration::from_millis(10);

/// Rules for the exchange before the first frame.
#[derive(Clone, Debug)]
pub struct OpeningRules {
    /// By number of the listener: what comes first there.
    pub kinds: Vec<OpeningKind>,
    /// By number of the listener: networks whose connections begin with a PROXY header.
    pub proxies: Vec<Trusted>,
    /// Origins of the pages that may connect.
    pub origins: Arc<Origins>,
    /// Certificates and threads for TLS; `None`: no listener needs them.
    pub servers: Option<Servers>,
}

/// The openings of one reactor that wait for something else than their socket.
#[derive(Debug)]
pub(super) struct Openings {
    rules: OpeningRules,
    reply: Sender<ReactorMail>,
    /// Connections whose PROXY header is due, in order of time.
    proxied: VecDeque<(Instant, ConnKey)>,
    /// Connections whose handshake found the queue of the threads full.
    waiting: VecDeque<ConnKey>,
    /// Connections whose handshake is not begun because of a hot restart.
    held: Vec<ConnKey>,
    /// Connections that the process before could not hand over, to be closed.
    lost: Vec<ConnKey>,
    /// Connections whose handshake failed, to be closed.
    failed: Vec<(ConnKey, OpeningFault)>,
    pub(super) counts: OpeningCounts,
}

/// Numbers for the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OpeningCounts {
    pub(super) handshakes: u64,
    pub(super) resumed: u64,
    pub(super) handshakes_failed: u64,
    pub(super) upgrades_refused: u64,
    pub(super) proxies_refused: u64,
    pub(super) lost: u64,
    pub(super) queue_full: u64,
}

impl OpeningCounts {
    /// TLS handshakes that have ended.
    pub(super) const fn all(&self) -> u64 {
        self.handshakes + self.handshakes_failed
    }
}

impl OpeningRules {
    /// Rules for `listeners` plain listeners.
    pub fn plain(listeners: usize) -> Self {
        Self {
            kinds: vec![OpeningKind::default(); listeners],
            proxies: vec![Trusted::default(); listeners],
            origins: Arc::default(),
            servers: None,
        }
    }

    /// Returns whether a connection from this address may come to the listener: from anywhere, or from a trusted proxy.
    pub(super) fn admits(&self, listener: usize, from: IpAddr) -> bool {
        let trusted = &self.proxies[listener];
        trusted.is_empty() || trusted.contains(from)
    }
}

impl Openings {
    pub(super) fn new(rules: OpeningRules, reply: Sender<ReactorMail>) -> Self {
        Self {
            rules,
            reply,
            proxied: VecDeque::new(),
            waiting: VecDeque::new(),
            held: Vec::new(),
            lost: Vec::new(),
            failed: Vec::new(),
            counts: OpeningCounts::default(),
        }
    }

    /// Begins an opening. `None`: frames come at once.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        key: ConnKey,
        listener: usize,
        kind: OpeningKind,
    ) -> Option<Layer> {
        if kind.is_plain() {
            return None;
        }
        if kind.is_proxied {
            self.proxied.push_back((now + PROXY_MAX, key));
        }
        let number = u8::try_from(listener).expect("settings have at most 16 listeners");
        Some(Layer::Opening(Box::new(Opening::new(kind, number))))
    }

    /// Notes a connection that the process before could not hand over.
    pub(super) fn lose(&mut self, key: ConnKey) {
        self.lost.push(key);
    }

    /// Number of connections that the process before could not hand over and that are not closed yet.
    pub(super) fn lost(&self) -> usize {
        self.lost.len()
    }

    /// Notes an opening of the process before, whose PROXY header may be due.
    pub(super) fn go_on(&mut self, now: Instant, key: ConnKey) {
        self.proxied.push_back((now + PROXY_MAX, key));
    }

    /// Returns when to look again without an edge; `None`: when an edge or mail comes.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let is_due = !self.failed.is_empty() || !self.lost.is_empty();
        let is_waiting = !self.waiting.is_empty() || !self.held.is_empty();
        let look = if is_due { Some(now) } else { is_waiting.then_some(now + HELD_LOOK) };
        look.into_iter().chain(self.proxied.front().map(|(due, _)| *due)).min()
    }

    /// Gives a job to the threads.
    ///
    /// # Errors
    /// The job comes back: their queue is full.
    fn submit(&mut self, key: ConnKey, opening: &Opening, job: Job) -> Result<(), Job> {
        let Some(servers) = &self.rules.servers else { return Err(job) };
        servers.submit(job, opening.kind(), key, &self.reply)
    }

    /// Returns whether no thread takes a handshake now.
    fn is_full(&self) -> bool {
        self.rules.servers.as_ref().is_some_and(|servers| servers.pool.is_full())
    }

    /// Notes a connection that waits for a thread, once.
    fn wait(&mut self, key: ConnKey, opening: &mut Opening) {
        if !std::mem::replace(&mut opening.is_listed, true) {
            self.counts.queue_full += 1;
            self.waiting.push_back(key);
        }
    }
}

impl Reactor {
    /// Reads an opening as far as it goes, up to its first frame. True: frames may have come.
    pub(super) fn open(&mut self, now: Instant, key: ConnKey) -> bool {
        self.try_open(now, key).unwrap_or_else(|fault| {
            self.end_opening(now, key, &fault);
            false
        })
    }

    fn try_open(&mut self, now: Instant, key: ConnKey) -> Result<bool, OpeningFault> {
        loop {
            let may_begin = !self.sockets.listeners.is_handing_over();
            let Self { sockets, openings, read_block, .. } = self;
            let Some((stream, Some(layer))) = sockets.streams.pair(key) else { return Ok(false) };
            let Layer::Opening(opening) = layer else { return Ok(false) };
            // A crowd waits in its sockets, and costs no memory here.
            if opening.can_wait() && openings.is_full() {
                openings.wait(key, opening);
                return Ok(false);
            }
            let has_come = opening.read(stream, read_block)?;
            match opening.advance(&openings.rules.origins, now, may_begin)? {
                Step::Wait if has_come => {}
                Step::Wait => {
                    if opening.is_held() && !may_begin {
                        openings.held.push(key);
                    }
                    layer.flush(stream)?;
                    return Ok(false);
                }
                Step::Job => {
                    opening.flush(stream)?; // before the client's next bytes are answered
                    let job = opening.take_job();
                    if let Err(job) = openings.submit(key, opening, job) {
                        opening.put_back(job);
                        openings.wait(key, opening);
                    }
                    return Ok(false);
                }
                Step::Proxied(Some(client)) => {
                    let listener = opening.listener();
                    if !self.judge_client(now, key, usize::from(listener), client.ip()) {
                        return Ok(false);
                    }
                }
                Step::Proxied(None) => {}
                Step::Done(done) => {
                    return Ok(self.end_well(now, key, done));
                }
            }
        }
    }

    /// Applies the limits of addresses to a client that a proxy has named. False: it was refused.
    fn judge_client(&mut self, now: Instant, key: ConnKey, listener: usize, client: IpAddr) -> bool {
        let Self { sockets, handshakes, shard, outputs, .. } = self;
        let Some(stream) = sockets.streams.get(key) else { return false };
        let is_within = sockets.listeners.judge_client(listener, stream, client, now);
        let share = sockets.listeners.share(listener, self.reactors.len());
        let has_place =
            share.is_none_or(|share| handshakes.of_address(client, |key| is_handshake(shard, key)) < share);
        if is_within && has_place {
            handshakes.name(now, key, client);
            return true;
        }
        if is_within {
            sockets.listeners.handshakes_refused += 1;
        }
        shard.handle_peer_closed(now, key, outputs);
        false
    }

    /// Gives a connection its layer. True: frames may have come.
    fn end_well(&mut self, now: Instant, key: ConnKey, done: Done) -> bool {
        let Done { layer, rest } = done;
        self.sockets.streams.set_layer(key, layer);
        if let Some((stream, Some(layer))) = self.sockets.streams.pair(key) {
            layer.flush(stream).ok(); // a broken stream shows in the next read
        }
        // What the shard wanted to write meanwhile.
        self.executor.handle_writable(key);
        if !rest.is_empty() {
            self.shard.handle_received(now, key, rest.into(), &mut self.outputs);
            self.perform();
        }
        self.sockets.wants_read(key)
    }

    /// Ends a connection whose opening failed. The peer has been told.
    fn end_opening(&mut self, now: Instant, key: ConnKey, fault: &OpeningFault) {
        let has_tls = matches!(
            self.sockets.streams.pair(key),
            Some((_, Some(Layer::Opening(opening)))) if opening.kind().has_tls
        );
        let counts = &mut self.openings.counts;
        match fault {
            OpeningFault::Socket(_) | OpeningFault::Left => {}
            OpeningFault::Proxy(_) => counts.proxies_refused += 1,
            OpeningFault::Handshake(_) | OpeningFault::Tls(_) => counts.handshakes_failed += 1,
            OpeningFault::TooLong if has_tls => counts.handshakes_failed += 1,
            OpeningFault::Upgrade(_) | OpeningFault::Early | OpeningFault::TooLong => {
                counts.upgrades_refused += 1;
            }
        }
        tracing::debug!(%fault, ?key, "a connection ended before its first frame");
        if let Some((stream, Some(layer))) = self.sockets.streams.pair(key) {
            layer.flush(stream).ok(); // the connection ends
        }
        self.shard.handle_peer_closed(now, key, &mut self.outputs);
        self.perform();
    }

    /// Takes a thread's result. Its bytes are written in the next turn.
    pub(super) fn handle_handshaken(&mut self, key: ConnKey, result: JobResult) {
        if let Some(done) = result.finished() {
            self.openings.counts.handshakes += 1;
            self.openings.counts.resumed += u64::from(done.is_resumed);
        }
        let Some((_, Some(Layer::Opening(opening)))) = self.sockets.streams.pair(key) else { return };
        match opening.handle_result(result) {
            Ok(()) => self.sockets.set_ready(key),
            Err(fault) => self.openings.failed.push((key, fault)),
        }
    }

    /// Goes on with an opening without an edge.
    fn open_now(&mut self, now: Instant, key: ConnKey) {
        if self.open(now, key) {
            self.sockets.set_ready(key);
        }
    }

    /// Goes on with openings that waited for a thread, for a hot restart or for their deadline.
    pub(super) fn run_openings(&mut self, now: Instant) {
        for (key, fault) in std::mem::take(&mut self.openings.failed) {
            self.end_opening(now, key, &fault);
        }
        for _ in 0..self.openings.waiting.len() {
            if self.openings.is_full() {
                break;
            }
            let Some(key) = self.openings.waiting.pop_front() else { break };
            if let Some((_, Some(Layer::Opening(opening)))) = self.sockets.streams.pair(key) {
                opening.is_listed = false;
                self.open_now(now, key);
            }
        }
        if !self.openings.held.is_empty() && !self.sockets.listeners.is_handing_over() {
            for key in std::mem::take(&mut self.openings.held) {
                self.open_now(now, key);
            }
        }
        while let Some((due, key)) = self.openings.proxied.front().copied() {
            if due > now {
                break;
            }
            self.openings.proxied.pop_front();
            if let Some((_, Some(Layer::Opening(opening)))) = self.sockets.streams.pair(key)
                && opening.awaits_proxy()
            {
                self.openings.counts.proxies_refused += 1;
                self.shard.handle_peer_closed(now, key, &mut self.outputs);
            }
        }
        for key in std::mem::take(&mut self.openings.lost) {
            self.openings.counts.lost += 1;
            self.shard.handle_peer_closed(now, key, &mut self.outputs);
        }
        self.perform();
    }
}
