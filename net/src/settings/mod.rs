//! Settings of a program: one table of keys, four sources, every fault at once.
//!
//! A program has a `static` [`Schema`]: its keys with default, form and meaning, old names, and the prefix of its variables. The
//! schema loads file, environment and flags into the program's own structs, keeps where each value came from, and prints
//! the defaults, the values in force and the reference tables. Example: `moorline.toml` has `[listener]` with `adress =
//! "127.0.0.1:7000"` in its second line; [`Schema::load`] fails with "moorline.toml:2: unknown key `adress` in `[listener]`;
//! did you mean `address`?". Opens no socket and reads no secret.

mod changed;
mod file;
mod key;
mod load;
mod print;
mod problem;
mod rules;
mod source;
mod suggest;
#[cfg(test)]
mod tests;
pub mod units;

pub use changed::changed_keys;
pub use key::{Key, Kind, Renamed, Retired, joined, key};
pub use load::{Schema, path_of};
pub use problem::{Loaded, Origin, Problem, SettingsError};
pub use rules::Rules;
