// The histogram's bins. BINS, SHARE_BITS and OCTAVES_BELOW come from quant::change.

// The place of |delta| / step, by integer division of the mantissas. Twin: quant::change::place.
fn place(delta: f32, step: f32) -> u32 {
    let d = bitcast<u32>(delta) & 0x7fffffffu;
    let s = bitcast<u32>(step);
    if d == 0u {
        return 1u;
    }
    let md = (d & 0x7fffffu) | 0x800000u;
    let ms = (s & 0x7fffffu) | 0x800000u;
    let borrow = select(0u, 1u, md < ms);
    let share = (md << (SHARE_BITS + borrow)) / ms - (1u << SHARE_BITS);
    let octave = i32(d >> 23u) - i32(s >> 23u) - i32(borrow) + i32(OCTAVES_BELOW);
    let bin = octave * i32(1u << SHARE_BITS) + i32(share);
    return u32(clamp(bin, 0, i32(BINS) - 2)) + 1u;
}
