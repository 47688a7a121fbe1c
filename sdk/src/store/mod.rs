//! State that a client keeps over the end of its application: sends without a result, and the cursor of each conversation.
//!
//! A journal: one file to which each change is appended, and that is written anew when most of it is past. A record that
//! was cut off by the end of the process, at the end of the file, is dropped: nobody was told that it was taken. Damage
//! before that is an error.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod journal;

use crate::core::{ConversationCursor, Newest, Target};
use bytes::Bytes;
use journal::{Journal, Record, record};
use moorline_proto::ids::MessageKey;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Reason why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system's word.
    #[error("cannot {operation} the store {}: {cause}", path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// Another client has it open.
    #[error("the store {} is in use by another client", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a store, or parts of it were overwritten.
    #[error("the store {} is damaged at byte {at}; move it away to begin anew without what it held", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset of the damage in the file, bytes.
        at: u64,
    },
    /// The store belongs to another user or device.
    #[error("the store {} belongs to {found}, not to {wanted}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// User and device that own the store.
        found: String,
        /// User and device that asked for it.
        wanted: String,
    },
}

/// A message that had no result yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsent {
    pub(crate) key: MessageKey,
    pub(crate) target: Target,
    pub(crate) kind: u32,
    pub(crate) payload: Bytes,
}

/// A client's store in a file; give it to [`ClientBuilder::store`](crate::client::ClientBuilder::store).
///
/// What was taken by `send` survives the end of the process; with [`Self::synced`] that of the machine too, at an fsync for
/// each send. Nobody but the user may read the file (mode 0600); its folder is the application's.
#[derive(Debug)]
pub struct FileStore {
    journal: Journal,
    owner: Option<String>,
    /// By number, which rises: the order in which they were taken.
    unsent: BTreeMap<u64, Unsent>,
    last_number: u64,
    /// Cursor of the application in each conversation.
    places: BTreeMap<String, ConversationCursor>,
}

impl FileStore {
    /// Opens the store, or makes one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let (journal, records) = Journal::open(path.as_ref())?;
        let (unsent, places) = (BTreeMap::new(), BTreeMap::new());
        let mut store = Self { journal, owner: None, unsent, last_number: 0, places };
        records.into_iter().for_each(|record| store.apply(record));
        Ok(store)
    }

    /// Each send is on the disk, and not only with the system, before it counts as taken.
    #[must_use]
    pub fn synced(mut self) -> Self {
        self.journal.is_synced = true;
        self
    }

    fn apply(&mut self, record: Record) {
        match record.what {
            Some(record::What::Owner(owner)) => self.owner = Some(owner),
            Some(record::What::Unsent(record::Unsent { number, key, user, conversation, kind, payload })) => {
                let target = if user.is_empty() {
                    Target::Conversation(conversation.into())
                } else {
                    Target::user(&user)
                };
                let key = MessageKey(<[u8; 16]>::try_from(&key[..]).unwrap_or_default());
                self.last_number = self.last_number.max(number);
                self.unsent.insert(number, Unsent { key, target, kind, payload });
            }
            Some(record::What::Done(number)) => drop(self.unsent.remove(&number)),
            Some(record::What::Place(record::Place { conversation, next, start, newest, stored_ms })) => {
                self.places.insert(
                    conversation,
                    ConversationCursor { start, next, newest: Newest { place: newest, stored_ms } },
                );
            }
            None => {} // of a later version
        }
    }

    /// From now on it is this device's.
    pub(crate) fn claim(&mut self, uid: &str, device: &str) -> Result<(), StoreError> {
        let wanted = format!("{uid}:{device}");
        match &self.owner {
            Some(found) if *found != wanted => {
                let (path, found) = (self.journal.path().to_owned(), found.clone());
                Err(StoreError::Foreign { path, found, wanted })
            }
            Some(_) => Ok(()),
            None => {
                let record = Record { what: Some(record::What::Owner(wanted.clone())) };
                let path = self.journal.path().to_owned();
                let failed = |cause| StoreError::File { operation: "write", path, cause };
                self.journal.append(&record, true).map_err(failed)?;
                self.owner = Some(wanted);
                Ok(())
            }
        }
    }

    /// Sends of earlier runs, in order.
    pub(crate) fn unsent(&self) -> impl Iterator<Item = (u64, &Unsent)> {
        self.unsent.iter().map(|(number, unsent)| (*number, unsent))
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, ConversationCursor)> {
        self.places.iter().map(|(conversation, cursor)| (conversation.as_str(), *cursor))
    }

    /// A message is taken; its number here.
    pub(crate) fn put(&mut self, unsent: Unsent) -> io::Result<u64> {
        let number = self.last_number.checked_add(1);
        let number = number.ok_or_else(|| io::Error::other("the numbers of sends are used up"))?;
        self.journal.append(&unsent.record(number), true)?;
        self.last_number = number;
        self.unsent.insert(number, unsent);
        Ok(number)
    }

    /// Removes a send that has its result. If that cannot be written, the message is sent once more, and stored once.
    pub(crate) fn done(&mut self, number: u64) {
        if self.unsent.remove(&number).is_some() {
            self.note(&Record { what: Some(record::What::Done(number)) });
        }
    }

    /// The application stands there.
    pub(crate) fn place(&mut self, conversation: &str, cursor: ConversationCursor) {
        if self.places.get(conversation) != Some(&cursor) {
            self.places.insert(conversation.to_owned(), cursor);
            self.note(&place_record(conversation, cursor));
        }
    }

    fn note(&mut self, record: &Record) {
        let noted = self.journal.append(record, false).and_then(|()| self.tidy());
        if let Err(error) = noted {
            tracing::warn!(%error, path = %self.journal.path().display(), "cannot write to the store");
        }
    }

    /// Writes the file anew if most of it is past.
    fn tidy(&mut self) -> io::Result<()> {
        if !self.journal.is_mostly_past(self.unsent.len() + self.places.len()) {
            return Ok(());
        }
        let owner = self.owner.iter().map(|owner| Record { what: Some(record::What::Owner(owner.clone())) });
        let unsent = self.unsent.iter().map(|(number, unsent)| unsent.record(*number));
        let places = self.places.iter().map(|(conversation, cursor)| place_record(conversation, *cursor));
        self.journal.rewrite(owner.chain(unsent).chain(places))
    }
}

