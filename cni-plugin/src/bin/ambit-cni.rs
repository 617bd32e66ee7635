//! The CNI plugin's program: run by the container runtime for each sandbox. Everything else is in `cni_plugin::plugin`.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::ExitCode;

use cni_plugin::plugin;
use cni_plugin::spec::VERSIONS;

fn main() -> ExitCode {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let env: BTreeMap<String, String> = std::env::vars_os()
        .map(|(name, value)| (lossy(name), lossy(value)))
        .collect();
    if !env.contains_key("CNI_COMMAND") {
        eprintln!(
            "ambit-cni {}: a CNI plugin, run by container runtimes; speaks CNI {}",
            env!("CARGO_PKG_VERSION"),
            VERSIONS.join(", ")
        );
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == "--version")
    {
        return ExitCode::SUCCESS;
    }
    let output = plugin::run(&env, io::stdin().lock());
    let written = io::stdout().write_all(output.text.as_bytes());
    match output.success && written.is_ok() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
