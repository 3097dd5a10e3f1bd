//! One forward pass of a stack over a batch, step by step.

use outcrop_kernels::embed::embed;
use outcrop_kernels::gather_rows::gather_rows;
use outcrop_kernels::gemm::{Epilogue, Matrix, gemm};
use outcrop_kernels::layout::LayoutBuffer;
use outcrop_kernels::rms_norm::rms_norm;
use outcrop_kernels::row_dot::row_dot;
use outcrop_kernels::token_compress::token_compress;
use outcrop_kernels::{Buffer, Reading, Size, Stream};

use super::activations::{Activations, Normed, Run, Step, Tensors};
use super::batch::Batch;
use super::{Layer, Stack};
use crate::Error;
use crate::weights::RootMeanSquare;

/// A forward pass under way: the residual stream of a batch behind some number of layers.
///
/// Layers are run in order, the last of the stack by [`Step::LastLayer`]. In between, states can be scored and passages compressed.
pub struct Pass<'a> {
    pub(super) stream: &'a Stream,
    pub(super) stack: &'a Stack<'a>,
    pub(super) tensors: &'a mut Tensors,
    /// Layers run so far.
    pub(super) layer: usize,
    pub(super) scored_rows: ScoredRows,
    /// The layout in force, of the two.
    pub(super) layout: usize,
}

/// The scores of a batch that is being run.
pub struct PendingScores {
    reading: Reading,
    /// From one cutoff's scores to the next one's.
    stride: usize,
    num_seqs: usize,
}

impl PendingScores {
    /// Waits for them: of every score asked for, one per sequence.
    pub fn wait(self) -> Result<Vec<Vec<f32>>, Error> {
        let scores = self.reading.wait()?;
        let of_batch = |scores: &[f32]| scores[..self.num_seqs].to_vec();
        Ok(scores.chunks_exact(self.stride.max(1)).map(of_batch).collect())
    }
}

/// Which rows the residual stream holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ScoredRows {
    /// Every token's.
    AmongAll,
    /// The last row of each sequence only.
    Alone,
}

/// What becomes of the output of attention or MLP.
#[derive(Clone, Copy)]
pub(super) enum Output<'a> {
    /// It is left in `projected`.
    Projected,
    /// It is added to the residual stream, times a factor; `normed` is that under the norm before what reads it next.
    Residual(f32, &'a RootMeanSquare),
}

impl Stack<'_> {
    /// Runs `steps` over `batch`, for which `act` must have room: of every score asked for, one per sequence.
    ///
    /// On a GPU the launches of a run are recorded and replayed where `act` was made to. They are submitted and not waited for: `act` may
    /// take the next batch at once.
    pub fn run(
        &self,
        stream: &Stream,
        act: &mut Activations,
        batch: &Batch,
        steps: &[Step],
    ) -> Result<PendingScores, Error> {
        let bounds = act.load(stream, &self.decoder.config, batch, self.layers_run())?;
        let Activations { graphs, tensors, .. } = act;
        let run = Run {
            bounds,
            steps: steps.to_vec(),
            num_positions: self.rope.num_positions(),
            prefixes: tensors.prefixes.shape(),
        };
        graphs.run(stream, run, || {
            let mut pass = Pass::begin(stream, self, tensors)?;
            steps.iter().try_for_each(|step| pass.step(*step))
        })?;
        if batch.segments.kept_segment.is_some() {
            tensors.prefixes.hand_over();
        }
        let num_scores = steps.iter().filter(|step| matches!(step, Step::Score(_))).count();
        let reading = tensors.scores.read_later(num_scores * bounds.seqs)?;
        Ok(PendingScores { reading, stride: bounds.seqs, num_seqs: batch.num_seqs() })
    }
}

impl<'a> Pass<'a> {
    /// Takes in `batch`, for which `act` must have room, and embeds its tokens: for looking into a model, step by step.
    pub fn start(
        stream: &'a Stream,
        stack: &'a Stack<'a>,
        act: &'a mut Activations,
        batch: &Batch,
    ) -> Result<Self, Error> {
        act.load(stream, &stack.decoder.config, batch, stack.layers_run())?;
        Self::begin(stream, stack, &mut act.tensors)
    }

    /// Embeds the tokens of the batch that has been taken in.
    fn begin(stream: &'a Stream, stack: &'a Stack<'a>, tensors: &'a mut Tensors) -> Result<Self, Error> {
        stream.label("embedding", None);
        let decoder = stack.decoder;
        tensors.layouts[0].lay_out(stream)?;
        let Tensors { input_ids, layouts: [layout, _], hidden, .. } = &mut *tensors;
        let tensor = decoder.embedding_tensor()?;
        let table = stack.embedding_table.get(&tensor);
        let (ids, scale) = (input_ids.view(layout.tokens()), decoder.embedding_scale());
        embed(stream, hidden, table, ids, decoder.config.hidden_size, scale)?;
        let mut pass =
            Self { stream, stack, tensors, layer: 0, scored_rows: ScoredRows::AmongAll, layout: 0 };
        if let Some(first) = stack.layers.first() {
            pass.norm(first.input_layernorm())?;
        }
        Ok(pass)
    }

