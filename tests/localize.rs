//! Parts of a model quantized by themselves: against each alone, against the audit, and the sizes of what is found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use undertext::audit::{
    Audit, By, Criteria, Localize, LocalizePlan, OpenArms, OpenSources, Part, Plan, Request, Row, Watch,
};
use undertext::engine::{Needs, Options};
use undertext::model::{Each, Llama, Lockstep, Reference, Source};
use undertext::quant::{Precision, Scheme};
use undertext::{Error, Result};

use crate::adapters;
use crate::reference::{CONFIG, checkpoint, tasks, weights};
use crate::support::{layout, observe_all, source, streamed};

const INT4: Precision = Precision::nearest(Scheme::Int4 { group: 128 });

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(name)
}

/// Arms on the CPU, no more than `most` at a time.
struct Cpu {
    most: usize,
    asked: Vec<usize>,
}

fn on_cpu(sources: &[Source]) -> Box<dyn Lockstep> {
    let load = |source: &Source| Reference::load_source(source, false, 8192).unwrap();
    Box::new(Each(sources.iter().map(load).collect()))
}

impl OpenSources for Cpu {
    fn open(&mut self, sources: Vec<Source>, names: Vec<String>, needs: Needs) -> Result<Box<dyn Lockstep>> {
        assert_eq!((sources.len(), needs.pairs), (names.len(), names.len() - 1));
        if sources.len() > self.most {
            let source_of_budget = "the test".to_owned();
            return Err(Error::MemoryTooSmall { needed: 2, budget: 1, source_of_budget });
        }
        self.asked.push(sources.len());
        Ok(on_cpu(&sources))
    }

    fn answered(&mut self, _: usize, _: usize) {}
}

fn plan(unlearned: &str, by: &[By]) -> LocalizePlan {
    LocalizePlan {
        target: demo("models/target"),
        unlearned: demo(&format!("models/{unlearned}")),
        data: demo("data"),
        precision: INT4,
        limit: Some(3),
        by: by.to_vec(),
        criteria: Criteria { resamples: 200, ..Criteria::default() },
    }
}

/// An arm that is quantized in part is the same in lockstep as alone, and differs from the whole ones.
#[test]
fn parts_in_lockstep_answer_as_each_alone() {
    let (_dir, checkpoint) = checkpoint(CONFIG, &weights());
    let only = |names: &[&str]| {
        let names: BTreeSet<String> =
            names.iter().map(|name| format!("model.layers.{name}.weight")).collect();
        let precision = Precision::nearest(Scheme::Int4 { group: 32 });
        Source { only: Some(Arc::new(names)), ..Source::new(&checkpoint, precision) }
    };
    let sources = [
        source(&checkpoint, Precision::Full),
        only(&["1.self_attn.k_proj"]),
        only(&["0.mlp.gate_proj", "1.self_attn.o_proj"]),
        only(&[]),
        only(&["1.mlp.down_proj"]),
        source(&checkpoint, Precision::nearest(Scheme::Int4 { group: 32 })),
    ];
    for gpu in adapters::all() {
        let name = adapters::name(gpu);
        let answers = |sources: &[Source], layout| {
            observe_all(Llama::new(gpu, sources, false, layout).unwrap(), Options::default(), &tasks())
        };
        let together = answers(&sources, layout(1024));
        for (source, together) in sources.iter().zip(&together) {
            assert!(answers(std::slice::from_ref(source), layout(1024)) == [together.clone()], "{name}");
        }
        assert!(answers(&sources, streamed(true, false, 1024)) == together, "{name}: streamed");
        assert!(together[0] == together[3], "{name}: nothing is quantized");
        let distinct = [0, 1, 2, 4, 5].map(|arm| &together[arm]);
        for (index, answer) in distinct.iter().enumerate() {
            assert!(distinct[..index].iter().all(|other| other != answer), "{name}: arm {index}");
        }
    }
    let cpu = observe_all(on_cpu(&sources), Options::default(), &tasks());
    assert!(cpu[0] == cpu[3] && cpu[0] != cpu[1] && cpu[1] != cpu[2]);
}

struct Quiet;

