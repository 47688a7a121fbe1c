//! Statements of a driver. Each row and each condition names its slot.

/// Renews a lease by the clock of the database, unless another life of the node has one, and lists the lives that have one.
/// Parameters: node, length in milliseconds, life, address, true if the node is to end.
pub(super) const RENEW: &str = "
with mine as (
    insert into node as n (number, life, address, is_stopping, until)
    values ($1, $3, $4, $5, clock_timestamp() + $2::int8 * interval '1 millisecond')
    on conflict (number) do update set
        until = excluded.until, life = excluded.life, address = excluded.address, is_stopping = excluded.is_stopping
    where n.life = excluded.life or n.until <= clock_timestamp()
    returning number, life, address, is_stopping)
select number, life, address, is_stopping from mine
union all
select number, life, address, is_stopping from node
where until > clock_timestamp() and (number <> $1 or not exists (select from mine))
order by number";

/// Ends a lease. Parameters: node, life.
pub(super) const RELEASE: &str = "delete from node where number = $1 and life = $2";

/// Lives that have a lease.
pub(super) const LIVES: &str =
    "select number, life, address, is_stopping from node where until > clock_timestamp() order by number";

/// Owners of slots. Parameter: the slots.
pub(super) const OWNERS: &str = "select slot, node, epoch from owner where slot = any($1) order by slot";

/// Takes slots over that still have an epoch. Parameters: slots, epochs, node. The rows are locked in their order, so that two
/// claims, and a claim and a commit, never wait for each other in a circle.
pub(super) const CLAIM: &str = "
with open as materialized (
    select o.slot from owner o join unnest($1::int4[], $2::int8[]) f (slot, epoch) on o.slot = f.slot and o.epoch = f.epoch
    order by o.slot for update of o)
update owner o set node = $3, epoch = o.epoch + 1 from open where o.slot = open.slot returning o.slot";

/// Heads of slots: names given, and messages on their way. Parameter: the slots.
pub(super) const HEADS: &str = "
select s.slot, o.epoch,
    coalesce((select max(usr) from account a where a.slot = s.slot), 0),
    coalesce((select max(conv) from conv c where c.slot = s.slot), 0)
from unnest($1::int4[]) s (slot) join owner o on o.slot = s.slot order by s.slot";

/// Messages on their way. Parameter: the slots.
pub(super) const OUTBOX: &str = "
select o.slot, o.usr, o.conv, c.id, c.is_group,
    (select count(*) from member n where n.slot = o.slot and n.conv = o.conv),
    coalesce((select n.visible_from from member n where n.slot = o.slot and n.conv = o.conv and n.usr = o.usr), 1),
    o.seq, o.after, m.sender, m.device, m.body
from outbox o
join conv c on c.slot = o.slot and c.conv = o.conv
join msg m on m.slot = o.slot and m.conv = o.conv and m.seq = o.seq
where o.slot = any($1)
order by o.slot, o.conv, o.usr, o.seq";

/// Gives slots away. Parameters: slots, epochs, new nodes, node.
pub(super) const HAND_OVER: &str = "
with mine as materialized (
    select o.slot, f.next from owner o
    join unnest($1::int4[], $2::int8[], $3::int4[]) f (slot, epoch, next) on o.slot = f.slot and o.epoch = f.epoch
    where o.node = $4 order by o.slot for update of o)
update owner o set node = mine.next, epoch = o.epoch + 1 from mine where o.slot = mine.slot";

/// Writes a transaction behind the fences of its slots, in one statement: what one part has to know of another comes from its
/// `returning`, since all parts see the tables as they were before.
///
/// Rows: (0, place of the fence, from 1) for each slot that is lost; (1, place of the message, from 0, seq, id, time, digest) for each key that was there.
pub(super) const COMMIT: &str = "
with fence as materialized (
    select o.slot from owner o join unnest($1::int4[], $2::int8[]) f (slot, epoch) on o.slot = f.slot and o.epoch = f.epoch
    where o.node = $3 order by o.slot for share of o),
