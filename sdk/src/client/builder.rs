//! Puts a client together.

use super::alarm::Alarm;
use super::clock::SleepWatch;
use super::dispatch::{Asker, SERVERS_MAX, Server, is_region};
use super::driver::Driver;
use super::endpoint::Endpoint;
use super::jobs::Jobs;
use super::keeper::Keeper;
use super::shared::{Incoming, Notices, Shared};
use super::tls::{Tls, TlsSetupError, Trust};
use super::token::Source;
use super::{Client, TokenProvider};
use crate::client::Pending;
use crate::core::{Backoff, Core, CoreConfig, InvalidName, Message, TokenSource, TokenWhy, Tuning};
use crate::store::{FileStore, StoreError, Unsent};
use crossbeam_channel::{Receiver, bounded, unbounded};
use mio::{Poll, Waker};
use moorline_proto::message::client::Platform;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Notices kept for whoever reads them; older ones make room.
const NOTICES_MAX: usize = 256;
const LINGER_DEFAULT: Duration = Duration::from_secs(1);

type Handler = Box<dyn FnMut(&Message) + Send>;

/// Settings of a client; see [`Client::builder`].
pub struct ClientBuilder {
    endpoint: String,
    alternates: Vec<String>,
    dispatch: Vec<String>,
    region: String,
    trust: Trust,
    may_be_plain: bool,
    uid: String,
    device: String,
    platform: Platform,
    token: Option<String>,
    provider: Option<TokenProvider>,
    tuning: Tuning,
    linger: Duration,
    handler: Option<Handler>,
    store: Option<FileStore>,
}

/// A client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// uid or device.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Not `tls://host:port`.
    #[error("the endpoint {endpoint:?} is not tls://host:port, or tcp://host:port on this machine")]
    Endpoint {
        /// The rejected value.
        endpoint: String,
    },
    /// Plain TCP would leave this machine.
    #[error(
        "the endpoint {endpoint:?} is not on this machine, and anybody on the way could read the token; write tls://, or \
         allow it by allow_plain(true)"
    )]
    Plain {
        /// The rejected value.
        endpoint: String,
    },
    /// An alternate would be spoken to in another way than the endpoint.
    #[error("the alternate {alternate:?} has another scheme than the endpoint; write the same one")]
    Mixed {
        /// The rejected value.
        alternate: String,
    },
    /// A dispatch server that cannot be asked, or too many of them.
    #[error("cannot use the dispatch server {server:?}: {why}")]
    Dispatch {
        /// The rejected value.
        server: String,
        /// The reason, and what to write instead.
        why: &'static str,
    },
    /// Not a name of a region.
    #[error("the region {region:?} is not valid: at most 32 letters, digits, `-` and `_`")]
    Region {
        /// The rejected value.
        region: String,
    },
    /// TLS cannot be used with these settings, or on this platform.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The store is another device's, or cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system gave no poll, waker, thread or random bytes.
    #[error("cannot start the client: {0}")]
    System(#[from] std::io::Error),
}

