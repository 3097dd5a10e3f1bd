use half::{bf16, f16};

use super::embed;
use crate::testing::{assert_close, assert_same_bits, values, zeros};
use crate::{Elements, Error, Stream, Table};

const VOCAB: usize = 50;

fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|i| u32::try_from(i * 31 % VOCAB).unwrap()).collect()
}

#[test]
fn matches_f64_in_every_stored_type() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (hidden, scale) in [(1, 1.0), (17, 12.0), (300, 0.1), (2048, 2048f32.sqrt()), (3584, 3584f32.sqrt())]
    {
        let stored = values(1, VOCAB * hidden);
        let half: Vec<f16> = stored.iter().map(|x| f16::from_f32(*x)).collect();
        let brain: Vec<bf16> = stored.iter().map(|x| bf16::from_f32(*x)).collect();
        let input_ids = ids(150);
        for table in [Elements::F32(&stored), Elements::F16(&half), Elements::BF16(&brain)] {
            let mut out = zeros(150 * hidden);
            embed(&stream, &mut out, Table::Mapped(table), (&input_ids[..]).into(), hidden, scale).unwrap();
            let expected: Vec<f64> = input_ids
                .iter()
                .flat_map(|id| table.slice(*id as usize * hidden, hidden).to_vec())
                .map(|x| f64::from(x) * f64::from(scale))
                .collect();
            assert_close(&format!("hidden {hidden}"), out.host().unwrap(), &expected, |i| {
                2f64.powi(-24) * expected[i].abs()
            });
        }
    }
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let hidden = 99;
    let stored: Vec<f16> = values(1, VOCAB * hidden).iter().map(|x| f16::from_f32(*x)).collect();
    let input_ids = ids(333);
    let run = |threads, tokens: std::ops::Range<usize>| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let mut out = zeros(tokens.len() * hidden);
        let table = Table::Mapped(Elements::F16(&stored));
        embed(&stream, &mut out, table, (&input_ids[tokens]).into(), hidden, 45.25).unwrap();
        out
    };
    let whole = run(1, 0..333);
    assert_same_bits("threads", run(4, 0..333).host().unwrap(), whole.host().unwrap());
    let expected = &whole.host().unwrap()[200 * hidden..201 * hidden];
    assert_same_bits("alone", run(2, 200..201).host().unwrap(), expected);
}

#[test]
fn bad_arguments_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let stored = values(1, VOCAB * 4);
    let run = |len, input_ids: &[u32], hidden| {
        let table = Table::Mapped(Elements::F32(&stored));
        embed(&stream, &mut zeros(len), table, input_ids.into(), hidden, 1.0)
    };
    assert!(matches!(
        run(8, &[0, 50], 4),
        Err(Error::IndexOutOfRange { table: "table", index: 50, position: 1, rows: 50, .. })
    ));
    assert!(matches!(run(7, &[0, 49], 4), Err(Error::Length { operand: "out", expected: 8, found: 7, .. })));
    assert!(run(8, &[0, 49], 4).is_ok());
    assert!(run(0, &[], 4).is_ok());
    assert!(run(0, &[1], 0).is_ok());
}
