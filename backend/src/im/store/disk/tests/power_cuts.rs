//! Leftovers of a power cut, a kill and a bad disk in the journal: an incomplete end is cut off, damage is refused by name.

use super::*;
use crate::im::store::disk::journal;
use moorline_proto::random::Random;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// A stopped store, and what its files were after each of its last commits.
struct Scene {
    folder: Folder,
    /// Journal and mark after each commit, and the end of the commit in the journal.
    moments: Vec<Moment>,
}

struct Moment {
    journal: Vec<u8>,
    mark: Vec<u8>,
    end: usize,
    commits: u64,
}

impl Scene {
    fn new() -> Self {
        let folder = Folder::new();
        let mut store = folder.open().expect("a new store");
        let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
        let mut random = Random::new(7);
        let mut moments = Vec::new();
        for key in 0..12u8 {
            // Some batches have several pages; nothing in them can be packed.
            let size = if key % 3 == 2 { 2 * PAGE } else { 200 };
            let noise = std::iter::repeat_with(|| random.next_u64().to_ne_bytes()).take(size / 8);
            let body = BytesMut::from(&noise.flatten().collect::<Vec<u8>>()[..]);
            let (target, device, id) = (Target::User(ben), DeviceNumber(0), u64::from(key) + 1);
            let key = MessageKey([key; 16]);
            committed(
                &mut store,
                vec![Write::Append(Draft {
                    is_repeat: false,
                    sender: ann,
                    device,
                    target,
                    key,
                    id,
                    time_ms: 1,
                    digest: 0,
                    body,
                })],
            );
            moments.push(folder.moment());
        }
        drop(store);
        std::fs::write(folder.journal(), []).expect("ours");
        Self { folder, moments }
    }

    /// Puts files as a power cut may leave them: the journal of one moment with damage, the mark of another.
    fn put(&self, journal: &[u8], mark: &[u8]) -> Folder {
        let copy = Folder::new();
        super::copy(&self.folder.0, &copy.0);
        std::fs::write(copy.journal(), journal).expect("ours");
        std::fs::write(copy.0.join(SIDE_FILE), mark).expect("ours");
        copy
    }
}

impl Folder {
    fn journal(&self) -> PathBuf {
        self.0.join(DATABASE).join("0.jnl")
    }

    fn moment(&self) -> Moment {
        let mut journal = std::fs::read(self.journal()).expect("a journal");
        let mark = std::fs::read(self.0.join(SIDE_FILE)).expect("a mark");
        let noted = mark::Noted::read(&self.0.join(SIDE_FILE)).expect("a mark");
        let mark::Mark { commits, end, .. } = *noted.mark().expect("a mark");
        let end = usize::try_from(end.expect("its place").offset).expect("small");
        journal.truncate(end + PAGE); // the room that the engine made in advance costs time only
        Moment { journal, mark, end, commits }
    }

    fn messages(&self) -> Result<u64, DiskError> {
        let mut store = self.open()?;
        let pair = store.find("c2c:ann:ben").expect("they spoke");
        let (last, ben) = (store.latest(pair), store.find_user("ben").expect("a user"));
        let wide = PageLimits { messages: 100, bytes: 1 << 20 };
        let page = store.read_range(pair, ben, (1, u64::MAX), wide).expect("a member");
        assert_eq!((page.messages.len() as u64, page.voids.len()), (last, 0), "all of them");
        Ok(last)
    }
}

/// Every sector, every page and some bits of these bytes of a journal, damaged one after the other.
fn damages(whole: &[u8], bytes: Range<usize>) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for unit in [SECTOR, PAGE] {
        for first in (bytes.start / unit * unit..bytes.end).step_by(unit) {
            let lost = first.max(bytes.start)..(first + unit).min(bytes.end);
            let mut damaged = whole.to_vec();
            damaged[lost.clone()].fill(0);
            all.push((format!("bytes {lost:?} are missing"), damaged));
        }
    }
    let mut random = Random::new(1);
    for _ in 0..12 {
        let at = bytes.start + usize::try_from(random.below(bytes.len() as u64)).expect("small");
        let mut damaged = whole.to_vec();
        damaged[at] ^= 1 << random.below(8);
        all.push((format!("a bit of byte {at} is wrong"), damaged));
    }
    for end in [bytes.start + 1, bytes.start + bytes.len() / 2, bytes.end - 1] {
        let mut damaged = whole.to_vec();
        damaged[end..bytes.end].fill(0);
        all.push((format!("it ends at byte {end}"), damaged.clone()));
        damaged.truncate(end);
        all.push((format!("it is cut off at byte {end}"), damaged));
    }
    all
}

