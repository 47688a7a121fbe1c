//! moorload
fn main() {}
