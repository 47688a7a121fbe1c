//! The client and its dispatch servers: what it does with their answers, and with none.

use super::builder;
use super::server::{PATIENCE, Server};
use moorline_sdk::client::{BuildError, Client, Notice};
use moorline_sdk::core::DispatchFault;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// A server that gives every question the same bytes.
struct Dispatch {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Dispatch {
    fn start(answer: impl Into<Vec<u8>>) -> Self {
        let (answer, listener) = (answer.into(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut head) = (stream.unwrap(), Vec::new());
                let mut block = [0; 1024];
                while !head.ends_with(b"\r\n\r\n") {
                    let count = stream.read(&mut block).unwrap();
                    head.extend_from_slice(&block[..count]);
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(&answer); // the client may have had enough
            }
        });
        Self { address, asked }
    }

    fn of_list(endpoints: &[String]) -> Self {
        let entries: Vec<String> =
            endpoints.iter().map(|endpoint| format!("{{\"endpoint\":{endpoint:?}}}")).collect();
        let body = format!("{{\"endpoints\":[{}],\"lifetime_s\":60}}", entries.join(","));
        Self::start(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The first notices of a client: the fault of the dispatch server, if it has one, and the login.
fn fault_before_login(client: &Client) -> Option<DispatchFault> {
    let mut fault = None;
    loop {
        match client.notices().recv_timeout(PATIENCE).expect("the notice comes") {
            Notice::NoEndpoints { why } => fault = Some(why),
            Notice::LoggedIn { .. } => return fault,
            _ => {}
        }
    }
}

#[test]
fn a_client_goes_where_the_list_says_and_to_no_address_that_is_not_allowed() {
    let (own, other, foreign) = (Server::start(), Server::start(), Server::start());
    let dispatch = Dispatch::of_list(&[foreign.endpoint(), other.endpoint(), own.endpoint()]);
    let alternates = other.endpoint();
    let client = builder(&own, "alice").alternates([&*alternates]).dispatch([&*dispatch.url()]);
    let client = client.build().expect("starts");
    other.wait("the login", |state| state.hellos == 1);
    assert_eq!(fault_before_login(&client), None);
    assert_eq!((own.state().hellos, foreign.state().hellos), (0, 0));
    assert_eq!(dispatch.asked.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answer_that_is_no_list_leaves_the_own_endpoint() {
    let own = Server::start();
    let large = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(100 << 10));
    let nine = vec!["tls://a:1".to_owned(); 9];
    let of_nine = Dispatch::of_list(&nine);
    for dispatch in
        [Dispatch::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), Dispatch::start(large), of_nine]
    {
        let client = builder(&own, "alice").dispatch([&*dispatch.url()]).build().expect("starts");
        let fault = fault_before_login(&client);
        assert!(matches!(fault, Some(DispatchFault::BadAnswer { .. })), "{fault:?}");
    }
    let busy = Dispatch::start("HTTP/1.1 503 Busy\r\nretry-after: 5\r\n\r\n");
    let client = builder(&own, "alice").dispatch([&*busy.url()]).build().expect("starts");
    let retry_after = Duration::from_secs(5);
    assert_eq!(fault_before_login(&client), Some(DispatchFault::Refused { status: 503, retry_after }));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = builder(&own, "alice").dispatch([&*format!("http://{nobody}")]).build().expect("starts");
    let fault = fault_before_login(&client);
    assert!(matches!(fault, Some(DispatchFault::Unreachable { .. })), "{fault:?}");
}

#[test]
fn a_silent_dispatch_server_costs_its_deadline_and_not_the_login() {
    let (own, silent) = (Server::start(), TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("http://{}", silent.local_addr().unwrap());
    let tuning = moorline_sdk::core::Tuning {
        dispatch_timeout: Duration::from_millis(200),
        ..moorline_sdk::core::Tuning::default()
    };
    let client = builder(&own, "alice").tuning(tuning).dispatch([&*url]).build().expect("starts");
    assert_eq!(fault_before_login(&client), Some(DispatchFault::TimedOut));
}

#[test]
fn dispatch_servers_that_cannot_be_asked_are_refused_at_the_start() {
    let own = Server::start();
    let refused = |servers: &[&str]| {
        let built = builder(&own, "alice").dispatch(servers.iter().copied()).build();
        matches!(built, Err(BuildError::Dispatch { .. }))
    };
    assert!(refused(&["http://dispatch.example:80"]) && refused(&["dispatch.example"]));
    assert!(refused(&["https://dispatch.example/v1"]) && refused(&["https://d.example"; 9]));
    assert!(matches!(builder(&own, "alice").region("a b").build(), Err(BuildError::Region { .. })));
}