/// The last commit was not acknowledged: its mark was not written. Whatever of it is on the disk, the store opens.
#[test]
fn an_unacknowledged_commit_with_a_hole_is_cut_off() {
    let scene = Scene::new();
    // A small batch and one of several pages; the mark is the one before it, or still the one before that.
    for last in [10, 11] {
        let [earlier, before, now] = [last - 2, last - 1, last].map(|at| &scene.moments[at]);
        for (damage, journal) in damages(&now.journal, before.end..now.end) {
            for mark in [&before.mark, &earlier.mark] {
                let folder = scene.put(&journal, mark);
                let found = folder.messages().unwrap_or_else(|error| panic!("{damage}: {error}"));
                // A bit of the batch's own number is not under its checksum: then all of it is there.
                assert!(found == last as u64 || damage.contains("bit"), "{damage}: {found} messages");
                drop(folder);
            }
        }
    }
}

/// The mark says that all of it was synced: nothing of it may be missing, wherever.
#[test]
fn damage_in_what_was_acknowledged_is_refused_by_the_name_of_the_file() {
    let scene = Scene::new();
    let [first, before, now] = [1, 10, 11].map(|at| &scene.moments[at]);
    for bytes in [before.end..now.end, first.end..scene.moments[2].end] {
        for (damage, journal) in damages(&now.journal, bytes) {
            let folder = scene.put(&journal, &now.mark);
            let refused = match folder.open() {
                Err(refused) => refused.to_string(),
                Ok(_) => panic!("{damage}: it opens"),
            };
            let name = folder.journal().display().to_string();
            assert!(refused.contains(&name) && refused.contains("damaged at byte"), "{damage}: {refused}");
            // The way out that the error names.
            std::fs::remove_file(folder.0.join(SIDE_FILE)).expect("ours");
            let mut store =
                folder.open().unwrap_or_else(|error| panic!("{damage}: it does not go on: {error}"));
            let [ann, ben] = ["ann", "ben"].map(|uid| store.find_user(uid).expect("a user"));
            let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 99, 99)]).pop());
            assert!(next.seq > 12, "{damage}: seq {} was given before", next.seq);
        }
    }
}

/// After a power cut the mark may be some commits old. A whole commit behind a damaged one shows that the damaged one was
/// acknowledged.
#[test]
fn damage_before_a_whole_commit_is_refused_with_an_old_mark_too() {
    let scene = Scene::new();
    let [earlier, before, now] = [9, 10, 11].map(|at| &scene.moments[at]);
    for (damage, journal) in damages(&now.journal, earlier.end..before.end) {
        if damage.contains("cut off") {
            continue; // then nothing is behind it
        }
        let folder = scene.put(&journal, &earlier.mark);
        match folder.open() {
            Err(DiskError::Altered { path, .. }) => assert_eq!(path, folder.journal(), "{damage}"),
            other => panic!("{damage}: {:?}", other.map(drop)),
        }
    }
}

#[test]
fn a_journal_that_is_shorter_than_its_mark_or_gone_is_refused() {
    let scene = Scene::new();
    let [before, now] = [10, 11].map(|at| &scene.moments[at]);
    for journal in [&before.journal[..], &before.journal[..before.end], &[]] {
        let folder = scene.put(journal, &now.mark);
        let refused = folder.open().map(drop).expect_err("commits are missing");
        assert!(matches!(refused, DiskError::Lost { known, .. } if known == now.commits), "{refused}");
    }
    let folder = scene.put(&before.journal[..before.end - 1], &now.mark);
    assert!(matches!(folder.open(), Err(DiskError::Altered { .. })), "a part of a commit is left");
    let folder = scene.put(&[], &now.mark);
    std::fs::remove_file(folder.journal()).expect("ours");
    let refused = folder.open().map(drop).expect_err("it is gone").to_string();
    assert!(refused.contains("0.jnl: it is gone"), "{refused}");
}

/// A mark is never behind what was acknowledged, and never before the disk has it.
#[test]
fn every_commit_is_marked_with_its_place() {
    let scene = Scene::new();
    let ends: Vec<(u64, usize)> = scene.moments.iter().map(|moment| (moment.commits, moment.end)).collect();
    assert!(ends.is_sorted_by(|one, next| one.0 + 1 == next.0 && one.1 < next.1), "{ends:?}");
    let whole = scene.put(&scene.moments[11].journal, &scene.moments[11].mark);
    let mut reader = journal::Reader::open(&whole.journal()).expect("readable");
    let mut at = 0;
    while let Some(batch) = reader.batch(at).expect("readable") {
        at = batch.end;
        if let Some((_, end)) = ends.iter().find(|(commits, _)| batch.commits == Some(*commits)) {
            assert_eq!(batch.end, *end as u64);
        }
    }
    assert!(at >= ends[ends.len() - 1].1 as u64);
}

/// Bytes of a message that look like a commit are not taken for one.
#[test]
fn a_message_that_holds_a_commit_of_its_own_keeps_no_store_from_opening() {
    let scene = Scene::new();
    let [before, now] = [10, 11].map(|at| &scene.moments[at]);
    let forged = &scene.moments[3].journal[scene.moments[2].end..scene.moments[3].end];
    let mut journal = now.journal.clone();
    journal[before.end..before.end + SECTOR].fill(0);
    let at = before.end + SECTOR + 10;
    journal[at..at + forged.len()].copy_from_slice(forged);
    assert_eq!(scene.put(&journal, &before.mark).messages().expect("it opens"), 11);
}
