//! The files are what they claim to be: shapes, bytes, tokenizers.

use std::fs;
use std::path::Path;

use outcrop::loader::{AllowedCutoffs, Checkpoint, Config};
use safetensors::SafeTensors;
use tokenizers::Tokenizer;

use super::shape::Shape;
use super::vocabulary::{Style, pieces};
use super::weights::{self, Random};
use super::{Family, Size, Task, decoder, run};
use crate::Status;
use crate::args::SynthArgs;
use crate::dtype::Dtype;
use crate::error::Error;

const DECODERS: [Family; 3] = [Family::Gemma, Family::Minicpm, Family::Gemma2];

const ENGLISH: &str = "The quick brown fox jumps over the lazy dog. How does a reranker compute a score for a query and a \
    passage? It reads both together and returns one number; the passage with the highest number answers best. Déjà vu, \
    naïve café, Straße: accents are common in names. Numbers such as 3.14159, 2023 and 1,000,000 appear too!";

fn args(family: Family, dir: &Path) -> SynthArgs {
    SynthArgs {
        family,
        task: None,
        size: Size::Tiny,
        dtype: Dtype::F32,
        seed: 7,
        layers: None,
        max_shard_bytes: u64::MAX,
        force: false,
        dir: dir.to_owned(),
    }
}

fn parameters(family: Family, task: Task, size: Size) -> usize {
    Shape::of(family, size).unwrap().tensors(family, task).iter().map(Random::elems).sum()
}

/// The published numbers of parameters.
#[test]
fn shapes_are_the_published_ones() {
    assert_eq!(parameters(Family::Xlmr, Task::Rerank, Size::Base), 278_044_417);
    assert_eq!(parameters(Family::Xlmr, Task::Rerank, Size::Large), 559_891_457);
    assert_eq!(parameters(Family::Xlmr, Task::Rerank, Size::M3), 567_755_777);
    assert_eq!(parameters(Family::Xlmr, Task::Embed, Size::M3), 567_754_752);
    assert_eq!(parameters(Family::Bert, Task::Embed, Size::Base), 109_482_240);
    assert_eq!(parameters(Family::Bert, Task::Embed, Size::Large), 335_141_888);
    assert_eq!(Shape::of(Family::Bert, Size::M3), None);

    let parameters = |family| {
        let config = decoder::config(family, Size::Published, None).unwrap();
        decoder::tensors(&config).iter().map(Random::elems).sum::<usize>()
    };
    assert_eq!(parameters(Family::Gemma), 2_506_172_416);
    assert_eq!(parameters(Family::Minicpm), 2_724_956_928);
    // Gemma 2 9B, and 35 rows of heads.
    assert_eq!(parameters(Family::Gemma2), 9_241_705_984 + 35 * 3584);
}

/// What is written is read back as the same network, and every tensor has its place in it.
#[test]
fn decoders_are_read_as_what_they_were_written_as() {
    for (family, dtype) in
        [(Family::Gemma, Dtype::F32), (Family::Minicpm, Dtype::F16), (Family::Gemma2, Dtype::Bf16)]
    {
        let config = decoder::config(family, Size::Published, None).unwrap();
        let json = decoder::config_json(&config, dtype).to_string();
        let parsed = Config::parse(Path::new("config.json"), json.as_bytes()).unwrap();
        assert_eq!(parsed, Config::Decoder(config));

        let dir = tempfile::tempdir().unwrap();
        let made = SynthArgs { dtype, max_shard_bytes: 500_000, ..args(family, dir.path()) };
        assert_eq!(run(&made, true).unwrap(), Status::Done);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let config = decoder::config(family, Size::Tiny, None).unwrap();
        assert_eq!(*checkpoint.config(), Config::Decoder(config.clone()));
        let tensors = decoder::tensors(&config);
        assert_eq!(checkpoint.tensors().count(), tensors.len());
        for Random { name, shape, .. } in &tensors {
            let tensor = checkpoint.tensor(name).unwrap().expect_shape(shape).unwrap();
            assert_eq!(tensor.data.dtype(), dtype.stored(), "{name}");
        }
        // The first tensor is larger than a shard may be, the others share two or three.
        assert!(dir.path().join("model.safetensors.index.json").exists());
        let shard = checkpoint.tensor("model.embed_tokens.weight").unwrap().file().to_owned();
        assert!(checkpoint.tensors().filter(|tensor| tensor.file == shard).count() == 1);
        assert_eq!(checkpoint.tokenizer().unwrap().vocab_size(), config.vocab_size);
        let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
        assert!(text.contains(&format!("\"torch_dtype\": \"{}\"", dtype.torch_name())), "{text}");
    }
}