impl Watch for Quiet {
    fn arms(&mut self, _: &[undertext::audit::ArmInfo<'_>], _: usize, _: usize, _: usize) {}
    fn answered(&mut self, _: usize) {}
    fn smaller(&mut self, _: &Error) {}
    fn measured(&mut self, _: &undertext::audit::Findings) -> Result<()> {
        Ok(())
    }
}

struct Together(Vec<Source>);

impl OpenArms for Together {
    fn part(&mut self, arms: std::ops::Range<usize>, _: u32) -> Result<Vec<std::ops::Range<usize>>> {
        Ok(vec![arms])
    }

    fn open(&mut self, arms: std::ops::Range<usize>) -> Result<Box<dyn Lockstep>> {
        Ok(on_cpu(&self.0[arms]))
    }
}

/// The rows of the whole model are the audit's figures; layers come in groups where memory is short.
#[test]
fn the_full_quantization_is_the_audits() {
    let localize = Localize::open(plan("npo_gdr", &[By::Layer, By::Prefix])).unwrap();
    let mut cpu = Cpu { most: usize::MAX, asked: Vec::new() };
    let found = localize.run(&mut cpu).unwrap();
    assert_eq!(cpu.asked, [1 + 4 + 4 + 3]);
    let mut small = Cpu { most: 4, asked: Vec::new() };
    let again = localize.run(&mut small).unwrap();
    assert!(small.asked.len() >= 4 && small.asked.iter().all(|asked| *asked <= 4));
    assert_eq!(found.rows, again.rows, "the groups do not show");
    let row = |part: Part| found.rows.iter().find(|row| row.part == part).unwrap();
    let recovery = |row: &Row| row.recovery.unwrap().value;
    assert_eq!((recovery(row(Part::Nothing)), recovery(row(Part::Target))), (0.0, 1.0));
    assert!(recovery(row(Part::All)) > 0.5, "{}", recovery(row(Part::All)));
    let alone = (0..4).map(|layer| recovery(row(Part::Layer(layer))));
    assert!(alone.clone().all(|alone| alone < recovery(row(Part::All))), "{:?}", alone.collect::<Vec<_>>());
    assert!(row(Part::All).kl_to_target < row(Part::Nothing).kl_to_target);
    assert_eq!(row(Part::TargetFull).kl_to_target, 0.0);
    assert!(found.kept.is_none(), "no block was looked at");

    let plan = Plan::new(Request {
        target: demo("models/target"),
        unlearned: vec![demo("models/npo_gdr")],
        data: demo("data"),
        precisions: vec![Precision::Full, INT4],
        limit: Some(3),
        ..Request::default()
    });
    let audit = Audit::open(plan.unwrap()).unwrap();
    let (findings, result) = audit.run(&mut Together(audit.sources()), Options::default(), &mut Quiet, None);
    result.unwrap();
    for (part, model, precision) in [
        (Part::TargetFull, 0, Precision::Full),
        (Part::Target, 0, INT4),
        (Part::Nothing, 1, Precision::Full),
        (Part::All, 1, INT4),
    ] {
        let arm = findings.arm(model, precision).unwrap();
        for (set, got) in row(part.clone()).probabilities.into_iter().enumerate() {
            let want = arm.truths[set].probability.value.value().unwrap();
            assert!((got.unwrap() - want).abs() < 1e-9, "{part}, set {set}: {got:?} {want}");
        }
    }
}

#[test]
fn a_set_of_blocks_to_keep_is_found() {
    let found = Localize::open(plan("npo_gdr", &[By::Block]))
        .unwrap()
        .run(&mut Cpu { most: usize::MAX, asked: Vec::new() })
        .unwrap();
    assert_eq!(found.rows.len(), 4 + 4 * 7);
    let kept = found.kept.unwrap();
    let high = kept.recovery.unwrap().ci95.unwrap()[1];
    assert!(!kept.blocks.is_empty() && kept.blocks.len() < 28 && high < 0.2, "{kept:?}");
    // What holds as it is needs nothing kept.
    let sure = Localize::open(plan("sure", &[By::Block])).unwrap();
    assert!(sure.run(&mut Cpu { most: usize::MAX, asked: Vec::new() }).unwrap().kept.is_none());
}
