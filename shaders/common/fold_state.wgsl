// A row's statistics: what fold.wgsl folds logits into.

struct State {
    top: f32, // the greatest logit
    sum: f32, // of exp(logit - top)
    given_logit: f32, // of the token asked for
    argmax: u32, // the token of the greatest logit, the lowest among equals
}
