//! Logins that the server API refuses, whatever their tokens say: revoked tokens and banned users.

use super::*;
use crate::im::{ApiAnswer, ApiBody, ApiCall, ApiReply};
use std::sync::{Arc, Mutex};

const REVOKED: u32 = 3521;
const BANNED: u32 = 3531;

impl Bench {
    /// Number of logins that the call ended.
    fn api(&mut self, call: ApiCall) -> Result<usize, Code> {
        let place = Arc::new(Mutex::new(None::<ApiAnswer>));
        let given = Arc::clone(&place);
        let reply = ApiReply::new(move |answer| *given.lock().expect("alive") = Some(answer));
        let now = self.now;
        self.im().handle_api(now, call, reply);
        self.perform();
        self.end_turn();
        let answer = place.lock().expect("alive").take().expect("an answer");
        match answer.body {
            ApiBody::Reached(count) => Ok(count),
            _ => Err(answer.code),
        }
    }

    fn revoke(&mut self, user: &str, before_s: Option<u64>) -> Result<usize, Code> {
        self.api(ApiCall::Revoke { user: user.into(), before_s })
    }

    fn ban(&mut self, user: &str, until_s: u64) -> Result<usize, Code> {
        self.api(ApiCall::Ban { user: user.into(), until_s })
    }

    /// Logs in with a token that was issued then. Returns the code of the kick; 0: the login stands.
    fn try_login(&mut self, slot: u32, device: &str, issued_s: u64) -> u32 {
        self.issued_s = issued_s;
        let session = self.login(slot, "bob", device, u64::from(slot) + 1);
        self.issued_s = 0;
        match self.kicks()[..] {
            [] => 0,
            [(kicked, code)] if kicked == session => code,
            ref other => panic!("{other:?}"),
        }
    }

    const fn now_s(&self) -> u64 {
        self.now.unix_ms / 1000
    }
}

fn bench() -> Bench {
    Bench::new(ImConfig::default())
}

#[test]
fn older_tokens_are_refused_and_their_sessions_end_for_good() {
    let mut bench = bench();
    let now_s = bench.now_s();
    assert_eq!(bench.try_login(0, "old", now_s - 100), 0);
    assert_eq!(bench.try_login(1, "new", now_s - 10), 0);
    let (old, new) = (SessionId::new(0, 1), SessionId::new(1, 2));
    assert_eq!(bench.revoke("bob", Some(now_s - 50)), Ok(1));
    assert_eq!(bench.kicks(), [(old, REVOKED)]);
    let alice = bench.login(2, "alice", "phone", 1);
    assert_eq!(bench.send(old, user("alice"), &key(1), b"").0, Code::Denied, "it may do nothing any more");
    bench.send(alice, user("bob"), &key(2), b"for bob");
    assert_eq!(bench.pushes().iter().map(|it| it.session).collect::<Vec<_>>(), [new]);
    // Its gateway has not heard of it, and announces it again.
    bench.issued_s = now_s - 100;
    bench.conn_up(old, "bob", "old", 1, false);
    assert_eq!(bench.kicks(), [(old, REVOKED)]);
    bench.issued_s = 0;
    for issued_s in [0, now_s - 51] {
        assert_eq!(bench.try_login(3, "phone", issued_s), REVOKED, "{issued_s}");
    }
    assert_eq!(bench.try_login(4, "phone", now_s - 50), 0);
    // An earlier time takes nothing back; 0 does.
    assert_eq!(bench.revoke("bob", Some(5)), Ok(0));
    assert_eq!(bench.try_login(5, "tablet", now_s - 51), REVOKED);
    assert_eq!(bench.revoke("bob", Some(0)), Ok(0));
    assert_eq!(bench.try_login(6, "tablet", now_s - 51), 0);
}

#[test]
fn without_a_time_all_tokens_of_up_to_now_are_revoked() {
    let mut bench = bench();
    let now_s = bench.now_s();
    assert_eq!(bench.revoke("bob", None), Ok(0), "a user who has never logged in");
    assert_eq!(bench.try_login(0, "phone", now_s), REVOKED);
    assert_eq!(bench.try_login(1, "phone", now_s + 1), 0);
    assert_eq!(bench.revoke("bob", Some(now_s + 301)), Err(Code::Invalid));
    assert_eq!(bench.revoke("b:b", None), Err(Code::Invalid));
}

#[test]
fn no_token_gets_round_a_ban_until_it_ends() {
    let mut bench = bench();
    let now_s = bench.now_s();
    assert_eq!(bench.try_login(0, "phone", now_s), 0);
    assert_eq!(bench.ban("bob", now_s + 100), Ok(1));
    assert_eq!(bench.kicks(), [(SessionId::new(0, 1), BANNED)]);
    for issued_s in [0, now_s, u64::MAX] {
        assert_eq!(bench.try_login(1, "other", issued_s), BANNED);
    }
    bench.pass(Duration::from_secs(100));
    assert_eq!(bench.try_login(2, "other", now_s), 0, "the ban has ended");
    assert_eq!(bench.ban("bob", u64::MAX), Ok(1));
    assert_eq!(bench.kicks().len(), 1);
    bench.pass(Duration::from_secs(1_000_000));
    assert_eq!(bench.try_login(3, "other", now_s), BANNED);
    assert_eq!(bench.ban("bob", now_s), Ok(0), "a time that has passed ends the ban");
    assert_eq!(bench.try_login(4, "other", now_s), 0);
}

#[test]
fn a_refused_login_makes_no_device_and_rules_outlive_the_backend() {
    let mut bench = bench();
    bench.ban("bob", u64::MAX).expect("banned");
    let now_s = bench.now_s();
    bench.revoke("bob", Some(now_s)).expect("revoked");
    for number in 0..40 {
        assert_eq!(bench.try_login(number, &format!("d{number}"), now_s), BANNED);
    }
    bench.restart(&mut |store| store);
    bench.end_turn();
    assert_eq!(bench.try_login(50, "phone", now_s), BANNED);
    bench.ban("bob", 0).expect("ended");
    assert_eq!(bench.try_login(51, "phone", now_s - 1), REVOKED, "the one rule without the other");
    assert_eq!(bench.try_login(52, "phone", now_s), 0);
    let devices: moorline_proto::message::im::DevicesResponse = bench
        .req(
            SessionId::new(52, bench.generations),
            "im.devices",
            &moorline_proto::message::im::DevicesRequest::default(),
        )
        .expect("listed");
    assert_eq!(devices.devices.len(), 1);
}
