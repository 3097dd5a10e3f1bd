//! The layer scheduler: how deep a run goes, which states it scores on the way, and where passages are compressed.

use outcrop_loader::{AllowedCutoffs, DecoderConfig};
use outcrop_models::Stream;
use outcrop_models::decoder::{Activations, Batch, PendingScores, Stack, Step};

use crate::Error;

/// The layers behind which a pair is scored: ascending, without repeats, and all allowed by a model.
///
/// The cutoff `k` reads the state behind the first `k` layers. A run goes to the largest and no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cutoffs {
    layers: Vec<usize>,
}

impl Cutoffs {
    /// Checks `layers` against what a model allows.
    ///
    /// The reference drops layers that are not allowed, merges repeats, and pairs heads with the wrong states if they do not
    /// ascend (SPEC 1.2, 6, 7.2); here each of these is an error.
    pub fn new(layers: &[usize], allowed: AllowedCutoffs) -> Result<Self, Error> {
        if layers.is_empty() {
            return Err(Error::NoCutoffs { allowed });
        }
        if let Some(layer) = layers.iter().find(|layer| !allowed.contains(**layer)) {
            return Err(Error::CutoffNotAllowed { layer: *layer, allowed });
        }
        check_ascending("cutoff_layers", layers)?;
        Ok(Self { layers: layers.to_vec() })
    }

    /// The layers, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }
}

/// Merging the passage's states on the way (SPEC 7.3): before each of some layers, every `ratio` of them become their mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compression {
    ratio: usize,
    layers: Vec<usize>,
}

impl Compression {
    /// Where the reference compresses if only a ratio is given.
    pub const DEFAULT_LAYERS: &[usize] = &[8];

    /// `ratio` 1 leaves everything as it is. `layers` ascend without repeats and start at 1: the embeddings are never
    /// compressed. Layers that a run does not reach have no effect, of which [`Engine::check`](crate::Engine::check) warns.
    pub fn new(ratio: usize, layers: &[usize]) -> Result<Self, Error> {
        if ratio == 0 {
            return Err(Error::CompressRatio);
        }
        if layers.contains(&0) {
            return Err(Error::CompressLayerZero);
        }
        check_ascending("compress_layers", layers)?;
        Ok(Self { ratio, layers: layers.to_vec() })
    }

    /// Passage states merged into one.
    pub fn ratio(&self) -> usize {
        self.ratio
    }

    /// The layers before which that happens, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }
}

fn check_ascending(option: &'static str, layers: &[usize]) -> Result<(), Error> {
    match layers.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => Err(Error::NotAscending { option, layer: pair[0], next: pair[1] }),
        None => Ok(()),
    }
}

/// Something that a caller should know and that changes no score.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// Layers of a compression that no run to the cutoffs reaches.
    #[error(
        "compression before layer {} has no effect: the run ends behind {deepest} layers",
        layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
    )]
    CompressionWithoutEffect {
        /// The layers.
        layers: Vec<usize>,
        /// The largest cutoff.
        deepest: usize,
    },
    /// A GPU's memory did not suffice for the batches asked for.
    #[error("out of device memory: batches are of {to} tokens from now on instead of {from}")]
    BatchTokensLowered {
        /// Tokens of a batch so far.
        from: usize,
        /// And from now on.
        to: usize,
    },
}

/// What a run over a batch does, layer by layer.
pub(crate) struct Schedule {
    /// Ascending; at least one.
    pub(crate) cutoffs: Vec<usize>,
    compression: Option<Compression>,
}

/// A batch that is being run.
pub(crate) struct PendingBatch {
    scores: PendingScores,
    tokens_after: Vec<usize>,
}

impl PendingBatch {
    /// Waits for its scores.
    pub(crate) fn wait(self) -> Result<BatchScores, Error> {
        Ok(BatchScores { scores: self.scores.wait()?, tokens_after: self.tokens_after })
    }
}

/// What came of a batch.
pub(crate) struct BatchScores {
    /// Of every cutoff: a score per sequence.
    pub(crate) scores: Vec<Vec<f32>>,
    /// The length of each sequence when it was scored last.
    pub(crate) tokens_after: Vec<usize>,
}

impl Schedule {
    /// A run to `cutoffs`, or for a model without cutoffs to its last layer.
    pub(crate) fn new(cutoffs: Vec<usize>, compression: Option<Compression>) -> Self {
        Self { cutoffs, compression }
    }

    pub(crate) fn has_compression(&self) -> bool {
        self.compression.is_some()
    }

    /// The compression as far as it has an effect.
    pub(crate) fn effective_compression(&self) -> Option<Compression> {
        let Compression { ratio, layers } =
            self.compression.as_ref().filter(|compression| compression.ratio > 1)?;
        let layers: Vec<usize> = layers.iter().copied().filter(|layer| *layer < self.deepest()).collect();
        (!layers.is_empty()).then_some(Compression { ratio: *ratio, layers })
    }

    /// The largest cutoff.
    fn deepest(&self) -> usize {
        self.cutoffs.last().copied().unwrap_or(0)
    }

