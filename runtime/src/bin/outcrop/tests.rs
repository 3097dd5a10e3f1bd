//! Lines, records and arrays, without a model.

use std::io::{self, Cursor, Read};

use clap::CommandFactory;
use indicatif::ProgressStyle;
use proptest::prelude::*;

use crate::args::Args;
use crate::lines::{Block, Content, Line, Lines};
use crate::npy::NpyWriter;
use crate::record::{Answer, Key, LineError, Pair, Record, Task, json_task, json_text, tsv_task};
use crate::report::chain;
use crate::rerank::{cut, one_line};

/// A reader that hands out one piece at a time, as a pipe does.
struct Pipe(Vec<io::Result<&'static [u8]>>);

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Ok(0);
        }
        let piece = self.0.remove(0)?;
        buffer[..piece.len()].copy_from_slice(piece);
        Ok(piece.len())
    }
}

fn all_blocks<R: Read>(reader: R, max_line_bytes: usize) -> Vec<Block> {
    let mut lines = Lines::new(reader, max_line_bytes);
    std::iter::from_fn(|| lines.next_block().unwrap()).collect()
}

fn bytes(line: &Line) -> &[u8] {
    match &line.content {
        Content::Bytes(bytes) => bytes,
        Content::TooLong { .. } => panic!("line {} is too long", line.number),
    }
}

fn line(text: &str) -> Line {
    Line { number: 7, content: Content::Bytes(text.as_bytes().to_vec()) }
}

fn error<T>(record: Option<Record<T>>) -> LineError {
    record.unwrap().body.err().unwrap()
}

#[test]
fn lines_end_at_any_line_break_and_at_the_end() {
    let blocks = all_blocks(&b"\xef\xbb\xbfa\r\n\nb\xff\nlast"[..], 100);
    let lines: Vec<&Line> = blocks.iter().flat_map(|block| &block.lines).collect();
    assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(lines.iter().map(|line| bytes(line)).collect::<Vec<_>>(), [&b"a"[..], b"", b"b\xff", b"last"]);
    assert_eq!(blocks.iter().map(|block| block.bytes).sum::<u64>(), 14);
    assert!(all_blocks(&b""[..], 100).is_empty());
}

#[test]
fn a_long_line_is_counted_and_not_kept() {
    let mut input = vec![b'x'; 1 << 20];
    input.extend_from_slice(b"\nshort\n12345\n123456");
    let blocks = all_blocks(&input[..], 5);
    let lines: Vec<&Line> = blocks.iter().flat_map(|block| &block.lines).collect();
    assert_eq!(lines[0].content, Content::TooLong { bytes: 1 << 20 });
    assert_eq!(bytes(lines[1]), b"short");
    assert_eq!(bytes(lines[2]), b"12345");
    assert_eq!(lines[3].content, Content::TooLong { bytes: 6 });
}

/// What another program writes line by line is answered line by line.
#[test]
fn a_block_does_not_wait_for_input() {
    let blocks = all_blocks(Pipe(vec![Ok(b"a\nb\n"), Ok(b"c"), Ok(b"c\n"), Ok(b"d\n")]), 100);
    let texts: Vec<Vec<&[u8]>> = blocks.iter().map(|block| block.lines.iter().map(bytes).collect()).collect();
    assert_eq!(texts, [vec![&b"a"[..], b"b"], vec![b"cc"], vec![b"d"]]);
}

#[test]
fn blocks_are_bounded() {
    let blocks = all_blocks(Cursor::new("x\n".repeat(150)), 100);
    assert_eq!(blocks.iter().map(|block| block.lines.len()).collect::<Vec<_>>(), [64, 64, 22]);
    // Whatever the lengths, a block is at most its limit and one line.
    let blocks = all_blocks(Cursor::new(format!("{}\n", "x".repeat(3 << 20)).repeat(4)), 4 << 20);
    assert!(blocks.iter().all(|block| block.bytes <= 8 << 20));
}

