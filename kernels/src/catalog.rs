//! Every instance of every kernel, for those who want to see them all: the emulator's library, the checks of compiled code, reports.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rayon::prelude::*;

use crate::Error;
use crate::compile::compile_for;
use crate::nvrtc::Nvrtc;
use crate::params::Instance;

/// The one architecture that runs what Hopper alone has.
const HOPPER: &str = "sm_90a";

/// Every instance that launch code may ask for, and those that tests of the hardware launch.
pub(crate) fn instances() -> Vec<Instance> {
    [
        crate::add_layer_norm::instances(),
        crate::attention::instances(),
        crate::copy_block::instances(),
        crate::embed::instances(),
        crate::embed_layer_norm::instances(),
        crate::gather_rows::instances(),
        crate::gemm::instances(),
        crate::hardware_tests::instances(),
        crate::hardware_tests_hopper::instances(),
        crate::l2_normalize::instances(),
        crate::layout::instances(),
        crate::pack_weights::instances(),
        crate::pool::instances(),
        crate::rms_norm::instances(),
        crate::row_dot::instances(),
        crate::sandwich_norm::instances(),
        crate::token_compress::instances(),
    ]
    .concat()
}

/// A kernel file with its instances as one C++ source of the emulator's library, see kernels/emulator.
pub struct EmulatorUnit {
    /// Path of the kernel's file below `kernels/src`, such as `gemm/gemm.cu`.
    pub path: &'static str,
    /// Name of the source.
    pub file_name: String,
    /// The source, for a folder beside those of the kernels and the emulator, or with kernels/emulator among the include folders.
    pub text: String,
    /// C++ expressions of the instances in it.
    pub instances: Vec<String>,
}

/// All kernel files.
pub fn emulator_units() -> Vec<EmulatorUnit> {
    let mut by_path: BTreeMap<&'static str, Vec<Instance>> = BTreeMap::new();
    for instance in instances() {
        by_path.entry(instance.source.path).or_default().push(instance);
    }
    by_path.into_iter().map(|(path, instances)| unit(path, &instances)).collect()
}

fn unit(path: &'static str, instances: &[Instance]) -> EmulatorUnit {
    // Kernel files need not avoid one another's names.
    let name: String = path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut text = String::from("#include \"../src/hopper.cuh\"\n#include \"library.h\"\n");
    let _ = writeln!(text, "namespace {name} {{\n#include \"../src/{path}\"");
    if let Some(instance) = instances.first() {
        text += &(instance.source.assertions)();
    }
    for instance in instances {
        let _ = writeln!(text, "EMULATE({})", instance.name);
    }
    text += "}\n";
    let instances = instances.iter().map(|instance| instance.name.clone()).collect();
    EmulatorUnit { path, file_name: name + ".cpp", text, instances }
}

/// What compiling an instance gives, for looking at.
pub struct CompiledInstance {
    /// Path of the kernel's file below `kernels/src`.
    pub path: &'static str,
    /// C++ expression of the instance.
    pub name: String,
    /// Bytes of dynamic shared memory that it is launched with.
    pub shared_bytes: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor is to hold at the same time.
    pub blocks_per_sm: u32,
    /// The cubin, or PTX for a virtual architecture.
    pub code: Vec<u8>,
    /// What the compilers say; ptxas lists registers and spills.
    pub log: String,
}

/// Compiles every instance that `architecture`, such as `sm_90a`, can run, on all processors; needs no GPU.
pub fn compile_all(nvrtc: &Nvrtc, architecture: &str) -> Result<Vec<CompiledInstance>, Error> {
    let compile = |instance: Instance| {
        let compiled = compile_for(nvrtc, &instance, architecture)?;
        Ok(CompiledInstance {
            path: instance.source.path,
            name: instance.name,
            shared_bytes: instance.shared_bytes,
            threads: instance.threads,
            blocks_per_sm: instance.blocks_per_sm,
            code: compiled.code,
            log: compiled.log,
        })
    };
    let is_for = |instance: &Instance| architecture == HOPPER || !instance.source.is_hopper();
    instances().into_par_iter().with_max_len(1).filter(is_for).map(compile).collect()
}
