//! Generates the ttrpc services and messages; pure Rust, so no protoc is needed.

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = ["types", "csi", "oci", "health", "agent", "cri"].map(|p| format!("protos/{p}.proto"));
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("gen");
    std::fs::create_dir_all(&out)?;
    for p in &protos {
        println!("cargo:rerun-if-changed={p}");
    }
    Codegen::new()
        .out_dir(&out)
        .inputs(&protos)
        .include("protos")
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // The generated files begin with inner attributes, which `include!` refuses; a list of modules by path
    // takes them.
    let mut list = String::new();
    for entry in std::fs::read_dir(&out)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        // The list itself may be there from an earlier run.
        if name != "mod" && path.extension().is_some_and(|e| e == "rs") {
            list += &format!("#[path = {path:?}]\npub mod {name};\n");
        }
    }
    std::fs::write(out.join("modules.inc"), list)?;
    Ok(())
}
