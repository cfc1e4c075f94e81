//! The forward pass of a Llama-architecture model.

mod forward;

pub use forward::{Batch, Capacity, Counters, Folded, Forward, PAGE, Phase, Place, Seconds, Wanted};
