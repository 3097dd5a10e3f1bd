use std::time::Duration;

use outcrop::bench::{Call, Ceilings, Fused};
use outcrop::profile::{KernelTime, Label, Profile};
use outcrop::{Cost, Timings};

use super::parts::{kernels, parts, total_ms};
use super::seen::{Seen, quantile};
use super::svg::picture;
use super::texts::{Lengths, lognormal};

#[test]
fn quantiles_are_times_that_were_seen() {
    let ms = |count: u64| (1..=count).rev().map(Duration::from_millis);
    for (count, share, expected) in [
        (100, 0.5, 50.0),
        (100, 0.95, 95.0),
        (100, 0.99, 99.0),
        (101, 0.99, 100.0),
        (3, 0.5, 2.0),
        (3, 0.99, 3.0),
        (1, 0.5, 1.0),
        (10, 0.0, 1.0),
        (10, 1.0, 10.0),
    ] {
        let found = quantile(ms(count), share);
        assert!((found - expected).abs() < 1e-9, "{share} of {count}: {found}");
    }
    assert!(quantile(ms(0), 0.5).is_nan());
}

#[test]
fn rates_are_over_the_whole_time() {
    let call = |wall, tokenize, device| Timings {
        wall: Duration::from_millis(wall),
        tokenize: Duration::from_millis(tokenize),
        device: Duration::from_millis(device),
    };
    let mut seen = Seen::default();
    seen.begin_round();
    seen.push(call(100, 10, 80), 20, 1000, 1_000_000);
    seen.begin_round();
    seen.push(call(300, 10, 200), 20, 1000, 1_000_000);
    seen.push(call(100, 10, 95), 20, 1000, 1_000_000);
    let facts = seen.facts(1e9);
    let fact = |name: &str| facts[name].as_f64().unwrap();
    assert!((fact("pairs_per_s") - 120.0).abs() < 1e-9);
    assert!((fact("tokens_per_s") - 6000.0).abs() < 1e-9);
    assert_eq!(facts["pairs_per_s_of_rounds"], serde_json::json!([200.0, 100.0]));
    assert_eq!((fact("p50_ms"), fact("p99_ms")), (100.0, 300.0));
    // Tokenisation and device may overlap, and then nothing is left.
    assert_eq!((fact("device_ms"), fact("host_ms"), fact("tokens_per_pair")), (95.0, 10.0, 50.0));
    assert!((fact("of_ceiling") - 3e6 / 0.5 / 1e9).abs() < 1e-12);
    assert!((fact("tflops_of_device_time") - 3e6 / 0.375 / 1e12).abs() < 1e-12);
}

#[test]
fn lengths_are_spelled_and_refused() {
    for text in ["fixed:512", "lognormal:170", "lognormal:170:0.9", "file:pairs.jsonl"] {
        assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
    }
    // Records of two machines name the same file.
    assert_eq!("file:/some/where/pairs.jsonl".parse::<Lengths>().unwrap().to_string(), "file:pairs.jsonl");
    for text in
        ["", "512", "fixed:", "fixed:0", "fixed:1.5", "lognormal:0", "lognormal:170:nan", "file:", "normal:3"]
    {
        let error = text.parse::<Lengths>().unwrap_err();
        assert!(error.contains("lognormal:MEAN:SIGMA"), "{text}: {error}");
    }
}

#[test]
fn lognormal_lengths_have_their_mean_and_are_the_same_in_every_run() {
    let lengths = lognormal(170.0, 0.6, 8, 20_000);
    assert_eq!(lengths, lognormal(170.0, 0.6, 8, 20_000));
    let mean = lengths.iter().sum::<usize>() as f64 / 20_000.0;
    // The longest are cut: at 512 about three in a hundred, which is five tokens of the mean.
    assert!((162.0..172.0).contains(&mean), "{mean}");
    assert_eq!(lengths.iter().max(), Some(&512));
    let mut sorted = lengths;
    sorted.sort_unstable();
    // The median of a lognormal distribution is the exponential of mu.
    let median = sorted[10_000] as f64;
    assert!((median / (170f64.ln() - 0.18).exp() - 1.0).abs() < 0.02, "{median}");
    assert_eq!(lognormal(1.0, 0.1, 20, 3), [20; 3]);
    // A mean beyond 512 has longer ones.
    assert!(lognormal(2000.0, 0.6, 8, 100).into_iter().max().unwrap() > 2500);
}

