//! Plain English, as far as patterns can tell: rules of CONTRIBUTING.md, "Language".
//!
//! A doc comment begins with a noun or a verb, has more than one word, and says numbers and negations plainly:
//! "Deadline of the ack probe", not "When."; "at most 64", not "so many"; "there is no room", not "room is none".

use super::{ROOT, none, sources};
use std::fs;
use std::path::Path;

/// Words that leave the reader without a noun at the beginning of a doc comment.
const BAD_STARTS: &[&str] = &[
    "It", "Its", "Of", "What", "Who", "Whom", "Which", "Whether", "Why", "Where", "How", "As", "The same",
    "So many",
];
/// Phrases that stand for a number.
const BAD_NUMBERS: &[&str] = &["so many", "so long", "such a one"];
/// Paths whose comments are not rewritten yet. Take a path off when its comments are; never add one.
const PENDING: &[&str] = &[];
/// Lines that break a rule on purpose, each by a part of it.
const EXCEPTIONS: &[(&str, &str)] = &[("tests/tidy/", "these files name the patterns")];

/// Text of a comment line: after `///`, `//!`, or, unless `docs_only`, `//`.
fn comment(line: &str, docs_only: bool) -> Option<&str> {
    let line = line.trim_start();
    let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
    let plain = || if docs_only { None } else { line.strip_prefix("//") };
    doc.or_else(plain).map(str::trim)
}

fn starts_badly(text: &str) -> bool {
    BAD_STARTS.iter().any(|bad| {
        text.strip_prefix(bad).is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
    })
}

fn is_one_word(text: &str) -> bool {
    text.strip_suffix('.').is_some_and(|word| !word.is_empty() && word.chars().all(char::is_alphanumeric))
}

fn stands_for_a_number(text: &str) -> bool {
    let text = text.to_lowercase();
    BAD_NUMBERS.iter().any(|bad| {
        text.match_indices(bad).any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + bad.len()..]);
            !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric)
        })
    })
}

/// "is none", "is no Send"; but "there is no room" is plain.
fn negates_at_the_end(text: &str) -> bool {
    [" is none", " are none", " is no ", " are no "].iter().any(|bad| {
        text.match_indices(bad).any(|(at, _)| {
            let before = text[..at].to_lowercase();
            let after = &text[at + bad.len()..];
            let is_whole = bad.ends_with(' ') || !after.starts_with(char::is_alphanumeric);
            let is_plain =
                before.ends_with("there") || after.starts_with("longer ") || after.starts_with("more ");
            is_whole && !is_plain
        })
    })
}

fn is_left_out(path: &str) -> bool {
    PENDING.iter().chain(EXCEPTIONS.iter().map(|(path, _)| path)).any(|left_out| path.starts_with(left_out))
}

#[test]
fn comments_are_plain() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !is_left_out(&source.path)) {
        let mut is_inside = false;
        for (number, line) in source.text.lines().enumerate() {
            let place = |rule: &str, text: &str| format!("{}:{}: {rule}: {text}", source.path, number + 1);
            let doc = comment(line, true);
            if let Some(text) = doc.filter(|_| !is_inside) {
                if starts_badly(text) {
                    found.push(place("begin with a noun or a verb", text));
                }
                if is_one_word(text) {
                    found.push(place("name the thing, its unit and its limits", text));
                }
            }
            is_inside = doc.is_some();
            let Some(text) = comment(line, false) else { continue };
            if stands_for_a_number(text) {
                found.push(place("say the number", text));
            }
            if negates_at_the_end(text) {
                found.push(place("put the negation in front", text));
            }
        }
    }
    none("plain English (CONTRIBUTING.md, \"Language\")", &found);
}

#[test]
fn pages_are_plain() {
    let mut pages = vec![Path::new(ROOT).join("README.md"), Path::new(ROOT).join("CONTRIBUTING.md")];
    for folder in ["docs", "docs/guide", "docs/adr"] {
        let entries = fs::read_dir(Path::new(ROOT).join(folder)).expect("a folder of pages");
        let files = entries.map(|entry| entry.expect("an entry").path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    assert!(pages.len() > 20, "only {} pages found", pages.len());
    let mut found = Vec::new();
    for page in pages {
        let name = page.strip_prefix(ROOT).expect("inside").to_string_lossy().into_owned();
        if is_left_out(&name) {
            continue;
        }
        for (number, line) in fs::read_to_string(&page).expect("UTF-8").lines().enumerate() {
            if stands_for_a_number(line) || negates_at_the_end(line) {
                found.push(format!("{name}:{}: {line}", number + 1));
            }
        }
    }
    none("plain English (CONTRIBUTING.md, \"Language\")", &found);
}

#[test]
fn the_patterns_find_what_they_are_for() {
    assert!(starts_badly("What a shard wants done.") && starts_badly("Its socket."));
    assert!(!starts_badly("Items of one turn.") && !starts_badly("Asks the backend."));
    assert!(is_one_word("Which.") && !is_one_word("The room."));
    assert!(stands_for_a_number("waits so long") && !stands_for_a_number("also longer"));
    assert!(
        negates_at_the_end("the body is no Send") && negates_at_the_end("there are names, and ids are none")
    );
    assert!(!negates_at_the_end("there is no room") && !negates_at_the_end("the client is no longer there"));
}
