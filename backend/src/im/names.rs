//! Names of users, devices, groups and conversations.
//!
//! One to one: `c2c:<a>:<b>` with the uids in byte order; a group: `group:<name>`.

/// Longest user id, device id or group name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// True if `name` may name a user, a device or a group: 1 to 64 bytes, no `:`, no control character.
pub fn is_valid(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(|c: char| c == ':' || c.is_control())
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
}
