//! `--shard i/n`: which part of an input is this run's.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::str::FromStr;

/// Part `index` of `count` consecutive parts, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    index: u64,
    count: u64,
}

/// A text that names no shard.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseShardError {
    #[error("a shard is given as i/n: 0/4 is the first of four")]
    Form,
    #[error("there is no shard of 0; n of i/n is 1 or more")]
    None,
    #[error("shards are counted from 0: of {count} there are 0/{count} to {}/{count}", count - 1)]
    Index { count: u64 },
}

impl FromStr for Shard {
    type Err = ParseShardError;

    fn from_str(text: &str) -> Result<Shard, ParseShardError> {
        let (index, count) = text.split_once('/').ok_or(ParseShardError::Form)?;
        // Only digits: `parse` also takes a plus sign.
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u64>().map_err(|_| ParseShardError::Form),
            false => Err(ParseShardError::Form),
        };
        match (number(index)?, number(count)?) {
            (_, 0) => Err(ParseShardError::None),
            (index, count) if index >= count => Err(ParseShardError::Index { count }),
            (index, count) => Ok(Shard { index, count }),
        }
    }
}

impl Shard {
    /// This part of `length` units. The parts of all shards follow one another without a gap and differ by at most 1.
    pub(crate) fn of(self, length: u64) -> Range<u64> {
        let cut = |index: u64| {
            let cut = u128::from(length) * u128::from(index) / u128::from(self.count);
            u64::try_from(cut).expect("a part is no longer than the whole")
        };
        cut(self.index)..cut(self.index + 1)
    }

    /// The bytes of the lines that begin in this part of a file of `length` bytes.
    pub(crate) fn of_lines<F: Read + Seek>(self, file: &mut F, length: u64) -> io::Result<Range<u64>> {
        let part = self.of(length);
        Ok(line_start(file, part.start)?..line_start(file, part.end)?)
    }
}

/// The start of the first line that begins at `at` or behind it, or the end of the file.
fn line_start<F: Read + Seek>(file: &mut F, at: u64) -> io::Result<u64> {
    // A line begins at 0, and wherever the byte before is a line break.
    let Some(before) = at.checked_sub(1) else { return Ok(0) };
    file.seek(SeekFrom::Start(before))?;
    let mut reader = BufReader::new(file);
    Ok(before + reader.skip_until(b'\n')? as u64)
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}
