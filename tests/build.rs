//! Makes clients of the server's gRPC interface.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let interface = "../runtime/proto";
    println!("cargo::rerun-if-changed={interface}");
    let files = protox::compile(["tei.proto"], [interface])?;
    tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(files)?;
    Ok(())
}
