//! The columns of a transaction: what one statement takes, row by row of each table.

use super::statements::COMMIT;
use super::{conversation_column, slot_column, slot_of_conversation, slot_of_user, user_column};
use crate::cluster::cell::{Applied, Known, Transaction};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Statement};

/// Parameters of the statement.
const PARAMETERS: usize = 51;

#[derive(Default)]
struct Accounts<'a> {
    slot: Vec<i32>,
    user: Vec<i64>,
    uid: Vec<&'a str>,
}

#[derive(Default)]
struct Devices<'a> {
    slot: Vec<i32>,
    user: Vec<i64>,
    device: Vec<i64>,
    name: Vec<&'a str>,
    platform: Vec<i64>,
    acked: Vec<i64>,
}

#[derive(Default)]
struct Conversations<'a> {
    slot: Vec<i32>,
    conversation: Vec<i64>,
    id: Vec<&'a str>,
    is_group: Vec<bool>,
}

#[derive(Default)]
struct Members<'a> {
    slot: Vec<i32>,
    conversation: Vec<i64>,
    user: Vec<i64>,
    uid: Vec<&'a str>,
    visible_from: Vec<i64>,
}

#[derive(Default)]
struct Messages<'a> {
    slot: Vec<i32>,
    conversation: Vec<i64>,
    seq: Vec<i64>,
    sender: Vec<i64>,
    device: Vec<i64>,
    key: Vec<&'a [u8]>,
    id: Vec<i64>,
    time_ms: Vec<i64>,
    digest: Vec<i64>,
    body: Vec<&'a [u8]>,
}

/// Recipients; a message has its place in [`Messages`], from 1.
#[derive(Default)]
struct Recipients {
    message: Vec<i64>,
    slot: Vec<i32>,
    user: Vec<i64>,
    position: Vec<Option<i64>>,
}

#[derive(Default)]
struct Arrivals {
    slot: Vec<i32>,
    user: Vec<i64>,
    position: Vec<i64>,
    conversation: Vec<i64>,
    seq: Vec<i64>,
    device: Vec<Option<i64>>,
}

#[derive(Default)]
struct Acks {
    slot: Vec<i32>,
    user: Vec<i64>,
    device: Vec<i64>,
    acked: Vec<i64>,
    trimmed: Vec<i64>,
}

#[derive(Default)]
struct Confirmed {
    slot: Vec<i32>,
    conversation: Vec<i64>,
    user: Vec<i64>,
    seq: Vec<i64>,
}

impl<'a> Accounts<'a> {
    fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for (user, uid) in &transaction.users {
            columns.slot.push(slot_of_user(*user));
            columns.user.push(user_column(*user));
            columns.uid.push(uid);
        }
        columns
    }
}

impl<'a> Devices<'a> {
    fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for (user, row) in &transaction.devices {
            columns.slot.push(slot_of_user(*user));
            columns.user.push(user_column(*user));
            columns.device.push(row.number.0.into());
            columns.name.push(&row.name);
            columns.platform.push(row.platform.into());
            columns.acked.push(row.acked.cast_signed());
        }
        columns
    }
}

impl<'a> Conversations<'a> {
    fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.conversations {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.id.push(&row.id);
            columns.is_group.push(row.is_group);
        }
        columns
    }
}

impl<'a> Members<'a> {
    fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.conversations {
            for member in &row.members {
                columns.slot.push(slot_of_conversation(row.conversation));
                columns.conversation.push(conversation_column(row.conversation));
                columns.user.push(user_column(member.user));
                columns.uid.push(&member.uid);
                columns.visible_from.push(member.visible_from.cast_signed());
            }
        }
        columns
    }
}

impl<'a> Messages<'a> {
    fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.messages {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.seq.push(row.seq.cast_signed());
            columns.sender.push(user_column(row.origin.0));
            columns.device.push(row.origin.1.0.into());
            columns.key.push(&row.key.0);
            columns.id.push(row.id.cast_signed());
            columns.time_ms.push(row.time_ms.cast_signed());
            columns.digest.push(row.digest.cast_signed());
            columns.body.push(&row.body);
        }
        columns
    }
}

