//! Rules are numbered without holes, and every citation finds its rule.

use crate::document::{cited, rules, text, workspace};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Sources of the workspace: Rust and schemas.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("readable entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && name != "generated" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs" || end == "proto") {
            found.push(path);
        }
    }
}

#[test]
fn rules_are_numbered_without_holes() {
    let mut last = (1, 0);
    for rule in rules() {
        let (section, number) = rule.split_once('.').expect("an id");
        let next: (u32, u32) = (section.parse().expect("number"), number.parse().expect("number"));
        assert!(next == (last.0, last.1 + 1) || next.0 > last.0 && next.1 == 1, "{next:?} follows {last:?}");
        last = next;
    }
}

#[test]
fn every_citation_names_a_rule_and_every_rule_is_cited() {
    let rules: BTreeSet<String> = rules().into_iter().collect();
    let mut files = Vec::new();
    sources(&workspace(), &mut files);
    let mut citations: BTreeMap<String, PathBuf> = BTreeMap::new();
    for file in files {
        let source = fs::read_to_string(&file).expect("UTF-8");
        citations.extend(cited(&source).into_iter().map(|rule| (rule, file.clone())));
    }
    for (rule, file) in &citations {
        assert!(
            rules.contains(rule),
            "{} cites P-{rule}, which docs/protocol.md does not have",
            file.display()
        );
    }
    for rule in cited(&text()) {
        assert!(rules.contains(&rule), "docs/protocol.md cites P-{rule}, which it does not have");
    }
    let uncited: Vec<_> = rules.iter().filter(|rule| !citations.contains_key(*rule)).collect();
    assert!(uncited.is_empty(), "no code and no test cites {uncited:?}");
}
