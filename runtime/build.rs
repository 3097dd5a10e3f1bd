//! Makes Rust of `proto/tei.proto`; no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    #[cfg(feature = "cli")]
    compile()?;
    Ok(())
}

#[cfg(feature = "cli")]
fn compile() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).open_file("tei.proto")?;
    // For clients that ask what there is.
    let path = std::path::Path::new(&std::env::var("OUT_DIR")?).join("tei.bin");
    std::fs::write(path, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_client(false)
        .generate_default_stubs(true)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
