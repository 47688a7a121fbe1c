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

/// Messages and events on their way. Parameter: the slots.
pub(super) const OUTBOX: &str = "
select o.slot, o.usr, o.conv, c.id, c.is_group,
    (select count(*) from member n where n.slot = o.slot and n.conv = o.conv),
    coalesce((select n.visible_from from member n where n.slot = o.slot and n.conv = o.conv and n.usr = o.usr), 1),
    o.ord, o.after, o.seq, o.event, coalesce(m.sender, o.sender), coalesce(m.device, o.device),
    coalesce(m.body, e.body, o.body, ''::bytea), o.passage, o.other, o.relation
from outbox o
join conv c on c.slot = o.slot and c.conv = o.conv
left join msg m on m.slot = o.slot and m.conv = o.conv and m.seq = o.seq
left join event e on e.slot = o.slot and e.conv = o.conv and e.number = o.event
where o.slot = any($1)
order by o.slot, o.conv, o.usr, o.ord";

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
    select * from unnest($4::int4[], $5::int8[], $6::int8[], $7::int8[], $8::int8[], $9::int8[],
        $10::bytea[], $11::int8[], $12::int8[], $13::int8[], $14::bool[], $15::bytea[]) with ordinality
        m (slot, conv, seq, ord, sender, device, key, id, time_ms, digest, counts, body, n)
    where slot in (select slot from fence)),
stored as (
    insert into msg (slot, conv, seq, sender, device, key, id, time_ms, digest, counts, body)
    select slot, conv, seq, sender, device, key, id, time_ms, digest, counts, body from message order by n
    on conflict (slot, conv, sender, key) do nothing
    returning slot, conv, seq),
emptied as (
    update msg m set body = x.body, counts = false
    from unnest($16::int4[], $17::int8[], $18::int8[], $19::int8[], $20::bytea[]) x (slot, conv, seq, by_seq, body)
    join stored s on s.slot = x.slot and s.conv = x.conv and s.seq = x.by_seq
    where m.slot = x.slot and m.conv = x.conv and m.seq = x.seq),
told as materialized (
    select * from unnest($21::int4[], $22::int8[], $23::int8[], $24::int8[], $25::bool[], $26::bool[],
        $27::int8[], $28::int8[], $29::bytea[])
        e (slot, conv, ord, number, is_settings, is_all, sender, device, body)
    where slot in (select slot from fence)),
newest as (
    select slot, conv, max(number) as number, max(number) filter (where is_settings) as settings
    from told where number is not null group by slot, conv),
new_event as (
    insert into event (slot, conv, number, is_settings, body)
    select t.slot, t.conv, t.number, t.is_settings, t.body from told t join newest n on n.slot = t.slot and n.conv = t.conv
    where t.number > n.number - 64 and not (t.is_settings and t.number < n.settings)),
old_event as (
    delete from event e using newest n
    where e.slot = n.slot and e.conv = n.conv and (e.number <= n.number - 64 or e.is_settings and e.number < n.settings)),
entry as materialized (
    select m.slot, m.conv, m.ord, m.seq, null::int8 as event, true as is_all, m.sender, m.device, null::bytea as body
    from message m join stored s on s.slot = m.slot and s.conv = m.conv and s.seq = m.seq
    union all
    select slot, conv, ord, null::int8, number, is_all, sender, device, case when number is null then body end from told),
ends as (
    select slot, conv, max(seq) as seq, max(ord) as ord, max(ord) filter (where is_all) as all_ord, max(event) as event
    from entry group by slot, conv),
new_conv as (
    insert into conv (slot, conv, id, is_group, last_seq, last_ord, last_all, events, creator, title, notice, by_invitation,
        is_silent, is_dissolved)
    select c.slot, c.conv, c.id, c.is_group, coalesce(e.seq, 0), coalesce(e.ord, 0), coalesce(e.all_ord, 0), coalesce(e.event, 0),
        c.creator, c.title, c.notice, c.by_invitation, c.is_silent, c.is_dissolved
    from unnest($30::int4[], $31::int8[], $32::text[], $33::bool[], $34::int8[], $35::text[],
        $36::text[], $37::bool[], $38::bool[], $39::bool[])
        c (slot, conv, id, is_group, creator, title, notice, by_invitation, is_silent, is_dissolved)
    left join ends e on e.slot = c.slot and e.conv = c.conv
    where c.slot in (select slot from fence)),
