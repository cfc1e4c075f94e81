//! A checkpoint that is being written: nobody sees it before it is whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::files::read_object;
use crate::error::{Error, Result};
use crate::quant::Scheme;

/// Longest config file that is read.
const LIMIT_BYTES: u64 = 1 << 20;

/// A directory beside its final place. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    temporary: PathBuf,
    out: PathBuf,
}

impl Draft {
    /// Begins a directory that is to become `out`.
    ///
    /// # Errors
    ///
    /// If `out` is there and is no empty directory (told as the flag `--out`), or nothing can be written beside it.
    pub fn new(out: &Path) -> Result<Self> {
        let refuse = |found: &str| Error::Flag {
            flag: "--out",
            found: format!("{}, {found},", out.display()),
            expected: "a directory that is empty or not there yet".to_owned(),
        };
        let Some(name) = out.file_name() else { return Err(refuse("which has no name of its own")) };
        match fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(refuse("which is not empty")),
            Err(_) if out.exists() => return Err(refuse("which is no directory")),
            Ok(false) | Err(_) => {}
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        let temporary = out.with_file_name(hidden);
        fs::create_dir_all(&temporary).map_err(Error::write(&temporary))?;
        Ok(Self { temporary, out: out.to_path_buf() })
    }

    /// Where a file of the checkpoint is to be written.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    /// Writes a small file.
    ///
    /// # Errors
    ///
    /// If that fails.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, content).map_err(Error::write(&path))
    }

    /// Copies what belongs to a checkpoint besides its weights: tokenizer, generation settings, licences. `config.json`
    /// then says that weights are float32, so that loaders do not narrow them, and how they are quantized.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written.
    pub(crate) fn copy_from(&self, checkpoint: &Path, quantization: Option<Value>) -> Result<()> {
        for entry in fs::read_dir(checkpoint).map_err(Error::read(checkpoint))? {
            let entry = entry.map_err(Error::read(checkpoint))?;
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str().filter(|name| path.is_file() && belongs(name)) else { continue };
            let to = self.file(name);
            fs::copy(&path, &to).map_err(Error::write(&to))?;
        }
        let mut config = read_object(&checkpoint.join("config.json"), "config.json", "", LIMIT_BYTES)?;
        for key in ["dtype", "torch_dtype"] {
            if let Some(dtype) = config.get_mut(key) {
                *dtype = json!("float32");
            }
        }
        if let Some(quantization) = quantization {
            config.insert("quantization_config".to_owned(), quantization);
        }
        self.write("config.json", &format!("{:#}\n", Value::Object(config)))
    }

    /// Puts the directory in its place.
    ///
    /// # Errors
    ///
    /// If that fails, or the place has been taken meanwhile.
    pub fn publish(self) -> Result<()> {
        if self.out.exists() {
            // Only an empty directory can be removed so.
            fs::remove_dir(&self.out).map_err(Error::write(&self.out))?;
        }
        fs::rename(&self.temporary, &self.out).map_err(Error::write(&self.out))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Published, it is no longer there; nobody is left to tell if it stays.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}

/// Whether a file of this name is no weights and still the checkpoint's.
fn belongs(name: &str) -> bool {
    let other = name.ends_with(".index.json") || name == "undertext.json" || name.starts_with('.');
    let path = Path::new(name);
    let text = ["json", "txt", "model", "jinja"].iter().any(|end| path.extension() == Some(end.as_ref()));
    !other && (text || name.starts_with("LICENSE") || name.starts_with("NOTICE"))
}

/// What a written tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Weights, as [`Scheme::F32`], [`Scheme::F16`] or [`Scheme::Bf16`].
    Weights(Scheme),
    /// Words of codes.
    I32,
    /// Sizes.
    I64,
}

impl Kind {
    /// The format's name, and bytes of a value.
    fn describe(self) -> (&'static str, usize) {
        match self {
            Self::Weights(Scheme::F16) => ("F16", 2),
            Self::Weights(Scheme::Bf16) => ("BF16", 2),
            Self::Weights(_) => ("F32", 4),
            Self::I32 => ("I32", 4),
            Self::I64 => ("I64", 8),
        }
    }
}

/// A safetensors file, written from front to back.
pub(crate) struct TensorWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes that the header promises and that are not written yet.
    left: usize,
}

impl TensorWriter {
    /// Writes the header: names, dtypes and shapes, in the order in which the values will come.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub(crate) fn create(path: PathBuf, tensors: &[(String, Kind, Vec<usize>)]) -> Result<Self> {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut end = 0;
        for (name, kind, shape) in tensors {
            let (dtype, bytes) = kind.describe();
            let start = end;
            end += shape.iter().product::<usize>() * bytes;
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            header.insert(name.clone(), entry);
        }
        let mut header = Value::Object(header).to_string();
        // Values begin at a multiple of 8; the format allows blanks here.
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let file = File::create(&path).map_err(Error::write(&path))?;
        let mut writer = Self { path, file: BufWriter::new(file), left: 8 + header.len() + end };
        writer.write(&(header.len() as u64).to_le_bytes())?;
        writer.write(header.as_bytes())?;
        Ok(writer)
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    ///
    /// If that fails.
    ///
    /// # Panics
    ///
    /// If there are more than the header promised: a bug in the caller.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(
            bytes.len() <= self.left,
            "{} bytes more than {} has room for",
            bytes.len(),
            self.path.display()
        );
        self.left -= bytes.len();
        self.file.write_all(bytes).map_err(Error::write(&self.path))
    }

    /// Ends the file.
    ///
    /// # Errors
    ///
    /// If the last bytes cannot be written.
    ///
    /// # Panics
    ///
    /// If bytes are missing: a bug in the caller.
    pub(crate) fn finish(mut self) -> Result<()> {
        assert_eq!(self.left, 0, "bytes missing in {}", self.path.display());
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(Error::write(&self.path))
    }
}
