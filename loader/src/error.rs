//! The error of this crate: what is wrong, in which file, what was expected and found, and what to do about it.

use std::io;
use std::path::PathBuf;

use safetensors::Dtype;

/// Why a model could not be found, read or understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path given as a model directory does not exist.
    #[error("no model directory at {}", path.display())]
    NoDirectory {
        /// The path as given.
        path: PathBuf,
    },
    /// The path given as a model directory is a file.
    #[error("{} is not a directory; give the directory that holds config.json and model.safetensors", path.display())]
    NotADirectory {
        /// The path as given.
        path: PathBuf,
    },
    /// The operating system refused to open or read a file.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The operating system refused to write a file.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The operating system refused to map a file.
    #[error("cannot map {} into memory", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file that is read whole is larger than any real one.
    #[error("{} has {found} bytes, more than the {limit} that such a file may have", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The largest length that is read.
        limit: u64,
    },
    /// A Git LFS pointer lies where the file itself should be.
    #[error(
        "{} is a Git LFS pointer, not the file itself; run `git lfs install && git lfs pull` in the model directory",
        path.display()
    )]
    GitLfsPointer {
        /// The pointer file.
        path: PathBuf,
    },

    /// The directory has no `config.json`.
    #[error("no config.json in {}; is this a model directory?", dir.display())]
    NoConfig {
        /// The model directory.
        dir: PathBuf,
    },
    /// A JSON file does not parse.
    #[error("{} is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why the parser stopped.
        source: serde_json::Error,
    },
    /// A field of a JSON file is missing, of the wrong type, or out of range.
    #[error("{}: {field} must be {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, with a dotted path if it is nested.
        field: String,
        /// What the field may be.
        expected: String,
        /// What it is, shortened.
        found: String,
    },
    /// The model is of a family that is not supported.
    #[error("{}: architecture {found} is not supported; supported are {supported}", path.display())]
    UnsupportedArchitecture {
        /// The `config.json`.
        path: PathBuf,
        /// The architecture named there.
        found: String,
        /// All supported architectures, separated by commas.
        supported: String,
    },
    /// A sequence classifier with more than one label gives no single score.
    #[error(
        "{}: the model has {num_labels} labels, so it is a classifier and not a reranker; a reranker has 1",
        path.display()
    )]
    NotAReranker {
        /// The `config.json`.
        path: PathBuf,
        /// The labels that the configuration declares.
        num_labels: usize,
    },

    /// The directory holds no weights in any known format.
    #[error("no weights in {}: expected {expected}", dir.display())]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// The files that it may hold them in.
        expected: &'static str,
    },
    /// The directory holds weights as a Python pickle only.
    #[error(
        "{path} is a Python pickle, and there is no {wanted} beside it; convert it once with\n  {command}",
        path = path.display()
    )]
    PickledWeights {
        /// The pickle.
        path: PathBuf,
        /// The file that is missing.
        wanted: &'static str,
        /// A command that writes it beside the pickle.
        command: String,
    },
    /// A weight file has no bytes at all.
    #[error("{} is empty; download it again", path.display())]
    EmptyFile {
        /// The weight file.
        path: PathBuf,
    },
    /// The header length at the start of a weight file cannot be true.
    #[error(
        "{}: the safetensors header is said to have {header_bytes} bytes, in a file of {file_bytes} bytes \
         (at most {limit} are accepted); the file is truncated or no safetensors file",
        path.display()
    )]
    HeaderLength {
        /// The weight file.
        path: PathBuf,
        /// The length in the file's first eight bytes.
        header_bytes: u64,
        /// The length of the file.
        file_bytes: u64,
        /// The longest header that is read.
        limit: u64,
    },
    /// A weight file is too short to hold a header length.
    #[error("{}: {file_bytes} bytes are too few for a safetensors file; download it again", path.display())]
    NoHeader {
        /// The weight file.
        path: PathBuf,
        /// The length of the file.
        file_bytes: u64,
    },
    /// The header of a weight file does not parse.
    #[error("{}: the safetensors header is not valid", path.display())]
    HeaderJson {
        /// The weight file.
        path: PathBuf,
        /// Where and why the parser stopped; also names a tensor that occurs twice.
        source: serde_json::Error,
    },
    /// A tensor's bytes do not follow its predecessor's.
    #[error(
        "{}: tensor {tensor} lies at bytes {start}..{end}, expected to start at {expected_start}: \
         tensors may neither overlap nor leave gaps",
        path.display()
    )]
    TensorOffsets {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// First byte, counted from the end of the header.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Where the previous tensor ends.
        expected_start: usize,
    },
    /// A tensor's shape, type and number of bytes contradict each other.
    #[error("{}: tensor {tensor} of type {dtype} and shape {shape:?} does not fit its {found} bytes", path.display())]
    TensorBytes {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The stored type.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
        /// The bytes that the header gives it.
        found: usize,
    },
    /// The tensors of a weight file end elsewhere than the file does.
    #[error(
        "{}: the header describes a file of {expected} bytes, found {found}; \
         the file is truncated or damaged, download it again",
        path.display()
    )]
    FileLength {
        /// The weight file.
        path: PathBuf,
        /// Header and tensors, in bytes; saturated if the sum has no 64-bit value.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// A path inside a file of the model leads out of the model directory.
    #[error("{}: {name:?} is not a path inside the model directory", path.display())]
    UnsafePath {
        /// The file that holds the path.
        path: PathBuf,
        /// The path as written there.
        name: String,
    },
    /// A tensor is in a shard that is not there.
    #[error("tensor {tensor} is in {}, which does not exist; the download is incomplete", shard.display())]
    MissingShard {
        /// The tensor asked for.
        tensor: String,
        /// The shard that the index names for it.
        shard: PathBuf,
    },
    /// The checkpoint has no tensor of this name.
    #[error(
        "no tensor {tensor} in {}{}", dir.display(),
        nearest.as_ref().map(|name| format!("; the nearest name is {name}")).unwrap_or_default()
    )]
    MissingTensor {
        /// The tensor asked for.
        tensor: String,
        /// The model directory.
        dir: PathBuf,
        /// The stored name most like it, if any is.
        nearest: Option<String>,
    },
    /// A tensor has a shape that the configuration contradicts.
    #[error("{}: tensor {tensor} must have shape {expected:?}, found {found:?}", path.display())]
    Shape {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that follows from `config.json`.
        expected: Vec<usize>,
        /// The stored shape.
        found: Vec<usize>,
    },
    /// A weight is stored in a type that is not a supported float.
    #[error("{}: tensor {tensor} is stored as {found}; supported are F32, F16 and BF16", path.display())]
    UnsupportedDtype {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The stored type.
        found: Dtype,
    },
    /// The directory has no `adapter_config.json`.
    #[error("no adapter_config.json in {}; is this the directory of a LoRA adapter?", dir.display())]
    NoAdapterConfig {
        /// The adapter directory.
        dir: PathBuf,
    },
    /// An adapter holds a tensor that is no part of a supported adapter.
    #[error(
        "{}: tensor {tensor} is not supported in an adapter; supported are, after base_model.model., \
         <module>.lora_A.weight with <module>.lora_B.weight, and <module>.weight of a saved module", path.display()
    )]
    AdapterTensor {
        /// The adapter's weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// An adapter has one of the two matrices of a module.
    #[error("{}: module {module} has a {found}, but no {missing}; the adapter is incomplete", path.display())]
    AdapterHalf {
        /// The adapter's weight file.
        path: PathBuf,
        /// The module of the base model.
        module: String,
        /// The matrix that is there.
        found: &'static str,
        /// The matrix that is not.
        missing: &'static str,
    },
    /// An adapter changes the same weight in two ways.
    #[error("{}: module {module} is changed by two tensors that exclude each other", path.display())]
    AdapterTwice {
        /// The adapter's weight file.
        path: PathBuf,
        /// The module of the base model.
        module: String,
    },
    /// A matrix of an adapter does not have the rank that the configuration states.
    #[error("{}: tensor {tensor} must have shape {expected} by r in adapter_config.json, found {found:?}", path.display())]
    AdapterRank {
        /// The adapter's weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that it may have.
        expected: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// An adapter has no tensor that changes a base model.
    #[error("{}: the adapter changes nothing", path.display())]
    EmptyAdapter {
        /// The adapter's weight file.
        path: PathBuf,
    },
    /// An adapter changes a tensor that the base model does not have.
    #[error(
        "{} changes tensor {tensor}, which the model in {} does not have{}; is it the adapter of another model?",
        path.display(), dir.display(),
        nearest.as_ref().map(|name| format!(" (the nearest name is {name})")).unwrap_or_default()
    )]
    AdapterTarget {
        /// The adapter's weight file.
        path: PathBuf,
        /// The tensor of the base model.
        tensor: String,
        /// The model directory.
        dir: PathBuf,
        /// The name in the base model most like it, if any is.
        nearest: Option<String>,
    },
    /// An adapter changes a tensor of another shape than the base model's.
    #[error(
        "{} changes tensor {tensor} as one of shape {found:?}, but in {} it has shape {expected:?}; \
         is it the adapter of another model?", path.display(), file.display()
    )]
    AdapterShape {
        /// The adapter's weight file.
        path: PathBuf,
        /// The tensor of the base model.
        tensor: String,
        /// The base model's weight file.
        file: PathBuf,
        /// The shape there.
        expected: Box<[usize]>,
        /// The shape that follows from the adapter.
        found: Box<[usize]>,
    },

    /// A tensor that is to be written has a name that a reader could not find again.
    #[error("cannot write tensor {tensor:?} to {}: the name is reserved or occurs twice", dir.display())]
    TensorName {
        /// The directory that is to be written to.
        dir: PathBuf,
        /// The name.
        tensor: String,
    },
    /// A tensor that is to be written is no whole number of bytes, or with those before it more than can be counted.
    #[error(
        "cannot write tensor {tensor} of type {dtype} and shape {shape:?} to {}: with those before it, it has no \
         whole number of bytes below 2^{}", dir.display(), usize::BITS
    )]
    TensorSize {
        /// The directory that is to be written to.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type to store it in.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
    },
    /// Shards are to be written beside a single weight file, which readers would prefer.
    #[error(
        "{} is there already and would be read instead of the shards to be written beside it; remove it, or write to \
         another directory", path.display()
    )]
    StaleWeights {
        /// The weight file.
        path: PathBuf,
    },

    /// The directory has no `tokenizer.json`.
    #[error(
        "no tokenizer.json in {dir}{}; make one with\n  {command}",
        found.as_ref().map(|name| format!(", only {name}")).unwrap_or_default(),
        dir = dir.display()
    )]
    NoTokenizer {
        /// The model directory.
        dir: PathBuf,
        /// The tokenizer file of another format that is there.
        found: Option<&'static str>,
        /// A command that writes `tokenizer.json` into the directory.
        command: String,
    },
    /// A `tokenizer.json` does not parse or has parts that do not fit together.
    #[error("{} is not a valid tokenizer", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tokenizer that knows whole words only.
    #[error("{}: the tokenizer model WordLevel is not supported; supported are Unigram, BPE and WordPiece", path.display())]
    UnsupportedTokenizer {
        /// The file.
        path: PathBuf,
    },
    /// The special tokens around a text could not be told from the text's own.
    #[error("{}: the post-processor does not wrap a single text in fixed special tokens", path.display())]
    SpecialTokens {
        /// The `tokenizer.json`.
        path: PathBuf,
    },
    /// A text could not be tokenised.
    #[error("{} cannot tokenise the text", path.display())]
    Encode {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Ids stand for no text.
    #[error("{} cannot decode the ids", path.display())]
    Decode {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The sentence-transformers modules are not the supported ones.
    #[error(
        "{}: the modules {found} are not supported; supported are Transformer, Pooling and perhaps Normalize, \
         in this order, the Transformer in the model directory itself",
        path.display()
    )]
    UnsupportedModules {
        /// The `modules.json`.
        path: PathBuf,
        /// The modules listed there, with their directories.
        found: String,
    },
    /// A pooling that is neither the first token nor the mean.
    #[error("{}: pooling {found} is not supported; supported are cls and mean", path.display())]
    UnsupportedPooling {
        /// The pooling module's `config.json`.
        path: PathBuf,
        /// The pooling modes switched on there.
        found: String,
    },

    /// A model name that is no directory and cannot be a hub id.
    #[error("{model:?} is neither a directory nor a hub id such as BAAI/bge-reranker-v2-m3")]
    NotAModel {
        /// The name as given.
        model: String,
    },
    /// A revision that cannot be a branch, tag or commit.
    #[error("{revision:?} is not a revision: expected a branch, a tag or a commit id")]
    NotARevision {
        /// The revision as given.
        revision: String,
    },
    /// A revision was given together with a directory.
    #[error("{} is a directory, which has no revision {revision:?}; leave the revision out", path.display())]
    RevisionOfDirectory {
        /// The directory.
        path: PathBuf,
        /// The revision as given.
        revision: String,
    },
    /// There is nowhere to keep downloaded models.
    #[error("no home directory to keep downloaded models in; set HF_HOME or HF_HUB_CACHE to a directory")]
    NoHubCache,
    /// The hub has no such model, and there is no directory of that name either.
    #[error(
        "there is neither a directory {model} nor a model of that name at {endpoint}; if it is private, set HF_TOKEN"
    )]
    HubModel {
        /// The hub id.
        model: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub refuses access. It does the same for models that do not exist.
    #[error(
        "{endpoint} refuses access to {model} (status {status}); check the name, accept the model's terms on its page \
         if it is gated, and set HF_TOKEN to a token that may read it"
    )]
    HubAccess {
        /// The hub id.
        model: String,
        /// The hub.
        endpoint: String,
        /// The HTTP status.
        status: u16,
    },
    /// The model exists, the revision does not.
    #[error("model {model} has no revision {revision:?}")]
    HubRevision {
        /// The hub id.
        model: String,
        /// The revision as given.
        revision: String,
    },
    /// The model exists, a file that it needs does not.
    #[error("model {model} has no {file} at revision {revision}")]
    HubFile {
        /// The hub id.
        model: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// The model is on the hub without safetensors weights.
    #[error(
        "model {model} has no safetensors weights at revision {revision}; if another revision has them, give that one, \
         else download the model and convert pytorch_model.bin to model.safetensors"
    )]
    HubWeights {
        /// The hub id.
        model: String,
        /// The revision.
        revision: String,
    },
    /// Downloading is switched off, and a file is not in the cache.
    #[error(
        "there is no directory {model}, the cache {} does not hold {file} of {model}, and HF_HUB_OFFLINE forbids to \
         download it", cache.display()
    )]
    HubOffline {
        /// The hub id.
        model: String,
        /// The file.
        file: String,
        /// The cache directory.
        cache: PathBuf,
    },
    /// The hub did not answer, or not in a way that can be understood.
    #[error(
        "there is no directory {model}, and {endpoint} cannot be asked for a model of that name; check the path, or set \
         HF_HUB_OFFLINE=1 to use only what is in the cache"
    )]
    HubRequest {
        /// The hub id.
        model: String,
        /// The hub.
        endpoint: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The hub gave a commit that is no commit id.
    #[error("{endpoint} names {commit:?} as the commit of {model}, expected 40 hexadecimal digits")]
    HubCommit {
        /// The hub id.
        model: String,
        /// The hub.
        endpoint: String,
        /// What it gave.
        commit: String,
    },
    /// A download broke off. What arrived is kept, under another name, and continued by the next attempt.
    #[error("cannot download {file} of {model}; try again to continue")]
    HubDownload {
        /// The hub id.
        model: String,
        /// The file.
        file: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A download ended with another length than the hub announced, and was thrown away.
    #[error("downloaded {found} bytes of {file} of {model}, expected {expected}; try again")]
    HubLength {
        /// The hub id.
        model: String,
        /// The file.
        file: String,
        /// The length that the hub announced.
        expected: u64,
        /// The length that arrived.
        found: u64,
    },
}