#[test]
fn fewer_layers_have_the_cutoffs_that_are_left() {
    let cutoffs =
        |family, layers| decoder::config(family, Size::Published, layers).unwrap().allowed_cutoffs();
    assert_eq!(cutoffs(Family::Minicpm, None), Some(AllowedCutoffs { start: 8, step: 1, last: 40 }));
    assert_eq!(cutoffs(Family::Gemma2, Some(8)), Some(AllowedCutoffs { start: 8, step: 1, last: 8 }));
    assert_eq!(cutoffs(Family::Gemma2, Some(3)), Some(AllowedCutoffs { start: 3, step: 1, last: 3 }));
    assert_eq!(cutoffs(Family::Gemma, Some(3)), None);
    let dir = tempfile::tempdir().unwrap();
    run(&SynthArgs { layers: std::num::NonZeroUsize::new(1), ..args(Family::Xlmr, dir.path()) }, true)
        .unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.contains("roberta.encoder.layer.0.output.dense.weight"));
    assert!(!checkpoint.contains("roberta.encoder.layer.1.output.dense.weight"));
}

#[test]
fn the_file_parses_and_holds_every_tensor() {
    for (family, dtype) in
        [(Family::Xlmr, Dtype::F32), (Family::Bert, Dtype::F16), (Family::Xlmr, Dtype::Bf16)]
    {
        let dir = tempfile::tempdir().unwrap();
        let made = SynthArgs { dtype, ..args(family, dir.path()) };
        assert_eq!(run(&made, true).unwrap(), Status::Done);
        let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let task = if family == Family::Xlmr { Task::Rerank } else { Task::Embed };
        let tensors = Shape::of(family, Size::Tiny).unwrap().tensors(family, task);
        assert_eq!(file.len(), tensors.len());
        for tensor in tensors {
            let view = file.tensor(&tensor.name).unwrap();
            assert_eq!(view.shape(), tensor.shape, "{}", tensor.name);
            assert_eq!(view.dtype().bitsize(), 8 * dtype.bytes(), "{}", tensor.name);
        }
        // The data starts at a multiple of 8 bytes, so that it can be borrowed where it lies.
        let header_bytes = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(header_bytes % 8, 0);
        assert!(!dir.path().join("model.safetensors.part").exists());
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    // More than one buffer, and an end that no chunk size divides.
    let tensors = [
        Random { name: "large".to_owned(), shape: vec![4_400, 1_001], mean: 0.0, std: 0.05 },
        Random { name: "small".to_owned(), shape: vec![3], mean: 1.0, std: 0.5 },
    ];
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, tensors: &[Random], seed: u64, threads: usize| {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let written = pool.install(|| weights::write(&dir, tensors, Dtype::F32, seed, u64::MAX)).unwrap();
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        assert_eq!(bytes.len() as u64, written.bytes);
        bytes
    };
    let first = make("first", &tensors, 1, 1);
    assert!(first == make("again", &tensors, 1, 3), "the number of threads changed the weights");
    assert!(first != make("other", &tensors, 2, 1), "the seed did not change the weights");
    // A tensor does not depend on the tensors around it.
    let alone = make("alone", &tensors[1..], 1, 1);
    assert_eq!(first[first.len() - 12..], alone[alone.len() - 12..]);
    // They are not to change between versions or machines.
    let last: Vec<f32> =
        first[first.len() - 12..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(last, PINNED);
}

/// The first three numbers of tensor "small" under seed 1, computed apart from this program.
const PINNED: [f32; 3] = [-0.0061916113, 1.0041097, 0.55220026];

#[test]
fn weights_have_the_asked_distribution() {
    let tensor = Random { name: "w".to_owned(), shape: vec![1 << 20], mean: 1.0, std: 0.05 };
    let dir = tempfile::tempdir().unwrap();
    weights::write(dir.path(), &[tensor], Dtype::F32, 3, u64::MAX).unwrap();
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor("w").unwrap();
    let values: Vec<f64> =
        view.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    // The standard error of the mean is 0.05 / 1024, that of the standard deviation a little less.
    assert!((mean - 1.0).abs() < 5.0 * 0.05 / 1024.0, "mean {mean}");
    assert!((variance.sqrt() - 0.05).abs() < 5.0 * 0.05 / 1024.0, "standard deviation {}", variance.sqrt());
    assert!(values.iter().all(|v| (v - 1.0).abs() < 3.5 * 0.05));
}

#[test]
fn vocabularies_have_the_asked_size_and_no_piece_twice() {
    for (style, count) in
        [(Style::SentencePiece, 249_997), (Style::WordPiece, 29_523), (Style::SentencePiece, 400_000)]
    {
        let pieces = pieces(style, count);
        assert_eq!(pieces.len(), count);
        let unique: std::collections::HashSet<&String> = pieces.iter().collect();
        assert_eq!(unique.len(), count);
    }
}

#[test]
fn the_xlmr_tokenizer_reads_latin_text() {
    for size in [Size::Tiny, Size::Base] {
        let vocab_size = Shape::of(Family::Xlmr, size).unwrap().vocab_size;
        let tokenizer = load(Family::Xlmr, vocab_size);
        assert_eq!(tokenizer.get_vocab_size(true), vocab_size);
        for (token, id) in [("<s>", 0), ("<pad>", 1), ("</s>", 2), ("<unk>", 3), ("<mask>", vocab_size - 1)] {
            assert_eq!(tokenizer.token_to_id(token).map(|id| id as usize), Some(id));
        }
        let encoding = tokenizer.encode_fast(ENGLISH, false).unwrap();
        assert!(!encoding.get_ids().contains(&3), "{:?}", encoding.get_tokens());
        assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), ENGLISH);
        let pair = tokenizer.encode_fast(("a", "b"), true).unwrap();
        let ids = pair.get_ids();
        assert_eq!((ids[0], ids[2], ids[3], ids[5], ids.len()), (0, 2, 2, 2, 6));
    }
}

