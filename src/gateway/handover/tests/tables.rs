//! The tables that `docs/handover.md` prints are the code's: every state by every input, of both sides.

use super::super::{child, parent};
use std::fmt::Debug;

fn page() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/handover.md");
    std::fs::read_to_string(path).expect("docs/handover.md")
}

/// A cell: the next state, or in bold the verdict, and the action.
fn cell(next: &impl Debug, verdict: Option<&dyn Debug>, action: &impl Debug) -> String {
    let next = verdict.map_or_else(|| format!("{next:?}"), |verdict| format!("**{verdict:?}**"));
    match format!("{action:?}").as_str() {
        "Nothing" => next,
        action => format!("{next}: {action}"),
    }
}

/// A table in Markdown, as the page prints it.
fn table<S: Debug + Copy, I: Debug + Copy>(
    states: &[S],
    inputs: &[I],
    cell: impl Fn(S, I) -> String,
) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text =
        line(std::iter::once("input".into()).chain(states.iter().map(|s| format!("{s:?}"))).collect());
    text.push_str(&["|", &"---|".repeat(states.len() + 1), "\n"].concat());
    for input in inputs {
        let cells = states.iter().map(|state| cell(*state, *input));
        text.push_str(&line(std::iter::once(format!("{input:?}")).chain(cells).collect()));
    }
    text
}

#[test]
fn the_page_prints_the_parents_table() {
    let table = table(&parent::State::ALL, &parent::Input::ALL, |state, input| match state.on(input) {
        parent::Transition::Ignore => "-".into(),
        parent::Transition::To(next, action) => {
            let verdict =
                if let parent::State::Ended(verdict) = &next { Some(verdict as &dyn Debug) } else { None };
            cell(&next, verdict, &action)
        }
    });
    assert!(page().contains(&table), "docs/handover.md needs this table of the old process:\n{table}");
}

#[test]
fn the_page_prints_the_childs_table() {
    let table = table(&child::State::ALL, &child::Input::ALL, |state, input| match state.on(input) {
        child::Transition::Ignore => "-".into(),
        child::Transition::To(next, action) => {
            let verdict =
                if let child::State::Ended(verdict) = &next { Some(verdict as &dyn Debug) } else { None };
            cell(&next, verdict, &action)
        }
    });
    assert!(page().contains(&table), "docs/handover.md needs this table of the new process:\n{table}");
}

#[test]
fn an_end_is_an_end() {
    for verdict in parent::Verdict::ALL {
        for input in parent::Input::ALL {
            assert_eq!(parent::State::Ended(verdict).on(input), parent::Transition::Ignore);
        }
    }
    for verdict in child::Verdict::ALL {
        for input in child::Input::ALL {
            assert_eq!(child::State::Ended(verdict).on(input), child::Transition::Ignore);
        }
    }
}
