//! The clients and their sockets: connects, reads, writes, logins, acks.
//!
//! Driven by the loop in [`super`] and by the scenario, which sends through it. It judges no message.

use super::acks::{Acks, Debt};
use super::client::{Client, Input, Stage};
use crate::carrier::{Carrier, News};
use crate::dialect::{Ask, Dialect, Event, Message};
use crate::exit::Failure;
use crate::record::Latencies;
use crate::socket::{self, Source};
use bytes::Bytes;
use mio::{Interest, Registry, Token};
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;
/// Bytes that wait for a server that does not read; over it the client is lost.
const UNSENT_BYTES_MAX: usize = 1 << 20;
/// A login takes no longer.
const LOGIN_WITHIN: Duration = Duration::from_secs(10);

/// Counts of clients by state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Logged in now.
    pub active: u32,
    /// Fewest that were logged in at any moment since the last second that was told.
    pub lowest: u32,
    /// Between connect and WELCOME now.
    pub under_way: u32,
    /// Lost or refused, and about to try again.
    pub away: u32,
    /// Never got in.
    pub not_in: u32,
    /// Connections lost before the end that nobody here meant to lose.
    pub dropped: u32,
    /// Tries to connect or to log in that failed, of clients that try again.
    pub tries_in_vain: u32,
    /// Heartbeats sent.
    pub beats: u64,
    /// Heartbeats echoed.
    pub beats_back: u64,
    /// TLS handshakes that ended well.
    pub handshakes: u32,
    /// Those of them that resumed an earlier session.
    pub resumed: u32,
    /// Upgrades to WebSocket that were accepted.
    pub upgrades: u32,
    /// Close codes the server gave, and how often.
    pub closed: BTreeMap<u32, u32>,
    /// The last error of a connect, for the report.
    pub last_error: Option<String>,
}

impl Counts {
    /// Adds those of another loop.
    pub fn merge(&mut self, other: &Self) {
        self.active += other.active;
        self.lowest += other.lowest;
        self.under_way += other.under_way;
        self.away += other.away;
        self.not_in += other.not_in;
        self.dropped += other.dropped;
        self.tries_in_vain += other.tries_in_vain;
        self.beats += other.beats;
        self.beats_back += other.beats_back;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        self.upgrades += other.upgrades;
        for (code, times) in &other.closed {
            *self.closed.entry(*code).or_default() += times;
        }
        if other.last_error.is_some() {
            self.last_error.clone_from(&other.last_error);
        }
    }
}

/// A client that is without a connection since the loop last looked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loss {
    pub(super) who: u32,
    /// True if the client was logged in.
    pub(super) was_active: bool,
    /// Tries in vain so far.
    pub(super) tries: u8,
    /// Wait that the server asked for.
    pub(super) at_least: Duration,
}

/// All clients of one loop.
#[derive(Debug)]
pub struct Clients<D: Dialect, X> {
    dialect: D,
    carrier: Carrier,
    all: Vec<Client<D::Decoder, X>>,
    registry: Registry,
    input: Box<[u8]>,
    out: Vec<u8>,
    /// Bytes as they go to a socket, where they are wrapped.
    wrapped: Vec<u8>,
    /// True if clients without a connection try again.
    may_return: bool,
    pub(super) lost: VecDeque<Loss>,
    /// Clients that were asked to leave since the loop last looked, and within which time.
    pub(super) leaving: Vec<(u32, Duration)>,
    /// Logins by when they began, to be judged for lateness.
    logins: VecDeque<(Instant, u32)>,
    acks: Acks,
    pub(super) counts: Counts,
    pub(super) login: Latencies,
}

impl<D: Dialect, X: Default> Clients<D, X> {
    pub(super) fn new(
        dialect: D,
        carrier: Carrier,
        clients: u32,
        may_return: bool,
        registry: Registry,
    ) -> Self {
        let all = std::iter::repeat_with(Client::default).take(clients as usize).collect();
        Self {
            dialect,
            carrier,
            all,
            registry,
            input: vec![0; READ_BYTES].into_boxed_slice(),
            out: Vec::with_capacity(READ_BYTES),
            wrapped: Vec::new(),
            may_return,
            lost: VecDeque::new(),
            leaving: Vec::new(),
            logins: VecDeque::new(),
            acks: Acks::default(),
            counts: Counts::default(),
            login: Latencies::default(),
        }
    }

