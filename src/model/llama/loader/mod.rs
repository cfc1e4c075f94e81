//! Weights on their way to the device: each checkpoint's tensor is read once a pass, uploaded once as stored, and
//! packed into every scheme that an arm needs. What is byte-identical between checkpoints is held once.

mod assemble;
mod pack;
mod rounded;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::block::{Blocks, Products};
use super::embedding::Embedding;
use super::parts::{Kind, Packing, Part, Role, kinds};
use super::reader::{Reader, Request};
use super::{Layout, Residence, Source};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Result;
use crate::gpu::{Buffer, Gpu};
use crate::kernels::{Finish, Matrix, Packer};
use crate::model::weights::EMBEDDING;
use crate::quant::Scheme;

use rounded::Rounded;

/// All arms' weights, resident or passing through.
#[derive(Debug)]
pub(super) struct Loader {
    gpu: Arc<Gpu>,
    /// Each once.
    checkpoints: Vec<Arc<Checkpoint>>,
    arms: Vec<Arm>,
    quantize_head: bool,
    residence: Residence,
    kinds: Vec<Kind>,
    /// Of the checkpoints that arms are made of.
    embeddings: Vec<Embedding>,
    packer: Packer,
    rounded: Rounded,
    products: HashMap<(Scheme, usize, usize, Finish, bool), Products>,
    /// By block, checkpoint and tensor: the earlier checkpoint whose bytes it has, as far as is known.
    alike: HashMap<(usize, usize, String), usize>,
    loaded: BTreeMap<usize, Blocks>,
    /// The blocks still to come in this pass.
    coming: VecDeque<Coming>,
    reader: Option<Reader>,
    seconds: f64,
}

/// What an arm is made of.
#[derive(Clone, Debug)]
struct Arm {
    /// Which checkpoint.
    checkpoint: usize,
    /// From which its update leads, if its rounding asks for that.
    target: Option<usize>,
    source: Source,
}

/// A block under way.
#[derive(Debug)]
struct Coming {
    block: usize,
    steps: VecDeque<Step>,
    made: HashMap<(usize, String), Made>,
    joints: Joints,
}

/// By owner and packing: room for matrices that lie one below the other, if there is such.
type Joints = HashMap<(usize, Packing), Option<Matrix>>;

/// One tensor of all checkpoints.
#[derive(Debug)]
struct Step {
    part: Part,
    /// The checkpoints it is read from.
    checkpoints: Vec<usize>,
    arrived: Vec<Tensor>,
}

/// What became of a tensor.
#[derive(Debug)]
enum Made {
    Vector(Buffer),
    /// Stored so, and in every way that was needed.
    Matrices(Scheme, Vec<(Packing, Matrix)>),
}

