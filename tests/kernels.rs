//! Every case of every kernel, on every adapter, against its f64 twin.

use std::collections::HashSet;

use undertext::gpu::{Commands, Gpu};
use undertext::kernels::{
    Case, Family, Finish, MatOperands, Matmul, Matrix, Matvec, MatvecFamily, Norm, NormOperands, Output,
    Packer, RmsNorm, RmsNormForm, Stored, Swiglu, Want, registry,
};
use undertext::quant::Scheme;

use crate::adapters;

/// The worst word of an output, as a sentence; `None` if all are within their bounds.
fn complaint(gpu: &Gpu, case: &Case, output: &Output) -> Option<String> {
    let want = (output.want)();
    assert!(!want.is_empty(), "{}: the twin of {} says nothing", case.name, output.name);
    let got: Vec<u32> = gpu.read(&output.buffer, want.len()).unwrap();
    let mut wrong = 0;
    let mut worst = (f64::NEG_INFINITY, String::new());
    for (index, (got, want)) in got.into_iter().zip(want).enumerate() {
        let (excess, line) = match want {
            Want::Exactly(bits) if got == bits => continue,
            Want::Exactly(bits) => (f64::INFINITY, format!("got {got:#010x}, want {bits:#010x}")),
            Want::Near { value, bound } => {
                let error = (f64::from(f32::from_bits(got)) - value).abs();
                if error <= bound {
                    continue;
                }
                let got = f32::from_bits(got);
                // NaN is worse than anything.
                let excess = if error.is_nan() { f64::INFINITY } else { error / bound };
                (excess, format!("got {got:e}, want {value:e}, error {error:e}, bound {bound:e}"))
            }
        };
        wrong += 1;
        if excess > worst.0 || worst.1.is_empty() {
            worst = (excess, format!("[{index}] {line}"));
        }
    }
    (wrong > 0).then(|| format!("{} {}: {wrong} wrong, worst {}", case.name, output.name, worst.1))
}

/// `UNDERTEXT_KERNEL=name` checks that kernel alone.
#[test]
fn every_case_matches_its_twin_on_every_adapter() {
    let only = std::env::var("UNDERTEXT_KERNEL").ok();
    let kernels =
        || registry().into_iter().filter(|kernel| only.as_ref().is_none_or(|only| kernel.name == only));
    let mut ran = HashSet::new();
    for gpu in adapters::all() {
        let mut complaints = Vec::new();
        let (here, elsewhere): (Vec<_>, Vec<_>) = kernels().partition(|k| k.runs_on(gpu));
        for kernel in elsewhere {
            println!("{}: no subgroups, so no {}", adapters::name(gpu), kernel.name);
        }
        ran.extend(here.iter().map(|kernel| kernel.name));
        for case in here.iter().flat_map(|kernel| (kernel.cases)()) {
            let prepared = (case.prepare)(gpu).unwrap_or_else(|error| panic!("{}: {error}", case.name));
            let mut commands = Commands::new();
            (prepared.record)(&mut commands);
            commands.submit(gpu).unwrap();
            complaints.extend(prepared.outputs.iter().filter_map(|output| complaint(gpu, &case, output)));
        }
        let count = complaints.len();
        assert!(count == 0, "{}: {count} outputs:\n{}", adapters::name(gpu), complaints.join("\n"));
    }
    // A machine may have nothing but adapters without subgroups; the lane with all adapters may not.
    if std::env::var_os("UNDERTEXT_REQUIRE_ADAPTERS").is_some() {
        let never: Vec<_> = kernels().filter(|kernel| !ran.contains(kernel.name)).collect();
        assert!(never.is_empty(), "no adapter ran {never:?}");
    }
}

