//! The rows of a Parquet file as records, some at a time.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use serde_json::value::{RawValue, to_raw_value};

use crate::error::Error;
use crate::record::{Key, LineError, Pair, Record, Task};

/// Rows that are read at a time, as the lines of a block.
const BATCH_ROWS: usize = 64;

/// The columns of which one holds the passages: a string, or a list of strings.
const PASSAGE_COLUMNS: [&str; 4] = ["passage", "document", "passages", "documents"];

/// Why a Parquet file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    #[error("there is no column {missing}; the columns are {columns}")]
    Missing { missing: &'static str, columns: String },
    #[error(
        "columns {first} and {second} are both there; give one of passage, document, passages and documents"
    )]
    TwoPassages { first: &'static str, second: &'static str },
    #[error("column {column} must be {expected}, found {found}")]
    Type { column: &'static str, expected: &'static str, found: String },
    #[error(transparent)]
    Parquet(#[from] parquet::errors::ParquetError),
}

/// An opened Parquet file with the columns that a pair needs.
pub(crate) struct Table {
    file: File,
    metadata: ArrowReaderMetadata,
    id: Option<DataType>,
    passages: &'static str,
}

impl Table {
    /// Opens a file and checks its columns.
    pub(crate) fn open(path: &Path) -> Result<Table, Error> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| Error::Read { from: name.clone(), source })?;
        Table::new(file).map_err(|source| Error::Table { path: name, source: Box::new(source) })
    }

    fn new(file: File) -> Result<Table, TableError> {
        // Without the types of the program that wrote the file a text is a string, however it was held there.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&file, options)?;
        let schema = metadata.schema();
        require(schema, "query", &|found| *found == DataType::Utf8, "a string")?;
        let mut there =
            PASSAGE_COLUMNS.into_iter().filter(|column| schema.column_with_name(column).is_some());
        let passages = there.next().unwrap_or("passage");
        if let Some(second) = there.next() {
            return Err(TableError::TwoPassages { first: passages, second });
        }
        match passages {
            "passage" | "document" => {
                require(schema, passages, &|found| *found == DataType::Utf8, "a string")?;
            }
            _ => {
                let is_list = |found: &DataType| matches!(found, DataType::List(item) if *item.data_type() == DataType::Utf8);
                require(schema, passages, &is_list, "a list of strings")?;
            }
        }
        let id = match schema.column_with_name("id") {
            None => None,
            Some(_) => {
                let fits = |found: &DataType| found.is_integer() || *found == DataType::Utf8;
                Some(require(schema, "id", &fits, "a string or an integer")?.clone())
            }
        };
        Ok(Table { file, metadata, id, passages })
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> u64 {
        u64::try_from(self.metadata.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// The type of the ids, if there are any.
    pub(crate) fn id(&self) -> Option<&DataType> {
        self.id.as_ref()
    }

    /// Whether a row has a list of passages.
    pub(crate) fn has_lists(&self) -> bool {
        matches!(self.passages, "passages" | "documents")
    }

    /// The records of a range of rows, some at a time. `max_bytes` is the longest row.
    pub(crate) fn batches(
        self,
        rows: Range<u64>,
        max_bytes: usize,
    ) -> io::Result<impl Iterator<Item = io::Result<Vec<Record<Task>>>> + Send> {
        let passages = self.passages;
        let has_lists = self.has_lists();
        let mut first = rows.start;
        let reader = self.reader(&rows).map_err(io::Error::other)?;
        Ok(reader.into_iter().flatten().map(move |batch| {
            let batch = batch.map_err(io::Error::other)?;
            let columns = RowColumns::of(&batch, passages, has_lists);
            let records =
                (0..batch.num_rows()).map(|i| columns.record(i, first + i as u64, max_bytes)).collect();
            first += batch.num_rows() as u64;
            Ok(records)
        }))
    }

    /// A reader of these rows; `None` if there are none.
    fn reader(
        self,
        rows: &Range<u64>,
    ) -> Result<Option<ParquetRecordBatchReader>, parquet::errors::ParquetError> {
        if rows.is_empty() {
            return Ok(None);
        }
        let schema = self.metadata.schema();
        let wanted = ["id", "query", self.passages];
        let roots: Vec<usize> = wanted.iter().filter_map(|name| schema.index_of(name).ok()).collect();
        // Row groups that hold none of the rows are not touched.
        let (mut row_groups, mut before, mut start) = (Vec::new(), 0, 0);
        for (i, row_group) in self.metadata.metadata().row_groups().iter().enumerate() {
            let end = start + u64::try_from(row_group.num_rows()).unwrap_or(0);
            if end <= rows.start {
                before = end;
            } else if start < rows.end {
                row_groups.push(i);
            }
            start = end;
        }
        let elements = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file, self.metadata);
        let columns = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reader = builder
            .with_batch_size(BATCH_ROWS)
            .with_projection(columns)
            .with_row_groups(row_groups)
            .with_offset(elements(rows.start - before))
            .with_limit(elements(rows.end - rows.start))
            .build()?;
        Ok(Some(reader))
    }
}

/// The type of a column, if it fits.
fn require<'a>(
    schema: &'a Schema,
    column: &'static str,
    fits: &dyn Fn(&DataType) -> bool,
    expected: &'static str,
) -> Result<&'a DataType, TableError> {
    let Some((_, field)) = schema.column_with_name(column) else {
        let columns =
            schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
        return Err(TableError::Missing { missing: column, columns });
    };
    match field.data_type() {
        found if fits(found) => Ok(found),
        found => Err(TableError::Type { column, expected, found: found.to_string() }),
    }
}

