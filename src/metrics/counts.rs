//! Declares the numbers of one owner once: the enum that code counts with, and the series it exports.

/// An enum of counters and gauges, with `ALL` and the `METRICS` they are exported as. The first line of
/// a variant's documentation is the help text on the page.
///
/// ```text
/// counts! {
///     /// One number of a shard.
///     pub enum Count {
///         /// Open client connections.
///         Connections = gauge "connections";
///     }
/// }
/// ```
macro_rules! counts {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident {
        $($(#[doc = $doc:literal])+ $variant:ident = $kind:ident $metric:literal;)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visibility enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// Exported series, in the same order.
            pub const METRICS: &'static [$crate::metrics::Metric] =
                &[$($crate::metrics::Metric::$kind($metric, concat!($($doc,)+).trim_ascii()),)+];
        }
    };
}
pub(crate) use counts;
