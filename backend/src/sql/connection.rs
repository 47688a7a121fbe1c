//! One connection to a cell: a request in, its reply out.

use super::load::{self, Loads};
use super::{CellAddress, CellTlsError, capped, columns, commit, slot_column, statements};
use crate::cluster::cell::{CellReply, CellRequest, Deliver, Life, SlotHead, counter_of};
use crate::cluster::lease::LEASE;
use crate::im::store::Origin;
use moorline_proto::slots::{NodeId, Owner, Slot};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio_postgres::{AsyncMessage, Client, NoTls, Row, Statement};

/// Longest wait for the answer to a request. A cell whose standbys are away does not answer commits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A request was not answered, so nothing is known of its outcome; or no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The server, or the connection to it.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// There was no answer in time.
    #[error("no answer in {} s", .0.as_secs())]
    Timeout(Duration),
    /// The server has told success with a warning, as it does when a wait for its standbys is cancelled.
    #[error("the cell told success with a warning: the write may be on no standby")]
    Warning,
    /// A file of TLS is missing or not valid.
    #[error("{0}")]
    Tls(#[from] CellTlsError),
    /// The runtime of this thread could not be made.
    #[error("cannot make an event loop: {0}")]
    Runtime(#[from] std::io::Error),
}

impl SqlError {
    /// The error's code, if the server gave one.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Postgres(error) => error.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }
}

/// The whole chain of causes: the error of the library alone says "db error".
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

struct Prepared {
    renew: Statement,
    release: Statement,
    lives: Statement,
    owners: Statement,
    claim: Statement,
    heads: Statement,
    outbox: Statement,
    hand_over: Statement,
    commit: Statement,
    sweep: Statement,
    loads: Loads,
}

impl Prepared {
    async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            renew: client.prepare(statements::RENEW).await?,
            release: client.prepare(statements::RELEASE).await?,
            lives: client.prepare(statements::LIVES).await?,
            owners: client.prepare(statements::OWNERS).await?,
            claim: client.prepare(statements::CLAIM).await?,
            heads: client.prepare(statements::HEADS).await?,
            outbox: client.prepare(statements::OUTBOX).await?,
            hand_over: client.prepare(statements::HAND_OVER).await?,
            commit: commit::prepare(client).await?,
            sweep: client.prepare(statements::SWEEP).await?,
            loads: Loads::prepare(client).await?,
        })
    }
}

/// See the module. After an error it is not used again.
pub struct Connection {
    runtime: Runtime,
    client: Client,
    prepared: Prepared,
    warnings: Arc<AtomicU64>,
}

impl Connection {
    /// Connects to the server of a cell that takes writes. Waits at most some seconds.
    ///
    /// # Errors
    /// [`SqlError`]: no server answers and takes writes, or the tables are missing.
    pub fn open(address: &CellAddress) -> Result<Self, SqlError> {
        let (runtime, client, warnings) = connect(address)?;
        let prepared = within(&runtime, REQUEST_TIMEOUT, Prepared::prepare(&client))?;
        Ok(Self { runtime, client, prepared, warnings })
    }

    /// Performs a request; `here` are the slots of the cell. Waits at most some seconds.
    ///
    /// # Errors
    /// [`SqlError`]: the outcome is unknown.
    pub fn perform(&mut self, here: &[Slot], request: &CellRequest) -> Result<CellReply, SqlError> {
        let before = self.warnings.load(Ordering::Relaxed);
        let Self { runtime, client, prepared, .. } = self;
        let reply = within(runtime, REQUEST_TIMEOUT, perform(client, prepared, here, request))?;
        if self.warnings.load(Ordering::Relaxed) != before && !matches!(request, CellRequest::Load(_)) {
            return Err(SqlError::Warning);
        }
        Ok(reply)
    }

    /// Reads the last message id that a node gave out in this cell.
    ///
    /// # Errors
    /// [`SqlError`].
    pub fn last_id(&mut self, node: NodeId) -> Result<u64, SqlError> {
        let Self { runtime, client, .. } = self;
        let number = i32::from(node.0);
        let row = within(runtime, REQUEST_TIMEOUT, client.query_one(statements::LAST_ID, &[&number]))?;
        Ok(load::number(&row, 0))
    }
}

