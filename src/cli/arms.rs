//! Arms on the device that the user means, in the memory that they may use.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::args::MemoryArgs;
use super::device::Device;
use super::memory::{budget, verdict};
use super::meter::{self, Metered};
use super::output::{notice, say};
use crate::audit::OpenArms;
use crate::engine::{Budget, Given, MemoryPlan, Needs};
use crate::error::{Error, Result};
use crate::kernels::{FOLD_CHUNK, KvFormat};
use crate::model::{Each, Llama, Lockstep, PAGE, Reference, Sizes, Source};
use crate::report::{memory_text, schema};

/// Most bytes that an arm's cache may take on the CPU, unless one task alone needs more.
const CACHE_BYTES: usize = 512 << 20;

/// Most bytes of weights of arms that are opened together on the CPU, to hold them against each other.
const CPU_BYTES: u64 = 8 << 30;

/// Arms that can be opened.
#[derive(Debug)]
pub(super) struct Arms<'a> {
    device: &'a Device,
    sources: Vec<Source>,
    names: Vec<String>,
    quantize_head: bool,
    needs: Needs,
    memory: &'a MemoryArgs,
    budget: Option<Budget>,
    /// Whether the arms may run without being held against each other, if memory is short.
    may_part: bool,
    /// Whether they are held against each other.
    compared: Cell<bool>,
    /// How each group of arms lies in the device's memory; none on the CPU.
    plans: RefCell<Vec<MemoryPlan>>,
}

impl<'a> Arms<'a> {
    pub(super) fn new(
        device: &'a Device,
        sources: Vec<Source>,
        names: Vec<String>,
        quantize_head: bool,
        needs: Needs,
        memory: &'a MemoryArgs,
    ) -> Self {
        let budget = match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(budget(gpu, memory.vram)),
        };
        let compared = Cell::new(needs.pairs > 0);
        let plans = RefCell::default();
        Self { device, sources, names, quantize_head, needs, memory, budget, may_part: true, compared, plans }
    }

    /// The same, but an error if there is no memory for holding the arms against each other.
    pub(super) fn together(self) -> Self {
        Self { may_part: false, ..self }
    }

    /// How the arms lie in memory, for the record.
    pub(super) fn record(&self) -> Vec<schema::Memory> {
        let Some(budget) = &self.budget else { return Vec::new() };
        let plans = self.plans.borrow();
        plans.iter().map(|plan| schema::Memory::new(plan, &self.names[plan.arms.clone()], budget)).collect()
    }

    /// Lays the arms out anew, and says how if that was asked for or is unusual.
    fn lay_out(&self, arms: Range<usize>, halvings: u32, budget: &Budget) -> Result<Vec<Range<usize>>> {
        let sources = &self.sources[arms.clone()];
        let given = Given { quantize_head: self.quantize_head, kv: self.memory.kv, halvings };
        let mut plans = if self.memory.naive && self.needs.pairs == 0 {
            let alone = |source| MemoryPlan::choose(source, given, &self.needs, budget);
            let mut plans = Vec::new();
            for (index, source) in sources.chunks(1).enumerate() {
                for mut plan in alone(source)? {
                    plan.arms = index..index + 1;
                    plans.push(plan);
                }
            }
            plans
        } else {
            match MemoryPlan::choose(sources, given, &self.needs, budget) {
                Err(Error::MemoryTooSmall { .. }) if self.needs.pairs > 0 && self.may_part => {
                    notice(
                        "there is no memory to hold the arms' logits against each other; going on without",
                    );
                    self.compared.set(false);
                    MemoryPlan::choose(sources, given, &self.needs.with_pairs(0), budget)?
                }
                plans => plans?,
            }
        };
        for plan in &mut plans {
            plan.arms = arms.start + plan.arms.start..arms.start + plan.arms.end;
        }
        let mut all = self.plans.borrow_mut();
        all.retain(|plan| plan.arms.end <= arms.start);
        let groups = plans.iter().map(|plan| plan.arms.clone()).collect();
        for plan in &plans {
            let verdict = || verdict(plan, &self.names[plan.arms.clone()].join(", "), budget);
            if !self.memory.explain {
                log::debug!(peak_bytes = plan.peak, budget_bytes = budget.bytes; "{}", verdict());
            } else {
                say(&verdict());
                say(&memory_text(&schema::Memory::new(plan, &self.names[plan.arms.clone()], budget)));
            }
        }
        all.extend(plans);
        Ok(groups)
    }
}

