//! From a tensor to the matrices that arms need of it.

use std::collections::hash_map::Entry;

use super::rounded::Key;
use super::{Arm, Joints, Loader};
use crate::checkpoint::Tensor;
use crate::error::{Error, Result};
use crate::kernels::{Matrix, Packer, Stored};
use crate::model::llama::parts::{Packing, Part};
use crate::quant::{Rounding, Scheme};

impl Loader {
    /// Uploads a tensor (of this block and owner) and makes all `matrices` of it; the updates lead from others of `owners`.
    ///
    /// Other roundings than the nearest take long: streamed, they are computed in the first pass and kept in a file.
    pub(super) fn pack(
        &mut self,
        place: (usize, usize),
        part: &Part,
        tensor: &Tensor,
        matrices: &[(Packing, Matrix)],
        owners: &[(usize, Tensor)],
    ) -> Result<()> {
        let stored = |tensor| as_stored(part, tensor);
        let is_nearest = |(how, _): &&(Packing, Matrix)| how.rounding == Rounding::Nearest;
        let nearest: Vec<_> = matrices.iter().filter(is_nearest).map(|(_, matrix)| matrix.clone()).collect();
        if !nearest.is_empty() {
            self.packer.pack_into(&self.gpu, &nearest, stored(tensor))?;
        }
        for (how, matrix) in matrices.iter().filter(|matrix| !is_nearest(matrix)) {
            let key = Key { block: place.0, owner: place.1, tensor: part.name.clone(), how: *how };
            if let Some(words) = self.rounded.read(&key)? {
                matrix.set_words(&self.gpu, &words);
                continue;
            }
            let target = how.target.map(|target| {
                let found = owners.iter().find(|(owner, _)| *owner == target);
                // It is read with the other's tensor only if both are there in one shape.
                found.map(|(_, tensor)| stored(tensor)).ok_or_else(|| Error::TensorMissing {
                    path: self.checkpoints[target].path().to_path_buf(),
                    tensor: part.name.clone(),
                })
            });
            let target = target.transpose()?;
            self.packer.round_into(
                &self.gpu,
                matrix,
                how.rounding,
                stored(tensor),
                target,
                part.rows.start,
            )?;
            if self.is_streamed() {
                let words = matrix.words(&self.gpu)?;
                // It only saves work: without room for it, the matrix is rounded again in every pass.
                if let Err(error) = self.rounded.keep(key, &words) {
                    log::warn!("{error}; what is rounded is rounded again in every pass");
                }
            }
        }
        Ok(())
    }

    /// How an arm needs a tensor that is stored in `stored`.
    pub(super) fn packing(&self, block: usize, arm: &Arm, name: &str, stored: Scheme) -> Packing {
        let precision = arm.source.precision_of(name);
        let scheme = self.kinds[block].scheme(stored, precision, self.quantize_head);
        let rounding = if scheme.is_full() { Rounding::Nearest } else { precision.rounding() };
        let owner = |checkpoint| self.owner(block, checkpoint, name);
        let target = arm.target.filter(|_| rounding.needs_target()).map(owner);
        // Without an update the nearest codes are what there is.
        let updated = target.is_some_and(|target| target != owner(arm.checkpoint));
        if rounding.needs_target() && !updated {
            return Packing { scheme, rounding: Rounding::Nearest, target: None };
        }
        Packing { scheme, rounding, target }
    }

    /// The ways in which arms need an owner's tensor.
    pub(super) fn packings(&self, block: usize, owner: usize, part: &Part, stored: Scheme) -> Vec<Packing> {
        let users = self.arms.iter().filter(|arm| self.owner(block, arm.checkpoint, &part.name) == owner);
        let mut packings: Vec<_> = users.map(|arm| self.packing(block, arm, &part.name, stored)).collect();
        packings.sort_unstable();
        packings.dedup();
        packings
    }

    /// Memory for a matrix: below those that are launched with it, where all of them are needed so.
    pub(super) fn place(
        &self,
        block: usize,
        owner: usize,
        part: &Part,
        how: Packing,
        joints: &mut Joints,
    ) -> Result<Matrix> {
        let scheme = how.scheme;
        let checkpoint = &self.checkpoints[owner];
        let members = self.kinds[block].together(checkpoint)?;
        let (n, k) = (part.rows.len(), part.shape[1]);
        if let Some(own) = members.iter().position(|member| member.name == part.name) {
            let ends = members.iter().scan(0, |end, member| {
                *end += member.rows.len();
                Some(*end)
            });
            let ends: Vec<usize> = ends.collect();
            let rows = |index: usize| ends[index] - members[index].rows.len()..ends[index];
            if let Entry::Vacant(vacant) = joints.entry((owner, how)) {
                let mut wanted = true;
                for member in &members {
                    let (stored, _) = checkpoint.tensors().describe(&member.name)?;
                    wanted &= self.packings(block, owner, member, stored).contains(&how);
                }
                let total = ends.last().copied().unwrap_or(0);
                let fits = Matrix::bytes_of(scheme, total, k) <= self.gpu.max_binding_bytes();
                let cuts = ends.iter().all(|end| Matrix::is_cut_at(scheme, *end, k));
                let joint = (wanted && fits && cuts)
                    .then(|| Packer::allocate(&self.gpu, &part.name, scheme, total, k))
                    .transpose()?;
                vacant.insert(joint);
            }
            let joint = joints.get(&(owner, how)).and_then(Option::as_ref);
            if let Some(matrix) = joint.and_then(|joint| joint.rows(rows(own))) {
                return Ok(matrix);
            }
        }
        Packer::allocate(&self.gpu, &part.name, scheme, n, k)
    }
}

/// A tensor as the packer takes it.
fn as_stored<'a>(part: &'a Part, tensor: &'a Tensor) -> Stored<'a> {
    let (n, k) = (part.rows.len(), part.shape[1]);
    Stored { name: &part.name, dtype: tensor.dtype, bytes: &tensor.bytes, n, k }
}
