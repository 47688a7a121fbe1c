//! Pages whose figures follow from others: each figure is computed again from the inputs of its page, and each input is looked up in
//! the page that measured it.
//!
//! A page has tables of two kinds, in order of use:
//!
//! ```text
//! | input | value | from |                 `peak_factor` | 3 | assumed
//!                                          `node_rate` | 7,300 /s | [cluster.md](cluster.md): "7,300/s"
//! | figure | formula | value |             `peak_rate` | `mean_rate * peak_factor` | 3.47 M/s
//! ```
//!
//! A quotation must be in the page that it names. A value is as exact as it is written: "3.47 M" is everything from 3.465 to 3.475
//! million. Numbers in the sentences of most pages must be in a table, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Pages with such tables, and whether each number in their sentences must be in a table.
const PAGES: &[(&str, bool)] = &[
    ("docs/regions.md", false),
    ("docs/capacity.md", true),
    ("docs/adr/0032-routes-at-the-owner-of-the-user.md", true),
];
/// Numbers that sentences may have without a table.
const SMALL: f64 = 10.0;

/// One row of a table of three columns.
struct Row<'a> {
    name: &'a str,
    middle: &'a str,
    last: &'a str,
}

fn rows<'a>(text: &'a str, head: &str) -> Vec<Row<'a>> {
    let (mut found, mut is_inside) = (Vec::new(), false);
    for line in text.lines() {
        if !line.starts_with('|') {
            is_inside = false;
        } else if line.starts_with(head) {
            is_inside = true;
        } else if is_inside && !line.starts_with("|---") {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [name, middle, last] = cells[..] else { panic!("three columns: {line}") };
            found.push(Row { name: name.trim_matches('`'), middle, last });
        }
    }
    found
}

/// Reads "3.47 M/s": the value, and half of its last digit.
fn value(text: &str) -> (f64, f64) {
    let end =
        text.find(|letter: char| !letter.is_ascii_digit() && !",.".contains(letter)).unwrap_or(text.len());
    let digits = text[..end].replace(',', "");
    let number: f64 = digits.parse().unwrap_or_else(|_| panic!("no number: {text}"));
    let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let factor = match text[end..].trim_start().chars().next() {
        Some('k') => 1e3,
        Some('M') => 1e6,
        Some('G') => 1e9,
        Some('T') => 1e12,
        Some('P') => 1e15,
        _ => 1.0,
    };
    let half = 0.5 / 10f64.powi(i32::try_from(decimals).expect("few"));
    (number * factor, half * factor * 1.000_001)
}

/// A formula of names, numbers, `+ - * /`, parentheses and `ceil(...)`.
struct Formula<'a> {
    rest: &'a str,
    known: &'a BTreeMap<String, f64>,
}

impl Formula<'_> {
    fn eat(&mut self, letter: char) -> bool {
        self.rest = self.rest.trim_start();
        let Some(rest) = self.rest.strip_prefix(letter) else { return false };
        self.rest = rest;
        true
    }

    fn sum(&mut self) -> f64 {
        let mut sum = self.product();
        loop {
            if self.eat('+') {
                sum += self.product();
            } else if self.eat('-') {
                sum -= self.product();
            } else {
                return sum;
            }
        }
    }

    fn product(&mut self) -> f64 {
        let mut product = self.factor();
        loop {
            if self.eat('*') {
                product *= self.factor();
            } else if self.eat('/') {
                product /= self.factor();
            } else {
                return product;
            }
        }
    }

    fn factor(&mut self) -> f64 {
        if self.eat('(') {
            let inner = self.sum();
            assert!(self.eat(')'), "a parenthesis stays open before {:?}", self.rest);
            return inner;
        }
        let end = self
            .rest
            .find(|letter: char| !letter.is_ascii_alphanumeric() && !"_,.".contains(letter))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if word == "ceil" {
            return self.factor().ceil();
        }
        if word.starts_with(|letter: char| letter.is_ascii_digit()) {
            return value(word).0;
        }
        *self.known.get(word).unwrap_or_else(|| panic!("{word:?} is not in the page before it is used"))
    }
}

