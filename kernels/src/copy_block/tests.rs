use super::{Block, copy_block};
use crate::testing::{assert_same_bits, buffer};
use crate::{Error, Stream};

#[test]
fn copies_the_block_and_nothing_else() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (num_rows, num_cols) in [(0, 3), (1, 1), (3, 5), (130, 7)] {
        let (to, from) =
            (Block { stride: 11, row: 2.into(), column: 4 }, Block { stride: 9, row: 1.into(), column: 2 });
        let x = buffer(1, (1 + num_rows) * 9);
        let before = buffer(2, (2 + num_rows) * 11 + 5);
        let mut expected = before.host().unwrap().to_vec();
        for i in 0..num_rows {
            for j in 0..num_cols {
                expected[(2 + i) * 11 + 4 + j] = x.host().unwrap()[(1 + i) * 9 + 2 + j];
            }
        }
        let mut out = before;
        copy_block(&stream, &mut out, to, &x, from, num_rows.into(), num_cols).unwrap();
        assert_same_bits(&format!("{num_rows}x{num_cols}"), out.host().unwrap(), &expected);
    }
}

#[test]
fn blocks_beyond_their_matrix_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let (mut out, x) = (buffer(1, 20), buffer(2, 20));
    let inside = Block { stride: 5, row: 0.into(), column: 0 };
    for (to, from, name) in [
        (Block { row: 3.into(), ..inside }, inside, "out"),
        (Block { column: 3, ..inside }, inside, "out"),
        (inside, Block { row: 3.into(), ..inside }, "x"),
        (inside, Block { column: 3, ..inside }, "x"),
    ] {
        match copy_block(&stream, &mut out, to, &x, from, 2.into(), 3) {
            Err(Error::Length { operand, .. }) => assert_eq!(operand, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(copy_block(&stream, &mut out, inside, &x, inside, 4.into(), 5).is_ok());
}
