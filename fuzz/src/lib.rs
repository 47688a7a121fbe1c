//! The fuzz bodies, one function per target. The ordinary tests run the same functions: most of them are files of `tests/fuzz`,
//! and what is private to a crate has its body there, under `#[cfg(any(test, fuzzing))]`.

// The ordinary run also makes seeds, and not every feature needs every file.
#![allow(dead_code)]

#[path = "../../tests/fuzz/bodies.rs"]
mod bodies;
#[cfg(feature = "net")]
#[path = "../../tests/fuzz/entrance.rs"]
mod entrance;
#[path = "../../tests/fuzz/golden.rs"]
mod golden;
#[cfg(feature = "backend")]
#[path = "../../tests/fuzz/link_host.rs"]
mod link_host;
#[cfg(feature = "gateway")]
#[path = "../../tests/fuzz/router.rs"]
mod router;
#[path = "../../tests/fuzz/script.rs"]
mod script;
#[cfg(feature = "sdk")]
#[path = "../../tests/fuzz/sdk_core.rs"]
mod sdk_core;
#[cfg(feature = "gateway")]
#[path = "../../tests/fuzz/shard.rs"]
mod shard;
#[cfg(feature = "gateway")]
#[path = "../../tests/fuzz/snapshot.rs"]
mod snapshot;

/// The bodies by the name of their target.
pub mod target {
    macro_rules! targets {
        ($($(#[$of:meta])* $name:ident = $body:path;)+) => {
            $($(#[$of])* pub fn $name(input: &[u8]) {
                $body(input);
            })+
        };
    }

    targets! {
        /// Client frames.
        frame = crate::bodies::frame;
        /// Every message of the schema.
        message = crate::bodies::message;
        /// Link frames.
        link = crate::bodies::link;
        /// Compressed bodies.
        compress = crate::bodies::compress;
        /// Bodies of orders at the admin socket.
        #[cfg(feature = "gateway")]
        admin = moorline::admin::fuzz::body;
        /// A whole shard, with clients, workers and time.
        #[cfg(feature = "gateway")]
        shard = crate::shard::body;
        /// Snapshots: files, and arbitrary records behind valid checksums.
        #[cfg(feature = "gateway")]
        snapshot = crate::snapshot::body;
        /// A worker's router against hostile backends.
        #[cfg(feature = "gateway")]
        router = crate::router::body;
        /// A client core against a hostile gateway.
        #[cfg(feature = "sdk")]
        sdk_core = crate::sdk_core::body;
        /// Answers of dispatch servers to a client.
        #[cfg(feature = "sdk")]
        dispatch_answer = moorline_sdk::client::fuzz::body;
        /// The journal of a client's store.
        #[cfg(feature = "sdk")]
        sdk_store = moorline_sdk::store::fuzz::body;
        /// The backend's link host against hostile gateways.
        #[cfg(feature = "backend")]
        link_host = crate::link_host::body;
        /// Heads of HTTP requests, and where they come from.
        #[cfg(feature = "net")]
        http_head = moorline_net::http::fuzz::body;
        /// Frames of a WebSocket's client.
        #[cfg(feature = "net")]
        websocket = crate::entrance::websocket;
        /// PROXY headers, and lists of networks.
        #[cfg(feature = "net")]
        proxy_v2 = crate::entrance::proxy_v2;
        /// Requests that become a WebSocket, and lists of origins.
        #[cfg(feature = "net")]
        upgrade_head = crate::entrance::upgrade_head;
        /// Records of TLS from a hostile peer, frozen record layers, and the first bytes of a client.
        #[cfg(feature = "net")]
        tls_records = moorline_net::tls::fuzz::body;
        /// Bodies and answers of the backend's server API.
        #[cfg(feature = "backend")]
        backend_api = moorline_backend::fuzz::api;
        /// Records of the backend's database.
        #[cfg(feature = "backend")]
        backend_disk = moorline_backend::fuzz::disk;
        /// Files beside the backend's database, and the end of its journals.
        #[cfg(feature = "backend")]
        backend_files = moorline_backend::fuzz::files;
    }
}
