use half::{bf16, f16};

use super::{EmbeddingTables, embed_layer_norm};
use crate::add_layer_norm::LayerNorm;
use crate::testing::{assert_close, assert_same_bits, buffer, values, zeros};
use crate::{Buffer, Elements, Error, Stream, Table};

const VOCAB: usize = 50;
const POSITIONS: usize = 20;

fn ids(n: usize) -> (Vec<u32>, Vec<u32>) {
    let id = |i: usize, modulus: usize| u32::try_from(i * 31 % modulus).unwrap();
    ((0..n).map(|i| id(i, VOCAB)).collect(), (0..n).map(|i| id(i + 3, POSITIONS)).collect())
}

#[test]
fn matches_f64_in_every_stored_type() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for hidden in [8, 17, 256, 300, 1024] {
        let (word, position) = (values(1, VOCAB * hidden), values(2, POSITIONS * hidden));
        let (token_type, weight, bias) = (buffer(3, hidden), buffer(4, hidden), buffer(5, hidden));
        let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
        let (input_ids, position_ids) = ids(150);
        let half = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
        let brain = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
        let (half_word, half_position) = (half(&word), half(&position));
        let (brain_word, brain_position) = (brain(&word), brain(&position));
        for (word, position) in [
            (Elements::F32(&word), Elements::F32(&position)),
            (Elements::F16(&half_word), Elements::F16(&half_position)),
            (Elements::BF16(&brain_word), Elements::BF16(&brain_position)),
        ] {
            let tables = EmbeddingTables {
                word: Table::Mapped(word),
                position: Table::Mapped(position),
                token_type: &token_type,
            };
            let mut out = zeros(150 * hidden);
            embed_layer_norm(
                &stream,
                &mut out,
                tables,
                (&input_ids[..]).into(),
                (&position_ids[..]).into(),
                norm,
            )
            .unwrap();
            let (word, position) = (word.to_vec(), position.to_vec());
            let [token_type, weight, bias] = [&token_type, &weight, &bias].map(|b| b.host().unwrap());
            let mut expected = Vec::new();
            for (id, position_id) in input_ids.iter().zip(&position_ids) {
                let (id, position_id) = (*id as usize, *position_id as usize);
                let z: Vec<f64> = (0..hidden)
                    .map(|i| {
                        f64::from(word[id * hidden + i])
                            + f64::from(token_type[i])
                            + f64::from(position[position_id * hidden + i])
                    })
                    .collect();
                let mean = z.iter().sum::<f64>() / hidden as f64;
                let variance = z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / hidden as f64;
                let sigma = (variance + 1e-5).sqrt();
                expected.extend(
                    (0..hidden).map(|i| (z[i] - mean) / sigma * f64::from(weight[i]) + f64::from(bias[i])),
                );
            }
            // As add_layer_norm's bound, with sigma >= 0.5 and |z| <= 3.
            let bound = 1e-6 * ((hidden as f64).sqrt() + 6.0) + 2e-7;
            assert_close(&format!("hidden {hidden}"), out.host().unwrap(), &expected, |_| bound);
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let hidden = 96;
    let (word, position) = (values(1, VOCAB * hidden), values(2, POSITIONS * hidden));
    let (token_type, weight, bias) = (buffer(3, hidden), buffer(4, hidden), buffer(5, hidden));
    let tables = EmbeddingTables {
        word: Table::Mapped(Elements::F32(&word)),
        position: Table::Mapped(Elements::F32(&position)),
        token_type: &token_type,
    };
    let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
    let (input_ids, position_ids) = ids(333);
    let run = |threads| {
        let mut out = zeros(333 * hidden);
        let stream = Stream::cpu(Some(threads)).unwrap();
        embed_layer_norm(
            &stream,
            &mut out,
            tables,
            (&input_ids[..]).into(),
            (&position_ids[..]).into(),
            norm,
        )
        .unwrap();
        out
    };
    assert_same_bits("threads", run(1).host().unwrap(), run(4).host().unwrap());
}

#[test]
fn an_index_beyond_a_table_is_named() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let (word, position, row) = (values(1, VOCAB * 4), values(2, POSITIONS * 4), zeros(4));
    let tables = EmbeddingTables {
        word: Table::Mapped(Elements::F32(&word)),
        position: Table::Mapped(Elements::F32(&position)),
        token_type: &row,
    };
    let norm = LayerNorm { weight: &row, bias: &row, eps: 1e-5 };
    let mut out = zeros(8);
    let run = |out: &mut Buffer, ids: &[u32], positions: &[u32]| {
        embed_layer_norm(&stream, out, tables, ids.into(), positions.into(), norm)
    };
    assert!(matches!(
        run(&mut out, &[0, 50], &[0, 1]),
        Err(Error::IndexOutOfRange { table: "word", index: 50, position: 1, rows: 50, .. })
    ));
    assert!(matches!(
        run(&mut out, &[0, 49], &[20, 1]),
        Err(Error::IndexOutOfRange { table: "position", index: 20, position: 0, rows: 20, .. })
    ));
    assert!(matches!(run(&mut out, &[0, 1], &[0]), Err(Error::Length { operand: "position_ids", .. })));
    assert!(run(&mut out, &[0, 49], &[19, 1]).is_ok());
}
