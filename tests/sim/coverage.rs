//! Counts of faults and repairs that occurred: a run that reached nothing proves nothing.

use moorline_proto::frame::HEADER_BYTES;
use std::fmt;

macro_rules! coverage {
    ($($(#[doc = $doc:literal])+ $name:ident;)+) => {
        /// Counts of occurrences, summed over seeds.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Coverage {
            $($(#[doc = $doc])+ pub(crate) $name: u64,)+
            /// Connections cut behind this many bytes of a header; 0: between frames.
            pub(crate) header_cuts: [u64; HEADER_BYTES],
        }

        impl Coverage {
            fn rows(&self) -> Vec<(String, u64)> {
                let cuts = self.header_cuts.iter().enumerate();
                let cuts = cuts.map(|(offset, count)| (format!("cut behind byte {offset}"), *count));
                [$((stringify!($name).to_owned(), self.$name),)+].into_iter().chain(cuts).collect()
            }

            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
                for (count, more) in self.header_cuts.iter_mut().zip(other.header_cuts) {
                    *count += more;
                }
            }
        }
    };
}

coverage! {
    /// Steps simulated.
    steps;
    /// States of a reactor that moved to another process.
    restarts;
    /// Sends that applications made.
    sends;
    /// Messages that applications received.
    messages;
    /// Reads that ended inside a frame.
    split_frames;
    /// Reads that brought more than one frame.
    coalesced_frames;
    /// Writes of which the kernel took only a part.
    partial_writes;
    /// BATCH frames that clients spoke.
    batches;
    /// SENDs whose key was on the wire before.
    client_retransmissions;
    /// Keys that came to the backend again, and were answered DUP.
    duplicate_uplinks;
    /// UPs that were sent again on another life of a link.
    link_resends;
    /// Links that died.
    link_deaths;
    /// Links that died without a word to either end.
    link_silent_deaths;
    /// Connections to the backend that were refused.
    link_refusals;
    /// Connections to the backend of which nobody heard.
    link_syns_lost;
    /// Writes to a link that its kernel took a part of, or nothing.
    link_partial_writes;
    /// Links that a router closed because too many bytes waited for them.
    links_clogged;
    /// Slots that moved to another link though their own was open.
    slot_moves;
    /// Announcements of slots begun.
    announces;
    /// Logins that announcements named.
    logins_announced;
    /// Login changes that an announcement made needless.
    changes_skipped;
    /// UPs that were refused because too many waited.
    ups_refused;
    /// Endpoints that were left alone because they did not answer.
    breaker_trips;
    /// Batches that a full mailbox refused.
    batches_refused;
    /// Times that a router changed which clients are held.
    router_holds;
    /// Times that a router changed how much load is shed.
    router_overloads;
    /// Digests that routers sent.
    digests;
    /// Outcomes of pushes whose link was gone.
    stale_outcomes;
    /// Pushes to many that a router compressed.
    pushes_compressed;
    /// Logins that no backend judged in time.
    auth_timeouts;
    /// States of a router that moved to another process.
    router_restarts;
    /// Links that the backend did not read because they went over their credit.
    credit_pauses;
    /// Links that the backend did not read because they did not read either.
    output_pauses;
    /// Pushes that the backend answered FULL itself, because their link did not read.
    full_pushes;
    /// Links that the backend closed because they did not read for too long.
    stalled_links;
    /// Links that the backend closed because nothing came.
    silent_links;
    /// Sessions that ended because no link spoke for them in time.
    expired_sessions;
    /// Gateways that were given up because no link of theirs came in time.
    expired_gateways;
    /// Links that ended because their gateway had begun a newer epoch.
    newer_epochs;
    /// Strangers who greeted at the link port.
    strangers;
    /// Strangers who were refused with a reason.
    strangers_refused;
    /// Rooms that were told anew because a gateway held other members.
    room_repairs;
    /// RETRY answers of the backend.
    backend_retries;
    /// RETRY answers of a worker whose UP had no answer in time.
    timeout_retries;
    /// Answers that came after their UP had timed out.
    late_answers;
    /// Logins that replaced an older one of the same device.
    kicks_by_newer_login;
    /// Kicks ordered by the backend.
    kicks_by_backend;
    /// Moments at which the most reliable frames were in flight toward one client.
    full_windows;
    /// Pulls of holes in conversations.
    pulls;
    /// Messages that were pushed again, because their ack was not known.
    repeated_pushes;
    /// Pushes of one payload to several devices.
    shared_pushes;
    /// Messages that went to the room of a group.
    group_room_pushes;
    /// Rooms of groups that were lost.
    group_rooms_lost;
    /// Connections that moved to another shard.
    moves;
    /// Connections that moved on because their user was not at home there.
    moves_on;
    /// Kicks, pushes and questions for users who were at home elsewhere.
    forwards;
    /// Connections that ended for silence.
    heartbeat_timeouts;
    /// Connections that never said HELLO in time.
    handshake_timeouts;
    /// Connections that ended for a frame, or a SEND before others, that did not come.
    incomplete_closes;
    /// Plain bytes that compressed frames of clients announced.
    unpacked_bytes;
    /// Overdue acks that were asked for.
    ack_probes;
    /// Connections that ended for want of an ack.
    ack_timeouts;
    /// Connections that ended because they did not read.
    slow_closes;
    /// Connections that ended for breaking the protocol.
    bad_input_closes;
    /// SENDs that came before their turn.
    early_sends;
    /// Connections that broke.
    resets;
    /// Directions that stood still for a while.
    stalls;
    /// Connections whose peer shut down its writing half only.
    half_closes;
    /// Connections cut inside a body.
    body_cuts;
    /// Moments at which all clients lost their connections.
    storms;
    /// Jumps of the clock: the whole machine slept.
    suspends;
    /// Times that the gateway stood still.
    freezes;
    /// Deaths of the backend.
    backend_deaths;
    /// Connections that were not read because their worker said so.
    backpressure_holds;
    /// Uplinks refused in overload.
    shed_uplinks;
    /// Logins refused in overload.
    shed_logins;
    /// Logins refused for now.
    refusals;
    /// Applications that logged out or closed, and came back.
    app_restarts;
    /// Devices that went without a word, and came back.
    deaths;
    /// Sessions whose connection was lost and that waited for their client.
    detaches;
    /// Sessions that went on with another connection.
    resumes;
    /// Resumes with the older connection still open.
    takeovers;
    /// Logins that asked to go on with a session in vain.
    resumes_refused;
    /// Sessions that nobody came back to in time.
    sessions_given_up;
    /// Reliable frames that were sent again.
    pushes_again;
    /// SENDs that were answered from the shard's memory.
    sends_replayed;
    /// Pushes to sessions whose client was away.
    queued_pushes;
    /// Pushes that became a NOTIFY.
    collapsed_pushes;
    /// Pushes that went out together as one BATCH.
    merged_pushes;
    /// Connections that were not read for a while because they said too much.
    rate_holds;
    /// Uplinks refused because their user said too much.
    user_refusals;
    /// Rooms that were entered.
    rooms_entered;
    /// Signals that arrived.
    signals;
    /// Frames that came compressed.
    compressed;
    /// Requests of applications that were answered.
    responses;
}

impl Coverage {
    /// Faults and repairs that never occurred.
    pub(crate) fn missing(&self) -> Vec<String> {
        self.rows().into_iter().filter(|row| row.1 == 0).map(|row| row.0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows().iter().try_for_each(|(name, count)| writeln!(f, "{name:<24}{count:>10}"))
    }
}
