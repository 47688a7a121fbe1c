//! Settings that differ between two loads.

use serde::Serialize;
use toml::{Table, Value};

/// Returns the paths of all settings that differ, as a file and a flag name them: `limits.user_rate`,
/// `listener.2.backlog` in the second table of a list.
pub fn changed_keys<T: Serialize>(before: &T, after: &T) -> Vec<String> {
    let table = |config: &T| Table::try_from(config).expect("settings are a table of plain values");
    let mut changed = Vec::new();
    compare("", &Value::Table(table(before)), &Value::Table(table(after)), &mut changed);
    changed
}

fn compare(path: &str, before: &Value, after: &Value, changed: &mut Vec<String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Table(before), Value::Table(after)) => {
            let gone = before.keys().filter(|name| !after.contains_key(*name));
            changed.extend(gone.map(|name| below(name)));
            for (name, value) in after {
                match before.get(name) {
                    Some(older) => compare(&below(name), older, value, changed),
                    None => changed.push(below(name)),
                }
            }
        }
        (Value::Array(before), Value::Array(after))
            if before.len() == after.len() && after.iter().all(Value::is_table) =>
        {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                let path = if index == 0 { path.to_owned() } else { format!("{path}.{}", index + 1) };
                compare(&path, before, after, changed);
            }
        }
        _ => changed.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_differs_is_named_by_its_path() {
        let table = |text: &str| text.parse::<Table>().expect("TOML");
        let before = table("a = 1\n[b]\nc = 2\nd = [1]\n[[e]]\nf = 1\n[[e]]\nf = 2\n[g.x]\nh = 1");
        let after = table("a = 1\n[b]\nc = 3\nd = [2]\n[[e]]\nf = 1\n[[e]]\nf = 3\n[g.y]\nh = 1");
        assert_eq!(changed_keys(&before, &after), ["b.c", "b.d", "e.2.f", "g.x", "g.y"]);
        let more = table("a = 1\n[b]\nc = 2\nd = [1]\n[[e]]\nf = 1\n[g.x]\nh = 1");
        assert_eq!(changed_keys(&before, &more), ["e"]);
        assert!(changed_keys(&before, &before).is_empty());
    }
}
