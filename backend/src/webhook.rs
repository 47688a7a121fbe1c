//! Delivers to the endpoints of services, over HTTP: one thread for each, signed, in order (`docs/server-api.md`).

use crate::clock::Clock;
use crate::config::{BackendConfig, WebhookConfig};
use crate::error::BackendError;
use crate::im::{BackendMessage, WebhookCall, WebhookResult};
use crate::server::{Remote, RemoteError};
use crate::undelivered::{Undelivered, UndeliveredFigures, UndeliveredLimits};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crossbeam_channel::{Receiver, Sender, bounded};
use hmac::{Hmac, Mac as _};
use moorline_proto::ids::ReadableId;
use moorline_proto::message::client::Push;
use moorline_proto::message::decode;
use serde_json::{Value, json};
use sha2::Sha256;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use ureq::tls::{TlsConfig, TlsProvider};

/// A shorter secret could be guessed.
const SECRET_BYTES_MIN: usize = 16;
/// Time that the result of a delivery waits for room in the mailbox before it is given in again.
const MAILBOX_PAUSE: Duration = Duration::from_millis(50);

/// The threads, by the order of the services' names. Dropping it ends them once they have answered.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    calls: Vec<Sender<WebhookCall>>,
}

impl Endpoints {
    /// Starts a thread for each service.
    pub(crate) fn start(
        config: &BackendConfig,
        remote: &Remote<BackendMessage>,
        figures: &Arc<UndeliveredFigures>,
    ) -> Result<Self, BackendError> {
        let mut calls = Vec::new();
        let limits = UndeliveredLimits {
            bytes: config.im.undelivered_max as u64,
            files: config.im.undelivered_files_max,
        };
        let folder = &config.im.folder;
        let undelivered = (!folder.as_os_str().is_empty()).then(|| Undelivered::new(folder, limits, figures));
        for (name, service) in &config.im.webhooks {
            let endpoint = Endpoint::new(name, service, undelivered.clone())?;
            // One delivery of a service is under way at a time.
            let (sender, receiver) = bounded(1);
            let remote = remote.clone();
            let run = move || endpoint.run(&receiver, &remote);
            let spawned = thread::Builder::new().name(format!("to {name}")).spawn(run);
            spawned
                .map_err(|cause| BackendError::Poll { operation: "start a thread for a service", cause })?;
            calls.push(sender);
        }
        Ok(Self { calls })
    }

    /// Gives a delivery to its thread.
    pub(crate) fn call(&self, call: WebhookCall) {
        let service = call.webhook;
        // There is room for the one that is under way, unless its thread is gone.
        if self.calls.get(service).is_none_or(|thread| thread.try_send(call).is_err()) {
            tracing::error!(service, "the thread of a service is gone; restart the backend");
        }
    }
}

struct Endpoint {
    name: String,
    url: String,
    /// `None`: deliveries are not signed.
    secret: Option<Vec<u8>>,
    agent: ureq::Agent,
    /// `None`: there is no folder.
    undelivered: Option<Undelivered>,
    clock: Clock,
}

impl Endpoint {
    fn new(
        name: &str,
        service: &WebhookConfig,
        undelivered: Option<Undelivered>,
    ) -> Result<Self, BackendError> {
        let wrong = |reason: String| BackendError::InvalidConfig { key: "im.webhooks", reason };
        let secret = read_secret(name, &service.secret_file).map_err(wrong)?;
        if secret.is_none() {
            tracing::warn!(
                service = name,
                "no secret_file: deliveries are not signed, and anybody can make them up"
            );
        }
        let agent = agent(service.timeout);
        Ok(Self {
            name: name.to_owned(),
            url: service.url.clone(),
            secret,
            agent,
            undelivered,
            clock: Clock::new(),
        })
    }

