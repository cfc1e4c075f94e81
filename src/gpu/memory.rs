//! How much memory a device has, where its driver says so.

use super::Gpu;

impl Gpu {
    /// Bytes of the largest memory that is the device's own; `None` where the backend does not tell.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_size
    }
}

/// Asks the driver.
#[cfg(any(target_os = "linux", target_os = "android", windows))]
#[expect(unsafe_code, reason = "wgpu tells sizes of memory only through its backend")]
pub(super) fn of(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handles are used while the adapter that owns them is borrowed, and only to be asked.
    let heaps = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    let count = usize::try_from(heaps.memory_heap_count).ok()?;
    let own = heaps.memory_heaps.iter().take(count).filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
    own.map(|heap| heap.size).max()
}

/// Other backends do not tell.
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
pub(super) fn of(_: &wgpu::Adapter) -> Option<u64> {
    None
}
