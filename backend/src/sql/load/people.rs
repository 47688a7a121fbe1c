//! Reads of users, and of what they make of each other.

use super::{Reader, by_slot, conversation, device_row, number, text, user};
use crate::cluster::cell::{INVITATIONS_MAX, Load, Loaded};
use crate::im::store::rules::relations::Counts;
use crate::im::store::{UserId, WhoMayAdd};
use crate::sql::columns::relation_of_column;
use crate::sql::{capped, conversation_column, slot_column, slot_of_conversation, slot_of_user, user_column};
use moorline_proto::slots::Slot;
use std::sync::Arc;
use tokio_postgres::{Error, Row};

impl Reader<'_> {
    pub(super) async fn people(&self, load: &Load) -> Result<Loaded, Error> {
        let (loads, transaction) = (self.loads, &self.transaction);
        Ok(match load {
            Load::Contacts(uids) => {
                let (slots, uids) = by_slot(uids);
                let rows = transaction.query(&loads.contacts, &[&slots, &uids]).await?;
                let contact = |row: &Row| (text(row, 0), user(row, 1), who_may_add(row, 2));
                Loaded::Contacts(rows.iter().map(contact).collect())
            }
            Load::Pairs(ids) => self.pairs(ids).await?,
            Load::Relations(of) => {
                let (slot, name) = (slot_of_user(*of), user_column(*of));
                let rows = transaction.query(&loads.relations, &[&slot, &name]).await?;
                let related = |row: &Row| (user(row, 0), text(row, 1), relation_of_column(row.get(2)));
                Loaded::Relations(*of, rows.iter().map(related).collect())
            }
            Load::RelationCounts(uid) => {
                let (slot, name) = (slot_column(Slot::of(uid)), &**uid);
                let row = transaction.query_opt(&loads.relation_counts, &[&slot, &name]).await?;
                let count = |row: &Row, index| usize::try_from(number(row, index)).unwrap_or(usize::MAX);
                Loaded::RelationCounts(row.map(|row| {
                    let [relations, requests, blocks] = [1, 2, 3].map(|index| count(&row, index));
                    (user(&row, 0), Counts { relations, requests, blocks })
                }))
            }
            Load::Devices(uids) => {
                let (slots, uids) = by_slot(uids);
                let rows = transaction.query(&loads.devices_of, &[&slots, &uids]).await?;
                Loaded::Devices(rows.iter().map(|row| (user(row, 5), device_row(row))).collect())
            }
            Load::Settings(of) => self.settings(*of).await?,
            Load::Pushed(of, key) => {
                let (slot, name, key) = (slot_of_user(*of), user_column(*of), &key.0[..]);
                let row = transaction.query_opt(&loads.pushed, &[&slot, &name, &key]).await?;
                Loaded::Pushed(row.map(|row| number(&row, 0)))
            }
            Load::InvitedTo(of, groups) => {
                let slots: Vec<_> = groups.iter().map(|group| slot_of_conversation(*group)).collect();
                let names: Vec<_> = groups.iter().map(|group| conversation_column(*group)).collect();
                let rows = transaction.query(&loads.invited_to, &[&slots, &names, &user_column(*of)]).await?;
                let group = |row: &Row| (conversation(row, 0), text(row, 1));
                Loaded::InvitedTo(*of, rows.iter().map(group).collect())
            }
            Load::Invited(group, users) => {
                let (slot, name) = (slot_of_conversation(*group), conversation_column(*group));
                let users: Vec<_> = users.iter().map(|user| user_column(*user)).collect();
                let rows = transaction.query(&loads.invited, &[&slot, &name, &users]).await?;
                Loaded::Invited(rows.iter().map(|row| user(row, 0)).collect())
            }
            load => unreachable!("{load:?} is read elsewhere"),
        })
    }

    async fn settings(&self, of: UserId) -> Result<Loaded, Error> {
        let (slot, name) = (slot_of_user(of), user_column(of));
        let rule = self.transaction.query_opt(&self.loads.settings, &[&slot, &name]).await?;
        let limit = capped(INVITATIONS_MAX as u64);
        let rows = self.transaction.query(&self.loads.invitations, &[&slot, &name, &limit]).await?;
        let groups = rows.iter().rev().map(|row| conversation(row, 0)).collect();
        Ok(Loaded::Settings(of, rule.map(|row| who_may_add(&row, 0)).unwrap_or_default(), groups))
    }

    async fn pairs(&self, ids: &[Arc<str>]) -> Result<Loaded, Error> {
        let mut pairs: Vec<_> = ids.iter().map(|id| (id.clone(), Vec::new())).collect();
        let (slots, ids) = by_slot(ids);
        for row in self.transaction.query(&self.loads.pairs, &[&slots, &ids]).await? {
            let place = usize::try_from(row.get::<_, i64>(0) - 1).ok().and_then(|at| pairs.get_mut(at));
            if let Some((_, pair)) = place {
                pair.push((user(&row, 1), relation_of_column(row.get(2))));
            }
        }
        Ok(Loaded::Pairs(pairs))
    }
}

/// A rule of a column; one that this version does not know is the operator's.
fn who_may_add(row: &Row, index: usize) -> WhoMayAdd {
    WhoMayAdd::try_from(row.get::<_, i32>(index)).unwrap_or_default()
}
