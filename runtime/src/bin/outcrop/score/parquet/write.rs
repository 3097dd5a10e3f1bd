//! Lines of scores as a Parquet file.
//!
//! A Parquet file ends with the index of all its parts, and without it nothing of it can be read. So results are kept as lines until
//! all are there, and then become a Parquet file in one go.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, StructArray,
    UInt64Array,
};
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Rows that are held as objects at a time.
const BATCH_ROWS: usize = 4096;
/// Rows of a row group: with an id some ten megabytes.
const ROW_GROUP_ROWS: usize = 1 << 18;

/// The columns of a table of scores, besides those that all have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Columns {
    /// The type of the ids: strings, or signed or unsigned integers.
    pub(crate) id: Option<DataType>,
    /// What names a row without an id: "line" or "row".
    pub(crate) number: &'static str,
    /// Whether a row has the index of a passage in its list.
    pub(crate) index: bool,
    /// The cutoff layers, if there are several.
    pub(crate) layers: Vec<usize>,
    pub(crate) tokens_after: bool,
}

/// One line of scores.
#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(alias = "row")]
    line: Option<i64>,
    index: Option<i32>,
    // Scores keep their text: `f64::from_str` rounds correctly, and serde_json only nearly.
    #[serde(borrow)]
    score: Option<&'a RawValue>,
    #[serde(borrow, default)]
    scores: HashMap<&'a str, &'a RawValue>,
    tokens: Option<i32>,
    truncated: Option<bool>,
    tokens_after: Option<i32>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
}

/// Turns a file of lines into a Parquet file.
pub(crate) fn convert(lines: &Path, table: &mut File, columns: &Columns) -> io::Result<()> {
    let schema = Arc::new(columns.schema());
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let mut writer = ArrowWriter::try_new(table, Arc::clone(&schema), Some(properties)).map_err(failed)?;
    let mut lines = BufReader::new(File::open(lines)?).lines();
    loop {
        let texts: Vec<String> = lines.by_ref().take(BATCH_ROWS).collect::<io::Result<_>>()?;
        if texts.is_empty() {
            break;
        }
        let rows: Vec<Row> = texts.iter().map(|text| serde_json::from_str(text)).collect::<Result<_, _>>()?;
        let batch =
            RecordBatch::try_new(Arc::clone(&schema), columns.arrays(&rows)?).map_err(io::Error::other)?;
        writer.write(&batch).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(())
}

/// The reason why the system did not write, if it is one.
fn failed(error: parquet::errors::ParquetError) -> io::Error {
    match error {
        parquet::errors::ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(cause) => io::Error::other(cause),
        },
        error => io::Error::other(error),
    }
}

impl Columns {
    fn schema(&self) -> Schema {
        let mut fields = Vec::new();
        let mut add = |name: &str, data_type| fields.push(Field::new(name, data_type, true));
        if let Some(id) = &self.id {
            add("id", widened(id));
        }
        add(self.number, DataType::Int64);
        if self.index {
            add("index", DataType::Int32);
        }
        add("score", DataType::Float64);
        if !self.layers.is_empty() {
            add("scores", DataType::Struct(self.layer_fields()));
        }
        add("tokens", DataType::Int32);
        add("truncated", DataType::Boolean);
        if self.tokens_after {
            add("tokens_after", DataType::Int32);
        }
        add("error", DataType::Utf8);
        Schema::new(fields)
    }

    fn layer_fields(&self) -> Fields {
        self.layers.iter().map(|layer| Field::new(layer.to_string(), DataType::Float64, true)).collect()
    }

    /// The arrays of the schema's columns.
    fn arrays(&self, rows: &[Row]) -> io::Result<Vec<ArrayRef>> {
        let mut arrays: Vec<ArrayRef> = Vec::new();
        if let Some(id) = &self.id {
            arrays.push(ids(rows, id)?);
        }
        arrays.push(Arc::new(rows.iter().map(|row| row.line).collect::<Int64Array>()));
        if self.index {
            arrays.push(Arc::new(rows.iter().map(|row| row.index).collect::<Int32Array>()));
        }
        arrays.push(Arc::new(floats(rows.iter().map(|row| row.score))?));
        if !self.layers.is_empty() {
            let of_layer = |layer: &usize| -> io::Result<ArrayRef> {
                let name = layer.to_string();
                Ok(Arc::new(floats(rows.iter().map(|row| row.scores.get(name.as_str()).copied()))?))
            };
            let layers = self.layers.iter().map(of_layer).collect::<io::Result<_>>()?;
            let scores = StructArray::try_new(self.layer_fields(), layers, None);
            arrays.push(Arc::new(scores.map_err(|error: ArrowError| io::Error::other(error))?));
        }
        arrays.push(Arc::new(rows.iter().map(|row| row.tokens).collect::<Int32Array>()));
        arrays.push(Arc::new(rows.iter().map(|row| row.truncated).collect::<BooleanArray>()));
        if self.tokens_after {
            arrays.push(Arc::new(rows.iter().map(|row| row.tokens_after).collect::<Int32Array>()));
        }
        arrays.push(Arc::new(rows.iter().map(|row| row.error.as_deref()).collect::<StringArray>()));
        Ok(arrays)
    }
}

/// Integers of any width are kept as 64 bits.
fn widened(id: &DataType) -> DataType {
    match id {
        id if id.is_signed_integer() => DataType::Int64,
        id if id.is_unsigned_integer() => DataType::UInt64,
        _ => DataType::Utf8,
    }
}

fn ids(rows: &[Row], id: &DataType) -> io::Result<ArrayRef> {
    let texts = rows.iter().map(|row| row.id.map(RawValue::get));
    Ok(match widened(id) {
        DataType::Int64 => {
            let ids = texts.map(|id| id.map(str::parse).transpose());
            Arc::new(ids.collect::<Result<Int64Array, _>>().map_err(io::Error::other)?)
        }
        DataType::UInt64 => {
            let ids = texts.map(|id| id.map(str::parse).transpose());
            Arc::new(ids.collect::<Result<UInt64Array, _>>().map_err(io::Error::other)?)
        }
        // Numbers among the ids of lines of JSON keep their text.
        _ => {
            let ids = texts.map(|id| match id {
                Some(text) if text.starts_with('"') => serde_json::from_str::<String>(text).map(Some),
                other => Ok(other.map(str::to_owned)),
            });
            Arc::new(ids.collect::<Result<StringArray, _>>()?)
        }
    })
}

fn floats<'a>(values: impl Iterator<Item = Option<&'a RawValue>>) -> io::Result<Float64Array> {
    let values = values.map(|value| value.map(|value| value.get().parse::<f64>()).transpose());
    values.collect::<Result<_, _>>().map_err(io::Error::other)
}
