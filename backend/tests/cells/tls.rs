//! Connections to a cell over TLS: what is verified, and what a fault is called.

use crate::postgres::{self, Postgres, scratch};
use moorline_backend::sql::{CellAddress, Connection, admin, status};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

const HOST: &str = "cell.example";

/// Certificates of one CA.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new() -> Self {
        let folder = scratch::path("ca");
        fs::create_dir_all(&folder).expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let authority = Self { issuer, folder };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its rights");
        path
    }

    fn root(&self) -> String {
        self.folder.join("ca.pem").display().to_string()
    }

    /// A certificate with its key, as PEM. `end`: the year that it ends with.
    fn issue(&self, name: &str, end: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 12, 31);
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.folder);
    }
}

/// A server with TLS, and the authority of its certificate.
struct Cell {
    server: Postgres,
    port: u16,
    authority: Authority,
}

impl Cell {
    fn start() -> Option<Self> {
        // PostgreSQL chooses no port by itself. This one is free now, and the system gives it to nobody else for a while.
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let listen = [("listen_addresses", "'127.0.0.1'"), ("port", &port.to_string())];
        let server = Postgres::start(&[&[("fsync", "off")][..], &listen].concat())?;
        server.database("a");
        let cell = Self { server, port, authority: Authority::new() };
        cell.serve(&cell.authority.issue(HOST, 2100));
        cell.server.sql("a", "alter system set ssl = on");
        cell.reload();
        let tables: CellAddress =
            format!("host={} port={port} user=moorline dbname=a", cell.server.host()).parse().ok()?;
        admin::migrate(&[tables], "one").expect("tables");
        Some(cell)
    }

    /// Gives the server a certificate.
    fn serve(&self, (certificate, key): &(String, String)) {
        self.server.write("server.crt", certificate);
        self.server.write("server.key", key);
    }

    fn reload(&self) {
        let loaded = self.server.sql("a", "select pg_conf_load_time()");
        self.server.sql("a", "select pg_reload_conf()");
        // The reload is done when a new session has the time of it.
        while self.server.sql("a", "select pg_conf_load_time()") == loaded {}
    }

    fn text(&self, rest: &str) -> String {
        format!("host={HOST} hostaddr=127.0.0.1 port={} user=moorline dbname=a {rest}", self.port)
    }

    fn problem(&self, rest: &str) -> String {
        let address: CellAddress = self.text(rest).parse().expect("an address");
        match admin::check(&[address]) {
            Ok(name) => name,
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn a_cell_is_verified_and_a_fault_says_what_is_wrong_with_which_file() {
    let Some(cell) = Cell::start() else {
        return postgres::skip("a_cell_is_verified_and_a_fault_says_what_is_wrong_with_which_file");
    };
    let full = format!("sslmode=verify-full sslrootcert='{}'", cell.authority.root());
    assert_eq!(cell.problem(&full), "one");
    let address: CellAddress = cell.text(&full).parse().expect("an address");
    let mut connection = Connection::open(&address).expect("a connection");
    connection.last_id(moorline_proto::slots::NodeId(1)).expect("an answer");
    let state = status::read(std::slice::from_ref(&address));
    assert_eq!(state.cluster, "one", "{state:?}");
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
                     where ssl and version = 'TLSv1.3' and application_name = 'moorline'";
    assert_eq!(cell.server.sql("a", encrypted), "1");

    let place = format!("cell 0 at {HOST}:{}/a: ", cell.port);
    let other = Authority::new();
    let stranger = cell.problem(&format!("sslmode=require sslrootcert='{}'", other.root()));
    assert!(stranger.starts_with(&place), "{stranger}");
    assert!(stranger.contains("the certificate of the cell is not of a CA in sslrootcert"), "{stranger}");
    let missing = cell.problem("sslmode=verify-full sslrootcert=/nosuch/ca.pem");
    assert!(missing.starts_with(&format!("{place}sslrootcert in the connection string: ")), "{missing}");
    assert!(missing.contains("/nosuch/ca.pem"), "{missing}");
    let empty = other.write("empty.pem", "");
    let empty = cell.problem(&format!("sslrootcert='{}'", empty.display()));
    assert!(empty.contains("no certificate in PEM"), "{empty}");

    for (certificate, what) in [
        (cell.authority.issue("else.example", 2100), "has not the name that is dialled"),
        (cell.authority.issue(HOST, 2021), "has expired"),
    ] {
        cell.serve(&certificate);
        cell.reload();
        let problem = cell.problem(&full);
        assert!(problem.starts_with(&place) && problem.contains(what), "{problem}");
    }
    connection.last_id(moorline_proto::slots::NodeId(1)).expect("a connection that is there stays");

    // A new CA in the same file, and a certificate of it: the next connection believes it.
    cell.serve(&other.issue(HOST, 2100));
    cell.reload();
    assert!(cell.problem(&full).contains("not of a CA in sslrootcert"));
    cell.authority.write("ca.pem", &(cell.authority.issuer.pem() + &other.issuer.pem()));
    assert_eq!(cell.problem(&full), "one");

    cell.server.sql("a", "alter system set ssl = off");
    cell.reload();
    let plain = cell.problem(&full);
    assert!(plain.starts_with(&place) && plain.contains("server does not support TLS"), "{plain}");
    assert_eq!(cell.problem("sslmode=disable"), "one", "on request");
}

#[test]
fn a_cell_may_ask_for_a_certificate() {
    let Some(cell) = Cell::start() else {
        return postgres::skip("a_cell_may_ask_for_a_certificate");
    };
    cell.server.write("root.crt", &cell.authority.issuer.pem());
    cell.server.write("pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.0/8 cert\n");
    cell.server.sql("a", "alter system set ssl_ca_file = 'root.crt'");
    cell.reload();
    let (certificate, key) = cell.authority.issue("moorline", 2100);
    let certificate = cell.authority.write("own.pem", &certificate);
    let own_key = cell.authority.write("own.key", &key);
    let full = format!("sslmode=verify-full sslrootcert='{}'", cell.authority.root());
    let shown = format!("{full} sslcert='{}' sslkey='{}'", certificate.display(), own_key.display());
    assert_eq!(cell.problem(&shown), "one");
    let none = cell.problem(&full);
    assert!(none.contains("certificate"), "{none}");
    fs::set_permissions(&own_key, std::os::unix::fs::PermissionsExt::from_mode(0o622)).expect("its rights");
    let open = cell.problem(&shown);
    assert!(open.contains("sslkey in the connection string: ") && open.contains("own.key"), "{open}");
}
