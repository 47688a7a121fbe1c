//! Input of links: connections that were made or lost, and the frames of backends. A frame that breaks the rules
//! closes its link.

use super::counters::Count;
use super::learned::Learning;
use super::{Failure, LinkIndex, Phase, Rooms, Router};
use bytes::Bytes;
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::time::Instant;

impl Router {
    /// Takes bytes that were read from a link. Bytes of a connection that the router gave up are dropped.
    pub fn handle_link_bytes(&mut self, now: Instant, index: LinkIndex, mut bytes: Bytes) {
        self.sides.now = now;
        let link = &mut self.sides.links[index];
        if !link.is_connected() {
            return;
        }
        link.state.on_heard(now);
        self.sides.counters[Count::LinkBytesIn] += bytes.len() as u64;
        loop {
            let taken = match self.sides.links[index].decode(&mut bytes) {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    self.sides.counters[Count::LinkFramesIn] += 1;
                    self.handle_frame(index, &frame)
                }
                Err(error) => Err(error.into()),
            };
            if let Err(failure) = taken {
                return self.fail_link(index, &failure);
            }
        }
    }

    /// The first `sent` bytes of a link's output were written; 0: the connection takes nothing now.
    pub fn handle_link_sent(&mut self, now: Instant, index: LinkIndex, sent: usize) {
        self.sides.now = now;
        let link = &mut self.sides.links[index];
        let was_full = !link.has_output_room();
        let outcome = link.handle_sent(now, sent);
        self.is_hurried |= was_full && link.has_output_room();
        self.sides.counters[Count::LinkBytesOut] += sent as u64;
        if let Err(failure) = outcome {
            self.fail_link(index, &failure);
        }
    }

    /// The connection of a link was refused, lost or closed by the backend.
    pub fn handle_link_closed(&mut self, now: Instant, index: LinkIndex, why: &Failure) {
        self.sides.now = now;
        if !matches!(self.sides.links[index].state.phase(), Phase::Waiting(_)) {
            self.on_link_closed(index, why);
        }
    }

    /// Takes one frame of a link.
    ///
    /// # Errors
    /// The backend broke a rule: close the link.
    fn handle_frame(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), Failure> {
        let Self { sides, ups, .. } = self;
        let link = &mut sides.links[index];
        link.handle_credit(frame.credit);
        let is_greeting = matches!(link.state.phase(), Phase::Greeting(_));
        let is_of_greeting = matches!(frame.kind, Kind::Hello | Kind::Challenge);
        if frame.kind != Kind::Notice && is_greeting != is_of_greeting {
            return Err(LinkError::Unexpected(frame.kind).into());
        }
        match frame.kind {
            Kind::Hello => self.on_hello(index, frame),
            Kind::Challenge => link.on_challenge(&self.settings.link.hello, frame),
            Kind::Notice => self.greetings.on_notice(sides, index, frame),
            Kind::UpResult => {
                self.needs_balance |= ups.on_up_result(sides, &mut self.endpoints, index, frame)?;
                Ok(())
            }
            Kind::AuthResult => Ok(self.logins.on_auth_result(sides, index, frame)?),
            Kind::Push => Ok(self.pushes.on_push(sides, index, frame)?),
            Kind::Kick => Ok(self.pushes.on_kick(sides, frame)?),
            Kind::Bind => Ok(Rooms::on_bind(sides, &ups.slots, index, frame)?),
            Kind::Unbind => Ok(Rooms::on_unbind(sides, frame)?),
            Kind::Query => Ok(self.rooms.on_query(sides, index, frame)?),
            Kind::Ping => {
                link.send_empty(Kind::Pong, frame.correlation);
                Ok(())
            }
            Kind::Slots => {
                let slots = frame.message()?;
                self.placing().on_slots(&slots)?;
                Learning::of(self).learn(&slots.addresses);
                Ok(())
            }
            Kind::Moved => self.placing().on_moved(index, frame),
            Kind::Drain => {
                link.state.on_drain();
                self.needs_balance = true;
                Ok(())
            }
            Kind::Pong => {
                link.confirmed.on_pong(frame.correlation);
                if link.confirmed.wants_barrier() {
                    link.send_barrier();
                }
                Ok(())
            }
            Kind::Credit => Ok(()),
            kind => Err(LinkError::Unexpected(kind).into()),
        }
    }
}
