//! The event loop's part of links to the other nodes: what [`super::PeerLinks`] orders, done on sockets.

use super::Handler;
use super::dial::{Dialled, Made};
use super::event::Now;
use super::links::LinkEnd;
use super::peers::PeerOutput;
use super::reactor::Server;
use super::tls::Target;
use mio::event::Event;
use moorline_net::stream::Reading;
use moorline_proto::link::LinkAddress;
use moorline_proto::slots::NodeId;
use std::collections::BTreeMap;

/// Reads from one node in one turn: there is little to read, since a node sends by links of its own.
const READS: usize = 4;

/// Connections to other nodes.
#[derive(Debug, Default)]
pub(super) struct Dialling {
    sockets: BTreeMap<NodeId, Dialled>,
    last: u64,
}

impl<M: Send + 'static> Server<M> {
    /// Begins to connect to another node.
    fn dial(&mut self, now: Now, node: NodeId, address: &LinkAddress) {
        self.hang_up(node);
        self.dialling.last += 1;
        let tls = self.handshakes.client();
        match Dialled::connect(node, address, tls, self.poll.registry(), self.dialling.last) {
            Ok(socket) => _ = self.dialling.sockets.insert(node, socket),
            Err(cause) => self.peers.handle_closed(now.instant, node, &LinkEnd::Io(cause)),
        }
    }

    /// Ends the connection to another node, if there is one.
    fn hang_up(&mut self, node: NodeId) {
        if let Some(socket) = self.dialling.sockets.remove(&node) {
            socket.shut(self.poll.registry());
        }
    }

    /// Goes on with a connection about which the poll has news.
    pub(super) fn on_peer_event(&mut self, now: Now, node: NodeId, event: &Event) {
        let Some(socket) = self.dialling.sockets.get_mut(&node) else { return };
        socket.handle_event(event);
        socket.flush().ok(); // a broken stream shows in the next write or read
        self.proceed(now, node);
    }

    /// Takes the result of the thread for handshakes.
    pub(super) fn on_peer_handshake(
        &mut self,
        now: Now,
        node: NodeId,
        number: u64,
        result: moorline_net::layer::JobResult,
    ) {
        let Some(socket) = self.dialling.sockets.get_mut(&node).filter(|socket| socket.number == number)
        else {
            return;
        };
        match socket.handle_result(result) {
            Ok(()) => self.proceed(now, node),
            Err(end) => self.lose_peer(now, node, &end),
        }
    }

    fn proceed(&mut self, now: Now, node: NodeId) {
        let Some(socket) = self.dialling.sockets.get_mut(&node) else { return };
        let made = socket.proceed(&mut self.block, &self.peer_uids, now.instant);
        let number = socket.number;
        match made {
            Ok(Made::Wait) => {}
            Ok(Made::Job(job)) => {
                let remote = self.remote.clone();
                let wake = move || _ = remote.wake();
                if let Err(end) = self.handshakes.submit(Target::Peer(node, number), job, wake) {
                    self.lose_peer(now, node, &end);
                }
            }
            Ok(Made::Open(connected)) => {
                self.peers.handle_connected(now.instant, node, connected);
                self.read_peer(now, node);
            }
            Ok(Made::Known) => self.read_peer(now, node),
            Err(end) => self.lose_peer(now, node, &end),
        }
    }

    fn read_peer(&mut self, now: Now, node: NodeId) {
        for _ in 0..READS {
            let Some(socket) = self.dialling.sockets.get_mut(&node) else { return };
            match socket.read(&mut self.block, now.instant) {
                Ok(Reading::Bytes(input)) => self.peers.handle_bytes(now.instant, node, input),
                Ok(Reading::Blocked) => return,
                Ok(Reading::End) => return self.lose_peer(now, node, &LinkEnd::Closed),
                Err(end) => return self.lose_peer(now, node, &end),
            }
        }
        // A node that floods this link breaks the protocol: only answers come by it.
        self.lose_peer(now, node, &LinkEnd::Stalled);
    }

    /// Writes what waits for another node.
    fn write_peer(&mut self, now: Now, node: NodeId) {
        let Some(socket) = self.dialling.sockets.get_mut(&node) else { return };
        match socket.write(self.peers.unsent(node), &mut self.scratch) {
            Ok(count) => self.peers.handle_sent(now.instant, node, count),
            Err(cause) => self.lose_peer(now, node, &LinkEnd::Io(cause)),
        }
    }

    fn lose_peer(&mut self, now: Now, node: NodeId, end: &LinkEnd) {
        self.hang_up(node);
        self.peers.handle_closed(now.instant, node, end);
    }

    /// Gives host and links what the handler has: slots and nodes if they have changed, and messages to other nodes.
    pub(super) fn take_cluster<H: Handler<Message = M>>(&mut self, now: Now, handler: &mut H) {
        if let Some((slots, peers)) = handler.poll_slots() {
            self.peers.handle_peers(now.instant, slots.node, peers);
            self.host.handle_slots(slots);
        }
        while let Some((node, message)) = handler.poll_peer() {
            self.peers.send(node, message);
        }
    }

    /// Ends a turn: what is due, and what is to be written.
    pub(super) fn end_turn_of_peers(&mut self, now: Now) {
        if now.instant >= self.peers.next_deadline() {
            self.peers.handle_timeouts(now.instant);
        }
        self.peers.flush();
        while let Some(output) = self.peers.poll_output() {
            match output {
                PeerOutput::Dial(node, address) => self.dial(now, node, &address),
                PeerOutput::Write(node) => self.write_peer(now, node),
                PeerOutput::HangUp(node) => self.hang_up(node),
            }
        }
    }
}