message as materialized (
    select * from unnest($4::int4[], $5::int8[], $6::int8[], $7::int8[], $8::int8[], $9::bytea[], $10::int8[], $11::int8[],
        $12::int8[], $13::bytea[]) with ordinality
        m (slot, conv, seq, sender, device, key, id, time_ms, digest, body, n)
    where slot in (select slot from fence)),
stored as (
    insert into msg (slot, conv, seq, sender, device, key, id, time_ms, digest, body)
    select slot, conv, seq, sender, device, key, id, time_ms, digest, body from message order by n
    on conflict (slot, conv, sender, key) do nothing
    returning slot, conv, seq),
ends as (select slot, conv, max(seq) as seq from stored group by slot, conv),
new_conv as (
    insert into conv (slot, conv, id, is_group, last_seq)
    select c.slot, c.conv, c.id, c.is_group, coalesce(e.seq, 0)
    from unnest($14::int4[], $15::int8[], $16::text[], $17::bool[]) c (slot, conv, id, is_group)
    left join ends e on e.slot = c.slot and e.conv = c.conv
    where c.slot in (select slot from fence)),
old_conv as (
    update conv c set last_seq = e.seq from ends e where c.slot = e.slot and c.conv = e.conv and c.last_seq < e.seq),
new_member as (
    insert into member (slot, conv, usr, uid, visible_from)
    select * from unnest($18::int4[], $19::int8[], $20::int8[], $21::text[], $22::int8[]) m (slot, conv, usr, uid, visible_from)
    where m.slot in (select slot from fence)),
recipient as materialized (
    select m.slot as conv_slot, m.conv, m.seq, r.slot, r.usr, r.pos, case when r.usr = m.sender then m.device end as device,
        r.pos is not null and r.slot in (select slot from fence) as is_direct
    from unnest($23::int8[], $24::int4[], $25::int8[], $26::int8[]) r (n, slot, usr, pos)
    join message m on m.n = r.n
    join stored s on s.slot = m.slot and s.conv = m.conv and s.seq = m.seq),
before as (
    select s.slot, s.conv, s.seq,
        coalesce(lag(s.seq) over (partition by s.slot, s.conv order by s.seq), c.last_seq, 0) as after
    from stored s left join conv c on c.slot = s.slot and c.conv = s.conv),
sent as (
    insert into outbox (slot, conv, usr, seq, after)
    select r.conv_slot, r.conv, r.usr, r.seq, b.after
    from recipient r join before b on b.slot = r.conv_slot and b.conv = r.conv and b.seq = r.seq
    where not r.is_direct),
arrival as materialized (
    select slot, usr, pos, conv, seq, device from recipient where is_direct
    union all
    select * from unnest($27::int4[], $28::int8[], $29::int8[], $30::int8[], $31::int8[], $32::int8[])
        a (slot, usr, pos, conv, seq, device)
    where a.slot in (select slot from fence)),
new_inbox as (
    insert into inbox (slot, usr, pos, conv, seq, device) select slot, usr, pos, conv, seq, device from arrival),
new_arrived as (
    insert into arrived (slot, usr, conv, seq) select slot, usr, conv, max(seq) from arrival group by slot, usr, conv
    on conflict (slot, usr, conv) do update set seq = greatest(arrived.seq, excluded.seq)),
ack as materialized (
    select slot, usr, device, max(acked) as acked, max(trimmed) as trimmed
    from unnest($33::int4[], $34::int8[], $35::int8[], $36::int8[], $37::int8[]) c (slot, usr, device, acked, trimmed)
    where slot in (select slot from fence) group by slot, usr, device),
stream as (
    select slot, usr, max(pos) as pos, max(trimmed) as trimmed from (
        select slot, usr, pos, 0::int8 as trimmed from arrival
        union all select slot, usr, 0::int8, trimmed from ack) s
    group by slot, usr),
new_account as (
    insert into account (slot, usr, uid, last_pos, trimmed)
    select a.slot, a.usr, a.uid, coalesce(s.pos, 0), 0
    from unnest($38::int4[], $39::int8[], $40::text[]) a (slot, usr, uid)
    left join stream s on s.slot = a.slot and s.usr = a.usr
    where a.slot in (select slot from fence)),
old_account as (
    update account a set last_pos = greatest(a.last_pos, s.pos), trimmed = greatest(a.trimmed, s.trimmed)
    from stream s where a.slot = s.slot and a.usr = s.usr),