#[test]
fn the_bert_tokenizer_reads_latin_text() {
    let tokenizer = load(Family::Bert, 30_522);
    assert_eq!(tokenizer.get_vocab_size(true), 30_522);
    for (token, id) in
        [("[PAD]", 0), ("[unused0]", 1), ("[UNK]", 100), ("[CLS]", 101), ("[SEP]", 102), ("[MASK]", 103)]
    {
        assert_eq!(tokenizer.token_to_id(token), Some(id));
    }
    assert_eq!(tokenizer.token_to_id("!"), Some(999));
    let encoding = tokenizer.encode_fast(ENGLISH, true).unwrap();
    assert!(!encoding.get_ids().contains(&100), "{:?}", encoding.get_tokens());
    assert_eq!((encoding.get_ids()[0], encoding.get_ids().last()), (101, Some(&102)));
    let words = tokenizer.encode_fast("the quick brown fox", false).unwrap();
    assert_eq!(tokenizer.decode(words.get_ids(), false).unwrap(), "the quick brown fox");
}

/// Ids, line breaks and beginnings as in the published files.
#[test]
fn the_byte_pair_tokenizers_are_laid_out_as_published() {
    let ids =
        |tokenizer: &Tokenizer, text: &str| tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
    for family in [Family::Gemma, Family::Gemma2] {
        let tokenizer = load(family, 256_000);
        assert_eq!(tokenizer.get_vocab_size(true), 256_000);
        for (token, id) in [
            ("<pad>", 0),
            ("<eos>", 1),
            ("<bos>", 2),
            ("<unk>", 3),
            ("<mask>", 4),
            ("\n", 108),
            ("▁▁", 139),
            ("<0x00>", 217),
            ("<0xFF>", 472),
        ] {
            assert_eq!(tokenizer.token_to_id(token), Some(id), "{token}");
        }
        assert_eq!(ids(&tokenizer, "\n"), [108]);
        assert_eq!(ids(&tokenizer, "\n\n\n"), [110]);
        assert_eq!(ids(&tokenizer, "   "), [140]);
        assert_eq!(ids(&tokenizer, "Yes"), [tokenizer.token_to_id("Yes").unwrap()]);
        assert_eq!(ids(&tokenizer, ""), [0; 0]);
        assert_eq!(tokenizer.encode_fast("Yes", true).unwrap().get_ids()[0], 2);
        // Looked for in the raw text by Gemma 2 only.
        assert_eq!(ids(&tokenizer, "<start_of_turn>") == [106], family == Family::Gemma2);
    }
    let tokenizer = load(Family::Minicpm, 122_753);
    assert_eq!(tokenizer.get_vocab_size(true), 122_753);
    for (token, id) in [("<unk>", 0), ("<s>", 1), ("</s>", 2), ("<0x00>", 3), ("<0xFF>", 258)] {
        assert_eq!(tokenizer.token_to_id(token), Some(id), "{token}");
    }
    let space = tokenizer.token_to_id("▁").unwrap();
    assert_eq!(ids(&tokenizer, "\n"), [space, tokenizer.token_to_id("<0x0A>").unwrap()]);
    assert_eq!(ids(&tokenizer, " \n"), [space, space, tokenizer.token_to_id("<0x0A>").unwrap()]);
    assert_eq!(ids(&tokenizer, ""), [0; 0]);
    assert_eq!(tokenizer.encode_fast("yes", true).unwrap().get_ids()[0], 1);
}

