//! Rules of the house that no compiler checks, over every source file of the workspace.

mod english;

use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const FOLDERS: &[&str] =
    &["src", "tests", "benches", "fuzz", "proto", "net", "sdk", "backend", "usage", "loadtest", "demo"];
/// Lines of a file; at 400 one should think.
const LINES_MAX: usize = 600;
/// Files that may block a thread for a time, each with its reason.
const SLEEPERS: &[(&str, &str)] = &[(
    "loadtest/tests/moorload/server/mod.rs",
    "plays a server that stalls for a given time; nobody waits for it to end",
)];

struct Source {
    /// From the workspace's root.
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.starts_with("tests/") || self.path.contains("/tests/")
    }

    /// Line numbers of code (comments left out) that contain `pattern`.
    fn lines_with(&self, pattern: &str) -> Vec<usize> {
        let lines = self.text.lines().enumerate();
        let hits =
            lines.filter(|(_, line)| line.split("//").next().is_some_and(|code| code.contains(pattern)));
        hits.map(|(number, _)| number + 1).collect()
    }
}

/// Every Rust file that people wrote.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in FOLDERS {
        collect(&Path::new(ROOT).join(folder), &mut sources);
    }
    assert!(sources.len() > 50, "only {} source files found", sources.len());
    sources
}

fn collect(path: &Path, sources: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.map(|entry| entry.expect("entry").path()) {
        let name = entry.file_name().expect("a name").to_string_lossy().into_owned();
        if entry.is_dir() {
            if !matches!(name.as_str(), "target" | "generated") {
                collect(&entry, sources);
            }
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let path = entry.strip_prefix(ROOT).expect("inside").to_string_lossy().into_owned();
            sources.push(Source { path, text: fs::read_to_string(&entry).expect("UTF-8") });
        }
    }
}

/// Fails with one line per finding.
fn none(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{what}:\n{}", findings.join("\n"));
}

/// Every place outside of this file where code contains `pattern`, as `path:line`.
fn places(pattern: &str, is_exempt: impl Fn(&Source) -> bool) -> Vec<String> {
    let sources = sources();
    let looked_at =
        sources.iter().filter(|source| !source.path.starts_with("tests/tidy/") && !is_exempt(source));
    looked_at
        .flat_map(|source| {
            source.lines_with(pattern).into_iter().map(|line| format!("{}:{line}", source.path))
        })
        .collect()
}

#[test]
fn files_stay_readable() {
    let mut long = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            long.push(format!("{} has {lines} lines, limit {LINES_MAX}", source.path));
        }
    }
    none("a file at its limit is a design question", &long);
}

#[test]
fn every_file_says_what_it_is() {
    let silent =
        sources().into_iter().filter(|source| !source.text.starts_with("//!")).map(|source| source.path);
    none("these files do not start with a `//!` header", &silent.collect::<Vec<_>>());
}

#[test]
fn names_say_what_a_thing_is() {
    let vague = ["manager", "helper", "helpers", "util", "utils", "common", "misc"];
    let mut found = Vec::new();
    for source in sources() {
        let parts = source.path.trim_end_matches(".rs").split(['/', '_']);
        found.extend(
            parts.filter(|part| vague.contains(part)).map(|part| format!("{} ({part})", source.path)),
        );
        for line in source.text.lines().map(str::trim_start) {
            let declared = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ");
            let name = declared.map(|rest| rest.trim_end_matches([';', '{', ' ']));
            found.extend(
                name.filter(|name| vague.contains(name)).map(|name| format!("{}: mod {name}", source.path)),
            );
        }
    }
    none("name what it holds instead", &found);
}

#[test]
fn mio_tokens_are_made_in_one_place_per_loop() {
    let of_mio = |source: &Source| {
        source.text.contains("mio::Token")
            || source.text.lines().any(|line| line.starts_with("use mio::{") && line.contains("Token"))
    };
    let found = places("Token(", |source| {
        let is_home = source.path.ends_with("/token.rs");
        !source.path.starts_with("src/") || is_home || !of_mio(source)
    });
    none("convert to and from mio's Token in token.rs only", &found);
}

#[test]
fn nothing_is_left_for_later() {
    for pattern in ["#[ignore", "todo!", "unimplemented!", "dbg!("] {
        none(&format!("`{pattern}` has no place in the project"), &places(pattern, |_| false));
    }
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !source.path.starts_with("tests/tidy/")) {
        for word in ["TODO", "FIXME", "XXX"] {
            let lines = source.text.lines().enumerate().filter(|(_, line)| line.contains(word));
            found.extend(lines.map(|(number, _)| format!("{}:{}: {word}", source.path, number + 1)));
        }
    }
    none("file an issue instead", &found);
}

