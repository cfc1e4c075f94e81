//! One safetensors file: header checks and positioned reads.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserializer as _;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use super::files::{malformed, not_lfs_pointer};
use crate::error::{Error, Result};

/// Bytes of the header's length at the start of the file.
const LENGTH_BYTES: usize = 8;

/// Longest header that is read, the safetensors format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes that are hashed at a time, by all threads.
const HASHED_BYTES: usize = 32 << 20;

/// An open safetensors file.
#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    names: Vec<String>,
    /// Where the tensors' bytes begin.
    data_start: u64,
}

impl Shard {
    /// Opens a file and checks its header against its length.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                path: path.clone(),
                what: "the weight file",
                remedy: "download it again; the checkpoint's index names it".to_owned(),
            },
            _ => Error::Read { path: path.clone(), source },
        })?;
        let file_bytes = file.metadata().map_err(Error::read(&path))?.len();

        let mut start = [0; 32];
        let start_len = usize::try_from(file_bytes).unwrap_or(usize::MAX).min(start.len());
        let start = &mut start[..start_len];
        read_exact_at(&file, start, 0).map_err(Error::read(&path))?;
        not_lfs_pointer(&path, start)?;

        let Some(length) = start.first_chunk::<LENGTH_BYTES>() else {
            let expected = "a safetensors file: it may be truncated".to_owned();
            return Err(malformed(&path, "file", &format!("{file_bytes} bytes"), expected));
        };
        let header_bytes = u64::from_le_bytes(*length);
        if header_bytes > MAX_HEADER_BYTES {
            let expected = format!("at most {MAX_HEADER_BYTES}: this is not a safetensors file");
            return Err(malformed(&path, "header length", &header_bytes.to_string(), expected));
        }
        let data_start = LENGTH_BYTES as u64 + header_bytes;
        if data_start > file_bytes {
            let expected = format!("at least {data_start} for the header alone: the file is truncated");
            return Err(malformed(&path, "file", &format!("{file_bytes} bytes"), expected));
        }

        let header_len = usize::try_from(header_bytes).unwrap_or(usize::MAX);
        let mut header = vec![0; header_len];
        read_exact_at(&file, &mut header, LENGTH_BYTES as u64).map_err(Error::read(&path))?;
        refuse_duplicates(&header).map_err(|error| broken_header(&path, &error))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| broken_header(&path, &error))?;

        let expected = data_start + metadata.data_len() as u64;
        if expected != file_bytes {
            let why =
                if file_bytes < expected { "the file is truncated" } else { "the file has trailing bytes" };
            let expected = format!("{expected} by the header: {why}");
            return Err(malformed(&path, "file", &format!("{file_bytes} bytes"), expected));
        }
        let names = metadata.offset_keys();
        log::debug!(
            path:% = path.display(), bytes = file_bytes, tensors = names.len();
            "opened {} ({file_bytes} bytes, {} tensors)",
            path.display(),
            names.len()
        );
        Ok(Self { path, file, metadata, names, data_start })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, in the file's order.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.names.iter()
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Bytes before the tensors.
    pub(super) fn header_bytes(&self) -> u64 {
        self.data_start
    }

    /// Bytes of the whole file, when it was opened.
    pub(super) fn file_bytes(&self) -> u64 {
        self.data_start + self.metadata.data_len() as u64
    }

    /// The BLAKE3 hash of the whole file. `watch` is told how many more bytes are done; its error ends it.
    pub(super) fn content_hash(&self, watch: &mut dyn FnMut(u64) -> Result<()>) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        let total = self.file_bytes();
        let mut buffer = vec![0; HASHED_BYTES.min(usize::try_from(total).unwrap_or(HASHED_BYTES))];
        let mut done = 0;
        while done < total {
            let left = usize::try_from(total - done).unwrap_or(usize::MAX);
            let part = left.min(buffer.len());
            let bytes = &mut buffer[..part];
            read_exact_at(&self.file, bytes, done).map_err(Error::read(&self.path))?;
            hasher.update_rayon(bytes);
            done += bytes.len() as u64;
            watch(bytes.len() as u64)?;
        }
        Ok(hasher.finalize())
    }

    /// Reads `len` bytes from `offset` within the tensors' bytes.
    pub(super) fn read(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        read_exact_at(&self.file, &mut bytes, self.data_start + offset as u64).map_err(|source| {
            // The length was right when the file was opened.
            match source.kind() {
                io::ErrorKind::UnexpectedEof => malformed(
                    &self.path,
                    "file",
                    "its end inside a tensor",
                    "the length it had when it was opened: the file is being changed".to_owned(),
                ),
                _ => Error::Read { path: self.path.clone(), source },
            }
        })?;
        Ok(bytes)
    }
}

fn broken_header(path: &Path, error: &serde_json::Error) -> Error {
    malformed(path, "header", &error.to_string(), "a valid safetensors header".to_owned())
}

/// The safetensors crate lets the last of two equal names win; which one the writer meant is unknown.
fn refuse_duplicates(header: &[u8]) -> serde_json::Result<()> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
            let mut seen = HashSet::new();
            while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                if let Some(name) = seen.replace(name) {
                    return Err(A::Error::custom(format_args!("tensor {name} twice")));
                }
            }
            Ok(())
        }
    }

    let mut deserializer = serde_json::Deserializer::from_slice(header);
    deserializer.deserialize_map(Names)
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
