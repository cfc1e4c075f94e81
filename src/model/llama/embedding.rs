//! Rows of a checkpoint's embedding, gathered on the host.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Result;
use crate::model::weights::EMBEDDING;

/// An embedding up to this size stays in host memory; of a larger one the rows that a pass needs are read.
const HELD_BYTES: usize = 64 << 20;

/// One checkpoint's embedding, `[v, d]` as stored.
#[derive(Debug)]
pub(super) struct Embedding {
    checkpoint: Arc<Checkpoint>,
    held: Option<Arc<Tensor>>,
}

impl Embedding {
    pub(super) fn new(checkpoint: &Arc<Checkpoint>) -> Result<Self> {
        let (dtype, shape) = checkpoint.tensors().describe(EMBEDDING)?;
        let bytes = shape.iter().product::<usize>() * dtype.bits() as usize / 8;
        let held = if bytes <= HELD_BYTES {
            Some(Arc::new(checkpoint.tensors().read(EMBEDDING, &Self::shape(checkpoint))?))
        } else {
            None
        };
        Ok(Self { checkpoint: Arc::clone(checkpoint), held })
    }

    fn shape(checkpoint: &Checkpoint) -> [usize; 2] {
        [checkpoint.config().vocab_size, checkpoint.config().hidden_size]
    }

    /// The whole of it, if it is in memory.
    pub(super) fn held(&self) -> Option<Arc<Tensor>> {
        self.held.clone()
    }

    /// The rows of `tokens`, widened, `[t, d]`.
    ///
    /// # Errors
    ///
    /// If they cannot be read or are not finite.
    pub(super) fn rows(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let shape = Self::shape(&self.checkpoint);
        let mut values = Vec::with_capacity(tokens.len() * shape[1]);
        if let Some(tensor) = &self.held {
            let row_bytes = tensor.bytes.len() / shape[0];
            let rows =
                tokens.iter().flat_map(|token| &tensor.bytes[*token as usize * row_bytes..][..row_bytes]);
            let shape = vec![tokens.len(), shape[1]];
            return Ok(Tensor { dtype: tensor.dtype, shape, bytes: rows.copied().collect() }.to_f32());
        }
        let mut read: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
        for token in tokens {
            if let std::collections::btree_map::Entry::Vacant(entry) = read.entry(*token) {
                let row = *token as usize..*token as usize + 1;
                entry.insert(self.checkpoint.tensors().read_rows(EMBEDDING, &shape, row)?.to_f32());
            }
        }
        tokens.iter().for_each(|token| values.extend_from_slice(read.get(token).map_or(&[], Vec::as_slice)));
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_one_by_one_are_those_of_the_whole() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model/tiny_llama");
        let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
        let held = Embedding::new(&checkpoint).unwrap();
        assert!(held.held.is_some());
        let read = Embedding { checkpoint, held: None };
        let tokens = [3, 319, 0, 3, 3, 77];
        let before = read.checkpoint.tensors().bytes_read();
        let rows = read.rows(&tokens).unwrap();
        assert_eq!(rows, held.rows(&tokens).unwrap());
        let width = rows.len() / tokens.len();
        assert_eq!(rows[..width], rows[3 * width..4 * width]);
        let bytes = read.checkpoint.tensors().bytes_read() - before;
        assert!(bytes <= (4 * 4 * width) as u64, "{bytes}: each token once");
    }
}