/// Waits for work with a cell, no longer than this.
pub(super) fn within<T>(
    runtime: &Runtime,
    time: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SqlError> {
    let done = runtime.block_on(async { tokio::time::timeout(time, work).await });
    Ok(done.map_err(|_| SqlError::Timeout(time))??)
}

/// Connects, and reads what the server says in between on a task of the runtime. Counts warnings.
pub(super) fn connect(address: &CellAddress) -> Result<(Runtime, Client, Arc<AtomicU64>), SqlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let warnings = Arc::new(AtomicU64::new(0));
    let counted = warnings.clone();
    let tls = address.tls()?;
    let client = within(&runtime, REQUEST_TIMEOUT, async {
        Ok(match tls {
            None => {
                let (client, connection) = address.config.connect(NoTls).await?;
                tokio::spawn(listen(connection, counted));
                client
            }
            Some(tls) => {
                let (client, connection) = address.config.connect(tls).await?;
                tokio::spawn(listen(connection, counted));
                client
            }
        })
    })?;
    Ok((runtime, client, warnings))
}

/// Reads what the server says in between, to the end of the connection. Counts warnings.
async fn listen<S, T>(connection: tokio_postgres::Connection<S, T>, counted: Arc<AtomicU64>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = pin!(connection);
    while let Some(Ok(message)) = poll_fn(|cx| connection.as_mut().get_mut().poll_message(cx)).await {
        if let AsyncMessage::Notice(notice) = message
            && notice.severity() != "NOTICE"
            && notice.severity() != "INFO"
        {
            counted.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(warning = notice.message(), "a cell warns");
        }
    }
}

async fn perform(
    client: &mut Client,
    prepared: &Prepared,
    here: &[Slot],
    request: &CellRequest,
) -> Result<CellReply, tokio_postgres::Error> {
    match request {
        CellRequest::Renew(Life { node, number, address, is_stopping }) => {
            let length = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
            let number = number.cast_signed();
            let node = i32::from(node.0);
            let rows =
                client.query(&prepared.renew, &[&node, &length, &number, &&**address, is_stopping]).await?;
            Ok(CellReply::Renewed(rows.iter().filter_map(life).collect()))
        }
        CellRequest::Release(Life { node, number, .. }) => {
            client.execute(&prepared.release, &[&i32::from(node.0), &number.cast_signed()]).await?;
            let rows = client.query(&prepared.lives, &[]).await?;
            Ok(CellReply::Renewed(rows.iter().filter_map(life).collect()))
        }
        CellRequest::Owners => Ok(CellReply::Owners(owners(client, &prepared.owners, here).await?)),
        CellRequest::Claim(node, claims) => claim(client, prepared, *node, claims).await,
        CellRequest::HandOver(node, steps) => {
            let slots: Vec<_> = steps.iter().map(|(slot, ..)| slot_column(*slot)).collect();
            let epochs: Vec<_> = steps.iter().map(|(_, epoch, _)| epoch.cast_signed()).collect();
            let next: Vec<_> = steps.iter().map(|(_, _, to)| i32::from(to.0)).collect();
            client.execute(&prepared.hand_over, &[&slots, &epochs, &next, &i32::from(node.0)]).await?;
            let slots: Vec<_> = steps.iter().map(|(slot, ..)| *slot).collect();
            Ok(CellReply::Owners(owners(client, &prepared.owners, &slots).await?))
        }
        CellRequest::Commit(transaction) => {
            Ok(CellReply::Applied(commit::commit(client, &prepared.commit, transaction).await?))
        }
        CellRequest::Sweep(node, fences, limit) => {
            let slots: Vec<_> = fences.iter().map(|(slot, _)| slot_column(*slot)).collect();
            let epochs: Vec<_> = fences.iter().map(|(_, epoch)| epoch.cast_signed()).collect();
            let (node, limit) = (i32::from(node.0), capped(*limit as u64));
            let row = client.query_one(&prepared.sweep, &[&slots, &epochs, &node, &limit]).await?;
            Ok(CellReply::Swept((load::number(&row, 0) > 0).then(|| load::number(&row, 1))))
        }
        CellRequest::Load(loads) => Ok(CellReply::Loaded(prepared.loads.load(client, loads).await?)),
    }
}

