//! The adapters that GPU tests run on: every one there is.

use std::sync::{Arc, OnceLock};

use undertext::gpu::{self, DeviceChoice, Gpu};

/// Every adapter, opened once.
///
/// A test without any adapter fails, unless `UNDERTEXT_SKIP_GPU` is set. `UNDERTEXT_REQUIRE_ADAPTERS=n` fails it
/// with fewer than n: a lane that is meant to have three must not lose one silently.
pub(crate) fn all() -> &'static [Arc<Gpu>] {
    static ALL: OnceLock<Vec<Arc<Gpu>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let found = gpu::list();
        let names: Vec<_> = found.iter().map(|info| format!("{} ({})", info.name, info.backend)).collect();
        let required = std::env::var("UNDERTEXT_REQUIRE_ADAPTERS").map_or(1, |n| n.parse().unwrap());
        let skip = std::env::var_os("UNDERTEXT_SKIP_GPU").is_some();
        assert!(
            skip || found.len() >= required,
            "{} of {required} adapters found: {names:?}; UNDERTEXT_SKIP_GPU=1 skips GPU tests",
            found.len(),
        );
        (0..found.len()).map(|index| Arc::new(Gpu::open(&DeviceChoice::Index(index)).unwrap())).collect()
    })
}

/// For messages: "llvmpipe (vulkan)".
pub(crate) fn name(gpu: &Gpu) -> String {
    format!("{} ({})", gpu.info().name, gpu.info().backend)
}