#[test]
fn nobody_sleeps() {
    let is_listed = |source: &Source| SLEEPERS.iter().any(|(path, _)| *path == source.path);
    none("wait for the event itself, not for time to pass", &places("thread::sleep", is_listed));
    for (path, reason) in SLEEPERS {
        let text = fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_default();
        assert!(text.contains("thread::sleep"), "{path} no longer sleeps; take it off the list ({reason})");
    }
}

#[test]
fn the_protocol_stays_pure() {
    let root = fs::read_to_string(Path::new(ROOT).join("proto/src/lib.rs")).expect("proto");
    for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
        assert!(root.contains(attribute), "proto/src/lib.rs lacks {attribute}");
    }
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("proto/src/") && !source.is_test())
    {
        let code = source.text.split("#[cfg(test)]\nmod ").next().unwrap_or("");
        let lines = code.lines().enumerate().filter(|(_, line)| {
            let code = line.split("//").next().unwrap_or("");
            code.contains("std::") && !code.contains("no_std")
        });
        found.extend(lines.map(|(number, _)| format!("{}:{}", source.path, number + 1)));
    }
    none("no socket, thread or clock in proto: core and alloc only", &found);
}

#[test]
fn unsafe_code_is_allowed_in_sys_only() {
    // A counting allocator implements an unsafe trait, and loom's cell lends raw pointers: both in tests.
    let may = |path: &str| {
        let others = ["tests/allocations.rs", "backend/tests/memory.rs", "net/src/pause_word.rs"];
        path.starts_with("src/sys/") || others.contains(&path)
    };
    let found = places("allow(unsafe_code)", |source| may(&source.path));
    none("unsafe belongs to src/sys", &found);
}

/// Methods with `self` of one type, over all its inherent impls.
const METHODS_MAX: usize = 40;
/// Types above the limit that are being divided, by member, with what they may have until then. The list only
/// shrinks.
const LARGE_TYPES: &[(&str, &str, usize)] = &[];

#[test]
fn types_stay_small() {
    let mut counts = std::collections::BTreeMap::<(String, String), usize>::new();
    for source in sources().iter().filter(|source| source.path.contains("src/") && !source.is_test()) {
        let member = source.path.split('/').next().expect("a folder").to_owned();
        for (name, count) in methods(&source.text) {
            *counts.entry((member.clone(), name)).or_default() += count;
        }
    }
    let mut large = Vec::new();
    for ((member, name), count) in &counts {
        let listed = LARGE_TYPES.iter().find(|(folder, listed, _)| folder == member && listed == name);
        let limit = listed.map_or(METHODS_MAX, |(_, _, limit)| *limit);
        if *count > limit {
            large.push(format!("{name} in {member} has {count} methods with self, limit {limit}"));
        }
    }
    none("divide a type into smaller ones with their own state and tests", &large);
}

/// The methods with `self` in each inherent impl of a file, by the name of the type.
fn methods(text: &str) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut is_inside = false;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.ends_with('{')) {
            break; // the tests at the end
        }
        if line.starts_with("impl") && !line.contains(" for ") {
            found.push((type_of(line), 0));
            is_inside = true;
        } else if line.starts_with('}') {
            is_inside = false;
        } else if is_inside && let Some(head) = fn_head(line) {
            // Parameters may stand on lines of their own.
            let parameters = head.split_once('(').map_or("", |(_, parameters)| parameters);
            let parameters = if parameters.is_empty() { lines.next().unwrap_or("") } else { parameters };
            let first = parameters.split([',', ')']).next().unwrap_or("");
            let has_self = first.split([' ', '&', ':']).any(|word| word == "self");
            found.last_mut().expect("inside one").1 += usize::from(has_self);
        }
    }
    found
}

/// The name and the parameters of a function that a line of an impl declares.
fn fn_head(line: &str) -> Option<&str> {
    let item = line.strip_prefix("    ").filter(|item| !item.starts_with([' ', '/']))?;
    let (qualifiers, head) = item.split_once("fn ")?;
    qualifiers.chars().all(|c| c.is_alphanumeric() || " ()_".contains(c)).then_some(head)
}

/// `Window` of `impl<T> Window<T> {`.
fn type_of(line: &str) -> String {
    let mut rest = line.strip_prefix("impl").expect("an impl");
    if rest.starts_with('<') {
        let mut depth = 0;
        let end = rest.find(|c| {
            depth += i32::from(c == '<') - i32::from(c == '>');
            depth == 0
        });
        rest = &rest[end.map_or(0, |end| end + 1)..];
    }
    rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn the_reader_of_methods_sees_all_forms() {
    let text = "impl<'a, T: Into<U>> Pair<'a, T> {\n    pub(super) const fn a(&self) {}\n    fn b(&mut self, x: u8) {\n        fn inner(self) {}\n    }\n    fn c(\n        mut self,\n    ) {}\n    fn d(&'a mut self) {}\n    fn e(x: &Self) {}\n}\nimpl Clone for Pair {\n    fn clone(&self) {}\n}\n";
    assert_eq!(methods(text), [("Pair".to_owned(), 4)]);
}
