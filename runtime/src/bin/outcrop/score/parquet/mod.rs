//! Parquet: rows of pairs in, rows of scores out.

mod read;
mod write;

pub(crate) use read::{Table, TableError};
pub(crate) use write::{Columns, convert};