    fn run(&self, calls: &Receiver<WebhookCall>, remote: &Remote<BackendMessage>) {
        for WebhookCall { webhook: service, messages, is_last_try } in calls {
            let body = self.body(&messages);
            let mut result = match self.post(&body) {
                Ok(()) => WebhookResult::Delivered,
                Err(problem) => {
                    tracing::warn!(service = self.name, problem, messages = messages.len(), "not delivered");
                    WebhookResult::Failed
                }
            };
            if result == WebhookResult::Failed && is_last_try && self.give_up(&body) {
                result = WebhookResult::GivenUp;
            }
            loop {
                match remote.try_send(BackendMessage::Webhook(service, result)) {
                    Ok(()) => break,
                    Err(RemoteError::Full(_)) => thread::park_timeout(MAILBOX_PAUSE),
                    Err(RemoteError::Gone(_)) => return,
                }
            }
        }
    }

    fn body(&self, messages: &[bytes::Bytes]) -> String {
        let messages: Vec<Value> =
            messages.iter().filter_map(|body| decode(body).ok()).map(|push| message(&push)).collect();
        json!({ "service": self.name, "messages": messages }).to_string()
    }

    fn post(&self, body: &str) -> Result<(), String> {
        let timestamp = (self.clock.read().unix_ms / 1000).to_string();
        let request = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .header("moorline-timestamp", &timestamp);
        let request = match &self.secret {
            Some(secret) => request.header("moorline-signature", signature(secret, &timestamp, body)),
            None => request,
        };
        match request.send(body) {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("it answered {}", answer.status())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Writes down a delivery that the endpoint would not take. False: it could not be written.
    fn give_up(&self, body: &str) -> bool {
        let Some(undelivered) = &self.undelivered else {
            tracing::error!(service = self.name, "given up, and there is no im.folder to keep it in");
            return true;
        };
        match undelivered.append(&self.name, self.clock.read().unix_ms, body) {
            Ok(path) => {
                tracing::error!(service = self.name, path = %path.display(), "given up and written down");
                true
            }
            Err(error) => {
                tracing::error!(service = self.name, %error, "cannot write down what is given up");
                false
            }
        }
    }
}

/// An HTTP client whose requests take at most `timeout` and follow no redirect.
pub(crate) fn agent(timeout: Duration) -> ureq::Agent {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("moorline/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

/// Reads the secret with which requests for `name` are signed. `None`: the path is empty.
///
/// # Errors
/// The file cannot be read, or holds no secret.
pub(crate) fn read_secret(name: &str, path: &Path) -> Result<Option<Vec<u8>>, String> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|cause| format!("{name}: cannot read {shown}: {cause}"))?;
    let secret = text.trim().as_bytes().to_vec();
    if secret.is_empty() {
        return Err(format!("{name}: there is no secret in {shown}"));
    }
    if secret.len() < SECRET_BYTES_MIN {
        tracing::warn!(service = name, path = %shown, "a secret of less than 16 bytes can be guessed");
    }
    Ok(Some(secret))
}

/// HMAC-SHA-256 (RFC 2104) of `<timestamp>.<body>` under the secret.
pub(crate) fn signature(secret: &[u8], timestamp: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    let digest = mac.finalize().into_bytes();
    digest.iter().fold(String::from("v1="), |hex, byte| hex + &format!("{byte:02x}"))
}

/// The message as JSON; content that is not UTF-8 is Base64 in `payload`.
fn message(push: &Push) -> Value {
    let mut value = json!({
        "message_id": push.message_id.to_string(),
        "readable_id": ReadableId::new(push.message_id, &push.conversation).to_string(),
        "conversation": push.conversation,
        "seq": push.seq,
        "sender": push.sender,
        "sender_device": push.sender_device,
        "type": push.r#type,
        "time_ms": push.time_ms,
    });
    if !push.happened.is_empty() {
        value["happened"] = crate::api::requests::happened(&push.happened)
            .unwrap_or_else(|| BASE64.encode(&push.happened).into());
    } else if let Ok(text) = std::str::from_utf8(&push.payload) {
        value["text"] = text.into();
    } else {
        value["payload"] = BASE64.encode(&push.payload).into();
    }
    value
}
