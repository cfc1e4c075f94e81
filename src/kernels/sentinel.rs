//! Notes that a submission is finished. [`crate::gpu`] launches it itself, at the end of every submission.

use super::link::params;
use super::{Case, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Grid, sentinel_source};

params!(Params { number: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "sentinel", sources: || vec![sentinel_source()], params: Params::layout, cases };

fn cases() -> Vec<Case> {
    // The next submission, one of which the one before is missing, and one that was there already.
    [(6, 7), (6, 8), (6, 6)]
        .into_iter()
        .map(|(finished, number)| Case {
            name: format!("sentinel/ finished={finished} number={number}"),
            work: Work::Bytes(8),
            timed: false,
            prepare: Box::new(move |gpu| prepare(gpu, finished, number)),
        })
        .collect()
}

fn prepare(gpu: &Gpu, before: u32, number: u32) -> Result<Prepared> {
    let finished = gpu.upload("finished", &[before])?;
    let after = gpu.upload("after", &[0u32])?;
    let pipeline = gpu.pipeline(&sentinel_source())?;
    let want = move || vec![Want::Exactly(reference(before, number))];
    let outputs = vec![Output { name: "finished", buffer: finished.clone(), want: Box::new(want) }];
    let record = move |commands: &mut Commands| {
        let buffers = [("finished", &finished), ("after", &after)];
        commands.dispatch(&pipeline, &Params { number }, &buffers, Grid::flat(1), 1);
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The twin.
fn reference(finished: u32, number: u32) -> u32 {
    if finished + 1 == number { number } else { finished }
}
