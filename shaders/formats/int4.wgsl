// Weight formats int4-gN and int4-row: eight two's-complement nibbles a word, lowest first.
//
// w = code * scale. Links common/nibbles.wgsl, common/group_run.wgsl or common/group_row.wgsl, and
// formats/read/words.wgsl or formats/read/word_runs.wgsl.

alias Scale = f32;

fn decode(word: u32, scale: Scale) -> Oct {
    let codes = signed_nibbles(word);
    return Oct(codes.lo * scale, codes.hi * scale);
}