impl OpenArms for &Arms<'_> {
    fn part(&mut self, arms: Range<usize>, halvings: u32) -> Result<Vec<Range<usize>>> {
        match &self.budget {
            // The CPU pass shares nothing between arms: one at a time takes the least memory.
            None if !self.compared.get() => Ok(arms.map(|arm| arm..arm + 1).collect()),
            None => {
                // On the CPU nothing is shared between arms.
                let each = |source: &Source| {
                    Ok(Sizes::of(std::slice::from_ref(source), self.quantize_head, FOLD_CHUNK)?.weights)
                };
                let needed = self.sources[arms.clone()].iter().map(each).sum::<Result<u64>>()?;
                if needed <= CPU_BYTES {
                    return Ok(vec![arms]);
                }
                if !self.may_part {
                    let source_of_budget = "what is used on the CPU for arms that run together".to_owned();
                    return Err(Error::MemoryTooSmall { needed, budget: CPU_BYTES, source_of_budget });
                }
                notice("the arms' weights are too large to hold their logits against each other on the CPU");
                self.compared.set(false);
                Ok(arms.map(|arm| arm..arm + 1).collect())
            }
            Some(budget) => self.lay_out(arms, halvings, budget),
        }
    }

    fn open(&mut self, arms: Range<usize>) -> Result<Box<dyn Lockstep>> {
        meter::loading();
        let sources = &self.sources[arms.clone()];
        let plans = self.plans.borrow();
        match (self.device, plans.iter().find(|plan| plan.arms == arms)) {
            (Device::Gpu(gpu), Some(plan)) => {
                gpu.limit_uploads(plan.uploads);
                let llama = Llama::new(gpu, sources, self.quantize_head, plan.layout)?;
                Ok(Box::new(Metered::new(llama)))
            }
            (Device::Gpu(_), None) => unreachable!("arms {arms:?} were laid out"),
            (Device::Cpu, _) => {
                let load = |source: &Source| {
                    let tokens = cache_tokens(source, &self.needs);
                    let reference = Reference::load_source(source, self.quantize_head, tokens)?;
                    Ok(reference.with_kv_f16(self.memory.kv == KvFormat::F16))
                };
                let each = Each(sources.iter().map(load).collect::<Result<_>>()?);
                Ok(Box::new(Metered::new(each)))
            }
        }
    }

    fn compares(&self) -> bool {
        self.compared.get()
    }

    fn separate(&mut self, arms: Range<usize>, error: &Error) -> Option<Vec<Range<usize>>> {
        let together = self.budget.is_none() && self.may_part && self.compared.replace(false);
        together.then(|| {
            notice(&format!("{error}; going on arm by arm, without holding their logits against each other"));
            arms.map(|arm| arm..arm + 1).collect()
        })
    }
}

/// Tokens of a cache that holds all tasks if [`CACHE_BYTES`] allow it, and the longest one in any case.
fn cache_tokens(source: &Source, needs: &Needs) -> usize {
    let config = source.checkpoint.config();
    let token_bytes = config.layers * 2 * config.kv_heads * config.head_dim * size_of::<f32>();
    let affordable = CACHE_BYTES / token_bytes.max(1) / PAGE * PAGE;
    let all = needs.score.pages.max(needs.generate.pages) * PAGE;
    all.min(affordable).max(needs.longest().next_multiple_of(PAGE)).max(PAGE)
}

/// One arm, opened at once.
pub(super) fn open_one(
    device: &Device,
    source: Source,
    name: &str,
    quantize_head: bool,
    needs: Needs,
    memory: &MemoryArgs,
) -> Result<(Box<dyn Lockstep>, Vec<schema::Memory>)> {
    let arms = Arms::new(device, vec![source], vec![name.to_owned()], quantize_head, needs, memory);
    let mut open = &arms;
    open.part(0..1, 0)?;
    Ok((open.open(0..1)?, arms.record()))
}
