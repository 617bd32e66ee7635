//! What is published when.