new_device as (
    insert into device (slot, usr, device, name, platform, acked)
    select * from unnest($41::int4[], $42::int8[], $43::int8[], $44::text[], $45::int8[], $46::int8[])
        d (slot, usr, device, name, platform, acked)
    where d.slot in (select slot from fence)),
old_device as (
    update device d set acked = greatest(d.acked, k.acked) from ack k
    where d.slot = k.slot and d.usr = k.usr and d.device = k.device),
trimmed as (
    delete from inbox i using (select slot, usr, max(trimmed) as trimmed from ack group by slot, usr) k
    where i.slot = k.slot and i.usr = k.usr and i.pos <= k.trimmed),
confirmed as (
    delete from outbox o using (
        select * from unnest($47::int4[], $48::int8[], $49::int8[], $50::int8[]) c (slot, conv, usr, seq)
        where slot in (select slot from fence)) c
    where o.slot = c.slot and o.conv = c.conv and o.usr = c.usr and o.seq <= c.seq),
id as (
    insert into node_id as i (number, last_id) values ($3, $51)
    on conflict (number) do update set last_id = greatest(i.last_id, excluded.last_id))
select 0::int4 as kind, f.at as n, 0::int8, 0::int8, 0::int8, 0::int8
from unnest($1::int4[]) with ordinality f (slot, at) where f.slot not in (select slot from fence)
union all
select 1, m.n - 1, k.seq, k.id, k.time_ms, k.digest
from message m join msg k on k.slot = m.slot and k.conv = m.conv and k.sender = m.sender and k.key = m.key
order by kind, n";

/// The last message id of a node. Parameter: node.
pub(super) const LAST_ID: &str = "select coalesce(max(last_id), 0) from node_id where number = $1";

/// A user by name. Parameters: slot, uid.
pub(super) const ACCOUNT_BY_UID: &str = "select usr, uid, last_pos from account where slot = $1 and uid = $2";
/// A user by number. Parameters: slot, user.
pub(super) const ACCOUNT: &str = "select usr, uid, last_pos from account where slot = $1 and usr = $2";
/// Devices of a user. Parameters: slot, user.
pub(super) const DEVICES: &str =
    "select device, name, platform, acked from device where slot = $1 and usr = $2 order by device";
/// Last seq of each conversation in a user's stream. Parameters: slot, user.
pub(super) const ARRIVED: &str = "select conv, seq from arrived where slot = $1 and usr = $2 order by conv";
/// A conversation by its id. Parameters: slot, id.
pub(super) const CONVERSATION_BY_ID: &str =
    "select conv, id, is_group, last_seq from conv where slot = $1 and id = $2";
/// A conversation by number. Parameters: slot, conversation.
pub(super) const CONVERSATION: &str =
    "select conv, id, is_group, last_seq from conv where slot = $1 and conv = $2";
/// Members of a conversation. Parameters: slot, conversation.
pub(super) const MEMBERS: &str =
    "select usr, uid, visible_from from member where slot = $1 and conv = $2 order by usr";
/// Result of a message key. Parameters: slot, conversation, sender, key.
pub(super) const KEY: &str =
    "select seq, id, time_ms, digest from msg where slot = $1 and conv = $2 and sender = $3 and key = $4";
/// Entries of a stream. Parameters: slot, user, after, to, limit.
pub(super) const STREAM: &str = "
select pos, conv, seq, device from inbox where slot = $1 and usr = $2 and pos > $3 and pos <= $4 order by pos limit $5";
/// Messages by conversation and seq. Parameters: slots, conversations, seqs.
pub(super) const BODIES: &str = "
select m.conv, m.seq, m.body from unnest($1::int4[], $2::int8[], $3::int8[]) with ordinality w (slot, conv, seq, n)
join msg m on m.slot = w.slot and m.conv = w.conv and m.seq = w.seq order by w.n";
/// Messages of a conversation. Parameters: slot, conversation, from, to, limit.
pub(super) const PAGE: &str = "
select seq, body from msg where slot = $1 and conv = $2 and seq >= $3 and seq <= $4 order by seq limit $5";
