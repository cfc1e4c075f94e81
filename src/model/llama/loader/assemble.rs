//! From matrices to blocks.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Loader, Made};
use crate::error::Result;
use crate::gpu::Buffer;
use crate::kernels::{Finish, Matmul, Matrix, Matvec};
use crate::model::llama::block::{
    Attention, Block, Blocks, FeedForward, HeadRows, Products, Projection, Together,
};
use crate::model::llama::parts::{Kind, Packing, Part, Role};

/// A matrix on its way into a block.
#[derive(Debug)]
struct Piece {
    matrix: Matrix,
    bias: Option<Buffer>,
    finish: Finish,
    launched: usize,
    /// Whether a norm of the residual stream is what it multiplies, and no other matrix does.
    after_norm: bool,
}

impl Loader {
    /// Every arm's block of what was made; arms of which all parts are the same share one.
    pub(super) fn assemble(&mut self, block: usize, made: &HashMap<(usize, String), Made>) -> Result<Blocks> {
        let kind = self.kinds[block].clone();
        let mut known: HashMap<Vec<(usize, Option<Packing>)>, Arc<Block>> = HashMap::new();
        let mut blocks = Vec::with_capacity(self.arms.len());
        for arm in self.arms.clone() {
            let checkpoint = arm.checkpoint;
            let parts = kind.parts(&self.checkpoints[checkpoint])?;
            let mut key = Vec::with_capacity(parts.len());
            let mut things = Vec::with_capacity(parts.len());
            for part in parts {
                let owner = self.owner(block, checkpoint, &part.name);
                let Some(thing) = made.get(&(owner, part.name.clone())) else {
                    unreachable!("{} was loaded", part.name)
                };
                let how = match thing {
                    Made::Vector(_) => None,
                    Made::Matrices(stored, _) => Some(self.packing(block, &arm, &part.name, *stored)),
                };
                key.push((owner, how));
                things.push((part, thing, how));
            }
            if let Some(block) = known.get(&key) {
                blocks.push(Arc::clone(block));
                continue;
            }
            let built = Arc::new(self.build(&kind, things)?);
            known.insert(key, Arc::clone(&built));
            blocks.push(built);
        }
        Ok(blocks)
    }

    /// A block of its parts: a norm, then matrices, each with its bias after it if it has one.
    fn build(&mut self, kind: &Kind, things: Vec<(Part, &Made, Option<Packing>)>) -> Result<Block> {
        let mut norm = None;
        let mut pieces: Vec<Piece> = Vec::new();
        for (part, thing, how) in things {
            match (thing, part.role) {
                (Made::Vector(buffer), _) => match pieces.last_mut() {
                    None => norm = Some(buffer.clone()),
                    Some(piece) => piece.bias = Some(buffer.clone()),
                },
                (Made::Matrices(_, matrices), Role::Matrix { finish, launched }) => {
                    let Some((_, matrix)) = matrices.iter().find(|(own, _)| Some(*own) == how) else {
                        unreachable!("{} was packed for every arm", part.name)
                    };
                    pieces.push(Piece {
                        matrix: matrix.clone(),
                        bias: None,
                        finish,
                        launched,
                        after_norm: false,
                    });
                }
                (Made::Matrices(..), Role::Vector) => unreachable!("{} is a vector", part.name),
            }
        }
        let (Some(norm), Some(last)) = (norm, pieces.pop()) else {
            unreachable!("a block begins with its norm and ends with a matrix")
        };
        let last = self.projection(last)?;
        Ok(match kind {
            Kind::Attention(_) => {
                let qkv = self.together(pieces, false)?;
                Block::Attention(Attention { norm, qkv, o: last })
            }
            Kind::FeedForward(_) => {
                let gate_up = self.together(pieces, true)?;
                Block::FeedForward(FeedForward { norm, gate_up, down: last })
            }
            Kind::Head(rows) => Block::Head(HeadRows { norm, rows: last, first: rows.start }),
        })
    }

    fn projection(&mut self, piece: Piece) -> Result<Projection> {
        let Piece { matrix, bias, finish, launched, after_norm } = piece;
        let products = self.products(&matrix, launched, finish, after_norm)?;
        Ok(Projection { columns: finish.columns(matrix.n), matrix, bias, products })
    }

    /// Matrices that multiply the same rows, in one launch if they lie together and have a bias all or none; with
    /// `gated` none may have one.
    fn together<const N: usize>(&mut self, pieces: Vec<Piece>, gated: bool) -> Result<Together<N>> {
        let mut matrices = pieces.iter().map(|piece| &piece.matrix);
        let first = matrices.next().cloned();
        let joined = matrices.fold(first, |whole, next| whole.and_then(|whole| whole.joined(next)));
        let biases: Vec<_> =
            pieces.iter().filter_map(|piece| Some((piece.bias.as_ref()?, piece.matrix.n))).collect();
        let alike = biases.is_empty() || (biases.len() == N && !gated);
        if let Some(matrix) = joined.filter(|_| alike) {
            let bias = match biases.as_slice() {
                [] => None,
                biases => Some(self.side_by_side(biases)?),
            };
            let finish = Finish { bias: bias.is_some(), add: false, gated };
            let launched = matrix.n;
            let piece = Piece { matrix, bias, finish, launched, after_norm: true };
            return Ok(Together::Joined(self.projection(piece)?));
        }
        let count = pieces.len();
        let each = pieces.into_iter().map(|piece| self.projection(piece)).collect::<Result<Vec<_>>>()?;
        let each = each.try_into().unwrap_or_else(|_| unreachable!("{count} matrices, not {N}"));
        Ok(Together::Apart(each))
    }

    /// A copy of vectors, each with its length, in one.
    fn side_by_side(&self, vectors: &[(&Buffer, usize)]) -> Result<Buffer> {
        let total: usize = vectors.iter().map(|(_, n)| n).sum();
        let whole = self.gpu.alloc("biases", 4 * total as u64)?;
        let mut first = 0;
        for (vector, n) in vectors {
            let bytes = 4 * *n as u64;
            self.gpu.copy(&vector.slice(0, bytes), &whole.slice(first, bytes));
            first += bytes;
        }
        Ok(whole)
    }

    /// The kernels for a matrix, chosen once for each class: the last rows of a head use what the first ones do.
    fn products(
        &mut self,
        matrix: &Matrix,
        launched: usize,
        finish: Finish,
        after_norm: bool,
    ) -> Result<Products> {
        let class = (matrix.scheme, launched, matrix.k, finish, after_norm);
        if let Some(products) = self.products.get(&class) {
            return Ok(products.clone());
        }
        let mut matvec = Matvec::tuned(&self.gpu, matrix, launched, finish)?;
        if after_norm {
            matvec = matvec.tuned_norm(&self.gpu, matrix)?;
        }
        let products = Products { matmul: Matmul::tuned(&self.gpu, matrix, launched, finish)?, matvec };
        self.products.insert(class, products.clone());
        Ok(products)
    }
}
