use super::{EmbeddingTables, embed_layer_norm};
use crate::add_layer_norm::LayerNorm;
use crate::test_checks::{
    Checked, ENCODER_NORMS, close_to_layer_norm, every_norm, fresh, in_words, indices, operand,
    same_bits_anywhere, untouched,
};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, Elements, ResidentTable, Role, Size, Stream, Table};

const EPS: f32 = 1e-5;
const VOCAB: usize = 23;
const POSITIONS: usize = 13;

/// Embeds tokens `tokens` of a list, the result compared with f64.
fn embed(
    stream: &Stream,
    tokens: std::ops::Range<usize>,
    hidden: usize,
    num_tokens: Size,
) -> Checked<Vec<f32>> {
    let (word, position) = (values(1, VOCAB * hidden), values(2, POSITIONS * hidden));
    let table = |stored| ResidentTable::as_operand(stream, Elements::F32(stored), hidden);
    let (Some(word_table), Some(position_table)) = (table(&word)?, table(&position)?) else {
        return Err("a CPU stream".into());
    };
    let ((_, word), (_, position)) = (operand(stream, &word)?, operand(stream, &position)?);
    let (token_type, weight, bias) = (values(3, hidden), values(4, hidden), values(5, hidden));
    let uploaded = [
        Buffer::upload(stream, &token_type)?,
        Buffer::upload(stream, &weight)?,
        Buffer::upload(stream, &bias)?,
    ];
    let list = |step: usize, len: usize| {
        tokens.clone().map(|i| u32::try_from((i * step + len - 1) % len).unwrap()).collect::<Vec<u32>>()
    };
    let (ids, position_ids) = (list(31, VOCAB), list(7, POSITIONS));
    let n = ids.len() * hidden;
    let mut out = fresh(stream, Role::Operand, n + hidden)?;
    let tables = EmbeddingTables {
        word: Table::Resident(&word_table),
        position: Table::Resident(&position_table),
        token_type: &uploaded[0],
    };
    let norm = LayerNorm { weight: &uploaded[1], bias: &uploaded[2], eps: EPS };
    let (device_ids, device_position_ids) = (indices(stream, &ids)?, indices(stream, &position_ids)?);
    let views = (device_ids.view(num_tokens), device_position_ids.view(num_tokens));
    embed_layer_norm(stream, &mut out, tables, views.0, views.1, norm)?;

    let mut out = out.read(n + hidden)?;
    for (token, (id, position_id)) in ids.iter().zip(&position_ids).enumerate() {
        let word = &word[*id as usize * hidden..][..hidden];
        let position = &position[*position_id as usize * hidden..][..hidden];
        let two: Vec<f64> =
            word.iter().zip(&token_type).map(|(w, t)| f64::from(*w) + f64::from(*t)).collect();
        let z: Vec<f64> = two.iter().zip(position).map(|(sum, p)| sum + f64::from(*p)).collect();
        // Both sums that make an element are rounded.
        let largest = two.iter().zip(&z).fold(0.0f64, |largest, (a, b)| largest.max(a.abs() + b.abs()));
        let what = format!("token {token} of {} x {hidden}", ids.len());
        let got = &out[token * hidden..][..hidden];
        close_to_layer_norm(stream, &what, got, (&z, largest), (&weight, &bias, EPS))?;
    }
    untouched("out", &out[n..])?;
    out.truncate(n);
    Ok(out)
}

fn small(stream: &Stream) -> Checked {
    for (tokens, hidden) in ENCODER_NORMS {
        embed(stream, 0..tokens, hidden, tokens.into())?;
    }
    Ok(())
}

pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    in_words(small(stream))
}

#[test]
fn small_shapes_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules(operand_type, |stream| check(stream).unwrap());
    }
}

#[test]
fn every_instance() {
    every_norm(|stream, tokens, hidden| embed(stream, 0..tokens, hidden, tokens.into()).map(drop));
}

#[test]
fn a_token_has_the_same_bits_anywhere() {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        same_bits_anywhere(&stream, 30, |tokens, size| embed(&stream, tokens, 768, size)).unwrap();
    }
}