fn evaluate(formula: &str, known: &BTreeMap<String, f64>) -> f64 {
    let mut left = Formula { rest: formula, known };
    let value = left.sum();
    assert!(left.rest.trim().is_empty(), "cannot read {:?} of {formula}", left.rest);
    value
}

/// Finds the quotation of an input in the page that it names.
fn check_source(page: &Path, row: &Row<'_>) {
    if row.last.starts_with("assumed") {
        return;
    }
    let target = row.last.split_once("](").and_then(|(_, rest)| rest.split_once(')'));
    let quotation = row.last.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"'));
    let (Some((target, _)), Some((quotation, _))) = (target, quotation) else {
        panic!("{}: `{}` is neither assumed nor quoted", page.display(), row.name);
    };
    let path = page.parent().expect("a folder").join(target.split('#').next().expect("a path"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(quotation), "{} does not say {quotation:?} (`{}`)", path.display(), row.name);
    let shown = row.middle.split(' ').next().expect("a number");
    assert!(quotation.contains(shown), "`{}`: {quotation:?} is not {shown}", row.name);
}

/// Numbers in sentences: not in tables, code or links.
fn prose_numbers(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        }
        if !is_code && !line.starts_with('|') && !line.starts_with('#') {
            let outside = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
            prose += &outside;
            prose.push('\n');
        }
    }
    while let Some(middle) = prose.find("](") {
        let start = prose[..middle].rfind('[').unwrap_or(middle);
        let end = prose[middle..].find(')').map_or(middle + 1, |end| middle + end);
        prose.replace_range(start..=end, " ");
    }
    let words = prose.split(|letter: char| !letter.is_ascii_alphanumeric() && !",.".contains(letter));
    words
        .map(|word| word.trim_matches(|letter| ",.".contains(letter)))
        .filter(|word| word.starts_with(|letter: char| letter.is_ascii_digit()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn figures_follow_from_their_inputs_and_inputs_from_what_was_measured() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for (page, is_strict) in PAGES {
        let page = root.join(page);
        let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        let mut known = BTreeMap::new();
        let inputs = rows(&text, "| input |");
        let figures = rows(&text, "| figure |");
        assert!(inputs.len() >= 4 && figures.len() >= 4, "{}", page.display());
        for row in &inputs {
            check_source(&page, row);
            assert!(
                known.insert(row.name.to_owned(), value(row.middle).0).is_none(),
                "{} is there twice",
                row.name
            );
        }
        for row in &figures {
            let exact = evaluate(row.middle.trim_matches('`'), &known);
            let (shown, half) = value(row.last);
            if (exact - shown).abs() > half {
                wrong.push(format!("{}: `{}` is {exact}, not {}", page.display(), row.name, row.last));
            }
            assert!(known.insert(row.name.to_owned(), exact).is_none(), "{} is there twice", row.name);
        }
        for number in prose_numbers(&text).into_iter().filter(|_| *is_strict) {
            let is_small = number.replace(',', "").parse::<f64>().is_ok_and(|number| number <= SMALL);
            let is_shown = inputs.iter().any(|row| row.middle.split(' ').next() == Some(&number))
                || figures.iter().any(|row| row.last.split(' ').next() == Some(&number));
            if !is_small && !is_shown {
                wrong.push(format!("{}: {number} in a sentence is in no table", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn formulas_are_read_as_written() {
    let known = BTreeMap::from([("a".to_owned(), 7.0)]);
    assert!((evaluate("ceil(a / 2) * (1,000 - 1) + 0.5", &known) - 3996.5).abs() < 1e-9);
    let (value, half) = value("3.47 M/s");
    assert!((value - 3.47e6).abs() < 1.0 && (half - 5_000.0).abs() < 1.0);
}