old_conv as (
    update conv c set last_seq = greatest(c.last_seq, e.seq), last_ord = greatest(c.last_ord, e.ord),
        last_all = greatest(c.last_all, e.all_ord), events = greatest(c.events, e.event),
        creator = coalesce(g.creator, c.creator), title = coalesce(g.title, c.title), notice = coalesce(g.notice, c.notice),
        by_invitation = coalesce(g.by_invitation, c.by_invitation), is_silent = coalesce(g.is_silent, c.is_silent),
        is_dissolved = coalesce(g.is_dissolved, c.is_dissolved)
    from ends e left join unnest($40::int4[], $41::int8[], $42::int8[], $43::text[], $44::text[],
        $45::bool[], $46::bool[], $47::bool[])
        g (slot, conv, creator, title, notice, by_invitation, is_silent, is_dissolved) on g.slot = e.slot and g.conv = e.conv
    where c.slot = e.slot and c.conv = e.conv),
new_doomed as (
    insert into doomed as d (slot, conv, done, upto)
    select g.slot, g.conv, 0, greatest(c.last_seq, e.seq)
    from (
        select slot, conv from unnest($40::int4[], $41::int8[], $47::bool[]) g (slot, conv, is_dissolved) where is_dissolved
        union all
        select slot, conv from unnest($30::int4[], $31::int8[], $39::bool[]) g (slot, conv, is_dissolved) where is_dissolved) g
    left join conv c on c.slot = g.slot and c.conv = g.conv
    left join ends e on e.slot = g.slot and e.conv = g.conv
    where g.slot in (select slot from fence) and greatest(c.last_seq, e.seq) > 0
    on conflict (slot, conv) do update set upto = greatest(d.upto, excluded.upto)),
new_member as (
    insert into member (slot, conv, usr, uid, visible_from, role, since, silent_until, read, cleared, entered, relation)
    select * from unnest($48::int4[], $49::int8[], $50::int8[], $51::text[], $52::int8[], $53::int4[],
        $54::int8[], $55::int8[], $56::int8[], $57::int8[], $58::int8[], $59::int4[])
        m (slot, conv, usr, uid, visible_from, role, since, silent_until, read, cleared, entered, relation)
    where m.slot in (select slot from fence)
    on conflict (slot, conv, usr) do update set visible_from = excluded.visible_from, role = excluded.role,
        since = excluded.since, silent_until = excluded.silent_until, read = excluded.read, cleared = excluded.cleared,
        entered = excluded.entered, relation = excluded.relation),
old_member as (
    delete from member m using (
        select * from unnest($60::int4[], $61::int8[], $62::int8[]) p (slot, conv, usr)
        where slot in (select slot from fence)) p
    where m.slot = p.slot and m.conv = p.conv and m.usr = p.usr),
recipient as materialized (
    select e.slot as conv_slot, e.conv, e.ord, e.seq, e.event, e.body, e.sender, e.device, r.slot, r.usr, r.pos, r.entered,
        r.passage, r.other, r.relation, case when r.usr = e.sender then e.device end as own_device,
        r.pos is not null and r.slot in (select slot from fence) as is_direct
    from unnest($63::int4[], $64::int8[], $65::int8[], $66::int4[], $67::int8[], $68::int8[],
        $69::int8[], $70::int4[], $71::int8[], $72::int4[])
        r (at, conv, ord, slot, usr, pos, entered, passage, other, relation)
    join entry e on e.slot = r.at and e.conv = r.conv and e.ord = r.ord),
before as (
    select e.slot, e.conv, e.ord, greatest(c.last_all, 0, max(case when e.is_all then e.ord end) over (
        partition by e.slot, e.conv order by e.ord rows between unbounded preceding and 1 preceding)) as all_ord
    from entry e left join conv c on c.slot = e.slot and c.conv = e.conv),
