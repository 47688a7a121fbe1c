//! Log levels: a level, or directives for parts of the program.
//!
//! Example: `info,moorline::router=debug` logs at `info`, and the router's module at `debug`. Any other word
//! would be taken for the name of a module, and silence everything else, so it is refused.

use tracing_subscriber::EnvFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Reads a log level.
///
/// # Errors
/// The reason why the text is refused, for people.
pub fn parse(text: &str) -> Result<EnvFilter, String> {
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word.trim()));
    for directive in text.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if !is_level(level) {
            return Err(format!(
                "{:?} is no level; expected off, error, warn, info, debug, trace or directives such as \
                 \"info,moorline::router=debug\"",
                directive.trim()
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|error| format!("{text:?} is no log level: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_read() {
        for text in ["info", "WARN", "off", "info,moorline::router=debug", "moorline=trace"] {
            assert!(parse(text).is_ok(), "{text:?}: {:?}", parse(text).err());
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_and_not_taken_for_a_module() {
        for text in ["", "warning", "inof", "loud", "moorline", "info,", "info,moorline=loud", "foo=bar=baz"]
        {
            let said = parse(text).expect_err(text);
            assert!(said.contains("expected off, error, warn, info, debug, trace"), "{said}");
        }
    }
}
