//! gemm_hopper.cu behind its launch code, against f64: every tile, whichever the model would choose.

use super::Activation;
use super::cuda_tests::{KINDS, Kind, Problem, SMALL, Shape, bits, check_product};
use super::hopper::{TILES, Tile, instances, with_tile};
use crate::test_devices::{HOPPER, OPERAND_TYPES, device_of, is_hopper, under_schedules_on};
use crate::{ElementType, Stream};

/// Sizes that divide nothing: several tiles for each cluster, so that consumers take turns and boxes are filled again, and k of more
/// stages than a ring has; more rows than a band of tiles, in two columns of tiles.
const TURNS: Shape = (200, 264, 264);
const ROUNDS: Shape = (130, 520, 840);
const BANDS: Shape = (2100, 264, 24);

fn can(tile: Tile, kind: Kind) -> bool {
    tile.can(if matches!(kind, Kind::Gated(..)) { "SiluGated" } else { "None" })
}

/// A few products of every kind with every tile: the first mistake or fault.
pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    for tile in TILES {
        with_tile(tile, || {
            for kind in KINDS.into_iter().filter(|kind| can(tile, *kind)) {
                check_product(stream, kind, (70, 136, 104))?;
            }
            let gated = Kind::Gated(Activation::Silu, true);
            if can(tile, gated) {
                check_product(stream, gated, TURNS)?;
            }
            check_product(stream, Kind::None, TURNS)
        })
        .map_err(|what| format!("{}: {what}", tile.name))?;
    }
    Ok(())
}

#[test]
fn every_instance_matches_f64_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules_on(HOPPER, operand_type, |stream| {
            if !is_hopper(stream) {
                eprintln!("SKIPPED: the GPU is none of Hopper's, or OUTCROP_PORTABLE_KERNELS is set");
                return;
            }
            for tile in TILES {
                for kind in KINDS.into_iter().filter(|kind| can(tile, *kind)) {
                    with_tile(tile, || {
                        for shape in SMALL {
                            check_product(stream, kind, shape).unwrap();
                        }
                    });
                }
            }
            let loaded = stream.loaded_kernels();
            let prefix = format!("gemm_hopper<{}, ", crate::device::cpp_name(operand_type));
            for instance in instances().iter().filter(|instance| instance.name.starts_with(&prefix)) {
                let was_run = loaded.iter().any(|kernel| kernel.name == instance.name);
                assert!(was_run, "{} was not run", instance.name);
            }
        });
    }
}

#[test]
fn turns_and_rounds_match_f64_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules_on(HOPPER, operand_type, |stream| check(stream).unwrap());
    }
}

#[test]
fn larger_products_match_f64() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device_of(HOPPER, operand_type) else { return };
        for tile in TILES {
            for kind in [Kind::None, Kind::AddScaled(true), Kind::Rope(true)] {
                with_tile(tile, || {
                    check_product(&stream, kind, ROUNDS).unwrap();
                    check_product(&stream, kind, BANDS).unwrap();
                });
            }
        }
    }
}

/// Among many rows, among few, alone, in any tile.
#[test]
fn a_row_has_the_same_bits_in_every_tile() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device_of(HOPPER, operand_type) else { return };
        for kind in KINDS {
            let problem = Problem::new(&stream, kind, (150, 136, 232)).unwrap();
            let width = problem.width();
            let run = |tile, rows: std::ops::Range<usize>| {
                let m = rows.len().into();
                bits(&with_tile(tile, || problem.run(&stream, rows, m, 0)).unwrap())
            };
            let expected = run(TILES[0], 0..150);
            for tile in TILES.into_iter().filter(|tile| can(*tile, kind)) {
                assert_eq!(run(tile, 0..150), expected, "{kind:?}, {}", tile.name);
                for row in [0, 77, 149] {
                    let alone = run(tile, row..row + 1);
                    assert_eq!(alone, expected[row * width..][..width], "{kind:?}, {}, row {row}", tile.name);
                }
            }
        }
    }
}

#[test]
fn without_rows_nothing_is_written() {
    let Some(stream) = device_of(HOPPER, ElementType::F16) else { return };
    for kind in KINDS {
        let problem = Problem::new(&stream, kind, (0, 136, 40)).unwrap();
        for tile in TILES.into_iter().filter(|tile| can(*tile, kind)) {
            problem.compare(&with_tile(tile, || problem.run(&stream, 0..0, 0.into(), 2)).unwrap()).unwrap();
            let (_memory, m) = crate::test_checks::size_on_device(&stream, 0, 1 << 20).unwrap();
            problem.compare(&with_tile(tile, || problem.run(&stream, 0..0, m, 2)).unwrap()).unwrap();
        }
    }
}

/// Boxes lie where no two rows of a phase share a bank.
#[test]
fn boxes_are_stored_without_bank_conflicts() {
    crate::test_devices::without_bank_conflicts_on(HOPPER, ElementType::F16, |stream| {
        for tile in TILES {
            with_tile(tile, || check_product(stream, Kind::None, (128, 256, 64))).unwrap();
        }
    });
}