impl ClientBuilder {
    pub(super) fn new(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            alternates: Vec::new(),
            dispatch: Vec::new(),
            region: String::new(),
            trust: Trust::default(),
            may_be_plain: false,
            uid: String::new(),
            device: "default".to_owned(),
            platform: Platform::Unknown,
            token: None,
            provider: None,
            tuning: Tuning::default(),
            linger: LINGER_DEFAULT,
            handler: None,
            store: None,
        }
    }

    /// Gateways, each with the scheme of the endpoint, that the client may be sent to. A gateway that stops can name other
    /// addresses; the client sends its token there. Over plain TCP it goes to an address only if the address is in this list;
    /// names are compared as they are written, letter case aside. Over TLS it goes to any address whose certificate is valid
    /// for the endpoint's host; one that is listed here by name may prove its own name instead. Default: none, so over plain
    /// TCP the client comes back to its own endpoint.
    #[must_use]
    pub fn alternates<'a>(mut self, endpoints: impl IntoIterator<Item = &'a str>) -> Self {
        self.alternates = endpoints.into_iter().map(str::to_owned).collect();
        self
    }

    /// Dispatch servers (`moorline dispatch`), at most 8, each `https://host` or `https://host:port`; `http://` on this machine. One
    /// of them is asked for gateways before the first attempt, and when gateways fail; the client goes to those in their order,
    /// and to its own endpoint behind them. A server's certificate must be valid for its own host. The client goes to a
    /// gateway of the answer as it goes to one that GOAWAY names, see [`Self::alternates`]: a server that lies can send it to
    /// no other owner's gateway. Default: none.
    #[must_use]
    pub fn dispatch<'a>(mut self, servers: impl IntoIterator<Item = &'a str>) -> Self {
        self.dispatch = servers.into_iter().map(str::to_owned).collect();
        self
    }

    /// Region that the client names to a dispatch server. Default: none, so gateways of any region are given.
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        region.clone_into(&mut self.region);
        self
    }

    /// Authorities that may give a gateway its certificate, in PEM, instead of the platform's; may be called several times.
    #[must_use]
    pub fn roots_pem(mut self, pem: &[u8]) -> Self {
        self.trust.roots_pem.push(pem.to_vec());
        self
    }

    /// Adds one authority in DER, as [`Self::roots_pem`] does in PEM.
    #[must_use]
    pub fn root_der(mut self, der: &[u8]) -> Self {
        self.trust.roots_der.push(der.to_vec());
        self
    }

    /// Keys that a gateway may have, each as the SHA-256 of its certificate's `SubjectPublicKeyInfo`. The certificate must
    /// be valid as well. Give a second key that is kept safe: with one alone, a lost key locks every client out. Default: any
    /// key.
    #[must_use]
    pub fn pins(mut self, sha256: impl IntoIterator<Item = [u8; 32]>) -> Self {
        self.trust.pins.extend(sha256);
        self
    }

    /// Name that the gateway's certificate must be valid for. Default: the endpoint's host.
    #[must_use]
    pub fn server_name(mut self, name: &str) -> Self {
        self.trust.name = Some(name.to_owned());
        self
    }

    /// Allows `tcp://` to other machines. Everybody on the way then reads the token and every message, and can send in the
    /// user's name: right only inside of a tunnel that protects both, such as a VPN between two servers. Default: this
    /// machine only.
    #[must_use]
    pub fn allow_plain(mut self, is_allowed: bool) -> Self {
        self.may_be_plain = is_allowed;
        self
    }

    /// User and device that log in. Required.
    #[must_use]
    pub fn user(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.uid);
        self
    }

    /// On which device. Default "default"; one login per device.
    #[must_use]
    pub fn device(mut self, device: &str, platform: Platform) -> Self {
        device.clone_into(&mut self.device);
        self.platform = platform;
        self
    }

    /// The token of every login. Default: empty, which only a gateway in dev mode takes.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Called for a token before the first login, when the last one has expired, and when the gateway does not accept it;
    /// `None`: not now. A token with an `exp` claim (JWT) is replaced before it expires. The provider runs on a thread of
    /// its own and may take its time; nothing but the login waits for it.
    #[must_use]
    pub fn token_provider(
        mut self,
        provider: impl FnMut(TokenWhy) -> Option<String> + Send + 'static,
    ) -> Self {
        self.provider = Some(Box::new(provider));
        self
    }

    /// The waits between connection attempts.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.tuning.backoff = backoff;
        self
    }

    /// Every other time and limit; includes the backoff.
    #[must_use]
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = tuning;
        self
    }

    /// Longest wait for the last bytes to leave when the client is dropped. Default 1 s.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Called for every message, on a thread of its own; the message is acked when it returns. Dropping the client
    /// waits for it.
    /// Without it, messages are taken by [`Client::recv_timeout`].
    #[must_use]
    pub fn on_message(mut self, handler: impl FnMut(&Message) + Send + 'static) -> Self {
        self.handler = Some(Box::new(handler));
        self
    }

    /// Folder or file that keeps messages without a result over the end of the application, and the cursor of each
    /// conversation: messages that came meanwhile are delivered by the next life.
    #[must_use]
    pub fn store(mut self, store: FileStore) -> Self {
        self.store = Some(store);
        self
    }

    /// Reads an address that may be spoken to.
    fn endpoint_of(&self, text: &str) -> Result<Endpoint, BuildError> {
        let endpoint =
            Endpoint::parse(text).ok_or_else(|| BuildError::Endpoint { endpoint: text.to_owned() })?;
        if endpoint.is_tls || self.may_be_plain || endpoint.is_loopback() {
            return Ok(endpoint);
        }
        Err(BuildError::Plain { endpoint: text.to_owned() })
    }

    fn alternates_beside(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, BuildError> {
        let read = |text: &String| match self.endpoint_of(text)? {
            alternate if alternate.is_tls == endpoint.is_tls => Ok(alternate),
            _ => Err(BuildError::Mixed { alternate: text.clone() }),
        };
        self.alternates.iter().map(read).collect()
    }

    /// Reads the dispatch servers; `None`: there is none.
    fn asker(&self) -> Result<Option<Asker>, BuildError> {
        let refuse = |server: &String, why| BuildError::Dispatch { server: server.clone(), why };
        if !is_region(&self.region) {
            return Err(BuildError::Region { region: self.region.clone() });
        }
        if let Some(server) = self.dispatch.get(SERVERS_MAX) {
            return Err(refuse(server, "there are more than 8; leave some out"));
        }
        let read = |text: &String| {
            let server = Server::parse(text)
                .ok_or_else(|| refuse(text, "write https://host or https://host:port, without a path"))?;
            if server.is_safe() || self.may_be_plain {
                return Ok((Arc::from(text.as_str()), server));
            }
            Err(refuse(text, "anybody on the way could change its answer; write https://"))
        };
        let servers = self.dispatch.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Ok(None);
        }
        let (region, within) = (self.region.clone(), self.tuning.dispatch_timeout);
        Ok(Some(Asker::new(servers, region, &self.trust, self.may_be_plain, within)?))
    }

    /// Starts the client; it connects at once and by itself from then on.
    ///
    /// # Errors
    /// [`BuildError`]. An unreachable gateway is not an error here: see [`Client::notices`].
    pub fn build(self) -> Result<Client, BuildError> {
        let endpoint = self.endpoint_of(&self.endpoint)?;
        let alternates = self.alternates_beside(&endpoint)?;
        let asker = self.asker()?;
        let places = alternates.iter().map(|alternate| alternate.place.as_str());
        let tls = endpoint.is_tls.then(|| Tls::new(&self.trust, &endpoint.place, places)).transpose()?;
        let token = match (&self.provider, self.token) {
            (Some(_), _) => TokenSource::Ask,
            (None, token) => TokenSource::Fixed(token.unwrap_or_default().into()),
        };
        let mut config = CoreConfig::new(&self.uid, &self.device, self.platform, token);
        config.check()?;
        config.alternates = alternates.iter().map(|alternate| alternate.place.as_str().into()).collect();
        if let Some(asker) = &asker {
            config.dispatch = asker.names();
            // A dispatch server may name the endpoint itself.
            let own = Arc::from(endpoint.place.as_str());
            config.alternates = config.alternates.iter().cloned().chain([own]).collect();
        }
        config.is_proved = tls.is_some();
        config.tuning = Arc::new(self.tuning);
        let (me, device) = (Arc::clone(&config.uid), Arc::clone(&config.device));
        let mut store = self.store;
        let mut core = Core::new(config, seed()?);
        let unsent = restore(&mut core, store.as_mut(), &self.uid, &self.device)?;
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Source::Waker.into())?;
        let alarm = Alarm::open(poll.registry())?;
        let keeper = store.map(Keeper::start).transpose()?;
        let shared = Arc::new(Shared::new(core, keeper, waker));
        let restored = send_again(&shared, unsent);
        let (message_sender, messages) = unbounded(); // the core bounds what is out
        let (sender, receiver) = bounded(NOTICES_MAX);
        let driver = Driver {
            shared: Arc::clone(&shared),
            poll,
            endpoint: endpoint.place,
            alternate: None,
            tls,
            may_be_plain: self.may_be_plain,
            jobs: Jobs::new(&shared, self.provider, asker),
            alarm,
            sleep: SleepWatch::default(),
            wanted: None,
            messages: message_sender,
            notices: Notices::new(sender, receiver.clone()),
            linger: self.linger,
            socket: None,
            attempts: 0,
            is_closing: false,
            closed: None,
        };
        let thread = thread::Builder::new().name("moorline".into()).spawn(move || driver.run())?;
        let mut threads = vec![thread];
        let messages = match self.handler {
            None => Some(messages),
            Some(handler) => {
                let shared = Arc::clone(&shared);
                let handle = move || handle_all(handler, &messages, &shared);
                threads.push(thread::Builder::new().name("moorline-handler".into()).spawn(handle)?);
                None
            }
        };
        let linger = self.linger;
        Ok(Client { shared, messages, notices: receiver, threads, me, device, restored, linger })
    }
}

