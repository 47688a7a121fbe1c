//! `-c` and `--set`, and what is printed about settings.

use super::{Failure, note, say};
use crate::auth;
use crate::config::{Config, KEYS, Loaded, default_toml, effective_toml, reference_markdown};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Sources of the gateway's settings.
#[derive(Clone, Debug, Args)]
pub(super) struct SettingsArgs {
    /// Settings file in TOML; without it the defaults apply
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Override one setting, as often as needed; beats MOORLINE__SECTION__KEY, which beats the file
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(super) sets: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Printed {
    /// A settings file that holds every key with its default and meaning
    Default,
    /// The values in force, each with where it came from
    Effective(SettingsArgs),
    /// The reference tables, in Markdown
    Doc,
}

impl SettingsArgs {
    /// Tells who fails without a file how to get one, and the shortest way to a running system.
    pub(super) fn hint(&self) {
        if self.file.is_none() {
            note(
                "moorline: no -c: defaults, MOORLINE__ variables and --set apply\n\
                 moorline: a file to start from: moorline config default > moorline.toml\n\
                 moorline: to try it on this machine, with a backend: moorline dev",
            );
        }
    }

    pub(super) fn load(&self) -> Result<Loaded<Config>, Failure> {
        // Names and values that are no Unicode are none of ours.
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Config::load_with_origins(self.file.as_deref(), &self.sets, env).map_err(Failure::usage)
    }
}

pub(super) fn check(args: &SettingsArgs) -> Result<(), Failure> {
    let config = args.load()?.config;
    auth::judge(&config.auth).map_err(Failure::usage)?;
    for warning in config.warnings() {
        note(&format!("warning: {warning}"));
    }
    let name = args.file.as_ref().map_or_else(|| "settings".to_owned(), |file| file.display().to_string());
    say(&format!("{name}: valid\n"))
}

pub(super) fn print(what: &Printed) -> Result<(), Failure> {
    match what {
        Printed::Default => say(&default_toml(KEYS)),
        Printed::Effective(args) => say(&effective_toml(KEYS, &args.load()?)),
        Printed::Doc => say(&reference_markdown(KEYS)),
    }
}
