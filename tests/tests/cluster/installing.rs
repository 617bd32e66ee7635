//! Installing: everything is there and ready, names resolve inside every image, and what the programs keep in memory.

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[];
