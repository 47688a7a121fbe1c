//! The one statement of a transaction: its parameters, and what it returns.

use super::columns::{
    Accounts, Acks, Arrivals, Confirmed, Conversations, Devices, Emptied, Events, Groups, Invitations,
    Invited, Listed, Members, Messages, Parameters, Parted, Profiles, Pushed, Recipients, Related, Rules,
    Settings, Uninvited,
};
use super::slot_column;
use super::statements::COMMIT;
use crate::cluster::cell::{Applied, Known, Transaction};
use tokio_postgres::{Client, Error, Statement};

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
    let (messages, emptied) = (Messages::of(transaction), Emptied::of(transaction));
    let events = Events::of(transaction);
    let (conversations, groups) = (Conversations::of(transaction), Groups::of(transaction));
    let (members, parted) = (Members::of(transaction), Parted::of(transaction));
    let (recipients, arrivals) = (Recipients::of(transaction), Arrivals::of(transaction));
    let (listed, acks) = (Listed::of(transaction), Acks::of(transaction));
    let (accounts, devices) = (Accounts::of(transaction), Devices::of(transaction));
    let (confirmed, profiles) = (Confirmed::of(transaction), Profiles::of(transaction));
    let (related, invitations) = (Related::of(transaction), Invitations::of(transaction));
    let (invited, uninvited) = (Invited::of(transaction), Uninvited::of(transaction));
    let (settings, rules) = (Settings::of(transaction), Rules::of(transaction));
    let pushed = Pushed::of(transaction);
    let mut parameters: Parameters<'_> = vec![&slots, &epochs, &node];
    messages.add_to(&mut parameters);
    emptied.add_to(&mut parameters);
    events.add_to(&mut parameters);
    conversations.add_to(&mut parameters);
    groups.add_to(&mut parameters);
    members.add_to(&mut parameters);
    parted.add_to(&mut parameters);
    recipients.add_to(&mut parameters);
    arrivals.add_to(&mut parameters);
    listed.add_to(&mut parameters);
    acks.add_to(&mut parameters);
    accounts.add_to(&mut parameters);
    devices.add_to(&mut parameters);
    confirmed.add_to(&mut parameters);
    parameters.push(&last_id);
    profiles.add_to(&mut parameters);
    related.add_to(&mut parameters);
    invitations.add_to(&mut parameters);
    invited.add_to(&mut parameters);
    uninvited.add_to(&mut parameters);
    settings.add_to(&mut parameters);
    rules.add_to(&mut parameters);
    pushed.add_to(&mut parameters);
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
