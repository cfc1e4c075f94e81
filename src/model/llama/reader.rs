//! Reading ahead: tensors from disk on a thread of their own, while the device computes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result};

/// Rows of a tensor to read.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) name: String,
    /// Of the whole tensor.
    pub(super) shape: Vec<usize>,
    pub(super) rows: Range<usize>,
    /// The whole tensor, if it is in memory anyway.
    pub(super) held: Option<Arc<Tensor>>,
}

impl Request {
    fn read(self) -> Result<Tensor> {
        match self.held {
            None => self.checkpoint.tensors().read_rows(&self.name, &self.shape, self.rows),
            Some(tensor) => {
                let row = tensor.bytes.len() / self.shape.first().copied().unwrap_or(1).max(1);
                let mut shape = self.shape;
                if let Some(first) = shape.first_mut() {
                    *first = self.rows.len();
                }
                let bytes = tensor.bytes[self.rows.start * row..self.rows.end * row].to_vec();
                Ok(Tensor { dtype: tensor.dtype, shape, bytes })
            }
        }
    }
}

/// Tensors on their way, in the order of the requests. One waits to be taken while the next is read: that, and the
/// one being used, is what host memory holds.
#[derive(Debug)]
pub(super) struct Reader {
    receiver: Receiver<Result<Tensor>>,
}

impl Reader {
    /// Starts to read.
    pub(super) fn start(requests: Vec<Request>) -> Self {
        let (sender, receiver) = sync_channel(0);
        std::thread::spawn(move || {
            for request in requests {
                let read = request.read();
                let failed = read.is_err();
                // Nobody listens any more when the pass has failed elsewhere.
                if sender.send(read).is_err() || failed {
                    return;
                }
            }
        });
        Self { receiver }
    }

    /// The next tensor; waits for it.
    ///
    /// # Errors
    ///
    /// That of reading it.
    pub(super) fn next(&self) -> Result<Tensor> {
        self.receiver.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// The next tensor if it is there.
    ///
    /// # Errors
    ///
    /// That of reading it.
    pub(super) fn try_next(&self) -> Result<Option<Tensor>> {
        match self.receiver.try_recv() {
            Ok(tensor) => tensor.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ended()),
        }
    }
}

/// The thread ended early: it panicked, or more was asked of it than was requested.
fn ended() -> Error {
    Error::Device { during: "reading weights ahead".to_owned(), report: "the reader ended early".to_owned() }
}
