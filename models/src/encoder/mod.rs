//! XLM-RoBERTa and BERT: bidirectional encoders with post-norm, as rerankers and as embedders.
//!
//! Devlin et al. 2018 and Conneau et al. 2019; formulas and their order as in SPEC 3.3 and 8. `H` hidden size, `T` tokens of
//! the packed batch, `S` its sequences:
//!
//! ```text
//! x = LN(word[id] + tokentype[0] + position[pos])
//! each layer:
//!   q, k, v = x Wq + bq, x Wk + bk, x Wv + bv
//!   x = LN(x + softmax(q kᵀ / sqrt(head_dim)) v Wo + bo)
//!   x = LN(x + gelu_erf(x W1 + b1) W2 + b2)
//! reranker: score = out_proj(tanh(dense(x[<s>])))         embedder: the first row or the mean of all, scaled to length 1
//! ```

mod activations;
mod batch;

pub use activations::Activations;
pub use batch::{Batch, check_sequence};

use std::sync::Arc;

use outcrop_kernels::add_layer_norm::add_layer_norm;
use outcrop_kernels::attention::{AttentionParams, Mask, Rows, attention};
use outcrop_kernels::embed_layer_norm::{EmbeddingTables, embed_layer_norm};
use outcrop_kernels::gather_rows::gather_rows;
use outcrop_kernels::gemm::{Epilogue, gemm};
use outcrop_kernels::l2_normalize::l2_normalize;
use outcrop_kernels::pool::pool;
use outcrop_kernels::row_dot::row_dot;
use outcrop_kernels::{Buffer, CpuStream, ElementType, Reading, Size, Stream};
use outcrop_loader::{Architecture, Checkpoint, EncoderConfig};

use self::activations::{Run, Tensors};
use crate::Error;
use crate::weights::{EmbeddingTable, Linear, Norm, Reader, elements};

/// How the rows of a sequence become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The first row.
    Cls,
    /// The mean of all rows, special tokens included.
    Mean,
}

/// An encoder with its weights in place.
pub struct Encoder {
    config: EncoderConfig,
    checkpoint: Arc<Checkpoint>,
    word_embeddings: (String, EmbeddingTable),
    position_embeddings: (String, EmbeddingTable),
    token_type: Buffer,
    embeddings_norm: Norm,
    layers: Vec<Layer>,
    classifier: Option<Classifier>,
}

