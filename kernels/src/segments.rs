//! Where the sequences of a packed batch begin and end.

/// The layout of a packed batch: sequence `i` owns rows `cu_seqlens[i] .. cu_seqlens[i + 1]` of every activation.
///
/// Sequences may be empty. The name and meaning of `cu_seqlens` are those of the variable-length attention kernels of the
/// field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    cu_seqlens: Vec<usize>,
}

impl Segments {
    /// A batch of sequences with these lengths, in this order.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut cu_seqlens = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            cu_seqlens.push(end);
        }
        Self { cu_seqlens }
    }

    /// Sequences in the batch.
    pub fn num_seqs(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Rows of the batch.
    pub fn num_tokens(&self) -> usize {
        self.cu_seqlens[self.num_seqs()]
    }

    /// First row of each sequence, then the number of rows: `num_seqs + 1` entries.
    pub fn cu_seqlens(&self) -> &[usize] {
        &self.cu_seqlens
    }

    /// Rows of sequence `seq`.
    pub fn range(&self, seq: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[seq]..self.cu_seqlens[seq + 1]
    }

    /// Length of each sequence.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> {
        self.cu_seqlens.windows(2).map(|w| w[1] - w[0])
    }

    /// Length of the longest sequence; 0 for an empty batch.
    pub fn max_seqlen(&self) -> usize {
        self.lengths().max().unwrap_or(0)
    }
}
