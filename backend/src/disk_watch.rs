//! Looks at the free disk of `im.folder` once a second, on a thread of its own: a network file system may not answer for long.

use crate::im::BackendMessage;
use crate::server::{Remote, RemoteError};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// The thread. Dropping it ends it after its present look.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DiskWatch {
    /// Starts the thread, which gives the free bytes of the disk of `folder` to the backend's loop.
    pub(crate) fn start(folder: &Path, remote: Remote<BackendMessage>) -> std::io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let folder = folder.to_owned();
        let run = move || {
            loop {
                // A full mailbox: the next look is given a second later.
                if let Err(RemoteError::Gone(_)) = remote.try_send(BackendMessage::FreeDisk(free(&folder))) {
                    return;
                }
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("disk-watch".into()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        self.stop = None;
        // A thread that hangs in a dead file system is left behind, and ends with the process.
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            thread.join().ok();
        }
    }
}

/// Bytes that this process may still write to the disk of `folder`. `None`: the system does not say.
fn free(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_bytes_of_a_disk_are_read_and_those_of_no_folder_are_not() {
        assert!(free(&std::env::temp_dir()).is_some_and(|free| free > 0));
        assert_eq!(free(Path::new("/no/such/folder")), None);
    }
}