sent as (
    insert into outbox (slot, conv, usr, ord, after, seq, event, body, sender, device, passage, other, relation)
    select r.conv_slot, r.conv, r.usr, r.ord, greatest(
            case when b.all_ord >= r.entered then b.all_ord end, 0,
            lag(r.ord) over (partition by r.conv_slot, r.conv, r.usr order by r.ord),
            (select max(o.ord) from outbox o where o.slot = r.conv_slot and o.conv = r.conv and o.usr = r.usr)),
        r.seq, r.event, r.body, case when r.seq is null then r.sender end, case when r.seq is null then r.device end, r.passage,
        r.other, r.relation
    from recipient r join before b on b.slot = r.conv_slot and b.conv = r.conv and b.ord = r.ord
    where not r.is_direct),
arrival as materialized (
    select slot, usr, pos, conv, ord, seq, event, body, own_device as device from recipient where is_direct
    union all
    select * from unnest($73::int4[], $74::int8[], $75::int8[], $76::int8[], $77::int8[], $78::int8[],
        $79::int8[], $80::bytea[], $81::int8[]) a (slot, usr, pos, conv, ord, seq, event, body, device)
    where a.slot in (select slot from fence)),
new_inbox as (
    insert into inbox (slot, usr, pos, conv, seq, event, body, device)
    select slot, usr, pos, conv, seq, event, body, device from arrival),
new_arrived as (
    insert into arrived (slot, usr, conv, ord) select slot, usr, conv, max(ord) from arrival group by slot, usr, conv
    on conflict (slot, usr, conv) do update set ord = greatest(arrived.ord, excluded.ord)),
related as materialized (
    select distinct on (r.slot, r.usr, r.other) r.slot, r.usr, r.other, r.uid, r.relation
    from unnest($113::int4[], $114::int8[], $115::int8[], $116::int8[], $117::int8[], $118::text[], $119::int4[])
        r (slot, usr, conv, ord, other, uid, relation)
    join arrival a on a.slot = r.slot and a.usr = r.usr and a.conv = r.conv and a.ord = r.ord
    order by r.slot, r.usr, r.other, a.pos desc),
new_relation as (
    insert into relation (slot, usr, other, uid, relation) select slot, usr, other, uid, relation from related where relation <> 0
    on conflict (slot, usr, other) do update set relation = excluded.relation),
old_relation as (
    delete from relation n using related r where r.relation = 0 and n.slot = r.slot and n.usr = r.usr and n.other = r.other),
invitation_new as materialized (
    select r.slot, r.usr, r.conv, max(a.pos) as pos
    from unnest($120::int4[], $121::int8[], $122::int8[], $123::int8[]) r (slot, usr, conv, ord)
    join arrival a on a.slot = r.slot and a.usr = r.usr and a.conv = r.conv and a.ord = r.ord
    group by r.slot, r.usr, r.conv),
new_invitation as (
    insert into invitation (slot, usr, conv, pos) select slot, usr, conv, pos from invitation_new
    on conflict (slot, usr, conv) do update set pos = excluded.pos),
old_invitation as (
    delete from invitation i using (select distinct slot, usr from invitation_new) n
    where i.slot = n.slot and i.usr = n.usr
        and i.pos < (select min(t.pos) from (
            select x.pos from invitation x where x.slot = n.slot and x.usr = n.usr order by x.pos desc limit 63) t)
        and not exists (select from invitation_new k where k.slot = i.slot and k.usr = i.usr and k.conv = i.conv)),
invited_now as materialized (
    select * from unnest($124::int4[], $125::int8[], $126::int8[], $127::bool[]) v (slot, conv, usr, is_invited)
    where slot in (select slot from fence)),
new_invited as (
    insert into invited (slot, conv, usr) select slot, conv, usr from invited_now where is_invited on conflict do nothing),
old_invited as (
    delete from invited v using (
        select slot, conv, usr from invited_now where not is_invited
        union all
        select slot, conv, null::int8 from unnest($128::int4[], $129::int8[]) u (slot, conv) where slot in (select slot from fence)) o
    where v.slot = o.slot and v.conv = o.conv and (o.usr is null or v.usr = o.usr)),
