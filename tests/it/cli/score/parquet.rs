//! Parquet files in and out.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray, UInt16Array};
use arrow_schema::DataType;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

use super::{Files, args, outcrop, score_file, score_text};
use crate::cli::{made, model, outcrop_with_input};

/// Writes a Parquet file with row groups of a few rows.
fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, compression: Compression) {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    );
    let batch = batch.unwrap();
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(7)).set_compression(compression).build();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn read(path: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    reader.with_batch_size(10_000).build().unwrap().map(Result::unwrap).collect()
}

fn strings(texts: &[Option<&str>]) -> ArrayRef {
    Arc::new(texts.iter().copied().collect::<StringArray>())
}

fn names(batch: &RecordBatch) -> Vec<String> {
    batch.schema().fields().iter().map(|field| field.name().clone()).collect()
}

fn words(n: usize) -> String {
    "panda ".repeat(n % 9)
}

/// Rows of a table have the scores of the same lines; nulls fail alone; types are kept.
#[test]
fn rows_are_scored_as_lines_are() {
    let files = Files::new();
    let passages: Vec<String> = (0..200).map(words).collect();
    let query: Vec<Option<&str>> = (0..200).map(|n| (n != 20).then_some("what is a panda")).collect();
    let passage: Vec<Option<&str>> =
        passages.iter().enumerate().map(|(n, text)| (n != 50).then_some(text.as_str())).collect();
    let id: Vec<Option<i64>> = (0..200).map(|n| (n % 10 != 3).then_some(i64::MIN + n)).collect();
    let columns = vec![
        ("unused", strings(&query)),
        ("document", strings(&passage)),
        ("id", Arc::new(Int64Array::from(id.clone())) as ArrayRef),
        ("query", Arc::new(query.iter().copied().collect::<LargeStringArray>())),
    ];
    let input = files.path("in.parquet");
    write(&input, columns, Compression::SNAPPY);
    let lines: String =
        (0..200).map(|n| format!("{}\n", json!({ "query": query[n], "passage": passage[n] }))).collect();
    let model = model("xlmr_base");
    let lines = outcrop_with_input(["score", "--model", &model, "--input", "-"], lines.as_bytes());
    let (texts, lines) = (lines.stdout.lines().collect::<Vec<_>>(), lines.json_lines());

    let output = files.path("out.parquet");
    let ran = outcrop(args(&input, &output, &[]));
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert_eq!(files.names(), ["in.parquet", "out.parquet"]);
    let [batch] = &read(&output)[..] else { panic!("several batches") };
    assert_eq!(names(batch), ["id", "row", "score", "tokens", "truncated", "error"]);
    assert_eq!(batch.num_rows(), 200);
    let (ids, rows) =
        (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
    let (scores, tokens) =
        (batch.column(2).as_primitive::<Float64Type>(), batch.column(3).as_primitive::<Int32Type>());
    let errors = batch.column(5).as_string::<i32>();
    for n in 0..200 {
        match id[n] {
            Some(id) => assert_eq!((ids.value(n), rows.is_null(n)), (id, true)),
            None => assert_eq!((ids.is_null(n), rows.value(n)), (true, n as i64)),
        }
        match n {
            20 | 50 => {
                let column = if n == 20 { "query" } else { "document" };
                assert_eq!(errors.value(n), format!("column {column} is null in this row"));
                assert!(scores.is_null(n) && tokens.is_null(n));
            }
            _ => {
                // Every bit, through a text and back.
                let expected: f64 = score_text(texts[n]).parse().unwrap();
                assert_eq!(scores.value(n).to_bits(), expected.to_bits());
                assert_eq!(i64::from(tokens.value(n)), lines[n]["tokens"].as_i64().unwrap());
                assert!(errors.is_null(n));
            }
        }
    }

    // The same as lines.
    let output = files.path("out.jsonl");
    outcrop(args(&input, &output, &[]));
    let text = fs::read_to_string(output).unwrap();
    let found: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found[13]["row"], 13);
    assert_eq!(found[14]["id"], i64::MIN + 14);
    assert_eq!(found[14]["score"], lines[14]["score"]);
}

