//! Cells in PostgreSQL: their tables, and answers after which nothing is known. The replies to requests are compared with those of
//! simulated cells in `tests/cluster`.

mod postgres;
#[path = "cells/tls.rs"]
mod tls;

use moorline_backend::cluster::cell::{
    CellReply, CellRequest, EventRow, InvitationRow, ListedRow, Load, Loaded, Passage, RecipientRow,
    RelatedRow, Transaction, number_in,
};
use moorline_backend::im::store::{ConversationId, DeviceNumber, Relation, UserId};
use moorline_backend::sql::{CellAddress, Connection, SqlError, admin, status};
use moorline_proto::slots::{NodeId, Slot};
use postgres::Postgres;
use std::thread;
use std::time::Duration;
use tokio_postgres::NoTls;

const NODE: NodeId = NodeId(1);

/// Runs statements as the operator of the cell, and returns the first column of the first row of the last one.
fn sql(database: &str, text: &str) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(database, NoTls).await.expect("a connection");
        tokio::spawn(connection);
        let rows = client.simple_query(text).await.expect("a statement");
        rows.iter().rev().find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    })
}

/// A server with one cell: its connection string, and its address.
fn one_cell() -> Option<(Postgres, String, CellAddress)> {
    let server = Postgres::start(&[("fsync", "off")])?;
    let text = server.database("a");
    let cell: CellAddress = text.parse().expect("an address");
    admin::migrate(std::slice::from_ref(&cell), "one").expect("tables");
    Some((server, text, cell))
}

/// A transaction with a new user, and the claim of its slot.
fn new_user(connection: &mut Connection, uid: &str) -> CellRequest {
    let slot = Slot::of(uid);
    let claim = CellRequest::Claim(NODE, vec![(slot, 0)]);
    let reply = connection.perform(&[slot], &claim).expect("a claim");
    assert!(matches!(&reply, CellReply::Claimed(heads, _) if heads.len() == 1), "{reply:?}");
    let mut transaction = Transaction::new(NODE);
    transaction.fence(slot, 1);
    transaction.users.push((UserId::new(number_in(slot, 1)), uid.into()));
    CellRequest::Commit(transaction.into())
}

#[test]
fn tables_that_are_missing_newer_or_of_another_place_are_refused_by_name() {
    let Some(server) = Postgres::start(&[("fsync", "off")]) else {
        return postgres::skip("tables_that_are_missing_newer_or_of_another_place_are_refused_by_name");
    };
    let texts = [server.database("a"), server.database("b")];
    let cells = texts.each_ref().map(|text| text.parse::<CellAddress>().expect("an address"));
    let refusal = |cells: &[CellAddress]| admin::check(cells).expect_err("refused").to_string();
    assert!(refusal(&cells).contains("has no tables; run `moorline backend migrate`"), "{}", refusal(&cells));
    let made = admin::migrate(&cells, "it's one").expect("tables");
    assert_eq!(made.iter().map(|state| (state.cell, state.cells)).collect::<Vec<_>>(), [(0, 2), (1, 2)]);
    assert_eq!(admin::check(&cells).expect("whole"), "it's one");
    let turned = [cells[1].clone(), cells[0].clone()];
    for refused in
        [refusal(&turned), refusal(&cells[..1]), admin::migrate(&turned, "x").unwrap_err().to_string()]
    {
        assert!(refused.contains("of cluster it's one") && refused.contains("`store.cells`"), "{refused}");
    }
    let owners: Vec<_> =
        texts.iter().map(|text| sql(text, "select count(*) from owner").expect("a row")).collect();
    assert_eq!(owners, ["512", "512"], "each slot is in one cell");
    sql(&texts[1], "update moorline_cell set version = 999");
    assert!(refusal(&cells).contains("version 999, this build knows"), "{}", refusal(&cells));
    assert!(admin::migrate(&cells, "x").unwrap_err().to_string().contains("use a newer build"));
    let nobody: CellAddress = "host=/nosuch user=moorline dbname=a".parse().expect("an address");
    assert!(refusal(&[nobody]).starts_with("cell 0 at /nosuch:5432/a: "), "the place is named");
}