/// Goes on where an earlier life of this device was; what it had not sent.
fn restore(
    core: &mut Core,
    store: Option<&mut FileStore>,
    uid: &str,
    device: &str,
) -> Result<Vec<(u64, Unsent)>, StoreError> {
    let Some(store) = store else { return Ok(Vec::new()) };
    store.claim(uid, device)?;
    let followed =
        store.places().filter(|(conversation, cursor)| core.restore(conversation, *cursor)).count();
    let known = store.places().count();
    if followed < known {
        tracing::warn!(followed, known, "more conversations in the store than tuning.conversations_max");
    }
    Ok(store.unsent().map(|(number, unsent)| (number, unsent.clone())).collect())
}

fn send_again(shared: &Shared, unsent: Vec<(u64, Unsent)>) -> Vec<Pending> {
    let (mut hub, now) = shared.hub();
    let again = unsent.into_iter().filter_map(|(number, unsent)| {
        let key = unsent.key;
        let sent = hub.send_again(now, number, unsent);
        sent.inspect_err(|error| tracing::warn!(%error, ?key, "not sent again in this life")).ok()
    });
    again.collect()
}

fn handle_all(mut handler: Handler, messages: &Receiver<Message>, shared: &Arc<Shared>) {
    for message in messages {
        if shared.has_ended() {
            return; // neither handled nor acked: they come again
        }
        handler(&Incoming::new(message, Arc::clone(shared))); // dropped, and so acked, after it
    }
}

fn seed() -> std::io::Result<u64> {
    Ok(getrandom::u64()?)
}
