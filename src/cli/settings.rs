//! `-c` and `--set`, and what is printed about settings.

use super::{Failure, note, say};
use crate::config::{Config, Loaded, SCHEMA};
use crate::gateway;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

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
        refuse_strays(&SCHEMA.strays(&moorline_backend::config::SCHEMA, variables()))?;
        let loaded = Config::load_with_origins(self.file.as_deref(), &self.sets, variables());
        let loaded = loaded.map_err(Failure::usage)?;
        warn(&loaded.warnings);
        Ok(loaded)
    }
}

/// Returns the environment. Names and values that are not Unicode belong to other programs.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Refuses to go on with variables that do nothing: what they were meant to set would be missing.
pub(super) fn refuse_strays(strays: &[String]) -> Result<(), Failure> {
    if strays.is_empty() { Ok(()) } else { Err(Failure::Usage(strays.join("\n"))) }
}

/// Writes warnings to standard error.
pub(super) fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
}

/// Says that settings are valid.
pub(super) fn say_valid(file: Option<&Path>) -> Result<(), Failure> {
    let name = file.map_or_else(|| "settings".to_owned(), |file| file.display().to_string());
    say(&format!("{name}: valid\n"))
}

pub(super) fn check(args: &SettingsArgs) -> Result<(), Failure> {
    let config = args.load()?.config;
    gateway::check_files(&config).map_err(Failure::usage)?;
    warn(&config.warnings());
    say_valid(args.file.as_deref())
}

pub(super) fn print(what: &Printed) -> Result<(), Failure> {
    match what {
        Printed::Default => say(&SCHEMA.default_toml()),
        Printed::Effective(args) => say(&SCHEMA.effective_toml(&args.load()?)),
        Printed::Doc => say(&SCHEMA.reference_markdown()),
    }
}
