//! The forward pass of a Llama-architecture model.

mod compare;
mod forward;
mod llama;
mod lockstep;
mod reference;
mod rope;
mod weights;

pub use compare::{Compared, Comparing, Detail, Pair};
pub use forward::{Batch, Capacity, Counters, Folded, Forward, Logits, PAGE, Phase, Place, Seconds, Wanted};
pub use llama::{Layout, Llama, Residence, Share, Sizes, Source};
pub use lockstep::{Each, Lockstep, Pass, Room, Work};
pub use reference::Reference;
pub(crate) use reference::calibrate::Calibration;
pub(crate) use weights::{Linear, check_tensors, head_name, stored_scheme, unquantized};
