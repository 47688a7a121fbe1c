//! The server's end against the client of OpenSSL, over real sockets. Each record goes to another state by a handover.

use super::files::Folder;
use super::pair::*;
use crate::tls::{End, Established, Progress, Protocols, Records, Server, Suite};
use moorline_proto::time::Instant;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Wait for one line or one packet.
const WAIT: Duration = Duration::from_secs(30);

/// Shakes hands, then sends each line back with `echo: ` before it until the client closes.
fn serve(listener: &TcpListener, server: &Server) -> Established {
    let (mut socket, _) = listener.accept().expect("a client");
    socket.set_read_timeout(Some(WAIT)).expect("a timeout");
    let mut room = [0; 4096];
    let mut handshake = server.handshake().expect("a server");
    let mut done = loop {
        let count = socket.read(&mut room).expect("bytes");
        let mut out = Vec::new();
        let progress = handshake.advance(&room[..count], &mut out);
        socket.write_all(&out).expect("written");
        if let Progress::Done(done) = progress.expect("a handshake") {
            break done;
        }
    };
    let mut tail = std::mem::take(&mut done.leftover);
    let mut lines = 0;
    loop {
        let now = Instant::from_nanos(lines * 1_000_000_000);
        let opened = done.records.open(&mut tail, now);
        let mut out = Vec::new();
        if !opened.plain.is_empty() {
            lines += 1;
            if lines % 3 == 0 {
                done.records.request_update(&mut out).expect("owner");
            }
            done.records.seal(&[b"echo: ", &tail[opened.plain]], &mut out).expect("owner");
        }
        tail.drain(..opened.consumed);
        match opened.end {
            None => {}
            Some(End::Closed) => {
                done.records.close_notify(&mut out).expect("owner");
                // The client may be gone already.
                socket.write_all(&out).ok();
                return *done;
            }
            Some(End::Fault(fault)) => panic!("{fault}"),
        }
        socket.write_all(&out).expect("written");
        let frozen = done.records.freeze().expect("owner");
        done.records.retire();
        done.records = Records::thaw(frozen.as_ref()).expect("valid");
        done.records.resume().expect("thawed");
        let count = read(&mut socket, &mut room);
        tail.extend_from_slice(&room[..count]);
    }
}

fn read(socket: &mut TcpStream, room: &mut [u8]) -> usize {
    let count = socket.read(room).expect("bytes");
    assert!(count > 0, "the client left without close_notify");
    count
}

/// A running `openssl s_client`.
struct Client {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Client {
    fn start(port: u16, options: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "chat.example"])
            .args(["-tls1_3", "-alpn", "moorline/1", "-verify_return_error"])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is there");
        let input = child.stdin.take().expect("piped");
        let (sender, lines) = channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for stream in streams {
            let (sender, stream) = (sender.clone(), BufReader::new(stream));
            thread::spawn(move || {
                stream.lines().map_while(Result::ok).for_each(|line| _ = sender.send(line));
            });
        }
        Self { child, input, lines }
    }

    /// Waits for a line that ends so.
    fn expect(&self, end: &str) {
        loop {
            let line =
                self.lines.recv_timeout(WAIT).unwrap_or_else(|_| panic!("no line that ends with {end:?}"));
            if line.ends_with(end) {
                return;
            }
        }
    }

    /// Gives the client a line, which it reads at once, as one record or one command.
    fn say(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).expect("it reads");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn openssl_is_a_client() {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        eprintln!("NOT RUN: there is no program `openssl`");
        return;
    }
    let folder = Folder::new();
    let roots = folder.write("roots.pem", &IDENTITY.pem());
    let roots = roots.to_str().expect("UTF-8");
    let tickets_of_both = tickets();
    for (suite, name) in
        [(Suite::Aes256, "TLS_AES_256_GCM_SHA384"), (Suite::ChaCha20, "TLS_CHACHA20_POLY1305_SHA256")]
    {
        let path = folder.0.join(name);
        let ticket = path.to_str().expect("UTF-8");
        for is_resumed in [false, true] {
            let ticket_option = if is_resumed { "-sess_in" } else { "-sess_out" };
            // The first group is not one of the server's: it asks for another hello.
            let options =
                ["-CAfile", roots, "-ciphersuites", name, "-groups", "P-521:P-256", ticket_option, ticket];
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = listener.local_addr().expect("bound").port();
            let protocols = Protocols::required("moorline/1");
            let server = Server::new(IDENTITY.resolver(), tickets_of_both.clone(), protocols, None);
            let thread = thread::spawn(move || serve(&listener, &server));
            let mut client = Client::start(port, &options);
            for round in 0..8 {
                let line = format!("line {round}");
                client.say(&line);
                client.expect(&format!("echo: {line}"));
                // The client changes its key, and wants the server to.
                client.say(if round % 2 == 0 { "K" } else { "k" });
                client.expect("KEYUPDATE");
            }
            client.say("last");
            client.expect("echo: last");
            client.say("Q");
            let done = thread.join().expect("served");
            assert_eq!((done.records.suite(), done.is_resumed), (suite, is_resumed));
            assert_eq!(done.protocol.as_deref(), Some(&b"moorline/1"[..]));
        }
    }
}
