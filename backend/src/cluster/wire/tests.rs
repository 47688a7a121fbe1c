//! Each message survives the wire.

use super::*;
use crate::cluster::store::{Answered, HeadRow, Question};
use crate::im::store::rules::relations::{Both, Counts};
use crate::im::store::{
    GroupChange, GroupEdit, GroupSettings, LoginChange, Online, RelationChange, Role, WhoMayAdd,
};
use crate::im::{ApiAnswer, ApiBody, ApiCall, Keep, PushTo};
use moorline_proto::message::client::{self, Code};
use proptest::prelude::*;
use std::sync::Arc;

fn name() -> impl Strategy<Value = u64> {
    1_u64..1 << 48
}

fn origin() -> impl Strategy<Value = Origin> {
    (name(), any::<u32>()).prop_map(|(user, device)| (UserId::new(user), DeviceNumber(device)))
}

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn append() -> impl Strategy<Value = Append> {
    let pair = proptest::collection::vec((name(), "[a-z]{1,9}"), 1..=2).prop_map(|members| {
        let members =
            members.into_iter().map(|(user, uid)| (UserId::new(user), uid.as_str().into())).collect();
        Wanted::Pair("c2c:a:b".into(), members)
    });
    let wanted = prop_oneof![name().prop_map(|it| Wanted::Number(ConversationId::new(it))), pair];
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let recall = proptest::option::of((1_u64.., any::<u64>()));
    (wanted, origin(), any::<[u8; 16]>(), numbers, bytes(), any::<bool>(), recall).prop_map(
        |(wanted, origin, key, (id, time_ms, digest, now_ms), body, is_repeat, recall)| {
            let key = MessageKey(key);
            Append { wanted, origin, key, id, time_ms, digest, body, is_repeat, now_ms, recall }
        },
    )
}

fn users() -> impl Strategy<Value = Vec<UserId>> {
    proptest::collection::vec(name().prop_map(UserId::new), 0..4)
}

fn change() -> impl Strategy<Value = GroupChange> {
    let role = prop_oneof![Just(Role::Member), Just(Role::Admin), Just(Role::Owner)];
    let settings =
        ("[a-z]{0,5}", "[a-z]{0,5}", any::<bool>(), any::<bool>()).prop_map(|(title, notice, by, is)| {
            GroupSettings { title, notice, by_invitation: by, is_silent: is }
        });
    let role = proptest::option::of((name().prop_map(UserId::new), role));
    let silence = proptest::option::of((name().prop_map(UserId::new), any::<u64>()));
    let edit = (users(), users(), role, silence, proptest::option::of(settings)).prop_map(
        |(add, remove, role, silence, settings)| GroupEdit { add, remove, role, silence, settings },
    );
    prop_oneof![Just(GroupChange::Join), Just(GroupChange::Leave), edit.prop_map(GroupChange::Edit)]
}

fn question() -> impl Strategy<Value = Question> {
    let of = || (name().prop_map(ConversationId::new), origin(), any::<u64>(), bytes());
    let named = || proptest::collection::vec((name(), "[a-z]{1,9}"), 0..4);
    let to_users = |named: Vec<(u64, String)>| -> Vec<(UserId, Arc<str>)> {
        named.into_iter().map(|(user, uid)| (UserId::new(user), uid.into())).collect()
    };
    prop_oneof![
        ("[a-z:]{1,9}", origin(), named(), bytes()).prop_map(move |(id, by, members, event)| {
            Question::CreateGroup { id: id.into(), by, members: to_users(members), event }
        }),
        (of(), change(), named()).prop_map(move |((conversation, by, _, event), change, users)| {
            Question::ChangeGroup { conversation, by, change, users: to_users(users), event }
        }),
        of().prop_map(|(conversation, by, _, event)| Question::Dissolve { conversation, by, event }),
        of().prop_map(|(conversation, by, seq, event)| Question::Read { conversation, by, seq, event }),
        of().prop_map(|(conversation, by, to, event)| Question::Clear { conversation, by, to, event }),
        (name(), any::<u32>(), "c2c:[a-z]{1,9}:[a-z]{1,9}", (name(), 0..4, counts(), counts()), bytes())
            .prop_map(|(user, device, id, (other, change, own, theirs), event)| {
                let by = (UserId::new(user), DeviceNumber(device));
                let users = vec![(by.0, "a".into()), (UserId::new(other), "b".into())];
                let change = RelationChange::try_from(change).expect("one of four");
                let counts = Both { own, theirs };
                Question::Relate { id: id.into(), by, users, change, counts, event }
            },),
        (name(), bytes())
            .prop_map(|(user, profile)| Question::SetProfile { user: UserId::new(user), profile }),
        origin().prop_map(|(user, device)| Question::RemoveDevice { user, device }),
        (name(), any::<u64>(), any::<bool>()).prop_map(|(user, seconds, is_ban)| {
            let change =
                if is_ban { LoginChange::BannedUntil(seconds) } else { LoginChange::ValidFrom(seconds) };
            Question::RuleLogins { user: UserId::new(user), change }
        }),
        (name(), 0..3).prop_map(|(user, rule)| {
            let who_may_add = WhoMayAdd::try_from(rule).expect("one of three");
            Question::SetSettings { user: UserId::new(user), who_may_add }
        }),
        ("group:[a-z]{1,9}", origin(), users(), bytes(), proptest::option::of(of())).prop_map(
            |(id, by, users, event, first)| {
                let first = first.map(|(conversation, _, _, event)| {
                    let (change, users) = (GroupChange::Leave, Vec::new());
                    Box::new(Question::ChangeGroup { conversation, by, change, users, event })
                });
                Question::Invite { id: id.into(), by, users, event, first }
            },
        ),
        "[a-z]{1,9}".prop_map(|uid| Question::MakeUser { uid: uid.into() }),
    ]
}

