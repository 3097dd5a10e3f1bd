//! The arguments of `outcrop serve`.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use crate::args::{EngineArgs, NetworkArgs};

const LIMITS: &str = "Limits";
const ACCESS: &str = "Access";
const LOGS: &str = "Logs";

/// Serve models over HTTP, to clients of TEI, Cohere, Jina, vLLM and OpenAI, and over gRPC to those of TEI.
///
/// `/health` answers as soon as the process listens, `/ready` when the models are loaded and warm. SIGTERM takes `/ready` away, answers
/// what has been taken, and ends the process.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop serve --model BAAI/bge-reranker-v2-m3
  outcrop serve --model ./base --model ./minicpm --served-model-name base --served-model-name layerwise --port 8080
  OUTCROP_MODEL=BAAI/bge-reranker-base OUTCROP_API_KEY=secret outcrop serve --host 0.0.0.0

  curl localhost:8080/rerank -d '{\"query\": \"what is panda?\", \"texts\": [\"hi\", \"The giant panda is a bear.\"]}'

Every flag is also an environment variable: --max-batch-tokens is OUTCROP_MAX_BATCH_TOKENS; lists are separated by commas, switches are true
or false. TLS is left to a proxy.")]
pub(crate) struct ServeArgs {
    /// A model directory, or a model's name on the hub. May be repeated: requests choose by their field `model`.
    #[arg(long, short, value_name = "MODEL", required = true, value_delimiter = ',')]
    pub(crate) model: Vec<String>,
    /// What requests call the model, one for each --model; its name on the hub or its directory's name if not given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) served_model_name: Vec<String>,
    /// Branch, tag or commit of models on the hub.
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// The address to listen on.
    #[arg(long, alias = "hostname", value_name = "IP", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// The port to listen on; 0 takes a free one, which is printed.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Also answer gRPC (tei.v1, text-embeddings-inference's) on this port; 0 takes a free one.
    #[arg(long, value_name = "PORT")]
    pub(crate) grpc_port: Option<u16>,
    /// Listen on a Unix socket instead.
    #[arg(long, value_name = "PATH")]
    pub(crate) uds_path: Option<PathBuf>,
    /// Most requests that are being answered or wait; more are refused with 429.
    #[arg(long, value_name = "N", default_value = "512", help_heading = LIMITS)]
    pub(crate) max_concurrent_requests: NonZeroUsize,
    /// Requests are refused with 429 while this many tokens wait.
    #[arg(long, value_name = "N", default_value = "1048576", help_heading = LIMITS)]
    pub(crate) max_queued_tokens: NonZeroUsize,
    /// Most tokens of a forward pass; what --batch-tokens says if not given.
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_batch_tokens: Option<NonZeroUsize>,
    /// Most texts of a request; more are refused with 422.
    #[arg(long, value_name = "N", default_value = "1000", help_heading = LIMITS)]
    pub(crate) max_client_batch_size: NonZeroUsize,
    /// Most bytes of a request's body; more are refused with 413.
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20, help_heading = LIMITS)]
    pub(crate) payload_limit: usize,
    /// Remember the scores of this many pairs of each model: pairs that are asked for again are not computed again. 0 remembers none.
    #[arg(long, value_name = "PAIRS", default_value_t = 0)]
    pub(crate) score_cache: usize,
    /// Cut texts that are too long, unless a request says otherwise; if false they are refused with 422.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, help_heading = LIMITS)]
    pub(crate) auto_truncate: bool,
    /// Drop requests that are not answered after this time, with 504, unless they say otherwise.
    #[arg(long, value_name = "MS", help_heading = LIMITS)]
    pub(crate) deadline_ms: Option<u64>,
    /// By how much a large request can be overtaken by smaller ones.
    #[arg(long, value_name = "MS", default_value_t = 1000, help_heading = LIMITS)]
    pub(crate) fairness_ms: u64,
    /// Most time for a request's head, and again for its body, to arrive; 408 after it.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = LIMITS)]
    pub(crate) read_timeout: u64,
    /// Most time for answering what has been taken when the server is told to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = LIMITS)]
    pub(crate) drain_timeout: u64,
    /// Threads that tokenise; the cores, eight at most, if not given.
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) tokenization_workers: Option<NonZeroUsize>,
    /// A key that requests must carry as `Authorization: Bearer KEY`. May be repeated.
    #[arg(long, value_name = "KEY", value_delimiter = ',', hide_env_values = true, help_heading = ACCESS)]
    pub(crate) api_key: Vec<String>,
    /// A file with further keys, one per line.
    #[arg(long, value_name = "FILE", help_heading = ACCESS)]
    pub(crate) api_key_file: Option<PathBuf>,
    /// An origin whose pages may call this server; * for all. May be repeated.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', help_heading = ACCESS)]
    pub(crate) cors_allow_origin: Vec<String>,
    /// What is logged to standard error: a level, or levels of parts as in `warn,outcrop=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info", help_heading = LOGS)]
    pub(crate) log_level: String,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, help_heading = LOGS)]
    pub(crate) log_format: LogFormat,
    /// Send traces to an OpenTelemetry collector over gRPC, as in http://localhost:4317.
    #[arg(long, value_name = "URL", help_heading = LOGS)]
    pub(crate) otlp_endpoint: Option<String>,
    /// What traces call this server.
    #[arg(long, value_name = "NAME", default_value = "outcrop", help_heading = LOGS)]
    pub(crate) otlp_service_name: String,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object per line.
    Json,
}
