//! Connections that misbehave: noise, silence, floods, frames out of place. They must cost nobody
//! else anything, and leave nothing behind.

use crate::pipe::{Caller, PipeId, Way};
use crate::scene::What;
use crate::world::World;
use bytes::Bytes;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::{Command, Flags, Frame, encode_batch};
use moorline_proto::message::client::{Ack, Hello, Ping, Req, Send, Sub, send};
use moorline_proto::message::frame_of;
use moorline_proto::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Noise,
    Silent,
    SilentAfterLogin,
    HalfClosing,
    Flooding,
    Confused,
    OutOfOrder,
    /// Cannot wait for WELCOME: a part of its next frame comes along with HELLO.
    Eager,
    /// Sends few bytes that announce many, and floods of small frames in one compressed batch.
    Bombing,
    /// Leaves a frame unfinished, or a SEND missing before others, and stays.
    Unfinished,
}

const MANNERS: [Manner; 10] = [
    Manner::Noise,
    Manner::Silent,
    Manner::SilentAfterLogin,
    Manner::HalfClosing,
    Manner::Flooding,
    Manner::Confused,
    Manner::OutOfOrder,
    Manner::Eager,
    Manner::Bombing,
    Manner::Unfinished,
];

pub(crate) struct Hostile {
    pipe: PipeId,
    manner: Manner,
    turns: u32,
    pub(crate) is_over: bool,
}

impl World {
    pub(crate) fn add_hostile(&mut self) {
        if self.scene.faults.is_calm {
            return;
        }
        let at = self.hostiles.len();
        let pipe = self.connect(Caller::Hostile(at));
        let manner = MANNERS[self.scene.index(MANNERS.len())];
        self.hostiles.push(Hostile { pipe, manner, turns: 0, is_over: false });
        if manner == Manner::Eager {
            self.pipes[pipe].tap.trust();
        }
        if manner == Manner::Flooding {
            self.pipes[pipe].stop_reading(Way::Down);
        }
        self.scene.within(50, What::HostileSpeaks(at));
        self.scene.within(8_000, What::Hostile);
    }

    /// The next thing it says; after some, it leaves, unless leaving is not its manner.
    pub(crate) fn hostile_speaks(&mut self, at: usize) {
        let Hostile { pipe, manner, turns, is_over } = self.hostiles[at];
        if is_over {
            return;
        }
        if matches!(manner, Manner::Eager | Manner::Unfinished)
            && turns > 0
            && !self.pipes[pipe].tap.is_welcome()
        {
            // Its next frame must not end before WELCOME.
            return self.scene.after(Duration::from_secs(1), What::HostileSpeaks(at));
        }
        self.hostiles[at].turns += 1;
        let says_hello = turns == 0 && !matches!(manner, Manner::Noise | Manner::Silent);
        let frames = if says_hello { vec![Self::hello(at)] } else { self.says(manner, turns) };
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        if manner == Manner::Noise {
            bytes =
                (0..=self.scene.index(60)).map(|_| self.scene.random.next_u64().to_be_bytes()[0]).collect();
            bytes[0] = if turns == 0 && self.scene.random.one_in(2) { 0xA1 } else { bytes[0] };
        }
        if manner == Manner::Eager {
            let mut ping = Vec::new();
            frame_of(Command::Ping, &Ping { next_s: 2 }).encode(&mut ping);
            if turns > 0 {
                bytes.extend_from_slice(&ping[7..]);
            }
            bytes.extend_from_slice(&ping[..7]);
        }
        if manner == Manner::Unfinished && turns == 2 && at.is_multiple_of(2) {
            let cut = 1 + self.scene.index(bytes.len() - 1);
            bytes.truncate(cut);
        }
        let taken = self.pipes[pipe].write(&mut self.scene, pipe, Way::Up, &bytes);
        let is_done = taken < bytes.len() || turns > 60;
        match manner {
            Manner::Silent | Manner::SilentAfterLogin if turns > 1 => {}
            Manner::HalfClosing if turns == 2 => {
                self.scene.coverage.half_closes += 1;
                self.pipes[pipe].finish(&mut self.scene, pipe, Way::Up);
            }
            Manner::Noise | Manner::Confused | Manner::OutOfOrder | Manner::Eager if is_done => {
                self.hostile_leaves(at);
            }
            Manner::Eager => self.scene.after(Duration::from_secs(1), What::HostileSpeaks(at)),
            Manner::Flooding if turns > 60 => {}
            Manner::Bombing if turns > 20 => {}
            Manner::Unfinished if turns > 2 => {}
            _ => self.scene.within(200, What::HostileSpeaks(at)),
        }
    }