struct Layer {
    /// Query, key and value, fused: three parts of `[H, H]`.
    qkv: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

struct Classifier {
    dense: Linear,
    out_proj_weight: Buffer,
    out_proj_bias: f32,
}

impl Encoder {
    /// Reads every weight of the model from `checkpoint` and puts it where `stream` runs. On the CPU matrices are held in
    /// `element_type`; `None` keeps the stored one.
    pub fn load(
        stream: &Stream,
        host: &CpuStream,
        checkpoint: Arc<Checkpoint>,
        config: &EncoderConfig,
        element_type: Option<ElementType>,
    ) -> Result<Self, Error> {
        let reader =
            Reader { stream, host, checkpoint: &checkpoint, adapters: &[], element_type, fold_norms: false };
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let is_reranker = config.architecture == Architecture::XlmRobertaForSequenceClassification;
        let prefix = prefix(&checkpoint);
        let embeddings = format!("{prefix}embeddings");
        let word_embeddings = format!("{embeddings}.word_embeddings.weight");
        let position_embeddings = format!("{embeddings}.position_embeddings.weight");
        let table = |name: String, rows: usize| -> Result<_, Error> {
            let tensor = checkpoint.tensor(&name)?.expect_shape(&[rows, hidden])?;
            let table = EmbeddingTable::as_operand(stream, &tensor)?;
            Ok((name, table))
        };
        let word_embeddings = table(word_embeddings, config.vocab_size)?;
        let position_embeddings = table(position_embeddings, config.max_position_embeddings)?;

        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for n in 0..config.num_hidden_layers {
            let layer = format!("{prefix}encoder.layer.{n}");
            let name = |module: &str| format!("{layer}.{module}");
            let qkv = ["query", "key", "value"].map(|m| name(&format!("attention.self.{m}")));
            layers.push(Layer {
                qkv: reader.linear(&qkv, hidden, hidden)?,
                attention_output: reader.linear(&[name("attention.output.dense")], hidden, hidden)?,
                attention_norm: reader.norm(
                    &name("attention.output.LayerNorm"),
                    hidden,
                    config.layer_norm_eps,
                )?,
                intermediate: reader.linear(&[name("intermediate.dense")], intermediate, hidden)?,
                output: reader.linear(&[name("output.dense")], hidden, intermediate)?,
                output_norm: reader.norm(&name("output.LayerNorm"), hidden, config.layer_norm_eps)?,
            });
        }
        let classifier = if is_reranker {
            Some(Classifier {
                dense: reader.linear(&["classifier.dense".to_owned()], hidden, hidden)?,
                out_proj_weight: reader.upload(&reader.first_row(
                    "classifier.out_proj.weight",
                    1,
                    hidden,
                )?)?,
                out_proj_bias: reader.vector("classifier.out_proj.bias", 1)?[0],
            })
        } else {
            None
        };
        Ok(Self {
            token_type: reader.upload(&reader.first_row(
                &format!("{embeddings}.token_type_embeddings.weight"),
                config.type_vocab_size,
                hidden,
            )?)?,
            embeddings_norm: reader.norm(
                &format!("{embeddings}.LayerNorm"),
                hidden,
                config.layer_norm_eps,
            )?,
            config: config.clone(),
            word_embeddings,
            position_embeddings,
            layers,
            classifier,
            checkpoint,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Whether the model has a scoring head. Without one it is an embedder.
    pub fn is_reranker(&self) -> bool {
        self.classifier.is_some()
    }

    /// The first tensor of the checkpoint that holds a NaN or an infinity: the usual cause of a score that is not a number.
    ///
    /// Reads every weight, so it is for explaining a failure only.
    pub fn non_finite_tensor(&self) -> Option<String> {
        let found = self.checkpoint.tensors().find(|info| {
            let tensor = self.checkpoint.tensor(info.name);
            tensor.is_ok_and(|tensor| {
                let is_finite = elements(&tensor).all_finite();
                tensor.release();
                !is_finite
            })
        });
        found.map(|info| info.name.to_owned())
    }

    /// One raw score per sequence of a batch of pairs; `None` for a model without a scoring head.
    ///
    /// `act` must have room for the batch. On a GPU the run is submitted and not waited for: `act` may take the next batch at once.
    pub fn scores(
        &self,
        stream: &Stream,
        act: &mut Activations,
        batch: &Batch,
    ) -> Result<Option<Reading>, Error> {
        let Some(classifier) = &self.classifier else { return Ok(None) };
        let run = Run { bounds: act.load(batch)?, embeddings: None };
        let Activations { graphs, tensors, .. } = act;
        graphs.run(stream, run, || {
            self.first_rows(stream, tensors)?;
            stream.label("head", None);
            let Tensors { layout, hidden, projected, results, .. } = tensors;
            let Linear { weight, bias } = &classifier.dense;
            gemm(stream, projected, hidden, weight, 0..1, layout.seqs(), Epilogue::BiasTanh(bias))?;
            let Classifier { out_proj_weight: head, out_proj_bias: bias, .. } = classifier;
            Ok::<_, Error>(row_dot(stream, results, 0, projected, head, *bias, None, layout.seqs())?)
        })?;
        Ok(Some(act.tensors.results.read_later(batch.num_seqs())?))
    }

    /// One vector of `hidden_size` elements per sequence, one after the other; `act` as for [`Encoder::scores`].
    pub fn embeddings(
        &self,
        stream: &Stream,
        act: &mut Activations,
        batch: &Batch,
        pooling: Pooling,
        normalize: bool,
    ) -> Result<Reading, Error> {
        let hidden_size = self.config.hidden_size;
        let run = Run { bounds: act.load(batch)?, embeddings: Some((pooling, normalize)) };
        let Activations { graphs, tensors, .. } = act;
        graphs.run(stream, run, || {
            match pooling {
                Pooling::Cls => self.first_rows(stream, tensors)?,
                Pooling::Mean => self.all_rows(stream, tensors)?,
            }
            stream.label("head", None);
            let Tensors { layout, hidden, results, .. } = tensors;
            let spans = match pooling {
                Pooling::Cls => layout.scored_spans(),
                Pooling::Mean => layout.spans(),
            };
            pool(stream, results, hidden, spans, hidden_size)?;
            if normalize {
                l2_normalize(stream, results, layout.seqs(), hidden_size)?;
            }
            Ok::<_, Error>(())
        })?;
        Ok(act.tensors.results.read_later(batch.num_seqs() * hidden_size)?)
    }

    /// Leaves the last layer's output for every token in `hidden`, `[T, H]`.
    fn all_rows(&self, stream: &Stream, tensors: &mut Tensors) -> Result<(), Error> {
        self.embed(stream, tensors)?;
        for (n, layer) in self.layers.iter().enumerate() {
            stream.label("layer", n);
            layer.forward(stream, tensors, self.attention_params())?;
        }
        Ok(())
    }

    /// Leaves the last layer's output for the first token of each sequence in `hidden`, `[S, H]`.
    ///
    /// The last layer computes nothing else: only its keys and values need the other tokens. Exact.
    fn first_rows(&self, stream: &Stream, tensors: &mut Tensors) -> Result<(), Error> {
        self.embed(stream, tensors)?;
        let Some((last, before)) = self.layers.split_last() else { return Ok(()) };
        for (n, layer) in before.iter().enumerate() {
            stream.label("layer", n);
            layer.forward(stream, tensors, self.attention_params())?;
        }
        stream.label("layer", before.len());
        last.forward_first_rows(stream, tensors, self.attention_params())
    }

    fn embed(&self, stream: &Stream, tensors: &mut Tensors) -> Result<(), Error> {
        stream.label("embedding", None);
        let Tensors { input_ids, position_ids, layout, hidden, .. } = tensors;
        layout.lay_out(stream)?;
        let (word, word_table) = &self.word_embeddings;
        let (position, position_table) = &self.position_embeddings;
        let (word, position) = (self.checkpoint.tensor(word)?, self.checkpoint.tensor(position)?);
        let tables = EmbeddingTables {
            word: word_table.get(&word),
            position: position_table.get(&position),
            token_type: &self.token_type,
        };
        let (ids, positions) = (input_ids.view(layout.tokens()), position_ids.view(layout.tokens()));
        embed_layer_norm(stream, hidden, tables, ids, positions, self.embeddings_norm.get())?;
        Ok(())
    }

    fn attention_params(&self) -> AttentionParams {
        let head_dim = self.config.head_dim();
        AttentionParams {
            num_heads: self.config.num_attention_heads,
            num_kv_heads: self.config.num_attention_heads,
            head_dim,
            softmax_scale: (head_dim as f32).powf(-0.5),
            mask: Mask::Full,
            softcap: None,
        }
    }
}

/// What stands before every tensor name of the encoder: embedders are saved bare, models with a head under their family's name.
fn prefix(checkpoint: &Checkpoint) -> &'static str {
    let is_there = |prefix: &&str| checkpoint.contains(&format!("{prefix}embeddings.word_embeddings.weight"));
    ["", "roberta.", "bert."].into_iter().find(is_there).unwrap_or("")
}

impl Layer {
    /// `hidden` `[T, H]` in and out.
    fn forward(&self, stream: &Stream, tensors: &mut Tensors, params: AttentionParams) -> Result<(), Error> {
        let Tensors { layout, hidden, wide, context, projected, .. } = tensors;
        let (t, h) = (layout.tokens(), params.num_heads * params.head_dim);
        gemm(stream, wide, hidden, &self.qkv.weight, 0..3, t, Epilogue::Bias(&self.qkv.bias))?;
        let [q, k, v] = [0, h, 2 * h].map(|column| Rows { buffer: wide, stride: 3 * h, column });
        attention(stream, context, q, k, v, layout.spans(), params)?;
        self.attention_output(stream, projected, context, t)?;
        add_layer_norm(stream, hidden, projected, self.attention_norm.get(), t)?;
        self.feed_forward(stream, hidden, wide, projected, t)
    }

    /// `hidden` `[T, H]` in; the scored rows alone, `[S, H]`, out.
    fn forward_first_rows(
        &self,
        stream: &Stream,
        tensors: &mut Tensors,
        params: AttentionParams,
    ) -> Result<(), Error> {
        let Tensors { layout, hidden: x, wide, context, projected, .. } = tensors;
        let (t, s, h) = (layout.tokens(), layout.seqs(), params.num_heads * params.head_dim);
        gemm(stream, wide, x, &self.qkv.weight, 1..3, t, Epilogue::Bias(&self.qkv.bias))?;
        // From here on the other rows of the residual stream are not needed: its memory and that of the context swap roles.
        gather_rows(stream, context, x, layout.scored_rows(), h)?;
        let (hidden, context) = (context, x);
        gemm(stream, projected, hidden, &self.qkv.weight, 0..1, s, Epilogue::Bias(&self.qkv.bias))?;
        let q = Rows { buffer: projected, stride: h, column: 0 };
        let [k, v] = [0, h].map(|column| Rows { buffer: wide, stride: 2 * h, column });
        attention(stream, context, q, k, v, layout.scored_spans(), params)?;
        self.attention_output(stream, projected, context, s)?;
        add_layer_norm(stream, hidden, projected, self.attention_norm.get(), s)?;
        self.feed_forward(stream, hidden, wide, projected, s)?;
        std::mem::swap(hidden, context);
        Ok(())
    }

    /// `projected = context Wo + bo`
    fn attention_output(
        &self,
        stream: &Stream,
        projected: &mut Buffer,
        context: &Buffer,
        rows: Size,
    ) -> Result<(), Error> {
        let Linear { weight, bias } = &self.attention_output;
        Ok(gemm(stream, projected, context, weight, 0..1, rows, Epilogue::Bias(bias))?)
    }

    /// `hidden = LN(hidden + gelu(hidden W1 + b1) W2 + b2)`
    fn feed_forward(
        &self,
        stream: &Stream,
        hidden: &mut Buffer,
        wide: &mut Buffer,
        projected: &mut Buffer,
        rows: Size,
    ) -> Result<(), Error> {
        let Linear { weight, bias } = &self.intermediate;
        gemm(stream, wide, hidden, weight, 0..1, rows, Epilogue::BiasGeluErf(bias))?;
        let Linear { weight, bias } = &self.output;
        gemm(stream, projected, wide, weight, 0..1, rows, Epilogue::Bias(bias))?;
        Ok(add_layer_norm(stream, hidden, projected, self.output_norm.get(), rows)?)
    }
}