    /// Number of clients, logged in or not.
    #[allow(clippy::cast_possible_truncation)] // made from a u32
    pub fn len(&self) -> u32 {
        self.all.len() as u32
    }

    /// True without any client.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// True if a client is logged in.
    pub fn is_active(&self, who: u32) -> bool {
        self.all[who as usize].stage == Stage::Active
    }

    /// The scenario's part of a client.
    pub fn extra(&mut self, who: u32) -> &mut X {
        &mut self.all[who as usize].extra
    }

    /// Counts of clients by state.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Sends a message; its ack field is filled in here. False if the client is not logged in.
    pub fn send(&mut self, mut message: Message) -> bool {
        let who = message.from;
        if !self.is_active(who) {
            return false;
        }
        let client = &mut self.all[who as usize];
        client.debt = Debt::default();
        message.ack = client.heard;
        self.out.clear();
        self.dialect.message(&message, &mut self.out);
        self.write(who);
        true
    }

    /// Asks for something beside messages; false if this wire knows no such thing.
    pub fn ask(&mut self, who: u32, what: Ask) -> bool {
        self.out.clear();
        let is_known = self.dialect.ask(who, what, &mut self.out);
        self.write(who);
        is_known
    }

    /// Ends a client's connection because the server asked for it, unless it has another one since.
    pub(super) fn leave(&mut self, who: u32, asked: Instant) {
        if self.is_active(who) && self.all[who as usize].since <= asked {
            self.fail(who, None);
        }
    }

