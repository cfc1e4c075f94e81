//! What an audit says of each matrix's update.

use std::path::Path;

use undertext::audit::{CodesPlan, Fate, Plan, Request, Survival, compare_codes, measure_survival};
use undertext::quant::{Precision, Scheme};

/// An audit's figures of every matrix are those of `undertext codes`, of one reading of the files; those of kept rounding say
/// what they add up to.
#[test]
fn an_audit_has_the_figures_of_every_matrix() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/models");
    let plan = |precisions: &[&str]| {
        Plan::new(Request {
            target: models.join("target"),
            unlearned: vec![models.join("npo_gdr")],
            data: "data".into(),
            precisions: precisions.iter().map(|precision| precision.parse().unwrap()).collect(),
            ..Request::default()
        })
        .unwrap()
    };
    let schemes = vec![Scheme::Int8, Scheme::Int4 { group: 128 }];
    let codes = CodesPlan {
        target: models.join("target"),
        unlearned: models.join("npo_gdr"),
        schemes: schemes.clone(),
        quantize_head: false,
    };
    let codes = compare_codes(codes, &mut |_, _| Ok(())).unwrap();
    let (found, bytes) = measure_survival(&plan(&["fp16", "int8", "int4-g128"]), &[1], &mut |_, _, _| {});
    assert_eq!((found.len(), bytes), (2, codes.disk_bytes), "the files are read once");
    for (index, scheme) in schemes.into_iter().enumerate() {
        let survival = &found[index];
        assert_eq!(survival.precision, Precision::nearest(scheme));
        assert_eq!(survival.matrices.len(), codes.tensors.len());
        for (matrix, tensor) in survival.matrices.iter().zip(&codes.tensors) {
            let change = &tensor.changes[index];
            assert_eq!((matrix.layer, matrix.module), (tensor.layer, tensor.module));
            assert_eq!(matrix.fate.survival(), change.survival());
            assert_eq!(matrix.fate.absorbed_share(), change.absorbed_share());
        }
        let total = codes.sum(index, |_| true);
        assert_eq!(survival.value.value(), total.survival());
        assert_eq!(Fate::sum(&survival.matrices).absorbed_share(), total.absorbed_share());
    }
    let (kept, _) =
        measure_survival(&plan(&["fp16", "int4-g128", "int4-g128+keep=0.9"]), &[1], &mut |_, _, _| {});
    let [nearest, kept] = kept.as_slice() else { panic!("{kept:?}") };
    assert_eq!(kept.matrices.len(), nearest.matrices.len());
    let absorbed = |survival: &Survival| Fate::sum(&survival.matrices).absorbed_share().unwrap();
    assert!(absorbed(kept) < absorbed(nearest), "{} {}", absorbed(kept), absorbed(nearest));
    assert!((Fate::sum(&kept.matrices).survival().unwrap() - 0.9).abs() < 0.01);
    assert_eq!(Fate::sum(&kept.matrices).survival(), kept.value.value());
}
