//! Names of users, devices, groups and conversations.
//!
//! One to one: `c2c:<a>:<b>` with the uids in byte order; a group: `group:<name>`.

use std::ops::RangeInclusive;
use std::sync::Arc;

/// Longest user id, device id or group name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Rule for names, for error messages.
pub const RULE: &str = "1 to 64 bytes, no `:`, no control, format or invisible character";
/// Device ids that the backend itself uses as authors: the server API, webhooks and imports.
const RESERVED_DEVICES: [&str; 3] = ["api", "endpoint", IMPORT];
/// Device of imported messages.
pub(crate) const IMPORT: &str = "import";

/// Characters that do not show, or that change how their neighbours show: Unicode 16's general categories Cf, Zl and Zp, and
/// its property `Default_Ignorable_Code_Point`. With them, two names look the same and are different.
const HIDDEN: [RangeInclusive<char>; 30] = [
    '\u{ad}'..='\u{ad}',
    '\u{34f}'..='\u{34f}',
    '\u{600}'..='\u{605}',
    '\u{61c}'..='\u{61c}',
    '\u{6dd}'..='\u{6dd}',
    '\u{70f}'..='\u{70f}',
    '\u{890}'..='\u{891}',
    '\u{8e2}'..='\u{8e2}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{feff}'..='\u{feff}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{fff0}'..='\u{fffb}',
    '\u{fffe}'..='\u{ffff}',
    '\u{110bd}'..='\u{110bd}',
    '\u{110cd}'..='\u{110cd}',
    '\u{13430}'..='\u{1343f}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e0fff}',
    // Private use: no two programs show them alike.
    '\u{e000}'..='\u{f8ff}',
    '\u{f0000}'..='\u{10ffff}',
    // Spaces that are not U+0020.
    '\u{2000}'..='\u{200a}',
    '\u{a0}'..='\u{a0}',
];

/// True if `name` may name a user, a device or a group: [`RULE`].
pub fn is_valid(name: &str) -> bool {
    let is_hidden = |c: char| {
        c == ':' || c.is_control() || !c.is_ascii() && HIDDEN.iter().any(|hidden| hidden.contains(&c))
    };
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(is_hidden)
}

/// True if a client's device may have this name: the backend itself writes as `RESERVED_DEVICES`.
pub fn is_device(name: &str) -> bool {
    is_valid(name) && !RESERVED_DEVICES.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
}

/// Names of a user and of a device, in one allocation: `alice:phone`. A valid name has no colon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Arc<str>);

impl Names {
    /// Names of a device and of its user.
    pub fn new(uid: &str, device: &str) -> Self {
        Self([uid, ":", device].concat().into())
    }

    /// Name of the user.
    pub fn uid(&self) -> &str {
        self.parts().0
    }

    /// Name of the device.
    pub fn device(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or_default()
    }
}

/// Kind of a conversation id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation<'a> {
    /// The two uids in byte order; both equal for notes to oneself.
    OneToOne(&'a str, &'a str),
    /// A group's name.
    Group(&'a str),
}

impl<'a> Conversation<'a> {
    /// Reads an id; `None` if no conversation can have it.
    pub fn parse(id: &'a str) -> Option<Self> {
        if let Some(name) = id.strip_prefix("group:") {
            return is_valid(name).then_some(Self::Group(name));
        }
        let (a, b) = id.strip_prefix("c2c:")?.split_once(':')?;
        (is_valid(a) && is_valid(b) && a <= b).then_some(Self::OneToOne(a, b))
    }
}

/// Writes the id of the conversation of two users, in either order.
pub fn write_one_to_one(into: &mut String, a: &str, b: &str) {
    let (first, second) = if a <= b { (a, b) } else { (b, a) };
    for part in ["c2c:", first, ":", second] {
        into.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_canonical() {
        let mut id = String::new();
        write_one_to_one(&mut id, "zoe", "abe");
        assert_eq!(id, "c2c:abe:zoe");
        assert_eq!(Conversation::parse(&id), Some(Conversation::OneToOne("abe", "zoe")));
        assert_eq!(Conversation::parse("c2c:a:a"), Some(Conversation::OneToOne("a", "a")));
        assert_eq!(Conversation::parse("group:g"), Some(Conversation::Group("g")));
        for bad in
            ["", "c2c:", "c2c:zoe:abe", "c2c:a", "c2c:a:b:c", "group:", "group:a:b", "room:a", "c2c::a"]
        {
            assert_eq!(Conversation::parse(bad), None, "{bad}");
        }
        assert!(is_valid(&"x".repeat(64)) && !is_valid(&"x".repeat(65)) && !is_valid("a\nb"));
    }

    #[test]
    fn names_of_a_device_and_its_user_share_an_allocation() {
        let names = Names::new("alice", "phone");
        assert_eq!((names.uid(), names.device()), ("alice", "phone"));
        assert_eq!((Names::default().uid(), Names::default().device()), ("", ""));
    }

    #[test]
    fn names_show_every_character_that_they_have() {
        for good in ["Zoë", "李雷", "вера", "عمر", "a b", "a-b_c.d@e", "दीपक", "🦉"] {
            assert!(is_valid(good), "{good}");
        }
        for hidden in [
            "\u{202e}",
            "\u{200b}",
            "\u{200d}",
            "\u{feff}",
            "\u{2066}",
            "\u{ad}",
            "\u{85}",
            "\u{e0041}",
            "\u{3164}",
        ] {
            for name in [hidden.to_owned(), format!("ali{hidden}ce"), format!("alice{hidden}")] {
                assert!(!is_valid(&name) && !is_device(&name), "{}", name.escape_unicode());
                assert_eq!(Conversation::parse(&format!("group:{name}")), None);
                assert_eq!(Conversation::parse(&format!("c2c:a:{name}")), None);
            }
        }
    }

    #[test]
    fn devices_are_not_called_as_the_backend_itself() {
        for reserved in ["api", "endpoint", "import", "API", "Import"] {
            assert!(is_valid(reserved) && !is_device(reserved), "{reserved}");
        }
        assert!(is_device("apis") && is_device("phone"));
    }
}
