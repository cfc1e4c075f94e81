//! Several stores of one audit into one.

use std::path::Path;

use super::line::Answer;
use super::{INPUTS, Store, malformed};
use crate::error::Result;

impl Store {
    /// Fails if the answers of this store, in `folder`, and those of `first`, in `first_folder`, do not depend on the same.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Malformed`] with what differs first.
    pub fn agrees(&self, folder: &Path, first: &Self, first_folder: &Path) -> Result<()> {
        match self.inputs.difference(&first.inputs) {
            None => Ok(()),
            Some((what, found, expected)) => {
                let expected = format!("{expected} as in {}", first_folder.join(INPUTS).display());
                Err(malformed(&folder.join(INPUTS), &what, found, &expected))
            }
        }
    }

    /// Adds all lines of `other` that this store lacks, as they stand there; one that is otherwise here is replaced, and counted
    /// as [differing](Self::differing). Both are of one audit and [agree](Self::agrees).
    ///
    /// # Errors
    ///
    /// [`crate::Error::Read`] and [`crate::Error::Write`].
    pub fn join(&mut self, other: &mut Self) -> Result<()> {
        for (arm, other) in self.arms.iter_mut().zip(&mut other.arms) {
            for from_comparisons in [false, true] {
                let source = if from_comparisons { &mut other.comparisons } else { &mut other.observations };
                let mut lines = Vec::new();
                source.read(&mut |line| lines.push(line))?;
                for line in lines.into_iter().filter(|line| line.arm == arm.key) {
                    let journal = match &line.answer {
                        Answer::Apart { reference, sums } => {
                            let known = arm.apart.insert((*reference, line.task), *sums);
                            match known {
                                Some(known) if known.bits() == sums.bits() => continue,
                                Some(_) => self.differing += 1,
                                None => {}
                            }
                            &mut arm.comparisons
                        }
                        answer => {
                            let Some(answer) = answer.clone().into_observation() else { continue };
                            match arm.answers.get(&line.task) {
                                Some(known) if *known == answer => continue,
                                Some(_) => self.differing += 1,
                                None => {}
                            }
                            arm.answers.insert(line.task, answer);
                            &mut arm.observations
                        }
                    };
                    journal.append(&line)?;
                }
            }
        }
        self.sync()
    }
}
