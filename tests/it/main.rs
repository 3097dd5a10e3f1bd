//! Integration tests of Outcrop, one binary. Fixtures come from the scripts in `tests/oracle`.

// The exemption of tests in clippy.toml does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::print_stderr)]
// Fixtures hold small numbers.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

// Where fixtures are and how they read.
mod fixtures;
// Networks of any shape.
mod random_network;

// Token ids, scores and vectors against the reference implementation.
mod reference;
// The same for the decoder families, layer by layer too.
mod decoders;
// Known wrong variants, each of which the reference comparison must catch.
mod mutants;
// The same for the decoder families.
mod decoder_mutants;
// Same bits alone, in any batch, in any order, with any number of threads.
mod bit_equality;
// What a run does not need is not read; what a model does not have is refused.
mod scheduler;
// Properties of the decoder families over random networks.
mod properties;
// A real checkpoint: all-MiniLM-L6-v2.
mod minilm;
// Memory: no allocation in the layer loop, resident size.
mod memory;
// The CUDA side of every family, on the emulator or a GPU.
mod devices;
// The queue in front of an engine.
mod queue;
// RMSNorms folded into weights: a switch.
mod folded_norms;
// Where the time of calls goes.
mod measure;
// What NVIDIA's compilers make of the kernels.
mod nvrtc;
// The command line as a user runs it.
mod cli;
// The server as its clients see it.
mod serve;
// Ratchets on the source tree: sizes, dependencies, unsafe code, paths in documents.
mod tidy;