fn slot_of_row(row: &Row) -> Option<Slot> {
    u64::try_from(row.get::<_, i32>(0)).ok().and_then(Slot::from_number)
}

fn life(row: &Row) -> Option<Life> {
    let (node, number) = (node_of(Some(row.get(0)))?, row.get::<_, i64>(1).cast_unsigned());
    Some(Life { node, number, address: load::text(row, 2), is_stopping: row.get(3) })
}

fn node_of(number: Option<i32>) -> Option<NodeId> {
    number.and_then(|number| u16::try_from(number).ok()).map(NodeId)
}

async fn owners(
    client: &impl tokio_postgres::GenericClient,
    statement: &Statement,
    slots: &[Slot],
) -> Result<Vec<(Slot, Owner)>, tokio_postgres::Error> {
    let slots: Vec<_> = slots.iter().map(|slot| slot_column(*slot)).collect();
    let rows = client.query(statement, &[&slots]).await?;
    let owner = |row: &Row| {
        Some((slot_of_row(row)?, Owner { node: node_of(row.get(1)), epoch: load::number(row, 2) }))
    };
    Ok(rows.iter().filter_map(owner).collect())
}

/// Takes slots over, and reads their heads. A statement after the take-over sees what the node before has written: the take-over
/// waits for the locks of its transactions.
async fn claim(
    client: &mut Client,
    prepared: &Prepared,
    node: NodeId,
    claims: &[(Slot, u64)],
) -> Result<CellReply, tokio_postgres::Error> {
    let slots: Vec<_> = claims.iter().map(|(slot, _)| slot_column(*slot)).collect();
    let epochs: Vec<_> = claims.iter().map(|(_, epoch)| epoch.cast_signed()).collect();
    let transaction = client.transaction().await?;
    let taken = transaction.query(&prepared.claim, &[&slots, &epochs, &i32::from(node.0)]).await?;
    let taken: Vec<_> = taken.iter().map(|row| row.get::<_, i32>(0)).collect();
    let refused = claims.iter().map(|(slot, _)| *slot).filter(|slot| !taken.contains(&slot_column(*slot)));
    let refused = owners(&transaction, &prepared.owners, &refused.collect::<Vec<_>>()).await?;
    let rows = transaction.query(&prepared.heads, &[&taken]).await?;
    let head = |row: &Row| {
        let (users, conversations) = (counter_of(load::number(row, 2)), counter_of(load::number(row, 3)));
        let (epoch, outbox) = (load::number(row, 1), Vec::new());
        Some(SlotHead { slot: slot_of_row(row)?, epoch, users, conversations, outbox })
    };
    let mut heads: Vec<_> = rows.iter().filter_map(head).collect();
    for row in transaction.query(&prepared.outbox, &[&taken]).await? {
        if let Some(head) = heads.iter_mut().find(|head| Some(head.slot) == slot_of_row(&row)) {
            head.outbox.push(deliver(&row));
        }
    }
    transaction.commit().await?;
    Ok(CellReply::Claimed(heads, refused))
}

fn deliver(row: &Row) -> Deliver {
    let origin: Origin = (load::user(row, 11), load::device(row.get(12)));
    Deliver {
        user: load::user(row, 1),
        conversation: load::conversation(row, 2),
        id: load::text(row, 3),
        is_group: row.get(4),
        members: usize::try_from(load::number(row, 5)).unwrap_or(0),
        visible_from: load::number(row, 6),
        order: load::number(row, 7),
        after: load::number(row, 8),
        content: columns::content(row.get(9), row.get(10)),
        origin,
        body: load::body(row, 13),
        passage: columns::passage(row.get(14), row.get(15), row.get(16)),
    }
}