/// The columns of some rows.
struct RowColumns<'a> {
    id: Option<&'a ArrayRef>,
    query: &'a ArrayRef,
    passages: &'a ArrayRef,
    /// The name of the column of passages, and whether it holds lists.
    name: &'static str,
    has_lists: bool,
}

impl<'a> RowColumns<'a> {
    fn of(batch: &'a RecordBatch, name: &'static str, has_lists: bool) -> RowColumns<'a> {
        let column = |name| batch.column_by_name(name);
        let there = "the columns were found when the file was opened";
        RowColumns {
            id: column("id"),
            query: column("query").expect(there),
            passages: column(name).expect(there),
            name,
            has_lists,
        }
    }

    fn record(&self, i: usize, row: u64, max_bytes: usize) -> Record<Task> {
        let key = self.id.and_then(|ids| id(ids, i)).map_or(Key::Row(row), Key::Id);
        Record { key, number: row + 1, body: self.task(i, max_bytes) }
    }

    fn task(&self, i: usize, max_bytes: usize) -> Result<Task, LineError> {
        let query = text(self.query, i).ok_or(LineError::Null { column: "query" })?;
        let null = LineError::Null { column: self.name };
        let too_long = |bytes: usize| match query.len() + bytes {
            bytes if bytes > max_bytes => {
                Err(LineError::RowTooLong { bytes: bytes as u64, limit: max_bytes })
            }
            _ => Ok(()),
        };
        if !self.has_lists {
            let passage = text(self.passages, i).ok_or(null)?;
            too_long(passage.len())?;
            return Ok(Task::Pair(Pair { query: query.to_owned(), passage: passage.to_owned() }));
        }
        let lists = self.passages.as_list::<i32>();
        if lists.is_null(i) {
            return Err(null);
        }
        let items = lists.value(i);
        let passages: Vec<Option<&str>> = (0..items.len()).map(|k| text(&items, k)).collect();
        if passages.is_empty() {
            return Err(LineError::NoPassages { field: self.name });
        }
        too_long(passages.iter().flatten().map(|passage| passage.len()).sum())?;
        let owned = |passage: Option<&str>| {
            passage.map(str::to_owned).ok_or(LineError::PassageType { found: "null" })
        };
        Ok(Task::List { query: query.to_owned(), passages: passages.into_iter().map(owned).collect() })
    }
}

fn text(strings: &ArrayRef, i: usize) -> Option<&str> {
    let strings = strings.as_string::<i32>();
    strings.is_valid(i).then(|| strings.value(i))
}

/// The id of a row as JSON; `None` if it is null.
fn id(ids: &ArrayRef, i: usize) -> Option<Box<RawValue>> {
    if ids.is_null(i) {
        return None;
    }
    let json = match ids.data_type() {
        DataType::Utf8 => to_raw_value(ids.as_string::<i32>().value(i)),
        DataType::Int8 => to_raw_value(&ids.as_primitive::<Int8Type>().value(i)),
        DataType::Int16 => to_raw_value(&ids.as_primitive::<Int16Type>().value(i)),
        DataType::Int32 => to_raw_value(&ids.as_primitive::<Int32Type>().value(i)),
        DataType::Int64 => to_raw_value(&ids.as_primitive::<Int64Type>().value(i)),
        DataType::UInt8 => to_raw_value(&ids.as_primitive::<UInt8Type>().value(i)),
        DataType::UInt16 => to_raw_value(&ids.as_primitive::<UInt16Type>().value(i)),
        DataType::UInt32 => to_raw_value(&ids.as_primitive::<UInt32Type>().value(i)),
        _ => to_raw_value(&ids.as_primitive::<UInt64Type>().value(i)),
    };
    Some(json.expect("a string or an integer is JSON"))
}