    /// Takes one step.
    pub fn step(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Score(nth) => {
                self.stream.label("score", nth);
                self.score(nth)
            }
            Step::Compress(ratio) => {
                self.stream.label("compress", self.layer);
                self.compress(ratio)
            }
            Step::Layer => {
                self.stream.label("layer", self.layer);
                let stack = self.stack;
                stack.layers[self.layer].forward(self, stack.layers[self.layer + 1].input_layernorm())?;
                self.layer += 1;
                Ok(())
            }
            Step::LastLayer => {
                self.stream.label("layer", self.layer);
                let stack = self.stack;
                self.scored_rows = ScoredRows::Alone;
                stack.layers[self.layer].forward(self, &stack.norm)?;
                self.layer += 1;
                Ok(())
            }
        }
    }

    /// Merges every `ratio` passage rows of each sequence into their mean (SPEC 7.3), before the next layer.
    fn compress(&mut self, ratio: usize) -> Result<(), Error> {
        let Self { stream, stack, tensors, .. } = self;
        let Tensors { layouts: [first, second], hidden, spare, .. } = &mut **tensors;
        let (before, after) = if self.layout == 0 { (first, second) } else { (second, first) };
        after.compress(stream, before, ratio)?;
        token_compress(stream, spare, hidden, before, after, ratio, stack.decoder.config.hidden_size)?;
        std::mem::swap(hidden, spare);
        self.layout = 1 - self.layout;
        let stack = self.stack;
        self.norm(stack.layers[self.layer].input_layernorm())
    }

    /// Writes one score per sequence: the state behind the layers run so far, read by the head of the `nth` cutoff.
    fn score(&mut self, nth: usize) -> Result<(), Error> {
        let Self { stream, stack, tensors, .. } = self;
        let Tensors { layouts, hidden, normed, projected, spare, scores, .. } = &mut **tensors;
        let layout = &layouts[self.layout];
        let head = &*stack.heads[nth];
        let states = match self.scored_rows {
            // Behind the last layer the states have been normalised already.
            ScoredRows::Alone => &normed.rows,
            ScoredRows::AmongAll => {
                gather_rows(stream, spare, hidden, layout.scored_rows(), head.len())?;
                rms_norm(stream, projected, spare, stack.norm.get(), layout.seqs())?;
                projected
            }
        };
        let (offset, softcap) = (nth * layout.bounds().seqs, stack.decoder.final_softcap());
        Ok(row_dot(stream, scores, offset, states, head, 0.0, softcap, layout.seqs())?)
    }

    /// The scores of the `nth` cutoff, once written.
    pub fn scores(&self, nth: usize) -> Result<Vec<f32>, Error> {
        let layout = self.layout();
        let start = nth * layout.bounds().seqs;
        let scores = self.tensors.scores.read(start + layout.seqs().get())?;
        Ok(scores[start..].to_vec())
    }

    /// The residual stream, `[num_tokens, hidden_size]`, and behind the last layer `[num_seqs, hidden_size]`: for looking into
    /// a model.
    pub fn hidden(&self) -> Result<Vec<f32>, Error> {
        Ok(self.tensors.hidden.read(self.num_rows().get() * self.stack.decoder.config.hidden_size)?)
    }

    /// Where the rows are.
    pub(super) fn layout(&self) -> &LayoutBuffer {
        &self.tensors.layouts[self.layout]
    }

    /// Rows of the residual stream.
    pub(super) fn num_rows(&self) -> Size {
        match self.scored_rows {
            ScoredRows::AmongAll => self.layout().tokens(),
            ScoredRows::Alone => self.layout().seqs(),
        }
    }

    /// `normed = rms(hidden)`
    fn norm(&mut self, norm: &RootMeanSquare) -> Result<(), Error> {
        let rows = self.num_rows();
        let Tensors { hidden, normed, .. } = &mut *self.tensors;
        normed.compute(self.stream, hidden, norm, rows)
    }

    /// In the last layer, once keys and values are computed, leaves the scored rows of the residual stream alone, under the norm that all
    /// of them were.
    pub(super) fn drop_unscored_rows(&mut self) -> Result<(), Error> {
        let Tensors { hidden, spare, layouts, .. } = &mut *self.tensors;
        let rows = layouts[self.layout].scored_rows();
        gather_rows(self.stream, spare, hidden, rows, self.stack.decoder.config.hidden_size)?;
        std::mem::swap(hidden, spare);
        let stack = self.stack;
        self.norm(stack.layers[self.layer].input_layernorm())
    }
}

impl Output<'_> {
    /// `matrix` applied to rows of `input`, put where it belongs.
    pub(super) fn write(
        self,
        stream: &Stream,
        (projected, hidden, normed): (&mut Buffer, &mut Buffer, &mut Normed),
        input: &Buffer,
        matrix: &Matrix,
        rows: Size,
    ) -> Result<(), Error> {
        match self {
            Self::Projected => Ok(gemm(stream, projected, input, matrix, 0..1, rows, Epilogue::None)?),
            Self::Residual(scale, norm) => {
                let deferred = normed.defer(norm);
                let is_deferred = deferred.is_some();
                gemm(stream, hidden, input, matrix, 0..1, rows, Epilogue::AddScaled(scale, deferred))?;
                if is_deferred { Ok(()) } else { normed.compute(stream, hidden, norm, rows) }
            }
        }
    }
}

impl Layer {
    fn input_layernorm(&self) -> &RootMeanSquare {
        match self {
            Self::Gemma(layer) => &layer.input_layernorm,
            Self::MiniCpm(layer) => &layer.input_layernorm,
            Self::Gemma2(layer) => &layer.input_layernorm,
        }
    }

    fn forward(&self, pass: &mut Pass<'_>, next: &RootMeanSquare) -> Result<(), Error> {
        match self {
            Self::Gemma(layer) => layer.forward(pass, next),
            Self::MiniCpm(layer) => layer.forward(pass, next),
            Self::Gemma2(layer) => layer.forward(pass, next),
        }
    }
}