/// Several layers are a column with a field for each, and compression has its own.
#[test]
fn layers_and_compression_are_columns() {
    let files = Files::new();
    let made = made("gemma2");
    let input = files.write("in.jsonl", "{\"id\": 1.50, \"query\": \"q\", \"passage\": \"p p p\"}\nbad\n{\"id\": \"é\", \"query\": \"q\", \"passage\": \"p\"}\n");
    let output = files.path("out.parquet");
    let mut args =
        args(&input, &output, &["--cutoff-layers", "4,8", "--compress-ratio", "2", "--compress-layers", "2"]);
    let place = args.iter().position(|arg| *arg == model("xlmr_base")).unwrap();
    args[place] = made.model.to_str().unwrap().to_owned();
    let ran = outcrop(&args);
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    let batch = &read(&output)[0];
    assert_eq!(
        names(batch),
        ["id", "line", "index", "score", "scores", "tokens", "truncated", "tokens_after", "error"]
    );
    assert_eq!(
        batch.column(0).as_string::<i32>().iter().collect::<Vec<_>>(),
        [Some("1.50"), None, Some("é")]
    );
    assert_eq!(batch.column(1).as_primitive::<Int64Type>().value(1), 2);
    let layers = batch.column(4).as_struct();
    assert_eq!(layers.column_names(), ["4", "8"]);
    let deepest = layers.column(1).as_primitive::<Float64Type>();
    let scores = batch.column(3).as_primitive::<Float64Type>();
    assert_eq!(deepest, scores);
    assert!(deepest.is_valid(0) && deepest.is_null(1) && batch.column(7).is_valid(0));
}

/// A list of passages is a row for each.
#[test]
fn lists_of_passages_are_rows() {
    let files = Files::new();
    let mut lists = ListBuilder::new(StringBuilder::new());
    for list in [Some(&[Some("city"), None, Some("bear")][..]), Some(&[]), None, Some(&[Some("bear")])] {
        match list {
            None => lists.append(false),
            Some(items) => {
                items.iter().for_each(|item| lists.values().append_option(*item));
                lists.append(true);
            }
        }
    }
    let columns = vec![
        ("id", Arc::new(UInt16Array::from(vec![65535, 1, 2, 3])) as ArrayRef),
        ("query", strings(&[Some("panda"); 4])),
        ("passages", Arc::new(lists.finish())),
    ];
    let input = files.path("in.parquet");
    write(&input, columns, Compression::ZSTD(ZstdLevel::default()));
    let output = files.path("out.parquet");
    assert_eq!(outcrop(args(&input, &output, &[])).status, Some(1));
    let batch = &read(&output)[0];
    assert_eq!(names(batch), ["id", "row", "index", "score", "tokens", "truncated", "error"]);
    assert_eq!(*batch.column(0).data_type(), DataType::UInt64);
    let index: Vec<Option<i32>> = batch.column(2).as_primitive::<Int32Type>().iter().collect();
    assert_eq!(index, [Some(0), Some(1), Some(2), None, None, Some(0)]);
    let errors: Vec<Option<&str>> = batch.column(6).as_string::<i32>().iter().collect();
    let null = Some("the passage must be a string, found null");
    let empty = Some("field \"passages\" is an empty list: there is nothing to score");
    assert_eq!(errors, [None, null, None, empty, Some("column passages is null in this row"), None]);
    let scores = batch.column(3).as_primitive::<Float64Type>();
    assert_eq!(scores.value(2).to_bits(), scores.value(5).to_bits());
}

