//! Linking WGSL parts into one shader, and compiling it.

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError};

use super::Gpu;
use crate::error::{Error, Result};

/// A shader made of parts: shared functions, at most one weight format, the kernel itself.
///
/// WGSL allows declarations in any order, so linking is concatenation; a format is chosen by which
/// file is linked in, all of them defining the same functions.
#[derive(Clone, Debug)]
pub struct Source {
    /// The kernel and what it was linked with: "matmul/int4-g128".
    pub name: String,
    /// Name and text of each file.
    pub parts: Vec<(&'static str, &'static str)>,
    /// `const` declarations for the few numbers where WGSL forbids overrides: sizes of arrays in functions.
    pub consts: Vec<(&'static str, u32)>,
    /// Values of `override` declarations.
    pub overrides: Vec<(&'static str, f64)>,
    /// Whether it uses subgroups: only for a device that [`Gpu::has_subgroups`].
    pub needs_subgroups: bool,
}

impl Source {
    /// The linked text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.consts {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        for (_, part) in &self.parts {
            text.push_str(part);
            text.push('\n');
        }
        text
    }

    /// File and line of line `line` (from 1) of the linked text.
    fn locate(&self, line: usize) -> String {
        let mut first = 1 + self.consts.len();
        for (file, part) in &self.parts {
            let lines = part.lines().count() + usize::from(part.ends_with('\n'));
            if (first..first + lines).contains(&line) {
                return format!("{file}:{}", line - first + 1);
            }
            first += lines;
        }
        format!("line {line}")
    }

    /// Parses the linked text.
    ///
    /// # Errors
    ///
    /// [`Error::Shader`] with file and line.
    pub fn parse(&self) -> Result<naga::Module> {
        let text = self.text();
        naga::front::wgsl::parse_str(&text).map_err(|error| {
            let place = error.location(&text).map(|at| self.locate(at.line_number as usize));
            let report = format!("{}: {}", place.unwrap_or_default(), error.message());
            Error::Shader { kernel: self.name.clone(), report }
        })
    }

    /// What distinguishes this pipeline from every other.
    fn key(&self) -> String {
        format!("{} {:?} {:?}", self.name, self.consts, self.overrides)
    }
}

/// A variable that the shader reads from a buffer.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) slot: u32,
    /// Whether the shader may write it.
    pub(super) written: bool,
}

/// A compiled kernel.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) name: String,
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Storage buffers, by slot; slot 0 is `params`.
    pub(super) bindings: Vec<Binding>,
}

impl Pipeline {
    /// The first part of its name: the kernel without what it was linked with.
    pub(super) fn kernel(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

impl Gpu {
    /// The compiled kernel of `source`, compiled at first use.
    ///
    /// # Errors
    ///
    /// [`Error::Shader`] if it does not compile: our bug, the tests compile every shader.
    pub fn pipeline(&self, source: &Source) -> Result<Arc<Pipeline>> {
        let key = source.key();
        if let Some(pipeline) = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(self.compile(source)?);
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn compile(&self, source: &Source) -> Result<Pipeline> {
        let module = source.parse()?;
        let (entries, bindings) = layout_entries(&module);
        let made = self.guarded(&source.name, 0, || {
            let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&source.name),
                entries: &entries,
            });
            let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&source.name),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let shader = self.shader_module(source);
            let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&source.name),
                layout: Some(&pipeline_layout),
                module: &shader,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &source.overrides,
                    // Every kernel writes its workgroup memory before it reads it.
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
            (raw, layout)
        });
        let (raw, layout) = made.map_err(|error| match error {
            Error::Device { during, report } => Error::Shader { kernel: during, report },
            other => other,
        })?;
        Ok(Pipeline { name: source.name.clone(), raw, layout, bindings })
    }

    #[expect(unsafe_code, reason = "the only way to leave loop bounding out of our own shaders")]
    fn shader_module(&self, source: &Source) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&source.name),
            source: wgpu::ShaderSource::Wgsl(source.text().into()),
        };
        // The counter that naga adds to bound every loop costs up to 100x in hot loops (wgpu#7698).
        // Bounds checks of buffers stay on.
        let checks =
            wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
        // SAFETY: the text is this crate's own, and every loop in it counts up to a uniform, a constant
        // or an array's length, so none is infinite, which is all that this check is about.
        unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
    }
}

/// Bind group entries for the globals of `module`, and the storage buffers by name.
fn layout_entries(module: &naga::Module) -> (Vec<wgpu::BindGroupLayoutEntry>, Vec<Binding>) {
    let mut entries = Vec::new();
    let mut bindings = Vec::new();
    for (_, global) in module.global_variables.iter() {
        let Some(binding) = &global.binding else { continue };
        let (ty, dynamic) = match global.space {
            naga::AddressSpace::Uniform => (wgpu::BufferBindingType::Uniform, true),
            naga::AddressSpace::Storage { access } => {
                let read_only = !access.contains(naga::StorageAccess::STORE);
                (wgpu::BufferBindingType::Storage { read_only }, false)
            }
            _ => continue,
        };
        entries.push(wgpu::BindGroupLayoutEntry {
            binding: binding.binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: dynamic, min_binding_size: None },
            count: None,
        });
        if !dynamic {
            let name = global.name.clone().unwrap_or_default();
            let written = ty == wgpu::BufferBindingType::Storage { read_only: false };
            bindings.push(Binding { name, slot: binding.binding, written });
        }
    }
    (entries, bindings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shader_error_names_file_and_line() {
        let source = Source {
            name: "broken".to_owned(),
            parts: vec![("one.wgsl", "const A: u32 = 1u;\n"), ("two.wgsl", "fn f() {}\nfn g( {}\n")],
            consts: vec![("B", 2)],
            overrides: vec![],
            needs_subgroups: false,
        };
        let error = source.parse().unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains("two.wgsl:2"), "{error}");
    }
}
