//! The load generator: what it costs, how fast it is, and whether every message came once and in order.
//!
//! It shares nothing with the gateway but the wire format: its own loop, its own client states, its
//! own checker, because an instrument must not share bugs with what it measures.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the arguments of `moorload`, from them a run, from it an exit code |
//! | [`units`], [`clock`], [`exit`] | "10k/s" and back; monotonic time; how a run can end |
//! | [`preflight`], [`socket`] | what this machine allows; source addresses and connects |
//! | [`pace`], [`alarm`], [`phase`] | when a message is meant to leave; a timer finer than 1 ms; ramp, warm-up, measure, drain |
//! | [`integrity`], [`record`] | lost, duplicated, reordered; histograms that merge |
//! | [`carrier`] | TLS and WebSocket below a dialect |
//! | [`dialect`] | what a wire must offer to be driven: Moorline's own, and the bare server's |
//! | [`fleet`] | the epoll loop and its compact clients |
//! | [`scenario`] | what the clients do: hold, ping, chat, group, storm |
//! | [`job`] | a whole run as data, which splits over processes |
//! | [`crowd`] | the coordinator of several processes, and what one of them does |
//! | [`monitor`] | one row a second: the live view, the timeline, early ends |
//! | [`restarter`] | restarts the server in the middle of a run |
//! | [`process`], [`child`] | CPU and memory of another process; starting one and reading its ready line |
//! | [`cores`] | what else the cores of this machine do |
//! | [`findings`], [`report`], [`terminal`] | what a scenario found; the figures as text, JSON, charts; where they go |
//! | [`expect`], [`find`], [`doctor`] | what must hold; the highest rate at which it does; what a size needs |
//! | [`bare`] | the bare reference server |
//! | [`compare`] | ours beside bare, interleaved |
//!
//! A new scenario is a file in [`scenario`] and a subcommand in [`cli`]; a new wire is a [`dialect`].
#![allow(clippy::cast_precision_loss)] // figures are printed with three digits

pub mod alarm;
pub mod bare;
pub mod carrier;
pub mod child;
pub mod cli;
pub mod clock;
pub mod compare;
pub mod cores;
pub mod crowd;
pub mod dialect;
pub mod doctor;
pub mod exit;
pub mod expect;
pub mod find;
pub mod findings;
pub mod fleet;
pub mod integrity;
pub mod job;
mod memory;
pub mod monitor;
pub mod pace;
pub mod phase;
pub mod preflight;
pub mod process;
pub mod record;
pub mod report;
pub mod restarter;
pub mod scenario;
pub mod socket;
pub mod terminal;
pub mod units;
