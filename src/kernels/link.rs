//! Which files make up a shader, and how `Params` are laid out.

use crate::gpu::Source;
use crate::quant::{Scheme, scale};

/// Names and byte offsets of a `Params` struct, and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamsLayout {
    /// In order.
    pub fields: Vec<(&'static str, usize)>,
    /// In bytes.
    pub size: usize,
}

/// A `Params` struct that a shader declares too, with a `layout()` for the test that compares them.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        struct $name { $($field: $ty),* }

        impl $name {
            fn layout() -> $crate::kernels::ParamsLayout {
                $crate::kernels::ParamsLayout {
                    fields: vec![$((stringify!($field), std::mem::offset_of!($name, $field))),*],
                    size: size_of::<$name>(),
                }
            }
        }
    };
}
pub(super) use params;

/// A shader file below `shaders/`: its name and text.
macro_rules! file {
    ($path:literal) => {
        ($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)))
    };
}
pub(super) use file;

type File = (&'static str, &'static str);

const INDEX: File = file!("common/index.wgsl");
const OCT: File = file!("common/oct.wgsl");
/// What logits are folded into.
pub(super) const FOLD_STATE: File = file!("common/fold_state.wgsl");
pub(super) const SILU: File = file!("common/silu.wgsl");
pub(super) const HALF: File = file!("common/half.wgsl");
const NIBBLES: File = file!("common/nibbles.wgsl");

/// A source without formats.
pub(super) fn plain(name: String, kernel: File) -> Source {
    Source { name, parts: vec![kernel], consts: vec![], overrides: vec![], needs_subgroups: false }
}

impl Source {
    /// Links the numbering of folded grids.
    pub(super) fn with_index(mut self) -> Self {
        self.parts.push(INDEX);
        self
    }

    /// Links the weight format of `scheme`: the functions that give `load_oct(row, oct)`.
    pub(super) fn with_format(self, scheme: Scheme) -> Self {
        let reader = match scheme {
            Scheme::F32 | Scheme::F16 | Scheme::Bf16 => None,
            Scheme::Int8 => Some(file!("formats/read/pairs.wgsl")),
            _ => Some(file!("formats/read/words.wgsl")),
        };
        self.with_codes(scheme, reader)
    }

    /// Links the weight format of `scheme` for rows of whole runs: what gives `load_run(row, run)` and
    /// `oct_of(run, i)`.
    pub(super) fn with_runs(self, scheme: Scheme) -> Self {
        let reader = match scheme {
            Scheme::F32 | Scheme::F16 | Scheme::Bf16 => file!("formats/read/octs.wgsl"),
            Scheme::Int8 => file!("formats/read/pair_runs.wgsl"),
            _ => file!("formats/read/word_runs.wgsl"),
        };
        self.with_codes(scheme, Some(reader))
    }

    /// Links how codes of `scheme` are decoded, without buffers: `decode(word, scale)`, and `group_of(row, oct)`.
    pub(super) fn with_decoding(self, scheme: Scheme) -> Self {
        self.with_codes(scheme, None)
    }

    fn with_codes(mut self, scheme: Scheme, reader: Option<File>) -> Self {
        let run = file!("common/group_run.wgsl");
        let row = file!("common/group_row.wgsl");
        let flat = file!("common/group_flat.wgsl");
        let int4 = file!("formats/int4.wgsl");
        let table = file!("formats/table.wgsl");
        let parts = match scheme {
            Scheme::F32 => vec![file!("formats/f32.wgsl")],
            Scheme::F16 => vec![file!("formats/f16.wgsl"), HALF],
            Scheme::Bf16 => vec![file!("formats/bf16.wgsl"), HALF],
            Scheme::Int8 => vec![file!("formats/int8.wgsl"), row],
            Scheme::Int4 { .. } => vec![int4, NIBBLES, run],
            Scheme::Int4Asym { .. } => vec![file!("formats/int4_asym.wgsl"), NIBBLES, run],
            Scheme::Int4Row => vec![int4, NIBBLES, row],
            Scheme::Fp4B64 => vec![table, NIBBLES, flat, file!("tables/fp4.wgsl")],
            Scheme::Nf4B64 => vec![table, NIBBLES, flat, file!("tables/nf4.wgsl")],
        };
        self.parts.push(OCT);
        self.parts.extend(parts);
        self.parts.extend(reader);
        if let Scheme::Int4 { group } | Scheme::Int4Asym { group } = scheme {
            self.overrides.push(("GROUP", f64::from(group)));
        }
        self
    }

    /// Links the reader of a stored dtype: `source(i)`.
    pub(super) fn with_source(mut self, dtype: Scheme) -> Self {
        self.parts.extend(match dtype {
            Scheme::F16 => vec![file!("sources/f16.wgsl"), HALF],
            Scheme::Bf16 => vec![file!("sources/bf16.wgsl"), HALF],
            _ => vec![file!("sources/f32.wgsl")],
        });
        self
    }

    /// Links the encoding of `scheme`: `prepare`, `group_values` and `code_of`.
    pub(super) fn with_encoding(mut self, scheme: Scheme) -> Self {
        let affine = file!("encodings/affine.wgsl");
        let table = file!("encodings/table.wgsl");
        let symmetric = file!("encodings/symmetric.wgsl");
        let grid = match scheme {
            Scheme::Int8 => Some(scale::INT8),
            Scheme::Int4Row => Some(scale::INT4_ROW),
            Scheme::Int4Asym { .. } => Some(scale::INT4_ASYM),
            Scheme::Fp4B64 | Scheme::Nf4B64 => None,
            _ => Some(scale::INT4),
        };
        self.parts.extend(match scheme {
            Scheme::Int4Asym { .. } => vec![affine, file!("encodings/asymmetric.wgsl")],
            Scheme::Fp4B64 => vec![table, file!("tables/fp4.wgsl")],
            Scheme::Nf4B64 => vec![table, file!("tables/nf4.wgsl")],
            _ => vec![affine, symmetric],
        });
        if let Some(grid) = grid {
            self.overrides.extend([
                ("DIVISOR", f64::from(grid.divisor)),
                ("DOUBLINGS", f64::from(grid.doublings)),
                ("MIN_CODE", f64::from(grid.min)),
                ("MAX_CODE", f64::from(grid.max)),
            ]);
        }
        self
    }
}
