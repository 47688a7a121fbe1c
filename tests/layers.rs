//! Holds the code to the layer table of `docs/architecture.md`.
//!
//! Every `crate::` path in `src/` is compared with the row of the module it stands in. Tests are exempt:
//! they may look at anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Rows that are members of the workspace, by the name of their crate: a module may name them as its row says.
const MEMBERS: &[(&str, &str)] = &[("net", "moorline_net")];
/// Not modules of the table: the crate's roots.
const ROOTS: &[&str] = &["lib", "main"];

#[derive(Debug)]
struct Row {
    layer: u32,
    may_import: BTreeSet<String>,
}

/// The rows of the table with the header `| layer | module | ... | may import |`.
fn table() -> BTreeMap<String, Row> {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/architecture.md")).expect("the page");
    let lines = page.lines().skip_while(|line| !line.starts_with("| layer | module |")).skip(2);
    let rows: BTreeMap<_, _> = lines.take_while(|line| line.starts_with('|')).map(row).collect();
    assert!(rows.len() > 10, "docs/architecture.md has the layer table, found {rows:?}");
    rows
}

fn row(line: &str) -> (String, Row) {
    let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
    let plain = |cell: &str| cell.replace('`', "").trim_end_matches('/').to_owned();
    let layer = cells[0].parse().unwrap_or_else(|_| panic!("no layer number in {line:?}"));
    let imports = cells.last().expect("cells").split(',').map(|name| plain(name.trim()));
    let may_import = imports.filter(|name| !name.is_empty() && name != "-").collect();
    (plain(cells[1]), Row { layer, may_import })
}

/// Module name and files of everything under `src/`.
fn modules() -> BTreeMap<String, Vec<PathBuf>> {
    let mut modules = BTreeMap::new();
    for entry in
        fs::read_dir(Path::new(ROOT).join("src")).expect("src").map(|entry| entry.expect("entry").path())
    {
        let name = entry.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut files = Vec::new();
        collect(&entry, &mut files);
        if !ROOTS.contains(&name.as_str()) && !files.is_empty() {
            modules.entry(name).or_insert_with(Vec::new).append(&mut files);
        }
    }
    modules
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    let name = path.file_name().expect("a name").to_string_lossy();
    if name == "tests" || name == "tests.rs" {
        return;
    }
    if path.is_dir() {
        fs::read_dir(path).expect("a folder").for_each(|entry| collect(&entry.expect("entry").path(), files));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        files.push(path.to_owned());
    }
}

/// The file without comments and without the tests at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let mut lines = text.lines().peekable();
    let mut code = String::new();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.ends_with('{')) {
            break;
        }
        code.push_str(line.split("//").next().unwrap_or(""));
        code.push('\n');
    }
    code
}

/// The first names of all `crate::name` and `crate::{name::.., name}` paths.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let ident =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // `some_crate::` is another word.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => names.extend(top_level(list).iter().map(|entry| ident(entry.trim()))),
            None => _ = names.insert(ident(rest)),
        }
    }
    names.remove("");
    names
}

/// The entries of a brace list, nested lists left whole.
fn top_level(list: &str) -> Vec<String> {
    let (mut entries, mut depth) = (vec![String::new()], 0);
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => entries.push(String::new()),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                entries.last_mut().expect("one").push(c);
            }
        }
    }
    entries
}

#[test]
fn every_module_has_a_row_and_every_row_a_module() {
    let (table, modules) = (table(), modules());
    for name in modules.keys() {
        assert!(table.contains_key(name), "src/{name} has no row in the layer table of docs/architecture.md");
    }
    for (name, row) in &table {
        let exists = modules.contains_key(name) || MEMBERS.iter().any(|(member, _)| member == name);
        assert!(exists, "the layer table has a row for {name}, which does not exist");
        for import in &row.may_import {
            let below =
                table.get(import).unwrap_or_else(|| panic!("row {name} names {import}, which has no row"));
            assert!(below.layer <= row.layer, "row {name} imports {import} from a higher layer");
        }
    }
}

#[test]
fn the_table_has_no_circle() {
    let mut rest = table();
    while !rest.is_empty() {
        let free: Vec<_> = rest
            .iter()
            .filter(|(_, row)| row.may_import.iter().all(|name| !rest.contains_key(name)))
            .collect();
        let free: Vec<_> = free.into_iter().map(|(name, _)| name.clone()).collect();
        assert!(!free.is_empty(), "these import each other in a circle: {:?}", rest.keys());
        rest.retain(|name, _| !free.contains(name));
    }
}

#[test]
fn modules_import_what_their_row_allows() {
    let (table, mut wrong) = (table(), Vec::new());
    for (module, files) in modules() {
        let Some(row) = table.get(&module) else { continue }; // told by the test above
        for file in files {
            let code = code(&file);
            let shown = file.strip_prefix(ROOT).expect("inside").display();
            let members = MEMBERS.iter().filter(|(_, name)| code.contains(&format!("{name}::")));
            for name in crate_paths(&code).into_iter().chain(members.map(|(name, _)| (*name).to_owned())) {
                if name != module && !row.may_import.contains(&name) {
                    wrong.push(format!("{shown}: {module} may not import crate::{name}"));
                }
            }
            let is_module_root =
                file.ends_with("mod.rs") && file.parent().is_some_and(|dir| dir.ends_with(&module));
            if (is_module_root || file.parent().is_some_and(|dir| dir.ends_with("src")))
                && code.contains("super::")
            {
                wrong.push(format!("{shown}: name what lies outside of {module} by crate::, not super::"));
            }
        }
    }
    assert!(wrong.is_empty(), "against the layer table of docs/architecture.md:\n{}", wrong.join("\n"));
}

#[test]
fn members_depend_on_the_protocol_and_on_net_only() {
    for member in ["proto", "net", "sdk", "backend", "usage", "loadtest", "demo"] {
        let path = Path::new(ROOT).join(member).join("Cargo.toml");
        let manifest: toml::Table =
            toml::from_str(&fs::read_to_string(path).expect("manifest")).expect("TOML");
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(list) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for name in list.keys().filter(|name| name.starts_with("moor")) {
                let may = match member {
                    "proto" | "usage" => false,
                    // Shared IO; an instrument must not share bugs with what it measures.
                    "sdk" | "backend" => matches!(name.as_str(), "moorline-proto" | "moorline-net"),
                    _ => matches!(name.as_str(), "moorline-proto" | "moorline-usage"),
                };
                assert!(may, "{member} depends on {name} in {section}");
            }
        }
    }
}

#[test]
fn the_reader_of_paths_sees_all_forms() {
    let names = crate_paths(
        "use crate::{a, b::{c, d}, e::f};\nlet _ = crate::g::h; my_crate::i; pub(crate) use crate::j;",
    );
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(names, ["a", "b", "e", "g", "j"]);
}