impl Recipients {
    fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for (message, row) in (1..).zip(&transaction.messages) {
            for (user, position) in &row.recipients {
                columns.message.push(message);
                columns.slot.push(slot_of_user(*user));
                columns.user.push(user_column(*user));
                columns.position.push(position.map(u64::cast_signed));
            }
        }
        columns
    }
}

impl Arrivals {
    fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.arrivals {
            columns.slot.push(slot_of_user(row.user));
            columns.user.push(user_column(row.user));
            columns.position.push(row.position.cast_signed());
            columns.conversation.push(conversation_column(row.conversation));
            columns.seq.push(row.seq.cast_signed());
            columns.device.push(row.origin.map(|device| device.0.into()));
        }
        columns
    }
}

impl Acks {
    fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.cursors {
            columns.slot.push(slot_of_user(row.user));
            columns.user.push(user_column(row.user));
            columns.device.push(row.device.0.into());
            columns.acked.push(row.acked.cast_signed());
            columns.trimmed.push(row.trimmed.cast_signed());
        }
        columns
    }
}

impl Confirmed {
    fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.confirmed {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.user.push(user_column(row.user));
            columns.seq.push(row.seq.cast_signed());
        }
        columns
    }
}

/// Prepares the statement.
pub(super) async fn prepare(client: &Client) -> Result<Statement, Error> {
    client.prepare(COMMIT).await
}

/// Writes a transaction. It is durable when this returns, unless the connection has heard a warning.
pub(super) async fn commit(
    client: &Client,
    statement: &Statement,
    transaction: &Transaction,
) -> Result<Applied, Error> {
    let (slots, epochs): (Vec<_>, Vec<_>) =
        transaction.fences.iter().map(|(slot, epoch)| (slot_column(*slot), epoch.cast_signed())).unzip();
    let node = i32::from(transaction.node.0);
    let last_id = transaction.last_id.cast_signed();
    let message = Messages::of(transaction);
    let conversation = Conversations::of(transaction);
    let member = Members::of(transaction);
    let recipient = Recipients::of(transaction);
    let arrival = Arrivals::of(transaction);
    let ack = Acks::of(transaction);
    let account = Accounts::of(transaction);
    let device = Devices::of(transaction);
    let confirmed = Confirmed::of(transaction);
    #[rustfmt::skip] // a line for each table
    let parameters: [&(dyn ToSql + Sync); PARAMETERS] = [
        &slots, &epochs, &node,
        &message.slot, &message.conversation, &message.seq, &message.sender, &message.device, &message.key, &message.id,
        &message.time_ms, &message.digest, &message.body,
        &conversation.slot, &conversation.conversation, &conversation.id, &conversation.is_group,
        &member.slot, &member.conversation, &member.user, &member.uid, &member.visible_from,
        &recipient.message, &recipient.slot, &recipient.user, &recipient.position,
        &arrival.slot, &arrival.user, &arrival.position, &arrival.conversation, &arrival.seq, &arrival.device,
        &ack.slot, &ack.user, &ack.device, &ack.acked, &ack.trimmed,
        &account.slot, &account.user, &account.uid,
        &device.slot, &device.user, &device.device, &device.name, &device.platform, &device.acked,
        &confirmed.slot, &confirmed.conversation, &confirmed.user, &confirmed.seq,
        &last_id,
    ];
    let rows = client.query(statement, &parameters).await?;
    let mut applied = Applied::default();
    for row in rows {
        let (kind, number): (i32, i64) = (row.get(0), row.get(1));
        if kind == 0 {
            let place = usize::try_from(number - 1).ok();
            applied.lost.extend(place.and_then(|place| transaction.fences.get(place)).map(|(slot, _)| *slot));
        } else {
            let field = |index: usize| row.get::<_, i64>(index).cast_unsigned();
            let known = Known { seq: field(2), id: field(3), time_ms: field(4), digest: field(5) };
            applied.known.push((usize::try_from(number).unwrap_or(usize::MAX), known));
        }
    }
    Ok(applied)
}
