//! Weights on their way to the device: each checkpoint's tensor is read once a pass, uploaded once as stored, and
//! packed into every scheme that an arm needs. What is byte-identical between checkpoints is held once.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::block::{Attention, Block, Blocks, FeedForward, HeadRows, Products, Projection, Together};
use super::embedding::Embedding;
use super::parts::{Kind, Packing, Part, Role, kinds};
use super::reader::{Reader, Request};
use super::{Layout, Residence, Source};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Result;
use crate::gpu::{Buffer, Gpu};
use crate::kernels::{Finish, Matmul, Matrix, Matvec, Packer, Stored};
use crate::model::weights::EMBEDDING;
use crate::quant::{Rounding, Scheme};

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
    embeddings: Vec<Embedding>,
    packer: Packer,
    products: HashMap<(Scheme, usize, usize, Finish), Products>,
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

/// A matrix on its way into a block.
#[derive(Debug)]
struct Piece {
    matrix: Matrix,
    bias: Option<Buffer>,
    finish: Finish,
    launched: usize,
}

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
        let embeddings = checkpoints.iter().map(Embedding::new).collect::<Result<_>>()?;
        Ok(Self {
            gpu: Arc::clone(gpu),
            arms,
            quantize_head,
            residence: layout.residence,
            kinds: config.map(|config| kinds(config, layout.head_rows)).unwrap_or_default(),
            embeddings,
            checkpoints,
            packer: Packer::default(),
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
        let own = self.arms.iter().map(|arm| arm.checkpoint + 1).max().unwrap_or(0);
        &self.checkpoints[..own]
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
            held: if part.name == EMBEDDING { self.embeddings[checkpoint].held() } else { None },
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
                    self.pack(&part, tensor, &matrices, &owners)?;
                    Made::Matrices(tensor.dtype, matrices)
                }
            };
            made.insert((owner, part.name.clone()), thing);
        }
        Ok(())
    }

    /// Uploads a tensor and makes all `matrices` of it; the updates lead from others of `owners`.
    fn pack(
        &mut self,
        part: &Part,
        tensor: &Tensor,
        matrices: &[(Packing, Matrix)],
        owners: &[(usize, Tensor)],
    ) -> Result<()> {
        let stored = |tensor| as_stored(part, tensor);
        let is_nearest = |(how, _): &&(Packing, Matrix)| how.rounding == Rounding::Nearest;
        let nearest: Vec<_> = matrices.iter().filter(is_nearest).map(|(_, matrix)| matrix.clone()).collect();
        if !nearest.is_empty() {
            self.packer.pack_into(&self.gpu, &nearest, stored(tensor))?;
        }
        for (how, matrix) in matrices.iter().filter(|matrix| !is_nearest(matrix)) {
            let target = how.target.and_then(|target| owners.iter().find(|(owner, _)| *owner == target));
            let target = target.map(|(_, tensor)| stored(tensor));
            self.packer.round_into(
                &self.gpu,
                matrix,
                how.rounding,
                stored(tensor),
                target,
                part.rows.start,
            )?;
        }
        Ok(())
    }

    /// How an arm needs a tensor that is stored in `stored`.
    fn packing(&self, block: usize, arm: &Arm, name: &str, stored: Scheme) -> Packing {
        let precision = arm.source.precision_of(name);
        let scheme = self.kinds[block].scheme(stored, precision, self.quantize_head);
        let rounding = if scheme.is_full() { Rounding::Nearest } else { precision.rounding() };
        let owner = |checkpoint| self.owner(block, checkpoint, name);
        let target = arm.target.filter(|_| rounding.needs_target()).map(owner);
        // Without an update the nearest codes are what there is.
        let updated = target.is_some_and(|target| target != owner(arm.checkpoint));
        if rounding.needs_target() && !updated {
            return Packing { scheme, rounding: Rounding::Nearest, target: None };
        }
        Packing { scheme, rounding, target }
    }

    /// The ways in which arms need an owner's tensor.
    fn packings(&self, block: usize, owner: usize, part: &Part, stored: Scheme) -> Vec<Packing> {
        let users = self.arms.iter().filter(|arm| self.owner(block, arm.checkpoint, &part.name) == owner);
        let mut packings: Vec<_> = users.map(|arm| self.packing(block, arm, &part.name, stored)).collect();
        packings.sort_unstable();
        packings.dedup();
        packings
    }

    /// Memory for a matrix: below those that are launched with it, where all of them are needed so.
    fn place(
        &self,
        block: usize,
        owner: usize,
        part: &Part,
        how: Packing,
        joints: &mut Joints,
    ) -> Result<Matrix> {
        let scheme = how.scheme;
        let checkpoint = &self.checkpoints[owner];
        let members = self.kinds[block].together(checkpoint)?;
        let (n, k) = (part.rows.len(), part.shape[1]);
        if let Some(own) = members.iter().position(|member| member.name == part.name) {
            let ends = members.iter().scan(0, |end, member| {
                *end += member.rows.len();
                Some(*end)
            });
            let ends: Vec<usize> = ends.collect();
            let rows = |index: usize| ends[index] - members[index].rows.len()..ends[index];
            if let Entry::Vacant(vacant) = joints.entry((owner, how)) {
                let mut wanted = true;
                for member in &members {
                    let (stored, _) = checkpoint.tensors().describe(&member.name)?;
                    wanted &= self.packings(block, owner, member, stored).contains(&how);
                }
                let total = ends.last().copied().unwrap_or(0);
                let fits = Matrix::bytes_of(scheme, total, k) <= self.gpu.max_binding_bytes();
                let cuts = ends.iter().all(|end| Matrix::is_cut_at(scheme, *end, k));
                let joint = (wanted && fits && cuts)
                    .then(|| Packer::allocate(&self.gpu, &part.name, scheme, total, k))
                    .transpose()?;
                vacant.insert(joint);
            }
            let joint = joints.get(&(owner, how)).and_then(Option::as_ref);
            if let Some(matrix) = joint.and_then(|joint| joint.rows(rows(own))) {
                return Ok(matrix);
            }
        }
        Packer::allocate(&self.gpu, &part.name, scheme, n, k)
    }

    /// Every arm's block of what was made; arms of which all parts are the same share one.
    fn assemble(&mut self, block: usize, made: &HashMap<(usize, String), Made>) -> Result<Blocks> {
        let kind = self.kinds[block].clone();
        let mut known: HashMap<Vec<(usize, Option<Packing>)>, Arc<Block>> = HashMap::new();
        let mut blocks = Vec::with_capacity(self.arms.len());
        for arm in self.arms.clone() {
            let checkpoint = arm.checkpoint;
            let parts = kind.parts(&self.checkpoints[checkpoint])?;
            let mut key = Vec::with_capacity(parts.len());
            let mut things = Vec::with_capacity(parts.len());
            for part in parts {
                let owner = self.owner(block, checkpoint, &part.name);
                let Some(thing) = made.get(&(owner, part.name.clone())) else {
                    unreachable!("{} was loaded", part.name)
                };
                let how = match thing {
                    Made::Vector(_) => None,
                    Made::Matrices(stored, _) => Some(self.packing(block, &arm, &part.name, *stored)),
                };
                key.push((owner, how));
                things.push((part, thing, how));
            }
            if let Some(block) = known.get(&key) {
                blocks.push(Arc::clone(block));
                continue;
            }
            let built = Arc::new(self.build(&kind, things)?);
            known.insert(key, Arc::clone(&built));
            blocks.push(built);
        }
        Ok(blocks)
    }

    /// A block of its parts: a norm, then matrices, each with its bias after it if it has one.
    fn build(&mut self, kind: &Kind, things: Vec<(Part, &Made, Option<Packing>)>) -> Result<Block> {
        let mut norm = None;
        let mut pieces: Vec<Piece> = Vec::new();
        for (part, thing, how) in things {
            match (thing, part.role) {
                (Made::Vector(buffer), _) => match pieces.last_mut() {
                    None => norm = Some(buffer.clone()),
                    Some(piece) => piece.bias = Some(buffer.clone()),
                },
                (Made::Matrices(_, matrices), Role::Matrix { finish, launched }) => {
                    let Some((_, matrix)) = matrices.iter().find(|(own, _)| Some(*own) == how) else {
                        unreachable!("{} was packed for every arm", part.name)
                    };
                    pieces.push(Piece { matrix: matrix.clone(), bias: None, finish, launched });
                }
                (Made::Matrices(..), Role::Vector) => unreachable!("{} is a vector", part.name),
            }
        }
        let (Some(norm), Some(last)) = (norm, pieces.pop()) else {
            unreachable!("a block begins with its norm and ends with a matrix")
        };
        let last = self.projection(last)?;
        Ok(match kind {
            Kind::Attention(_) => {
                let qkv = self.together(pieces, false)?;
                Block::Attention(Attention { norm, qkv, o: last })
            }
            Kind::FeedForward(_) => {
                let gate_up = self.together(pieces, true)?;
                Block::FeedForward(FeedForward { norm, gate_up, down: last })
            }
            Kind::Head(rows) => Block::Head(HeadRows { norm, rows: last, first: rows.start }),
        })
    }

    fn projection(&mut self, piece: Piece) -> Result<Projection> {
        let Piece { matrix, bias, finish, launched } = piece;
        let products = self.products(&matrix, launched, finish)?;
        Ok(Projection { columns: finish.columns(matrix.n), matrix, bias, products })
    }

    /// Matrices that multiply the same rows, in one launch if they lie together and have a bias all or none; with
    /// `gated` none may have one.
    fn together<const N: usize>(&mut self, pieces: Vec<Piece>, gated: bool) -> Result<Together<N>> {
        let mut matrices = pieces.iter().map(|piece| &piece.matrix);
        let first = matrices.next().cloned();
        let joined = matrices.fold(first, |whole, next| whole.and_then(|whole| whole.joined(next)));
        let biases: Vec<_> =
            pieces.iter().filter_map(|piece| Some((piece.bias.as_ref()?, piece.matrix.n))).collect();
        let alike = biases.is_empty() || (biases.len() == N && !gated);
        if let Some(matrix) = joined.filter(|_| alike) {
            let bias = match biases.as_slice() {
                [] => None,
                biases => Some(self.side_by_side(biases)?),
            };
            let finish = Finish { bias: bias.is_some(), add: false, gated };
            let launched = matrix.n;
            return Ok(Together::Joined(self.projection(Piece { matrix, bias, finish, launched })?));
        }
        let count = pieces.len();
        let each = pieces.into_iter().map(|piece| self.projection(piece)).collect::<Result<Vec<_>>>()?;
        let each = each.try_into().unwrap_or_else(|_| unreachable!("{count} matrices, not {N}"));
        Ok(Together::Apart(each))
    }

    /// A copy of vectors, each with its length, in one.
    fn side_by_side(&self, vectors: &[(&Buffer, usize)]) -> Result<Buffer> {
        let total: usize = vectors.iter().map(|(_, n)| n).sum();
        let whole = self.gpu.alloc("biases", 4 * total as u64)?;
        let mut first = 0;
        for (vector, n) in vectors {
            let bytes = 4 * *n as u64;
            self.gpu.copy(&vector.slice(0, bytes), &whole.slice(first, bytes));
            first += bytes;
        }
        Ok(whole)
    }

    /// The kernels for a matrix, chosen once for each class: the last rows of a head use what the first ones do.
    fn products(&mut self, matrix: &Matrix, launched: usize, finish: Finish) -> Result<Products> {
        let class = (matrix.scheme, launched, matrix.k, finish);
        if let Some(products) = self.products.get(&class) {
            return Ok(products.clone());
        }
        let products = Products {
            matmul: Matmul::tuned(&self.gpu, matrix, launched, finish)?,
            matvec: Matvec::tuned(&self.gpu, matrix, launched, finish)?,
        };
        self.products.insert(class, products.clone());
        Ok(products)
    }
}

/// A tensor as the packer takes it.
fn as_stored<'a>(part: &'a Part, tensor: &'a Tensor) -> Stored<'a> {
    let (n, k) = (part.rows.len(), part.shape[1]);
    Stored { name: &part.name, dtype: tensor.dtype, bytes: &tensor.bytes, n, k }
}
