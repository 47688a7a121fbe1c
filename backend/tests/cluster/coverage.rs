//! Counts of faults and effects that occurred: a run that reached nothing proves nothing.

use moorline_backend::cluster::calls::CallStatus;
use moorline_backend::cluster::store::ClusterStatus;

macro_rules! coverage {
    ($($(#[doc = $doc:literal])+ $name:ident;)+) => {
        /// Counts of occurrences, summed over seeds.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Coverage {
            $($(#[doc = $doc])+ pub(crate) $name: u64,)+
        }

        impl Coverage {
            pub(crate) fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }

            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }
        }
    };
}

coverage! {
    /// SENDs that clients made.
    sends;
    /// SENDs that clients repeated with DUP.
    repeats;
    /// SENDs that clients repeated without DUP.
    liars;
    /// SENDs answered RETRY.
    retries;
    /// SENDs answered DUP.
    dups;
    /// Pushes that devices received.
    pushes;
    /// Pushes that devices had before.
    repeated_pushes;
    /// Requests that were done and whose answer was lost.
    unknown_done;
    /// Requests that were not done and whose answer was lost.
    unknown_undone;
    /// Transactions that were done after their node had given up waiting.
    late_commits;
    /// Transactions that came late and met a fence.
    late_fenced;
    /// Messages between nodes that were lost.
    lost_peers;
    /// DELIVERs that were lost.
    lost_delivers;
    /// DELIVERs that came twice.
    repeated_delivers;
    /// Slots taken from an owner that lived.
    stolen;
    /// Nodes that ended without a word.
    kills;
    /// Nodes that gave everything away and ended.
    stops;
    /// Nodes that stood still.
    pauses;
    /// Nodes that stood still for longer than their lease.
    long_pauses;
    /// Inputs that a node took with the clock of before its pause.
    stale_inputs;
    /// Frames answered MOVED.
    moved_frames;
    /// Sessions announced at another node.
    moved_sessions;
    /// Logins that a node refused because the slot was gone.
    refused_logins;
    /// Slots claimed.
    claimed;
    /// Slots that a fence did not return.
    fenced;
    /// Slots given to another node.
    handed_over;
    /// Slots forgotten because the lease ended.
    leases_ended;
    /// Transactions of unknown outcome.
    unknown;
    /// Messages that were stored although their outcome was unknown.
    found;
    /// Numbers that became voids.
    voids;
    /// Messages that went into streams directly.
    direct;
    /// DELIVERs sent.
    delivers;
    /// DELIVERs that were not appended.
    ignored;
    /// SENDs stored by another node.
    forwarded;
    /// SENDs of slots that moved.
    moved;
    /// Number of transactions that were committed.
    transactions;
    /// Messages in them.
    messages;
    /// Events in them.
    events;
    /// Questions that another node answered.
    asked;
    /// SENDs to groups that were refused for good.
    sends_refused;
    /// Requests that clients made.
    requests;
    /// Requests answered RETRY.
    requests_put_off;
    /// Requests that were refused.
    requests_refused;
    /// Groups made.
    created;
    /// Groups joined.
    joined;
    /// Groups left.
    left;
    /// Changes of groups by others.
    changed;
    /// Groups ended.
    dissolved;
    /// Read marks set.
    read;
    /// Conversations deleted for oneself.
    cleared;
    /// Messages taken back.
    recalled;
    /// Profiles set.
    profiles;
    /// Profiles read.
    profiles_read;
    /// Lists of conversations with something in them.
    lists;
    /// Relations changed.
    related;
    /// Lists of relations with something in them.
    relations_listed;
    /// SENDs that were refused because one of the two has blocked the other.
    sends_blocked;
    /// SENDs that were refused because the two are not friends.
    sends_of_strangers;
    /// Rows of slots that were forgotten, because there were too many.
    rows_forgotten;
    /// Rows that were read from cells into the memory of slots.
    rows_read;
    /// Messages between friends, where only they may write.
    messages_of_friends;
    /// Read marks that the other user was not told.
    marks_untold;
    /// Settings of users set.
    settings;
    /// Users who were invited to groups.
    invited;
    /// Users who joined by invitation, where it takes one.
    joined_by_invitation;
    /// Lists of invitations with something in them.
    invitations_listed;
    /// Devices removed.
    devices_removed;
    /// Devices in lists.
    devices_listed;
    /// Calls of the server API.
    calls;
    /// Calls that were repeated.
    calls_repeated;
    /// Calls answered RETRY.
    calls_put_off;
    /// Calls that were refused.
    calls_refused;
    /// Calls that were answered with a message's place.
    calls_stored;
    /// Calls whose message was stored by an earlier try.
    calls_known;
    /// Profiles set by calls.
    calls_profiles;
    /// Users online in the answers to calls.
    calls_presences;
    /// Sessions that calls ended.
    calls_kicked;
    /// Pushes into inboxes.
    inbox_pushes;
    /// Pushes from inboxes that devices had before.
    repeated_inbox_pushes;
    /// Users barred from logging in.
    barred;
    /// Sessions that this ended.
    barred_sessions;
    /// Logins and sessions of barred users that were ended.
    barred_kicks;
    /// Frames of barred users that had to be refused.
    barred_frames;
    /// Pushes to users who are online.
    calls_pushed;
    /// Pushes into inboxes that devices received.
    live_pushes;
    /// Parts of calls that were sent to other nodes.
    calls_forwarded;
    /// Parts of calls that other nodes did not answer in time.
    calls_unanswered;
    /// Messages that were emptied since their groups are gone.
    swept;
    /// Users online in the answers to devices.
    presences_read;
    /// News about users that devices received.
    presences_pushed;
    /// Users of whom other nodes were asked whether they are online.
    presences_asked;
    /// Users of whom other nodes were told.
    presences_told;
    /// Questions about presence that another node did not answer.
    presences_unanswered;
    /// Events that devices received.
    event_pushes;
    /// Events that devices had before.
    repeated_event_pushes;
}

impl Coverage {
    /// Takes the figures of the calls of a node whose life has ended.
    pub(crate) fn add_calls(&mut self, status: CallStatus) {
        self.calls_forwarded += status.forwarded;
        self.calls_unanswered += status.unanswered;
    }

    /// Takes the figures of a node whose life has ended.
    pub(crate) fn add_status(&mut self, status: ClusterStatus) {
        self.claimed += status.claimed;
        self.fenced += status.fenced;
        self.handed_over += status.handed_over;
        self.leases_ended += status.leases_ended;
        self.unknown += status.unknown;
        self.found += status.found;
        self.voids += status.voids;
        self.direct += status.direct;
        self.delivers += status.delivers;
        self.ignored += status.ignored;
        self.forwarded += status.forwarded;
        self.moved += status.moved;
        self.transactions += status.transactions;
        self.messages += status.messages;
        self.events += status.events;
        self.asked += status.asked;
        self.rows_forgotten += status.rows_forgotten;
        self.rows_read += status.rows_read;
        self.swept += status.swept;
        self.presences_asked += status.presences_asked;
        self.presences_told += status.presences_told;
        self.presences_unanswered += status.presences_unanswered;
    }
}
