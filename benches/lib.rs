//! Criterion benches live beside this file; this library target is empty so that Cargo accepts the package.