new_setting as (
    insert into setting (slot, usr, who_may_add)
    select * from unnest($130::int4[], $131::int8[], $132::int4[]) s (slot, usr, who_may_add)
    where s.slot in (select slot from fence)
    on conflict (slot, usr) do update set who_may_add = excluded.who_may_add),
new_rule as (
    insert into login_rule (slot, usr, valid_from, banned_until)
    select * from unnest($133::int4[], $134::int8[], $135::int8[], $136::int8[]) r (slot, usr, valid_from, banned_until)
    where r.slot in (select slot from fence)
    on conflict (slot, usr) do update set valid_from = excluded.valid_from, banned_until = excluded.banned_until),
pushed_now as materialized (
    select p.slot, p.usr, p.key, p.digest, p.pos
    from unnest($137::int4[], $138::int8[], $139::bytea[], $140::int8[], $141::int8[]) p (slot, usr, key, digest, pos)
    where p.slot in (select slot from fence)),
new_pushed as (
    insert into pushed (slot, usr, key, digest, pos) select slot, usr, key, digest, pos from pushed_now),
old_pushed as (
    delete from pushed p using (select distinct slot, usr from pushed_now) n
    where p.slot = n.slot and p.usr = n.usr and p.pos <= (
        select x.pos from pushed x where x.slot = n.slot and x.usr = n.usr order by x.pos desc offset 63 limit 1)),
listed as materialized (
    select l.slot, l.usr, l.conv, l.id, case when l.is_member then l.pos end as since
    from unnest($82::int4[], $83::int8[], $84::int8[], $85::text[], $86::int8[], $87::bool[])
        l (slot, usr, conv, id, pos, is_member)
    join arrival a on a.slot = l.slot and a.usr = l.usr and a.pos = l.pos),
new_listing as (
    insert into listing (slot, usr, conv, id, since) select slot, usr, conv, id, since from listed where since is not null
    on conflict (slot, usr, conv) do update set since = excluded.since),
joined as (
    delete from invitation i using listed l where l.since is not null
        and i.slot = l.slot and i.usr = l.usr and i.conv = l.conv
        and not exists (select from invitation_new k where k.slot = i.slot and k.usr = i.usr and k.conv = i.conv)),
old_listing as (
    delete from listing g using listed l where l.since is null and g.slot = l.slot and g.usr = l.usr and g.conv = l.conv),
ack as materialized (
    select slot, usr, device, max(acked) as acked, max(trimmed) as trimmed, max(seen) as seen, bool_or(is_gone) as is_gone
    from unnest($88::int4[], $89::int8[], $90::int8[], $91::int8[], $92::int8[], $93::int8[], $94::bool[])
        c (slot, usr, device, acked, trimmed, seen, is_gone)
    where slot in (select slot from fence) group by slot, usr, device),
stream as (
    select slot, usr, max(pos) as pos, max(trimmed) as trimmed from (
        select slot, usr, pos, 0::int8 as trimmed from arrival
        union all select slot, usr, 0::int8, trimmed from ack) s
    group by slot, usr),
new_account as (
    insert into account (slot, usr, uid, last_pos, trimmed)
    select a.slot, a.usr, a.uid, coalesce(s.pos, 0), 0
    from unnest($95::int4[], $96::int8[], $97::text[]) a (slot, usr, uid)
    left join stream s on s.slot = a.slot and s.usr = a.usr
    where a.slot in (select slot from fence)),
old_account as (
    update account a set last_pos = greatest(a.last_pos, s.pos), trimmed = greatest(a.trimmed, s.trimmed)
    from stream s where a.slot = s.slot and a.usr = s.usr),
new_profile as (
    insert into profile (slot, usr, body)
    select * from unnest($110::int4[], $111::int8[], $112::bytea[]) p (slot, usr, body) where p.slot in (select slot from fence)
    on conflict (slot, usr) do update set body = excluded.body),
