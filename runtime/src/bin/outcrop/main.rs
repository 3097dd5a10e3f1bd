//! The `outcrop` command line.

fn main() {}
