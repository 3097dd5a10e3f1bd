use super::gather_rows;
use crate::testing::{assert_same_bits, buffer};
use crate::{Buffer, Error, Stream};

#[test]
fn copies_the_rows_asked_for() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let x = buffer(1, 200 * 7);
    let rows: Vec<usize> = (0..150).map(|i| i * 37 % 200).collect();
    let mut out = Buffer::zeros(150 * 7);
    gather_rows(&stream, &mut out, &x, &rows, 7).unwrap();
    for (out, row) in out.as_slice().chunks_exact(7).zip(&rows) {
        assert_same_bits("row", out, &x.as_slice()[row * 7..(row + 1) * 7]);
    }
}

#[test]
fn a_row_beyond_the_input_is_named() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let (x, mut out) = (Buffer::zeros(12), Buffer::zeros(6));
    assert!(matches!(
        gather_rows(&stream, &mut out, &x, &[3, 4], 3),
        Err(Error::IndexOutOfRange { index: 4, position: 1, rows: 4, .. })
    ));
    assert!(matches!(
        gather_rows(&stream, &mut out, &x, &[0, 1, 2], 3),
        Err(Error::Length { operand: "out", .. })
    ));
}
