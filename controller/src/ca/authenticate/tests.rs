//! Whom a token names, and which tokens name nobody.
