//! The IO that Moorline's programs share: the gateway, the IM backend and the client SDK.
//!
//! Pure code (shard, router, IM logic, SDK core) never imports this crate: a thread owns sockets, pure
//! state owns rules. The load generator does not import it either, because an instrument must not share
//! bugs with what it measures.
//!
//! | module | holds | feature |
//! |---|---|---|
//! | [`stream`] | one non-blocking byte stream, and the edge-trigger contract | `client` |
//! | [`connect`] | non-blocking connect, and the self-connect guard | `client` |
//! | [`pace`] | a steady rate with a burst, and the name under which an address has it | `client` |
//! | [`read_block`] | memory that one thread reads its sockets into | `client` |
//! | [`clock`] | monotonic time that can stand still | `client` |
//! | [`accept`] | listening sockets, and the pause when descriptors run out | `server` |
//! | [`audit`] | who ordered what, in a file of bounded size | `server` |
//! | [`cap`] | how much of a cap is used, and a log line at 80% | `server` |
//! | [`hidden_memory`] | memory that nobody else reads | `server` |
//! | [`http`] | HTTP/1.1 server and client, on hyper in a thread of their own | `server` |
//! | [`layer`] | TLS and WebSocket between a stream and its owner | `server` |
//! | [`log`] | log lines and ready lines that no serving thread waits for | `server` |
//! | [`log_rate`] | a log line that strangers can cause, at most once in 10 s | `server` |
//! | [`mailbox`] | bounded channel into a thread that sleeps in a poll | `server` |
//! | [`proxy`] | who the client is, as a balancer tells it (PROXY protocol, version 2) | `server` |
//! | [`resolve`] | addresses of host names, looked up by threads that serve nobody | `server` |
//! | [`secret_file`] | files with secrets, and who else can write them | `server` |
//! | [`settings`] | one table of keys, four sources, every fault with its place | `server` |
//! | [`thread`] | threads that have their memory before they need it | `server` |
//! | [`tls`] | TLS 1.3: handshakes, records that go to another process, certificates, tickets | `tls` |
//! | [`upgrade`] | the HTTP request that makes a connection a WebSocket | `server` |
//! | [`unix_socket`] | Unix-domain sockets with a path, and who is at their other end | `server` |
//! | [`baton`] | a loop's state, which a sender may run while its thread sleeps, checked by loom | none |
//! | [`wake_flag`], [`pause_word`] | hand-made atomics, checked by loom | none |

#[cfg(feature = "server")]
pub mod accept;
#[cfg(feature = "server")]
pub mod audit;
pub mod baton;
#[cfg(feature = "server")]
pub mod cap;
#[cfg(feature = "client")]
pub mod clock;
#[cfg(feature = "client")]
pub mod connect;
#[cfg(all(target_os = "linux", feature = "server"))]
pub mod hidden_memory;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod layer;
#[cfg(feature = "server")]
pub mod log;
#[cfg(feature = "server")]
pub mod log_rate;
#[cfg(all(loom, test))]
mod loom_event;
#[cfg(feature = "server")]
pub mod mailbox;
#[cfg(feature = "client")]
pub mod pace;
pub mod pause_word;
#[cfg(feature = "server")]
pub mod proxy;
#[cfg(feature = "client")]
pub mod read_block;
#[cfg(feature = "server")]
pub mod resolve;
#[cfg(all(unix, any(feature = "server", feature = "tls")))]
pub mod secret_file;
#[cfg(feature = "server")]
pub mod settings;
#[cfg(feature = "client")]
pub mod stream;
#[cfg(feature = "server")]
pub mod thread;
#[cfg(all(unix, feature = "tls"))]
pub mod tls;
#[cfg(all(unix, feature = "server"))]
pub mod unix_socket;
#[cfg(feature = "server")]
pub mod upgrade;
pub mod wake_flag;