impl Loader {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        sources: &[Source],
        quantize_head: bool,
        layout: &Layout,
    ) -> Result<Self> {
        let start = Instant::now();
        let mut checkpoints: Vec<Arc<Checkpoint>> = Vec::new();
        let mut arms = Vec::new();
        // Those that arms are made of come first: a pass computes for them.
        for own in [true, false] {
            for checkpoint in sources.iter().flat_map(|source| source.read().skip(usize::from(!own)).take(1))
            {
                if !checkpoints.iter().any(|known| Arc::ptr_eq(known, checkpoint)) {
                    checkpoints.push(Arc::clone(checkpoint));
                }
            }
        }
        let number = |checkpoint| checkpoints.iter().position(|known| Arc::ptr_eq(known, checkpoint));
        for source in sources {
            let mut read = source.read().map(number);
            let (Some(Some(checkpoint)), target) = (read.next(), read.next().flatten()) else {
                unreachable!("every checkpoint is known")
            };
            arms.push(Arm { checkpoint, target, source: source.clone() });
        }
        let config = sources.first().map(|source| source.checkpoint.config());
        let own = arms.iter().map(|arm: &Arm| arm.checkpoint + 1).max().unwrap_or(0);
        let embeddings = checkpoints[..own].iter().map(Embedding::new).collect::<Result<_>>()?;
        Ok(Self {
            gpu: Arc::clone(gpu),
            arms,
            quantize_head,
            residence: layout.residence,
            kinds: config.map(|config| kinds(config, layout.head_rows)).unwrap_or_default(),
            embeddings,
            checkpoints,
            packer: Packer::default(),
            rounded: Rounded::default(),
            products: HashMap::new(),
            alike: HashMap::new(),
            loaded: BTreeMap::new(),
            coming: VecDeque::new(),
            reader: None,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// How many blocks a pass has; the last ones are the head's.
    pub(super) fn blocks(&self) -> usize {
        self.kinds.len()
    }

    /// Seconds that the pass waited for weights, with uploading and packing.
    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// All checkpoints, each once: those that arms are made of, then those that only updates lead from.
    pub(super) fn read_checkpoints(&self) -> &[Arc<Checkpoint>] {
        &self.checkpoints
    }

    /// The checkpoints that arms are made of, each once.
    pub(super) fn checkpoints(&self) -> &[Arc<Checkpoint>] {
        &self.checkpoints[..self.embeddings.len()]
    }

    /// Which checkpoint an arm belongs to.
    pub(super) fn checkpoint_of(&self, arm: usize) -> usize {
        self.arms[arm].checkpoint
    }

    /// The embedding rows of `tokens` in one checkpoint, `[t, d]`.
    pub(super) fn embed(&mut self, checkpoint: usize, tokens: &[u32]) -> Result<Vec<f32>> {
        let start = Instant::now();
        let rows = self.embeddings[checkpoint].rows(tokens);
        self.seconds += start.elapsed().as_secs_f64();
        rows
    }

    /// Starts a pass that runs through the head `heads` times: what is not on the device begins to be read.
    pub(super) fn begin(&mut self, heads: usize) -> Result<()> {
        let start = Instant::now();
        if self.residence != Residence::Resident {
            self.loaded.clear();
        }
        self.reader = None;
        let head = self.kinds.iter().take_while(|kind| !matches!(kind, Kind::Head(_))).count();
        let again = if self.is_streamed() { heads.saturating_sub(1) } else { 0 };
        self.coming = (0..self.kinds.len())
            .chain((0..again).flat_map(|_| head..self.kinds.len()))
            .filter(|block| !self.loaded.contains_key(block))
            .map(|block| {
                Ok(Coming { block, steps: self.steps(block)?, made: HashMap::new(), joints: Joints::new() })
            })
            .collect::<Result<_>>()?;
        if !self.coming.is_empty() {
            let steps = self.coming.iter().flat_map(|coming| &coming.steps);
            let requests =
                steps.flat_map(|step| step.checkpoints.iter().map(|c| self.request(*c, &step.part)));
            self.reader = Some(Reader::start(requests.collect()));
        }
        self.seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// The tensors of a block in the order in which they are read.
    fn steps(&self, block: usize) -> Result<VecDeque<Step>> {
        let mut steps: VecDeque<Step> = VecDeque::new();
        for (number, checkpoint) in self.checkpoints.iter().enumerate() {
            for part in self.kinds[block].parts(checkpoint)? {
                if !self.is_read(block, number, &part)?
                    || self.alike.contains_key(&(block, number, part.name.clone()))
                {
                    continue;
                }
                match steps.iter_mut().find(|step| step.part == part) {
                    Some(step) => step.checkpoints.push(number),
                    None => steps.push_back(Step { part, checkpoints: vec![number], arrived: Vec::new() }),
                }
            }
        }
        Ok(steps)
    }

    /// Whether anything is made of a checkpoint's tensor: arms are made of the checkpoint, or the update of one that is
    /// quantized leads from it.
    fn is_read(&self, block: usize, checkpoint: usize, part: &Part) -> Result<bool> {
        if checkpoint < self.checkpoints().len() {
            return Ok(true);
        }
        let (stored, _) = self.checkpoints[checkpoint].tensors().describe(&part.name)?;
        let asks = |arm: &&Arm| {
            let precision = arm.source.precision_of(&part.name);
            let scheme = self.kinds[block].scheme(stored, precision, self.quantize_head);
            arm.target == Some(checkpoint) && precision.rounding().needs_target() && !scheme.is_full()
        };
        Ok(matches!(part.role, Role::Matrix { .. }) && self.arms.iter().any(|arm| asks(&arm)))
    }

    fn request(&self, checkpoint: usize, part: &Part) -> Request {
        Request {
            checkpoint: Arc::clone(&self.checkpoints[checkpoint]),
            name: part.name.clone(),
            shape: part.shape.clone(),
            rows: part.rows.clone(),
            held: match self.embeddings.get(checkpoint) {
                Some(embedding) if part.name == EMBEDDING => embedding.held(),
                _ => None,
            },
        }
    }

    /// Every arm's block, loaded if it is not there yet.
    pub(super) fn take(&mut self, block: usize) -> Result<Blocks> {
        let start = Instant::now();
        while !self.loaded.contains_key(&block) && !self.coming.is_empty() {
            self.step(true)?;
        }
        self.seconds += start.elapsed().as_secs_f64();
        let Some(blocks) = self.loaded.get(&block) else { unreachable!("block {block} of this pass") };
        Ok(blocks.clone())
    }

    /// Goes on with the block after `block` as far as that needs no waiting, if there is room for both.
    pub(super) fn ahead(&mut self, block: usize) -> Result<()> {
        let overlaps = self.residence == Residence::Streamed { overlap: true };
        if overlaps && self.coming.front().is_some_and(|coming| coming.block == block + 1) {
            let start = Instant::now();
            self.step(false)?;
            self.seconds += start.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Whether blocks leave the device after use.
    pub(super) fn is_streamed(&self) -> bool {
        self.residence != Residence::Resident
    }

    /// Lets a block go that is not resident; the device must be done with it.
    pub(super) fn release(&mut self, block: usize) {
        if self.is_streamed() {
            self.loaded.remove(&block);
        }
    }

    /// Takes one tensor from the reader and makes of it what the block needs.
    fn step(&mut self, wait: bool) -> Result<()> {
        let Some(mut coming) = self.coming.pop_front() else { return Ok(()) };
        if let Some(step) = coming.steps.front_mut() {
            let tensor = match (&self.reader, wait) {
                (Some(reader), true) => Some(reader.next()?),
                (Some(reader), false) => reader.try_next()?,
                (None, _) => None,
            };
            let Some(tensor) = tensor else {
                self.coming.push_front(coming);
                return Ok(());
            };
            step.arrived.push(tensor);
            if step.arrived.len() == step.checkpoints.len()
                && let Some(step) = coming.steps.pop_front()
            {
                self.make(coming.block, step, &mut coming.made, &mut coming.joints)?;
            }
        }
        if coming.steps.is_empty() {
            let blocks = self.assemble(coming.block, &coming.made)?;
            self.loaded.insert(coming.block, blocks);
        } else {
            self.coming.push_front(coming);
        }
        Ok(())
    }

    /// The checkpoint whose bytes a tensor has.
    fn owner(&self, block: usize, checkpoint: usize, name: &str) -> usize {
        self.alike.get(&(block, checkpoint, name.to_owned())).copied().unwrap_or(checkpoint)
    }

    /// Uploads and packs one tensor of all checkpoints.
    fn make(
        &mut self,
        block: usize,
        step: Step,
        made: &mut HashMap<(usize, String), Made>,
        joints: &mut Joints,
    ) -> Result<()> {
        let Step { part, checkpoints, arrived } = step;
        let mut owners: Vec<(usize, Tensor)> = Vec::new();
        for (checkpoint, tensor) in checkpoints.into_iter().zip(arrived) {
            match owners.iter().find(|(_, known)| *known == tensor) {
                Some((owner, _)) => {
                    self.alike.insert((block, checkpoint, part.name.clone()), *owner);
                }
                None => owners.push((checkpoint, tensor)),
            }
        }
        for (owner, tensor) in &owners {
            let owner = *owner;
            let thing = match part.role {
                Role::Vector => Made::Vector(self.gpu.upload(&part.name, &tensor.to_f32())?),
                Role::Matrix { .. } => {
                    let packings = self.packings(block, owner, &part, tensor.dtype).into_iter();
                    let matrices =
                        packings.map(|how| Ok((how, self.place(block, owner, &part, how, joints)?)));
                    let matrices = matrices.collect::<Result<Vec<_>>>()?;
                    self.pack((block, owner), &part, tensor, &matrices, &owners)?;
                    Made::Matrices(tensor.dtype, matrices)
                }
            };
            made.insert((owner, part.name.clone()), thing);
        }
        Ok(())
    }
}
