//! Suites: files to tasks, observations to metric values.

pub mod muse;

pub use muse::Muse;
