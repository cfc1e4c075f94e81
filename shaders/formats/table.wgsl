// Weight formats fp4-b64 and nf4-b64: eight table indices a word, lowest nibble first, one absmax for
// 64 neighbours of the flat row-major matrix.
//
// w = table[index] * absmax. Links common/nibbles.wgsl, common/group_flat.wgsl, tables/*.wgsl, which gives
// `value_of(indices)`, and formats/read/words.wgsl or formats/read/word_runs.wgsl.

alias Scale = f32;

fn decode(word: u32, scale: Scale) -> Oct {
    let codes = unsigned_nibbles(word);
    return Oct(value_of(codes.lo) * scale, value_of(codes.hi) * scale);
}
