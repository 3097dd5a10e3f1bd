//! The shapes of requests and responses that others have defined, each in a module of its own: types without logic, shared by
//! whatever speaks them.

pub(crate) mod vllm;
