//! Weights by name: adapters merged, packed for the device while the model is opened.

use std::borrow::Cow;

use outcrop_kernels::add_layer_norm::LayerNorm;
use outcrop_kernels::add_low_rank::{LowRank, add_low_rank};
use outcrop_kernels::gemm::{Matrix, Part};
use outcrop_kernels::rms_norm::RmsNorm;
use outcrop_kernels::{Buffer, CpuStream, ElementType, Elements, ResidentTable, Stream, Table};
use outcrop_loader::{Adapter, Change, Checkpoint, Tensor, TensorData};

use crate::Error;

/// A dense layer with bias, perhaps fused from several: `[out, in]` weights.
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Buffer,
}

/// Scale, shift and epsilon of a LayerNorm.
pub(crate) struct Norm {
    weight: Buffer,
    bias: Buffer,
    eps: f32,
}

impl Norm {
    pub(crate) fn get(&self) -> LayerNorm<'_> {
        LayerNorm { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}

/// Scale and epsilon of an RMSNorm.
pub(crate) struct RootMeanSquare {
    /// Ones, if it is folded.
    weight: Buffer,
    eps: f32,
    /// The factors, if they are multiplied into the columns of the matrices behind it.
    folded: Option<Vec<f32>>,
}

impl RootMeanSquare {
    pub(crate) fn get(&self) -> RmsNorm<'_> {
        RmsNorm { weight: &self.weight, eps: self.eps }
    }

    /// The epsilon, if all that is left to do is to divide.
    pub(crate) fn folded_eps(&self) -> Option<f32> {
        self.folded.as_ref().map(|_| self.eps)
    }
}

/// How a checkpoint stores the factor of an RMSNorm (SPEC 1, 5, 6).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RmsConvention {
    /// As it is: MiniCPM.
    Factor,
    /// Less one: Gemma.
    FactorMinusOne,
}

/// Reads the weights of one module after the other, by their full names.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    /// Where the weights go.
    pub(crate) stream: &'a Stream,
    /// Where adapters are merged.
    pub(crate) host: &'a CpuStream,
    pub(crate) checkpoint: &'a Checkpoint,
    /// Merged in this order.
    pub(crate) adapters: &'a [Adapter],
    /// The type matrices are held in; `None` for the stored one.
    pub(crate) element_type: Option<ElementType>,
    /// Whether norms are folded into the matrices that read them.
    pub(crate) fold_norms: bool,
}

/// A matrix as stored, or merged with the adapters in f32.
pub(crate) struct Weight<'a> {
    stored: Tensor<'a>,
    merged: Option<Vec<f32>>,
}

impl Weight<'_> {
    fn elements(&self) -> Elements<'_> {
        self.merged.as_deref().map_or_else(|| elements(&self.stored), Elements::F32)
    }
}

impl<'a> Reader<'a> {
    /// The matrices `{name}.weight` of each name, `[out, input]` each, fused in that order.
    pub(crate) fn matrix(&self, names: &[(String, usize)], input: usize) -> Result<Matrix, Error> {
        let mut weights = Vec::new();
        for (name, out) in names {
            weights.push((self.weight(name, *out, input, None)?, *out));
        }
        let parts: Vec<_> = weights
            .iter()
            .map(|(weight, rows)| Part { weights: weight.elements(), rows: *rows, rotary_head_dim: None })
            .collect();
        self.pack(&parts, &weights, input)
    }

    /// Query, key and value projection `{name}.weight`, `[out, input]` each, of rows under `norm`, fused; query and key are rotated in
    /// heads of `head_dim`.
    pub(crate) fn rotary_qkv(
        &self,
        names: &[(String, usize); 3],
        input: usize,
        norm: &RootMeanSquare,
        head_dim: usize,
    ) -> Result<Matrix, Error> {
        let mut weights = Vec::new();
        for (name, out) in names {
            weights.push((self.weight(name, *out, input, Some(norm))?, *out));
        }
        let rotary = [Some(head_dim), Some(head_dim), None];
        let parts: Vec<_> = weights
            .iter()
            .zip(rotary)
            .map(|((weight, rows), rotary_head_dim)| Part {
                weights: weight.elements(),
                rows: *rows,
                rotary_head_dim,
            })
            .collect();
        self.pack(&parts, &weights, input)
    }

