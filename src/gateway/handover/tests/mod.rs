//! Tests of the protocol's rules, without IO: every cell of both tables, and both tables joined.

mod model;
mod tables;
