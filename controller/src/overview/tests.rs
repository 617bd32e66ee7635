//! What operators are told, and who may ask.
