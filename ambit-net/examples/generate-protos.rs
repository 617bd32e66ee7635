//! Writes `ambit-net/src/proto/*.rs` anew from `ambit-net/proto/*.proto`; run it after a change to one of those.

use std::error::Error;
use std::fs;
use std::path::Path;

#[path = "../src/proto/generate.rs"]
mod generate;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = std::env::temp_dir().join(format!("ambit-proto-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let files = generate::generate(&root.join("proto"), &scratch)?;
    fs::remove_dir_all(&scratch)?;
    for (name, text) in files {
        fs::write(root.join("src/proto").join(name), text)?;
    }
    Ok(())
}
