//! Every form of every kernel, without a device: parse, validate, layout, limits, translation.

use std::collections::HashSet;

use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use undertext::gpu::{GRID_X, Source};
use undertext::kernels::{ParamsLayout, registry};

/// Parses and validates under no capability but what the form declares, then fixes the overrides and validates again.
fn resolve(source: &Source) -> (naga::Module, ModuleInfo) {
    let fail = |error: String| -> ! { panic!("{}: {error}", source.name) };
    let module = source.parse().unwrap_or_else(|error| fail(error.to_string()));
    let subgroups = if source.needs_subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
    let mut validator = Validator::new(ValidationFlags::all(), subgroups);
    let info = validator.validate(&module).unwrap_or_else(|error| fail(format!("{error:?}")));
    let constants = source.overrides.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let entry = Some((naga::ShaderStage::Compute, "main"));
    let (module, _) = process_overrides(&module, &info, entry, &constants)
        .unwrap_or_else(|error| fail(format!("{error:?}")));
    validator.reset();
    let info = validator.validate(&module).unwrap_or_else(|error| fail(format!("{error:?}")));
    (module.into_owned(), info)
}

fn forms() -> Vec<(Source, ParamsLayout)> {
    registry()
        .into_iter()
        .flat_map(|kernel| {
            let layout = (kernel.params)();
            (kernel.sources)().into_iter().map(move |source| (source, layout.clone()))
        })
        .collect()
}

#[test]
fn forms_have_distinct_names_and_use_every_override_they_are_given() {
    let mut names = HashSet::new();
    for (source, _) in forms() {
        assert!(names.insert(source.name.clone()), "{} twice", source.name);
        let module = source.parse().unwrap();
        let declared: HashSet<_> = module.overrides.iter().filter_map(|(_, o)| o.name.clone()).collect();
        for (name, _) in &source.overrides {
            assert!(declared.contains(*name), "{}: there is no override {name}", source.name);
        }
    }
    assert!(names.len() > 100, "{} forms", names.len());
}

#[test]
fn params_are_laid_out_as_in_rust() {
    for (source, layout) in forms() {
        let module = source.parse().unwrap();
        let params = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params"));
        let (_, params) = params.unwrap_or_else(|| panic!("{} has no Params", source.name));
        let naga::TypeInner::Struct { members, span } = &params.inner else { panic!("{}", source.name) };
        let fields: Vec<_> =
            members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset as usize)).collect();
        let rust: Vec<_> = layout.fields.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        assert_eq!(fields, rust, "{}", source.name);
        assert_eq!(*span as usize, layout.size, "{}", source.name);
    }
}

#[test]
fn every_form_fits_the_smallest_device() {
    for (source, _) in forms() {
        let (module, _) = resolve(&source);
        let mut storage = 0;
        let mut workgroup_bytes = 0;
        for (_, global) in module.global_variables.iter() {
            match global.space {
                naga::AddressSpace::Storage { .. } => storage += 1,
                naga::AddressSpace::WorkGroup => {
                    workgroup_bytes += module.types[global.ty].inner.size(module.to_ctx());
                }
                _ => {}
            }
            assert!(global.binding.is_none_or(|b| b.group == 0), "{}: one bind group", source.name);
        }
        assert!(storage <= 8, "{}: {storage} storage buffers", source.name);
        assert!(workgroup_bytes <= 16_384, "{}: {workgroup_bytes} bytes of workgroup memory", source.name);
        let [x, y, z] = module.entry_points[0].workgroup_size;
        assert!(x * y * z <= 256, "{}: {x} x {y} x {z} lanes", source.name);
    }
}

#[test]
fn every_form_translates_to_spirv_hlsl_and_msl() {
    for (source, _) in forms() {
        let (module, info) = resolve(&source);
        let fail = |backend: &str, error: String| -> ! { panic!("{} to {backend}: {error}", source.name) };

        let words = spv::write_vec(&module, &info, &spv::Options::default(), None)
            .unwrap_or_else(|error| fail("SPIR-V", error.to_string()));
        assert!(words.len() > 100 && words[0] == 0x0723_0203, "{}", source.name);

        let mut text = String::new();
        let options = hlsl::Options { fake_missing_bindings: true, ..Default::default() };
        let pipeline = hlsl::PipelineOptions::default();
        let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
        writer.write(&module, &info, None).unwrap_or_else(|error| fail("HLSL", error.to_string()));
        assert!(text.contains("numthreads"), "{}: {text}", source.name);

        let options = msl::Options { fake_missing_bindings: true, ..Default::default() };
        let pipeline = msl::PipelineOptions::default();
        let (text, _) = msl::write_string(&module, &info, &options, &pipeline)
            .unwrap_or_else(|error| fail("MSL", error.to_string()));
        assert!(text.contains("kernel void"), "{}: {text}", source.name);
    }
}

#[test]
fn the_folded_grid_is_the_same_on_both_sides() {
    let index = include_str!("../shaders/common/index.wgsl");
    assert!(index.contains(&format!("const GRID_X: u32 = {GRID_X}u;")));
}
