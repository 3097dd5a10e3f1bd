//! Outcrop.
