//! Moorline gateway.