#[test]
fn what_was_read_before_a_read_error_is_kept() {
    let broken = || Err(io::Error::other("the disk is gone"));
    let mut lines = Lines::new(Pipe(vec![Ok(b"a\nb"), broken()]), 100);
    assert_eq!(bytes(&lines.next_block().unwrap().unwrap().lines[0]), b"a");
    assert_eq!(lines.next_block().unwrap_err().to_string(), "the disk is gone");
}

#[test]
fn pairs_are_read_from_json() {
    let pair = Task::Pair(Pair { query: "q".to_owned(), passage: "p \u{e9}\n".to_owned() });
    for text in [
        r#"{"query": "q", "passage": "p \u00e9\n"}"#,
        r#" {"document": "p é\n", "query": "q", "more": [1, {"x": null}]} "#,
        r#"{"id": null, "query": "q", "passage": "p é\n", "document": null}"#,
    ] {
        let record = json_task(&line(text), 100).unwrap();
        assert_eq!(record.body.unwrap(), pair, "{text}");
        assert!(matches!(record.key, Key::Line(7)), "{text}");
    }
    assert!(json_task(&line(" \t"), 100).is_none());
}

#[test]
fn ids_come_back_exactly_as_they_were() {
    for id in [r#""a\u0301""#, "12", "-0.50", "1e400", "123456789012345678901234567890"] {
        let text = format!(r#"{{"id": {id}, "text": "t"}}"#);
        let record = json_text(&line(&text), 100).unwrap();
        let answer: Answer<[(); 0]> = Answer::new(&record.key, Err("no".to_owned()));
        assert_eq!(serde_json::to_string(&answer).unwrap(), format!(r#"{{"id":{id},"error":"no"}}"#));
    }
}

#[test]
fn bad_lines_say_what_is_wrong() {
    use LineError::{Columns, Json, Missing, NotAnObject, TooLong, TwoPassages, Utf8, WrongType};
    let read = |text: &str| error(json_task(&line(text), 100));
    assert_eq!(read(r#"{"query": "q"}"#), Missing { field: "passage" });
    assert_eq!(read(r#"{"passage": "q"}"#), Missing { field: "query" });
    assert_eq!(read(r#"["q", "p"]"#), NotAnObject { found: "an array" });
    assert_eq!(read(r#""q""#), NotAnObject { found: "a string" });
    let wrong = |field, expected, found| WrongType { field, expected, found };
    assert_eq!(read(r#"{"query": 5, "passage": "p"}"#), wrong("query", "a string", "a number"));
    assert_eq!(read(r#"{"query": "q", "document": ["p"]}"#), wrong("document", "a string", "an array"));
    assert_eq!(
        read(r#"{"id": {}, "query": "q", "passage": "p"}"#),
        wrong("id", "a string or a number", "an object")
    );
    let half = wrong("query", "a string", "a string with an incomplete \\u escape");
    assert_eq!(read(r#"{"query": "\ud800", "passage": "p"}"#), half);
    assert_eq!(
        read(r#"{"query": "q", "passage": "p", "document": "p"}"#),
        TwoPassages { first: "passage", second: "document" }
    );
    assert!(
        matches!(read("{\"query\": \"q\" \"passage\"}"), Json { column: 15, .. }),
        "{}",
        read("{\"query\": \"q\" \"passage\"}")
    );
    assert!(matches!(read("query"), Json { .. }));
    assert!(read(r#"{"query": "q", "query": "p"}"#).to_string().contains("duplicate field"));

    let invalid = Line { number: 7, content: Content::Bytes(b"{\"query\": \"\xff\"}".to_vec()) };
    assert_eq!(error(json_task(&invalid, 100)), Utf8 { at: 12 });
    let long = Line { number: 7, content: Content::TooLong { bytes: 101 } };
    assert_eq!(error(json_task(&long, 100)), TooLong { bytes: 101, limit: 100 });
    assert_eq!(error(tsv_task(&line("only one"), 100)), Columns { found: 1 });
    assert_eq!(error(tsv_task(&line("a\tb\tc"), 100)), Columns { found: 3 });
    assert_eq!(error(json_text(&line("{}"), 100)), Missing { field: "text" });
}

#[test]
fn pairs_are_read_from_tsv() {
    let record = tsv_task(&line("a \"query\"\ta passage"), 100).unwrap();
    let pair = Task::Pair(Pair { query: "a \"query\"".to_owned(), passage: "a passage".to_owned() });
    assert_eq!(record.body.unwrap(), pair);
    let pair = Task::Pair(Pair { query: String::new(), passage: "p".to_owned() });
    assert_eq!(tsv_task(&line("\tp"), 100).unwrap().body.unwrap(), pair);
}

/// The header states the rows at every flush, so that an interrupted file is whole.
#[test]
fn npy_files_are_whole_after_every_flush() {
    let mut file = Cursor::new(Vec::new());
    let mut npy = NpyWriter::new(&mut file, 3).unwrap();
    npy.row(&[1.0, 2.0, 3.0]).unwrap();
    npy.flush().unwrap();
    npy.row(&[4.0, 5.0, f32::NAN]).unwrap();
    assert_eq!(npy.row(&[0.0]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    npy.flush().unwrap();
    let bytes = file.into_inner();
    assert_eq!(bytes.len(), 128 + 2 * 3 * 4);
    assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
    let dictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    assert_eq!(str::from_utf8(&bytes[10..128]).unwrap(), format!("{dictionary:<117}\n"));
    assert_eq!(bytes[128..132], 1.0f32.to_le_bytes());
    assert_eq!(bytes[144..148], 5.0f32.to_le_bytes());
}

#[test]
fn passages_are_cut_between_characters() {
    assert_eq!(one_line("a\tb \r\n\u{1b}[31mc\u{7}"), "a b [31mc");
    assert_eq!(cut("panda", 5), "panda");
    assert_eq!(cut("pandas", 5), "pand…");
    assert_eq!(cut("熊猫熊猫", 6), "熊猫…");
    assert_eq!(cut("熊猫熊猫", 8), "熊猫熊猫");
    assert_eq!(cut("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
    assert_eq!(cut("👩\u{200d}💻👩\u{200d}💻", 3), "👩\u{200d}💻…");
    assert_eq!(cut("panda", 0), "…");
}

#[test]
fn an_error_says_every_cause_once() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot read x")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("no such file: {0}")]
    struct Inner(#[source] io::Error);
    let error = Outer(Inner(io::Error::other("gone")));
    assert_eq!(chain(&error), "cannot read x: no such file: gone");
}

#[test]
fn progress_templates_parse() {
    for template in crate::progress::TEMPLATES {
        assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
    }
}

#[test]
fn every_command_has_examples() {
    let mut command = Args::command();
    command.build();
    command.clone().debug_assert();
    for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let help = subcommand.clone().render_long_help().to_string();
        let example = format!("outcrop {} ", subcommand.get_name());
        assert!(help.contains("Examples:") && help.contains(&example), "{}", subcommand.get_name());
    }
}

proptest! {
    /// No line panics, and none is lost: splitting and joining gives back the input.
    #[test]
    fn any_bytes_are_lines(input in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400)) {
        let blocks = all_blocks(Cursor::new(&input), usize::MAX);
        let read: u64 = blocks.iter().map(|block| block.bytes).sum();
        prop_assert_eq!(read, input.len() as u64);
        let breaks = input.iter().filter(|byte| **byte == b'\n').count();
        let unfinished = usize::from(input.last().is_some_and(|byte| *byte != b'\n'));
        prop_assert_eq!(blocks.iter().map(|block| block.lines.len()).sum::<usize>(), breaks + unfinished);
        for line in blocks.iter().flat_map(|block| &block.lines) {
            let _ = (json_task(line, 100), json_text(line, 100), tsv_task(line, 100));
        }
    }

    /// Near-JSON never panics either.
    #[test]
    fn any_text_is_answered(text in r#"[{}\[\]",:\\a-zé0-9 ]{0,60}"#) {
        let pair = json_task(&line(&text), 100);
        prop_assert_eq!(pair.is_none(), text.trim().is_empty());
    }
}
