//! Reads of users, and of what they make of each other.

use super::{Reader, by_slot, number, text, user};
use crate::cluster::cell::{Load, Loaded};
use crate::im::store::rules::relations::Counts;
use crate::sql::columns::relation_of_column;
use crate::sql::{slot_column, slot_of_user, user_column};
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
                Loaded::Contacts(rows.iter().map(|row| (text(row, 0), user(row, 1))).collect())
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
            load => unreachable!("{load:?} is read elsewhere"),
        })
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