#[test]
fn tables_that_cannot_be_used() {
    let files = Files::new();
    let texts = || strings(&[Some("text")]);
    let number = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    let float = || Arc::new(arrow_array::Float64Array::from(vec![1.5])) as ArrayRef;
    let input = files.path("in.parquet");
    let output = files.path("out.parquet");
    for (columns, words) in [
        (vec![("q", texts()), ("passage", texts())], "there is no column query; the columns are q, passage"),
        (vec![("query", texts())], "there is no column passage; the columns are query"),
        (vec![("query", texts()), ("passage", number())], "column passage must be a string, found Int64"),
        (vec![("query", number()), ("passage", texts())], "column query must be a string, found Int64"),
        (
            vec![("query", texts()), ("passages", texts())],
            "column passages must be a list of strings, found Utf8",
        ),
        (
            vec![("query", texts()), ("passage", texts()), ("documents", texts())],
            "columns passage and documents are both there",
        ),
        (
            vec![("id", float()), ("query", texts()), ("passage", texts())],
            "column id must be a string or an integer, found Float64",
        ),
    ] {
        write(&input, columns, Compression::UNCOMPRESSED);
        outcrop(args(&input, &output, &[])).refused(&["in.parquet", words]);
    }
    files.write("in.parquet", "{\"query\": \"q\", \"passage\": \"p\"}\n");
    outcrop(args(&input, &output, &[])).refused(&["cannot use", "in.parquet"]);
    let missing = files.path("no.parquet");
    outcrop(args(&missing, &output, &[])).refused(&["cannot read", "no.parquet"]);
    assert_eq!(files.names(), ["in.parquet"]);
}

/// A request for run-batch has no place in a table.
#[test]
fn requests_are_not_rows() {
    let files = Files::new();
    let line = json!({ "custom_id": "a", "url": "/rerank", "body": { "query": "q", "documents": ["d"] } });
    let input = files.write("in.jsonl", format!("{line}\n"));
    let output = files.path("out.parquet");
    assert_eq!(outcrop(args(&input, &output, &[])).status, Some(1));
    let batch = &read(&output)[0];
    assert!(
        batch
            .column_by_name("error")
            .unwrap()
            .as_string::<i32>()
            .value(0)
            .contains("does not end in .parquet")
    );
}

/// Shards follow one another, across row groups, and an interrupted run goes on, in the middle of one.
#[test]
fn shards_and_resumption_of_rows() {
    let files = Files::new();
    let texts: Vec<String> = (0..600).map(words).collect();
    let passage: Vec<Option<&str>> = texts.iter().map(|text| Some(text.as_str())).collect();
    let columns = vec![("query", strings(&vec![Some("panda"); 600])), ("passage", strings(&passage))];
    let input = files.path("in.parquet");
    write(&input, columns, Compression::SNAPPY);
    let whole = files.path("whole.jsonl");
    score_file(&input, &whole, &[]);
    let whole = fs::read_to_string(&whole).unwrap();
    assert_eq!(whole.lines().count(), 600);
    for count in [2, 3, 601] {
        let mut joined = String::new();
        for index in 0..count {
            let output = files.path("shard.jsonl");
            score_file(&input, &output, &["--shard", &format!("{index}/{count}")]);
            joined.push_str(&fs::read_to_string(&output).unwrap());
            if count == 601 && index == 9 {
                break;
            }
        }
        assert!(whole.starts_with(&joined) && (count == 601 || joined == whole), "{count} shards");
    }

    // What a run that was killed after 100 rows leaves behind: lines and a checkpoint.
    let output = files.path("out.parquet");
    score_file(&input, &output, &[]);
    let expected = fs::read(&output).unwrap();
    fs::remove_file(&output).unwrap();
    let part = files.path("out.parquet.part");
    let limited = "trap '' XFSZ; ulimit -f 24; exec \"$0\" \"$@\"";
    let again = args(&input, &output, &["--resume", "--checkpoint-seconds", "0"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", limited]).arg(crate::cli::program()).args(&again).env("OUTCROP_DEVICE", "cpu");
    for stream in [std::process::Command::stdin, std::process::Command::stdout, std::process::Command::stderr]
    {
        stream(&mut shell, std::process::Stdio::piped());
    }
    crate::cli::run(&mut shell, b"").refused(&["out.parquet.part", "--resume goes on"]);
    let kept = fs::read_to_string(&part).unwrap().lines().count();
    assert!((64..600).contains(&kept), "{kept} lines kept");
    assert!(!output.exists());
    score_file(&input, &output, &["--resume"]);
    assert!(fs::read(&output).unwrap() == expected);
    assert!(!part.exists());
}
