use super::gather_rows;
use crate::testing::{assert_same_bits, buffer, zeros};
use crate::{Error, Stream};

#[test]
fn copies_the_rows_asked_for() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let x = buffer(1, 200 * 7);
    let rows: Vec<u32> = (0..150).map(|i| i * 37 % 200).collect();
    let mut out = zeros(150 * 7);
    gather_rows(&stream, &mut out, &x, (&rows[..]).into(), 7).unwrap();
    for (out, row) in out.host().unwrap().chunks_exact(7).zip(&rows) {
        assert_same_bits("row", out, &x.host().unwrap()[*row as usize * 7..][..7]);
    }
}

#[test]
fn a_row_beyond_the_input_is_named() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let (x, mut out) = (zeros(12), zeros(6));
    assert!(matches!(
        gather_rows(&stream, &mut out, &x, (&[3, 4][..]).into(), 3),
        Err(Error::IndexOutOfRange { index: 4, position: 1, rows: 4, .. })
    ));
    assert!(matches!(
        gather_rows(&stream, &mut out, &x, (&[0, 1, 2][..]).into(), 3),
        Err(Error::Length { operand: "out", .. })
    ));
}
