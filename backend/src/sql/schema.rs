//! Tables of a cell, and their versions.
//!
//! Each key begins with a slot. A tenant has room in front of a name: uids and ids of conversations are text. Names of the
//! standard that differ between PostgreSQL and its kin are avoided: no sequences, LISTEN, advisory locks, unlogged tables, or
//! foreign keys (a slot's rows are written by its owner alone).

/// Version of the tables that this build writes.
pub(super) const VERSION: i32 = 7;

/// Steps from each version to the next: step `n` makes version `n + 1`. A step only adds; a node of the version before goes on
/// with the new tables.
pub(super) const STEPS: &[&str] = &[STEP_1, STEP_2, STEP_3, STEP_4, STEP_5, STEP_6, STEP_7];

const STEP_1: &str = "
create table moorline_cell (
    only_row bool primary key check (only_row),
    cluster text not null,
    cell int4 not null,
    cells int4 not null,
    version int4 not null);
create table node (
    number int4 primary key,
    life int8 not null,
    address text not null,
    is_stopping bool not null,
    until timestamptz not null);
create table node_id (
    number int4 primary key,
    last_id int8 not null);
create table owner (
    slot int4 primary key,
    node int4,
    epoch int8 not null default 0) with (fillfactor = 50);
create table account (
    slot int4, usr int8,
    uid text collate \"C\" not null,
    last_pos int8 not null,
    trimmed int8 not null,
    primary key (slot, usr),
    unique (slot, uid)) with (fillfactor = 80);
create table device (
    slot int4, usr int8, device int8,
    name text collate \"C\" not null,
    platform int8 not null,
    acked int8 not null,
    primary key (slot, usr, device)) with (fillfactor = 80);
create table profile (
    slot int4, usr int8,
    body bytea not null,
    primary key (slot, usr));
create table conv (
    slot int4, conv int8,
    id text collate \"C\" not null,
    is_group bool not null,
    last_seq int8 not null,
    last_ord int8 not null,
    last_all int8 not null,
    events int8 not null,
    creator int8,
    title text not null,
    notice text not null,
    by_invitation bool not null,
    is_silent bool not null,
    is_dissolved bool not null,
    primary key (slot, conv),
    unique (slot, id)) with (fillfactor = 80);
create table member (
    slot int4, conv int8, usr int8,
    uid text collate \"C\" not null,
    visible_from int8 not null,
    role int4 not null,
    since int8 not null,
    silent_until int8 not null,
    read int8 not null,
    cleared int8 not null,
    entered int8 not null,
    primary key (slot, conv, usr)) with (fillfactor = 80);
create table event (
    slot int4, conv int8, number int8,
    is_settings bool not null,
    body bytea not null,
    primary key (slot, conv, number));
create table msg (
    slot int4, conv int8, seq int8,
    sender int8 not null,
    device int8 not null,
    key bytea not null,
    id int8 not null,
    time_ms int8 not null,
    digest int8 not null,
    counts bool not null,
    body bytea not null,
    primary key (slot, conv, seq),
    unique (slot, conv, sender, key));
create table inbox (
    slot int4, usr int8, pos int8,
    conv int8 not null,
    seq int8,
    event int8,
    body bytea,
    device int8,
    primary key (slot, usr, pos));
create table arrived (
    slot int4, usr int8, conv int8,
    ord int8 not null,
    primary key (slot, usr, conv)) with (fillfactor = 80);
create table listing (
    slot int4, usr int8, conv int8,
    id text collate \"C\" not null,
    since int8 not null,
    primary key (slot, usr, conv));
create table outbox (
    slot int4, conv int8, usr int8, ord int8,
    after int8 not null,
    seq int8,
    event int8,
    body bytea,
    sender int8,
    device int8,
    passage int4 not null,
    primary key (slot, conv, usr, ord));
";

/// Relations: of the two users of a conversation, beside their memberships, and in the lists of both.
const STEP_2: &str = "
alter table member add column relation int4 not null default 0;
alter table outbox add column other int8, add column relation int4;
create table relation (
    slot int4, usr int8, other int8,
    uid text collate \"C\" not null,
    relation int4 not null,
    primary key (slot, usr, other)) with (fillfactor = 80);
";

/// Settings of users; invitations, of the group and in the lists of users.
const STEP_3: &str = "
create table setting (
    slot int4, usr int8,
    who_may_add int4 not null,
    primary key (slot, usr));
create table invited (
    slot int4, conv int8, usr int8,
    primary key (slot, conv, usr));
create table invitation (
    slot int4, usr int8, conv int8,
    pos int8 not null,
    primary key (slot, usr, conv));
";

/// Times of devices, and numbers that are not given again.
const STEP_4: &str = "
alter table device add column seen int8 not null default 0;
create table device_gone (
    slot int4, usr int8,
    device int8 not null,
    primary key (slot, usr));
";

/// Rules for logins of users.
const STEP_5: &str = "
create table login_rule (
    slot int4, usr int8,
    valid_from int8 not null,
    banned_until int8 not null,
    primary key (slot, usr)) with (fillfactor = 80);
";

/// Keys of pushes into inboxes.
const STEP_6: &str = "
create table pushed (
    slot int4, usr int8, key bytea,
    digest int8 not null,
    pos int8 not null,
    primary key (slot, usr, key));
";

/// Messages of groups that are gone: up to which seq they are to be emptied, and up to which they are.
const STEP_7: &str = "
create table doomed (
    slot int4, conv int8,
    done int8 not null,
    upto int8 not null,
    primary key (slot, conv)) with (fillfactor = 50);
insert into doomed (slot, conv, done, upto) select slot, conv, 0, last_seq from conv where is_dissolved and last_seq > 0;
";
