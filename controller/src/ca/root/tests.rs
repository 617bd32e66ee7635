//! The root is made once and never replaced in silence.
