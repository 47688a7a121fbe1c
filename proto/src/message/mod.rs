//! Typed bodies, generated from `proto/schema/*.proto` by `proto/generate` (checked in; `.ci/run` compares).
//!
//! [`client`] is what client and gateway say, [`backend`] what gateway and backend say, [`im`] what
//! the reference IM backend answers to requests.

use crate::error::CloseReason;
use crate::frame::{Command, Frame};
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
mod generated {
    pub mod v1 { include!("generated/moorline.v1.rs"); }
    pub mod link { pub mod v1 { include!("generated/moorline.link.v1.rs"); } }
    pub mod im { pub mod v1 { include!("generated/moorline.im.v1.rs"); } }
}

/// Bodies between client and gateway.
pub mod client {
    pub use super::generated::v1::*;
}
/// Bodies between gateway and backend.
pub mod backend {
    pub use super::generated::link::v1::*;
}
/// Payloads of the reference IM backend's requests.
pub mod im {
    pub use super::generated::im::v1::*;
}

/// The schema itself, a `google.protobuf.FileDescriptorSet`: for whoever has names of messages instead of types.
pub const SCHEMA: &[u8] = include_bytes!("generated/schema.bin");

/// Decodes a client frame's body [P-2.6].
///
/// # Errors
/// [`CloseReason::BadMessage`] if the bytes are not a valid encoding of the message.
pub fn decode<M: Message + Default>(body: &Bytes) -> Result<M, CloseReason> {
    M::decode(body.clone()).map_err(|_| CloseReason::BadMessage)
}

/// Encodes a body on its own.
pub fn encode<M: Message>(message: &M) -> Bytes {
    let mut body = BytesMut::with_capacity(message.encoded_len());
    message.encode_raw(&mut body);
    body.freeze()
}

/// An unreliable frame of one message.
pub fn frame_of<M: Message>(command: Command, message: &M) -> Frame {
    Frame::new(command, encode(message))
}

/// The body of a SENDACK: the gateway's `cid` and `code` before the backend's opaque answer.
///
/// Protobuf messages concatenate by merging, so the answer is never decoded on its way.
pub fn send_ack_body(cid: u32, code: client::Code, answer: &[u8]) -> Bytes {
    let lead = client::SendAck { cid, code: code.into(), ..Default::default() };
    concatenate(&lead, answer)
}

/// The body of a RESP: the gateway's `id` and `code` before the backend's opaque answer.
pub fn resp_body(id: u32, code: client::Code, answer: &[u8]) -> Bytes {
    let lead = client::Resp { id, code: code.into(), ..Default::default() };
    concatenate(&lead, answer)
}

fn concatenate<M: Message>(lead: &M, rest: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(lead.encoded_len() + rest.len());
    lead.encode_raw(&mut body);
    body.put_slice(rest);
    body.freeze()
}

#[cfg(test)]
mod tests {
    use super::client::{Code, SendAck};
    use super::*;

    #[test]
    fn an_answer_merges_behind_the_gateways_fields() {
        let answer = SendAck { message_id: 9, seq: 4, conversation: "c".into(), ..Default::default() };
        let body = send_ack_body(7, Code::Dup, &encode(&answer));
        let whole: SendAck = decode(&body).expect("decodes");
        assert_eq!(whole, SendAck { cid: 7, code: Code::Dup.into(), ..answer });
    }
}