fn counts() -> impl Strategy<Value = Counts> {
    let counts = any::<(u16, u16, u16)>();
    counts.prop_map(|(relations, requests, blocks)| Counts {
        relations: relations.into(),
        requests: requests.into(),
        blocks: blocks.into(),
    })
}

fn answer() -> impl Strategy<Value = Result<Answered, Refusal>> {
    let numbers = any::<(bool, bool, u16, u64, bool)>();
    let head = (name(), "[a-z:]{1,20}", numbers).prop_map(|(conversation, id, numbers)| {
        let (is_group, is_dissolved, members, latest, has_changed) = numbers;
        let (conversation, id, members) = (ConversationId::new(conversation), id.into(), members.into());
        let head = HeadRow { conversation, id, is_group, is_dissolved, members, latest };
        Ok(Answered::Conversation(head, has_changed))
    });
    let user =
        (name(), "[a-z]{1,9}").prop_map(|(user, uid)| Ok(Answered::User(UserId::new(user), uid.into())));
    let related = (name(), name(), 0..8_u32, 0..8_u32, any::<bool>()).prop_map(
        |(user, other, own, theirs, has_changed)| {
            let relations = Both { own: relation_of(own), theirs: relation_of(theirs) };
            let (user, other) = (UserId::new(user), UserId::new(other));
            Ok(Answered::Related { user, other, relations, has_changed })
        },
    );
    prop_oneof![
        head,
        user,
        related,
        Just(Ok(Answered::Done)),
        (0..REFUSALS.len()).prop_map(|at| Err(REFUSALS[at]))
    ]
}

fn appended() -> impl Strategy<Value = Result<AppendedAt, Refusal>> {
    let known = any::<(u64, u64, u64, u64)>().prop_map(|(seq, id, time_ms, digest)| Known {
        seq,
        id,
        time_ms,
        digest,
    });
    let at = (name(), "[a-z:]{1,20}", any::<bool>(), 0_usize..100, known, any::<bool>()).prop_map(
        |(conversation, id, is_group, members, known, is_repeat)| AppendedAt {
            conversation: ConversationId::new(conversation),
            id: id.into(),
            is_group,
            members,
            known,
            is_repeat,
        },
    );
    let refusal = (0..REFUSALS.len()).prop_map(|at| REFUSALS[at]);
    prop_oneof![at.prop_map(Ok), refusal.prop_map(Err)]
}

fn online() -> impl Strategy<Value = Option<Vec<Online>>> {
    let one = (name(), proptest::collection::vec(any::<u32>(), 0..4), any::<u64>());
    let one =
        one.prop_map(|(user, platforms, seen_ms)| Online { user: UserId::new(user), platforms, seen_ms });
    proptest::option::of(proptest::collection::vec(one, 0..4))
}

fn message() -> impl Strategy<Value = PeerMessage> {
    let content = prop_oneof![
        (1_u64..).prop_map(Content::Message),
        (1_u64..).prop_map(Content::Event),
        Just(Content::Own)
    ];
    let passage = prop_oneof![
        Just(Passage::Stays),
        Just(Passage::Enters),
        Just(Passage::Leaves),
        Just(Passage::Invited),
        (name(), 0..8_u32).prop_map(|(other, code)| Passage::Relates(UserId::new(other), relation_of(code)))
    ];
    let numbers = any::<(bool, u16, u64, u64, u64)>();
    let deliver = (name(), name(), "[a-z:]{1,20}", numbers, (content, passage), origin(), bytes()).prop_map(
        |(user, conversation, id, numbers, (content, passage), origin, body)| {
            let (is_group, members, visible_from, order, after) = numbers;
            let (user, conversation) = (UserId::new(user), ConversationId::new(conversation));
            let (id, members) = (id.into(), members.into());
            Deliver {
                user,
                conversation,
                id,
                is_group,
                members,
                visible_from,
                order,
                after,
                content,
                passage,
                origin,
                body,
            }
        },
    );
    let owner =
        (0_u64..1024, proptest::option::of(any::<u16>()), any::<u64>()).prop_map(|(slot, node, epoch)| {
            (Slot::from_number(slot).expect("small"), Owner { node: node.map(NodeId), epoch })
        });
    let calls = prop_oneof![
        (any::<u64>(), call()).prop_map(|(part, call)| PeerMessage::Call(part, Box::new(call))),
        (any::<u64>(), called()).prop_map(|(part, answer)| PeerMessage::Called(part, Box::new(answer))),
        (any::<u64>(), users()).prop_map(|(request, users)| PeerMessage::AskOnline(request, users)),
        (any::<u64>(), online()).prop_map(|(request, online)| PeerMessage::Online(request, online)),
    ];
    prop_oneof![
        calls,
        (any::<u64>(), append()).prop_map(|(request, append)| PeerMessage::Append(request, append)),
        (any::<u64>(), appended()).prop_map(|(request, result)| PeerMessage::Appended(request, result)),
        deliver.prop_map(PeerMessage::Deliver),
        (name(), name(), any::<u64>()).prop_map(|(conversation, user, seq)| {
            PeerMessage::Delivered(ConversationId::new(conversation), UserId::new(user), seq)
        }),
        proptest::collection::vec(owner, 0..5).prop_map(PeerMessage::Given),
        Just(PeerMessage::Stopping),
        (any::<u64>(), question())
            .prop_map(|(request, question)| PeerMessage::Ask(request, Box::new(question))),
        (any::<u64>(), answer()).prop_map(|(request, answer)| PeerMessage::Answered(request, answer)),
    ]
}