    /// Breaks a client's connection as a dying network does, without a goodbye.
    pub fn break_off(&mut self, who: u32, now: Instant) {
        if let Some(stream) = &self.all[who as usize].stream {
            // The reset is what is wanted; without it the connection ends with a FIN.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        let was_active = self.is_active(who);
        self.all[who as usize].since = now;
        self.fail(who, None);
        self.counts.dropped -= u32::from(was_active); // this one was meant to be lost
    }

    /// True if no login has succeeded so far.
    pub(super) fn is_nobody_in(&self) -> bool {
        self.login.is_empty()
    }

    /// See [`Dialect::login_advice`].
    pub(super) fn login_advice(&self, code: u32) -> Option<String> {
        self.dialect.login_advice(code)
    }

    /// Acknowledges what a client has handled, if anything is owed.
    pub fn ack(&mut self, who: u32) {
        let client = &mut self.all[who as usize];
        if client.stage != Stage::Active || client.debt.is_none() {
            return;
        }
        client.debt = Debt::default();
        self.out.clear();
        self.dialect.ack(client.heard, &mut self.out);
        self.write(who);
    }

    pub(super) fn beat(&mut self, who: u32) {
        if self.is_active(who) {
            self.counts.beats += 1;
            self.out.clear();
            self.dialect.beat(&mut self.out);
            self.write(who);
        }
    }

    pub(super) fn start(&mut self, who: u32, target: SocketAddr, source: Source, now: Instant) {
        self.step(who, Input::Started);
        let client = &mut self.all[who as usize];
        (client.since, client.debt, client.heard) = (now, Debt::default(), 0);
        client.decoder = D::Decoder::default();
        self.logins.push_back((now, who));
        let connected = socket::connect(target, source).and_then(|mut stream| {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.registry.register(&mut stream, Token(who as usize), both)?;
            Ok(stream)
        });
        let connected = connected.map_err(|error| error.to_string());
        match connected.and_then(|stream| Ok((stream, self.carrier.wrap(who)?))) {
            Ok((stream, wrap)) => {
                let client = &mut self.all[who as usize];
                client.stream = Some(stream);
                client.set_wrap(wrap);
            }
            Err(error) => self.fail(who, Some(error)),
        }
    }

    pub(super) fn handle_writable(&mut self, who: u32) {
        let client = &mut self.all[who as usize];
        let Some(stream) = &mut client.stream else { return };
        if client.stage == Stage::Connecting {
            match stream.take_error() {
                Ok(None) if stream.peer_addr().is_err() => return, // not yet
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => return self.fail(who, Some(error.to_string())),
            }
            self.step(who, Input::Connected);
            if !self.begin_wrap(who) {
                return;
            }
            self.out.clear();
            self.dialect.hello(who, &mut self.out);
            self.write(who);
        } else if let Some(unsent) = client.take_unsent() {
            self.write_to_socket(who, &unsent);
        }
    }

    /// Reads until the socket is empty; a short read says that it is.
    pub(super) fn read(&mut self, who: u32, is_closed: bool, events: &mut Vec<Event>) {
        loop {
            let client = &mut self.all[who as usize];
            let Some(stream) = &mut client.stream else { return };
            let len = match stream.read(&mut self.input) {
                Ok(0) => return self.fail(who, None),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.fail(who, Some(error.to_string())),
            };
            let Some(mut input) = self.unwrap_input(who, len) else { return };
            let decoder = &mut self.all[who as usize].decoder;
            if self.dialect.decode(decoder, &mut input, events).is_err() {
                return self.fail(who, Some("the server's bytes are no frames of this protocol".into()));
            }
            if len < READ_BYTES && !is_closed {
                return;
            }
        }
    }

    /// Actions on an event that all scenarios share.
    pub(super) fn on_event(&mut self, who: u32, event: &Event, now: Instant) {
        match event {
            Event::Welcome => {
                self.login.record(now.saturating_since(self.all[who as usize].since));
                self.all[who as usize].tries = 0;
                self.step(who, Input::Welcomed);
            }
            Event::BeatBack => self.counts.beats_back += 1,
            Event::Delivery { number, .. } | Event::Notice { number } | Event::Missed { number, .. }
                if number.seq > 0 =>
            {
                let client = &mut self.all[who as usize];
                client.heard = client.heard.max(number.seq);
                self.acks.note(now, who, &mut client.debt, *number);
            }
            Event::Probe => {
                let client = &mut self.all[who as usize];
                client.debt = Debt::default();
                self.out.clear();
                self.dialect.probe_reply(client.heard, &mut self.out);
                self.write(who);
            }
            Event::Closing { code, retry_after } => {
                *self.counts.closed.entry(*code).or_default() += 1;
                self.lose(who, Some(format!("the server closed with code {code}")), *retry_after);
            }
            Event::Leave(window) => self.leaving.push((who, *window)),
            Event::Delivery { .. }
            | Event::Notice { .. }
            | Event::Missed { .. }
            | Event::Pulled { .. }
            | Event::Answer { .. }
            | Event::Said(_)
            | Event::Other => {}
        }
    }

    /// After the scenario saw a delivery: ack if the sending of messages did not do it by the way.
    pub(super) fn ack_if_many(&mut self, who: u32) {
        if self.all[who as usize].debt.is_large() {
            self.ack(who);
        }
    }

    /// Time of the next ack.
    pub(super) fn ack_deadline(&self) -> Option<Instant> {
        self.acks.deadline()
    }

    /// Sends the acks that are due, and that no message has carried meanwhile.
    pub(super) fn send_due_acks(&mut self, now: Instant) {
        while let Some((who, seq)) = self.acks.take_due(now) {
            let client = &self.all[who as usize];
            if seq > client.debt.acked(client.heard) {
                self.ack(who);
            }
        }
    }

    /// Gives up logins that take too long.
    pub(super) fn expire_logins(&mut self, now: Instant) {
        while let Some((began, who)) = self.logins.front().copied() {
            let client = &self.all[who as usize];
            let is_open = client.stage.is_under_way() && client.since == began;
            if is_open && now.saturating_since(began) < LOGIN_WITHIN {
                return;
            }
            self.logins.pop_front();
            if is_open {
                self.fail(who, Some(format!("no answer to the login within {LOGIN_WITHIN:?}")));
            }
        }
    }

    /// Begins the handshakes of a connection; false: it came to nothing.
    fn begin_wrap(&mut self, who: u32) -> bool {
        let Some(wrap) = self.all[who as usize].wrap() else { return true };
        let mut out = std::mem::take(&mut self.wrapped);
        out.clear();
        let begun = wrap.begin(&mut out);
        self.finish_wrapped(who, begun, out)
    }

    /// Takes the wraps off the bytes that a read brought; `None`: the connection is of no use.
    fn unwrap_input(&mut self, who: u32, len: usize) -> Option<Bytes> {
        let Some(wrap) = self.all[who as usize].wrap() else {
            return Some(Bytes::copy_from_slice(&self.input[..len]));
        };
        let (mut plain, mut out) = (Vec::new(), std::mem::take(&mut self.wrapped));
        out.clear();
        let news = wrap.receive(&self.input[..len], &mut plain, &mut out);
        if let Ok(News { handshake, is_upgraded }) = news {
            self.counts.handshakes += u32::from(handshake.is_some());
            self.counts.resumed += u32::from(handshake == Some(true));
            self.counts.upgrades += u32::from(is_upgraded);
        }
        self.finish_wrapped(who, news.map(|_| ()), out).then(|| plain.into())
    }

    /// Sends what a wrap has made, and keeps the buffer; false: the connection came to nothing.
    fn finish_wrapped(&mut self, who: u32, done: Result<(), String>, wrapped: Vec<u8>) -> bool {
        match done {
            Ok(()) => self.write_to_socket(who, &wrapped),
            Err(error) => self.fail(who, Some(error)),
        }
        self.wrapped = wrapped;
        self.all[who as usize].stream.is_some()
    }

    /// Writes what stands in `out`, wrapped if the connection is.
    fn write(&mut self, who: u32) {
        let out = std::mem::take(&mut self.out);
        match self.all[who as usize].wrap() {
            None => self.write_to_socket(who, &out),
            Some(wrap) => {
                let mut wrapped = std::mem::take(&mut self.wrapped);
                wrapped.clear();
                let sent = wrap.send(&out, &mut wrapped);
                self.finish_wrapped(who, sent, wrapped);
            }
        }
        self.out = out;
    }

    fn write_to_socket(&mut self, who: u32, mut rest: &[u8]) {
        let client = &mut self.all[who as usize];
        if client.stream.is_none() {
            return;
        }
        if let Some(unsent) = client.unsent() {
            unsent.extend_from_slice(rest);
            if unsent.len() > UNSENT_BYTES_MAX {
                self.fail(who, Some("the server does not read".into()));
            }
            return;
        }
        while let Some(stream) = client.stream.as_mut().filter(|_| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(len) => rest = &rest[len..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return client.keep_unsent(rest);
                }
                Err(error) => return self.fail(who, Some(error.to_string())),
            }
        }
    }

