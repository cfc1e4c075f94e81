// Weight format int4-asym-gN: eight unsigned nibbles a word, lowest first; pairs of scale and zero point.
//
// w = (code - zero) * scale. Links common/nibbles.wgsl, common/group_run.wgsl, and formats/read/words.wgsl or
// formats/read/word_runs.wgsl.

alias Scale = vec2<f32>;

fn decode(word: u32, scale: Scale) -> Oct {
    let codes = unsigned_nibbles(word);
    let zero = vec4<f32>(scale.y);
    return Oct((vec4<f32>(codes.lo) - zero) * scale.x, (vec4<f32>(codes.hi) - zero) * scale.x);
}
