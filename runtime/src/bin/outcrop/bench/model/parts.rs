//! A profile added up: by part of the network, and by kernel.

use outcrop::Cost;
use outcrop::profile::{KernelTime, Label, Profile};

/// Calls of one kernel at one shape.
#[derive(Clone, Default)]
pub(super) struct Cell {
    pub(super) kernel: &'static str,
    pub(super) shape: String,
    pub(super) calls: usize,
    pub(super) ms: f64,
    pub(super) cost: Cost,
    pub(super) instances: Vec<String>,
}

/// What was called for one part.
pub(super) struct Part {
    pub(super) label: Label,
    pub(super) cells: Vec<Cell>,
}

impl Cell {
    /// The kernel and its shape.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.kernel, self.shape).trim_end().to_owned()
    }

    fn add(&mut self, call: &KernelTime) {
        self.calls += 1;
        self.ms += call.ms;
        self.cost = self.cost + call.cost;
        for instance in &call.instances {
            if !self.instances.contains(instance) {
                self.instances.push(instance.clone());
            }
        }
    }
}

impl Part {
    pub(super) fn ms(&self) -> f64 {
        self.cells.iter().map(|cell| cell.ms).sum()
    }
}

/// The parts in the order in which they first came: batches of one call are added up.
pub(super) fn parts(profile: &Profile) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for call in &profile.kernels {
        let found = parts.iter().position(|part| part.label == call.label);
        let index = found.unwrap_or_else(|| {
            parts.push(Part { label: call.label, cells: Vec::new() });
            parts.len() - 1
        });
        cell(&mut parts[index].cells, call).add(call);
    }
    parts
}

/// All parts together, what takes longest first.
pub(super) fn kernels(profile: &Profile) -> Vec<Cell> {
    let mut cells = Vec::new();
    profile.kernels.iter().for_each(|call| cell(&mut cells, call).add(call));
    cells.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    cells
}

fn cell<'a>(cells: &'a mut Vec<Cell>, call: &KernelTime) -> &'a mut Cell {
    let found = cells.iter().position(|cell| cell.kernel == call.kernel && cell.shape == call.shape);
    let index = found.unwrap_or_else(|| {
        cells.push(Cell { kernel: call.kernel, shape: call.shape.clone(), ..Cell::default() });
        cells.len() - 1
    });
    &mut cells[index]
}

pub(super) fn total_ms(profile: &Profile) -> f64 {
    profile.kernels.iter().map(|call| call.ms).sum()
}

/// Kernels in the order in which they first came.
pub(super) fn names(profile: &Profile) -> Vec<&'static str> {
    let mut names = Vec::new();
    for call in &profile.kernels {
        if !names.contains(&call.kernel) {
            names.push(call.kernel);
        }
    }
    names
}
