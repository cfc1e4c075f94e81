//! The `undertext` program.
fn main() {
    for d in undertext::gpu::list() {
        println!("{d:?}");
        let g = undertext::gpu::Gpu::open(&undertext::gpu::DeviceChoice::Index(d.index.unwrap()));
        println!("{:?}", g.is_ok());
    }
}
