//! Cases of every operation, one file each.

pub(super) mod argmax;
pub(super) mod attention;
pub(super) mod beam_candidates;
pub(super) mod cache;
pub(super) mod conv1d;
pub(super) mod conv_transpose1d;
pub(super) mod decode_greedy;
pub(super) mod embed;
pub(super) mod layer_norm;
pub(super) mod linear;
pub(super) mod patch_embed;
pub(super) mod top_k;
pub(super) mod transpose;
