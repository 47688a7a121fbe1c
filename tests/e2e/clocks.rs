//! Gateways whose clocks differ: real processes with a C library call in between that shifts the time of day.

use crate::gateway::{Backend, Gateway};
use crate::process::TempFile;
use crate::raw::Client;
use moorline_proto::error::CloseReason;
use moorline_proto::message::client::Code;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Shifts CLOCK_REALTIME by the seconds of the variable `SHIFT`. The monotonic clock goes on as it does.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    const char *shift = getenv("SHIFT");
    if (result == 0 && id == CLOCK_REALTIME && shift) time->tv_sec += atol(shift);
    return result;
}
"#;

/// The library; `None`: this machine has no C compiler.
fn shim() -> Option<TempFile> {
    let library = TempFile::new("");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-x", "c", "-", "-o"]).arg(library.path());
    let mut compiler = match command.stdin(Stdio::piped()).spawn() {
        Ok(compiler) => compiler,
        Err(error) => {
            crate::skipped(&format!("no `cc` on this machine: {error}"));
            return None;
        }
    };
    compiler.stdin.take().expect("piped").write_all(SHIM.as_bytes()).expect("it reads");
    assert!(compiler.wait().expect("our child").success());
    Some(library)
}

/// A gateway whose time of day is shifted by `shift` seconds.
fn gateway(shim: &TempFile, backend: &Backend, id: &str, shift: i64) -> Gateway {
    let sets = [format!("backend.endpoints={}", backend.address), format!("gateway.id={id}")];
    let gateway = Gateway::start_as(&[&sets[0], &sets[1]], |command| {
        command.env("LD_PRELOAD", shim.path()).env("SHIFT", shift.to_string());
    });
    gateway.until_ready();
    gateway
}

#[test]
fn the_newer_login_of_a_device_stays_over_a_restart_of_the_backend_whatever_the_clocks_say() {
    let Some(shim) = shim() else { return };
    for (first, second) in [(3_600, 0), (0, 3_600), (0, -3_600)] {
        let backend = Backend::start();
        let gateways = [("g1", first), ("g2", second)].map(|(id, shift)| gateway(&shim, &backend, id, shift));
        let mut old = Client::login(gateways[0].listener, "alice", "phone");
        let mut ben = Client::login(gateways[0].listener, "ben", "phone");
        assert_eq!(ben.tell(1, "alice", b"before").code(), Code::Ok);
        old.until("a message", |heard| heard.payloads() == [b"before"]);
        let shown = |client: &Client| {
            let welcome = client.heard.welcome.as_ref().expect("logged in");
            i64::try_from(welcome.server_time_ms / 1_000).expect("a time")
        };
        let place = backend.kill();
        for gateway in &gateways {
            crate::until("the gateway notices", || (gateway.varz().links_up == 0).then_some(()));
        }
        // The client has another network, and its first connection does not know yet.
        let mut new = Client::login(gateways[1].listener, "alice", "phone");
        let difference = shown(&new) - shown(&old) - (second - first);
        assert!((0..600).contains(&difference), "the clocks are shifted: {difference}");
        let _backend = Backend::start_at(&place);
        gateways.iter().for_each(Gateway::until_ready);
        assert_eq!(old.end().code(), CloseReason::Replaced.code(), "{first} {second}");
        new.beat(30);
        assert!(new.is_quiet_for(Duration::from_millis(200)), "the newer login stays: {first} {second}");
    }
}
