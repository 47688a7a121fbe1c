//! Completion scripts and manual pages, made from the command line's own definition.

use super::{Failure, say};
use std::path::Path;

pub(super) fn completions(mut command: clap::Command, shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "moorline", &mut script);
    say(&String::from_utf8_lossy(&script))
}

pub(super) fn pages(command: clap::Command, dir: Option<&Path>) -> Result<(), Failure> {
    if let Some(dir) = dir {
        return clap_mangen::generate_to(command, dir).map_err(|error| {
            Failure::Failed(format!("cannot write manual pages to {}: {error}", dir.display()))
        });
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(Failure::failed)?;
    say(&String::from_utf8_lossy(&page))
}
