//! Makes the client of the interface, without protoc.

fn main() {
    let protos = "protos";
    println!("cargo:rerun-if-changed={protos}");
    let files = protox::compile(["cri.proto"], [protos]).unwrap_or_else(|e| panic!("{protos}/cri.proto: {e:?}"));
    let config = tonic_prost_build::configure().build_server(false).build_transport(false);
    config.compile_fds(files).unwrap_or_else(|e| panic!("no client of {protos}/cri.proto: {e}"));
}
