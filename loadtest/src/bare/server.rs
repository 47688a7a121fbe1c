//! The server: accept, read, look up, write.

use super::LOOK_EVERY;
use super::stream::{Gone, Stream, each_frame};
use super::wire::{self, Kind, Malformed};
use crate::clock;
use crate::exit::Failure;
use crate::fleet::Stop;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::ServerConfig;
use slab::Slab;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Links to the backend, shared by all clients.
pub const LINKS: usize = 4;
/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
const EVENTS_PER_TURN: usize = 1_024;
const LISTENER: Token = Token(0);
const FIRST_LINK: usize = 1;
const FIRST_CLIENT: usize = FIRST_LINK + LINKS;

/// Connections by uid: uids are dense numbers, so a multiplication hashes them well enough.
type Places = HashMap<u32, u32, BuildHasherDefault<UidHasher>>;

#[derive(Default)]
struct UidHasher(u64);

impl Hasher for UidHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("uids hash as one u32")
    }
    fn write_u32(&mut self, uid: u32) {
        self.0 = u64::from(uid).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// Not logged in yet.
const NOBODY: u32 = u32::MAX;

#[derive(Debug)]
struct Client {
    stream: Stream,
    uid: u32,
}

/// The server of one thread.
pub struct BareServer {
    poll: Poll,
    listener: TcpListener,
    /// TLS of the clients; `None`: plain TCP.
    tls: Option<Arc<ServerConfig>>,
    clients: Slab<Client>,
    places: Places,
    links: Vec<Stream>,
    /// Bytes that go out on each link at the end of this turn.
    link_out: Vec<Vec<u8>>,
    /// Bytes that go back to the client that is being read.
    out: Vec<u8>,
    /// The delivery that is being written.
    delivery: Vec<u8>,
    input: Vec<u8>,
}

impl BareServer {
    /// Listens, and connects its links if there is a backend.
    pub fn bind(
        listen: SocketAddr,
        backend: Option<SocketAddr>,
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<Self, Failure> {
        let poll = Poll::new().map_err(Failure::io("create an epoll"))?;
        let mut listener = TcpListener::bind(listen).map_err(Failure::io("listen"))?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)
            .map_err(Failure::io("register the listener"))?;
        let mut links = Vec::new();
        for link in 0..if backend.is_some() { LINKS } else { 0 } {
            let address = backend.expect("there is a backend if there are links");
            let tcp = std::net::TcpStream::connect(address).map_err(Failure::io("connect a link"))?;
            tcp.set_nonblocking(true).map_err(Failure::io("connect a link"))?;
            let token = Token(FIRST_LINK + link);
            let stream = Stream::new(TcpStream::from_std(tcp), None, poll.registry(), token);
            links.push(stream.map_err(Failure::io("register a link"))?);
        }
        Ok(Self {
            poll,
            listener,
            tls,
            clients: Slab::new(),
            places: Places::default(),
            link_out: vec![Vec::new(); links.len()],
            links,
            out: Vec::new(),
            delivery: Vec::new(),
            input: vec![0; READ_BYTES],
        })
    }

    /// Listening address.
    pub fn address(&self) -> Result<SocketAddr, Failure> {
        self.listener.local_addr().map_err(Failure::io("ask for the address"))
    }

    /// Serves until a signal, or for `at_most`.
    pub fn run(&mut self, at_most: Duration, stop: &Stop) -> Result<(), Failure> {
        let end = clock::now() + at_most;
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        while !stop.take() && clock::now() < end {
            match self.poll.poll(&mut events, Some(LOOK_EVERY)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other.map_err(Failure::io("wait for sockets"))?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    Token(link) if link < FIRST_CLIENT => self.handle_link(link - FIRST_LINK, event)?,
                    Token(token) => self.handle_client(token - FIRST_CLIENT, event),
                }
            }
            self.flush_links()?;
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((tcp, _)) = self.listener.accept() {
            let entry = self.clients.vacant_entry();
            let token = Token(FIRST_CLIENT + entry.key());
            if let Ok(stream) = Stream::new(tcp, self.tls.as_ref(), self.poll.registry(), token) {
                entry.insert(Client { stream, uid: NOBODY });
            }
        }
    }

    fn handle_client(&mut self, slot: usize, event: &mio::event::Event) {
        if self.serve_client(slot, event) == Err(Gone) {
            self.out.clear();
            self.close(slot);
        }
    }

    fn serve_client(&mut self, slot: usize, event: &mio::event::Event) -> Result<(), Gone> {
        let token = event.token();
        let Some(client) = self.clients.get_mut(slot) else { return Ok(()) };
        if event.is_writable() {
            client.stream.handle_writable(self.poll.registry(), token)?;
        }
        if !event.is_readable() {
            return Ok(());
        }
        let mut input = std::mem::take(&mut self.input);
        let result = self.read_client(slot, &mut input, event.is_read_closed());
        self.input = input;
        result
    }

    fn read_client(&mut self, slot: usize, input: &mut [u8], is_closed: bool) -> Result<(), Gone> {
        loop {
            let stream = &mut self.clients[slot].stream;
            let len = stream.read(input, self.poll.registry(), Token(FIRST_CLIENT + slot))?;
            if len == 0 {
                return Ok(());
            }
            let partial = stream.take_partial();
            let rest = each_frame(&input[..len], partial, |kind, body| self.handle_frame(slot, kind, body))?;
            let stream = &mut self.clients.get_mut(slot).ok_or(Gone)?.stream;
            stream.keep_partial(rest);
            if !self.out.is_empty() {
                stream.write(&self.out, self.poll.registry(), Token(FIRST_CLIENT + slot))?;
                self.out.clear();
            }
            if len < input.len() && !is_closed {
                return Ok(());
            }
        }
    }

    fn handle_frame(&mut self, slot: usize, kind: Kind, body: &[u8]) -> Result<(), Malformed> {
        let Some(client) = self.clients.get_mut(slot) else { return Err(Malformed) };
        let uid = client.uid;
        match kind {
            Kind::Login => {
                let (uid, _) = wire::number(body)?;
                client.uid = uid;
                self.places.insert(uid, u32::try_from(slot).map_err(|_| Malformed)?);
                wire::put(&mut self.out, Kind::In, &[]);
            }
            Kind::Beat => wire::put(&mut self.out, Kind::BeatBack, &[]),
            Kind::Echo => {
                let (cid, _) = wire::number(body)?;
                wire::put(&mut self.out, Kind::Answer, &[&cid.to_le_bytes()]);
            }
            Kind::Forward if !self.links.is_empty() => {
                let out = &mut self.link_out[slot % LINKS];
                wire::put(out, Kind::Forward, &[&uid.to_le_bytes(), body]);
            }
            Kind::To => self.deliver(uid, body)?,
            Kind::All => self.fan_out(slot, uid, body),
            Kind::In | Kind::BeatBack | Kind::Answer | Kind::Deliver | Kind::Forward => {
                return Err(Malformed);
            }
        }
        Ok(())
    }

    fn deliver(&mut self, from: u32, body: &[u8]) -> Result<(), Malformed> {
        let (to, payload) = wire::number(body)?;
        let mut frame = std::mem::take(&mut self.delivery);
        frame.clear();
        wire::put(&mut frame, Kind::Deliver, &[&from.to_le_bytes(), payload]);
        self.write_to(to, &frame);
        self.delivery = frame;
        Ok(())
    }

    fn fan_out(&mut self, sender: usize, from: u32, payload: &[u8]) {
        let mut frame = Vec::with_capacity(payload.len() + 16);
        wire::put(&mut frame, Kind::Deliver, &[&from.to_le_bytes(), payload]);
        let mut gone = Vec::new();
        for (slot, client) in &mut self.clients {
            let is_target = slot != sender && client.uid != NOBODY;
            let token = Token(FIRST_CLIENT + slot);
            if is_target && client.stream.write(&frame, self.poll.registry(), token).is_err() {
                gone.push(slot);
            }
        }
        for slot in gone {
            self.close(slot);
        }
    }

    fn handle_link(&mut self, link: usize, event: &mio::event::Event) -> Result<(), Failure> {
        let lost = |Gone| Failure::io("use a link")(ErrorKind::ConnectionReset.into());
        if event.is_writable() {
            self.links[link].handle_writable(self.poll.registry(), event.token()).map_err(lost)?;
        }
        let mut input = std::mem::take(&mut self.input);
        loop {
            let len = self.links[link].read(&mut input, self.poll.registry(), event.token()).map_err(lost)?;
            let partial = self.links[link].take_partial();
            let rest = each_frame(&input[..len], partial, |_, body| {
                let (uid, cid) = wire::number(body)?;
                let mut answer = [0; wire::HEADER_BYTES + 4];
                answer[0] = 4;
                answer[4] = Kind::Answer as u8;
                answer[wire::HEADER_BYTES..].copy_from_slice(cid.first_chunk::<4>().ok_or(Malformed)?);
                self.write_to(uid, &answer);
                Ok(())
            });
            self.links[link].keep_partial(rest.map_err(lost)?);
            if len < input.len() {
                break;
            }
        }
        self.input = input;
        Ok(())
    }

    fn write_to(&mut self, uid: u32, frame: &[u8]) {
        let Some(slot) = self.places.get(&uid).map(|slot| *slot as usize) else { return };
        let token = Token(FIRST_CLIENT + slot);
        if self.clients[slot].stream.write(frame, self.poll.registry(), token).is_err() {
            self.close(slot);
        }
    }

    fn flush_links(&mut self) -> Result<(), Failure> {
        for (link, (stream, out)) in self.links.iter_mut().zip(&mut self.link_out).enumerate() {
            if !out.is_empty() {
                let token = Token(FIRST_LINK + link);
                stream
                    .write(out, self.poll.registry(), token)
                    .map_err(|Gone| Failure::io("use a link")(ErrorKind::BrokenPipe.into()))?;
                out.clear();
            }
        }
        Ok(())
    }

    fn close(&mut self, slot: usize) {
        let Some(client) = self.clients.try_remove(slot) else { return };
        if self.places.get(&client.uid).is_some_and(|place| *place as usize == slot) {
            self.places.remove(&client.uid);
        }
    }
}
