// Numbering of workgroups in a folded grid.

// Workgroups in the first dimension; gpu::GRID_X.
const GRID_X: u32 = 32768u;

fn flat_workgroup(id: vec3<u32>) -> u32 {
    return id.y * GRID_X + id.x;
}
