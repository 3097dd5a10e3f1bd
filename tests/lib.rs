//! Integration tests of Outcrop live in `it/`; this library target is empty so that Cargo accepts the package.