#[test]
fn tables_of_the_version_before_get_what_is_new() {
    let Some((_server, text, cell)) = one_cell() else {
        return postgres::skip("tables_of_the_version_before_get_what_is_new");
    };
    let mut connection = Connection::open(&cell).expect("a connection");
    let commit = new_user(&mut connection, "alice");
    connection.perform(&[Slot::of("alice")], &commit).expect("stored");
    // What each step has added goes, the newest first.
    sql(
        &text,
        "drop table doomed; drop table pushed; drop table login_rule; drop table device_gone; alter table device drop column seen; drop table setting; drop table invited; drop table invitation; drop table relation; alter table outbox drop column other, drop column relation; \
         alter table member drop column relation",
    );
    sql(&text, "update moorline_cell set version = 1");
    let cells = std::slice::from_ref(&cell);
    let old = admin::check(cells).expect_err("too old").to_string();
    assert!(old.contains("has tables of version 1") && old.contains("`moorline backend migrate`"), "{old}");
    admin::migrate(cells, "one").expect("tables");
    assert_eq!(admin::check(cells).expect("whole"), "one");
    let mut connection = Connection::open(&cell).expect("every statement finds its tables");
    let claim = CellRequest::Claim(NODE, vec![(Slot::of("alice"), 1)]);
    let reply = connection.perform(&[Slot::of("alice")], &claim).expect("a claim");
    let CellReply::Claimed(heads, _) = &reply else { panic!("{reply:?}") };
    assert_eq!(heads[0].users, 1, "what was there stays");
}

#[test]
fn a_commit_that_no_standby_has_is_no_success() {
    let Some((_server, text, cell)) = one_cell() else {
        return postgres::skip("a_commit_that_no_standby_has_is_no_success");
    };
    let mut connection = Connection::open(&cell).expect("a connection");
    let commit = new_user(&mut connection, "alice");
    // No standby will ever have it.
    sql(&text, "alter system set synchronous_standby_names = 'nobody'");
    sql(&text, "select pg_reload_conf()");
    let waits = "select pid from pg_stat_activity where wait_event = 'SyncRep'";
    let (waiting, cancelled) = thread::scope(|scope| {
        let waiting = scope.spawn(|| connection.perform(&[Slot::of("alice")], &commit));
        let pid = loop {
            match sql(&text, waits) {
                Some(pid) => break pid,
                None if waiting.is_finished() => panic!("{:?}", waiting.join()),
                None => thread::park_timeout(Duration::from_millis(5)),
            }
        };
        let cancelled = sql(&text, &format!("select pg_cancel_backend({pid})"));
        (waiting.join().expect("it ends"), cancelled)
    });
    assert_eq!(cancelled.as_deref(), Some("t"));
    // A busy machine may have run into the deadline first, which is the same: nothing is known.
    assert!(matches!(waiting, Err(SqlError::Warning | SqlError::Timeout(_))), "{waiting:?}");
    sql(&text, "alter system reset synchronous_standby_names");
    sql(&text, "select pg_reload_conf()");
    // The next owner of the slot finds out by another commit.
    let mut next = Connection::open(&cell).expect("a connection");
    let claim = CellRequest::Claim(NodeId(2), vec![(Slot::of("alice"), 1)]);
    let reply = next.perform(&[Slot::of("alice")], &claim).expect("a claim");
    let CellReply::Claimed(heads, _) = &reply else { panic!("{reply:?}") };
    assert_eq!((heads[0].epoch, heads[0].users), (2, 1), "it was stored");
    let late = next.perform(&[Slot::of("alice")], &commit).expect("an answer");
    assert!(matches!(&late, CellReply::Applied(applied) if applied.lost == [Slot::of("alice")]), "{late:?}");
}

#[test]
fn a_user_that_may_not_see_standbys_is_told_how_to() {
    let server = Postgres::start(&[("fsync", "off"), ("synchronous_standby_names", "'ANY 1 (*)'")]);
    let Some(server) = server else {
        return postgres::skip("a_user_that_may_not_see_standbys_is_told_how_to");
    };
    let _standby = server.standby();
    let text = server.database("a");
    sql(&text, "create user plain");
    sql(&text, "create database b owner plain");
    let cell: CellAddress =
        format!("host={} user=plain dbname=b", server.host()).parse().expect("an address");
    admin::migrate(std::slice::from_ref(&cell), "one").expect("tables");
    let problems = || status::read(std::slice::from_ref(&cell)).problems.join("\n");
    let told = problems();
    assert!(told.contains("grant pg_monitor to plain") && !told.contains("no standby"), "{told}");
    sql(&text, "grant pg_monitor to plain");
    let told = problems();
    assert!(!told.contains("standby"), "{told}");
}

#[test]
fn a_server_that_does_not_answer_costs_a_deadline() {
    let Some((_server, text, cell)) = one_cell() else {
        return postgres::skip("a_server_that_does_not_answer_costs_a_deadline");
    };
    let mut connection = Connection::open(&cell).expect("a connection");
    let commit = new_user(&mut connection, "alice");
    // Somebody else has the row of the owner, and does not end.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&text, NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client.batch_execute("begin; select * from owner for update").await.expect("locked");
        client
    });
    let late = connection.perform(&[Slot::of("alice")], &commit).expect_err("nobody answers");
    assert!(matches!(late, SqlError::Timeout(_)), "{late}");
    drop((client, runtime));
}

