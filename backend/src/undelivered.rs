//! Deliveries that were given up: files in the folder `undelivered`, which together stay below a limit.
//!
//! The endpoint of `desk` is gone for good. Each delivery that is given up is one line of `desk.jsonl`; a file that has become
//! large is closed under the name `desk:1700000000000.jsonl`, and a new one begins. When all files together would exceed
//! `im.undelivered_max` bytes or `im.undelivered_files_max` files, the one that was written to longest ago is removed.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Folder of deliveries that were given up, in `im.folder`.
const FOLDER: &str = "undelivered";
/// Extension of its files.
const EXTENSION: &str = "jsonl";
/// Parts of the limit that one file may have before it is closed: what is removed is about that much.
const PARTS: u64 = 8;
/// Percent of a limit from which the log names it, and below which it counts as usual again.
const NEAR_PERCENT: u64 = 80;
const USUAL_PERCENT: u64 = 75;

/// Figures of the folder.
#[derive(Debug, Default)]
pub(crate) struct UndeliveredFigures {
    /// Bytes of all files.
    pub(crate) bytes: AtomicU64,
    /// Number of files.
    pub(crate) files: AtomicU64,
    /// Files that were removed for newer ones, since the start.
    pub(crate) removed: AtomicU64,
}

/// Limits of the folder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UndeliveredLimits {
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Number of files.
    pub(crate) files: usize,
}

/// The folder, for the threads of all services.
#[derive(Clone, Debug)]
pub(crate) struct Undelivered {
    folder: Arc<Mutex<Folder>>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    limits: UndeliveredLimits,
    figures: Arc<UndeliveredFigures>,
    is_near: bool,
}

/// One file of the folder.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
}

impl Undelivered {
    /// The folder in `im_folder`, which is made when the first delivery is given up.
    pub(crate) fn new(
        im_folder: &Path,
        limits: UndeliveredLimits,
        figures: &Arc<UndeliveredFigures>,
    ) -> Self {
        let path = im_folder.join(FOLDER);
        let folder = Folder { path, limits, figures: Arc::clone(figures), is_near: false };
        if let Ok(parts) = folder.parts() {
            folder.note(&parts);
        }
        Self { folder: Arc::new(Mutex::new(folder)) }
    }

    /// Appends a line to the file of a service, and returns the path of the file. `now_ms` names a file that is closed.
    ///
    /// # Errors
    /// The system's: nothing was written, or the disk may not have it.
    pub(crate) fn append(&self, service: &str, now_ms: u64, body: &str) -> io::Result<PathBuf> {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner).append(service, now_ms, body)
    }
}

