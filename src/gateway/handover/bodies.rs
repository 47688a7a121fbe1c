//! The file of queued bodies that the new process reads while the old one still serves ([`StoredBodies`]).

use super::previous::named_by;
use crate::snapshot::{StoredBodies, read_stored};
use crate::sys::{memory, sockets};
use bytes::Bytes;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

/// Environment variable with the process that gives the file, and the file's descriptor.
pub(super) const BODIES: &str = "MOORLINE_HANDOVER_BODIES";
/// Bytes written at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Returns the value of [`BODIES`] for a child.
pub(super) fn name(file: &File) -> String {
    format!("{} {}", nix::unistd::getpid(), file.as_raw_fd())
}

/// Writes the file.
///
/// # Errors
/// The system has no memory.
pub(super) fn write(stored: &StoredBodies) -> io::Result<File> {
    let file = memory::file("moorline-bodies")?;
    let mut out = BufWriter::with_capacity(CHUNK_BYTES, &file);
    for body in stored.bodies() {
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        out.write_all(&length.to_be_bytes())?;
        out.write_all(body)?;
    }
    out.flush()?;
    drop(out);
    memory::write_sealed(&file, &[])?;
    Ok(file)
}

/// Takes the inherited file; `None`: there is none, or the variable is not from `old`, the process before this one.
pub(super) fn take(inherited: &mut HashSet<RawFd>, old: i32) -> Option<File> {
    let value = std::env::var(BODIES).ok()?;
    let (fd, _) = named_by(old, &value)?;
    let is_ours = inherited.remove(&fd);
    is_ours.then(|| sockets::take(fd).ok().map(File::from))?
}

/// Reads the file.
///
/// # Errors
/// The file is not whole, or the system has no memory.
pub(super) fn read(file: Option<&File>) -> io::Result<Arc<[Bytes]>> {
    let Some(file) = file else { return Ok(Arc::default()) };
    let mapping = memory::map_sealed(file)?;
    let bodies = read_stored(mapping.as_ref()).ok_or_else(|| io::Error::other("the file is cut off"))?;
    Ok(bodies.into())
}
