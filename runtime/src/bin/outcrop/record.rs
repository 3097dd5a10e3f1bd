//! What a line of input says, and the line of output that answers it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::lines::{Content, Line};
use crate::score::run_batch::Request;

/// What stands for a line in the output: its own id, else its number.
#[derive(Debug, Clone)]
pub(crate) enum Key {
    /// The JSON text of the id, a string or a number, exactly as given.
    Id(Box<RawValue>),
    /// The number of a line of text, counted from 1.
    Line(u64),
    /// The number of a row of a table, counted from 0.
    Row(u64),
}

/// A line of input, or a row, with its key; what it holds, or why it cannot be used.
#[derive(Debug)]
pub(crate) struct Record<T> {
    pub(crate) key: Key,
    /// The number of the line, counted from 1.
    pub(crate) number: u64,
    pub(crate) body: Result<T, LineError>,
}

/// What a line asks to be scored.
#[derive(Debug, PartialEq)]
pub(crate) enum Task {
    Pair(Pair),
    /// A list of passages for one query; a passage that cannot be used fails alone.
    List {
        query: String,
        passages: Vec<Result<String, LineError>>,
    },
    /// A line of a file for vLLM's run-batch.
    Request(Box<Request>),
}

/// A query and a passage.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) query: String,
    pub(crate) passage: String,
}

/// Why a line cannot be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LineError {
    #[error("the line has {bytes} bytes, more than the {limit} that --max-line-bytes allows")]
    TooLong { bytes: u64, limit: usize },
    #[error("the row has {bytes} bytes, more than the {limit} that --max-line-bytes allows")]
    RowTooLong { bytes: u64, limit: usize },
    #[error("not valid UTF-8 at byte {at} of the line")]
    Utf8 { at: usize },
    #[error("not valid JSON at column {column}: {reason}")]
    Json { column: usize, reason: String },
    #[error("expected a JSON object, found {found}")]
    NotAnObject { found: &'static str },
    #[error("field \"{field}\" is missing")]
    Missing { field: &'static str },
    #[error("field \"{field}\" must be {expected}, found {found}")]
    WrongType { field: &'static str, expected: &'static str, found: &'static str },
    #[error(
        "fields \"{first}\" and \"{second}\" are both given; one line has one of \"passage\", \"document\", \"passages\", \"documents\""
    )]
    TwoPassages { first: &'static str, second: &'static str },
    #[error("the passage must be a string, found {found}")]
    PassageType { found: &'static str },
    #[error("field \"{field}\" is an empty list: there is nothing to score")]
    NoPassages { field: &'static str },
    #[error(
        "a line for run-batch is answered by a line of JSON; give an --output that does not end in .parquet"
    )]
    RequestIntoTable,
    #[error("column {column} is null in this row")]
    Null { column: &'static str },
    #[error("expected query<TAB>passage, found {found} columns")]
    Columns { found: usize },
}

/// The fields that are read; any others are ignored. Each keeps its JSON text until its type is known to be right.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    query: Option<&'a RawValue>,
    #[serde(borrow)]
    passage: Option<&'a RawValue>,
    #[serde(borrow)]
    document: Option<&'a RawValue>,
    #[serde(borrow)]
    passages: Option<&'a RawValue>,
    #[serde(borrow)]
    documents: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    url: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Reads `{"id"?, "query", "passage"}`, `{"id"?, "query", "passages": [...]}`, or `{"custom_id", "method", "url", "body"}`; `None` for
/// a blank line.
pub(crate) fn json_task(line: &Line, max_line_bytes: usize) -> Option<Record<Task>> {
    json(line, max_line_bytes, |fields| {
        if let (Some(custom_id), None) = (fields.custom_id, fields.query) {
            let custom_id = string("custom_id", Some(custom_id))?;
            let method = fields.method.map(|method| string("method", Some(method))).transpose()?;
            let url = string("url", fields.url)?;
            let body = fields.body.ok_or(LineError::Missing { field: "body" })?;
            let request = Request::read(custom_id, method.as_deref(), &url, body.get());
            return Ok(Task::Request(Box::new(request)));
        }
        let query = string("query", fields.query)?;
        let given = [
            ("passage", fields.passage),
            ("document", fields.document),
            ("passages", fields.passages),
            ("documents", fields.documents),
        ];
        let mut given = given.into_iter().filter(|(_, value)| value.is_some());
        let (field, value) = given.next().unwrap_or(("passage", None));
        if let Some((second, _)) = given.next() {
            return Err(LineError::TwoPassages { first: field, second });
        }
        match field {
            "passage" | "document" => Ok(Task::Pair(Pair { query, passage: string(field, value)? })),
            _ => Ok(Task::List { query, passages: strings(field, value)? }),
        }
    })
}

/// Reads `{"id"?, "text"}`; `None` for a blank line.
pub(crate) fn json_text(line: &Line, max_line_bytes: usize) -> Option<Record<String>> {
    json(line, max_line_bytes, |fields| string("text", fields.text))
}

/// Reads `query<TAB>passage`; `None` for a blank line.
pub(crate) fn tsv_task(line: &Line, max_line_bytes: usize) -> Option<Record<Task>> {
    let body = match text(line, max_line_bytes) {
        Ok(text) if text.trim().is_empty() => return None,
        Ok(text) => match text.split_once('\t') {
            Some((query, passage)) if !passage.contains('\t') => {
                Ok(Task::Pair(Pair { query: query.to_owned(), passage: passage.to_owned() }))
            }
            _ => Err(LineError::Columns { found: text.split('\t').count() }),
        },
        Err(error) => Err(error),
    };
    Some(Record { key: Key::Line(line.number), number: line.number, body })
}

/// The text of a line.
pub(crate) fn text(line: &Line, max_line_bytes: usize) -> Result<&str, LineError> {
    match &line.content {
        Content::TooLong { bytes } => Err(LineError::TooLong { bytes: *bytes, limit: max_line_bytes }),
        Content::Bytes(bytes) => {
            str::from_utf8(bytes).map_err(|error| LineError::Utf8 { at: error.valid_up_to() + 1 })
        }
    }
}

fn json<T>(
    line: &Line,
    max_line_bytes: usize,
    body: impl FnOnce(&Fields) -> Result<T, LineError>,
) -> Option<Record<T>> {
    let number = line.number;
    let failed = |error| Some(Record { key: Key::Line(number), number, body: Err(error) });
    let text = match text(line, max_line_bytes) {
        Ok(text) if text.trim().is_empty() => return None,
        Ok(text) => text,
        Err(error) => return failed(error),
    };
    let fields = match fields(text) {
        Ok(fields) => fields,
        Err(error) => return failed(error),
    };
    match key(fields.id, number) {
        Ok(key) => Some(Record { key, number, body: body(&fields) }),
        Err(error) => failed(error),
    }
}

fn fields(text: &str) -> Result<Fields<'_>, LineError> {
    let invalid = |error: serde_json::Error| {
        let column = error.column();
        let place = format!(" at line {} column {column}", error.line());
        let reason = error.to_string();
        LineError::Json { column, reason: reason.strip_suffix(&place).unwrap_or(&reason).to_owned() }
    };
    let value: &RawValue = serde_json::from_str(text).map_err(invalid)?;
    match json_type(value) {
        "an object" => serde_json::from_str(text).map_err(invalid),
        found => Err(LineError::NotAnObject { found }),
    }
}

