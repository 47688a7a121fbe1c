//! The form of an export's lines, and the reading of lines up to the first wrong one.

use super::ImportError;
use serde::{Deserialize, Serialize};
use std::io::BufRead;

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Lines between two reports of progress.
const PROGRESS_LINES: u64 = 10_000;

/// A line of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Line {
    /// A group. If it exists and has this owner, it gets the members that it does not have.
    Group {
        /// Name of the group.
        name: String,
        /// uid of the owner.
        owner: String,
        /// uids of the other members.
        #[serde(default)]
        members: Vec<String>,
    },
    /// A message.
    Message {
        /// uid of the sender.
        from: String,
        /// Receiver of the message.
        to: To,
        /// Time of sending, in Unix milliseconds.
        time_ms: u64,
        /// Content type, which only applications interpret.
        #[serde(default)]
        r#type: u32,
        /// Payload as text; exactly one of `text` and `payload` is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// Payload in Base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        payload: Option<String>,
    },
    /// A user has read a conversation up to a seq.
    Read {
        /// uid of the reader.
        user: String,
        /// Id of the conversation.
        conversation: String,
        /// Highest seq that was read.
        seq: u64,
    },
}

/// Receiver of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum To {
    /// A user.
    User(String),
    /// A group, or another conversation that exists, by its id.
    Conversation(String),
}

/// Reads all lines and gives each with its number to `take`, up to the first wrong one.
pub(super) fn read(
    lines: &mut impl BufRead,
    progress: &mut impl FnMut(u64),
    mut take: impl FnMut(u64, Line) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let (mut text, mut number) = (String::new(), 0);
    loop {
        text.clear();
        number += 1;
        match std::io::Read::take(&mut *lines, LINE_BYTES_MAX as u64).read_line(&mut text) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(ImportError::Line { line: number, problem: "the line is not UTF-8".into() });
            }
            Err(error) => return Err(error.into()),
        }
        if text.len() >= LINE_BYTES_MAX {
            return Err(ImportError::Line { line: number, problem: "the line is longer than 4 MiB".into() });
        }
        if text.trim().is_empty() {
            continue;
        }
        let line = serde_json::from_str(&text).map_err(|error| {
            // serde_json counts lines too, and sees only one.
            let (error, column) = (error.to_string(), error.column());
            let what = error.rsplit_once(" at line ").map_or(&*error, |(what, _)| what);
            ImportError::Line { line: number, problem: format!("{what}, at column {column}") }
        })?;
        take(number, line)?;
        if number % PROGRESS_LINES == 0 {
            progress(number);
        }
    }
}