    /// What of it has no effect.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        let deepest = self.deepest();
        let beyond =
            self.compression.iter().flat_map(|c| &c.layers).copied().filter(|layer| *layer >= deepest);
        let layers: Vec<usize> = beyond.collect();
        if layers.is_empty() {
            Vec::new()
        } else {
            vec![Warning::CompressionWithoutEffect { layers, deepest }]
        }
    }

    /// Runs `batch` to the largest cutoff; a GPU is not waited for.
    pub(crate) fn run(
        &self,
        stream: &Stream,
        stack: &Stack<'_>,
        act: &mut Activations,
        batch: &Batch,
    ) -> Result<PendingBatch, Error> {
        let scores = stack.run(stream, act, batch, &self.steps())?;
        let mut left = batch.clone();
        (0..self.deepest())
            .filter_map(|layer| self.ratio_before(layer))
            .for_each(|ratio| left.compress(ratio));
        Ok(PendingBatch { scores, tokens_after: left.tokens().collect() })
    }

    /// The steps of a run, in order. At each index the state is scored first, then compressed, then the layer is run (SPEC 1.8).
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut scored = 0;
        for layer in 0..self.deepest() {
            if self.cutoffs[scored] == layer {
                steps.push(Step::Score(scored));
                scored += 1;
            }
            steps.extend(self.ratio_before(layer).map(Step::Compress));
            steps.push(if layer + 1 < self.deepest() { Step::Layer } else { Step::LastLayer });
        }
        steps.push(Step::Score(scored));
        steps
    }

    /// Floating-point operations of [`Schedule::run`]'s matrix products, embeddings and heads aside.
    pub(crate) fn flops(&self, config: &DecoderConfig, batch: &mut Batch) -> u64 {
        let mut flops = 0;
        for layer in 0..self.deepest() {
            if let Some(ratio) = self.ratio_before(layer) {
                batch.compress(ratio);
            }
            flops += batch.layer_flops(config, layer + 1 == self.deepest());
        }
        flops
    }

    fn ratio_before(&self, layer: usize) -> Option<usize> {
        let compression = self.compression.as_ref()?;
        (compression.ratio > 1 && compression.layers.contains(&layer)).then_some(compression.ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: AllowedCutoffs = AllowedCutoffs { start: 8, step: 2, last: 40 };

    #[test]
    fn cutoffs_are_sorted_unique_and_allowed() {
        assert_eq!(Cutoffs::new(&[8, 16, 40], ALLOWED).unwrap().layers(), [8, 16, 40]);
        for (layers, named) in [
            (&[][..], "8 to 40 in steps of 2"),
            (&[7], "7"),
            (&[8, 41], "41"),
            (&[9], "in steps of 2"),
            (&[16, 8], "16"),
            (&[8, 8], "8"),
            (&[0], "0"),
        ] {
            let error = Cutoffs::new(layers, ALLOWED).unwrap_err().to_string();
            assert!(error.contains(named), "{layers:?}: {error}");
        }
    }

    #[test]
    fn compressions_are_checked() {
        let compression = Compression::new(2, &[8, 24]).unwrap();
        assert_eq!((compression.ratio(), compression.layers()), (2, &[8, 24][..]));
        assert!(Compression::new(1, &[]).is_ok());
        for (ratio, layers, named) in
            [(0, &[8][..], "0"), (2, &[0, 3], "layer 0"), (2, &[8, 8], "8"), (2, &[9, 8], "9")]
        {
            let error = Compression::new(ratio, layers).unwrap_err().to_string();
            assert!(error.contains(named), "{ratio} {layers:?}: {error}");
        }
    }

    #[test]
    fn steps_score_then_compress_then_run() {
        let steps = |cutoffs: &[usize], layers: &[usize]| {
            let compression = (!layers.is_empty()).then(|| Compression::new(2, layers).unwrap());
            Schedule::new(cutoffs.to_vec(), compression).steps()
        };
        use Step::{Compress, LastLayer, Layer, Score};
        assert_eq!(steps(&[2], &[]), [Layer, LastLayer, Score(0)]);
        assert_eq!(
            steps(&[1, 3], &[1, 2, 3]),
            [Layer, Score(0), Compress(2), Layer, Compress(2), LastLayer, Score(1)]
        );
        assert_eq!(steps(&[0], &[]), [Score(0)]);
    }

    #[test]
    fn what_a_run_does_not_reach_is_warned_of() {
        let schedule =
            |layers: &[usize]| Schedule::new(vec![8, 16], Some(Compression::new(2, layers).unwrap()));
        assert!(schedule(&[8, 15]).warnings().is_empty());
        let warnings = schedule(&[8, 16, 40]).warnings();
        assert_eq!(warnings, [Warning::CompressionWithoutEffect { layers: vec![16, 40], deepest: 16 }]);
        assert_eq!(
            warnings[0].to_string(),
            "compression before layer 16, 40 has no effect: the run ends behind 16 layers"
        );
        assert!(Schedule::new(vec![8], None).warnings().is_empty());
    }
}