#[test]
fn a_lost_fence_of_a_conversation_leaves_nothing_in_lists() {
    let Some((_server, _, cell)) = one_cell() else {
        return postgres::skip("a_lost_fence_of_a_conversation_leaves_nothing_in_lists");
    };
    let mut connection = Connection::open(&cell).expect("a connection");
    let commit = new_user(&mut connection, "alice");
    let slot = Slot::of("alice");
    connection.perform(&[slot], &commit).expect("stored");
    let (alice, other) = (UserId::new(number_in(slot, 1)), UserId::new(number_in(Slot::of("bob"), 1)));
    // Nobody owns the slot of the group, whose event makes alice a member, and is told at the first position of her stream.
    let id = "group:tea";
    let conversation = ConversationId::new(number_in(Slot::of(id), 1));
    let relation = Relation { is_blocked: true, ..Relation::default() };
    let mut transaction = Transaction::new(NODE);
    transaction.fence(slot, 1);
    transaction.fence(Slot::of(id), 7);
    let recipient = RecipientRow { user: alice, position: Some(1), entered: 1, passage: Passage::Enters };
    transaction.events.push(EventRow {
        conversation,
        order: 1,
        number: None,
        is_settings: false,
        is_for_all: true,
        origin: (alice, DeviceNumber(1)),
        body: "an event".into(),
        recipients: vec![recipient],
    });
    let (user, order, position, is_member) = (alice, 1, 1, true);
    transaction.listed.push(ListedRow { user, conversation, id: id.into(), position, is_member });
    transaction.related.push(RelatedRow { user, conversation, order, other, uid: "bob".into(), relation });
    transaction.invitations.push(InvitationRow { user, conversation, order });
    let reply = connection.perform(&[slot], &CellRequest::Commit(transaction.into())).expect("an answer");
    assert!(matches!(&reply, CellReply::Applied(applied) if applied.lost == [Slot::of(id)]), "{reply:?}");
    let loads = vec![
        Load::Listing(alice, "".into(), 9),
        Load::Relations(alice),
        Load::Settings(alice),
        Load::Stream(alice, 0, 9, 9),
    ];
    let CellReply::Loaded(loaded) = connection.perform(&[slot], &CellRequest::Load(loads)).expect("lists")
    else {
        panic!("a read is answered by what was read")
    };
    let [
        Loaded::Listing(Some(listed)),
        Loaded::Relations(_, related),
        Loaded::Settings(.., invited),
        Loaded::Stream(stream),
    ] = &loaded[..]
    else {
        panic!("{loaded:?}")
    };
    assert!(listed.is_empty() && related.is_empty() && invited.is_empty() && stream.is_empty(), "{loaded:?}");
}

#[test]
fn invitations_end_one_by_one_and_all_at_once() {
    let Some((_server, _, cell)) = one_cell() else {
        return postgres::skip("invitations_end_one_by_one_and_all_at_once");
    };
    let mut connection = Connection::open(&cell).expect("a connection");
    let commit = new_user(&mut connection, "alice");
    let slot = Slot::of("alice");
    connection.perform(&[slot], &commit).expect("stored");
    let group = ConversationId::new(number_in(slot, 1));
    let users = [1, 2, 3].map(|counter| UserId::new(number_in(slot, counter)));
    let mut invited = |changes: &[(UserId, bool)], is_ended: bool| {
        let mut transaction = Transaction::new(NODE);
        transaction.fence(slot, 1);
        transaction.invited.extend(changes.iter().map(|(user, is_invited)| (group, *user, *is_invited)));
        transaction.uninvited.extend(is_ended.then_some(group));
        connection.perform(&[slot], &CellRequest::Commit(transaction.into())).expect("stored");
        let load = CellRequest::Load(vec![Load::Invited(group, users.to_vec())]);
        match connection.perform(&[slot], &load).expect("a read") {
            CellReply::Loaded(loaded) => match &loaded[..] {
                [Loaded::Invited(invited)] => invited.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    };
    let [a, b, c] = users;
    assert_eq!(invited(&[(a, true), (b, true)], false), [a, b]);
    assert_eq!(invited(&[(a, true), (b, false)], false), [a], "twice is once");
    assert_eq!(invited(&[(c, true)], true), [c], "those of before the end are not any more");
}
