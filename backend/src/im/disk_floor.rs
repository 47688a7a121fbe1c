//! A floor of free disk: below it only small writes pass, so that a disk that fills up takes nothing with it.
//!
//! The disk of `im.folder` has 200 MiB left, and `im.disk_floor` is 256 MiB: a SEND with a picture of 40 KiB is answered RETRY
//! before anything is done for it. Acks, read marks, recalls, deletions and messages of at most [`SMALL_BYTES`] pass, so people
//! still talk, and what frees room is not kept out. The floor ends when there is a tenth more than the floor again.

use super::api::{ApiCall, PushTo};
use super::request::Request;
use super::tasks::Task;

/// Largest payload of a message that passes below the floor, in bytes.
pub(super) const SMALL_BYTES: usize = 4 << 10;
/// Inboxes of one push of the server API that pass below the floor.
const SMALL_INBOXES: usize = 100;
/// Wait that a client is told below the floor, in milliseconds.
pub(super) const RETRY_MS: u32 = 5_000;
/// Reason that a client is told below the floor.
pub(super) const REASON: &str =
    "the disk of the backend is nearly full (`im.disk_floor`): only small writes pass; try again later";

/// The floor, and what is known of the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskFloor {
    /// Bytes; 0: there is no floor.
    floor: u64,
    status: DiskStatus,
}

/// Figures of the disk of `im.folder`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStatus {
    /// Free bytes as last read; `None`: not read, or not readable.
    pub free: Option<u64>,
    /// True while only small writes pass.
    pub is_low: bool,
    /// Messages and requests that were answered RETRY because of it, since the start.
    pub put_off: u64,
}

impl DiskFloor {
    pub(super) fn new(floor: usize) -> Self {
        Self { floor: floor as u64, status: DiskStatus::default() }
    }

    /// Takes the free bytes of the disk; `None`: they cannot be read, and nothing is known of the disk.
    pub(super) fn on_free(&mut self, free: Option<u64>) {
        self.status.free = free;
        let (floor, was_low) = (self.floor, self.status.is_low);
        let Some(free) = free.filter(|_| floor > 0) else { return };
        let enough = if was_low { floor.saturating_add(floor / 10) } else { floor };
        self.status.is_low = free < enough;
        match (was_low, self.status.is_low) {
            (false, true) => tracing::error!(
                free,
                floor,
                "the disk of im.folder is below `im.disk_floor`: only small writes pass until there is room"
            ),
            (true, false) => {
                tracing::info!(free, floor, "the disk of im.folder has room again: all writes pass");
            }
            _ => {}
        }
    }

    /// Judges a task before anything is done for it. False: it has to wait for room.
    pub(super) fn admit(&mut self, task: &Task) -> bool {
        let is_admitted = !self.status.is_low || is_small(task);
        self.status.put_off += u64::from(!is_admitted);
        is_admitted
    }

    pub(super) const fn status(&self) -> DiskStatus {
        self.status
    }
}

/// True if a task stores little, or frees room.
fn is_small(task: &Task) -> bool {
    match task {
        Task::Send(_, send, _) | Task::LateSend(_, send, _) => send.payload.len() <= SMALL_BYTES,
        Task::Request(_, request, _) => match request {
            Request::Create(_) | Request::SetProfile(_) => false,
            Request::Change(request) => request.add.is_empty() && request.settings.is_none(),
            _ => true,
        },
        Task::Api(_, ApiCall::Push { to: PushTo::Inboxes(users, _), payload, .. }, _) => {
            users.len() <= SMALL_INBOXES && payload.len() <= SMALL_BYTES
        }
        Task::Admitted(task) => is_small(task),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_begins_below_it_and_ends_a_tenth_above() {
        let mut floor = DiskFloor::new(1000);
        let mut low = |free| {
            floor.on_free(free);
            floor.status().is_low
        };
        let seen =
            [Some(1001), Some(1000), Some(999), Some(1099), None, Some(1100), Some(1000)].map(&mut low);
        assert_eq!(seen, [false, false, true, true, true, false, false]);
    }

    #[test]
    fn without_a_floor_nothing_is_low() {
        let mut floor = DiskFloor::new(0);
        floor.on_free(Some(0));
        assert_eq!(floor.status(), DiskStatus { free: Some(0), is_low: false, put_off: 0 });
    }
}