    fn pack(
        &self,
        parts: &[Part<'_>],
        weights: &[(Weight<'_>, usize)],
        input: usize,
    ) -> Result<Matrix, Error> {
        let matrix = Matrix::pack(self.stream, parts, input, self.element_type)?;
        // The packed copy serves from here on; the mapped pages would only count twice.
        weights.iter().for_each(|(weight, _)| weight.stored.release());
        Ok(matrix)
    }

    /// Gate and up projection of a gated MLP, `[out, input]` each, of rows under `norm`, interleaved.
    pub(crate) fn gated_matrix(
        &self,
        [gate, up]: [&str; 2],
        out: usize,
        input: usize,
        norm: &RootMeanSquare,
    ) -> Result<Matrix, Error> {
        let gate = self.weight(gate, out, input, Some(norm))?;
        let up = self.weight(up, out, input, Some(norm))?;
        let (gate_elements, up_elements) = (gate.elements(), up.elements());
        let matrix =
            Matrix::pack_gated(self.stream, gate_elements, up_elements, out, input, self.element_type)?;
        [gate, up].iter().for_each(|weight| weight.stored.release());
        Ok(matrix)
    }

    /// `{name}.weight` and `{name}.bias` of each name, fused in that order; all are `[out, input]`.
    pub(crate) fn linear(&self, names: &[String], out: usize, input: usize) -> Result<Linear, Error> {
        let mut bias = Vec::new();
        for name in names {
            bias.extend(self.vector(&format!("{name}.bias"), out)?);
        }
        let names: Vec<_> = names.iter().map(|name| (name.clone(), out)).collect();
        Ok(Linear { weight: self.matrix(&names, input)?, bias: Buffer::upload(self.stream, &bias)? })
    }

    /// A LayerNorm over `len` elements.
    pub(crate) fn norm(&self, name: &str, len: usize, eps: f32) -> Result<Norm, Error> {
        Ok(Norm {
            weight: self.upload(&self.vector(&format!("{name}.weight"), len)?)?,
            bias: self.upload(&self.vector(&format!("{name}.bias"), len)?)?,
            eps,
        })
    }

    /// The norm before attention or MLP, which is folded into their matrices where that is wanted.
    pub(crate) fn input_norm(
        &self,
        name: &str,
        len: usize,
        eps: f32,
        convention: RmsConvention,
    ) -> Result<RootMeanSquare, Error> {
        if !self.fold_norms {
            return self.rms_norm(name, len, eps, convention);
        }
        let factors = self.rms_factors(name, len, convention)?;
        Ok(RootMeanSquare { weight: self.upload(&vec![1.0; len])?, eps, folded: Some(factors) })
    }

    /// An RMSNorm over `len` elements.
    pub(crate) fn rms_norm(
        &self,
        name: &str,
        len: usize,
        eps: f32,
        convention: RmsConvention,
    ) -> Result<RootMeanSquare, Error> {
        let factors = self.rms_factors(name, len, convention)?;
        Ok(RootMeanSquare { weight: self.upload(&factors)?, eps, folded: None })
    }

    /// A norm's weight becomes the factor here, once, in f32 as in the reference.
    fn rms_factors(&self, name: &str, len: usize, convention: RmsConvention) -> Result<Vec<f32>, Error> {
        let mut weight = self.vector(&format!("{name}.weight"), len)?;
        if convention == RmsConvention::FactorMinusOne {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(weight)
    }

    /// Small parameters, for kernels.
    pub(crate) fn upload(&self, values: &[f32]) -> Result<Buffer, Error> {
        Ok(Buffer::upload(self.stream, values)?)
    }

    /// A one-dimensional tensor in f32.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let tensor = self.checkpoint.tensor(name)?.expect_shape(&[len])?;
        for adapter in self.adapters {
            // `Adapter::check` has seen the shapes; a low-rank change of a vector does not exist.
            if let Some(Change::Replacement(replacement)) = adapter.change(name)? {
                return Ok(elements(&replacement.expect_shape(&[len])?).to_vec());
            }
        }
        Ok(elements(&tensor).to_vec())
    }

    /// The first row of a `[rows, len]` table, in f32.
    pub(crate) fn first_row(&self, name: &str, rows: usize, len: usize) -> Result<Vec<f32>, Error> {
        self.row(name, 0, rows, len)
    }

    /// Row `row` of a `[rows, len]` table, in f32; of a stored table only that row is read.
    pub(crate) fn row(&self, name: &str, row: usize, rows: usize, len: usize) -> Result<Vec<f32>, Error> {
        if self.is_changed(name)? {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let weight = self.weight(module, rows, len, None)?;
            return Ok(weight.elements().slice(row * len, len).to_vec());
        }
        Ok(elements(&self.checkpoint.tensor(name)?.expect_shape(&[rows, len])?)
            .slice(row * len, len)
            .to_vec())
    }

    fn is_changed(&self, name: &str) -> Result<bool, Error> {
        for adapter in self.adapters {
            if adapter.change(name)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `{module}.weight`, `[out, input]`, with every adapter's change merged in order (SPEC 9.4).
    ///
    /// A changed matrix is formed in f32, the type in which the reference merges, and stays so unless a type is asked for. So is the
    /// product with the factors of the `norm` of its rows, if that is folded.
    fn weight(
        &self,
        module: &str,
        out: usize,
        input: usize,
        norm: Option<&RootMeanSquare>,
    ) -> Result<Weight<'a>, Error> {
        let name = format!("{module}.weight");
        let stored = self.checkpoint.tensor(&name)?.expect_shape(&[out, input])?;
        let mut merged: Option<Vec<f32>> = None;
        for adapter in self.adapters {
            match adapter.change(&name)? {
                None => {}
                Some(Change::Replacement(replacement)) => {
                    merged = Some(elements(&replacement.expect_shape(&[out, input])?).to_vec());
                }
                Some(Change::LowRank { a, b, scale }) => {
                    let rank = a.shape.first().copied().unwrap_or(0);
                    let (a, b) = (a.expect_shape(&[rank, input])?, b.expect_shape(&[out, rank])?);
                    let shape = LowRank { out_features: out, in_features: input, rank, scale };
                    let w = merged.get_or_insert_with(|| elements(&stored).to_vec());
                    add_low_rank(self.host, w, &f32s(&b), &f32s(&a), shape)?;
                }
            }
        }
        let mut weight = Weight { stored, merged };
        if let Some(factors) = norm.and_then(|norm| norm.folded.as_ref()) {
            check_folding(&name, weight.elements().element_type())?;
            weight.merged = Some(weight.elements().scaled_columns(self.host, factors));
        }
        if let Some(element_type) = self.element_type
            && !weight.elements().fits(element_type)
        {
            return Err(Error::Overflow { tensor: name, element_type });
        }
        Ok(weight)
    }
}

/// Refuses to fold a norm into a matrix in 16 bits: it is exact as it is, and would no longer be. One in f32 is rounded once either way.
pub(crate) fn check_folding(tensor: &str, element_type: ElementType) -> Result<(), Error> {
    match element_type {
        ElementType::F32 => Ok(()),
        ElementType::F16 | ElementType::BF16 => Err(Error::FoldedSixteenBits { tensor: tensor.to_owned() }),
    }
}

/// An embedding table: on the CPU it stays in the mapped file, of which a batch reads the rows of its tokens only; a GPU has a copy.
pub(crate) struct EmbeddingTable {
    resident: Option<ResidentTable>,
}

impl EmbeddingTable {
    /// Copies the table, in its stored type, if the stream's kernels cannot read the file: for a residual stream in f32, to which
    /// rounding a table would do as much harm as rounding all the layers' matrices.
    pub(crate) fn as_stored(stream: &Stream, tensor: &Tensor<'_>) -> Result<Self, Error> {
        Ok(Self::released(ResidentTable::as_stored(stream, elements(tensor))?, tensor))
    }

    /// The same in the stream's operand type: for states that are rounded to it anyway.
    pub(crate) fn as_operand(stream: &Stream, tensor: &Tensor<'_>) -> Result<Self, Error> {
        let row_len = tensor.shape.last().copied().unwrap_or(0);
        Ok(Self::released(ResidentTable::as_operand(stream, elements(tensor), row_len)?, tensor))
    }

    fn released(resident: Option<ResidentTable>, tensor: &Tensor<'_>) -> Self {
        if resident.is_some() {
            tensor.release();
        }
        Self { resident }
    }

    /// The table, which is `tensor` unless there is a copy.
    pub(crate) fn get<'a>(&'a self, tensor: &Tensor<'a>) -> Table<'a> {
        self.resident.as_ref().map_or_else(|| Table::Mapped(elements(tensor)), Table::Resident)
    }
}

/// A tensor's values as kernels take them.
pub(crate) fn elements<'a>(tensor: &Tensor<'a>) -> Elements<'a> {
    match tensor.data {
        TensorData::F32(x) => Elements::F32(x),
        TensorData::F16(x) => Elements::F16(x),
        TensorData::BF16(x) => Elements::BF16(x),
    }
}

fn f32s<'a>(tensor: &Tensor<'a>) -> Cow<'a, [f32]> {
    match tensor.data {
        TensorData::F32(x) => Cow::Borrowed(x),
        TensorData::F16(_) | TensorData::BF16(_) => Cow::Owned(elements(tensor).to_vec()),
    }
}
