//! Lines of any length from a file or standard input, in blocks, with bounded memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use crate::error::Error;

/// Most lines of a block: what is lost at most when the process is killed. Some ten thousand tokens of ordinary pairs
/// fill the processor, and a large model answers them within half a minute.
const BLOCK_LINES: usize = 64;
/// A block ends with the line that takes it over this size.
const BLOCK_BYTES: usize = 4 << 20;
/// What is asked of the operating system at a time.
const READ_BYTES: usize = 256 << 10;

/// One line, without its line break.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The number of the line, counted from 1.
    pub(crate) number: u64,
    pub(crate) content: Content,
}

/// What a line holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// The line was longer than the limit; only its length was kept.
    TooLong {
        bytes: u64,
    },
}

/// Consecutive lines that are worked on together.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) lines: Vec<Line>,
    /// Bytes of input up to the end of this block, since the block before.
    pub(crate) bytes: u64,
}

/// An opened input.
pub(crate) struct Input {
    /// What the input is called in messages.
    pub(crate) name: String,
    /// The size of a regular file.
    pub(crate) bytes: Option<u64>,
    reader: Box<dyn Read + Send>,
}

impl Input {
    /// Opens a file, or standard input for `-`.
    pub(crate) fn open(path: &Path) -> Result<Input, Error> {
        if path.as_os_str() == "-" {
            return Ok(Input {
                name: "standard input".to_owned(),
                bytes: None,
                reader: Box::new(io::stdin()),
            });
        }
        let name = path.display().to_string();
        let open = || -> io::Result<(File, Option<u64>)> {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Ok((file, metadata.is_file().then_some(metadata.len())))
        };
        match open() {
            Ok((file, bytes)) => Ok(Input { name, bytes, reader: Box::new(file) }),
            Err(source) => Err(Error::Read { from: name, source }),
        }
    }

    /// What there is to read.
    pub(crate) fn into_reader(self) -> Box<dyn Read + Send> {
        self.reader
    }

    /// Calls `work` with one block after the other, while a second thread reads the next ones.
    ///
    /// At most three blocks exist at a time. What was read before a read error is worked on before it is returned.
    pub(crate) fn for_each_block(
        self,
        max_line_bytes: usize,
        mut work: impl FnMut(Block) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut lines = Lines::new(self.reader, max_line_bytes);
        let blocks = std::iter::from_fn(move || lines.next_block().transpose());
        read_ahead(blocks, |block| {
            work(block.map_err(|source| Error::Read { from: self.name.clone(), source })?)
        })
    }
}

/// Calls `work` with one item after the other, while a second thread reads the next ones: at most three exist at a time. The item
/// behind an error is not read.
pub(crate) fn read_ahead<T: Send + 'static, E: Send + 'static>(
    items: impl Iterator<Item = Result<T, E>> + Send + 'static,
    mut work: impl FnMut(Result<T, E>) -> Result<(), Error>,
) -> Result<(), Error> {
    let (sender, received) = mpsc::sync_channel(1);
    // The thread is not joined: it may wait for input for ever when `work` has failed.
    thread::spawn(move || {
        for item in items {
            let failed = item.is_err();
            if sender.send(item).is_err() || failed {
                return;
            }
        }
    });
    received.into_iter().try_for_each(&mut work)
}

/// Splits a reader into lines.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    max_line_bytes: usize,
    /// Lines read so far.
    number: u64,
    /// Whether the next line is the first of the file, where a byte order mark may stand.
    at_start: bool,
    /// A read error that came after the first line of a block.
    failure: Option<io::Error>,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(reader: R, max_line_bytes: usize) -> Lines<R> {
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        Lines { reader, max_line_bytes, number: 0, at_start: true, failure: None }
    }

    /// As [`Lines::new`], for a reader that begins in the middle of a file, after `number` lines.
    pub(crate) fn behind(reader: R, max_line_bytes: usize, number: u64) -> Lines<R> {
        Lines { number, at_start: false, ..Lines::new(reader, max_line_bytes) }
    }

    /// The next lines, or `None` at the end. A block ends early when the next line has not arrived yet, so that what
    /// another program writes line by line is answered line by line.
    pub(crate) fn next_block(&mut self) -> io::Result<Option<Block>> {
        let mut block = Block::default();
        let mut held_bytes = 0;
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        loop {
            match self.next_line() {
                Ok(Some((line, bytes))) => {
                    if let Content::Bytes(content) = &line.content {
                        held_bytes += content.len();
                    }
                    block.lines.push(line);
                    block.bytes += bytes;
                }
                Ok(None) => break,
                Err(error) if block.lines.is_empty() => return Err(error),
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            }
            let full = block.lines.len() >= BLOCK_LINES || held_bytes >= BLOCK_BYTES;
            if full || !self.reader.buffer().contains(&b'\n') {
                break;
            }
        }
        Ok(Some(block).filter(|block| !block.lines.is_empty()))
    }

    /// The next line and its length in bytes with the line break.
    fn next_line(&mut self) -> io::Result<Option<(Line, u64)>> {
        let mut content = Vec::new();
        let mut total = 0;
        let mut complete = false;
        while !complete {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            total += part.len();
            if total <= self.max_line_bytes {
                content.extend_from_slice(part);
            } else {
                content = Vec::new();
            }
            complete = end.is_some();
            let used = part.len() + usize::from(complete);
            self.reader.consume(used);
        }
        if total == 0 && !complete {
            return Ok(None);
        }
        self.number += 1;
        let bytes = total as u64 + u64::from(complete);
        let content = if total > self.max_line_bytes {
            Content::TooLong { bytes: total as u64 }
        } else {
            Content::Bytes(trimmed(content, self.at_start))
        };
        self.at_start = false;
        Ok(Some((Line { number: self.number, content }, bytes)))
    }
}

/// Takes off what Windows programs add: a carriage return at the end, a byte order mark before the first line.
fn trimmed(mut content: Vec<u8>, at_start: bool) -> Vec<u8> {
    const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
    if content.last() == Some(&b'\r') {
        content.pop();
    }
    if at_start && content.starts_with(BYTE_ORDER_MARK) {
        content.drain(..BYTE_ORDER_MARK.len());
    }
    content
}