new_device as (
    insert into device (slot, usr, device, name, platform, acked, seen)
    select * from unnest($98::int4[], $99::int8[], $100::int8[], $101::text[], $102::int8[], $103::int8[], $104::int8[])
        d (slot, usr, device, name, platform, acked, seen)
    where d.slot in (select slot from fence)),
old_device as (
    update device d set acked = greatest(d.acked, k.acked), seen = greatest(d.seen, k.seen) from ack k
    where not k.is_gone and d.slot = k.slot and d.usr = k.usr and d.device = k.device),
gone_device as (
    delete from device d using ack k where k.is_gone and d.slot = k.slot and d.usr = k.usr and d.device = k.device),
last_gone as (
    insert into device_gone as g (slot, usr, device) select slot, usr, max(device) from ack where is_gone group by slot, usr
    on conflict (slot, usr) do update set device = greatest(g.device, excluded.device)),
trimmed as (
    delete from inbox i using (select slot, usr, max(trimmed) as trimmed from ack group by slot, usr) k
    where i.slot = k.slot and i.usr = k.usr and i.pos <= k.trimmed),
confirmed as (
    delete from outbox o using (
        select * from unnest($105::int4[], $106::int8[], $107::int8[], $108::int8[]) c (slot, conv, usr, ord)
        where slot in (select slot from fence)) c
    where o.slot = c.slot and o.conv = c.conv and o.usr = c.usr and o.ord <= c.ord),
id as (
    insert into node_id as i (number, last_id) values ($3, $109)
    on conflict (number) do update set last_id = greatest(i.last_id, excluded.last_id))
select 0::int4 as kind, f.at as n, 0::int8, 0::int8, 0::int8, 0::int8
from unnest($1::int4[]) with ordinality f (slot, at) where f.slot not in (select slot from fence)
union all
select 1, m.n - 1, k.seq, k.id, k.time_ms, k.digest
from message m join msg k on k.slot = m.slot and k.conv = m.conv and k.sender = m.sender and k.key = m.key
order by kind, n";

/// Empties messages of one group that is gone; their keys stay. Parameters: slots, epochs, node, largest number of messages. Returns the
/// number of groups that were found, 0 or 1, and the number of messages.
pub(super) const SWEEP: &str = "
with next as materialized (
    select d.slot, d.conv, d.done, d.upto from doomed d
    join unnest($1::int4[], $2::int8[]) f (slot, epoch) on d.slot = f.slot
    join owner o on o.slot = f.slot and o.epoch = f.epoch
    where o.node = $3 order by d.slot, d.conv limit 1 for share of o),
old as materialized (
    select m.slot, m.conv, m.seq from next n cross join lateral (
        select x.slot, x.conv, x.seq from msg x
        where x.slot = n.slot and x.conv = n.conv and x.seq > n.done and x.seq <= n.upto order by x.seq limit $4) m),
emptied as (
    update msg m set body = ''::bytea, counts = false from old o where m.slot = o.slot and m.conv = o.conv and m.seq = o.seq),
progress as (
    update doomed d set done = (select max(seq) from old) from next n
    where d.slot = n.slot and d.conv = n.conv and (select count(*) from old) >= $4),
finished as (
    delete from doomed d using next n where d.slot = n.slot and d.conv = n.conv and (select count(*) from old) < $4)
select (select count(*) from next), (select count(*) from old)";

/// The last message id of a node. Parameter: node.
pub(super) const LAST_ID: &str = "select coalesce(max(last_id), 0) from node_id where number = $1";

/// A user by name. Parameters: slot, uid.
pub(super) const ACCOUNT_BY_UID: &str = "
select a.usr, a.uid, a.last_pos, coalesce(r.valid_from, 0), coalesce(r.banned_until, 0)
from account a left join login_rule r on r.slot = a.slot and r.usr = a.usr where a.slot = $1 and a.uid = $2";
/// A user by number. Parameters: slot, user.
pub(super) const ACCOUNT: &str = "
select a.usr, a.uid, a.last_pos, coalesce(r.valid_from, 0), coalesce(r.banned_until, 0)
from account a left join login_rule r on r.slot = a.slot and r.usr = a.usr where a.slot = $1 and a.usr = $2";
/// Devices of a user. Parameters: slot, user.
pub(super) const DEVICES: &str =
    "select device, name, platform, acked, seen from device where slot = $1 and usr = $2 order by device";
