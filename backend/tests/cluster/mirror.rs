//! Real cells beside the simulated ones: PostgreSQL gets the same requests, and has to give the same replies.

use crate::postgres::{self, Postgres};
use moorline_backend::cluster::cell::{CellId, CellReply, CellRequest, ConversationRow, slot_of};
use moorline_backend::cluster::store::Layout;
use moorline_backend::im::store::UserId;
use moorline_backend::sql::{CellAddress, Connection, admin};
use moorline_proto::slots::{NodeId, Slot};
use tokio_postgres::{Client, NoTls};

/// One cell.
struct Real {
    connection: Connection,
    here: Vec<Slot>,
    /// For what no node does.
    runtime: tokio::runtime::Runtime,
    client: Client,
}

/// See the module.
pub(crate) struct Mirror {
    layout: Layout,
    cells: Vec<Real>,
    /// Requests that were compared.
    pub(crate) compared: u64,
}

impl Mirror {
    /// Makes the cells of one run in databases of their own.
    pub(crate) fn new(server: &Postgres, layout: Layout, seed: u64) -> Self {
        let databases = (0..layout.cells).map(|cell| server.database(&format!("seed_{seed}_{cell}")));
        let texts: Vec<_> = databases.collect();
        let addresses = texts.iter().map(|text| text.parse().expect("an address"));
        let addresses: Vec<CellAddress> = addresses.collect();
        admin::migrate(&addresses, "sim").expect("tables");
        assert_eq!(admin::check(&addresses).expect("tables"), "sim");
        admin::migrate(&addresses, "again").expect("a repetition changes nothing");
        assert_eq!(admin::check(&addresses).expect("tables"), "sim");
        let cells = (0..).zip(&addresses).zip(&texts).map(|((cell, address), text)| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let client = runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(text, NoTls).await.expect("a connection");
                tokio::spawn(connection);
                client
            });
            let here = Slot::all().filter(|slot| layout.cell(*slot) == CellId(cell)).collect();
            Real { connection: Connection::open(address).expect("a connection"), here, runtime, client }
        });
        Self { layout, cells: cells.collect(), compared: 0 }
    }

    fn at(&mut self, slot: Slot) -> &mut Real {
        &mut self.cells[usize::from(self.layout.cell(slot).0)]
    }

    fn sql(&mut self, slot: Slot, sql: &str) {
        let real = self.at(slot);
        real.runtime.block_on(real.client.batch_execute(sql)).expect("a statement");
    }

    /// Does what [`crate::cells::Cells::steal`] does.
    pub(crate) fn steal(&mut self, slot: Slot, node: NodeId) {
        let (number, node) = (slot.number(), node.0);
        self.sql(slot, &format!("update owner set node = {node}, epoch = epoch + 1 where slot = {number}"));
    }

    /// Does what [`crate::cells::Cells::seed_user`] does.
    pub(crate) fn seed_user(&mut self, user: UserId, uid: &str) {
        let slot = slot_of(user.number());
        let (place, number) = (slot.number(), user.number());
        self.sql(slot, &format!("insert into account values ({place}, {number}, '{uid}', 0, 0)"));
    }

    /// Does what [`crate::cells::Cells::seed_friends_only`] does.
    pub(crate) fn seed_friends_only(&mut self, user: UserId) {
        let slot = slot_of(user.number());
        let (place, number) = (slot.number(), user.number());
        self.sql(slot, &format!("insert into setting values ({place}, {number}, 2)"));
    }

    /// Does what [`crate::cells::Cells::seed`] does.
    pub(crate) fn seed(&mut self, row: &ConversationRow) {
        let slot = slot_of(row.conversation.number());
        let (place, number) = (slot.number(), row.conversation.number());
        let ConversationRow { id, is_group, creator, .. } = row;
        let creator = creator.map_or("null".to_owned(), |creator| creator.number().to_string());
        self.sql(slot, &format!("insert into conv values ({place}, {number}, '{id}', {is_group}, 0, 0, 0, 0, {creator}, '', '', false, false, false)"));
        for member in &row.members {
            let (uid, entered) = (&member.uid, member.entered);
            let member = &member.member;
            let (user, role) = (member.user.number(), i32::from(member.role()));
            let values = format!("{place}, {number}, {user}, '{uid}', 1, {role}, 0, 0, 0, 0, {entered}");
            self.sql(slot, &format!("insert into member values ({values})"));
        }
    }

    /// Compares the last message id that a node gave out.
    pub(crate) fn check_last_id(&mut self, node: NodeId, simulated: u64) {
        let ids = self.cells.iter_mut().map(|real| real.connection.last_id(node).expect("an id"));
        assert_eq!(ids.max(), Some(simulated), "the last message id of {node:?}");
    }

    /// Performs a request, and compares the reply. Leases end by real time here, so they are left out.
    pub(crate) fn perform(&mut self, cell: CellId, request: &CellRequest, simulated: &CellReply) {
        if matches!(request, CellRequest::Renew(_)) {
            return;
        }
        let real = &mut self.cells[usize::from(cell.0)];
        let reply = real.connection.perform(&real.here, request);
        let mut reply = reply.unwrap_or_else(|error| panic!("{error} for {request:?}"));
        let mut simulated = simulated.clone();
        for reply in [&mut reply, &mut simulated] {
            // The order of slots that are claimed together means nothing.
            if let CellReply::Claimed(heads, refused) = reply {
                heads.sort_by_key(|head| head.slot);
                refused.sort_by_key(|(slot, _)| *slot);
            }
        }
        assert_eq!(format!("{reply:#?}"), format!("{simulated:#?}"), "the reply to {request:#?}");
        self.compared += 1;
    }
}

/// Starts the server for all runs. `None`: PostgreSQL is not installed.
pub(crate) fn server() -> Option<Postgres> {
    let server = Postgres::start(&[("fsync", "off"), ("autovacuum", "off")]);
    if server.is_none() {
        postgres::skip("real_cells_reply_as_the_simulated_ones_do");
    }
    server
}
