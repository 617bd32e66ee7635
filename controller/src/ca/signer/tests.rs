//! What is signed, and what of a request is ignored.