/// Largest number of a device that is gone. Parameters: slot, user.
pub(super) const LAST_GONE: &str = "select device from device_gone where slot = $1 and usr = $2";
/// Devices of users by name. Parameters: slots, uids.
pub(super) const DEVICES_OF: &str = "
select d.device, d.name, d.platform, d.acked, d.seen, d.usr from unnest($1::int4[], $2::text[]) with ordinality w (slot, uid, n)
join account a on a.slot = w.slot and a.uid = w.uid join device d on d.slot = a.slot and d.usr = a.usr order by w.n, d.device";
/// Last order of each conversation in a user's stream. Parameters: slot, user.
pub(super) const ARRIVED: &str = "select conv, ord from arrived where slot = $1 and usr = $2 order by conv";
/// A conversation by its id. Parameters: slot, id.
pub(super) const CONVERSATION_BY_ID: &str = "
select conv, id, is_group, last_seq, last_ord, last_all, events, creator, title, notice, by_invitation, is_silent, is_dissolved,
    coalesce((select m.time_ms from msg m where m.slot = conv.slot and m.conv = conv.conv and m.seq = conv.last_seq), 0)
from conv where slot = $1 and id = $2";
/// A conversation by number. Parameters: slot, conversation.
pub(super) const CONVERSATION: &str = "
select conv, id, is_group, last_seq, last_ord, last_all, events, creator, title, notice, by_invitation, is_silent, is_dissolved,
    coalesce((select m.time_ms from msg m where m.slot = conv.slot and m.conv = conv.conv and m.seq = conv.last_seq), 0)
from conv where slot = $1 and conv = $2";
/// Members of a conversation. Parameters: slot, conversation.
pub(super) const MEMBERS: &str = "
select usr, visible_from, role, since, silent_until, read, cleared, uid, entered, relation from member where slot = $1 and conv = $2
order by usr";
/// Result of a message key. Parameters: slot, conversation, sender, key.
pub(super) const KEY: &str =
    "select seq, id, time_ms, digest from msg where slot = $1 and conv = $2 and sender = $3 and key = $4";
/// Digest of a push. Parameters: slot, user, key.
pub(super) const PUSHED: &str = "select digest from pushed where slot = $1 and usr = $2 and key = $3";
/// Entries of a stream. Parameters: slot, user, after, to, limit.
pub(super) const STREAM: &str = "
select pos, conv, seq, event, body, device from inbox where slot = $1 and usr = $2 and pos > $3 and pos <= $4
order by pos limit $5";
/// Messages by seq and events by number. Parameters: slots, conversations, seqs, numbers.
pub(super) const BODIES: &str = "
select w.conv, w.seq, w.event, coalesce(m.body, e.body)
from unnest($1::int4[], $2::int8[], $3::int8[], $4::int8[]) with ordinality w (slot, conv, seq, event, n)
left join msg m on m.slot = w.slot and m.conv = w.conv and m.seq = w.seq and octet_length(m.body) > 0
left join event e on e.slot = w.slot and e.conv = w.conv and e.number = w.event
where m.body is not null or e.body is not null order by w.n";
/// Messages of a conversation. Parameters: slot, conversation, from, to, limit.
pub(super) const PAGE: &str = "
select seq, body from msg where slot = $1 and conv = $2 and seq >= $3 and seq <= $4 and octet_length(body) > 0 order by seq limit $5";
/// Profiles by the names of their users. Parameters: slots, uids.
pub(super) const PROFILES: &str = "
select a.uid, p.body from unnest($1::int4[], $2::text[]) with ordinality w (slot, uid, n)
join account a on a.slot = w.slot and a.uid = w.uid join profile p on p.slot = a.slot and p.usr = a.usr order by w.n";
/// Position at which a membership began. Parameters: slot, user, id of the conversation.
pub(super) const LISTED_SINCE: &str = "select since from listing where slot = $1 and usr = $2 and id = $3";
/// Conversations of a user, newest membership first. Parameters: slot, user, position before which they began, limit.
pub(super) const LISTING: &str = "
select conv from listing where slot = $1 and usr = $2 and since < $3 order by since desc limit $4";
/// Conversations as a member sees them in a list. Parameters: slots, conversations, user, largest message in bytes, largest number
/// of unread messages.
pub(super) const LISTED: &str = "
select o.usr, o.visible_from, o.role, o.since, o.silent_until, o.read, o.cleared,
    p.usr, p.visible_from, p.role, p.since, p.silent_until, p.read, p.cleared,
    c.conv, c.id, c.last_seq, (select count(*) from member n where n.slot = c.slot and n.conv = c.conv), u.count, m.body,
    o.relation, coalesce(p.relation, 0)
