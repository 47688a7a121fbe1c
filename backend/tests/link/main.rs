//! The server on real loopback sockets, with this test as the gateway.

mod gateway;
mod im;
mod lifecycle;
mod limits;
mod rooms;

use gateway::Gateway;
use moorline_backend::BackendConfig;
use moorline_backend::config::Unproven;
use moorline_backend::server::{Event, Handler, Now, Outbox, Remote, Server};
use moorline_net::log::DroppedLines;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than anything here takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Defaults on a port of the system's choice.
fn config() -> BackendConfig {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    let mut config = BackendConfig { listen, ..BackendConfig::default() };
    config.link.unproven = Unproven::Loopback;
    config
}

/// A backend on a thread of its own, stopped and joined at the end of the test.
struct Backend {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Starts the server of `moorline backend`.
    fn run(config: BackendConfig) -> Self {
        let (ready, address) = mpsc::channel();
        let ready = move |here: moorline_backend::Ready| {
            ready.send(here.link.ip().expect("an IP address")).expect("the test waits");
        };
        Self::start(&address, move |stop| {
            let live = moorline_backend::Live::new(&config).expect("valid");
            moorline_backend::run(&config, &live, &DroppedLines::default(), ready, &stop).expect("runs");
        })
    }

    fn start(
        address: &mpsc::Receiver<SocketAddr>,
        body: impl FnOnce(Arc<AtomicBool>) + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let thread = std::thread::spawn(move || body(theirs));
        let address = address.recv_timeout(PATIENCE).expect("the backend is ready");
        Self { address, stop, thread: Some(thread) }
    }

    /// A handler that tells every event, and does what the test sends it to do.
    fn spy(config: &BackendConfig) -> (Self, mpsc::Receiver<Event>, Remote<Order>) {
        let server = Server::bind(config).expect("binds");
        let (tell, told) = mpsc::channel();
        let (ready, address) = mpsc::channel();
        ready.send(server.address().ip().expect("an IP address")).expect("received below");
        let remote = server.remote();
        let backend = Self::start(&address, move |stop| {
            server.run(&mut Spy { tell }, &stop).expect("runs");
        });
        (backend, told, remote)
    }

    fn gateway(&self, node: &str, epoch: u64) -> Gateway {
        Gateway::greeted(self.address, node, epoch)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("joined once").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the backend's thread panicked");
    }
}

/// Something to be done in the handler's thread.
type Order = Box<dyn FnOnce(&mut Outbox) + Send>;

struct Spy {
    tell: mpsc::Sender<Event>,
}

impl Handler for Spy {
    type Message = Order;

    fn handle(&mut self, _now: Now, event: Event, _out: &mut Outbox) {
        if !matches!(event, Event::Tick) {
            self.tell.send(event).ok(); // the test may be over
        }
    }

    fn handle_message(&mut self, _now: Now, order: Order, out: &mut Outbox) {
        order(out);
    }
}

fn next(told: &mpsc::Receiver<Event>) -> Event {
    told.recv_timeout(PATIENCE).expect("an event")
}
