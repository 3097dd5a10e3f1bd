//! Shards, without a model.

use std::io::Cursor;

use proptest::prelude::*;

use super::shard::{ParseShardError, Shard};

#[test]
fn shards_are_counted_from_zero() {
    let parse = |text: &str| text.parse::<Shard>();
    assert_eq!(parse("3/8").map(|shard| shard.to_string()), Ok("3/8".to_owned()));
    assert_eq!(parse("8/8"), Err(ParseShardError::Index { count: 8 }));
    assert_eq!(parse("0/0"), Err(ParseShardError::None));
    for text in ["", "1", "/", "1/", "/2", "+1/2", "-1/2", "1/2/3", "a/b", " 1/2", "99999999999999999999/2"] {
        assert_eq!(parse(text), Err(ParseShardError::Form), "{text:?}");
    }
}

#[test]
fn the_largest_files_have_shards() {
    let shard: Shard = "2/3".parse().unwrap();
    assert_eq!(shard.of(u64::MAX), u64::MAX / 3 * 2..u64::MAX);
}

proptest! {
    /// Every line is in one shard, whole, and in order: whatever its length, its end, and the number of shards.
    #[test]
    fn every_line_is_in_one_shard(
        lines in prop::collection::vec(("[a-c\r]{0,12}", prop_oneof![Just("\n"), Just("\r\n"), Just("\n\n")]), 0..30),
        last in "[a-c]{0,5}",
        count in 1_u64..50,
    ) {
        let text: String = lines.iter().map(|(line, end)| format!("{line}{end}")).chain([last]).collect();
        let mut file = Cursor::new(text.as_bytes());
        let mut end = 0;
        for index in 0..count {
            let shard: Shard = format!("{index}/{count}").parse().unwrap();
            let range = shard.of_lines(&mut file, text.len() as u64).unwrap();
            prop_assert_eq!(range.start, end);
            prop_assert!(range.start <= range.end);
            end = range.end;
            let start = usize::try_from(range.start).unwrap();
            prop_assert!(start == 0 || start == text.len() || text.as_bytes()[start - 1] == b'\n');
        }
        prop_assert_eq!(end, text.len() as u64);
    }

    /// Rows are shared out evenly.
    #[test]
    fn rows_are_shared_out(rows in any::<u64>(), count in 1_u64..1000) {
        let mut end = 0;
        for index in 0..count {
            let range = format!("{index}/{count}").parse::<Shard>().unwrap().of(rows);
            prop_assert_eq!(range.start, end);
            prop_assert!((rows / count..=rows / count + 1).contains(&(range.end - range.start)));
            end = range.end;
        }
        prop_assert_eq!(end, rows);
    }
}
