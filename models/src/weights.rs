//! Weights by name, packed for the device while the model is opened.

use outcrop_kernels::add_layer_norm::LayerNorm;
use outcrop_kernels::gemm::{Matrix, Part};
use outcrop_kernels::{Elements, Stream};
use outcrop_loader::{Checkpoint, Tensor, TensorData};

use crate::Error;

/// A dense layer, perhaps fused from several: `[out, in]` weights and a bias.
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Vec<f32>,
}

/// Scale, shift and epsilon of a LayerNorm.
pub(crate) struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl Norm {
    pub(crate) fn get(&self) -> LayerNorm<'_> {
        LayerNorm { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}

/// Reads the weights of one module after the other, by their full names.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) checkpoint: &'a Checkpoint,
}

impl Reader<'_> {
    /// `{name}.weight` and `{name}.bias` of each name, fused in that order; all are `[out, input]`.
    pub(crate) fn linear(&self, names: &[String], out: usize, input: usize) -> Result<Linear, Error> {
        let mut weights = Vec::new();
        let mut bias = Vec::new();
        for name in names {
            weights.push(self.checkpoint.tensor(&format!("{name}.weight"))?.expect_shape(&[out, input])?);
            bias.extend(self.vector(&format!("{name}.bias"), out)?);
        }
        let parts: Vec<_> =
            weights.iter().map(|tensor| Part { weights: elements(tensor), rows: out }).collect();
        let weight = Matrix::pack(self.stream, &parts, input)?;
        // The packed copy serves from here on; the mapped pages would only count twice.
        weights.iter().for_each(Tensor::release);
        Ok(Linear { weight, bias })
    }

    /// A LayerNorm over `len` elements.
    pub(crate) fn norm(&self, name: &str, len: usize, eps: f32) -> Result<Norm, Error> {
        Ok(Norm {
            weight: self.vector(&format!("{name}.weight"), len)?,
            bias: self.vector(&format!("{name}.bias"), len)?,
            eps,
        })
    }

    /// A one-dimensional tensor in f32.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        Ok(elements(&self.checkpoint.tensor(name)?.expect_shape(&[len])?).to_vec())
    }

    /// The first row of a `[rows, len]` table, in f32.
    pub(crate) fn first_row(&self, name: &str, rows: usize, len: usize) -> Result<Vec<f32>, Error> {
        Ok(elements(&self.checkpoint.tensor(name)?.expect_shape(&[rows, len])?).slice(0, len).to_vec())
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