    /// The client's end of the connection is gone.
    pub(crate) fn hostile_leaves(&mut self, at: usize) {
        let Hostile { pipe, is_over, .. } = self.hostiles[at];
        if !is_over {
            self.hostiles[at].is_over = true;
            self.pipes[pipe].is_client_open = false;
            self.pipes[pipe].finish(&mut self.scene, pipe, Way::Up);
        }
    }

    /// Clients that are still there hang up; silent ones do not.
    pub(crate) fn end_hostiles(&mut self) {
        for at in 0..self.hostiles.len() {
            let Hostile { manner, turns, .. } = self.hostiles[at];
            if manner != Manner::SilentAfterLogin && (manner != Manner::Unfinished || turns < 3) {
                self.hostile_leaves(at);
            }
        }
    }

    fn hello(at: usize) -> Frame {
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            uid: "mallory".into(),
            device: format!("d{}", at % 2),
            ..Hello::default()
        };
        frame_of(Command::Hello, &hello)
    }

    fn says(&mut self, manner: Manner, turn: u32) -> Vec<Frame> {
        match manner {
            Manner::Flooding => (0..20)
                .map(|id| match self.scene.index(2) {
                    0 => frame_of(Command::Ping, &Ping { next_s: 9 }),
                    _ => frame_of(Command::Sub, &Sub { id, room: "r".into() }),
                })
                .collect(),
            // One cid and the next swapped, again and again.
            Manner::OutOfOrder => {
                let cid = 2 * turn - 1;
                vec![self.message(cid + 1), self.message(cid)]
            }
            Manner::Bombing => vec![self.bomb(turn)],
            // The last one, or a part of it, is what the gateway waits behind.
            Manner::Unfinished => {
                let first = 2 * turn;
                (first..first + 3).map(|cid| self.message(cid)).collect()
            }
            Manner::SilentAfterLogin => vec![frame_of(Command::Ping, &Ping { next_s: 1 })],
            Manner::Confused => vec![self.confusion(turn)],
            _ => Vec::new(),
        }
    }

    fn message(&mut self, cid: u32) -> Frame {
        let key = [self.scene.random.next_u64(), self.scene.random.next_u64()].map(u64::to_be_bytes).concat();
        let target = Some(send::Target::User("nobody".into()));
        let send = Send { key: key.into(), r#type: 1, payload: Bytes::from_static(b"psst"), target };
        frame_of(Command::Send, &send).with_seq(cid)
    }

    /// Few bytes, much work.
    fn bomb(&mut self, id: u32) -> Frame {
        let packed = |frame: &Frame| {
            let body = try_compress(&frame.body).expect("zeros");
            Frame::new(frame.header.command, body).with_flags(frame.header.flags.with(Flags::COMPRESSED))
        };
        let req = Req { id, method: "no.such".into(), payload: vec![0; 2_000].into() };
        let large = packed(&frame_of(Command::Req, &req));
        match self.scene.index(4) {
            0 => large,
            1 => encode_batch(&vec![large; 8]),
            2 => packed(&Frame::new(Command::Ignorable(0xC0), vec![0; 60_000].into())),
            _ => packed(&encode_batch(&vec![frame_of(Command::Ping, &Ping { next_s: 9 }); 100])),
        }
    }

    /// Mostly lawful, then not.
    fn confusion(&mut self, turn: u32) -> Frame {
        let ping = frame_of(Command::Ping, &Ping { next_s: 1 });
        match self.scene.index(14) {
            0 => ping.with_ack(77),
            1 => self.message(turn + 70),
            2 => frame_of(Command::Req, &Req { id: turn, method: "no.such".into(), payload: Bytes::new() }),
            3 => Frame::new(Command::Req, Bytes::from_static(b"\xFF\xFF")),
            4 => Frame::new(Command::Push, Bytes::new()),
            5 => frame_of(Command::Ack, &Ack { sack: u64::MAX }),
            6 => encode_batch(&[encode_batch(std::slice::from_ref(&ping))]),
            7 => Frame::new(Command::Ignorable(0xCC), Bytes::from_static(b"later")),
            8 => Frame::new(Command::App(0x80), Bytes::from_static(b"app")),
            9 => Frame::new(Command::Ping, Bytes::from_static(b"\xFF")),
            10 => ping.with_flags(Flags::ACK_REQ),
            _ => encode_batch(&[ping.clone(), ping]),
        }
    }
}
