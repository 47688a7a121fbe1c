//! The program over TLS, against the bare server, and over WebSocket, against a small server behind a relay.

use crate::server::{self, Fault};
use moorline_proto::time::Instant;
use moorline_proto::websocket::{Reader, Writer};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A bare server with TLS and its certificate, which is its own authority.
struct Bare {
    child: Child,
    address: String,
    folder: PathBuf,
}

impl Bare {
    fn start(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("moorload-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["gw.example".into()]).unwrap().self_signed(&key).unwrap();
        let (certificates, keys) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&certificates, certificate.pem()).unwrap();
        std::fs::write(&keys, key.serialize_pem()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_moorload"))
            .args(["bare", "--for", "5m", "--tls-cert"])
            .arg(&certificates)
            .arg("--tls-key")
            .arg(&keys)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.split_once("listener=").and_then(|(_, rest)| rest.split(' ').next()).unwrap().to_owned();
        Self { child, address, folder }
    }

    fn ca(&self) -> String {
        self.folder.join("cert.pem").display().to_string()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// Exit code, report and standard error of one run.
fn moorload(arguments: &str, target: &str) -> (i32, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_moorload"))
        .args(arguments.split_ascii_whitespace())
        .args(["--json", "-q", "--no-out", target])
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), report, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// On a machine as busy as one that runs tests, an open loop may rightly call itself saturated.
fn is_sound(code: i32, report: &Value) -> bool {
    let integrity = report["integrity"].as_object();
    let is_clean = integrity.is_some_and(|all| all.values().all(|count| *count == 0));
    is_clean && matches!(code, 0 | 5)
}

#[test]
fn messages_pass_over_tls() {
    let bare = Bare::start("tls");
    let line = format!("--bare --tls --tls-name gw.example --ca {} -c 20 -d 500ms --warmup 100ms", bare.ca());
    for traffic in ["ping -w 8", "ping --payload 30000", "chat -w 8"] {
        let (code, report, told) = moorload(&format!("{traffic} {line}"), &bare.address);
        assert!(is_sound(code, &report), "{traffic}: {code} {report} {told}");
        let carrier = &report["carrier"];
        assert_eq!((&carrier["handshakes"], &carrier["upgrades"]), (&20.into(), &0.into()), "{report}");
        assert!(carrier["handshakes_per_s"].as_f64().unwrap() > 0.0 && !told.contains("warning"), "{told}");
    }
}

#[test]
fn clients_that_come_back_resume_unless_they_may_not() {
    let bare = Bare::start("resumption");
    let line =
        format!("--bare --tls --tls-name gw.example --ca {} -c 40 -d 3s --calm 500ms -r 100", bare.ca());
    // Each client connects twice.
    for (more, resumed) in [("", 0.5), ("--no-resumption", 0.0)] {
        let (code, report, told) = moorload(&format!("storm {line} {more}"), &bare.address);
        assert!(is_sound(code, &report), "{report} {told}");
        assert_eq!(report["carrier"]["handshakes"], 80, "{report}");
        assert_eq!(report["carrier"]["resumed"], resumed, "{more:?}: {report}");
    }
}

#[test]
fn a_certificate_that_is_not_valid_is_told_and_accepted_only_by_name() {
    let bare = Bare::start("trust");
    let run = |more: &str| moorload(&format!("hold -c 4 -d 300ms --bare --tls {more}"), &bare.address);
    let (code, _, told) = run(&format!("--ca {}", bare.ca()));
    assert!(code == 3 && told.contains("certificate not valid for name"), "{code} {told}");
    let (code, report, told) = run("--insecure");
    assert!(is_sound(code, &report) && told.contains("any certificate is accepted"), "{report} {told}");
    assert!(report["notes"].to_string().contains("--insecure"), "{report}");
    let (code, _, told) = run("");
    assert!(code == 1 && told.contains("--ca FILE"), "{code} {told}");
}

/// Speaks WebSocket in front of a plain server; where.
fn relay(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || relay_one(client, TcpStream::connect(server).unwrap()));
        }
    });
    address
}

fn relay_one(mut client: TcpStream, mut server: TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    client.write_all(&accept(&String::from_utf8(head).ok()?)).ok()?;
    let (mut from_server, mut to_client) = (server.try_clone().ok()?, client.try_clone().ok()?);
    std::thread::spawn(move || {
        let mut buffer = [0; 4_096];
        while let Some(count) = from_server.read(&mut buffer).ok().filter(|count| *count > 0) {
            let header = Writer::default().next(count).header;
            let message = [&header, &buffer[..count]].concat();
            if to_client.write_all(&message).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let (mut reader, mut kept, mut buffer) = (Reader::default(), Vec::new(), [0; 4_096]);
    while let Some(count) = client.read(&mut buffer).ok().filter(|count| *count > 0) {
        kept.extend_from_slice(&buffer[..count]);
        let opened = reader.open(&mut kept, Instant::ZERO, u32::MAX);
        assert_eq!(opened.end, None, "the generator frames as the standard says");
        server.write_all(&kept[opened.plain]).ok()?;
        kept.drain(..opened.consumed);
    }
    server.shutdown(Shutdown::Both).ok()
}

fn accept(request: &str) -> Vec<u8> {
    use base64::Engine as _;
    use sha1::Digest as _;
    let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let hash = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64::prelude::BASE64_STANDARD.encode(hash);
    let lines =
        ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Protocol: moorline.v1"].join("\r\n");
    format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n")
        .into_bytes()
}

#[test]
fn messages_pass_over_websocket_and_faults_are_still_found() {
    let sound = relay(server::start(Fault::None)).to_string();
    for traffic in ["ping -w 8 -c 10", "ping --payload 30000 -c 4", "chat -c 10 -w 8"] {
        let (code, report, told) = moorload(&format!("{traffic} --ws -d 500ms --warmup 100ms"), &sound);
        assert!(is_sound(code, &report), "{traffic}: {code} {report} {told}");
        assert!(report["carrier"]["upgrades"].as_u64().unwrap() >= 4, "{report}");
    }
    let losing = relay(server::start(Fault::Lose(50))).to_string();
    let line = "ping --ws -c 4 -r 1k/s -d 500ms --warmup 100ms --drain 500ms";
    let (code, report, _) = moorload(line, &losing);
    assert!(code == 4 && report["integrity"]["lost"].as_u64().unwrap() > 0, "{report}");
}
