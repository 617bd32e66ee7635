//! The committed code is what the `.proto` files say.

use std::fs;
use std::path::Path;

use super::generate::generate;

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = std::env::temp_dir().join(format!("ambit-proto-{}", std::process::id()));
    fs::create_dir_all(&scratch).unwrap();
    let files = generate(&root.join("proto"), &scratch).unwrap();
    fs::remove_dir_all(&scratch).unwrap();
    let sources = fs::read_dir(root.join("proto")).unwrap().count();
    assert_eq!(files.len(), sources, "a .proto file without a module");
    for (name, text) in files {
        let committed = fs::read_to_string(root.join("src/proto").join(&name)).unwrap();
        assert!(
            committed == text,
            "src/proto/{name} is stale: run `make protos`"
        );
    }
}
