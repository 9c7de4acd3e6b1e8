//! A result that several tasks write concurrently, each its own part, where the parts are no runs of memory that safe
//! splitting could hand out (columns of a row-major matrix).

/// The start of such a result.
#[derive(Clone, Copy)]
pub(super) struct Disjoint(*mut f32);
// SAFETY: the pointer is only turned into references by `slice`, whose caller promises that parts do not overlap.
unsafe impl Send for Disjoint {}
// SAFETY: as above.
unsafe impl Sync for Disjoint {}

impl Disjoint {
    /// `values` has to outlive every use.
    pub fn new(values: &mut [f32]) -> Disjoint {
        Disjoint(values.as_mut_ptr())
    }

    /// The same result, counted from element `start`.
    pub fn offset(self, start: usize) -> Disjoint {
        Disjoint(self.0.wrapping_add(start))
    }

    /// Where element `index` stands.
    pub fn address(self, index: usize) -> *const f32 {
        self.0.wrapping_add(index)
    }

    /// # Safety
    /// The range has to lie in the result and belong to the calling task alone.
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.wrapping_add(start), len) }
    }
}
