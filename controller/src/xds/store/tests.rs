//! Versions, keys and what changed since.
