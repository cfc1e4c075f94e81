//! Matrices in roundings that take long, in a file of this process between passes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use crate::error::{Error, Result};
use crate::model::llama::parts::Packing;

/// Which matrix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) block: usize,
    /// The checkpoint whose tensor it is made of.
    pub(super) owner: usize,
    pub(super) tensor: String,
    pub(super) how: Packing,
}

/// The file, which has no name and goes with the process.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    file: Option<File>,
    /// Where a matrix begins, and its words.
    places: HashMap<Key, (u64, usize)>,
    end: u64,
}

impl Rounded {
    /// The words of a matrix, if they were kept.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] if the file fails.
    pub(super) fn read(&self, key: &Key) -> Result<Option<Vec<u32>>> {
        let (Some(mut file), Some(&(start, words))) = (self.file.as_ref(), self.places.get(key)) else {
            return Ok(None);
        };
        let mut found = vec![0_u32; words];
        let read = file
            .seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(bytemuck::cast_slice_mut(&mut found)));
        read.map_err(Error::read(&std::env::temp_dir()))?;
        Ok(Some(found))
    }

    /// Keeps the words of a matrix.
    ///
    /// # Errors
    ///
    /// [`Error::Write`] if there is no room where temporary files go.
    pub(super) fn keep(&mut self, key: Key, words: &[u32]) -> Result<()> {
        let directory = std::env::temp_dir();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile().map_err(Error::write(&directory))?),
        };
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let written = file.seek(SeekFrom::Start(self.end)).and_then(|_| file.write_all(bytes));
        written.map_err(Error::write(&directory))?;
        self.places.insert(key, (self.end, words.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Rounding, Scheme, Share};

    #[test]
    fn what_was_kept_is_read_back_and_nothing_else() {
        let key = |block, share| Key {
            block,
            owner: 0,
            tensor: "w".to_owned(),
            how: Packing { scheme: Scheme::Int4Row, rounding: Rounding::Kept(share), target: Some(1) },
        };
        let mut rounded = Rounded::default();
        assert_eq!(rounded.read(&key(0, Share::ALL)).unwrap(), None);
        rounded.keep(key(0, Share::ALL), &[1, 2, 3]).unwrap();
        rounded.keep(key(1, Share::ALL), &[]).unwrap();
        rounded.keep(key(0, Share::USUAL), &[u32::MAX; 5]).unwrap();
        assert_eq!(rounded.read(&key(0, Share::ALL)).unwrap(), Some(vec![1, 2, 3]));
        assert_eq!(rounded.read(&key(1, Share::ALL)).unwrap(), Some(vec![]));
        assert_eq!(rounded.read(&key(0, Share::USUAL)).unwrap(), Some(vec![u32::MAX; 5]));
        assert_eq!(rounded.read(&key(1, Share::USUAL)).unwrap(), None);
    }
}
