//! The gateway's end of a worker's link: the worker's messages as frames in a pipe, and back.

use crate::pipe::{Pipe, PipeId, Way};
use crate::scene::Scene;
use crate::worker::{FromBackend, ToBackend, is_question};
use bytes::{Bytes, BytesMut};
use moorline::handoff::Target;
use moorline_proto::frame::Lane;
use moorline_proto::ids::ConnKey;
use moorline_proto::link::{Kind, LinkDecoder, LinkFrame, encode};
use moorline_proto::message::backend::{
    self, Announce, Bind, ConnDown, LinkHello, PushOutcome, PushResult, Unbind, UpResult,
};
use moorline_proto::message::client::Code;

#[derive(Default)]
pub(crate) struct Bridge {
    pub(crate) pipe: Option<PipeId>,
    decoder: LinkDecoder,
    unwritten: BytesMut,
    /// The backend's HELLO came.
    pub(crate) is_open: bool,
}

/// Meaning of a frame to the worker.
pub(crate) enum Heard {
    Opened,
    Item(FromBackend),
}

impl Bridge {
    pub(crate) fn connect(&mut self, pipe: PipeId) {
        *self = Self { pipe: Some(pipe), ..Self::default() };
        let hello =
            LinkHello { version_min: 1, version_max: 1, node: "g".into(), epoch: 1, ..LinkHello::default() };
        encode(&mut self.unwritten, Kind::Hello, 0, 0, &hello);
    }

    pub(crate) fn say(&mut self, item: ToBackend) {
        let out = &mut self.unwritten;
        match item {
            ToBackend::Up { correlation, handle, command, is_dup, body } => {
                let correlation = if is_question(command) { correlation } else { 0 };
                let command = command.byte().into();
                let up = backend::Up { handle, command, dup: is_dup, body, ..Default::default() };
                encode(out, Kind::Up, correlation, 0, &up);
            }
            ToBackend::ConnUp(login) => encode(out, Kind::ConnUp, 0, 0, &login),
            ToBackend::ConnDown { handle } => {
                encode(out, Kind::ConnDown, 0, 0, &ConnDown { handle, code: 0 });
            }
            ToBackend::Announce(connections) => {
                encode(out, Kind::Announce, 0, 0, &Announce { connections, more: false });
            }
            ToBackend::Pushed { correlation, handle, outcome } => {
                let outcomes = vec![PushOutcome { correlation, handle, outcome: outcome.into() }];
                encode(out, Kind::PushResult, 0, 0, &PushResult { outcomes });
            }
        }
    }

    /// Writes what the pipe takes.
    pub(crate) fn flush(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        let Some(pipe) = self.pipe.filter(|_| !self.unwritten.is_empty()) else { return };
        let count = pipes[pipe].write(scene, pipe, Way::Up, &self.unwritten);
        _ = self.unwritten.split_to(count);
    }

    pub(crate) fn hear(&mut self, bytes: Vec<u8>) -> Vec<Heard> {
        let (mut input, mut heard) = (Bytes::from(bytes), Vec::new());
        while let Some(frame) = self.decoder.decode(&mut input).expect("valid frames") {
            self.on_frame(&frame, &mut heard);
        }
        heard
    }

    fn on_frame(&mut self, frame: &LinkFrame, heard: &mut Vec<Heard>) {
        let correlation = frame.correlation;
        let item = match frame.kind {
            Kind::Hello => {
                self.is_open = true;
                return heard.push(Heard::Opened);
            }
            Kind::Ping => return encode(&mut self.unwritten, Kind::Pong, correlation, 0, &()),
            Kind::UpResult => {
                let result: UpResult = frame.message().expect("an UpResult");
                let code = Code::try_from(result.code).expect("a code");
                FromBackend::Answer { correlation, code, answer: result.answer }
            }
            Kind::Push => {
                let push: backend::Push = frame.message().expect("a Push");
                let (handles, lane, body) = (push.handles, Lane::from_number(push.lane), push.body);
                if push.room.is_empty() {
                    FromBackend::Push { correlation, handles, lane, body }
                } else {
                    FromBackend::PushRoom { room: push.room, except: push.except, body }
                }
            }
            Kind::Kick => {
                let backend::Kick { handle, uid, device, login_version, code, may_reconnect, .. } =
                    frame.message().expect("a Kick");
                let target = match handle {
                    0 => Target::Device(uid.into(), device.into()),
                    handle => Target::Connection(ConnKey::from_u64(handle)),
                };
                FromBackend::Kick { target, login_version, code, may_reconnect }
            }
            Kind::Bind => {
                let Bind { handles, room, version, reset } = frame.message().expect("a Bind");
                assert!(!reset, "this gateway sends no digests");
                let bind = |handle| FromBackend::Bind { handle, room: room.clone(), version, is_in: true };
                return heard.extend(handles.into_iter().map(bind).map(Heard::Item));
            }
            Kind::Unbind => {
                let Unbind { handles, room, version } = frame.message().expect("an Unbind");
                let unbind = |handle| FromBackend::Bind { handle, room: room.clone(), version, is_in: false };
                return heard.extend(handles.into_iter().map(unbind).map(Heard::Item));
            }
            _ => return,
        };
        heard.push(Heard::Item(item));
    }
}
