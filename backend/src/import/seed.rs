//! Made-up users, groups and messages.

use super::load::Importer;
use super::{ImportError, Imported, Line, To};
use crate::config::BackendConfig;
use crate::error::BackendError;
use moorline_proto::random::Random;

/// Messages between two reports of progress.
const PROGRESS_LINES: u64 = 10_000;
/// A user writes one to one to at most this many others.
const NEIGHBOURS: u64 = 20;

/// Amount of made-up content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Users `user-0` and so on.
    pub users: u32,
    /// Groups `group-0` and so on.
    pub groups: u32,
    /// Members of each group, at least 1.
    pub members: u32,
    /// Messages; half of them are one-to-one if there are groups.
    pub messages: u64,
    /// Payload of each message, in bytes.
    pub payload: usize,
    /// Seed of the dice: equal seeds give equal content.
    pub seed: u64,
}

/// Makes up users, groups and messages in the store of `config`. `progress` gets the number of lines after every
/// 10,000.
///
/// # Errors
/// [`ImportError`].
pub fn seed(
    config: &BackendConfig,
    wanted: &Seed,
    mut progress: impl FnMut(u64),
) -> Result<Imported, ImportError> {
    if wanted.payload > config.im.payload_max {
        let reason = format!("--payload {} is over it", wanted.payload);
        return Err(BackendError::InvalidConfig { key: "im.payload_max", reason }.into());
    }
    let mut importer = Importer::open(config)?;
    let mut random = Random::new(wanted.seed);
    let start_ms = importer.now_ms().saturating_sub(wanted.messages);
    let users = u64::from(wanted.users.max(2));
    let uid = |number: u64| format!("user-{number}");
    let member = |group: u64, at: u64| uid((group * 7919 + at) % users);
    let members = u64::from(wanted.members).clamp(1, users);
    let mut number = 0;
    for group in 0..u64::from(wanted.groups) {
        number += 1;
        let members = (1..members).map(|at| member(group, at)).collect();
        let line = Line::Group { name: format!("group-{group}"), owner: member(group, 0), members };
        importer.take(number, line)?;
    }
    let text: String =
        (0..wanted.payload).map(|at| char::from(b'a' + u8::try_from(at % 26).unwrap_or(0))).collect();
    for at in 0..wanted.messages {
        number += 1;
        let (from, to) = if wanted.groups > 0 && random.one_in(2) {
            let group = random.below(wanted.groups.into());
            (member(group, random.below(members)), To::Conversation(format!("group:group-{group}")))
        } else {
            let from = random.below(users);
            (uid(from), To::User(uid((from + 1 + random.below(NEIGHBOURS.min(users - 1))) % users)))
        };
        let (time_ms, text) = (start_ms + at, Some(text.clone()));
        importer.take(number, Line::Message { from, to, time_ms, r#type: 1, text, payload: None })?;
        if number % PROGRESS_LINES == 0 {
            progress(number);
        }
    }
    importer.finish()
}
