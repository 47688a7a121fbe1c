//! Work that may block, each piece in a thread of its own: resolving a name, asking the application for a token, asking a
//! dispatch server. The
//! client's thread, which keeps all deadlines, never waits for it, and neither does dropping the client.
//!
//! Example: the name server is silent. The attempt to connect fails by `connect_timeout`; a request fails by its own
//! timeout. The next attempt waits for the same look-up, and uses its addresses when they come.

use super::TokenProvider;
use super::dispatch::Asker;
use super::shared::Shared;
use crate::core::{DispatchFault, TokenWhy};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Look-ups at once: of the endpoint, and of an alternate. A further one fails.
const LOOKUPS_MAX: usize = 2;

/// Result of a piece of work.
#[derive(Debug)]
pub(super) enum Done {
    /// Addresses of `host:port`.
    Resolved { name: String, addresses: io::Result<Vec<SocketAddr>> },
    /// The application's token; `None`: not now.
    Token(Option<String>),
    /// Body of a dispatch server's answer.
    Endpoints(Result<Vec<u8>, DispatchFault>),
}

/// Work that is under way. At most [`LOOKUPS_MAX`] look-ups, one question for a token and one to a dispatch
/// server.
pub(super) struct Jobs {
    /// Not kept alive by work that nobody waits for any more.
    shared: Weak<Shared>,
    provider: Option<Arc<Mutex<TokenProvider>>>,
    /// `None`: there is no dispatch server.
    asker: Option<Arc<Asker>>,
    sender: Sender<Done>,
    results: Receiver<Done>,
    lookups: Vec<String>,
    is_asking: bool,
    is_asking_dispatch: bool,
}

impl Jobs {
    pub(super) fn new(shared: &Arc<Shared>, provider: Option<TokenProvider>, asker: Option<Asker>) -> Self {
        let (sender, results) = unbounded(); // bounded by the work under way
        let provider = provider.map(|provider| Arc::new(Mutex::new(provider)));
        Self {
            shared: Arc::downgrade(shared),
            provider,
            asker: asker.map(Arc::new),
            sender,
            results,
            lookups: Vec::new(),
            is_asking: false,
            is_asking_dispatch: false,
        }
    }

    /// Resolves `host:port`. A look-up of the same name that is under way is this one.
    ///
    /// # Errors
    /// Too many look-ups are under way, or there is no thread.
    pub(super) fn resolve(&mut self, name: &str) -> io::Result<()> {
        if self.lookups.iter().any(|known| known == name) {
            return Ok(());
        }
        if self.lookups.len() >= LOOKUPS_MAX {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "the name servers do not answer"));
        }
        let wanted = name.to_owned();
        self.start("moorline-resolve", move || {
            let addresses = wanted.to_socket_addrs().map(Iterator::collect);
            Done::Resolved { name: wanted, addresses }
        })?;
        self.lookups.push(name.to_owned());
        Ok(())
    }

    /// Asks the application for a token. A question that is under way is this one.
    ///
    /// # Errors
    /// There is no thread, or nobody to ask.
    pub(super) fn ask_for_token(&mut self, why: TokenWhy) -> io::Result<()> {
        if self.is_asking {
            return Ok(());
        }
        let Some(provider) = self.provider.clone() else {
            return Err(io::Error::other("there is no token provider"));
        };
        self.start("moorline-token", move || {
            let mut provider = provider.lock().unwrap_or_else(PoisonError::into_inner);
            // A panic was printed; the client asks again later.
            Done::Token(catch_unwind(AssertUnwindSafe(|| provider(why))).unwrap_or_default())
        })?;
        self.is_asking = true;
        Ok(())
    }

    /// Asks a dispatch server. A question that is under way, of any server, is this one.
    ///
    /// # Errors
    /// There is no thread, or nobody to ask.
    pub(super) fn ask_dispatch(&mut self, server: Arc<str>) -> io::Result<()> {
        if self.is_asking_dispatch {
            return Ok(());
        }
        let Some(asker) = self.asker.clone() else {
            return Err(io::Error::other("there is no dispatch server"));
        };
        self.start("moorline-dispatch", move || Done::Endpoints(asker.ask(&server)))?;
        self.is_asking_dispatch = true;
        Ok(())
    }

    /// Returns a result that has come.
    pub(super) fn poll(&mut self) -> Option<Done> {
        let done = self.results.try_recv().ok()?;
        match &done {
            Done::Resolved { name, .. } => self.lookups.retain(|known| known != name),
            Done::Token(_) => self.is_asking = false,
            Done::Endpoints(_) => self.is_asking_dispatch = false,
        }
        Some(done)
    }

    fn start(&self, name: &str, work: impl FnOnce() -> Done + Send + 'static) -> io::Result<()> {
        let (sender, shared) = (self.sender.clone(), Weak::clone(&self.shared));
        let run = move || {
            // The client may be gone, and then nobody wants the result.
            if sender.send(work()).is_ok()
                && let Some(shared) = shared.upgrade()
            {
                shared.wake();
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
    }
}
