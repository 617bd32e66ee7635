//! What nodes may say about their pods, and that it is kept.