#[test]
fn launches_that_are_split_give_the_same_bits() {
    // A format with scales and one without, and attention over several sequences.
    let split = [
        "matmul/int4-g32",
        "matvec/int4-g32",
        "matmul/f16",
        "attention_prefill/",
        "attention_decode/",
        "matvec_broadcast/int4-g32",
        "attention_prefill_subgroup/",
    ];
    for gpu in adapters::all() {
        let mut seen = [0; 7];
        let kernels = registry().into_iter().filter(|kernel| kernel.runs_on(gpu));
        for case in kernels.flat_map(|kernel| (kernel.cases)()) {
            let Some(kernel) = split.iter().position(|name| case.name.starts_with(name)) else { continue };
            // The same inputs twice; outputs start as 0xff bytes, so that a token left out shows.
            let [(whole, one), (parts, many)] = [f64::INFINITY, 0.0].map(|longest| {
                let prepared = (case.prepare)(gpu).unwrap();
                let mut commands = Commands::with_longest_launch(longest);
                (prepared.record)(&mut commands);
                let launches = commands.len();
                commands.submit(gpu).unwrap();
                let read = |output: &Output| {
                    let words = usize::try_from(output.buffer.bytes() / 4).unwrap();
                    gpu.read::<u32>(&output.buffer, words).unwrap()
                };
                (prepared.outputs.iter().map(read).collect::<Vec<_>>(), launches)
            });
            assert_eq!(one, 1, "{}", case.name);
            seen[kernel] += usize::from(many > one);
            assert!(whole == parts, "{}: {} in {many} launches", adapters::name(gpu), case.name);
        }
        let expected = if gpu.has_subgroups() { &seen[..] } else { &seen[..5] };
        assert!(expected.iter().all(|cases| *cases > 0), "{split:?} were split {seen:?} times");
    }
}

#[test]
fn kernels_are_timed_where_the_device_has_a_clock() {
    let case = registry().into_iter().flat_map(|kernel| (kernel.cases)()).find(|case| case.timed).unwrap();
    for gpu in adapters::all() {
        let prepared = (case.prepare)(gpu).unwrap();
        let mut commands = Commands::new();
        (prepared.record)(&mut commands);
        let nanoseconds = commands.time(gpu).unwrap();
        // A driver may give no sensible stamps; what it gives must be a plausible time.
        assert!(nanoseconds.is_none_or(|ns| (100..60_000_000_000).contains(&ns)), "{nanoseconds:?}");
        assert!(gpu.info().timestamps || nanoseconds.is_none());
    }
}

/// What the first output of `case` holds after a run.
fn bits(gpu: &Gpu, case: &Case) -> Vec<u32> {
    let prepared = (case.prepare)(gpu).unwrap();
    let mut commands = Commands::new();
    (prepared.record)(&mut commands);
    commands.submit(gpu).unwrap();
    let y = &prepared.outputs[0].buffer;
    gpu.read(y, usize::try_from(y.bytes() / 4).unwrap()).unwrap()
}

/// Not promised of every device: WGSL lets a compiler fuse or split what it likes. Here it holds, and the
/// order of the sums makes it likely elsewhere.
#[test]
fn families_of_matmul_give_the_same_bits_on_these_adapters() {
    let mut families: Vec<_> =
        registry().into_iter().filter(|kernel| kernel.name.starts_with("matmul")).collect();
    assert_eq!(families.len(), Family::ALL.len());
    let register = families.remove(0);
    assert_eq!(register.name, "matmul");
    for gpu in adapters::all() {
        let others = families.iter().filter(|kernel| kernel.runs_on(gpu));
        let others: Vec<_> = others.flat_map(|kernel| (kernel.cases)()).collect();
        let problem = |case: &Case| case.name.split_once('/').map(|(_, problem)| problem.to_owned());
        for case in (register.cases)() {
            let expected = bits(gpu, &case);
            for other in others.iter().filter(|other| problem(other) == problem(&case)) {
                assert!(bits(gpu, other) == expected, "{}: {}", adapters::name(gpu), other.name);
            }
        }
    }
}

