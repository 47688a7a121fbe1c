//! Memory that the IM backend holds for one user who is online and idle, counted at the allocator.
//!
//! 9,000, then 14,000 users log in through a link host with the IM handler on a store in memory, each with one device; nobody writes. The
//! figure is the growth of all live allocations, each as large as glibc's allocator makes it, divided by the users.
//!
//! ```text
//! cargo test -p moorline-backend --test memory -- --nocapture
//! ```

use bytes::BytesMut;
use moorline_backend::config::{ImConfig, LinkConfig, Unproven};
use moorline_backend::im::store::Memory;
use moorline_backend::im::{Im, ImHandler};
use moorline_backend::server::{Handler, LinkHost, LinkId, Now, Output, Peer, Visitor};
use moorline_proto::link::{Kind, NONCE_BYTES, encode};
use moorline_proto::message::backend::{ConnUp, LinkHello};
use moorline_proto::time::Duration;
use prost::Message;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting.
struct Counting;

thread_local! {
    /// Bytes that this thread has allocated and not freed.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

/// Adds the size of an allocation of glibc's allocator: 8 bytes of its own, in units of 16.
fn count(layout: Layout, sign: isize) {
    let size = (layout.size() + 8).next_multiple_of(16).max(32).cast_signed();
    // Not there any more while the thread ends.
    LIVE.try_with(|live| live.set(live.get() + sign * size)).ok();
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
#[allow(unsafe_code)] // the trait is unsafe to implement
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Users at whom tables that double are far from full, and those at whom they are nearly so.
const CROWDS: [u64; 2] = [9_000, 14_000];
/// Bytes per user; the bar.
const BYTES_MAX: isize = 400;

struct Rig {
    host: LinkHost,
    handler: ImHandler<Memory>,
    link: LinkId,
    now: Now,
}

impl Rig {
    fn new() -> Self {
        let config = ImConfig::default();
        let link = LinkConfig { unproven: Unproven::Loopback, ..LinkConfig::default() };
        let mut host = LinkHost::new(&link, "b".into(), 1);
        let handler = ImHandler::new(Im::new(config.clone(), 1, Memory::new(&config)), |_| ());
        let mut now = Now { unix_ms: 1_800_000_000_000, ..Now::default() };
        now.instant += Duration::from_secs(1);
        host.handle_timeouts(now);
        let visitor = Visitor { peer: Peer::Loopback, nonce: [0; NONCE_BYTES] };
        let link = host.handle_link_opened(now, visitor).expect("it may come in");
        let mut rig = Self { host, handler, link, now };
        let hello = LinkHello {
            version_min: 1,
            version_max: 1,
            node: "gateway".into(),
            epoch: 1,
            ..LinkHello::default()
        };
        rig.say(Kind::Hello, &hello);
        rig
    }

    fn say(&mut self, kind: Kind, body: &impl Message) {
        let mut wire = BytesMut::new();
        encode(&mut wire, kind, 0, 0, body);
        self.host.handle_link_bytes(self.now, self.link, &mut wire.freeze());
        self.turn();
    }

    /// Runs a turn, as a server does.
    fn turn(&mut self) {
        for is_end in [false, true] {
            if is_end {
                self.handler.handle_turn_end(self.now, self.host.outbox());
                self.host.handle_turn_end(self.now);
            }
            while let Some(output) = self.host.poll_output() {
                match output {
                    Output::Event(event) => self.handler.handle(self.now, event, self.host.outbox()),
                    Output::Write(link) => {
                        let count = self.host.unsent(link).len();
                        self.host.handle_link_sent(self.now, link, count);
                    }
                    Output::Close { end, .. } => panic!("{end}"),
                    _ => {}
                }
            }
        }
    }

    fn log_in(&mut self, handle: u64) {
        self.now.instant += Duration::from_millis(1);
        self.now.unix_ms += 1;
        let (uid, device) = (format!("user-{handle}"), format!("phone-{handle}"));
        let login_version = handle;
        let login = ConnUp { handle, uid, device, login_version, platform: 1, ..ConnUp::default() };
        self.say(Kind::ConnUp, &login);
    }
}

#[test]
fn an_idle_user_who_is_online_takes_at_most_400_bytes() {
    for users in CROWDS {
        let mut rig = Rig::new();
        rig.log_in(0);
        let before = LIVE.get();
        (1..=users).for_each(|handle| rig.log_in(handle));
        rig.now.instant += Duration::from_secs(10);
        rig.host.handle_timeouts(rig.now);
        rig.turn();
        let bytes = (LIVE.get() - before) / isize::try_from(users).expect("few users");
        println!("{users} users: {bytes} bytes for each");
        assert!(bytes <= BYTES_MAX, "{bytes} bytes at {users} users");
    }
}
