//! Tasks in, observations out.

/// One prompt of a suite and what is asked of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Token ids of the prompt (generate) or of the whole text (score), BOS included; never empty.
    pub tokens: Vec<u32>,
    /// What to do with them.
    pub ask: Ask,
}

/// What is asked of a [`Task`]'s tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Continue greedily.
    Generate {
        /// Most tokens to add.
        max_new: usize,
        /// End after any of these (the model's end-of-sequence ids).
        stop: Vec<u32>,
    },
    /// The log-probability of every token after the first.
    Score,
}

/// What one arm answered to one [`Task`].
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// The new tokens, with the stop token if one came.
    Generated {
        /// Token ids.
        tokens: Vec<u32>,
        /// log p of each under the model, in nats.
        log_probs: Vec<f32>,
    },
    /// One entry for each token after the first.
    Scored {
        /// log p(token | tokens before), in nats.
        log_probs: Vec<f32>,
        /// The most likely token at the same place.
        argmax: Vec<u32>,
    },
}
