//! Turns `ambit-net/proto/*.proto` into the text of `src/proto/*.rs`, without protoc and without a build script.
//!
//! Shared by the example that writes those files and the test that proves them fresh; never part of the product.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

/// Modules of `proto` and the protobuf package of each; the `.proto` file is named like the module.
const MODULES: [(&str, &str); 9] = [
    ("rpc", "google.rpc"),
    ("core", "envoy.config.core.v3"),
    ("discovery", "envoy.service.discovery.v3"),
    ("workload", "istio.workload"),
    ("security", "istio.security"),
    ("facts", "ambit.mesh.v1"),
    ("ca", "istio.v1.auth"),
    ("zds", "istio.workload.zds"),
    ("node", "ambit.node.v1"),
];

/// Text of every generated file by its name (`workload.rs`), from the `.proto` files in `sources`.
///
/// `scratch` is an existing directory that may be written to.
///
/// # Errors
/// When a `.proto` file does not compile or `scratch` cannot be written.
pub(crate) fn generate(
    sources: &Path,
    scratch: &Path,
) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let mut files = BTreeMap::new();
    for (module, package) in MODULES {
        let descriptors = protox::compile([format!("{module}.proto")], [sources])?;
        let mut builder = tonic_prost_build::configure()
            .build_transport(false)
            .btree_map(".")
            .boxed(".istio.workload.Address.type.workload")
            .boxed(".istio.workload.Address.type.service")
            .out_dir(scratch);
        for (other, other_package) in MODULES {
            // A package above this one (`istio.workload` above `istio.workload.zds`) would claim its types too.
            if !package.starts_with(other_package) {
                let rust = format!("crate::proto::{other}");
                builder = builder.extern_path(format!(".{other_package}"), rust);
            }
        }
        builder.compile_fds(descriptors)?;
        let text = fs::read_to_string(scratch.join(format!("{package}.rs")))?;
        let head = format!(
            "//! Generated from `ambit-net/proto/{module}.proto` (package `{package}`); do not edit.\n\n"
        );
        files.insert(format!("{module}.rs"), head + &text);
    }
    Ok(files)
}