impl Folder {
    fn append(&mut self, service: &str, now_ms: u64, body: &str) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.path)?;
        let path = self.path.join(format!("{service}.{EXTENSION}"));
        let wanted = body.len() as u64 + 1;
        let mut parts = self.parts()?;
        if let Some(part) = parts.iter_mut().find(|part| part.path == path)
            && part.bytes > 0
            && part.bytes + wanted > self.limits.bytes / PARTS
        {
            // No user has a colon in the name. The clock may have gone back.
            let name = |number: u64| self.path.join(format!("{service}:{number}.{EXTENSION}"));
            let numbers = now_ms..now_ms.saturating_add(self.limits.files as u64 + 1);
            let closed = numbers.map(name).find(|closed| !closed.exists()).unwrap_or_else(|| name(now_ms));
            fs::rename(&path, &closed)?;
            part.path = closed;
        }
        self.make_room(&mut parts, &path, wanted);
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        writeln!(file, "{body}")?;
        file.sync_data()?;
        let parts = self.parts()?;
        self.note(&parts);
        self.log(&parts);
        Ok(path)
    }

    /// Removes the files that were written to longest ago, until there is room for one more line in `path`.
    fn make_room(&self, parts: &mut Vec<Part>, path: &Path, wanted: u64) {
        parts.sort_unstable_by(|a, b| (b.written, &b.path).cmp(&(a.written, &a.path)));
        loop {
            let bytes = parts.iter().map(|part| part.bytes).sum::<u64>();
            let files = parts.len() + usize::from(parts.iter().all(|part| part.path != path));
            if bytes.saturating_add(wanted) <= self.limits.bytes && files <= self.limits.files {
                return;
            }
            let Some(Part { path: oldest, bytes, .. }) = parts.pop() else { return };
            match fs::remove_file(&oldest) {
                Ok(()) => {
                    self.figures.removed.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        path = %oldest.display(),
                        bytes,
                        "deliveries that were given up are removed for newer ones; see `im.undelivered_max`"
                    );
                }
                Err(error) => {
                    tracing::error!(path = %oldest.display(), %error, "cannot remove what was given up");
                }
            }
        }
    }

    fn parts(&self) -> io::Result<Vec<Part>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut parts = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let is_part = path.extension().is_some_and(|extension| extension == EXTENSION);
            match fs::symlink_metadata(&path) {
                Ok(found) if is_part && found.is_file() => {
                    let written = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    parts.push(Part { path, bytes: found.len(), written });
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {} // somebody has taken it away
                Err(error) => return Err(error),
            }
        }
        Ok(parts)
    }

    fn note(&self, parts: &[Part]) {
        let bytes = parts.iter().map(|part| part.bytes).sum();
        self.figures.bytes.store(bytes, Ordering::Relaxed);
        self.figures.files.store(parts.len() as u64, Ordering::Relaxed);
    }

    /// Logs once that a limit is near, until it is usual again.
    fn log(&mut self, parts: &[Part]) {
        let bytes = parts.iter().map(|part| part.bytes).sum::<u64>();
        let of = |used: u64, max: u64| used.saturating_mul(100) / max.max(1);
        let percent = of(bytes, self.limits.bytes).max(of(parts.len() as u64, self.limits.files as u64));
        if !self.is_near && percent >= NEAR_PERCENT {
            self.is_near = true;
            let (max, files) = (self.limits.bytes, parts.len());
            tracing::warn!(
                bytes,
                max,
                files,
                "deliveries that were given up have reached 80% of `im.undelivered_max` or \
                 `im.undelivered_files_max`; send them and remove the files, or the oldest go"
            );
        } else if percent < USUAL_PERCENT {
            self.is_near = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("moorline-undelivered-{name}-{}", std::process::id()));
            fs::remove_dir_all(&path).ok();
            fs::create_dir(&path).expect("made");
            Self(path)
        }

        fn texts(&self) -> Vec<(String, String)> {
            let all = fs::read_dir(self.0.join(FOLDER)).expect("made");
            let mut texts: Vec<_> = all
                .map(|entry| {
                    let path = entry.expect("there").path();
                    let text = fs::read_to_string(&path).expect("text");
                    (path.file_name().expect("a name").to_string_lossy().into_owned(), text)
                })
                .collect();
            texts.sort();
            texts
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn open(place: &Place, bytes: u64, files: usize) -> (Undelivered, Arc<UndeliveredFigures>) {
        let figures = Arc::default();
        (Undelivered::new(&place.0, UndeliveredLimits { bytes, files }, &figures), figures)
    }

    /// Makes a file older, as time does.
    fn age(place: &Place, name: &str, secs: u64) {
        let file = OpenOptions::new().append(true).open(place.0.join(FOLDER).join(name)).expect("there");
        file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 - secs))
            .expect("ours");
    }

    #[test]
    fn the_files_that_were_written_longest_ago_make_room_for_newer_deliveries() {
        let place = Place::new("bytes");
        let (undelivered, figures) = open(&place, 80, 100);
        let body = "x".repeat(9); // and the end of the line: an eighth of the limit
        for now_ms in 1..=8 {
            undelivered.append("desk", now_ms, &body).expect("written");
            for closed in 2..now_ms {
                age(&place, &format!("desk:{closed}.jsonl"), 100 - closed);
            }
        }
        let names = || place.texts().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names().len(), 8);
        age(&place, "desk:2.jsonl", 1000);
        undelivered.append("shop", 9, &body).expect("written");
        assert!(!names().contains(&"desk:2.jsonl".to_owned()), "{:?}", names());
        assert_eq!(names().len(), 8);
        let figure = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        assert_eq!((figure(&figures.bytes), figure(&figures.files), figure(&figures.removed)), (80, 8, 1));
        let (_, again) = open(&place, 80, 100);
        assert_eq!(figure(&again.bytes), 80, "what an earlier process left counts");
    }

    #[test]
    fn the_number_of_files_is_limited_too_and_other_files_stay() {
        let place = Place::new("files");
        let (undelivered, figures) = open(&place, 1 << 20, 2);
        fs::create_dir(place.0.join(FOLDER)).expect("made");
        fs::write(place.0.join(FOLDER).join("README"), "of the operator").expect("written");
        for (service, secs) in [("a", 30), ("b", 20), ("c", 10)] {
            undelivered.append(service, 1, "{}").expect("written");
            age(&place, &format!("{service}.jsonl"), secs);
        }
        let names: Vec<_> = place.texts().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["README", "b.jsonl", "c.jsonl"]);
        assert_eq!(figures.removed.load(Ordering::Relaxed), 1);
        undelivered.append("c", 2, "{\"again\": 1}").expect("written");
        assert_eq!(place.texts()[2].1, "{}\n{\"again\": 1}\n", "lines of one file stay in their order");
    }

    #[test]
    fn a_line_above_the_whole_limit_takes_the_place_of_everything() {
        let place = Place::new("large");
        let (undelivered, _) = open(&place, 16, 10);
        undelivered.append("a", 1, "{}").expect("written");
        undelivered.append("b", 2, &"y".repeat(100)).expect("written");
        let names: Vec<_> = place.texts().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["b.jsonl"], "one delivery is always kept");
    }
}
