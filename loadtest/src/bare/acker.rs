//! The trivial backend: every message that comes over a link is answered on that link.

use super::LOOK_EVERY;
use super::stream::{Gone, Stream, each_frame};
use super::wire::{self, Kind};
use crate::clock;
use crate::exit::Failure;
use crate::fleet::Stop;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

const READ_BYTES: usize = 256 << 10;
const LISTENER: Token = Token(0);
const FIRST_LINK: usize = 1;
/// Links it serves at most.
const LINKS_MAX: usize = 64;

/// The backend of one thread.
pub struct Acker {
    poll: Poll,
    listener: TcpListener,
    links: Slab<Stream>,
    input: Vec<u8>,
    out: Vec<u8>,
}

impl Acker {
    /// Opens the listening socket.
    pub fn bind(listen: SocketAddr) -> Result<Self, Failure> {
        let poll = Poll::new().map_err(Failure::io("create an epoll"))?;
        let mut listener = TcpListener::bind(listen).map_err(Failure::io("listen"))?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)
            .map_err(Failure::io("register the listener"))?;
        Ok(Self { poll, listener, links: Slab::new(), input: vec![0; READ_BYTES], out: Vec::new() })
    }

    /// Listening address.
    pub fn address(&self) -> Result<SocketAddr, Failure> {
        self.listener.local_addr().map_err(Failure::io("ask for the address"))
    }

    /// Serves until a signal, or for `at_most`.
    pub fn run(&mut self, at_most: Duration, stop: &Stop) -> Result<(), Failure> {
        let end = clock::now() + at_most;
        let mut events = Events::with_capacity(LINKS_MAX);
        while !stop.take() && clock::now() < end {
            match self.poll.poll(&mut events, Some(LOOK_EVERY)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other.map_err(Failure::io("wait for sockets"))?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    Token(token) => {
                        if self.serve(token - FIRST_LINK, event) == Err(Gone) {
                            self.links.try_remove(token - FIRST_LINK);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((tcp, _)) = self.listener.accept() {
            if self.links.len() == LINKS_MAX {
                continue; // dropped, which closes it
            }
            let entry = self.links.vacant_entry();
            let token = Token(FIRST_LINK + entry.key());
            if let Ok(stream) = Stream::new(tcp, None, self.poll.registry(), token) {
                entry.insert(stream);
            }
        }
    }

    fn serve(&mut self, link: usize, event: &mio::event::Event) -> Result<(), Gone> {
        let Some(stream) = self.links.get_mut(link) else { return Ok(()) };
        if event.is_writable() {
            stream.handle_writable(self.poll.registry(), event.token())?;
        }
        loop {
            let len = stream.read(&mut self.input, self.poll.registry(), event.token())?;
            let out = &mut self.out;
            let rest = each_frame(&self.input[..len], stream.take_partial(), |_, body| {
                let (uid, rest) = wire::number(body)?;
                let (cid, _) = wire::number(rest)?;
                wire::put(out, Kind::Answer, &[&uid.to_le_bytes(), &cid.to_le_bytes()]);
                Ok(())
            })?;
            stream.keep_partial(rest);
            stream.write(&self.out, self.poll.registry(), event.token())?;
            self.out.clear();
            if len < self.input.len() {
                return Ok(());
            }
        }
    }
}
