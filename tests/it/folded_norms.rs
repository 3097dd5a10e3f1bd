//! `EngineOptions::fold_norms`: the scores that there are without it but for the last bits, and the same bits however they are run.

use std::fs;
use std::path::Path;

use half::bf16;
use outcrop::{Device, Dtype, Engine, EngineOptions};
use safetensors::tensor::{self, SafeTensors, TensorView};
use tempfile::TempDir;

use crate::devices::{
    bits_of_scores, case, device, flat, hopper, oracle, range, root_mean_square, scores, worst,
};
use crate::fixtures::{json, pair_cases, path};

fn folding(device: &Device, dtype: Dtype) -> EngineOptions {
    EngineOptions { device: device.clone(), dtype, fold_norms: true, ..EngineOptions::default() }
}

/// Where the tests run, and how many of their models: of Hopper's own kernels the first has all.
fn devices() -> impl Iterator<Item = (Device, usize)> {
    let found = [(device(), usize::MAX), (hopper(), 1)];
    found.into_iter().filter_map(|(device, models)| Some((device?, models)))
}

/// A fixture that is stored in bf16, stored in f32 instead; the scores are the same.
fn stored_in_f32(model: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = Vec::new();
    for entry in fs::read_dir(path(model)).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = fs::read(&file).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                assert_eq!(view.dtype(), tensor::Dtype::BF16);
                let widen = |x: &[u8]| bf16::from_le_bytes([x[0], x[1]]).to_f32().to_le_bytes();
                let data: Vec<u8> = view.data().chunks(2).flat_map(widen).collect();
                tensors.push((name, view.shape().to_vec(), data));
            }
        } else if file.is_file() && name != "model.safetensors.index.json" {
            fs::copy(&file, folder.path().join(name)).unwrap();
        }
    }
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(tensor::Dtype::F32, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

/// Every case of MiniCPM, those with adapters too, within what is allowed without the switch.
#[test]
fn f16_scores_are_the_oracles_within_0_3_percent_of_their_range() {
    let layerwise = stored_in_f32("minicpm_layerwise");
    let models = [
        ("minicpm_single_head", path("minicpm_single_head"), 1),
        ("minicpm_layerwise", layerwise.path().to_owned(), 10),
    ];
    for (device, number) in devices() {
        for (model, dir, at_least) in models.iter().take(number) {
            let all = range(&oracle(&case(model, None)));
            let mut done = 0;
            for case in pair_cases(&path(model)) {
                let options =
                    EngineOptions { adapters: case.adapters.clone(), ..folding(&device, Dtype::F16) };
                let engine = Engine::open(dir, &options).unwrap();
                if case.scores.is_none() || case.options_for(&engine).is_err() || case.pairs.is_empty() {
                    continue;
                }
                let (got, expected) = (scores(&engine, &case), oracle(&case));
                let scale = if case.options.normalize { 1.0 } else { all.max(range(&expected)) };
                let error = worst(&got, &expected);
                assert!(error <= 0.003 * scale, "{model}, {}: {error:e} of {scale:e}", case.name);
                done += 1;
            }
            assert!(done >= *at_least, "{model}: only {done} cases");
        }
    }
}

/// By root mean square and largest difference.
#[test]
#[allow(clippy::print_stdout)] // Read with --nocapture.
fn bf16_scores_are_closer_to_the_oracle_than_the_references_own() {
    for (device, _) in devices() {
        let reference = json(path("gemma").join("bf16.json"));
        let case = case("gemma", reference["name"].as_str());
        let (reference, expected) = (flat(&reference["scores"]), oracle(&case));
        let got = scores(&Engine::open(path("gemma"), &folding(&device, Dtype::BF16)).unwrap(), &case);
        let ours = (root_mean_square(&got, &expected), worst(&got, &expected));
        let theirs = (root_mean_square(&reference, &expected), worst(&reference, &expected));
        println!("gemma, {}: {ours:.4?}, the reference {theirs:.4?}", case.name);
        assert!(ours.0 < theirs.0 && ours.1 < theirs.1, "{ours:?} from the oracle, the reference {theirs:?}");
    }
}

/// Alone, in any batch, in any order, with and without sharing and graphs; but not the bits that there are without the switch.
#[test]
fn scores_do_not_depend_on_batch_order_sharing_or_graphs() {
    let layerwise = stored_in_f32("minicpm_layerwise");
    let models = [
        ("gemma", path("gemma"), Dtype::BF16, &[][..]),
        ("minicpm_layerwise", layerwise.path().to_owned(), Dtype::F16, &[2, 4, 6]),
    ];
    for (device, number) in devices() {
        for (model, dir, dtype, cutoffs) in models.iter().take(number) {
            let bits = |options: &EngineOptions| {
                bits_of_scores(dir, &case(model, None), options, |engine, options| {
                    options.cutoff_layers = (!cutoffs.is_empty()).then(|| engine.cutoffs(cutoffs).unwrap());
                })
            };
            let folded = folding(&device, *dtype);
            assert_ne!(
                bits(&folded),
                bits(&EngineOptions { fold_norms: false, ..folded.clone() }),
                "{model}"
            );
        }
    }
}

/// A norm is computed where a pass begins, for the scored rows, and before the heads; the residual adds take the place of the others.
#[test]
fn products_take_the_norms_place() {
    let Some(device) = device() else { return };
    let case = case("gemma", None);
    for fold_norms in [false, true] {
        let options = EngineOptions { fold_norms, ..folding(&device, Dtype::BF16) };
        let engine = Engine::open(path("gemma"), &options).unwrap();
        let (_, profile) = engine.profile(|| engine.score(&case.pairs[..1], &case.options)).unwrap();
        let norms = profile.kernels.iter().filter(|call| call.kernel == "rms_norm").count();
        assert_eq!(norms, if fold_norms { 3 } else { 2 + 2 * engine.layers_loaded() });
    }
}

#[test]
fn where_norms_cannot_be_folded_the_switch_is_refused() {
    let refused = |dir: &Path, options: &EngineOptions| {
        Engine::open(dir, options).err().unwrap_or_else(|| panic!("{} is opened", dir.display())).to_string()
    };
    let on_cpu = folding(&Device::Cpu, Dtype::Auto);
    for model in ["xlmr_base", "embed_m3", "gemma2_lightweight"] {
        let error = refused(&path(model), &on_cpu);
        assert!(error.contains("has no option fold_norms"), "{model}: {error}");
    }
    for model in ["gemma", "minicpm_single_head"] {
        let error = refused(&path(model), &on_cpu);
        assert!(error.starts_with("fold_norms: the CPU") && error.contains("--device cuda"), "{error}");
    }
    let Some(device) = device() else { return };
    let error = refused(&path("gemma"), &folding(&device, Dtype::F16));
    assert!(error.contains("exceeds the range of f16") && error.contains("--dtype bf16"), "{error}");
    let error = refused(&path("minicpm_gqa_bf16_stored"), &folding(&device, Dtype::Auto));
    assert!(error.contains("model.layers.0.self_attn.q_proj.weight is stored in 16 bits"), "{error}");
    // An adapter that changes all of them leaves them in f32.
    let adapters = vec![path("minicpm_layerwise/lora_adapter")];
    let options = EngineOptions { adapters, ..folding(&device, Dtype::BF16) };
    let engine = Engine::open(path("minicpm_layerwise"), &options).unwrap();
    assert!(scores(&engine, &case("minicpm_layerwise", None)).iter().all(|score| score.is_finite()));
}