/// Two batches of a network of two layers.
fn profile() -> Profile {
    let call = |name, index, kernel, shape: &str, ms| KernelTime {
        label: Label { name, index },
        kernel,
        shape: shape.to_owned(),
        instances: vec![format!("{kernel}<f16, 1 & 2>")],
        cost: Cost { flops: 1000, bytes: 10 },
        ms,
    };
    let batch = [
        call("embedding", None, "embed", "", 0.5),
        call("layer", Some(0), "gemm", "8 x 4", 1.0),
        call("layer", Some(0), "attention", "full", 0.25),
        call("layer", Some(0), "gemm", "4 x 8", 0.5),
        call("layer", Some(1), "gemm", "8 x 4", 2.0),
        call("head", None, "row_dot", "", 0.125),
    ];
    Profile { kernels: [batch.clone(), batch].concat(), spans_ms: vec![5.0, 5.0] }
}

#[test]
fn profiles_are_added_up_by_part_and_by_kernel() {
    let profile = profile();
    assert_eq!(total_ms(&profile), 8.75);
    let parts = parts(&profile);
    let labels: Vec<String> = parts.iter().map(|part| part.label.to_string()).collect();
    assert_eq!(labels, ["embedding", "layer 0", "layer 1", "head"]);
    assert_eq!(parts.iter().map(super::parts::Part::ms).collect::<Vec<_>>(), [1.0, 3.5, 4.0, 0.25]);
    let first = &parts[1].cells[0];
    assert_eq!((first.name().as_str(), first.calls, first.cost.flops), ("gemm 8 x 4", 2, 2000));
    assert_eq!(first.instances, ["gemm<f16, 1 & 2>"]);
    let kernels = kernels(&profile);
    let rows: Vec<(String, usize, f64)> =
        kernels.iter().map(|cell| (cell.name(), cell.calls, cell.ms)).collect();
    let row = |name: &str, calls, ms| (name.to_owned(), calls, ms);
    assert_eq!(rows[..3], [row("gemm 8 x 4", 4, 6.0), row("embed", 2, 1.0), row("gemm 4 x 8", 2, 1.0)]);
}

fn ceilings() -> Ceilings {
    let product = Call::Gemm { m: 1, n: 1, k: 1, fused: Fused::None };
    Ceilings { flops_per_second: 1e9, bytes_per_second: 1e9, product, copy: product }
}

/// Elements of an SVG with their nesting checked: a reader that is strict about what we write.
fn elements(text: &str) -> Vec<&str> {
    let (mut found, mut open) = (Vec::new(), Vec::new());
    for piece in text.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '/']).next().unwrap();
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{tag} in {text}"),
            None => {
                assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
                found.push(tag);
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
    }
    assert!(open.is_empty(), "{open:?} is not closed");
    found
}

#[test]
fn the_picture_is_whole_and_adds_up() {
    let profile = profile();
    let text =
        picture(&[("1x1/a&b".to_owned(), profile.clone()), ("the <other>".to_owned(), profile)], ceilings());
    assert!(text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && text.ends_with("</svg>\n"));
    // Nothing from elsewhere, and nothing that runs.
    assert_eq!(text.matches("http").count(), 1);
    assert!(!text.contains("script") && text.contains("prefers-color-scheme: dark"));
    assert!(text.contains("1x1/a&amp;b: 8.750 ms in 12 kernel calls") && text.contains("the &lt;other&gt;"));
    let elements = elements(&text);
    let value = |tag: &str, name: &str| -> Option<f64> {
        tag.split_once(&format!(" {name}=\""))?.1.split_once('"')?.0.parse().ok()
    };
    let cells: Vec<&str> = elements.into_iter().filter(|tag| tag.contains("data-ms")).collect();
    // Of each profile: the embedding, two products and attention, a product, the head.
    assert_eq!(cells.len(), 2 * 6);
    let total: f64 = cells.iter().map(|tag| value(tag, "data-ms").unwrap()).sum();
    assert!((total - 2.0 * 8.75).abs() < 1e-9, "{total}");
    // Widths are times on one scale; the longest row is as long as a row may be.
    let widths: f64 = cells.iter().map(|tag| value(tag, "width").unwrap()).sum();
    assert!((widths / total - 960.0 / 4.0).abs() < 0.1, "{widths}");
    assert!(text.contains("<title>layer 0: gemm 8 x 4, 2 calls, 2.0000 ms, 0 % of the ceiling, gemm&lt;f16, 1 &amp; 2&gt;</title>"), "{text}");
    // Rows of one profile lie below one another, cells of a row side by side.
    let place = |tag: &&str| (value(tag, "y").unwrap(), value(tag, "x").unwrap());
    let layer: Vec<(f64, f64)> = cells[1..4].iter().map(place).collect();
    assert!(
        layer.iter().all(|(y, _)| *y == layer[0].0) && layer.windows(2).all(|pair| pair[0].1 < pair[1].1)
    );
    assert!(place(&cells[4]).0 > layer[0].0 && place(&cells[6]).0 > place(&cells[5]).0);
}
