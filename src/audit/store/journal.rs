//! A file that lines are appended to, and that survives being cut anywhere.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::line::Line;
use crate::error::{Error, Result};

/// Lines are on the disk itself after so long at most, should the power fail; the system has them at once.
const SYNC: Duration = Duration::from_secs(5);

/// Lines of one arm.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Opened by the first line.
    file: Option<File>,
    /// Since when lines wait to be brought to the disk.
    waiting: Option<Instant>,
    /// Bytes that are whole lines; none before the file was read.
    whole: u64,
}

/// What was left out of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Whether the file ended in the middle of a line.
    pub(super) torn: bool,
    /// Numbers of lines that are whole but cannot be read, from 1.
    pub(super) broken: Vec<usize>,
}

impl Journal {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, waiting: None, whole: 0 }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Hands over every line that can be read. A file that is not there has none.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub(super) fn read(&mut self, take: &mut dyn FnMut(Line)) -> Result<Dropped> {
        let mut dropped = Dropped::default();
        self.whole = 0;
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(dropped),
            file => file.map_err(Error::read(&self.path))?,
        };
        let mut reader = BufReader::new(file);
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let length = reader.read_until(b'\n', &mut bytes).map_err(Error::read(&self.path))?;
            if length == 0 {
                break;
            }
            if bytes.pop() != Some(b'\n') {
                dropped.torn = true;
                break;
            }
            self.whole += length as u64;
            match std::str::from_utf8(&bytes).ok().and_then(Line::parse) {
                Some(line) => take(line),
                None => dropped.broken.push(number),
            }
        }
        Ok(dropped)
    }

    /// Appends a line, in one piece. What a torn line left behind is cut off first.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub(super) fn append(&mut self, line: &Line) -> Result<()> {
        let text = line.to_text().map_err(|error| Error::write(&self.path)(error.into()))?;
        self.write(text.as_bytes()).map_err(Error::write(&self.path))
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut file =
                    OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
                file.set_len(self.whole)?;
                file.seek(SeekFrom::End(0))?;
                none.insert(file)
            }
        };
        file.write_all(bytes)?;
        let since = *self.waiting.get_or_insert_with(Instant::now);
        if since.elapsed() >= SYNC { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match (&self.file, self.waiting.take()) {
            (Some(file), Some(_)) => file.sync_data(),
            _ => Ok(()),
        }
    }

    /// Brings all lines to the disk itself.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub(super) fn sync(&mut self) -> Result<()> {
        self.flush().map_err(Error::write(&self.path))
    }
}
