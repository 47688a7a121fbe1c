//! Memory that two processes share: a sealed file for a snapshot, and an atomic word.

#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use std::fs::File;
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Size of the page of a [`SharedWord`], in bytes.
const PAGE_BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Asks the allocator to give memory that is free back to the system; it keeps that otherwise. Takes about a millisecond
/// for 100 MiB. Does nothing with an allocator that has no such call.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and only releases memory that nobody uses.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Makes an empty file in memory. `name`: for `/proc`.
///
/// # Errors
/// The system has no memory or no descriptor.
pub fn file(name: &str) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Never a program; systems before Linux 6.3 do not know the flag.
    let sealed = memfd_create(name, flags | MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL));
    Ok(sealed.or_else(|_| memfd_create(name, flags))?.into())
}

/// Writes the parts one after the other, seals the file against every change, and returns its length in bytes.
///
/// # Errors
/// The system has no memory.
pub fn write_sealed(mut file: &File, parts: &[Vec<u8>]) -> io::Result<u64> {
    let mut length = 0;
    for part in parts {
        file.write_all(part)?;
        length += part.len() as u64;
    }
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(length)
}

/// Maps a file that [`write_sealed`] wrote, without a copy.
///
/// # Errors
/// The file is not sealed, so it could change under its reader; or the system has no memory.
pub fn map_sealed(file: &impl AsFd) -> io::Result<Mapping> {
    let seals = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK) {
        return Err(io::Error::other("the file is not sealed"));
    }
    let length = usize::try_from(nix::sys::stat::fstat(file)?.st_size).unwrap_or(0);
    let Some(size) = NonZeroUsize::new(length) else {
        return Ok(Mapping { address: NonNull::dangling(), length });
    };
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
    // SAFETY: a new mapping at an address of the system's choice, of a file that is sealed against changes.
    let address = unsafe { mmap(None, size, ProtFlags::PROT_READ, flags, file, 0)? };
    // SAFETY: the mapping of the line before. It may hold keys, and a core file shall not; a system that does not know the
    // advice keeps them by RLIMIT_CORE.
    unsafe { madvise(address, size.get(), MmapAdvise::MADV_DONTDUMP).ok() };
    Ok(Mapping { address, length })
}

/// Mapped bytes of a file in memory.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<std::ffi::c_void>,
    length: usize,
}

// SAFETY: the mapping is only read.
unsafe impl Send for Mapping {}
// SAFETY: the mapping is only read.
unsafe impl Sync for Mapping {}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: mapped by `map_sealed` for the life of `self`; without a byte the address is dangling, and not read.
        unsafe { std::slice::from_raw_parts(self.address.cast::<u8>().as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped by `map_sealed`, and nothing borrows from it.
            unsafe { munmap(self.address, self.length).ok() };
        }
    }
}

/// Atomic number in a page that two processes share.
#[derive(Debug)]
pub struct SharedWord {
    page: NonNull<std::ffi::c_void>,
}

// SAFETY: the page is only used as an atomic.
unsafe impl Send for SharedWord {}
// SAFETY: the page is only used as an atomic.
unsafe impl Sync for SharedWord {}

impl SharedWord {
    /// Makes a word with the value 0, and the file that the other process maps.
    ///
    /// # Errors
    /// The system has no memory or no descriptor.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let file = file("moorline-commit")?;
        file.set_len(PAGE_BYTES.get() as u64)?;
        Ok((Self::map(&file)?, file.into()))
    }

    /// Maps the word in a file that another process made.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn map(file: &impl AsFd) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the system's choice; both sides made the file a page long.
        let page = unsafe { mmap(None, PAGE_BYTES, protection, MapFlags::MAP_SHARED, file, 0)? };
        Ok(Self { page })
    }

    /// Changes the word from `from` to `to`; false: the word has another value.
    pub fn swap(&self, from: u32, to: u32) -> bool {
        self.word().compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Returns the value.
    pub fn get(&self) -> u32 {
        self.word().load(Ordering::SeqCst)
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is an aligned page, which lives as long as `self`.
        unsafe { self.page.cast::<AtomicU32>().as_ref() }
    }
}

impl Drop for SharedWord {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nothing borrows from it.
        unsafe { munmap(self.page, PAGE_BYTES.get()).ok() };
    }
}
