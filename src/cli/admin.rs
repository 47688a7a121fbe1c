//! Questions and orders to a running gateway, and the watch over one that carries out an order.

use super::Failure;
use crate::sys::clock;
use moorline_net::http::{self, Address, Answer, Question, StatusCode};
use moorline_proto::time::Instant;
use std::io;
use std::time::Duration;

/// Longest wait for the whole answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// For another order to be over.
const ORDER_MAX: Duration = Duration::from_secs(10);
/// Between tries to give an order.
const ORDER_LOOK: Duration = Duration::from_millis(100);
/// Time without a listening socket after which the gateway counts as ended.
const GONE_MAX: Duration = Duration::from_secs(1);
/// A running gateway.
#[derive(Clone, Debug)]
pub(super) struct Running(Address);

impl Running {
    /// The gateway at this place.
    pub(super) const fn at(place: Address) -> Self {
        Self(place)
    }

    /// Returns the body of the answer.
    pub(super) fn ask(&self, question: &Question<'_>) -> io::Result<String> {
        let Answer { status, body } = http::ask(&self.0, question, PATIENCE)?;
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => Ok(body),
            StatusCode::CONFLICT => Err(io::Error::new(io::ErrorKind::ResourceBusy, body.trim().to_owned())),
            _ => Err(io::Error::other(format!("it says {:?}", format!("{status} {body}").trim()))),
        }
    }

    /// Gives an order, and tries again for 10 s while another one is under way. Returns its number.
    pub(super) fn order(&self, what: &str, question: &Question<'_>) -> Result<u64, Failure> {
        self.order_after(what, question, || Ok(()))
    }

    /// Gives an order like [`Self::order`], and calls `before` before each try: the other order may change what this one means.
    /// Only an order that was refused is given again, so that none is taken twice.
    pub(super) fn order_after(
        &self,
        what: &str,
        question: &Question<'_>,
        mut before: impl FnMut() -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let until = clock::machine_now() + ORDER_MAX;
        let answer = loop {
            before()?;
            match self.ask(question) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && clock::machine_now() < until => {
                    std::thread::park_timeout(ORDER_LOOK);
                }
                answer => break answer.map_err(|error| self.cannot(what, &error))?,
            }
        };
        answer.trim().parse().map_err(|_| Failure::Failed(format!("{self} answers {answer:?}")))
    }

    /// Makes the failure of a question into a message with the cause and what to look at.
    pub(super) fn cannot(&self, operation: &str, error: &io::Error) -> Failure {
        let advice = match (error.kind(), &self.0) {
            (io::ErrorKind::PermissionDenied, _) => {
                "; run this as root, as the gateway's user, or as a member of admin.group"
            }
            (io::ErrorKind::Other | io::ErrorKind::ResourceBusy, _) => "",
            (io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, Address::Unix(_)) => {
                "; is the gateway running, and is this its admin socket? If its settings have named another one since it \
                 started, name it by --pid-file, or the socket of before by --admin"
            }
            (_, Address::Unix(_)) => "; is the gateway running, and is this its admin socket (--admin)?",
            (_, Address::Tcp(_)) => {
                "; is the gateway running, and is this its admin address (--admin)? No admin socket was found for it; \
                 its ready line names it (socket=)"
            }
        };
        Failure::Failed(format!("cannot {operation} {self}: {error}{advice}"))
    }
}

/// Watch over a gateway that shall carry out an order: notices within 2 s that it has ended.
#[derive(Debug)]
pub(super) struct Watch {
    /// The gateway when the order was given; 0: a version that does not tell it.
    epoch: u64,
    /// Since when nobody holds the socket; `None`: somebody does.
    gone_since: Option<Instant>,
}

impl Watch {
    /// Begins with the gateway of this epoch.
    pub(super) const fn begin(epoch: u64) -> Self {
        Self { epoch, gone_since: None }
    }

    /// Judges one look at the gateway: its epoch, or the failure.
    ///
    /// # Errors
    /// The gateway that took the order has ended.
    pub(super) fn judge(&mut self, gateway: &Running, seen: Result<u64, &io::Error>) -> Result<(), Failure> {
        match seen {
            // 0: a process of this series whose version does not tell it.
            Ok(epoch) if epoch == self.epoch || epoch == 0 || self.epoch == 0 => self.gone_since = None,
            Ok(epoch) => {
                return Err(Failure::Failed(format!(
                    "the gateway that took the order has ended, and another one (epoch {epoch}) was started at {gateway}; \
                     the order is not carried out"
                )));
            }
            // Both processes of a hot restart hold the socket, so that nobody is refused in between.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
            {
                let since = *self.gone_since.get_or_insert_with(clock::machine_now);
                if clock::machine_now().saturating_since(since) >= GONE_MAX {
                    return Err(Failure::Failed(format!(
                        "nobody listens at {gateway} any more: the gateway has ended, or its new settings have no admin \
                         socket there; look at its log"
                    )));
                }
            }
            // A connection that ended with the process of before.
            Err(_) => {}
        }
        Ok(())
    }
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::find::DEFAULT;
    use super::*;

    #[test]
    fn another_epoch_is_another_gateway_and_a_refusal_is_believed_when_it_lasts() {
        let gateway = Running(DEFAULT.into());
        let mut watch = Watch::begin(7);
        watch.judge(&gateway, Ok(7)).expect("the same");
        // An earlier version, before or after the upgrade, does not tell its epoch.
        watch.judge(&gateway, Ok(0)).expect("unknown");
        Watch::begin(0).judge(&gateway, Ok(7)).expect("unknown");
        let Err(Failure::Failed(said)) = watch.judge(&gateway, Ok(8)) else { panic!("another gateway") };
        assert!(said.contains("another one (epoch 8)"), "{said}");
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        watch.judge(&gateway, Err(&refused)).expect("for a moment");
        watch.judge(&gateway, Err(&io::ErrorKind::TimedOut.into())).expect("it may be busy");
        let until = clock::machine_now() + GONE_MAX;
        while clock::machine_now() < until {
            std::thread::park_timeout(ORDER_LOOK);
        }
        assert!(watch.judge(&gateway, Err(&refused)).is_err(), "nobody holds the socket");
    }
}