/// One launch of what lies together, as of each matrix alone: also with silu and the product after it.
#[test]
fn joined_matrices_give_the_bits_of_each_alone() {
    let (n, k, t) = (128, 256, 21);
    let value = |i: usize| ((i * 7919) % 1021) as f32 / 511.0 - 1.0;
    let weights: Vec<f32> = (0..2 * n * k).map(value).collect();
    let x: Vec<f32> = (0..t * k).map(|i| value(3 * i + 1)).collect();
    for gpu in adapters::all() {
        for scheme in [Scheme::F32, Scheme::Int8, Scheme::Int4 { group: 32 }, Scheme::Nf4B64] {
            let joint = Packer::allocate(gpu, "joint", scheme, 2 * n, k).unwrap();
            let halves = [joint.rows(0..n).unwrap(), joint.rows(n..2 * n).unwrap()];
            for (half, weights) in halves.iter().zip(weights.chunks(n * k)) {
                let bytes = bytemuck::cast_slice(weights);
                let stored = Stored { name: "w", dtype: Scheme::F32, bytes, n, k };
                Packer::default().pack_into(gpu, std::slice::from_ref(half), stored).unwrap();
            }
            let joined = halves[0].joined(&halves[1]).unwrap();
            assert!(joined.n == 2 * n && halves[1].joined(&halves[0]).is_none());
            let gated = Finish { gated: true, ..Finish::default() };
            type Record = Box<dyn Fn(&mut Commands, &Matrix, MatOperands<'_>)>;
            let mut products: Vec<(String, Record, Record)> = Vec::new();
            for family in Family::ALL.into_iter().filter(|family| family.runs_on(gpu)) {
                let [plain, gated] = [Finish::default(), gated]
                    .map(|finish| Matmul::new(gpu, family, scheme, finish).unwrap());
                products.push((
                    format!("{family:?}"),
                    Box::new(move |c, w, x| plain.record(c, w, x)),
                    Box::new(move |c, w, x| gated.record(c, w, x)),
                ));
            }
            for family in MatvecFamily::ALL.into_iter().filter(|family| family.runs_on(gpu)) {
                let [plain, gated] = [Finish::default(), gated]
                    .map(|finish| Matvec::new(gpu, family, scheme, finish).unwrap());
                products.push((
                    format!("decode {family:?}"),
                    Box::new(move |c, w, x| plain.record(c, w, x)),
                    Box::new(move |c, w, x| gated.record(c, w, x)),
                ));
            }
            let x = gpu.upload("x", &x).unwrap();
            let swiglu = Swiglu::new(gpu).unwrap();
            for (family, plain, gated) in products {
                for t in [t, 1] {
                    let name = format!("{}: {family} {scheme} t={t}", adapters::name(gpu));
                    let buffer = |columns: usize| gpu.alloc("y", (4 * t * columns) as u64).unwrap();
                    let [apart, together] = [2 * n, 2 * n].map(buffer);
                    let [gate, up, y, gated_y] = [n; 4].map(buffer);
                    let mut commands = Commands::new();
                    for (index, half) in halves.iter().enumerate() {
                        let operands = |y, stride, first_column| MatOperands {
                            x: &x,
                            bias: None,
                            y,
                            t,
                            first_row: 0,
                            n,
                            stride,
                            first_column,
                        };
                        plain(&mut commands, half, operands(&apart, 2 * n, index * n));
                        plain(&mut commands, half, operands([&gate, &up][index], n, 0));
                    }
                    let whole = |y, stride| MatOperands {
                        x: &x,
                        bias: None,
                        y,
                        t,
                        first_row: 0,
                        n: 2 * n,
                        stride,
                        first_column: 0,
                    };
                    plain(&mut commands, &joined, whole(&together, 2 * n));
                    gated(&mut commands, &joined, whole(&gated_y, n));
                    swiglu.record(&mut commands, &gate, &up, &y, t * n);
                    commands.submit(gpu).unwrap();
                    let read = |buffer, columns: usize| gpu.read::<u32>(buffer, t * columns).unwrap();
                    assert!(read(&apart, 2 * n) == read(&together, 2 * n), "{name}");
                    assert!(read(&y, n) == read(&gated_y, n), "{name}, gated");
                    assert!(read(&y, n).iter().any(|bits| *bits != 0));
                }
            }
        }
    }
}

/// Who norms the rows of a decode product is a matter of speed alone.
#[test]
fn a_norm_within_the_product_gives_the_bits_of_one_before_it() {
    let value = |i: usize| ((i * 7919) % 1021) as f32 / 511.0 - 1.0;
    let gated = Finish { gated: true, ..Finish::default() };
    // Rows for 8 and for 64 lanes of the norm.
    for (n, k, finish) in [(70, 96, Finish { bias: true, ..Finish::default() }), (34, 2112, gated)] {
        let weights: Vec<f32> = (0..n * k).map(value).collect();
        for gpu in adapters::all() {
            let w = Stored { name: "w", dtype: Scheme::F32, bytes: bytemuck::cast_slice(&weights), n, k };
            let scheme = Scheme::Int4 { group: 32 };
            let w = Packer::default().pack_one(gpu, scheme, w).unwrap();
            let gain =
                gpu.upload("gain", &(0..k).map(|i| 1.0 + value(5 * i) / 3.0).collect::<Vec<_>>()).unwrap();
            let bias = gpu.upload("bias", &(0..n).map(|i| value(11 * i)).collect::<Vec<_>>()).unwrap();
            let norm = RmsNorm::new(gpu, RmsNormForm::Plain, k).unwrap();
            for family in MatvecFamily::ALL.into_iter().filter(|family| family.runs_on(gpu)) {
                let apart = Matvec::new(gpu, family, scheme, finish).unwrap();
                let within = apart.clone().with_norm(gpu, k).unwrap();
                assert!(!apart.norms(1) && within.norms(1) && !within.norms(5));
                for t in 1..=4 {
                    let h: Vec<f32> = (0..t * k).map(|i| 3.0 * value(3 * i + 1)).collect();
                    let (h, x) = (gpu.upload("h", &h).unwrap(), gpu.alloc("x", (4 * t * k) as u64).unwrap());
                    let [one, two] = [0; 2].map(|_| gpu.alloc("y", (4 * t * n) as u64).unwrap());
                    let stride = finish.columns(n);
                    let operands = |x, y| {
                        let bias = finish.bias.then_some(&bias);
                        MatOperands { x, bias, y, t, first_row: 0, n, stride, first_column: 0 }
                    };
                    let (gain, eps) = (&gain, 1e-5);
                    let mut commands = Commands::new();
                    norm.record(
                        &mut commands,
                        NormOperands { h: &h, rows: None, gain, y: &x, count: t, d: k, eps },
                    );
                    apart.record(&mut commands, &w, operands(&x, &one));
                    within.record_normed(&mut commands, &w, operands(&h, &two), Norm { gain, eps });
                    commands.submit(gpu).unwrap();
                    let [one, two] = [one, two].map(|y| gpu.read::<u32>(&y, t * stride).unwrap());
                    assert!(one == two, "{}: {family:?} t={t} k={k}", adapters::name(gpu));
                    assert!(one.iter().any(|bits| *bits != 0));
                }
            }
        }
    }
}

/// Which tokens share a batch, and where in it a token stands, never shows in its result.
#[test]
fn a_token_has_the_same_bits_in_any_batch() {
    let (n, k, t) = (70, 96, 37);
    let value = |i: usize| ((i * 7919) % 1021) as f32 / 511.0 - 1.0;
    let weights: Vec<f32> = (0..n * k).map(value).collect();
    let x: Vec<f32> = (0..t * k).map(|i| value(3 * i + 1)).collect();
    let scheme = Scheme::Int4 { group: 32 };
    for gpu in adapters::all() {
        let w = Stored { name: "w", dtype: Scheme::F32, bytes: bytemuck::cast_slice(&weights), n, k };
        let w = Packer::default().pack_one(gpu, scheme, w).unwrap();
        type Record = Box<dyn Fn(&mut Commands, &Matrix, MatOperands<'_>)>;
        let mut products: Vec<(String, Record)> = Vec::new();
        for family in Family::ALL.into_iter().filter(|family| family.runs_on(gpu)) {
            let matmul = Matmul::new(gpu, family, scheme, Finish::default()).unwrap();
            products.push((format!("{family:?}"), Box::new(move |c, w, x| matmul.record(c, w, x))));
        }
        for family in MatvecFamily::ALL.into_iter().filter(|family| family.runs_on(gpu)) {
            let matvec = Matvec::new(gpu, family, scheme, Finish::default()).unwrap();
            products.push((format!("decode {family:?}"), Box::new(move |c, w, x| matvec.record(c, w, x))));
        }
        let mut in_order = Vec::new();
        for (family, record) in products {
            let product = |x: &[f32]| -> Vec<u32> {
                let t = x.len() / k;
                let x = gpu.upload("x", x).unwrap();
                let y = gpu.alloc("y", (4 * t * n) as u64).unwrap();
                let mut commands = Commands::new();
                let operands =
                    MatOperands { x: &x, bias: None, y: &y, t, first_row: 0, n, stride: n, first_column: 0 };
                record(&mut commands, &w, operands);
                commands.submit(gpu).unwrap();
                gpu.read(&y, t * n).unwrap()
            };
            let together = product(&x);
            assert!(together.iter().any(|bits| *bits != 0));
            // One, a few and many: every tile of a decode family.
            for (first, count) in [(0, 1), (5, 1), (7, 3), (3, 20), (36, 1)] {
                let some = product(&x[first * k..(first + count) * k]);
                let name = adapters::name(gpu);
                assert!(some == together[first * n..][..count * n], "{name}: {family} from {first}");
            }
            if !["decode Workgroup", "decode Subgroup"].contains(&family.as_str()) {
                in_order.push((family, together));
            }
        }
        // Not promised either, as above: all that sum over k in order.
        let (_, one) = &in_order[0];
        for (family, other) in &in_order {
            assert!(one == other, "{}: {family}", adapters::name(gpu));
        }
    }
}