fn place_record(
    conversation: &str,
    ConversationCursor { start, next, newest }: ConversationCursor,
) -> Record {
    let (conversation, Newest { place, stored_ms }) = (conversation.to_owned(), newest);
    let place = record::Place { conversation, next, start, newest: place, stored_ms };
    Record { what: Some(record::What::Place(place)) }
}

impl Unsent {
    fn record(&self, number: u64) -> Record {
        let (user, conversation) = match &self.target {
            Target::User(uid) => (uid.to_string(), String::new()),
            Target::Conversation(id) => (String::new(), id.to_string()),
        };
        let (key, kind) = (Bytes::copy_from_slice(&self.key.0), self.kind);
        let unsent = record::Unsent { number, key, user, conversation, kind, payload: self.payload.clone() };
        Record { what: Some(record::What::Unsent(unsent)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A file of this test, gone with it.
    struct Place(PathBuf);

    impl Place {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name =
                format!("moorline-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    fn cursor(start: u64, next: u64) -> ConversationCursor {
        ConversationCursor { start, next, newest: Newest { place: 2, stored_ms: 7 } }
    }

    fn unsent(text: &str) -> Unsent {
        let (key, target) = (MessageKey([text.len().try_into().expect("short"); 16]), Target::group("tea"));
        Unsent { key, target, kind: 7, payload: Bytes::copy_from_slice(text.as_bytes()) }
    }

    fn see(store: &FileStore) -> (Vec<Unsent>, Vec<(String, ConversationCursor)>) {
        let places = store.places().map(|(conversation, cursor)| (conversation.to_owned(), cursor));
        (store.unsent().map(|(_, unsent)| unsent.clone()).collect(), places.collect())
    }

    #[test]
    fn what_was_put_is_there_in_order_until_it_is_done() {
        let place = Place::new();
        let mut store = FileStore::open(&place.0).expect("new");
        store.claim("ann", "phone").expect("nobody's");
        let first = store.put(unsent("a")).expect("written");
        store.put(unsent("bb")).expect("written");
        store.done(first);
        store.place("c2c:ann:ben", cursor(3, 8));
        store.place("c2c:ann:ben", cursor(3, 9));
        let before = see(&store);
        assert_eq!(before, (vec![unsent("bb")], vec![("c2c:ann:ben".to_owned(), cursor(3, 9))]));
        assert!(matches!(FileStore::open(&place.0), Err(StoreError::InUse { .. })));
        drop(store);
        let mut store = FileStore::open(&place.0).expect("the same");
        assert_eq!(see(&store), before);
        assert!(matches!(store.claim("ann", "pad"), Err(StoreError::Foreign { .. })));
        store.claim("ann", "phone").expect("hers");
        assert_eq!(store.put(unsent("ccc")).expect("written"), 3, "numbers go on");
    }

    #[test]
    fn a_record_that_was_cut_off_is_dropped_and_damage_is_refused() {
        let place = Place::new();
        let mut store = FileStore::open(&place.0).expect("new");
        store.claim("ann", "phone").expect("nobody's");
        for text in ["a", "bb", "ccc"] {
            store.put(unsent(text)).expect("written");
        }
        drop(store);
        let whole = std::fs::read(&place.0).expect("there");
        let mut counts = Vec::new();
        for cut in (1..whole.len()).rev() {
            std::fs::write(&place.0, &whole[..cut]).expect("ours");
            match FileStore::open(&place.0) {
                Ok(store) => counts.push(see(&store).0.len()),
                Err(error) => panic!("cut at {cut}: {error}"),
            }
        }
        assert!(
            counts.is_sorted_by(|a, b| a >= b) && counts.first() == Some(&2) && counts.last() == Some(&0)
        );
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(&place.0, damaged).expect("ours");
        assert!(matches!(FileStore::open(&place.0), Err(StoreError::Damaged { .. })));
        std::fs::write(&place.0, b"something else entirely").expect("ours");
        assert!(matches!(FileStore::open(&place.0), Err(StoreError::Damaged { at: 0, .. })));
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let place = Place::new();
        let mut store = FileStore::open(&place.0).expect("new");
        store.claim("ann", "phone").expect("nobody's");
        let kept = store.put(unsent("kept")).expect("written");
        for number in 0..20_000 {
            let id = store.put(unsent("a")).expect("written");
            store.done(id);
            store.place("c2c:ann:ben", cursor(1, number));
        }
        let before = see(&store);
        let size = std::fs::metadata(&place.0).expect("there").len();
        assert!(size < 600 << 10, "{size} bytes");
        drop(store);
        let mut store = FileStore::open(&place.0).expect("the same");
        assert_eq!(see(&store), before);
        store.done(kept);
        assert_eq!(see(&store).0, []);
    }

    #[test]
    fn a_send_behind_the_last_number_is_refused_and_does_not_become_the_first() {
        let place = Place::new();
        let mut store = FileStore::open(&place.0).expect("new");
        store.journal.append(&unsent("last").record(u64::MAX), true).expect("written");
        drop(store);
        let mut store = FileStore::open(&place.0).expect("the same");
        assert!(store.put(unsent("one more")).is_err());
        assert_eq!(see(&store).0, [unsent("last")]);
    }

    #[test]
    fn a_store_is_tidied_whatever_it_is_called() {
        let mut place = Place::new();
        place.0.set_extension("new");
        let mut store = FileStore::open(&place.0).expect("new");
        store.claim("ann", "phone").expect("nobody's");
        store.put(unsent("kept")).expect("written");
        for _ in 0..20_000 {
            let id = store.put(unsent("a")).expect("written");
            store.done(id);
        }
        drop(store);
        let store = FileStore::open(&place.0).expect("the same");
        assert_eq!(see(&store).0, [unsent("kept")]);
    }

    #[test]
    fn nobody_but_the_user_may_read_the_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = Place::new();
        let mode = || std::fs::metadata(&place.0).expect("there").permissions().mode() & 0o777;
        drop(FileStore::open(&place.0).expect("new"));
        assert_eq!(mode(), 0o600);
        // A file of an earlier version, and one that is written anew.
        std::fs::set_permissions(&place.0, std::fs::Permissions::from_mode(0o644)).expect("ours");
        let mut store = FileStore::open(&place.0).expect("the same");
        assert_eq!(mode(), 0o600);
        for _ in 0..20_000 {
            let id = store.put(unsent("a")).expect("written");
            store.done(id);
        }
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let place = Place::new();
        let mut store = FileStore::open(&place.0).expect("new");
        let large = Unsent { payload: vec![0; 5 << 20].into(), ..unsent("large") };
        assert_eq!(store.put(large).map_err(|error| error.kind()), Err(io::ErrorKind::FileTooLarge));
        store.put(unsent("small")).expect("written");
        drop(store);
        assert_eq!(see(&FileStore::open(&place.0).expect("whole")).0, [unsent("small")]);
    }
}