from unnest($1::int4[], $2::int8[]) with ordinality w (slot, conv, n)
join conv c on c.slot = w.slot and c.conv = w.conv
join member o on o.slot = w.slot and o.conv = w.conv and o.usr = $3
left join member p on p.slot = w.slot and p.conv = w.conv and p.usr <> $3 and not c.is_group
left join msg m on m.slot = w.slot and m.conv = w.conv and m.seq = c.last_seq
    and m.seq >= greatest(o.visible_from, o.cleared + 1) and octet_length(m.body) between 1 and $4
cross join lateral (
    select count(*) from (
        select 1 from msg x where x.slot = w.slot and x.conv = w.conv and x.counts and x.seq > greatest(o.read, o.visible_from - 1, o.cleared)
        limit $5) x) u
order by w.n";
/// Users by name. Parameters: slots, uids.
pub(super) const CONTACTS: &str = "
select a.uid, a.usr, coalesce(s.who_may_add, 0) from unnest($1::int4[], $2::text[]) with ordinality w (slot, uid, n)
join account a on a.slot = w.slot and a.uid = w.uid left join setting s on s.slot = a.slot and s.usr = a.usr order by w.n";
/// Relations of the users of conversations of two to each other. Parameters: slots, ids.
pub(super) const PAIRS: &str = "
select w.n, m.usr, m.relation from unnest($1::int4[], $2::text[]) with ordinality w (slot, id, n)
join conv c on c.slot = w.slot and c.id = w.id join member m on m.slot = c.slot and m.conv = c.conv
where m.relation <> 0 order by w.n, m.usr";
/// Relations of a user. Parameters: slot, user.
pub(super) const RELATIONS: &str =
    "select other, uid, relation from relation where slot = $1 and usr = $2 order by other";
/// Numbers of friends and own requests, of requests of others, and of blocks. Parameters: slot, uid.
pub(super) const RELATION_COUNTS: &str = "
select a.usr, count(*) filter (where r.relation & 3 in (1, 3)), count(*) filter (where r.relation & 3 = 2),
    count(*) filter (where r.relation & 4 <> 0)
from account a left join relation r on r.slot = a.slot and r.usr = a.usr
where a.slot = $1 and a.uid = $2 group by a.usr";
/// Settings of a user. Parameters: slot, user.
pub(super) const SETTINGS: &str = "select who_may_add from setting where slot = $1 and usr = $2";
/// The list of a user's invitations, newest first. Parameters: slot, user, limit.
pub(super) const INVITATIONS: &str = "
select conv from invitation where slot = $1 and usr = $2 order by pos desc limit $3";
/// Groups to which a user is invited. Parameters: slots, groups, user.
pub(super) const INVITED_TO: &str = "
select c.conv, c.id from unnest($1::int4[], $2::int8[]) with ordinality w (slot, conv, n)
join conv c on c.slot = w.slot and c.conv = w.conv and not c.is_dissolved
join invited v on v.slot = c.slot and v.conv = c.conv and v.usr = $3 order by w.n";
/// Users who are invited to a group. Parameters: slot, group, users.
pub(super) const INVITED: &str =
    "select usr from invited where slot = $1 and conv = $2 and usr = any($3) order by usr";
