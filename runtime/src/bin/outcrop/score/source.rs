//! Where pairs come from: lines of text, or rows of a Parquet file; all of them, or a part.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parquet::Table;
use super::shard::Shard;
use crate::error::Error;
use crate::lines::{Input, Line, Lines};
use crate::record::{Key, Record, Task, json_task, tsv_task};

/// An opened input.
pub(crate) struct Source {
    /// What the input is called in messages.
    pub(crate) name: String,
    kind: Kind,
}

enum Kind {
    /// Standard input or a pipe: read once, to its end.
    Stream { input: Input, read: ReadLine },
    /// The lines within a range of bytes of a file.
    Lines { path: PathBuf, file: File, range: Range<u64>, read: ReadLine },
    /// A range of rows.
    Rows { table: Table, range: Range<u64> },
}

/// What a line asks for; `None` for a blank one. The number is the longest length in bytes.
type ReadLine = fn(&Line, usize) -> Option<Record<Task>>;

/// How far an input has been read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The next byte of a text, or the next row of a table.
    pub(crate) offset: u64,
    /// Lines read so far, of this run's part.
    pub(crate) lines: u64,
}

/// What is worked on together.
pub(crate) struct Batch {
    pub(crate) records: Vec<Record<Task>>,
    /// Blank lines between them.
    pub(crate) blank: u64,
    /// Bytes or rows since the batch before.
    pub(crate) length: u64,
    /// Where the next batch begins.
    pub(crate) end: Position,
}

impl Source {
    /// Opens a file, or standard input for `-`; of a file the part that `shard` names.
    pub(crate) fn open(path: &Path, shard: Option<Shard>) -> Result<Source, Error> {
        let extension = path.extension().and_then(OsStr::to_str);
        if extension == Some("parquet") {
            let table = Table::open(path)?;
            let rows = table.rows();
            let range = shard.map_or(0..rows, |shard| shard.of(rows));
            return Ok(Source { name: path.display().to_string(), kind: Kind::Rows { table, range } });
        }
        let read = if extension == Some("tsv") { tsv_task } else { json_task };
        let input = Input::open(path)?;
        let name = input.name.clone();
        let kind = match (input.bytes, shard) {
            (None, Some(shard)) => return Err(Error::ShardOfStream { name, shard }),
            (None, None) => Kind::Stream { input, read },
            (Some(bytes), shard) => {
                let open = || -> io::Result<Kind> {
                    let mut file = File::open(path)?;
                    let range = match shard {
                        None => 0..bytes,
                        Some(shard) => shard.of_lines(&mut file, bytes)?,
                    };
                    Ok(Kind::Lines { path: path.to_owned(), file, range, read })
                };
                open().map_err(|source| Error::Read { from: name.clone(), source })?
            }
        };
        Ok(Source { name, kind })
    }

    /// Where reading begins if nothing has been read yet; `None` for an input that can be read only once.
    pub(crate) fn start(&self) -> Option<Position> {
        match &self.kind {
            Kind::Stream { .. } => None,
            Kind::Lines { range, .. } | Kind::Rows { range, .. } => {
                Some(Position { offset: range.start, lines: 0 })
            }
        }
    }

    /// Bytes or rows to read, where that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match &self.kind {
            Kind::Stream { .. } => None,
            Kind::Lines { range, .. } | Kind::Rows { range, .. } => Some(range.end - range.start),
        }
    }

    /// The Parquet file, if it is one.
    pub(crate) fn table(&self) -> Option<&Table> {
        match &self.kind {
            Kind::Rows { table, .. } => Some(table),
            Kind::Stream { .. } | Kind::Lines { .. } => None,
        }
    }

    /// All batches, from `from` on if it is given.
    pub(crate) fn batches(
        self,
        from: Option<Position>,
        max_line_bytes: usize,
    ) -> io::Result<Box<dyn Iterator<Item = io::Result<Batch>> + Send>> {
        Ok(match self.kind {
            Kind::Stream { input, read } => {
                let lines = Lines::new(input.into_reader(), max_line_bytes);
                let numbering = Numbering::From(0);
                Box::new(LineBatches {
                    lines,
                    read,
                    max_line_bytes,
                    position: Position::default(),
                    numbering,
                })
            }
            Kind::Lines { path, mut file, range, read } => {
                let position = from.unwrap_or(Position { offset: range.start, lines: 0 });
                let numbering = match range.start {
                    0 => Numbering::From(0),
                    start => Numbering::Unknown { path, start },
                };
                file.seek(SeekFrom::Start(position.offset))?;
                let reader = file.take(range.end - position.offset);
                let lines = match position.offset {
                    0 => Lines::new(reader, max_line_bytes),
                    _ => Lines::behind(reader, max_line_bytes, position.lines),
                };
                Box::new(LineBatches { lines, read, max_line_bytes, position, numbering })
            }
            Kind::Rows { table, range } => {
                let start = from.map_or(range.start, |position| position.offset);
                let mut offset = start;
                let batches = table.batches(start..range.end, max_line_bytes)?;
                Box::new(batches.map(move |records| {
                    let records = records?;
                    let length = records.len() as u64;
                    offset += length;
                    Ok(Batch { records, blank: 0, length, end: Position { offset, lines: 0 } })
                }))
            }
        })
    }
}

/// The blocks of a text, read.
struct LineBatches<R> {
    lines: Lines<R>,
    read: ReadLine,
    max_line_bytes: usize,
    position: Position,
    numbering: Numbering,
}

impl<R: Read> LineBatches<R> {
    fn next_batch(&mut self) -> io::Result<Option<Batch>> {
        let Some(block) = self.lines.next_block()? else { return Ok(None) };
        let read = |line: &Line| (self.read)(line, self.max_line_bytes);
        let mut records: Vec<Record<Task>> = block.lines.iter().filter_map(read).collect();
        for record in &mut records {
            if let Key::Line(number) = &mut record.key {
                *number += self.numbering.before()?;
            }
        }
        self.position.offset += block.bytes;
        self.position.lines += block.lines.len() as u64;
        let blank = (block.lines.len() - records.len()) as u64;
        Ok(Some(Batch { records, blank, length: block.bytes, end: self.position }))
    }
}

impl<R: Read> Iterator for LineBatches<R> {
    type Item = io::Result<Batch>;

    fn next(&mut self) -> Option<io::Result<Batch>> {
        self.next_batch().transpose()
    }
}

/// How many lines the file has before the part that is read. They are counted when a line is first named by its number: a large file
/// whose lines have ids is not read up to its last part.
enum Numbering {
    From(u64),
    Unknown { path: PathBuf, start: u64 },
}

impl Numbering {
    fn before(&mut self) -> io::Result<u64> {
        match self {
            Numbering::From(before) => Ok(*before),
            Numbering::Unknown { path, start } => {
                let before = count_lines(File::open(path)?.take(*start))?;
                *self = Numbering::From(before);
                Ok(before)
            }
        }
    }
}

fn count_lines(mut reader: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut lines = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(lines),
            Ok(read) => lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
