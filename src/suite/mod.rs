//! Suites: files to tasks, observations to metric values.

pub mod muse;
pub mod text;

pub use muse::Muse;