    fn fail(&mut self, who: u32, error: Option<String>) {
        self.lose(who, error, Duration::ZERO);
    }

    /// A client's connection is gone, or came to nothing.
    fn lose(&mut self, who: u32, error: Option<String>, at_least: Duration) {
        if error.is_some() {
            self.counts.last_error = error;
        }
        let may_return = self.may_return;
        let client = &mut self.all[who as usize];
        client.stream = None; // closes it, which also takes it out of the poll
        client.set_wrap(None);
        if matches!(client.stage, Stage::Away | Stage::Gone) {
            return;
        }
        let was_active = client.stage == Stage::Active;
        self.lost.push_back(Loss { who, was_active, tries: client.tries, at_least });
        client.tries = client.tries.saturating_add(1);
        self.step(who, if may_return { Input::Interrupted } else { Input::Lost });
    }

    fn step(&mut self, who: u32, input: Input) {
        let stage = &mut self.all[who as usize].stage;
        let before = *stage;
        let Some(after) = before.on(input) else {
            return self.fail(who, Some(format!("{input:?} when {before:?}")));
        };
        *stage = after;
        let counts = &mut self.counts;
        counts.under_way -= u32::from(before.is_under_way());
        counts.under_way += u32::from(after.is_under_way());
        counts.active -= u32::from(before == Stage::Active);
        counts.active += u32::from(after == Stage::Active);
        counts.lowest = counts.lowest.min(counts.active);
        counts.away -= u32::from(before == Stage::Away);
        counts.away += u32::from(after == Stage::Away);
        let is_lost = matches!(after, Stage::Gone | Stage::Away);
        counts.dropped += u32::from(is_lost && before == Stage::Active);
        counts.not_in += u32::from(after == Stage::Gone && before != Stage::Active);
        counts.tries_in_vain += u32::from(after == Stage::Away && before != Stage::Active);
    }

    /// The registry, for the loop's timer.
    pub(super) const fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::io("poll")(error)
    }
}