#[test]
fn merges_lead_to_every_piece() {
    for (family, vocab_size) in [(Family::Gemma, 8192), (Family::Minicpm, 8192), (Family::Gemma2, 256_000)] {
        let tokenizer = load(family, vocab_size);
        let mut checked = 0;
        for id in 0..u32::try_from(vocab_size).unwrap() {
            let piece = tokenizer.id_to_token(id).unwrap();
            // Each text of MiniCPM begins with a space, which the normalizer puts there.
            let text = match (family, piece.strip_prefix('▁')) {
                (Family::Minicpm, Some(rest)) if !rest.is_empty() => rest,
                (Family::Minicpm, _) => continue,
                _ => &piece,
            };
            if text.starts_with(['<', '[']) && text.len() > 1 {
                continue;
            }
            let text = text.replace('▁', " ");
            assert_eq!(tokenizer.encode_fast(text, false).unwrap().get_ids(), [id], "{family:?}: {piece:?}");
            checked += 1;
        }
        assert!(checked > vocab_size / 3, "{family:?}: {checked} of {vocab_size}");
    }
}

/// Text in any script is tokenised without loss: what is no piece is bytes.
#[test]
fn byte_pair_tokenizers_read_any_text() {
    for family in DECODERS {
        let tokenizer = load(family, 8192);
        for text in
            [ENGLISH, "大熊猫是中国特有的物种", "  two  spaces\tand\nbreaks\r\n", "👩\u{200d}💻 Привет שלום"]
        {
            let encoding = tokenizer.encode_fast(text, false).unwrap();
            assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
            let unk = tokenizer.token_to_id("<unk>").unwrap();
            assert!(!encoding.get_ids().contains(&unk), "{family:?}: {text}");
        }
    }
}

#[test]
fn prose_costs_as_many_tokens_as_it_does_with_a_trained_vocabulary() {
    for (family, vocab_size) in [
        (Family::Xlmr, 250_002),
        (Family::Bert, 30_522),
        (Family::Gemma, 256_000),
        (Family::Minicpm, 122_753),
    ] {
        let encoding = load(family, vocab_size).encode_fast(ENGLISH, false).unwrap();
        let per_word = encoding.len() as f64 / ENGLISH.split_whitespace().count() as f64;
        assert!((1.2..1.7).contains(&per_word), "{family:?}: {per_word} tokens per word");
    }
}

fn load(family: Family, vocab_size: usize) -> Tokenizer {
    let json = super::tokenizer::tokenizer(family, vocab_size).to_string();
    json.parse().unwrap()
}

#[test]
fn embedders_say_how_they_pool() {
    let dir = tempfile::tempdir().unwrap();
    run(&args(Family::Bert, dir.path()), true).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let embedder = checkpoint.sentence_transformers().unwrap().unwrap();
    assert_eq!(embedder.pooling, outcrop::loader::Pooling::Cls);
    assert!(embedder.normalize);
    assert_eq!(embedder.max_seq_length, Some(512));
}

#[test]
fn a_directory_in_use_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "mine").unwrap();
    let made = args(Family::Xlmr, dir.path());
    assert!(matches!(run(&made, true), Err(Error::NotEmpty { .. })));
    assert_eq!(fs::read_to_string(dir.path().join("config.json")).unwrap(), "mine");
    run(&SynthArgs { force: true, ..made }, true).unwrap();
    assert!(fs::read_to_string(dir.path().join("config.json")).unwrap().contains("XLMRoberta"));
}

#[test]
fn combinations_that_nobody_published_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model");
    let m3 = SynthArgs { size: Size::M3, ..args(Family::Bert, &target) };
    let rerank = SynthArgs { task: Some(Task::Rerank), ..args(Family::Bert, &target) };
    let published = SynthArgs { size: Size::Published, ..args(Family::Xlmr, &target) };
    let base = SynthArgs { size: Size::Base, ..args(Family::Gemma, &target) };
    let embed = SynthArgs { task: Some(Task::Embed), ..args(Family::Minicpm, &target) };
    for made in [m3, rerank, published, base, embed] {
        assert!(matches!(run(&made, true), Err(Error::NoSuchShape { .. })));
    }
    assert!(!target.exists());
}