fn key(id: Option<&RawValue>, number: u64) -> Result<Key, LineError> {
    match id {
        None => Ok(Key::Line(number)),
        Some(id) => match json_type(id) {
            "a string" | "a number" => Ok(Key::Id(id.to_owned())),
            found => Err(LineError::WrongType { field: "id", expected: "a string or a number", found }),
        },
    }
}

fn string(field: &'static str, value: Option<&RawValue>) -> Result<String, LineError> {
    let value = value.ok_or(LineError::Missing { field })?;
    // A string that cannot be decoded holds half of a surrogate pair.
    serde_json::from_str(value.get()).map_err(|_| {
        let found = match json_type(value) {
            "a string" => "a string with an incomplete \\u escape",
            found => found,
        };
        LineError::WrongType { field, expected: "a string", found }
    })
}

/// The strings of a list, each of which may fail alone.
fn strings(
    field: &'static str,
    value: Option<&RawValue>,
) -> Result<Vec<Result<String, LineError>>, LineError> {
    let value = value.ok_or(LineError::Missing { field })?;
    let items: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(|_| LineError::WrongType {
        field,
        expected: "a list of strings",
        found: json_type(value),
    })?;
    if items.is_empty() {
        return Err(LineError::NoPassages { field });
    }
    Ok(items
        .into_iter()
        .map(|item| {
            string(field, Some(item)).map_err(|error| match error {
                LineError::WrongType { found, .. } => LineError::PassageType { found },
                error => error,
            })
        })
        .collect())
}

/// The type of a JSON value, from its first character.
fn json_type(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// A line of output: the key, and either a result's fields or an error.
#[derive(Serialize)]
pub(crate) struct Answer<'a, T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(flatten)]
    result: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a, T: Serialize> Answer<'a, T> {
    pub(crate) fn new(key: &'a Key, result: Result<T, String>) -> Answer<'a, T> {
        let (result, error) = match result {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        let mut answer = Answer { id: None, line: None, row: None, index: None, result, error };
        match key {
            Key::Id(id) => answer.id = Some(id),
            Key::Line(number) => answer.line = Some(*number),
            Key::Row(number) => answer.row = Some(*number),
        }
        answer
    }

    /// The answer for one of the passages of a list.
    pub(crate) fn of_passage(self, index: Option<usize>) -> Answer<'a, T> {
        Answer { index, ..self }
    }
}