fn call() -> impl Strategy<Value = ApiCall> {
    let name = || "[a-z]{1,9}";
    let names = || proptest::collection::vec("[a-z]{1,9}", 0..4);
    let pairs = proptest::collection::vec(("[a-z]{1,9}", "[a-z]{1,9}"), 0..4);
    let to = prop_oneof![
        names().prop_map(PushTo::Users),
        (names(), proptest::option::of(any::<[u8; 16]>()))
            .prop_map(|(users, key)| PushTo::Inboxes(users, key.map(MessageKey))),
        pairs.prop_map(PushTo::Devices),
        Just(PushTo::Everyone),
    ];
    let keep = prop_oneof![Just(Keep::Default), Just(Keep::ForEver), any::<u64>().prop_map(Keep::Seconds)];
    prop_oneof![
        (name(), name(), bytes(), any::<u32>()).prop_map(|(from, to, payload, kind)| {
            let target = Some(client::send::Target::User(to));
            let key = Bytes::from_static(b"0123456789abcdef");
            let send = client::Send { key, target, r#type: kind, payload };
            ApiCall::Send { from, send, may_repeat: kind % 2 == 1 }
        }),
        (name(), name(), bytes()).prop_map(|(user, method, payload)| ApiCall::Request {
            user,
            method,
            payload
        }),
        (name(), proptest::option::of(name())).prop_map(|(user, device)| ApiCall::Kick { user, device }),
        (to, any::<u32>(), bytes()).prop_map(|(to, kind, payload)| ApiCall::Push { to, kind, payload }),
        (name(), proptest::option::of(any::<u64>()))
            .prop_map(|(user, before_s)| ApiCall::Revoke { user, before_s }),
        (name(), any::<u64>()).prop_map(|(user, until_s)| ApiCall::Ban { user, until_s }),
        name().prop_map(|user| ApiCall::DeleteUser { user }),
        (name(), keep).prop_map(|(conversation, keep)| ApiCall::Retain { conversation, keep }),
        (name(), proptest::option::of(any::<u32>()))
            .prop_map(|(conversation, per_minute)| ApiCall::Limit { conversation, per_minute }),
        name().prop_map(|conversation| ApiCall::Dissolve { conversation }),
    ]
}

fn called() -> impl Strategy<Value = ApiAnswer> {
    let stored = (any::<u64>(), any::<u64>(), "[a-z:]{1,9}").prop_map(|(message_id, seq, conversation)| {
        client::SendAck { message_id, seq, conversation, ..Default::default() }
    });
    let body = prop_oneof![
        Just(ApiBody::Nothing),
        Just(ApiBody::NotBuilt),
        stored.prop_map(ApiBody::Stored),
        any::<u16>().prop_map(|count| ApiBody::Reached(count.into())),
        bytes().prop_map(ApiBody::Payload),
    ];
    let code = prop_oneof![Just(Code::Ok), Just(Code::Dup), Just(Code::Retry), Just(Code::Unsupported)];
    (code, "[a-z ]{0,9}", any::<u32>(), body).prop_map(|(code, reason, retry_after_ms, body)| ApiAnswer {
        code,
        reason,
        retry_after_ms,
        body,
    })
}

proptest! {
    #[test]
    fn a_message_survives_the_wire(message in message()) {
        let read = decode(encode(message.clone()));
        prop_assert_eq!(format!("{:?}", read), format!("{:?}", Some(message)));
    }

    #[test]
    fn whatever_bytes_come_are_read_or_dropped(bytes in bytes()) {
        _ = decode(bytes);
    }
}

#[test]
fn a_refusal_of_a_later_version_is_a_retry() {
    assert_eq!((refusal_of(99), refusal_of(0)), (Refusal::Moved, Refusal::NotMember));
    assert_eq!(number_of(Refusal::Moved), 17);
}
