//! cni-plugin.
