use half::{bf16, f16};

use super::embed;
use crate::test_checks::{Checked, fresh, in_words, indices, same_bits, size_on_device, untouched};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Elements, Error, ResidentTable, Role, Size, Stream, Table};

const VOCAB: usize = 23;

/// Embeds `tokens` tokens from a table of each stored type; the result is exact.
fn gather(stream: &Stream, tokens: usize, hidden: usize, num_tokens: Size) -> Checked {
    let stored = values(1, VOCAB * hidden);
    // As many of each stored type, whatever the operand type.
    let (half, brain): (Vec<f16>, Vec<bf16>) =
        stored.iter().map(|x| (f16::from_f32(*x), bf16::from_f32(*x))).unzip();
    let tables = [Elements::F32(&stored), Elements::F16(&half), Elements::BF16(&brain)];
    tables.into_iter().try_for_each(|elements| gather_from(stream, elements, tokens, hidden, num_tokens))
}

fn gather_from(
    stream: &Stream,
    elements: Elements<'_>,
    tokens: usize,
    hidden: usize,
    num_tokens: Size,
) -> Checked {
    let Some(table) = ResidentTable::as_stored(stream, elements)? else {
        return Err("a CPU stream".into());
    };
    let stored = elements.to_vec();
    let ids: Vec<u32> = (0..tokens).map(|i| u32::try_from((i * 31 + VOCAB - 1) % VOCAB).unwrap()).collect();
    let device_ids = indices(stream, &ids)?;
    let (n, scale) = (tokens * hidden, (hidden as f32).sqrt());
    let mut out = fresh(stream, Role::Full, n + hidden)?;
    embed(stream, &mut out, Table::Resident(&table), device_ids.view(num_tokens), hidden, scale)?;

    let out = out.read(n + hidden)?;
    let row = |id: &u32| stored[*id as usize * hidden..][..hidden].iter().map(move |x| x * scale);
    let what = format!("{tokens} x {hidden}");
    same_bits(&what, &out[..n], &ids.iter().flat_map(row).collect::<Vec<f32>>())?;
    untouched(&what, &out[n..])
}

fn small(stream: &Stream) -> Checked {
    for (tokens, hidden) in [(1, 8), (100, 72), (17, 1000), (5, 2304)] {
        gather(stream, tokens, hidden, tokens.into())?;
    }
    let (_memory, size) = size_on_device(stream, 5, 90)?;
    gather(stream, 5, 64, size)
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
fn large_shapes_and_none() {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        for (tokens, hidden) in [(0, 64), (300, 768), (40, 3584), (3, 10_000)] {
            gather(&stream, tokens, hidden, tokens.into()).unwrap();
        }
    }
}

#[test]
fn lists_and_tables_of_the_host_and_of_other_devices_are_refused() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let stored = values(1, VOCAB * 8);
    let table = ResidentTable::as_stored(&stream, Elements::F32(&stored)).unwrap().unwrap();
    let mut out = fresh(&stream, Role::Full, 8).unwrap();
    let host_ids = embed(&stream, &mut out, Table::Resident(&table), [0u32][..].into(), 8, 1.0);
    assert!(matches!(host_ids, Err(Error::Device(_))));
    let ids = indices(&stream, &[0]).unwrap();
    let mapped = Table::Mapped(Elements::F32(&stored));
    let host_table = embed(&stream, &mut out, mapped, ids.view(1.into()), 8, 1.0);
    assert!(matches!(host_table, Err(Error::Device(_))));
    let other = device(OPERAND_TYPES[0]).unwrap();
    let table = ResidentTable::as_stored(&other, Elements::F32(&stored)).unwrap().unwrap();
    let elsewhere = embed(&stream, &mut out, Table::Resident(&table), ids.view(1.into()), 8, 1.0);
    assert!(matches!(elsewhere, Err(Error::Device(_))));
}
