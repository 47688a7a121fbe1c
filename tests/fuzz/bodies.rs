//! The small bodies: decoders of frames, messages, link frames and compressed bodies.

use bytes::{Bytes, BytesMut};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::{decompress, try_compress};
use moorline_proto::frame::{Batch, Decoder, Flags, Frame};
use moorline_proto::link::{LinkDecoder, LinkError, LinkFrame};
use moorline_proto::message::{backend, client, im};
use prost::Message;

/// A limit as gateways have it, small enough to be hit.
const BODY_MAX: u32 = 1_024;

/// Everything that a decoder makes of chunks, up to the first fault.
fn frames<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<CloseReason>) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for chunk in chunks {
        let mut chunk = Bytes::copy_from_slice(chunk);
        loop {
            match decoder.decode(&mut chunk, BODY_MAX) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(reason) => return (frames, Some(reason)),
            }
        }
    }
    (frames, None)
}

/// However bytes are cut, the same frames come out; what comes out is written as it was read.
pub(crate) fn frame(input: &[u8]) {
    let whole = frames(std::iter::once(input));
    let step = 1 + input.first().map_or(0, |byte| usize::from(*byte % 37));
    assert_eq!(frames(input.chunks(step)), whole, "cut into pieces of {step}");
    let mut written = Vec::new();
    whole.0.iter().for_each(|frame| frame.encode(&mut written));
    assert_eq!(written, input[..written.len()], "as it was read");
    for frame in whole.0 {
        assert!(frame.body.len() <= BODY_MAX as usize);
        let (cost, was_packed) = (frame.unpack_cost(), frame.header.flags.contains(Flags::COMPRESSED));
        let Ok(plain) = frame.into_plain(BODY_MAX) else { continue };
        assert!(plain.body.len() <= plain.body_max(BODY_MAX) as usize);
        if was_packed {
            assert_eq!(
                cost,
                Ok(u32::try_from(plain.body.len()).expect("limited").div_ceil(1_024)),
                "told before"
            );
        }
        if plain.header.flags.contains(Flags::BATCH) {
            let batch = if was_packed { Batch::of_packed(plain.body) } else { Batch::new(plain.body) };
            assert!(batch.count() <= moorline_proto::frame::BATCH_FRAMES_MAX);
        }
    }
}

fn round_trip<M: Message + Default + PartialEq + std::fmt::Debug>(input: &[u8]) {
    let Ok(message) = M::decode(input) else { return };
    let again = M::decode(&message.encode_to_vec()[..]).expect("what was encoded decodes");
    assert!(again == message, "{message:?} came back as {again:?}");
}

macro_rules! round_trips {
    ($($module:ident { $($message:ident)+ })+) => {
        /// Names of the messages of [`message`].
        pub(crate) const MESSAGES: &[&str] = &[$($(stringify!($message)),+),+];

        /// Every message of the schema: refused, or the same after one more round.
        pub(crate) fn message(input: &[u8]) {
            $($(round_trip::<$module::$message>(input);)+)+
        }
    };
}

round_trips! {
    client { Hello Resume Welcome Ping Send SendAck Push Ack Notify Req Resp Sub Unsub SubAck Kick GoAway Throttle Close }
    backend { LinkHello ConnUp ConnDown Announce Auth AuthResult Up UpResult Push PushResult PushOutcome Bind
        Unbind Digest RoomDigest Kick Query QueryResult Stats Drain LinkChallenge LinkProof LinkNotice Slots NodeAddress Moved Leave Peer }
    im { PullRequest PullResponse VoidRange GroupCreateRequest GroupCreateResponse GroupRequest GroupResponse
        GroupChangeRequest GroupChangeResponse GroupSettings GroupInfoResponse Member Signal ConversationsRequest
        ConversationsResponse Conversation ConversationDeleteRequest ConversationDeleteResponse ReadRequest
        ReadResponse ReceiptsRequest ReceiptsResponse RecallRequest RecallResponse RelationRequest RelationResponse
        Relation RelationsRequest RelationsResponse ProfileSetRequest ProfileSetResponse ProfileGetRequest
        ProfileGetResponse Profile UserSettings SettingsSetRequest SettingsSetResponse SettingsGetRequest
        SettingsGetResponse DevicesRequest DevicesResponse Device DeviceRemoveRequest DeviceRemoveResponse
        PresenceRequest PresenceResponse Presence AccountDeleteRequest AccountDeleteResponse Happened Recalled Read
        GroupChanged GroupInvited RelationChanged ReadCounts ReadCount Cleared Dissolved Erased Resync }
}

fn link_frames<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<LinkFrame>, Option<LinkError>) {
    let (mut decoder, mut frames) = (LinkDecoder::new(), Vec::new());
    for chunk in chunks {
        let mut chunk = Bytes::copy_from_slice(chunk);
        loop {
            match decoder.decode(&mut chunk) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// Feeds the input to the link decoder.
pub(crate) fn link(input: &[u8]) {
    let whole = link_frames(std::iter::once(input));
    let step = 1 + input.first().map_or(0, |byte| usize::from(*byte % 37));
    assert_eq!(link_frames(input.chunks(step)), whole, "cut into pieces of {step}");
    for frame in whole.0 {
        let mut out = BytesMut::new();
        if let Ok(push) = frame.message::<backend::Push>() {
            moorline_proto::link::encode(&mut out, frame.kind, frame.correlation, frame.credit, &push);
            let (again, fault) = link_frames(std::iter::once(&out[..]));
            assert!(fault.is_none() && again[0].message() == Ok(push));
        }
    }
}

/// Undone within the limit, or refused; what is undone can be packed and undone again.
pub(crate) fn compress(input: &[u8]) {
    let Ok(plain) = decompress(input, BODY_MAX) else { return };
    assert!(plain.len() <= BODY_MAX as usize, "{} bytes", plain.len());
    if let Some(packed) = try_compress(&plain) {
        assert_eq!(decompress(&packed, BODY_MAX), Ok(plain));
    }
}
